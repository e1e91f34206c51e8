//! Spans and events of a run, for `tracing`.
//!
//! A subscriber is user code, so its panics are caught wherever it is called or dropped.

use std::fmt;
use std::sync::{Arc, PoisonError};

use tracing::dispatcher::{self, DefaultGuard, Dispatch};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::NoSubscriber;
use tracing::{Level, Span, debug, debug_span, enabled, info_span};

use crate::util::panics::{CatchDrop, catch_panic};
use crate::util::sync::{Mutex, MutexGuard};

/// The spans of a run and its tasks.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Set from the start of the run to its end.
    run: Mutex<Option<Arc<Run>>>,
}

#[derive(Debug)]
struct Run {
    /// The parent of the tasks' spans, which are on other threads.
    span: CatchDrop<Span>,
    /// The subscriber of the thread that began the run; workers may have another one. Declared after the span, so
    /// that the span does not hold it last.
    subscriber: CatchDrop<Dispatch>,
}

impl Trace {
    fn run(&self) -> MutexGuard<'_, Option<Arc<Run>>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the run's span inside the current span.
    pub(crate) fn start(&self, name: &str) {
        let current = || dispatcher::get_default(Dispatch::clone);
        let is_somebody = |it: &Dispatch| catch_panic(|| it.is::<NoSubscriber>()) == Some(false);
        let Some(subscriber) = catch_panic(current).filter(is_somebody) else {
            return;
        };
        let span = catch_panic(|| info_span!(target: "futureproof", "run", name));
        *self.run() = Some(Arc::new(Run {
            span: CatchDrop::new(span.unwrap_or_else(Span::none)),
            subscriber: CatchDrop::new(subscriber),
        }));
    }

    pub(crate) fn end(&self) {
        let run = self.run().take();
        drop(run);
    }

    /// Whether there is any subscriber. Quick, because it is asked once per chunk.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        LevelFilter::current() != LevelFilter::OFF
    }

    /// Makes the run's subscriber the current one on this thread, until the returned value is dropped.
    pub(crate) fn enter(&self, stage: Option<usize>, attempt: u32) -> Option<Inside> {
        let run = self.run().clone()?;
        let guard = catch_panic(|| dispatcher::set_default(&run.subscriber))?;
        let guard = CatchDrop::new(guard);
        let has_spans = catch_panic(|| enabled!(target: "futureproof", Level::DEBUG)) == Some(true);
        Some(Inside {
            _guard: guard,
            run,
            stage,
            attempt,
            has_spans,
        })
    }
}

/// A chunk of a run, on its worker.
pub(crate) struct Inside {
    // Dropped before the run, which may be the last owner of the subscriber.
    _guard: CatchDrop<DefaultGuard>,
    run: Arc<Run>,
    /// If the run has several.
    stage: Option<usize>,
    attempt: u32,
    /// Whether the spans of tasks are enabled.
    pub(crate) has_spans: bool,
}

impl Inside {
    fn task(&self, index: u64) -> Span {
        let (run, stage, attempt) = (self.run.span.id(), self.stage, self.attempt);
        debug_span!(target: "futureproof", parent: run, "task", index, stage, attempt)
    }

    pub(crate) fn call<T, E: fmt::Debug>(
        &self,
        index: u64,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        // Not `entered`, which would exit and close the span in one drop, and each may panic.
        let span = CatchDrop::new(catch_panic(|| self.task(index)).unwrap_or_else(Span::none));
        let _entered = CatchDrop::new(catch_panic(|| span.enter()));
        let result = f();
        if let Err(error) = &result {
            // Formatted here, because a panic of its `Debug` must not become a panic of the task.
            let text = catch_panic(|| format!("{error:?}"));
            let text = text
                .as_deref()
                .unwrap_or("(the error panicked when it was formatted)");
            catch_panic(|| debug!(target: "futureproof", error = text, "failed"));
        }
        result
    }

    /// Has the run's span as parent, because the panic has closed the task's span.
    pub(crate) fn panicked(&self, index: u64, message: Option<&str>) {
        let (run, stage, attempt) = (&*self.run.span, self.stage, self.attempt);
        catch_panic(|| {
            debug!(target: "futureproof", parent: run.id(), index, stage, attempt, panic = message, "panicked");
        });
    }
}
