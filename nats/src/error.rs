//! The errors of setup and of calls.

use std::error::Error;
use std::fmt;
use std::io;

/// An error of the client.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Why a connection, a function or a worker could not be set up. Never contains a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The function's name has characters that a subject may not have, or is too long or empty.
    #[error(
        "invalid function name `{name}`: use 1 to 64 characters, only a-z, A-Z, 0-9, `_` and `-`"
    )]
    Name {
        /// The name, shortened.
        name: String,
    },
    /// The address is invalid.
    #[error("invalid server address: {reason}")]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// The credentials file cannot be loaded.
    #[error("cannot load the credentials file")]
    Credentials(#[source] io::Error),
    /// The server is unreachable.
    #[error(
        "cannot connect to {address}: check that nats-server runs there (`nats-server --jetstream`)"
    )]
    Connect {
        /// Host and port, without user and password.
        address: String,
        /// The client's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server refused the login.
    #[error("{address} refused the login: check the user and password, or the credentials file")]
    Refused {
        /// Host and port, without user and password.
        address: String,
        /// The client's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server did not open the queue.
    #[error(
        "cannot open the queue of `{name}` at {address}: check that nats-server runs with `--jetstream` and that this user may create streams"
    )]
    Queue {
        /// Host and port, without user and password.
        address: String,
        /// The function's name.
        name: String,
        /// The server's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The system could not start a thread or install a signal handler.
    #[error("cannot start a background thread or a signal handler")]
    Background(#[source] io::Error),
}

impl SetupError {
    pub(crate) fn ended() -> Self {
        Self::Background(io::Error::other("the background thread ended unexpectedly"))
    }
}

/// Why a call has no output. It is a failure like any other, for policies and for `retry`.
///
/// ```
/// use futureproof_nats::RemoteError;
///
/// let error: RemoteError<std::num::ParseIntError> = RemoteError::Lost { deliveries: 3 };
/// assert!(error.is_transient());
/// assert_eq!(error.to_string(), "lost: 3 workers took the task, none answered");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemoteError<E> {
    /// The function returned this error, and was not run again. Displays as the inner error does.
    Task(E),
    /// [`max_deliver`](crate::Function::max_deliver) workers took the task and none answered. They died or
    /// lost their network.
    Lost {
        /// How many workers took it.
        deliveries: u64,
    },
    /// No answer came before the deadline. The task may still be running.
    Deadline,
    /// The function's queue is full.
    QueueFull,
    /// The server did not accept the task, for this reason.
    Transport(String),
    /// The function panicked on the worker.
    Panicked {
        /// The panic message.
        message: String,
    },
    /// The item, or the worker's answer, cannot be sent: it is too large or does not serialize.
    Encode(String),
    /// The worker cannot read the item, or the caller cannot read the answer. Check that both have the same
    /// types.
    Decode(String),
    /// The function was stopped, or the run that made the call is over.
    Stopped,
}

impl<E> RemoteError<E> {
    /// Whether the same call may succeed later. Use it with `retry_if`.
    ///
    /// Returns `false` for the function's own errors, panics, and values that cannot be encoded or decoded,
    /// and after a stop.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Lost { .. } | Self::Deadline | Self::QueueFull | Self::Transport(_)
        )
    }
}

impl<E: fmt::Display> fmt::Display for RemoteError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(error) => error.fmt(f),
            Self::Lost { deliveries } => {
                write!(f, "lost: {deliveries} workers took the task, none answered")
            }
            Self::Deadline => f.write_str("deadline exceeded: no answer arrived in time"),
            Self::QueueFull => f.write_str("queue full: retry later, or raise `max_queued`"),
            Self::Transport(reason) => write!(f, "the server did not accept the task: {reason}"),
            Self::Panicked { message } => write!(f, "panicked on the worker: {message}"),
            Self::Encode(reason) => write!(f, "cannot send: {reason}"),
            Self::Decode(reason) => write!(f, "cannot read: {reason}"),
            Self::Stopped => f.write_str("stopped before an answer arrived"),
        }
    }
}

impl<E: Error + 'static> Error for RemoteError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Task(error) => error.source(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_the_error_of_the_function() {
        assert_eq!(
            RemoteError::Task(String::from("no such file")).to_string(),
            "no such file"
        );
        let error = RemoteError::Task("x".parse::<u8>().unwrap_err());
        assert_eq!(error.to_string(), "invalid digit found in string");
        assert!(error.source().is_none());
    }
}
