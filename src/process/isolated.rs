//! Calls a function in child processes. Each call takes an idle child, or starts one.

use std::marker::PhantomData;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Error;
use super::frames::Broken;
use super::serve::{DEPTH, PANICKED, UNREADABLE, depth, role};
use super::worker::{Recipe, Refusal, Worker, lock};
use crate::cancel::CancellationToken;

/// A function that runs in child processes, created by [`Isolate::start`](super::Isolate::start).
///
/// ```no_run
/// use futureproof::{prelude::*, process::isolate};
///
/// fn main() -> std::io::Result<()> {
///     let parse = isolate("parse", |text: &String| text.parse::<u32>().map_err(|error| error.to_string())).start()?;
///     println!("{:?}", parse.call(&"7".to_owned())); // one call
///     let texts = ["1", "x"].map(str::to_owned);
///     for task in texts.into_iter().futureproof(Ignore).map_tasks(parse.into_fn()) {
///         println!("{task:?}");
///     }
///     Ok(())
/// }
/// ```
///
/// Dropping it kills and reaps its children. The same goes for the function that [`into_fn`](Self::into_fn) returns;
/// a run drops its function when it ends or is dropped.
pub struct Isolated<I, T, E> {
    recipe: Recipe,
    limits: Limits,
    state: Mutex<State>,
    types: Types<I, T, E>,
}

/// The function's types; no values of them are held.
pub(super) type Types<I, T, E> = PhantomData<fn(&I) -> Result<T, E>>;

/// The limits of a task and of a child.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    pub(super) timeout: Option<Duration>,
    /// 0 for no limit.
    pub(super) max_tasks: u64,
}

#[derive(Default)]
struct State {
    /// Children without a task. The last one that was busy is taken first.
    idle: Vec<Worker>,
    /// How many starts have failed in a row, and why the last one did.
    failed_starts: u32,
    last_failure: String,
    /// Whether any child has ever served. If so, a slow start does not prove that none will.
    has_started: bool,
}

/// After this many failed starts in a row, no more are tried.
const TRIES: u32 = 3;
/// The pause after a failed start.
const PAUSE: Duration = Duration::from_millis(20);
/// How deep workers may start programs that have workers.
const DEEPEST: u32 = 3;

impl<I, T, E> Isolated<I, T, E> {
    pub(super) fn new(recipe: Recipe, limits: Limits) -> Self {
        Self {
            recipe,
            limits,
            state: Mutex::default(),
            types: PhantomData,
        }
    }
}

impl<I, T, E> Isolated<I, T, E>
where
    I: Serialize,
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    /// Returns the function, for [`map_tasks`](crate::Futureproof::map_tasks).
    ///
    /// It blocks while the child works. So a run has at most as many children as it has threads.
    pub fn into_fn(self) -> impl Fn(&I) -> Result<T, Error<E>> + Send + Sync + 'static
    where
        I: 'static,
        T: 'static,
        E: 'static,
    {
        move |input| self.call(input)
    }

    /// Runs the function on `input` in a child, and waits for the result.
    ///
    /// In a task of a run, the call ends when the run is cancelled or dropped; see [`CancellationToken::current`].
    ///
    /// # Errors
    ///
    /// The function's own error, or what happened to its child.
    pub fn call(&self, input: &I) -> Result<T, Error<E>> {
        let token = CancellationToken::current();
        loop {
            if token.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let idle = lock(&self.state).idle.pop();
            let is_fresh = idle.is_none();
            let worker = match idle {
                Some(worker) => worker,
                None => self.start_worker(&token)?,
            };
            if let Some(result) = self.ask(worker, input, &token, is_fresh) {
                return result;
            }
        }
    }

    /// `None` if the child had died while idle, so that the task never reached it.
    fn ask(
        &self,
        mut worker: Worker,
        input: &I,
        token: &CancellationToken,
        is_fresh: bool,
    ) -> Option<Result<T, Error<E>>> {
        let limit = self.limits.timeout;
        let limit = limit.and_then(|limit| Instant::now().checked_add(limit));
        let end = [limit, token.deadline()].into_iter().flatten().min();
        let error = match worker.ask(input, token, end) {
            Ok(answer) => {
                self.put_back(worker);
                return Some(match answer {
                    Ok(result) => result.map_err(Error::Task),
                    Err((PANICKED, message)) => Err(Error::Panicked { message }),
                    Err((UNREADABLE, text)) => Err(Error::Decode(text)),
                    Err((_, text)) => Err(Error::Encode(text)),
                });
            }
            Err(Refusal::Sending(Broken::Garbled(text))) => {
                self.put_back(worker);
                Error::Encode(text)
            }
            Err(Refusal::Receiving(Broken::Garbled(text))) => Error::Decode(text),
            Err(_) if token.is_cancelled() => Error::Cancelled,
            Err(Refusal::Sending(Broken::Late) | Refusal::Receiving(Broken::Late)) => {
                // Not the run's deadline, so the task's limit.
                let after = self.limits.timeout.unwrap_or_default();
                Error::TimedOut { after }
            }
            Err(Refusal::Sending(Broken::Unsent)) if !is_fresh => return None,
            Err(_) => {
                let (pid, signal, code) = worker.end();
                Error::Crashed { pid, signal, code }
            }
        };
        Some(Err(error))
    }

    fn put_back(&self, worker: Worker) {
        if worker.can_go_on(self.limits.max_tasks) {
            lock(&self.state).idle.push(worker);
        }
    }

    fn start_worker(&self, token: &CancellationToken) -> Result<Worker, Error<E>> {
        // Otherwise a program that never reaches its `isolate` would start itself for ever.
        if let Some(other) = role() {
            return Err(Error::Start(format!(
                "this process is itself a worker, for {other:?}, and workers start none; if it should serve \
                 {other:?}, call `isolate` earlier"
            )));
        }
        // The same for a worker that does not know that it is one, because its standard input was replaced.
        if depth() >= DEEPEST {
            return Err(Error::Start(format!(
                "{DEEPEST} processes have started each other to be workers, as {DEPTH} tells; was standard input \
                 replaced before `isolate` was called, or by the program that starts the worker?"
            )));
        }
        loop {
            if token.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let state = lock(&self.state);
            if state.failed_starts >= TRIES {
                return Err(Error::Start(state.last_failure.clone()));
            }
            drop(state);
            let started = Worker::start::<I, T, E>(&self.recipe, token, token.deadline());
            // A cancel is not a failed start.
            if token.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let mut state = lock(&self.state);
            match started {
                Ok(worker) => {
                    state.failed_starts = 0;
                    state.has_started = true;
                    return Ok(worker);
                }
                Err(failure) => {
                    state.failed_starts = match failure.is_final && !state.has_started {
                        true => TRIES,
                        false => state.failed_starts + 1,
                    };
                    state.last_failure = failure.text;
                }
            }
            drop(state);
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Kill all first, because waiting for each takes a while.
        self.idle.iter().for_each(Worker::kill);
    }
}

impl<I, T, E> fmt::Debug for Isolated<I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolated")
            .field("name", &self.recipe.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
