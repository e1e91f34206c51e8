//! The far side of a run as its caller sees it: chunks are handed over, answers come back, and in the
//! end everybody goes home.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use log::warn;

use crate::attend::Watch;
#[cfg(feature = "stream")]
use crate::cancel::OnCancel;
use crate::chunk::Parcel;
use crate::contain::{bury, contain};
use crate::counters::Counters;
use crate::job::{Job, Reply, Shared};
use crate::monitor::{Monitor, TARGET};
use crate::plan::Plan;
use crate::signals::Signals;
use crate::spawn::Spawn;
use crate::sync::channel::Select;
#[cfg(feature = "stream")]
use crate::task::Ending;
use crate::tray::Tray;

/// The home of the jobs and the function, their types forgotten: one indirect call a chunk.
trait Hands<C>: Send {
    fn open(&mut self, num_threads: usize, name: &str) -> usize;
    /// Returns whether it was run at once.
    fn submit(&self, chunk: C) -> bool;
    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool;
    fn is_current(&self) -> bool;
    fn leave(self: Box<Self>);
}

type BoxedHands<'a, I, T, E> = Box<dyn Hands<Parcel<I, T, E>> + 'a>;

struct Workers<P, F, I, T, E> {
    home: P,
    width: usize,
    function: Arc<F>,
    shared: Arc<Shared<I, T, E>>,
}

impl<'s, P, F, I, T, E> Hands<Parcel<I, T, E>> for Workers<P, F, I, T, E>
where
    P: Spawn<'s>,
    F: Fn(&I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
{
    fn open(&mut self, num_threads: usize, name: &str) -> usize {
        self.width = self.home.open(num_threads, name).max(1);
        self.width
    }

    fn submit(&self, chunk: Parcel<I, T, E>) -> bool {
        // Queued behind the very task that waits for it, a job would never run.
        let is_inline = self.home.is_current();
        let reply = Reply {
            chunk: Some(chunk),
            width: (!is_inline).then_some(self.width),
            shared: Arc::clone(&self.shared),
        };
        let job = Job {
            function: Arc::clone(&self.function),
            reply,
        };
        if is_inline {
            job.run();
        } else {
            self.home.spawn(move || job.run());
        }
        is_inline
    }

    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.home.settle(is_over)
    }

    fn is_current(&self) -> bool {
        self.home.is_current()
    }

    fn leave(self: Box<Self>) {
        // Each by itself: the home and what the function captures may both panic when dropped.
        let Self { home, function, .. } = *self;
        bury(home);
        bury(function);
    }
}

/// Those who work for one run. Its owner has to bring them home.
pub(crate) struct Crew<'a, I, T, E> {
    hands: Option<BoxedHands<'a, I, T, E>>,
    shared: Arc<Shared<I, T, E>>,
    /// Answers that were taken from the tray.
    received: VecDeque<Parcel<I, T, E>>,
    monitor: Option<Monitor>,
    width: usize,
    /// Chunks that are not answered, and the items in them.
    chunks: usize,
    items: usize,
}

impl<'a, I, T, E> Crew<'a, I, T, E> {
    pub(crate) fn new<'s, P, F>(home: P, function: F, signals: Signals, watch: Watch) -> Self
    where
        's: 'a,
        P: Spawn<'s> + 'a,
        F: Fn(&I) -> Result<T, E> + Send + Sync + 's,
        I: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        let shared = Arc::new(Shared {
            tray: Tray::new(),
            signals,
            counters: Arc::default(),
            watch,
        });
        let workers = Workers {
            home,
            width: 1,
            function: Arc::new(function),
            shared: Arc::clone(&shared),
        };
        Self {
            hands: Some(Box::new(workers)),
            shared,
            received: VecDeque::new(),
            monitor: None,
            width: 0,
            chunks: 0,
            items: 0,
        }
    }

    pub(crate) fn signals(&self) -> &Signals {
        &self.shared.signals
    }

    /// To stop the run from another thread.
    #[cfg(feature = "stream")]
    pub(crate) fn remote(&self) -> Remote<I, T, E> {
        Remote {
            shared: Arc::clone(&self.shared),
        }
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// How many can work at once; 0 before the run is opened.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Gets everybody ready for a source of `total` items, if that is known.
    pub(crate) fn open(&mut self, plan: &mut Plan, total: Option<u64>) {
        let hands = self.hands.as_mut();
        self.width = hands.map_or(1, |hands| hands.open(plan.num_threads, &plan.name));
        self.counters().start(total);
        #[cfg(feature = "tracing")]
        self.shared.watch.trace.start(plan.title());
        let readers = plan.take_readers(self.shared.watch.desks.as_ref());
        match Monitor::start(plan.title(), Arc::clone(self.counters()), readers) {
            Ok(monitor) => self.monitor = monitor,
            Err(error) => {
                contain(
                    || warn!(target: TARGET, "{}: runs without a monitor: {error}", plan.title()),
                );
            }
        }
    }

    /// Hands a chunk over. Returns whether it was run at once, by the caller.
    pub(crate) fn submit(&mut self, chunk: Parcel<I, T, E>) -> bool {
        let Some(hands) = &self.hands else {
            return false;
        };
        self.chunks += 1;
        self.items += chunk.len();
        self.signals().submit();
        hands.submit(chunk)
    }

    /// How many chunks are not answered.
    pub(crate) fn outstanding(&self) -> usize {
        self.chunks
    }

    pub(crate) fn try_receive(&mut self) -> Option<Parcel<I, T, E>> {
        if self.received.is_empty() {
            self.shared.tray.take(&mut self.received);
        }
        let answer = self.received.pop_front()?;
        Some(self.note(answer))
    }

    fn note(&mut self, answer: Parcel<I, T, E>) -> Parcel<I, T, E> {
        self.chunks -= usize::from(answer.is_last);
        self.items -= answer.len() + answer.unrun.len();
        answer
    }

    /// Blocks until there may be something to do: an answer, a cancel, an item of `source` if that is
    /// given, or `until`. Returns whether it was something else than `until`.
    pub(crate) fn wait<S>(&self, source: Option<&Receiver<S>>, until: Option<Instant>) -> bool {
        self.signals().await_answers(self.chunks);
        let has_answer = || !self.shared.tray.is_empty();
        if self
            .hands
            .as_ref()
            .is_some_and(|hands| hands.settle(&has_answer))
        {
            self.signals().await_nothing();
            return true;
        }
        self.help();
        let rings = self.shared.tray.rings();
        let mut select = Select::new();
        select.recv(rings);
        if let Some(token) = self.signals().token() {
            select.recv(token.bell());
        }
        if let Some(source) = source {
            select.recv(source);
        }
        let is_ready = match until {
            Some(until) => select.ready_deadline(until).is_ok(),
            None => {
                select.ready();
                true
            }
        };
        self.signals().await_nothing();
        // Before the tray is looked at: what comes after that rings again.
        let _ = rings.try_recv();
        is_ready
    }

    /// Whether something may be finished that is not known here: an item of a chunk that goes on, or a
    /// chunk that was not worth a ring.
    pub(crate) fn may_hold_back(&self) -> bool {
        self.items > self.chunks || self.chunks > self.width
    }

    /// On one of the very threads that jobs run on, does the queued ones: nobody else may be there
    /// to do them. Chunks submitted from here were run inline, so these come from before the run
    /// was moved here.
    fn help(&self) {
        if self.chunks > 0 && self.is_current() {
            while self.shared.tray.is_empty()
                && rayon_core::yield_now() == Some(rayon_core::Yield::Executed)
            {}
        }
    }

    fn is_current(&self) -> bool {
        self.hands.as_ref().is_some_and(|hands| hands.is_current())
    }

    /// Stops everybody, waits for those who run, and gives what comes back to `keep`.
    pub(crate) fn bring_home(&mut self, mut keep: impl FnMut(Parcel<I, T, E>)) {
        self.signals().halt();
        // Dropped on one of its own threads, a run may be in a task of its own: it cannot wait for that.
        loop {
            while let Some(answer) = self.try_receive() {
                keep(answer);
            }
            if self.chunks == 0 || self.hands.is_none() || self.is_current() {
                break;
            }
            // The last answer rings, if no other does.
            let _ = self.shared.tray.rings().recv();
        }
        // All jobs have let go of the function, so this is where its captures are dropped, and the
        // threads of an own pool are joined.
        if let Some(hands) = self.hands.take() {
            hands.leave();
        }
    }

    /// The same, where nobody waits for what comes back: calls that look for that end soon.
    pub(crate) fn abandon(&mut self, keep: impl FnMut(Parcel<I, T, E>)) {
        self.signals().halt();
        self.signals().abandon();
        self.bring_home(keep);
    }

    /// All figures are in: the clock stops, the monitor writes its last line, and the run's span ends.
    pub(crate) fn dismiss(&mut self) {
        self.counters().end();
        self.monitor = None;
        #[cfg(feature = "tracing")]
        self.shared.watch.trace.end();
    }
}

/// What can be done about a run from another thread.
#[cfg(feature = "stream")]
pub(crate) struct Remote<I, T, E> {
    shared: Arc<Shared<I, T, E>>,
}

#[cfg(feature = "stream")]
impl<I, T, E> Remote<I, T, E> {
    /// Nothing starts any more, and the caller's half takes note of it at once.
    pub(crate) fn halt(&self) {
        self.shared.signals.halt();
        self.shared.signals.abandon();
        self.shared.tray.ring();
    }

    /// How the run is cut short from outside, if it is.
    pub(crate) fn interruption(&self) -> Option<Ending> {
        let signals = &self.shared.signals;
        if signals.is_cancelled() {
            Some(Ending::Cancelled)
        } else {
            signals.is_late().then_some(Ending::DeadlineExceeded)
        }
    }

    /// Has `f` called when the run is cancelled, if it can be.
    pub(crate) fn on_cancel(&self, f: impl FnOnce() + Send + 'static) -> Option<OnCancel> {
        let token = self.shared.signals.token()?;
        Some(token.on_cancel(f))
    }
}
