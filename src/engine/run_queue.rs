//! The chunks of a stage that wait to be run, and who takes what.
//!
//! Jobs on the pool are permits: each takes one chunk from here. So whoever is free takes what waits, also the
//! consumer where it is a worker itself, and a run that is left takes back what nobody has begun.
//!
//! # Invariants
//!
//! 1. Queued chunks are never more than the permits that have not begun, the workers that are parked and those that
//!    will look here again. So each chunk is taken.
//! 2. A worker leaves once nothing waits, or while as many others as can work are there or have a permit. Else it takes
//!    what is queued, or parks until a chunk that another one runs has had its slice, and takes half of what waits
//!    there. So an item waits for a slice at most while somebody has nothing to do.
//! 3. Whenever a chunk of several items comes, there are permits for as many workers as can share it.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::engine::chunk::BoxedChunk;
use crate::engine::open_chunk::{OpenChunk, Taken};
use crate::util::seeded_bugs;
use crate::util::sync::atomic::{AtomicUsize, Ordering};
use crate::util::sync::channel::{Receiver, Sender, bounded};
use crate::util::sync::thread::Thread;
use crate::util::sync::{Mutex, MutexGuard, now};

/// How long a chunk belongs to one worker. It is planned to take less.
const SLICE: Duration = Duration::from_micros(150);

/// The chunks of one stage that wait to be run, and those that are being run.
#[derive(Debug)]
pub(crate) struct RunQueue<I, T, E> {
    state: Mutex<State<I, T, E>>,
    /// Wakes one parked worker, which wakes the next if there is more to do.
    notify: Sender<()>,
    notified: Receiver<()>,
    /// How many can be at work at once.
    width: AtomicUsize,
    /// What pauses the run, and says how wide it is. Looked at under the lock.
    control: Option<Control>,
}

#[derive(Debug)]
struct State<I, T, E> {
    queued: VecDeque<BoxedChunk<I, T, E>>,
    /// The items in those, and in the chunks that are being run.
    items: usize,
    /// Jobs that were handed to the pool and have not begun.
    permits: usize,
    /// Jobs that have begun and not ended, parked ones included.
    running: usize,
    parked: usize,
    /// Those that have found nothing, and will look again within a moment.
    looking: usize,
    /// One for each worker that runs a chunk, and those that nobody uses.
    slots: Vec<Arc<OpenChunk<I, T, E>>>,
    /// How many items were put into each, without those that others took from it.
    items_in_slot: Vec<usize>,
    /// Those that nobody uses.
    free_slots: Vec<usize>,
    /// Nothing is taken any more.
    is_closed: bool,
}

/// What a worker does next.
pub(crate) enum Step<I, T, E> {
    Run(Taken<I, T, E>),
    /// Waits until then: there may be something to share.
    Park(Instant),
    /// Tells the caller that there is nothing, and looks once more a moment later.
    Idle,
    /// Leaves what is queued to others.
    Yield,
    /// Leaves, as there is nothing to do.
    Leave,
}

/// What a worker may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Whatever is queued: its permit has just begun.
    First,
    /// What nobody else has a permit for; anything, if fewer others are there than can work. It looks again before it leaves.
    Again,
    /// The same, after [`Step::Idle`]: it leaves or parks if there is nothing.
    AfterIdle,
    /// The same, after it was parked or has come from the stage before.
    Last,
}

/// What can be taken from those that run.
enum Share<I, T, E> {
    /// Half of what waits in a chunk that was begun at this time.
    Part(BoxedChunk<I, T, E>, Instant),
    /// Something may be taken from then on.
    NotYet(Instant),
    Nothing,
}

impl<I, T, E> RunQueue<I, T, E> {
    pub(crate) fn new(control: Option<Control>) -> Self {
        let (notify, notified) = bounded(1);
        let state = State {
            queued: VecDeque::new(),
            items: 0,
            permits: 0,
            running: 0,
            parked: 0,
            looking: 0,
            slots: Vec::new(),
            items_in_slot: Vec::new(),
            free_slots: Vec::new(),
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            notify,
            notified,
            width: AtomicUsize::new(1),
            control,
        }
    }

    fn state(&self) -> MutexGuard<'_, State<I, T, E>> {
        // Nothing that could panic is done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_one(&self) {
        let _ = self.notify.try_send(());
    }

    pub(crate) fn set_width(&self, width: usize) {
        self.width.store(width, Ordering::Relaxed);
    }

    /// How many may be at work at once.
    pub(crate) fn width(&self) -> usize {
        let width = self.width.load(Ordering::Relaxed);
        match &self.control {
            None => width,
            Some(control) => width.min(control.limit()),
        }
    }

    /// Whether there are fewer items than can be at work at once.
    pub(crate) fn is_idle(&self) -> bool {
        self.state().items < self.width()
    }

    /// Whether the run can be paused.
    pub(crate) fn is_controlled(&self) -> bool {
        self.control.is_some()
    }

    fn is_paused(&self) -> bool {
        self.control.as_ref().is_some_and(Control::is_paused)
    }

    /// Queues a chunk. Returns how many permits the pool is to be given; or the chunk, where nothing begins any more.
    pub(crate) fn push(&self, chunk: BoxedChunk<I, T, E>) -> Result<usize, BoxedChunk<I, T, E>> {
        let mut state = self.state();
        if state.is_closed {
            return Err(chunk);
        }
        state.items += chunk.pending.len();
        state.queued.push_back(chunk);
        let mut permits = 0;
        if state.queued.len() > state.permits + state.parked + state.looking {
            // Those who may work under a control look again before they leave.
            permits = usize::from(!self.is_controlled());
        } else if state.parked > 0 {
            self.wake_one();
        }
        let permits = permits.max(self.missing(&state));
        state.permits += permits;
        Ok(permits)
    }

    /// How many permits the pool is to be given now that the run's control has changed.
    pub(crate) fn follow_control(&self) -> usize {
        let mut state = self.state();
        let permits = self.missing(&state);
        state.permits += permits;
        permits
    }

    /// How many permits are missing for all to be there who may share in what waits.
    fn missing(&self, state: &State<I, T, E>) -> usize {
        let is_forgotten = seeded_bugs::has("pause forgotten") && self.is_controlled();
        if self.is_paused() || is_forgotten {
            return 0;
        }
        let sharers = state.items.min(self.width());
        sharers.saturating_sub(state.permits + state.running)
    }

    /// Takes a chunk that was never queued, for a thread of the pool that runs it at once. Gives it back where nothing
    /// begins any more.
    pub(crate) fn take_at_once(
        &self,
        chunk: BoxedChunk<I, T, E>,
    ) -> Result<Taken<I, T, E>, BoxedChunk<I, T, E>> {
        let mut state = self.state();
        if state.is_closed {
            return Err(chunk);
        }
        state.items += chunk.pending.len();
        let epoch = self.epoch();
        Ok(state.open(chunk, None, epoch))
    }

    fn epoch(&self) -> u64 {
        self.control.as_ref().map_or(0, Control::epoch)
    }

    /// How many permits the pool is to be given, for others to share in `items` that one worker has taken. `visitors`: how
    /// many others will look here anyway.
    pub(crate) fn share_out(&self, items: usize, visitors: usize) -> usize {
        let mut state = self.state();
        let sharers = items.min(self.width()).saturating_sub(1);
        let permits = sharers.saturating_sub(state.permits + state.running + visitors);
        state.permits += permits;
        permits
    }

    /// How many others than this worker are here, or will be.
    pub(crate) fn others(&self) -> usize {
        let state = self.state();
        (state.permits + state.running).saturating_sub(1)
    }

    /// A worker of the stage before comes to share in what is here. Returns whether there may be something.
    pub(crate) fn visit(&self) -> bool {
        let mut state = self.state();
        let is_worth_it = !state.is_closed && state.items > 0;
        state.running += usize::from(is_worth_it);
        is_worth_it
    }

    /// A permit begins.
    pub(crate) fn begin(&self) {
        let mut state = self.state();
        state.permits -= 1;
        state.running += 1;
    }

    /// The pool has dropped a permit. Returns the chunk that nobody will come for.
    pub(crate) fn drop_permit(&self) -> Option<BoxedChunk<I, T, E>> {
        let mut state = self.state();
        state.permits -= 1;
        if state.queued.len() <= state.permits + state.parked + state.looking {
            return None;
        }
        let chunk = state.queued.pop_front()?;
        state.items -= chunk.pending.len();
        Some(chunk)
    }

    /// What a worker does next.
    pub(crate) fn next(&self, look: Look) -> Step<I, T, E> {
        let mut state = self.state();
        state.looking -= usize::from(look == Look::AfterIdle);
        // Before the look at the pause: a change after that stops what is opened here.
        let epoch = self.epoch();
        let mut until = None;
        // Whoever changes that has permits given afterwards, for those who are not here any more.
        if self.is_controlled() && (self.is_paused() || state.running > self.width()) {
            if matches!(look, Look::First | Look::Again) {
                state.looking += 1;
                return Step::Idle;
            }
            state.running -= 1;
            return Step::Leave;
        }
        if !state.is_closed {
            // Whoever else uses the pool must have a turn as well, so a worker leaves after each chunk; but only
            // while enough others are there, or on their way, to share in what is left.
            let others = state.permits + state.running - 1;
            let may_take = look == Look::First || state.is_short() || others < self.width();
            if !may_take && !state.queued.is_empty() {
                state.running -= 1;
                return Step::Yield;
            }
            if let Some(chunk) = state.queued.pop_front() {
                if state.is_short() && state.parked > 0 {
                    self.wake_one();
                }
                return Step::Run(state.open(chunk, None, epoch));
            }
            match state.share(|since| since + SLICE) {
                Share::Part(chunk, since) => {
                    return Step::Run(state.open(chunk, Some(since), epoch));
                }
                Share::NotYet(time) => until = Some(time),
                Share::Nothing => {}
            }
        }
        match (look, until) {
            (Look::Again, _) => {
                state.looking += 1;
                Step::Idle
            }
            (_, Some(until)) => {
                state.parked += 1;
                Step::Park(until)
            }
            (_, None) => {
                state.running -= 1;
                Step::Leave
            }
        }
    }

    /// The same for a consumer on a thread of the pool: it takes whatever nobody runs.
    #[inline(never)]
    pub(crate) fn next_for_consumer(&self) -> Option<Taken<I, T, E>> {
        let mut state = self.state();
        let epoch = self.epoch();
        if self.is_controlled() && (self.is_paused() || state.running >= self.width()) {
            return None;
        }
        if let Some(chunk) = state.queued.pop_front() {
            return Some(state.open(chunk, None, epoch));
        }
        match state.share(|since| since) {
            Share::Part(chunk, since) => Some(state.open(chunk, Some(since), epoch)),
            Share::NotYet(_) | Share::Nothing => None,
        }
    }

    /// What was taken was run. What is `left` of it, after a change of the run's control, is queued again; it is given back
    /// where nothing begins any more.
    pub(crate) fn put_back(
        &self,
        slot: usize,
        left: Option<BoxedChunk<I, T, E>>,
    ) -> Result<(), BoxedChunk<I, T, E>> {
        let mut state = self.state();
        state.items -= state.items_in_slot[slot];
        state.free_slots.push(slot);
        match left {
            Some(chunk) if state.is_closed => Err(chunk),
            Some(chunk) => {
                state.items += chunk.pending.len();
                state.queued.push_front(chunk);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Waits until `until`, or for a chunk.
    pub(crate) fn park(&self, until: Instant) {
        let _ = self.notified.recv_deadline(until);
        let mut state = self.state();
        state.parked -= 1;
        if state.is_closed && state.parked > 0 {
            self.wake_one();
        }
    }

    /// Nothing begins any more. Returns what nobody has begun.
    pub(crate) fn close(&self) -> VecDeque<BoxedChunk<I, T, E>> {
        let mut state = self.state();
        state.is_closed = true;
        if state.parked > 0 {
            self.wake_one();
        }
        let left = mem::take(&mut state.queued);
        state.items -= left.iter().map(|chunk| chunk.pending.len()).sum::<usize>();
        left
    }

    /// Gives what has finished in chunks that go on to `take`, which must not run user code.
    pub(crate) fn flush(&self, mut take: impl FnMut(BoxedChunk<I, T, E>)) {
        for open in self.slots() {
            // First: what finishes after the look is laid where the next one finds it, or is handed over.
            open.set_wanted(true);
            let mut state = open.state();
            if let Some(finished) = state.take_finished() {
                take(finished);
            }
        }
    }

    /// The threads that run tasks, and the indices of those.
    pub(crate) fn calls(&self) -> Vec<(Thread, Range<u64>)> {
        let slots = self.slots();
        slots
            .iter()
            .filter_map(|open| open.state().call())
            .collect()
    }

    fn slots(&self) -> Vec<Arc<OpenChunk<I, T, E>>> {
        self.state().slots.clone()
    }
}

impl<I, T, E> State<I, T, E> {
    /// Whether a chunk is queued that no permit will come for.
    fn is_short(&self) -> bool {
        self.queued.len() > self.permits
    }

    fn open(
        &mut self,
        mut chunk: BoxedChunk<I, T, E>,
        since: Option<Instant>,
        epoch: u64,
    ) -> Taken<I, T, E> {
        chunk.epoch = epoch;
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(Arc::new(OpenChunk::new()));
            self.items_in_slot.push(0);
            self.items_in_slot.len() - 1
        });
        self.items_in_slot[slot] = chunk.pending.len();
        self.slots[slot].open(chunk, slot, since)
    }

    /// Takes half of what waits in the chunk where most does, of those that are due.
    fn share(&mut self, due: impl Fn(Instant) -> Instant) -> Share<I, T, E> {
        if seeded_bugs::has("rest not shared out") {
            return Share::Nothing;
        }
        let mut time = None;
        loop {
            let mut most: Option<(usize, usize)> = None;
            let mut next: Option<Instant> = None;
            for (slot, open) in self.slots.iter().enumerate() {
                let state = open.state();
                let waiting = state.waiting();
                if waiting == 0 {
                    continue;
                }
                let due = due(state.since());
                if *time.get_or_insert_with(now) < due {
                    next = Some(next.map_or(due, |next| next.min(due)));
                } else if most.is_none_or(|(most, _)| most < waiting) {
                    most = Some((waiting, slot));
                }
            }
            let Some((_, slot)) = most else {
                return next.map_or(Share::Nothing, Share::NotYet);
            };
            let open = &self.slots[slot];
            // What its worker has begun and not run is wanted as well.
            open.set_wanted(true);
            let mut state = open.state();
            if let Some(chunk) = state.split() {
                self.items_in_slot[slot] -= chunk.pending.len();
                return Share::Part(chunk, state.since());
            }
            // Its worker has gone on meanwhile, but something may wait in another one.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::chunk::Chunk;

    type Queue = RunQueue<u32, u32, ()>;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn queue(width: usize) -> Queue {
        let queue = Queue::new(None);
        queue.set_width(width);
        queue
    }

    fn chunk(items: u32) -> BoxedChunk<u32, u32, ()> {
        let mut chunk = Box::new(Chunk::new());
        chunk.inputs = (0..items).collect();
        chunk.set_pending();
        chunk
    }

    /// So many have a permit, work, are parked and are about to look again.
    fn set_workers(queue: &Queue, [permits, running, parked, looking]: [usize; 4]) {
        let mut state = queue.state();
        state.permits = permits;
        state.running = running;
        state.parked = parked;
        state.looking = looking;
    }

    fn workers(queue: &Queue) -> [usize; 4] {
        let state = queue.state();
        [state.permits, state.running, state.parked, state.looking]
    }

    fn push(queue: &Queue, items: u32) -> Option<usize> {
        queue.push(chunk(items)).ok()
    }

    fn push_two(queue: &Queue, items: u32) {
        assert!((0..2).all(|_| push(queue, items).is_some()));
    }

    fn is_woken(queue: &Queue) -> bool {
        queue.notified.try_recv().is_ok()
    }

    #[test]
    fn there_are_permits_for_all_who_can_share_and_for_each_chunk() {
        let four = queue(4);
        let pushed = [3, 1, 1, 1, 1].map(|items| push(&four, items));
        // For three items, for the fourth, none while there are as many as chunks, and one for the fifth chunk.
        assert_eq!(pushed, [3, 1, 0, 0, 1].map(Some));
        assert_eq!(workers(&four), [5, 0, 0, 0]);
        assert_eq!(four.state().items, 7);
        let one = queue(1);
        assert_eq!([5, 5].map(|items| push(&one, items)), [Some(1); 2]);
        // Those who are parked or look again will come as well.
        for (there, chunks) in [
            ([1, 9, 0, 1], 2),
            ([0, 9, 2, 0], 2),
            ([2, 9, 0, 1], 3),
            ([0, 9, 2, 1], 3),
            ([1, 9, 1, 1], 3),
        ] {
            let queue = queue(1);
            set_workers(&queue, there);
            assert!((0..chunks).all(|_| push(&queue, 1) == Some(0)), "{there:?}");
            assert_eq!(push(&queue, 1), Some(1));
        }
    }

    #[test]
    fn who_is_parked_is_woken_for_a_chunk() {
        for (parked, is_expected) in [(0, false), (1, true), (2, true)] {
            let queue = queue(1);
            set_workers(&queue, [1, 9, parked, 0]);
            push(&queue, 1);
            assert_eq!(is_woken(&queue), is_expected);
            // Whoever takes one wakes the next, if no permit comes for what is left.
            push(&queue, 1);
            is_woken(&queue);
            set_workers(&queue, [0, 1, parked, 0]);
            assert!(matches!(queue.next(Look::First), Step::Run(_)));
            assert_eq!(is_woken(&queue), is_expected);
            // And one that wakes up after the end wakes the next.
            set_workers(&queue, [0, 1, parked + 1, 0]);
            queue.close();
            assert!(is_woken(&queue));
            queue.park(now());
            assert_eq!(queue.state().parked, parked);
            assert_eq!(is_woken(&queue), is_expected);
        }
        let queue = queue(1);
        set_workers(&queue, [1, 1, 1, 0]);
        push_two(&queue, 1);
        is_woken(&queue);
        set_workers(&queue, [1, 1, 1, 0]);
        // For the one that is left there is a permit.
        assert!(matches!(queue.next(Look::First), Step::Run(_)));
        assert!(!is_woken(&queue));
        queue.close();
    }

    #[test]
    fn a_control_says_who_may_be_there() {
        let control = Control::new();
        let queue = Queue::new(Some(control.clone()));
        queue.set_width(4);
        control.pause();
        assert_eq!(push(&queue, 3), Some(0));
        set_workers(&queue, [0, 1, 0, 0]);
        assert!(matches!(queue.next(Look::Last), Step::Leave));
        assert!(queue.next_for_consumer().is_none());
        control.resume();
        set_workers(&queue, [0, 0, 0, 0]);
        assert_eq!(queue.follow_control(), 3);
        control.set_concurrency(2);
        assert_eq!(queue.width(), 2);
        // One more than may work.
        set_workers(&queue, [0, 3, 0, 0]);
        assert!(matches!(queue.next(Look::First), Step::Idle));
        assert_eq!(workers(&queue), [0, 3, 0, 1]);
        assert!(matches!(queue.next(Look::AfterIdle), Step::Leave));
        assert_eq!(workers(&queue), [0, 2, 0, 0]);
        assert!(queue.next_for_consumer().is_none());
        assert!(matches!(queue.next(Look::First), Step::Run(_)));
    }

    #[test]
    fn a_worker_leaves_what_is_queued_to_enough_others() {
        // Besides two permits, and without itself: 1, 2 and 3.
        for (running, yields) in [(0, false), (1, true), (2, true)] {
            let queue = queue(2);
            push_two(&queue, 1);
            set_workers(&queue, [2, running, 0, 0]);
            assert_eq!(matches!(queue.next(Look::Again), Step::Yield), yields);
        }
        // But not what nobody has a permit for, nor what its own permit was for.
        let short = queue(1);
        push_two(&short, 1);
        set_workers(&short, [1, 5, 0, 0]);
        assert!(matches!(short.next(Look::Again), Step::Run(_)));
        assert!(matches!(short.next(Look::Again), Step::Yield));
        assert_eq!(workers(&short), [1, 4, 0, 0]);
        assert!(matches!(short.next(Look::First), Step::Run(_)));
        assert!(matches!(short.next(Look::Again), Step::Idle));
    }

    #[test]
    fn what_is_run_at_once_is_shared_with_those_who_are_missing() {
        let share = |workers, visitors| {
            let queue = queue(4);
            set_workers(&queue, workers);
            let permits = queue.share_out(10, visitors);
            assert_eq!(queue.state().permits, workers[0] + permits);
            permits
        };
        assert_eq!(share([0, 0, 0, 0], 0), 3);
        assert_eq!(share([1, 2, 0, 0], 0), 0);
        assert_eq!(share([1, 1, 0, 0], 1), 0);
        assert_eq!(share([0, 1, 0, 0], 1), 1);
        let queue = queue(4);
        assert_eq!(queue.share_out(2, 0), 1);
        set_workers(&queue, [2, 3, 0, 0]);
        assert_eq!(queue.others(), 4);
    }

    #[test]
    fn a_visit_is_worth_it_while_there_are_items() {
        let queue = queue(2);
        assert!(!queue.visit());
        push(&queue, 1);
        assert!(queue.visit());
        assert_eq!(queue.state().running, 1);
        assert_eq!(queue.close().len(), 1);
        assert_eq!(queue.state().items, 0);
        queue.state().items = 1;
        assert!(!queue.visit());
    }

    #[test]
    fn a_permit_that_is_dropped_takes_what_nobody_comes_for() {
        let drop_one = |workers| {
            let queue = queue(1);
            push_two(&queue, 3);
            set_workers(&queue, workers);
            let chunk = queue.drop_permit();
            let left = if chunk.is_some() { 3 } else { 6 };
            assert_eq!(queue.state().permits, workers[0] - 1);
            assert_eq!(queue.state().items, left);
            chunk.is_some()
        };
        assert!(drop_one([2, 0, 0, 0]));
        assert!(drop_one([1, 0, 1, 0]));
        assert!(!drop_one([3, 0, 0, 0]));
        assert!(!drop_one([1, 0, 1, 1]));
        assert!(!drop_one([2, 0, 1, 0]));
        assert!(!drop_one([2, 0, 0, 1]));
    }

    #[test]
    fn half_of_the_most_that_waits_is_shared() {
        for (waiting, taken_from) in [([4, 10], 1), ([10, 4], 0), ([6, 6], 0)] {
            let queue = queue(3);
            // Of each, one item is begun at once.
            let taken = waiting.map(|items| queue.take_at_once(chunk(items + 1)).ok());
            assert_eq!(queue.state().items as u32, waiting[0] + waiting[1] + 2);
            let since = queue.state().slots[0].state().since();
            match queue.state().share(|since| since + HOUR) {
                Share::NotYet(time) => assert_eq!(time, since + HOUR),
                _ => panic!("nothing is due for an hour"),
            }
            match queue.state().share(|since| since) {
                Share::Part(part, _) => {
                    assert_eq!(part.pending.len() as u32, waiting[taken_from].div_ceil(2));
                }
                _ => panic!("something waits"),
            }
            let left = waiting[taken_from] / 2 + 1;
            assert_eq!(queue.state().items_in_slot[taken_from] as u32, left);
            drop(taken);
        }
    }

    #[test]
    fn what_is_left_is_queued_again_or_given_back() {
        let queue = queue(2);
        let taken = queue.take_at_once(chunk(3)).ok().unwrap();
        let (_, slot) = taken.close();
        assert!(queue.put_back(slot, Some(chunk(2))).is_ok());
        assert_eq!(queue.state().items, 2);
        assert_eq!(queue.state().queued.len(), 1);
        queue.close();
        assert!(queue.take_at_once(chunk(3)).is_err() && queue.push(chunk(1)).is_err());
        queue.state().items_in_slot[slot] = 0;
        assert!(queue.put_back(slot, Some(chunk(2))).is_err());
    }

    #[test]
    fn a_chunk_that_has_just_begun_is_left_alone() {
        let queue = queue(2);
        let taken = queue.take_at_once(chunk(100)).ok();
        // As if it began in an hour, so that no pause of this thread is too long.
        let later = now() + HOUR;
        let open = Arc::clone(&queue.state().slots[0]);
        open.state().begin_at(later);
        set_workers(&queue, [0, 2, 0, 0]);
        match queue.next(Look::Last) {
            Step::Park(until) => assert_eq!(until, later + SLICE),
            _ => panic!("nothing is to be shared yet"),
        }
        drop(taken);
    }
}
