//! What is done around each call of the function, where somebody watches the tasks.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::observe::slow_tasks::{Desks, Seat};
#[cfg(feature = "tracing")]
use crate::observe::spans::{Inside, Trace};

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

    /// For a chunk of this many attempts that begins now, up to the drop of what this returns.
    #[inline]
    pub(crate) fn attend(
        &self,
        stage: Option<usize>,
        attempt: u32,
        now: Instant,
    ) -> Option<Attended<'_>> {
        let is_on = self.desks.is_some();
        #[cfg(feature = "tracing")]
        let is_on = is_on || self.trace.is_on();
        is_on.then(|| self.attended(stage, attempt, now))
    }

    #[inline(never)]
    fn attended(&self, stage: Option<usize>, _attempt: u32, now: Instant) -> Attended<'_> {
        Attended {
            seat: self.desks.as_ref().map(|desks| desks.sit_down(stage, now)),
            #[cfg(feature = "tracing")]
            inside: self.trace.enter(stage, _attempt),
        }
    }
}

/// Who watches a chunk.
pub(crate) struct Attended<'a> {
    seat: Option<Seat<'a>>,
    #[cfg(feature = "tracing")]
    inside: Option<Inside>,
}

impl Attended<'_> {
    /// Whether somebody watches each task.
    pub(crate) fn is_close(&self) -> bool {
        #[cfg(feature = "tracing")]
        if self.spans().is_some() {
            return true;
        }
        self.seat.is_some()
    }

    #[cfg(feature = "tracing")]
    fn spans(&self) -> Option<&Inside> {
        self.inside.as_ref().filter(|inside| inside.has_spans)
    }
}

impl Attend for Attended<'_> {
    fn call<T, E: fmt::Debug>(&self, index: u64, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let _call = self.seat.as_ref().map(|seat| seat.begin(index));
        #[cfg(feature = "tracing")]
        if let Some(inside) = self.spans() {
            return inside.call(index, f);
        }
        f()
    }

    #[cfg(feature = "tracing")]
    fn panicked(&self, index: u64, message: Option<&str>) {
        if let Some(inside) = self.spans() {
            inside.panicked(index, message);
        }
    }
}
