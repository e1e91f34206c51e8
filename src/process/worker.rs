//! A child, as its parent sees it: started, asked, killed, reaped.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::ending;
use super::frames::{Broken, Frames};
use super::serve::{Answer, DEPTH, Hello, Setup, VARIABLE, depth, types};
use super::transport::{signal, spawn};

/// How a child is started.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) memory_limit: Option<u64>,
    pub(super) start_timeout: Duration,
}

/// The children that live, for whoever wants to kill them all.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry(Arc<Mutex<Living>>);

#[derive(Debug, Default)]
struct Living {
    children: Vec<Arc<Mutex<Child>>>,
    /// Whether all were killed, so that one that comes later is killed as well.
    is_closed: bool,
}

impl Registry {
    pub(super) fn kill_all(&self) {
        let mut living = lock(&self.0);
        living.is_closed = true;
        for child in &living.children {
            // Nothing can be done about a failure; a child that has ended is none.
            let _ = lock(child).kill();
        }
    }

    fn add(&self, child: &Arc<Mutex<Child>>) {
        let mut living = lock(&self.0);
        living.children.push(Arc::clone(child));
        if living.is_closed {
            let _ = lock(child).kill();
        }
    }
}

/// How often a child that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long it takes at most to read what lies there.
const LAST: Duration = Duration::from_millis(100);

pub(super) fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a child could not be started.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) text: String,
    /// Whether another try would take as long and come to nothing as well.
    pub(super) is_final: bool,
}

#[derive(Debug)]
pub(super) struct Worker {
    child: Arc<Mutex<Child>>,
    registry: Registry,
    frames: Frames,
    /// How many tasks it was given.
    pub(super) served: u64,
}

impl Worker {
    /// Starts a child and waits until it is ready, up to `end` at most.
    pub(super) fn start<I, T, E>(
        recipe: &Recipe,
        registry: &Registry,
        end: Option<Instant>,
    ) -> Result<Self, Failure> {
        let patience = Instant::now().checked_add(recipe.start_timeout);
        let end = end.into_iter().chain(patience).min();
        let mut command = Command::new(&recipe.program);
        // What it prints is for people. Its standard output may be a pipe to another program, where it would
        // get in between.
        command.args(&recipe.args).stdout(Stdio::from(io::stderr()));
        command.env(DEPTH, (depth() + 1).to_string());
        let (child, stream) =
            spawn(command, VARIABLE, &recipe.name, end).map_err(|error| Failure {
                text: format!("{}: {error}", recipe.program.display()),
                is_final: false,
            })?;
        let child = Arc::new(Mutex::new(child));
        registry.add(&child);
        let mut worker = Self {
            child,
            registry: registry.clone(),
            frames: Frames::new(stream),
            served: 0,
        };
        match worker.greet(recipe, end) {
            Ok((found, None)) if found == types::<I, T, E>() => Ok(worker),
            Ok((_, Some(problem))) => Err(Failure {
                text: problem,
                is_final: true,
            }),
            Ok((found, None)) => {
                let text = format!(
                    "the program that was started has another `{}`: it is {found}, here it is {}; \
                     give each function a name of its own",
                    recipe.name,
                    types::<I, T, E>()
                );
                let is_final = true;
                Err(Failure { text, is_final })
            }
            Err(Broken::Late) => Err(Failure {
                text: format!(
                    "it did not call `isolate({:?}, …)` within {:?}; {ADVICE}",
                    recipe.name, recipe.start_timeout
                ),
                is_final: true,
            }),
            Err(_) => {
                let (_, signal, code) = worker.end();
                let ending = ending(signal, code);
                let text = format!(
                    "it ended with {ending} before it served `isolate({:?}, …)`; {ADVICE}",
                    recipe.name
                );
                let is_final = false;
                Err(Failure { text, is_final })
            }
        }
    }

    fn greet(&mut self, recipe: &Recipe, end: Option<Instant>) -> Result<Hello, Broken> {
        let setup: Setup = recipe.memory_limit;
        self.frames.send(&setup, end)?;
        self.receive(end)
    }

    /// Has the child run the function on `input`.
    pub(super) fn ask<I, T, E>(
        &mut self,
        input: &I,
        end: Option<Instant>,
    ) -> Result<Answer<T, E>, Refusal>
    where
        I: Serialize,
        T: DeserializeOwned,
        E: DeserializeOwned,
    {
        self.frames.send(input, end).map_err(Refusal::Sending)?;
        self.served += 1;
        self.receive(end).map_err(Refusal::Receiving)
    }

    /// Waits for a message. A child that ended is found out even if its socket is still open: a program that it
    /// started before it was a worker has inherited it.
    fn receive<V: DeserializeOwned>(&mut self, end: Option<Instant>) -> Result<V, Broken> {
        loop {
            let look = Instant::now() + LOOK;
            let next = end.map_or(look, |end| end.min(look));
            match self.frames.receive(Some(next)) {
                Err(Broken::Late) if end.is_none_or(|end| Instant::now() < end) => {}
                outcome => return outcome,
            }
            if !matches!(lock(&self.child).try_wait(), Ok(None)) {
                // Its last words are there already, if there are any.
                let last = self.frames.receive(Some(Instant::now() + LAST));
                return last.map_err(|error| match error {
                    Broken::Late => Broken::Gone,
                    error => error,
                });
            }
        }
    }

    /// Kills the child, if it lives, and says how it ended: its id, and the signal or the code.
    pub(super) fn end(&mut self) -> (u32, Option<i32>, Option<i32>) {
        let mut child = lock(&self.child);
        // Ending is what closes a child's side. One that closed it and lives is of no use.
        let _ = child.kill();
        let status = child.wait().ok();
        (
            child.id(),
            status.and_then(signal),
            status.as_ref().and_then(ExitStatus::code),
        )
    }

    /// Kills the child without waiting for its end.
    pub(super) fn kill(&self) {
        let _ = lock(&self.child).kill();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
        let mut living = lock(&self.registry.0);
        living
            .children
            .retain(|child| !Arc::ptr_eq(child, &self.child));
    }
}

/// Why there is no answer.
pub(super) enum Refusal {
    Sending(Broken),
    Receiving(Broken),
}

const ADVICE: &str = "call `isolate` first in `main`, before arguments are read and other work is done; \
     for tests see `futureproof::process`, \"In tests\"";

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_comes_after_all_were_killed_is_killed_as_well() {
        let recipe = Recipe {
            name: "late".to_owned(),
            program: "/bin/sleep".into(),
            args: vec!["60".into()],
            memory_limit: None,
            start_timeout: Duration::from_secs(10),
        };
        let registry = Registry::default();
        registry.kill_all();
        let failure = Worker::start::<u8, u8, u8>(&recipe, &registry, None).unwrap_err();
        assert!(failure.text.contains("signal 9"), "{}", failure.text);
    }
}
