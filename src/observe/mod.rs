//! Watching a run: counts, timings, log lines, metrics and spans.

pub(crate) mod counters;
pub(crate) mod instrument;
pub(crate) mod log_lines;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod monitor;
pub(crate) mod report;
pub(crate) mod slow_tasks;
#[cfg(feature = "tracing")]
pub(crate) mod spans;
