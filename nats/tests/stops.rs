//! What nobody wants any more is told to end; and a caller that is gone holds nobody up.

mod common;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_nats::HeaderMap;
use common::*;
use futureproof::prelude::*;
use futureproof_nats::{RemoteError, Worker, connect};

/// How a task of [`Patient`] has ended.
#[derive(Debug, PartialEq)]
enum End {
    Told,
    NotTold,
}

/// A worker whose function waits until its token is cancelled.
struct Patient {
    worker: LocalWorker,
    began: Option<mpsc::Receiver<()>>,
    ended: mpsc::Receiver<End>,
}

impl Patient {
    fn start(url: &str, name: &str) -> Self {
        let (begin, began) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let worker = Worker::new(url, name)
            .num_threads(2)
            .lease(Duration::from_millis(500))
            .grace(Duration::ZERO);
        let worker = LocalWorker::start(worker, move |_| {
            let (sender, told) = mpsc::channel();
            let token = CancellationToken::current();
            let _listener = token.on_cancel(move || sender.send(()).unwrap());
            begin.send(()).unwrap();
            let is_told =
                told.recv_timeout(Duration::from_secs(60)).is_ok() && token.is_cancelled();
            let _ = end.send(if is_told { End::Told } else { End::NotTold });
            Err("told to end".to_owned())
        });
        Self {
            worker,
            began: Some(began),
            ended,
        }
    }
}

#[test]
fn a_cancel_at_the_caller_reaches_the_function() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let mut patient = Patient::start(&server.url(), "cancel");
    let began = patient.began.take().unwrap();
    let function = Arc::new(remote(&server.url(), "cancel"));
    let token = CancellationToken::new();
    let run = [Job::Double(1)]
        .into_iter()
        .futureproof(Raise)
        .cancel_on(&token);
    // The function lives on after the run.
    let called = Arc::clone(&function);
    let mut run = run.map_tasks(move |job| called.call(job));
    std::thread::scope(|scope| {
        let token = &token;
        scope.spawn(move || {
            began.recv().unwrap();
            token.cancel();
        });
        assert!(run.next().is_none());
    });
    assert_eq!(patient.ended.recv(), Ok(End::Told));
    drop(function);
}

#[test]
fn a_deadline_at_the_caller_reaches_the_function() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let patient = Patient::start(&server.url(), "deadline");
    let connection = connect(server.url()).unwrap();
    let function = connection.function::<Job, Done, String>("deadline");
    let function = function.deadline(Duration::from_secs(3)).start().unwrap();
    assert_eq!(function.call(&Job::Double(1)), Err(RemoteError::Deadline));
    assert_eq!(patient.ended.recv(), Ok(End::Told));
}

#[test]
fn a_drop_at_the_caller_reaches_the_function() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let mut patient = Patient::start(&server.url(), "drop");
    let began = patient.began.take().unwrap();
    let function = remote(&server.url(), "drop");
    let token = CancellationToken::new();
    let run = [Job::Double(1)]
        .into_iter()
        .futureproof(Raise)
        .cancel_on(&token);
    let mut run = run.map_tasks(function.into_fn());
    std::thread::scope(|scope| {
        let token = &token;
        scope.spawn(move || {
            began.recv().unwrap();
            token.cancel();
        });
        assert!(run.next().is_none());
    });
    // With it goes the connection: nobody is left to be asked.
    drop(run);
    assert_eq!(patient.ended.recv(), Ok(End::Told));
}

#[test]
fn a_stop_of_the_worker_reaches_the_function_and_another_worker_takes_the_task() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let patient = Patient::start(&url, "grace");
    let connection = connect(&*url).unwrap();
    let function = connection.function::<Job, Done, String>("grace");
    // Not one death is allowed.
    let function = function.max_deliver(1).start().unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| function.call(&Job::Double(4)));
        patient.began.unwrap().recv().unwrap();
        patient.worker.stop();
        assert_eq!(patient.ended.recv(), Ok(End::Told));
        let _worker = LocalWorker::start(Worker::new(&*url, "grace").num_threads(1), work);
        let answer = call.join().unwrap().unwrap();
        assert_eq!((answer.output.number, answer.deliveries), (8, 1));
    });
}

/// Publishes so many tasks for a caller that never says a word. It listens, so that the server cannot tell.
fn with_a_silent_caller(url: &str, name: &str, tasks: u64, f: impl FnOnce()) {
    raw(url, async |client| {
        let _answers = client
            .subscribe(format!("futureproof.{name}.answer.Silent"))
            .await
            .unwrap();
        let context = async_nats::jetstream::new(client);
        for id in 0..tasks {
            let mut headers = HeaderMap::new();
            headers.insert("Futureproof-Id", id.to_string());
            headers.insert("Futureproof-Deadline-Ms", "600000");
            headers.insert("Futureproof-Max-Deliver", "3");
            // `Double(1)`.
            let payload = [&[0x81, 0xa6][..], b"Double", &[1]].concat();
            let subject = format!("futureproof.{name}.task.Silent");
            let sent = context.publish_with_headers(subject, headers, payload.into());
            sent.await.unwrap().await.unwrap();
        }
        f();
    });
}

#[test]
fn a_caller_that_is_frozen_holds_no_thread_of_a_worker() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let connection = connect(&*url).unwrap();
    let function = connection.function::<Job, Done, String>("silent");
    // Far less than what the silent one has.
    let function = Arc::new(function.deadline(Duration::from_secs(20)).start().unwrap());
    with_a_silent_caller(&url, "silent", 200, || {
        let _worker = LocalWorker::start(Worker::new(&*url, "silent").num_threads(2), work);
        for _ in 0..3 {
            let jobs = (0..100u64).map(Job::Double);
            let run = jobs.futureproof(Raise).num_threads(8);
            let function = Arc::clone(&function);
            let run = run.map_tasks(move |job| function.call(job));
            let answered = run.flatten().count();
            assert_eq!(answered, 100);
        }
    });
}
