//! What can go wrong: before the first task, and with a task.

use std::error::Error;
use std::fmt;
use std::io;

/// Why there is no connection, no function or no worker. Never holds a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// A function's name becomes part of subjects, so it has a plain form.
    #[error(
        "invalid function name `{name}`: use 1 to 64 characters, only a-z, A-Z, 0-9, `_` and `-`"
    )]
    Name {
        /// The name that was given, shortened.
        name: String,
    },
    /// The address cannot be read.
    #[error("invalid server address: {reason}")]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// A file with credentials cannot be used.
    #[error("cannot load the credentials file")]
    Credentials(#[source] io::Error),
    /// The server cannot be reached.
    #[error(
        "cannot connect to {address}: check that nats-server runs there (`nats-server --jetstream`)"
    )]
    Connect {
        /// Host and port, without user and password.
        address: String,
        /// What the client said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server is there, and does not let us in.
    #[error("{address} refused the login: check the user and password, or the credentials file")]
    Refused {
        /// Host and port, without user and password.
        address: String,
        /// What the client said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server is there, and does not give us a queue.
    #[error(
        "cannot open the queue of `{name}` at {address}: check that nats-server runs with `--jetstream` and that this user may create streams"
    )]
    Queue {
        /// Host and port, without user and password.
        address: String,
        /// The function.
        name: String,
        /// What the server said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The machine gives no thread or no signal handler.
    #[error("cannot start a background thread or a signal handler")]
    Background(#[source] io::Error),
}

impl SetupError {
    pub(crate) fn ended() -> Self {
        Self::Background(io::Error::other("the background thread ended unexpectedly"))
    }
}

/// Why a task that was sent away has no output: an ordinary failure for policies and `retry`.
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
    /// The function returned this error. It was not tried again elsewhere. It reads as that does, and its source is that one's.
    Task(E),
    /// It was delivered as often as [`max_deliver`](crate::Function::max_deliver) allows, and no worker
    /// answered: they died, or lost their network.
    Lost {
        /// How many workers took it.
        deliveries: u64,
    },
    /// No answer came in time. It may still run somewhere.
    Deadline,
    /// The queue of this function holds as many tasks as it may.
    QueueFull,
    /// The server did not take it, for this reason.
    Transport(String),
    /// The function panicked at the worker.
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// The item cannot be sent, or the output cannot be sent back: it is too large, or it does not
    /// serialize.
    Encode(String),
    /// The worker cannot read the item, or we cannot read its answer: do both ends have the same types?
    Decode(String),
    /// The run that the call was part of is over, or the function was stopped.
    Stopped,
}

impl<E> RemoteError<E> {
    /// Whether the same call may well succeed later: for `retry_if`. The function's own errors, panics and
    /// what cannot be encoded are not.
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
