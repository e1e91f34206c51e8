//! Where jobs run: a pool of the run's own, a pool that is shared, or a scope that lends from the stack.

use std::error::Error;
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::warn;
use rayon_core::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use crate::contain::contain;
use crate::monitor::TARGET;

/// A home for jobs: what [`Futureproof::on`](crate::Futureproof::on) takes.
///
/// It is implemented for `Arc<rayon::ThreadPool>` and, for borrowing from the stack, for [`&Scope`](Scope)
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
pub trait Spawn<'s>: Send {
    /// Runs `job` once, on another thread, now or later; or drops it, and the run ends as if it were
    /// [cancelled](crate::Ending::Cancelled), earlier than its `size_hint` may have said.
    ///
    /// Jobs do not panic. They do not wait for each other.
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

    /// The caller has submitted all that it may for now, and waits until `is_over`. Returns whether that is so.
    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        let _ = is_over;
        false
    }

    /// Whether the current thread is one that jobs run on, so that waiting here for a job could be
    /// waiting for oneself. Jobs are then run inline.
    fn is_current(&self) -> bool {
        false
    }
}

/// The default home: a pool that is made for the run and goes with it. Nobody needs to name it, but for a type:
///
/// ```
/// use futureproof::{Futureproof, OwnPool, prelude::*};
///
/// fn careful<I: Iterator>(items: I) -> Futureproof<I, OwnPool> {
///     items.futureproof(Raise).num_threads(2).max_in_flight(8)
/// }
/// assert_eq!(careful(0..10).map_tasks(infallible(|n: &u32| n + 1)).count(), 10);
/// ```
///
/// Its first thread is alone for a moment: to start another beside it would slow down both, and take longer
/// than a small job. Then the others start as jobs come, or all at once when the caller waits.
#[derive(Debug, Default)]
pub struct OwnPool {
    pool: Option<JoiningPool>,
}

impl Spawn<'static> for OwnPool {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        match &self.pool {
            Some(joining) => {
                joining.pool.spawn(job);
                if !joining.is_new() {
                    joining.start_another();
                }
            }
            None => unreachable!("a pool is opened before it is used"),
        }
    }

    fn open(&mut self, num_threads: usize, name: &str) -> usize {
        let joining = JoiningPool::build(num_threads, name);
        self.pool.insert(joining).pool.current_num_threads()
    }

    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.pool
            .as_ref()
            .is_some_and(|joining| joining.settle(is_over))
    }

    fn is_current(&self) -> bool {
        self.pool
            .as_ref()
            .is_some_and(|joining| is_current(&joining.pool))
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
        is_current(self)
    }
}

impl<'e> Spawn<'e> for &Scope<'_, 'e> {
    fn spawn(&self, job: impl FnOnce() + Send + 'e) {
        self.scope.spawn(|_| job());
    }

    fn open(&mut self, _: usize, _: &str) -> usize {
        self.pool.current_num_threads()
    }

    fn is_current(&self) -> bool {
        is_current(self.pool)
    }
}

/// A scope of rayon's does not tell its pool. So its width is what `num_threads` says or else
/// rayon's default, and on any thread of any rayon pool its jobs run inline. [`scope`] knows better.
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
}

fn is_current(pool: &ThreadPool) -> bool {
    pool.current_thread_index().is_some()
}

/// Threads that runs can use to borrow from the stack; see [`scope`]. Functions can be given it:
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
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("num_threads", &self.pool.current_num_threads())
            .finish_non_exhaustive()
    }
}

/// Makes a pool of `num_threads` threads, 0 for rayon's default, on which runs can borrow what
/// outlives the call: their function, their items and their results.
///
/// `f` itself runs on the calling thread. The threads are gone when `scope` returns.
///
/// ```
/// use futureproof::prelude::*;
///
/// let text = String::from("to be or not to be");
/// let lengths: Vec<&str> = futureproof::scope(2, |scope| {
///     let words = text.split(' ').futureproof(Raise).on(scope);
///     words.map_tasks(infallible(|word: &&str| word.trim_start_matches('t'))).map(|task| task.unwrap().output).collect()
/// });
/// assert_eq!(lengths.len(), 6); // slices of `text`
/// ```
///
/// What does not live long enough is refused:
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
/// If the threads cannot be had, and with the panic of `f`.
pub fn scope<'e, R>(num_threads: usize, f: impl for<'x> FnOnce(&Scope<'x, 'e>) -> R) -> R {
    let joining = JoiningPool::build(num_threads, "");
    joining.start_all();
    let pool = &joining.pool;
    pool.in_place_scope(|scope| f(&Scope { scope, pool }))
}

/// A pool whose threads are gone when it is dropped. rayon's own drop does not wait.
#[derive(Debug)]
struct JoiningPool {
    // Dropped first: that is what makes the threads end.
    pool: ThreadPool,
    /// Workers that have no thread yet, the last first. To rayon, they are busy.
    unstarted: Mutex<Vec<ThreadBuilder>>,
    threads: Mutex<Threads>,
    name: String,
    built: Instant,
}

/// How long a pool's first thread is alone.
const ALONE: Duration = Duration::from_micros(50);

impl JoiningPool {
    /// Makes a pool, and starts the first of its threads.
    fn build(num_threads: usize, name: &str) -> Self {
        let name = if name.is_empty() { "futureproof" } else { name };
        let built = Self::try_build(num_threads, name).and_then(|pool| {
            pool.try_start_another()?;
            Ok(pool)
        });
        built.unwrap_or_else(|error| {
            let asked = if num_threads > 0 {
                num_threads.to_string()
            } else {
                "the default number of".into()
            };
            panic!("cannot build a pool of {asked} threads: {error}");
        })
    }

    fn try_build(num_threads: usize, name: &str) -> Result<Self, Box<dyn Error>> {
        // rayon would take a larger number for this one, and try.
        let max = rayon_core::max_num_threads();
        if num_threads > max {
            return Err(format!("there can be at most {max}").into());
        }
        let mut unstarted = Vec::new();
        let pool = ThreadPoolBuilder::new()
            .num_threads(num_threads)
            .spawn_handler(|worker| {
                unstarted.push(worker);
                Ok(())
            })
            .build()?;
        unstarted.reverse();
        Ok(Self {
            pool,
            unstarted: Mutex::new(unstarted),
            threads: Mutex::default(),
            name: name.to_owned(),
            built: Instant::now(),
        })
    }

    /// Starts one more thread; `false` if all have been started.
    fn try_start_another(&self) -> io::Result<bool> {
        let Some(worker) = lock(&self.unstarted).pop() else {
            return Ok(false);
        };
        let builder = thread::Builder::new().name(format!("{}-{}", self.name, worker.index()));
        let handle = builder.spawn(|| worker.run())?;
        lock(&self.threads).handles.push(handle);
        Ok(true)
    }

    /// Starts one more thread, if that can be. At least one runs, so the others can be done without.
    fn start_another(&self) -> bool {
        self.try_start_another().unwrap_or_else(|error| {
            let left = mem::take(&mut *lock(&self.unstarted)).len() + 1;
            contain(
                || warn!(target: TARGET, "{}: runs with {left} threads less: {error}", self.name),
            );
            false
        })
    }

    fn start_all(&self) {
        while self.start_another() {}
    }

    fn is_new(&self) -> bool {
        self.built.elapsed() < ALONE
    }

    /// Starts the other threads unless the first alone is quick enough. Returns whether `is_over`.
    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        if lock(&self.unstarted).is_empty() {
            return false;
        }
        // Not blocking, for so short a time: to be woken would take as long.
        while self.is_new() {
            if is_over() {
                return true;
            }
            thread::yield_now();
        }
        self.start_all();
        false
    }
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Joins the threads when dropped.
#[derive(Debug, Default)]
struct Threads {
    handles: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        // One of these threads cannot wait for itself, nor for others that may wait for it.
        let current = thread::current().id();
        if self
            .handles
            .iter()
            .any(|handle| handle.thread().id() == current)
        {
            return;
        }
        for handle in self.handles.drain(..) {
            // A worker that panicked has aborted the process: there is no result to look at.
            let _ = handle.join();
        }
    }
}
