//! The counts of a run.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::ending::Ending;
use crate::observe::report::Load;
use crate::util::seeded_bugs;
use crate::util::sync::atomic::{AtomicU64, Ordering};
use crate::util::sync::now;

/// A call's number, and the index of its task.
pub(crate) type Numbered = (u64, u64);

/// The call that runs on a worker. Only that worker writes it.
#[derive(Debug, Default)]
pub(crate) struct Running {
    /// The number of the call; 0 for none.
    call: AtomicU64,
    /// The index of its task.
    index: AtomicU64,
    /// The number of the last call that began.
    last: AtomicU64,
}

impl Running {
    /// Begins a call for the task at `index`, while none runs.
    #[inline]
    pub(crate) fn begin(&self, index: u64) {
        let call = self.next();
        self.last.store(call, Ordering::Relaxed);
        self.go_on((call, index));
    }

    /// Resumes a call. An observer never mixes up two calls' indices, because the call is 0 in between.
    #[inline]
    pub(crate) fn go_on(&self, (call, index): Numbered) {
        self.index.store(index, Ordering::Release);
        self.call.store(call, Ordering::Release);
    }

    #[inline]
    pub(crate) fn end(&self) {
        self.call.store(0, Ordering::Release);
    }

    /// The number of the next call.
    #[inline]
    pub(crate) fn next(&self) -> u64 {
        self.last.load(Ordering::Relaxed) + 1
    }

    /// The running call, and the index of its task.
    pub(crate) fn look(&self) -> Option<Numbered> {
        let call = self.call.load(Ordering::Acquire);
        let index = self.index.load(Ordering::Acquire);
        (call != 0 && self.call.load(Ordering::Acquire) == call).then_some((call, index))
    }
}

/// The counts of one run. Written once per chunk, never once per item.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pulled: AtomicU64,
    delivered: AtomicU64,
    // Counted separately, because a sum and a part of it could be read inconsistently.
    succeeded: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    total: OnceLock<u64>,
    /// Set at the end.
    load: OnceLock<Load>,
    /// Set when the run ends or is left, with the ending if there is one.
    left: OnceLock<Option<Ending>>,
    started: OnceLock<Instant>,
    ended: OnceLock<Instant>,
    control: Option<Control>,
}

// An observer must never see more completed than pulled, or more delivered than completed. So `snapshot` reads first
// what is counted later in a task's life, with an acquire that pairs with the writer's release.
impl Counters {
    pub(crate) fn new(control: Option<Control>) -> Self {
        Self {
            control,
            ..Self::default()
        }
    }

    /// Starts the clock. `total`: the number of items, if known.
    pub(crate) fn start(&self, total: Option<u64>) {
        let _ = self.started.set(now());
        if let Some(total) = total {
            let _ = self.total.set(total);
        }
    }

    pub(crate) fn end(&self) {
        let _ = self.ended.set(now());
    }

    /// Records that the run ended, or is being left without an ending. Calls may still be running.
    pub(crate) fn leave(&self, ending: Option<Ending>) {
        let _ = self.left.set(ending);
    }

    /// Sets how many items were pulled so far. Called before they are submitted.
    pub(crate) fn set_pulled(&self, pulled: u64) {
        self.pulled.store(pulled, Ordering::Release);
    }

    pub(crate) fn set_delivered(&self, delivered: u64) {
        self.delivered.store(delivered, Ordering::Release);
    }

    /// Adds completed tasks. `failed` of them failed for good.
    pub(crate) fn complete(&self, tasks: u64, failed: u64) {
        let succeeded = tasks - failed;
        if !seeded_bugs::adds_in_two_steps(&self.succeeded, succeeded) {
            self.succeeded.fetch_add(succeeded, Ordering::Release);
        }
        if failed != 0 {
            self.failed.fetch_add(failed, Ordering::Release);
        }
    }

    pub(crate) fn retry(&self, tasks: usize) {
        self.retried.fetch_add(tasks as u64, Ordering::Relaxed);
    }

    /// Records the shares of time.
    pub(crate) fn set_load(&self, load: Load) {
        let _ = self.load.set(load);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let delivered = self.delivered.load(Ordering::Acquire);
        let failed = self.failed.load(Ordering::Acquire);
        let completed = self.succeeded.load(Ordering::Acquire) + failed;
        let retried = self.retried.load(Ordering::Relaxed);
        let pulled = self.pulled.load(Ordering::Acquire);
        let elapsed = match self.started.get() {
            Some(started) => match self.ended.get() {
                Some(ended) => ended.saturating_duration_since(*started),
                None => now() - *started,
            },
            None => Duration::ZERO,
        };
        let total = self.total.get().copied();
        Snapshot {
            completed,
            failed,
            retried,
            pulled,
            delivered,
            total,
            elapsed,
            is_over: self.ended.get().is_some(),
            left: self.left.get().copied(),
            load: self.load.get().copied(),
            is_paused: self.control.as_ref().is_some_and(Control::is_paused),
            concurrency: self.control.as_ref().and_then(Control::concurrency),
        }
    }
}

/// A handle on the counts of a run, which can be cloned and sent to other threads.
///
/// Returned by [`MapTasks::progress`](crate::MapTasks::progress).
#[derive(Clone, Debug)]
pub struct Progress {
    counters: Arc<Counters>,
}

impl Progress {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { counters }
    }

    /// Returns the current counts.
    pub fn snapshot(&self) -> Snapshot {
        self.counters.snapshot()
    }
}

/// The counts of a run at one moment.
///
/// While the run goes on, `failed ≤ completed ≤ pulled` in every snapshot. The counts are updated once per chunk:
/// once per task for slow tasks, about every 100 µs for tiny ones.
///
/// ```
/// use futureproof::prelude::*;
///
/// let mut run = (0..1_000u32).futureproof(Ignore).map_tasks(|n| if n % 10 == 0 { Err("round") } else { Ok(()) });
/// let progress = run.progress();
/// run.by_ref().for_each(drop);
/// let end = progress.snapshot();
/// assert_eq!((end.completed(), end.failed(), end.in_flight(), end.total()), (1_000, 100, 0, Some(1_000)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    completed: u64,
    failed: u64,
    retried: u64,
    pulled: u64,
    delivered: u64,
    total: Option<u64>,
    elapsed: Duration,
    is_over: bool,
    left: Option<Option<Ending>>,
    load: Option<Load>,
    is_paused: bool,
    concurrency: Option<usize>,
}

impl Snapshot {
    /// Returns how many tasks have finished, failed ones included.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Returns how many tasks have failed for good.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Returns how many attempts were retries.
    pub fn retried(&self) -> u64 {
        self.retried
    }

    /// Returns how many items were pulled from the source.
    pub fn pulled(&self) -> u64 {
        self.pulled
    }

    /// Returns how many items are pulled and not yet delivered: queued, running, waiting for a retry, or finished.
    pub fn in_flight(&self) -> u64 {
        self.pulled.saturating_sub(self.delivered)
    }

    /// Returns the number of items, if it is known.
    ///
    /// It is the number given to [`total`](crate::Futureproof::total), or else the source's `size_hint`, if that is
    /// exact.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Returns whether the run's [`Control`] is paused.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Returns how many calls the run's [`Control`] lets run at once, or `None` if it sets no limit.
    pub fn concurrency(&self) -> Option<usize> {
        self.concurrency
    }

    /// Returns the time since the first `next`, up to the end of the run.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns how many tasks were completed per second since the start, or 0 if no time has passed.
    pub fn rate(&self) -> f64 {
        per_second(self.completed, self.elapsed)
    }

    /// Whether the run has ended or is being left, and how it ended.
    pub(crate) fn left(&self) -> Option<Option<Ending>> {
        self.left
    }

    /// The shares of time; known at the end.
    pub(crate) fn load(&self) -> Option<Load> {
        self.load
    }

    #[cfg(test)]
    pub(crate) fn set_elapsed(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
    }

    /// Returns the time left at the rate so far.
    ///
    /// It is `None` if the total is not known, if nothing is completed yet, or if the run stopped early.
    pub fn eta(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.completed);
        if left == 0 {
            return Some(Duration::ZERO);
        }
        if self.is_over {
            return None;
        }
        Duration::try_from_secs_f64(left as f64 / self.rate()).ok()
    }
}

pub(crate) fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        count as f64 / time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(completed: u64, total: Option<u64>, elapsed: Duration) -> Snapshot {
        Snapshot {
            completed,
            failed: 0,
            retried: 0,
            pulled: completed,
            delivered: completed,
            total,
            elapsed,
            is_over: false,
            left: None,
            load: None,
            is_paused: false,
            concurrency: None,
        }
    }

    #[test]
    fn rate_and_eta_have_no_odd_values() {
        let none = snapshot(0, Some(10), Duration::ZERO);
        assert_eq!((none.rate(), none.eta()), (0.0, None));
        let quick = snapshot(5, Some(10), Duration::ZERO);
        assert_eq!((quick.rate(), quick.eta()), (0.0, None));
        let half = snapshot(5, Some(10), Duration::from_secs(1));
        assert_eq!(
            (half.rate(), half.eta()),
            (5.0, Some(Duration::from_secs(1)))
        );
        let stopped = Snapshot {
            is_over: true,
            ..half
        };
        assert_eq!(stopped.eta(), None);
        let done = snapshot(10, Some(10), Duration::ZERO);
        assert_eq!(done.eta(), Some(Duration::ZERO));
        let more_than_promised = snapshot(11, Some(10), Duration::from_secs(1));
        assert_eq!(more_than_promised.eta(), Some(Duration::ZERO));
        assert_eq!(snapshot(5, None, Duration::from_secs(1)).eta(), None);
        assert_eq!(snapshot(1, Some(u64::MAX), Duration::MAX).eta(), None);
    }

    #[test]
    fn a_run_that_has_not_started_shows_nothing() {
        let counters = Counters::default();
        assert_eq!(counters.snapshot(), snapshot(0, None, Duration::ZERO));
    }

    #[test]
    fn elapsed_stands_still_after_the_end() {
        let counters = Counters::default();
        counters.start(Some(3));
        counters.end();
        assert_eq!(counters.snapshot().elapsed(), counters.snapshot().elapsed());
        assert_eq!(counters.snapshot().total(), Some(3));
    }

    #[test]
    fn a_failure_is_never_taken_for_a_success() {
        let counters = Counters::default();
        let tasks = if cfg!(miri) { 50 } else { 2_000_000 };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for pulled in 1..=tasks {
                    counters.set_pulled(pulled);
                    counters.complete(1, 1);
                    counters.set_delivered(pulled);
                }
            });
            while !writer.is_finished() {
                let now = counters.snapshot();
                assert_eq!(now.completed() - now.failed(), 0);
                assert!(now.delivered <= now.completed() && now.completed() <= now.pulled());
            }
        });
        assert_eq!(counters.snapshot().failed(), tasks);
    }

    #[test]
    fn a_call_is_seen_while_it_runs() {
        let running = Running::default();
        assert_eq!(running.look(), None);
        running.begin(7);
        assert_eq!(running.look(), Some((1, 7)));
        running.end();
        assert_eq!(running.look(), None);
    }
}
