//! The run as its consumer sees it: an iterator, with the options that come after `map_tasks`.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::Duration;

use log::warn;

use crate::ending::Ending;
use crate::engine::driver::Driver;
use crate::observe::counters::Progress;
use crate::observe::report::Report;
use crate::task::{Remainder, Task, TaskError};
use crate::util::TARGET;
use crate::util::panics::catch_panic;

/// An iterator over the finished tasks of a run, created by [`map_tasks`](crate::Futureproof::map_tasks).
///
/// Tasks come in the order in which they finish, or in the [order of the source](crate::Futureproof::ordered). The
/// source is pulled only in `next`.
///
/// Dropping the iterator stops the run: no further call starts, and the drop waits for running calls. It does not
/// wait if one of the run's own tasks drops it.
///
/// The type names neither the function nor the pool, so you can store it in a struct or return it:
///
/// ```
/// use futureproof::{MapTasks, prelude::*};
/// use std::{num::ParseIntError, ops::Range};
///
/// struct Job {
///     tasks: MapTasks<'static, Range<u32>, String, ParseIntError>,
/// }
///
/// let mut job = Job { tasks: (0..10).futureproof(Raise).map_tasks(|n| Ok(n.to_string())) };
/// assert!(job.tasks.next().unwrap().is_ok());
/// ```
#[must_use = "iterator adaptors are lazy and do nothing unless consumed"]
pub struct MapTasks<'a, I: Iterator, T, E> {
    pub(crate) driver: Driver<'a, I, T, E>,
}

impl<'a, I: Iterator, T, E> MapTasks<'a, I, T, E> {
    pub(crate) fn new(driver: Driver<'a, I, T, E>) -> Self {
        Self { driver }
    }

    /// Retries items whose function returns `Err`, after the given delays.
    ///
    /// The first retry comes after the first of the `delays`, and so on, until an attempt succeeds or the delays are
    /// used up. Then the last error is the task's failure. A panic is not retried.
    ///
    /// `delays` is called once for each item that fails, so random jitter differs from item to item. (For every 64 attempts it
    /// is called once more, and the sequence goes on where it was.) An item that waits for its retry occupies no worker, and counts as in flight.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::sync::Mutex;
    /// use std::time::Duration;
    ///
    /// let answers = Mutex::new(vec![Ok("done"), Err("busy"), Err("busy")]);
    /// let flaky = move |_: &&str| answers.lock().unwrap().pop().unwrap();
    /// let mut run = ["job"].into_iter().futureproof(Raise).map_tasks(flaky).retry(|| [Duration::from_millis(1); 3]);
    /// assert_eq!(run.next().unwrap().unwrap().output, "done");
    /// assert_eq!(run.progress().snapshot().retried(), 2);
    /// ```
    ///
    /// With the crate `backon`: `.retry(|| backon::ExponentialBuilder::default().build())`.
    pub fn retry<D: IntoIterator<Item = Duration>>(
        mut self,
        delays: impl Fn() -> D + Send + 'a,
    ) -> Self {
        if self.can_retry() {
            self.driver.retry_rule().set_delays(delays);
        }
        self
    }

    /// Retries items after the delay that `f` returns.
    ///
    /// Use it where the error says when to come back, as some servers do. `f` gets the error and the number of
    /// attempts so far; `None` makes the failure final. Replaces [`retry`](Self::retry): the last of the two that you
    /// call counts.
    ///
    /// If `f` panics, the item is not retried.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use std::time::Duration;
    ///
    /// enum Refused { RetryAfter(Duration), Forbidden }
    /// # impl std::fmt::Debug for Refused {
    /// #     fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result { f.write_str("refused") }
    /// # }
    /// let asked = AtomicU32::new(0);
    /// let ask = move |n: &u32| match (*n, asked.fetch_add(1, Ordering::Relaxed)) {
    ///     (0, 0..3) => Err(Refused::RetryAfter(Duration::from_millis(1))),
    ///     (0, _) => Ok("welcome"),
    ///     _ => Err(Refused::Forbidden),
    /// };
    /// let run = [0].into_iter().futureproof(Ignore).map_tasks(ask).retry_with(|error, attempts| match error {
    ///     Refused::RetryAfter(delay) if attempts < 10 => Some(*delay),
    ///     _ => None,
    /// });
    /// assert_eq!(run.flatten().map(|task| task.output).collect::<Vec<_>>(), ["welcome"]);
    /// ```
    pub fn retry_with(mut self, f: impl Fn(&E, u32) -> Option<Duration> + Send + 'a) -> Self {
        if self.can_retry() {
            self.driver.retry_rule().set_answer(f);
        }
        self
    }

    /// Whether items can be retried. Logs a warning if not.
    fn can_retry(&self) -> bool {
        if self.driver.options.takes_items {
            let title = self.driver.options.title();
            catch_panic(
                || warn!(target: TARGET, "{title}: `retry` has no effect: the function takes its item, so nothing is left to try again; use `map_tasks_mut` instead"),
            );
        }
        !self.driver.options.takes_items
    }

    /// Retries only those errors for which `retryable` returns `true`.
    ///
    /// It has no effect without [`retry`](Self::retry) or [`retry_with`](Self::retry_with). If `retryable` panics,
    /// the item is not retried.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::time::Duration;
    ///
    /// let run = ["busy", "broken"].into_iter().futureproof(Ignore).ordered();
    /// let run = run.map_tasks(|error: &&'static str| Err::<(), _>(*error));
    /// let run = run.retry(|| [Duration::from_millis(1); 2]).retry_if(|error| *error == "busy");
    /// let attempts: Vec<u32> = run.filter_map(Result::err).map(|error| error.attempts()).collect();
    /// assert_eq!(attempts, [3, 1]);
    /// ```
    pub fn retry_if(mut self, retryable: impl Fn(&E) -> bool + Send + 'a) -> Self {
        if !self.driver.options.takes_items {
            self.driver.retry_rule().set_judge(retryable);
        }
        self
    }

    /// Sets the text that is logged for a failure, if the policy logs failures.
    ///
    /// The default is the error's `Debug`, which for `anyhow` shows the whole chain.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let run = ["7", "x"].into_iter().futureproof(Log).map_tasks(|text: &&str| text.parse::<i32>());
    /// let run = run.describe(|error| format!("{:?}: {}", error.input(), error.error().unwrap()));
    /// assert_eq!(run.flatten().count(), 1);
    /// ```
    pub fn describe(mut self, text: impl Fn(&TaskError<I::Item, E>) -> String + Send + 'a) -> Self {
        self.driver.failure_log.set_describe(text);
        self
    }

    /// Returns a handle on the run's counts.
    ///
    /// The handle can be sent to another thread, and stays valid after the run.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let mut run = (0..10).futureproof(Raise).map_tasks(infallible(|n: &i32| n + 1));
    /// let progress = run.progress();
    /// run.by_ref().for_each(drop);
    /// assert_eq!(progress.snapshot().completed(), 10);
    /// ```
    pub fn progress(&self) -> Progress {
        Progress::new(Arc::clone(self.driver.workers.counters()))
    }

    /// Returns where the time of the run went, so far or in total.
    ///
    /// It shows whether the source, the workers or the consumer limit the run, and which tasks took longest. See
    /// [`Report`]. The monitor's last line says the same.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let mut run = (0..1_000).futureproof(Raise).num_threads(2).map_tasks(infallible(|n: &i32| n + 1));
    /// run.by_ref().for_each(drop);
    /// assert_eq!(run.report().workers().len(), 2);
    /// ```
    pub fn report(&self) -> Report {
        self.driver.workers.report()
    }

    /// Returns how the run ended, or `None` while it runs.
    ///
    /// ```
    /// # use futureproof::{Ending, prelude::*};
    /// let mut run = (0..10).futureproof(Raise).map_tasks(infallible(|n: &i32| n + 1));
    /// assert_eq!(run.ending(), None);
    /// run.by_ref().for_each(drop);
    /// assert_eq!(run.ending(), Some(Ending::Exhausted));
    /// ```
    pub fn ending(&self) -> Option<Ending> {
        self.driver.ending()
    }

    /// Stops the run, and returns everything that was not delivered.
    ///
    /// That is the finished tasks, the items that were not completed, and the rest of the source. Waits for running
    /// calls.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let mut run = (0..100u32).futureproof(Raise).map_tasks(|n| if *n == 50 { Err("half-way") } else { Ok(*n) });
    /// let delivered = run.by_ref().count();
    /// let remainder = run.into_remainder();
    /// let left = remainder.finished.len() + remainder.unprocessed.len() + remainder.source.count();
    /// assert_eq!(delivered + left, 100);
    /// ```
    pub fn into_remainder(self) -> Remainder<I, T, E> {
        self.driver.into_remainder()
    }
}

impl<I: Iterator, T, E> Iterator for MapTasks<'_, I, T, E> {
    type Item = Result<Task<I::Item, T>, TaskError<I::Item, E>>;

    /// Returns the next finished task. Blocks until there is one.
    ///
    /// # Panics
    ///
    /// If the source panics, with its panic. At the first call also if no thread can be started.
    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.driver.next_fast() {
            Some(task) => Some(Ok(task)),
            None => self.driver.next_slow(),
        }
    }

    /// Counts what is in flight and what the source has left. The lower bound is 0 where something can stop the run.
    fn size_hint(&self) -> (usize, Option<usize>) {
        if self.ending().is_some() {
            return (0, Some(0));
        }
        let in_flight = self.driver.in_flight() as usize;
        let (lower, upper) = self.driver.source_hint();
        let lower = if self.driver.options.can_stop() {
            0
        } else {
            lower.saturating_add(in_flight)
        };
        (lower, upper.and_then(|upper| upper.checked_add(in_flight)))
    }

    fn fold<B, F>(mut self, init: B, mut f: F) -> B
    where
        F: FnMut(B, Self::Item) -> B,
    {
        let mut result = init;
        loop {
            result = self
                .driver
                .fold_fast(result, |result, task| f(result, Ok(task)));
            match self.driver.next_slow() {
                Some(task) => result = f(result, task),
                None => return result,
            }
        }
    }
}

impl<I: Iterator, T, E> FusedIterator for MapTasks<'_, I, T, E> {}

impl<I: Iterator, T, E> fmt::Debug for MapTasks<'_, I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapTasks")
            .field("policy", &self.driver.options.policy)
            .field("ordered", &self.driver.options.ordered)
            .field("progress", &self.progress().snapshot())
            .field("ending", &self.ending())
            .finish_non_exhaustive()
    }
}
