//! What every other file may use.

pub(crate) mod notify;
pub(crate) mod panics;
pub(crate) mod seeded_bugs;
pub(crate) mod sync;

/// The target of every log line of this crate.
pub(crate) const TARGET: &str = "futureproof";
