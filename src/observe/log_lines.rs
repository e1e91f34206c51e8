//! Log lines: progress and failures.

use std::fmt;
use std::time::{Duration, Instant};

use log::{Level, info, log, log_enabled, warn};

use crate::ending::Ending;
use crate::observe::counters::{Snapshot, per_second};
use crate::observe::monitor::{Event, Observer};
use crate::task::TaskError;
use crate::util::TARGET;
use crate::util::panics::{CatchDrop, catch_panic};
use crate::util::sync::now;

/// Logs the progress of the run called `name`; `None` if no logger would show it.
pub(crate) fn observer(name: &str, every: Duration) -> Option<Observer> {
    let is_logged = || log_enabled!(target: TARGET, Level::Info);
    if every.is_zero() || catch_panic(is_logged) != Some(true) {
        return None;
    }
    let name = name.to_owned();
    // The counts of the last line, and its time.
    let mut last: Option<(Snapshot, Instant)> = None;
    Some(Observer::new(every, move |snapshot, event| {
        let time = now();
        let text = match (event, &last) {
            (Event::End, _) => totals(snapshot),
            (Event::Tick, Some((last, since))) => match snapshot.left() {
                Some(ending) => waits(ending),
                None => line(snapshot, last, time - *since),
            },
            _ => format!("started{}", items(snapshot)),
        };
        last = Some((*snapshot, time));
        info!(target: TARGET, "{name}: {text}");
    }))
}

/// More items than this in flight may be why there are too many open files.
const MANY: u64 = 64;

/// Shorter runs do not log what limited them.
const TOLD: Duration = Duration::from_millis(100);

fn items(snapshot: &Snapshot) -> String {
    snapshot
        .total()
        .map_or_else(String::new, |total| format!(", {total} items"))
}

/// For a run that has ended while calls still run.
fn waits(ending: Option<Ending>) -> String {
    let how = match ending {
        Some(Ending::Exhausted) => "all items are done",
        Some(Ending::Failed) => "stopped by a failure",
        Some(Ending::Cancelled) => "cancelled",
        Some(Ending::DeadlineExceeded) => "the deadline has passed",
        Some(Ending::SourcePanicked) => "the source has panicked",
        None => "left before its end",
    };
    format!("{how}; waiting for calls that still run")
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
    if let Some(limit) = now.concurrency() {
        line += &format!(", {limit} at once");
    }
    if now.is_paused() {
        line += ", paused";
    }
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

type Describe<'a, I, E> = Box<dyn Fn(&TaskError<I, E>) -> String + Send + 'a>;

/// Logs failures, with the user's description or the error's `Debug`.
pub(crate) struct FailureLog<'a, I, E> {
    describe: Option<CatchDrop<Describe<'a, I, E>>>,
    debug: fn(&E) -> String,
    /// So many failures are still looked at for advice.
    to_look_at: u32,
}

impl<'a, I, E> FailureLog<'a, I, E> {
    pub(crate) fn new() -> Self
    where
        E: fmt::Debug,
    {
        Self {
            describe: None,
            debug: |error| format!("{error:?}"),
            to_look_at: 64,
        }
    }

    pub(crate) fn set_describe(&mut self, text: impl Fn(&TaskError<I, E>) -> String + Send + 'a) {
        self.describe = Some(CatchDrop::new(Box::new(text)));
    }

    /// Logs one line. Panics of user code are caught.
    pub(crate) fn write(&self, title: &str, level: Level, error: &TaskError<I, E>) {
        let text = catch_panic(|| self.text_of(error))
            .unwrap_or_else(|| "(the error panicked when it was formatted)".into());
        let attempts = match error.attempts() {
            1 => String::new(),
            attempts => format!(" after {attempts} attempts"),
        };
        let index = error.index();
        catch_panic(
            || log!(target: TARGET, level, "{title}: task {index} failed{attempts}: {text}"),
        );
    }

    /// Says once what to do where failures come of too many open files, and many items are in flight.
    pub(crate) fn advise(&mut self, title: &str, error: &TaskError<I, E>, in_flight: u64) {
        let Some(own) = error
            .error()
            .filter(|_| self.to_look_at > 0 && in_flight > MANY)
        else {
            return;
        };
        self.to_look_at -= 1;
        let text = catch_panic(|| (self.debug)(own)).unwrap_or_default();
        if text.contains("Too many open files") {
            self.to_look_at = 0;
            let index = error.index();
            catch_panic(
                || warn!(target: TARGET, "{title}: task {index} failed because too many files are open, while {in_flight} items are in flight: if items or results hold files or sockets, set `max_in_flight`"),
            );
        }
    }

    fn text_of(&self, error: &TaskError<I, E>) -> String {
        match (&self.describe, error.error()) {
            (Some(describe), _) => describe(error),
            (None, Some(own)) => (self.debug)(own),
            (None, None) => format!(
                "panicked: {}",
                error.panic_message().unwrap_or("(not a text)")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::counters::Counters;
    use crate::observe::report::Timings;
    use crate::task::Cause;

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
    fn the_first_failures_are_looked_at_while_many_items_are_in_flight() {
        let mut log = FailureLog::<(), &str>::new();
        let mut look = |text, in_flight| {
            let error = TaskError::new(0, (), 1, None, Cause::Failed(text));
            log.advise("run", &error, in_flight);
            log.to_look_at
        };
        assert_eq!(look("Too many open files", MANY), 64);
        assert_eq!(look("no such file", MANY + 1), 63);
        // It is told once.
        assert_eq!(look("Too many open files", MANY + 1), 0);
        assert_eq!(look("no such file", MANY + 1), 0);
    }

    #[test]
    fn totals_tell_what_limited_the_run() {
        let counters = Counters::default();
        counters.start(None);
        let report = Timings::default().report(Duration::from_secs(1), 1);
        counters.set_load(report.load());
        let mut snapshot = counters.snapshot();
        assert!(!totals(&snapshot).contains("limited"));
        snapshot.set_elapsed(Duration::from_secs(1));
        let line = totals(&snapshot);
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
        counters.retry(1);
        let line = totals(&counters.snapshot());
        assert!(line.contains("7 tasks completed, 3 failed"), "{line}");
        assert!(line.ends_with("1 retried, 2 not completed"), "{line}");
    }

    #[test]
    fn what_is_zero_is_not_told() {
        let counters = Counters::default();
        counters.start(Some(0));
        counters.end();
        let snapshot = counters.snapshot();
        let line = line(&snapshot, &snapshot, Duration::from_secs(2));
        assert!(line.ends_with("0 in flight, 0.0/s"), "{line}");
        let line = totals(&snapshot);
        assert!(line.ends_with("0 failed, 0.0/s"), "{line}");
    }
}
