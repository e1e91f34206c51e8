//! What was pulled and is not delivered yet, as far as it is on the caller's side.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::chunk::{BoxedChunk, Chunk, Listed};
use crate::engine::holds::Holds;
use crate::engine::job::RunState;
use crate::engine::order::Order;
use crate::engine::retry::{Entry, RetryRule, Waiting};
use crate::engine::stop::Stop;
use crate::task::Cause;
use crate::util::panics::{drop_all_catching, drop_catching};
use crate::util::sync::now;

/// What waits for another attempt, what has finished, and what a stop kept from being run. An item is in one of these, or
/// with the workers.
pub(crate) struct InFlight<'a, I, T, E> {
    /// What has finished, up to its turn.
    pub(crate) order: Order<BoxedChunk<I, T, E>>,
    waiting: Waiting<I>,
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
        if !chunk.is_final {
            self.sort_failures(&mut chunk, run);
        }
        if chunk.len() == 0 {
            return;
        }
        // In order, what was taken out will come between two others.
        while self.order.is_by_index() && !chunk.is_contiguous() {
            let run = chunk.split_off_run();
            self.push(run);
        }
        self.push(chunk);
    }

    fn push(&mut self, chunk: BoxedChunk<I, T, E>) {
        if let Some(holds) = &mut self.holds {
            (0..chunk.len()).for_each(|offset| holds.end(chunk.index(offset)));
        }
        self.order.push(chunk.index(0), chunk.len(), chunk);
    }

    /// Takes out what is to be tried again.
    fn sort_failures(&mut self, chunk: &mut Chunk<I, T, E>, run: &RunState) {
        let mut left = chunk.len() - chunk.failed();
        if chunk.failed() != 0 {
            let attempts = chunk.attempts;
            let retry = &self.retry;
            let failures = chunk.extract_failures(|index, before, cause, mut delays| {
                run.stop.record_successes(before);
                left -= before;
                let delay = match (retry, cause) {
                    (Some(retry), Cause::Failed(error)) => {
                        retry.delay(error, attempts, &mut delays)
                    }
                    _ => None,
                };
                if delay.is_none() {
                    run.counters.complete(1, 1);
                    // A panic has stopped the run where it happened.
                    if matches!(cause, Cause::Failed(_)) {
                        run.stop.record_failure(index, 0);
                        run.stop.record_handed_over(1);
                    }
                }
                delay.map(|delay| (delay, delays))
            });
            let now = now();
            for (failure, (delay, delays)) in failures {
                // The error is the user's: its destructor may panic.
                drop_catching(failure.result);
                // A delay past the end of time is one that never ends.
                let due = now.checked_add(delay);
                self.waiting.push(Entry {
                    due: due.unwrap_or(now + Duration::from_secs(1 << 32)),
                    index: failure.index,
                    input: failure.input,
                    attempt: attempts + 1,
                    delays,
                });
            }
        }
        run.stop.record_successes(left);
    }

    /// When the next attempt is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.next_due()
    }

    /// How many items wait for another attempt.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Items that have waited long enough for another attempt, `most` of them at most.
    pub(crate) fn pop_due(&mut self, stop: &Stop, most: usize) -> Option<BoxedChunk<I, T, E>> {
        self.give_up_stopped(stop);
        let now = now();
        let mut entry = self.waiting.pop_due(now, |_| true)?;
        let (attempt, is_final) = (entry.attempt, entry.is_final());
        let mut chunk = self.empty_chunk();
        chunk.reset(0, is_final);
        chunk.attempts = attempt;
        let mut listed = Listed::default();
        loop {
            listed.push(entry.index, entry.delays);
            chunk.inputs.push(entry.input);
            if chunk.inputs.len() >= most {
                break;
            }
            let fits = |next: &Entry<I>| next.attempt == attempt && next.is_final() == is_final;
            match self.waiting.pop_due(now, fits) {
                Some(next) => entry = next,
                None => break,
            }
        }
        chunk.set_pending();
        chunk.listed = Some(Arc::new(listed));
        Some(chunk)
    }

    /// An item that is held no longer.
    pub(crate) fn pop_ready(&mut self) -> Option<BoxedChunk<I, T, E>> {
        let (index, item) = self.holds.as_mut()?.pop()?;
        let mut chunk = self.empty_chunk();
        chunk.reset(index, self.is_final());
        chunk.inputs.push(item);
        chunk.set_pending();
        Some(chunk)
    }

    /// Whether an item is held no longer, and waits for being submitted.
    pub(crate) fn has_ready(&self) -> bool {
        self.holds.as_ref().is_some_and(|holds| holds.is_ready())
    }

    /// What was taken from a chunk is with the consumer.
    pub(crate) fn note_delivered(&mut self, chunk: &Chunk<I, T, E>) {
        if let Some(holds) = &mut self.holds {
            (0..chunk.delivered()).for_each(|offset| holds.deliver(chunk.index(offset)));
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
        let given_up = self.waiting.remove(is_allowed).into_iter();
        self.unrun
            .extend(given_up.map(|entry| (entry.index, entry.input)));
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
        self.give_up(|_| false);
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
    fn what_has_ended_stays_together() {
        let run = run_with(Ignore);
        for (ordered, apart) in [(false, &[8][..]), (true, &[3, 3, 2])] {
            let mut parts = Parts::new(ordered);
            parts.retry_rule("run");
            parts.accept(finished(&run), &run);
            // Nothing is tried again.
            assert_eq!(lengths(&mut parts), [10]);
            parts.accept(Box::new(Chunk::new()), &run);
            assert_eq!(parts.chunks(), 0);
            parts
                .retry_rule("run")
                .set_answer(|_, _| Some(Duration::from_secs(3_600)));
            parts.accept(finished(&run), &run);
            assert_eq!((parts.chunks(), parts.waiting()), (apart.len() + 2, 2));
            assert_eq!(lengths(&mut parts), apart);
            let waits: Vec<u64> = parts
                .take_unprocessed()
                .iter()
                .map(|(index, _)| *index)
                .collect();
            assert_eq!(waits, [3, 7]);
        }
    }

    #[test]
    fn what_is_due_travels_together() {
        let run = run_with(Ignore);
        let mut parts = Parts::new(false);
        parts.retry_rule("run").set_delays(|| [Duration::ZERO; 3]);
        parts.accept(ran(&run, 10, &[1, 2, 4, 6, 8]), &run);
        let indices = |chunk: Option<BoxedChunk<u32, u32, _>>| {
            let chunk = chunk.as_ref().unwrap();
            let indices: Vec<u64> = (0..chunk.pending.len()).map(|it| chunk.index(it)).collect();
            (indices, chunk.attempts, chunk.is_final)
        };
        let mut first = parts.pop_due(&run.stop, 2);
        assert_eq!(indices(first.take()), (vec![1, 2], 2, false));
        // One fails again, and two do not fit to what waits.
        let mut again = parts.pop_due(&run.stop, 1).unwrap();
        assert_eq!(again.index(0), 4);
        again.inputs = again.pending.by_ref().collect();
        again.run(
            &|_: &mut u32| Err("busy"),
            &run.stop,
            true,
            &AtomicBool::new(false),
            &NoInstrument,
        );
        again.seal();
        parts.accept(again, &run);
        assert_eq!(indices(parts.pop_due(&run.stop, 9)), (vec![6, 8], 2, false));
        assert_eq!(indices(parts.pop_due(&run.stop, 9)), (vec![4], 3, false));
        assert!(parts.pop_due(&run.stop, 9).is_none());
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
        assert!(parts.pop_due(&run.stop, 9).is_none());
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
