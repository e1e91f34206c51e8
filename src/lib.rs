// The first definition of a link holds: here these are places of this documentation, in the README files.
//!
//! [bar]: #show-a-progress-bar
//! [coming-from]: guide::coming_from
//! [examples]: guide#in-the-repository
//! [how-do-i]: #how-do-i-
//! [how-it-works]: guide::how_it_works
//! [nats]: guide#in-the-repository
//! [process]: #stop-a-task-that-hangs
//! [reliability]: guide::reliability
//! [report]: guide#in-the-repository
//! [stream]: #use-it-from-async-code
//! [watching]: guide::watching
//! [when-not]: guide::when_not
//!
//! <style>.docblock img { display: none } /* The README's pictures are not here. */</style>
//!
#![doc = include_str!("../README.md")]
#![doc = ""]
#![doc = include_str!("../docs/how_do_i.md")]
#![forbid(unsafe_code)]

mod builder;
mod cancel;
mod checked;
mod combine;
mod ending;
mod engine;
mod map_tasks;
mod observe;
mod policy;
mod pool;
#[cfg(all(feature = "process", not(shuttle)))]
pub mod process;
#[cfg(feature = "indicatif")]
mod progress_bar;
mod run_error;
mod source;
#[cfg(feature = "stream")]
mod stream;
mod task;
mod util;

pub use builder::{Futureproof, FutureproofIterator};
pub use cancel::{CancellationToken, OnCancel};
pub use checked::Checked;
pub use combine::{PerWorker, infallible, with_state};
pub use ending::Ending;
pub use engine::stages::Stages;
pub use map_tasks::MapTasks;
pub use observe::counters::{Progress, Snapshot};
pub use observe::report::{Bottleneck, Report, SlowTask, StageTime, WorkerTime};
pub use policy::{ErrorPolicy, ParseErrorPolicyError};
pub use pool::{OwnPool, Spawn};
#[cfg(not(shuttle))]
pub use pool::{Scope, scope};
pub use run_error::RunError;
pub use source::{Owned, Queue, QueueItems, QueueSource, ReadAhead, ToReadAhead};
#[cfg(feature = "stream")]
pub use stream::TaskStream;
pub use task::{Cause, Panic, Remainder, Task, TaskError, TaskResult};

/// What most programs need: `use futureproof::prelude::*;`.
pub mod prelude {
    pub use crate::ErrorPolicy::{self, Ignore, Log, Raise, Tolerate};
    pub use crate::{
        CancellationToken, FutureproofIterator, Queue, Task, TaskError, infallible, with_state,
    };
}

/// More to read.
///
/// # In the repository
///
/// Of the files that the front page names, these are there only: the figures (`benches/REPORT.md`), the examples
/// (`examples/README.md`), and the crate for several machines (`nats/`).
// Text only: there in the documentation and its tests.
#[cfg(any(doc, doctest))]
pub mod guide {
    #[doc = include_str!("../docs/coming_from.md")]
    pub mod coming_from {}
    #[doc = include_str!("../docs/how_it_works.md")]
    pub mod how_it_works {}
    #[doc = include_str!("../docs/watching.md")]
    pub mod watching {}
    #[doc = include_str!("../RELIABILITY.md")]
    pub mod reliability {}
    #[doc = include_str!("../docs/when_not.md")]
    pub mod when_not {}
}
