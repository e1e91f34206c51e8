//! The child's side: receives an item, calls the function, sends the result, until the parent is gone.

use std::any::{Any, type_name};
use std::env;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::OnceLock;
use std::thread;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frames::{Broken, Frames};
use super::transport::{adopt, await_orphaned, die, limit_memory, meant};
use crate::util::panics::{catch_panic, drop_catching};

/// Tells a process that it is a worker, and for which function.
pub(super) const VARIABLE: &str = "FUTUREPROOF_WORKER";

/// Tells a process how many workers are above it.
pub(super) const DEPTH: &str = "FUTUREPROOF_DEPTH";

/// The first message to a child: its memory limit in bytes.
pub(super) type Setup = Option<u64>;
/// The first message of a child: the function's types, and an error if there is one.
pub(super) type Hello = (String, Option<String>);
/// The result of a call: what the function returned, or one of the codes below with a text.
pub(super) type Answer<T, E> = Result<Result<T, E>, (u8, String)>;

pub(super) const PANICKED: u8 = 0;
pub(super) const UNREADABLE: u8 = 1;
pub(super) const UNWRITABLE: u8 = 2;

/// The name of the function that this process serves; `None` if it is no worker.
pub(super) fn role() -> Option<&'static str> {
    // Looked up once, before a worker replaces its standard input.
    static ROLE: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let value = env::var(VARIABLE).ok()?;
        meant(&value).map(str::to_owned)
    };
    ROLE.get_or_init(find).as_deref()
}

/// How many workers are above this process.
pub(super) fn depth() -> u32 {
    let value = env::var(DEPTH).ok();
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// The types that both sides must agree on.
pub(super) fn types<I, T, E>() -> String {
    type_name::<fn(&I) -> Result<T, E>>().to_owned()
}

/// Serves `f`, then ends the process.
pub(super) fn serve<I, T, E, F>(f: F) -> !
where
    I: DeserializeOwned,
    T: Serialize,
    E: Serialize,
    F: Fn(&I) -> Result<T, E>,
{
    if let Err(problem) = try_serve(f) {
        let _ = catch_panic(|| eprintln!("futureproof: a worker process exits: {problem}"));
    }
    die()
}

fn try_serve<I, T, E, F>(f: F) -> Result<(), String>
where
    I: DeserializeOwned,
    T: Serialize,
    E: Serialize,
    F: Fn(&I) -> Result<T, E>,
{
    let text = |error: io::Error| error.to_string();
    let value = env::var(VARIABLE).map_err(|error| error.to_string())?;
    let stream = adopt(&value).map_err(text)?;
    let lifeline = stream.try_clone().map_err(text)?;
    // A busy worker reads no messages, so a thread watches for the parent's end.
    let watch = move || {
        await_orphaned(&lifeline);
        die()
    };
    let watcher = thread::Builder::new().name("futureproof-parent".to_owned());
    watcher.spawn(watch).map_err(text)?;
    let mut frames = Frames::new(stream);
    let setup: Setup = frames
        .receive(None)
        .map_err(|_| "its parent went away at once".to_owned())?;
    let problem = setup.and_then(|bytes| limit_memory(bytes).err());
    let hello: Hello = (types::<I, T, E>(), problem);
    let mut outcome = frames.send(&hello, None);
    while outcome.is_ok() {
        let answer = match catch_panic(|| frames.receive(None)) {
            Some(Ok(input)) => call(&f, input),
            Some(Err(Broken::Garbled(text))) => Err((UNREADABLE, text)),
            Some(Err(_)) => break,
            None => Err((UNREADABLE, "its `Deserialize` panicked".to_owned())),
        };
        // Output without a newline must not be lost if the next task crashes.
        let _ = catch_panic(|| io::stdout().flush());
        outcome = match catch_panic(|| frames.send(&answer, None)) {
            Some(Err(Broken::Garbled(text))) => {
                frames.send(&Answer::<T, E>::Err((UNWRITABLE, text)), None)
            }
            Some(outcome) => outcome,
            None => {
                let text = "its `Serialize` panicked".to_owned();
                frames.send(&Answer::<T, E>::Err((UNWRITABLE, text)), None)
            }
        };
        drop_catching(answer);
    }
    Ok(())
}

fn call<I, T, E>(f: &impl Fn(&I) -> Result<T, E>, input: I) -> Answer<T, E> {
    // Caught to be reported to the parent; this child goes on.
    let result = panic::catch_unwind(AssertUnwindSafe(|| f(&input)));
    drop_catching(input);
    result.map_err(|payload| {
        let message = text_of(&*payload);
        drop_catching(payload);
        (PANICKED, message)
    })
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("with something that is no text").to_owned()
}
