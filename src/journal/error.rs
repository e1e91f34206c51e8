//! Why a journal could not be used, or a recorded task failed.

use std::error::Error as StdError;
use std::path::PathBuf;

/// The error of a [`record`](super::Journal::record)ed function, or of the journal itself.
///
/// The function's own error is boxed, so that its whole chain can be written down. To look at it, downcast it:
///
/// ```
/// use futureproof::journal::Error;
///
/// let error = Error::Task("7x".parse::<u32>().unwrap_err().into());
/// let is_worth_it = match &error {
///     Error::Task(error) => !error.is::<std::num::ParseIntError>(),
///     _ => false,
/// };
/// assert!(!is_worth_it);
/// assert_eq!(error.to_string(), "invalid digit found in string");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The function returned this error. `Display` and `source` are those of the error.
    #[error(transparent)]
    Task(Box<dyn StdError + Send + Sync>),
    /// The journal is open already, in another process or in this one.
    #[error(
        "{path:?} is in use: wait until the program that has opened this journal has ended, or end it"
    )]
    InUse {
        /// The journal's file.
        path: PathBuf,
    },
    /// The file is not a journal, or not one that this version can read. It is left as it is.
    #[error("{path:?} is not a journal, but {what}: choose another path")]
    NotAJournal {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// The file is damaged.
    #[error(
        "{path:?} is damaged ({reason}): restore it from a copy, or move it away and run every item again"
    )]
    Damaged {
        /// The journal's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be opened or read.
    #[error("cannot open or read {path:?}: {reason}")]
    Open {
        /// The journal's file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The last commit failed, for example because the disk is full. What was committed before is safe.
    ///
    /// A task that fails with this error has not been started.
    #[error(
        "cannot write to {path:?}: {reason}; mend that, then start again: what is written down is safe"
    )]
    Write {
        /// The journal's file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}
