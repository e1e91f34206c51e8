//! How a run ends.

/// How a run ended; see [`MapTasks::ending`](crate::MapTasks::ending).
///
/// ```
/// use futureproof::{Ending, prelude::*};
///
/// let mut run = (0..10u32).futureproof(Raise).map_tasks(|n| if *n == 3 { Err("three") } else { Ok(()) });
/// run.by_ref().for_each(drop);
/// assert_eq!(run.ending(), Some(Ending::Failed));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ending {
    /// Every item was processed and delivered, and no failure stopped the run.
    Exhausted,
    /// The policy stopped the run at a failure.
    Failed,
    /// The run's [`CancellationToken`](crate::CancellationToken) was cancelled.
    Cancelled,
    /// The run's [deadline](crate::Futureproof::deadline) passed.
    DeadlineExceeded,
    /// The source panicked. The panic itself has reached the caller of `next`.
    SourcePanicked,
}
