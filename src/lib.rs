#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod arrivals;
mod bugs;
mod builder;
mod cancel;
mod chunk;
mod circle;
mod combine;
mod contain;
mod counters;
mod crew;
mod failure_log;
mod iter;
mod job;
mod monitor;
mod plan;
mod policy;
mod read_ahead;
mod retry;
mod sizing;
mod spawn;
mod sync;
mod task;
mod tasks;
mod tray;

pub use builder::{Futureproof, FutureproofIterator};
pub use cancel::CancellationToken;
pub use combine::{infallible, with_state};
pub use counters::{Progress, Snapshot};
pub use policy::{ErrorPolicy, ParseErrorPolicyError};
pub use read_ahead::ReadAhead;
pub use spawn::{OwnPool, Scope, Spawn, scope};
pub use task::{Cause, Ending, Panic, Remainder, Task, TaskError, TaskResult};
pub use tasks::MapTasks;

/// What most programs need: `use futureproof::prelude::*;`.
pub mod prelude {
    pub use crate::ErrorPolicy::{self, Ignore, Log, Raise, Tolerate};
    pub use crate::{
        CancellationToken, FutureproofIterator, Task, TaskError, infallible, with_state,
    };
}
