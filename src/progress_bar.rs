//! A progress bar that the monitor updates.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::builder::Futureproof;
use crate::observe::counters::Snapshot;
use crate::observe::monitor::{Event, Observer};

const EVERY: Duration = Duration::from_millis(100);

const KNOWN: &str =
    "{elapsed_precise} {wide_bar} {human_pos}/{human_len}, {per_sec}, {eta} left{msg:.red}";
const UNKNOWN: &str = "{elapsed_precise} {spinner} {human_pos} done, {per_sec}{msg:.red}";

impl<I: Iterator, P> Futureproof<I, P> {
    /// Shows the progress of the run on `bar`.
    ///
    /// Needs the feature `indicatif`. Draws a bar if the number of items is known, else a spinner, with the rate, the
    /// time left, and failures in red. The last state stays on the terminal.
    ///
    /// The monitor's thread draws it ten times a second, so it does not slow the run down. It does not depend on
    /// [`monitor_interval`](Self::monitor_interval). Length and style are set for you; if you want your own style,
    /// update your own bar from [`on_progress`](Self::on_progress).
    ///
    /// In a run of several [stages](Self::stage), call this before the first `stage`.
    ///
    /// Nothing is drawn if standard error is not a terminal. Log lines break the bar; `indicatif-log-bridge` prints
    /// them above it.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use indicatif::ProgressBar;
    ///
    /// let bar = ProgressBar::no_length();
    /// let run = (0..1_000u32).futureproof(Log).progress_bar(bar.clone()).map_tasks(infallible(|n: &u32| n + 1));
    /// assert_eq!(run.count(), 1_000);
    /// assert_eq!((bar.position(), bar.length()), (1_000, Some(1_000)));
    /// ```
    pub fn progress_bar(mut self, bar: ProgressBar) -> Self {
        self.options
            .observers
            .push(Observer::new(EVERY, move |snapshot, event| {
                show(&bar, snapshot, event);
            }));
        self
    }
}

fn show(bar: &ProgressBar, snapshot: &Snapshot, event: Event) {
    if event == Event::Start {
        let template = snapshot.total().map_or(UNKNOWN, |_| KNOWN);
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        if let Some(total) = snapshot.total() {
            bar.set_length(total);
        }
        // The bar may have been used by another run.
        bar.reset();
        bar.set_message("");
    }
    if snapshot.failed() > 0 {
        bar.set_message(format!(", {} failed", snapshot.failed()));
    }
    bar.set_position(snapshot.completed());
    bar.tick();
    if event == Event::End {
        // Not `finish`, which would show a stopped run as complete.
        bar.abandon();
    }
}
