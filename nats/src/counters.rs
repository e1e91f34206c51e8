//! What happened so far, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Adds and reads. Relaxed: nothing is published through a count.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
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
    pub(crate) failed: Count,
    pub(crate) panicked: Count,
    pub(crate) redelivered: Count,
    pub(crate) lost: Count,
    pub(crate) deadlines: Count,
    pub(crate) refused: Count,
    pub(crate) undelivered: Count,
    pub(crate) stopped: Count,
    pub(crate) late: Count,
}

impl CallerCounts {
    pub(crate) fn read(&self) -> Counters {
        Counters {
            calls: self.calls.get(),
            answered: self.answered.get(),
            failed: self.failed.get(),
            panicked: self.panicked.get(),
            redelivered: self.redelivered.get(),
            lost: self.lost.get(),
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
    pub(crate) failed: Count,
    pub(crate) panicked: Count,
    pub(crate) redelivered: Count,
    pub(crate) unreadable: Count,
    pub(crate) unwanted: Count,
}
