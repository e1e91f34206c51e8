//! Why a task in a child process failed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The error of an [`isolate`](super::isolate)d function: its own error, or what happened to its child.
///
/// To a run it is an ordinary failure: the policy counts it, and [`retry_if`](crate::MapTasks::retry_if) can look at
/// it. It can be serialized, so a worker on another machine can serve an isolated function.
///
/// ```
/// use futureproof::process::Error;
///
/// // A crash may be bad luck; an error of the function itself is not.
/// let is_worth_it = |error: &Error<String>| matches!(error, Error::Crashed { .. } | Error::TimedOut { .. });
/// assert!(is_worth_it(&Error::Crashed { pid: 7, signal: Some(9), code: None }));
/// assert!(!is_worth_it(&Error::Task("no such file".to_owned())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Error<E> {
    /// The function returned this error. `Display` and `source` are those of the error.
    #[error(transparent)]
    Task(E),
    /// The task took longer than its limit, so its child was killed.
    #[error("timed out after {after:?}, killed")]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The child ended during the task.
    #[error("the worker process {pid} ended: {}", ending(*signal, *code))]
    Crashed {
        /// The child's process id.
        pid: u32,
        /// The signal that ended the child. Always `None` on Windows.
        signal: Option<i32>,
        /// The exit code of the child.
        code: Option<i32>,
    },
    /// The function panicked. Its child goes on.
    #[error("the function panicked: {message}")]
    Panicked {
        /// The message of the panic, with file and line: `index out of bounds, at src/main.rs:7:9`.
        message: String,
    },
    /// The run was cancelled, reached its deadline or was dropped. The child was killed, or the task never started.
    #[error("cancelled")]
    Cancelled,
    /// The item, the output or the error could not be serialized, would arrive as another value, or is longer than a
    /// message may be.
    #[error("cannot encode: {0}")]
    Encode(String),
    /// A message could not be deserialized. Each type must read back what it wrote.
    #[error("cannot decode: {0}")]
    Decode(String),
    /// No child that serves the function could be started, and none is left; see [when that is
    /// so](super#what-a-child-is).
    #[error("cannot start a worker process: {0}")]
    Start(String),
}

/// How a process ended, in words.
pub(super) fn ending(signal: Option<i32>, code: Option<i32>) -> String {
    match (signal, code) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io;

    use super::*;

    #[test]
    fn it_reads_as_the_error_of_the_function() {
        assert_eq!(
            Error::Task(String::from("no such file")).to_string(),
            "no such file"
        );
        let outer = io::Error::other(Error::<io::Error>::Task(io::Error::other("inner")));
        assert_eq!(outer.to_string(), "inner");
        // The chain continues below it, and repeats nothing.
        let inner = "x".parse::<u8>().unwrap_err();
        let error = Error::Task(io::Error::new(io::ErrorKind::InvalidData, inner));
        assert_eq!(error.to_string(), "invalid digit found in string");
        assert!(
            error
                .source()
                .is_none_or(|source| source.to_string() != error.to_string())
        );
    }
}
