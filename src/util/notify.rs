//! What tells the consumer of a run to look again.

use std::sync::Arc;
#[cfg(feature = "stream")]
use std::sync::PoisonError;
#[cfg(feature = "stream")]
use std::task::{Wake, Waker};

#[cfg(feature = "stream")]
use crate::util::panics::{catch_panic, drop_catching};
#[cfg(feature = "stream")]
use crate::util::sync::Mutex;
use crate::util::sync::channel::{Receiver, Sender, bounded};

/// Wakes a consumer: one that blocks, by a channel, and one that polls, by its waker.
#[derive(Debug)]
pub(crate) struct Notifier {
    /// Holds one notification, as more would say no more.
    sender: Sender<()>,
    #[cfg(feature = "stream")]
    waker: Mutex<Option<Waker>>,
}

impl Notifier {
    pub(crate) fn new() -> (Arc<Self>, Receiver<()>) {
        let (sender, notified) = bounded(1);
        let notifier = Self {
            sender,
            #[cfg(feature = "stream")]
            waker: Mutex::default(),
        };
        (Arc::new(notifier), notified)
    }

    /// Wakes the consumer, now or when it next waits.
    pub(crate) fn notify(&self) {
        let _ = self.sender.try_send(());
        #[cfg(feature = "stream")]
        if let Some(waker) = self.replace(None) {
            // It is user code.
            catch_panic(|| waker.wake());
        }
    }

    /// Has `waker` woken at the next notification. One that has come before that is in the channel.
    #[cfg(feature = "stream")]
    pub(crate) fn wake_next(&self, waker: Waker) {
        drop_catching(self.replace(Some(waker)));
    }

    #[cfg(feature = "stream")]
    fn replace(&self, waker: Option<Waker>) -> Option<Waker> {
        // Nothing that could panic is done under the lock.
        let mut slot = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut slot, waker)
    }
}

/// So that a waker that panics does no harm where others wake it.
#[cfg(feature = "stream")]
impl Wake for Notifier {
    fn wake(self: Arc<Self>) {
        self.notify();
    }
}
