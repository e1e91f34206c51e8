//! A worker: threads that take tasks from the queue and run the function on them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::error::SetupError;
use crate::monitor::{count_finished, log_counts, monitor};
use crate::names::Names;
use crate::outcome::answer;
use crate::queue_consumer::{Limits, QueueConsumer};
use crate::server::{Link, Server};
#[cfg(feature = "tracing")]
use crate::trace;

/// Runs `f` on the items that callers send to the function `name`, on so many threads, until SIGTERM or Ctrl-C.
///
/// 0 threads means one per core. Start it on as many machines as there are, at any time: they share the queue. The
/// options are at [`Worker`].
///
/// `f` **may run twice on the same item**: if this process dies or loses its network, another worker gets the
/// task. A panic of `f` is caught, and is the caller's [`RemoteError::Panicked`](crate::RemoteError::Panicked).
///
/// # Errors
///
/// If the name is not plain, or the server cannot be reached at the start or gives no queue. A server that goes
/// away later is waited for.
///
/// ```no_run
/// fn make_thumb(path: &String) -> Result<Vec<u8>, String> {
///     std::fs::read(path).map_err(|error| format!("{path}: {error}"))
/// }
///
/// futureproof_nats::serve("nats://queue:4222", "thumbs", 8, make_thumb)?;
/// # Ok::<(), futureproof_nats::SetupError>(())
/// ```
pub fn serve<I, T, E, F>(
    server: impl Into<Server>,
    name: &str,
    num_threads: usize,
    f: F,
) -> Result<(), SetupError>
where
    I: DeserializeOwned,
    T: Serialize,
    E: Serialize,
    F: Fn(&I) -> Result<T, E> + Sync,
{
    Worker::new(server, name).num_threads(num_threads).run(f)
}

/// The options of a worker, each with a default that is right for most.
///
/// ```no_run
/// use std::time::Duration;
///
/// let worker = futureproof_nats::Worker::new("nats://queue:4222", "thumbs")
///     .num_threads(8)
///     .time_limit(Duration::from_secs(30));
/// let stop = worker.stop_handle(); // for another thread
/// worker.run(|n: &u64| n.checked_add(1).ok_or("too large"))?;
/// # Ok::<(), futureproof_nats::SetupError>(())
/// ```
#[must_use = "a worker does nothing until `run`"]
pub struct Worker {
    server: Server,
    name: String,
    num_threads: usize,
    id: Option<String>,
    signals: bool,
    monitor: Duration,
    limits: Limits,
    stop: watch::Sender<bool>,
}

impl Worker {
    /// A worker for the function `name`.
    pub fn new(server: impl Into<Server>, name: &str) -> Self {
        Self {
            server: server.into(),
            name: name.to_owned(),
            num_threads: 0,
            id: None,
            signals: true,
            monitor: Duration::from_secs(2),
            limits: Limits {
                lease: Duration::from_secs(2),
                max_queued: 10_000,
                max_item_bytes: 1 << 20,
                time_limit: None,
            },
            stop: watch::Sender::new(false),
        }
    }

    /// How many tasks run at once, each on a thread. 0, the default, is one per core.
    pub fn num_threads(mut self, n: usize) -> Self {
        self.num_threads = n;
        self
    }

    /// How callers see this worker, in [`Answer::worker`](crate::Answer). The default is host and process id.
    pub fn id(mut self, id: &str) -> Self {
        let plain = id.chars().filter(|c| !c.is_control());
        self.id = Some(plain.take(128).collect());
        self
    }

    /// How soon a task is given to another worker when this one is dead, or cut off. The default is 2 s, and
    /// 200 ms is the least. A living worker renews it four times as often, so tasks may take longer.
    ///
    /// The first worker of a function sets it for all; later ones log a warning if theirs differs.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.limits.lease = lease.max(Duration::from_millis(200));
        self
    }

    /// How long a task may run before its lease is given up and another worker may take it: for functions that
    /// may hang. The default is the caller's deadline. The thread that hangs is not freed: no thread can be killed.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limits.time_limit = Some(limit);
        self
    }

    /// The largest item that is read, in bytes as sent; larger ones are answered with
    /// [`RemoteError::Decode`](crate::RemoteError::Decode). The default is 1 MiB, as is the server's
    /// own limit (`max_payload`).
    pub fn max_item_bytes(mut self, n: usize) -> Self {
        self.limits.max_item_bytes = n;
        self
    }

    /// As [`Function::max_queued`](crate::Function::max_queued), where the worker is the first to come.
    pub fn max_queued(mut self, n: u32) -> Self {
        self.limits.max_queued = n.max(1).into();
        self
    }

    /// How often the monitor tells, through [`log`] at `info!` with target `futureproof`, how the worker
    /// is doing. The default is every 2 s, when something has changed. With zero it is silent.
    pub fn monitor_interval(mut self, every: Duration) -> Self {
        self.monitor = every;
        self
    }

    /// Whether SIGTERM and Ctrl-C stop the worker gracefully, which is the default; the second one ends the
    /// process at once. If not, use [`stop_handle`](Self::stop_handle).
    pub fn signals(mut self, handle: bool) -> Self {
        self.signals = handle;
        self
    }

    /// A handle that stops this worker from another thread.
    pub fn stop_handle(&self) -> WorkerStop {
        WorkerStop {
            stop: self.stop.clone(),
        }
    }

    /// Works until it is stopped. Then what runs is finished and answered, and no more is taken.
    ///
    /// `f` need not be `'static`. With [`futureproof::with_state`] each thread has a state of its own.
    ///
    /// # Errors
    ///
    /// As [`serve`].
    pub fn run<I, T, E, F>(self, f: F) -> Result<(), SetupError>
    where
        I: DeserializeOwned,
        T: Serialize,
        E: Serialize,
        F: Fn(&I) -> Result<T, E> + Sync,
    {
        let names = Names::new(&self.name)?;
        let link = Link::open(&self.server)?;
        let background = &link.background;
        let worker = self.id.unwrap_or_else(default_id);
        let consumer = background.wait({
            let parts = (
                link.client.clone(),
                link.context.clone(),
                link.connects.clone(),
            );
            QueueConsumer::open(
                parts,
                names.clone(),
                worker,
                self.limits,
                self.stop.subscribe(),
            )
        });
        let consumer = consumer.ok_or_else(SetupError::ended)?;
        let consumer = Arc::new(consumer.map_err(|source| SetupError::Queue {
            address: link.address.clone(),
            name: names.name().to_owned(),
            source,
        })?);
        if self.signals {
            let stop = self.stop.clone();
            let installed = background.wait(async move { stop_on_signals(stop) });
            installed
                .ok_or_else(SetupError::ended)?
                .map_err(SetupError::Background)?;
        }
        let threads = match self.num_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let monitor = background
            .handle()
            .spawn(monitor(Arc::clone(&consumer), self.monitor));
        log::info!(target: "futureproof", "{}: worker {} started with {threads} threads", names.name(), consumer.worker);
        let work = || {
            while let Some(Some(delivery)) = background.wait(Arc::clone(&consumer).next()) {
                consumer.counts.running.add();
                let run = |item: &I| consumer.counts.time(|| f(item));
                #[cfg(feature = "tracing")]
                let run = |item: &I| trace::call(names.name(), &delivery.task, || run(item));
                let (kind, payload) = answer(&run, &delivery.task.payload);
                let sent = background.wait(delivery.settle(kind, payload));
                count_finished(&consumer, sent.unwrap_or(kind));
            }
        };
        let ended = std::thread::scope(|scope| {
            for index in 0..threads {
                let name = format!("{}-{index}", names.name());
                if let Err(error) = std::thread::Builder::new()
                    .name(name)
                    .spawn_scoped(scope, work)
                {
                    // Those that were started end.
                    self.stop.send_replace(true);
                    return Err(SetupError::Background(error));
                }
            }
            Ok(())
        });
        monitor.abort();
        log_counts(&consumer, "stopped");
        // The last acknowledgements leave before the connection is closed.
        let client = link.client.clone();
        background.wait(async move {
            let _ = tokio::time::timeout(Duration::from_secs(2), client.flush()).await;
        });
        ended
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("server", &self.server)
            .field("name", &self.name)
            .field("num_threads", &self.num_threads)
            .field("lease", &self.limits.lease)
            .finish_non_exhaustive()
    }
}

/// Stops a [`Worker`] from another thread. Made by [`Worker::stop_handle`].
#[derive(Clone, Debug)]
pub struct WorkerStop {
    stop: watch::Sender<bool>,
}

impl WorkerStop {
    /// Has the worker finish what it runs, and end. Returns at once.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Host and process.
fn default_id() -> String {
    let host = std::fs::read_to_string("/etc/hostname").ok();
    let host = host.or_else(|| std::env::var("COMPUTERNAME").ok());
    let host: String = host
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(64)
        .collect();
    let host = if host.is_empty() {
        "worker"
    } else {
        host.trim()
    };
    format!("{host}-{}", std::process::id())
}

#[cfg(unix)]
fn stop_on_signals(stop: watch::Sender<bool>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            on_signal(&stop, first);
        }
    });
    Ok(())
}

#[cfg(not(unix))]
fn stop_on_signals(stop: watch::Sender<bool>) -> std::io::Result<()> {
    tokio::spawn(async move {
        for first in [true, false] {
            if tokio::signal::ctrl_c().await.is_ok() {
                on_signal(&stop, first);
            }
        }
    });
    Ok(())
}

/// Once is a request; twice is somebody who does not want to wait for a task that hangs.
fn on_signal(stop: &watch::Sender<bool>, first: bool) {
    if first {
        log::info!(target: "futureproof", "stopping: waiting for the running tasks; signal again to exit at once");
        stop.send_replace(true);
    } else {
        log::warn!(target: "futureproof", "exiting at once: other workers will run the unfinished tasks");
        std::process::exit(1);
    }
}
