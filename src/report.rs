//! Where the time of a run went: in the source, in the function or with the consumer.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::sync::now;
use crate::sync::thread::ThreadId;
#[cfg(feature = "metrics")]
use crate::{contain::contain, meters};

/// How many of the slowest tasks are kept.
const SLOWEST: usize = 5;

/// Where the time of a run went; made by [`MapTasks::report`](crate::MapTasks::report).
///
/// A run has three parties. The *source* is pulled and the *consumer* handles results, both on the thread that
/// calls `next`; the *workers* call the function. Whoever is busy nearly all the time is what limits the run,
/// and the only one that is worth being made faster.
///
/// The clock is read once a chunk. So times are exact for tasks of 100 µs and more, which travel alone; tiny ones
/// are timed together.
///
/// ```
/// use futureproof::{Bottleneck, prelude::*};
/// use std::{thread::sleep, time::Duration};
///
/// let wait = |n: &u64| sleep(Duration::from_millis(if *n == 7 { 50 } else { 1 }));
/// let mut run = (0..50u64).futureproof(Raise).num_threads(2).map_tasks(infallible(wait));
/// run.by_ref().for_each(drop);
/// let report = run.report();
/// assert_eq!(report.bottleneck(), Bottleneck::Workers);
/// assert_eq!(report.slowest()[0].indices(), 7..8);
/// println!("{report}");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    elapsed: Duration,
    source: Duration,
    consumer: Duration,
    calls: u64,
    workers: Vec<WorkerTime>,
    slowest: Vec<SlowTask>,
}

/// Who limits a run; see [`Report::bottleneck`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bottleneck {
    /// Items come too slowly. [`read_ahead`](crate::FutureproofIterator::read_ahead) may help, or a
    /// source that only names the work and leaves the reading to the function.
    Source,
    /// The function takes the time, as it should: more threads help if there are cores for them.
    Workers,
    /// Results are not taken up quickly enough. What is done with them may be part of the function.
    Consumer,
}

/// The time of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerTime {
    busy: Duration,
    idle: Duration,
}

impl WorkerTime {
    /// How long it was inside the function.
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// How long it had nothing to do, or did not exist.
    pub fn idle(&self) -> Duration {
        self.idle
    }
}

/// A task that took long, or several that travelled together; see [`Report::slowest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowTask {
    indices: Range<u64>,
    duration: Duration,
}

impl SlowTask {
    /// The index of the task; several, where it did not travel alone.
    pub fn indices(&self) -> Range<u64> {
        self.indices.clone()
    }

    /// How long all of them took together.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// Shares of the elapsed time, from 0 to 1, in which each party was busy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    source: f64,
    workers: f64,
    consumer: f64,
}

impl Load {
    pub(crate) fn bottleneck(&self) -> Bottleneck {
        if self.source > self.workers && self.source > self.consumer {
            Bottleneck::Source
        } else if self.consumer > self.workers {
            Bottleneck::Consumer
        } else {
            Bottleneck::Workers
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.bottleneck() {
            Bottleneck::Source => "the source",
            Bottleneck::Workers => "the workers",
            Bottleneck::Consumer => "the consumer",
        };
        write!(
            f,
            "limited by {who} (busy: source {:.0} %, workers {:.0} %, consumer {:.0} %)",
            100.0 * self.source,
            100.0 * self.workers,
            100.0 * self.consumer,
        )
    }
}

impl Report {
    /// Time since the first `next`, up to the end of the run.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Time in the source's `next`; for one that is [read ahead](crate::FutureproofIterator::read_ahead), time in
    /// which workers waited for it.
    pub fn source(&self) -> Duration {
        self.source
    }

    /// Time between two calls of `next`: results were there, and the consumer was busy.
    pub fn consumer(&self) -> Duration {
        self.consumer
    }

    /// The time of each worker, in the order in which they first finished something.
    pub fn workers(&self) -> &[WorkerTime] {
        &self.workers
    }

    /// How long a call took, on average: a task, or one attempt at it.
    pub fn mean(&self) -> Duration {
        let busy: Duration = self.workers.iter().map(WorkerTime::busy).sum();
        match self.calls {
            0 => Duration::ZERO,
            calls => Duration::from_secs_f64(busy.as_secs_f64() / calls as f64),
        }
    }

    /// The tasks that took longest, the slowest first: five at most.
    pub fn slowest(&self) -> &[SlowTask] {
        &self.slowest
    }

    /// Who was busy for the greatest share of the time.
    pub fn bottleneck(&self) -> Bottleneck {
        self.load().bottleneck()
    }

    pub(crate) fn load(&self) -> Load {
        let elapsed = self.elapsed.as_secs_f64();
        let busy: Duration = self.workers.iter().map(WorkerTime::busy).sum();
        let share = |time: Duration, of: f64| {
            if of > 0.0 {
                (time.as_secs_f64() / of).min(1.0)
            } else {
                0.0
            }
        };
        Load {
            source: share(self.source, elapsed),
            workers: share(busy, elapsed * self.workers.len() as f64),
            consumer: share(self.consumer, elapsed),
        }
    }
}

/// A sentence, and a line for each of the slowest tasks.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls in {:.2?} by {} workers, {:.2?} each; {}",
            self.calls,
            self.elapsed,
            self.workers.len(),
            self.mean(),
            self.load(),
        )?;
        for slow in &self.slowest {
            let Range { start, end } = slow.indices();
            let duration = slow.duration();
            match end - start {
                1 => write!(f, "\n  task {start}: {duration:.2?}")?,
                _ => write!(f, "\n  tasks {start} to {}: {duration:.2?}", end - 1)?,
            }
        }
        Ok(())
    }
}

/// What the caller's half writes down on the way: a few additions a chunk.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    source: Duration,
    consumer: Duration,
    calls: u64,
    busy: Vec<(ThreadId, Duration)>,
    slowest: Vec<SlowTask>,
    /// Since when the consumer has had its last answer.
    handed_over: Option<Instant>,
    #[cfg(feature = "metrics")]
    durations: Option<metrics::Histogram>,
}

impl Ledger {
    /// The run called `name` begins.
    #[cfg(feature = "metrics")]
    pub(crate) fn open(&mut self, name: &str) {
        self.durations = contain(|| meters::durations(name));
    }

    /// So long was spent in the source, or in waiting for it.
    pub(crate) fn pulled(&mut self, time: Duration) {
        self.source += time;
    }

    /// The consumer gets the tasks of an answer.
    pub(crate) fn hand_over(&mut self) {
        self.handed_over = Some(now());
    }

    /// It is back, and asks for more.
    pub(crate) fn take_back(&mut self) {
        if let Some(since) = self.handed_over.take() {
            self.consumer += now() - since;
        }
    }

    /// These tasks took `busy` on `worker`.
    pub(crate) fn ran(&mut self, indices: Range<u64>, busy: Duration, worker: ThreadId) {
        let tasks = indices.end - indices.start;
        self.calls += tasks;
        #[cfg(feature = "metrics")]
        if let Some(durations) = &self.durations {
            contain(|| durations.record(busy.as_secs_f64() / tasks as f64));
        }
        match self.busy.iter_mut().find(|(id, _)| *id == worker) {
            Some((_, sum)) => *sum += busy,
            None => self.busy.push((worker, busy)),
        }
        let place = self.slowest.iter().rposition(|slow| slow.duration >= busy);
        let place = place.map_or(0, |place| place + 1);
        if place < SLOWEST {
            self.slowest.truncate(SLOWEST - 1);
            let duration = busy;
            self.slowest.insert(place, SlowTask { indices, duration });
        }
    }

    /// What is known so far, of a run on `width` workers.
    pub(crate) fn report(&self, elapsed: Duration, width: usize) -> Report {
        let busy = self.busy.iter().map(|(_, busy)| *busy);
        let missing = width.saturating_sub(self.busy.len());
        let busy = busy.chain(std::iter::repeat_n(Duration::ZERO, missing));
        let worker = |busy| WorkerTime {
            busy,
            idle: elapsed.saturating_sub(busy),
        };
        Report {
            elapsed,
            source: self.source,
            consumer: self.consumer,
            calls: self.calls,
            workers: busy.map(worker).collect(),
            slowest: self.slowest.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn me() -> ThreadId {
        crate::sync::thread::current().id()
    }

    #[test]
    fn the_five_slowest_are_kept_in_order() {
        let mut ledger = Ledger::default();
        for (index, millis) in [3, 9, 1, 7, 9, 2, 8].into_iter().enumerate() {
            let index = index as u64;
            ledger.ran(index..index + 1, millis * MS, me());
        }
        let report = ledger.report(100 * MS, 2);
        let slowest: Vec<_> = report
            .slowest()
            .iter()
            .map(|slow| slow.indices().start)
            .collect();
        assert_eq!(slowest, [1, 4, 6, 3, 0]);
        assert_eq!(report.mean(), Duration::from_secs_f64(0.039 / 7.0));
        assert_eq!(report.workers().len(), 2);
        assert_eq!(
            (report.workers()[0].busy(), report.workers()[0].idle()),
            (39 * MS, 61 * MS)
        );
        assert_eq!(
            (report.workers()[1].busy(), report.workers()[1].idle()),
            (Duration::ZERO, 100 * MS)
        );
    }

    #[test]
    fn the_busiest_is_the_bottleneck() {
        for (source, busy, consumer, who) in [
            (90, 20, 10, Bottleneck::Source),
            (10, 180, 20, Bottleneck::Workers),
            (10, 20, 80, Bottleneck::Consumer),
            (0, 0, 0, Bottleneck::Workers),
            (50, 190, 50, Bottleneck::Workers),
            // Shares count: two workers have twice the time.
            (60, 100, 10, Bottleneck::Source),
        ] {
            let mut ledger = Ledger::default();
            ledger.pulled(source * MS);
            ledger.consumer = consumer * MS;
            ledger.ran(0..1, busy * MS, me());
            let report = ledger.report(100 * MS, 2);
            assert_eq!(report.bottleneck(), who);
            assert_eq!(
                (report.source(), report.consumer()),
                (source * MS, consumer * MS)
            );
        }
    }

    #[test]
    fn a_report_reads_well() {
        let mut ledger = Ledger::default();
        ledger.pulled(5 * MS);
        ledger.ran(3..4, 60 * MS, me());
        ledger.ran(100..110, 20 * MS, me());
        let text = ledger.report(100 * MS, 1).to_string();
        let expected = "11 calls in 100.00ms by 1 workers, 7.27ms each; limited by the workers \
            (busy: source 5 %, workers 80 %, consumer 0 %)\n  task 3: 60.00ms\n  tasks 100 to 109: 20.00ms";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_run_that_has_not_begun_has_a_report() {
        let report = Ledger::default().report(Duration::ZERO, 0);
        assert_eq!((report.mean(), report.workers().len()), (Duration::ZERO, 0));
        let text = report.to_string();
        assert!(text.starts_with("0 calls in"), "{text}");
        let busy = "(busy: source 0 %, workers 0 %, consumer 0 %)";
        assert!(text.ends_with(busy), "{text}");
    }

    #[test]
    fn in_a_draw_the_workers_are_named_else_the_consumer() {
        for (shares, who) in [
            ([1.0, 1.0, 1.0], Bottleneck::Workers),
            ([1.0, 1.0, 0.0], Bottleneck::Workers),
            ([0.0, 1.0, 1.0], Bottleneck::Workers),
            ([1.0, 0.0, 1.0], Bottleneck::Consumer),
        ] {
            let [source, workers, consumer] = shares;
            let load = Load {
                source,
                workers,
                consumer,
            };
            assert_eq!(load.bottleneck(), who, "{load}");
        }
    }
}
