//! The thread that watches a run. It is no worker, and wakes at once at the end.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

use crate::observe::counters::{Counters, Snapshot};
use crate::util::TARGET;
use crate::util::panics::{CatchDrop, catch_panic, drop_catching};
use crate::util::sync::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crate::util::sync::now;
use crate::util::sync::thread::{self, JoinHandle};

/// Why an observer is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Start,
    Tick,
    End,
}

type Observe = CatchDrop<Box<dyn FnMut(&Snapshot, Event) + Send>>;

/// A callback that gets the counts at the start, at every interval of its own, and at the end.
pub(crate) struct Observer {
    pub(crate) every: Duration,
    observe: Observe,
    /// When it is called next; `None` for never.
    due: Option<Instant>,
}

impl Observer {
    pub(crate) fn new(
        every: Duration,
        observe: impl FnMut(&Snapshot, Event) + Send + 'static,
    ) -> Self {
        Self {
            every,
            observe: CatchDrop::new(Box::new(observe)),
            due: None,
        }
    }

    fn tell(&mut self, snapshot: &Snapshot, event: Event, time: Instant) {
        catch_panic(|| (*self.observe)(snapshot, event));
        self.due = time.checked_add(self.every);
    }
}

/// A running monitor. Dropping it calls the observers for the last time and joins the thread.
#[derive(Debug)]
pub(crate) struct Monitor {
    // Nothing is sent; dropping the sender wakes the thread.
    alive: Option<Sender<Infallible>>,
    /// Nothing is sent here either; the thread drops the sender when it is done.
    done: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
    name: String,
}

/// How long the end of a run waits for its observers.
const PATIENCE: Duration = Duration::from_secs(1);

impl Monitor {
    /// Starts a monitor, if there are observers.
    pub(crate) fn start(
        name: &str,
        counters: Arc<Counters>,
        observers: Vec<Observer>,
    ) -> io::Result<Option<Self>> {
        if observers.is_empty() {
            return Ok(None);
        }
        let (alive, stop) = bounded(0);
        let (is_busy, done) = bounded(0);
        let first = counters.snapshot();
        let thread = thread::Builder::new()
            .name(format!("{name}-monitor"))
            .spawn(move || {
                watch(&stop, &counters, first, observers);
                drop::<Sender<Infallible>>(is_busy);
            })?;
        Ok(Some(Self {
            alive: Some(alive),
            done,
            thread: Some(thread),
            name: name.to_owned(),
        }))
    }
}

impl Monitor {
    /// Waits up to `PATIENCE` until all observers have had the last counts. Returns whether they have.
    fn is_done(&self) -> bool {
        // Under shuttle, time passes at random.
        cfg!(shuttle) || self.done.recv_deadline(now() + PATIENCE) != Err(RecvTimeoutError::Timeout)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.alive = None;
        // A progress callback may own and drop the very run that it watches.
        if let Some(thread) = self
            .thread
            .take()
            .filter(|it| it.thread().id() != thread::current().id())
        {
            if self.is_done() {
                // Panics of user code are caught, so the thread does not panic.
                let _ = thread.join();
            } else {
                let name = &self.name;
                catch_panic(
                    || warn!(target: TARGET, "{name}: the run ends without waiting for its monitor: an `on_progress` callback or the logger has blocked for {PATIENCE:?}"),
                );
            }
        }
    }
}

fn watch(
    stop: &Receiver<Infallible>,
    counters: &Counters,
    first: Snapshot,
    mut observers: Vec<Observer>,
) {
    let start = now();
    observers
        .iter_mut()
        .for_each(|observer| observer.tell(&first, Event::Start, start));
    loop {
        let ended = wait(
            stop,
            observers.iter().filter_map(|observer| observer.due).min(),
        );
        let (snapshot, time) = (counters.snapshot(), now());
        for observer in &mut observers {
            if ended {
                observer.tell(&snapshot, Event::End, time);
            } else if observer.due.is_some_and(|due| due <= time) {
                observer.tell(&snapshot, Event::Tick, time);
            }
        }
        if ended {
            break;
        }
    }
    // They hold user values, and may be their last owners.
    drop_catching(observers);
}

/// Waits for the end of the run (`true`) or for `until`; `None` is never.
fn wait(stop: &Receiver<Infallible>, until: Option<Instant>) -> bool {
    match until {
        Some(until) => stop.recv_deadline(until) != Err(RecvTimeoutError::Timeout),
        None => stop.recv().is_err(),
    }
}
