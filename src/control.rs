//! The control that pauses, resumes and widens runs while they go on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};

use crate::adaptive::{Adaptive, Sample};
use crate::util::notify::Notifier;
use crate::util::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::util::sync::{Mutex, MutexGuard, now};

/// Pauses, resumes, narrows and widens the runs that it was passed to, from any thread.
///
/// Clones share one state. One control can serve many runs, one after the other or at the same time. It can be used
/// before a run starts: a run whose control is paused starts paused.
///
/// ```
/// use futureproof::{Control, prelude::*};
///
/// let control = Control::new();
/// let operator = control.clone(); // for another thread: a signal handler's, a web server's …
/// let pause_at_10 = move |n: &u32| if *n == 10 { operator.pause() };
/// let run = (0..100u32).futureproof(Raise).num_threads(8).control(&control);
/// let mut run = run.map_tasks(infallible(pause_at_10));
/// let progress = run.progress();
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         while !control.is_paused() {
///             std::thread::yield_now();
///         }
///         assert!(progress.snapshot().is_paused());
///         control.set_concurrency(2); // at most two calls at once from now on
///         control.resume();
///     });
///     assert_eq!(run.by_ref().count(), 100);
/// });
/// ```
///
/// A cancel, a deadline and a drop end a paused run as they end any other.
#[derive(Clone)]
pub struct Control {
    state: Arc<State>,
}

struct State {
    /// Goes up with each change, after it.
    epoch: AtomicU64,
    is_paused: AtomicBool,
    /// How many calls may run at once; `usize::MAX` is no limit.
    concurrency: AtomicUsize,
    listeners: Mutex<Listeners>,
    /// Sets the concurrency, where it finds itself.
    adaptive: Option<Mutex<Adaptive>>,
}

#[derive(Default)]
struct Listeners {
    /// What wakes the consumers of the runs.
    notifiers: BTreeMap<u64, Arc<Notifier>>,
    next: u64,
}

impl Control {
    /// Creates a control that is not paused and sets no limit.
    pub fn new() -> Self {
        Self::of(usize::MAX, None)
    }

    /// Creates a control that finds out how many calls at once are best, from 1 to the number of the run's threads.
    ///
    /// For tasks that wait for a service whose limits you do not know. It starts with one call and doubles the number as long as that
    /// pays. From then on it tries a little more or less now and then, and keeps what gives the higher throughput. When a
    /// larger share of calls fails than usual, it cuts the number by a third. So give the run as many
    /// [threads](crate::Futureproof::num_threads) as might ever be of use.
    ///
    /// A trial takes as long as about three calls, and 20 ms at least: with calls of ten seconds, it takes minutes to find
    /// out. Where calls take very different times, the number goes up and down a little all the time. Nothing is learned while the
    /// consumer or the source is slower than the calls. In a run with several [stages](crate::Futureproof::stage), the calls
    /// of the last one are measured. [`set_concurrency`](Self::set_concurrency) has it start again from there.
    ///
    /// The method is hill climbing, as .NET's thread pool does it (Hellerstein and others, *Optimizing concurrency levels in the
    /// .NET ThreadPool*, 2008), with TCP's doubling start.
    ///
    /// ```
    /// use futureproof::{Control, prelude::*};
    ///
    /// # fn ask(n: &u32) -> Result<u32, String> { Ok(n + 1) }
    /// let run = (0..100u32).futureproof(Raise).num_threads(64).control(&Control::adaptive());
    /// assert_eq!(run.map_tasks(ask).count(), 100);
    /// ```
    pub fn adaptive() -> Self {
        let adaptive = Adaptive::new();
        Self::of(adaptive.width(), Some(Mutex::new(adaptive)))
    }

    fn of(concurrency: usize, adaptive: Option<Mutex<Adaptive>>) -> Self {
        Self {
            state: Arc::new(State {
                epoch: AtomicU64::new(0),
                is_paused: AtomicBool::new(false),
                concurrency: AtomicUsize::new(concurrency),
                listeners: Mutex::default(),
                adaptive,
            }),
        }
    }

    /// Pauses the runs: no further call starts, in any stage.
    ///
    /// Running calls go on, and so does the delivery of finished tasks; then the consumer waits in `next`. Nothing is
    /// pulled, and no thread of a shared pool is blocked. Time goes on: a deadline is not put off.
    pub fn pause(&self) {
        self.state.is_paused.store(true, Ordering::Relaxed);
        self.tell();
    }

    /// Resumes what was paused.
    ///
    /// Calls start again as soon as the consumer is in `next`.
    pub fn resume(&self) {
        self.state.is_paused.store(false, Ordering::Relaxed);
        self.tell();
    }

    /// Returns whether the runs are paused.
    pub fn is_paused(&self) -> bool {
        self.state.is_paused.load(Ordering::Relaxed)
    }

    /// Sets how many calls run at once in each run, from 1 to the number of its threads. 0 means no limit.
    ///
    /// In a run with several [stages](crate::Futureproof::stage), the limit applies to each of them. A run gets
    /// narrower as its running calls end. It gets wider at once if its consumer is in `next`, else as soon as it is. To
    /// leave room for that, give the run as many [threads](crate::Futureproof::num_threads) as it may ever need: those
    /// that have nothing to do sleep.
    ///
    /// A consumer that is on a thread of the run's pool runs tasks itself while it waits, so there can be one call
    /// more.
    pub fn set_concurrency(&self, n: usize) {
        let mut n = if n == 0 { usize::MAX } else { n };
        if let Some(mut adaptive) = self.climber() {
            adaptive.start_at(n);
            n = adaptive.width();
        }
        self.set_limit(n);
    }

    fn set_limit(&self, n: usize) {
        if self.state.concurrency.swap(n, Ordering::Relaxed) != n {
            self.tell();
        }
    }

    /// Returns how many calls may run at once in each run, or `None` if there is no limit.
    pub fn concurrency(&self) -> Option<usize> {
        Some(self.limit()).filter(|limit| *limit < usize::MAX)
    }

    /// The same; `usize::MAX` is no limit.
    pub(crate) fn limit(&self) -> usize {
        self.state.concurrency.load(Ordering::Relaxed)
    }

    /// Whoever has seen this epoch and sees another one looks again at what is allowed.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        // Acquire: whoever sees the epoch sees the change.
        self.state.epoch.load(Ordering::Acquire)
    }

    fn climber(&self) -> Option<MutexGuard<'_, Adaptive>> {
        // Nothing under the lock can panic.
        let adaptive = self.state.adaptive.as_ref()?.lock();
        Some(adaptive.unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls have come back; there are `threads` of them at most.
    pub(crate) fn record(&self, sample: Sample, threads: usize) {
        if let Some(mut adaptive) = self.climber() {
            adaptive.record(sample, now(), threads);
            self.set_limit(adaptive.width());
        }
    }

    fn tell(&self) {
        self.state.epoch.fetch_add(1, Ordering::Release);
        // Not under the lock: a waker is user code.
        let notifiers: Vec<_> = self.listeners().notifiers.values().cloned().collect();
        notifiers.iter().for_each(|notifier| notifier.notify());
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        // Nothing under the lock can panic.
        let listeners = self.state.listeners.lock();
        listeners.unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies at each change, as long as what is returned lives.
    pub(crate) fn on_change(&self, notifier: Arc<Notifier>) -> OnChange {
        let mut listeners = self.listeners();
        let key = listeners.next;
        listeners.next += 1;
        listeners.notifiers.insert(key, notifier);
        OnChange {
            control: self.clone(),
            key,
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

/// Clones of the same control are equal.
impl PartialEq for Control {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for Control {}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("is_paused", &self.is_paused())
            .field("concurrency", &self.concurrency())
            .finish()
    }
}

/// While it lives, a run is told of the changes of its control.
#[derive(Debug)]
pub(crate) struct OnChange {
    control: Control,
    key: u64,
}

impl Drop for OnChange {
    fn drop(&mut self) {
        self.control.listeners().notifiers.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_are_over_are_not_told() {
        let control = Control::new();
        let (notifier, _notified) = Notifier::new();
        let listens = [(); 2].map(|()| control.on_change(Arc::clone(&notifier)));
        assert_eq!(control.listeners().notifiers.len(), 2);
        drop(listens);
        assert_eq!(control.listeners().notifiers.len(), 0);
    }
}
