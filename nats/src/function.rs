//! A function that runs elsewhere, described option by option.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::error::SetupError;
use crate::frame::MAX_DEADLINE;
use crate::names::Names;
use crate::remote::{Remote, Signature};
use crate::server::Link;

/// The options of a function that runs elsewhere, each with a default that is right for most.
///
/// Made by [`Connection::function`](crate::Connection::function), finished by [`start`](Self::start).
#[must_use = "nothing is called unless `start` makes a `Remote` of it"]
pub struct Function<I, T, E> {
    link: Arc<Link>,
    name: String,
    deadline: Duration,
    max_deliver: u64,
    max_queued: u32,
    types: Signature<I, T, E>,
}

impl<I, T, E> Function<I, T, E> {
    pub(crate) fn new(link: Arc<Link>, name: &str) -> Self {
        Self {
            link,
            name: name.to_owned(),
            deadline: Duration::from_secs(60),
            max_deliver: 3,
            max_queued: 10_000,
            types: PhantomData,
        }
    }

    /// How long one call may take in all: to be sent, to wait in the queue, to run, to be redelivered and to
    /// come back. Then it fails with [`RemoteError::Deadline`](crate::RemoteError::Deadline). The default
    /// is 60 s, and a week is the most.
    ///
    /// A worker that runs the task keeps its lease no longer than this.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = after.min(MAX_DEADLINE);
        self
    }

    /// How many workers may take one task, as long as none answers. The one after that answers
    /// [`RemoteError::Lost`](crate::RemoteError::Lost) instead of running it: an item that kills its worker
    /// kills no more than this many. The default is 3; 0 means 1.
    pub fn max_deliver(mut self, n: u64) -> Self {
        self.max_deliver = n.max(1);
        self
    }

    /// How many tasks the queue of this function holds at most, of all callers together, the running
    /// ones among them. Beyond that a call fails with
    /// [`RemoteError::QueueFull`](crate::RemoteError::QueueFull). The default is 10,000; 0 means 1.
    ///
    /// Whoever starts first, caller or worker, makes the queue. One that exists keeps its settings; to change
    /// them: `nats stream edit futureproof-NAME --max-msgs=N`.
    pub fn max_queued(mut self, n: u32) -> Self {
        self.max_queued = n.max(1);
        self
    }

    /// Makes the queue if it is not there, and gets ready for answers.
    ///
    /// # Errors
    ///
    /// If the name is not plain, or the server gives no queue.
    pub fn start(self) -> Result<Remote<I, T, E>, SetupError> {
        let names = Names::new(&self.name)?;
        Remote::start(
            self.link,
            names,
            self.deadline,
            self.max_deliver,
            self.max_queued.into(),
        )
    }
}

impl<I, T, E> fmt::Debug for Function<I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.name)
            .field("deadline", &self.deadline)
            .field("max_deliver", &self.max_deliver)
            .field("max_queued", &self.max_queued)
            .finish_non_exhaustive()
    }
}
