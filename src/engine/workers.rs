//! The far side of a run as its caller sees it: chunks are handed over, answers come back, and in the
//! end everybody goes spawner.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

#[cfg(feature = "stream")]
use crate::cancel::OnCancel;
use crate::engine::chunk::Chunk;
use crate::engine::completions::Completions;
use crate::engine::job::{JobContext, Permit, Shared, Sink};
use crate::engine::options::Options;
use crate::engine::signals::{HandingOut, Signals};
use crate::observe::counters::{Counters, StageCounters};
use crate::observe::instrument::Instruments;
use crate::observe::monitor::{Monitor, TARGET};
use crate::pool::Spawn;
use crate::source::Incoming;
#[cfg(feature = "stream")]
use crate::task::Ending;
use crate::util::panics::{catch_panic, drop_catching};
use crate::util::sync::channel::Select;
use crate::util::sync::now;
use crate::util::sync::thread::{self, Thread};

/// The workers of a run and what they do, the types of their homes and functions forgotten: one indirect call a chunk.
pub(crate) trait Dispatch<I, T, E>: Send {
    fn open(&mut self, num_threads: usize, name: &str) -> usize;
    fn submit(&self, chunk: Box<Chunk<I, T, E>>);
    /// Does something that no worker has begun, if there is any such thing.
    fn help(&self) -> bool;
    fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool;
    fn is_current(&self) -> bool;
    /// Sends what has finished in chunks that go on.
    fn flush(&self);
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

/// How a spawner gets ready for what a waiting consumer has submitted, where it can.
pub(crate) type WarmUp<P> = fn(&P, &dyn Fn() -> bool) -> bool;

/// Those of a run with one function.
pub(crate) struct StageWorkers<P, F, I, T, E> {
    spawner: P,
    warm_up: Option<WarmUp<P>>,
    context: Arc<JobContext<F, I, T, E>>,
}

impl<P, F, I, T, E> StageWorkers<P, F, I, T, E> {
    pub(crate) fn new(
        spawner: P,
        warm_up: Option<WarmUp<P>>,
        function: F,
        shared: &Arc<Shared<I, T, E>>,
    ) -> Self {
        Self {
            spawner,
            warm_up,
            context: Arc::new(JobContext::new(function, Arc::clone(shared))),
        }
    }
}

impl<'s, P, F, I, T, E> Dispatch<I, T, E> for StageWorkers<P, F, I, T, E>
where
    P: Spawn<'s>,
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
{
    fn open(&mut self, num_threads: usize, name: &str) -> usize {
        let width = open(&mut self.spawner, num_threads, name);
        self.context.queue.set_width(width);
        width
    }

    fn submit(&self, chunk: Box<Chunk<I, T, E>>) {
        hand_out(&self.spawner, &self.context, chunk);
    }

    fn help(&self) -> bool {
        self.context.help()
    }

    fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.warm_up
            .is_some_and(|warm_up| warm_up(&self.spawner, is_over))
    }

    fn is_current(&self) -> bool {
        self.spawner.is_current()
    }

    fn flush(&self) {
        self.context.flush();
    }

    fn close(&self) {
        self.context.close();
    }

    fn calls(&self) -> Vec<(Thread, Range<u64>)> {
        self.context.queue.calls()
    }

    fn leave(self: Box<Self>) {
        // Each by itself: the spawner and what the function captures may both panic when dropped.
        let Self {
            spawner, context, ..
        } = *self;
        drop_catching(spawner);
        context.clear();
    }
}

/// Opens a spawner. Returns how many can work there at once.
pub(crate) fn open<'s>(spawner: &mut impl Spawn<'s>, num_threads: usize, name: &str) -> usize {
    spawner.open(num_threads, name).clamp(1, MAX_WIDTH)
}

/// Queues a chunk, and gives its spawner the permits for it.
pub(crate) fn hand_out<'s, F, I, T, E, O>(
    spawner: &impl Spawn<'s>,
    context: &Arc<JobContext<F, I, T, E, O>>,
    chunk: Box<Chunk<I, T, E>>,
) where
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
    O: Sink<I, T, E> + 's,
{
    give_permits(spawner, context, context.push(chunk));
}

/// Gives a spawner so many permits.
pub(crate) fn give_permits<'s, F, I, T, E, O>(
    spawner: &impl Spawn<'s>,
    context: &Arc<JobContext<F, I, T, E, O>>,
    permits: usize,
) where
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
    O: Sink<I, T, E> + 's,
{
    let _handing_out = HandingOut::new();
    for _ in 0..permits {
        let permit = Permit::new(context);
        spawner.spawn(move || permit.run());
    }
}

/// The most that are taken to be at work at once, whatever a spawner says.
const MAX_WIDTH: usize = 1 << 16;

/// How long whoever leaves a run waits for its calls before the log says so; then twice as long, and so on.
const SILENCE: Duration = Duration::from_secs(1);

/// Those who work for one run. Its owner has to bring them spawner.
pub(crate) struct Workers<'a, I, T, E> {
    dispatch: Option<Box<dyn Dispatch<I, T, E> + 'a>>,
    shared: Arc<Shared<I, T, E>>,
    /// Answers that were taken from the completions.
    received: VecDeque<Box<Chunk<I, T, E>>>,
    monitor: Option<Monitor>,
    title: String,
    stages: Vec<Arc<StageCounters>>,
    width: usize,
    /// Items that are not answered.
    items: usize,
}

impl<'a, I, T, E> Workers<'a, I, T, E> {
    /// `gather`: makes the workers, for what they are to share.
    pub(crate) fn new(
        signals: Signals,
        instruments: Instruments,
        gather: impl FnOnce(&Arc<Shared<I, T, E>>) -> Box<dyn Dispatch<I, T, E> + 'a>,
    ) -> Self {
        let shared = Arc::new(Shared {
            completions: Completions::new(),
            signals,
            counters: Arc::default(),
            instruments,
        });
        let dispatch = gather(&shared);
        Self {
            stages: dispatch.stages(),
            dispatch: Some(dispatch),
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

    pub(crate) fn halt(&self) -> StopOnDrop<I, T, E> {
        StopOnDrop {
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
    pub(crate) fn open(&mut self, options: &mut Options, total: Option<u64>) {
        let dispatch = self.dispatch.as_mut();
        self.width = dispatch.map_or(1, |dispatch| {
            dispatch.open(options.num_threads, &options.name)
        });
        self.title = options.title().to_owned();
        self.counters().start(total);
        #[cfg(feature = "tracing")]
        self.shared.instruments.trace.start(options.title());
        let readers = options.take_readers(self.shared.instruments.slots.as_ref());
        match Monitor::start(options.title(), Arc::clone(self.counters()), readers) {
            Ok(monitor) => self.monitor = monitor,
            Err(error) => {
                catch_panic(
                    || warn!(target: TARGET, "{}: runs without a monitor: {error}", options.title()),
                );
            }
        }
    }

    /// Dispatch a chunk over.
    pub(crate) fn submit(&mut self, chunk: Box<Chunk<I, T, E>>) {
        let dispatch = self.dispatch.as_ref();
        let dispatch = dispatch.expect("nothing is submitted once the run has ended");
        self.items += chunk.rest.len();
        self.signals().submit();
        dispatch.submit(chunk);
    }

    /// How many chunks are not answered.
    pub(crate) fn outstanding(&self) -> usize {
        self.signals().outstanding()
    }

    /// Whether every item is answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.items == 0
    }

    pub(crate) fn try_receive(&mut self) -> Option<Box<Chunk<I, T, E>>> {
        if self.received.is_empty() {
            self.shared.completions.take(&mut self.received);
        }
        let answer = self.received.pop_front()?;
        self.items -= answer.len() + answer.rest.len();
        Some(answer)
    }

    /// Has what is finished handed over, also where its neighbours go on.
    pub(crate) fn flush(&self) {
        self.signals().request_flush(true);
        // After that: what finishes later is handed over by whoever has run it.
        if let Some(dispatch) = &self.dispatch {
            dispatch.flush();
        }
    }

    /// Blocks until there may be something to do: an answer, a cancel, an item of `source` if that is
    /// given, or `until`. Returns whether it was something else than `until`.
    pub(crate) fn wait(&self, source: Option<&dyn Incoming>, until: Option<Instant>) -> bool {
        self.signals().await_answers();
        if self.warm_up() || self.help() {
            self.signals().await_nothing();
            return true;
        }
        let rings = self.shared.completions.rings();
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
        // Before the completions is looked at: what comes after that rings again.
        let _ = rings.try_recv();
        if let Some(source) = source {
            source.forget_waking();
        }
        is_ready
    }

    /// Whoever is about to wait gives a quick job a moment, and else starts the threads that no job has asked for: a
    /// function may use them. Returns whether there is an answer.
    fn warm_up(&self) -> bool {
        let has_answer = || !self.shared.completions.is_empty();
        let dispatch = self.dispatch.as_ref();
        dispatch.is_some_and(|dispatch| dispatch.warm_up(&has_answer))
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
        let dispatch = self.dispatch.as_ref();
        while self.shared.completions.is_empty() {
            if !dispatch.is_some_and(|dispatch| dispatch.help()) {
                return false;
            }
        }
        true
    }

    fn is_current(&self) -> bool {
        self.dispatch
            .as_ref()
            .is_some_and(|dispatch| dispatch.is_current())
    }

    /// Nothing begins any more. What nobody has begun comes back, however busy the spawner is with other things.
    pub(crate) fn close(&self) {
        if let Some(dispatch) = &self.dispatch {
            dispatch.close();
        }
    }

    /// Stops everybody, waits for those who run, and gives what comes back to `keep`.
    pub(crate) fn join(&mut self, mut keep: impl FnMut(Box<Chunk<I, T, E>>)) {
        self.signals().halt();
        self.counters().leave(None);
        let mut patience = SILENCE;
        let mut is_inside = false;
        self.close();
        if let Some(dispatch) = &self.dispatch {
            // Left inside one of its own tasks, a run cannot wait for that.
            let me = thread::current().id();
            is_inside = dispatch.calls().iter().any(|(worker, _)| worker.id() == me);
        }
        loop {
            while let Some(answer) = self.try_receive() {
                keep(answer);
            }
            if self.items == 0 || self.dispatch.is_none() || is_inside {
                break;
            }
            // What runs may need the threads that nobody has asked for.
            if self.warm_up() {
                continue;
            }
            // The last answer rings, if no other does.
            let until = now() + patience;
            if self
                .shared
                .completions
                .rings()
                .recv_deadline(until)
                .is_err()
            {
                self.tell_who_runs(patience);
                patience *= 2;
            }
        }
        // All jobs have let go of the function, so this is where its captures are dropped, and the
        // threads of an own pool are joined.
        if let Some(dispatch) = self.dispatch.take() {
            dispatch.leave();
        }
    }

    fn tell_who_runs(&self, waited: Duration) {
        let calls = self.dispatch.as_ref().map(|dispatch| dispatch.calls());
        let calls: Vec<String> = calls.iter().flatten().map(call).collect();
        let (title, calls) = (&self.title, calls.join(", "));
        catch_panic(
            || warn!(target: TARGET, "{title}: has ended, and waits since {waited:.0?} for {calls}"),
        );
    }

    /// The same, where nobody waits for what comes back: calls that look for that end soon.
    pub(crate) fn abandon(&mut self, keep: impl FnMut(Box<Chunk<I, T, E>>)) {
        self.signals().halt();
        self.signals().abandon();
        self.join(keep);
    }

    /// All figures are in: the clock stops, the monitor writes its last line, and the run's span ends.
    pub(crate) fn finish(&mut self) {
        self.counters().end();
        self.monitor = None;
        #[cfg(feature = "tracing")]
        self.shared.instruments.trace.end();
    }
}

/// When dropped, nothing starts any more, and what runs is told that nobody waits for it.
pub(crate) struct StopOnDrop<I, T, E> {
    shared: Arc<Shared<I, T, E>>,
}

impl<I, T, E> Drop for StopOnDrop<I, T, E> {
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
        self.shared.completions.ring();
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
