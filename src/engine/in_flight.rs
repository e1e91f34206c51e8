//! What was pulled and is not delivered yet, as far as it is on the caller's side.

use std::mem;
use std::time::{Duration, Instant};

use crate::engine::chunk::{BoxedChunk, Chunk, Outcome};
use crate::engine::holds::Holds;
use crate::engine::job::RunState;
use crate::engine::order::Order;
use crate::engine::retry::{Delays, RetryRule, Waiting};
use crate::engine::stop::Stop;
use crate::task::Cause;
use crate::util::panics::{drop_all_catching, drop_catching};
use crate::util::sync::now;

/// What waits for another attempt, what has finished, and what a stop kept from being run. An item is in one of these, or
/// with the workers.
pub(crate) struct InFlight<'a, I, T, E> {
    /// What has finished, up to its turn.
    pub(crate) order: Order<BoxedChunk<I, T, E>>,
    waiting: Waiting<BoxedChunk<I, T, E>>,
    retry: Option<RetryRule<'a, E>>,
    /// What may not start yet, where there are rules for that.
    pub(crate) holds: Option<Box<Holds<'a, I>>>,
    /// Items that a stop kept from being run, with their indices.
    unrun: Vec<(u64, I)>,
    /// Items at or past this index no longer wait for another attempt.
    limit: u64,
    /// Emptied chunks, to be filled again.
    spare: Vec<BoxedChunk<I, T, E>>,
}

impl<'a, I, T, E> InFlight<'a, I, T, E> {
    pub(crate) fn new(ordered: bool) -> Self {
        Self {
            order: Order::new(ordered),
            waiting: Waiting::new(),
            retry: None,
            holds: None,
            unrun: Vec::new(),
            limit: u64::MAX,
            spare: Vec::new(),
        }
    }

    /// Which failures are tried again; to begin with, none.
    pub(crate) fn retry_rule(&mut self, title: &str) -> &mut RetryRule<'a, E> {
        self.retry.get_or_insert_with(|| RetryRule::never(title))
    }

    /// Whether an `Err` is final, as no retry can follow.
    pub(crate) fn is_final(&self) -> bool {
        self.retry.is_none()
    }

    /// How many chunks wait, finished or for another attempt.
    pub(crate) fn chunks(&self) -> usize {
        self.order.len() + self.waiting.len()
    }

    /// Whether nothing waits for another attempt, or for its first one.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.holds.as_ref().is_none_or(|holds| holds.is_empty())
    }

    /// An empty chunk, its buffers used before if possible.
    pub(crate) fn empty_chunk(&mut self) -> BoxedChunk<I, T, E> {
        self.spare.pop().unwrap_or_else(|| Box::new(Chunk::new()))
    }

    /// Keeps an emptied chunk for another use, unless there are `enough` with those that `others` have.
    pub(crate) fn recycle(&mut self, emptied: BoxedChunk<I, T, E>, others: usize, enough: usize) {
        if self.spare.len() + self.order.len() + others < enough {
            self.spare.push(emptied);
        }
    }

    /// Takes in what a worker has finished, and what it was not allowed to begin.
    pub(crate) fn accept(&mut self, mut chunk: BoxedChunk<I, T, E>, run: &RunState) {
        self.unrun.extend(chunk.take_pending());
        if chunk.failed() != 0 && !chunk.is_final {
            self.sort_failures(chunk, run);
        } else if chunk.len() > 0 {
            if !chunk.is_final {
                run.stop.record_successes(chunk.len());
            }
            self.push(chunk);
        }
    }

    fn push(&mut self, chunk: BoxedChunk<I, T, E>) {
        if let Some(holds) = &mut self.holds {
            (chunk.first..chunk.first + chunk.len() as u64).for_each(|index| holds.end(index));
        }
        self.order.push(chunk.first, chunk.len(), chunk);
    }

    /// Sets apart what is to be tried again. What succeeded between two failures stays together.
    fn sort_failures(&mut self, mut chunk: BoxedChunk<I, T, E>, run: &RunState) {
        let (attempts, stage) = (chunk.attempts, chunk.stage);
        let mut delays = chunk.delays.take();
        while chunk.len() > 0 {
            let before = chunk.successes();
            run.stop.record_successes(before);
            if before == chunk.len() {
                chunk.forget_taken();
                return self.push(chunk);
            }
            if before > 0 {
                let successes = chunk.split_off_front(before);
                self.push(successes);
            }
            let Some(outcome) = chunk.pop() else {
                unreachable!("a chunk has as many tasks as it says");
            };
            if let Some(outcome) = self.sort_failure(outcome, attempts, delays.take(), run) {
                let mut failure = Chunk::of_one(outcome, attempts);
                failure.stage = stage;
                self.push(failure);
            }
        }
    }

    /// Gives a failure back if it is final.
    fn sort_failure(
        &mut self,
        outcome: Outcome<I, T, E>,
        attempts: u32,
        mut delays: Option<Delays>,
        run: &RunState,
    ) -> Option<Outcome<I, T, E>> {
        let Err(cause) = &outcome.result else {
            return Some(outcome);
        };
        let Some(delay) = self.delay(cause, attempts, &mut delays) else {
            run.counters.complete(1, 1);
            // A panic has stopped the run where it happened.
            if matches!(cause, Cause::Failed(_)) {
                run.stop.record_failure(outcome.index, 0);
                run.stop.record_handed_over(1);
            }
            return Some(outcome);
        };
        let mut chunk = self.empty_chunk();
        let is_final = delays.as_ref().is_some_and(Delays::is_spent);
        chunk.reset(outcome.index, is_final);
        chunk.attempts = attempts + 1;
        chunk.delays = delays;
        chunk.pending.push(outcome.input);
        // The error is the user's: its destructor may panic.
        drop_catching(outcome.result);
        let now = now();
        // A delay past the end of time is one that never ends.
        let due = now
            .checked_add(delay)
            .unwrap_or(now + Duration::from_secs(1 << 32));
        self.waiting.push(due, chunk.first, chunk);
        None
    }

    /// How long to wait before another attempt, if there is one.
    fn delay(
        &self,
        cause: &Cause<E>,
        attempts: u32,
        delays: &mut Option<Delays>,
    ) -> Option<Duration> {
        match (&self.retry, cause) {
            (Some(retry), Cause::Failed(error)) => retry.delay(error, attempts, delays),
            _ => None,
        }
    }

    /// When the next attempt is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.next_due()
    }

    /// An item that has waited long enough for another attempt.
    pub(crate) fn pop_due(&mut self, stop: &Stop) -> Option<BoxedChunk<I, T, E>> {
        self.give_up_stopped(stop);
        self.waiting.pop_due()
    }

    /// An item that is held no longer.
    pub(crate) fn pop_ready(&mut self) -> Option<BoxedChunk<I, T, E>> {
        let (index, item) = self.holds.as_mut()?.pop()?;
        let mut chunk = self.empty_chunk();
        chunk.reset(index, self.is_final());
        chunk.pending.push(item);
        Some(chunk)
    }

    /// Whether an item is held no longer, and waits for being submitted.
    pub(crate) fn has_ready(&self) -> bool {
        self.holds.as_ref().is_some_and(|holds| holds.is_ready())
    }

    /// What was taken from a chunk is with the consumer.
    pub(crate) fn note_delivered(&mut self, chunk: &Chunk<I, T, E>) {
        if let Some(holds) = &mut self.holds {
            let end = chunk.first + chunk.delivered() as u64;
            (chunk.first..end).for_each(|index| holds.deliver(index));
        }
    }

    /// What a stop keeps from being tried again waits no longer.
    pub(crate) fn give_up_stopped(&mut self, stop: &Stop) {
        if self.waiting.is_empty() {
            return;
        }
        // The limit falls a few times at most, so what waits is gone through a few times at most.
        let limit = stop.limit();
        if limit < self.limit {
            self.limit = limit;
            self.give_up(|index| index < limit);
        }
    }

    /// Those that may not start any more do not wait for another attempt.
    fn give_up(&mut self, is_allowed: impl Fn(u64) -> bool) {
        for mut chunk in self.waiting.remove(is_allowed) {
            self.unrun.extend(chunk.take_pending());
        }
    }

    /// Whether an item came back unrun although nothing forbade it: its pool drops its jobs.
    pub(crate) fn is_deserted(&self, stop: &Stop) -> bool {
        self.unrun.iter().any(|(index, _)| stop.allows(*index))
    }

    /// The items that were not run to an end, by index.
    pub(crate) fn take_unprocessed(&mut self) -> Vec<(u64, I)> {
        self.give_up(|_| false);
        let mut unprocessed = mem::take(&mut self.unrun);
        let held = self.holds.as_mut().map(|holds| holds.drain());
        unprocessed.extend(held.into_iter().flatten());
        unprocessed.sort_unstable_by_key(|(index, _)| *index);
        unprocessed
    }
}

impl<I, T, E> Drop for InFlight<'_, I, T, E> {
    fn drop(&mut self) {
        drop_all_catching(&mut self.unrun);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::engine::wake::Wake;
    use crate::observe::instrument::{Instruments, NoInstrument};
    use crate::policy::ErrorPolicy::{self, Ignore, TolerateRate};

    type Parts<'a> = InFlight<'a, u32, u32, &'static str>;

    fn run_with(policy: ErrorPolicy) -> RunState {
        RunState {
            stop: Stop::new(policy, false, Vec::new(), None),
            wake: Wake::new(),
            counters: Default::default(),
            instruments: Instruments::new(None),
        }
    }

    /// Ten tasks that were run, of which 3 and 7 have failed and may be tried again.
    fn finished(run: &RunState) -> BoxedChunk<u32, u32, &'static str> {
        ran(run, 10, &[3, 7])
    }

    /// So many tasks that were run, of which `failing` have failed and may be tried again.
    fn ran(run: &RunState, tasks: u32, failing: &[u32]) -> BoxedChunk<u32, u32, &'static str> {
        let mut chunk = Box::new(Chunk::new());
        chunk.inputs = (0..tasks).collect();
        chunk.is_final = false;
        let fails = |n: &mut u32| match failing.contains(n) {
            true => Err("busy"),
            false => Ok(*n),
        };
        (0..=failing.len()).for_each(|_| {
            chunk.run(
                &fails,
                &run.stop,
                true,
                &AtomicBool::new(false),
                &NoInstrument,
            );
        });
        chunk.seal();
        chunk
    }

    fn lengths(parts: &mut Parts<'_>) -> Vec<usize> {
        parts
            .order
            .drain()
            .iter()
            .map(|chunk| chunk.len())
            .collect()
    }

    #[test]
    fn what_succeeds_between_two_failures_stays_together() {
        let run = run_with(Ignore);
        let mut parts = Parts::new(false);
        parts.retry_rule("run");
        parts.accept(finished(&run), &run);
        // Nothing is tried again.
        assert_eq!(lengths(&mut parts), [3, 1, 3, 1, 2]);
        parts.accept(Box::new(Chunk::new()), &run);
        assert_eq!(parts.chunks(), 0);
        parts
            .retry_rule("run")
            .set_answer(|_, _| Some(Duration::from_secs(3_600)));
        parts.accept(finished(&run), &run);
        assert_eq!(parts.chunks(), 5);
        assert_eq!(lengths(&mut parts), [3, 3, 2]);
        assert_eq!(parts.chunks(), 2);
        let waits: Vec<u64> = parts
            .take_unprocessed()
            .iter()
            .map(|(index, _)| *index)
            .collect();
        assert_eq!(waits, [3, 7]);
    }

    #[test]
    fn each_success_counts_once_in_the_window_of_a_rate() {
        // The second failure is the fourth task after the first.
        for (window, is_over) in [(4, false), (5, true)] {
            let run = run_with(TolerateRate {
                failures: 1,
                window,
            });
            let mut parts = Parts::new(false);
            parts.retry_rule("run");
            parts.accept(finished(&run), &run);
            assert_eq!(!run.stop.allows_any(), is_over, "{window}");
        }
        // Eight successes in a chunk without a failure, and one more failure: nine after the one before.
        for (window, is_over) in [(11, false), (12, true)] {
            let run = run_with(TolerateRate {
                failures: 1,
                window,
            });
            run.stop.record_failure(0, 0);
            let mut chunk = Box::new(Chunk::<u32, u32, &str>::new());
            chunk.inputs = (0..10).collect();
            chunk.is_final = false;
            chunk.run(
                &|n: &mut u32| Ok(*n),
                &run.stop,
                true,
                &AtomicBool::new(false),
                &NoInstrument,
            );
            chunk.seal();
            let mut parts = Parts::new(false);
            parts.retry_rule("run");
            parts.accept(chunk, &run);
            run.stop.record_failure(0, 0);
            assert_eq!(!run.stop.allows_any(), is_over, "{window}");
        }
    }

    #[test]
    fn an_attempt_that_a_stop_forbids_is_given_up() {
        let run = run_with(Ignore);
        let mut parts = Parts::new(false);
        parts
            .retry_rule("run")
            .set_answer(|_, _| Some(Duration::ZERO));
        parts.accept(finished(&run), &run);
        assert!(!parts.is_idle());
        run.stop.forbid_all();
        assert!(parts.pop_due(&run.stop).is_none());
        assert!(parts.is_idle());
        assert!(!parts.is_deserted(&run.stop));
        assert!(parts.is_deserted(&run_with(Ignore).stop));
        assert!(!parts.has_ready());
    }

    #[test]
    fn no_more_chunks_are_kept_than_are_of_use() {
        let empty = || Box::new(Chunk::new());
        let mut parts = Parts::new(false);
        for kept in [1, 2, 2] {
            parts.recycle(empty(), 1, 3);
            assert_eq!(parts.spare.len(), kept);
        }
        // Those that have finished count as well.
        let run = run_with(Ignore);
        let mut parts = Parts::new(false);
        parts.accept(finished(&run), &run);
        let waiting = parts.chunks();
        parts.recycle(empty(), 0, waiting);
        assert_eq!(parts.spare.len(), 0);
        parts.recycle(empty(), 0, waiting + 1);
        parts.recycle(empty(), 0, waiting + 1);
        assert_eq!(parts.spare.len(), 1);
    }

    #[test]
    fn the_first_of_a_chunk_may_fail() {
        let run = run_with(Ignore);
        let mut parts = Parts::new(false);
        parts
            .retry_rule("run")
            .set_answer(|_, _| Some(Duration::MAX));
        parts.accept(ran(&run, 2, &[0]), &run);
        assert_eq!(lengths(&mut parts), [1]);
        // A delay past the end of time.
        let century = Duration::from_secs(100 * 365 * 24 * 3_600);
        assert!(parts.next_due().unwrap() > now() + century);
        assert!(!parts.is_idle());
        run.stop.forbid_all();
        parts.give_up_stopped(&run.stop);
        assert!(parts.is_idle());
    }
}
