//! Spans and events of a worker's tasks, for `tracing`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tracing::{debug, debug_span};

use crate::outcome::message;
use crate::task_message::TaskMessage;

/// Calls the user's function in the span of its task, and tells there how it went.
///
/// A caller, and every worker that the task is delivered to, knows it by `run` and `id`.
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
        // What the error says is the caller's to tell: here it need not be `Debug`.
        Ok(Err(_)) => debug!(target: "futureproof", "failed"),
        Err(payload) => {
            let panic = message(&**payload);
            debug!(target: "futureproof", panic, "panicked");
        }
    }
    result.unwrap_or_else(|payload| resume_unwind(payload))
}
