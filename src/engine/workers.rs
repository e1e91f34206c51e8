//! The far side of a run as its caller sees it: chunks are handed over, answers come back, and in the
//! end everybody goes home.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

#[cfg(feature = "stream")]
use crate::cancel::OnCancel;
use crate::engine::chunk::Parcel;
use crate::engine::completions::Tray;
use crate::engine::job::{Bench, Outlet, Permit, Shared};
use crate::engine::options::Plan;
use crate::engine::signals::{HandingOut, Signals};
use crate::observe::counters::{Counters, StageCounters};
use crate::observe::instrument::Watch;
use crate::observe::monitor::{Monitor, TARGET};
use crate::pool::Spawn;
use crate::source::Incoming;
#[cfg(feature = "stream")]
use crate::task::Ending;
use crate::util::panics::{bury, contain};
use crate::util::sync::channel::Select;
use crate::util::sync::now;
use crate::util::sync::thread::{self, Thread};

/// The workers of a run and what they do, the types of their homes and functions forgotten: one indirect call a chunk.
pub(crate) trait Hands<I, T, E>: Send {
    fn open(&mut self, num_threads: usize, name: &str) -> usize;
    fn submit(&self, chunk: Parcel<I, T, E>);
    /// Does something that no worker has begun, if there is any such thing.
    fn help(&self) -> bool;
    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool;
    fn is_current(&self) -> bool;
    /// Sends what has finished in chunks that go on.
    fn sweep(&self);
    /// Nothing begins any more. What nobody has begun comes back at once.
    fn close(&self);
    /// The stages, where there are several.
    fn stages(&self) -> Vec<Arc<StageCounters>> {
        Vec::new()
    }
    /// The threads that run tasks, and the indices of those.
    fn calls(&self) -> Vec<(Thread, Range<u64>)>;
    /// All is answered: lets go of the functions and of the homes.
    fn leave(self: Box<Self>);
}

/// How a home gets ready for what a waiting consumer has submitted, where it can.
pub(crate) type Settle<P> = fn(&P, &dyn Fn() -> bool) -> bool;

/// Those of a run with one function.
pub(crate) struct Workers<P, F, I, T, E> {
    home: P,
    settle: Option<Settle<P>>,
    bench: Arc<Bench<F, I, T, E>>,
}

impl<P, F, I, T, E> Workers<P, F, I, T, E> {
    pub(crate) fn new(
        home: P,
        settle: Option<Settle<P>>,
        function: F,
        shared: &Arc<Shared<I, T, E>>,
    ) -> Self {
        Self {
            home,
            settle,
            bench: Arc::new(Bench::new(function, Arc::clone(shared))),
        }
    }
}

impl<'s, P, F, I, T, E> Hands<I, T, E> for Workers<P, F, I, T, E>
where
    P: Spawn<'s>,
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
{
    fn open(&mut self, num_threads: usize, name: &str) -> usize {
        let width = open(&mut self.home, num_threads, name);
        self.bench.queue.set_width(width);
        width
    }

    fn submit(&self, chunk: Parcel<I, T, E>) {
        hand_out(&self.home, &self.bench, chunk);
    }

    fn help(&self) -> bool {
        self.bench.help()
    }

    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.settle
            .is_some_and(|settle| settle(&self.home, is_over))
    }

    fn is_current(&self) -> bool {
        self.home.is_current()
    }

    fn sweep(&self) {
        self.bench.sweep();
    }

    fn close(&self) {
        self.bench.close();
    }

    fn calls(&self) -> Vec<(Thread, Range<u64>)> {
        self.bench.queue.calls()
    }

    fn leave(self: Box<Self>) {
        // Each by itself: the home and what the function captures may both panic when dropped.
        let Self { home, bench, .. } = *self;
        bury(home);
        bench.clear();
    }
}

/// Opens a home. Returns how many can work there at once.
pub(crate) fn open<'s>(home: &mut impl Spawn<'s>, num_threads: usize, name: &str) -> usize {
    home.open(num_threads, name).clamp(1, MAX_WIDTH)
}

/// Queues a chunk, and gives its home the permits for it.
pub(crate) fn hand_out<'s, F, I, T, E, O>(
    home: &impl Spawn<'s>,
    bench: &Arc<Bench<F, I, T, E, O>>,
    chunk: Parcel<I, T, E>,
) where
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
    O: Outlet<I, T, E> + 's,
{
    give_permits(home, bench, bench.push(chunk));
}

/// Gives a home so many permits.
pub(crate) fn give_permits<'s, F, I, T, E, O>(
    home: &impl Spawn<'s>,
    bench: &Arc<Bench<F, I, T, E, O>>,
    permits: usize,
) where
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
    O: Outlet<I, T, E> + 's,
{
    let _handing_out = HandingOut::new();
    for _ in 0..permits {
        let permit = Permit::new(bench);
        home.spawn(move || permit.run());
    }
}

/// The most that are taken to be at work at once, whatever a home says.
const MAX_WIDTH: usize = 1 << 16;

/// How long whoever leaves a run waits for its calls before the log says so; then twice as long, and so on.
const SILENCE: Duration = Duration::from_secs(1);

/// Those who work for one run. Its owner has to bring them home.
pub(crate) struct Crew<'a, I, T, E> {
    hands: Option<Box<dyn Hands<I, T, E> + 'a>>,
    shared: Arc<Shared<I, T, E>>,
    /// Answers that were taken from the tray.
    received: VecDeque<Parcel<I, T, E>>,
    monitor: Option<Monitor>,
    title: String,
    stages: Vec<Arc<StageCounters>>,
    width: usize,
    /// Items that are not answered.
    items: usize,
}

impl<'a, I, T, E> Crew<'a, I, T, E> {
    /// `gather`: makes the workers, for what they are to share.
    pub(crate) fn new(
        signals: Signals,
        watch: Watch,
        gather: impl FnOnce(&Arc<Shared<I, T, E>>) -> Box<dyn Hands<I, T, E> + 'a>,
    ) -> Self {
        let shared = Arc::new(Shared {
            tray: Tray::new(),
            signals,
            counters: Arc::default(),
            watch,
        });
        let hands = gather(&shared);
        Self {
            stages: hands.stages(),
            hands: Some(hands),
            shared,
            received: VecDeque::new(),
            monitor: None,
            title: String::new(),
            width: 0,
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

    pub(crate) fn halt(&self) -> Halt<I, T, E> {
        Halt {
            shared: Arc::clone(&self.shared),
        }
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    pub(crate) fn stages(&self) -> &[Arc<StageCounters>] {
        &self.stages
    }

    /// How many can work at once; 0 before the run is opened.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Gets everybody ready for a source of `total` items, if that is known.
    pub(crate) fn open(&mut self, plan: &mut Plan, total: Option<u64>) {
        let hands = self.hands.as_mut();
        self.width = hands.map_or(1, |hands| hands.open(plan.num_threads, &plan.name));
        self.title = plan.title().to_owned();
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

    /// Hands a chunk over.
    pub(crate) fn submit(&mut self, chunk: Parcel<I, T, E>) {
        let hands = self.hands.as_ref();
        let hands = hands.expect("nothing is submitted once the run has ended");
        self.items += chunk.rest.len();
        self.signals().submit();
        hands.submit(chunk);
    }

    /// How many chunks are not answered.
    pub(crate) fn outstanding(&self) -> usize {
        self.signals().outstanding()
    }

    /// Whether every item is answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.items == 0
    }

    pub(crate) fn try_receive(&mut self) -> Option<Parcel<I, T, E>> {
        if self.received.is_empty() {
            self.shared.tray.take(&mut self.received);
        }
        let answer = self.received.pop_front()?;
        self.items -= answer.len() + answer.rest.len();
        Some(answer)
    }

    /// Has what is finished handed over, also where its neighbours go on.
    pub(crate) fn sweep(&self) {
        self.signals().set_hungry(true);
        // After that: what finishes later is handed over by whoever has run it.
        if let Some(hands) = &self.hands {
            hands.sweep();
        }
    }

    /// Blocks until there may be something to do: an answer, a cancel, an item of `source` if that is
    /// given, or `until`. Returns whether it was something else than `until`.
    pub(crate) fn wait(&self, source: Option<&dyn Incoming>, until: Option<Instant>) -> bool {
        self.signals().await_answers();
        if self.settle() || self.help() {
            self.signals().await_nothing();
            return true;
        }
        let rings = self.shared.tray.rings();
        let mut select = Select::new();
        select.recv(rings);
        for token in self.signals().tokens() {
            select.recv(token.bell());
        }
        if let Some(source) = source {
            source.wait_in(&mut select);
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
        if let Some(source) = source {
            source.forget_waking();
        }
        is_ready
    }

    /// Whoever is about to wait gives a quick job a moment, and else starts the threads that no job has asked for: a
    /// function may use them. Returns whether there is an answer.
    fn settle(&self) -> bool {
        let has_answer = || !self.shared.tray.is_empty();
        let hands = self.hands.as_ref();
        hands.is_some_and(|hands| hands.settle(&has_answer))
    }

    /// Whether something may be finished that is not known here: an item of a chunk that goes on, or a
    /// chunk that was not worth a ring.
    pub(crate) fn may_hold_back(&self) -> bool {
        let chunks = self.outstanding();
        self.items > chunks || chunks > self.width
    }

    /// On one of the very threads that jobs run on, works on what nobody has begun: nobody else may be there to do
    /// it. Returns whether there is an answer.
    fn help(&self) -> bool {
        if self.items == 0 || !self.is_current() {
            return false;
        }
        let hands = self.hands.as_ref();
        while self.shared.tray.is_empty() {
            if !hands.is_some_and(|hands| hands.help()) {
                return false;
            }
        }
        true
    }

    fn is_current(&self) -> bool {
        self.hands.as_ref().is_some_and(|hands| hands.is_current())
    }

    /// Nothing begins any more. What nobody has begun comes back, however busy the home is with other things.
    pub(crate) fn close(&self) {
        if let Some(hands) = &self.hands {
            hands.close();
        }
    }

    /// Stops everybody, waits for those who run, and gives what comes back to `keep`.
    pub(crate) fn bring_home(&mut self, mut keep: impl FnMut(Parcel<I, T, E>)) {
        self.signals().halt();
        self.counters().leave(None);
        let mut patience = SILENCE;
        let mut is_inside = false;
        self.close();
        if let Some(hands) = &self.hands {
            // Left inside one of its own tasks, a run cannot wait for that.
            let me = thread::current().id();
            is_inside = hands.calls().iter().any(|(worker, _)| worker.id() == me);
        }
        loop {
            while let Some(answer) = self.try_receive() {
                keep(answer);
            }
            if self.items == 0 || self.hands.is_none() || is_inside {
                break;
            }
            // What runs may need the threads that nobody has asked for.
            if self.settle() {
                continue;
            }
            // The last answer rings, if no other does.
            let until = now() + patience;
            if self.shared.tray.rings().recv_deadline(until).is_err() {
                self.tell_who_runs(patience);
                patience *= 2;
            }
        }
        // All jobs have let go of the function, so this is where its captures are dropped, and the
        // threads of an own pool are joined.
        if let Some(hands) = self.hands.take() {
            hands.leave();
        }
    }

    fn tell_who_runs(&self, waited: Duration) {
        let calls = self.hands.as_ref().map(|hands| hands.calls());
        let calls: Vec<String> = calls.iter().flatten().map(call).collect();
        let (title, calls) = (&self.title, calls.join(", "));
        contain(
            || warn!(target: TARGET, "{title}: has ended, and waits since {waited:.0?} for {calls}"),
        );
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

/// When dropped, nothing starts any more, and what runs is told that nobody waits for it.
pub(crate) struct Halt<I, T, E> {
    shared: Arc<Shared<I, T, E>>,
}

impl<I, T, E> Drop for Halt<I, T, E> {
    fn drop(&mut self) {
        self.shared.signals.halt();
        self.shared.signals.abandon();
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

    /// Has `f` called when the run is cancelled.
    pub(crate) fn on_cancel(&self, f: impl Fn() + Send + Clone + 'static) -> Vec<OnCancel> {
        let tokens = self.shared.signals.tokens().iter();
        tokens.map(|token| token.on_cancel(f.clone())).collect()
    }
}

/// `task 7 on futureproof-3`.
fn call((worker, tasks): &(Thread, Range<u64>)) -> String {
    let worker = worker.name().unwrap_or("a thread without a name");
    let (first, last) = (tasks.start, tasks.end.saturating_sub(1));
    if first >= last {
        format!("task {first} on {worker}")
    } else {
        format!("one of the tasks {first} to {last} on {worker}")
    }
}
