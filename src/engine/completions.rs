//! The completion queue: workers push finished chunks, and the consumer takes all of them at once.
//!
//! A consumer that waits is woken when that is worth it, not for each chunk: to wake up costs it more than
//! a small chunk. It sees what lies here at the next wake-up, or when it has waited long enough.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::engine::wake::Wake;
use crate::util::notify::Notifier;
use crate::util::sync::channel::Receiver;
use crate::util::sync::{Mutex, MutexGuard};

/// Finished work for which a consumer is woken.
const WORTH: Duration = Duration::from_micros(500);

/// Finished chunks on their way to the consumer. Unbounded, so that a worker never blocks on it: what was submitted is
/// the bound.
#[derive(Debug)]
pub(crate) struct Completions<C> {
    finished: Mutex<Finished<C>>,
    notifier: Arc<Notifier>,
    notified: Receiver<()>,
}

#[derive(Debug)]
struct Finished<C> {
    chunks: VecDeque<C>,
    /// The work in them.
    busy: Duration,
}

impl<C> Completions<C> {
    pub(crate) fn new() -> Self {
        let (notifier, notified) = Notifier::new();
        let finished = Finished {
            chunks: VecDeque::new(),
            busy: Duration::ZERO,
        };
        Self {
            finished: Mutex::new(finished),
            notifier,
            notified,
        }
    }

    fn finished(&self) -> MutexGuard<'_, Finished<C>> {
        // Nothing that could panic is done under the lock.
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a chunk that took `busy` to run. Wakes the consumer if it was a long one, if `width` workers have been busy
    /// that long, or if the consumer has requested a flush.
    pub(crate) fn push(&self, chunk: C, busy: Duration, width: u32, wake: &Wake) {
        let mut finished = self.finished();
        finished.chunks.push_back(chunk);
        finished.busy = finished.busy.saturating_add(busy);
        let is_worth_it = busy >= WORTH || finished.busy >= WORTH.saturating_mul(width);
        drop(finished);
        // Read after the lock was held. So a request that was made before the consumer last looked at the
        // queue, and did not find this chunk, is seen here.
        if is_worth_it || wake.is_flush_requested() {
            self.notify();
        }
    }

    /// Wakes the consumer, now or when it next waits.
    pub(crate) fn notify(&self) {
        self.notifier.notify();
    }

    /// What notifies, for those who know nothing else of the run.
    pub(crate) fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }

    /// Becomes ready when somebody notifies.
    pub(crate) fn notified(&self) -> &Receiver<()> {
        &self.notified
    }

    /// Swaps what is there for `emptied`.
    pub(crate) fn take(&self, emptied: &mut VecDeque<C>) {
        let mut finished = self.finished();
        mem::swap(&mut finished.chunks, emptied);
        finished.busy = Duration::ZERO;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.finished().chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_notified<C>(completions: &Completions<C>) -> bool {
        completions.notified().try_recv().is_ok()
    }

    #[test]
    fn wakes_once_there_is_enough() {
        let wake = Wake::new();
        let completions = Completions::new();
        completions.push('a', WORTH / 2, 1, &wake);
        assert!(!has_notified(&completions));
        completions.push('b', WORTH / 2, 1, &wake);
        assert!(has_notified(&completions) && !completions.is_empty());
        let mut taken = VecDeque::new();
        completions.take(&mut taken);
        assert_eq!(taken, ['a', 'b']);
        assert!(completions.is_empty());
        completions.push('c', WORTH / 2, 1, &wake);
        assert!(!has_notified(&completions));
    }

    #[test]
    fn wakes_at_once_where_a_flush_is_requested() {
        let wake = Wake::new();
        let completions = Completions::new();
        wake.request_flush(true);
        completions.push('a', Duration::ZERO, 1, &wake);
        assert!(has_notified(&completions));
    }
}
