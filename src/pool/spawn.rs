//! The trait of pools.

use std::sync::Arc;
use std::thread;

use rayon_core::ThreadPool;

/// A pool: runs jobs on its threads. [`Futureproof::on`](crate::Futureproof::on) takes any of these.
///
/// Implemented for `Arc<rayon::ThreadPool>`, for [`&Scope`](crate::Scope) and for `&rayon::Scope`. Implement it to
/// run jobs on other kinds of threads. `'s` is the lifetime of what the jobs may borrow.
///
/// ```
/// use futureproof::{Spawn, prelude::*};
///
/// /// A thread for every job.
/// struct Threads;
///
/// impl Spawn<'static> for Threads {
///     fn spawn(&self, job: impl FnOnce() + Send + 'static) {
///         std::thread::spawn(job);
///     }
/// }
///
/// let run = (0..10u32).futureproof(Raise).on(Threads).map_tasks(infallible(|n: &u32| n + 1));
/// assert_eq!(run.map(|task| task.unwrap().output).sum::<u32>(), 55);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run the jobs of a run",
    label = "not a pool",
    note = "`on` takes an `Arc<rayon::ThreadPool>`, a `&futureproof::Scope`, a `&rayon::Scope`, or a type that implements `Spawn`"
)]
pub trait Spawn<'s>: Send {
    /// Runs `job` once, on another thread, now or later.
    ///
    /// Jobs do not panic. A job waits for another one for a fraction of a millisecond at most.
    ///
    /// If a job is dropped instead, the other jobs do its work. If there are no others, the run ends as if it were
    /// [cancelled](crate::Ending::Cancelled), possibly with fewer tasks than its `size_hint` said.
    fn spawn(&self, job: impl FnOnce() + Send + 's);

    /// Prepares the pool, and returns how many jobs can run at once.
    ///
    /// Called once, at the first `next` of the run, with the builder's options. 0 threads and an empty name mean the
    /// defaults.
    fn open(&mut self, num_threads: usize, name: &str) -> usize {
        let _ = name;
        match num_threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            chosen => chosen,
        }
    }

    /// Returns whether the current thread belongs to the pool.
    ///
    /// A consumer on such a thread runs tasks while it waits, because it might otherwise wait for itself. The default
    /// is `false`.
    fn is_current(&self) -> bool {
        false
    }

    // Whether `is_current` is exact. Then a thread that finishes an item in one stage may go on with it in the next.
    #[doc(hidden)]
    fn knows_its_threads(&self) -> bool {
        true
    }
}

impl Spawn<'static> for Arc<ThreadPool> {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        ThreadPool::spawn(self, job);
    }

    fn open(&mut self, _: usize, _: &str) -> usize {
        self.current_num_threads()
    }

    fn is_current(&self) -> bool {
        self.current_thread_index().is_some()
    }
}

/// A rayon scope does not expose its pool.
///
/// So its number of threads is `num_threads`, or else rayon's default, and a consumer on any rayon thread counts as
/// one of its threads. Prefer [`scope`](crate::scope), which knows its pool.
impl<'e> Spawn<'e> for &rayon_core::Scope<'e> {
    fn spawn(&self, job: impl FnOnce() + Send + 'e) {
        rayon_core::Scope::spawn(self, |_| job());
    }

    fn open(&mut self, num_threads: usize, _: &str) -> usize {
        match num_threads {
            0 => rayon_core::current_num_threads(),
            chosen => chosen,
        }
    }

    fn is_current(&self) -> bool {
        rayon_core::current_thread_index().is_some()
    }

    fn knows_its_threads(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_of_rayon_counts_the_threads_of_any_pool() {
        let pool = rayon_core::ThreadPoolBuilder::new().num_threads(3);
        let pool = pool.build().unwrap();
        pool.in_place_scope(|scope| assert!(!(&scope).is_current()));
        pool.scope(|mut scope| {
            assert!((&scope).is_current());
            assert_eq!([0, 5].map(|chosen| scope.open(chosen, "")), [3, 5]);
        });
    }
}
