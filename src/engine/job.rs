//! The workers' side: permits take chunks, run them and hand them over.
//!
//! # Invariants
//!
//! 1. Every submitted item comes back exactly once, even if the permits are dropped without being run. The caller
//!    blocks until it does, so a missing one is a hang.
//! 2. Nothing unwinds out of a job, destructors included: rayon would abort the process.
//! 3. A worker lets go of the function before it hands over its last item: once all are back, no worker holds it.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::engine::chunk::BoxedChunk;
use crate::engine::completions::Completions;
use crate::engine::open_chunk::Taken;
use crate::engine::run_queue::{Look, RunQueue, Step};
use crate::engine::stop::Stop;
use crate::engine::wake::Wake;
use crate::observe::counters::Counters;
use crate::observe::instrument::{Instrument, Instruments, NoInstrument};
use crate::observe::report::StageCounters;
use crate::util::panics::drop_catching;
use crate::util::seeded_bugs;
use crate::util::sync::Mutex;
use crate::util::sync::atomic::{AtomicBool, Ordering};

/// What all who have to do with a run share, whatever its types.
#[derive(Debug)]
pub(crate) struct RunState {
    pub(crate) stop: Stop,
    pub(crate) wake: Wake,
    pub(crate) counters: Arc<Counters>,
    pub(crate) instruments: Instruments,
}

/// What a run's caller and its workers share.
#[derive(Debug)]
pub(crate) struct Shared<I, T, E> {
    pub(crate) run: RunState,
    pub(crate) completions: Completions<BoxedChunk<I, T, E>>,
}

/// One of several stages.
#[derive(Debug)]
pub(crate) struct StageState {
    pub(crate) number: usize,
    pub(crate) counters: Arc<StageCounters>,
    /// Whether one of its workers has found nothing to do.
    is_idle: AtomicBool,
    /// Whether the workers of the stage before are its workers as well.
    shares_pool: AtomicBool,
}

impl StageState {
    pub(crate) fn new(number: usize, name: &str) -> Self {
        Self {
            number,
            counters: Arc::new(StageCounters::new(name)),
            is_idle: AtomicBool::new(true),
            shares_pool: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Relaxed)
    }

    pub(crate) fn set_idle(&self, is_idle: bool) {
        self.is_idle.store(is_idle, Ordering::Relaxed);
    }

    pub(crate) fn shares_pool(&self) -> bool {
        self.shares_pool.load(Ordering::Relaxed)
    }

    pub(crate) fn set_shares_pool(&self) {
        self.shares_pool.store(true, Ordering::Relaxed);
    }
}

/// Where finished chunks go: to the caller, or on to the next stage.
pub(crate) trait Sink<I, T, E>: Send + Sync {
    fn run(&self) -> &RunState;

    /// The stage that this is the sink of, where there are several.
    fn stage(&self) -> Option<&StageState> {
        None
    }

    /// Whether what succeeds has come to its end.
    fn is_last(&self) -> bool {
        true
    }

    /// Takes what was run in a chunk, or in a part of one, and what may not start.
    fn send(&self, chunk: BoxedChunk<I, T, E>, width: usize);

    /// The same, for the worker that has run it: if the next stage has the same pool, it goes on with it. `others`: how many
    /// others than this worker its stage has.
    fn pass_on(&self, chunk: BoxedChunk<I, T, E>, width: usize, _others: &dyn Fn() -> usize) {
        self.send(chunk, width);
    }

    /// A worker leaves, as its stage has nothing to do. If the next one has the same pool, it shares in what is there.
    fn visit_next(&self) {}

    /// Like [`send`](Self::send), under the lock of an open chunk, where no user code may run. Returns how many failures are
    /// [handed over](Stop::record_handed_over) by that. `Err`: the chunk was not sent; call `send` once the lock is released.
    fn try_send(
        &self,
        chunk: BoxedChunk<I, T, E>,
        _width: usize,
    ) -> Result<usize, BoxedChunk<I, T, E>> {
        Err(chunk)
    }

    /// The last of a chunk was sent.
    fn complete(&self, width: usize);

    /// Whether what has finished in a chunk that goes on is to be handed over now. `since`: when that was last done;
    /// `is_slow`: its tasks take long enough to be begun one by one.
    fn should_hand_over(&self, since: Instant, is_slow: bool) -> bool;

    /// Such a part is sent. The next request is for the next part.
    fn send_part(&self, part: BoxedChunk<I, T, E>, width: usize);

    /// A worker has nothing to do.
    fn on_idle(&self);
}

impl<I: Send, T: Send, E: Send> Sink<I, T, E> for Arc<Shared<I, T, E>> {
    #[inline]
    fn run(&self) -> &RunState {
        &self.run
    }

    fn send(&self, chunk: BoxedChunk<I, T, E>, width: usize) {
        match self.try_send(chunk, width) {
            Ok(failures) => self.run.stop.record_handed_over(failures as u64),
            Err(_) => unreachable!("the completion queue takes every chunk"),
        }
    }

    fn try_send(
        &self,
        mut chunk: BoxedChunk<I, T, E>,
        width: usize,
    ) -> Result<usize, BoxedChunk<I, T, E>> {
        chunk.seal();
        // Where a retry may follow, only the caller knows whether a failure is final; it counts those.
        let failed = if chunk.is_final { chunk.failed() } else { 0 };
        let succeeded = chunk.len() - chunk.failed();
        self.run
            .counters
            .complete((succeeded + failed) as u64, failed as u64);
        let final_failures = if chunk.is_final {
            failed
        } else {
            chunk.panics()
        };
        let busy = chunk.busy;
        self.completions
            .push(chunk, busy, width as u32, &self.run.wake);
        // Also a consumer that waits for all of them.
        if failed != 0 && !self.run.stop.allows_any() {
            self.completions.notify();
        }
        Ok(final_failures)
    }

    fn complete(&self, width: usize) {
        if self.run.wake.complete(width) && !seeded_bugs::has("missed wake-up") {
            self.completions.notify();
        }
    }

    #[inline]
    fn should_hand_over(&self, _: Instant, _: bool) -> bool {
        self.run.wake.is_flush_requested()
    }

    fn send_part(&self, part: BoxedChunk<I, T, E>, width: usize) {
        // One part will do: a consumer that is slow to wake up is not to be sent item after item.
        // Whoever requests the next one before this is woken by the notification after it.
        self.run.wake.request_flush(false);
        self.send(part, width);
        self.completions.notify();
    }

    fn on_idle(&self) {
        if !self.run.wake.is_last_awaited() && !seeded_bugs::has("missed wake-up") {
            self.completions.notify();
        }
    }
}

/// A function, where it finds its items and where they go: what the jobs of a stage share.
pub(crate) struct JobContext<F, I, T, E, S = Arc<Shared<I, T, E>>> {
    /// There until nothing can be left to run.
    function: Mutex<Option<Arc<F>>>,
    pub(crate) queue: RunQueue<I, T, E>,
    pub(crate) sink: S,
}

impl<F, I, T, E, S> JobContext<F, I, T, E, S> {
    pub(crate) fn new(function: F, sink: S) -> Self
    where
        S: Sink<I, T, E>,
    {
        Self {
            function: Mutex::new(Some(Arc::new(function))),
            queue: RunQueue::new(sink.run().stop.control().cloned()),
            sink,
        }
    }

    fn function(&self) -> Option<Arc<F>> {
        let function = self.function.lock();
        function.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of the function. Nothing is left to be run.
    pub(crate) fn release(&self) {
        let function = self.function.lock();
        let function = function.unwrap_or_else(PoisonError::into_inner).take();
        drop_catching(function);
    }
}

impl<F, I, T, E, S> JobContext<F, I, T, E, S>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    S: Sink<I, T, E>,
{
    /// Queues a chunk. Returns how many permits the pool is to be given.
    pub(crate) fn push(&self, chunk: BoxedChunk<I, T, E>) -> usize {
        self.queue.push(chunk).unwrap_or_else(|chunk| {
            self.give_back(chunk);
            0
        })
    }

    /// Hands over a chunk of which nothing was begun.
    fn give_back(&self, chunk: BoxedChunk<I, T, E>) {
        self.sink.send(chunk, self.queue.width());
        self.sink.complete(self.queue.width());
    }

    /// Runs a chunk on this thread, which is one of the pool's. `visitors`: how many others will look here anyway. `give` is
    /// told how many permits the pool is to be given besides.
    pub(crate) fn run_at_once(
        &self,
        chunk: BoxedChunk<I, T, E>,
        visitors: &dyn Fn() -> usize,
        give: impl FnOnce(usize),
    ) {
        let items = chunk.pending.len();
        match self.queue.take_at_once(chunk) {
            Ok(taken) => {
                if items > 1 {
                    // They are counted after the chunk was opened: who is gone by now is made up for, and who leaves later finds it.
                    give(self.queue.share_out(items, visitors()));
                }
                self.run(taken);
            }
            Err(chunk) => self.give_back(chunk),
        }
    }

    /// A worker of the stage before, which has nothing to do there, shares in what is here.
    pub(crate) fn visit(&self) {
        if self.queue.visit() {
            self.work(Look::Last);
        }
    }

    /// What a permit does: it runs a chunk, and shares in what others have not begun.
    fn begin(&self) {
        self.queue.begin();
        self.work(Look::First);
    }

    fn work(&self, mut look: Look) {
        let queue = &self.queue;
        loop {
            match queue.next(look) {
                Step::Run(taken) => {
                    self.run(taken);
                    look = Look::Again;
                }
                Step::Park(until) => {
                    queue.park(until);
                    look = Look::Last;
                }
                Step::Idle => {
                    // It wakes the caller: no completion may be left that nobody was told of.
                    self.sink.on_idle();
                    let RunState { stop, wake, .. } = self.sink.run();
                    wake.spin_before_idle(|| stop.allows_any());
                    look = Look::AfterIdle;
                }
                Step::Yield => return,
                Step::Leave => return self.sink.visit_next(),
            }
        }
    }

    /// Runs one piece of work, if there is one that nobody has begun. For a consumer that is a worker as well.
    pub(crate) fn help(&self) -> bool {
        let taken = self.queue.next_for_consumer();
        taken.is_some_and(|taken| {
            self.run(taken);
            true
        })
    }

    fn run(&self, taken: Taken<I, T, E>) {
        let is_part = taken.is_part;
        let (mut chunk, slot) = match self.function() {
            Some(function) => {
                let ran = self.run_with(taken, &*function);
                drop_catching(function);
                ran
            }
            // The run was left inside one of its tasks.
            None => taken.close(),
        };
        let RunState { stop, wake, .. } = self.sink.run();
        // What was not begun although nothing stops the run: its control has changed.
        let is_left = chunk.pending.len() != 0
            && self.queue.is_controlled()
            && stop.allows(chunk.index(chunk.len()));
        let left = is_left.then(|| chunk.take_left());
        if is_left && is_part {
            // It is a chunk like any other now.
            wake.submit();
        }
        let width = self.queue.width();
        if let Err(left) = self.queue.put_back(slot, left) {
            self.give_back(left);
        }
        let has_failed = chunk.failed() != 0;
        if chunk.len() + chunk.pending.len() != 0 {
            self.sink.pass_on(chunk, width, &|| self.queue.others());
        }
        if !is_part && !is_left {
            self.sink.complete(width);
        }
        // The failures that lie in other open chunks count as well: they are sent, so that tasks are told to stop.
        if has_failed && !stop.allows_any() {
            self.flush();
        }
    }

    /// Runs the chunk. Sends parts of it on the way, where the sink asks for them, and returns the rest with its slot.
    fn run_with(&self, mut taken: Taken<I, T, E>, f: &F) -> (BoxedChunk<I, T, E>, usize) {
        let run = self.sink.run();
        let _entered = run.stop.tasks_token().enter(taken.chunk.attempts);
        let stage = self.sink.stage().map(|stage| stage.number);
        let instrument = run
            .instruments
            .instrument(stage, taken.chunk.attempts, taken.start);
        taken.reserve();
        match instrument.as_ref().filter(|it| it.is_per_task()) {
            None => self.run_all(&mut taken, f, &NoInstrument),
            Some(instrument) => self.run_all(&mut taken, f, instrument),
        }
        // Before the chunk is handed over, after which the run may end.
        drop(instrument);
        taken.close()
    }

    #[inline]
    fn run_all(&self, taken: &mut Taken<I, T, E>, f: &F, instrument: &impl Instrument) {
        let width = self.queue.width();
        let stop = &self.sink.run().stop;
        while taken.run(f, stop, self.sink.is_last(), instrument) {
            let is_slow = taken.chunk.grain == 1;
            let should_hand_over = |since| self.sink.should_hand_over(since, is_slow);
            let (may_go_on, part) = taken.advance(width, should_hand_over);
            if let Some(part) = part {
                self.sink.send_part(part, width);
            }
            if !may_go_on {
                return;
            }
        }
    }

    /// Sends what has finished in chunks that go on.
    pub(crate) fn flush(&self) {
        let width = self.queue.width();
        let mut final_failures = 0;
        let mut later = Vec::new();
        // Under the lock of its worker, so that what that one finishes next comes after it.
        self.queue
            .flush(|part| match self.sink.try_send(part, width) {
                Ok(failures) => final_failures += failures,
                Err(part) => later.push(part),
            });
        self.sink
            .run()
            .stop
            .record_handed_over(final_failures as u64);
        later
            .into_iter()
            .for_each(|part| self.sink.send(part, width));
    }

    /// Nothing begins any more: what nobody has begun is sent back, however busy the pool is with other things.
    pub(crate) fn close(&self) {
        for chunk in self.queue.close() {
            self.sink.send(chunk, self.queue.width());
        }
    }
}

type SharedContext<F, I, T, E, S> = Arc<JobContext<F, I, T, E, S>>;

/// The right to take a chunk: what the pool is given as a job.
pub(crate) struct Permit<F, I, T, E, S>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    S: Sink<I, T, E>,
{
    /// There until it begins.
    context: Option<SharedContext<F, I, T, E, S>>,
}

impl<F, I, T, E, S> Permit<F, I, T, E, S>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    S: Sink<I, T, E>,
{
    pub(crate) fn new(context: &Arc<JobContext<F, I, T, E, S>>) -> Self {
        Self {
            context: Some(Arc::clone(context)),
        }
    }

    pub(crate) fn run(mut self) {
        if let Some(context) = self.context.take() {
            context.begin();
        }
    }
}

impl<F, I, T, E, S> Drop for Permit<F, I, T, E, S>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    S: Sink<I, T, E>,
{
    fn drop(&mut self) {
        let Some(context) = self.context.take() else {
            return;
        };
        // The pool has dropped it without running it.
        if let Some(chunk) = context.queue.drop_permit() {
            context.give_back(chunk);
        }
        context.sink.on_idle();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::panic::resume_unwind;

    use super::*;
    use crate::engine::chunk::Chunk;
    use crate::policy::ErrorPolicy::{self, Ignore, Raise};

    type Run = Arc<Shared<u64, u64, Infallible>>;

    fn shared(policy: ErrorPolicy, ordered: bool) -> Run {
        Arc::new(Shared {
            run: RunState {
                stop: Stop::new(policy, ordered, Vec::new(), None),
                wake: Wake::new(),
                counters: Arc::default(),
                instruments: Instruments::new(None),
            },
            completions: Completions::new(),
        })
    }

    /// Runs a chunk of items that are their own indices, from `first` on.
    fn run(shared: &Run, first: u64, count: u64, f: impl Fn(&mut u64) -> Result<u64, Infallible>) {
        let mut chunk = Box::new(Chunk::new());
        chunk.first = first;
        chunk.inputs.extend(first..first + count);
        chunk.set_pending();
        let context = Arc::new(JobContext::new(f, Arc::clone(shared)));
        assert_eq!(context.push(chunk), 1);
        Permit::new(&context).run();
    }

    #[test]
    fn a_consumer_that_is_slow_to_come_is_sent_one_part() {
        let shared = shared(Ignore, false);
        shared.run.wake.request_flush(true);
        run(&shared, 0, 1_000, |n| Ok(*n));
        let mut completions = VecDeque::new();
        shared.completions.take(&mut completions);
        let lengths: Vec<usize> = completions.iter().map(|chunk| chunk.len()).collect();
        assert_eq!(lengths, [1, 999]);
        assert!(shared.completions.notified().try_recv().is_ok());
    }

    #[test]
    fn a_consumer_that_waits_for_the_last_is_told_of_what_ends_the_run() {
        for (policy, is_told) in [(Raise, true), (Ignore, false)] {
            let shared = shared(policy, false);
            // One of two, and both are short.
            (0..2).for_each(|_| shared.run.wake.submit());
            shared.run.wake.begin_wait(true);
            run(&shared, 0, 1, |_| {
                resume_unwind(Box::new("no hook is called"))
            });
            assert_eq!(shared.completions.notified().try_recv().is_ok(), is_told);
            run(&shared, 1, 1, |n| Ok(*n));
            assert!(shared.completions.notified().try_recv().is_ok());
        }
    }

    #[test]
    fn in_order_a_panic_stops_only_what_comes_after_it() {
        let shared = shared(Raise, true);
        run(&shared, 10, 3, |n| match n {
            11 => resume_unwind(Box::new("no hook is called")),
            _ => Ok(*n),
        });
        assert!(shared.run.stop.allows(10) && !shared.run.stop.allows(11));
    }

    #[test]
    fn a_visitor_shares_in_what_is_there() {
        let shared = shared(Ignore, false);
        let context = JobContext::new(|n: &mut u64| Ok(*n), Arc::clone(&shared));
        context.queue.set_width(2);
        context.visit();
        assert!(shared.completions.is_empty());
        let mut chunk = Box::new(Chunk::new());
        chunk.inputs = vec![7];
        chunk.set_pending();
        assert_eq!(context.push(chunk), 1);
        context.visit();
        assert!(!shared.completions.is_empty());
    }
}
