//! The token that stops runs, and that tells a task that its result is no longer wanted.

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
    /// The token of the task that this thread runs, and the number of the attempt.
    static CURRENT: RefCell<Option<(CancellationToken, u32)>> = const { RefCell::new(None) };
}

/// Stops the runs that it was passed to, from any thread.
///
/// Clones share one state and compare equal. One token can serve many runs. It can be cancelled before a run starts,
/// after the run ended, or twice. A consumer that is blocked in `next` wakes at once.
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
/// To stop on Ctrl-C, use the `ctrlc` crate: `ctrlc::set_handler(move || token.cancel())`.
///
/// A running call of the function is not interrupted. If it takes long, let it check [`current`](Self::current) now
/// and then.
#[derive(Clone)]
pub struct CancellationToken {
    state: Arc<State>,
}

struct State {
    is_cancelled: AtomicBool,
    /// `None` once cancelled.
    listeners: Mutex<Option<Listeners>>,
    /// Never carries a message; disconnected by a cancel.
    disconnected: Receiver<Infallible>,
    /// From this time on the token counts as cancelled.
    deadline: OnceLock<Instant>,
    /// The callbacks in its parents that cancel it.
    parents: OnceLock<Vec<OnCancel>>,
}

struct Listeners {
    /// Dropped by a cancel, which wakes every waiting consumer.
    _connected: Sender<Infallible>,
    /// In the order of registration.
    callbacks: BTreeMap<u64, Callback>,
    next: u64,
}

type Callback = Box<dyn FnOnce() + Send>;

impl CancellationToken {
    /// Creates a token that is not cancelled.
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

    /// Returns a new token that is cancelled with this one.
    ///
    /// Cancelling the new token does not cancel this one.
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

    /// Returns a new token that is cancelled with any of `parents`.
    pub(crate) fn child_of(parents: &[Self]) -> Self {
        let child = Self::new();
        let link = |parent: &Self| {
            // Weak, because the child owns this callback's registration.
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

    /// Returns the token of the task that this thread runs.
    ///
    /// It is cancelled once the task's result is no longer wanted: the run was cancelled, has reached its deadline,
    /// is being dropped, or was stopped by a failure. (An ordered run cancels it only when that failure is
    /// delivered.) If your function takes long, check the token now and then and return early, so that nobody has to
    /// wait.
    ///
    /// On a thread that runs no task, this returns a token that nobody cancels. This includes threads that a task
    /// starts itself or uses through rayon: pass them a clone.
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
        current().map_or_else(Self::default, |(token, _)| token)
    }

    /// Cancels the token, which stops every run that it was passed to: no further call starts.
    pub fn cancel(&self) {
        // Release: what was written before the cancel is visible to whoever sees it.
        self.state.is_cancelled.store(true, Ordering::Release);
        let listeners = self.listeners().take();
        // Not under the lock, because callbacks are user code.
        for (_, callback) in listeners.into_iter().flat_map(|it| it.callbacks) {
            catch_panic(callback);
        }
    }

    /// Returns whether this token, a clone of it or a parent was cancelled.
    ///
    /// For the token of a task it is also `true` once the run's deadline has passed.
    pub fn is_cancelled(&self) -> bool {
        // Acquire: pairs with the store in `cancel`.
        self.state.is_cancelled.load(Ordering::Acquire)
            || self.deadline().is_some_and(|deadline| now() >= deadline)
    }

    /// Registers `f` to run on the thread that cancels, or at once if already cancelled. Dropping the guard
    /// unregisters it.
    ///
    /// If a cancel is under way during that drop, `f` may still be called a moment later.
    ///
    /// Use it to interrupt a wait on a condition variable, a socket or a database query. Keep `f` quick, because
    /// other callbacks wait for it. If `f` panics, nothing else is lost. At a run's deadline, `f` is called when the
    /// consumer notices the deadline, in `next`.
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
        // Nothing under the lock can panic.
        let listeners = self.state.listeners.lock();
        listeners.unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel that is disconnected by a cancel, to wait for one.
    pub(crate) fn disconnected(&self) -> &Receiver<Infallible> {
        &self.state.disconnected
    }

    /// When it counts as cancelled without a call of `cancel`.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let own = self.state.deadline.get().copied();
        let parents = self.state.parents.get().into_iter().flatten();
        let inherited = parents.filter_map(|link| link.token.deadline());
        own.into_iter().chain(inherited).min()
    }

    pub(crate) fn set_deadline(&self, deadline: Instant) {
        let _ = self.state.deadline.set(deadline);
    }

    /// Calls `f` with this as the [current](Self::current) token of the thread.
    ///
    /// For threads that a task starts itself, and for programs that run a task's function for somebody else.
    ///
    /// ```
    /// use futureproof::CancellationToken;
    ///
    /// let token = CancellationToken::new();
    /// assert!(token.in_scope(CancellationToken::current) == token);
    /// assert!(CancellationToken::current() != token);
    /// ```
    pub fn in_scope<T>(&self, f: impl FnOnce() -> T) -> T {
        let _entered = self.enter(current_attempt());
        f()
    }

    /// Makes this the current token of this thread until the guard is dropped. `attempt`: that of the tasks that it runs.
    pub(crate) fn enter(&self, attempt: u32) -> Entered {
        let current = Some((self.clone(), attempt));
        Entered {
            previous: CURRENT.with(|it| it.replace(current)),
        }
    }
}

fn current() -> Option<(CancellationToken, u32)> {
    // The thread-local is gone while a thread ends.
    let current = CURRENT.try_with(|current| current.borrow().clone());
    current.ok().flatten()
}

/// Returns the number of the attempt that this thread makes at its task: 1 for the first, 2 for the first
/// [retry](crate::MapTasks::retry).
///
/// Use it where a function does something else when it is called again: a longer time limit, another server. On a thread
/// that runs no task, also in a child process, this returns 1.
///
/// ```
/// use futureproof::{current_attempt, prelude::*};
/// use std::time::Duration;
///
/// let servers = ["main", "standby"];
/// let ask = move |_: &u32| match servers[current_attempt() as usize - 1] {
///     "main" => Err("down"),
///     server => Ok(server),
/// };
/// let mut run = [7].into_iter().futureproof(Raise).map_tasks(ask).retry(|| [Duration::ZERO]);
/// assert_eq!(run.next().unwrap().unwrap().output, "standby");
/// ```
pub fn current_attempt() -> u32 {
    current().map_or(1, |(_, attempt)| attempt)
}

impl Default for CancellationToken {
    fn default() -> Self {
        Self::new()
    }
}

/// Clones of the same token are equal.
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

/// A guard that keeps a callback registered, returned by [`CancellationToken::on_cancel`].
///
/// Dropping it unregisters the callback.
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
        // Not under the lock, because its captures are user values.
        drop_catching(callback);
    }
}

/// While it lives, the thread runs tasks of one run.
pub(crate) struct Entered {
    previous: Option<(CancellationToken, u32)>,
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
        // A child of a cancelled token is cancelled.
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
