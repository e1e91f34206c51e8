//! Counters of callers and workers.

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "metrics")]
use crate::meters::{self, Durations, Meter};

/// A counter or a gauge. `Relaxed`, as no other data is published through it.
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

    /// Adds one and returns the previous number.
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

/// A snapshot of a caller's counters for one function.
///
/// `answered + deadlines + refused + undelivered + stopped` is the number of calls that have returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Calls that were made.
    pub calls: u64,
    /// Calls that a worker answered, whatever the answer.
    pub answered: u64,
    /// Answers with the function's own error.
    pub failed: u64,
    /// Answers that report a panic.
    pub panicked: u64,
    /// Outputs of tasks that were delivered before and not answered.
    pub redelivered: u64,
    /// Tasks that were given up after too many deliveries.
    pub lost: u64,
    /// Items that the worker could not decode, and answers that the caller could not decode.
    pub unreadable: u64,
    /// Calls that exceeded their deadline.
    pub deadlines: u64,
    /// Calls that found the queue full.
    pub refused: u64,
    /// Calls that could not be sent.
    pub undelivered: u64,
    /// Calls that were stopped.
    pub stopped: u64,
    /// Duplicate and late answers, which were dropped.
    pub late: u64,
}

#[derive(Debug, Default)]
pub(crate) struct CallerCounts {
    pub(crate) calls: Count,
    pub(crate) answered: Count,
    /// Answers with an output.
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
    /// Counters for a caller of `function`.
    #[cfg(not(feature = "metrics"))]
    pub(crate) fn new(_function: &str) -> Self {
        Self::default()
    }

    /// Counters for a caller of `function`, which also go to the metrics recorder.
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

/// The counters of a worker.
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
    /// Counters for a worker that runs `function`.
    #[cfg(not(feature = "metrics"))]
    pub(crate) fn new(_function: &str) -> Self {
        Self::default()
    }

    /// Counters for a worker that runs `function`, which also go to the metrics recorder.
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

    /// Calls `f` and records how long it took.
    pub(crate) fn time<T>(&self, f: impl FnOnce() -> T) -> T {
        #[cfg(feature = "metrics")]
        let _sample = self.durations.as_ref().map(Durations::start);
        f()
    }
}
