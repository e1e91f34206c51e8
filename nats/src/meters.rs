//! A function's figures for the `metrics` facade, at either end.

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

/// Where a count goes besides. Handles, so that nothing is looked up when it counts.
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
            // It only grows.
            Self::Counter(_) => {}
            Self::Gauge(gauge) => gauge.decrement(1),
        }
    }
}

/// Calls that ended so.
pub(crate) fn calls(function: &str, outcome: &'static str) -> Meter {
    describe_counter!(CALLS, Unit::Count, "Calls that returned, by outcome.");
    ended(CALLS, function, outcome)
}

pub(crate) fn calls_redelivered(function: &str) -> Meter {
    describe_counter!(
        CALLS_REDELIVERED,
        Unit::Count,
        "Outputs of a worker after others had taken the task and not answered."
    );
    total(CALLS_REDELIVERED, function)
}

pub(crate) fn late_answers(function: &str) -> Meter {
    describe_counter!(
        LATE,
        Unit::Count,
        "Answers that came a second time, or too late."
    );
    total(LATE, function)
}

/// Tasks that ended so at this worker.
pub(crate) fn tasks(function: &str, outcome: &'static str) -> Meter {
    describe_counter!(TASKS, Unit::Count, "Tasks that were taken, by outcome.");
    ended(TASKS, function, outcome)
}

pub(crate) fn tasks_redelivered(function: &str) -> Meter {
    describe_counter!(
        TASKS_REDELIVERED,
        Unit::Count,
        "Tasks that had been taken before and not answered."
    );
    total(TASKS_REDELIVERED, function)
}

pub(crate) fn tasks_running(function: &str) -> Meter {
    describe_gauge!(
        RUNNING,
        Unit::Count,
        "Tasks that run, or whose answer is under way."
    );
    Meter::Gauge(gauge!(RUNNING, "function" => function.to_owned()))
}

fn ended(name: &'static str, function: &str, outcome: &'static str) -> Meter {
    Meter::Counter(counter!(name, "function" => function.to_owned(), "outcome" => outcome))
}

fn total(name: &'static str, function: &str) -> Meter {
    Meter::Counter(counter!(name, "function" => function.to_owned()))
}

/// How long the function took.
#[derive(Debug)]
pub(crate) struct Durations(Histogram);

impl Durations {
    pub(crate) fn new(function: &str) -> Self {
        describe_histogram!(DURATION, Unit::Seconds, "How long the function took.");
        Self(histogram!(DURATION, "function" => function.to_owned()))
    }

    /// One sample, when the value that is returned is dropped: in a panic too.
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
