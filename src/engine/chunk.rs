//! A chunk of items, and the one loop that passes them to the user's function.
//!
//! What waits to be run, and what is delivered, is iterated over by value; the emptied buffers are filled again.

use std::fmt;
use std::mem;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;
use std::vec;

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
    /// The index of the first item; the others follow without a gap. Where they are listed, its place in that list.
    pub(crate) first: u64,
    /// The items by their places, where their indices do not follow each other.
    pub(crate) listed: Option<Arc<Listed>>,
    /// Items that were run, or that their worker has begun; while the chunk is being filled, those that were pulled.
    pub(crate) inputs: Vec<I>,
    /// One for each item that succeeded.
    outputs: Vec<T>,
    /// The same, once the chunk is sealed: what is left to be delivered.
    inputs_left: vec::IntoIter<I>,
    outputs_left: vec::IntoIter<T>,
    /// One for each item that failed, with its offset in the chunk; last to first, once the chunk is sealed.
    failures: Vec<(usize, Cause<E>)>,
    /// Items that nobody has begun. They follow the inputs. A finished chunk has some only where the run was stopped.
    pub(crate) pending: vec::IntoIter<I>,
    /// How many tasks there were to deliver, once the chunk is sealed.
    tasks: usize,
    /// While more than so many are left, the next one has succeeded and takes the fast path. Its index is as many before
    /// `end` as are left.
    fast_above: usize,
    end: u64,
    /// How often the items were tried.
    pub(crate) attempts: u32,
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

/// Items that are tried again, or what is left of a chunk without those.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    indices: Vec<u64>,
    /// What is left of the delays of each. Of what has ended, nothing is kept.
    delays: Vec<Option<Delays>>,
}

impl Listed {
    pub(crate) fn push(&mut self, index: u64, delays: Option<Delays>) {
        self.indices.push(index);
        self.delays.push(delays);
    }

    /// How many of the `count` indices from `place` on follow each other.
    #[inline(never)]
    fn run_length(&self, place: u64, count: usize) -> usize {
        let indices = &self.indices[place as usize..][..count];
        let follows = |pair: &&[u64]| pair[0] + 1 == pair[1];
        let follow = indices.windows(2).take_while(follows).count();
        count.min(1 + follow)
    }
}

/// The index of the item at `place`.
#[inline]
fn index_of(listed: Option<&Listed>, place: u64) -> u64 {
    listed.map_or(place, |listed| listed.indices[place as usize])
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
            listed: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            inputs_left: vec::IntoIter::default(),
            outputs_left: vec::IntoIter::default(),
            failures: Vec::new(),
            pending: vec::IntoIter::default(),
            tasks: 0,
            fast_above: usize::MAX,
            end: 0,
            attempts: 1,
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
        reuse(&mut self.inputs, &mut self.inputs_left);
        reuse(&mut self.outputs, &mut self.outputs_left);
        self.first = first;
        self.listed = None;
        if !seeded_bugs::has("buffer not cleared") {
            self.tasks = 0;
        }
        self.attempts = 1;
        self.is_final = is_final;
        self.grain = 1;
        self.stage = None;
        self.each_before = Duration::ZERO;
    }

    /// The items that were put into it are to be run.
    pub(crate) fn set_pending(&mut self) {
        self.pending = mem::take(&mut self.inputs).into_iter();
    }

    /// Takes what nobody has begun, with the indices.
    pub(crate) fn take_pending(&mut self) -> impl Iterator<Item = (u64, I)> {
        let first = self.first + self.len() as u64;
        let listed = self.listed.as_deref();
        let indices = (first..).map(move |place| index_of(listed, place));
        // The items first: past the last of them, nothing is listed.
        let items = self.pending.by_ref();
        items.zip(indices).map(|(item, index)| (index, item))
    }

    /// The index of the item that comes after so many others.
    pub(crate) fn index(&self, offset: usize) -> u64 {
        self.index_at(self.first + offset as u64)
    }

    /// The index of the item at `place`.
    #[inline]
    pub(crate) fn index_at(&self, place: u64) -> u64 {
        index_of(self.listed.as_deref(), place)
    }

    /// From the lowest to the highest index of the items at those places.
    pub(crate) fn indices(&self, places: Range<u64>) -> Range<u64> {
        let Some(listed) = &self.listed else {
            return places;
        };
        let indices = &listed.indices[places.start as usize..places.end as usize];
        let lowest = indices.iter().min().copied().unwrap_or_default();
        lowest..indices.iter().max().map_or(lowest, |highest| highest + 1)
    }

    fn holds_nothing(&self) -> bool {
        let results = self.outputs.len() + self.outputs_left.len() + self.failures.len();
        self.len() + self.pending.len() + results == 0
    }

    /// How many items have been run.
    fn done(&self) -> usize {
        self.outputs.len() + self.failures.len()
    }

    /// How many items were begun and not run.
    pub(crate) fn begun_left(&self) -> usize {
        self.inputs.len() - self.done()
    }

    pub(crate) fn failed(&self) -> usize {
        self.failures.len()
    }

    /// How many of the failures are panics.
    pub(crate) fn panics(&self) -> usize {
        let is_panic = |(_, cause): &&(usize, Cause<E>)| matches!(cause, Cause::Panicked(_));
        self.failures.iter().filter(is_panic).count()
    }

    /// Runs the items that were begun, whose indices follow each other from `first` on, until somebody wants one of them.
    /// Returns whether more may follow. `is_last`: what succeeds has come to its end.
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
                    let panic = Panic::new(payload);
                    let offset = self.done();
                    let index = self.first + offset as u64;
                    instrument.panicked(index, panic.message());
                    self.failures.push((offset, Cause::Panicked(panic)));
                    let before = if is_last && self.is_final {
                        self.outputs.len() - succeeded
                    } else {
                        0
                    };
                    stop.record_failure(index, before);
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
        let guard = stop.guard(self.epoch);
        let is_reached = !seeded_bugs::has("stage not stopped") || is_last;
        let allows = move |index| !is_reached || guard.allows(index);
        let may_start = move |index| allows(index) && !is_wanted.load(Ordering::Relaxed);
        let call = |input: &mut I, index| instrument.call(index, || f(input));
        let succeeded = self.outputs.len();
        let mut done = self.done();
        // The first is run even if it is wanted, or nobody would get on.
        let mut may_go_on = allows(self.first + done as u64);
        while may_go_on {
            let inputs = &mut self.inputs[done..];
            self.outputs.reserve(inputs.len());
            let first = self.first + done as u64;
            let error = call_until(inputs, &mut self.outputs, first, call, may_start);
            done = self.done();
            let Some(error) = error else {
                break;
            };
            // Recorded first, then the others are stopped: else the run could end otherwise
            // before its failure is there to be seen.
            self.failures.push((done, Cause::Failed(error)));
            let failed = self.first + done as u64;
            done += 1;
            if seeded_bugs::has("late stop") {
                continue;
            }
            if self.is_final {
                let before = if is_last {
                    self.outputs.len() - succeeded
                } else {
                    0
                };
                stop.record_failure(failed, before);
            }
            // It is to be found before another one begins that may wait to be told of it.
            if !self.is_final || stop.has_failure_limit() {
                return true;
            }
            may_go_on = may_start(failed + 1);
        }
        done == self.inputs.len() || allows(self.first + done as u64)
    }

    /// Room for the results of `count` more items.
    pub(crate) fn reserve(&mut self, count: usize) {
        // In few sizes, so that buffers that go round are soon large enough for any chunk.
        let wanted = (self.inputs.len() + count).next_power_of_two();
        self.inputs.reserve_exact(wanted - self.inputs.len());
        self.outputs.reserve_exact(wanted - self.outputs.len());
    }

    /// Takes over what `next` has run, which follows what this has; all but the last `left` of its items.
    pub(crate) fn append(&mut self, next: &mut Self, left: usize) {
        let before = self.inputs.len();
        if left == 0 {
            self.inputs.append(&mut next.inputs);
        } else {
            let ran = next.inputs.len() - left;
            self.inputs.extend(next.inputs.drain(..ran));
            next.first += ran as u64;
        }
        self.outputs.append(&mut next.outputs);
        if !next.failures.is_empty() {
            let failures = next.failures.drain(..);
            self.failures
                .extend(failures.map(|(offset, cause)| (before + offset, cause)));
        }
    }

    /// Takes what was run, as a chunk of its own.
    pub(crate) fn take_run(&mut self) -> BoxedChunk<I, T, E> {
        let mut part = Box::new(Self::new());
        part.first = self.first;
        part.listed.clone_from(&self.listed);
        part.attempts = self.attempts;
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
        left.first = self.first + self.len() as u64;
        left.listed.clone_from(&self.listed);
        left.attempts = self.attempts;
        left.is_final = self.is_final;
        left.grain = self.grain;
        left.each_before = self.each_before;
        left.pending = mem::take(&mut self.pending);
        left
    }

    /// Of the items that were begun, those that were not run go back to `pending`. Returns how many.
    #[cold]
    pub(crate) fn give_up_begun(&mut self, pending: &mut vec::IntoIter<I>) -> usize {
        let left = self.begun_left();
        if left != 0 {
            let given_up = self.inputs.drain(self.inputs.len() - left..);
            let items: Vec<I> = given_up.chain(mem::take(pending)).collect();
            *pending = items.into_iter();
        }
        left
    }

    /// What was run is ready to be delivered.
    pub(crate) fn seal(&mut self) {
        debug_assert_eq!(self.begun_left(), 0);
        self.inputs_left = mem::take(&mut self.inputs).into_iter();
        self.outputs_left = mem::take(&mut self.outputs).into_iter();
        self.failures.reverse();
        self.tasks += self.inputs_left.len();
        self.find_fast_path();
    }

    /// The fast path ends at the next failure, and where an index does not follow the one before.
    fn find_fast_path(&mut self) {
        let left = self.inputs_left.len();
        let mut fast = match self.failures.last() {
            Some((failed, _)) => failed - self.delivered(),
            None => left,
        };
        let next = self.delivered();
        self.end = self.first + (next + left) as u64;
        if self.listed.is_some() && left != 0 {
            self.end = self.index(next) + left as u64;
            fast = fast.min(self.run_left());
        }
        self.fast_above = left - fast;
    }

    /// How many of the `count` items from `place` on have indices that follow each other.
    #[inline]
    pub(crate) fn run_length(&self, place: u64, count: usize) -> usize {
        match &self.listed {
            None => count,
            Some(listed) => listed.run_length(place, count),
        }
    }

    /// The same of the tasks that are left.
    fn run_left(&self) -> usize {
        let place = self.first + self.delivered() as u64;
        self.run_length(place, self.inputs_left.len())
    }

    /// Takes the next task to deliver, if it is on the fast path. Small, so that it is inlined.
    #[inline]
    pub(crate) fn pop_fast(&mut self) -> Option<Task<I, T>> {
        let left = self.inputs_left.len();
        if left <= self.fast_above {
            return None;
        }
        let input = self.inputs_left.next()?;
        let output = self.outputs_left.next()?;
        let index = self.end.wrapping_sub(left as u64);
        Some(Task::new(index, input, output))
    }

    /// Folds over the tasks on the fast path. What it counts stays in registers.
    #[inline]
    pub(crate) fn fold_fast<B>(&mut self, init: B, mut f: impl FnMut(B, Task<I, T>) -> B) -> B {
        let left = self.inputs_left.len();
        if left <= self.fast_above {
            return init;
        }
        let first = self.end.wrapping_sub(left as u64);
        let indices = first..first + (left - self.fast_above) as u64;
        let mut taken = Delivery {
            inputs: mem::take(&mut self.inputs_left),
            outputs: mem::take(&mut self.outputs_left),
            chunk: self,
        };
        let mut result = init;
        for index in indices {
            let (Some(input), Some(output)) = (taken.inputs.next(), taken.outputs.next()) else {
                break;
            };
            result = f(result, Task::new(index, input, output));
        }
        result
    }

    /// How many items have been run, without what was delivered.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.inputs.len() + self.inputs_left.len()
    }

    /// How many tasks have been delivered.
    pub(crate) fn delivered(&self) -> usize {
        self.tasks - self.inputs_left.len()
    }

    /// Takes the next task to deliver.
    pub(crate) fn pop(&mut self) -> Option<Outcome<I, T, E>> {
        let offset = self.delivered();
        let input = self.inputs_left.next()?;
        let index = self.index(offset);
        if seeded_bugs::has("double delivery") {
            self.tasks -= 1;
        }
        let result = match self.failures.last() {
            Some((failed, _)) if *failed == offset => {
                let failure = self.failures.pop();
                failure.map(|(_, cause)| Err(cause))
            }
            _ => self.outputs_left.next().map(Ok),
        };
        let result = result.expect("each item that was run has an output or a failure");
        if self.inputs_left.len() < self.fast_above {
            self.find_fast_path();
        }
        Some(Outcome {
            index,
            input,
            result,
        })
    }

    /// Takes out the failures for which `judge` returns something, in order. It gets the index, how many have succeeded since the
    /// failure before, why it failed, and what is left of its delays. Nothing was delivered yet.
    pub(crate) fn extract_failures<R>(
        &mut self,
        mut judge: impl FnMut(u64, usize, &Cause<E>, Option<Delays>) -> Option<R>,
    ) -> Vec<(Outcome<I, T, E>, R)> {
        let mut extracted = Vec::new();
        let mut kept = Vec::new();
        let mut next = 0;
        while let Some((offset, cause)) = self.failures.pop() {
            let index = self.index(offset);
            let delays = self.listed.as_ref().and_then(|listed| {
                let delays = listed.delays.get(self.first as usize + offset);
                delays.cloned().flatten()
            });
            match judge(index, offset - next, &cause, delays) {
                Some(verdict) => extracted.push((offset, index, cause, verdict)),
                // Those before it are gone.
                None => kept.push((offset - extracted.len(), cause)),
            }
            next = offset + 1;
        }
        kept.reverse();
        self.failures = kept;
        if extracted.is_empty() {
            return Vec::new();
        }
        let mut indices = Vec::with_capacity(self.inputs_left.len() - extracted.len());
        let mut failures = extracted.into_iter().peekable();
        let mut inputs = Vec::with_capacity(indices.capacity());
        let mut taken = Vec::with_capacity(failures.len());
        for (offset, input) in mem::take(&mut self.inputs_left).enumerate() {
            match failures.next_if(|failure| failure.0 == offset) {
                Some((_, index, cause, verdict)) => {
                    let result = Err(cause);
                    let outcome = Outcome {
                        index,
                        input,
                        result,
                    };
                    taken.push((outcome, verdict));
                }
                None => {
                    indices.push(self.index(offset));
                    inputs.push(input);
                }
            }
        }
        self.inputs_left = inputs.into_iter();
        self.tasks = self.inputs_left.len();
        self.first = 0;
        self.listed = Some(Arc::new(Listed {
            indices,
            delays: Vec::new(),
        }));
        self.find_fast_path();
        taken
    }

    /// Whether no index is missing between the first and the last.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.run_left() == self.inputs_left.len()
    }

    /// Takes the next tasks whose indices follow each other, as a chunk of their own. Nothing was delivered yet.
    pub(crate) fn split_off_run(&mut self) -> BoxedChunk<I, T, E> {
        let count = self.run_left();
        let mut run = Box::new(Self::new());
        run.first = self.index(0);
        run.attempts = self.attempts;
        run.stage = self.stage;
        let later = self
            .failures
            .partition_point(|(offset, _)| *offset >= count);
        run.failures = self.failures.split_off(later);
        let succeeded = count - run.failures.len();
        run.inputs_left = split_off_first(&mut self.inputs_left, count);
        run.outputs_left = split_off_first(&mut self.outputs_left, succeeded);
        run.tasks = count;
        run.find_fast_path();
        self.first += count as u64;
        self.tasks -= count;
        self.failures
            .iter_mut()
            .for_each(|(offset, _)| *offset -= count);
        self.find_fast_path();
        run
    }

    /// Takes it apart: each item that was run, in order, with what became of it; and the items that nobody has begun.
    pub(crate) fn take_apart(
        &mut self,
    ) -> (
        impl Iterator<Item = Outcome<I, T, E>> + use<I, T, E>,
        vec::IntoIter<I>,
    ) {
        debug_assert_eq!(self.begun_left(), 0);
        let inputs = mem::take(&mut self.inputs).into_iter();
        let mut outputs = mem::take(&mut self.outputs).into_iter();
        let mut failures = mem::take(&mut self.failures).into_iter().peekable();
        let (first, listed) = (self.first, self.listed.clone());
        let outcomes = inputs.enumerate().map(move |(offset, input)| {
            let failure = failures.next_if(|(failed, _)| *failed == offset);
            let result = match failure {
                Some((_, cause)) => Err(cause),
                None => Ok(outputs
                    .next()
                    .expect("each item that was run has an output or a failure")),
            };
            Outcome {
                index: index_of(listed.as_deref(), first + offset as u64),
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
        let pending: Vec<J> = self.pending.by_ref().map(&f).collect();
        chunk.pending = pending.into_iter();
        chunk.listed.clone_from(&self.listed);
        chunk.attempts = self.attempts;
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

/// Calls `f` for the first of the `inputs`, and for more as long as they `may_start`. Puts what it makes into the
/// `outputs`, where there is room. Returns the first error.
///
/// Never inlined: here, the compiler knows that no two of these overlap, and keeps all in registers.
#[inline(never)]
fn call_until<I, T, E>(
    inputs: &mut [I],
    outputs: &mut Vec<T>,
    first: u64,
    f: impl Fn(&mut I, u64) -> Result<T, E>,
    may_start: impl Fn(u64) -> bool,
) -> Option<E> {
    let mut items = inputs.iter_mut().zip(first..);
    let (mut input, mut index) = items.next()?;
    // There is room for all. Asked so that the compiler knows that nothing grows in the loop.
    while outputs.len() < outputs.capacity() {
        match f(input, index) {
            Ok(output) => outputs.push(output),
            Err(error) => return Some(error),
        }
        (input, index) = items.next()?;
        if !may_start(index) {
            break;
        }
    }
    None
}

/// Gives `buffer` the memory of what was `emptied`, if it has none. The standard library collects in place.
pub(crate) fn reuse<V>(buffer: &mut Vec<V>, emptied: &mut vec::IntoIter<V>) {
    debug_assert!(emptied.as_slice().is_empty());
    if buffer.capacity() == 0 {
        *buffer = mem::take(emptied).take(0).collect();
    }
}

/// Takes the first `count` of `values`.
pub(crate) fn split_off_first<V>(values: &mut vec::IntoIter<V>, count: usize) -> vec::IntoIter<V> {
    values.take(count).collect::<Vec<V>>().into_iter()
}

/// What is taken out of a chunk while it is folded over. What is left goes back, also if the consumer panics.
struct Delivery<'c, I, T, E> {
    inputs: vec::IntoIter<I>,
    outputs: vec::IntoIter<T>,
    chunk: &'c mut Chunk<I, T, E>,
}

impl<I, T, E> Drop for Delivery<'_, I, T, E> {
    #[inline]
    fn drop(&mut self) {
        self.chunk.inputs_left = mem::take(&mut self.inputs);
        self.chunk.outputs_left = mem::take(&mut self.outputs);
    }
}

impl<I, T, E> Drop for Chunk<I, T, E> {
    fn drop(&mut self) {
        // This may run on a worker, or during an unwind (see `job.rs`).
        drop_all_catching(&mut self.inputs);
        drop_all_catching(&mut self.outputs);
        drop_all_catching(&mut self.inputs_left);
        drop_all_catching(&mut self.outputs_left);
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
        chunk.append(&mut next, 0);
        assert!(next.holds_nothing());
        chunk.seal();
        assert_eq!(chunk.fast_above, 1);
        assert_eq!(chunk.pop_fast().map(|task| task.index), Some(0));
        let rest: Vec<(u64, bool)> = std::iter::from_fn(|| chunk.pop())
            .map(|outcome| (outcome.index, outcome.result.is_ok()))
            .collect();
        assert_eq!(rest, [(1, true), (2, true), (3, false)]);
    }

    type Results = Vec<(u64, bool)>;

    /// Takes all that is left, and says which index came how.
    fn deliver(chunk: &mut Chunk<u32, u32, &'static str>) -> (Results, usize) {
        let (mut results, mut fast) = (Vec::new(), 0);
        loop {
            if let Some(task) = chunk.pop_fast() {
                assert_eq!(
                    (u64::from(task.input), task.output),
                    (task.index, task.input)
                );
                results.push((task.index, true));
                fast += 1;
            } else if let Some(outcome) = chunk.pop() {
                assert_eq!(u64::from(outcome.input), outcome.index);
                results.push((outcome.index, outcome.result.is_ok()));
            } else {
                return (results, fast);
            }
        }
    }

    /// Of twenty to forty, those at 3 and 13 of the list fail. Those that `is_taken` are taken out.
    fn without(is_taken: impl Fn(u64) -> bool) -> (Chunk<u32, u32, &'static str>, Vec<u64>) {
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let mut chunk = Chunk::new();
        chunk.first = 20;
        chunk.inputs = (20..40).collect();
        run_once(&mut chunk, &stop);
        chunk.seal();
        let mut asked = Vec::new();
        let taken = chunk.extract_failures(|index, before, _, delays| {
            assert!(delays.is_none());
            asked.push((index, before));
            is_taken(index).then_some(())
        });
        assert_eq!(asked, [(23, 3), (33, 9)]);
        (chunk, taken.iter().map(|(it, ())| it.index).collect())
    }

    #[test]
    fn what_is_left_without_some_failures_keeps_its_indices() {
        for taken in [&[][..], &[23], &[33], &[23, 33]] {
            let (mut chunk, extracted) = without(|index| taken.contains(&index));
            assert_eq!(extracted, taken);
            assert_eq!(chunk.is_contiguous(), taken.is_empty());
            let (results, fast) = deliver(&mut chunk);
            let left = (20..40).filter(|index| !taken.contains(index));
            assert_eq!(
                results,
                left.map(|index| (index, index % 10 != 3))
                    .collect::<Vec<_>>()
            );
            // All but the failures that are left, and the first after each that is not.
            assert_eq!(fast, 18 - taken.len());
        }
    }

    #[test]
    fn what_is_left_is_split_where_an_index_is_missing() {
        let (mut chunk, _) = without(|index| index == 33);
        (chunk.attempts, chunk.stage) = (3, Some(1));
        let mut runs = Vec::new();
        while !chunk.is_contiguous() {
            let mut run = chunk.split_off_run();
            assert_eq!((run.attempts, run.stage), (3, Some(1)));
            runs.push(deliver(&mut run).0);
        }
        runs.push(deliver(&mut chunk).0);
        let run = |indices: Range<u64>| {
            indices
                .map(|index| (index, index != 23))
                .collect::<Results>()
        };
        assert_eq!(runs, [run(20..33), run(34..40)]);
    }

    #[test]
    fn listed_items_keep_their_indices_wherever_they_go() {
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let mut listed = Listed::default();
        for index in [1, 5, 2, 7, 13] {
            listed.push(index, None);
        }
        let mut chunk = Chunk::new();
        chunk.listed = Some(Arc::new(listed));
        chunk.inputs = vec![1, 5, 2];
        chunk.pending = vec![7, 13].into_iter();
        assert_eq!((chunk.index(2), chunk.indices(1..4)), (2, 2..8));
        assert!(chunk.indices(3..3).is_empty());
        run_once(&mut chunk, &stop);
        let mut part = chunk.take_run();
        let mut left = chunk.take_left();
        assert_eq!(
            part.map_inputs(|n| n)
                .take_apart()
                .0
                .map(|it| it.index)
                .collect::<Vec<_>>(),
            [1, 5, 2]
        );
        assert_eq!(left.take_pending().collect::<Vec<_>>(), [(7, 7), (13, 13)]);
    }

    #[test]
    fn an_emptied_chunk_holds_nothing_at_all() {
        let mut chunks = [(); 5].map(|()| Chunk::<u32, u32, &str>::new());
        chunks[1].inputs.push(0);
        chunks[2].outputs.push(0);
        chunks[3].failures.push((0, Cause::Failed("no answer")));
        chunks[4].pending = vec![0].into_iter();
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

    #[test]
    fn what_was_delivered_leaves_its_buffers() {
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let mut chunk = Chunk::new();
        chunk.first = 10;
        chunk.inputs = (10..20).collect();
        while chunk.done() < 10 {
            run_once(&mut chunk, &stop);
        }
        let buffers = (chunk.inputs.as_ptr(), chunk.outputs.as_ptr());
        chunk.seal();
        assert_eq!(deliver(&mut chunk).0.len(), 10);
        chunk.reset(0, true);
        assert_eq!((chunk.inputs.as_ptr(), chunk.outputs.as_ptr()), buffers);
        assert!(chunk.inputs.capacity() >= 10);
    }

    #[test]
    fn what_is_folded_over_stops_before_a_failure() {
        let (mut chunk, _) = without(|index| index == 33);
        let indices = |chunk: &mut Chunk<u32, u32, _>| {
            let mut indices = Vec::new();
            chunk.fold_fast((), |(), task| {
                assert_eq!(u64::from(task.input), task.index);
                indices.push(task.index);
            });
            indices
        };
        assert_eq!(indices(&mut chunk), [20, 21, 22]);
        assert!(indices(&mut chunk).is_empty());
        assert_eq!(chunk.pop().map(|failed| failed.index), Some(23));
        assert_eq!(indices(&mut chunk), (24..33).collect::<Vec<_>>());
        // The first after a missing index is not on the fast path.
        assert_eq!(chunk.pop().map(|task| task.index), Some(34));
        assert_eq!(indices(&mut chunk), (35..40).collect::<Vec<_>>());
        assert_eq!((chunk.len(), chunk.delivered()), (0, 19));
    }

    #[test]
    fn what_a_consumer_that_panics_leaves_is_still_there() {
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let mut chunk = Chunk::new();
        chunk.inputs = (10..13).collect();
        run_once(&mut chunk, &stop);
        chunk.seal();
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
            chunk.fold_fast((), |(), task| {
                if task.index == 1 {
                    panic::resume_unwind(Box::new("no hook is called"));
                }
            });
        }));
        assert!(panicked.is_err());
        assert_eq!((chunk.len(), chunk.delivered()), (1, 2));
        assert_eq!(chunk.pop_fast().map(|task| task.input), Some(12));
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
