//! Tools that the tests share.
#![allow(dead_code)] // Each test file uses some of them.

pub(crate) mod child;
pub(crate) mod lines;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futureproof::{CancellationToken, Spawn};
use rayon::ThreadPool;

pub(crate) const MS: Duration = Duration::from_millis(1);

/// No test takes this long.
pub(crate) const FOREVER: Duration = Duration::from_secs(3_600);

/// Shut until it is opened, then open for ever.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until the gate is open.
    pub(crate) fn pass(&self) {
        drop(
            self.0
                .1
                .wait_while(self.0.0.lock().unwrap(), |open| !*open)
                .unwrap(),
        );
    }
}

/// Waits until the task that calls this is told that nobody wants it any more.
pub(crate) fn until_told() {
    let told = Gate::default();
    let tell = told.clone();
    let _listener = CancellationToken::current().on_cancel(move || tell.open());
    told.pass();
}

/// Counts what was made and what was dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<(AtomicUsize, AtomicUsize)>);

impl Tally {
    pub(crate) fn token(&self) -> Token {
        self.0.0.fetch_add(1, SeqCst);
        Token(self.clone())
    }

    pub(crate) fn made(&self) -> usize {
        self.0.0.load(SeqCst)
    }

    pub(crate) fn dropped(&self) -> usize {
        self.0.1.load(SeqCst)
    }

    pub(crate) fn alive(&self) -> usize {
        // In this order, as either may grow meanwhile.
        let dropped = self.dropped();
        self.made() - dropped
    }

    pub(crate) fn assert_all_dropped_once(&self) {
        // A source that is read ahead goes on its own thread.
        soon(|| self.made() == self.dropped());
        assert_eq!(self.made(), self.dropped(), "made and dropped");
    }
}

/// Tells its tally when it is dropped.
#[derive(Debug)]
pub(crate) struct Token(Tally);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.0.1.fetch_add(1, SeqCst);
    }
}

/// Panics when it is dropped, unless its thread does already.
#[derive(Debug)]
pub(crate) struct Brittle;

impl Drop for Brittle {
    fn drop(&mut self) {
        if !thread::panicking() {
            resume_unwind(Box::new("a destructor"));
        }
    }
}

pub(crate) fn pool(num_threads: usize) -> Arc<ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads);
    Arc::new(pool.build().unwrap())
}

/// Runs a job where it is handed over.
pub(crate) struct Inline;

impl Spawn<'static> for Inline {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        job();
    }
}

/// Starts a thread for each job.
pub(crate) struct AThreadEach;

impl Spawn<'static> for AThreadEach {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        thread::spawn(job);
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Runs `f` on a thread of its own; panics if it panics, or takes more than 60 s; less where it hangs on purpose.
pub(crate) fn watchdog<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    let patience = if cfg!(seeded_bugs) { 15 } else { 60 };
    watchdog_of(Duration::from_secs(patience), f)
}

/// The same with another patience.
pub(crate) fn watchdog_of<R: Send + 'static>(
    patience: Duration,
    f: impl FnOnce() -> R + Send + 'static,
) -> R {
    let (sender, done) = mpsc::channel();
    let thread = thread::spawn(move || {
        let result = f();
        sender.send(()).unwrap();
        result
    });
    if done.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
        panic!("hangs");
    }
    thread
        .join()
        .unwrap_or_else(|payload| resume_unwind(payload))
}

/// Waits until `condition` holds; `false` if it does not within 5 s.
pub(crate) fn soon(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// The ids of this process's threads whose names start so (15 bytes of a name are kept).
#[cfg(target_os = "linux")]
pub(crate) fn threads_named(prefix: &str) -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let ids = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
    ids.filter(|id| {
        std::fs::read_to_string(format!("/proc/self/task/{id}/comm"))
            .is_ok_and(|name| name.starts_with(prefix))
    })
    .collect()
}

/// How long this process's threads whose names start so have had a processor.
#[cfg(target_os = "linux")]
pub(crate) fn processor_time_of(prefix: &str) -> Duration {
    let time = |id: String| {
        let text = std::fs::read_to_string(format!("/proc/self/task/{id}/schedstat")).ok()?;
        let nanos = text.split_whitespace().next()?.parse().ok()?;
        Some(Duration::from_nanos(nanos))
    };
    threads_named(prefix).into_iter().filter_map(time).sum()
}
