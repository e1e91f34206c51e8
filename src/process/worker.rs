//! A child as its parent sees it: starts it, sends it tasks, kills it and reaps it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::ending;
use super::format::{decode, encode};
use super::frames::{Broken, Frames, Head};
use super::serve::{DEPTH, HELLO, Hello, ITEM, Setup, VARIABLE, depth};
use super::transport::{Stream, has_ended, itself, kill, signal, spawn, terminate};
use crate::cancel::{CancellationToken, OnCancel};

/// How a child is started.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) name: String,
    /// The types of the function.
    pub(super) types: String,
    /// What tells it from other functions.
    pub(super) function: String,
    pub(super) program: PathBuf,
    /// Whether that is this program.
    pub(super) is_itself: bool,
    pub(super) args: Vec<OsString>,
    pub(super) memory_limit: Option<u64>,
    pub(super) start_timeout: Duration,
    /// How long after `SIGTERM` a child is killed; at once if `None`.
    pub(super) grace: Option<Duration>,
}

/// How often to check that a child is alive while waiting for it.
const LOOK: Duration = Duration::from_millis(500);
/// A look is a system call, a tenth of a call.
const JUST_NOW: Duration = Duration::from_millis(1);
/// How long to read what a dead child has sent.
const LAST: Duration = Duration::from_millis(100);
/// How often to check whether a child that was asked to end has ended.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

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
    /// How often to look at it while waiting for it.
    look: Duration,
    /// When its last answer came.
    answered: Instant,
}

#[derive(Debug)]
struct Life {
    child: Child,
    grace: Option<Duration>,
    /// How many tasks it was given.
    served: u64,
    /// Whether it works on a task, or has not said that it is ready.
    is_busy: bool,
    /// When it was killed, or asked to end.
    condemned: Option<Instant>,
    /// How it ended. From then on its number may be another process's.
    ended: Option<Ending>,
}

/// Its id, and the signal or the exit code.
pub(super) type Ending = (u32, Option<i32>, Option<i32>);

impl Life {
    /// Kills the child, or asks it to end if it has a grace.
    fn condemn(&mut self) {
        if self.condemned.is_none() && self.ended.is_none() {
            self.condemned = Some(Instant::now());
            match self.grace {
                Some(_) => terminate(&mut self.child),
                None => kill(&mut self.child),
            }
        }
    }
}

impl Worker {
    /// Starts a child and waits until it is ready, until `end` at most. A cancel of `token` kills it.
    pub(super) fn start(
        recipe: &Recipe,
        token: &CancellationToken,
        end: Option<Instant>,
    ) -> Result<Self, Failure> {
        let patience = Instant::now().checked_add(recipe.start_timeout);
        let end = end.into_iter().chain(patience).min();
        let program = match recipe.is_itself {
            true => itself(&recipe.program),
            false => recipe.program.clone(),
        };
        let mut command = Command::new(program);
        command.args(&recipe.args);
        command.env(DEPTH, (depth() + 1).to_string());
        let (child, stream) =
            spawn(command, VARIABLE, &recipe.name, end).map_err(|error| Failure {
                text: format!("{}: {error}", recipe.program.display()),
                is_final: false,
            })?;
        let mut worker = Self::new(child, stream, recipe.grace);
        let _listener = worker.condemn_on_cancel(token);
        let (text, is_final) = match worker.greet(recipe, end) {
            Ok(Hello {
                problem: Some(problem),
                ..
            }) => (problem, true),
            Ok(hello) if hello.types != recipe.types => {
                let (name, here) = (&recipe.name, &recipe.types);
                let text = format!(
                    "the program that was started has another `{name}`: it is {}, here it is {here}; {OWN_NAME}",
                    hello.types
                );
                (text, true)
            }
            Ok(hello) if recipe.is_itself && hello.function != recipe.function => {
                let (name, here) = (&recipe.name, &recipe.function);
                let text = format!(
                    "the child serves another `{name}`: {}, and not {here}; {OWN_NAME}",
                    hello.function
                );
                (text, true)
            }
            Ok(_) => {
                let mut life = lock(&worker.life);
                life.is_busy = false;
                life.grace = recipe.grace;
                drop(life);
                return Ok(worker);
            }
            Err(Broken::Late) => {
                let text = format!(
                    "it did not call `isolate({:?}, …)` within {:?}; {ADVICE}",
                    recipe.name, recipe.start_timeout
                );
                (text, true)
            }
            Err(_) => {
                let (_, signal, code) = worker.end();
                let ending = ending(signal, code);
                let text = format!(
                    "it ended with {ending} before it served `isolate({:?}, …)`; {ADVICE}",
                    recipe.name
                );
                (text, false)
            }
        };
        Err(Failure { text, is_final })
    }

    fn new(child: Child, stream: Stream, grace: Option<Duration>) -> Self {
        let life = Life {
            child,
            // It has not begun with anything that it could bring to an end.
            grace: None,
            served: 0,
            is_busy: true,
            condemned: None,
            ended: None,
        };
        let grace = grace.unwrap_or(LOOK * 4).max(FIRST_PAUSE * 4);
        Self {
            life: Arc::new(Mutex::new(life)),
            frames: Frames::new(stream),
            look: LOOK.min(grace / 4),
            answered: Instant::now(),
        }
    }

    fn greet(&mut self, recipe: &Recipe, end: Option<Instant>) -> Result<Hello, Broken> {
        let setup: Setup = recipe.memory_limit;
        let prepared = self.frames.prepare(HELLO, |bytes| encode(&setup, bytes));
        prepared.map_err(|_| Broken::Garbled)?;
        self.wait(end, Frames::send)?;
        self.wait(end, Frames::receive)?;
        decode(self.frames.body()).map_err(|_| Broken::Garbled)
    }

    /// Prepares a task for `input`.
    pub(super) fn prepare(&mut self, input: &impl Serialize) -> Result<(), String> {
        let number = lock(&self.life).served + 1;
        let head = Head { number, kind: ITEM };
        self.frames.prepare(head, |bytes| encode(input, bytes))
    }

    /// Runs the function in the child, on what is prepared. Returns the kind of the answer, which is then
    /// [`answer`](Self::answer). A cancel of `token` kills the child.
    pub(super) fn ask(
        &mut self,
        token: &CancellationToken,
        end: Option<Instant>,
    ) -> Result<u8, Broken> {
        let number = self.begin();
        let _listener = self.condemn_on_cancel(token);
        self.wait(end, Frames::send)?;
        let head = self.wait(end, Frames::receive)?;
        if head.number != number {
            return Err(Broken::Garbled);
        }
        lock(&self.life).is_busy = false;
        self.answered = Instant::now();
        Ok(head.kind)
    }

    pub(super) fn answer(&self) -> &[u8] {
        self.frames.body()
    }

    /// Marks the child as busy with a new task.
    fn begin(&self) -> u64 {
        let mut life = lock(&self.life);
        life.served += 1;
        life.is_busy = true;
        life.served
    }

    /// Whether the child can take another task, if `most` are allowed; 0 for no limit.
    pub(super) fn can_go_on(&self, most: u64) -> bool {
        let life = lock(&self.life);
        !life.is_busy && life.condemned.is_none() && (most == 0 || life.served < most)
    }

    /// Looks whether the child has ended while it was idle, unless it answered just now: then sending will tell.
    pub(super) fn has_ended(&self) -> bool {
        self.answered.elapsed() > JUST_NOW && has_ended(&mut lock(&self.life).child)
    }

    /// Condemns the child if `token` is cancelled before its current task is done.
    fn condemn_on_cancel(&self, token: &CancellationToken) -> OnCancel {
        let life = Arc::clone(&self.life);
        let task = lock(&life).served;
        token.on_cancel(move || {
            let mut life = lock(&life);
            // A late cancel must not hit the next task, which may be another run's.
            if life.is_busy && life.served == task {
                life.condemn();
            }
        })
    }

    /// Repeats `step` until `end`. Notices that the child ended even if its socket is still open, which happens if a
    /// program that it started inherited it.
    fn wait<V>(
        &mut self,
        end: Option<Instant>,
        step: fn(&mut Frames, Option<Instant>) -> Result<V, Broken>,
    ) -> Result<V, Broken> {
        loop {
            let look = Instant::now() + self.look;
            let next = end.map_or(look, |end| end.min(look));
            match step(&mut self.frames, Some(next)) {
                Err(Broken::Late) if end.is_none_or(|end| Instant::now() < end) => {}
                outcome => return outcome,
            }
            let mut life = lock(&self.life);
            if has_ended(&mut life.child) {
                // Whoever holds the socket goes as well. Then it tells whether all was read; an answer is already there.
                kill(&mut life.child);
                drop(life);
                let last = step(&mut self.frames, Some(Instant::now() + LAST));
                return last.map_err(|error| match error {
                    Broken::Late => Broken::Gone,
                    error => error,
                });
            }
            if life.condemned.is_some() {
                return Err(Broken::Gone);
            }
        }
    }

    /// Kills the child with what it started, after its grace, and reaps it.
    pub(super) fn end(&mut self) -> Ending {
        let life = &mut *lock(&self.life);
        if let Some(ended) = life.ended {
            return ended;
        }
        let mut pause = FIRST_PAUSE;
        while !has_ended(&mut life.child) {
            life.condemn();
            let asked = life.condemned.unwrap_or_else(Instant::now);
            if asked.elapsed() >= life.grace.unwrap_or_default() {
                break;
            }
            // The system has no wait for a child that ends in time.
            thread::sleep(pause);
            pause = LONGEST_PAUSE.min(2 * pause);
        }
        // What it started may be alive, even if it is not. And a child that closed its side and lives is of no use.
        kill(&mut life.child);
        let status = life.child.wait().ok();
        let code = status.as_ref().and_then(ExitStatus::code);
        let ended = (life.child.id(), status.and_then(signal), code);
        life.ended = Some(ended);
        ended
    }

    /// Kills the child, or asks it to end, without waiting for its end.
    pub(super) fn condemn(&self) {
        lock(&self.life).condemn();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

const ADVICE: &str = "call `isolate` first in `main`, before arguments are read and other work is done; \
     for tests see `futureproof::process`, \"In tests\"";
pub(super) const OWN_NAME: &str = "give each function a name of its own";

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_is_started_after_a_cancel_is_killed() {
        let recipe = Recipe {
            name: "late".to_owned(),
            types: String::new(),
            function: String::new(),
            is_itself: false,
            grace: None,
            program: "/bin/sleep".into(),
            args: vec!["60".into()],
            memory_limit: None,
            start_timeout: Duration::from_secs(10),
        };
        let token = CancellationToken::new();
        token.cancel();
        let failure = Worker::start(&recipe, &token, None).unwrap_err();
        assert!(failure.text.contains("signal 9"), "{}", failure.text);
    }

    #[test]
    fn an_answer_to_another_task_is_nobodys() {
        use std::os::unix::net::UnixStream;

        use crate::process::serve::OUTPUT;

        let ask = |number: u64| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
            let mut worker = Worker::new(child, ours, None);
            worker.prepare(&"item").unwrap();
            let mut theirs = Frames::new(theirs);
            let kind = OUTPUT;
            let head = Head { number, kind };
            theirs
                .prepare(head, |bytes| encode(&"output", bytes))
                .unwrap();
            theirs.send(None).unwrap();
            worker.ask(&CancellationToken::new(), None)
        };
        assert!(matches!(ask(1), Ok(OUTPUT)));
        for other in [0, 2, u64::MAX] {
            assert!(matches!(ask(other), Err(Broken::Garbled)));
        }
    }
}
