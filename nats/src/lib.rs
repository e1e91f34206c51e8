#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unnameable_types)]

mod background;
mod callers;
mod connection;
mod counters;
mod delivery;
mod error;
mod format;
mod frame;
mod function;
#[cfg(feature = "metrics")]
mod meters;
mod monitor;
mod names;
mod outcome;
mod pending_calls;
mod queue;
mod queue_consumer;
mod remote;
mod server;
mod shape;
mod task_message;
#[cfg(feature = "tracing")]
mod trace;
mod worker;

pub use connection::{Connection, connect};
pub use counters::Counters;
pub use error::{RemoteError, SetupError};
pub use function::Function;
pub use remote::{Answer, Remote, Stop};
pub use server::Server;
pub use worker::{Worker, WorkerStop, serve};
