//! An error that goes with `?` wherever the program is.

use std::error::Error;
use std::fmt;

use crate::ending::Ending;
use crate::task::{Cause, TaskError, in_stage};
use crate::util::panics::drop_catching;

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

impl<I, E> TaskError<I, E> {
    /// An error that `?` takes everywhere: to `anyhow::Result`, to `eyre::Result`, to `Result<_, Box<dyn Error>>`. The item
    /// is let go, as it may borrow, or not be `Sync`.
    ///
    /// For every [`Error`], and for a `String`, a `&str`, an `anyhow::Error` or a `Box<dyn Error + Send + Sync>` as well.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// fn lengths(words: &[String]) -> Result<usize, Box<dyn std::error::Error>> {
    ///     let length = |word: &&String| if word.is_ascii() { Ok(word.len()) } else { Err("not ASCII") };
    ///     futureproof::scope(2, |scope| {
    ///         let mut sum = 0;
    ///         for task in words.iter().futureproof(Raise).on(scope).map_tasks(length) {
    ///             sum += task.map_err(TaskError::erase)?.output;
    ///         }
    ///         Ok(sum)
    ///     })
    /// }
    /// assert_eq!(lengths(&["one".into(), "three".into()]).unwrap(), 8);
    /// let error = lengths(&["one".into(), "na\u{ef}ve".into()]).unwrap_err();
    /// assert_eq!((error.to_string(), error.source().unwrap().to_string()), ("task 1 failed".into(), "not ASCII".into()));
    /// ```
    pub fn erase(self) -> RunError
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let stage = self.stage_of_several();
        let (index, input, cause) = self.into_parts();
        // Its destructor may panic, and the failure is not to be lost to that.
        drop_catching(input);
        let cause = match cause {
            Cause::Failed(error) => Cause::Failed(error.into()),
            Cause::Panicked(panic) => Cause::Panicked(panic),
        };
        RunError::of_task(index, stage, cause)
    }
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
