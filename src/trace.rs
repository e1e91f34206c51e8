//! Spans and events of a run, for `tracing`.

use std::fmt;
use std::sync::OnceLock;

use tracing::{Level, Span, debug, debug_span, enabled, info_span};

use crate::contain::contain;

/// The span of a run, to be the parent of those of its tasks: they are on other threads.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    run: OnceLock<Span>,
}

impl Trace {
    /// The run called `name` starts, inside the span that the caller is in.
    pub(crate) fn start(&self, name: &str) {
        let span = contain(|| info_span!(target: "futureproof", "run", name));
        let _ = self.run.set(span.unwrap_or_else(Span::none));
    }

    /// Whether anybody wants the spans of tasks. Asked once a chunk.
    pub(crate) fn is_on(&self) -> bool {
        enabled!(target: "futureproof", Level::DEBUG)
    }

    fn task(&self, index: u64, attempt: u32) -> Span {
        let run = self.run.get().and_then(Span::id);
        debug_span!(target: "futureproof", parent: run, "task", index, attempt)
    }

    pub(crate) fn call<T, E: fmt::Debug>(
        &self,
        index: u64,
        attempt: u32,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let _inside = self.task(index, attempt).entered();
        let result = f();
        if let Err(error) = &result {
            // Formatted here, since a panic of the error's own must not become one of the task.
            let text = contain(|| format!("{error:?}"));
            let text = text
                .as_deref()
                .unwrap_or("(the error panicked when it was formatted)");
            debug!(target: "futureproof", error = text, "failed");
        }
        result
    }

    /// By now, the panic has ended the task's own span.
    pub(crate) fn panicked(&self, index: u64, attempt: u32, message: Option<&str>) {
        let run = self.run.get().and_then(Span::id);
        contain(|| debug!(target: "futureproof", parent: run, index, attempt, message, "panicked"));
    }
}
