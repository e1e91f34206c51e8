//! What a run yields: tasks that succeeded, and errors for those that failed.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::panic;
use std::sync::{Mutex, PoisonError};

use crate::util::panics::drop_catching;

/// An item with the output of the function.
///
/// ```
/// use futureproof::prelude::*;
///
/// let task = ["hello"].into_iter().futureproof(Raise).map_tasks(infallible(|word: &&str| word.len())).next();
/// let task: Task<&str, usize> = task.expect("there is one item").expect("it does not fail");
/// assert_eq!((task.index, task.input, task.output), (0, "hello", 5));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Task<I, T> {
    /// The item's place in the source, from 0.
    pub index: u64,
    /// The item itself.
    pub input: I,
    /// What the function returned.
    pub output: T,
}

impl<I, T> Task<I, T> {
    pub(crate) fn new(index: u64, input: I, output: T) -> Self {
        Self {
            index,
            input,
            output,
        }
    }
}

/// A failed task: its index, its item, the number of attempts, and the cause.
///
/// ```
/// use std::error::Error;
/// use futureproof::prelude::*;
///
/// let mut run = ["7", "x"].into_iter().futureproof(Ignore).map_tasks(|text: &&str| text.parse::<i32>());
/// let error = run.find_map(Result::err).expect("x is no number");
/// assert_eq!(error.to_string(), "task 1 failed");
/// assert_eq!(error.source().unwrap().to_string(), "invalid digit found in string");
/// assert_eq!(error.into_input(), "x");
/// ```
///
/// To print the reason without walking the chain, use [`cause`](Self::cause).
///
/// It implements [`Error`] if the function's error does, and is `'static` if the item and the function's error are.
/// To use `?` anyway, call [`erase`](Self::erase), or [`checked`](crate::MapTasks::checked) for all tasks of a run.
pub struct TaskError<I, E> {
    index: u64,
    input: I,
    attempts: u32,
    stage: Option<usize>,
    cause: Cause<E>,
}

impl<I, E> TaskError<I, E> {
    pub(crate) fn new(
        index: u64,
        input: I,
        attempts: u32,
        stage: Option<usize>,
        cause: Cause<E>,
    ) -> Self {
        Self {
            index,
            input,
            attempts,
            stage,
            cause,
        }
    }

    /// Returns the item's place in the source, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Returns the item.
    pub fn input(&self) -> &I {
        &self.input
    }

    /// Returns how often the function was called with this item.
    ///
    /// It is 1 unless the run [retries](crate::MapTasks::retry).
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the [stage](crate::Futureproof::stage) in which the task failed, from 0. A run without stages has only
    /// stage 0.
    pub fn stage(&self) -> usize {
        self.stage.unwrap_or(0)
    }

    /// The stage, if the run has several.
    pub(crate) fn stage_of_several(&self) -> Option<usize> {
        self.stage
    }

    /// Returns why the task failed: the error of the last attempt, or the panic.
    ///
    /// Its `Display` is that of the error, or the panic's message.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let parse = |text: &&str| match *text {
    ///     "bomb" => panic!("boom"),
    ///     text => text.parse::<u32>(),
    /// };
    /// let run = ["7", "x", "bomb"].into_iter().futureproof(Ignore).ordered().map_tasks(parse);
    /// let failed = run.filter_map(Result::err).map(|error| format!("{}: {}", error.input(), error.cause()));
    /// assert!(failed.eq(["x: invalid digit found in string", "bomb: panicked: boom"]));
    /// ```
    pub fn cause(&self) -> &Cause<E> {
        &self.cause
    }

    /// Returns the error of the last attempt, or `None` if the function panicked.
    pub fn error(&self) -> Option<&E> {
        match &self.cause {
            Cause::Failed(error) => Some(error),
            Cause::Panicked(_) => None,
        }
    }

    /// Returns whether the function panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.cause, Cause::Panicked(_))
    }

    /// Returns the panic's message, if the function panicked and the payload is a string.
    pub fn panic_message(&self) -> Option<&str> {
        match &self.cause {
            Cause::Failed(_) => None,
            Cause::Panicked(panic) => panic.message(),
        }
    }

    /// Returns the item, for example to process it again elsewhere.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let refused = (0..10).futureproof(Ignore).map_tasks(|n: &u32| if n % 5 == 4 { Err(()) } else { Ok(()) });
    /// let again: Vec<u32> = refused.filter_map(Result::err).map(TaskError::into_input).collect();
    /// assert_eq!(again.into_iter().sum::<u32>(), 4 + 9);
    /// ```
    pub fn into_input(self) -> I {
        self.input
    }

    /// Returns the index, the item and the cause.
    ///
    /// ```
    /// use futureproof::{Cause, prelude::*};
    ///
    /// let mut run = [3u8].into_iter().futureproof(Ignore).map_tasks(|_: &u8| Err::<(), _>("no"));
    /// match run.next().unwrap().unwrap_err().into_parts() {
    ///     (0, 3, Cause::Failed(error)) => assert_eq!(error, "no"),
    ///     other => panic!("{other:?}"),
    /// }
    /// ```
    pub fn into_parts(self) -> (u64, I, Cause<E>) {
        (self.index, self.input, self.cause)
    }

    /// Resumes the task's panic on this thread, with its payload.
    ///
    /// ```should_panic
    /// use futureproof::prelude::*;
    ///
    /// let run = [1].into_iter().futureproof(Raise).map_tasks(infallible(|_: &i32| panic!("oh no")));
    /// for task in run {
    ///     task.unwrap_or_else(|error| error.resume_unwind());
    /// }
    /// ```
    ///
    /// # Panics
    ///
    /// Always: with the task's payload if it panicked, else with this error's `Display`.
    pub fn resume_unwind(self) -> ! {
        match self.cause {
            Cause::Panicked(payload) => panic::resume_unwind(payload.into_payload()),
            Cause::Failed(_) => panic!("{self}"),
        }
    }
}

impl<I, E> fmt::Display for TaskError<I, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Failed(_) => write!(f, "task {} failed{}", self.index, in_stage(self.stage)),
            Cause::Panicked(panic) => {
                write!(f, "task {}{} {panic}", self.index, in_stage(self.stage))
            }
        }
    }
}

/// ` in stage 1`, or nothing if the run has a single stage.
pub(crate) fn in_stage(stage: Option<usize>) -> String {
    stage.map_or_else(String::new, |stage| format!(" in stage {stage}"))
}

/// Leaves the item out, so it need not be `Debug`.
impl<I, E: fmt::Debug> fmt::Debug for TaskError<I, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskError")
            .field("index", &self.index)
            .field("attempts", &self.attempts)
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

impl<I, E: Error + 'static> Error for TaskError<I, E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error().map(|error| error as _)
    }
}

/// What a run yields: a finished task, or the error of one that failed.
///
/// ```
/// use futureproof::{TaskResult, prelude::*};
///
/// fn line(result: TaskResult<&str, u32, std::num::ParseIntError>) -> String {
///     match result {
///         Ok(task) => format!("{} is {}", task.input, task.output),
///         Err(error) => format!("{} is none: {}", error.input(), error.cause()),
///     }
/// }
/// let run = ["7", "x"].into_iter().futureproof(Ignore).ordered().map_tasks(|text: &&str| text.parse());
/// assert!(run.map(line).eq(["7 is 7", "x is none: invalid digit found in string"]));
/// ```
pub type TaskResult<I, T, E> = Result<Task<I, T>, TaskError<I, E>>;

/// Why a task failed; see [`TaskError::cause`] and [`TaskError::into_parts`].
///
/// ```
/// use futureproof::{Cause, prelude::*};
///
/// let divide = |n: &u32| if *n == 1 { Err("odd") } else { Ok(8 / n) };
/// let run = 0..3;
/// for failed in run.futureproof(Ignore).map_tasks(divide).filter_map(Result::err) {
///     match failed.cause() {
///         Cause::Failed(error) => assert_eq!((failed.index(), *error), (1, "odd")),
///         Cause::Panicked(panic) => assert_eq!(panic.message(), Some("attempt to divide by zero")),
///         other => panic!("{other:?}"), // there may be more, one day
///     }
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause<E> {
    /// The function returned this error.
    Failed(E),
    /// The function panicked.
    Panicked(Panic),
}

impl<E: fmt::Display> fmt::Display for Cause<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::Panicked(panic) => panic.fmt(f),
        }
    }
}

/// A caught panic, with its payload.
///
/// ```
/// use futureproof::{Cause, prelude::*};
///
/// let mut run = [1].into_iter().futureproof(Ignore).map_tasks(|_: &i32| -> Result<(), ()> { panic!("oh no") });
/// let (_, _, cause) = run.next().unwrap().unwrap_err().into_parts();
/// let Cause::Panicked(panic) = cause else { unreachable!() };
/// assert_eq!(panic.message(), Some("oh no"));
/// assert_eq!(panic.into_payload().downcast_ref(), Some(&"oh no"));
/// ```
pub struct Panic {
    // Boxed, so that a panic adds only one word to the size of every result.
    caught: Box<Caught>,
}

struct Caught {
    message: Option<String>,
    // A payload is `Send` but not `Sync`. The mutex makes the error `Sync`; it is never locked.
    payload: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Panic {
    pub(crate) fn new(payload: Box<dyn Any + Send>) -> Self {
        let message = match payload.downcast_ref::<&str>() {
            Some(text) => Some((*text).to_owned()),
            None => payload.downcast_ref::<String>().cloned(),
        };
        Self {
            caught: Box::new(Caught {
                message,
                payload: Mutex::new(Some(payload)),
            }),
        }
    }

    /// Returns the panic's message, if the payload is a string, as it is for `panic!("…")`.
    pub fn message(&self) -> Option<&str> {
        self.caught.message.as_deref()
    }

    /// Returns the payload of the panic.
    pub fn into_payload(mut self) -> Box<dyn Any + Send> {
        self.take().unwrap_or_else(|| Box::new(()))
    }

    fn take(&mut self) -> Option<Box<dyn Any + Send>> {
        self.caught
            .payload
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Drop for Panic {
    fn drop(&mut self) {
        // The payload is a user's value. Its destructor may panic, and this may run on a worker.
        if let Some(payload) = self.take() {
            drop_catching(payload);
        }
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message() {
            Some(message) => write!(f, "panicked: {message}"),
            None => f.write_str("panicked with a payload that is not a text"),
        }
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Panic")
            .field(&self.caught.message.as_deref().unwrap_or("<not a text>"))
            .finish()
    }
}

impl Error for Panic {}

/// Transparent: has the source of the function's error.
impl<E: Error + 'static> Error for Cause<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => error.source(),
            Self::Panicked(_) => None,
        }
    }
}

/// Everything that a stopped run did not deliver. Every pulled item is in exactly one place.
///
/// Returned by [`MapTasks::into_remainder`](crate::MapTasks::into_remainder).
///
/// ```
/// use futureproof::prelude::*;
///
/// let mut run = (0..100u32).futureproof(Raise).num_threads(1).chunk_size(10).map_tasks(infallible(|n: &u32| n + 1));
/// run.next();
/// let rest = run.into_remainder();
/// let finished = rest.finished.into_iter().map(|task| task.unwrap().input);
/// let pulled = rest.unprocessed.into_iter().map(|(_index, item)| item);
/// assert_eq!(finished.chain(pulled).chain(rest.source).count(), 99);
/// ```
#[must_use = "it holds every task and item that was not delivered"]
pub struct Remainder<I: Iterator, T, E> {
    /// Tasks that finished, but were not delivered.
    pub finished: Vec<TaskResult<I::Item, T, E>>,
    /// Items that were pulled, but not completed, with their indices; in the order of the source.
    pub unprocessed: Vec<(u64, I::Item)>,
    /// The rest of the source.
    pub source: I,
}

impl<I: Iterator, T, E> fmt::Debug for Remainder<I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remainder")
            .field("finished", &self.finished.len())
            .field("unprocessed", &self.unprocessed.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_stays_small() {
        // A panic inline would cost every result two words.
        assert_eq!(
            size_of::<Result<u64, Cause<std::convert::Infallible>>>(),
            16
        );
        assert_eq!(size_of::<Panic>(), size_of::<usize>());
    }

    #[test]
    fn panics_keep_text_and_payload() {
        let texts: [Box<dyn Any + Send>; 2] = [Box::new("static"), Box::new(String::from("owned"))];
        for (payload, text) in texts.into_iter().zip(["static", "owned"]) {
            let error =
                TaskError::<_, ()>::new(7, (), 1, None, Cause::Panicked(Panic::new(payload)));
            assert_eq!(error.panic_message(), Some(text));
            assert_eq!(error.to_string(), format!("task 7 panicked: {text}"));
        }
        let panic = Panic::new(Box::new(42u8));
        assert_eq!(panic.message(), None);
        assert_eq!(panic.into_payload().downcast_ref(), Some(&42u8));
    }

    #[test]
    fn resume_unwind_of_a_plain_failure_panics_with_its_display() {
        let error = TaskError::new(3, (), 1, None, Cause::Failed("x"));
        let payload =
            panic::catch_unwind(panic::AssertUnwindSafe(|| error.resume_unwind())).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&String::from("task 3 failed")));
    }
}
