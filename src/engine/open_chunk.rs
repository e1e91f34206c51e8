//! A chunk that a worker runs, as far as others may take from it.

use std::mem;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::engine::chunk::{BoxedChunk, Chunk, reuse, split_off_first};
use crate::engine::stop::Stop;
use crate::observe::instrument::Instrument;
use crate::util::sync::atomic::{AtomicBool, Ordering};
use crate::util::sync::thread::{self, Thread};
use crate::util::sync::{Mutex, MutexGuard, now};

/// Where a worker and those who take from it meet. It is used again for chunk after chunk.
#[derive(Debug)]
pub(crate) struct OpenChunk<I, T, E> {
    /// Held for a moment only, and never while user code runs.
    state: Mutex<State<I, T, E>>,
    /// Whether others want what is here: its worker then begins one item at a time.
    is_wanted: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct State<I, T, E> {
    /// What waits, and what has finished before what the worker is at. While no worker is here, the chunk in which the
    /// next one will begin its items: the two change places.
    chunk: BoxedChunk<I, T, E>,
    /// The place of the first item that waits: its index, where none are listed.
    next: u64,
    /// When the chunk was begun.
    since: Instant,
    /// Up to when its worker's time was accounted for: the last hand-over.
    accounted: Instant,
    /// Who runs it; `None` if nobody does.
    worker: Option<Thread>,
    /// What was begun last.
    begun: Range<u64>,
}

impl<I, T, E> OpenChunk<I, T, E> {
    pub(crate) fn new() -> Self {
        let now = now();
        Self {
            state: Mutex::new(State {
                chunk: Box::new(Chunk::new()),
                next: 0,
                since: now,
                accounted: now,
                worker: None,
                begun: 0..0,
            }),
            is_wanted: AtomicBool::new(false),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<I, T, E>> {
        // Nothing that could panic is done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This thread runs `chunk`: others see what waits in it, and its first item is begun. `since`: when the chunk that it
    /// is a part of was begun, if it is one.
    pub(crate) fn open(
        self: &Arc<Self>,
        mut chunk: BoxedChunk<I, T, E>,
        slot: usize,
        since: Option<Instant>,
    ) -> Taken<I, T, E> {
        let start = now();
        let state = &mut *self.state();
        mem::swap(&mut state.chunk, &mut chunk);
        let whole = &mut state.chunk;
        // What has finished gets the buffer of what waited here before.
        reuse(&mut whole.inputs, &mut chunk.pending);
        chunk.attempts = whole.attempts;
        chunk.is_final = whole.is_final;
        chunk.grain = whole.grain;
        chunk.epoch = whole.epoch;
        state.next = whole.first;
        state.since = since.unwrap_or(start);
        state.accounted = start;
        state.worker = Some(thread::current());
        state.begin(&mut chunk, 1);
        self.set_wanted(since.is_some());
        Taken {
            chunk,
            open: Arc::clone(self),
            slot,
            is_part: since.is_some(),
            start,
        }
    }

    /// Notes whether others want what is here.
    pub(crate) fn set_wanted(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Ordering::Relaxed);
    }
}

impl<I, T, E> State<I, T, E> {
    /// How many items wait.
    pub(crate) fn waiting(&self) -> usize {
        self.chunk.pending.len()
    }

    /// When the chunk was begun.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    #[cfg(test)]
    pub(crate) fn begin_at(&mut self, since: Instant) {
        self.since = since;
    }

    /// Who runs it, and the indices of what was begun last.
    pub(crate) fn call(&self) -> Option<(Thread, Range<u64>)> {
        Some((self.worker.clone()?, self.begun.clone()))
    }

    /// Begins the next items, in `chunk`. Their indices follow each other.
    #[inline]
    fn begin(&mut self, chunk: &mut Chunk<I, T, E>, count: usize) {
        let items = self.chunk.pending.by_ref();
        chunk.inputs.extend(items.take(count));
        chunk.first = self.chunk.index_at(self.next);
        self.begun = chunk.first..chunk.first + count as u64;
        self.next += count as u64;
    }

    /// Takes what has finished, if there is something.
    pub(crate) fn take_finished(&mut self) -> Option<BoxedChunk<I, T, E>> {
        // Where nobody works, there is nothing either.
        if self.chunk.len() == 0 {
            return None;
        }
        let mut finished = self.chunk.take_run();
        self.account(&mut finished);
        Some(finished)
    }

    /// Writes down who ran a part, and for how long.
    fn account(&mut self, part: &mut Chunk<I, T, E>) {
        let now = now();
        part.busy = now - self.accounted;
        part.worker = self.worker.as_ref().map(Thread::id);
        self.accounted = now;
    }

    /// Takes half of what waits; the last item, if it is one.
    pub(crate) fn split(&mut self) -> Option<BoxedChunk<I, T, E>> {
        let pending = &mut self.chunk.pending;
        if pending.len() == 0 {
            return None;
        }
        let kept = pending.len() / 2;
        let mut part = Box::new(Chunk::new());
        let first = split_off_first(pending, kept);
        part.pending = mem::replace(pending, first);
        part.first = self.next + kept as u64;
        part.listed.clone_from(&self.chunk.listed);
        part.attempts = self.chunk.attempts;
        part.is_final = self.chunk.is_final;
        part.each_before = self.chunk.each_before;
        Some(part)
    }
}

/// A chunk, or a part of one, that this thread runs. Its first item is begun: as long as a worker has something to run,
/// it has an item that is not accounted for.
pub(crate) struct Taken<I, T, E> {
    /// What was begun.
    pub(crate) chunk: BoxedChunk<I, T, E>,
    open: Arc<OpenChunk<I, T, E>>,
    /// The number of `open` in the run queue.
    slot: usize,
    /// Whether it was taken from a worker.
    pub(crate) is_part: bool,
    pub(crate) start: Instant,
}

impl<I, T, E> Taken<I, T, E> {
    /// Makes room for the results.
    pub(crate) fn reserve(&mut self) {
        let chunk = &mut self.open.state().chunk;
        chunk.reserve(1 + chunk.pending.len());
    }

    /// Runs what was begun. Returns whether more may follow.
    #[inline]
    pub(crate) fn run<F>(
        &mut self,
        f: &F,
        stop: &Stop,
        is_last: bool,
        instrument: &impl Instrument,
    ) -> bool
    where
        F: Fn(&mut I) -> Result<T, E>,
        E: std::fmt::Debug,
    {
        self.chunk
            .run(f, stop, is_last, &self.open.is_wanted, instrument)
    }

    /// Begins the next items. Returns whether there were any, and what has finished if that is to be handed over.
    #[inline]
    pub(crate) fn advance(
        &mut self,
        width: usize,
        should_hand_over: impl FnOnce(Instant) -> bool,
    ) -> (bool, Option<BoxedChunk<I, T, E>>) {
        let chunk = &mut *self.chunk;
        let state = &mut *self.open.state();
        let is_wanted = self.open.is_wanted.load(Ordering::Relaxed);
        // Under the lock. Whoever requests a flush takes the lock after that: either it finds what is laid down
        // here, or this sees the request.
        let should_hand_over = should_hand_over(state.accounted);
        // Those that were begun and not run, if there are any.
        let mut left = chunk.begun_left();
        if left != 0 && is_wanted {
            state.next -= chunk.give_up_begun(&mut state.chunk.pending) as u64;
            left = 0;
        }
        let waiting = state.waiting();
        if waiting + left == 0 {
            // What was run last is not laid down: with it, its worker lets go of the function.
            return (false, None);
        }
        // Whatever follows may hang, so what has finished must be found here.
        state.chunk.append(chunk, left);
        let part = if should_hand_over {
            state.take_finished()
        } else {
            None
        };
        if left != 0 {
            state.begun = chunk.first..chunk.first + left as u64;
            return (true, part);
        }
        // Fewer and fewer, and the last few one by one: others may have nothing left.
        let count = if is_wanted || should_hand_over {
            1
        } else {
            chunk.grain.min(waiting.div_ceil(2 * width))
        };
        let count = state.chunk.run_length(state.next, count);
        state.begin(chunk, count);
        (true, part)
    }

    /// Nobody works on it any more. Returns all that was run, with what was not, and the number of its slot.
    pub(crate) fn close(self) -> (BoxedChunk<I, T, E>, usize) {
        let state = &mut *self.open.state();
        let mut chunk = self.chunk;
        chunk.give_up_begun(&mut state.chunk.pending);
        state.chunk.append(&mut chunk, 0);
        mem::swap(&mut state.chunk, &mut chunk);
        if chunk.pending.len() == 0 {
            state.chunk.pending = mem::take(&mut chunk.pending);
        }
        state.account(&mut chunk);
        state.worker = None;
        (chunk, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::chunk::Listed;
    use crate::observe::instrument::NoInstrument;
    use crate::policy::ErrorPolicy;

    type Open = Arc<OpenChunk<u32, u32, ()>>;

    fn take(open: &Open, items: u32, grain: usize) -> Taken<u32, u32, ()> {
        let mut chunk = Box::new(Chunk::new());
        chunk.inputs = (0..items).collect();
        chunk.set_pending();
        chunk.grain = grain;
        open.open(chunk, 0, None)
    }

    fn run(taken: &mut Taken<u32, u32, ()>, f: impl Fn(u32)) {
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let f = |n: &mut u32| {
            f(*n);
            Ok(*n)
        };
        taken.run(&f, &stop, true, &NoInstrument);
    }

    /// What was begun last.
    fn begun(open: &Open) -> Range<u64> {
        open.state().call().unwrap().1
    }

    #[test]
    fn fewer_and_fewer_are_begun_together() {
        let open = Arc::new(OpenChunk::new());
        let mut taken = take(&open, 101, 1_000);
        for (width, expected) in [(1, 1..51), (3, 51..60), (1, 60..81)] {
            run(&mut taken, |_| {});
            assert!(taken.advance(width, |_| false).0);
            assert_eq!(begun(&open), expected);
        }
    }

    #[test]
    fn one_is_begun_where_others_want_what_is_left_or_wait_for_what_is_done() {
        for (is_wanted, should_hand_over) in [(true, false), (false, true)] {
            let open = Arc::new(OpenChunk::new());
            let mut taken = take(&open, 100, 10);
            run(&mut taken, |_| open.set_wanted(is_wanted));
            let (may_go_on, part) = taken.advance(1, |_| should_hand_over);
            assert!(may_go_on && begun(&open) == (1..2));
            assert_eq!(part.map(|part| part.len()), should_hand_over.then_some(1));
        }
    }

    #[test]
    fn what_is_begun_has_indices_that_follow_each_other() {
        let open = Arc::new(OpenChunk::new());
        let mut listed = Listed::default();
        for index in [7, 4, 5, 9, 1, 2] {
            listed.push(index, None);
        }
        let mut chunk = Box::new(Chunk::new());
        chunk.inputs = vec![7, 4, 5, 9, 1, 2];
        chunk.listed = Some(Arc::new(listed));
        chunk.set_pending();
        chunk.grain = 100;
        let mut taken = open.open(chunk, 0, None);
        for expected in [7..8, 4..6, 9..10, 1..2, 2..3] {
            assert_eq!(begun(&open), expected);
            run(&mut taken, |_| {});
            let may_go_on = taken.advance(1, |_| false).0;
            assert_eq!(may_go_on, expected.start != 2);
        }
    }

    #[test]
    fn what_was_begun_and_is_wanted_can_be_taken() {
        let open = Arc::new(OpenChunk::new());
        let mut taken = take(&open, 100, 10);
        run(&mut taken, |_| {});
        taken.advance(1, |_| false);
        assert_eq!(begun(&open), 1..11);
        run(&mut taken, |n| open.set_wanted(n == 4));
        taken.advance(1, |_| false);
        assert_eq!(begun(&open), 5..6);
        assert_eq!(open.state().waiting(), 94);
        let part = open.state().split().unwrap();
        assert_eq!((part.first, part.pending.len()), (53, 47));
        let (rest, _) = taken.close();
        assert_eq!((rest.len(), rest.pending.len()), (5, 48));
    }

    #[test]
    fn what_follows_a_failure_stays_begun_unless_it_is_wanted() {
        for is_wanted in [false, true] {
            let open = Arc::new(OpenChunk::new());
            let mut taken = take(&open, 100, 10);
            let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
            taken.chunk.is_final = false;
            let fails = |n: &mut u32| {
                open.set_wanted(is_wanted && *n == 4);
                if *n == 4 { Err(()) } else { Ok(*n) }
            };
            let mut ran = Vec::new();
            while taken.run(&fails, &stop, true, &NoInstrument) && taken.advance(1, |_| false).0 {
                ran.push(begun(&open));
            }
            assert_eq!(ran[..2], [1..11, if is_wanted { 5..6 } else { 5..11 }]);
            let (all, _) = taken.close();
            assert_eq!((all.first, all.len(), all.failed()), (0, 100, 1));
        }
    }

    #[test]
    fn what_is_begun_is_run_though_nothing_waits() {
        let open = Arc::new(OpenChunk::new());
        let mut taken = take(&open, 100, 10);
        taken.chunk.is_final = false;
        run(&mut taken, |_| {});
        assert!(taken.advance(1, |_| false).0);
        while open.state().split().is_some() {}
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let fails = |n: &mut u32| if *n == 4 { Err(()) } else { Ok(*n) };
        taken.run(&fails, &stop, true, &NoInstrument);
        assert_eq!(open.state().waiting(), 0);
        assert!(taken.advance(1, |_| false).0);
        assert_eq!(begun(&open), 5..11);
    }

    #[test]
    fn buffers_go_round() {
        let open = Arc::new(OpenChunk::new());
        let mut taken = take(&open, 65, 10);
        taken.reserve();
        assert_eq!(open.state().chunk.inputs.capacity(), 128);
        while {
            run(&mut taken, |_| {});
            taken.advance(1, |_| false).0
        } {}
        taken.close();
        // What finishes next gets the buffer of what waited before.
        let _taken = take(&open, 1, 1);
        assert!(open.state().chunk.inputs.capacity() >= 65);
    }
}
