//! Where workers lay what they have finished, and where the consumer comes for all of it at once.
//!
//! A consumer that waits is woken when that is worth it, not for each chunk: to wake up costs it more than
//! a small chunk. What lies here meanwhile is seen at the next ring, or when the consumer has lost patience.

use std::collections::VecDeque;
use std::mem;
use std::sync::PoisonError;
use std::time::Duration;

use crate::engine::signals::Signals;
use crate::util::sync::channel::{Receiver, Sender, bounded};
use crate::util::sync::{Mutex, MutexGuard};

/// Finished work for which a consumer is woken.
const WORTH: Duration = Duration::from_micros(500);

/// Finished chunks on their way back. Unbounded, so that a worker never blocks on it: what bounds it is
/// what was submitted.
#[derive(Debug)]
pub(crate) struct Completions<C> {
    finished: Mutex<Finished<C>>,
    /// Holds one ring, as more would say no more.
    bell: Sender<()>,
    rings: Receiver<()>,
}

#[derive(Debug)]
struct Finished<C> {
    chunks: VecDeque<C>,
    /// The work in them.
    busy: Duration,
}

impl<C> Completions<C> {
    pub(crate) fn new() -> Self {
        let (bell, rings) = bounded(1);
        let finished = Finished {
            chunks: VecDeque::new(),
            busy: Duration::ZERO,
        };
        Self {
            finished: Mutex::new(finished),
            bell,
            rings,
        }
    }

    fn finished(&self) -> MutexGuard<'_, Finished<C>> {
        // Nothing that could panic is done under the lock.
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a chunk that took `busy` to run. Rings if it was a long one, if `width` workers have been busy
    /// that long, or if the consumer has lost patience.
    pub(crate) fn put(&self, chunk: C, busy: Duration, width: u32, signals: &Signals) {
        let mut finished = self.finished();
        finished.chunks.push_back(chunk);
        finished.busy = finished.busy.saturating_add(busy);
        let is_worth_it = busy >= WORTH || finished.busy >= WORTH.saturating_mul(width);
        drop(finished);
        // Read after the lock was held. So whoever has become flush_requested before they last looked at the
        // finished, and did not find this chunk, is seen here.
        if is_worth_it || signals.is_flush_requested() {
            self.ring();
        }
    }

    /// Wakes the consumer, now or when it next waits.
    pub(crate) fn ring(&self) {
        let _ = self.bell.try_send(());
    }

    /// Swaps the finished for `emptied`.
    pub(crate) fn take(&self, emptied: &mut VecDeque<C>) {
        let mut finished = self.finished();
        mem::swap(&mut finished.chunks, emptied);
        finished.busy = Duration::ZERO;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.finished().chunks.is_empty()
    }

    /// Becomes ready when the bell rings.
    pub(crate) fn rings(&self) -> &Receiver<()> {
        &self.rings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_rung<C>(completions: &Completions<C>) -> bool {
        completions.rings().try_recv().is_ok()
    }

    #[test]
    fn rings_once_enough_has_piled_up() {
        let signals = Signals::new(None, false, Vec::new());
        let completions = Completions::new();
        completions.put('a', WORTH / 2, 1, &signals);
        assert!(!has_rung(&completions));
        completions.put('b', WORTH / 2, 1, &signals);
        assert!(has_rung(&completions));
        let mut taken = VecDeque::new();
        completions.take(&mut taken);
        assert_eq!(taken, ['a', 'b']);
        assert!(completions.is_empty());
        completions.put('c', WORTH / 2, 1, &signals);
        assert!(!has_rung(&completions));
    }

    #[test]
    fn rings_at_once_for_the_hungry() {
        let signals = Signals::new(None, false, Vec::new());
        let completions = Completions::new();
        signals.request_flush(true);
        completions.put('a', Duration::ZERO, 1, &signals);
        assert!(has_rung(&completions));
    }
}
