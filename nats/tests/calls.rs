//! What a caller gets, with workers on threads of the test and a real server.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use futureproof::prelude::*;
use futureproof_nats::{RemoteError, Server, Worker, connect};
use serde::{Deserialize, Serialize};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn every_item_comes_back_with_its_output_and_who_made_it() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let workers = ["left", "right"].map(|id| {
        let worker = Worker::new(&*url, "double").num_threads(4).id(id);
        LocalWorker::start(worker, work)
    });

    let double = remote(&url, "double");
    let counters = double.stop_handle();
    let run = (0..300u64)
        .map(Job::Double)
        .futureproof(Raise)
        .num_threads(16);
    let mut seen = HashMap::new();
    for task in run.map_tasks(double.into_fn()) {
        let task = task.unwrap();
        assert_eq!(task.input, Job::Double(task.index));
        assert_eq!(task.output.output.number, task.index * 2);
        assert_eq!(task.output.deliveries, 1);
        assert!(["left", "right"].contains(&&*task.output.worker));
        *seen.entry(task.index).or_insert(0) += 1;
    }
    assert!(seen.len() == 300 && seen.values().all(|&times| times == 1));
    let counters = counters.counters();
    assert_eq!(
        (counters.calls, counters.answered, counters.late),
        (300, 300, 0)
    );
    drop(workers);
    assert_eq!(queued(&url, "double"), 0);
}

#[test]
fn an_error_and_a_panic_are_answers_and_are_not_run_again() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let worker = Worker::new(server.url(), "fail")
        .num_threads(2)
        .lease(ms(200));
    let worker = LocalWorker::start(worker, move |job| {
        counted.fetch_add(1, Ordering::Relaxed);
        work(job)
    });

    let fail = remote(&server.url(), "fail");
    assert_eq!(
        fail.call(&Job::Fail(7)),
        Err(RemoteError::Task("7 is refused".to_owned()))
    );
    let message = "the job says so".to_owned();
    assert_eq!(
        fail.call(&Job::Panic),
        Err(RemoteError::Panicked { message })
    );
    assert_eq!(fail.call(&Job::Double(1)).unwrap().output.number, 2);
    eventually("the queue is empty", || queued(&server.url(), "fail") == 0);
    worker.stop();
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    let counters = fail.counters();
    assert_eq!(
        (counters.answered, counters.failed, counters.panicked),
        (3, 1, 1)
    );
}

#[test]
fn a_task_that_nobody_takes_meets_its_deadline_and_is_taken_back() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let alone = connect(server.url())
        .unwrap()
        .function::<Job, Done, String>("alone");
    let alone = alone.deadline(ms(300)).start().unwrap();
    assert_eq!(alone.call(&Job::Double(1)), Err(RemoteError::Deadline));
    eventually("the task is taken back", || {
        queued(&server.url(), "alone") == 0
    });
    assert_eq!(alone.counters().deadlines, 1);
}

#[test]
fn a_full_queue_refuses_and_keeps_what_it_has() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let full = connect(&*url)
        .unwrap()
        .function::<Job, Done, String>("full");
    let full = full.max_queued(3).start().unwrap();
    let full = &full;
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..3u64)
            .map(|n| scope.spawn(move || full.call(&Job::Double(n))))
            .collect();
        eventually("three are queued", || queued(&url, "full") == 3);
        assert_eq!(full.call(&Job::Double(3)), Err(RemoteError::QueueFull));
        // Now somebody comes to work, and there is room again.
        let _worker = LocalWorker::start(Worker::new(&*url, "full").num_threads(1), work);
        for (n, call) in waiting.into_iter().enumerate() {
            assert_eq!(call.join().unwrap().unwrap().output.number, n as u64 * 2);
        }
        assert_eq!(full.call(&Job::Double(4)).unwrap().output.number, 8);
    });
    assert_eq!(full.counters().refused, 1);
}

// nats-server 2.9: two that make the same stream at the same moment may leave it without its files.
#[test]
fn an_empty_queue_that_has_lost_its_files_is_made_anew() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let lost = remote(&server.url(), "lost");
    let stream = server.dir().join("jetstream/$G/streams/futureproof-lost");
    std::fs::remove_dir_all(&stream).unwrap();
    std::fs::write(&stream, "no place for a consumer").unwrap();
    let _worker = LocalWorker::start(Worker::new(server.url(), "lost").num_threads(1), work);
    // Not before: a queue that holds a task is not thrown away.
    eventually("the stream is made anew", || stream.is_dir());
    assert_eq!(lost.call(&Job::Double(1)).unwrap().output.number, 2);
}

#[test]
fn a_cancel_stops_the_calls_and_purges_what_is_queued() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let token = CancellationToken::new();
    let stuck = remote(&url, "stuck");
    // Somebody else's task in the same queue is not touched.
    let other = remote(&url, "stuck");
    let other = std::thread::spawn(move || other.call(&Job::Double(1)));

    let mut run = (0u64..)
        .map(Job::Double)
        .futureproof(Ignore)
        .num_threads(8)
        .cancel_on(&token)
        .map_tasks(stuck.into_fn());
    let canceller = std::thread::spawn({
        let url = url.clone();
        move || {
            eventually("nine are queued", || queued(&url, "stuck") == 9);
            token.cancel();
        }
    });
    assert!(run.next().is_none());
    canceller.join().unwrap();
    drop(run);
    assert_eq!(queued(&url, "stuck"), 1);
    let _worker = LocalWorker::start(Worker::new(&*url, "stuck").num_threads(1), work);
    assert_eq!(other.join().unwrap().unwrap().output.number, 2);
}

#[test]
fn a_run_that_is_left_stops_its_calls_and_no_others() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    // Fails at once, or never ends.
    let worker = LocalWorker::start(Worker::new(&*url, "left").num_threads(4), move |job| {
        if let Job::Double(_) = job {
            let _ = gate.lock().unwrap().recv();
        }
        work(job)
    });
    // Two runs share one function.
    let left = Arc::new(remote(&url, "left").into_fn());
    let run = |jobs: Vec<Job>| {
        let left = Arc::clone(&left);
        let run = jobs.into_iter().futureproof(Raise).num_threads(3);
        run.map_tasks(move |job| left(job))
    };
    let mut other = run(vec![Job::Double(7)]);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| other.next());
        eventually("one runs", || queued(&url, "left") == 1);
        let jobs = vec![Job::Double(1), Job::Double(2), Job::Fail(3)];
        let mut first = run(jobs);
        assert!(first.next().unwrap().is_err());
        // Not at their deadline of a minute, although two of its tasks are with the worker.
        let start = Instant::now();
        drop(first);
        assert!(start.elapsed() < Duration::from_secs(30));
        eventually("its tasks are taken back", || queued(&url, "left") == 1);
        drop(open);
        assert_eq!(
            other.join().unwrap().unwrap().unwrap().output.output.number,
            14
        );
    });
    worker.stop();
}

#[test]
fn after_the_first_failure_under_raise_nothing_is_sent_and_nothing_stays() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let _worker = LocalWorker::start(Worker::new(&*url, "raise").num_threads(2), work);
    let raise = remote(&url, "raise");
    let counters = raise.stop_handle();
    let jobs = (0u64..).map(|n| {
        if n == 20 {
            Job::Fail(n)
        } else {
            Job::Double(n)
        }
    });
    let mut run = jobs
        .futureproof(Raise)
        .num_threads(4)
        .map_tasks(raise.into_fn());
    let failure = run.find_map(Result::err).unwrap();
    assert_eq!(failure.index(), 20);
    run.by_ref().for_each(drop);
    let sent = counters.counters().calls;
    drop(run);
    assert_eq!(counters.counters().calls, sent);
    eventually("the queue is empty", || queued(&url, "raise") == 0);
}

#[test]
fn a_task_that_outlives_its_lease_goes_to_another_and_the_late_answer_is_dropped() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let (open, gate) = mpsc::channel::<()>();
    let (entered, was_entered) = mpsc::channel();
    let gate = Mutex::new(gate);
    let worker = Worker::new(&*url, "hang")
        .num_threads(1)
        .lease(ms(300))
        .time_limit(ms(1))
        .id("hangs");
    let hangs = LocalWorker::start(worker, move |job| {
        entered.send(()).unwrap();
        let _ = gate.lock().unwrap().recv();
        work(job)
    });
    let hang = Arc::new(remote(&url, "hang"));
    let call = std::thread::spawn({
        let hang = Arc::clone(&hang);
        move || hang.call(&Job::Double(4))
    });
    was_entered.recv().unwrap();
    let second = Worker::new(&*url, "hang")
        .num_threads(1)
        .lease(ms(300))
        .id("second");
    let _second = LocalWorker::start(second, work);
    let answer = call.join().unwrap().unwrap();
    assert_eq!(
        (answer.output.number, &*answer.worker, answer.deliveries),
        (8, "second", 2)
    );
    assert_eq!(hang.counters().late, 0);
    drop(open);
    hangs.stop();
    assert_eq!(hang.counters().late, 1);
    assert_eq!(hang.counters().redelivered, 1);
}

#[test]
fn a_task_that_takes_longer_than_the_lease_keeps_it() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let calls = Arc::new(AtomicU64::new(0));
    let workers = [(); 2].map(|()| {
        let counted = Arc::clone(&calls);
        let worker = Worker::new(&*url, "long").num_threads(1).lease(ms(1500));
        LocalWorker::start(worker, move |job| {
            counted.fetch_add(1, Ordering::Relaxed);
            work(job)
        })
    });
    let long = remote(&url, "long");
    assert_eq!(long.call(&Job::Sleep(4000)).unwrap().deliveries, 1);
    drop(workers);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[test]
fn a_server_that_comes_back_finds_the_calls_still_waiting() {
    let _dog = watchdog(180);
    let mut server = NatsServer::start();
    let url = server.url();
    let _worker = LocalWorker::start(
        Worker::new(&*url, "back").num_threads(4).lease(ms(500)),
        work,
    );
    let back = connect(&*url)
        .unwrap()
        .function::<Job, Done, String>("back")
        .max_deliver(20)
        .start()
        .unwrap();
    let run = (0..200u64)
        .map(|n| Job::Double(n % 50))
        .futureproof(Raise)
        .num_threads(8);
    let mut run = run.map_tasks(back.into_fn());
    let mut seen = 0;
    for crash in [false, true] {
        for task in run.by_ref().take(50) {
            task.unwrap();
            seen += 1;
        }
        if crash {
            server.crash();
        } else {
            server.down();
        }
        server.up();
    }
    for task in run {
        let task = task.unwrap();
        assert_eq!(task.output.output.number, task.index % 50 * 2);
        seen += 1;
    }
    assert_eq!(seen, 200);
}

#[test]
fn what_is_too_large_is_an_error_that_says_so() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let worker = Worker::new(&*url, "large")
        .num_threads(1)
        .max_item_bytes(1000);
    let _worker = LocalWorker::start(worker, work);
    let large = remote(&url, "large");
    let path = |bytes: usize| Job::AbortOnce("x".repeat(bytes));
    let Err(RemoteError::Encode(reason)) = large.call(&path(2 << 20)) else {
        panic!("the server takes 1 MiB");
    };
    assert!(reason.contains("the item is 20971"), "{reason}");
    let Err(RemoteError::Decode(reason)) = large.call(&path(2000)) else {
        panic!("the worker takes 1,000 bytes");
    };
    assert!(reason.contains("1000 bytes"), "{reason}");
    let Err(RemoteError::Encode(reason)) = large.call(&Job::Big(2 << 20)) else {
        panic!("the server takes 1 MiB");
    };
    assert!(reason.contains("the output is 20971"), "{reason}");
    assert_eq!(
        large.call(&Job::Big(900_000)).unwrap().output.bytes.len(),
        900_000
    );
}

#[test]
fn types_that_differ_are_a_decode_error_and_not_a_value() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let _worker = LocalWorker::start(Worker::new(&*url, "types").num_threads(1), work);
    let connection = connect(&*url).unwrap();
    let wrong_item = connection
        .function::<Vec<u8>, Done, String>("types")
        .start()
        .unwrap();
    assert!(matches!(
        wrong_item.call(&vec![1]),
        Err(RemoteError::Decode(_))
    ));
    let wrong_output = connection
        .function::<Job, String, String>("types")
        .start()
        .unwrap();
    assert!(matches!(
        wrong_output.call(&Job::Double(1)),
        Err(RemoteError::Decode(_))
    ));
    let wrong_error = connection
        .function::<Job, Done, u64>("types")
        .start()
        .unwrap();
    assert!(matches!(
        wrong_error.call(&Job::Fail(1)),
        Err(RemoteError::Decode(_))
    ));
}

#[test]
fn versions_with_added_fields_understand_each_other() {
    #[derive(Serialize, Deserialize)]
    struct OldItem {
        a: u8,
        gone: Option<u8>,
    }
    #[derive(Serialize, Deserialize)]
    struct NewItem {
        #[serde(default = "seven")]
        added: u64,
        a: u8,
    }
    fn seven() -> u64 {
        7
    }
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    // The worker is newer than the first caller, and older than the second.
    let worker = Worker::new(&*url, "versions").num_threads(1).signals(false);
    let stop = worker.stop_handle();
    let thread = std::thread::spawn(move || {
        worker.run(|item: &NewItem| match item.a {
            0 => Err("zero".to_owned()),
            a => Ok(OldItem {
                a,
                gone: Some(item.added as u8),
            }),
        })
    });
    let connection = connect(&*url).unwrap();
    let older = connection
        .function::<OldItem, OldItem, String>("versions")
        .start()
        .unwrap();
    let answer = older.call(&OldItem { a: 1, gone: None }).unwrap().output;
    assert_eq!((answer.a, answer.gone), (1, Some(7)));
    let newer = connection
        .function::<NewItem, NewItem, String>("versions")
        .start()
        .unwrap();
    let answer = newer.call(&NewItem { added: 9, a: 2 }).unwrap().output;
    assert_eq!((answer.a, answer.added), (2, 7));
    stop.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn what_would_come_back_as_another_value_is_an_error_that_names_the_field() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Limits {
        limit: Option<Option<u8>>,
    }
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let worker = Worker::new(&*url, "options").num_threads(1).signals(false);
    let stop = worker.stop_handle();
    let thread = std::thread::spawn(move || {
        worker.run(|item: &Limits| match item.limit {
            Some(Some(0)) => Ok(Some(())),
            Some(Some(_)) => Ok(None),
            _ => Err(format!("{item:?}")),
        })
    });
    let connection = connect(&*url).unwrap();
    let function = connection
        .function::<Limits, Option<()>, String>("options")
        .start()
        .unwrap();
    let call = |limit| function.call(&Limits { limit });
    assert_eq!(
        call(None),
        Err(RemoteError::Task("Limits { limit: None }".to_owned()))
    );
    assert_eq!(call(Some(Some(1))).unwrap().output, None);
    let Err(RemoteError::Encode(item)) = call(Some(None)) else {
        panic!("it would arrive as `None`");
    };
    assert!(item.contains("Limits.limit: `Some` of an empty"), "{item}");
    let Err(RemoteError::Encode(output)) = call(Some(Some(0))) else {
        panic!("it would come back as `None`");
    };
    assert!(
        output.contains("the output does not serialize") && output.contains("Option<()>"),
        "{output}"
    );
    stop.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn no_value_of_an_option_does_harm() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    for (name, extreme) in [("most", Duration::MAX), ("least", Duration::ZERO)] {
        let at = Server::new(&*url).connect_timeout(extreme);
        let worker = Worker::new(&at, name)
            .num_threads(1)
            .time_limit(extreme)
            .grace(extreme)
            .max_queued(0);
        let _worker = LocalWorker::start(worker, work);
        let connection = connect(at).unwrap();
        let function = connection.function::<Job, Done, String>(name);
        let function = function
            .deadline(Duration::MAX)
            .max_deliver(u64::MAX)
            .start()
            .unwrap();
        for n in 0..3 {
            // The queue has room for one, and an answer may come before its task is deleted.
            let answer = loop {
                match function.call(&Job::Double(n)) {
                    Err(RemoteError::QueueFull) => std::thread::sleep(Duration::from_millis(1)),
                    answer => break answer,
                }
            };
            assert_eq!(answer.unwrap().output.number, n * 2);
        }
    }
}

#[test]
fn each_worker_thread_has_its_own_state() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let made = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&made);
    let init = move || counted.fetch_add(1, Ordering::Relaxed);
    let f = with_state(init, |_: &mut u64, job: &Job| work(job));
    let _worker = LocalWorker::start(Worker::new(&*url, "state").num_threads(2), f);
    let run = (0..100u64)
        .map(Job::Double)
        .futureproof(Raise)
        .num_threads(8);
    assert_eq!(
        run.map_tasks(remote(&url, "state").into_fn())
            .flatten()
            .count(),
        100
    );
    assert!((1..=2).contains(&made.load(Ordering::Relaxed)));
}

#[test]
fn a_user_with_a_password_gets_in_and_others_do_not() {
    let _dog = watchdog(120);
    let server = NatsServer::start_with(&["--user", "me", "--pass", "p@ss/word"]);
    let at = server.url().replace("nats://", "");
    let good = format!("nats://me:p%40ss%2Fword@{at}");
    let _worker = LocalWorker::start(Worker::new(&*good, "login").num_threads(1), work);
    assert_eq!(
        remote(&good, "login")
            .call(&Job::Double(4))
            .unwrap()
            .output
            .number,
        8
    );
    for bad in [format!("nats://me:hush@{at}"), server.url()] {
        let error = connect(Server::new(bad)).unwrap_err();
        assert!(!format!("{error:?}").contains("hush"));
    }
}

#[test]
fn it_works_on_a_thread_of_an_async_runtime() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let _worker = LocalWorker::start(Worker::new(&*url, "nested").num_threads(1), work);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let number = runtime.block_on(async {
        remote(&url, "nested")
            .call(&Job::Double(4))
            .unwrap()
            .output
            .number
    });
    assert_eq!(number, 8);
}

#[test]
fn many_that_come_first_at_once_share_one_queue() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let connections = [(); 8].map(|()| connect(server.url()).unwrap());
    let barrier = std::sync::Barrier::new(connections.len());
    std::thread::scope(|scope| {
        for (index, connection) in connections.iter().enumerate() {
            let barrier = &barrier;
            scope.spawn(move || {
                for round in 0..20 {
                    let function =
                        connection.function::<Job, Done, String>(&format!("first{round}"));
                    barrier.wait();
                    // With settings of their own: the first one's hold.
                    function.max_queued(10 + index as u32).start().unwrap();
                }
            });
        }
    });
}

#[test]
fn a_stop_purges_at_once_and_refuses_what_comes_later() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let stopped = &remote(&url, "stopped");
    std::thread::scope(|scope| {
        let calls = [1u64, 2, 3, 4].map(|n| scope.spawn(move || stopped.call(&Job::Double(n))));
        eventually("all are queued", || queued(&url, "stopped") == 4);
        stopped.stop_handle().stop();
        for call in calls {
            assert_eq!(call.join().unwrap(), Err(RemoteError::Stopped));
        }
    });
    eventually("the queue is empty", || queued(&url, "stopped") == 0);
    assert_eq!(stopped.call(&Job::Double(5)), Err(RemoteError::Stopped));
    assert_eq!(queued(&url, "stopped"), 0);
    assert_eq!(stopped.counters().stopped, 5);
}
