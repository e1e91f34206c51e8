//! What is done around each call of the function, where somebody watches the tasks.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::stuck::{Desks, Seat};
#[cfg(feature = "tracing")]
use crate::trace::Trace;

/// Calls the function for a worker.
pub(crate) trait Attend {
    /// Calls `f` for the task at `index`.
    fn call<T, E: fmt::Debug>(&self, index: u64, f: impl FnOnce() -> Result<T, E>) -> Result<T, E>;

    /// The call for the task at `index` has panicked.
    fn panicked(&self, _index: u64, _message: Option<&str>) {}
}

/// Nobody watches: the function is just called.
pub(crate) struct Alone;

impl Attend for Alone {
    #[inline]
    fn call<T, E: fmt::Debug>(&self, _: u64, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        f()
    }
}

/// Who watches the tasks of a run.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) desks: Option<Arc<Desks>>,
    #[cfg(feature = "tracing")]
    pub(crate) trace: Trace,
}

impl Watch {
    pub(crate) fn new(desks: Option<Arc<Desks>>) -> Self {
        Self {
            desks,
            #[cfg(feature = "tracing")]
            trace: Trace::default(),
        }
    }

    /// For a chunk of this many attempts that begins now; `None` where nobody watches.
    pub(crate) fn attend(&self, _attempt: u32, now: Instant) -> Option<Attended<'_>> {
        let attended = Attended {
            seat: self.desks.as_ref().map(|desks| desks.sit_down(now)),
            #[cfg(feature = "tracing")]
            trace: self.trace.is_on().then_some((&self.trace, _attempt)),
        };
        let is_watched = attended.seat.is_some();
        #[cfg(feature = "tracing")]
        let is_watched = is_watched || attended.trace.is_some();
        is_watched.then_some(attended)
    }
}

/// Somebody watches.
pub(crate) struct Attended<'a> {
    seat: Option<Seat<'a>>,
    #[cfg(feature = "tracing")]
    trace: Option<(&'a Trace, u32)>,
}

impl Attend for Attended<'_> {
    fn call<T, E: fmt::Debug>(&self, index: u64, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let _call = self.seat.as_ref().map(|seat| seat.begin(index));
        #[cfg(feature = "tracing")]
        if let Some((trace, attempt)) = self.trace {
            return trace.call(index, attempt, f);
        }
        f()
    }

    #[cfg(feature = "tracing")]
    fn panicked(&self, index: u64, message: Option<&str>) {
        if let Some((trace, attempt)) = self.trace {
            trace.panicked(index, attempt, message);
        }
    }
}
