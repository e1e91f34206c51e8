//! Several functions one after the other, each on threads of its own, as one run.
//!
//! What a stage's workers have made goes on to the next stage's spawner from there; a failure, and what may not start, goes
//! back to the caller at once. The caller's half does not know of it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::engine::chunk::{Chunk, Outcome};
use crate::engine::job::{JobContext, Shared, Sink};
use crate::engine::retry::Delays;
use crate::engine::signals::Signals;
use crate::engine::workers::{Dispatch, WarmUp, give_permits, hand_out, open};
use crate::observe::counters::StageCounters;
use crate::observe::instrument::Instruments;
use crate::pool::Spawn;
use crate::util::panics::drop_catching;
use crate::util::sync::RwLock;
use crate::util::sync::atomic::{AtomicBool, Ordering};
use crate::util::sync::thread::Thread;

/// The stages of a run before its last function; made by [`Futureproof::stage`](crate::Futureproof::stage).
pub struct Stages<L, P, F, V> {
    before: L,
    spawner: Spawner<P>,
    function: F,
    made: PhantomData<fn() -> V>,
}

/// Where a stage runs, and how.
pub(crate) struct Spawner<P> {
    pub(crate) pool: P,
    pub(crate) warm_up: Option<WarmUp<P>>,
    pub(crate) num_threads: usize,
    pub(crate) name: String,
}

impl<L, P, F, V> Stages<L, P, F, V> {
    pub(crate) fn new(before: L, spawner: Spawner<P>, function: F) -> Self {
        Self {
            before,
            spawner,
            function,
            made: PhantomData,
        }
    }
}

impl<L, P, F, V> fmt::Debug for Stages<L, P, F, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stages").finish_non_exhaustive()
    }
}

/// An item on its way through the stages, with what the one before has made of it.
#[derive(Debug)]
pub(crate) struct Staged<I, V> {
    input: I,
    value: Option<V>,
}

impl<I, V> Staged<I, V> {
    fn into_input(self) -> I {
        // The user's value: its destructor may panic, and this runs on a worker.
        drop_catching(self.value);
        self.input
    }

    pub(crate) fn value(&mut self) -> &mut Option<V> {
        &mut self.value
    }
}

/// What goes from one stage to the next: items without a gap.
pub(crate) struct Batch<I, V> {
    first: u64,
    items: Vec<Staged<I, V>>,
    attempts: u32,
    delays: Option<Delays>,
    is_final: bool,
    grain: usize,
    each_before: Duration,
}

impl<I, V> Batch<I, V> {
    fn into_chunk<T, E>(self) -> Box<Chunk<Staged<I, V>, T, E>> {
        let mut chunk = Box::new(Chunk::new());
        chunk.reset(self.first, self.is_final);
        chunk.attempts = self.attempts;
        chunk.delays = self.delays;
        chunk.grain = self.grain;
        chunk.each_before = self.each_before;
        chunk.inputs = self.items;
        chunk.set_pending();
        chunk
    }
}

/// A stage, as the one before it sees it.
pub(crate) trait Next<I, V>: Send + Sync {
    /// Queues it for its workers.
    fn queue(&self, batch: Batch<I, V>);
    /// The same; but where this thread is one of its spawner's, it runs it at once.
    fn run(&self, batch: Batch<I, V>);
    /// Whether one of its workers has found nothing to do.
    fn is_flush_requested(&self) -> bool;
    fn feed(&self);
}

/// A stage, as the caller's half sees it.
pub(crate) trait StageHandle: Send + Sync {
    fn open(&self) -> usize;
    fn help(&self) -> bool;
    fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool;
    fn is_current(&self) -> bool;
    fn flush(&self);
    fn close(&self);
    fn calls(&self) -> Vec<(Thread, Range<u64>)>;
    fn counters(&self) -> Arc<StageCounters>;
    fn leave(&self);
}

type SharedContext<F, I, U, V, E, O> = Arc<JobContext<F, Staged<I, U>, V, E, O>>;

/// A function, its spawner, and the way on.
struct Stage<P, F, I, U, V, E, O> {
    /// Gone when the run is left.
    spawner: RwLock<Option<Spawner<P>>>,
    number: usize,
    context: SharedContext<F, I, U, V, E, O>,
}

impl<P, F, I, U, V, E, O> Stage<P, F, I, U, V, E, O> {
    fn new(number: usize, spawner: Spawner<P>, function: F, sink: O) -> Self {
        Self {
            spawner: RwLock::new(Some(spawner)),
            number,
            context: Arc::new(JobContext::new(function, sink)),
        }
    }

    fn with_spawner<R>(&self, f: impl FnOnce(&Spawner<P>) -> R) -> Option<R> {
        let spawner = self.spawner.read().unwrap_or_else(PoisonError::into_inner);
        spawner.as_ref().map(f)
    }
}

/// Where what a stage has made goes.
pub(crate) trait Way {
    /// Whether a worker of the stage that this belongs to has found nothing to do.
    fn flush_requested(&self) -> &AtomicBool;
    fn counters(&self) -> &Arc<StageCounters>;
}

impl<'s, P, F, I, U, V, E, O> Next<I, U> for Stage<P, F, I, U, V, E, O>
where
    P: Spawn<'s> + Send + Sync,
    F: Fn(&mut Staged<I, U>) -> Result<V, E> + Send + Sync + 's,
    I: Send + 's,
    U: Send + 's,
    V: Send + 's,
    E: fmt::Debug + Send + 's,
    O: Sink<Staged<I, U>, V, E> + Way + 's,
{
    fn queue(&self, batch: Batch<I, U>) {
        let chunk = batch.into_chunk();
        let spawner = self.spawner.read().unwrap_or_else(PoisonError::into_inner);
        match &*spawner {
            Some(spawner) => hand_out(&spawner.pool, &self.context, chunk),
            // The run was left inside one of its tasks, and this is what that has made: it comes back.
            None => drop(self.context.push(chunk)),
        }
    }

    fn run(&self, batch: Batch<I, U>) {
        let is_here =
            |spawner: &Spawner<P>| spawner.pool.is_current() && spawner.pool.knows_its_threads();
        if !self.with_spawner(is_here).unwrap_or(false) {
            return self.queue(batch);
        }
        self.context.run_at_once(batch.into_chunk(), |permits| {
            self.with_spawner(|spawner| give_permits(&spawner.pool, &self.context, permits));
        });
    }

    fn is_flush_requested(&self) -> bool {
        self.context.sink.flush_requested().load(Ordering::Relaxed)
    }

    fn feed(&self) {
        self.context
            .sink
            .flush_requested()
            .store(false, Ordering::Relaxed);
    }
}

impl<'s, P, F, I, U, V, E, O> StageHandle for Stage<P, F, I, U, V, E, O>
where
    P: Spawn<'s> + Send + Sync,
    F: Fn(&mut Staged<I, U>) -> Result<V, E> + Send + Sync + 's,
    I: Send + 's,
    U: Send + 's,
    V: Send + 's,
    E: fmt::Debug + Send + 's,
    O: Sink<Staged<I, U>, V, E> + Way + 's,
{
    fn open(&self) -> usize {
        let mut spawner = self.spawner.write().unwrap_or_else(PoisonError::into_inner);
        let width = spawner.as_mut().map_or(1, |spawner| {
            let unnamed = format!("stage-{}", self.number);
            let name = if spawner.name.is_empty() {
                &unnamed
            } else {
                &spawner.name
            };
            open(&mut spawner.pool, spawner.num_threads, name)
        });
        self.context.queue.set_width(width);
        self.context.sink.counters().open(width);
        width
    }

    fn help(&self) -> bool {
        self.context.help()
    }

    fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool {
        let warm_up = |spawner: &Spawner<P>| {
            spawner
                .warm_up
                .is_some_and(|warm_up| warm_up(&spawner.pool, is_over))
        };
        self.with_spawner(warm_up).unwrap_or(false)
    }

    fn is_current(&self) -> bool {
        self.with_spawner(|spawner| spawner.pool.is_current())
            .unwrap_or(false)
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

    fn counters(&self) -> Arc<StageCounters> {
        Arc::clone(self.context.sink.counters())
    }

    fn leave(&self) {
        // A run that is left inside one of its tasks waits for nobody: a spawner that is in use then goes with its stage.
        let spawner = if self.context.queue.calls().is_empty() {
            Some(self.spawner.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            self.spawner.try_write().ok()
        };
        let spawner = spawner.and_then(|mut spawner| spawner.take());
        // Each by itself: the spawner and what the function captures may both panic when dropped.
        drop_catching(spawner);
        self.context.clear();
    }
}

/// From a stage to the next.
struct ToNextStage<'s, I, V, T, E> {
    shared: Arc<Shared<I, T, E>>,
    number: usize,
    counters: Arc<StageCounters>,
    flush_requested: AtomicBool,
    next: Arc<dyn Next<I, V> + 's>,
}

impl<I, V, T, E> Way for ToNextStage<'_, I, V, T, E> {
    fn flush_requested(&self) -> &AtomicBool {
        &self.flush_requested
    }

    fn counters(&self) -> &Arc<StageCounters> {
        &self.counters
    }
}

impl<I: Send, U: Send, V: Send, T: Send, E: Send> Sink<Staged<I, U>, V, E>
    for ToNextStage<'_, I, V, T, E>
{
    fn signals(&self) -> &Signals {
        &self.shared.signals
    }

    fn instruments(&self) -> &Instruments {
        &self.shared.instruments
    }

    fn stage(&self) -> Option<usize> {
        Some(self.number)
    }

    fn send(&self, chunk: Box<Chunk<Staged<I, U>, V, E>>, width: usize) {
        for batch in self.sort(chunk, width) {
            self.next.run(batch);
        }
    }

    fn answer(&self, width: usize) {
        self.shared.answer(width);
    }

    fn is_flush_requested(&self, is_slow: bool) -> bool {
        is_slow || self.next.is_flush_requested()
    }

    /// Its worker goes on with its chunk, so this is for others.
    fn send_part(&self, part: Box<Chunk<Staged<I, U>, V, E>>, width: usize) {
        self.next.feed();
        for batch in self.sort(part, width) {
            self.next.queue(batch);
        }
    }

    fn on_idle(&self) {
        self.flush_requested.store(true, Ordering::Relaxed);
        self.shared.on_idle();
    }
}

impl<I: Send, V: Send, T: Send, E: Send> ToNextStage<'_, I, V, T, E> {
    /// Sends back what does not go on, and returns what does.
    fn sort<U>(&self, mut chunk: Box<Chunk<Staged<I, U>, V, E>>, width: usize) -> Vec<Batch<I, V>> {
        self.counters.ran(chunk.busy);
        let ran = chunk.len();
        let each = chunk
            .busy
            .checked_div(ran as u32)
            .unwrap_or_default()
            .max(chunk.each_before);
        let (attempts, is_final, grain) = (chunk.attempts, chunk.is_final, chunk.grain);
        // There for a single item only.
        let mut delays = chunk.delays.take();
        let unrun = chunk.first + ran as u64;
        let (outcomes, rest) = chunk.take_apart();
        let mut batches: Vec<Batch<I, V>> = Vec::new();
        let mut is_open = false;
        for outcome in outcomes {
            let input = outcome.input.into_input();
            match outcome.result {
                Ok(value) => {
                    if !is_open {
                        is_open = true;
                        self.shared.signals.submit();
                        batches.push(Batch {
                            first: outcome.index,
                            items: Vec::with_capacity((unrun - outcome.index) as usize),
                            attempts,
                            delays: delays.take(),
                            is_final,
                            grain,
                            each_before: each,
                        });
                    }
                    let value = Some(value);
                    if let Some(batch) = batches.last_mut() {
                        batch.items.push(Staged { input, value });
                    }
                }
                Err(cause) => {
                    is_open = false;
                    let outcome = Outcome {
                        index: outcome.index,
                        input,
                        result: Err(cause),
                    };
                    let mut failure = Chunk::of_one(outcome, attempts);
                    failure.is_final = is_final;
                    failure.delays = delays.take();
                    failure.stage = Some(self.number);
                    failure.each_before = each;
                    self.shared.send(failure, width);
                }
            }
        }
        if !rest.is_empty() {
            let mut left = Box::new(Chunk::new());
            left.reset(unrun, is_final);
            left.rest = rest.into_iter().map(Staged::into_input).collect();
            self.shared.send(left, width);
        }
        batches
    }
}

/// From the last stage to the caller.
struct ToCaller<I, T, E> {
    shared: Arc<Shared<I, T, E>>,
    number: usize,
    counters: Arc<StageCounters>,
    flush_requested: AtomicBool,
}

impl<I, T, E> Way for ToCaller<I, T, E> {
    fn flush_requested(&self) -> &AtomicBool {
        &self.flush_requested
    }

    fn counters(&self) -> &Arc<StageCounters> {
        &self.counters
    }
}

impl<I, T, E> ToCaller<I, T, E> {
    /// As the caller knows it.
    fn answer_of<U>(&self, mut chunk: Box<Chunk<Staged<I, U>, T, E>>) -> Box<Chunk<I, T, E>> {
        self.counters.ran(chunk.busy);
        let mut answer = chunk.map_inputs(Staged::into_input);
        answer.each_before = chunk.each_before;
        answer.stage = Some(self.number);
        answer
    }
}

impl<I: Send, U: Send, T: Send, E: Send> Sink<Staged<I, U>, T, E> for ToCaller<I, T, E> {
    fn signals(&self) -> &Signals {
        &self.shared.signals
    }

    fn instruments(&self) -> &Instruments {
        &self.shared.instruments
    }

    fn stage(&self) -> Option<usize> {
        Some(self.number)
    }

    fn send(&self, chunk: Box<Chunk<Staged<I, U>, T, E>>, width: usize) {
        self.shared.send(self.answer_of(chunk), width);
    }

    fn answer(&self, width: usize) {
        self.shared.answer(width);
    }

    fn is_flush_requested(&self, is_slow: bool) -> bool {
        self.shared.is_flush_requested(is_slow)
    }

    fn send_part(&self, part: Box<Chunk<Staged<I, U>, T, E>>, width: usize) {
        self.shared.send_part(self.answer_of(part), width);
    }

    fn on_idle(&self) {
        self.flush_requested.store(true, Ordering::Relaxed);
        self.shared.on_idle();
    }
}

/// A list of stages. The jobs of its last one live for `'s`, the run for `'a`.
pub(crate) trait StageList<'s, 'a, I, V, E, T> {
    /// How many there are.
    const LEN: usize;

    /// Makes them, the last first, for what the last one makes to go on to `next`. Returns the first.
    fn through(
        self,
        next: Arc<dyn Next<I, V> + 's>,
        caller: &mut Caller<'a, I, T, E>,
    ) -> Arc<dyn Next<I, ()> + 'a>;
}

/// What stages share, and where the caller's half finds them.
pub(crate) struct Caller<'a, I, T, E> {
    shared: Arc<Shared<I, T, E>>,
    /// The last first.
    handles: Vec<Arc<dyn StageHandle + 'a>>,
}

fn onward<'s, I, V, T, E>(
    next: Arc<dyn Next<I, V> + 's>,
    number: usize,
    name: &str,
    shared: &Arc<Shared<I, T, E>>,
) -> ToNextStage<'s, I, V, T, E> {
    ToNextStage {
        shared: Arc::clone(shared),
        number,
        counters: Arc::new(StageCounters::new(name)),
        flush_requested: AtomicBool::new(true),
        next,
    }
}

impl<'s, 'a, I, V, E, T, P, F> StageList<'s, 'a, I, V, E, T> for Stages<(), P, F, V>
where
    's: 'a,
    P: Spawn<'s> + Send + Sync + 'a,
    F: Fn(&I) -> Result<V, E> + Send + Sync + 's,
    I: Send + 's,
    V: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
{
    const LEN: usize = 1;

    fn through(
        self,
        next: Arc<dyn Next<I, V> + 's>,
        caller: &mut Caller<'a, I, T, E>,
    ) -> Arc<dyn Next<I, ()> + 'a> {
        let f = self.function;
        let call = move |staged: &mut Staged<I, ()>| f(&staged.input);
        let name = self.spawner.name.clone();
        let stage = Arc::new(Stage::new(
            0,
            self.spawner,
            call,
            onward(next, 0, &name, &caller.shared),
        ));
        caller.handles.push(Arc::clone(&stage) as _);
        stage
    }
}

impl<'s, 'l, 'a, I, U, V, E, T, L, Q, G, P, F> StageList<'s, 'a, I, V, E, T>
    for Stages<Stages<L, Q, G, U>, P, F, V>
where
    's: 'l + 'a,
    'l: 'a,
    Stages<L, Q, G, U>: StageList<'l, 'a, I, U, E, T>,
    P: Spawn<'s> + Send + Sync + 'l,
    F: Fn(&U) -> Result<V, E> + Send + Sync + 's,
    I: Send + 's,
    U: Send + 's,
    V: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
{
    const LEN: usize = 1 + <Stages<L, Q, G, U> as StageList<'l, 'a, I, U, E, T>>::LEN;

    fn through(
        self,
        next: Arc<dyn Next<I, V> + 's>,
        caller: &mut Caller<'a, I, T, E>,
    ) -> Arc<dyn Next<I, ()> + 'a> {
        let f = self.function;
        let call = move |staged: &mut Staged<I, U>| match &staged.value {
            Some(value) => f(value),
            None => unreachable!("the stage before has made it"),
        };
        let number = Self::LEN - 1;
        let out = onward(next, number, &self.spawner.name, &caller.shared);
        let stage = Arc::new(Stage::new(number, self.spawner, call, out));
        caller.handles.push(Arc::clone(&stage) as _);
        self.before.through(stage, caller)
    }
}

/// The workers of all stages.
pub(crate) struct Pipeline<'a, I> {
    first: Arc<dyn Next<I, ()> + 'a>,
    /// The last first.
    handles: Vec<Arc<dyn StageHandle + 'a>>,
}

impl<'a, I: Send + 'a> Pipeline<'a, I> {
    /// `last`: what calls the last function.
    pub(crate) fn new<'s, 'l, T, E, P, F, U, L, Q, G>(
        stages: Stages<L, Q, G, U>,
        spawner: Spawner<P>,
        last: F,
        shared: &Arc<Shared<I, T, E>>,
    ) -> Self
    where
        's: 'l + 'a,
        'l: 'a,
        Stages<L, Q, G, U>: StageList<'l, 'a, I, U, E, T>,
        P: Spawn<'s> + Send + Sync + 'l,
        F: Fn(&mut Staged<I, U>) -> Result<T, E> + Send + Sync + 's,
        I: 's,
        U: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        let mut caller = Caller {
            shared: Arc::clone(shared),
            handles: Vec::new(),
        };
        let out = ToCaller {
            shared: Arc::clone(shared),
            number: <Stages<L, Q, G, U> as StageList<'l, 'a, I, U, E, T>>::LEN,
            counters: Arc::new(StageCounters::new(&spawner.name)),
            flush_requested: AtomicBool::new(true),
        };
        let stage = Arc::new(Stage::new(out.number, spawner, last, out));
        caller.handles.push(Arc::clone(&stage) as _);
        let first = stages.through(stage, &mut caller);
        Self {
            first,
            handles: caller.handles,
        }
    }
}

impl<I: Send, T: Send, E: Send> Dispatch<I, T, E> for Pipeline<'_, I> {
    fn open(&mut self, _: usize, _: &str) -> usize {
        self.handles.iter().map(|stage| stage.open()).sum()
    }

    fn submit(&self, mut chunk: Box<Chunk<I, T, E>>) {
        let staged = |input| Staged { input, value: None };
        let batch = Batch {
            first: chunk.first,
            attempts: chunk.attempts,
            delays: chunk.delays.take(),
            is_final: chunk.is_final,
            grain: chunk.grain,
            each_before: Duration::ZERO,
            items: chunk.take_rest().map(|(_, input)| staged(input)).collect(),
        };
        self.first.queue(batch);
    }

    fn help(&self) -> bool {
        // The last first: what is nearest to its end.
        let mut current = self.handles.iter().filter(|stage| stage.is_current());
        current.any(|stage| stage.help())
    }

    fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.handles.iter().any(|stage| stage.warm_up(is_over))
    }

    fn is_current(&self) -> bool {
        self.handles.iter().any(|stage| stage.is_current())
    }

    fn flush(&self) {
        self.handles.iter().rev().for_each(|stage| stage.flush());
    }

    fn close(&self) {
        self.handles.iter().for_each(|stage| stage.close());
    }

    fn calls(&self) -> Vec<(Thread, Range<u64>)> {
        self.handles
            .iter()
            .flat_map(|stage| stage.calls())
            .collect()
    }

    fn stages(&self) -> Vec<Arc<StageCounters>> {
        self.handles
            .iter()
            .rev()
            .map(|stage| stage.counters())
            .collect()
    }

    fn leave(self: Box<Self>) {
        // The first first: its workers hand out what the others do.
        self.handles.iter().rev().for_each(|stage| stage.leave());
    }
}
