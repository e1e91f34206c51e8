//! A worker: threads that pull tasks from the queue and run the function on them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::SetupError;
use crate::frame::MAX_DEADLINE;
use crate::monitor::{count_finished, log_counts, monitor};
use crate::names::Names;
use crate::outcome::answer;
use crate::queue;
use crate::queue_consumer::{Limits, QueueConsumer};
use crate::server::{Link, Server};
#[cfg(feature = "tracing")]
use crate::trace;

/// How long a stopped worker waits for its last answers to be confirmed, and for its last acknowledgements to be sent.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs `f` on the items that callers send to the function `name`, until SIGTERM or Ctrl-C.
///
/// Uses `num_threads` threads, or one per core if it is 0. Start it on any number of machines, at any time: they
/// share the queue. Use [`Worker`] to set more options.
///
/// **`f` may run twice on the same item.** If this process dies or loses its network, another worker gets the
/// task. A panic of `f` is caught, and the caller gets
/// [`RemoteError::Panicked`](crate::RemoteError::Panicked).
///
/// # Errors
///
/// Returns an error if the name is invalid, or at the start the server is unreachable or does not open the
/// queue. If the server goes away later, the worker waits for it.
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

/// The options of a worker. The defaults suit most programs.
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
    /// Creates a worker for the function `name`.
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
                grace: Duration::from_secs(20),
            },
            stop: watch::Sender::new(false),
        }
    }

    /// Sets how many tasks run at once, each on its own thread. The default is 0, one per core.
    pub fn num_threads(mut self, n: usize) -> Self {
        self.num_threads = n;
        self
    }

    /// Sets the id that callers see in [`Answer::worker`](crate::Answer::worker). The default is host and
    /// process id.
    pub fn id(mut self, id: &str) -> Self {
        let plain = id.chars().filter(|c| !c.is_control());
        self.id = Some(plain.take(128).collect());
        self
    }

    /// Sets how soon another worker gets a task if this one dies or is cut off. The default is 2 s, the minimum
    /// 200 ms. A live worker renews the lease four times as often, so tasks may take longer.
    ///
    /// The first worker of a function sets the lease for all. Later workers log a warning if theirs differs.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.limits.lease = lease.max(Duration::from_millis(200));
        self
    }

    /// Sets how long a task may run before another worker may take it, for functions that may hang. The default
    /// is the caller's deadline.
    ///
    /// The hanging thread is not freed, as a thread cannot be killed.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limits.time_limit = Some(limit.min(MAX_DEADLINE));
        self
    }

    /// Sets how long running tasks may go on after a stop, until their
    /// `CancellationToken::current()` is cancelled. The default is 20 s.
    ///
    /// A task that returns an error or panics after that goes to another worker, and its caller hears nothing of it.
    /// A task that does not look at its token is waited for.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.limits.grace = grace;
        self
    }

    /// Sets the largest item that is accepted, in bytes as sent. Larger items fail with
    /// [`RemoteError::Decode`](crate::RemoteError::Decode). The default is 1 MiB, like the server's own limit
    /// (`max_payload`).
    pub fn max_item_bytes(mut self, n: usize) -> Self {
        self.limits.max_item_bytes = n;
        self
    }

    /// Like [`Function::max_queued`](crate::Function::max_queued), if this worker creates the queue.
    pub fn max_queued(mut self, n: u32) -> Self {
        self.limits.max_queued = n.max(1).into();
        self
    }

    /// Sets how often the worker logs its counters, at `info!` with target `futureproof` (see [`log`]). The default
    /// is every 2 s, if something has changed. Zero turns it off.
    pub fn monitor_interval(mut self, every: Duration) -> Self {
        self.monitor = every;
        self
    }

    /// Sets whether SIGTERM and Ctrl-C stop the worker gracefully, and a second one ends the process at once. The
    /// default is `true`. Otherwise use [`stop_handle`](Self::stop_handle).
    pub fn signals(mut self, handle: bool) -> Self {
        self.signals = handle;
        self
    }

    /// Returns a handle that stops this worker from another thread.
    pub fn stop_handle(&self) -> WorkerStop {
        WorkerStop {
            stop: self.stop.clone(),
        }
    }

    /// Runs tasks until the worker is stopped. Then it finishes and answers the running tasks, and takes no more.
    ///
    /// A stop takes as long as the running tasks; up to 3 s for requests that are under way, in which another task may
    /// come; and up to 7 s if answers cannot be delivered, because callers or the server are gone.
    ///
    /// `f` need not be `'static`. Use [`futureproof::with_state`] to give each thread its own state.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`serve`].
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
        let threads = match self.num_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let opened = {
            let session = link.session.clone();
            let stopped = self.stop.subscribe();
            let open = QueueConsumer::open(
                session,
                names.clone(),
                worker,
                threads,
                self.limits,
                stopped,
            );
            background.wait(queue::within_time(open))
        };
        let consumer = opened.ok_or_else(SetupError::ended)?;
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
        let monitor = background
            .handle()
            .spawn(monitor(Arc::clone(&consumer), self.monitor));
        let listener = background.handle().spawn(Arc::clone(&consumer).listen());
        log::info!(target: "futureproof", "{}: worker {} started with {threads} threads", names.name(), consumer.worker);
        let work = || {
            while let Some(Some(delivery)) = background.wait(Arc::clone(&consumer).next()) {
                consumer.counts.running.add();
                let run = |item: &I| consumer.counts.time(|| delivery.token.in_scope(|| f(item)));
                #[cfg(feature = "tracing")]
                let run = |item: &I| trace::call(names.name(), &delivery.task, || run(item));
                let (kind, payload) = answer(&run, &delivery.task.payload);
                // The thread is free: a caller that does not confirm its answer holds nobody up.
                let consumer = Arc::clone(&consumer);
                background.handle().spawn(async move {
                    count_finished(&consumer, delivery.settle(kind, payload).await);
                });
            }
        };
        let ended = std::thread::scope(|scope| {
            for index in 0..threads {
                let name = format!("{}-{index}", names.name());
                if let Err(error) = std::thread::Builder::new()
                    .name(name)
                    .spawn_scoped(scope, work)
                {
                    // Stop the threads that were started.
                    self.stop.send_replace(true);
                    return Err(SetupError::Background(error));
                }
            }
            Ok(())
        });
        let settled = {
            let (consumer, client) = (Arc::clone(&consumer), link.session.client());
            background.wait(async move {
                let settled = timeout(SETTLE_TIMEOUT, consumer.settled()).await;
                // Send the last acknowledgements before the connection closes.
                let _ = timeout(FLUSH_TIMEOUT, client.flush()).await;
                settled.is_ok()
            })
        };
        if settled != Some(true) {
            log::warn!(
                target: "futureproof",
                "{}: {} answers are not confirmed: other workers will run these tasks again",
                names.name(), consumer.counts.running.get()
            );
        }
        monitor.abort();
        listener.abort();
        log_counts(&consumer, "stopped");
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
    /// Tells the worker to finish its running tasks and end. Returns at once.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Host and process id.
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

/// The first signal is a request. The second comes from somebody who does not want to wait.
fn on_signal(stop: &watch::Sender<bool>, first: bool) {
    if first {
        log::info!(target: "futureproof", "stopping: waiting for the running tasks; signal again to exit at once");
        stop.send_replace(true);
    } else {
        log::warn!(target: "futureproof", "exiting at once: other workers will run the unfinished tasks");
        std::process::exit(1);
    }
}
