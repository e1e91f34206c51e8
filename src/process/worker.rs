//! A child as its parent sees it: starts it, sends it tasks, kills it and reaps it.

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
use crate::cancel::{CancellationToken, OnCancel};

/// How a child is started.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) memory_limit: Option<u64>,
    pub(super) start_timeout: Duration,
}

/// How often to check that a child is alive while waiting for it.
const LOOK: Duration = Duration::from_millis(500);
/// How long to read what a dead child has sent.
const LAST: Duration = Duration::from_millis(100);

pub(super) fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a child could not be started.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) text: String,
    /// Whether another try would fail as well.
    pub(super) is_final: bool,
}

#[derive(Debug)]
pub(super) struct Worker {
    life: Arc<Mutex<Life>>,
    frames: Frames,
}

#[derive(Debug)]
struct Life {
    child: Child,
    /// How many tasks it was given.
    served: u64,
    /// Whether it works on a task, or has not said that it is ready.
    is_busy: bool,
    is_killed: bool,
}

impl Worker {
    /// Starts a child and waits until it is ready, until `end` at most. A cancel of `token` kills it.
    pub(super) fn start<I, T, E>(
        recipe: &Recipe,
        token: &CancellationToken,
        end: Option<Instant>,
    ) -> Result<Self, Failure> {
        let patience = Instant::now().checked_add(recipe.start_timeout);
        let end = end.into_iter().chain(patience).min();
        let mut command = Command::new(&recipe.program);
        // To standard error, because standard output may be a pipe to another program.
        command.args(&recipe.args).stdout(Stdio::from(io::stderr()));
        command.env(DEPTH, (depth() + 1).to_string());
        let (child, stream) =
            spawn(command, VARIABLE, &recipe.name, end).map_err(|error| Failure {
                text: format!("{}: {error}", recipe.program.display()),
                is_final: false,
            })?;
        let life = Life {
            child,
            served: 0,
            is_busy: true,
            is_killed: false,
        };
        let mut worker = Self {
            life: Arc::new(Mutex::new(life)),
            frames: Frames::new(stream),
        };
        let _listener = worker.kill_on_cancel(token);
        match worker.greet(recipe, end) {
            Ok((found, None)) if found == types::<I, T, E>() => {
                lock(&worker.life).is_busy = false;
                Ok(worker)
            }
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

    /// Runs the function on `input` in the child. A cancel of `token` kills it.
    pub(super) fn ask<I, T, E>(
        &mut self,
        input: &I,
        token: &CancellationToken,
        end: Option<Instant>,
    ) -> Result<Answer<T, E>, Refusal>
    where
        I: Serialize,
        T: DeserializeOwned,
        E: DeserializeOwned,
    {
        self.begin();
        let _listener = self.kill_on_cancel(token);
        let sent = self.frames.send(input, end).map_err(Refusal::Sending);
        let answer = sent.and_then(|()| self.receive(end).map_err(Refusal::Receiving));
        lock(&self.life).is_busy = false;
        answer
    }

    /// Marks the child as busy with a new task.
    fn begin(&self) {
        let mut life = lock(&self.life);
        life.served += 1;
        life.is_busy = true;
    }

    /// Whether the child can take another task, if `most` are allowed; 0 for no limit.
    pub(super) fn can_go_on(&self, most: u64) -> bool {
        let life = lock(&self.life);
        !life.is_killed && (most == 0 || life.served < most)
    }

    /// Kills the child if `token` is cancelled before its current task is done.
    fn kill_on_cancel(&self, token: &CancellationToken) -> OnCancel {
        let life = Arc::clone(&self.life);
        let task = lock(&life).served;
        token.on_cancel(move || {
            let mut life = lock(&life);
            // A late cancel must not hit the next task, which may be another run's.
            if life.is_busy && life.served == task {
                // A failed kill cannot be helped; for a child that has ended it succeeds.
                let _ = life.child.kill();
                life.is_killed = true;
            }
        })
    }

    /// Waits for a message. Notices that the child ended even if its socket is still open, which happens if a program
    /// that it started inherited it.
    fn receive<V: DeserializeOwned>(&mut self, end: Option<Instant>) -> Result<V, Broken> {
        loop {
            let look = Instant::now() + LOOK;
            let next = end.map_or(look, |end| end.min(look));
            match self.frames.receive(Some(next)) {
                Err(Broken::Late) if end.is_none_or(|end| Instant::now() < end) => {}
                outcome => return outcome,
            }
            if !matches!(lock(&self.life).child.try_wait(), Ok(None)) {
                // Its last message, if any, is already there.
                let last = self.frames.receive(Some(Instant::now() + LAST));
                return last.map_err(|error| match error {
                    Broken::Late => Broken::Gone,
                    error => error,
                });
            }
        }
    }

    /// Kills the child if it lives, and returns its id and the signal or the exit code.
    pub(super) fn end(&mut self) -> (u32, Option<i32>, Option<i32>) {
        let child = &mut lock(&self.life).child;
        // A child closes its side when it ends. One that closed it and lives is of no use.
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
        let _ = lock(&self.life).child.kill();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why there is no result.
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
    fn a_child_that_is_started_after_a_cancel_is_killed() {
        let recipe = Recipe {
            name: "late".to_owned(),
            program: "/bin/sleep".into(),
            args: vec!["60".into()],
            memory_limit: None,
            start_timeout: Duration::from_secs(10),
        };
        let token = CancellationToken::new();
        token.cancel();
        let failure = Worker::start::<u8, u8, u8>(&recipe, &token, None).unwrap_err();
        assert!(failure.text.contains("signal 9"), "{}", failure.text);
    }
}
