//! The workers' side: permits take chunks, run them and answer them.
//!
//! # Invariants
//!
//! 1. Every submitted item is answered exactly once, even if the permits are dropped without being run. The caller
//!    blocks on those answers, so a missing one is a hang.
//! 2. Nothing unwinds out of a job, destructors included: rayon would abort the process.
//! 3. The function is let go before the last answer is sent: once all are in, no worker holds it.

use std::fmt;
use std::sync::{Arc, PoisonError};

use crate::engine::chunk::Chunk;
use crate::engine::completions::Completions;
use crate::engine::run_queue::{Look, Next, RunQueue, Taken};
use crate::engine::signals::Signals;
use crate::observe::counters::Counters;
use crate::observe::instrument::{Instrument, Instruments, NoInstrument};
use crate::util::bugs;
use crate::util::panics::drop_catching;
use crate::util::sync::Mutex;

/// What a run's caller and its workers share.
#[derive(Debug)]
pub(crate) struct Shared<I, T, E> {
    pub(crate) completions: Completions<Box<Chunk<I, T, E>>>,
    pub(crate) signals: Signals,
    pub(crate) counters: Arc<Counters>,
    pub(crate) instruments: Instruments,
}

/// Where what has run goes: to the caller, or on to the next stage.
pub(crate) trait Sink<I, T, E>: Send + Sync {
    fn signals(&self) -> &Signals;

    fn instruments(&self) -> &Instruments;

    /// The stage that this is the sink of, where there are several.
    fn stage(&self) -> Option<usize> {
        None
    }

    /// Takes what has run in a chunk, or in a part of one, and what may not start. If it is for the next stage, and that is at
    /// spawner on this thread, it runs here and now.
    fn send(&self, chunk: Box<Chunk<I, T, E>>, width: usize);

    /// The same under a lock, where no user's code may run. Returns how many of its failures are
    /// [handed over](Signals::handed_over) by that; or the chunk, which is to be sent later.
    fn put(&self, chunk: Box<Chunk<I, T, E>>, _width: usize) -> Result<usize, Box<Chunk<I, T, E>>> {
        Err(chunk)
    }

    /// A chunk has been sent, the last of it.
    fn answer(&self, width: usize);

    /// Whether whoever is next waits for what has finished in chunks that go on; `is_slow`: of tasks that take long.
    fn is_flush_requested(&self, is_slow: bool) -> bool;

    /// Such a part is sent. Whoever becomes flush_requested after this is fed by the next one.
    fn send_part(&self, part: Box<Chunk<I, T, E>>, width: usize);

    /// A worker has nothing to do.
    fn on_idle(&self);
}

impl<I: Send, T: Send, E: Send> Sink<I, T, E> for Arc<Shared<I, T, E>> {
    #[inline]
    fn signals(&self) -> &Signals {
        &self.signals
    }

    #[inline]
    fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    /// Answers for the items of a chunk.
    fn send(&self, chunk: Box<Chunk<I, T, E>>, width: usize) {
        if let Ok(stopping) = self.put(chunk, width) {
            self.signals.handed_over(stopping as u64);
        }
    }

    fn put(
        &self,
        mut chunk: Box<Chunk<I, T, E>>,
        width: usize,
    ) -> Result<usize, Box<Chunk<I, T, E>>> {
        chunk.seal();
        // Where a retry may follow, only the caller knows whether a failure is final; it counts those.
        let failed = if chunk.is_final { chunk.failed() } else { 0 };
        let succeeded = chunk.len() - chunk.failed();
        self.counters
            .complete((succeeded + failed) as u64, failed as u64);
        let stopping = if chunk.is_final {
            failed
        } else {
            chunk.panics()
        };
        let busy = chunk.busy;
        self.completions
            .put(chunk, busy, width as u32, &self.signals);
        Ok(stopping)
    }

    fn answer(&self, width: usize) {
        if self.signals.answer(width) && !bugs::has("missed wake-up") {
            self.completions.ring();
        }
    }

    #[inline]
    fn is_flush_requested(&self, _: bool) -> bool {
        self.signals.is_flush_requested()
    }

    fn send_part(&self, part: Box<Chunk<I, T, E>>, width: usize) {
        // One answer will do: a consumer that is slow to wake up is not to be sent item after item.
        // Whoever has become flush_requested before this is woken by the ring after it.
        self.signals.request_flush(false);
        self.send(part, width);
        self.completions.ring();
    }

    fn on_idle(&self) {
        if !bugs::has("missed wake-up") {
            self.completions.ring();
        }
    }
}

/// A function, where it finds its items and where they go: what the jobs of a run, or of a stage, have.
pub(crate) struct JobContext<F, I, T, E, O = Arc<Shared<I, T, E>>> {
    /// There until nothing can be left to run.
    function: Mutex<Option<Arc<F>>>,
    pub(crate) queue: RunQueue<I, T, E>,
    pub(crate) sink: O,
}

impl<F, I, T, E, O> JobContext<F, I, T, E, O> {
    pub(crate) fn new(function: F, sink: O) -> Self {
        Self {
            function: Mutex::new(Some(Arc::new(function))),
            queue: RunQueue::new(),
            sink,
        }
    }

    /// Lets go of the function. Nothing is left to be run.
    pub(crate) fn clear(&self) {
        let function = self.function.lock();
        let function = function.unwrap_or_else(PoisonError::into_inner).take();
        drop_catching(function);
    }
}

impl<F, I, T, E, O> JobContext<F, I, T, E, O>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    O: Sink<I, T, E>,
{
    /// Queues a chunk. Returns how many permits its spawner is to be given.
    pub(crate) fn push(&self, chunk: Box<Chunk<I, T, E>>) -> usize {
        self.queue.push(chunk).unwrap_or_else(|chunk| {
            self.give_back(chunk);
            0
        })
    }

    /// Answers a chunk that nothing begins of.
    fn give_back(&self, chunk: Box<Chunk<I, T, E>>) {
        self.sink.send(chunk, self.queue.width());
        self.sink.answer(self.queue.width());
    }

    /// Runs a chunk on this thread, which is one of its spawner's. `give` is told how many permits the spawner is to be given
    /// besides.
    pub(crate) fn run_at_once(&self, chunk: Box<Chunk<I, T, E>>, give: impl FnOnce(usize)) {
        let mut permits = 0;
        match self.queue.take_at_once(chunk, &mut permits) {
            Ok(taken) => {
                give(permits);
                self.run(taken);
            }
            Err(chunk) => self.give_back(chunk),
        }
    }

    /// What a permit does: it runs a chunk, and shares in what others have not begun.
    fn work(&self) {
        let queue = &self.queue;
        queue.begin();
        let mut look = Look::First;
        loop {
            match queue.next(look) {
                Next::Run(taken) => {
                    self.run(taken);
                    look = Look::Again;
                }
                Next::Park(until) => {
                    queue.park(until);
                    look = Look::Last;
                }
                Next::Spin => {
                    self.sink.on_idle();
                    self.sink.signals().spin_before_idle();
                    look = Look::Last;
                }
                Next::Leave => return,
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
        let function = self.function.lock();
        let function = function.unwrap_or_else(PoisonError::into_inner).clone();
        let is_part = taken.is_part;
        let (chunk, place) = match function {
            Some(function) => {
                let ran = self.run_with(taken, &*function);
                drop_catching(function);
                ran
            }
            // The run was left inside one of its tasks.
            None => taken.close(),
        };
        self.queue.put_back(place);
        let width = self.queue.width();
        let has_failed = chunk.failed() > 0;
        self.sink.send(chunk, width);
        if !is_part {
            self.sink.answer(width);
        }
        // Failures that lie elsewhere count as well, and those who run are told once all are on their way.
        if has_failed && !self.sink.signals().may_go_on() {
            self.flush();
        }
    }

    /// Runs what was taken. What whoever is next waits for, and what others take, is sent on the way.
    fn run_with(&self, mut taken: Taken<I, T, E>, f: &F) -> (Box<Chunk<I, T, E>>, usize) {
        let _entered = self.sink.signals().tasks_token().enter();
        let instrument = self.sink.instruments().instrument(
            self.sink.stage(),
            taken.chunk.attempts,
            taken.start,
        );
        taken.reserve();
        match instrument.as_ref().filter(|it| it.is_close()) {
            None => self.run_all(&mut taken, f, &NoInstrument),
            Some(instrument) => self.run_all(&mut taken, f, instrument),
        }
        // Before the answer, after which the run may end.
        drop(instrument);
        taken.close()
    }

    #[inline]
    fn run_all(&self, taken: &mut Taken<I, T, E>, f: &F, instrument: &impl Instrument) {
        let width = self.queue.width();
        while taken.run(f, self.sink.signals(), instrument) {
            let is_slow = taken.chunk.grain == 1;
            let is_flush_requested = || self.sink.is_flush_requested(is_slow);
            let (may_go_on, part) = taken.advance(width, is_flush_requested);
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
        let mut stopping = 0;
        let mut later = Vec::new();
        // Under the lock of its worker, so that what that one finishes next comes after it.
        self.queue.flush(|part| match self.sink.put(part, width) {
            Ok(failures) => stopping += failures,
            Err(part) => later.push(part),
        });
        self.sink.signals().handed_over(stopping as u64);
        later
            .into_iter()
            .for_each(|part| self.sink.send(part, width));
    }

    /// Nothing begins any more: what nobody has begun is sent back, however busy the spawner is with other things.
    pub(crate) fn close(&self) {
        for chunk in self.queue.close() {
            self.sink.send(chunk, self.queue.width());
        }
    }
}

type SharedContext<F, I, T, E, O> = Arc<JobContext<F, I, T, E, O>>;

/// The right to take a chunk: what is handed to the spawner.
pub(crate) struct Permit<F, I, T, E, O>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    O: Sink<I, T, E>,
{
    /// Up to its beginning.
    context: Option<SharedContext<F, I, T, E, O>>,
}

impl<F, I, T, E, O> Permit<F, I, T, E, O>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    O: Sink<I, T, E>,
{
    pub(crate) fn new(context: &Arc<JobContext<F, I, T, E, O>>) -> Self {
        Self {
            context: Some(Arc::clone(context)),
        }
    }

    pub(crate) fn run(mut self) {
        if let Some(context) = self.context.take() {
            context.work();
        }
    }
}

impl<F, I, T, E, O> Drop for Permit<F, I, T, E, O>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    O: Sink<I, T, E>,
{
    fn drop(&mut self) {
        // Its spawner has dropped it.
        let Some(context) = self.context.take() else {
            return;
        };
        if let Some(chunk) = context.queue.forsake() {
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

    /// Runs a chunk of items that are their own indices, from `first` on.
    fn run(
        signals: Signals,
        first: u64,
        count: u64,
        f: impl Fn(&mut u64) -> Result<u64, Infallible>,
    ) -> Arc<Shared<u64, u64, Infallible>> {
        let shared = Arc::new(Shared {
            completions: Completions::new(),
            signals,
            counters: Arc::default(),
            instruments: Instruments::new(None),
        });
        let mut chunk = Box::new(Chunk::new());
        chunk.first = first;
        chunk.inputs.extend(first..first + count);
        chunk.set_pending();
        let context = Arc::new(JobContext::new(f, Arc::clone(&shared)));
        assert_eq!(context.push(chunk), 1);
        Permit::new(&context).run();
        shared
    }

    #[test]
    fn a_hungry_consumer_that_is_slow_to_come_is_fed_once() {
        let signals = Signals::new(None, false, Vec::new());
        signals.request_flush(true);
        let shared = run(signals, 0, 1_000, |n| Ok(*n));
        let mut answers = VecDeque::new();
        shared.completions.take(&mut answers);
        let lengths: Vec<usize> = answers.iter().map(|answer| answer.len()).collect();
        assert_eq!(lengths, [1, 999]);
        assert!(shared.completions.rings().try_recv().is_ok());
    }

    #[test]
    fn in_order_a_panic_stops_only_what_comes_after_it() {
        let signals = Signals::new(Some(0), true, Vec::new());
        let shared = run(signals, 10, 3, |n| match n {
            11 => resume_unwind(Box::new("no hook is called")),
            _ => Ok(*n),
        });
        assert!(shared.signals.allows(10) && !shared.signals.allows(11));
    }
}
