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

use crate::engine::chunk::Parcel;
use crate::engine::completions::Tray;
use crate::engine::run_queue::{Look, Next, RunQueue, Taken};
use crate::engine::signals::Signals;
use crate::observe::counters::Counters;
use crate::observe::instrument::{Alone, Attend, Watch};
use crate::util::bugs;
use crate::util::panics::bury;
use crate::util::sync::Mutex;

/// What a run's caller and its workers share.
#[derive(Debug)]
pub(crate) struct Shared<I, T, E> {
    pub(crate) tray: Tray<Parcel<I, T, E>>,
    pub(crate) signals: Signals,
    pub(crate) counters: Arc<Counters>,
    pub(crate) watch: Watch,
}

/// Where what has run goes: to the caller, or on to the next stage.
pub(crate) trait Outlet<I, T, E>: Send + Sync {
    fn signals(&self) -> &Signals;

    fn watch(&self) -> &Watch;

    /// The stage that this is the outlet of, where there are several.
    fn stage(&self) -> Option<usize> {
        None
    }

    /// Takes what has run in a chunk, or in a part of one, and what may not start. If it is for the next stage, and that is at
    /// home on this thread, it runs here and now.
    fn send(&self, chunk: Parcel<I, T, E>, width: usize);

    /// The same under a lock, where no user's code may run. Returns how many of its failures are
    /// [handed over](Signals::handed_over) by that; or the chunk, which is to be sent later.
    fn put(&self, chunk: Parcel<I, T, E>, _width: usize) -> Result<usize, Parcel<I, T, E>> {
        Err(chunk)
    }

    /// A chunk has been sent, the last of it.
    fn answer(&self, width: usize);

    /// Whether whoever is next waits for what has finished in chunks that go on; `is_slow`: of tasks that take long.
    fn is_hungry(&self, is_slow: bool) -> bool;

    /// Such a part is sent. Whoever becomes hungry after this is fed by the next one.
    fn send_part(&self, part: Parcel<I, T, E>, width: usize);

    /// A worker has nothing to do.
    fn run_dry(&self);
}

impl<I: Send, T: Send, E: Send> Outlet<I, T, E> for Arc<Shared<I, T, E>> {
    #[inline]
    fn signals(&self) -> &Signals {
        &self.signals
    }

    #[inline]
    fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Answers for the items of a chunk.
    fn send(&self, chunk: Parcel<I, T, E>, width: usize) {
        if let Ok(stopping) = self.put(chunk, width) {
            self.signals.handed_over(stopping as u64);
        }
    }

    fn put(&self, mut chunk: Parcel<I, T, E>, width: usize) -> Result<usize, Parcel<I, T, E>> {
        chunk.turn_round();
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
        self.tray.put(chunk, busy, width as u32, &self.signals);
        Ok(stopping)
    }

    fn answer(&self, width: usize) {
        if self.signals.answer(width) && !bugs::has("missed wake-up") {
            self.tray.ring();
        }
    }

    #[inline]
    fn is_hungry(&self, _: bool) -> bool {
        self.signals.is_hungry()
    }

    fn send_part(&self, part: Parcel<I, T, E>, width: usize) {
        // One answer will do: a consumer that is slow to wake up is not to be sent item after item.
        // Whoever has become hungry before this is woken by the ring after it.
        self.signals.set_hungry(false);
        self.send(part, width);
        self.tray.ring();
    }

    fn run_dry(&self) {
        if !bugs::has("missed wake-up") {
            self.tray.ring();
        }
    }
}

/// A function, where it finds its items and where they go: what the jobs of a run, or of a stage, have.
pub(crate) struct Bench<F, I, T, E, O = Arc<Shared<I, T, E>>> {
    /// There until nothing can be left to run.
    function: Mutex<Option<Arc<F>>>,
    pub(crate) queue: RunQueue<I, T, E>,
    pub(crate) outlet: O,
}

impl<F, I, T, E, O> Bench<F, I, T, E, O> {
    pub(crate) fn new(function: F, outlet: O) -> Self {
        Self {
            function: Mutex::new(Some(Arc::new(function))),
            queue: RunQueue::new(),
            outlet,
        }
    }

    /// Lets go of the function. Nothing is left to be run.
    pub(crate) fn clear(&self) {
        let function = self.function.lock();
        let function = function.unwrap_or_else(PoisonError::into_inner).take();
        bury(function);
    }
}

impl<F, I, T, E, O> Bench<F, I, T, E, O>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    O: Outlet<I, T, E>,
{
    /// Queues a chunk. Returns how many permits its home is to be given.
    pub(crate) fn push(&self, chunk: Parcel<I, T, E>) -> usize {
        self.queue.push(chunk).unwrap_or_else(|chunk| {
            self.give_back(chunk);
            0
        })
    }

    /// Answers a chunk that nothing begins of.
    fn give_back(&self, chunk: Parcel<I, T, E>) {
        self.outlet.send(chunk, self.queue.width());
        self.outlet.answer(self.queue.width());
    }

    /// Runs a chunk on this thread, which is one of its home's. `give` is told how many permits the home is to be given
    /// besides.
    pub(crate) fn run_at_once(&self, chunk: Parcel<I, T, E>, give: impl FnOnce(usize)) {
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
                Next::Linger => {
                    self.outlet.run_dry();
                    self.outlet.signals().linger();
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
                bury(function);
                ran
            }
            // The run was left inside one of its tasks.
            None => taken.close(),
        };
        self.queue.put_back(place);
        let width = self.queue.width();
        let has_failed = chunk.failed() > 0;
        self.outlet.send(chunk, width);
        if !is_part {
            self.outlet.answer(width);
        }
        // Failures that lie elsewhere count as well, and those who run are told once all are on their way.
        if has_failed && !self.outlet.signals().may_go_on() {
            self.sweep();
        }
    }

    /// Runs what was taken. What whoever is next waits for, and what others take, is sent on the way.
    fn run_with(&self, mut taken: Taken<I, T, E>, f: &F) -> (Parcel<I, T, E>, usize) {
        let _entered = self.outlet.signals().tasks_token().enter();
        let attended =
            self.outlet
                .watch()
                .attend(self.outlet.stage(), taken.chunk.attempts, taken.start);
        taken.reserve();
        match attended.as_ref().filter(|it| it.is_close()) {
            None => self.run_all(&mut taken, f, &Alone),
            Some(attendant) => self.run_all(&mut taken, f, attendant),
        }
        // Before the answer, after which the run may end.
        drop(attended);
        taken.close()
    }

    #[inline]
    fn run_all(&self, taken: &mut Taken<I, T, E>, f: &F, attendant: &impl Attend) {
        let width = self.queue.width();
        while taken.run(f, self.outlet.signals(), attendant) {
            let is_slow = taken.chunk.grain == 1;
            let is_hungry = || self.outlet.is_hungry(is_slow);
            let (may_go_on, part) = taken.advance(width, is_hungry);
            if let Some(part) = part {
                self.outlet.send_part(part, width);
            }
            if !may_go_on {
                return;
            }
        }
    }

    /// Sends what has finished in chunks that go on.
    pub(crate) fn sweep(&self) {
        let width = self.queue.width();
        let mut stopping = 0;
        let mut later = Vec::new();
        // Under the lock of its worker, so that what that one finishes next comes after it.
        self.queue.sweep(|part| match self.outlet.put(part, width) {
            Ok(failures) => stopping += failures,
            Err(part) => later.push(part),
        });
        self.outlet.signals().handed_over(stopping as u64);
        later
            .into_iter()
            .for_each(|part| self.outlet.send(part, width));
    }

    /// Nothing begins any more: what nobody has begun is sent back, however busy the home is with other things.
    pub(crate) fn close(&self) {
        for chunk in self.queue.close() {
            self.outlet.send(chunk, self.queue.width());
        }
    }
}

type SharedBench<F, I, T, E, O> = Arc<Bench<F, I, T, E, O>>;

/// The right to take a chunk: what is handed to the home.
pub(crate) struct Permit<F, I, T, E, O>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    O: Outlet<I, T, E>,
{
    /// Up to its beginning.
    bench: Option<SharedBench<F, I, T, E, O>>,
}

impl<F, I, T, E, O> Permit<F, I, T, E, O>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    O: Outlet<I, T, E>,
{
    pub(crate) fn new(bench: &Arc<Bench<F, I, T, E, O>>) -> Self {
        Self {
            bench: Some(Arc::clone(bench)),
        }
    }

    pub(crate) fn run(mut self) {
        if let Some(bench) = self.bench.take() {
            bench.work();
        }
    }
}

impl<F, I, T, E, O> Drop for Permit<F, I, T, E, O>
where
    F: Fn(&mut I) -> Result<T, E>,
    E: fmt::Debug,
    O: Outlet<I, T, E>,
{
    fn drop(&mut self) {
        // Its home has dropped it.
        let Some(bench) = self.bench.take() else {
            return;
        };
        if let Some(chunk) = bench.queue.forsake() {
            bench.give_back(chunk);
        }
        bench.outlet.run_dry();
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
            tray: Tray::new(),
            signals,
            counters: Arc::default(),
            watch: Watch::new(None),
        });
        let mut chunk = Box::new(Chunk::new());
        chunk.first = first;
        chunk.inputs.extend(first..first + count);
        chunk.seal();
        let bench = Arc::new(Bench::new(f, Arc::clone(&shared)));
        assert_eq!(bench.push(chunk), 1);
        Permit::new(&bench).run();
        shared
    }

    #[test]
    fn a_hungry_consumer_that_is_slow_to_come_is_fed_once() {
        let signals = Signals::new(None, false, Vec::new());
        signals.set_hungry(true);
        let shared = run(signals, 0, 1_000, |n| Ok(*n));
        let mut answers = VecDeque::new();
        shared.tray.take(&mut answers);
        let lengths: Vec<usize> = answers.iter().map(|answer| answer.len()).collect();
        assert_eq!(lengths, [1, 999]);
        assert!(shared.tray.rings().try_recv().is_ok());
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
