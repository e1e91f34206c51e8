//! As much of a rayon pool as a run's own pool needs, on shuttle's primitives: one queue, and threads that take
//! jobs from it until the pool is gone and the queue is empty.
//!
//! In place of the real one with `--cfg shuttle` (see `src/sync.rs`).

use shuttle::sync::{Condvar, Mutex};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

pub(crate) use rayon_core::max_num_threads;

type Job = Box<dyn FnOnce() + Send>;

struct Registry {
    /// The jobs, and whether the pool is gone.
    jobs: Mutex<(VecDeque<Job>, bool)>,
    came: Condvar,
}

shuttle::thread_local! {
    static CURRENT: RefCell<Option<(Arc<Registry>, usize)>> = RefCell::new(None);
}

pub(crate) struct ThreadBuilder {
    registry: Arc<Registry>,
    index: usize,
}

impl ThreadBuilder {
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    pub(crate) fn run(self) {
        CURRENT.with(|current| {
            *current.borrow_mut() = Some((Arc::clone(&self.registry), self.index));
        });
        loop {
            let mut jobs = self.registry.jobs.lock().unwrap();
            let job = loop {
                match jobs.0.pop_front() {
                    Some(job) => break job,
                    None if jobs.1 => return,
                    None => jobs = self.registry.came.wait(jobs).unwrap(),
                }
            };
            drop(jobs);
            job();
        }
    }
}

pub(crate) struct ThreadPool {
    registry: Arc<Registry>,
    num_threads: usize,
}

impl ThreadPool {
    pub(crate) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.registry
            .jobs
            .lock()
            .unwrap()
            .0
            .push_back(Box::new(job));
        self.registry.came.notify_one();
    }

    pub(crate) fn current_num_threads(&self) -> usize {
        self.num_threads
    }

    pub(crate) fn current_thread_index(&self) -> Option<usize> {
        CURRENT.with(|current| {
            let current = current.borrow();
            let (registry, index) = current.as_ref()?;
            Arc::ptr_eq(registry, &self.registry).then_some(*index)
        })
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.registry.jobs.lock().unwrap().1 = true;
        self.registry.came.notify_all();
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ThreadPool")
    }
}

impl fmt::Debug for ThreadBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ThreadBuilder")
    }
}

pub(crate) struct ThreadPoolBuilder<S = ()> {
    num_threads: usize,
    spawn: S,
}

impl ThreadPoolBuilder {
    pub(crate) fn new() -> Self {
        Self {
            num_threads: 0,
            spawn: (),
        }
    }

    pub(crate) fn num_threads(self, num_threads: usize) -> Self {
        Self {
            num_threads,
            ..self
        }
    }

    pub(crate) fn spawn_handler<S>(self, spawn: S) -> ThreadPoolBuilder<S> {
        ThreadPoolBuilder {
            num_threads: self.num_threads,
            spawn,
        }
    }
}

impl<S: FnMut(ThreadBuilder) -> io::Result<()>> ThreadPoolBuilder<S> {
    pub(crate) fn build(mut self) -> io::Result<ThreadPool> {
        let registry = Arc::new(Registry {
            jobs: Mutex::default(),
            came: Condvar::new(),
        });
        for index in 0..self.num_threads {
            (self.spawn)(ThreadBuilder {
                registry: Arc::clone(&registry),
                index,
            })?;
        }
        Ok(ThreadPool {
            registry,
            num_threads: self.num_threads,
        })
    }
}
