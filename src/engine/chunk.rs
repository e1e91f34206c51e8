//! A chunk of items, and the one loop that passes them to the user's function.
//!
//! What waits to be run stands last to first, and so do the inputs and outputs of a chunk that is delivered: to take the
//! next is a `pop`, and the emptied buffers can be filled again.

use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use crate::engine::retry::Delays;
use crate::engine::stop::Stop;
use crate::observe::instrument::Instrument;
use crate::task::{Cause, Panic, Task, TaskError, TaskResult};
use crate::util::panics::drop_all_catching;
use crate::util::seeded_bugs;
use crate::util::sync::atomic::{AtomicBool, Ordering};
use crate::util::sync::thread::ThreadId;

/// Items on their way to a worker and, with their results, on their way back.
#[derive(Debug)]
pub(crate) struct Chunk<I, T, E> {
    /// The index of the first item; the others follow without a gap.
    pub(crate) first: u64,
    /// Items that were run, or that their worker has begun; while the chunk is being filled, those that were pulled.
    pub(crate) inputs: Vec<I>,
    /// One for each item that succeeded.
    outputs: Vec<T>,
    /// One for each item that failed, with its offset in the chunk.
    failures: Vec<(usize, Cause<E>)>,
    /// Items that nobody has begun, last to first. They follow the inputs. A finished chunk has some only where the run was
    /// stopped.
    pub(crate) pending: Vec<I>,
    /// Tasks delivered so far.
    delivered: usize,
    /// Up to here, tasks have succeeded and take the fast path.
    fast_until: usize,
    /// How often the items were tried; more than once in chunks of one item only.
    pub(crate) attempts: u32,
    /// The delays that are left for a further attempt.
    pub(crate) delays: Option<Delays>,
    /// Whether an `Err` is final, as no retry can follow. A panic always is.
    pub(crate) is_final: bool,
    /// How many items a worker may begin at a time.
    pub(crate) grain: usize,
    /// The epoch of the run's control when a worker took it.
    pub(crate) epoch: u64,
    /// Where a run has several stages, the one that this comes from; and how long an item took in the slowest of those before.
    pub(crate) stage: Option<usize>,
    pub(crate) each_before: Duration,
    /// How long these tasks ran, and on which thread.
    pub(crate) busy: Duration,
    pub(crate) worker: Option<ThreadId>,
}

/// A chunk as it travels: one word to hand over.
pub(crate) type BoxedChunk<I, T, E> = Box<Chunk<I, T, E>>;

/// What became of one item.
pub(crate) struct Outcome<I, T, E> {
    pub(crate) index: u64,
    pub(crate) input: I,
    pub(crate) result: Result<T, Cause<E>>,
}

impl<I, T, E> Outcome<I, T, E> {
    #[inline]
    pub(crate) fn into_result(self, attempts: u32, stage: Option<usize>) -> TaskResult<I, T, E> {
        match self.result {
            Ok(output) => Ok(Task::new(self.index, self.input, output)),
            Err(cause) => Err(TaskError::new(
                self.index, self.input, attempts, stage, cause,
            )),
        }
    }
}

impl<I, T, E> Chunk<I, T, E> {
    pub(crate) fn new() -> Self {
        Self {
            first: 0,
            inputs: Vec::new(),
            outputs: Vec::new(),
            failures: Vec::new(),
            pending: Vec::new(),
            delivered: 0,
            fast_until: 0,
            attempts: 1,
            delays: None,
            is_final: true,
            grain: 1,
            epoch: 0,
            stage: None,
            each_before: Duration::ZERO,
            busy: Duration::ZERO,
            worker: None,
        }
    }

    /// Makes an emptied chunk ready to be filled from index `first` on.
    pub(crate) fn reset(&mut self, first: u64, is_final: bool) {
        debug_assert!(self.holds_nothing());
        self.first = first;
        if !seeded_bugs::has("buffer not cleared") {
            self.delivered = 0;
        }
        self.attempts = 1;
        self.delays = None;
        self.is_final = is_final;
        self.grain = 1;
        self.stage = None;
        self.each_before = Duration::ZERO;
    }

    /// The items that were put into it are to be run.
    pub(crate) fn set_pending(&mut self) {
        self.inputs.reverse();
        mem::swap(&mut self.inputs, &mut self.pending);
    }

    /// Takes what nobody has begun, with the indices.
    pub(crate) fn take_pending(&mut self) -> impl Iterator<Item = (u64, I)> {
        let first = self.first + self.inputs.len() as u64;
        (first..).zip(self.pending.drain(..).rev())
    }

    fn holds_nothing(&self) -> bool {
        let holds_results = !self.outputs.is_empty() || !self.failures.is_empty();
        self.inputs.is_empty() && self.pending.is_empty() && !holds_results
    }

    /// How many items have been run.
    fn done(&self) -> usize {
        self.outputs.len() + self.failures.len()
    }

    pub(crate) fn failed(&self) -> usize {
        self.failures.len()
    }

    /// How many of the failures are panics.
    pub(crate) fn panics(&self) -> usize {
        let is_panic = |(_, cause): &&(usize, Cause<E>)| matches!(cause, Cause::Panicked(_));
        self.failures.iter().filter(is_panic).count()
    }

    /// Runs the items that were begun, until somebody wants one of them. Returns whether more may follow. `is_last`: what
    /// succeeds has come to its end.
    pub(crate) fn run(
        &mut self,
        f: &impl Fn(&mut I) -> Result<T, E>,
        stop: &Stop,
        is_last: bool,
        is_wanted: &AtomicBool,
        instrument: &impl Instrument,
    ) -> bool
    where
        E: fmt::Debug,
    {
        let (succeeded, failed) = (self.outputs.len(), self.failures.len());
        loop {
            // The function is treated as unwind safe, as rayon and `thread::spawn` treat theirs.
            // A `catch_unwind` per run of items rather than per item is what makes tiny tasks cheap.
            match panic::catch_unwind(AssertUnwindSafe(|| {
                self.run_on(f, stop, is_last, is_wanted, instrument)
            })) {
                Ok(may_go_on) => {
                    // Where a retry may follow, the caller counts them, as it counts the failures.
                    if is_last && self.is_final && self.failures.len() == failed {
                        stop.record_successes(self.outputs.len() - succeeded);
                    }
                    return may_go_on;
                }
                Err(payload) => {
                    let offset = self.done();
                    let panic = Panic::new(payload);
                    instrument.panicked(self.first + offset as u64, panic.message());
                    self.failures.push((offset, Cause::Panicked(panic)));
                    let before = if is_last && self.is_final {
                        self.outputs.len() - succeeded
                    } else {
                        0
                    };
                    stop.record_failure(self.first + offset as u64, before);
                    // Handed over before anything else begins. Whether something may is for the next look at the limit.
                    if stop.has_failure_limit() {
                        return true;
                    }
                }
            }
        }
    }

    #[inline]
    fn run_on(
        &mut self,
        f: &impl Fn(&mut I) -> Result<T, E>,
        stop: &Stop,
        is_last: bool,
        is_wanted: &AtomicBool,
        instrument: &impl Instrument,
    ) -> bool
    where
        E: fmt::Debug,
    {
        let start = self.done();
        let succeeded = self.outputs.len();
        let Self {
            first,
            inputs,
            outputs,
            failures,
            is_final,
            epoch,
            ..
        } = self;
        let guard = stop.guard(*epoch);
        let begun = *first + start as u64;
        let indices = *first + start as u64..;
        for (input, index) in inputs[start..].iter_mut().zip(indices) {
            let is_reached = !seeded_bugs::has("stage not stopped") || is_last;
            if is_reached && !guard.allows(index) {
                return false;
            }
            // The first is run in any case, or nobody would get on.
            if index > begun && is_wanted.load(Ordering::Relaxed) {
                return true;
            }
            match instrument.call(index, || f(input)) {
                Ok(output) => outputs.push(output),
                Err(error) => {
                    // Recorded first, then the others are stopped: else the run could end otherwise
                    // before its failure is there to be seen.
                    failures.push((outputs.len() + failures.len(), Cause::Failed(error)));
                    if seeded_bugs::has("late stop") {
                        continue;
                    }
                    if *is_final {
                        let before = if is_last {
                            outputs.len() - succeeded
                        } else {
                            0
                        };
                        stop.record_failure(index, before);
                    }
                    // It is to be found before another one begins that may wait to be told of it.
                    if !*is_final || stop.has_failure_limit() {
                        return true;
                    }
                }
            }
        }
        true
    }

    /// Room for the results of `count` more items.
    pub(crate) fn reserve(&mut self, count: usize) {
        // In few sizes, so that buffers that go round are soon large enough for any chunk.
        let wanted = (self.inputs.len() + count).next_power_of_two();
        self.inputs.reserve_exact(wanted - self.inputs.len());
        self.outputs.reserve_exact(wanted - self.outputs.len());
    }

    /// Takes over what `next` has run, which follows what this has.
    pub(crate) fn append(&mut self, next: &mut Self) {
        let (before, more) = (self.inputs.len(), next.inputs.len());
        self.inputs.append(&mut next.inputs);
        self.outputs.append(&mut next.outputs);
        if !next.failures.is_empty() {
            let failures = next.failures.drain(..);
            self.failures
                .extend(failures.map(|(offset, cause)| (before + offset, cause)));
        }
        next.first += more as u64;
    }

    /// Takes what was run, as a chunk of its own.
    pub(crate) fn take_run(&mut self) -> BoxedChunk<I, T, E> {
        let mut part = Box::new(Self::new());
        part.first = self.first;
        part.attempts = self.attempts;
        part.delays = self.delays.take();
        part.is_final = self.is_final;
        part.each_before = self.each_before;
        part.inputs = mem::take(&mut self.inputs);
        part.outputs = mem::take(&mut self.outputs);
        part.failures = mem::take(&mut self.failures);
        self.first += part.inputs.len() as u64;
        part
    }

    /// Takes what nobody has begun, as a chunk of its own.
    pub(crate) fn take_left(&mut self) -> BoxedChunk<I, T, E> {
        let mut left = Box::new(Self::new());
        left.first = self.first + self.inputs.len() as u64;
        left.attempts = self.attempts;
        if self.inputs.is_empty() {
            left.delays = self.delays.take();
        }
        left.is_final = self.is_final;
        left.grain = self.grain;
        left.each_before = self.each_before;
        left.pending = mem::take(&mut self.pending);
        left
    }

    /// Of the items that were begun, those that were not run go back to `pending`. Returns how many.
    pub(crate) fn give_up_begun(&mut self, pending: &mut Vec<I>) -> usize {
        let done = self.done();
        let count = self.inputs.len() - done;
        pending.extend(self.inputs.drain(done..).rev());
        count
    }

    /// What was run is ready to be delivered.
    pub(crate) fn seal(&mut self) {
        debug_assert_eq!(self.done(), self.inputs.len());
        self.inputs.reverse();
        self.outputs.reverse();
        self.failures.reverse();
        self.find_next_failure();
    }

    /// The next failure ends the fast path.
    fn find_next_failure(&mut self) {
        self.fast_until = match self.failures.last() {
            Some((failed, _)) => *failed,
            None => self.delivered + self.inputs.len(),
        };
    }

    /// Takes the next task to deliver, if it is on the fast path. Small, so that it is inlined.
    #[inline]
    pub(crate) fn pop_fast(&mut self) -> Option<Task<I, T>> {
        if self.delivered >= self.fast_until {
            return None;
        }
        let input = self.inputs.pop()?;
        let output = self.outputs.pop()?;
        let index = self.first + self.delivered as u64;
        self.delivered += 1;
        Some(Task::new(index, input, output))
    }

    /// How many tasks wait for delivery.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.inputs.len()
    }

    /// How many tasks have been delivered.
    pub(crate) fn delivered(&self) -> usize {
        self.delivered
    }

    /// Takes the next task to deliver.
    pub(crate) fn pop(&mut self) -> Option<Outcome<I, T, E>> {
        let input = self.inputs.pop()?;
        let offset = self.delivered;
        if !seeded_bugs::has("double delivery") {
            self.delivered += 1;
        }
        let result = match self.failures.last() {
            Some((failed, _)) if *failed == offset => {
                let failure = self.failures.pop();
                self.find_next_failure();
                failure.map(|(_, cause)| Err(cause))
            }
            _ => self.outputs.pop().map(Ok),
        };
        let result = result.expect("each item that was run has an output or a failure");
        Some(Outcome {
            index: self.first + offset as u64,
            input,
            result,
        })
    }

    /// How many tasks come before the next failure.
    pub(crate) fn successes(&self) -> usize {
        self.fast_until - self.delivered
    }

    /// Takes the next `count` tasks, which all succeeded, as a chunk of their own.
    pub(crate) fn split_off_front(&mut self, count: usize) -> BoxedChunk<I, T, E> {
        let mut front = Box::new(Self::new());
        front.first = self.first + self.delivered as u64;
        front.attempts = self.attempts;
        front.inputs = self.inputs.split_off(self.inputs.len() - count);
        front.outputs = self.outputs.split_off(self.outputs.len() - count);
        front.find_next_failure();
        self.delivered += count;
        front
    }

    /// Forgets those that were taken out, where all that is left has succeeded.
    pub(crate) fn forget_taken(&mut self) {
        debug_assert!(self.failures.is_empty());
        self.first += self.delivered as u64;
        self.delivered = 0;
        self.find_next_failure();
    }

    /// Takes it apart: each item that was run, in order, with what became of it; and the items that nobody has begun.
    pub(crate) fn take_apart(
        &mut self,
    ) -> (
        impl Iterator<Item = Outcome<I, T, E>> + use<I, T, E>,
        Vec<I>,
    ) {
        debug_assert_eq!(self.done(), self.inputs.len());
        let inputs = mem::take(&mut self.inputs).into_iter();
        let mut outputs = mem::take(&mut self.outputs).into_iter();
        let mut failures = mem::take(&mut self.failures).into_iter().peekable();
        let first = self.first;
        let outcomes = inputs.enumerate().map(move |(offset, input)| {
            let failure = failures.next_if(|(failed, _)| *failed == offset);
            let result = match failure {
                Some((_, cause)) => Err(cause),
                None => Ok(outputs
                    .next()
                    .expect("each item that was run has an output or a failure")),
            };
            Outcome {
                index: first + offset as u64,
                input,
                result,
            }
        });
        (outcomes, mem::take(&mut self.pending))
    }

    /// A finished chunk, with `f` applied to its items. The stage is not copied.
    pub(crate) fn map_inputs<J>(&mut self, f: impl Fn(I) -> J) -> BoxedChunk<J, T, E> {
        let mut chunk = Box::new(Chunk::new());
        chunk.first = self.first;
        chunk.inputs = mem::take(&mut self.inputs).into_iter().map(&f).collect();
        chunk.outputs = mem::take(&mut self.outputs);
        chunk.failures = mem::take(&mut self.failures);
        chunk.pending = mem::take(&mut self.pending).into_iter().map(&f).collect();
        chunk.attempts = self.attempts;
        chunk.delays = self.delays.take();
        chunk.is_final = self.is_final;
        chunk.grain = self.grain;
        chunk.busy = self.busy;
        chunk.worker = self.worker;
        chunk
    }

    /// A finished chunk of one item.
    pub(crate) fn of_one(outcome: Outcome<I, T, E>, attempts: u32) -> BoxedChunk<I, T, E> {
        let mut chunk = Box::new(Self::new());
        chunk.first = outcome.index;
        chunk.attempts = attempts;
        chunk.inputs.push(outcome.input);
        match outcome.result {
            Ok(output) => chunk.outputs.push(output),
            Err(cause) => chunk.failures.push((0, cause)),
        }
        chunk
    }
}

impl<I, T, E> Drop for Chunk<I, T, E> {
    fn drop(&mut self) {
        // This may run on a worker, or during an unwind (see `job.rs`).
        drop_all_catching(&mut self.inputs);
        drop_all_catching(&mut self.outputs);
        drop_all_catching(&mut self.failures);
        drop_all_catching(&mut self.pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stop::Stop;
    use crate::observe::instrument::NoInstrument;
    use crate::policy::ErrorPolicy;

    /// Of ten tasks that were begun together, 3 and 7 fail. Gives whether one failure of `window` is tolerated then.
    fn tolerates(window: u32, is_last: bool, panics: bool) -> bool {
        let policy = ErrorPolicy::TolerateRate {
            failures: 1,
            window,
        };
        let stop = Stop::new(policy, false, Vec::new(), None);
        let mut chunk = Chunk::<u32, u32, &str>::new();
        chunk.inputs = (0..10).collect();
        let fails = |n: &mut u32| match *n {
            3 | 7 if panics => panic::resume_unwind(Box::new("no hook is called")),
            3 | 7 => Err("no answer"),
            n => Ok(n),
        };
        // It goes on after a failure only once that is handed over.
        for _ in 0..3 {
            chunk.run(
                &fails,
                &stop,
                is_last,
                &AtomicBool::new(false),
                &NoInstrument,
            );
        }
        if stop.allows_any() {
            assert_eq!((chunk.outputs.len(), chunk.failed()), (8, 2));
            assert_eq!(chunk.panics(), if panics { 2 } else { 0 });
        }
        stop.allows_any()
    }

    #[test]
    fn what_succeeds_between_two_failures_counts_once() {
        for panics in [false, true] {
            // The second is the fourth task after the first.
            assert!(tolerates(4, true, panics));
            assert!(!tolerates(5, true, panics));
            // In a stage before the last one, nothing that succeeds has ended.
            assert!(!tolerates(2, false, panics));
        }
    }

    fn run_once(chunk: &mut Chunk<u32, u32, &'static str>, stop: &Stop) -> bool {
        let f = |n: &mut u32| {
            if *n % 10 == 3 {
                Err("no answer")
            } else {
                Ok(*n)
            }
        };
        chunk.run(&f, stop, true, &AtomicBool::new(false), &NoInstrument)
    }

    #[test]
    fn a_failure_that_may_be_tried_again_is_found_before_the_next_begins() {
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        for (is_final, done) in [(false, 4), (true, 10)] {
            let mut chunk = Chunk::new();
            chunk.inputs = (0..10).collect();
            chunk.is_final = is_final;
            assert!(run_once(&mut chunk, &stop));
            assert_eq!(chunk.done(), done);
        }
    }

    #[test]
    fn what_has_succeeded_counts_once_however_often_a_chunk_is_run() {
        // The failure is the thirteenth after the one before.
        for (window, is_tolerated) in [(13, true), (14, false)] {
            let policy = ErrorPolicy::TolerateRate {
                failures: 1,
                window,
            };
            let stop = Stop::new(policy, false, Vec::new(), None);
            stop.record_failure(0, 0);
            let mut chunk = Chunk::new();
            for items in [0..3, 4..13, 13..14] {
                chunk.inputs.extend(items);
                run_once(&mut chunk, &stop);
            }
            assert_eq!((chunk.outputs.len(), chunk.failed()), (12, 1));
            assert_eq!(stop.allows_any(), is_tolerated, "{window}");
        }
    }

    #[test]
    fn what_follows_is_counted_from_the_first() {
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let [mut chunk, mut next] = [0, 2].map(|first| {
            let mut chunk = Chunk::new();
            chunk.first = u64::from(first);
            chunk.inputs = (first..first + 2).collect();
            chunk
        });
        run_once(&mut chunk, &stop);
        run_once(&mut next, &stop);
        chunk.append(&mut next);
        assert!(next.holds_nothing() && next.first == 4);
        chunk.seal();
        assert_eq!(chunk.successes(), 3);
        assert_eq!(chunk.pop_fast().map(|task| task.index), Some(0));
        let rest: Vec<(u64, bool)> = std::iter::from_fn(|| chunk.pop())
            .map(|outcome| (outcome.index, outcome.result.is_ok()))
            .collect();
        assert_eq!(rest, [(1, true), (2, true), (3, false)]);
    }

    #[test]
    fn an_emptied_chunk_holds_nothing_at_all() {
        let mut chunks = [(); 5].map(|()| Chunk::<u32, u32, &str>::new());
        chunks[1].inputs.push(0);
        chunks[2].outputs.push(0);
        chunks[3].failures.push((0, Cause::Failed("no answer")));
        chunks[4].pending.push(0);
        let holds_nothing = chunks.map(|chunk| chunk.holds_nothing());
        assert_eq!(holds_nothing, [true, false, false, false, false]);
    }

    #[test]
    fn there_is_room_for_all_results_and_not_for_many_more() {
        let mut chunk = Chunk::<u32, u32, &str>::new();
        chunk.inputs = vec![0; 2];
        chunk.outputs = vec![0; 2];
        chunk.reserve(6);
        assert_eq!((chunk.inputs.capacity(), chunk.outputs.capacity()), (8, 8));
        chunk.reserve(7);
        assert_eq!(
            (chunk.inputs.capacity(), chunk.outputs.capacity()),
            (16, 16)
        );
    }

    /// Notes who panicked.
    struct Panicked(std::cell::RefCell<Vec<u64>>);

    impl Instrument for Panicked {
        fn call<T, E: fmt::Debug>(&self, _: u64, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
            f()
        }

        fn panicked(&self, index: u64, _: Option<&str>) {
            self.0.borrow_mut().push(index);
        }
    }

    #[test]
    fn whoever_watches_is_told_which_task_panicked() {
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let watcher = Panicked(Default::default());
        let mut chunk = Chunk::<u32, u32, &str>::new();
        chunk.first = 10;
        chunk.inputs = vec![0, 1, 2];
        let f = |n: &mut u32| match *n {
            2 => panic::resume_unwind(Box::new("no hook is called")),
            n => Ok(n),
        };
        chunk.run(&f, &stop, true, &AtomicBool::new(false), &watcher);
        assert_eq!(watcher.0.into_inner(), [12]);
    }
}
