//! What limits a run, by the shares of time that its parties were busy.

use std::fmt;

/// Who limits a run; see [`Report::bottleneck`](crate::Report::bottleneck).
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
    /// Items come too slowly. [`read_ahead`](crate::Futureproof::read_ahead) may help, or a
    /// source that only names the work and leaves the reading to the function.
    Source,
    /// The function takes the time, as it should: more threads help if there are cores for them.
    Workers,
    /// One task, the first of [`Report::slowest`](crate::Report::slowest), takes so long that the others are done meanwhile: more threads do
    /// not help. Let it come first, or cut it in pieces.
    SlowTask,
    /// Nothing was left to do but to wait until failed items may be tried again.
    Retries,
    /// Results are not taken up quickly enough. What is done with them may be part of the function.
    Consumer,
}

/// Shares of the elapsed time, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// What the thread that calls `next` did.
    pub(crate) source: f64,
    pub(crate) consumer: f64,
    /// Waiting for workers, and for nobody as only retries were left.
    pub(crate) waited: f64,
    pub(crate) retries: f64,
    /// Of the time that all workers have together.
    pub(crate) workers: f64,
    /// The slowest task that ran alone.
    pub(crate) slowest: f64,
    pub(crate) index: u64,
}

/// A task that takes at least this share of a run limits it, if the workers are not busy for as much as that of its share.
const ALONE: (f64, f64) = (0.5, 0.75);

impl Load {
    pub(crate) fn bottleneck(&self) -> Bottleneck {
        // Workers that are busy all the time limit the run, even if the caller is busy half of it.
        let workers = self.workers.max(self.waited);
        if self.retries > self.source.max(self.consumer).max(workers) {
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
            Bottleneck::Workers => f.write_str("the workers")?,
            Bottleneck::SlowTask => write!(f, "task {} alone", self.index)?,
            Bottleneck::Retries => f.write_str("the delays of retries")?,
            Bottleneck::Consumer => f.write_str("the consumer")?,
        }
        write!(
            f,
            " (workers busy {:.0} %; caller: source {:.0} %, consumer {:.0} %, waiting {:.0} %)",
            100.0 * self.workers,
            100.0 * self.source,
            100.0 * self.consumer,
            100.0 * (self.waited + self.retries),
        )
    }
}
