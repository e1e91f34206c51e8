//! Calls a function in child processes. Each call takes an idle child, or starts one.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::children::{Children, Refusal};
use super::error::Error;
use super::format::decode;
use super::frames::Broken;
use super::serve::{DEPTH, ERROR, OUTPUT, PANICKED, UNREADABLE, depth, role};
use super::worker::{Recipe, Worker};
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
    children: Arc<Children>,
    limits: Limits,
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

/// After this many children that died without having read a task, it is not tried on another: it may be why.
const UNREAD: u32 = 3;
/// How deep workers may start programs that have workers.
const DEEPEST: u32 = 3;

impl<I, T, E> Isolated<I, T, E> {
    pub(super) fn new(recipe: Recipe, limits: Limits) -> Self {
        Self {
            children: Arc::new(Children::new(recipe, limits.max_tasks)),
            limits,
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
        check_depth()?;
        let token = CancellationToken::current();
        let mut unread = 0;
        loop {
            let mut worker = self
                .children
                .take(&token)
                .map_err(|refusal| match refusal {
                    Refusal::Cancelled => Error::Cancelled,
                    Refusal::Start(reason) => Error::Start(reason),
                })?;
            worker.prepare(input).map_err(Error::Encode)?;
            let limit = self.limits.timeout;
            let limit = limit.and_then(|limit| Instant::now().checked_add(limit));
            let end = [limit, token.deadline()].into_iter().flatten().min();
            let error = match worker.ask(&token, end) {
                Ok(kind) => return answer(&worker, kind),
                Err(_) if token.is_cancelled() => Error::Cancelled,
                Err(Broken::Late) => {
                    // Not the run's deadline, so the task's limit.
                    let after = self.limits.timeout.unwrap_or_default();
                    Error::TimedOut { after }
                }
                Err(Broken::Unread) if unread + 1 < UNREAD => {
                    unread += 1;
                    continue;
                }
                Err(Broken::Garbled) => Error::Decode(NONSENSE.to_owned()),
                Err(Broken::Unread | Broken::Gone) => {
                    let (pid, signal, code) = worker.end();
                    Error::Crashed { pid, signal, code }
                }
            };
            return Err(error);
        }
    }
}

fn answer<T, E>(worker: &Worker, kind: u8) -> Result<T, Error<E>>
where
    T: DeserializeOwned,
    E: DeserializeOwned,
{
    let text = || decode(worker.answer()).map_err(Error::Decode);
    Err(match kind {
        OUTPUT => return decode(worker.answer()).map_err(Error::Decode),
        ERROR => Error::Task(decode(worker.answer()).map_err(Error::Decode)?),
        PANICKED => Error::Panicked { message: text()? },
        UNREADABLE => Error::Decode(text()?),
        _ => Error::Encode(text()?),
    })
}

/// Otherwise a program that never reaches its `isolate` would start itself for ever.
fn check_depth<E>() -> Result<(), Error<E>> {
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
    Ok(())
}

const NONSENSE: &str =
    "what came is no message; did the function write to a descriptor that is not its own?";

impl<I, T, E> fmt::Debug for Isolated<I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolated")
            .field("name", &self.children.recipe().name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
