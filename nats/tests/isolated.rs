//! A worker whose function runs in child processes.

mod common;

use common::*;
use futureproof::process::{Error, isolate};
use futureproof_nats::{RemoteError, Worker, connect};

#[test]
fn a_worker_may_isolate_its_function() {
    // In a child, which runs this test alone, `isolate` does not return.
    let child = [
        "--exact",
        "a_worker_may_isolate_its_function",
        "--nocapture",
    ];
    let isolated = isolate("work", work).args(child).start().unwrap();
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let worker = Worker::new(server.url(), "isolated")
        .num_threads(2)
        .signals(false);
    let stop = worker.stop_handle();
    let thread = std::thread::spawn(move || worker.run(isolated.into_fn()));

    let connection = connect(server.url()).unwrap();
    let function = connection.function::<Job, Done, Error<String>>("isolated");
    let function = function.start().unwrap();
    // What would have ended the worker is an answer, and not run again.
    let crashed = function.call(&Job::Abort).unwrap_err();
    assert!(
        matches!(
            &crashed,
            RemoteError::Task(Error::Crashed {
                signal: Some(6),
                ..
            })
        ),
        "{crashed:?}"
    );
    let refused = Error::Task("7 is refused".to_owned());
    assert_eq!(
        function.call(&Job::Fail(7)),
        Err(RemoteError::Task(refused))
    );
    let answer = function.call(&Job::Double(2)).unwrap();
    assert_eq!((answer.output.number, answer.deliveries), (4, 1));

    stop.stop();
    thread.join().unwrap().unwrap();
}
