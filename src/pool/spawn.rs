//! What a pool is to a run.

use std::sync::Arc;
use std::thread;

use rayon_core::ThreadPool;

/// Something that runs jobs on its threads: what [`Futureproof::on`](crate::Futureproof::on) takes.
///
/// It is implemented for `Arc<rayon::ThreadPool>` and, for borrowing from the stack, for [`&Scope`](crate::Scope)
/// and `&rayon::Scope`. Implement it to run jobs on threads of another kind; `'s` is what the jobs
/// may borrow.
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
    /// Runs `job` once, on another thread, now or later. A job that is dropped instead is made up for by those that
    /// run; if there are none, the run ends as if it were [cancelled](crate::Ending::Cancelled), earlier than its
    /// `size_hint` may have said.
    ///
    /// Jobs do not panic, and a job waits for another for a fraction of a millisecond at most.
    fn spawn(&self, job: impl FnOnce() + Send + 's);

    /// Gets ready. Called once, at the run's first `next`, with what the builder was given; 0 threads
    /// and an empty name mean the default. Returns how many jobs can run at once.
    fn open(&mut self, num_threads: usize, name: &str) -> usize {
        let _ = name;
        if num_threads > 0 {
            num_threads
        } else {
            thread::available_parallelism().map_or(1, usize::from)
        }
    }

    /// Whether the current thread is one that jobs run on, so that waiting here for a job could be
    /// waiting for oneself. The caller then works as well, on what no other thread has begun.
    fn is_current(&self) -> bool {
        false
    }

    // Whether `is_current` is certain: then a stage goes on here with what the one before has made here.
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

/// A scope of rayon's does not tell its pool. So its width is what `num_threads` says or else
/// rayon's default, and on any thread of any rayon pool its jobs run inline. [`scope`](crate::scope) knows better.
impl<'e> Spawn<'e> for &rayon_core::Scope<'e> {
    fn spawn(&self, job: impl FnOnce() + Send + 'e) {
        rayon_core::Scope::spawn(self, |_| job());
    }

    fn open(&mut self, num_threads: usize, _: &str) -> usize {
        if num_threads > 0 {
            num_threads
        } else {
            rayon_core::current_num_threads()
        }
    }

    fn is_current(&self) -> bool {
        rayon_core::current_thread_index().is_some()
    }

    fn knows_its_threads(&self) -> bool {
        false
    }
}
