//! A run whose end cannot be overlooked.

use std::error::Error;
use std::fmt;
use std::iter::FusedIterator;

use crate::ending::Ending;
use crate::map_tasks::MapTasks;
use crate::run_error::RunError;
use crate::task::{Task, TaskError};

impl<'a, I: Iterator, T, E> MapTasks<'a, I, T, E> {
    /// The same tasks, with errors that go with `?` everywhere, and one more where the run was cut short.
    ///
    /// Failures are [erased](TaskError::erase). A run that a [token](crate::Futureproof::cancel_on) or a
    /// [deadline](crate::Futureproof::deadline) has cut short yields as its last item an `Err` that says so. So what is
    /// collected into a `Result` is everything, or an error. (`flatten` drops this error too: it is for who wants no errors at all.)
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
    /// Costs less than a nanosecond a task.
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

/// The tasks of a run, and how it was cut short, if it was; made by [`MapTasks::checked`].
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct Checked<'a, I: Iterator, T, E> {
    run: MapTasks<'a, I, T, E>,
    /// The last `Err` has been yielded.
    has_told: bool,
}

impl<'a, I: Iterator, T, E> Checked<'a, I, T, E> {
    /// The run: for its counts, and for how it ended.
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

    /// The run itself, for its [remainder](MapTasks::into_remainder).
    pub fn into_inner(self) -> MapTasks<'a, I, T, E> {
        self.run
    }

    /// How the run was cut short, once it was.
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
