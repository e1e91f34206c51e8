//! The counts of a run for the `metrics` facade.

use std::mem;
use std::time::Duration;

use metrics::{
    Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::observe::monitor::{Event, Observer};

const EVERY: Duration = Duration::from_secs(1);

const TASKS: &str = "futureproof_tasks_total";
const RETRIES: &str = "futureproof_retries_total";
const IN_FLIGHT: &str = "futureproof_tasks_in_flight";
const DURATION: &str = "futureproof_task_duration_seconds";

/// Adds what was counted since the last time. Runs with the same name add up.
pub(crate) fn observer(name: &str) -> Observer {
    describe_counter!(
        TASKS,
        Unit::Count,
        "Tasks that came to their end, by outcome."
    );
    describe_counter!(RETRIES, Unit::Count, "Attempts beyond the first.");
    describe_gauge!(
        IN_FLIGHT,
        Unit::Count,
        "Items pulled and not yet delivered."
    );
    let run = || name.to_owned();
    let succeeded = counter!(TASKS, "run" => run(), "outcome" => "ok");
    let failed = counter!(TASKS, "run" => run(), "outcome" => "failed");
    let retries = counter!(RETRIES, "run" => run());
    let in_flight = gauge!(IN_FLIGHT, "run" => run());
    let mut last = (0, 0, 0, 0);
    Observer::new(EVERY, move |snapshot, event| {
        // After the end nothing is in flight, whether it was delivered or not.
        let flying = if event == Event::End {
            0
        } else {
            snapshot.in_flight()
        };
        let now = (
            snapshot.completed() - snapshot.failed(),
            snapshot.failed(),
            snapshot.retried(),
            flying,
        );
        // A recorder may panic. Then that addition is lost, and not made twice. The gauge comes first, because it
        // must return to 0.
        let before = mem::replace(&mut last, now);
        in_flight.increment(now.3 as f64 - before.3 as f64);
        succeeded.increment(now.0 - before.0);
        failed.increment(now.1 - before.1);
        retries.increment(now.2 - before.2);
    })
}

/// Records the durations of tasks: one sample per chunk, the mean of its tasks.
pub(crate) fn durations(name: &str) -> Histogram {
    describe_histogram!(
        DURATION,
        Unit::Seconds,
        "How long a task ran; quick ones are timed together."
    );
    histogram!(DURATION, "run" => name.to_owned())
}
