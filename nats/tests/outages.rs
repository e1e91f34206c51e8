//! A server that is late, silent, gone, full or has forgotten everything: nothing waits for ever.

mod common;

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use common::*;
use futureproof::prelude::*;
use futureproof_nats::{RemoteError, Server, SetupError, Worker, connect};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn local_worker(url: &str, name: &str) -> LocalWorker {
    LocalWorker::start(Worker::new(url, name).num_threads(2), work)
}

/// Accepts connections on this port and keeps them, without a word.
struct Silence {
    port: u16,
    over: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<Vec<TcpStream>>>,
}

impl Silence {
    fn on(port: u16) -> Self {
        // A process that another test starts at this moment has what listened here before, until it is another program.
        let mut listener = None;
        eventually("the port is free", || {
            listener = TcpListener::bind(("127.0.0.1", port)).ok();
            listener.is_some()
        });
        let listener = listener.unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let is_over = std::sync::Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                kept.extend(stream);
            }
            kept
        });
        let thread = Some(thread);
        Self { port, over, thread }
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Accepts no more. What was accepted stays open and silent.
    fn end(&mut self) -> Vec<TcpStream> {
        self.over.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.thread.take().unwrap().join().unwrap()
    }
}

#[test]
fn a_queue_that_is_deleted_is_found_again() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let warnings = Warnings::listen();
    let _worker = local_worker(&url, "deleted");
    let function = remote(&url, "deleted");
    assert_eq!(function.call(&Job::Double(1)).unwrap().output.number, 2);
    raw(&url, async |client| {
        let context = async_nats::jetstream::new(client);
        let stream = stream(&context, "deleted").await;
        stream.delete_consumer("workers").await.unwrap();
    });
    assert_eq!(function.call(&Job::Double(2)).unwrap().output.number, 4);
    raw(&url, async |client| {
        let context = async_nats::jetstream::new(client);
        context.delete_stream("futureproof-deleted").await.unwrap();
    });
    assert_eq!(function.call(&Job::Double(3)).unwrap().output.number, 6);
    assert!(warnings.have("deleted: cannot take tasks, opening the queue again"));
}

#[test]
fn a_server_that_comes_back_without_its_files_gets_the_tasks_again() {
    let _dog = watchdog(120);
    let mut server = NatsServer::start();
    let url = server.url();
    let function = &remote(&url, "empty");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| function.call(&Job::Double(1)));
        eventually("it is queued", || queued(&url, "empty") == 1);
        server.crash();
        std::fs::remove_dir_all(server.dir().join("jetstream")).unwrap();
        server.up();
        let _worker = local_worker(&url, "empty");
        assert_eq!(waiting.join().unwrap().unwrap().output.number, 2);
        server.crash();
        std::fs::remove_dir_all(server.dir().join("jetstream")).unwrap();
        server.up();
        assert_eq!(function.call(&Job::Double(2)).unwrap().output.number, 4);
    });
}

#[test]
fn an_address_that_says_nothing_is_an_error_or_passed_over() {
    let _dog = watchdog(60);
    let mut silence = Silence::on(0);
    let alone = Server::new(silence.url()).connect_timeout(Duration::ZERO);
    assert!(matches!(connect(&alone), Err(SetupError::Connect { .. })));
    let worker = Worker::new(&alone, "silent").signals(false);
    assert!(matches!(worker.run(work), Err(SetupError::Connect { .. })));

    let server = NatsServer::start();
    let both = format!("{},{}", silence.url(), server.url());
    let _worker = local_worker(&both, "silent");
    let function = remote(&both, "silent");
    assert_eq!(function.call(&Job::Double(2)).unwrap().output.number, 4);
    silence.end();
}

#[test]
fn a_reconnect_to_an_address_that_says_nothing_is_tried_again() {
    let _dog = watchdog(120);
    let mut server = NatsServer::start();
    let url = server.url();
    let _worker = local_worker(&url, "mute");
    let function = remote(&url, "mute");
    assert_eq!(function.call(&Job::Double(1)).unwrap().output.number, 2);
    server.down();
    let mut silence = Silence::on(server.port());
    // Both have lost their server and are caught now.
    let mut kept = Vec::new();
    eventually("both wait for a word", || {
        kept.extend(silence.end());
        silence = Silence::on(server.port());
        kept.len() > 4
    });
    kept.extend(silence.end());
    server.up();
    assert_eq!(function.call(&Job::Double(2)).unwrap().output.number, 4);
    drop(kept);
}

#[test]
fn a_frozen_server_keeps_nobody_beyond_his_time() {
    let _dog = watchdog(120);
    let server = NatsServer::start();
    let url = server.url();
    let worker = local_worker(&url, "frozen");
    let connection = connect(&*url).unwrap();
    let function = connection.function::<Job, Done, String>("frozen");
    let function = function.deadline(seconds(3)).start().unwrap();
    let left = remote(&url, "frozen");
    assert_eq!(function.call(&Job::Double(1)).unwrap().output.number, 2);
    server.freeze(true);
    assert_eq!(function.call(&Job::Double(1)), Err(RemoteError::Deadline));
    worker.stop();
    drop(left);
    let late = Server::new(&*url).connect_timeout(Duration::ZERO);
    assert!(matches!(connect(late), Err(SetupError::Connect { .. })));
    let other = connection.function::<Job, Done, String>("frozen").start();
    assert!(matches!(other, Err(SetupError::Queue { .. })));
    server.freeze(false);
    let _worker = local_worker(&url, "frozen");
    eventually("it works again", || function.call(&Job::Double(2)).is_ok());
}

#[test]
fn a_stop_ends_though_the_server_is_gone_and_an_answer_unsent() {
    let _dog = watchdog(60);
    let mut server = NatsServer::start();
    let url = server.url();
    let (entered, was_entered) = std::sync::mpsc::channel();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let worker = LocalWorker::start(Worker::new(&*url, "unsent").num_threads(1), move |job| {
        entered.send(()).unwrap();
        let _ = gate.lock().unwrap().recv();
        work(job)
    });
    let function = connect(&*url)
        .unwrap()
        .function::<Job, Done, String>("unsent");
    let function = function.deadline(seconds(600)).start().unwrap();
    let stop = function.stop_handle();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| function.call(&Job::Double(1)));
        was_entered.recv().unwrap();
        server.crash();
        drop(open);
        worker.stop();
        stop.stop();
        assert_eq!(call.join().unwrap(), Err(RemoteError::Stopped));
    });
    drop(function);
}

#[test]
fn a_run_whose_server_was_killed_leaves_nothing_in_the_queue() {
    let _dog = watchdog(180);
    let mut server = NatsServer::start();
    let url = server.url();
    let _worker = LocalWorker::start(Worker::new(&*url, "kills").num_threads(16), work);
    let function = remote(&url, "kills");
    let jobs = (0..3000u64).map(Job::Double);
    let run = jobs.futureproof(Raise).num_threads(32);
    let mut answered = 0;
    for task in run.map_tasks(function.into_fn()) {
        task.unwrap();
        answered += 1;
        if answered % 800 == 0 {
            server.crash();
            server.up();
        }
    }
    assert_eq!(answered, 3000);
    assert_eq!(queued(&url, "kills"), 0);
}

#[test]
fn a_full_store_is_said() {
    let _dog = watchdog(60);
    let warnings = Warnings::listen();
    let dir = tempfile::TempDir::new().unwrap();
    let config = dir.path().join("nats.conf");
    std::fs::write(&config, "jetstream { max_file_store: 1MB }").unwrap();
    let server = NatsServer::start_with(&["-c", config.to_str().unwrap()]);
    let url = server.url();
    let function = connect(&*url)
        .unwrap()
        .function::<Job, Done, String>("store");
    let function = &function.deadline(seconds(5)).start().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let large = Job::AbortOnce("x".repeat(400_000));
            scope.spawn(move || assert!(function.call(&large).is_err()));
        }
    });
    assert!(warnings.have("store: the server does not store tasks"));
}

#[test]
fn who_comes_before_the_server_waits_for_it() {
    let _dog = watchdog(60);
    let warnings = Warnings::listen();
    let mut server = NatsServer::start();
    let url = server.url();
    server.down();
    let patient = Server::new(&*url).connect_timeout(seconds(60));
    let _worker = LocalWorker::start(Worker::new(&patient, "early").num_threads(1), work);
    let caller = std::thread::spawn(move || {
        let function = connect(patient)
            .unwrap()
            .function::<Job, Done, String>("early");
        function.start().unwrap().call(&Job::Double(2))
    });
    let told = format!(
        "{}: check that nats-server runs there (`nats-server --jetstream`); waiting",
        server.port()
    );
    eventually("they wait", || warnings.have(&told));
    server.up();
    assert_eq!(caller.join().unwrap().unwrap().output.number, 4);
}
