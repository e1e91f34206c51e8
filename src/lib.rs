#![doc = include_str!("../README.md")]
#![doc = ""]
#![doc = include_str!("../docs/how_do_i.md")]
#![forbid(unsafe_code)]

mod arrivals;
mod attend;
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
mod lines;
#[cfg(feature = "metrics")]
mod meters;
mod monitor;
mod plan;
mod policy;
#[cfg(all(feature = "process", not(shuttle)))]
pub mod process;
#[cfg(feature = "indicatif")]
mod progress_bar;
mod read_ahead;
mod report;
mod retry;
mod signals;
mod sizing;
mod spawn;
#[cfg(feature = "stream")]
mod stream;
mod stuck;
mod sync;
mod task;
mod tasks;
#[cfg(feature = "tracing")]
mod trace;
mod tray;

pub use builder::{Futureproof, FutureproofIterator};
pub use cancel::{CancellationToken, OnCancel};
pub use combine::{infallible, with_state};
pub use counters::{Progress, Snapshot};
pub use policy::{ErrorPolicy, ParseErrorPolicyError};
pub use read_ahead::ReadAhead;
pub use report::{Bottleneck, Report, SlowTask, WorkerTime};
pub use spawn::{OwnPool, Scope, Spawn, scope};
#[cfg(feature = "stream")]
pub use stream::TaskStream;
pub use task::{Cause, Ending, Panic, Remainder, Task, TaskError, TaskResult};
pub use tasks::MapTasks;

/// What most programs need: `use futureproof::prelude::*;`.
pub mod prelude {
    pub use crate::ErrorPolicy::{self, Ignore, Log, Raise, Tolerate};
    pub use crate::{
        CancellationToken, FutureproofIterator, Task, TaskError, infallible, with_state,
    };
}

/// More to read.
// Text only: there in the documentation and its tests.
#[cfg(any(doc, doctest))]
pub mod guide {
    #[doc = include_str!("../docs/coming_from.md")]
    pub mod coming_from {}
    #[doc = include_str!("../docs/how_it_works.md")]
    pub mod how_it_works {}
    #[doc = include_str!("../docs/watching.md")]
    pub mod watching {}
    #[doc = include_str!("../docs/when_not.md")]
    pub mod when_not {}
}
