//! The run's own pool. Its threads start when work needs them, and are joined when it is dropped.

use std::error::Error;
use std::io;
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use log::warn;

use super::spawn::Spawn;
use crate::util::TARGET;
use crate::util::panics::catch_panic;
use crate::util::sync::atomic::{AtomicUsize, Ordering};
use crate::util::sync::rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder, max_num_threads};
use crate::util::sync::thread::{self, JoinHandle};
use crate::util::sync::{Mutex, MutexGuard, hint, now};

/// The default pool: created for one run, and dropped with it.
///
/// You need its name only to write down a type:
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
/// The first thread starts with the pool, the second with the second job, and another one whenever a job is queued and all
/// threads are busy. If the caller waits for half a millisecond in vain, or waits once the pool is a second old, the other
/// threads start as well, up to 64, so that a function can use rayon itself. With more than 64 threads, a function must not
/// call `rayon::broadcast`, because it waits for all of them.
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
        let pool = self.pool.as_ref();
        pool.is_some_and(|joining| joining.pool.current_thread_index().is_some())
    }
}

impl OwnPool {
    /// Waits a moment for `is_over`, if the pool has just been made. Returns whether it is over.
    pub(crate) fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool {
        self.pool
            .as_ref()
            .is_some_and(|joining| joining.warm_up(is_over))
    }

    /// When a caller that begins to wait now should start the threads that no job has needed, if there are any.
    pub(crate) fn rest_due(&self) -> Option<Instant> {
        self.pool.as_ref()?.rest_due()
    }

    /// Starts them.
    pub(crate) fn start_rest(&self) {
        self.pool.iter().for_each(JoiningPool::start_rest);
    }
}

/// A pool that joins its threads when it is dropped. rayon's own drop does not wait.
#[derive(Debug)]
pub(super) struct JoiningPool {
    // Dropped first, which makes the threads end.
    pub(super) pool: ThreadPool,
    starter: Joiner,
    built: Instant,
}

/// Joins the threads when dropped.
#[derive(Debug)]
struct Joiner(Arc<Starter>);

/// How long after the pool was made a caller spins instead of blocking.
const MOMENT: Duration = Duration::from_micros(50);
/// A caller that has waited this long, or any that waits once the pool is so old, starts the threads that no job has needed; and how
/// many there are then at most. To start them costs more than a short run of tiny tasks.
const LONG: Duration = Duration::from_micros(500);
const OLD: Duration = Duration::from_secs(1);
const READY: usize = 64;

impl JoiningPool {
    /// Builds a pool, and starts its first thread.
    pub(super) fn build(num_threads: usize, name: &str) -> Self {
        let name = if name.is_empty() { "futureproof" } else { name };
        let built = Self::try_build(num_threads, name).and_then(|pool| {
            let starter = &pool.starter.0;
            starter.try_start_another(&mut lock(&starter.unstarted))?;
            Ok(pool)
        });
        built.unwrap_or_else(|error| {
            let asked = match num_threads {
                0 => "the default number of".into(),
                chosen => chosen.to_string(),
            };
            panic!("cannot build a pool of {asked} threads: {error}");
        })
    }

    fn try_build(num_threads: usize, name: &str) -> Result<Self, Box<dyn Error>> {
        let mut unstarted = Vec::new();
        let pool = ThreadPoolBuilder::new()
            .num_threads(num_threads.min(max_num_threads()))
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
            built: now(),
        })
    }

    /// Waits for the first threads to come up. Returns whether `is_over`.
    fn warm_up(&self, is_over: &dyn Fn() -> bool) -> bool {
        // Spins, because blocking and waking up would take as long. Who yields may be away for a whole time slice.
        while now() - self.built < MOMENT {
            if is_over() {
                return true;
            }
            hint::spin_loop();
        }
        false
    }

    fn rest_due(&self) -> Option<Instant> {
        // Nearly always, there is none, and nobody asks for the time.
        if !self.has_rest() {
            return None;
        }
        let now = now();
        let is_old = now - self.built >= OLD;
        Some(if is_old { now } else { now + LONG })
    }

    fn has_rest(&self) -> bool {
        let ready = self.pool.current_num_threads().min(READY);
        self.starter.0.started.load(Ordering::Relaxed) < ready
    }

    #[cfg(not(shuttle))]
    pub(super) fn starter(&self) -> &Arc<Starter> {
        &self.starter.0
    }

    pub(super) fn start_rest(&self) {
        while self.has_rest() && self.starter.0.start_another() {}
    }
}

impl Drop for JoiningPool {
    fn drop(&mut self) {
        // No remaining job starts another thread.
        lock(&self.starter.0.unstarted).clear();
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        let handles = mem::take(&mut *lock(&self.0.handles));
        // A thread of the pool must not wait for itself, nor for others that may wait for it.
        let current = thread::current().id();
        if handles.iter().any(|it| it.thread().id() == current) {
            return;
        }
        for handle in handles {
            // A worker that panicked has aborted the process, so the result says nothing.
            let _ = handle.join();
        }
    }
}

/// Starts the threads of a pool, and keeps their handles.
#[derive(Debug)]
pub(super) struct Starter {
    /// Workers without a thread, the last one first. rayon takes them for busy.
    unstarted: Mutex<Vec<ThreadBuilder>>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    /// Running threads; `usize::MAX` once no more can start.
    started: AtomicUsize,
    /// Jobs that have not begun, and jobs that are running.
    queued: AtomicUsize,
    running: AtomicUsize,
    name: String,
}

impl Starter {
    /// Counts a queued job. Starts a thread if all are busy, as they may be for long.
    pub(super) fn queue(starter: &Arc<Self>) -> Arc<Self> {
        starter.queued.fetch_add(1, Ordering::SeqCst);
        starter.start_if_short();
        Arc::clone(starter)
    }

    /// Runs a job. First makes sure that the jobs queued behind it have a thread, whatever this one does.
    pub(super) fn run(&self, job: impl FnOnce()) {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.queued.fetch_sub(1, Ordering::SeqCst);
        self.start_if_short();
        job();
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    /// Starts a thread if jobs are queued and all threads are busy. If one job begins while another is queued, one of
    /// the two sees the other, because each writes before it reads. The second thread does not wait for the first to be there:
    /// that takes as long as a short run. The others do, so that those that are there share in starting them.
    fn start_if_short(&self) {
        let started = self.started.load(Ordering::SeqCst);
        let running = self.running.load(Ordering::SeqCst);
        let queued = self.queued.load(Ordering::SeqCst);
        if (queued > 0 && running >= started) || (queued > 1 && started == 1) {
            self.start_another();
        }
    }

    /// Starts one more thread. Returns `false` if all have started.
    fn try_start_another(&self, unstarted: &mut Vec<ThreadBuilder>) -> io::Result<bool> {
        let Some(worker) = unstarted.pop() else {
            self.started.store(usize::MAX, Ordering::SeqCst);
            return Ok(false);
        };
        let builder = thread::Builder::new().name(format!("{}-{}", self.name, worker.index()));
        let handle = builder.spawn(|| worker.run())?;
        // Still under the lock of `unstarted`, so that once it is empty all handles are here.
        lock(&self.handles).push(handle);
        self.started.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }

    /// Starts one more thread if possible. If not, logs a warning; at least one thread runs already.
    fn start_another(&self) -> bool {
        let mut unstarted = lock(&self.unstarted);
        match self.try_start_another(&mut unstarted) {
            Ok(has_started) => has_started,
            Err(error) => {
                let left = mem::take(&mut *unstarted).len() + 1;
                self.started.store(usize::MAX, Ordering::SeqCst);
                let started = lock(&self.handles).len();
                drop(unstarted);
                let (name, all) = (&self.name, started + left);
                catch_panic(
                    || warn!(target: TARGET, "{name}: started {started} of {all} threads, and goes on with those: {error}"),
                );
                false
            }
        }
    }
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(pool: &JoiningPool) -> usize {
        lock(&pool.starter.0.handles).len()
    }

    #[test]
    fn threads_start_as_jobs_need_them() {
        let pool = JoiningPool::build(8, "");
        let starter = &pool.starter.0;
        assert_eq!(started(&pool), 1);
        // The first is for one job, the second for two. Then those that are there have to be busy.
        for threads in [1, 2, 2] {
            Starter::queue(starter);
            assert_eq!(started(&pool), threads);
        }
        starter.run(|| {
            assert_eq!(started(&pool), 2);
            starter.run(|| {
                assert_eq!(started(&pool), 3);
                // Nothing is queued behind this one.
                starter.run(|| assert_eq!(started(&pool), 3));
            });
        });
    }

    #[test]
    fn a_new_pool_gives_its_first_job_a_moment() {
        let mut pool = JoiningPool::build(8, "");
        let calls = std::cell::Cell::new(0);
        let third = || calls.replace(calls.get() + 1) == 2;
        pool.built = now() + Duration::from_secs(3_600);
        assert!(pool.warm_up(&third));
        pool.built = now() - 2 * MOMENT;
        assert!(!pool.warm_up(&|| true));
        assert_eq!(started(&pool), 1);
    }

    #[test]
    fn the_remaining_threads_start_when_somebody_has_waited_long() {
        let mut pool = JoiningPool::build(8, "");
        let before = now();
        pool.built = before - OLD / 2;
        assert!(pool.rest_due().is_some_and(|due| due >= before + LONG));
        // Where others go on, nobody waits for long.
        pool.built = before - OLD;
        assert!(pool.rest_due().is_some_and(|due| due <= now()));
        pool.start_rest();
        assert_eq!((started(&pool), pool.rest_due()), (8, None));
    }

    #[test]
    fn no_thread_starts_once_a_pool_is_left() {
        let pool = JoiningPool::build(8, "");
        let starter = Arc::clone(&pool.starter.0);
        drop(pool);
        assert!(!starter.start_another());
    }

    #[test]
    fn more_threads_than_are_of_use_do_not_start_at_once() {
        let pool = JoiningPool::build(READY + 6, "");
        pool.start_rest();
        assert_eq!(started(&pool), READY);
    }

    #[test]
    fn a_pool_knows_its_threads_and_starts_them_for_who_waits() {
        let mut pool = OwnPool::default();
        assert!(!pool.is_current() && !pool.warm_up(&|| true));
        assert_eq!(pool.rest_due(), None);
        assert_eq!(pool.open(2, ""), 2);
        assert!(pool.rest_due().is_some());
        pool.start_rest();
        assert_eq!(pool.rest_due(), None);
        let joining = pool.pool.as_mut().unwrap();
        assert_eq!(joining.pool.install(|| 1), 1);
        joining.built = now() + Duration::from_secs(3_600);
        assert!(pool.warm_up(&|| true));
        assert!(!pool.is_current());
        let pool = Arc::new(pool);
        let (told, is_current) = std::sync::mpsc::channel();
        let same = Arc::clone(&pool);
        pool.spawn(move || {
            told.send(same.is_current()).unwrap();
        });
        assert_eq!(is_current.recv(), Ok(true));
    }
}
