//! Workers that are processes, and die.

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::*;
use futureproof::prelude::*;
use futureproof_nats::{RemoteError, Server, Worker, connect};
use tempfile::TempDir;

const URL: &str = "FUTUREPROOF_TEST_URL";
const NAME: &str = "FUTUREPROOF_TEST_NAME";
const THREADS: &str = "FUTUREPROOF_TEST_THREADS";
/// In place of a number of threads.
const CALLER: &str = "caller";

/// Not a test of its own: the worker processes of the others are this program, started to run this.
#[test]
#[ignore = "started by the other tests"]
fn worker_process() {
    let (Ok(url), Ok(name)) = (std::env::var(URL), std::env::var(NAME)) else {
        return;
    };
    env_logger::init();
    // The test holds the other end. If it dies, however, so does this.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::abort();
    });
    if std::env::var(THREADS).as_deref() == Ok(CALLER) {
        return call_without_end(&url, &name);
    }
    let threads = std::env::var(THREADS).map_or(4, |threads| threads.parse().unwrap());
    let server = Server::new(url).connect_timeout(Duration::from_secs(60));
    let worker = Worker::new(server, &name)
        .num_threads(threads)
        .lease(Duration::from_millis(500));
    worker.run(work).unwrap();
}

/// Another caller of the same function, which the test kills and freezes.
fn call_without_end(url: &str, name: &str) {
    let server = Server::new(url).connect_timeout(Duration::from_secs(60));
    let connection = connect(server).unwrap();
    let Ok(function) = connection.function::<Job, Done, String>(name).start() else {
        return;
    };
    let run = (0u64..).map(|n| Job::Sleep(n % 50)).futureproof(Ignore);
    run.num_threads(8)
        .map_tasks(function.into_fn())
        .for_each(drop);
}

fn worker(url: &str, name: &str) -> Process {
    process("4", url, name)
}

fn process(threads: &str, url: &str, name: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "worker_process", "--ignored", "--nocapture"]);
    command.env(URL, url).env(NAME, name);
    command.env(THREADS, threads);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(
        if std::env::var_os("RUST_LOG").is_some() {
            Stdio::inherit()
        } else {
            Stdio::null()
        },
    );
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
        // The answer comes first, then the task leaves the queue: not if its worker is ended in between.
        eventually("the queue is empty", || queued(&url, "killer") == 0);
    });
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
                    let mut process = process(&threads.to_string(), url, name);
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

#[test]
fn sigterm_to_workers_in_turn_loses_nothing_even_if_no_death_is_allowed() {
    let _dog = watchdog(180);
    let server = NatsServer::start();
    let url = server.url();
    let connection = connect(&*url).unwrap();
    let function = connection.function::<Job, Done, String>("turn");
    let function = function.max_deliver(1).start().unwrap();
    let over = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    let restarts = std::thread::scope(|scope| {
        let supervisor = Supervisor { over: &over };
        let restarter = scope.spawn(|| {
            let mut processes = [worker(&url, "turn"), worker(&url, "turn")];
            let mut restarts = 0;
            // Each has had time to begin.
            while !over.load(Ordering::Relaxed) {
                let next = answered.load(Ordering::Relaxed) + 300;
                eventually("more is answered, or the test is over", || {
                    over.load(Ordering::Relaxed) || answered.load(Ordering::Relaxed) >= next
                });
                let mut old = std::mem::replace(&mut processes[restarts % 2], worker(&url, "turn"));
                old.terminate();
                old.wait();
                restarts += 1;
            }
            restarts
        });
        let jobs = (0..4000u64).map(|n| Job::Sleep(n % 8));
        let run = jobs.futureproof(Raise).num_threads(16);
        for task in run.map_tasks(function.into_fn()) {
            task.unwrap();
            answered.fetch_add(1, Ordering::Relaxed);
        }
        drop(supervisor);
        restarter.join().unwrap()
    });
    assert!(restarts > 1, "only {restarts} workers were restarted");
}

/// `SIGNALS` in all: SIGKILL, SIGTERM, or SIGSTOP for a while, to a worker, to another caller or to the server.
#[test]
fn whatever_is_killed_or_frozen_each_item_has_one_outcome() {
    let signals: u64 = std::env::var("SIGNALS").map_or(20, |signals| signals.parse().unwrap());
    let seed = std::env::var("SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |seed| seed.parse().unwrap(),
    );
    let _dog = watchdog(120 + signals * 3);
    let _ = env_logger::try_init();
    println!("SEED={seed} SIGNALS={signals}");
    let mut server = NatsServer::start();
    let url = server.url();
    let name = "any";
    let connection = connect(&*url).unwrap();
    let function = connection.function::<Job, Done, String>(name);
    // It lives on, to say what it no longer wants.
    let function = Arc::new(function.deadline(Duration::from_secs(20)).start().unwrap());
    let over = AtomicBool::new(false);
    let mut succeeded = 0;
    let mut failed = BTreeMap::<String, u64>::new();
    std::thread::scope(|scope| {
        let over = &over;
        let supervisor = Supervisor { over };
        let (url, server) = (&url, &mut server);
        let signaller = scope.spawn(move || {
            let _supervisor = supervisor;
            let mut random = seed;
            let mut random = move |below: u64| {
                random = random
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (random >> 33) % below
            };
            let mut others: Vec<_> = ["4", "4", "4", CALLER]
                .map(|role| process(role, url, name))
                .into();
            // They end by themselves, at the latest with the test.
            let mut terminated = Vec::new();
            for _ in 0..signals {
                terminated.retain_mut(|process: &mut Process| !process.has_ended());
                std::thread::sleep(Duration::from_millis(random(400)));
                let (victim, signal) = (random(6) as usize, random(3));
                let pause = Duration::from_millis(random(2500));
                log::info!(target: "futureproof", "signal {signal} to {victim}, pause {pause:?}");
                if let Some(other) = others.get_mut(victim) {
                    let role = if victim == 3 { CALLER } else { "4" };
                    match signal {
                        0 => *other = process(role, url, name),
                        1 => {
                            other.terminate();
                            terminated.push(std::mem::replace(other, process(role, url, name)));
                        }
                        _ => {
                            other.freeze(true);
                            std::thread::sleep(pause);
                            other.freeze(false);
                        }
                    }
                } else {
                    match signal {
                        0 => server.crash(),
                        1 => server.down(),
                        _ => {
                            server.freeze(true);
                            std::thread::sleep(pause);
                            server.freeze(false);
                            continue;
                        }
                    }
                    server.up();
                }
            }
            // They go on until all items have their outcomes.
            others
        });
        let jobs = (0u64..)
            .take_while(|_| !over.load(Ordering::Relaxed))
            .map(|n| match n % 3 {
                0 => Job::Sleep(n % 300),
                _ => Job::Double(n),
            });
        let mut seen = Vec::new();
        let called = Arc::clone(&function);
        let run = jobs.futureproof(Ignore).num_threads(24);
        for task in run.map_tasks(move |job| called.call(job)) {
            let index = match task {
                Ok(task) => {
                    let expected = match task.input {
                        Job::Double(n) => n * 2,
                        Job::Sleep(ms) => ms,
                        job => panic!("{job:?} is not among them"),
                    };
                    assert_eq!(task.output.output.number, expected);
                    succeeded += 1;
                    task.index
                }
                Err(failure) => {
                    let error = failure.error().expect("no panic");
                    assert!(error.is_transient(), "{error:?}");
                    *failed.entry(format!("{error:?}")).or_default() += 1;
                    failure.index()
                }
            };
            let index = index as usize;
            seen.resize(seen.len().max(index + 1), 0);
            seen[index] += 1;
        }
        assert!(seen.iter().all(|&times| times == 1));
        drop(signaller.join().unwrap());
    });
    println!(
        "{succeeded} succeeded; failed: {failed:?}; {:?}",
        function.counters()
    );
    assert!(succeeded > 0);
}
