//! An error that goes with `?` wherever the program is.

use std::error::Error;
use std::fmt;

use crate::task::{Cause, Ending, in_stage};

/// What went wrong in a run, without the item: it can be sent anywhere, and `?` takes it to `anyhow::Result`, to
/// `eyre::Result` and to `Result<_, Box<dyn Error>>`.
///
/// It is made by [`TaskError::erase`](crate::TaskError::erase) and [`MapTasks::checked`](crate::MapTasks::checked).
/// [`source()`](Error::source) is the function's own error, with its whole chain, or its panic.
///
/// ```
/// use std::error::Error;
/// use futureproof::prelude::*;
///
/// let run = ["7", "x"].into_iter().futureproof(Raise).ordered().map_tasks(|text: &&str| text.parse::<i32>());
/// let error = run.checked().find_map(Result::err).expect("x is no number");
/// assert_eq!((error.to_string().as_str(), error.index()), ("task 1 failed", Some(1)));
/// assert_eq!(error.source().unwrap().to_string(), "invalid digit found in string");
/// // `Debug` tells it all, for `unwrap` and for a `main` that returns an error.
/// assert_eq!(format!("{error:?}"), "task 1 failed: invalid digit found in string");
/// ```
pub struct RunError(Box<What>);

enum What {
    Task(u64, Option<usize>, Cause<Box<dyn Error + Send + Sync>>),
    CutShort(Ending, u64),
}

impl RunError {
    pub(crate) fn of_task(
        index: u64,
        stage: Option<usize>,
        cause: Cause<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self(Box::new(What::Task(index, stage, cause)))
    }

    /// `delivered`: how many tasks came before that.
    pub(crate) fn cut_short(ending: Ending, delivered: u64) -> Self {
        Self(Box::new(What::CutShort(ending, delivered)))
    }

    /// The place in the source of the item that failed, from 0; `None` where the run was cut short.
    pub fn index(&self) -> Option<u64> {
        match *self.0 {
            What::Task(index, ..) => Some(index),
            What::CutShort(..) => None,
        }
    }

    /// How the run ended, where it was cut short; `None` where a task failed.
    pub fn ending(&self) -> Option<Ending> {
        match *self.0 {
            What::Task(..) => None,
            What::CutShort(ending, _) => Some(ending),
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.0 {
            What::Task(index, stage, _) => write!(f, "task {index} failed{}", in_stage(stage)),
            What::CutShort(ending, delivered) => {
                let how = match ending {
                    Ending::Cancelled => "was cancelled",
                    Ending::DeadlineExceeded => "reached its deadline",
                    Ending::SourcePanicked => "ended with a panic of its source",
                    Ending::Exhausted | Ending::Failed => "ended",
                };
                let tasks = if delivered == 1 { "task" } else { "tasks" };
                write!(f, "the run {how} after {delivered} {tasks}")
            }
        }
    }
}

/// As `Display`, with all that [`source`](Error::source) has to say.
impl fmt::Debug for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = self.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &*self.0 {
            What::Task(.., Cause::Failed(error)) => Some(&**error),
            What::Task(.., Cause::Panicked(panic)) => Some(panic),
            What::CutShort(..) => None,
        }
    }
}
