//! What happened so far, counted.

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "metrics")]
use crate::meters::{self, Durations, Meter};

/// Adds and reads. Relaxed: nothing is published through a count.
#[derive(Debug, Default)]
pub(crate) struct Count {
    number: AtomicU64,
    #[cfg(feature = "metrics")]
    meter: Option<Meter>,
}

impl Count {
    #[cfg(feature = "metrics")]
    fn on(meter: Meter) -> Self {
        Self {
            number: AtomicU64::new(0),
            meter: Some(meter),
        }
    }

    pub(crate) fn add(&self) {
        self.next();
    }

    /// As `add`, and tells how much it was before.
    pub(crate) fn next(&self) -> u64 {
        #[cfg(feature = "metrics")]
        self.meter.as_ref().inspect(|meter| meter.add());
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn sub(&self) {
        #[cfg(feature = "metrics")]
        self.meter.as_ref().inspect(|meter| meter.sub());
        self.number.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }
}

/// The caller's counters of one function, as they were at one moment.
///
/// `answered + deadlines + refused + undelivered + stopped` is the number of calls that have returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Items that were given to `call`.
    pub calls: u64,
    /// Calls that a worker answered, whatever the answer.
    pub answered: u64,
    /// Answers that are the function's own error.
    pub failed: u64,
    /// Answers that are a panic.
    pub panicked: u64,
    /// Outputs of a worker after others had taken the task and not answered.
    pub redelivered: u64,
    /// Tasks that were given up, after so many deliveries.
    pub lost: u64,
    /// Items that the worker could not read, and answers that could not be read here.
    pub unreadable: u64,
    /// Calls that met their deadline.
    pub deadlines: u64,
    /// Calls that met a full queue.
    pub refused: u64,
    /// Calls that could not be sent.
    pub undelivered: u64,
    /// Calls that were stopped.
    pub stopped: u64,
    /// Answers that came a second time, or too late, and were dropped.
    pub late: u64,
}

#[derive(Debug, Default)]
pub(crate) struct CallerCounts {
    pub(crate) calls: Count,
    pub(crate) answered: Count,
    /// Answers that are an output.
    pub(crate) ok: Count,
    pub(crate) failed: Count,
    pub(crate) panicked: Count,
    pub(crate) redelivered: Count,
    pub(crate) lost: Count,
    pub(crate) unreadable: Count,
    pub(crate) deadlines: Count,
    pub(crate) refused: Count,
    pub(crate) undelivered: Count,
    pub(crate) stopped: Count,
    pub(crate) late: Count,
}

impl CallerCounts {
    /// Those of a function that is called.
    #[cfg(not(feature = "metrics"))]
    pub(crate) fn new(_function: &str) -> Self {
        Self::default()
    }

    /// Those of a function that is called, and of each outcome a recorder hears.
    #[cfg(feature = "metrics")]
    pub(crate) fn new(function: &str) -> Self {
        let calls = |outcome| Count::on(meters::calls(function, outcome));
        Self {
            calls: Count::default(),
            // The sum of the next five.
            answered: Count::default(),
            ok: calls("ok"),
            failed: calls("failed"),
            panicked: calls("panicked"),
            lost: calls("lost"),
            unreadable: calls("unreadable"),
            deadlines: calls("deadline"),
            refused: calls("refused"),
            undelivered: calls("undelivered"),
            stopped: calls("stopped"),
            redelivered: Count::on(meters::calls_redelivered(function)),
            late: Count::on(meters::late_answers(function)),
        }
    }

    pub(crate) fn read(&self) -> Counters {
        Counters {
            calls: self.calls.get(),
            answered: self.answered.get(),
            failed: self.failed.get(),
            panicked: self.panicked.get(),
            redelivered: self.redelivered.get(),
            lost: self.lost.get(),
            unreadable: self.unreadable.get(),
            deadlines: self.deadlines.get(),
            refused: self.refused.get(),
            undelivered: self.undelivered.get(),
            stopped: self.stopped.get(),
            late: self.late.get(),
        }
    }
}

/// A worker's counters, for its monitor.
#[derive(Debug, Default)]
pub(crate) struct WorkerCounts {
    pub(crate) running: Count,
    pub(crate) done: Count,
    pub(crate) ok: Count,
    pub(crate) failed: Count,
    pub(crate) panicked: Count,
    pub(crate) redelivered: Count,
    pub(crate) unreadable: Count,
    pub(crate) unwanted: Count,
    pub(crate) lost: Count,
    #[cfg(feature = "metrics")]
    durations: Option<Durations>,
}

impl WorkerCounts {
    /// Those of a function that is run here.
    #[cfg(not(feature = "metrics"))]
    pub(crate) fn new(_function: &str) -> Self {
        Self::default()
    }

    /// Those of a function that is run here, and of each outcome a recorder hears.
    #[cfg(feature = "metrics")]
    pub(crate) fn new(function: &str) -> Self {
        let tasks = |outcome| Count::on(meters::tasks(function, outcome));
        Self {
            running: Count::on(meters::tasks_running(function)),
            done: Count::default(),
            ok: tasks("ok"),
            failed: tasks("failed"),
            panicked: tasks("panicked"),
            unreadable: tasks("unreadable"),
            unwanted: tasks("unwanted"),
            lost: tasks("lost"),
            redelivered: Count::on(meters::tasks_redelivered(function)),
            durations: Some(Durations::new(function)),
        }
    }

    /// Calls the user's function, and takes the time.
    pub(crate) fn time<T>(&self, f: impl FnOnce() -> T) -> T {
        #[cfg(feature = "metrics")]
        let _sample = self.durations.as_ref().map(Durations::start);
        f()
    }
}
