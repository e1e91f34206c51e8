//! When a burst ends in a lull, nothing of the burst waits for more than one pull.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::{pool, soon, watchdog};
use futureproof::prelude::*;

const BURST: usize = 10_000;

#[test]
fn a_burst_has_run_after_one_slow_pull() {
    watchdog(|| {
        let ran = Arc::new(AtomicUsize::new(0));
        let (seen, calls) = (Arc::clone(&ran), Arc::clone(&ran));
        let source = (0..BURST + 4).inspect(move |n| {
            if *n == BURST {
                thread::sleep(Duration::from_millis(20));
            }
            if *n == BURST + 1 {
                assert!(
                    soon(|| seen.load(SeqCst) >= BURST),
                    "only {} have run",
                    seen.load(SeqCst)
                );
            }
        });
        let run = source
            .futureproof(Raise)
            .num_threads(2)
            .map_tasks(infallible(move |_: &usize| {
                calls.fetch_add(1, SeqCst);
            }));
        assert_eq!(run.count(), BURST + 4);
    });
}

#[test]
fn a_burst_is_delivered_after_two_slow_pulls() {
    watchdog(|| {
        let (ran, delivered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, out, calls) = (Arc::clone(&ran), Arc::clone(&delivered), Arc::clone(&ran));
        let source = (0..BURST + 4).inspect(move |n| {
            if *n >= BURST {
                // What was submitted before this pull runs meanwhile.
                thread::sleep(Duration::from_millis(20));
            }
            if *n == BURST + 1 {
                assert!(
                    soon(|| seen.load(SeqCst) >= BURST),
                    "only {} have run",
                    seen.load(SeqCst)
                );
                thread::sleep(Duration::from_millis(20)); // so that the answers are home
            }
            if *n == BURST + 2 {
                assert!(
                    out.load(SeqCst) >= BURST,
                    "only {} were delivered",
                    out.load(SeqCst)
                );
            }
        });
        let run = source
            .futureproof(Raise)
            .num_threads(2)
            .map_tasks(infallible(move |_: &usize| {
                calls.fetch_add(1, SeqCst);
            }));
        for task in run {
            task.unwrap();
            delivered.fetch_add(1, SeqCst);
        }
    });
}

/// Counts the jobs of a pool.
struct Counting(Arc<rayon::ThreadPool>, Arc<AtomicUsize>);

impl futureproof::Spawn<'static> for Counting {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.1.fetch_add(1, SeqCst);
        self.0.spawn(job);
    }
}

/// They would be a job each if nobody looked how long they take.
#[test]
fn tiny_tasks_travel_together() {
    watchdog(|| {
        let jobs = Arc::new(AtomicUsize::new(0));
        let home = Counting(pool(2), Arc::clone(&jobs));
        let run = (0..1_000_000u32).futureproof(Raise).on(home);
        assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 1_000_000);
        let jobs = jobs.load(SeqCst);
        assert!(jobs < 200_000, "{jobs} jobs");
    });
}
