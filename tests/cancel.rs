//! A cancelled token stops its runs: nothing more starts, and whoever waits wakes up.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

#[cfg(unix)]
use common::Gate;
#[cfg(unix)]
use common::child::Child;
use common::watchdog;
use futureproof::Ending;
use futureproof::prelude::*;

#[test]
fn cancel_wakes_a_blocked_consumer() {
    watchdog(|| {
        for threads in [1, 3] {
            // Every call runs until after the consumer has woken up.
            let token = CancellationToken::new();
            let (release, released) = mpsc::channel::<()>();
            let (started, has_started) = mpsc::channel();
            let released = Mutex::new(released);
            let run = (0u64..)
                .futureproof(Raise)
                .num_threads(threads)
                .cancel_on(&token);
            let mut run = run.map_tasks(infallible(move |_: &u64| {
                let _ = started.send(());
                let _ = released.lock().unwrap().recv();
            }));
            let canceller = thread::spawn(move || {
                has_started.recv().unwrap();
                token.cancel();
            });
            assert!(run.next().is_none());
            assert_eq!(run.ending(), Some(Ending::Cancelled));
            assert!(run.next().is_none());
            drop(release);
            canceller.join().unwrap();
            drop(run);
        }
    });
}

#[test]
fn token_cancelled_beforehand_never_touches_the_source() {
    let token = CancellationToken::new();
    token.cancel();
    let source = std::iter::from_fn(|| -> Option<i32> { panic!("the source was pulled") });
    let run = source.futureproof(Raise).cancel_on(&token);
    let mut run = run.map_tasks(infallible(|_: &i32| ()));
    assert!(run.next().is_none());
    assert_eq!(run.ending(), Some(Ending::Cancelled));
    let remainder = run.into_remainder();
    assert!(remainder.finished.is_empty() && remainder.unprocessed.is_empty());
}

#[test]
fn cancel_before_the_next_step_delivers_nothing_more() {
    let token = CancellationToken::new();
    let run = (0..100u32)
        .futureproof(Ignore)
        .cancel_on(&token)
        .chunk_size(50);
    let mut run = run.map_tasks(infallible(|n: &u32| *n));
    assert!(run.next().is_some());
    // Most of a chunk is there to be delivered.
    token.cancel();
    assert!(run.next().is_none());
    assert!(run.next().is_none());
    assert_eq!(run.size_hint(), (0, Some(0)));
}

#[test]
fn one_token_stops_many_runs() {
    watchdog(|| {
        let token = CancellationToken::new();
        let start = || {
            let run = (0u64..).futureproof(Raise).num_threads(1).cancel_on(&token);
            run.map_tasks(infallible(|n: &u64| *n))
        };
        let mut runs = [start(), start(), start()];
        for run in &mut runs[..2] {
            assert!(run.next().is_some());
        }
        token.cancel();
        for mut run in runs {
            assert!(run.next().is_none());
            assert_eq!(run.ending(), Some(Ending::Cancelled));
        }
    });
}

#[test]
fn one_token_stops_runs_on_other_threads() {
    watchdog(|| {
        let token = CancellationToken::new();
        let (going, is_going) = mpsc::channel();
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let (token, going) = (token.clone(), going.clone());
                thread::spawn(move || {
                    let run = (0u64..).futureproof(Raise).num_threads(1).cancel_on(&token);
                    let mut run = run.map_tasks(infallible(|n: &u64| *n));
                    assert!(run.next().is_some());
                    going.send(()).unwrap();
                    run.by_ref().for_each(drop);
                    run.ending()
                })
            })
            .collect();
        is_going.iter().take(3).for_each(drop);
        token.cancel();
        for consumer in consumers {
            assert_eq!(consumer.join().unwrap(), Some(Ending::Cancelled));
        }
    });
}

#[test]
fn task_may_cancel_its_own_run() {
    watchdog(|| {
        for chunk in [0, 1, 4] {
            let token = CancellationToken::new();
            let inside = token.clone();
            let started = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&started);
            let run = (0u64..)
                .futureproof(Raise)
                .num_threads(2)
                .chunk_size(chunk)
                .cancel_on(&token);
            let mut run = run.map_tasks(infallible(move |n: &u64| {
                // Two workers: one may have looked at the token just before, and start one call more.
                count.fetch_add(usize::from(inside.is_cancelled()), Ordering::SeqCst);
                if *n == 100 {
                    inside.cancel();
                }
            }));
            run.by_ref().for_each(drop);
            assert_eq!(run.ending(), Some(Ending::Cancelled));
            drop(run);
            assert!(started.load(Ordering::SeqCst) <= 1);
        }
    });
}

#[test]
fn cancelling_twice_is_cancelling_once() {
    let token = CancellationToken::new();
    let run = (0u64..).futureproof(Raise).cancel_on(&token);
    let mut run = run.map_tasks(infallible(|n: &u64| *n));
    assert!(run.next().is_some());
    token.cancel();
    token.clone().cancel();
    assert!(token.is_cancelled());
    assert!(run.next().is_none());
    token.cancel();
    assert!(run.next().is_none());
    assert_eq!(run.ending(), Some(Ending::Cancelled));
}

#[test]
fn cancel_after_the_end_changes_nothing() {
    let token = CancellationToken::new();
    let run = (0..10).futureproof(Raise).cancel_on(&token);
    let mut run = run.map_tasks(infallible(|n: &i32| *n));
    assert_eq!(run.by_ref().count(), 10);
    token.cancel();
    assert!(run.next().is_none());
    assert_eq!(run.ending(), Some(Ending::Exhausted));

    let token = CancellationToken::new();
    let run = (0..10).futureproof(Raise).cancel_on(&token);
    let mut run = run.map_tasks(|_: &i32| Err::<(), _>(()));
    assert!(run.next().unwrap().is_err());
    token.cancel();
    assert!(run.next().is_none());
    assert_eq!(run.ending(), Some(Ending::Failed));
}

#[test]
fn at_most_one_call_per_worker_runs_on_after_a_cancel() {
    watchdog(|| {
        const THREADS: usize = 3;
        let token = CancellationToken::new();
        let started = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&started);
        let (arrived, arrivals) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let run = (0u64..)
            .futureproof(Raise)
            .num_threads(THREADS)
            .chunk_size(4)
            .cancel_on(&token);
        let mut run = run.map_tasks(infallible(move |_: &u64| {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = arrived.send(());
            let _ = released.lock().unwrap().recv();
        }));
        let canceller = thread::spawn(move || {
            arrivals.iter().take(THREADS).for_each(drop);
            token.cancel();
            drop(release);
        });
        assert!(run.next().is_none());
        canceller.join().unwrap();
        let remainder = run.into_remainder();
        assert_eq!(started.load(Ordering::SeqCst), THREADS);
        assert_eq!(remainder.finished.len(), THREADS);
    });
}

#[test]
fn cancel_while_the_source_is_pulled_stops_after_that_pull() {
    let token = CancellationToken::new();
    let inside = token.clone();
    let source = (0u32..).inspect(move |n| {
        assert!(*n <= 5, "pulled after the cancel");
        if *n == 5 {
            inside.cancel();
        }
    });
    let run = source.futureproof(Raise).chunk_size(1).cancel_on(&token);
    let mut run = run.map_tasks(infallible(|n: &u32| *n));
    assert!(run.by_ref().count() <= 6);
    assert_eq!(run.ending(), Some(Ending::Cancelled));
}

#[test]
fn dropping_the_token_does_not_cancel() {
    let token = CancellationToken::new();
    let run = (0..100).futureproof(Raise).cancel_on(&token);
    let run = run.map_tasks(infallible(|n: &i32| *n));
    drop(token);
    assert_eq!(run.count(), 100);
}

#[cfg(unix)]
#[test]
fn an_interrupt_that_cancels_lets_what_runs_finish() {
    Child::new("").signal("-INT").must_survive(|| {
        let (token, gate) = (CancellationToken::new(), Gate::default());
        let (stop, inside) = (token.clone(), gate.clone());
        ctrlc::set_handler(move || {
            stop.cancel();
            inside.open();
        })
        .unwrap();
        let finished = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&finished);
        let run = (0u64..).futureproof(Raise).num_threads(2).cancel_on(&token);
        let mut run = run.map_tasks(infallible(move |n: &u64| {
            if *n == 0 {
                println!("\nready");
                gate.pass();
                count.fetch_add(1, Ordering::SeqCst);
            }
        }));
        run.by_ref().for_each(drop);
        assert_eq!(run.ending(), Some(Ending::Cancelled));
        drop(run);
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    });
}
