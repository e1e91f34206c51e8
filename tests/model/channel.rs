//! As much of crossbeam's channels as a run needs, on shuttle's primitives: each operation is one step of a
//! schedule. And a clock that goes on by 10 µs each time that it is read.
//!
//! In place of the real ones with `--cfg shuttle` (see `src/sync.rs`).

pub(crate) use self::{End as Receiver, End as Sender};
pub(crate) use crossbeam_channel::{RecvTimeoutError, SendError};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex};
use std::sync::{Arc, Mutex as Cell};
use std::time::{Duration, Instant};

shuttle::lazy_static! { static ref WORLD: (Mutex<()>, Condvar) = Default::default(); }
std::thread_local!(static NOW: Cell<Instant> = Cell::new(Instant::now()));

pub(crate) fn now() -> Instant {
    NOW.with(|now| {
        *now.lock().unwrap() += Duration::from_micros(10);
        *now.lock().unwrap()
    })
}

/// Waits until `step` gives something; where there is an `until`, it may come at any moment, and it does come.
fn wait<R>(until: Option<Instant>, mut step: impl FnMut() -> Option<R>) -> Option<R> {
    let mut world = WORLD.0.lock().unwrap();
    loop {
        if let Some(result) = step() {
            WORLD.1.notify_all();
            return Some(result);
        } else if until.is_none() {
            world = WORLD.1.wait(world).unwrap();
        } else if thread_rng().r#gen() {
            return None;
        } else {
            drop(world);
            shuttle::thread::yield_now();
            world = WORLD.0.lock().unwrap();
        }
    }
}

/// One end of a channel for one item at a time. The flag tells that the other is gone.
#[derive(Debug)]
pub(crate) struct End<T>(Arc<Cell<(Option<T>, bool)>>);

pub(crate) fn bounded<T>(_: usize) -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Cell::new((None, false)));
    (End(Arc::clone(&slot)), End(slot))
}

impl<T> End<T> {
    pub(crate) fn try_send(&self, item: T) -> Result<(), SendError<T>> {
        let mut item = Some(item);
        wait(None, || {
            self.0.lock().unwrap().0 = item.take();
            Some(Ok(()))
        })
        .unwrap()
    }

    pub(crate) fn try_recv(&self) -> Option<T> {
        wait(None, || Some(self.0.lock().unwrap().0.take())).flatten()
    }

    pub(crate) fn recv(&self) -> Result<T, RecvTimeoutError> {
        self.receive(None)
    }

    pub(crate) fn recv_deadline(&self, until: Instant) -> Result<T, RecvTimeoutError> {
        self.receive(Some(until))
    }

    fn receive(&self, until: Option<Instant>) -> Result<T, RecvTimeoutError> {
        let received = wait(until, || {
            let (item, is_closed) = &mut *self.0.lock().unwrap();
            let gone = is_closed.then_some(Err(RecvTimeoutError::Disconnected));
            item.take().map(Ok).or(gone)
        });
        received.unwrap_or(Err(RecvTimeoutError::Timeout))
    }
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        wait(None, || {
            self.0.lock().unwrap().1 = true;
            Some(())
        });
    }
}

pub(crate) trait Ready {
    fn is_ready(&self) -> bool;
}

impl<T> Ready for End<T> {
    fn is_ready(&self) -> bool {
        let slot = self.0.lock().unwrap();
        slot.0.is_some() || slot.1
    }
}

/// Where a source that reads ahead arrives; none does here.
impl<T> Ready for crossbeam_channel::Receiver<T> {
    fn is_ready(&self) -> bool {
        !self.is_empty()
    }
}

pub(crate) struct Select<'a>(Vec<&'a dyn Ready>);

impl<'a> Select<'a> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn recv(&mut self, end: &'a impl Ready) {
        self.0.push(end);
    }

    pub(crate) fn ready(&mut self) {
        self.ready_until(None);
    }

    pub(crate) fn ready_deadline(&mut self, until: Instant) -> Result<(), ()> {
        self.ready_until(Some(until)).ok_or(())
    }

    fn ready_until(&self, until: Option<Instant>) -> Option<()> {
        wait(until, || {
            self.0.iter().any(|end| end.is_ready()).then_some(())
        })
    }
}
