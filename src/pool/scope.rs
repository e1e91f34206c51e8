//! A pool whose jobs can borrow from the stack.

use std::fmt;
use std::sync::Arc;

use rayon_core::ThreadPool;

use super::own::{JoiningPool, Starter};
use super::spawn::Spawn;

/// Threads on which runs can borrow from the stack; see [`scope`].
///
/// You can pass it to functions:
///
/// ```
/// use futureproof::{Scope, prelude::*};
///
/// fn total<'e>(words: &'e [String], scope: &Scope<'_, 'e>) -> usize {
///     let run = words.iter().futureproof(Raise).on(scope).map_tasks(infallible(|word: &&String| word.len()));
///     run.flatten().map(|task| task.output).sum()
/// }
/// let words = ["one", "two"].map(String::from);
/// assert_eq!(futureproof::scope(2, |scope| total(&words, scope)), 6);
/// ```
pub struct Scope<'x, 'e> {
    scope: &'x rayon_core::Scope<'e>,
    pool: &'x ThreadPool,
    starter: &'x Arc<Starter>,
}

impl<'e> Spawn<'e> for &Scope<'_, 'e> {
    fn spawn(&self, job: impl FnOnce() + Send + 'e) {
        let starter = Starter::queue(self.starter);
        self.scope.spawn(move |_| starter.run(job));
    }

    fn open(&mut self, _: usize, _: &str) -> usize {
        self.pool.current_num_threads()
    }

    // No job can hold the scope, and `f` runs elsewhere: whoever asks `is_current` is none of its threads.
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("num_threads", &self.pool.current_num_threads())
            .finish_non_exhaustive()
    }
}

/// Starts `num_threads` threads on which runs can borrow from the stack.
///
/// 0 means rayon's default. The function, the items and the results of a run [`on`](crate::Futureproof::on) the scope
/// can borrow anything that outlives this call. `f` itself runs on the calling thread. The threads have ended when
/// `scope` returns.
///
/// ```
/// use futureproof::prelude::*;
///
/// let text = String::from("to be or not to be");
/// let lengths: Vec<&str> = futureproof::scope(2, |scope| {
///     let words = text.split(' ').futureproof(Raise).on(scope);
///     let trim = infallible(|word: &&str| word.trim_start_matches('t'));
///     words.map_tasks(trim).map(|task| task.unwrap().output).collect()
/// });
/// assert_eq!(lengths.len(), 6); // slices of `text`
/// ```
///
/// Borrowing something that does not live long enough does not compile:
///
/// ```compile_fail,E0597
/// use futureproof::prelude::*;
///
/// futureproof::scope(2, |scope| {
///     let local = String::from("gone too soon");
///     (0..10).futureproof(Raise).on(scope).map_tasks(infallible(|n: &usize| local.len() + n)).count();
/// });
/// ```
///
/// # Panics
///
/// If the threads cannot be started. If `f` panics, with its panic.
pub fn scope<'e, R>(num_threads: usize, f: impl for<'x> FnOnce(&Scope<'x, 'e>) -> R) -> R {
    let joining = JoiningPool::build(num_threads, "");
    joining.start_rest();
    let (pool, starter) = (&joining.pool, joining.starter());
    pool.in_place_scope(|scope| {
        f(&Scope {
            scope,
            pool,
            starter,
        })
    })
}
