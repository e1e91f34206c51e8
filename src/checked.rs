//! A run that yields an error if it was cut short.

use std::error::Error;
use std::fmt;
use std::iter::FusedIterator;

use crate::ending::Ending;
use crate::map_tasks::MapTasks;
use crate::run_error::RunError;
use crate::task::{Task, TaskError};

impl<'a, I: Iterator, T, E> MapTasks<'a, I, T, E> {
    /// Returns an iterator over the same tasks that reports a run cut short, with errors that work with `?`.
    ///
    /// Each failure is [erased](TaskError::erase) to a [`RunError`]. If a [token](crate::Futureproof::cancel_on) or a
    /// [deadline](crate::Futureproof::deadline) cuts the run short, the last item is an `Err` that says so. So if you
    /// collect into a `Result`, you get everything or an error. (`flatten` drops this error too.)
    ///
    /// ```
    /// use futureproof::{Ending, prelude::*};
    ///
    /// let token = CancellationToken::new();
    /// let stop = token.clone();
    /// let run = (0..1_000u32).futureproof(Raise).cancel_on(&token).map_tasks(infallible(move |n: &u32| {
    ///     if *n == 500 {
    ///         stop.cancel();
    ///     }
    /// }));
    /// let error = run.checked().collect::<Result<Vec<_>, _>>().unwrap_err();
    /// assert_eq!(error.ending(), Some(Ending::Cancelled));
    /// assert!(error.to_string().starts_with("the run was cancelled after "));
    /// ```
    ///
    /// It costs less than a nanosecond per task.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// fn sum(numbers: &str) -> Result<i64, Box<dyn std::error::Error>> {
    ///     let words: Vec<String> = numbers.split(' ').map(String::from).collect();
    ///     let mut sum = 0;
    ///     for task in words.into_iter().futureproof(Raise).map_tasks(|word: &String| word.parse::<i64>()).checked() {
    ///         sum += task?.output;
    ///     }
    ///     Ok(sum)
    /// }
    /// assert_eq!(sum("1 2 3").unwrap(), 6);
    /// assert_eq!(sum("1 x 3").unwrap_err().to_string(), "task 1 failed");
    /// ```
    pub fn checked(self) -> Checked<'a, I, T, E>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Checked {
            run: self,
            has_told: false,
        }
    }
}

/// An iterator over the tasks of a run that ends with an error if the run was cut short.
///
/// Created by [`MapTasks::checked`].
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct Checked<'a, I: Iterator, T, E> {
    run: MapTasks<'a, I, T, E>,
    /// Whether the run's end was reported, if it was cut short.
    has_told: bool,
}

impl<'a, I: Iterator, T, E> Checked<'a, I, T, E> {
    /// Returns the run, for example to look at its counts or its ending.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let mut tasks = (0..10u32).futureproof(Raise).map_tasks(infallible(|n: &u32| n + 1)).checked();
    /// tasks.by_ref().try_for_each(|task| task.map(drop))?;
    /// assert_eq!(tasks.get_ref().progress().snapshot().completed(), 10);
    /// # Ok::<(), futureproof::RunError>(())
    /// ```
    pub fn get_ref(&self) -> &MapTasks<'a, I, T, E> {
        &self.run
    }

    /// Returns the run itself, for example to get its [remainder](MapTasks::into_remainder).
    pub fn into_inner(self) -> MapTasks<'a, I, T, E> {
        self.run
    }

    /// The error that says how the run was cut short, if it was.
    fn cut_short(&self) -> Option<RunError> {
        let ending = self.run.ending()?;
        match ending {
            Ending::Exhausted | Ending::Failed => None,
            Ending::Cancelled | Ending::DeadlineExceeded | Ending::SourcePanicked => {
                Some(RunError::cut_short(ending, self.run.driver.delivered()))
            }
        }
    }
}

impl<I: Iterator, T, E> Iterator for Checked<'_, I, T, E>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Item = Result<Task<I::Item, T>, RunError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.run.next() {
            Some(result) => Some(result.map_err(TaskError::erase)),
            None if self.has_told => None,
            None => {
                self.has_told = true;
                self.cut_short().map(Err)
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (lower, upper) = self.run.size_hint();
        let more = usize::from(!self.has_told);
        (lower, upper.and_then(|upper| upper.checked_add(more)))
    }
}

impl<I: Iterator, T, E> FusedIterator for Checked<'_, I, T, E> where
    E: Into<Box<dyn Error + Send + Sync>>
{
}

impl<I: Iterator, T, E> fmt::Debug for Checked<'_, I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checked").field(&self.run).finish()
    }
}
