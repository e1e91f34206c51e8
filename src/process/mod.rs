//! Runs a function in child processes, so that a crash, a hang or a memory hog costs one task and not the run.
//!
//! [`isolate`] wraps a function, and what comes out is given to [`map_tasks`](crate::Futureproof::map_tasks) like any
//! other. Each thread of the run talks to one child at a time, which nobody else talks to meanwhile. The options, the
//! policies, retries and the order work as always: what becomes of a child is an ordinary failure, an [`Error`]. Needs
//! the feature `process`.
//!
//! ```no_run
//! use std::time::Duration;
//! use futureproof::{prelude::*, process};
//!
//! fn parse(text: &String) -> Result<u32, String> {
//!     text.parse().map_err(|error| format!("{text}: {error}"))
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // In a child this call never returns: it serves tasks until its parent goes away.
//!     let parse = process::isolate("parse", parse)
//!         .timeout(Duration::from_secs(5))
//!         .max_tasks(1_000)
//!         .memory_limit(2 << 30)
//!         .start()?;
//!     let texts = std::env::args().skip(1);
//!     for task in texts.futureproof(Log).num_threads(8).map_tasks(parse.into_fn()).flatten() {
//!         println!("{}", task.output);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # What it costs
//!
//! On two cores: a call takes 4 to 7 µs while calls follow each other closely, and 65 µs after a pause, when the other core
//! has fallen asleep. (Both sides look for the next message for up to 100 µs before they block, if the last one came as soon
//! and nobody else needs the core.) A fresh child takes 1 to 4 ms. Large items are copied four times: 1 MiB there and back
//! takes 1.2 ms. Python's `ProcessPoolExecutor` takes 200 µs a call on the same machine, 100 µs in a `map`. So little is lost
//! on tasks of 50 µs and more.
//!
//! # What a child is
//!
//! This program, started again with the same arguments and the variable `FUTUREPROOF_WORKER`, which names the function.
//! It runs `main` up to the [`isolate`] of that name, so **that call comes first in `main`**. With several functions,
//! call all their `isolate`s first. A worker that goes on past them and wants workers itself gets an error. A program
//! that a task starts may have workers, and so on, three deep.
//! Neither replace standard input nor start other programs that inherit it before that call: over it the parent talks
//! to the child. And leave the program's file as it is while it runs: a child that starts later would be the new
//! program, whose types may differ.
//!
//! - **Printing.** A child's standard output goes to the parent's standard error, so that it does not get in between what
//!   the parent prints. Its standard input is empty. Messages travel over a socket that neither touches.
//! - **Panics** are caught and told; the child lives on. What they leave behind stays, as it does in threads. With
//!   `panic = "abort"` a panic is a crash.
//! - **The end.** A child is killed, not asked: no destructor of a static and no exit handler runs in it. It is
//!   killed when its task is late, when it has served its number of tasks, and when the function is dropped, which a
//!   run does at its end. It is reaped at once.
//! - **A cancel, a deadline or a drop of the run** kills the children that are busy, and their tasks fail with
//!   [`Error::Cancelled`]: nothing is waited for. After a failure under `Raise`, what runs is waited for, as always,
//!   unless the run is dropped, as `task?` does.
//! - **The parent's end.** When the parent is killed, a thread in each child sees the closed socket and kills the child,
//!   busy or not. What a task itself started, such as another program, is its own affair.
//! - **A child that dies without a task** is replaced, and the next task does not notice. One that is found dead in the
//!   moment after it took a task fails that task with [`Error::Crashed`], as nobody knows how far it got.
//! - **A program that cannot serve** is started three times, or only once if it says nothing or has other types, and
//!   none has served before; then every task fails with [`Error::Start`].
//! - **Ctrl-C** is for the parent. On Unix each child is a process group of its own, so the terminal's signal does not
//!   reach it: what runs can finish.
//!
//! # In tests
//!
//! Under `cargo test` a program's `main` is the harness's, which runs tests on threads, and would run them in each child
//! as well. Three ways out:
//!
//! 1. **The program itself**: a binary whose `main` isolates first can be the child of an integration test (a file in
//!    `tests/`) as well. Cargo builds it first, and tells where it is:
//!
//!    ```no_run
//!    # use futureproof::process::isolate;
//!    # fn parse(text: &String) -> Result<u32, String> { text.parse().map_err(|_| text.clone()) }
//!    # macro_rules! env { ($name:literal) => { $name } }
//!    // The same name and types as in that program. Of `parse`, only the types matter here.
//!    let parse = isolate("parse", parse).program(env!("CARGO_BIN_EXE_my-program")).start()?;
//!    assert_eq!(parse.call(&"7".to_owned()), Ok(7));
//!    # Ok::<(), std::io::Error>(())
//!    ```
//! 2. **One test alone in the child**, for unit tests: `isolate` comes first in the test, and the child is told to run that
//!    test only. Under nextest this holds without `.args`, since it runs each test by itself with these very arguments.
//!
//!    ```text
//!    mod tests {
//!        #[test]
//!        fn parses() {
//!            let parse = isolate("parse", parse).args(["--exact", "tests::parses", "--nocapture"]).start().unwrap();
//!            assert_eq!(parse.call(&"7".to_owned()), Ok(7));
//!        }
//!    }
//!    ```
//! 3. **A test or benchmark with a `main` of its own**: `harness = false` in its `[[test]]` or `[[bench]]`, and [`isolate`]
//!    first in that `main`.
//!
//! # Systems
//!
//! On Unix the messages travel over a socket pair. On Windows they travel over the loopback interface; there are no signals, a crash has a
//! code only, [`Isolate::memory_limit`] is an error, and a program that a task starts inherits the variable, so that it
//! should not be this one. The Windows part is compiled but was never run.

mod error;
mod frames;
mod isolated;
mod options;
mod serve;
#[cfg(not(unix))]
mod tcp;
#[cfg(unix)]
mod unix;
mod worker;

#[cfg(not(unix))]
use tcp as transport;
#[cfg(unix)]
use unix as transport;

use std::sync::OnceLock;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::Error;
pub use isolated::Isolated;
pub use options::Isolate;
use serve::{role, serve};

/// Wraps `f` to run in child processes of this program, one per thread that calls it.
///
/// **Call it first in `main`.** A child is this program, started again with the same arguments; there this
/// call does not return: it serves tasks until the parent goes away. What comes before it in `main` is done
/// in each child as well. That is how a child gets an initial state: load it, then let `f` capture it.
///
/// `name` tells the functions of one program apart.
///
/// Items, outputs and errors travel as bytes, so they are [`Serialize`] and [`DeserializeOwned`]. The
/// format is postcard's, which does not describe itself: `#[serde(flatten)]`, `untagged` and
/// `skip_serializing_if` do not work with it. A `Vec<u8>` travels much faster with `serde_bytes`.
///
/// ```no_run
/// use futureproof::process::{Error, isolate};
///
/// fn main() -> std::io::Result<()> {
///     let words = std::fs::read_to_string("words")?; // in each child as well
///     let find = isolate("find", move |word: &String| words.find(word.as_str()).ok_or(())).start()?;
///     assert_eq!(find.call(&"no such word".to_owned()), Err(Error::Task(())));
///     Ok(())
/// }
/// ```
pub fn isolate<I, T, E, F>(name: &str, f: F) -> Isolate<I, T, E>
where
    I: Serialize + DeserializeOwned,
    T: Serialize + DeserializeOwned,
    E: Serialize + DeserializeOwned,
    F: Fn(&I) -> Result<T, E>,
{
    // A task that calls this again is no second worker.
    static SERVES: OnceLock<()> = OnceLock::new();
    if role() == Some(name) && SERVES.set(()).is_ok() {
        serve(f);
    }
    Isolate::new(name)
}
