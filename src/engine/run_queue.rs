//! What a run has handed out and nobody has begun, and who works on it.
//!
//! Jobs on the spawner are permits: each takes one chunk from here. So whoever is free takes what waits, also the
//! consumer where it is a worker itself, and a run that is left takes back what nobody has begun.
//!
//! # Invariants
//!
//! 1. Queued chunks are never more than the permits that have not begun, the workers that are parked and those that
//!    will look here again. So each chunk is taken, whoever takes which.
//! 2. A worker leaves once nothing waits, or while as many others as can work are there or have a permit. Else it takes
//!    what is queued, or parks until a chunk that another one runs has had its slice, and takes half of what waits
//!    there. So an item waits for a slice at most while somebody has nothing to do.
//! 3. Whenever a chunk of several items comes, there are permits for as many workers as can share it.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::chunk::Chunk;
use crate::engine::signals::Signals;
use crate::observe::instrument::Instrument;
use crate::util::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::util::sync::channel::{Receiver, Sender, bounded};
use crate::util::sync::thread::{self, Thread};
use crate::util::sync::{Mutex, MutexGuard, now};

/// How long a chunk belongs to one worker. It is planned to take less.
const SLICE: Duration = Duration::from_micros(150);

/// The chunks of one run that wait to be run, and those that are being run.
#[derive(Debug)]
pub(crate) struct RunQueue<I, T, E> {
    state: Mutex<State<I, T, E>>,
    /// Wakes one parked worker, which wakes the next if there is more to do.
    waker: Sender<()>,
    wakes: Receiver<()>,
    /// How many can be at work at once.
    width: AtomicUsize,
}

#[derive(Debug)]
struct State<I, T, E> {
    queued: VecDeque<Box<Chunk<I, T, E>>>,
    /// The items in those, and in the chunks that are being run.
    items: usize,
    /// Jobs that were handed to the spawner and have not begun.
    permits: usize,
    /// Jobs that have begun and not ended, parked ones included.
    running: usize,
    parked: usize,
    /// One for each worker that runs a chunk, and those that nobody uses.
    slots: Vec<Arc<Slot<I, T, E>>>,
    /// How many items were taken into each, and not from it by others.
    taken: Vec<usize>,
    free: Vec<usize>,
    /// Nothing is taken any more.
    is_closed: bool,
}

/// A chunk, or a part of one, that was taken; its first item is begun. So as long as a worker has something to run, it
/// has an item that is not answered.
pub(crate) struct Taken<I, T, E> {
    pub(crate) chunk: Box<Chunk<I, T, E>>,
    pub(crate) slot: Arc<Slot<I, T, E>>,
    place: usize,
    /// Whether it was taken from a worker.
    pub(crate) is_part: bool,
    pub(crate) start: Instant,
}

/// What a worker is to do.
pub(crate) enum Next<I, T, E> {
    Run(Taken<I, T, E>),
    /// Wait until then: there may be something to share.
    Park(Instant),
    /// Look once more, a moment later.
    Spin,
    Leave,
}

/// What a worker may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Whatever is queued: its permit has just begun.
    First,
    /// What nobody else has a permit for. It looks again before it leaves.
    Again,
    /// The same, and it leaves or parks if there is nothing.
    Last,
}

impl<I, T, E> RunQueue<I, T, E> {
    pub(crate) fn new() -> Self {
        let (waker, wakes) = bounded(1);
        let state = State {
            queued: VecDeque::new(),
            items: 0,
            permits: 0,
            running: 0,
            parked: 0,
            slots: Vec::new(),
            taken: Vec::new(),
            free: Vec::new(),
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            waker,
            wakes,
            width: AtomicUsize::new(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<I, T, E>> {
        // Nothing that could panic is done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_one(&self) {
        let _ = self.waker.try_send(());
    }

    pub(crate) fn set_width(&self, width: usize) {
        self.width.store(width, Ordering::Relaxed);
    }

    pub(crate) fn width(&self) -> usize {
        self.width.load(Ordering::Relaxed)
    }

    /// Queues a chunk. Returns how many permits its spawner is to be given; or the chunk, where nothing begins any more.
    pub(crate) fn push(&self, chunk: Box<Chunk<I, T, E>>) -> Result<usize, Box<Chunk<I, T, E>>> {
        let mut state = self.state();
        if state.is_closed {
            return Err(chunk);
        }
        state.items += chunk.rest.len();
        state.queued.push_back(chunk);
        let mut permits = 0;
        if state.queued.len() > state.permits + state.parked {
            permits = 1;
        } else if state.parked > 0 {
            self.wake_one();
        }
        let sharers = state.items.min(self.width());
        permits = permits.max(sharers.saturating_sub(state.permits + state.running));
        state.permits += permits;
        Ok(permits)
    }

    /// Takes a chunk that was never queued, for a thread of the spawner that runs it at once. `permits`: how many the spawner
    /// is to be given besides, for others to share in it. Gives the chunk back where nothing begins any more.
    pub(crate) fn take_at_once(
        &self,
        chunk: Box<Chunk<I, T, E>>,
        permits: &mut usize,
    ) -> Result<Taken<I, T, E>, Box<Chunk<I, T, E>>> {
        let mut state = self.state();
        if state.is_closed {
            return Err(chunk);
        }
        let sharers = chunk.rest.len().min(self.width()).saturating_sub(1);
        *permits = sharers.saturating_sub(state.permits + state.running);
        state.permits += *permits;
        state.items += chunk.rest.len();
        Ok(self.take(&mut state, chunk, None))
    }

    /// A permit begins.
    pub(crate) fn begin(&self) {
        let mut state = self.state();
        state.permits -= 1;
        state.running += 1;
    }

    /// A permit was dropped by its spawner. Returns the chunk that nobody will come for.
    pub(crate) fn forsake(&self) -> Option<Box<Chunk<I, T, E>>> {
        let mut state = self.state();
        state.permits -= 1;
        if state.queued.len() <= state.permits + state.parked {
            return None;
        }
        let chunk = state.queued.pop_front()?;
        state.items -= chunk.rest.len();
        Some(chunk)
    }

    /// What a worker is to do next.
    pub(crate) fn next(&self, look: Look) -> Next<I, T, E> {
        let mut state = self.state();
        let mut until = None;
        if !state.is_closed {
            // Whoever else uses the spawner is to have a turn as well, so a worker goes after each chunk; but only
            // while enough others are there, or on their way, to share in what is left.
            let others = state.permits + state.running - 1;
            let may_take = look == Look::First || state.is_owed() || others < self.width();
            if !may_take && !state.queued.is_empty() {
                state.running -= 1;
                return Next::Leave;
            }
            if let Some(chunk) = state.queued.pop_front() {
                if state.is_owed() && state.parked > 0 {
                    self.wake_one();
                }
                return Next::Run(self.take(&mut state, chunk, None));
            }
            match state.steal(|since| since + SLICE) {
                Stolen::Part(chunk, since) => {
                    return Next::Run(self.take(&mut state, chunk, Some(since)));
                }
                Stolen::NotYet(time) => until = Some(time),
                Stolen::Nothing => {}
            }
        }
        match (look, until) {
            (Look::Again, _) => Next::Spin,
            (_, Some(until)) => {
                state.parked += 1;
                Next::Park(until)
            }
            (_, None) => {
                state.running -= 1;
                Next::Leave
            }
        }
    }

    /// The same for a consumer on a thread of the spawner: it takes whatever nobody runs.
    #[inline(never)]
    pub(crate) fn next_for_consumer(&self) -> Option<Taken<I, T, E>> {
        let mut state = self.state();
        if let Some(chunk) = state.queued.pop_front() {
            return Some(self.take(&mut state, chunk, None));
        }
        match state.steal(|since| since) {
            Stolen::Part(chunk, since) => Some(self.take(&mut state, chunk, Some(since))),
            Stolen::NotYet(_) | Stolen::Nothing => None,
        }
    }

    fn take(
        &self,
        state: &mut State<I, T, E>,
        mut chunk: Box<Chunk<I, T, E>>,
        since: Option<Instant>,
    ) -> Taken<I, T, E> {
        let place = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Arc::new(Slot::new()));
            state.taken.push(0);
            state.taken.len() - 1
        });
        state.taken[place] = chunk.rest.len();
        let slot = Arc::clone(&state.slots[place]);
        let is_part = since.is_some();
        let start = now();
        // Before the lock is released: whoever looks next is to see what waits here.
        slot.open(&mut chunk, start, since);
        slot.is_wanted.store(is_part, Ordering::Relaxed);
        Taken {
            chunk,
            slot,
            place,
            is_part,
            start,
        }
    }

    /// What was taken has been run.
    pub(crate) fn put_back(&self, place: usize) {
        let mut state = self.state();
        state.items -= state.taken[place];
        state.free.push(place);
    }

    /// Waits until `until`, or for a chunk.
    pub(crate) fn park(&self, until: Instant) {
        let _ = self.wakes.recv_deadline(until);
        let mut state = self.state();
        state.parked -= 1;
        if state.is_closed && state.parked > 0 {
            self.wake_one();
        }
    }

    /// Nothing begins any more. Returns what nobody has begun.
    pub(crate) fn close(&self) -> VecDeque<Box<Chunk<I, T, E>>> {
        let mut state = self.state();
        state.is_closed = true;
        if state.parked > 0 {
            self.wake_one();
        }
        let left = mem::take(&mut state.queued);
        state.items -= left.iter().map(|chunk| chunk.rest.len()).sum::<usize>();
        left
    }

    /// Gives what has finished in chunks that go on to `take`, which runs no code of others.
    pub(crate) fn flush(&self, mut take: impl FnMut(Box<Chunk<I, T, E>>)) {
        let slots = self.state().slots.clone();
        for slot in &slots {
            // First: what finishes after the look is laid where the next one finds it, or is answered.
            slot.is_wanted.store(true, Ordering::Relaxed);
            let opened = &mut *slot.opened();
            if let Some(done) = opened.take_done() {
                take(done);
            }
        }
    }

    /// The threads that run tasks, and the indices of those.
    pub(crate) fn calls(&self) -> Vec<(Thread, Range<u64>)> {
        let slots = self.state().slots.clone();
        let calls = slots.iter().filter_map(|slot| {
            let opened = slot.opened();
            Some((opened.worker.clone()?, opened.begun.clone()))
        });
        calls.collect()
    }
}

enum Stolen<I, T, E> {
    Part(Box<Chunk<I, T, E>>, Instant),
    /// Something may be taken from then on.
    NotYet(Instant),
    Nothing,
}

impl<I, T, E> State<I, T, E> {
    /// Whether a chunk is queued that no permit will come for.
    fn is_owed(&self) -> bool {
        self.queued.len() > self.permits
    }

    /// Takes half of what waits in the chunk where most does, of those that were begun long enough ago.
    fn steal(&mut self, due: impl Fn(Instant) -> Instant) -> Stolen<I, T, E> {
        let mut time = None;
        loop {
            let mut most: Option<(usize, usize)> = None;
            let mut next: Option<Instant> = None;
            for (place, slot) in self.slots.iter().enumerate() {
                let opened = slot.opened();
                let (waiting, due) = (opened.chunk.rest.len(), due(opened.since));
                if waiting == 0 {
                    continue;
                }
                if *time.get_or_insert_with(now) < due {
                    next = Some(next.map_or(due, |next| next.min(due)));
                } else if most.is_none_or(|(most, _)| most < waiting) {
                    most = Some((waiting, place));
                }
            }
            let Some((_, place)) = most else {
                return next.map_or(Stolen::Nothing, Stolen::NotYet);
            };
            let slot = &self.slots[place];
            // What its worker has begun and not run is wanted as well.
            slot.is_wanted.store(true, Ordering::Relaxed);
            if let Some((chunk, since)) = slot.opened().split() {
                self.taken[place] -= chunk.rest.len();
                return Stolen::Part(chunk, since);
            }
            // Its worker has gone on meanwhile, but something may wait in another slot.
        }
    }
}

/// A chunk that a worker runs, as far as others may help themselves to it.
#[derive(Debug)]
pub(crate) struct Slot<I, T, E> {
    /// Held for a moment only, and never while code of others runs.
    opened: Mutex<Opened<I, T, E>>,
    /// Whether others want what is here: its worker begins one item at a time, and lays down what has finished.
    is_wanted: AtomicBool,
}

#[derive(Debug)]
struct Opened<I, T, E> {
    /// What waits, with what has finished before what its worker is at. While nobody works here, the chunk that the next
    /// worker will begin its items in: two that change places.
    chunk: Box<Chunk<I, T, E>>,
    /// The index of the first item that waits.
    next: u64,
    /// When the chunk was begun, and from when on its time was not told yet.
    since: Instant,
    untold: Instant,
    /// Who runs it; `None` if nobody does.
    worker: Option<Thread>,
    /// What was begun last.
    begun: Range<u64>,
}

impl<I, T, E> Slot<I, T, E> {
    fn new() -> Self {
        let now = now();
        Self {
            opened: Mutex::new(Opened {
                chunk: Box::new(Chunk::new()),
                next: 0,
                since: now,
                untold: now,
                worker: None,
                begun: 0..0,
            }),
            is_wanted: AtomicBool::new(false),
        }
    }

    /// Lets others see what waits in `chunk`, and begins its first item, in what `chunk` then is. It is part of one that
    /// was begun at `since`, if it is one.
    fn open(&self, chunk: &mut Box<Chunk<I, T, E>>, start: Instant, since: Option<Instant>) {
        let opened = &mut *self.opened();
        mem::swap(&mut opened.chunk, chunk);
        let whole = &mut opened.chunk;
        // What has finished has the buffer of what waited here before.
        if whole.inputs.capacity() < chunk.rest.capacity() {
            mem::swap(&mut whole.inputs, &mut chunk.rest);
        }
        chunk.first = whole.first;
        chunk.attempts = whole.attempts;
        chunk.is_final = whole.is_final;
        chunk.grain = whole.grain;
        opened.next = whole.first;
        opened.since = since.unwrap_or(start);
        opened.untold = start;
        opened.worker = Some(thread::current());
        opened.begin(chunk, 1);
    }

    fn opened(&self) -> MutexGuard<'_, Opened<I, T, E>> {
        // Nothing that could panic is done under the lock.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I, T, E> Opened<I, T, E> {
    /// The next items are begun, in `chunk`.
    #[inline]
    fn begin(&mut self, chunk: &mut Chunk<I, T, E>, count: usize) {
        let rest = &mut self.chunk.rest;
        chunk.inputs.extend(rest.drain(rest.len() - count..).rev());
        self.begun = self.next..self.next + count as u64;
        self.next = self.begun.end;
    }

    /// Takes what has finished, if there is something.
    fn take_done(&mut self) -> Option<Box<Chunk<I, T, E>>> {
        // Where nobody works, there is nothing either.
        if self.chunk.len() == 0 {
            return None;
        }
        let mut done = self.chunk.take_run();
        self.tell(&mut done);
        Some(done)
    }

    /// Writes down who ran a part, and for how long.
    fn tell(&mut self, part: &mut Chunk<I, T, E>) {
        let now = now();
        part.busy = now - self.untold;
        part.worker = self.worker.as_ref().map(Thread::id);
        self.untold = now;
    }

    /// Takes half of what waits; the last item, if it is one.
    fn split(&mut self) -> Option<(Box<Chunk<I, T, E>>, Instant)> {
        let rest = &mut self.chunk.rest;
        if rest.is_empty() {
            return None;
        }
        let kept = rest.len() / 2;
        let mut part = Box::new(Chunk::new());
        let first = rest.split_off(rest.len() - kept);
        part.rest = mem::replace(rest, first);
        part.first = self.next + kept as u64;
        part.attempts = self.chunk.attempts;
        part.is_final = self.chunk.is_final;
        part.each_before = self.chunk.each_before;
        Some((part, self.since))
    }
}

impl<I, T, E> Taken<I, T, E> {
    /// Begins the next items. Returns whether there were any, and what has finished if whoever is next is flush_requested for it.
    #[inline]
    pub(crate) fn advance(
        &mut self,
        width: usize,
        is_flush_requested: impl FnOnce() -> bool,
    ) -> (bool, Option<Box<Chunk<I, T, E>>>) {
        let chunk = &mut *self.chunk;
        let opened = &mut *self.slot.opened();
        let is_wanted = self.slot.is_wanted.load(Ordering::Relaxed);
        // Under the lock, which a flush_requested consumer has held since it became so: either it has found what is laid down
        // here, or this sees that it is flush_requested.
        let is_flush_requested = is_flush_requested();
        // Those that were begun and not run, if there are any.
        opened.next -= chunk.give_up_begun(&mut opened.chunk.rest) as u64;
        let waiting = opened.chunk.rest.len();
        if waiting == 0 {
            // What has run last is not laid down: with it, its worker lets go of the function.
            return (false, None);
        }
        // Whatever follows may hang: what has finished is to be found here.
        opened.chunk.append(chunk);
        let part = if is_flush_requested {
            opened.take_done()
        } else {
            None
        };
        // Less and less, and the last few one by one: nobody else may have anything left.
        let count = if is_wanted || is_flush_requested {
            1
        } else {
            chunk.grain.min(waiting.div_ceil(2 * width))
        };
        opened.begin(chunk, count);
        (true, part)
    }

    /// Runs what was begun. Returns whether more may follow.
    #[inline]
    pub(crate) fn run<F>(&mut self, f: &F, signals: &Signals, instrument: &impl Instrument) -> bool
    where
        F: Fn(&mut I) -> Result<T, E>,
        E: fmt::Debug,
    {
        let is_wanted = &self.slot.is_wanted;
        self.chunk.run(f, signals, is_wanted, instrument)
    }

    /// Room for what it gives.
    pub(crate) fn reserve(&mut self) {
        let chunk = &mut self.slot.opened().chunk;
        chunk.reserve(1 + chunk.rest.len());
    }

    /// Nobody works on it any more: all that has run, with what has not.
    pub(crate) fn close(self) -> (Box<Chunk<I, T, E>>, usize) {
        let opened = &mut *self.slot.opened();
        let mut chunk = self.chunk;
        chunk.give_up_begun(&mut opened.chunk.rest);
        opened.chunk.append(&mut chunk);
        mem::swap(&mut opened.chunk, &mut chunk);
        if chunk.rest.is_empty() {
            opened.chunk.rest = mem::take(&mut chunk.rest);
        }
        opened.tell(&mut chunk);
        opened.worker = None;
        (chunk, self.place)
    }
}
