//! A chunk on its way through a worker, and the duty to answer it.
//!
//! # Invariants
//!
//! 1. Every submitted chunk is answered, by its last part exactly once, even if its job is dropped
//!    without being run. The caller blocks on that answer, so a missing one is a hang.
//! 2. Nothing unwinds out of a job, destructors included: rayon would abort the process.
//! 3. The function is let go before the last answer is sent: once all are in, no worker holds it.

use std::fmt;
use std::mem;
use std::sync::Arc;

use crate::attend::{Alone, Watch};
use crate::bugs;
use crate::chunk::{Parcel, Pause};
use crate::contain::bury;
use crate::counters::Counters;
use crate::signals::Signals;
use crate::sync::{now, thread};
use crate::tray::Tray;

/// A chunk and what is needed to run it: what is handed to the pool.
pub(crate) struct Job<F, I, T, E> {
    // Before `reply`: when a job is dropped without being run, fields are dropped in this order (invariant 3).
    pub(crate) function: Arc<F>,
    pub(crate) reply: Reply<I, T, E>,
}

impl<F, I, T, E> Job<F, I, T, E>
where
    F: Fn(&I) -> Result<T, E>,
    E: fmt::Debug,
{
    /// Runs the chunk and answers it.
    pub(crate) fn run(self) {
        let Self {
            function,
            mut reply,
        } = self;
        while reply.run(&*function) == Pause::Flush {}
        bury(function);
    }
}

/// What a run's caller and its workers share.
#[derive(Debug)]
pub(crate) struct Shared<I, T, E> {
    pub(crate) tray: Tray<Parcel<I, T, E>>,
    pub(crate) signals: Signals,
    pub(crate) counters: Arc<Counters>,
    pub(crate) watch: Watch,
}

/// The duty to answer a chunk: done at the latest when this is dropped.
pub(crate) struct Reply<I, T, E> {
    pub(crate) chunk: Option<Parcel<I, T, E>>,
    /// Where this is on a worker, of how many.
    pub(crate) width: Option<usize>,
    pub(crate) shared: Arc<Shared<I, T, E>>,
}

impl<I, T, E> Reply<I, T, E> {
    /// Runs the chunk up to its end or to the next pause; then sends what is finished.
    fn run(&mut self, f: &impl Fn(&I) -> Result<T, E>) -> Pause
    where
        E: fmt::Debug,
    {
        let Some(chunk) = &mut self.chunk else {
            return Pause::Over;
        };
        let Shared { signals, watch, .. } = &*self.shared;
        let _entered = signals.tasks_token().enter();
        let start = now();
        let attended = watch.attend(chunk.attempts, start);
        let pause = match attended.as_ref().filter(|it| it.is_close()) {
            None => chunk.run(f, signals, &Alone),
            Some(attendant) => chunk.run(f, signals, attendant),
        };
        // Before the answer, after which the run may end.
        drop(attended);
        chunk.busy = now() - start;
        chunk.worker = Some(thread::current().id());
        if pause == Pause::Flush {
            let rest = chunk.split_off_rest();
            let finished = mem::replace(chunk, rest);
            // One answer will do: a consumer that is slow to wake up is not to be sent item after item. Whoever
            // has become hungry before this is woken by the ring after it.
            signals.set_hungry(false);
            self.send(finished);
            self.shared.tray.ring();
        }
        pause
    }

    fn send(&self, mut chunk: Parcel<I, T, E>) {
        chunk.turn_round();
        // Where a retry may follow, only the caller knows whether a failure is final; it counts those.
        let failed = if chunk.is_final { chunk.failed() } else { 0 };
        let succeeded = chunk.len() - chunk.failed();
        let Shared {
            tray,
            signals,
            counters,
            ..
        } = &*self.shared;
        counters.complete((succeeded + failed) as u64, failed as u64);
        let busy = chunk.busy;
        tray.put(chunk, busy, self.width.unwrap_or(1) as u32, signals);
    }
}

impl<I, T, E> Drop for Reply<I, T, E> {
    fn drop(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            self.send(chunk);
            if bugs::has("missed wake-up") {
                return;
            }
            let Shared { tray, signals, .. } = &*self.shared;
            let width = self.width.unwrap_or(1);
            if signals.answer(width) {
                tray.ring();
            }
            if self.width.is_some() && signals.is_short_of_work(width) {
                signals.linger();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::panic::resume_unwind;

    use super::*;
    use crate::chunk::Chunk;

    /// Runs a chunk of items that are their own indices, from `first` on.
    fn run(
        signals: Signals,
        first: u64,
        count: u64,
        f: impl Fn(&u64) -> Result<u64, Infallible>,
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
        let reply = Reply {
            chunk: Some(chunk),
            width: Some(2),
            shared: Arc::clone(&shared),
        };
        let function = Arc::new(f);
        Job { function, reply }.run();
        shared
    }

    #[test]
    fn a_hungry_consumer_that_is_slow_to_come_is_fed_once() {
        let signals = Signals::new(None, false, None);
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
        let signals = Signals::new(Some(0), true, None);
        let shared = run(signals, 10, 3, |n| match n {
            11 => resume_unwind(Box::new("no hook is called")),
            _ => Ok(*n),
        });
        assert!(shared.signals.allows(10) && !shared.signals.allows(11));
    }
}
