//! Names and subjects on the server. They come from the function's name, never from data.

use crate::error::SetupError;

/// The durable consumer that all workers of a function share.
pub(crate) const CONSUMER: &str = "workers";

const MAX_NAME: usize = 64;

/// The names and subjects of one function.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    name: String,
}

impl Names {
    pub(crate) fn new(name: &str) -> Result<Self, SetupError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            return Err(SetupError::Name {
                name: name.chars().take(MAX_NAME).collect(),
            });
        }
        Ok(Self {
            name: name.to_owned(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn stream(&self) -> String {
        format!("futureproof-{}", self.name)
    }

    /// The subject of one run's tasks, so that they can be purged together. `*` is all runs.
    pub(crate) fn tasks(&self, run: &str) -> String {
        format!("futureproof.{}.task.{run}", self.name)
    }

    pub(crate) fn answers(&self, run: &str) -> String {
        format!("futureproof.{}.answer.{run}", self.name)
    }

    /// The subject where a caller says that a run is over. `*` is all runs.
    pub(crate) fn over(&self, run: &str) -> String {
        format!("futureproof.{}.over.{run}", self.name)
    }

    /// Returns the run in a task's subject, if it is a valid one.
    pub(crate) fn run<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let run = subject.strip_prefix(&self.tasks(""))?;
        let plain = !run.is_empty()
            && run.len() <= MAX_NAME
            && run.bytes().all(|byte| byte.is_ascii_alphanumeric());
        plain.then_some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_change_the_subject_is_refused() {
        for bad in [
            "",
            "a.b",
            "a b",
            "*",
            ">",
            "a\r\nb",
            "é",
            "a/b",
            &"x".repeat(65),
        ] {
            assert!(Names::new(bad).is_err(), "{bad:?}");
        }
        for good in ["thumbs", "Thumbs_2-x", &"x".repeat(64)] {
            assert!(Names::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn only_a_plain_run_is_read_from_a_subject() {
        let names = Names::new("thumbs").unwrap();
        assert_eq!(names.run(&names.tasks("Ab3")), Some("Ab3"));
        for bad in ["", "*", ">", "a.b", "a b", &"x".repeat(65)] {
            assert_eq!(names.run(&names.tasks(bad)), None, "{bad:?}");
        }
        assert_eq!(names.run("futureproof.other.task.Ab3"), None);
    }
}
