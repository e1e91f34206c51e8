//! What the log says of a failure.

use std::fmt;

use log::{Level, log};

use crate::observe::monitor::TARGET;
use crate::task::TaskError;
use crate::util::panics::{CatchDrop, catch_panic};

type Describe<'a, I, E> = Box<dyn Fn(&TaskError<I, E>) -> String + Send + 'a>;

/// Writes failures to the log, in the words of the user's or of the error's `Debug`.
pub(crate) struct FailureLog<'a, I, E> {
    describe: Option<CatchDrop<Describe<'a, I, E>>>,
    debug: fn(&E) -> String,
}

impl<'a, I, E> FailureLog<'a, I, E> {
    pub(crate) fn new() -> Self
    where
        E: fmt::Debug,
    {
        Self {
            describe: None,
            debug: |error| format!("{error:?}"),
        }
    }

    pub(crate) fn set_describe(&mut self, text: impl Fn(&TaskError<I, E>) -> String + Send + 'a) {
        self.describe = Some(CatchDrop::new(Box::new(text)));
    }

    /// Writes one line, whatever panics on the way.
    pub(crate) fn write(&self, title: &str, level: Level, error: &TaskError<I, E>) {
        let text = catch_panic(|| self.text_of(error))
            .unwrap_or_else(|| "(the error panicked when it was formatted)".into());
        let attempts = match error.attempts() {
            1 => String::new(),
            attempts => format!(" after {attempts} attempts"),
        };
        let index = error.index();
        catch_panic(
            || log!(target: TARGET, level, "{title}: task {index} failed{attempts}: {text}"),
        );
    }

    fn text_of(&self, error: &TaskError<I, E>) -> String {
        match (&self.describe, error.error()) {
            (Some(describe), _) => describe(error),
            (None, Some(own)) => (self.debug)(own),
            (None, None) => format!(
                "panicked: {}",
                error.panic_message().unwrap_or("(not a text)")
            ),
        }
    }
}
