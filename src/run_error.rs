//! An error that works with `?` everywhere.

use std::error::Error;
use std::fmt;

use crate::ending::Ending;
use crate::task::{Cause, TaskError, in_stage};
use crate::util::panics::drop_catching;

/// An error of a run, without the item.
///
/// It is `Send`, `Sync` and `'static`, so `?` converts it to `anyhow::Error`, `eyre::Report` and `Box<dyn Error>`.
///
/// Created by [`TaskError::erase`](crate::TaskError::erase) and [`MapTasks::checked`](crate::MapTasks::checked).
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
    /// Drops the item, and returns an error that works with `?` everywhere.
    ///
    /// `?` converts it to `anyhow::Error`, `eyre::Report` and `Box<dyn Error>`. The item is dropped because it may
    /// borrow or not be `Sync`.
    ///
    /// The function's error can be any [`Error`], a `String`, a `&str`, an `anyhow::Error` or a `Box<dyn Error + Send
    /// + Sync>`.
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
    /// assert_eq!(error.to_string(), "task 1 failed");
    /// assert_eq!(error.source().unwrap().to_string(), "not ASCII");
    /// ```
    pub fn erase(self) -> RunError
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let stage = self.stage_of_several();
        let (index, input, cause) = self.into_parts();
        // The item's destructor may panic; that must not lose the failure.
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

    /// `delivered`: how many tasks were delivered before.
    pub(crate) fn cut_short(ending: Ending, delivered: u64) -> Self {
        Self(Box::new(What::CutShort(ending, delivered)))
    }

    /// Returns the index of the failed task, from 0, or `None` if the run was cut short.
    pub fn index(&self) -> Option<u64> {
        match *self.0 {
            What::Task(index, ..) => Some(index),
            What::CutShort(..) => None,
        }
    }

    /// Returns how the run was cut short, or `None` if a task failed.
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

/// Like `Display`, followed by the whole chain of [sources](Error::source).
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
