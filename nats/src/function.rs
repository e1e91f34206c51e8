//! The options of a remote function.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::error::SetupError;
use crate::frame::MAX_DEADLINE;
use crate::names::Names;
use crate::remote::{Remote, Signature};
use crate::server::Link;

/// The options of a function that workers run. The defaults suit most programs.
///
/// Made by [`Connection::function`](crate::Connection::function). Call [`start`](Self::start) to get a
/// [`Remote`].
#[must_use = "call `start` to get a `Remote`"]
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

    /// Sets how long one call may take: sending, waiting in the queue, running, redeliveries and the way
    /// back. After that the call fails with [`RemoteError::Deadline`](crate::RemoteError::Deadline).
    ///
    /// The default is 60 s, the maximum is a week. A worker renews the task's lease no longer than this.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = after.min(MAX_DEADLINE);
        self
    }

    /// Sets how many workers may take one task, if none of them answers. The next worker does not run it and
    /// reports [`RemoteError::Lost`](crate::RemoteError::Lost), so an item that kills its workers kills no
    /// more than this many.
    ///
    /// The default is 3. 0 means 1.
    pub fn max_deliver(mut self, n: u64) -> Self {
        self.max_deliver = n.max(1);
        self
    }

    /// Sets how many tasks of all callers the queue holds, including the running ones. When it is full, calls
    /// fail with [`RemoteError::QueueFull`](crate::RemoteError::QueueFull). The default is 10,000. 0 means 1.
    ///
    /// The first caller or worker creates the queue. An existing queue keeps its settings. To change them, run
    /// `nats stream edit futureproof-NAME --max-msgs=N`.
    pub fn max_queued(mut self, n: u32) -> Self {
        self.max_queued = n.max(1);
        self
    }

    /// Creates the queue if it does not exist, and subscribes to answers.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is invalid or the server does not open the queue.
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
