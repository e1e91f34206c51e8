//! The options of a function that runs in child processes.

use std::ffi::OsString;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fmt, io};

#[cfg(doc)]
use super::Error;
use super::isolated::{Isolated, Limits, Types};
use super::worker::Recipe;

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
    types: Types<I, T, E>,
}

impl<I, T, E> Isolate<I, T, E> {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            limits: Limits::default(),
            memory_limit: None,
            start_timeout: Duration::from_secs(30),
            program: None,
            args: None,
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
    /// This includes what `main` does before.
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

    /// Finishes the options. Children start when they are first needed.
    ///
    /// # Errors
    ///
    /// If the path of this program cannot be determined.
    pub fn start(self) -> io::Result<Isolated<I, T, E>> {
        let program = self.program.map_or_else(env::current_exe, Ok)?;
        let args = self
            .args
            .unwrap_or_else(|| env::args_os().skip(1).collect());
        let recipe = Recipe {
            name: self.name,
            program,
            args,
            memory_limit: self.memory_limit,
            start_timeout: self.start_timeout,
        };
        Ok(Isolated::new(recipe, self.limits))
    }
}

impl<I, T, E> fmt::Debug for Isolate<I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolate")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .field("memory_limit", &self.memory_limit)
            .field("start_timeout", &self.start_timeout)
            .finish_non_exhaustive()
    }
}
