//! Several functions one after the other, each on threads of its own, as one run.
//!
//! What a stage's workers have made goes on to the next stage's home from there; a failure, and what may not start, goes
//! back to the caller at once. The caller's half does not know of it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::engine::chunk::{Chunk, Outcome, Parcel};
use crate::engine::job::{Bench, Outlet, Shared};
use crate::engine::retry::Delays;
use crate::engine::signals::Signals;
use crate::engine::workers::{Hands, Settle, give_permits, hand_out, open};
use crate::observe::counters::StageCounters;
use crate::observe::instrument::Watch;
use crate::pool::Spawn;
use crate::util::panics::bury;
use crate::util::sync::RwLock;
use crate::util::sync::atomic::{AtomicBool, Ordering};
use crate::util::sync::thread::Thread;

/// The stages of a run before its last function; made by [`Futureproof::stage`](crate::Futureproof::stage).
pub struct Stages<L, P, F, V> {
    before: L,
    home: Home<P>,
    function: F,
    made: PhantomData<fn() -> V>,
}

/// Where a stage runs, and how.
pub(crate) struct Home<P> {
    pub(crate) pool: P,
    pub(crate) settle: Option<Settle<P>>,
    pub(crate) num_threads: usize,
    pub(crate) name: String,
}

impl<L, P, F, V> Stages<L, P, F, V> {
    pub(crate) fn new(before: L, home: Home<P>, function: F) -> Self {
        Self {
            before,
            home,
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
pub(crate) struct Carry<I, V> {
    input: I,
    value: Option<V>,
}

impl<I, V> Carry<I, V> {
    fn into_input(self) -> I {
        // The user's value: its destructor may panic, and this runs on a worker.
        bury(self.value);
        self.input
    }

    pub(crate) fn value(&mut self) -> &mut Option<V> {
        &mut self.value
    }
}

/// What goes from one stage to the next: items without a gap.
pub(crate) struct Batch<I, V> {
    first: u64,
    items: Vec<Carry<I, V>>,
    attempts: u32,
    delays: Option<Delays>,
    is_final: bool,
    grain: usize,
    each_before: Duration,
}

impl<I, V> Batch<I, V> {
    fn into_chunk<T, E>(self) -> Parcel<Carry<I, V>, T, E> {
        let mut chunk = Box::new(Chunk::new());
        chunk.reset(self.first, self.is_final);
        chunk.attempts = self.attempts;
        chunk.delays = self.delays;
        chunk.grain = self.grain;
        chunk.each_before = self.each_before;
        chunk.inputs = self.items;
        chunk.seal();
        chunk
    }
}

/// A stage, as the one before it sees it.
pub(crate) trait Next<I, V>: Send + Sync {
    /// Queues it for its workers.
    fn queue(&self, batch: Batch<I, V>);
    /// The same; but where this thread is one of its home's, it runs it at once.
    fn run(&self, batch: Batch<I, V>);
    /// Whether one of its workers has found nothing to do.
    fn is_hungry(&self) -> bool;
    fn feed(&self);
}

/// A stage, as the caller's half sees it.
pub(crate) trait Station: Send + Sync {
    fn open(&self) -> usize;
    fn help(&self) -> bool;
    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool;
    fn is_current(&self) -> bool;
    fn sweep(&self);
    fn close(&self);
    fn calls(&self) -> Vec<(Thread, Range<u64>)>;
    fn counters(&self) -> Arc<StageCounters>;
    fn leave(&self);
}

type SharedBench<F, I, U, V, E, O> = Arc<Bench<F, Carry<I, U>, V, E, O>>;

/// A function, its home, and the way on.
struct Stage<P, F, I, U, V, E, O> {
    /// Gone when the run is left.
    home: RwLock<Option<Home<P>>>,
    number: usize,
    bench: SharedBench<F, I, U, V, E, O>,
}

impl<P, F, I, U, V, E, O> Stage<P, F, I, U, V, E, O> {
    fn new(number: usize, home: Home<P>, function: F, outlet: O) -> Self {
        Self {
            home: RwLock::new(Some(home)),
            number,
            bench: Arc::new(Bench::new(function, outlet)),
        }
    }

    fn with_home<R>(&self, f: impl FnOnce(&Home<P>) -> R) -> Option<R> {
        let home = self.home.read().unwrap_or_else(PoisonError::into_inner);
        home.as_ref().map(f)
    }
}

/// Where what a stage has made goes.
pub(crate) trait Way {
    /// Whether a worker of the stage that this belongs to has found nothing to do.
    fn hungry(&self) -> &AtomicBool;
    fn counters(&self) -> &Arc<StageCounters>;
}

impl<'s, P, F, I, U, V, E, O> Next<I, U> for Stage<P, F, I, U, V, E, O>
where
    P: Spawn<'s> + Send + Sync,
    F: Fn(&mut Carry<I, U>) -> Result<V, E> + Send + Sync + 's,
    I: Send + 's,
    U: Send + 's,
    V: Send + 's,
    E: fmt::Debug + Send + 's,
    O: Outlet<Carry<I, U>, V, E> + Way + 's,
{
    fn queue(&self, batch: Batch<I, U>) {
        let chunk = batch.into_chunk();
        let home = self.home.read().unwrap_or_else(PoisonError::into_inner);
        match &*home {
            Some(home) => hand_out(&home.pool, &self.bench, chunk),
            // The run was left inside one of its tasks, and this is what that has made: it comes back.
            None => drop(self.bench.push(chunk)),
        }
    }

    fn run(&self, batch: Batch<I, U>) {
        let is_here = |home: &Home<P>| home.pool.is_current() && home.pool.knows_its_threads();
        if !self.with_home(is_here).unwrap_or(false) {
            return self.queue(batch);
        }
        self.bench.run_at_once(batch.into_chunk(), |permits| {
            self.with_home(|home| give_permits(&home.pool, &self.bench, permits));
        });
    }

    fn is_hungry(&self) -> bool {
        self.bench.outlet.hungry().load(Ordering::Relaxed)
    }

    fn feed(&self) {
        self.bench.outlet.hungry().store(false, Ordering::Relaxed);
    }
}

impl<'s, P, F, I, U, V, E, O> Station for Stage<P, F, I, U, V, E, O>
where
    P: Spawn<'s> + Send + Sync,
    F: Fn(&mut Carry<I, U>) -> Result<V, E> + Send + Sync + 's,
    I: Send + 's,
    U: Send + 's,
    V: Send + 's,
    E: fmt::Debug + Send + 's,
    O: Outlet<Carry<I, U>, V, E> + Way + 's,
{
    fn open(&self) -> usize {
        let mut home = self.home.write().unwrap_or_else(PoisonError::into_inner);
        let width = home.as_mut().map_or(1, |home| {
            let unnamed = format!("stage-{}", self.number);
            let name = if home.name.is_empty() {
                &unnamed
            } else {
                &home.name
            };
            open(&mut home.pool, home.num_threads, name)
        });
        self.bench.queue.set_width(width);
        self.bench.outlet.counters().open(width);
        width
    }

    fn help(&self) -> bool {
        self.bench.help()
    }

    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        let settle = |home: &Home<P>| {
            home.settle
                .is_some_and(|settle| settle(&home.pool, is_over))
        };
        self.with_home(settle).unwrap_or(false)
    }

    fn is_current(&self) -> bool {
        self.with_home(|home| home.pool.is_current())
            .unwrap_or(false)
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

    fn counters(&self) -> Arc<StageCounters> {
        Arc::clone(self.bench.outlet.counters())
    }

    fn leave(&self) {
        // A run that is left inside one of its tasks waits for nobody: a home that is in use then goes with its stage.
        let home = if self.bench.queue.calls().is_empty() {
            Some(self.home.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            self.home.try_write().ok()
        };
        let home = home.and_then(|mut home| home.take());
        // Each by itself: the home and what the function captures may both panic when dropped.
        bury(home);
        self.bench.clear();
    }
}

/// From a stage to the next.
struct Onward<'s, I, V, T, E> {
    shared: Arc<Shared<I, T, E>>,
    number: usize,
    counters: Arc<StageCounters>,
    hungry: AtomicBool,
    next: Arc<dyn Next<I, V> + 's>,
}

impl<I, V, T, E> Way for Onward<'_, I, V, T, E> {
    fn hungry(&self) -> &AtomicBool {
        &self.hungry
    }

    fn counters(&self) -> &Arc<StageCounters> {
        &self.counters
    }
}

impl<I: Send, U: Send, V: Send, T: Send, E: Send> Outlet<Carry<I, U>, V, E>
    for Onward<'_, I, V, T, E>
{
    fn signals(&self) -> &Signals {
        &self.shared.signals
    }

    fn watch(&self) -> &Watch {
        &self.shared.watch
    }

    fn stage(&self) -> Option<usize> {
        Some(self.number)
    }

    fn send(&self, chunk: Parcel<Carry<I, U>, V, E>, width: usize) {
        for batch in self.sort(chunk, width) {
            self.next.run(batch);
        }
    }

    fn answer(&self, width: usize) {
        self.shared.answer(width);
    }

    fn is_hungry(&self, is_slow: bool) -> bool {
        is_slow || self.next.is_hungry()
    }

    /// Its worker goes on with its chunk, so this is for others.
    fn send_part(&self, part: Parcel<Carry<I, U>, V, E>, width: usize) {
        self.next.feed();
        for batch in self.sort(part, width) {
            self.next.queue(batch);
        }
    }

    fn run_dry(&self) {
        self.hungry.store(true, Ordering::Relaxed);
        self.shared.run_dry();
    }
}

impl<I: Send, V: Send, T: Send, E: Send> Onward<'_, I, V, T, E> {
    /// Sends back what does not go on, and returns what does.
    fn sort<U>(&self, mut chunk: Parcel<Carry<I, U>, V, E>, width: usize) -> Vec<Batch<I, V>> {
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
                        batch.items.push(Carry { input, value });
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
            left.rest = rest.into_iter().map(Carry::into_input).collect();
            self.shared.send(left, width);
        }
        batches
    }
}

/// From the last stage to the caller.
struct Last<I, T, E> {
    shared: Arc<Shared<I, T, E>>,
    number: usize,
    counters: Arc<StageCounters>,
    hungry: AtomicBool,
}

impl<I, T, E> Way for Last<I, T, E> {
    fn hungry(&self) -> &AtomicBool {
        &self.hungry
    }

    fn counters(&self) -> &Arc<StageCounters> {
        &self.counters
    }
}

impl<I, T, E> Last<I, T, E> {
    /// As the caller knows it.
    fn answer_of<U>(&self, mut chunk: Parcel<Carry<I, U>, T, E>) -> Parcel<I, T, E> {
        self.counters.ran(chunk.busy);
        let mut answer = chunk.map_inputs(Carry::into_input);
        answer.each_before = chunk.each_before;
        answer.stage = Some(self.number);
        answer
    }
}

impl<I: Send, U: Send, T: Send, E: Send> Outlet<Carry<I, U>, T, E> for Last<I, T, E> {
    fn signals(&self) -> &Signals {
        &self.shared.signals
    }

    fn watch(&self) -> &Watch {
        &self.shared.watch
    }

    fn stage(&self) -> Option<usize> {
        Some(self.number)
    }

    fn send(&self, chunk: Parcel<Carry<I, U>, T, E>, width: usize) {
        self.shared.send(self.answer_of(chunk), width);
    }

    fn answer(&self, width: usize) {
        self.shared.answer(width);
    }

    fn is_hungry(&self, is_slow: bool) -> bool {
        self.shared.is_hungry(is_slow)
    }

    fn send_part(&self, part: Parcel<Carry<I, U>, T, E>, width: usize) {
        self.shared.send_part(self.answer_of(part), width);
    }

    fn run_dry(&self) {
        self.hungry.store(true, Ordering::Relaxed);
        self.shared.run_dry();
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
    stations: Vec<Arc<dyn Station + 'a>>,
}

fn onward<'s, I, V, T, E>(
    next: Arc<dyn Next<I, V> + 's>,
    number: usize,
    name: &str,
    shared: &Arc<Shared<I, T, E>>,
) -> Onward<'s, I, V, T, E> {
    Onward {
        shared: Arc::clone(shared),
        number,
        counters: Arc::new(StageCounters::new(name)),
        hungry: AtomicBool::new(true),
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
        let call = move |carry: &mut Carry<I, ()>| f(&carry.input);
        let name = self.home.name.clone();
        let stage = Arc::new(Stage::new(
            0,
            self.home,
            call,
            onward(next, 0, &name, &caller.shared),
        ));
        caller.stations.push(Arc::clone(&stage) as _);
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
        let call = move |carry: &mut Carry<I, U>| match &carry.value {
            Some(value) => f(value),
            None => unreachable!("the stage before has made it"),
        };
        let number = Self::LEN - 1;
        let out = onward(next, number, &self.home.name, &caller.shared);
        let stage = Arc::new(Stage::new(number, self.home, call, out));
        caller.stations.push(Arc::clone(&stage) as _);
        self.before.through(stage, caller)
    }
}

/// The workers of all stages.
pub(crate) struct Pipeline<'a, I> {
    first: Arc<dyn Next<I, ()> + 'a>,
    /// The last first.
    stations: Vec<Arc<dyn Station + 'a>>,
}

impl<'a, I: Send + 'a> Pipeline<'a, I> {
    /// `last`: what calls the last function.
    pub(crate) fn new<'s, 'l, T, E, P, F, U, L, Q, G>(
        stages: Stages<L, Q, G, U>,
        home: Home<P>,
        last: F,
        shared: &Arc<Shared<I, T, E>>,
    ) -> Self
    where
        's: 'l + 'a,
        'l: 'a,
        Stages<L, Q, G, U>: StageList<'l, 'a, I, U, E, T>,
        P: Spawn<'s> + Send + Sync + 'l,
        F: Fn(&mut Carry<I, U>) -> Result<T, E> + Send + Sync + 's,
        I: 's,
        U: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        let mut caller = Caller {
            shared: Arc::clone(shared),
            stations: Vec::new(),
        };
        let out = Last {
            shared: Arc::clone(shared),
            number: <Stages<L, Q, G, U> as StageList<'l, 'a, I, U, E, T>>::LEN,
            counters: Arc::new(StageCounters::new(&home.name)),
            hungry: AtomicBool::new(true),
        };
        let stage = Arc::new(Stage::new(out.number, home, last, out));
        caller.stations.push(Arc::clone(&stage) as _);
        let first = stages.through(stage, &mut caller);
        Self {
            first,
            stations: caller.stations,
        }
    }
}

impl<I: Send, T: Send, E: Send> Hands<I, T, E> for Pipeline<'_, I> {
    fn open(&mut self, _: usize, _: &str) -> usize {
        self.stations.iter().map(|stage| stage.open()).sum()
    }

    fn submit(&self, mut chunk: Parcel<I, T, E>) {
        let carry = |input| Carry { input, value: None };
        let batch = Batch {
            first: chunk.first,
            attempts: chunk.attempts,
            delays: chunk.delays.take(),
            is_final: chunk.is_final,
            grain: chunk.grain,
            each_before: Duration::ZERO,
            items: chunk.take_rest().map(|(_, input)| carry(input)).collect(),
        };
        self.first.queue(batch);
    }

    fn help(&self) -> bool {
        // The last first: what is nearest to its end.
        let mut current = self.stations.iter().filter(|stage| stage.is_current());
        current.any(|stage| stage.help())
    }

    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.stations.iter().any(|stage| stage.settle(is_over))
    }

    fn is_current(&self) -> bool {
        self.stations.iter().any(|stage| stage.is_current())
    }

    fn sweep(&self) {
        self.stations.iter().rev().for_each(|stage| stage.sweep());
    }

    fn close(&self) {
        self.stations.iter().for_each(|stage| stage.close());
    }

    fn calls(&self) -> Vec<(Thread, Range<u64>)> {
        self.stations
            .iter()
            .flat_map(|stage| stage.calls())
            .collect()
    }

    fn stages(&self) -> Vec<Arc<StageCounters>> {
        self.stations
            .iter()
            .rev()
            .map(|stage| stage.counters())
            .collect()
    }

    fn leave(self: Box<Self>) {
        // The first first: its workers hand out what the others do.
        self.stations.iter().rev().for_each(|stage| stage.leave());
    }
}
