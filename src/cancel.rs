//! The token that stops runs, and that tells a task that nobody waits for it any more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::mem;
use std::slice;
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
/// Clones share one state, and are equal. One token may serve many runs. It may be cancelled twice, before a run
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
    state: Arc<State>,
}

struct State {
    is_cancelled: AtomicBool,
    /// `None` once it is cancelled.
    listeners: Mutex<Option<Listeners>>,
    /// Nothing is ever sent. It is disconnected when the token is cancelled.
    disconnected: Receiver<Infallible>,
    /// From then on it counts as cancelled.
    deadline: OnceLock<Instant>,
    /// What cancels it with its parents.
    parents: OnceLock<Vec<OnCancel>>,
}

struct Listeners {
    /// Dropped at the cancel: that wakes every consumer that waits for it.
    _connected: Sender<Infallible>,
    /// In the order in which they came.
    callbacks: BTreeMap<u64, Callback>,
    next: u64,
}

type Callback = Box<dyn FnOnce() + Send>;

impl CancellationToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        let (connected, disconnected) = bounded(0);
        let listeners = Listeners {
            _connected: connected,
            callbacks: BTreeMap::new(),
            next: 0,
        };
        Self {
            state: Arc::new(State {
                is_cancelled: AtomicBool::new(false),
                listeners: Mutex::new(Some(listeners)),
                disconnected,
                deadline: OnceLock::new(),
                parents: OnceLock::new(),
            }),
        }
    }

    /// A token that is cancelled with this one, and that can be cancelled by itself.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let all = CancellationToken::new();
    /// let [one, other] = [all.child_token(), all.child_token()];
    /// one.cancel();
    /// assert!(!all.is_cancelled() && !other.is_cancelled());
    /// all.cancel();
    /// assert!(other.is_cancelled());
    /// ```
    #[must_use]
    pub fn child_token(&self) -> Self {
        Self::child_of(slice::from_ref(self))
    }

    /// A token that is cancelled with any of `parents`.
    pub(crate) fn child_of(parents: &[Self]) -> Self {
        let child = Self::new();
        let link = |parent: &Self| {
            // Weak, as the child owns what is returned here.
            let child = Arc::downgrade(&child.state);
            parent.on_cancel(move || {
                if let Some(state) = child.upgrade() {
                    Self { state }.cancel();
                }
            })
        };
        let links = parents.iter().map(link).collect();
        let _ = child.state.parents.set(links);
        child
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
        self.state.is_cancelled.store(true, Ordering::Release);
        let listeners = self.listeners().take();
        // Not under the lock: they are the user's.
        for (_, callback) in listeners.into_iter().flat_map(|it| it.callbacks) {
            catch_panic(callback);
        }
    }

    /// Whether [`cancel`](Self::cancel) was called on this token, a clone of it or its parent.
    pub fn is_cancelled(&self) -> bool {
        // Acquire: pairs with the store in `cancel`.
        self.state.is_cancelled.load(Ordering::Acquire)
            || self.deadline().is_some_and(|deadline| now() >= deadline)
    }

    /// Registers `f` to run on the thread that cancels, or at once if the token is already cancelled. Dropping what is
    /// returned unregisters it; if a cancel is under way just then, `f` may still be called a moment later.
    ///
    /// Use it to interrupt what can be interrupted from outside: a wait on a condition variable, a socket, a database
    /// query. `f` should be quick, since other callbacks wait for it. If it panics, nothing else is lost. A
    /// run's deadline calls it when the run's consumer notices the deadline, in `next`.
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
    #[must_use = "dropping it unregisters `f`"]
    pub fn on_cancel(&self, f: impl FnOnce() + Send + 'static) -> OnCancel {
        let mut key = 0;
        let mut late = Some(f);
        if let Some(listeners) = &mut *self.listeners() {
            key = listeners.next;
            listeners.next += 1;
            if let Some(f) = late.take() {
                listeners.callbacks.insert(key, Box::new(f));
            }
        }
        late.map(catch_panic);
        OnCancel {
            token: self.clone(),
            key,
        }
    }

    fn listeners(&self) -> MutexGuard<'_, Option<Listeners>> {
        // Nothing that could panic is done under the lock.
        let listeners = self.state.listeners.lock();
        listeners.unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes ready, disconnected, when the token is cancelled.
    pub(crate) fn disconnected(&self) -> &Receiver<Infallible> {
        &self.state.disconnected
    }

    /// When it counts as cancelled although nobody has cancelled it.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let own = self.state.deadline.get().copied();
        let parents = self.state.parents.get().into_iter().flatten();
        let inherited = parents.filter_map(|link| link.token.deadline());
        own.into_iter().chain(inherited).min()
    }

    pub(crate) fn set_deadline(&self, deadline: Instant) {
        let _ = self.state.deadline.set(deadline);
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

/// Clones of one token are equal.
impl PartialEq for CancellationToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for CancellationToken {}

impl fmt::Debug for CancellationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancellationToken")
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}

/// A registered callback; made by [`CancellationToken::on_cancel`]. Dropping it unregisters the callback.
#[derive(Debug)]
#[must_use = "dropping it unregisters the callback"]
pub struct OnCancel {
    token: CancellationToken,
    key: u64,
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        let take = |listeners: &mut Listeners| listeners.callbacks.remove(&self.key);
        let callback = self.token.listeners().as_mut().and_then(take);
        // Not under the lock.
        drop_catching(callback);
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
    fn a_cancel_disconnects_every_clone() {
        let token = CancellationToken::new();
        let clone = token.clone();
        assert_eq!(token, clone);
        assert_ne!(token, CancellationToken::new());
        token.cancel();
        token.cancel();
        assert!(clone.is_cancelled());
        assert_eq!(
            clone.disconnected().try_recv(),
            Err(crossbeam_channel::TryRecvError::Disconnected)
        );
    }

    #[test]
    fn a_child_goes_with_any_of_its_parents() {
        let parents = [CancellationToken::new(), CancellationToken::new()];
        let child = CancellationToken::child_of(&parents);
        let grandchild = child.child_token();
        parents[1].cancel();
        assert!(child.is_cancelled() && grandchild.is_cancelled() && !parents[0].is_cancelled());
        // Of one that is cancelled already.
        assert!(parents[1].child_token().is_cancelled());
    }

    #[test]
    fn a_child_has_the_earliest_deadline() {
        let now = now();
        let parent = CancellationToken::new();
        let child = parent.child_token();
        child.set_deadline(now + std::time::Duration::from_secs(2));
        parent.set_deadline(now + std::time::Duration::from_secs(1));
        assert_eq!(child.deadline(), parent.deadline());
    }

    #[test]
    fn nothing_is_left_of_a_child_in_its_parent() {
        let parent = CancellationToken::new();
        for _ in 0..10 {
            let child = parent.child_token();
            let state = Arc::downgrade(&child.state);
            drop(child);
            assert!(state.upgrade().is_none());
        }
        assert!(parent.listeners().as_ref().unwrap().callbacks.is_empty());
    }
}
