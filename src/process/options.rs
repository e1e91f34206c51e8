//! The options of a function that runs in child processes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;
use std::{env, fmt, io};

#[cfg(doc)]
use super::Error;
use super::isolated::{Isolated, Limits, Types};
use super::serve::types;
use super::worker::{OWN_NAME, Recipe, lock};

/// The options of a function that runs in child processes, created by [`isolate`](super::isolate).
///
/// ```no_run
/// use futureproof::process::isolate;
/// use std::time::Duration;
///
/// fn main() -> std::io::Result<()> {
///     let render = isolate("render", |page: &u32| Ok::<_, String>(vec![0u8; *page as usize]));
///     let render = render
///         .timeout(Duration::from_secs(5)) // for a task
///         .max_tasks(1_000) // then a fresh child
///         .memory_limit(1 << 30) // for a child
///         .start()?;
///     println!("{:?}", render.call(&3));
///     Ok(())
/// }
/// ```
#[must_use = "nothing is isolated unless `start` is called"]
pub struct Isolate<I, T, E> {
    name: String,
    limits: Limits,
    memory_limit: Option<u64>,
    start_timeout: Duration,
    program: Option<PathBuf>,
    args: Option<Vec<OsString>>,
    grace: Option<Duration>,
    function: String,
    types: Types<I, T, E>,
}

impl<I, T, E> Isolate<I, T, E> {
    pub(super) fn new(name: &str, function: String) -> Self {
        Self {
            name: name.to_owned(),
            limits: Limits::default(),
            memory_limit: None,
            start_timeout: Duration::from_secs(30),
            program: None,
            args: None,
            grace: None,
            function,
            types: PhantomData,
        }
    }

    /// Sets how long a task may take. There is no limit by default.
    ///
    /// If a task takes longer, its child is killed and the task fails with [`Error::TimedOut`]. The clock starts when
    /// the task is sent to a child that is ready.
    pub fn timeout(mut self, after: Duration) -> Self {
        self.limits.timeout = Some(after);
        self
    }

    /// Replaces a child after `n` tasks, for functions that leak.
    ///
    /// The default, 0, is never.
    pub fn max_tasks(mut self, n: u64) -> Self {
        self.limits.max_tasks = n;
        self
    }

    /// Limits the address space of a child, in bytes. There is no limit by default.
    ///
    /// An allocation that would exceed the limit fails. In Rust that aborts the child: [`Error::Crashed`], with
    /// signal 6. C code gets a null pointer, and may turn it into an ordinary error.
    ///
    /// The program itself and the stacks of its threads count, so less than about 64 MiB is too little. The limit is
    /// set when the child reaches [`isolate`](super::isolate). macOS accepts it but hardly enforces it; on Windows
    /// every task fails with [`Error::Start`].
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Sets how long a child may take to reach [`isolate`](super::isolate), 30 s by default.
    ///
    /// This includes what `main` does before. Once a child has served, tasks wait for twice as long before they fail
    /// because none can be started.
    pub fn start_timeout(mut self, after: Duration) -> Self {
        self.start_timeout = after;
        self
    }

    /// Sets the program to start as the child, instead of this one.
    ///
    /// It has to call [`isolate`](super::isolate) with the same name and types. Meant for tests; see [In
    /// tests](super#in-tests).
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// Sets the children's arguments, instead of this program's own.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args = Some(args.into_iter().map(Into::into).collect());
        self
    }

    /// Sets how long a child may take to end by itself. The default is no time: it is killed.
    ///
    /// Whenever a child is to end, it and the programs that it started get `SIGTERM`, and `SIGKILL` once `after` has
    /// passed, or up to a quarter later. A run that is cancelled or dropped waits for that long. Without a handler for
    /// `SIGTERM` nothing changes. On Windows the child is killed at once.
    pub fn grace(mut self, after: Duration) -> Self {
        self.grace = Some(after);
        self
    }

    /// Finishes the options. Children start when they are first needed.
    ///
    /// # Errors
    ///
    /// If the path of this program cannot be determined, or if another function has the same name: in a child the one
    /// that comes first in `main` would serve for both.
    pub fn start(self) -> io::Result<Isolated<I, T, E>> {
        let is_itself = self.program.is_none();
        let first = first_of_name(&self.name, &self.function);
        if is_itself && self.args.is_none() && first != self.function {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "two functions are named {:?}: {first} and {}; {OWN_NAME}",
                    self.name, self.function
                ),
            ));
        }
        let program = self.program.map_or_else(env::current_exe, Ok)?;
        let args = self
            .args
            .unwrap_or_else(|| env::args_os().skip(1).collect());
        let recipe = Recipe {
            name: self.name,
            types: types::<I, T, E>(),
            function: self.function,
            program,
            is_itself,
            args,
            memory_limit: self.memory_limit,
            start_timeout: self.start_timeout,
            grace: self.grace,
        };
        Ok(Isolated::new(recipe, self.limits))
    }
}

/// The function that [`isolate`](super::isolate) was first given by this name.
pub(super) fn first_of_name(name: &str, function: &str) -> String {
    static FUNCTIONS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut functions = lock(&FUNCTIONS);
    let first = functions.entry(name.to_owned());
    first.or_insert_with(|| function.to_owned()).clone()
}

impl<I, T, E> fmt::Debug for Isolate<I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolate")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .field("memory_limit", &self.memory_limit)
            .field("start_timeout", &self.start_timeout)
            .field("grace", &self.grace)
            .finish_non_exhaustive()
    }
}
