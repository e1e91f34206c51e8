//! Runs a function in child processes, so that a crash, a hang or a memory hog costs one task and not the run.
//!
//! [`isolate`] wraps a function. Pass the result to [`map_tasks`](crate::Futureproof::map_tasks) like any other
//! function. Each thread of the run talks to one child at a time, and no two threads share a child. Options, policies,
//! retries and order work as always: if a child dies, that is an ordinary failure, an [`Error`]. Needs the feature
//! `process`.
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
//! With a text as the function's error, what fails is an `Error<String>`, which works with neither `?` nor `checked`.
//! `match` it, make it a text as well with `map_err(|error| error.to_string())`, or use an error type of your own that
//! implements [`Error`](std::error::Error) and serde's traits.
//!
//! # What it costs
//!
//! Measured on two cores: a call takes 5 µs while calls follow each other closely, and 65 µs after a pause, when
//! the other core has gone to sleep. (If the last message came within 100 µs, both sides poll for the next one for up
//! to 100 µs before they block, unless something else needs the core.) A new child takes 1 to 4 ms. Large items are
//! copied four times: 64 KiB there and back take 20 µs. On the same machine, Python's `ProcessPoolExecutor` takes
//! 200 µs per call, and 100 µs in a `map`. So little is lost on tasks of 50 µs or more.
//!
//! A `Vec<u8>` travels number by number, and 64 KiB take 530 µs. Write `#[serde(with = "serde_bytes")]` on the field, or
//! use `serde_bytes::ByteBuf`.
//!
//! # What can travel
//!
//! Items, outputs and errors travel as MessagePack with the names of fields and variants. A value arrives unchanged, or
//! the task fails with [`Error::Encode`] or [`Error::Decode`], which say why in the words of the type's own `Serialize`
//! or `Deserialize`. Tried, with other formats next to it:
//!
//! | value | here | postcard, bincode | CBOR (ciborium) | pot | JSON |
//! |---|---|---|---|---|---|
//! | `skip_serializing_if`, `flatten`, `untagged`, `tag`, `serde_json::Value` | yes | error, or **another value** | yes | yes | yes |
//! | `IpAddr`, `char` within `flatten` or `untagged` | yes | error | error | error | yes |
//! | `Some(())`, `Some(Value::Null)` | error | yes, error | **`None`** | yes | **`None`** |
//! | `Some(None)` | error | yes | **`None`** | **`None`** | **`None`** |
//! | `i128`, `u128` | yes | yes | yes | yes | yes |
//! | `i128` within `flatten` or `untagged` | error | error | error | error | error |
//! | NaN with its bits, infinities, bytes, keys of any type | yes | yes | yes | yes | error |
//!
//! [`Error::Encode`] names the type and the field of a `Some` that would arrive as `None`. Use an enum of your own there.
//! Two more things are the type's own, in every format: an `untagged` enum arrives as its first variant that fits, and
//! a type must read back what it writes. A message has 1 GiB at most.
//!
//! # What a child is
//!
//! A child is this program, started again with the same arguments and with the variable `FUTUREPROOF_WORKER`, which
//! names the function. It runs `main` up to the [`isolate`] of that name, so **call `isolate` first in `main`**. With
//! several functions, call all their `isolate`s first, and give each a name of its own: [`start`](Isolate::start)
//! refuses two functions of one name. A worker that goes on past them and wants workers itself gets an error. A program
//! that a task starts may have workers, and so on, three levels deep.
//!
//! Before that call, do not replace standard input, and do not start programs that inherit it: the parent talks to the
//! child over it. On Linux the program's file may be replaced or deleted while it runs: children are still what their
//! parent is. Elsewhere a child that starts later would be the new program, whose types may differ.
//!
//! - **Printing.** A child's standard output goes to the parent's standard error, so that it does not mix with what
//!   the parent prints. Its standard input is empty. Messages travel over a socket that is neither of them.
//! - **Panics** are caught and reported with file and line, and the child goes on. As with threads, changes made before
//!   the panic stay. With `panic = "abort"`, a panic is a crash.
//! - **The end of a child.** A child is killed, not asked: no destructor of a static and no exit handler runs.
//!   [`Isolate::grace`] asks first. It is killed when its task exceeds the time limit, when it has served its number of
//!   tasks, and when the function is dropped, which a run does at its end. It is reaped at once. **Programs that its
//!   tasks started die with it**, whether they were waited for or not, unless they moved to a process group of their own.
//! - **A cancel, a deadline or a drop of the run** kills the busy children, and their tasks fail with
//!   [`Error::Cancelled`]. Nothing waits for them. After a failure under `Raise`, the run waits for running tasks as
//!   always, unless it is dropped, as `task?` does.
//! - **The end of the parent.** If the parent is killed, a thread in each child notices the closed socket and kills the
//!   child, busy or not, and the programs that its tasks started. Only if a child crashes at the same moment, programs
//!   that it started live on.
//! - **A child that dies without a task** is replaced, and the next task does not notice. A child that is found dead with
//!   a task that it has not read is no failure either: another child gets the task. After three such children the task
//!   fails with [`Error::Crashed`], because reading it may be what kills them. On systems other than Linux a task that
//!   was sent counts as read.
//! - **A child that cannot be started** is no failure while others serve: the run goes on with fewer, says so in the log
//!   at `warn`, and tries again after 20 ms, then 40 ms, up to every second. If none is left, tasks wait. They fail with
//!   [`Error::Start`] once no start has succeeded for twice [`Isolate::start_timeout`], until one does.
//! - **A program that cannot serve.** If no child has served yet, no more are tried after three failed starts, and every
//!   task fails with [`Error::Start`]. A single failed start is enough in these cases:
//!   - the child does not reach `isolate` within [`Isolate::start_timeout`];
//!   - the child has another function or other types for that name;
//!   - the child cannot set its memory limit.
//! - **Ctrl-C** is for the parent. On Unix each child is in its own process group and session, so the terminal's signals
//!   do not reach it, and running tasks can finish. It has no terminal to ask for a password.
//! - **`fork`.** If a task forks and both copies return, the child answers and its copy ends.
//!
//! # In tests
//!
//! Under `cargo test`, `main` is the test harness's. It runs the tests on threads, and would run them in each child as
//! well. There are three ways out:
//!
//! 1. **Use the program itself.** A binary that calls `isolate` first in `main` can be the child of an integration test
//!    (a file in `tests/`) as well. Cargo builds it first, and sets a variable with its path:
//!
//!    ```no_run
//!    # use futureproof::process::isolate;
//!    # fn parse(text: &String) -> Result<u32, String> { text.parse().map_err(|_| text.clone()) }
//!    # macro_rules! env { ($name:literal) => { $name } }
//!    // The same name and types as in that program. Only the types of `parse` matter here.
//!    let parse = isolate("parse", parse).program(env!("CARGO_BIN_EXE_my-program")).start()?;
//!    assert_eq!(parse.call(&"7".to_owned()), Ok(7));
//!    # Ok::<(), std::io::Error>(())
//!    ```
//! 2. **Run one test in the child**, for unit tests. Call `isolate` first in the test, and tell the child to run that
//!    test only. Under nextest you need no `.args`, because it runs each test by itself with these same arguments.
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
//! 3. **Write a test with its own `main`.** Set `harness = false` in its `[[test]]` or `[[bench]]`, and call
//!    [`isolate`] first in that `main`.
//!
//! # Systems
//!
//! On Unix, messages travel over a socket pair. On Windows, they travel over the loopback interface. There are no
//! signals there, so a crash has an exit code only. [`Isolate::memory_limit`] is an error. A program that a task starts
//! inherits the variable, so it must not be this program, and it does not die with the child. The Windows part is
//! compiled but has never been run.

mod children;
mod error;
mod format;
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

use std::panic::Location;
use std::sync::OnceLock;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::Error;
pub use isolated::Isolated;
pub use options::Isolate;
use options::first_of_name;
use serve::{function, role, serve};

/// Wraps `f` to run in child processes of this program, one per thread that calls it.
///
/// **Call it first in `main`.** A child is this program, started again with the same arguments. In the child this call
/// does not return: it serves tasks until the parent is gone. Whatever comes before it in `main` runs in each child as
/// well. You can use that to give a child its initial state: load it, then let `f` capture it.
///
/// `name` distinguishes the functions of one program. The same function may be given twice; what the first one has
/// captured counts.
///
/// Items, outputs and errors are sent as bytes, so they must be [`Serialize`] and [`DeserializeOwned`]. All of serde's
/// attributes work; see [what can travel](self#what-can-travel). A `Vec<u8>` is much faster with `serde_bytes`.
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
#[track_caller]
pub fn isolate<I, T, E, F>(name: &str, f: F) -> Isolate<I, T, E>
where
    I: Serialize + DeserializeOwned,
    T: Serialize + DeserializeOwned,
    E: Serialize + DeserializeOwned,
    F: Fn(&I) -> Result<T, E>,
{
    let function = function::<F>(Location::caller());
    // A task that calls this again must not serve a second time.
    static SERVES: OnceLock<()> = OnceLock::new();
    if role() == Some(name) && SERVES.set(()).is_ok() {
        serve(f, function);
    }
    // The first one of a name counts, whether it is started or not.
    first_of_name(name, &function);
    Isolate::new(name, function)
}
