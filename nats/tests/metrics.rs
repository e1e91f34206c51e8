//! Both ends' figures as Prometheus scrapes them, with a real server and real workers.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use async_nats::HeaderMap;
use common::*;
use futureproof::prelude::*;
use futureproof_nats::{Function, RemoteError, Worker, connect};
use futures_util::StreamExt;
use metrics_exporter_prometheus::PrometheusBuilder;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What a scrape found.
struct Page(String);

impl Page {
    fn scrape(at: SocketAddr) -> Self {
        let mut server = TcpStream::connect(at).unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        server.write_all(request).unwrap();
        let mut page = String::new();
        server.read_to_string(&mut page).unwrap();
        Self(page)
    }

    /// The figure of a function, 0 if it is not there.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let start = format!("{name}{{{}}} ", labels.join(","));
        let found = self.0.lines().find_map(|line| line.strip_prefix(&*start));
        found
            .unwrap_or_else(|| panic!("no {start}in {}", self.0))
            .parse()
            .unwrap()
    }

    /// All outcomes of a function that are not 0, by name.
    fn outcomes(&self, name: &str, function: &str) -> Vec<(String, u64)> {
        let start = format!("{name}{{function=\"{function}\",outcome=\"");
        let lines = self.0.lines().filter_map(|line| line.strip_prefix(&*start));
        let figures = lines.map(|rest| rest.split_once("\"} ").unwrap());
        let mut figures: Vec<_> = figures
            .map(|(outcome, n)| (outcome.to_owned(), n.parse().unwrap()))
            .collect();
        figures.retain(|&(_, n)| n != 0);
        figures.sort();
        figures
    }

    fn calls(&self, function: &str) -> Vec<(String, u64)> {
        self.outcomes("futureproof_calls_total", function)
    }

    fn tasks(&self, function: &str) -> Vec<(String, u64)> {
        self.outcomes("futureproof_worker_tasks_total", function)
    }
}

fn outcomes<const N: usize>(of: [(&str, u64); N]) -> Vec<(String, u64)> {
    of.map(|(outcome, n)| (outcome.to_owned(), n)).to_vec()
}

/// A program has one recorder, so this is one test.
#[test]
fn a_scrape_finds_the_figures_of_both_ends() {
    let _dog = watchdog(120);
    let at = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    PrometheusBuilder::new()
        .with_http_listener(at)
        .install()
        .unwrap();
    let server = NatsServer::start();
    let url = server.url();

    outputs_errors_and_panics(&url, at);
    what_cannot_be_read_or_is_not_wanted(&url, at);
    what_does_not_come_back(&url, at);
    what_is_taken_twice(&url, at);
    what_is_given_up(&url, at);
}

fn function(url: &str, name: &str) -> Function<Job, Done, String> {
    connect(url).unwrap().function(name)
}

fn outputs_errors_and_panics(url: &str, at: SocketAddr) {
    let worker = LocalWorker::start(Worker::new(url, "plain").num_threads(2), work);
    let jobs = (0..20u64).map(|n| match n {
        0..3 => Job::Fail(n),
        3..5 => Job::Panic,
        _ => Job::Sleep(10),
    });
    let run = jobs
        .futureproof(Ignore)
        .num_threads(4)
        .name("at the caller");
    assert_eq!(run.map_tasks(remote(url, "plain").into_fn()).count(), 20);
    worker.stop();

    let page = Page::scrape(at);
    let expected = outcomes([("failed", 3), ("ok", 15), ("panicked", 2)]);
    assert_eq!(page.calls("plain"), expected);
    assert_eq!(page.tasks("plain"), expected);
    let plain = [("function", "plain")];
    assert_eq!(page.get("futureproof_worker_tasks_running", &plain), 0.0);
    // Of each task one, also of those that panicked.
    let samples = page.get("futureproof_worker_task_duration_seconds_count", &plain);
    let seconds = page.get("futureproof_worker_task_duration_seconds_sum", &plain);
    assert_eq!(samples, 20.0);
    assert!((0.15..10.0).contains(&seconds), "{seconds} s");
    // The run itself is seen too.
    let failed = [("run", "at the caller"), ("outcome", "failed")];
    assert_eq!(page.get("futureproof_tasks_total", &failed), 5.0);
}

fn what_cannot_be_read_or_is_not_wanted(url: &str, at: SocketAddr) {
    let worker = LocalWorker::start(Worker::new(url, "odd").num_threads(1), work);
    let wrong_item = connect(url)
        .unwrap()
        .function::<Vec<u8>, Done, String>("odd")
        .start()
        .unwrap();
    assert!(matches!(
        wrong_item.call(&vec![1]),
        Err(RemoteError::Decode(_))
    ));
    let wrong_output = connect(url)
        .unwrap()
        .function::<Job, String, String>("odd")
        .start()
        .unwrap();
    assert!(matches!(
        wrong_output.call(&Job::Double(1)),
        Err(RemoteError::Decode(_))
    ));
    let too_large = remote(url, "odd");
    assert!(matches!(
        too_large.call(&Job::AbortOnce("x".repeat(2 << 20))),
        Err(RemoteError::Encode(_))
    ));
    // An output that the server does not take was none.
    assert!(matches!(
        too_large.call(&Job::Big(2 << 20)),
        Err(RemoteError::Encode(_))
    ));
    raw(url, async |client| {
        let task = "futureproof.odd.task.Run1";
        client.publish(task, "no task".into()).await.unwrap();
        // Overdue at once, so the worker asks whether it is still wanted.
        let mut head = HeaderMap::new();
        head.insert("Futureproof-Id", "1");
        head.insert("Futureproof-Deadline-Ms", "0");
        head.insert("Futureproof-Max-Deliver", "3");
        let mut questions = client
            .subscribe("futureproof.odd.answer.Run1")
            .await
            .unwrap();
        client
            .publish_with_headers(task, head, "".into())
            .await
            .unwrap();
        let question = questions.next().await.unwrap();
        client
            .publish(question.reply.unwrap(), "-".into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    });
    eventually("the queue is empty", || queued(url, "odd") == 0);
    worker.stop();

    let page = Page::scrape(at);
    assert_eq!(
        page.calls("odd"),
        outcomes([("undelivered", 2), ("unreadable", 2)])
    );
    // The item, the output that was too large and what was no task.
    assert_eq!(
        page.tasks("odd"),
        outcomes([("ok", 1), ("unreadable", 3), ("unwanted", 1)])
    );
}

fn what_does_not_come_back(url: &str, at: SocketAddr) {
    let alone = function(url, "alone").deadline(ms(100)).start().unwrap();
    assert_eq!(alone.call(&Job::Double(1)), Err(RemoteError::Deadline));
    let full = function(url, "full").max_queued(1).start().unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| full.call(&Job::Double(1)));
        eventually("one is queued", || queued(url, "full") == 1);
        assert_eq!(full.call(&Job::Double(2)), Err(RemoteError::QueueFull));
        full.stop_handle().stop();
        assert_eq!(waits.join().unwrap(), Err(RemoteError::Stopped));
    });

    let page = Page::scrape(at);
    assert_eq!(page.calls("alone"), outcomes([("deadline", 1)]));
    assert_eq!(
        page.calls("full"),
        outcomes([("refused", 1), ("stopped", 1)])
    );
}

/// A worker that takes a task and does not end it until the sender is dropped; and tells that it has taken one.
fn hanging_worker(url: &str, name: &str) -> (LocalWorker, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel::<()>();
    let (entered, was_entered) = mpsc::channel();
    let gate = Mutex::new(gate);
    let worker = Worker::new(url, name)
        .num_threads(1)
        .lease(ms(300))
        .time_limit(ms(1));
    let worker = LocalWorker::start(worker, move |job| {
        entered.send(()).unwrap();
        let _ = gate.lock().unwrap().recv();
        work(job)
    });
    (worker, was_entered, open)
}

fn what_is_taken_twice(url: &str, at: SocketAddr) {
    let (hangs, was_entered, open) = hanging_worker(url, "twice");
    let twice = function(url, "twice").start().unwrap();
    let running =
        || Page::scrape(at).get("futureproof_worker_tasks_running", &[("function", "twice")]);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| twice.call(&Job::Double(4)));
        was_entered.recv().unwrap();
        assert_eq!(running(), 1.0);
        let second = LocalWorker::start(
            Worker::new(url, "twice").num_threads(1).lease(ms(300)),
            work,
        );
        assert_eq!(call.join().unwrap().unwrap().deliveries, 2);
        drop(open);
        hangs.stop();
        second.stop();
    });
    assert_eq!(running(), 0.0);

    let page = Page::scrape(at);
    let function = [("function", "twice")];
    assert_eq!(page.calls("twice"), outcomes([("ok", 1)]));
    assert_eq!(
        page.get("futureproof_calls_redelivered_total", &function),
        1.0
    );
    assert_eq!(page.get("futureproof_late_answers_total", &function), 1.0);
    // Both have done it.
    assert_eq!(page.tasks("twice"), outcomes([("ok", 2)]));
    assert_eq!(
        page.get("futureproof_worker_redelivered_total", &function),
        1.0
    );
}

fn what_is_given_up(url: &str, at: SocketAddr) {
    let (hangs, was_entered, open) = hanging_worker(url, "poison");
    let poison = function(url, "poison").max_deliver(1).start().unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| poison.call(&Job::Double(4)));
        was_entered.recv().unwrap();
        let second = LocalWorker::start(
            Worker::new(url, "poison").num_threads(1).lease(ms(300)),
            work,
        );
        assert_eq!(
            call.join().unwrap(),
            Err(RemoteError::Lost { deliveries: 1 })
        );
        second.stop();
        drop(open);
        hangs.stop();
    });

    let page = Page::scrape(at);
    assert_eq!(page.calls("poison"), outcomes([("lost", 1)]));
    assert_eq!(page.tasks("poison"), outcomes([("lost", 1), ("ok", 1)]));
}
