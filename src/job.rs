//! A chunk on its way through a worker, and the duty to answer it.
//!
//! # Invariants
//!
//! 1. Every submitted chunk is answered, by its last part exactly once, even if its job is dropped
//!    without being run. The caller blocks on that answer, so a missing one is a hang.
//! 2. Nothing unwinds out of a job, destructors included: rayon would abort the process.
//! 3. The function is let go before the last answer is sent: once all are in, no worker holds it.

use std::mem;
use std::sync::Arc;

use crate::bugs;
use crate::cancel::Signals;
use crate::chunk::{Parcel, Pause};
use crate::contain::bury;
use crate::counters::Counters;
use crate::sync::now;
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
    fn run(&mut self, f: &impl Fn(&I) -> Result<T, E>) -> Pause {
        let Some(chunk) = &mut self.chunk else {
            return Pause::Over;
        };
        let start = now();
        let pause = chunk.run(f, &self.shared.signals);
        chunk.busy = now() - start;
        if pause == Pause::Flush {
            let rest = chunk.split_off_rest();
            let finished = mem::replace(chunk, rest);
            self.send(finished);
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
