//! What a task costs that is done elsewhere, on this machine over the loopback: `cargo bench -p futureproof-nats`.
//! Needs `nats-server`. The worker processes are this program, started again.

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use common::{NatsServer, Process, watchdog};
use futureproof::prelude::*;
use futureproof_nats::{Answer, Remote, RemoteError, Worker, connect};

const URL: &str = "FUTUREPROOF_BENCH_URL";
const THREADS: &str = "FUTUREPROOF_BENCH_THREADS";
const LEASE: Duration = Duration::from_secs(1);

/// Milliseconds to sleep.
type Sleep = Remote<u64, u64, String>;

fn serve(url: String, threads: usize) {
    thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let worker = Worker::new(url, "sleep").num_threads(threads).lease(LEASE);
    let served = worker.run(|ms: &u64| {
        if *ms > 0 {
            thread::sleep(Duration::from_millis(*ms));
        }
        Ok::<u64, String>(*ms)
    });
    served.expect("the server is there");
}

fn worker(url: &str, threads: usize) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.env(URL, url).env(THREADS, threads.to_string());
    command.stdin(Stdio::piped());
    Process::start(&mut command).expect("this program starts again")
}

fn remote(url: &str) -> Sleep {
    let connection = connect(url).expect("the server is there");
    connection
        .function("sleep")
        .max_deliver(20)
        .start()
        .expect("it gives a queue")
}

/// Tasks a second.
fn rate(url: &str, in_flight: usize, ms: u64, tasks: u64) -> f64 {
    let remote = remote(url);
    let counters = remote.stop_handle();
    let f = remote.into_fn();
    let call = move |ms: &u64| -> Result<Answer<u64>, RemoteError<String>> { f(ms) };
    let items = std::iter::repeat_n(ms, tasks as usize);
    let run = items
        .futureproof(Raise)
        .num_threads(in_flight)
        .max_in_flight(in_flight * 2)
        .map_tasks(call);
    let start = Instant::now();
    assert_eq!(run.flatten().count() as u64, tasks);
    let rate = tasks as f64 / start.elapsed().as_secs_f64();
    let again = counters.counters().redelivered;
    if again > 0 {
        // It has waited for a lease.
        println!("  {again} of {tasks} tasks were delivered twice");
    }
    rate
}

fn round_trip(url: &str) {
    let remote = remote(url);
    let mut times: Vec<_> = (0..2000)
        .map(|_| {
            let start = Instant::now();
            remote.call(&0).expect("a worker is there");
            start.elapsed()
        })
        .collect();
    times.sort();
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!(
        "round trip, one in flight: p50 {:?}, p90 {:?}, p99 {:?}",
        at(0.5),
        at(0.9),
        at(0.99)
    );
}

/// From a kill of one of two workers to the last answer of what both had.
fn recovery(url: &str) {
    let remote = &remote(url);
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let workers = Mutex::new(vec![worker(url, 4), worker(url, 4)]);
            // Both are there.
            let mut seen = std::collections::HashSet::new();
            while seen.len() < 2 {
                thread::scope(|scope| {
                    let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| remote.call(&50))).collect();
                    seen.extend(
                        calls
                            .into_iter()
                            .map(|call| call.join().expect("no panic").expect("an answer").worker),
                    );
                });
            }
            let mut killed = Instant::now();
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| remote.call(&200).expect("the other one does it"));
                }
                thread::sleep(Duration::from_millis(100));
                drop(workers.lock().expect("no panic").pop());
                killed = Instant::now();
            });
            killed.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "all 8 tasks of 200 ms done after a kill of one of two workers (lease {LEASE:?}): median {:?}, worst {:?}",
        times[2], times[4]
    );
}

fn main() {
    if let (Ok(url), Ok(threads)) = (std::env::var(URL), std::env::var(THREADS)) {
        return serve(url, threads.parse().expect("a number"));
    }
    let _dog = watchdog(300);
    let server = NatsServer::start();
    let url = server.url();
    {
        let _worker = worker(&url, 1);
        round_trip(&url);
    }
    {
        let _workers = [worker(&url, 64), worker(&url, 64)];
        for in_flight in [16, 64, 256] {
            for ms in [0, 1, 10] {
                rate(&url, in_flight, ms, 200);
                let rate = rate(&url, in_flight, ms, 4000);
                println!(
                    "{in_flight:4} in flight, tasks of {ms:2} ms, 2 workers of 64 threads: {rate:6.0} tasks/s"
                );
            }
        }
    }
    let mut one = 0.0;
    for count in [1, 2, 4, 8] {
        let _workers: Vec<_> = (0..count).map(|_| worker(&url, 4)).collect();
        rate(&url, 64, 50, 128);
        let rate = rate(&url, 64, 50, 160 * count);
        if count == 1 {
            one = rate;
        }
        let share = rate / one / count as f64 * 100.0;
        println!(
            "{count} worker processes of 4 threads, tasks of 50 ms: {rate:5.0} tasks/s, {share:.0} % of {count} times one"
        );
    }
    recovery(&url);
}
