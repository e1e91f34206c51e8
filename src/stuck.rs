//! Warns of tasks that run for long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use thread_local::ThreadLocal;

use crate::counters::Running;
use crate::monitor::{Moment, Reader, TARGET};
use crate::sync::{now, thread};

/// What each worker is doing, for the monitor to look at now and then. The clock is the monitor's: a worker only
/// writes down the index.
#[derive(Debug, Default)]
pub(crate) struct Desks {
    desks: ThreadLocal<Desk>,
}

/// One worker's.
#[derive(Debug)]
pub(crate) struct Desk {
    worker: String,
    running: Running,
}

/// A call that runs. Dropping it ends that.
pub(crate) struct Call<'a> {
    desk: &'a Desk,
    /// A worker that waits inside rayon may take up another task meanwhile.
    outer: (u64, u64),
}

impl Desks {
    pub(crate) fn mine(&self) -> &Desk {
        self.desks.get_or(|| Desk {
            worker: thread::current()
                .name()
                .unwrap_or("a thread without a name")
                .to_owned(),
            running: Running::default(),
        })
    }
}

impl Desk {
    /// The task at `index` begins.
    #[inline]
    pub(crate) fn begin(&self, index: u64) -> Call<'_> {
        let outer = self.running.begin(index);
        Call { desk: self, outer }
    }
}

impl Drop for Call<'_> {
    #[inline]
    fn drop(&mut self) {
        self.desk.running.go_on(self.outer);
    }
}

/// A call that was seen.
struct Sighting {
    call: u64,
    since: Instant,
    /// Warned of when it has lasted so long.
    limit: Duration,
}

/// Warns of every task of the run called `name` that has been running for `after`, and again at each doubling.
pub(crate) fn reader(name: &str, after: Duration, desks: Arc<Desks>) -> Reader {
    let after = after.max(Duration::from_millis(1));
    let name = name.to_owned();
    let mut sightings = HashMap::<usize, Sighting>::new();
    Reader::new(after / 4, move |_, moment| {
        if moment == Moment::End {
            return;
        }
        for (worker, index, time) in overdue(&desks, &mut sightings, after, now()) {
            warn!(target: TARGET, "{name}: task {index} has been running for {time:.1?}, on {worker}");
        }
    })
}

/// The worker, the index and the time of each call that has passed a limit since the last look.
fn overdue<'d>(
    desks: &'d Desks,
    sightings: &mut HashMap<usize, Sighting>,
    after: Duration,
    time: Instant,
) -> Vec<(&'d str, u64, Duration)> {
    let mut overdue = Vec::new();
    for desk in &desks.desks {
        let Some((call, index)) = desk.running.look() else {
            continue;
        };
        let first = || Sighting {
            call,
            since: time,
            limit: after,
        };
        // A desk stays where it is for as long as the run.
        let place = std::ptr::from_ref(desk).addr();
        let sighting = sightings.entry(place).or_insert_with(first);
        if sighting.call != call {
            *sighting = first();
        }
        let lasted = time - sighting.since;
        if lasted >= sighting.limit {
            sighting.limit = lasted.saturating_mul(2);
            overdue.push((&*desk.worker, index, lasted));
        }
    }
    overdue
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_task_is_told_at_each_doubling() {
        let (desks, mut sightings) = (Desks::default(), HashMap::new());
        let start = now();
        let mut look = |millis: u32| {
            let overdue = overdue(&desks, &mut sightings, 10 * MS, start + millis * MS);
            overdue
                .iter()
                .map(|(_, index, _)| *index)
                .collect::<Vec<_>>()
        };
        assert_eq!(look(0), []);
        let call = desks.mine().begin(7);
        let told: Vec<_> = (0..=80).filter(|millis| look(*millis) == [7]).collect();
        assert_eq!(told, [10, 20, 40, 80]);
        drop(call);
        assert_eq!((look(1_000), look(1_010)), (vec![], vec![]));
        let _next = desks.mine().begin(8);
        assert_eq!(
            (look(2_000), look(2_009), look(2_010)),
            (vec![], vec![], vec![8])
        );
    }

    #[test]
    fn a_call_goes_on_after_one_inside_it() {
        let (desks, mut sightings) = (Desks::default(), HashMap::new());
        let start = now();
        let _outer = desks.mine().begin(1);
        assert!(overdue(&desks, &mut sightings, 10 * MS, start).is_empty());
        drop(desks.mine().begin(2));
        let overdue = overdue(&desks, &mut sightings, 10 * MS, start + 10 * MS);
        let me = thread::current();
        assert_eq!(overdue, [(me.name().unwrap(), 1, 10 * MS)]);
    }

    #[test]
    fn each_worker_has_a_desk_of_its_own() {
        let (desks, mut sightings) = (Desks::default(), HashMap::new());
        let start = now();
        let _mine = desks.mine().begin(1);
        let sit_down = || std::mem::forget(desks.mine().begin(2));
        thread::scope(|scope| scope.spawn(sit_down).join()).unwrap();
        assert!(overdue(&desks, &mut sightings, MS, start).is_empty());
        assert_eq!(overdue(&desks, &mut sightings, MS, start + MS).len(), 2);
    }

    #[test]
    fn looks_four_times_as_often_as_it_may_warn_first() {
        let every = |after| reader("", after, Arc::default()).every;
        assert_eq!((every(40 * MS), every(Duration::ZERO)), (10 * MS, MS / 4));
    }
}
