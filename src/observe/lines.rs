//! The monitor's lines in the log.

use std::time::{Duration, Instant};

use log::{info, log_enabled};

use crate::observe::counters::{Snapshot, per_second};
use crate::observe::monitor::{Event, Reader, TARGET};
use crate::task::Ending;
use crate::util::panics::catch_panic;
use crate::util::sync::now;

/// Writes how the run called `name` is going, unless nobody would see it.
pub(crate) fn reader(name: &str, every: Duration) -> Option<Reader> {
    let is_logged = || log_enabled!(target: TARGET, log::Level::Info);
    if every.is_zero() || catch_panic(is_logged) != Some(true) {
        return None;
    }
    let name = name.to_owned();
    // The figures of the last line, and when it was written.
    let mut last: Option<(Snapshot, Instant)> = None;
    Some(Reader::new(every, move |figures, moment| {
        let time = now();
        let text = match (moment, &last) {
            (Event::End, _) => totals(figures),
            (Event::Tick, Some((last, since))) => match figures.left() {
                Some(ending) => waits(ending),
                None => line(figures, last, time - *since),
            },
            _ => format!("started{}", items(figures)),
        };
        last = Some((*figures, time));
        info!(target: TARGET, "{name}: {text}");
    }))
}

/// A run that took less is not worth a word on what limited it.
const TOLD: Duration = Duration::from_millis(100);

fn items(snapshot: &Snapshot) -> String {
    snapshot
        .total()
        .map_or_else(String::new, |total| format!(", {total} items"))
}

/// After the end, while calls run on.
fn waits(ending: Option<Ending>) -> String {
    let how = match ending {
        Some(Ending::Exhausted) => "all items are done",
        Some(Ending::Failed) => "stopped by a failure",
        Some(Ending::Cancelled) => "cancelled",
        Some(Ending::DeadlineExceeded) => "the deadline has passed",
        Some(Ending::SourcePanicked) => "the source has panicked",
        None => "left before its end",
    };
    format!("{how}; waits for the calls that still run")
}

fn line(now: &Snapshot, last: &Snapshot, time: Duration) -> String {
    let completed = now.completed() - last.completed();
    let mut line = format!(
        "{completed} tasks completed in the last {:.2} s, {} failed, {} in flight, {:.1}/s",
        time.as_secs_f64(),
        now.failed() - last.failed(),
        now.in_flight(),
        per_second(completed, time),
    );
    if let Some(total) = now.total().filter(|total| *total > 0) {
        let share = (now.completed() as f64 / total as f64).min(1.0);
        line += &format!(", {:.1} % of {total}", 100.0 * share);
        if let Some(eta) = now.eta() {
            line += &format!(", {} left", duration(eta));
        }
    }
    line
}

fn totals(now: &Snapshot) -> String {
    let mut line = format!(
        "ended after {:.2} s: {} tasks completed, {} failed, {:.1}/s",
        now.elapsed().as_secs_f64(),
        now.completed(),
        now.failed(),
        now.rate(),
    );
    if now.retried() > 0 {
        line += &format!(", {} retried", now.retried());
    }
    if now.completed() < now.pulled() {
        line += &format!(", {} not completed", now.pulled() - now.completed());
    }
    if let Some(load) = now.load().filter(|_| now.elapsed() >= TOLD) {
        line += &format!("; {load}");
    }
    line
}

/// `45 s`, `3 min 20 s`, `2 h 05 min`.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::counters::Counters;
    use crate::observe::report::Timings;

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (200, "3 min 20 s"),
            (7_500, "2 h 05 min"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_line_tells_what_happened_since_the_last() {
        let counters = Counters::default();
        counters.start(Some(200));
        counters.set_pulled(60);
        counters.complete(10, 1);
        let last = counters.snapshot();
        counters.complete(40, 2);
        counters.set_delivered(45);
        let line = line(&counters.snapshot(), &last, Duration::from_secs(2));
        let expected = "40 tasks completed in the last 2.00 s, 2 failed, 15 in flight, 20.0/s, 25.0 % of 200, ";
        assert!(line.starts_with(expected), "{line}");
        assert!(line.ends_with(" left"), "{line}");
    }

    #[test]
    fn totals_tell_what_limited_the_run() {
        let counters = Counters::default();
        counters.start(None);
        let report = Timings::default().report(Duration::from_secs(1), 1);
        counters.set_load(report.load());
        let mut figures = counters.snapshot();
        assert!(!totals(&figures).contains("limited"));
        figures.set_elapsed(Duration::from_secs(1));
        let line = totals(&figures);
        assert!(
            line.contains("; limited by the workers (workers busy 0 %"),
            "{line}"
        );
    }

    #[test]
    fn totals_tell_what_is_missing() {
        let counters = Counters::default();
        counters.start(None);
        counters.end();
        counters.set_pulled(9);
        counters.complete(7, 3);
        counters.retry();
        let line = totals(&counters.snapshot());
        assert!(line.contains("7 tasks completed, 3 failed"), "{line}");
        assert!(line.ends_with("1 retried, 2 not completed"), "{line}");
    }

    #[test]
    fn what_is_zero_is_not_told() {
        let counters = Counters::default();
        counters.start(Some(0));
        counters.end();
        let figures = counters.snapshot();
        let line = line(&figures, &figures, Duration::from_secs(2));
        assert!(line.ends_with("0 in flight, 0.0/s"), "{line}");
        let line = totals(&figures);
        assert!(line.ends_with("0 failed, 0.0/s"), "{line}");
    }
}
