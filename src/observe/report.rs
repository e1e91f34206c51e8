//! Where the time of a run went: in the source, in the function, or with the consumer.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "metrics")]
use crate::util::panics::catch_panic;
use crate::util::sync::atomic::{AtomicU64, Ordering};
use crate::util::sync::now;
use crate::util::sync::thread::ThreadId;

/// How many of the slowest tasks are kept.
const SLOWEST: usize = 5;

/// Where the time of a run went; returned by [`MapTasks::report`](crate::MapTasks::report).
///
/// The thread that calls `next` pulls the *source* and runs the *consumer*, which handles the results. The *workers*
/// call the function. If that thread spends nearly all its time in the source or the consumer, that one limits the
/// run. If it mostly waits for results, the workers limit the run, or a single task that takes longer than its share.
///
/// The clock is read once per chunk. So times are exact for tasks of 100 µs or more that take about as long as their
/// neighbours, because each has a chunk of its own. Tiny tasks are timed together, and so is a slow one among them.
///
/// ```
/// use futureproof::{Bottleneck, prelude::*};
/// use std::{thread::sleep, time::Duration};
///
/// let wait = |n: &u64| sleep(Duration::from_millis(if *n == 7 { 200 } else { 1 }));
/// let mut run = (0..20u64).futureproof(Raise).num_threads(4).map_tasks(infallible(wait));
/// run.by_ref().for_each(drop);
/// let report = run.report();
/// assert_eq!(report.bottleneck(), Bottleneck::SlowTask);
/// assert_eq!(report.slowest()[0].indices(), 7..8);
/// println!("{report}");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    elapsed: Duration,
    source: Duration,
    consumer: Duration,
    waited: Duration,
    retries: Duration,
    paced: Duration,
    paused: Duration,
    calls: u64,
    workers: Vec<WorkerTime>,
    slowest: Vec<SlowTask>,
    stages: Vec<StageTime>,
}

/// The time of a [stage](crate::Futureproof::stage); see [`Report::stages`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageTime {
    name: String,
    num_threads: usize,
    busy: Duration,
}

impl StageTime {
    /// Returns the stage's name, or an empty string if it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns how many threads the stage has.
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// Returns how long its threads were inside its function, added up.
    pub fn busy(&self) -> Duration {
        self.busy
    }
}

/// The time of one worker.
///
/// If jobs run on more threads than there are workers, such as a new thread for each job, the extra time is added to
/// the least busy worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerTime {
    busy: Duration,
    idle: Duration,
}

impl WorkerTime {
    /// Returns how long the worker was inside the function.
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// Returns how long the worker had nothing to do, or did not exist.
    pub fn idle(&self) -> Duration {
        self.idle
    }
}

/// A slow task, or several that were in one chunk; see [`Report::slowest`].
///
/// Each attempt is counted separately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowTask {
    indices: Range<u64>,
    duration: Duration,
}

impl SlowTask {
    /// Returns the index of the task, or the indices of all tasks of the chunk.
    pub fn indices(&self) -> Range<u64> {
        self.indices.clone()
    }

    /// Returns how long they took together.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

impl Report {
    /// Returns the time since the first `next`, up to the end of the run.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns the time spent in the source's `next`.
    ///
    /// For a source that is [read ahead](crate::Futureproof::read_ahead), it is the time in which workers waited for
    /// it.
    pub fn source(&self) -> Duration {
        self.source
    }

    /// Returns the time between calls of `next`, when results were ready and the consumer was busy.
    pub fn consumer(&self) -> Duration {
        self.consumer
    }

    /// Returns how long the thread that calls `next` waited: for results, for retries, for the rate limit, or while the
    /// run was paused.
    pub fn waited(&self) -> Duration {
        self.waited + self.retries + self.paced + self.paused
    }

    /// Returns the time of each worker, in the order in which they first finished something.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let mut run = (0..1_000).futureproof(Raise).num_threads(2).map_tasks(infallible(|n: &u32| n + 1));
    /// run.by_ref().for_each(drop);
    /// for (number, worker) in run.report().workers().iter().enumerate() {
    ///     println!("worker {number}: {:?} busy, {:?} idle", worker.busy(), worker.idle());
    /// }
    /// ```
    pub fn workers(&self) -> &[WorkerTime] {
        &self.workers
    }

    /// Returns the time of each stage, if the run has [several](crate::Futureproof::stage).
    ///
    /// The stage whose threads are busy most of the time limits the run. [`workers`](Self::workers),
    /// [`mean`](Self::mean) and [`slowest`](Self::slowest) are those of the last stage.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let double = infallible(|n: &u32| n * 2);
    /// let run = (0..1_000u32).futureproof(Raise).num_threads(2).name("fetch").stage(double);
    /// let mut run = run.num_threads(1).name("parse").map_tasks(infallible(|n: &u32| n + 1));
    /// run.by_ref().for_each(drop);
    /// for stage in run.report().stages() {
    ///     println!("{}: {:?} on {} threads", stage.name(), stage.busy(), stage.num_threads());
    /// }
    /// assert_eq!(run.report().stages()[1].name(), "parse");
    /// ```
    pub fn stages(&self) -> &[StageTime] {
        &self.stages
    }

    /// Sets the times of the stages.
    pub(crate) fn set_stages(&mut self, stages: &[Arc<StageCounters>]) {
        let time = |stage: &Arc<StageCounters>| StageTime {
            name: stage.name().to_owned(),
            num_threads: stage.num_threads(),
            busy: stage.busy(),
        };
        self.stages = stages.iter().map(time).collect();
    }

    /// Returns how long a call took on average: a task, or one attempt at it.
    pub fn mean(&self) -> Duration {
        let busy: Duration = self.workers.iter().map(WorkerTime::busy).sum();
        match self.calls {
            0 => Duration::ZERO,
            calls => Duration::from_secs_f64(busy.as_secs_f64() / calls as f64),
        }
    }

    /// Returns the tasks that took longest, the slowest first, five at most.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let mut run = (0..1_000).futureproof(Raise).map_tasks(infallible(|n: &u32| n + 1));
    /// run.by_ref().for_each(drop);
    /// for slow in run.report().slowest() {
    ///     println!("tasks {:?}: {:?}", slow.indices(), slow.duration());
    /// }
    /// ```
    pub fn slowest(&self) -> &[SlowTask] {
        &self.slowest
    }

    /// Returns what limits the run.
    pub fn bottleneck(&self) -> Bottleneck {
        self.load().bottleneck()
    }

    pub(crate) fn load(&self) -> Load {
        // A pause is nobody's fault.
        let elapsed = self.elapsed.saturating_sub(self.paused).as_secs_f64();
        let busy: Duration = self.workers.iter().map(WorkerTime::busy).sum();
        let share = |time: Duration, of: f64| {
            if of > 0.0 {
                (time.as_secs_f64() / of).min(1.0)
            } else {
                0.0
            }
        };
        let alone = |slow: &&SlowTask| slow.indices.end - slow.indices.start == 1;
        let slowest = self.slowest.iter().find(alone);
        let share_of = |stage: &StageTime| share(stage.busy, elapsed * stage.num_threads as f64);
        let stages = self.stages.iter().map(share_of).enumerate();
        let stage = stages.max_by(|(_, share), (_, other)| share.total_cmp(other));
        let workers = share(busy, elapsed * self.workers.len() as f64);
        Load {
            source: share(self.source, elapsed),
            consumer: share(self.consumer, elapsed),
            waited: share(self.waited, elapsed),
            retries: share(self.retries, elapsed),
            paced: share(self.paced, elapsed),
            workers: stage.map_or(workers, |(_, share)| share),
            stage: stage.map(|(number, _)| number),
            slowest: slowest.map_or(0.0, |slow| share(slow.duration, elapsed)),
            index: slowest.map_or(0, |slow| slow.indices.start),
        }
    }
}

/// Writes a summary, and a line for each stage and each of the slowest tasks.
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
        for (number, stage) in self.stages.iter().enumerate() {
            let StageTime {
                name,
                num_threads,
                busy,
            } = stage;
            let name = if name.is_empty() {
                String::new()
            } else {
                format!(" ({name})")
            };
            write!(
                f,
                "\n  stage {number}{name}: {busy:.2?} on {num_threads} threads"
            )?;
        }
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

/// What limits a run; see [`Report::bottleneck`](crate::Report::bottleneck).
///
/// ```
/// use futureproof::{Bottleneck, prelude::*};
///
/// let mut run = (0..1_000).futureproof(Raise).map_tasks(infallible(|n: &u32| n + 1));
/// run.by_ref().for_each(drop);
/// let advice = match run.report().bottleneck() {
///     Bottleneck::Source => "read ahead",
///     Bottleneck::Workers => "more threads",
///     Bottleneck::Consumer => "do less with each result",
///     _ => "see the slowest tasks",
/// };
/// println!("{advice}");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bottleneck {
    /// The source is too slow. [`read_ahead`](crate::Futureproof::read_ahead) may help, or a source that only names
    /// the work and leaves the reading to the function.
    Source,
    /// The function takes the time, as it should. More threads help if there are cores for them.
    Workers,
    /// One task, the first of [`Report::slowest`](crate::Report::slowest), outlasts all others, so more threads do
    /// not help. Start it first, or split it.
    SlowTask,
    /// The run mostly waited until failed items could be retried.
    Retries,
    /// The run mostly waited for its [rate limit](crate::Futureproof::rate_limit).
    RateLimit,
    /// The consumer is too slow. Move some of its work into the function.
    Consumer,
}

/// Shares of the elapsed time, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// What the thread that calls `next` did.
    pub(crate) source: f64,
    pub(crate) consumer: f64,
    /// Waiting for workers, and waiting when only retries were left.
    pub(crate) waited: f64,
    pub(crate) retries: f64,
    /// Waiting for the rate limit.
    pub(crate) paced: f64,
    /// Of the workers' total time; where there are stages, of those of the busiest one.
    pub(crate) workers: f64,
    pub(crate) stage: Option<usize>,
    /// The slowest task that had a chunk of its own.
    pub(crate) slowest: f64,
    pub(crate) index: u64,
}

/// A single task limits the run if it takes at least the first share of its time, and the workers are busy for less
/// than the second share of the task's share.
const ALONE: (f64, f64) = (0.5, 0.75);

impl Load {
    pub(crate) fn bottleneck(&self) -> Bottleneck {
        // Busy workers limit the run even if the caller is busy half of the time.
        let workers = self.workers.max(self.waited);
        let others = self.source.max(self.consumer).max(workers);
        if self.paced > others.max(self.retries) {
            Bottleneck::RateLimit
        } else if self.retries > others {
            Bottleneck::Retries
        } else if self.source > workers && self.source > self.consumer {
            Bottleneck::Source
        } else if self.consumer > workers {
            Bottleneck::Consumer
        } else if self.slowest >= ALONE.0 && self.workers < ALONE.1 * self.slowest {
            Bottleneck::SlowTask
        } else {
            Bottleneck::Workers
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("limited by ")?;
        match self.bottleneck() {
            Bottleneck::Source => f.write_str("the source")?,
            Bottleneck::Workers => match self.stage {
                Some(number) => write!(f, "stage {number}")?,
                None => f.write_str("the workers")?,
            },
            Bottleneck::SlowTask => write!(f, "task {} alone", self.index)?,
            Bottleneck::Retries => f.write_str("the delays of retries")?,
            Bottleneck::RateLimit => f.write_str("its rate limit")?,
            Bottleneck::Consumer => f.write_str("the consumer")?,
        }
        write!(
            f,
            " (workers busy {:.0} %; caller: source {:.0} %, consumer {:.0} %, waiting {:.0} %)",
            100.0 * self.workers,
            100.0 * self.source,
            100.0 * self.consumer,
            100.0 * (self.waited + self.retries + self.paced),
        )
    }
}

/// What the workers of a stage count, once per chunk.
#[derive(Debug)]
pub(crate) struct StageCounters {
    name: String,
    num_threads: AtomicU64,
    nanos: AtomicU64,
}

impl StageCounters {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            num_threads: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        }
    }

    pub(crate) fn open(&self, num_threads: usize) {
        self.num_threads
            .store(num_threads as u64, Ordering::Relaxed);
    }

    /// Adds the time that a chunk took.
    pub(crate) fn ran(&self, busy: Duration) {
        self.nanos
            .fetch_add(busy.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn num_threads(&self) -> usize {
        self.num_threads.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// What the caller's half records: a few additions per chunk.
#[derive(Debug, Default)]
pub(crate) struct Timings {
    source: Duration,
    consumer: Duration,
    waited: Duration,
    /// The same, until the first results were there: threads had to start.
    waited_at_first: Duration,
    retries: Duration,
    paced: Duration,
    paused: Duration,
    calls: u64,
    /// At most one entry per worker.
    busy: Vec<(ThreadId, Duration)>,
    slowest: Vec<SlowTask>,
    /// When the consumer got its last chunk.
    handed_over: Option<Instant>,
    #[cfg(feature = "metrics")]
    pub(crate) durations: Option<metrics::Histogram>,
}

impl Timings {
    /// Adds time in the source, or waiting for it.
    pub(crate) fn pulled(&mut self, time: Duration) {
        self.source += time;
    }

    /// Adds time in which the caller waited for workers.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.waited += time;
        if self.calls == 0 {
            self.waited_at_first = self.waited;
        }
    }

    /// Adds time in which there was nothing to do until a retry was due.
    pub(crate) fn waited_for_retries(&mut self, time: Duration) {
        self.retries += time;
    }

    /// Nothing ran for this long because of the rate limit.
    pub(crate) fn waited_for_rate_limit(&mut self, time: Duration) {
        self.paced += time;
    }

    /// Adds time in which the run was paused. That is nobody's fault.
    pub(crate) fn paused(&mut self, time: Duration) {
        self.paused += time;
    }

    /// The consumer gets the tasks of a chunk.
    pub(crate) fn hand_over(&mut self) {
        self.handed_over = Some(now());
    }

    /// The consumer asks for more. Returns how long it was busy, if it had something.
    pub(crate) fn take_back(&mut self) -> Option<Duration> {
        let time = now() - self.handed_over.take()?;
        self.consumer += time;
        Some(time)
    }

    /// Whether the caller has waited for the workers longer than they for the consumer, once the first results were there.
    pub(crate) fn is_consumer_quicker(&self) -> bool {
        self.waited - self.waited_at_first > self.consumer
    }

    /// Records that these tasks took `busy` on `worker`, one of `width`.
    pub(crate) fn ran(
        &mut self,
        tasks: u64,
        indices: Range<u64>,
        busy: Duration,
        worker: ThreadId,
        width: usize,
    ) {
        self.calls += tasks;
        #[cfg(feature = "metrics")]
        if let Some(durations) = &self.durations {
            catch_panic(|| durations.record(busy.as_secs_f64() / tasks as f64));
        }
        let known = self.busy.iter().position(|(id, _)| *id == worker);
        let place = match known {
            // A pool may use a new thread for each job.
            None if self.busy.len() >= width => {
                let sums = self.busy.iter().enumerate();
                sums.min_by_key(|(_, (_, sum))| *sum)
                    .map(|(place, _)| place)
            }
            known => known,
        };
        match place {
            Some(place) => self.busy[place].1 += busy,
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

    /// The report so far, for a run on `width` workers.
    pub(crate) fn report(&self, elapsed: Duration, width: usize) -> Report {
        let busy = self.busy.iter().map(|(_, busy)| *busy);
        let missing = width.saturating_sub(self.busy.len());
        let busy = busy.chain(std::iter::repeat_n(Duration::ZERO, missing));
        let worker = |busy| WorkerTime {
            busy,
            idle: elapsed.saturating_sub(busy),
        };
        let since = self
            .handed_over
            .map_or(Duration::ZERO, |since| now() - since);
        Report {
            elapsed,
            source: self.source,
            consumer: self.consumer + since,
            waited: self.waited,
            retries: self.retries,
            paced: self.paced,
            paused: self.paused,
            calls: self.calls,
            workers: busy.map(worker).collect(),
            slowest: self.slowest.clone(),
            stages: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn me() -> ThreadId {
        crate::util::sync::thread::current().id()
    }

    #[test]
    fn the_five_slowest_are_kept_in_order() {
        let mut timings = Timings::default();
        for (index, millis) in [3, 9, 1, 7, 9, 2, 8].into_iter().enumerate() {
            let index = index as u64;
            timings.ran(1, index..index + 1, millis * MS, me(), 2);
        }
        let report = timings.report(100 * MS, 2);
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
    fn what_would_have_to_be_quicker_is_the_bottleneck() {
        // Of 100 ms: source, consumer, waiting, waiting for retries; of 200 ms: all workers.
        for (caller, busy, who) in [
            ([90, 10, 0, 0], 20, Bottleneck::Source),
            ([10, 20, 70, 0], 180, Bottleneck::Workers),
            ([10, 80, 10, 0], 20, Bottleneck::Consumer),
            ([0, 0, 0, 0], 0, Bottleneck::Workers),
            // The caller is quick enough if the workers are busy all the time.
            ([50, 50, 0, 0], 190, Bottleneck::Workers),
            ([10, 60, 30, 0], 190, Bottleneck::Workers),
            // Shares count: two workers have twice the time.
            ([60, 10, 0, 0], 100, Bottleneck::Source),
            // For example, other programs use the cores.
            ([10, 20, 60, 0], 10, Bottleneck::Workers),
            ([5, 5, 20, 60], 10, Bottleneck::Retries),
            // In a tie the workers are named, else the consumer.
            ([50, 50, 50, 0], 0, Bottleneck::Workers),
            ([50, 50, 0, 0], 0, Bottleneck::Consumer),
            ([0, 50, 50, 50], 0, Bottleneck::Workers),
            ([50, 0, 0, 0], 100, Bottleneck::Workers),
        ] {
            let [source, consumer, waited, retries] = caller;
            let mut timings = Timings::default();
            timings.pulled(source * MS);
            timings.consumer = consumer * MS;
            timings.waited(waited * MS);
            timings.waited_for_retries(retries * MS);
            timings.ran(2, 0..2, busy * MS, me(), 2);
            let report = timings.report(100 * MS, 2);
            assert_eq!(report.bottleneck(), who, "{report}");
            assert_eq!(
                (report.source(), report.consumer(), report.waited()),
                (source * MS, consumer * MS, (waited + retries) * MS)
            );
        }
    }

    #[test]
    fn a_task_that_outlasts_the_others_is_the_bottleneck() {
        for (slow, others, indices, who) in [
            (90, 20, 7..8, Bottleneck::SlowTask),
            // The workers have as much other work.
            (90, 60, 7..8, Bottleneck::Workers),
            (50, 24, 7..8, Bottleneck::SlowTask),
            // It takes less than half of the time.
            (49, 0, 7..8, Bottleneck::Workers),
            // It is not known which of the two it is.
            (90, 20, 7..9, Bottleneck::Workers),
        ] {
            let mut timings = Timings::default();
            timings.waited(99 * MS);
            timings.ran(indices.end - indices.start, indices, slow * MS, me(), 2);
            timings.ran(6, 0..6, others * MS, me(), 2);
            let report = timings.report(100 * MS, 2);
            assert_eq!(report.bottleneck(), who, "{report}");
        }
    }

    #[test]
    fn a_consumer_is_quicker_if_it_waits_longer_than_it_works_once_there_are_results() {
        let mut timings = Timings::default();
        timings.waited(100 * MS);
        assert!(!timings.is_consumer_quicker());
        timings.ran(1, 0..1, MS, me(), 1);
        timings.consumer = 2 * MS;
        for (waited, is_quicker) in [(1, false), (1, false), (1, true)] {
            timings.waited(waited * MS);
            assert_eq!(timings.is_consumer_quicker(), is_quicker);
        }
        assert_eq!(timings.waited, 103 * MS);
    }

    #[test]
    fn threads_without_number_are_as_many_workers_as_there_are() {
        let mut timings = Timings::default();
        for index in 0..10 {
            let worker = std::thread::spawn(me).join().unwrap();
            timings.ran(1, index..index + 1, MS, worker, 2);
        }
        let report = timings.report(100 * MS, 2);
        let busy: Vec<_> = report.workers().iter().map(WorkerTime::busy).collect();
        assert_eq!(busy, [5 * MS, 5 * MS]);
    }

    #[test]
    fn a_report_reads_well() {
        let mut timings = Timings::default();
        timings.pulled(5 * MS);
        timings.waited(70 * MS);
        timings.ran(1, 3..4, 60 * MS, me(), 1);
        timings.ran(10, 100..110, 20 * MS, me(), 1);
        let text = timings.report(100 * MS, 1).to_string();
        let expected = "11 calls in 100.00ms by 1 workers, 7.27ms each; limited by the workers \
            (workers busy 80 %; caller: source 5 %, consumer 0 %, waiting 70 %)\n  task 3: 60.00ms\n  \
            tasks 100 to 109: 20.00ms";
        assert_eq!(text, expected);
        let text = timings.report(100 * MS, 4).to_string();
        assert!(
            text.contains("limited by task 3 alone (workers busy 20 %"),
            "{text}"
        );
    }

    #[test]
    fn a_run_that_has_not_begun_has_a_report() {
        let report = Timings::default().report(Duration::ZERO, 0);
        assert_eq!((report.mean(), report.workers().len()), (Duration::ZERO, 0));
        let text = report.to_string();
        assert!(text.starts_with("0 calls in"), "{text}");
        let busy = "(workers busy 0 %; caller: source 0 %, consumer 0 %, waiting 0 %)";
        assert!(text.ends_with(busy), "{text}");
    }

    #[test]
    fn a_wait_is_a_wait_for_whatever_it_is() {
        let mut timings = Timings::default();
        timings.waited(MS);
        timings.waited_for_retries(2 * MS);
        timings.waited_for_rate_limit(4 * MS);
        timings.paused(8 * MS);
        assert_eq!(timings.report(100 * MS, 1).waited(), 15 * MS);
    }

    #[test]
    fn the_stage_whose_threads_are_busy_most_of_the_time_limits_the_run() {
        let stage = |name: &str, num_threads, millis| {
            let stage = StageCounters::new(name);
            stage.open(num_threads);
            stage.ran(millis * MS);
            Arc::new(stage)
        };
        for (fetch, number, share) in [(200, 1, 60), (320, 0, 80)] {
            let mut report = Timings::default().report(100 * MS, 1);
            report.set_stages(&[stage("fetch", 4, fetch), stage("parse", 1, 60)]);
            let load = report.load();
            assert_eq!(load.stage, Some(number));
            assert_eq!((load.workers * 100.0).round() as u64, share);
        }
    }
}
