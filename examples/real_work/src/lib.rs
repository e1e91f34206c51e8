//! What the jobs have in common: a log on standard error, and an exit status that tells whether all went well.

use std::fmt::Debug;
use std::process::ExitCode;

use futureproof::{Ending, TaskError};

/// Shows failures and how a run is going.
pub fn log_to_stderr() {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level)
        .format_timestamp(None)
        .format_target(false)
        .init();
}

/// Failure if anything failed.
pub fn status(failed: u64, ending: Option<Ending>) -> ExitCode {
    match (failed, ending) {
        (0, Some(Ending::Exhausted)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The whole chain of causes in one line.
pub fn describe<I: Debug>(failure: &TaskError<I, anyhow::Error>) -> String {
    match failure.error() {
        Some(cause) => format!("{cause:#}"),
        None => format!("{:?}: the task panicked", failure.input()),
    }
}
