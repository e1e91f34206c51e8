//! What others may put on the wire: a worker and a caller answer it, drop it, and go on.

mod common;

use std::time::Duration;

use async_nats::{HeaderMap, Message};
use common::*;
use futureproof_nats::{RemoteError, Worker};
use futures_util::StreamExt;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

fn head(id: &str, deadline: &str, max_deliver: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Futureproof-Id", id);
    headers.insert("Futureproof-Deadline-Ms", deadline);
    headers.insert("Futureproof-Max-Deliver", max_deliver);
    headers
}

fn kind(message: &Message) -> String {
    message
        .headers
        .as_ref()
        .unwrap()
        .get("Futureproof-Kind")
        .unwrap()
        .to_string()
}

#[test]
fn a_worker_ends_what_is_no_task_and_answers_what_it_cannot_read() {
    let _dog = watchdog(180);
    let server = NatsServer::start();
    let url = server.url();
    let _worker = LocalWorker::start(Worker::new(&*url, "hostile").num_threads(2), work);
    let remote = remote(&url, "hostile");
    let subject = "futureproof.hostile.task.Run1".to_owned();

    raw(&url, async |client| {
        let mut answers = client
            .subscribe("futureproof.hostile.answer.Run1")
            .await
            .unwrap();
        // Without our headers, with bad ones, on a subject with a run that no caller makes.
        client
            .publish(subject.clone(), "nonsense".into())
            .await
            .unwrap();
        for (id, deadline, max) in [
            ("x", "1000", "3"),
            ("-1", "1000", "3"),
            ("1", "", "3"),
            ("99999999999999999999999", "1", "1"),
        ] {
            client
                .publish_with_headers(subject.clone(), head(id, deadline, max), "".into())
                .await
                .unwrap();
        }
        let odd = "futureproof.hostile.task.Run-1_$".to_owned();
        client
            .publish_with_headers(odd, head("1", "1000", "3"), "".into())
            .await
            .unwrap();
        // Extreme, but readable, heads.
        let extreme = head(
            "18446744073709551615",
            "18446744073709551615",
            "18446744073709551615",
        );
        client
            .publish_with_headers(subject.clone(), extreme, vec![0xc1].into())
            .await
            .unwrap();
        let answer = answers.next().await.unwrap();
        assert_eq!(kind(&answer), "decode");
        client
            .publish(answer.reply.unwrap(), "+".into())
            .await
            .unwrap();
        // Any bytes at all.
        let mut bytes = TestRunner::new(Config::default());
        let strategy = prop::collection::vec(any::<u8>(), 0..300);
        for id in 0..200u64 {
            let payload = strategy.new_tree(&mut bytes).unwrap().current();
            let headers = head(&id.to_string(), "60000", "3");
            client
                .publish_with_headers(subject.clone(), headers, payload.into())
                .await
                .unwrap();
        }
        for _ in 0..200 {
            let answer = answers.next().await.unwrap();
            assert!(["decode", "ok", "err", "panicked"].contains(&&*kind(&answer)));
            client
                .publish(answer.reply.unwrap(), "+".into())
                .await
                .unwrap();
        }
        client.flush().await.unwrap();
    });
    // It still works, and nothing is left.
    assert_eq!(remote.call(&Job::Double(4)).unwrap().output.number, 8);
    eventually("the queue is empty", || queued(&url, "hostile") == 0);
}

#[test]
fn a_task_whose_caller_is_gone_is_dropped() {
    let _dog = watchdog(180);
    let server = NatsServer::start();
    let url = server.url();
    let _worker = LocalWorker::start(Worker::new(&*url, "gone").num_threads(1), work);
    let remote = remote(&url, "gone");
    raw(&url, async |client| {
        // `Double(1)` of a caller that has died: nobody listens for the answer.
        let payload = [&[0x81, 0xa6][..], b"Double", &[1]].concat();
        let subject = "futureproof.gone.task.Dead1".to_owned();
        client
            .publish_with_headers(subject, head("1", "100", "100"), payload.into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    });
    eventually("it is given up", || queued(&url, "gone") == 0);
    assert_eq!(remote.call(&Job::Double(4)).unwrap().output.number, 8);
}

#[test]
fn a_caller_refuses_forged_answers_and_drops_those_for_nobody() {
    let _dog = watchdog(180);
    let server = NatsServer::start();
    let url = server.url();
    let remote = remote(&url, "forged");
    std::thread::scope(|scope| {
        // The first message is the task: it tells us the run and the id.
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (url, remote) = (&url, &remote);
        let forger = scope.spawn(move || {
            raw(url, async |client| {
                let mut tasks = client.subscribe("futureproof.forged.task.*").await.unwrap();
                // A round trip: now the server knows of the subscription.
                let mut echo = client.subscribe("echo").await.unwrap();
                client.publish("echo", "".into()).await.unwrap();
                echo.next().await.unwrap();
                ready.send(()).unwrap();
                let task = tasks.next().await.unwrap();
                let run = task.subject.rsplit('.').next().unwrap().to_owned();
                let id = task
                    .headers
                    .unwrap()
                    .get("Futureproof-Id")
                    .unwrap()
                    .to_string();
                let subject = format!("futureproof.forged.answer.{run}");
                let answer = |id: &str, kind: &str| {
                    let mut headers = HeaderMap::new();
                    headers.insert("Futureproof-Id", id);
                    headers.insert("Futureproof-Kind", kind);
                    headers.insert("Futureproof-Worker", "forger");
                    headers.insert("Futureproof-Deliveries", "1");
                    headers
                };
                client
                    .publish(subject.clone(), "nonsense".into())
                    .await
                    .unwrap();
                for (id, kind) in [
                    ("x", "ok"),
                    (&*id, "what"),
                    ("12345", "ok"),
                    (&*id, "wanted"),
                ] {
                    client
                        .publish_with_headers(subject.clone(), answer(id, kind), "".into())
                        .await
                        .unwrap();
                }
                client
                    .publish_with_headers(subject.clone(), answer(&id, "ok"), vec![0xc1].into())
                    .await
                    .unwrap();
                client.flush().await.unwrap();
            });
        });
        is_ready.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(
            remote.call(&Job::Double(1)),
            Err(RemoteError::Decode(_))
        ));
        forger.join().unwrap();
    });
    assert_eq!(remote.counters().late, 1);
}
