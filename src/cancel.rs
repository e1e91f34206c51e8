//! The token that stops runs, and that tells a task that nobody waits for it any more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::mem;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Instant;

use crate::util::panics::{catch_panic, drop_catching};
use crate::util::sync::atomic::{AtomicBool, Ordering};
use crate::util::sync::channel::{Receiver, Sender, bounded};
use crate::util::sync::{Mutex, MutexGuard, now, thread_local};

thread_local! {
    /// The token of the task that this thread runs.
    static CURRENT: RefCell<Option<CancellationToken>> = const { RefCell::new(None) };
}

/// Stops the runs that it was given to, from any thread.
///
/// Clones share one state. One token may serve many runs, may be cancelled twice, before a run
/// starts or after it has ended. A consumer that is blocked in `next()` wakes at once.
///
/// ```
/// use futureproof::prelude::*;
///
/// let token = CancellationToken::new();
/// let mut run = (0u64..).futureproof(Raise).cancel_on(&token).map_tasks(infallible(|n: &u64| n * 2));
/// assert!(run.next().is_some());
/// token.cancel(); // from another thread, a signal handler's thread, a task …
/// assert!(run.next().is_none());
/// assert_eq!(run.ending(), Some(futureproof::Ending::Cancelled));
/// ```
///
/// From Ctrl-C, with the `ctrlc` crate: `ctrlc::set_handler(move || token.cancel())`.
///
/// A call of the function that already runs is not interrupted. If it takes long, let it look at
/// [`current`](Self::current) now and then.
#[derive(Clone)]
pub struct CancellationToken {
    inner: Arc<Inner>,
}

struct Inner {
    cancelled: AtomicBool,
    /// `None` once it is cancelled.
    alive: Mutex<Option<Alive>>,
    bell: Receiver<Infallible>,
    /// From then on it is cancelled as well.
    deadline: OnceLock<Instant>,
}

struct Alive {
    // Nothing is ever sent. Dropping it disconnects the receiver, and that wakes every consumer that waits for it.
    _ringer: Sender<Infallible>,
    /// To be called, by the order in which they came.
    listeners: BTreeMap<u64, Listener>,
    next: u64,
}

type Listener = Box<dyn FnOnce() + Send>;

impl CancellationToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        let (ringer, bell) = bounded(0);
        let alive = Alive {
            _ringer: ringer,
            listeners: BTreeMap::new(),
            next: 0,
        };
        Self {
            inner: Arc::new(Inner {
                cancelled: AtomicBool::new(false),
                alive: Mutex::new(Some(alive)),
                bell,
                deadline: OnceLock::new(),
            }),
        }
    }

    /// The token of the task that this thread runs. It is cancelled once nobody waits for the task any more, as its
    /// run was cancelled, has met its deadline or is being dropped.
    ///
    /// For functions that take long: one that looks at it now and then need not be waited for. It is cancelled
    /// at the moment when a failure stops the run as well; in an ordered run, when that failure is delivered.
    ///
    /// On a thread that runs no task, this is a token that nobody cancels. So it is on the threads that a task
    /// starts itself or has rayon use: there, a clone does.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::time::Duration;
    ///
    /// let search = |start: &u64| {
    ///     let token = CancellationToken::current();
    ///     (*start..).find(|n| token.is_cancelled() || n * n == 2) // for ever
    /// };
    /// let run = [0, 1].into_iter().futureproof(Raise).deadline(Duration::from_millis(20));
    /// let mut run = run.map_tasks(infallible(search));
    /// assert!(run.next().is_none());
    /// drop(run); // waits for what runs, which is not long
    /// ```
    pub fn current() -> Self {
        // At a thread's very end there is no such place any more.
        let current = CURRENT.try_with(|current| current.borrow().clone());
        current.ok().flatten().unwrap_or_default()
    }

    /// Stops every run that this token was given to: no further call of their functions starts.
    pub fn cancel(&self) {
        // Release, for whoever looks at `is_cancelled` to learn that something was made ready.
        self.inner.cancelled.store(true, Ordering::Release);
        let alive = self.alive().take();
        // Not under the lock: they are the user's.
        for (_, listener) in alive.into_iter().flat_map(|alive| alive.listeners) {
            catch_panic(listener);
        }
    }

    /// Whether [`cancel`](Self::cancel) was called on this token or a clone of it.
    pub fn is_cancelled(&self) -> bool {
        // Acquire: pairs with the store in `cancel`.
        self.inner.cancelled.load(Ordering::Acquire)
            || self.deadline().is_some_and(|deadline| now() >= deadline)
    }

    /// Has `f` called when the token is cancelled, on the thread that cancels it; at once if it is cancelled already.
    ///
    /// Dropping what is returned takes `f` back. If a cancel is under way on another thread just then, `f` may be called
    /// all the same, a moment later.
    ///
    /// For what can be woken or broken off from outside: a wait on a condition variable, a socket, a query of a
    /// database. `f` should be quick, since others wait for their turn; if it panics, nothing else is lost. A
    /// run's deadline calls it when the run's consumer notices, in `next`.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::sync::mpsc;
    /// use std::time::Duration;
    ///
    /// // Waits for an hour, or until nobody waits for it.
    /// let doze = |_: &u32| {
    ///     let (sender, woken) = mpsc::channel();
    ///     let _listener = CancellationToken::current().on_cancel(move || sender.send(()).unwrap());
    ///     woken.recv_timeout(Duration::from_secs(3_600)).is_ok()
    /// };
    /// let run = (0..2).futureproof(Raise).deadline(Duration::from_millis(20));
    /// assert!(run.map_tasks(infallible(doze)).next().is_none());
    /// ```
    #[must_use = "`f` is taken back when this is dropped"]
    pub fn on_cancel(&self, f: impl FnOnce() + Send + 'static) -> OnCancel {
        let mut place = 0;
        let mut late = Some(f);
        if let Some(alive) = &mut *self.alive() {
            place = alive.next;
            alive.next += 1;
            let f = late.take().expect("it was put there just now");
            alive.listeners.insert(place, Box::new(f));
        }
        late.map(catch_panic);
        OnCancel {
            token: self.clone(),
            place,
        }
    }

    fn alive(&self) -> MutexGuard<'_, Option<Alive>> {
        // Nothing that could panic is done under the lock.
        let alive = self.inner.alive.lock();
        alive.unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes ready, disconnected, when the token is cancelled.
    pub(crate) fn bell(&self) -> &Receiver<Infallible> {
        &self.inner.bell
    }

    /// When it counts as cancelled although nobody has cancelled it.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.inner.deadline.get().copied()
    }

    pub(crate) fn set_deadline(&self, deadline: Instant) {
        let _ = self.inner.deadline.set(deadline);
    }

    /// This is the current token of this thread for as long as what is returned lives.
    pub(crate) fn enter(&self) -> Entered {
        let token = Some(self.clone());
        Entered {
            previous: CURRENT.with(|current| current.replace(token)),
        }
    }
}

impl Default for CancellationToken {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CancellationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancellationToken")
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}

/// Has something called on a cancel, for as long as it lives. Made by [`CancellationToken::on_cancel`].
#[derive(Debug)]
pub struct OnCancel {
    token: CancellationToken,
    place: u64,
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        let take = |alive: &mut Alive| alive.listeners.remove(&self.place);
        let listener = self.token.alive().as_mut().and_then(take);
        // Not under the lock.
        drop_catching(listener);
    }
}

/// A stretch of time in which a thread runs tasks of one run.
pub(crate) struct Entered {
    previous: Option<CancellationToken>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| current.replace(mem::take(&mut self.previous)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancel_disconnects_the_bell_of_every_clone() {
        let token = CancellationToken::new();
        let clone = token.clone();
        token.cancel();
        token.cancel();
        assert!(clone.is_cancelled());
        assert_eq!(
            clone.bell().try_recv(),
            Err(crossbeam_channel::TryRecvError::Disconnected)
        );
    }
}
