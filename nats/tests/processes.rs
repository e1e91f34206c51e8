//! Workers that are processes, and die.

mod common;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use futureproof::prelude::*;
use futureproof_nats::{RemoteError, Worker, connect};
use tempfile::TempDir;

const URL: &str = "FUTUREPROOF_TEST_URL";
const NAME: &str = "FUTUREPROOF_TEST_NAME";
const THREADS: &str = "FUTUREPROOF_TEST_THREADS";

/// Not a test of its own: the worker processes of the others are this program, started to run this.
#[test]
#[ignore = "started by the other tests"]
fn worker_process() {
    let (Ok(url), Ok(name)) = (std::env::var(URL), std::env::var(NAME)) else {
        return;
    };
    // The test holds the other end. If it dies, however, so does this.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::abort();
    });
    let threads = std::env::var(THREADS).map_or(4, |threads| threads.parse().unwrap());
    let worker = Worker::new(url, &name)
        .num_threads(threads)
        .lease(Duration::from_millis(500));
    worker.run(work).unwrap();
}

fn worker(url: &str, name: &str) -> Process {
    worker_of(4, url, name)
}

fn worker_of(threads: usize, url: &str, name: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "worker_process", "--ignored", "--nocapture"]);
    command.env(URL, url).env(NAME, name);
    command.env(THREADS, threads.to_string());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Process::start(&mut command).unwrap()
}

/// Starts a worker again whenever it has ended, until it is dropped.
struct Supervisor<'scope> {
    over: &'scope AtomicBool,
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_item_that_kills_its_workers_is_given_up_and_the_others_succeed() {
    let _dog = watchdog(180);
    let server = NatsServer::start();
    let url = server.url();
    let dir = TempDir::new().unwrap();
    let once = dir.path().join("once").to_str().unwrap().to_owned();
    let function = connect(&*url)
        .unwrap()
        .function::<Job, Done, String>("killer")
        .max_deliver(2)
        .start()
        .unwrap();

    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _supervisor = Supervisor { over: &over };
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let mut process = worker(&url, "killer");
                    eventually("the worker has died, or the test is over", || {
                        over.load(Ordering::Relaxed) || process.has_ended()
                    });
                }
            });
        }
        // Not together: each death takes its neighbours' deliveries with it.
        let answer = function.call(&Job::AbortOnce(once.clone())).unwrap();
        assert_eq!((answer.output.number, answer.deliveries), (1, 2));
        assert_eq!(
            function.call(&Job::Abort),
            Err(RemoteError::Lost { deliveries: 2 })
        );
        assert_eq!(function.call(&Job::Double(4)).unwrap().output.number, 8);
    });
    eventually("the queue is empty", || queued(&url, "killer") == 0);
    let counters = function.counters();
    assert_eq!(
        (counters.lost, counters.redelivered, counters.late),
        (1, 1, 0)
    );
}

/// Runs `f` beside workers that are started again whenever they have died.
fn with_workers<T>(
    count: usize,
    threads: usize,
    url: &str,
    name: &str,
    f: impl FnOnce() -> T,
) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _supervisor = Supervisor { over: &over };
        for _ in 0..count {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let mut process = worker_of(threads, url, name);
                    while !over.load(Ordering::Relaxed) && !process.has_ended() {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            });
        }
        f()
    })
}

#[test]
fn the_neighbours_of_a_poisonous_item_all_succeed() {
    let _dog = watchdog(300);
    let server = NatsServer::start();
    let url = &server.url();
    let rounds: usize = std::env::var("ROUNDS").map_or(10, |rounds| rounds.parse().unwrap());
    std::thread::scope(|scope| {
        for round in 0..rounds {
            scope.spawn(move || {
                let name = &format!("poison{round}");
                let connection = connect(&**url).unwrap();
                let function = connection
                    .function::<Job, Done, String>(name)
                    .start()
                    .unwrap();
                let jobs = [20, 300, 0, 300, 20].map(|ms| match ms {
                    0 => Job::Abort,
                    ms => Job::Sleep(ms),
                });
                with_workers(1, 4, url, name, || {
                    let run = jobs.into_iter().futureproof(Ignore).num_threads(5);
                    for task in run.map_tasks(function.into_fn()) {
                        match task {
                            Ok(task) => assert!(task.output.deliveries <= 3),
                            Err(failure) => {
                                assert_eq!(failure.index(), 2, "{:?}", failure.error());
                                let lost = RemoteError::Lost { deliveries: 3 };
                                assert_eq!(failure.error(), Some(&lost));
                            }
                        }
                    }
                });
            });
        }
    });
}

/// `POISONOUS` of `ITEMS`. Each is `Lost` after three deaths, and nothing else is.
#[test]
fn of_many_items_only_the_poisonous_are_lost() {
    let _dog = watchdog(900);
    let number = |name: &str, default: u64| -> u64 {
        std::env::var(name).map_or(default, |number| number.parse().unwrap())
    };
    let (items, poisonous) = (number("ITEMS", 200), number("POISONOUS", 5));
    let server = NatsServer::start();
    let url = server.url();
    let connection = connect(&*url).unwrap();
    let function = connection.function::<Job, Done, String>("many");
    let function = function.deadline(Duration::from_secs(800)).start().unwrap();
    let every = items / poisonous;
    let jobs = (0..items).map(|n| match n % every {
        7 => Job::Abort,
        _ => Job::Sleep(n % 20),
    });
    let start = std::time::Instant::now();
    let mut lost = 0;
    with_workers(2, 8, &url, "many", || {
        let run = jobs.futureproof(Ignore).num_threads(32);
        for task in run.map_tasks(function.into_fn()) {
            if let Err(failure) = task {
                assert_eq!(failure.index() % every, 7, "{:?}", failure.error());
                assert_eq!(failure.error(), Some(&RemoteError::Lost { deliveries: 3 }));
                lost += 1;
            }
        }
    });
    println!("{lost} of {items} lost in {:?}", start.elapsed());
    assert_eq!(lost, poisonous);
}

#[test]
fn sigterm_finishes_what_runs_and_takes_no_more() {
    let _dog = watchdog(180);
    let server = NatsServer::start();
    let url = server.url();
    let dir = TempDir::new().unwrap();
    let started = dir.path().join("started");
    let mut process = worker(&url, "graceful");
    let function = remote(&url, "graceful");
    let slow = Job::Slow(started.to_str().unwrap().to_owned(), 1500);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| function.call(&slow));
        eventually("the task runs", || started.exists());
        process.terminate();
        let answer = call.join().unwrap().unwrap();
        assert_eq!(answer.deliveries, 1);
        assert!(answer.worker.ends_with(&format!("-{}", process.id())));
        assert!(process.wait(), "it ends in order");
        // What comes now waits for the next worker, which the first did not take.
        let call = scope.spawn(|| function.call(&Job::Double(4)));
        eventually("it is queued", || queued(&url, "graceful") == 1);
        let _process = worker(&url, "graceful");
        assert_eq!(call.join().unwrap().unwrap().deliveries, 1);
    });
}

#[test]
fn a_second_sigterm_ends_a_worker_at_once_and_its_task_goes_to_another() {
    let _dog = watchdog(180);
    let server = NatsServer::start();
    let url = server.url();
    let dir = TempDir::new().unwrap();
    let started = dir.path().join("started");
    let mut process = worker(&url, "twice");
    let function = remote(&url, "twice");
    // Far longer than the test's watchdog allows, if it were waited for; the second worker finds the file.
    let once = Job::HangOnce(started.to_str().unwrap().to_owned());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| function.call(&once));
        eventually("the task runs", || started.exists());
        eventually("the process has ended", || {
            process.terminate();
            process.has_ended()
        });
        assert!(!process.wait());
        let _process = worker(&url, "twice");
        assert_eq!(call.join().unwrap().unwrap().deliveries, 2);
    });
}

/// Four processes, one of them killed every 200 ms and replaced, and the server restarted half-way.
#[test]
fn through_kills_and_a_restart_each_task_comes_back_exactly_once() {
    let _dog = watchdog(300);
    let mut server = NatsServer::start();
    let url = server.url();
    let function = connect(&*url)
        .unwrap()
        .function::<Job, Done, String>("storm")
        .max_deliver(50)
        .start()
        .unwrap();
    let counters = function.stop_handle();
    let over = AtomicBool::new(false);
    let kills = std::thread::scope(|scope| {
        let supervisor = Supervisor { over: &over };
        let killer = scope.spawn(|| {
            let mut processes: Vec<_> = (0..4).map(|_| worker(&url, "storm")).collect();
            let mut kills = 0;
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                // The oldest, by SIGKILL.
                drop(processes.remove(0));
                processes.push(worker(&url, "storm"));
                kills += 1;
            }
            kills
        });
        let jobs = (0..2000u64).map(|n| match n % 10 {
            0 => Job::Fail(n),
            1 => Job::Sleep(100),
            2..=6 => Job::Sleep(30),
            _ => Job::Double(n),
        });
        let run = jobs
            .futureproof(Ignore)
            .num_threads(64)
            .map_tasks(function.into_fn());
        let mut seen = vec![0; 2000];
        for (count, task) in run.enumerate() {
            let index = match task {
                Ok(task) => {
                    let expected = match task.input {
                        Job::Double(n) => n * 2,
                        Job::Sleep(ms) => ms,
                        job => panic!("{job:?} cannot succeed"),
                    };
                    assert_eq!(task.output.output.number, expected);
                    task.index
                }
                Err(failure) => {
                    let index = failure.index();
                    let expected = RemoteError::Task(format!("{index} is refused"));
                    assert_eq!(failure.error(), Some(&expected));
                    index
                }
            };
            seen[index as usize] += 1;
            if count == 1000 {
                server.down();
                server.up();
            }
        }
        assert!(seen.iter().all(|&times| times == 1));
        drop(supervisor);
        killer.join().unwrap()
    });
    let counters = counters.counters();
    println!("{kills} kills, {counters:?}");
    assert!(kills > 4, "only {kills} workers were killed");
    assert_eq!(
        (counters.calls, counters.answered, counters.failed),
        (2000, 2000, 200)
    );
    let _last = worker(&url, "storm");
    eventually("the queue is empty", || queued(&url, "storm") == 0);
}
