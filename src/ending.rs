//! How a run ended.

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
    /// A failure stopped the run, as the policy asked.
    Failed,
    /// A [`CancellationToken`](crate::CancellationToken) of the run was cancelled, or the run's pool dropped its
    /// jobs.
    Cancelled,
    /// The run's [deadline](crate::Futureproof::deadline) passed.
    DeadlineExceeded,
    /// The source panicked. The panic itself reached the caller of `next`.
    SourcePanicked,
}
