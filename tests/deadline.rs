//! A deadline ends the whole run, counted from the first `next`.

mod common;

use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{FOREVER, watchdog};
use futureproof::Ending;
use futureproof::prelude::*;

#[test]
fn deadline_of_zero_runs_nothing() {
    let run = (0..10).futureproof(Raise).deadline(Duration::ZERO);
    let mut run = run.map_tasks(|_: &i32| -> Result<(), ()> { panic!("a task was run") });
    assert!(run.next().is_none());
    assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
    assert!(run.next().is_none());
    let remainder = run.into_remainder();
    assert!(remainder.finished.is_empty());
    assert_eq!(remainder.unprocessed.len() + remainder.source.count(), 10);
}

#[test]
fn longest_deadline_never_passes() {
    let run = (0..100).futureproof(Raise).deadline(Duration::MAX);
    let mut run = run.map_tasks(infallible(|n: &i32| *n));
    assert_eq!(run.by_ref().count(), 100);
    assert_eq!(run.ending(), Some(Ending::Exhausted));
}

#[test]
fn deadline_wakes_a_blocked_consumer() {
    watchdog(|| {
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let run = (0..10u32)
            .futureproof(Raise)
            .num_threads(2)
            .deadline(Duration::from_millis(50));
        let mut run = run.map_tasks(infallible(move |_: &u32| {
            let _ = released.lock().unwrap().recv();
        }));
        let start = Instant::now();
        assert!(run.next().is_none());
        assert!(start.elapsed() >= Duration::from_millis(50));
        assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
        // It has not waited for the calls: they could end only from here on.
        assert!(run.next().is_none());
        drop(release);
        let remainder = run.into_remainder();
        assert!(remainder.finished.len() <= 2);
        let left = remainder.finished.len() + remainder.unprocessed.len();
        assert_eq!(left + remainder.source.count(), 10);
    });
}

#[test]
fn deadline_ends_an_endless_run() {
    watchdog(|| {
        for chunk in [0, 1] {
            let run = (0u64..)
                .futureproof(Raise)
                .chunk_size(chunk)
                .deadline(Duration::from_millis(20));
            let mut run = run.map_tasks(infallible(|n: &u64| *n));
            run.by_ref().for_each(drop);
            assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
        }
    });
}

#[test]
fn deadline_counts_from_the_first_next() {
    let run = (0..10u32)
        .futureproof(Raise)
        .deadline(Duration::from_secs(1));
    let mut run = run.map_tasks(infallible(|n: &u32| *n));
    thread::sleep(Duration::from_millis(1_100));
    assert_eq!(run.by_ref().count(), 10);
    assert_eq!(run.ending(), Some(Ending::Exhausted));
}

#[test]
fn deadline_after_the_end_changes_nothing() {
    let run = (0..2u32).futureproof(Raise).deadline(FOREVER);
    let mut run = run.map_tasks(|_| Err::<(), _>("broken"));
    assert!(run.next().unwrap().is_err());
    assert!(run.next().is_none());
    assert_eq!(run.ending(), Some(Ending::Failed));
}

#[test]
fn cancel_comes_before_a_deadline_that_has_not_passed() {
    let token = CancellationToken::new();
    let run = (0u64..)
        .futureproof(Raise)
        .cancel_on(&token)
        .deadline(FOREVER);
    let mut run = run.map_tasks(infallible(|n: &u64| *n));
    assert!(run.next().is_some());
    token.cancel();
    assert!(run.next().is_none());
    assert_eq!(run.ending(), Some(Ending::Cancelled));
}
