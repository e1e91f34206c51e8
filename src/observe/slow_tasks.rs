//! Warns of tasks that run for long.

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

/// What each worker is doing, for the monitor to look at now and then. Once a task, a worker only writes down its
/// index; the rest is written once a chunk.
#[derive(Debug, Default)]
pub(crate) struct WorkerSlots {
    slots: ThreadLocal<WorkerSlot>,
}

/// One worker's.
#[derive(Debug, Default)]
struct WorkerSlot {
    running: Running,
    /// Held for a moment only, and never while code of others runs.
    open: Mutex<Open>,
}

/// Which thread has the slot, and the chunks that it runs.
#[derive(Debug, Default)]
struct Open {
    /// A slot may outlive a thread, and go to the next one.
    thread: Option<ThreadId>,
    worker: String,
    /// The chunk that runs comes last: a worker that waits inside rayon may take up another meanwhile.
    chunks: Vec<OpenChunk>,
}

#[derive(Debug)]
struct OpenChunk {
    start: Instant,
    stage: Option<usize>,
    /// The number of its first call, which begins when the chunk does.
    first: u64,
    /// Its call that waits for the end of the chunk after this.
    waiting: Option<Numbered>,
}

/// A worker's, while it runs a chunk. Dropping it ends that.
pub(crate) struct SlotGuard<'a> {
    slot: &'a WorkerSlot,
}

/// A call that runs. Dropping it ends that.
pub(crate) struct Call<'a> {
    running: &'a Running,
}

impl WorkerSlots {
    /// This thread begins a chunk, at the time `start`; of `stage`, where there are several.
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
    /// The task at `index` begins.
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

/// A call that was seen.
struct Sighting {
    /// When it began, as far as that is known; else when it was first seen.
    since: Instant,
    /// Warned of when it has lasted so long.
    limit: Duration,
}

/// The calls of the last look, by slot and number.
type Sightings = HashMap<(usize, u64), Sighting>;

/// Warns of every task of the run called `name` that has been running for `after`, and again at each doubling.
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

/// The task of a call.
struct Overdue {
    index: u64,
    stage: Option<usize>,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}{}", self.index, in_stage(self.stage))
    }
}

/// The worker, the task and the time of each call that has passed a limit since the last look.
fn overdue(
    slots: &WorkerSlots,
    sightings: &mut Sightings,
    after: Duration,
    time: Instant,
) -> Vec<(String, Overdue, Duration)> {
    let mut overdue = Vec::new();
    let mut before = mem::take(sightings);
    for slot in &slots.slots {
        // A slot stays where it is for as long as the run.
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

    /// The indices that are told of, by a monitor that looks at the slots whenever it is asked to.
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
        // Nothing stays of a chunk, or a long run would fill its memory with them.
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
        // Of the next, only a clock for each task could tell when it began.
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
