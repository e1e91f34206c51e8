//! Wraps each call of the function for those who watch tasks.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::observe::slow_tasks::{SlotGuard, WorkerSlots};
#[cfg(feature = "tracing")]
use crate::observe::spans::{Inside, Trace};

/// Wraps a worker's calls of the function.
pub(crate) trait Instrument {
    /// Calls `f` for the task at `index`.
    fn call<T, E: fmt::Debug>(&self, index: u64, f: impl FnOnce() -> Result<T, E>) -> Result<T, E>;

    /// Told that the call for the task at `index` panicked.
    fn panicked(&self, _index: u64, _message: Option<&str>) {}
}

/// Calls the function without watching.
pub(crate) struct NoInstrument;

impl Instrument for NoInstrument {
    #[inline]
    fn call<T, E: fmt::Debug>(&self, _: u64, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        f()
    }
}

/// What watches the tasks of a run.
#[derive(Debug)]
pub(crate) struct Instruments {
    pub(crate) slots: Option<Arc<WorkerSlots>>,
    #[cfg(feature = "tracing")]
    pub(crate) trace: Trace,
}

impl Instruments {
    pub(crate) fn new(slots: Option<Arc<WorkerSlots>>) -> Self {
        Self {
            slots,
            #[cfg(feature = "tracing")]
            trace: Trace::default(),
        }
    }

    /// Begins to watch a chunk, until the returned value is dropped. `None` if nothing watches.
    #[inline]
    pub(crate) fn instrument(
        &self,
        stage: Option<usize>,
        attempt: u32,
        now: Instant,
    ) -> Option<ChunkInstrument<'_>> {
        let is_on = self.slots.is_some();
        #[cfg(feature = "tracing")]
        let is_on = is_on || self.trace.is_on();
        is_on.then(|| self.begin(stage, attempt, now))
    }

    #[inline(never)]
    fn begin(&self, stage: Option<usize>, _attempt: u32, now: Instant) -> ChunkInstrument<'_> {
        ChunkInstrument {
            slot_guard: self.slots.as_ref().map(|slots| slots.enter(stage, now)),
            #[cfg(feature = "tracing")]
            inside: self.trace.enter(stage, _attempt),
        }
    }
}

/// What watches a chunk.
pub(crate) struct ChunkInstrument<'a> {
    slot_guard: Option<SlotGuard<'a>>,
    #[cfg(feature = "tracing")]
    inside: Option<Inside>,
}

impl ChunkInstrument<'_> {
    /// Whether each task is watched.
    pub(crate) fn is_per_task(&self) -> bool {
        #[cfg(feature = "tracing")]
        if self.spans().is_some() {
            return true;
        }
        self.slot_guard.is_some()
    }

    #[cfg(feature = "tracing")]
    fn spans(&self) -> Option<&Inside> {
        self.inside.as_ref().filter(|inside| inside.has_spans)
    }
}

impl Instrument for ChunkInstrument<'_> {
    fn call<T, E: fmt::Debug>(&self, index: u64, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let _call = self
            .slot_guard
            .as_ref()
            .map(|slot_guard| slot_guard.begin(index));
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
