//! Several functions one after the other, each on a pool of its own, as one run.
//!
//! What the workers of a stage have made goes on to the next stage from there. A failure, and what may not start, goes
//! back to the caller at once. The caller's half knows nothing of this.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::chunk::{BoxedChunk, Chunk, Listed, Outcome};
use crate::engine::job::{RunState, Shared, Sink, StageState};
use crate::engine::stage::{Dispatch, Spawner, Stage, StageHandle};
use crate::pool::Spawn;
use crate::util::panics::drop_catching;
use crate::util::sync::now;

/// A hand-over costs about 2 µs, so what has taken less than this waits for its chunk to end, or for more.
const HAND_ON_AFTER: Duration = Duration::from_micros(25);

/// The stages of a run before its last function; made by [`Futureproof::stage`](crate::Futureproof::stage).
pub struct Stages<L, P, F, V> {
    before: L,
    spawner: Spawner<P>,
    function: F,
    output: PhantomData<fn() -> V>,
}

impl<L, P, F, V> Stages<L, P, F, V> {
    pub(crate) fn new(before: L, spawner: Spawner<P>, function: F) -> Self {
        Self {
            before,
            spawner,
            function,
            output: PhantomData,
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

    /// What the stage before has made; `None` once it was taken.
    pub(crate) fn value(&mut self) -> &mut Option<V> {
        &mut self.value
    }
}

/// What goes from one stage to the next: items that follow each other, as in a chunk.
pub(crate) struct Batch<I, V> {
    first: u64,
    listed: Option<Arc<Listed>>,
    items: Vec<Staged<I, V>>,
    attempts: u32,
    is_final: bool,
    grain: usize,
    each_before: Duration,
}

impl<I, V> Batch<I, V> {
    fn into_chunk<T, E>(self) -> BoxedChunk<Staged<I, V>, T, E> {
        let mut chunk = Box::new(Chunk::new());
        chunk.reset(self.first, self.is_final);
        chunk.listed = self.listed;
        chunk.attempts = self.attempts;
        chunk.grain = self.grain;
        chunk.each_before = self.each_before;
        chunk.inputs = self.items;
        chunk.set_pending();
        chunk
    }
}

/// A stage, as the one before it sees it.
pub(crate) trait NextStage<I, V>: Send + Sync {
    /// Queues it for the workers.
    fn queue(&self, batch: Batch<I, V>);
    /// The same; but a thread of the stage's pool runs it at once. `visitors`: how many others will [visit](Self::visit).
    fn run(&self, batch: Batch<I, V>, visitors: &dyn Fn() -> usize);
    /// A worker of the stage before, which has nothing to do there, shares in what is here, if it is one of the pool.
    fn visit(&self);
    fn state(&self) -> Option<&StageState>;
}

impl<'s, P, F, I, U, V, E, S> NextStage<I, U> for Stage<P, F, Staged<I, U>, V, E, S>
where
    P: Spawn<'s> + Send + Sync,
    F: Fn(&mut Staged<I, U>) -> Result<V, E> + Send + Sync + 's,
    I: Send + 's,
    U: Send + 's,
    V: Send + 's,
    E: fmt::Debug + Send + 's,
    S: Sink<Staged<I, U>, V, E> + 's,
{
    fn queue(&self, batch: Batch<I, U>) {
        Stage::queue(self, batch.into_chunk());
    }

    fn run(&self, batch: Batch<I, U>, visitors: &dyn Fn() -> usize) {
        Stage::run(self, batch.into_chunk(), visitors);
    }

    fn visit(&self) {
        Stage::visit(self);
    }

    fn state(&self) -> Option<&StageState> {
        self.sink().stage()
    }
}

/// From a stage to the next.
struct ToNextStage<'s, I, V, T, E> {
    shared: Arc<Shared<I, T, E>>,
    stage: StageState,
    next: Arc<dyn NextStage<I, V> + 's>,
}

impl<I: Send, U: Send, V: Send, T: Send, E: Send> Sink<Staged<I, U>, V, E>
    for ToNextStage<'_, I, V, T, E>
{
    fn run(&self) -> &RunState {
        &self.shared.run
    }

    fn stage(&self) -> Option<&StageState> {
        Some(&self.stage)
    }

    fn is_last(&self) -> bool {
        false
    }

    fn send(&self, chunk: BoxedChunk<Staged<I, U>, V, E>, width: usize) {
        for batch in self.sort(chunk, width) {
            self.next.queue(batch);
        }
    }

    fn pass_on(
        &self,
        chunk: BoxedChunk<Staged<I, U>, V, E>,
        width: usize,
        others: &dyn Fn() -> usize,
    ) {
        for batch in self.sort(chunk, width) {
            self.next.run(batch, others);
        }
    }

    fn visit_next(&self) {
        self.next.visit();
    }

    fn complete(&self, width: usize) {
        self.shared.complete(width);
    }

    fn should_hand_over(&self, since: Instant, is_slow: bool) -> bool {
        // The consumer flushes once, then waits for whoever finishes something.
        if self.shared.run.wake.is_flush_requested() {
            return true;
        }
        let is_idle = || self.next.state().is_some_and(StageState::is_idle);
        (is_slow || is_idle()) && now() - since >= HAND_ON_AFTER
    }

    fn send_part(&self, part: BoxedChunk<Staged<I, U>, V, E>, width: usize) {
        if let Some(next) = self.next.state() {
            next.set_idle(false);
        }
        for batch in self.sort(part, width) {
            self.next.queue(batch);
        }
    }

    fn on_idle(&self) {
        if !self.stage.shares_pool() {
            self.stage.set_idle(true);
        }
        // Its workers are idle as well, then.
        if let Some(next) = self.next.state().filter(|next| next.shares_pool()) {
            next.set_idle(true);
        }
        self.shared.on_idle();
    }
}

impl<I: Send, V: Send, T: Send, E: Send> ToNextStage<'_, I, V, T, E> {
    /// Sends back what does not go on, and returns what does.
    fn sort<U>(&self, mut chunk: BoxedChunk<Staged<I, U>, V, E>, width: usize) -> Vec<Batch<I, V>> {
        self.stage.counters.ran(chunk.busy);
        let ran = chunk.len();
        let each = chunk
            .busy
            .checked_div(ran as u32)
            .unwrap_or_default()
            .max(chunk.each_before);
        let (attempts, is_final, grain) = (chunk.attempts, chunk.is_final, chunk.grain);
        let (first, listed) = (chunk.first, chunk.listed.clone());
        let end = first + ran as u64;
        let (outcomes, pending) = chunk.take_apart();
        let mut batches: Vec<Batch<I, V>> = Vec::new();
        let mut is_open = false;
        for (place, outcome) in (first..).zip(outcomes) {
            let (index, input) = (outcome.index, outcome.input.into_input());
            match outcome.result {
                Ok(value) => {
                    if !is_open {
                        is_open = true;
                        self.shared.run.wake.submit();
                        batches.push(Batch {
                            first: place,
                            listed: listed.clone(),
                            items: Vec::with_capacity((end - place) as usize),
                            attempts,
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
                    let result = Err(cause);
                    let outcome = Outcome {
                        index,
                        input,
                        result,
                    };
                    let mut failure = Chunk::of_one(outcome, attempts);
                    failure.first = place;
                    failure.listed.clone_from(&listed);
                    failure.is_final = is_final;
                    failure.stage = Some(self.stage.number);
                    failure.each_before = each;
                    self.shared.send(failure, width);
                }
            }
        }
        if pending.len() != 0 {
            let mut left = Box::new(Chunk::new());
            left.reset(end, is_final);
            left.listed = listed;
            left.inputs = pending.map(Staged::into_input).collect();
            left.set_pending();
            self.shared.send(left, width);
        }
        batches
    }
}

/// From the last stage to the caller.
struct ToCaller<I, T, E> {
    shared: Arc<Shared<I, T, E>>,
    stage: StageState,
}

impl<I, T, E> ToCaller<I, T, E> {
    /// The chunk as the caller knows it.
    fn completion<U>(&self, mut chunk: BoxedChunk<Staged<I, U>, T, E>) -> BoxedChunk<I, T, E> {
        self.stage.counters.ran(chunk.busy);
        let mut completion = chunk.map_inputs(Staged::into_input);
        completion.each_before = chunk.each_before;
        completion.stage = Some(self.stage.number);
        completion
    }
}

impl<I: Send, U: Send, T: Send, E: Send> Sink<Staged<I, U>, T, E> for ToCaller<I, T, E> {
    fn run(&self) -> &RunState {
        &self.shared.run
    }

    fn stage(&self) -> Option<&StageState> {
        Some(&self.stage)
    }

    fn send(&self, chunk: BoxedChunk<Staged<I, U>, T, E>, width: usize) {
        self.shared.send(self.completion(chunk), width);
    }

    fn complete(&self, width: usize) {
        self.shared.complete(width);
    }

    fn should_hand_over(&self, since: Instant, is_slow: bool) -> bool {
        self.shared.should_hand_over(since, is_slow)
    }

    fn send_part(&self, part: BoxedChunk<Staged<I, U>, T, E>, width: usize) {
        self.shared.send_part(self.completion(part), width);
    }

    fn on_idle(&self) {
        if !self.stage.shares_pool() {
            self.stage.set_idle(true);
        }
        self.shared.on_idle();
    }
}

/// A list of stages. The jobs of its last one live for `'s`, the run for `'a`.
pub(crate) trait StageList<'s, 'a, I, V, E, T> {
    /// How many there are.
    const LEN: usize;

    /// Makes them, the last first, so that what the last one makes goes on to `next`. Returns the first.
    fn through(
        self,
        next: Arc<dyn NextStage<I, V> + 's>,
        made: &mut Made<'a, I, T, E>,
    ) -> Arc<dyn NextStage<I, ()> + 'a>;
}

/// What stages share, and those that were made, the last first.
pub(crate) struct Made<'a, I, T, E> {
    shared: Arc<Shared<I, T, E>>,
    stages: Vec<Arc<dyn StageHandle + Send + Sync + 'a>>,
}

impl<I, T, E> Made<'_, I, T, E> {
    fn sink<'s, V>(
        &self,
        next: Arc<dyn NextStage<I, V> + 's>,
        number: usize,
        name: &str,
    ) -> ToNextStage<'s, I, V, T, E> {
        ToNextStage {
            shared: Arc::clone(&self.shared),
            stage: StageState::new(number, name),
            next,
        }
    }
}

/// The threads of a stage without a name are called `stage-0-0`, `stage-0-1` and so on.
fn named<P>(mut spawner: Spawner<P>, number: usize) -> Spawner<P> {
    if spawner.name.is_empty() {
        spawner.name = format!("stage-{number}");
    }
    spawner
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
        next: Arc<dyn NextStage<I, V> + 's>,
        made: &mut Made<'a, I, T, E>,
    ) -> Arc<dyn NextStage<I, ()> + 'a> {
        let f = self.function;
        let call = move |staged: &mut Staged<I, ()>| f(&staged.input);
        let sink = made.sink(next, 0, &self.spawner.name);
        let stage = Arc::new(Stage::new(named(self.spawner, 0), call, sink));
        made.stages.push(Arc::clone(&stage) as _);
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
        next: Arc<dyn NextStage<I, V> + 's>,
        made: &mut Made<'a, I, T, E>,
    ) -> Arc<dyn NextStage<I, ()> + 'a> {
        let f = self.function;
        let call = move |staged: &mut Staged<I, U>| match &staged.value {
            Some(value) => f(value),
            None => unreachable!("the stage before has made it"),
        };
        let number = Self::LEN - 1;
        let sink = made.sink(next, number, &self.spawner.name);
        let stage = Arc::new(Stage::new(named(self.spawner, number), call, sink));
        made.stages.push(Arc::clone(&stage) as _);
        self.before.through(stage, made)
    }
}

/// All stages of a run.
pub(crate) struct Pipeline<'a, I> {
    first: Arc<dyn NextStage<I, ()> + 'a>,
    stages: Vec<Arc<dyn StageHandle + Send + Sync + 'a>>,
}

impl<'a, I: Send + 'a> Pipeline<'a, I> {
    /// `last`: what calls the last function.
    pub(crate) fn new<'s, 'l, T, E, P, F, U, L, Q, G>(
        before: Stages<L, Q, G, U>,
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
        let number = <Stages<L, Q, G, U> as StageList<'l, 'a, I, U, E, T>>::LEN;
        let sink = ToCaller {
            shared: Arc::clone(shared),
            stage: StageState::new(number, &spawner.name),
        };
        let stage = Arc::new(Stage::new(named(spawner, number), last, sink));
        let mut made = Made {
            shared: Arc::clone(shared),
            stages: vec![Arc::clone(&stage) as _],
        };
        let first = before.through(stage, &mut made);
        made.stages.reverse();
        Self {
            first,
            stages: made.stages,
        }
    }
}

impl<I: Send, T: Send, E: Send> Dispatch<I, T, E> for Pipeline<'_, I> {
    fn submit(&self, mut chunk: BoxedChunk<I, T, E>) {
        let staged = |input| Staged { input, value: None };
        self.first.queue(Batch {
            first: chunk.first,
            listed: chunk.listed.clone(),
            attempts: chunk.attempts,
            is_final: chunk.is_final,
            grain: chunk.grain,
            each_before: Duration::ZERO,
            items: chunk.take_pending().map(|(_, it)| staged(it)).collect(),
        });
    }

    fn stage(&self, number: usize) -> Option<&dyn StageHandle> {
        let stage = self.stages.get(number)?;
        Some(&**stage)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::engine::completions::Completions;
    use crate::engine::stop::Stop;
    use crate::engine::wake::Wake;
    use crate::observe::instrument::Instruments;
    use crate::policy::ErrorPolicy;
    use crate::pool::OwnPool;

    type Run = Arc<Shared<u32, u32, ()>>;

    fn shared() -> Run {
        Arc::new(Shared {
            run: RunState {
                stop: Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None),
                wake: Wake::new(),
                counters: Arc::default(),
                instruments: Instruments::new(None),
            },
            completions: Completions::new(),
        })
    }

    /// A stage that only counts.
    struct Next {
        state: StageState,
        queued: Mutex<usize>,
        visits: Mutex<usize>,
    }

    impl NextStage<u32, u32> for Next {
        fn queue(&self, batch: Batch<u32, u32>) {
            *self.queued.lock().unwrap() += batch.items.len();
        }
        fn run(&self, batch: Batch<u32, u32>, _: &dyn Fn() -> usize) {
            self.queue(batch);
        }
        fn visit(&self) {
            *self.visits.lock().unwrap() += 1;
        }
        fn state(&self) -> Option<&StageState> {
            Some(&self.state)
        }
    }

    fn two_stages() -> (Arc<Next>, ToNextStage<'static, u32, u32, u32, ()>) {
        let next = Arc::new(Next {
            state: StageState::new(1, "next"),
            queued: Mutex::default(),
            visits: Mutex::default(),
        });
        let sink = ToNextStage {
            shared: shared(),
            stage: StageState::new(0, "first"),
            next: Arc::clone(&next) as _,
        };
        (next, sink)
    }

    /// As the workers of a stage see where its results go.
    type Results<'a> = &'a dyn Sink<Staged<u32, ()>, u32, ()>;

    /// A chunk of which so many were run.
    fn ran(items: u32) -> BoxedChunk<Staged<u32, ()>, u32, ()> {
        let mut chunk = Box::new(Chunk::new());
        let staged = |input| Staged { input, value: None };
        chunk.inputs = (0..items).map(staged).collect();
        let stop = Stop::new(ErrorPolicy::Ignore, false, Vec::new(), None);
        let is_wanted = Default::default();
        let f = |staged: &mut Staged<u32, ()>| Ok(staged.input);
        chunk.run(
            &f,
            &stop,
            true,
            &is_wanted,
            &crate::observe::instrument::NoInstrument,
        );
        chunk
    }

    #[test]
    fn what_is_finished_goes_on_before_its_chunk_where_it_is_waited_for() {
        let (next, sink) = two_stages();
        let results: Results<'_> = &sink;
        let just_now = now() + Duration::from_secs(3_600);
        let long_ago = now() - Duration::from_millis(1);
        let moment = |is_slow| {
            (
                results.should_hand_over(just_now, is_slow),
                results.should_hand_over(long_ago, is_slow),
            )
        };
        // Until it is told of work, a stage is idle.
        assert_eq!(moment(false), (false, true));
        results.send_part(ran(3), 2);
        assert_eq!(*next.queued.lock().unwrap(), 3);
        assert_eq!(moment(false), (false, false));
        assert_eq!(moment(true), (false, true));
        next.state.set_idle(true);
        assert_eq!(moment(false), (false, true));
        sink.shared.run.wake.request_flush(true);
        assert!(results.should_hand_over(just_now, false));
    }

    #[test]
    fn a_stage_is_idle_when_its_workers_are() {
        let (next, sink) = two_stages();
        let results: Results<'_> = &sink;
        let look = || {
            sink.stage.set_idle(false);
            next.state.set_idle(false);
            results.on_idle();
            (sink.stage.is_idle(), next.state.is_idle())
        };
        assert_eq!(look(), (true, false));
        assert!(!next.state.shares_pool());
        next.state.set_shares_pool();
        assert_eq!(look(), (true, true));
        sink.stage.set_shares_pool();
        assert_eq!(look(), (false, true));
        assert!(sink.shared.completions.notified().try_recv().is_ok());
        results.visit_next();
        assert_eq!(*next.visits.lock().unwrap(), 1);
    }

    #[test]
    fn only_the_last_stage_knows_the_end_of_a_task() {
        let (_, sink) = two_stages();
        let sink: Results<'_> = &sink;
        assert!(!sink.is_last());
        // User code may run when it goes on, so not under a lock.
        assert_eq!(
            sink.try_send(ran(5), 1).map_err(|chunk| chunk.len()),
            Err(5)
        );
        let last = ToCaller {
            shared: shared(),
            stage: StageState::new(1, "last"),
        };
        let sink: Results<'_> = &last;
        assert!(sink.is_last());
        for is_requested in [false, true] {
            last.shared.run.wake.request_flush(is_requested);
            let long_ago = now() - Duration::from_millis(1);
            assert_eq!(sink.should_hand_over(long_ago, true), is_requested);
        }
        last.stage.set_idle(false);
        sink.on_idle();
        assert!(last.stage.is_idle());
        last.stage.set_idle(false);
        last.stage.set_shares_pool();
        sink.on_idle();
        assert!(!last.stage.is_idle());
    }

    #[test]
    fn each_stage_tells_how_it_is() {
        let spawner = Spawner::<OwnPool>::of_own_pool;
        let before = Stages::<_, _, _, u32>::new((), spawner(), |n: &u32| Ok::<_, ()>(n + 1));
        assert_eq!(format!("{before:?}"), "Stages { .. }");
        let last = |staged: &mut Staged<u32, u32>| staged.value().take().ok_or(());
        let pipeline = Pipeline::new(before, spawner(), last, &shared());
        assert_eq!(pipeline.first.state().map(|stage| stage.number), Some(0));
        assert_eq!(pipeline.stages.len(), 2);
    }

    /// A pool that keeps its jobs, and may be the one of this thread.
    struct Keeps(bool, Mutex<Vec<Box<dyn FnOnce() + Send>>>);

    impl Spawn<'static> for Keeps {
        fn spawn(&self, job: impl FnOnce() + Send + 'static) {
            self.1.lock().unwrap().push(Box::new(job));
        }

        fn is_current(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn only_a_worker_of_its_pool_shares_in_a_stage() {
        for (shares_pool, is_here) in [(true, true), (true, false), (false, true)] {
            let shared = shared();
            let sink = ToCaller {
                shared: Arc::clone(&shared),
                stage: StageState::new(1, ""),
            };
            if shares_pool {
                sink.stage.set_shares_pool();
            }
            let spawner = Spawner {
                pool: Keeps(is_here, Mutex::default()),
                own: None,
                num_threads: 2,
                name: String::new(),
            };
            let last = |staged: &mut Staged<u32, u32>| staged.value().take().ok_or(());
            let stage = Stage::new(spawner, last, sink);
            let mut chunk = Box::new(Chunk::new());
            let (input, value) = (1, Some(2));
            chunk.inputs.push(Staged { input, value });
            chunk.set_pending();
            stage.open();
            stage.queue(chunk);
            stage.visit();
            assert_eq!(!shared.completions.is_empty(), shares_pool && is_here);
        }
    }
}
