//! A function that workers run, called like a local one.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use futureproof::CancellationToken;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::counters::Counters;
use crate::error::{RemoteError, SetupError};
use crate::frame::{self, Kind, TaskHead};
use crate::names::Names;
use crate::pending_calls::{NoReply, PendingCalls, Reply};
use crate::queue;
use crate::server::Link;

/// How long `drop` waits until the workers are told and the queue is purged.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The output of a call, and which worker made it.
///
/// ```no_run
/// let count = futureproof_nats::connect("nats://queue:4222")?
///     .function::<String, usize, String>("count_words")
///     .start()?;
/// match count.call(&"to be or not to be".to_owned()) {
///     Ok(answer) => println!("{} words, by {}", answer.output, answer.worker),
///     Err(error) => println!("no answer: {error}"),
/// }
/// # Ok::<(), futureproof_nats::SetupError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Answer<T> {
    /// What the function returned.
    pub output: T,
    /// The worker that ran the task: its [`id`](crate::Worker::id), by default host and process id.
    pub worker: String,
    /// How many workers took the task, this one included. More than 1 if others died before they answered.
    pub deliveries: u64,
}

impl<T> Answer<T> {
    /// Returns the output alone.
    pub fn into_output(self) -> T {
        self.output
    }

    /// Whether other workers took the task before this one, and did not answer.
    pub fn was_redelivered(&self) -> bool {
        self.deliveries > 1
    }
}

/// The types of a function. No value is stored.
pub(crate) type Signature<I, T, E> = PhantomData<fn(&I) -> Result<T, E>>;

/// A function that workers run. Made by [`Function::start`](crate::Function::start).
///
/// Call it with [`call`](Self::call), or give [`into_fn`](Self::into_fn) to `map_tasks`. Each call blocks its
/// thread until the answer is there, so the run's `num_threads` is the number of tasks in flight.
///
/// Dropping it purges the queued tasks that no call waits for, and tells the workers to stop running ones. It takes up
/// to 2 s if the server does not answer.
pub struct Remote<I, T, E> {
    inner: Arc<Inner>,
    types: Signature<I, T, E>,
}

struct Inner {
    pending: Arc<PendingCalls>,
    deadline: Duration,
    max_deliver: u64,
    receiver: JoinHandle<()>,
    // Dropped last, as the other fields need the background thread.
    link: Arc<Link>,
}

impl<I, T, E> Remote<I, T, E> {
    pub(crate) fn start(
        link: Arc<Link>,
        names: Names,
        deadline: Duration,
        max_deliver: u64,
        max_queued: i64,
    ) -> Result<Self, SetupError> {
        let pending = Arc::new(PendingCalls::new(
            link.session.clone(),
            names.clone(),
            max_queued,
        ));
        let starting = Arc::clone(&pending);
        let subject = names.answers(&pending.run);
        let answers = link.background.wait(queue::within_time(async move {
            let PendingCalls { session, names, .. } = &*starting;
            queue::stream(&session.context(), names, starting.max_queued).await?;
            let client = session.client();
            let answers = client.subscribe(names.answers(&starting.run)).await?;
            // The server must have the subscription before the first task is sent.
            client.flush().await?;
            Ok(answers)
        }));
        let answers = answers.ok_or_else(SetupError::ended)?;
        let answers = answers.map_err(|source| SetupError::Queue {
            address: link.address.clone(),
            name: names.name().to_owned(),
            source,
        })?;
        let background = link.background.handle();
        let receiver = {
            let pending = Arc::clone(&pending);
            let handle = move |message: &Message| pending.handle(message);
            background.spawn(link.session.clone().listen(subject, answers, handle))
        };
        let inner = Inner {
            pending,
            deadline,
            max_deliver,
            receiver,
            link,
        };
        Ok(Self {
            inner: Arc::new(inner),
            types: PhantomData,
        })
    }

    /// Returns the counters of all calls so far.
    pub fn counters(&self) -> Counters {
        self.inner.pending.counts.read()
    }

    /// Returns a handle that can stop the function and read its counters, even after
    /// [`into_fn`](Self::into_fn).
    pub fn stop_handle(&self) -> Stop {
        Stop {
            pending: Arc::clone(&self.inner.pending),
            link: Arc::clone(&self.inner.link),
        }
    }
}

impl<I, T, E> Remote<I, T, E>
where
    I: Serialize,
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    /// Runs the function on `item` on a worker, and waits for the answer.
    ///
    /// **At least once.** If a worker dies or loses its network, another worker runs the function on the same
    /// item. Make sure that running it twice is harmless. The caller gets one answer.
    ///
    /// A call that is part of a run ends with it: when the run is cancelled, exceeds its deadline or is dropped, the
    /// call returns [`RemoteError::Stopped`] and its task is deleted from the queue.
    ///
    /// # Errors
    ///
    /// Returns the function's own error as [`RemoteError::Task`], and other variants of [`RemoteError`] if no
    /// answer came.
    pub fn call(&self, item: &I) -> Result<Answer<T>, RemoteError<E>> {
        let result = self.send_and_wait(item);
        self.count(&result);
        result
    }

    /// Converts into a closure for `map_tasks`.
    pub fn into_fn(self) -> impl Fn(&I) -> Result<Answer<T>, RemoteError<E>> + Send + Sync {
        move |item| self.call(item)
    }

    fn send_and_wait(&self, item: &I) -> Result<Answer<T>, RemoteError<E>> {
        let Inner { pending, link, .. } = &*self.inner;
        let head = TaskHead {
            id: pending.counts.calls.next(),
            deadline: self.inner.deadline,
            max_deliver: self.inner.max_deliver,
        };
        let payload = frame::encode(item).map_err(|reason| {
            RemoteError::Encode(format!("the item does not serialize: {reason}"))
        })?;
        frame::check_length("item", &payload, &pending.session.client())
            .map_err(RemoteError::Encode)?;
        // The run may be over before the answer comes.
        let (stop, stopped) = oneshot::channel();
        let _listener = CancellationToken::current().on_cancel(move || {
            let _ = stop.send(());
        });
        // Do not move `link` into the future: dropped on its own background thread, it would wait for itself.
        match link
            .background
            .wait(Arc::clone(pending).call(head, payload, stopped))
        {
            Some(Ok(reply)) => read(reply),
            Some(Err(NoReply::Deadline)) => Err(RemoteError::Deadline),
            Some(Err(NoReply::QueueFull)) => Err(RemoteError::QueueFull),
            Some(Err(NoReply::Transport(reason))) => Err(RemoteError::Transport(reason)),
            Some(Err(NoReply::Stopped)) => Err(RemoteError::Stopped),
            None => Err(RemoteError::Transport(
                "the background thread ended unexpectedly".to_owned(),
            )),
        }
    }

    fn count(&self, result: &Result<Answer<T>, RemoteError<E>>) {
        let counts = &self.inner.pending.counts;
        match result {
            Ok(answer) => {
                counts.ok.add();
                if answer.was_redelivered() {
                    counts.redelivered.add();
                }
            }
            Err(RemoteError::Task(_)) => counts.failed.add(),
            Err(RemoteError::Panicked { .. }) => counts.panicked.add(),
            Err(RemoteError::Lost { .. }) => counts.lost.add(),
            Err(RemoteError::Decode(_)) => counts.unreadable.add(),
            Err(RemoteError::Deadline) => return counts.deadlines.add(),
            Err(RemoteError::QueueFull) => return counts.refused.add(),
            Err(RemoteError::Stopped) => return counts.stopped.add(),
            Err(RemoteError::Transport(_) | RemoteError::Encode(_)) => {
                return counts.undelivered.add();
            }
        }
        counts.answered.add();
    }
}

/// Converts a reply to the result of a call.
fn read<T, E>(reply: Reply) -> Result<Answer<T>, RemoteError<E>>
where
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    let Reply { head, payload } = reply;
    let text = || String::from_utf8_lossy(&payload).into_owned();
    match head.kind {
        Kind::Ok => match frame::decode(&payload) {
            Ok(output) => Ok(Answer {
                output,
                worker: head.worker,
                deliveries: head.deliveries,
            }),
            Err(reason) => Err(undecodable("output", &reason)),
        },
        Kind::Err => match frame::decode(&payload) {
            Ok(error) => Err(RemoteError::Task(error)),
            Err(reason) => Err(undecodable("function's error", &reason)),
        },
        Kind::Panicked => Err(RemoteError::Panicked { message: text() }),
        Kind::Lost => Err(RemoteError::Lost {
            deliveries: head.deliveries,
        }),
        Kind::Encode => Err(RemoteError::Encode(text())),
        Kind::Decode => Err(RemoteError::Decode(text())),
        Kind::Wanted | Kind::Start | Kind::Returned => {
            unreachable!("PendingCalls answers a question and passes on no reply")
        }
    }
}

fn undecodable<E>(what: &str, reason: &str) -> RemoteError<E> {
    RemoteError::Decode(format!(
        "the {what} does not deserialize: {reason}; check that caller and worker have the same types"
    ))
}

impl Drop for Inner {
    fn drop(&mut self) {
        let pending = Arc::clone(&self.pending);
        self.link.background.wait(async move {
            let _ = tokio::time::timeout(END_TIMEOUT, pending.end()).await;
        });
        self.receiver.abort();
    }
}

impl<I, T, E> fmt::Debug for Remote<I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("name", &self.inner.pending.names.name())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// Stops a [`Remote`] from any thread and reads its counters. Made by [`Remote::stop_handle`].
#[derive(Clone)]
pub struct Stop {
    pending: Arc<PendingCalls>,
    link: Arc<Link>,
}

impl Stop {
    /// Stops the function and purges its queued tasks. All waiting and later calls return
    /// [`RemoteError::Stopped`].
    pub fn stop(&self) {
        self.pending.stop(self.link.background.handle());
    }

    /// Returns the counters of all calls so far.
    pub fn counters(&self) -> Counters {
        self.pending.counts.read()
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop")
            .field("name", &self.pending.names.name())
            .finish_non_exhaustive()
    }
}
