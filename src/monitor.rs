//! The thread that tells how a run is going. It takes no worker, and is woken at once at the end.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, log_enabled};

use crate::contain::contain;
use crate::counters::{Counters, Snapshot, per_second};
use crate::sync::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crate::sync::now;
use crate::sync::thread::{self, JoinHandle};

/// The target of every log line of this crate.
pub(crate) const TARGET: &str = "futureproof";

/// Is given the figures at every interval and at the end.
pub(crate) type OnProgress = Box<dyn FnMut(&Snapshot) + Send>;

/// A running monitor. Dropping it writes the last line and joins the thread.
#[derive(Debug)]
pub(crate) struct Monitor {
    // Nothing is sent: dropping the sender wakes the thread.
    alive: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts a monitor, if anybody would see what it says.
    pub(crate) fn start(
        name: &str,
        interval: Duration,
        counters: Arc<Counters>,
        on_progress: Option<OnProgress>,
    ) -> io::Result<Option<Self>> {
        let has_readers = on_progress.is_some() || log_enabled!(target: TARGET, log::Level::Info);
        if interval.is_zero() || !has_readers {
            return Ok(None);
        }
        let (alive, stop) = bounded(0);
        let last = counters.snapshot();
        let watch = Watch {
            name: name.to_owned(),
            interval,
            counters,
            on_progress,
            last,
        };
        let thread = thread::Builder::new()
            .name(format!("{name}-monitor"))
            .spawn(move || watch.run(&stop))?;
        Ok(Some(Self {
            alive: Some(alive),
            thread: Some(thread),
        }))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.alive = None;
        // A progress callback may own, and drop, the very run that it watches.
        if let Some(thread) = self
            .thread
            .take()
            .filter(|it| it.thread().id() != thread::current().id())
        {
            // It contains the panics of user code, so it ends well.
            let _ = thread.join();
        }
    }
}

/// What the monitor's thread owns.
struct Watch {
    name: String,
    interval: Duration,
    counters: Arc<Counters>,
    on_progress: Option<OnProgress>,
    /// The figures of the last line; at first, those of before any work.
    last: Snapshot,
}

impl Watch {
    fn run(mut self, stop: &Receiver<Infallible>) {
        let name = self.name.clone();
        contain(|| info!(target: TARGET, "{name}: started{}", items(&self.last)));
        let mut tick = now();
        loop {
            let ended = wait(stop, tick.checked_add(self.interval));
            let figures = self.counters.snapshot();
            let time = now() - tick;
            if ended {
                contain(|| info!(target: TARGET, "{name}: {}", totals(&figures)));
            } else {
                contain(|| info!(target: TARGET, "{name}: {}", line(&figures, &self.last, time)));
            }
            if let Some(on_progress) = &mut self.on_progress {
                contain(|| on_progress(&figures));
            }
            if ended {
                break;
            }
            self.last = figures;
            tick += time;
        }
        crate::contain::bury(self);
    }
}

/// Waits until the run ends (`true`) or `until` has come; `None` never comes.
fn wait(stop: &Receiver<Infallible>, until: Option<Instant>) -> bool {
    match until {
        Some(until) => stop.recv_deadline(until) != Err(RecvTimeoutError::Timeout),
        None => stop.recv().is_err(),
    }
}

fn items(snapshot: &Snapshot) -> String {
    snapshot
        .total()
        .map_or_else(String::new, |total| format!(", {total} items"))
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
}
