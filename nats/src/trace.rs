//! The spans and events of a worker's tasks, for `tracing`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tracing::{debug, debug_span};

use crate::outcome::message;
use crate::task_message::TaskMessage;

/// Calls `f` in the span of its task, with an event if it fails or panics.
///
/// `run` and `id` are the same on every worker that gets the task.
pub(crate) fn call<T, E>(
    function: &str,
    task: &TaskMessage,
    f: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let (run, id, deliveries) = (&*task.run, task.head.id, task.deliveries);
    let span = debug_span!(target: "futureproof", "task", function, run, id, deliveries);
    let _inside = span.entered();
    let result = catch_unwind(AssertUnwindSafe(f));
    match &result {
        Ok(Ok(_)) => {}
        // The error may lack `Debug`. The caller reports it.
        Ok(Err(_)) => debug!(target: "futureproof", "failed"),
        Err(payload) => {
            let panic = message(&**payload);
            debug!(target: "futureproof", panic, "panicked");
        }
    }
    result.unwrap_or_else(|payload| resume_unwind(payload))
}
