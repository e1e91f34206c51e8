//! The metrics of callers and workers, for the `metrics` facade.

use std::time::Instant;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

const CALLS: &str = "futureproof_calls_total";
const CALLS_REDELIVERED: &str = "futureproof_calls_redelivered_total";
const LATE: &str = "futureproof_late_answers_total";

const TASKS: &str = "futureproof_worker_tasks_total";
const TASKS_REDELIVERED: &str = "futureproof_worker_redelivered_total";
const RUNNING: &str = "futureproof_worker_tasks_running";
const DURATION: &str = "futureproof_worker_task_duration_seconds";

/// A handle to one metric, so that counting needs no lookup.
#[derive(Debug)]
pub(crate) enum Meter {
    Counter(Counter),
    Gauge(Gauge),
}

impl Meter {
    pub(crate) fn add(&self) {
        match self {
            Self::Counter(counter) => counter.increment(1),
            Self::Gauge(gauge) => gauge.increment(1),
        }
    }

    pub(crate) fn sub(&self) {
        match self {
            // A counter only grows.
            Self::Counter(_) => {}
            Self::Gauge(gauge) => gauge.decrement(1),
        }
    }
}

/// Calls that ended with this outcome.
pub(crate) fn calls(function: &str, outcome: &'static str) -> Meter {
    describe_counter!(CALLS, Unit::Count, "Calls that returned, by outcome.");
    ended(CALLS, function, outcome)
}

pub(crate) fn calls_redelivered(function: &str) -> Meter {
    describe_counter!(
        CALLS_REDELIVERED,
        Unit::Count,
        "Outputs of tasks that were delivered before and not answered."
    );
    total(CALLS_REDELIVERED, function)
}

pub(crate) fn late_answers(function: &str) -> Meter {
    describe_counter!(
        LATE,
        Unit::Count,
        "Duplicate and late answers, which were dropped."
    );
    total(LATE, function)
}

/// Tasks that ended with this outcome on this worker.
pub(crate) fn tasks(function: &str, outcome: &'static str) -> Meter {
    describe_counter!(
        TASKS,
        Unit::Count,
        "Tasks that the worker handled, by outcome."
    );
    ended(TASKS, function, outcome)
}

pub(crate) fn tasks_redelivered(function: &str) -> Meter {
    describe_counter!(
        TASKS_REDELIVERED,
        Unit::Count,
        "Tasks that were delivered before and not answered."
    );
    total(TASKS_REDELIVERED, function)
}

pub(crate) fn tasks_running(function: &str) -> Meter {
    describe_gauge!(
        RUNNING,
        Unit::Count,
        "Tasks that are running, or whose answer is not yet confirmed."
    );
    Meter::Gauge(gauge!(RUNNING, "function" => function.to_owned()))
}

fn ended(name: &'static str, function: &str, outcome: &'static str) -> Meter {
    Meter::Counter(counter!(name, "function" => function.to_owned(), "outcome" => outcome))
}

fn total(name: &'static str, function: &str) -> Meter {
    Meter::Counter(counter!(name, "function" => function.to_owned()))
}

/// How long the function takes.
#[derive(Debug)]
pub(crate) struct Durations(Histogram);

impl Durations {
    pub(crate) fn new(function: &str) -> Self {
        describe_histogram!(DURATION, Unit::Seconds, "How long the function takes.");
        Self(histogram!(DURATION, "function" => function.to_owned()))
    }

    /// Starts a measurement. It is recorded on drop, also during a panic.
    pub(crate) fn start(&self) -> impl Drop {
        Sample(&self.0, Instant::now())
    }
}

struct Sample<'a>(&'a Histogram, Instant);

impl Drop for Sample<'_> {
    fn drop(&mut self) {
        self.0.record(self.1.elapsed());
    }
}
