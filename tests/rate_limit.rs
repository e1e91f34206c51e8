//! How often tasks may start.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{FOREVER, MS, pool, watchdog};
use futureproof::prelude::*;
use futureproof::{Bottleneck, Ending};

const SECOND: Duration = Duration::from_secs(1);

/// Each start, further attempts included, comes at its time or later; on a pool of any width, in any order.
#[test]
fn no_task_starts_before_its_time() {
    watchdog(|| {
        for (calls, width, is_ordered) in [(1_000, 1, false), (500, 4, true), (5_000, 2, false)] {
            let starts = Arc::new(Mutex::new(Vec::new()));
            let told = Arc::clone(&starts);
            let tried = Mutex::new(HashMap::new());
            let call = move |n: &u32| {
                told.lock().unwrap().push(Instant::now());
                let mut tried = tried.lock().unwrap();
                let times = tried.entry(*n).or_insert(0);
                *times += 1;
                if n % 5 == 0 && *times < 3 {
                    Err("busy")
                } else {
                    Ok(*n)
                }
            };
            let run = (0..50u32)
                .futureproof(Raise)
                .num_threads(width)
                .rate_limit(calls, SECOND);
            let run = if is_ordered { run.ordered() } else { run };
            let run = run.map_tasks(call).retry(|| [Duration::ZERO; 2]);
            let begin = Instant::now();
            assert_eq!(run.map(|task| task.unwrap().output).sum::<u32>(), 49 * 25);
            let starts = starts.lock().unwrap();
            assert_eq!(starts.len(), 50 + 2 * 10);
            for (n, start) in starts.iter().enumerate() {
                let due = (SECOND / calls) * n as u32;
                assert!(
                    *start - begin + MS >= due,
                    "{n} starts {:?} too early",
                    due - (*start - begin)
                );
            }
        }
    });
}

/// Tasks that take longer than they are apart are not queued, to start in a burst later.
#[test]
fn slow_tasks_leave_no_queue_behind() {
    watchdog(|| {
        let starts = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&starts);
        let call = move |n: &u32| {
            told.lock().unwrap().push(Instant::now());
            if *n < 2 {
                thread::sleep(200 * MS);
            }
        };
        let run = (0..8u32)
            .futureproof(Raise)
            .num_threads(2)
            .rate_limit(25, SECOND);
        assert_eq!(run.map_tasks(infallible(call)).count(), 8);
        let starts = starts.lock().unwrap();
        // The third has to wait for a thread. From then on they are 40 ms apart: 200 ms in all, less what the third is late.
        let time = starts[7] - starts[2];
        assert!(time >= 120 * MS, "{time:?}");
    });
}

#[test]
fn tasks_that_wait_for_their_time_hold_no_worker_and_a_stop_beats_them() {
    watchdog(|| {
        let one = pool(1);
        let token = CancellationToken::new();
        let run = (0..10u32).futureproof(Raise).on(Arc::clone(&one));
        let run = run.rate_limit(1, FOREVER).cancel_on(&token);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        assert_eq!(run.next().unwrap().unwrap().output, 0);
        // Another run has the pool's only thread.
        let start = Instant::now();
        let other = (0..10u32).futureproof(Raise).on(Arc::clone(&one));
        assert_eq!(other.map_tasks(infallible(|n: &u32| *n)).count(), 10);
        // The wait is to be the longest part, also where the machine is busy with others.
        let wait = 20 * MS + 4 * start.elapsed();
        let stop = thread::spawn(move || {
            thread::sleep(wait);
            token.cancel();
        });
        assert!(run.next().is_none());
        stop.join().unwrap();
        assert_eq!(run.ending(), Some(Ending::Cancelled));
        assert_eq!(run.report().bottleneck(), Bottleneck::RateLimit);
        let rest = run.into_remainder();
        assert_eq!(rest.unprocessed.len() + rest.source.count(), 9);

        // By its deadline, by a drop, and with an attempt that waits for its time.
        let run = (0..10u32)
            .futureproof(Ignore)
            .rate_limit(1, FOREVER)
            .deadline(20 * MS);
        let mut run = run
            .map_tasks(|_| Err::<(), _>("busy"))
            .retry(|| [Duration::ZERO; 3]);
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
        let mut run = (0..10u32)
            .futureproof(Raise)
            .rate_limit(1, FOREVER)
            .map_tasks(infallible(|n: &u32| *n));
        assert!(run.next().is_some());
        drop(run);
    });
}

#[test]
fn a_failure_ends_what_waits_for_its_time() {
    watchdog(|| {
        let run = (0..10u32).futureproof(Raise).rate_limit(1, FOREVER);
        let mut run = run.map_tasks(|_| Err::<(), _>("broken"));
        assert!(run.next().unwrap().is_err());
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Failed));
    });
}

/// A queue that is filled while nothing may start, and a source that is read ahead.
#[test]
fn other_sources_are_limited_as_well() {
    watchdog(|| {
        let queue = Queue::from_iter([6u32]);
        let run = queue.source().futureproof(Raise).rate_limit(1_000, SECOND);
        let begin = Instant::now();
        let mut count = 0;
        for task in run.map_tasks(infallible(|n: &u32| *n)) {
            count += 1;
            let n = task.unwrap().output;
            (&queue).extend((0..2).filter(|_| n > 1).map(|_| n / 2));
        }
        assert_eq!(count, 1 + 2 + 4);
        assert!(begin.elapsed() >= 6 * MS);
        let run = (0..20u32)
            .read_ahead(4)
            .futureproof(Raise)
            .rate_limit(1_000, SECOND);
        let begin = Instant::now();
        assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 20);
        assert!(begin.elapsed() >= 19 * MS);
    });
}

/// The limit is of the first stage.
#[test]
fn stages_begin_at_their_time() {
    watchdog(|| {
        let pass = |n: &u32| Ok::<_, ()>(*n);
        let run = (0..20u32).futureproof(Raise).rate_limit(1_000, SECOND);
        let begin = Instant::now();
        assert_eq!(run.stage(pass).map_tasks(pass).flatten().count(), 20);
        assert!(begin.elapsed() >= 19 * MS);
    });
}

/// What waits for the first stage is not saved up, however many threads the next one has.
#[test]
fn slow_tasks_of_the_first_of_two_stages_leave_no_queue_behind() {
    watchdog(|| {
        let starts = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&starts);
        let call = move |n: &u32| {
            told.lock().unwrap().push(Instant::now());
            if *n == 0 {
                thread::sleep(300 * MS);
            }
            Ok::<_, String>(*n)
        };
        let run = (0..8u32)
            .futureproof(Raise)
            .num_threads(1)
            .rate_limit(25, SECOND);
        let run = run.stage(call).num_threads(16).map_tasks(|n: &u32| Ok(*n));
        assert_eq!(run.flatten().count(), 8);
        let starts = starts.lock().unwrap();
        // From the second one on they are 40 ms apart.
        let time = starts[7] - starts[1];
        assert!(time >= 200 * MS, "{time:?}");
    });
}

/// What was held behind another task of its key may start when that one ends; but not before its time.
#[test]
fn what_is_held_no_longer_waits_for_its_time() {
    watchdog(|| {
        let run = (0..6u32).futureproof(Raise).num_threads(2);
        let run = run.rate_limit(50, SECOND).by_key(|_| "all");
        let start = Instant::now();
        let call = |n: &u32| thread::sleep(if *n == 0 { 120 * MS } else { Duration::ZERO });
        assert_eq!(run.map_tasks(infallible(call)).count(), 6);
        // The second starts when the first has ended; each of the others 20 ms after the one before.
        assert!(start.elapsed() >= 195 * MS);
    });
}
