//! The child's side: receives an item, calls the function, sends the result, until the parent is gone.

use std::any::{Any, type_name};
use std::cell::RefCell;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe, Location};
use std::sync::OnceLock;
use std::{env, process, thread};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::format::{decode, encode};
use super::frames::{Broken, Frames, Head};
use super::transport::{adopt, await_orphaned, die, limit_memory, meant};
use crate::util::panics::{catch_panic, drop_catching};

/// Tells a process that it is a worker, and for which function.
pub(super) const VARIABLE: &str = "FUTUREPROOF_WORKER";

/// Tells a process how many workers are above it.
pub(super) const DEPTH: &str = "FUTUREPROOF_DEPTH";

/// The first message to a child: its memory limit in bytes.
pub(super) type Setup = Option<u64>;

/// The first message of a child.
#[derive(Serialize, serde::Deserialize)]
pub(super) struct Hello {
    pub(super) types: String,
    pub(super) function: String,
    pub(super) problem: Option<String>,
}

/// The head of the first message in both directions.
pub(super) const HELLO: Head = Head { number: 0, kind: 0 };

/// Kinds of messages: an item, an output, an error of the function, or a text.
pub(super) const ITEM: u8 = 1;
pub(super) const OUTPUT: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const PANICKED: u8 = 4;
pub(super) const UNREADABLE: u8 = 5;
pub(super) const UNWRITABLE: u8 = 6;

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
    static LEVEL: OnceLock<u32> = OnceLock::new();
    let find = || env::var(DEPTH).ok()?.parse().ok();
    *LEVEL.get_or_init(|| find().unwrap_or(0))
}

/// The types that both sides must agree on.
pub(super) fn types<I, T, E>() -> String {
    type_name::<fn(&I) -> Result<T, E>>().to_owned()
}

/// What tells `F` from other functions, in all processes of a program.
pub(super) fn function<F>(called_at: &Location<'_>) -> String {
    let name = type_name::<F>();
    // The name of a `fn` says which one it is. Closures and pointers of different functions may have the same.
    match size_of::<F>() == 0 && !name.contains("{{closure}}") {
        true => name.to_owned(),
        false => format!("{name} at {called_at}"),
    }
}

/// Serves `f`, then ends the process. `function` is its name.
pub(super) fn serve<I, T, E, F>(f: F, function: String) -> !
where
    I: DeserializeOwned,
    T: Serialize,
    E: Serialize,
    F: Fn(&I) -> Result<T, E>,
{
    if let Err(problem) = try_serve(f, function) {
        let _ = catch_panic(|| eprintln!("futureproof: a worker process exits: {problem}"));
    }
    die()
}

fn try_serve<I, T, E, F>(f: F, function: String) -> Result<(), String>
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
    note_places_of_panics();
    let mut frames = Frames::new(stream);
    let gone = |_: Broken| "its parent went away at once".to_owned();
    frames.receive(None).map_err(gone)?;
    let setup: Setup = decode(frames.body())?;
    let hello = Hello {
        types: types::<I, T, E>(),
        function,
        problem: setup.and_then(|bytes| limit_memory(bytes).err()),
    };
    frames.prepare(HELLO, |bytes| encode(&hello, bytes))?;
    let mut outcome = frames.send(None);
    let process = process::id();
    while outcome.is_ok() {
        let number = match frames.receive(None) {
            Ok(head) => head.number,
            Err(_) => break,
        };
        let input = caught(|| decode(frames.body()));
        let answer = match input {
            Ok(Ok(input)) => call(&f, input).map_err(|text| (PANICKED, text)),
            Ok(Err(text)) => Err((UNREADABLE, text)),
            Err(text) => Err((UNREADABLE, format!("its `Deserialize` panicked: {text}"))),
        };
        // A task may `fork`, and both copies get here. Only one may answer.
        if process::id() != process {
            die()
        }
        // Output without a newline must not be lost if the next task crashes.
        let _ = catch_panic(|| io::stdout().flush());
        let prepared = caught(|| match &answer {
            Ok(Ok(output)) => prepare(&mut frames, number, OUTPUT, output),
            Ok(Err(error)) => prepare(&mut frames, number, ERROR, error),
            Err((kind, text)) => prepare(&mut frames, number, *kind, text),
        });
        let problem = match prepared {
            Ok(outcome) => outcome.err(),
            Err(text) => Some(format!("its `Serialize` panicked: {text}")),
        };
        if let Some(text) = problem {
            prepare(&mut frames, number, UNWRITABLE, &text)?;
        }
        outcome = frames.send(None);
        drop_catching(answer);
    }
    Ok(())
}

fn prepare(
    frames: &mut Frames,
    number: u64,
    kind: u8,
    value: &impl Serialize,
) -> Result<(), String> {
    frames.prepare(Head { number, kind }, |bytes| encode(value, bytes))
}

fn call<I, T, E>(f: &impl Fn(&I) -> Result<T, E>, input: I) -> Result<Result<T, E>, String> {
    let result = caught(|| f(&input));
    drop_catching(input);
    result
}

/// Calls `f`. A panic is its text and place; this child goes on.
fn caught<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    PLACE.set(None);
    panic::catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = text_of(&*payload);
        drop_catching(payload);
        match PLACE.take() {
            Some(place) => format!("{text}, at {place}"),
            None => text,
        }
    })
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("with something that is no text").to_owned()
}

thread_local! {
    /// File and line of the last panic.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Only a hook is told the place.
fn note_places_of_panics() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let place = info.location().map(Location::to_string);
        // Not where a thread's own variables panic as they go.
        let _ = PLACE.try_with(|last| *last.borrow_mut() = place);
        hook(info);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_name_of_its_own_is_told_by_its_place() {
        fn double(n: &u32) -> u32 {
            2 * n
        }
        fn name<F: Fn(&u32) -> u32>(_: F) -> String {
            function::<F>(Location::caller())
        }
        assert!(name(double).ends_with("::double"));
        assert!(name(|n| n + 1).contains(".rs:"));
        assert!(name(double as fn(&u32) -> u32).contains(".rs:"));
    }
}
