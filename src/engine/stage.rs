//! A stage: a function, and the pool that runs it. A run has one or several.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::engine::chunk::BoxedChunk;
use crate::engine::job::{JobContext, Permit, Shared, Sink, StageState};
use crate::engine::wake::Spawning;
use crate::observe::report::StageCounters;
use crate::pool::{OwnPool, Spawn};
use crate::util::panics::drop_catching;
use crate::util::sync::RwLock;
use crate::util::sync::thread::Thread;

/// More workers than this are not counted, whatever a pool says.
const MAX_WIDTH: usize = 1 << 16;

/// Where a stage runs, and how.
pub(crate) struct Spawner<P> {
    pub(crate) pool: P,
    /// The same, if it is the run's own: a caller that waits starts its threads.
    pub(crate) own: Option<fn(&P) -> &OwnPool>,
    pub(crate) num_threads: usize,
    pub(crate) name: String,
}

impl Spawner<OwnPool> {
    /// A pool of the run's own, with all that is default.
    pub(crate) fn of_own_pool() -> Self {
        Self {
            pool: OwnPool::default(),
            own: Some(|pool| pool),
            num_threads: 0,
            name: String::new(),
        }
    }
}

/// A stage as the caller's half sees it, whatever its types.
pub(crate) trait StageHandle {
    /// Makes the pool ready. Returns how many can work there at once.
    fn open(&self) -> usize;
    /// Runs something that no worker has begun, if there is any.
    fn help(&self) -> bool;
    /// Waits a moment for `is_over`, where a pool of the run's own has just been made. Returns whether it is over.
    fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool;
    /// When a caller that begins to wait now should start the threads of such a pool that no job has needed, if there are any.
    fn rest_due(&self) -> Option<Instant>;
    /// Starts them.
    fn start_rest(&self);
    /// Whether this thread is one of the pool's.
    fn is_current(&self) -> bool;
    /// Sends what has finished in chunks that go on.
    fn flush(&self);
    /// Whether one of its workers has nothing to do, and nothing is queued.
    fn is_idle(&self) -> bool;
    /// Gives the pool what permits are missing now that the run's control has changed.
    fn follow_control(&self);
    /// Nothing begins any more. What nobody has begun comes back at once.
    fn close(&self);
    /// The threads that run tasks, and the indices of those.
    fn calls(&self) -> Vec<(Thread, Range<u64>)>;
    /// What is counted, where there are several stages.
    fn counters(&self) -> Option<Arc<StageCounters>>;
    /// Everything is back: lets go of the pool and of the function.
    fn release(&self);
}

/// How the caller submits chunks to the stages of its run.
pub(crate) trait Dispatch<I, T, E>: Send {
    fn submit(&self, chunk: BoxedChunk<I, T, E>);
    fn stage(&self, number: usize) -> Option<&dyn StageHandle>;
}

pub(crate) struct Stage<P, F, I, T, E, S> {
    /// Gone when the run is left.
    spawner: RwLock<Option<Spawner<P>>>,
    context: Arc<JobContext<F, I, T, E, S>>,
}

impl<P, F, I, T, E, S> Stage<P, F, I, T, E, S> {
    pub(crate) fn new(spawner: Spawner<P>, function: F, sink: S) -> Self
    where
        S: Sink<I, T, E>,
    {
        Self {
            spawner: RwLock::new(Some(spawner)),
            context: Arc::new(JobContext::new(function, sink)),
        }
    }

    pub(crate) fn sink(&self) -> &S {
        &self.context.sink
    }

    fn with_spawner<R>(&self, f: impl FnOnce(&Spawner<P>) -> R) -> Option<R> {
        let spawner = self.spawner.read().unwrap_or_else(PoisonError::into_inner);
        spawner.as_ref().map(f)
    }

    /// Calls `f` if the pool is the run's own.
    fn with_own_pool<R>(&self, f: impl FnOnce(&OwnPool) -> R) -> Option<R> {
        self.with_spawner(|spawner| Some(f(spawner.own?(&spawner.pool))))
            .flatten()
    }
}

impl<'s, P, F, I, T, E, S> Stage<P, F, I, T, E, S>
where
    P: Spawn<'s>,
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
    S: Sink<I, T, E> + 's,
{
    /// Queues a chunk for the workers.
    pub(crate) fn queue(&self, chunk: BoxedChunk<I, T, E>) {
        // Where the run was left inside one of its tasks, and this is what that has made, it comes back, and there are no
        // permits to give.
        self.give_permits(self.context.push(chunk));
    }

    /// The same; but a thread of the pool runs it at once.
    pub(crate) fn run(&self, chunk: BoxedChunk<I, T, E>, visitors: &dyn Fn() -> usize) {
        // Under a control, the pool's own permits are what is counted.
        if self.is_here() && !self.context.queue.is_controlled() {
            if let Some(stage) = self.sink().stage() {
                stage.set_shares_pool();
            }
            let give = |permits| self.give_permits(permits);
            self.context.run_at_once(chunk, visitors, give);
        } else {
            self.queue(chunk);
        }
    }

    /// A worker of the stage before shares in what is here, if it is one of the pool.
    pub(crate) fn visit(&self) {
        let shares_pool = self.sink().stage().is_some_and(StageState::shares_pool);
        if shares_pool && self.is_here() {
            self.context.visit();
        }
    }

    /// Whether this thread is one of the pool's for certain.
    fn is_here(&self) -> bool {
        let is_here = |it: &Spawner<P>| it.pool.is_current() && it.pool.knows_its_threads();
        self.with_spawner(is_here).unwrap_or(false)
    }

    fn give_permits(&self, permits: usize) {
        if permits == 0 {
            return;
        }
        self.with_spawner(|spawner| {
            let _spawning = Spawning::new();
            for _ in 0..permits {
                let permit = Permit::new(&self.context);
                spawner.pool.spawn(move || permit.run());
            }
        });
    }
}

impl<'s, P, F, I, T, E, S> StageHandle for Stage<P, F, I, T, E, S>
where
    P: Spawn<'s>,
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
    S: Sink<I, T, E> + 's,
{
    fn open(&self) -> usize {
        let mut spawner = self.spawner.write().unwrap_or_else(PoisonError::into_inner);
        let width = spawner.as_mut().map_or(1, |spawner| {
            let width = spawner.pool.open(spawner.num_threads, &spawner.name);
            width.clamp(1, MAX_WIDTH)
        });
        self.context.queue.set_width(width);
        if let Some(stage) = self.sink().stage() {
            stage.counters.open(width);
        }
        width
    }

    fn help(&self) -> bool {
        self.context.help()
    }

    fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.with_own_pool(|pool| pool.warm_up(is_over))
            .unwrap_or(false)
    }

    fn rest_due(&self) -> Option<Instant> {
        self.with_own_pool(OwnPool::rest_due).flatten()
    }

    fn start_rest(&self) {
        self.with_own_pool(OwnPool::start_rest);
    }

    fn is_current(&self) -> bool {
        self.with_spawner(|it| it.pool.is_current())
            .unwrap_or(false)
    }

    fn flush(&self) {
        self.context.flush();
    }

    fn is_idle(&self) -> bool {
        self.context.queue.is_idle()
    }

    fn follow_control(&self) {
        self.give_permits(self.context.queue.follow_control());
    }

    fn close(&self) {
        self.context.close();
    }

    fn calls(&self) -> Vec<(Thread, Range<u64>)> {
        self.context.queue.calls()
    }

    fn counters(&self) -> Option<Arc<StageCounters>> {
        let stage = self.sink().stage()?;
        Some(Arc::clone(&stage.counters))
    }

    fn release(&self) {
        // A run that is left inside one of its tasks waits for nobody: a pool that is in use then goes with its stage.
        let spawner = if self.calls().is_empty() {
            Some(self.spawner.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            self.spawner.try_write().ok()
        };
        let spawner = spawner.and_then(|mut spawner| spawner.take());
        // Each by itself: the pool and what the function captures may both panic when dropped.
        drop_catching(spawner);
        self.context.release();
    }
}

/// A run of one function.
impl<'s, P, F, I, T, E> Dispatch<I, T, E> for Stage<P, F, I, T, E, Arc<Shared<I, T, E>>>
where
    P: Spawn<'s>,
    F: Fn(&mut I) -> Result<T, E> + Send + Sync + 's,
    I: Send + 's,
    T: Send + 's,
    E: fmt::Debug + Send + 's,
{
    fn submit(&self, chunk: BoxedChunk<I, T, E>) {
        self.queue(chunk);
    }

    fn stage(&self, number: usize) -> Option<&dyn StageHandle> {
        (number == 0).then_some(self as _)
    }
}
