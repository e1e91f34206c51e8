//! What the builder has decided, and how much that allows to be in flight.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::cancel::CancellationToken;
use crate::control::Control;
use crate::engine::pace::Pace;
use crate::observe::counters::Snapshot;
use crate::observe::instrument::Instruments;
use crate::observe::log_lines;
#[cfg(feature = "metrics")]
use crate::observe::metrics;
use crate::observe::monitor::{Event, Observer};
use crate::observe::slow_tasks;
use crate::policy::ErrorPolicy;
use crate::util::panics::CatchDrop;
#[cfg(feature = "metrics")]
use crate::util::panics::catch_panic;

/// Is told the counts at every interval and at the end.
type OnProgress = CatchDrop<Box<dyn FnMut(&Snapshot) + Send>>;

/// The largest chunk.
const MAX_CHUNK: usize = 1 << 16;

/// The options of a run. 0 means "chosen for you" for every count.
pub(crate) struct Options {
    pub(crate) policy: ErrorPolicy,
    pub(crate) max_in_flight: usize,
    pub(crate) chunk_size: usize,
    pub(crate) ordered: bool,
    pub(crate) interval: Duration,
    pub(crate) on_progress: Option<OnProgress>,
    /// Others whom the monitor is to serve.
    pub(crate) observers: Vec<Observer>,
    /// Tasks that run longer are warned of.
    pub(crate) warn_after: Option<Duration>,
    /// Empty if none was given.
    pub(crate) name: String,
    pub(crate) tokens: Vec<CancellationToken>,
    pub(crate) control: Option<Control>,
    pub(crate) deadline: Option<Duration>,
    /// How often tasks may start.
    pub(crate) pace: Option<Pace>,
    /// How many items there are, where the source does not know.
    pub(crate) total: Option<u64>,
    /// The function takes its items, so that nothing can be tried again.
    pub(crate) takes_items: bool,
}

impl Options {
    pub(crate) fn new(policy: ErrorPolicy) -> Self {
        Self {
            policy,
            max_in_flight: 0,
            chunk_size: 0,
            ordered: false,
            interval: Duration::from_secs(2),
            on_progress: None,
            observers: Vec::new(),
            warn_after: None,
            name: String::new(),
            total: None,
            takes_items: false,
            tokens: Vec::new(),
            control: None,
            deadline: None,
            pace: None,
        }
    }

    /// The name in log lines.
    pub(crate) fn title(&self) -> &str {
        if self.name.is_empty() {
            "futureproof"
        } else {
            &self.name
        }
    }

    /// What is done around each call.
    pub(crate) fn instruments(&self) -> Instruments {
        Instruments::new(self.warn_after.map(|_| Arc::default()))
    }

    /// Everybody whom the monitor tells.
    pub(crate) fn take_observers(&mut self, instruments: &Instruments) -> Vec<Observer> {
        let mut observers = mem::take(&mut self.observers);
        observers.extend(log_lines::observer(self.title(), self.interval));
        // It is dropped here if there is to be no monitor.
        let on_progress = self.on_progress.take();
        if let Some(mut f) = on_progress.filter(|_| !self.interval.is_zero()) {
            observers.push(Observer::new(self.interval, move |snapshot, event| {
                if event != Event::Start {
                    f(snapshot);
                }
            }));
        }
        if let Some((after, slots)) = self.warn_after.zip(instruments.slots.as_ref()) {
            observers.push(slow_tasks::observer(self.title(), after, Arc::clone(slots)));
        }
        #[cfg(feature = "metrics")]
        observers.extend(catch_panic(|| metrics::observer(self.title())));
        observers
    }

    /// The chunk size that was asked for, 0 if none was.
    pub(crate) fn fixed_chunk(&self) -> usize {
        self.chunk_size.min(MAX_CHUNK)
    }

    /// Whether something from outside can end the run between any two tasks.
    pub(crate) fn is_guarded(&self) -> bool {
        !self.tokens.is_empty() || self.deadline.is_some()
    }

    /// Whether something can end the run before its source does.
    pub(crate) fn can_stop(&self) -> bool {
        self.policy.can_stop() || self.is_guarded()
    }

    /// How many items may be in flight, where `chosen` is the default.
    pub(crate) fn window(&self, chosen: usize) -> usize {
        match self.max_in_flight {
            0 => chosen,
            window => window,
        }
    }

    /// The most of a window that one chunk should take: a window that is not shared out would go to
    /// one worker.
    pub(crate) fn share(&self, window: usize, width: usize) -> usize {
        match self.chunk_size {
            0 => (window / width.saturating_mul(2)).max(1),
            _ => usize::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_counts_do_not_overflow() {
        let mut options = Options::new(ErrorPolicy::Raise);
        options.chunk_size = usize::MAX;
        assert_eq!(options.fixed_chunk(), MAX_CHUNK);
        options.max_in_flight = usize::MAX;
        assert_eq!(options.window(1), usize::MAX);
    }

    #[test]
    fn a_small_window_is_shared_out() {
        let mut options = Options::new(ErrorPolicy::Raise);
        assert_eq!(options.share(40, 4), 5);
        assert_eq!(options.share(1, 4), 1);
        options.chunk_size = 30;
        assert!(options.share(40, 4) > 30);
    }
}
