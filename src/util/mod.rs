//! What every floor uses.

pub(crate) mod bugs;
pub(crate) mod panics;
pub(crate) mod sync;
