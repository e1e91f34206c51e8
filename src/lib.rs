//! A parallel `map` for any iterator: bounded memory, panics caught, every item accounted for, and you choose whether a
//! failure stops the run.
//!
//! ```
//! use futureproof::prelude::*;
//! use std::{fs, io, path::PathBuf};
//!
//! fn count_lines(path: &PathBuf) -> io::Result<usize> {
//!     Ok(fs::read_to_string(path)?.lines().count())
//! }
//!
//! let paths = ["Cargo.toml", "src/lib.rs"].map(PathBuf::from);
//! for task in paths.into_iter().futureproof(Raise).num_threads(4).map_tasks(count_lines) {
//!     let task = task?; // the first failure stops the run
//!     println!("{} has {} lines", task.input.display(), task.output);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`futureproof`](FutureproofIterator::futureproof) takes any iterator: endless, slow, blocking or not `Send`.
//! [`map_tasks`](Futureproof::map_tasks) runs a function on its items in parallel and returns an ordinary iterator over
//! the finished tasks, each with its item, its output and its index. Nothing runs before you call `next`, and only a
//! bounded number of items is in memory at a time.
//!
//! # At a glance
//!
//! | to | write |
//! |---|---|
//! | stop at the first failure | `.futureproof(Raise)` and `task?` |
//! | continue, and log failures | `.futureproof(Log)`, then `.flatten()` for the successes |
//! | continue, and handle failures yourself | `.futureproof(Ignore)`, `match task { … }` |
//! | use `?` whatever the error is (a text, `anyhow`, …), and get everything or an error | [`.checked()`](MapTasks::checked) |
//! | use a function that cannot fail | `.map_tasks(`[`infallible(f)`](infallible)`)` |
//! | keep the order of the source | [`.ordered()`](Futureproof::ordered) |
//! | wait for I/O on many threads | [`.num_threads(64)`](Futureproof::num_threads) |
//! | bound what is in memory | [`.max_in_flight(100)`](Futureproof::max_in_flight) |
//! | give each worker a connection or a buffer | `.map_tasks(`[`with_state(init, f)`](with_state)`)` |
//! | fetch on many threads, parse on two | [`.num_threads(32).stage(fetch).num_threads(2)`](Futureproof::stage)`.map_tasks(parse)` |
//! | make about 50 calls a second | [`.rate_limit(50, Duration::from_secs(1))`](Futureproof::rate_limit) |
//! | pause it, and change how many calls run at once | [`.control(&control)`](Futureproof::control) |
//! | run items of one key in order | [`.by_key(\|event\| event.customer)`](Futureproof::by_key) |
//! | retry with back-off | [`.retry(\|\| [10, 100].map(Duration::from_millis))`](MapTasks::retry) |
//! | stop from outside, or after a time | [`.cancel_on(&token)`](Futureproof::cancel_on), [`.deadline(duration)`](Futureproof::deadline) |
//! | resume after a stop | [`run.into_remainder()`](MapTasks::into_remainder) |
//! | go on after `kill -9`, a crash or a power cut | `journal::Journal`, with the feature `journal` |
//! | survive a task that crashes or hangs | `process::isolate`, with the feature `process` |
//!
//! Most options come before `map_tasks` and are methods of [`Futureproof`]. Retries, `describe` and `checked` come after
//! it, since they need to know the error type; they are methods of [`MapTasks`].
//!
//! # Failures
//!
//! A task fails when its function returns `Err` or panics. The [`ErrorPolicy`] decides what happens next:
//!
//! | policy | yields | logs | then |
//! |---|---|---|---|
//! | [`Raise`](ErrorPolicy::Raise) | the `Err` | – | stops the run |
//! | [`Tolerate(n)`](ErrorPolicy::Tolerate) | each `Err` | each at `warn!` | stops the run at failure `n + 1` |
//! | [`TolerateRate`](ErrorPolicy::TolerateRate) | each `Err` | each at `warn!` | stops the run once too many of the last tasks failed |
//! | [`Log`](ErrorPolicy::Log) | each `Err` | each at `error!` | continues |
//! | [`Ignore`](ErrorPolicy::Ignore) | each `Err` | – | continues |
//!
//! The `Err` is a [`TaskError`]. It holds the index, the item, the number of attempts and the cause.
//!
//! **Panics** are caught and become failures of their own task; other tasks go on. A panic of the source reaches the
//! caller of `next`. With `panic = "abort"`, a panic ends the process.
//!
//! **Dropping** a run stops it. No further task starts, and the drop returns once the running tasks and the run's
//! threads have ended. A call that is running cannot be interrupted, but it can check
//! [`CancellationToken::current`] and return early.
//!
//! # Features
//!
//! All are off by default.
//!
//! | feature | adds |
//! |---|---|
//! | `journal` | the module `journal`: a batch that survives `kill -9` |
//! | `process` | the module `process`: run the function in child processes |
//! | `stream` | `MapTasks::into_stream`, for async code |
//! | `indicatif` | `Futureproof::progress_bar` |
//! | `metrics` | counters, a gauge and a histogram for each run |
//! | `tracing` | spans for the run and for each task |
//!
//! # More
//!
//! - [How do I …](guide::how_do_i): questions, answered with code
//! - [Coming from …](guide::coming_from): other libraries' code next to this one's
//! - [What can watch a run](guide::watching): logs, callbacks, metrics, traces
//! - [When not to use it](guide::when_not)
//! - [How it works](guide::how_it_works)
//! - [What is promised](guide::reliability), and which test checks each promise
//! - The README: how it compares, what it costs, and the examples ([where to find them](guide#in-the-repository))

#![forbid(unsafe_code)]

mod adaptive;
mod builder;
mod cancel;
mod checked;
mod combine;
mod control;
mod ending;
mod engine;
#[cfg(all(feature = "journal", not(shuttle)))]
pub mod journal;
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
pub use cancel::{CancellationToken, OnCancel, current_attempt};
pub use checked::Checked;
pub use combine::{PerWorker, infallible, with_state};
pub use control::Control;
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
    pub use crate::ErrorPolicy::{self, Ignore, Log, Raise, Tolerate, TolerateRate};
    pub use crate::{
        CancellationToken, FutureproofIterator, Queue, Task, TaskError, infallible, with_state,
    };
}

/// Longer texts, to read in any order.
///
/// # In the repository
///
/// These are files of the repository only: the README, all measurements (`benches/REPORT.md`), the examples
/// (`examples/README.md`), and `futureproof-nats`, the crate for several machines (`nats/`).
// Text only: there in the documentation and its tests.
#[cfg(any(doc, doctest))]
pub mod guide {
    #[doc = include_str!("../docs/how_do_i.md")]
    pub mod how_do_i {}
    #[doc = include_str!("../docs/coming_from.md")]
    pub mod coming_from {}
    #[doc = include_str!("../docs/watching.md")]
    pub mod watching {}
    #[doc = include_str!("../docs/when_not.md")]
    pub mod when_not {}
    #[doc = include_str!("../docs/how_it_works.md")]
    pub mod how_it_works {}
    #[doc = include_str!("../RELIABILITY.md")]
    pub mod reliability {}
}

// Its code blocks are tested too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
