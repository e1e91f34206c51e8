//! Where jobs run: a pool of the run's own, a pool that is shared, or a scope that lends from the stack.

use std::error::Error;
use std::fmt;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
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
/// Its threads start as work needs them: the first with the first job, and one more whenever a job is queued and all
/// threads have one. If a job takes longer than a moment and the caller waits for it, the others start as well (up to 64),
/// for a function that uses rayon itself. On more threads than that, a function must not call `rayon::broadcast`: it waits
/// for all of them.
#[derive(Debug, Default)]
pub struct OwnPool {
    pool: Option<JoiningPool>,
}

impl Spawn<'static> for OwnPool {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let Some(joining) = &self.pool else {
            unreachable!("a pool is opened before it is used");
        };
        let starter = Starter::queue(&joining.starter.0);
        joining.pool.spawn(move || starter.run(job));
    }

    fn open(&mut self, num_threads: usize, name: &str) -> usize {
        let joining = JoiningPool::build(num_threads, name);
        self.pool.insert(joining).pool.current_num_threads()
    }

    fn is_current(&self) -> bool {
        self.pool
            .as_ref()
            .is_some_and(|joining| is_current(&joining.pool))
    }
}

impl OwnPool {
    /// The caller waits until `is_over`, and starts the threads that are left if that takes more than a moment.
    /// Returns whether it is over.
    pub(crate) fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.pool
            .as_ref()
            .is_some_and(|joining| joining.settle(is_over))
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
        let starter = Starter::queue(self.starter);
        self.scope.spawn(move |_| starter.run(job));
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
    starter: &'x Arc<Starter>,
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
    joining.start_ready();
    let (pool, starter) = (&joining.pool, &joining.starter.0);
    pool.in_place_scope(|scope| {
        f(&Scope {
            scope,
            pool,
            starter,
        })
    })
}

/// A pool whose threads are gone when it is dropped. rayon's own drop does not wait.
#[derive(Debug)]
struct JoiningPool {
    // Dropped first: that is what makes the threads end.
    pool: ThreadPool,
    starter: Joiner,
    built: Instant,
}

/// Joins the threads when dropped.
#[derive(Debug)]
struct Joiner(Arc<Starter>);

/// How long a caller waits before it starts the threads that no job has asked for, and up to how many there are then.
const MOMENT: Duration = Duration::from_micros(50);
const READY: usize = 64;

impl JoiningPool {
    /// Makes a pool, and starts the first of its threads.
    fn build(num_threads: usize, name: &str) -> Self {
        let name = if name.is_empty() { "futureproof" } else { name };
        let built = Self::try_build(num_threads, name).and_then(|pool| {
            pool.starter.0.try_start_another()?;
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
        let mut unstarted = Vec::new();
        let pool = ThreadPoolBuilder::new()
            .num_threads(num_threads.min(rayon_core::max_num_threads()))
            .spawn_handler(|worker| {
                unstarted.push(worker);
                Ok(())
            })
            .build()?;
        unstarted.reverse();
        let starter = Starter {
            unstarted: Mutex::new(unstarted),
            handles: Mutex::default(),
            started: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            name: name.to_owned(),
        };
        Ok(Self {
            pool,
            starter: Joiner(Arc::new(starter)),
            built: Instant::now(),
        })
    }

    /// Starts other threads unless the first alone is quick enough. Returns whether `is_over`.
    fn settle(&self, is_over: &dyn Fn() -> bool) -> bool {
        let left = lock(&self.starter.0.unstarted).len();
        if left <= self.pool.current_num_threads().saturating_sub(READY) {
            return false;
        }
        // Not blocking, for so short a time: to be woken would take as long.
        while self.built.elapsed() < MOMENT {
            if is_over() {
                return true;
            }
            thread::yield_now();
        }
        self.start_ready();
        false
    }

    fn start_ready(&self) {
        let ready = self.pool.current_num_threads().min(READY);
        while lock(&self.starter.0.handles).len() < ready && self.starter.0.start_another() {}
    }
}

impl Drop for JoiningPool {
    fn drop(&mut self) {
        // No job that is left starts one more.
        lock(&self.starter.0.unstarted).clear();
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        let handles = mem::take(&mut *lock(&self.0.handles));
        // One of these threads cannot wait for itself, nor for others that may wait for it.
        let current = thread::current().id();
        if handles.iter().any(|it| it.thread().id() == current) {
            return;
        }
        for handle in handles {
            // A worker that panicked has aborted the process: there is no result to look at.
            let _ = handle.join();
        }
    }
}

/// Starts the threads of a pool, and joins them.
#[derive(Debug)]
struct Starter {
    /// Workers that have no thread yet, the last first. To rayon, they are busy.
    unstarted: Mutex<Vec<ThreadBuilder>>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    /// Threads that run; `usize::MAX` once no more can be started.
    started: AtomicUsize,
    /// Jobs that have not begun, and those that have and are not over.
    queued: AtomicUsize,
    running: AtomicUsize,
    name: String,
}

impl Starter {
    /// A job is queued. If all threads have one, it gets a new thread: they may be busy for long.
    fn queue(starter: &Arc<Self>) -> Arc<Self> {
        starter.queued.fetch_add(1, Ordering::SeqCst);
        starter.start_if_short();
        Arc::clone(starter)
    }

    /// A job is run. Whatever it does, those that are queued behind it have a thread to run on.
    fn run(&self, job: impl FnOnce()) {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.queued.fetch_sub(1, Ordering::SeqCst);
        self.start_if_short();
        job();
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    /// Starts a thread for what is queued if all others have a job. Of a job that begins and one that is queued at the same time,
    /// one sees the other: each has written before it reads.
    fn start_if_short(&self) {
        let started = self.started.load(Ordering::SeqCst);
        if self.running.load(Ordering::SeqCst) >= started && self.queued.load(Ordering::SeqCst) > 0
        {
            self.start_another();
        }
    }

    /// Starts one more thread; `false` if all have been started.
    fn try_start_another(&self) -> io::Result<bool> {
        let mut unstarted = lock(&self.unstarted);
        let Some(worker) = unstarted.pop() else {
            self.started.store(usize::MAX, Ordering::SeqCst);
            return Ok(false);
        };
        let builder = thread::Builder::new().name(format!("{}-{}", self.name, worker.index()));
        let handle = builder.spawn(|| worker.run())?;
        // Still under the lock: once nothing is left to be started, all handles are here.
        lock(&self.handles).push(handle);
        self.started.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }

    /// Starts one more thread, if that can be. At least one runs, so the others can be done without.
    fn start_another(&self) -> bool {
        self.try_start_another().unwrap_or_else(|error| {
            let left = mem::take(&mut *lock(&self.unstarted)).len() + 1;
            self.started.store(usize::MAX, Ordering::SeqCst);
            let started = lock(&self.handles).len();
            let (name, all) = (&self.name, started + left);
            contain(
                || warn!(target: TARGET, "{name}: started {started} of {all} threads: {error}"),
            );
            false
        })
    }
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
