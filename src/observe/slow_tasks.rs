//! Warns about tasks that run for long.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use thread_local::ThreadLocal;

use crate::observe::counters::{Numbered, Running};
use crate::observe::monitor::{Event, Observer};
use crate::task::in_stage;
use crate::util::TARGET;
use crate::util::sync::thread::{self, ThreadId};
use crate::util::sync::{Mutex, MutexGuard, now};

/// What each worker is doing, for the monitor to look at. A worker writes the index once per task, and the rest once
/// per chunk.
#[derive(Debug, Default)]
pub(crate) struct WorkerSlots {
    slots: ThreadLocal<WorkerSlot>,
}

/// The slot of one worker.
#[derive(Debug, Default)]
struct WorkerSlot {
    running: Running,
    /// Held briefly, and never while user code runs.
    open: Mutex<Open>,
}

/// The thread that has the slot, and the chunks that it runs.
#[derive(Debug, Default)]
struct Open {
    /// A slot may outlive its thread, and be reused by another.
    thread: Option<ThreadId>,
    worker: String,
    /// The running chunk is the last one; a worker that waits inside rayon may run another chunk meanwhile.
    chunks: Vec<OpenChunk>,
}

#[derive(Debug)]
struct OpenChunk {
    start: Instant,
    stage: Option<usize>,
    /// The number of its first call, which begins with the chunk.
    first: u64,
    /// Its call that is interrupted by the next chunk.
    waiting: Option<Numbered>,
}

/// Marks that a worker runs a chunk, until dropped.
pub(crate) struct SlotGuard<'a> {
    slot: &'a WorkerSlot,
}

/// Marks that a call runs, until dropped.
pub(crate) struct Call<'a> {
    running: &'a Running,
}

impl WorkerSlots {
    /// Marks that this thread begins a chunk at `start`; `stage`, if the run has several.
    pub(crate) fn enter(&self, stage: Option<usize>, start: Instant) -> SlotGuard<'_> {
        let slot = self.slots.get_or_default();
        let mut open = slot.open();
        let me = thread::current();
        if open.thread != Some(me.id()) {
            open.thread = Some(me.id());
            open.worker = me.name().unwrap_or("a thread without a name").to_owned();
        }
        if let Some(outer) = open.chunks.last_mut() {
            outer.waiting = slot.running.look();
            slot.running.end();
        }
        open.chunks.push(OpenChunk {
            start,
            stage,
            first: slot.running.next(),
            waiting: None,
        });
        SlotGuard { slot }
    }
}

impl WorkerSlot {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotGuard<'_> {
    /// Marks that the task at `index` begins.
    #[inline]
    pub(crate) fn begin(&self, index: u64) -> Call<'_> {
        let running = &self.slot.running;
        running.begin(index);
        Call { running }
    }
}

impl Drop for Call<'_> {
    #[inline]
    fn drop(&mut self) {
        self.running.end();
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        let mut open = self.slot.open();
        open.chunks.pop();
        if let Some(call) = open.chunks.last_mut().and_then(|it| it.waiting.take()) {
            self.slot.running.go_on(call);
        }
    }
}

/// A call that was seen running.
struct Sighting {
    /// When it began, if known; else when it was first seen.
    since: Instant,
    /// Warn when it has run for this long.
    limit: Duration,
}

/// The calls of the last look, by slot and number.
type Sightings = HashMap<(usize, u64), Sighting>;

/// Warns about each task that has been running for `after`, and again at each doubling.
pub(crate) fn observer(name: &str, after: Duration, slots: Arc<WorkerSlots>) -> Observer {
    let after = after.max(Duration::from_millis(1));
    let name = name.to_owned();
    let mut sightings = Sightings::new();
    Observer::new(after / 4, move |_, event| {
        if event == Event::End {
            return;
        }
        for (worker, task, time) in overdue(&slots, &mut sightings, after, now()) {
            warn!(target: TARGET, "{name}: {task} has been running for {time:.1?}, on {worker}");
        }
    })
}

/// A task that has run for too long.
struct Overdue {
    index: u64,
    stage: Option<usize>,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}{}", self.index, in_stage(self.stage))
    }
}

/// The worker, the task and the running time of each call that passed its limit since the last look.
fn overdue(
    slots: &WorkerSlots,
    sightings: &mut Sightings,
    after: Duration,
    time: Instant,
) -> Vec<(String, Overdue, Duration)> {
    let mut overdue = Vec::new();
    let mut before = mem::take(sightings);
    for slot in &slots.slots {
        // A slot does not move while the run lives.
        let place = std::ptr::from_ref(slot).addr();
        let open = slot.open();
        for (n, chunk) in open.chunks.iter().enumerate() {
            let is_last = n + 1 == open.chunks.len();
            let call = if is_last {
                slot.running.look()
            } else {
                chunk.waiting
            };
            let Some((call, index)) = call else {
                continue;
            };
            let first = || Sighting {
                since: if call == chunk.first {
                    chunk.start
                } else {
                    time
                },
                limit: after,
            };
            let mut sighting = before.remove(&(place, call)).unwrap_or_else(first);
            let lasted = time.saturating_duration_since(sighting.since);
            if lasted >= sighting.limit {
                sighting.limit = lasted.saturating_mul(2);
                let stage = chunk.stage;
                overdue.push((open.worker.clone(), Overdue { index, stage }, lasted));
            }
            sightings.insert((place, call), sighting);
        }
    }
    overdue
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Returns the indices and times of the overdue tasks at each look.
    fn looker(slots: &WorkerSlots) -> impl FnMut(Instant) -> Vec<(u64, Duration)> {
        let mut sightings = Sightings::new();
        move |time| {
            let overdue = overdue(slots, &mut sightings, 10 * MS, time).into_iter();
            overdue
                .map(|(_, task, lasted)| (task.index, lasted))
                .collect()
        }
    }

    #[test]
    fn a_task_is_told_at_each_doubling() {
        let (slots, start) = (WorkerSlots::default(), now());
        let mut look = looker(&slots);
        assert_eq!(look(start), []);
        let slot_guard = slots.enter(None, start);
        let call = slot_guard.begin(7);
        let times = (0..=80).flat_map(|millis| look(start + millis * MS));
        let told = [10, 20, 40, 80].map(|millis| (7, millis * MS));
        assert_eq!(times.collect::<Vec<_>>(), told);
        drop(call);
        assert_eq!(look(start + 1_000 * MS), []);
        // Nothing is left of a chunk, or a long run would fill its memory.
        drop(slot_guard);
        assert!(slots.enter(None, start).slot.open().chunks.len() == 1);
    }

    #[test]
    fn the_first_task_of_a_chunk_is_timed_from_its_beginning() {
        let (slots, start) = (WorkerSlots::default(), now());
        let mut look = looker(&slots);
        let slot_guard = slots.enter(None, start);
        let first = slot_guard.begin(7);
        assert_eq!(look(start + 9 * MS), []);
        assert_eq!(look(start + 11 * MS), [(7, 11 * MS)]);
        drop(first);
        // When the next one began is unknown, as there is no clock per task.
        let _second = slot_guard.begin(8);
        assert_eq!(look(start + 50 * MS), []);
        assert_eq!(look(start + 60 * MS), [(8, 10 * MS)]);
    }

    #[test]
    fn a_call_goes_on_during_one_inside_it_and_after() {
        let (slots, start) = (WorkerSlots::default(), now());
        let mut look = looker(&slots);
        let outer = slots.enter(None, start);
        let _call = outer.begin(1);
        assert_eq!(look(start + 9 * MS), []);
        let inner = slots.enter(None, start + 9 * MS);
        let call = inner.begin(2);
        assert_eq!(look(start + 10 * MS), [(1, 10 * MS)]);
        assert_eq!(look(start + 20 * MS), [(1, 20 * MS), (2, 11 * MS)]);
        drop(call);
        drop(inner);
        assert_eq!(look(start + 30 * MS), []);
        assert_eq!(look(start + 40 * MS), [(1, 40 * MS)]);
    }

    #[test]
    fn each_worker_has_a_desk_of_its_own() {
        let (slots, start) = (WorkerSlots::default(), now());
        let mut look = looker(&slots);
        let mine = slots.enter(None, start);
        let _call = mine.begin(1);
        let enter = || {
            let slot_guard = slots.enter(None, start);
            mem::forget(slot_guard.begin(2));
            mem::forget(slot_guard);
        };
        thread::scope(|scope| scope.spawn(enter).join()).unwrap();
        assert_eq!(look(start + 10 * MS).len(), 2);
    }

    #[test]
    fn looks_four_times_as_often_as_it_may_warn_first() {
        let every = |after| observer("", after, Arc::default()).every;
        assert_eq!((every(40 * MS), every(Duration::ZERO)), (10 * MS, MS / 4));
    }
}
