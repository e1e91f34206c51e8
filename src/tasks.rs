//! The caller's half of a run: items are fed, answers received, tasks delivered.
//!
//! # Invariants
//!
//! 1. An item that was pulled is in exactly one place: `filling`, the crew's hands, `waiting`,
//!    `unrun`, `arrivals` or `current`. It leaves by being delivered, or with the remainder.
//! 2. `current` is empty once the run has ended, so that `next` needs no second look.

use std::fmt;
use std::iter::FusedIterator;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{log, warn};

use crate::arrivals::Arrivals;
use crate::builder::Bell;
use crate::chunk::{Chunk, Outcome, Parcel};
use crate::contain::{Buried, bury, contain};
use crate::counters::{Counters, Progress};
use crate::crew::Crew;
use crate::monitor::{Monitor, OnProgress, TARGET};
use crate::policy::ErrorPolicy;
use crate::read_ahead::Items;
use crate::retry::{Delays, RetryRule, Waiting};
use crate::sizing::Sizing;
use crate::task::{Cause, Ending, Remainder, Task, TaskError, TaskResult};

/// Chunks that are queued for each worker, so that none waits for the consumer to wake up.
const CHUNKS_PER_THREAD: usize = 8;
/// A consumer that has waited this long for an answer asks workers for what they have finished.
const PATIENCE: Duration = Duration::from_millis(1);
/// The largest chunk.
const MAX_CHUNK: usize = 1 << 16;

/// What the builder has decided.
pub(crate) struct Plan {
    pub(crate) policy: ErrorPolicy,
    pub(crate) ordered: bool,
    pub(crate) max_in_flight: usize,
    pub(crate) chunk_size: usize,
    pub(crate) interval: Duration,
    pub(crate) on_progress: Option<OnProgress>,
    pub(crate) name: String,
    pub(crate) deadline: Option<Duration>,
}

type Describe<'a, I, E> = Box<dyn Fn(&TaskError<I, E>) -> String + Send + 'a>;

/// The finished tasks of a run, as an iterator; made by [`map_tasks`](crate::Futureproof::map_tasks).
///
/// Tasks come in the order in which they finish, or [in the source's](crate::Futureproof::ordered).
/// The source is pulled only in `next`. Dropping this stops the run: calls of the function that run are
/// waited for, and none starts. Only where it is dropped by one of its own tasks does it not wait.
#[must_use = "iterator adaptors are lazy and do nothing unless consumed"]
pub struct MapTasks<'a, I: Iterator, T, E> {
    // Dropped first: all work ends before anything else goes.
    crew: Crew<'a, I::Item, T, E>,
    counters: Arc<Counters>,
    /// The answer that is being delivered.
    current: Parcel<I::Item, T, E>,
    arrivals: Arrivals<Parcel<I::Item, T, E>>,
    /// What is being pulled. Here rather than on the stack, lest a panic of the source lose it.
    filling: Parcel<I::Item, T, E>,
    is_pulling: bool,
    /// Emptied chunks, to be filled again.
    spare: Vec<Parcel<I::Item, T, E>>,
    waiting: Waiting<Parcel<I::Item, T, E>>,
    retry: Option<RetryRule<'a, E>>,
    describe: Option<Buried<Describe<'a, I::Item, E>>>,
    /// Items that were pulled and that a stop kept from being run, with their indices.
    unrun: Vec<(u64, I::Item)>,
    plan: Plan,
    sizing: Sizing,
    /// Whether a token or a deadline can end the run between any two tasks.
    is_guarded: bool,
    /// How many jobs can run at once; 0 before the first `next`.
    width: usize,
    pulled: u64,
    delivered: u64,
    failures: u64,
    /// Whether a chunk was fed since the last answer was taken up.
    has_fed: bool,
    is_exhausted: bool,
    ending: Option<Ending>,
    log_failure: fn(&E) -> String,
    bell: Option<Bell<I>>,
    source: I,
}

impl<'a, I: Iterator, T, E> MapTasks<'a, I, T, E> {
    pub(crate) fn new(
        source: I,
        bell: Option<Bell<I>>,
        plan: Plan,
        crew: Crew<'a, I::Item, T, E>,
        counters: Arc<Counters>,
    ) -> Self
    where
        E: fmt::Debug,
    {
        let item_bytes = size_of::<I::Item>() + size_of::<T>();
        let is_guarded = plan.deadline.is_some() || crew.signals.token().is_some();
        Self {
            crew,
            counters,
            current: Box::new(Chunk::new()),
            arrivals: Arrivals::new(plan.ordered),
            filling: Box::new(Chunk::new()),
            is_pulling: false,
            spare: Vec::new(),
            waiting: Waiting::new(),
            retry: None,
            describe: None,
            unrun: Vec::new(),
            sizing: Sizing::new(plan.chunk_size.min(MAX_CHUNK), item_bytes),
            is_guarded,
            plan,
            width: 0,
            pulled: 0,
            delivered: 0,
            failures: 0,
            has_fed: false,
            is_exhausted: false,
            ending: None,
            log_failure: |error| format!("{error:?}"),
            bell,
            source,
        }
    }

    /// Tries an item again when the function returns `Err`: after the first of `delays`, then after the
    /// second, until one attempt succeeds or there is no further delay. The last error counts.
    ///
    /// `delays` is asked once for each item that fails (and once more for every 64 attempts), so its jitter
    /// is fresh for each. An item that waits occupies no worker, and counts as in flight. A panic is not
    /// tried again.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use std::time::Duration;
    ///
    /// let calls = AtomicU32::new(0);
    /// let flaky = move |_: &&str| if calls.fetch_add(1, Ordering::Relaxed) < 2 { Err("busy") } else { Ok("done") };
    /// let mut run = ["job"].into_iter().futureproof(Raise).map_tasks(flaky).retry(|| [Duration::from_millis(1); 3]);
    /// assert_eq!(run.next().unwrap().unwrap().output, "done");
    /// assert_eq!(run.progress().snapshot().retried(), 2);
    /// ```
    ///
    /// With `backon`: `.retry(|| backon::ExponentialBuilder::default().build())`.
    pub fn retry<D: IntoIterator<Item = Duration>>(
        mut self,
        delays: impl Fn() -> D + Send + 'a,
    ) -> Self {
        self.retry_rule().set_delays(delays);
        self
    }

    /// Tries only those errors again that `retryable` says are worth it. Without
    /// [`retry`](Self::retry), there is nothing that it could allow. If it panics, the item is not tried again.
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
        self.retry_rule().set_judge(retryable);
        self
    }

    fn retry_rule(&mut self) -> &mut RetryRule<'a, E> {
        self.retry.get_or_insert_with(RetryRule::never)
    }

    /// Chooses what the log says of a failure, where the policy logs it. Without this it is the error's
    /// `Debug`, which for `anyhow` shows the whole chain.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let run = ["7", "x"].into_iter().futureproof(Log).map_tasks(|text: &&str| text.parse::<i32>());
    /// let run = run.describe(|error| format!("{:?}: {}", error.input(), error.error().unwrap()));
    /// assert_eq!(run.flatten().count(), 1);
    /// ```
    pub fn describe(mut self, text: impl Fn(&TaskError<I::Item, E>) -> String + Send + 'a) -> Self {
        self.describe = Some(Buried::new(Box::new(text)));
        self
    }

    /// A handle on the run's figures, for another thread or for later.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let mut run = (0..10).futureproof(Raise).map_tasks(infallible(|n: &i32| n + 1));
    /// let progress = run.progress();
    /// run.by_ref().for_each(drop);
    /// assert_eq!(progress.snapshot().completed(), 10);
    /// ```
    pub fn progress(&self) -> Progress {
        Progress::new(Arc::clone(&self.counters))
    }

    /// How the run ended; `None` while it runs.
    ///
    /// ```
    /// # use futureproof::{Ending, prelude::*};
    /// let mut run = (0..10).futureproof(Raise).map_tasks(infallible(|n: &i32| n + 1));
    /// assert_eq!(run.ending(), None);
    /// run.by_ref().for_each(drop);
    /// assert_eq!(run.ending(), Some(Ending::Exhausted));
    /// ```
    pub fn ending(&self) -> Option<Ending> {
        if self.is_pulling {
            Some(Ending::SourcePanicked)
        } else {
            self.ending
        }
    }

    /// Stops the run, waits for the calls that run, and hands back all that was not delivered: results,
    /// items that were not run to an end, and the rest of the source.
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
    pub fn into_remainder(mut self) -> Remainder<I, T, E> {
        self.stop();
        let mut unprocessed = mem::take(&mut self.unrun);
        unprocessed.extend((self.filling.first..).zip(self.filling.inputs.drain(..)));
        for mut chunk in self.waiting.remove(|_| false) {
            unprocessed.extend((chunk.first..).zip(chunk.inputs.drain(..)));
        }
        unprocessed.sort_unstable_by_key(|(index, _)| *index);
        let mut finished = Vec::new();
        for mut chunk in self.arrivals.drain() {
            let attempts = chunk.attempts;
            while let Some(outcome) = chunk.pop() {
                finished.push(into_result(outcome, attempts));
            }
        }
        Remainder {
            finished,
            unprocessed,
            source: self.source,
        }
    }

    /// Stops the run and brings everything home.
    fn stop(&mut self) {
        let mut answers = Vec::new();
        self.crew.bring_home(|answer| answers.push(answer));
        answers.into_iter().for_each(|answer| self.accept(answer));
        self.put_current_back();
        // A panic of the source leaves what was pulled before it.
        self.counters
            .set_pulled(self.pulled + self.filling.inputs.len() as u64);
        self.crew.dismiss();
    }

    fn put_current_back(&mut self) {
        let chunk = mem::replace(&mut self.current, Box::new(Chunk::new()));
        self.delivered += chunk.delivered() as u64;
        self.counters.set_delivered(self.delivered);
        if chunk.len() > 0 {
            self.arrivals.put_back(chunk);
        }
    }

    /// The run ends in this way; nothing more is delivered.
    fn end(&mut self, ending: Ending) {
        if self.ending.is_none() {
            self.ending = Some(ending);
            self.crew.signals.halt();
            self.put_current_back();
        }
    }

    /// Whether a cancel or the deadline ends the run now.
    fn is_interrupted(&mut self) -> bool {
        if self.crew.signals.is_cancelled() {
            self.end(Ending::Cancelled);
        } else if self.crew.signals.is_late() {
            self.end(Ending::DeadlineExceeded);
        } else {
            return false;
        }
        true
    }

    fn open(&mut self) {
        if let Some(deadline) = self
            .plan
            .deadline
            .and_then(|after| Instant::now().checked_add(after))
        {
            self.crew.signals.set_deadline(deadline);
        }
        // The source is user code here as well: if it panics, it is not asked again.
        self.is_pulling = true;
        let total = match self.source.size_hint() {
            (lower, Some(upper)) if lower == upper => Some(lower as u64),
            _ => None,
        };
        if let Some(bell) = &self.bell {
            (bell.start)(&mut self.source);
        }
        self.is_pulling = false;
        self.width = self.crew.open();
        self.counters.start(total);
        let Plan {
            name,
            interval,
            on_progress,
            ..
        } = &mut self.plan;
        match Monitor::start(
            name,
            *interval,
            Arc::clone(&self.counters),
            on_progress.take(),
        ) {
            Ok(monitor) => self.crew.watch(monitor),
            Err(error) => {
                contain(|| warn!(target: TARGET, "{name}: runs without a monitor: {error}"));
            }
        }
    }

    /// Finds the next task to deliver, if it can be had: `false` is the end.
    #[inline(never)]
    fn refill(&mut self) -> bool {
        if self.is_pulling {
            // The last pull never returned: it panicked, and the caller knows.
            self.is_pulling = false;
            self.end(Ending::SourcePanicked);
        }
        if self.ending.is_some() {
            self.wind_up();
            return false;
        }
        // Before anything is made or pulled: a token may be cancelled beforehand.
        if self.is_interrupted() {
            return false;
        }
        if self.width == 0 {
            self.open();
        }
        self.delivered += self.current.delivered() as u64;
        self.counters.set_delivered(self.delivered);
        self.current.reset(0, true);
        loop {
            if self.ending.is_some() || self.is_interrupted() {
                return false;
            }
            self.resubmit();
            // A quick source is fed from between any two answers, or workers would run dry while a
            // slow consumer works off what has arrived. A slow one would delay what has arrived.
            if !self.has_fed && self.sizing.is_source_quick() && self.can_feed() {
                self.feed();
            }
            if let Some(answer) = self.crew.try_receive() {
                self.accept(answer);
            }
            if let Some(chunk) = self.arrivals.pop() {
                self.turn_to(chunk);
                return true;
            }
            if self.can_feed() {
                self.feed();
            } else if self.crew.outstanding() > 0
                || !self.waiting.is_empty()
                || self.is_source_pending()
            {
                self.wait();
            } else {
                self.end(Ending::Exhausted);
                self.wind_up();
                return false;
            }
        }
    }

    /// After the end, waits for what still runs, unless the run was cut short from outside.
    fn wind_up(&mut self) {
        while self.crew.outstanding() > 0 {
            let signals = &self.crew.signals;
            if signals.is_cancelled() || signals.is_late() {
                return;
            }
            self.crew.wait::<()>(None, signals.deadline());
            while let Some(answer) = self.crew.try_receive() {
                self.accept(answer);
            }
        }
        self.stop();
    }

    /// Starts to deliver `chunk`; the one before has been emptied.
    fn turn_to(&mut self, chunk: Parcel<I::Item, T, E>) {
        let emptied = mem::replace(&mut self.current, chunk);
        if self.spare.len() < CHUNKS_PER_THREAD * self.width {
            self.spare.push(emptied);
        }
        self.has_fed = false;
    }

    /// An empty chunk, its buffers used before if possible.
    fn empty_chunk(&mut self) -> Parcel<I::Item, T, E> {
        self.spare.pop().unwrap_or_else(|| Box::new(Chunk::new()))
    }

    fn in_flight(&self) -> u64 {
        self.pulled + self.filling.inputs.len() as u64 - self.delivered
    }

    /// How many items may be in flight.
    fn window(&self) -> usize {
        match self.plan.max_in_flight {
            0 => (CHUNKS_PER_THREAD * self.width).saturating_mul(self.sizing.max()),
            window => window,
        }
    }

    fn chunk_size(&self) -> usize {
        let room = (self.window() as u64).saturating_sub(self.in_flight());
        // A window that is not shared out would go to one worker.
        let share = if self.plan.chunk_size == 0 {
            self.window() / (2 * self.width)
        } else {
            usize::MAX
        };
        self.sizing
            .next()
            .min(share.max(1))
            .min(room.try_into().unwrap_or(usize::MAX))
    }

    /// Whether the source may be pulled now.
    fn may_pull(&self) -> bool {
        let has_room = match self.plan.max_in_flight {
            // Chunks rather than items: slow tasks make small chunks, so their window is small.
            0 => {
                let chunks = self.crew.outstanding() + self.arrivals.len() + self.waiting.len();
                chunks < CHUNKS_PER_THREAD * self.width
            }
            window => self.in_flight() < window as u64,
        };
        has_room && !self.is_exhausted && self.crew.signals.allows(self.pulled)
    }

    fn read_ahead_items(&self) -> Option<&Items<I::Item>> {
        self.bell
            .as_ref()
            .and_then(|bell| (bell.items)(&self.source))
    }

    /// Whether a source that reads ahead has nothing to give right now.
    fn has_nothing_ready(&self) -> bool {
        self.read_ahead_items()
            .is_some_and(|items| items.is_empty())
    }

    fn is_source_pending(&self) -> bool {
        self.may_pull() && self.has_nothing_ready()
    }

    fn can_feed(&self) -> bool {
        self.may_pull() && !self.has_nothing_ready()
    }

    /// Pulls a chunk's items and submits them.
    fn feed(&mut self) {
        let size = self.chunk_size();
        let is_final = self.retry.is_none();
        self.filling.reset(self.pulled, is_final);
        self.is_pulling = true;
        let start = Instant::now();
        let submitted = self.crew.signals.submitted();
        loop {
            let Some(item) = self.source.next() else {
                self.is_exhausted = true;
                break;
            };
            let inputs = &mut self.filling.inputs;
            inputs.push(item);
            // Nothing waits for its chunk to be filled while workers have nothing to do.
            if inputs.len() >= size
                || self.crew.signals.is_starved(submitted)
                || self.has_nothing_ready()
            {
                break;
            }
        }
        self.is_pulling = false;
        self.has_fed = true;
        let len = self.filling.inputs.len();
        if len > 0 {
            self.sizing.record_pull(len, start.elapsed());
            self.pulled += len as u64;
            self.counters.set_pulled(self.pulled);
            let next = self.empty_chunk();
            let chunk = mem::replace(&mut self.filling, next);
            self.crew.submit(chunk);
        }
    }

    /// Submits what has waited long enough for another attempt.
    fn resubmit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let signals = Arc::clone(&self.crew.signals);
        for mut chunk in self.waiting.remove(|index| signals.allows(index)) {
            self.unrun
                .extend((chunk.first..).zip(chunk.inputs.drain(..)));
        }
        while let Some(chunk) = self.waiting.pop_due() {
            self.counters.retry();
            self.crew.submit(chunk);
        }
    }

    /// Blocks until there is something to do.
    fn wait(&mut self) {
        let source = if self.is_source_pending() {
            self.read_ahead_items()
        } else {
            None
        };
        let until = [self.crew.signals.deadline(), self.waiting.next_due()]
            .into_iter()
            .flatten()
            .min();
        if self.crew.has_neighbours() && !self.crew.signals.is_hungry() {
            let patience = Instant::now() + PATIENCE;
            if until.is_none_or(|until| patience < until) {
                if !self.crew.wait(source, Some(patience)) {
                    self.crew.signals.set_hungry(true);
                }
                return;
            }
        }
        self.crew.wait(source, until);
        self.crew.signals.set_hungry(false);
    }

    /// Takes in what a worker has finished.
    fn accept(&mut self, mut answer: Parcel<I::Item, T, E>) {
        let ran = answer.len();
        if ran > 0 {
            self.sizing.record_run(ran, answer.busy);
        }
        if !answer.unrun.is_empty() {
            let after = answer.first + ran as u64;
            self.unrun.extend((after..).zip(answer.unrun.drain(..)));
            if self.ending.is_none() && self.crew.signals.allows(after) {
                // Only a home that drops its jobs leaves items that might have been run.
                self.end(Ending::Cancelled);
            }
        }
        if answer.failed() > 0 && !answer.is_final {
            self.sort_failures(&mut answer);
        } else if ran > 0 {
            self.arrivals.push(answer.first, ran, answer);
        }
    }

    /// Sets apart what is to be tried again. Rare, so it may take an answer to pieces.
    fn sort_failures(&mut self, answer: &mut Chunk<I::Item, T, E>) {
        let attempts = answer.attempts;
        let mut delays = answer.delays.take();
        while let Some(outcome) = answer.pop() {
            if let Err(cause) = &outcome.result {
                match self.delay(cause, &mut delays) {
                    Some(delay) => {
                        let mut chunk = self.empty_chunk();
                        let is_final = delays.as_ref().is_some_and(|delays| delays.is_spent());
                        chunk.reset(outcome.index, is_final);
                        chunk.attempts = attempts + 1;
                        chunk.delays = delays.take();
                        chunk.inputs.push(outcome.input);
                        // The error is the user's: its destructor may panic.
                        bury(outcome.result);
                        let now = Instant::now();
                        // A delay past the end of time is one that never ends.
                        let due = now
                            .checked_add(delay)
                            .unwrap_or(now + Duration::from_secs(1 << 32));
                        self.waiting.push(due, chunk.first, chunk);
                        continue;
                    }
                    None => {
                        self.counters.complete(1, 1);
                        // A panic has stopped the run where it happened.
                        if matches!(cause, Cause::Failed(_)) {
                            self.crew.signals.failed(outcome.index);
                        }
                    }
                }
                delays = None;
            }
            self.arrivals
                .push(outcome.index, 1, Chunk::of_one(outcome, attempts));
        }
    }

    /// How long to wait before another attempt, if there is one.
    fn delay(&self, cause: &Cause<E>, delays: &mut Option<Delays>) -> Option<Duration> {
        let (Some(retry), Cause::Failed(error)) = (&self.retry, cause) else {
            return None;
        };
        contain(|| retry.delay(error, delays)).unwrap_or_else(|| {
            contain(|| warn!(target: TARGET, "{}: a retry rule panicked, so there is no retry", self.plan.name));
            None
        })
    }

    #[cold]
    fn deliver_failure(&mut self, error: TaskError<I::Item, E>) -> TaskError<I::Item, E> {
        if let Some(level) = self.plan.policy.log_level() {
            let text = self.text_of(&error);
            let name = &self.plan.name;
            let attempts = match error.attempts() {
                1 => String::new(),
                attempts => format!(" after {attempts} attempts"),
            };
            contain(
                || log!(target: TARGET, level, "{name}: task {} failed{attempts}: {text}", error.index()),
            );
        }
        self.failures += 1;
        if self
            .plan
            .policy
            .tolerated()
            .is_some_and(|tolerated| self.failures > tolerated)
        {
            self.end(Ending::Failed);
        }
        error
    }

    /// What the log says of a failure.
    fn text_of(&self, error: &TaskError<I::Item, E>) -> String {
        let text = contain(|| match (&self.describe, error.error()) {
            (Some(describe), _) => describe(error),
            (None, Some(own)) => (self.log_failure)(own),
            (None, None) => format!(
                "panicked: {}",
                error.panic_message().unwrap_or("(not a text)")
            ),
        });
        text.unwrap_or_else(|| "(the error panicked when it was formatted)".into())
    }

    #[inline]
    fn deliver(&mut self, outcome: Outcome<I::Item, T, E>) -> TaskResult<I::Item, T, E> {
        let attempts = self.current.attempts;
        into_result(outcome, attempts).map_err(|error| self.deliver_failure(error))
    }
}

#[inline]
fn into_result<I, T, E>(outcome: Outcome<I, T, E>, attempts: u32) -> TaskResult<I, T, E> {
    let Outcome {
        index,
        input,
        result,
    } = outcome;
    match result {
        Ok(output) => Ok(Task::new(index, input, output)),
        Err(cause) => Err(TaskError::new(index, input, attempts, cause)),
    }
}

impl<I: Iterator, T, E> Iterator for MapTasks<'_, I, T, E> {
    type Item = Result<Task<I::Item, T>, TaskError<I::Item, E>>;

    /// The next task that has finished; blocks until there is one.
    ///
    /// # Panics
    ///
    /// With the source's panic, and, at the first call, if the run's own threads cannot be had.
    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.is_guarded && self.ending.is_none() && self.is_interrupted() {
                return None;
            }
            if let Some(outcome) = self.current.pop() {
                return Some(self.deliver(outcome));
            }
            if !self.refill() {
                return None;
            }
        }
    }

    /// What is in flight, and what the source says is still to come; at least 0 where something can stop
    /// the run.
    fn size_hint(&self) -> (usize, Option<usize>) {
        if self.ending().is_some() {
            return (0, Some(0));
        }
        let in_flight = (self.in_flight() - self.current.delivered() as u64) as usize;
        let (lower, upper) = if self.is_exhausted {
            (0, Some(0))
        } else {
            self.source.size_hint()
        };
        let can_stop = self.plan.policy.tolerated().is_some() || self.is_guarded;
        let lower = if can_stop {
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
        while let Some(task) = self.next() {
            result = f(result, task);
            // The rest of the answer in a tight loop, unless something may end the run in its midst.
            if self.is_guarded {
                continue;
            }
            while let Some(outcome) = self.current.pop() {
                let task = self.deliver(outcome);
                result = f(result, task);
            }
        }
        result
    }
}

impl<I: Iterator, T, E> FusedIterator for MapTasks<'_, I, T, E> {}

impl<I: Iterator, T, E> fmt::Debug for MapTasks<'_, I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapTasks")
            .field("policy", &self.plan.policy)
            .field("ordered", &self.plan.ordered)
            .field("progress", &self.counters.snapshot())
            .field("ending", &self.ending())
            .finish_non_exhaustive()
    }
}
