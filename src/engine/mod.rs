//! The run itself. `README.md` in this folder tells how it works: read it before you change anything here.

pub(crate) mod chunk;
pub(crate) mod completions;
pub(crate) mod driver;
pub(crate) mod holds;
mod in_flight;
pub(crate) mod job;
pub(crate) mod open_chunk;
pub(crate) mod options;
pub(crate) mod order;
pub(crate) mod pace;
pub(crate) mod retry;
pub(crate) mod run_queue;
pub(crate) mod sizing;
pub(crate) mod stage;
pub(crate) mod stages;
pub(crate) mod stop;
pub(crate) mod wake;
pub(crate) mod workers;
