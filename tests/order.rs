//! Completion order by default, the source's order on request.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{Gate, watchdog};
use futureproof::Ending;
use futureproof::prelude::*;

#[test]
fn ordered_equals_input_order_whatever_finishes_first() {
    watchdog(|| {
        for chunk in [0, 1, 3] {
            let outputs: Vec<u64> = (0..500u64)
                .futureproof(Raise)
                .num_threads(4)
                .chunk_size(chunk)
                .ordered()
                .map_tasks(infallible(|n: &u64| {
                    (0..n * 7919 % 50).for_each(|_| thread::yield_now());
                    *n
                }))
                .map(|task| task.unwrap().output)
                .collect();
            assert!(outputs.into_iter().eq(0..500));
        }
    });
}

#[test]
fn unordered_delivers_the_fastest_first() {
    // As Elixir's async_stream "ordered: false": here each task waits for the one after it.
    watchdog(|| {
        let gates: Arc<Vec<_>> = Arc::new((0..4).map(|_| Gate::default()).collect());
        gates[3].open();
        let inside = Arc::clone(&gates);
        let run = (0..4usize)
            .futureproof(Raise)
            .num_threads(4)
            .chunk_size(1)
            .map_tasks(infallible(move |n: &usize| inside[*n].pass()));
        let mut inputs = Vec::new();
        for task in run {
            let n = task.unwrap().input;
            inputs.push(n);
            if n > 0 {
                gates[n - 1].open();
            }
        }
        assert_eq!(inputs, [3, 2, 1, 0]);
    });
}

#[test]
fn one_worker_gives_the_source_order() {
    for chunk in [0, 1, 7] {
        let run = (0..200u32)
            .futureproof(Raise)
            .num_threads(1)
            .chunk_size(chunk);
        let run = run.map_tasks(infallible(|n: &u32| *n));
        assert!(run.map(|task| task.unwrap().output).eq(0..200));
    }
}

#[test]
fn equals_the_sequential_map_for_chunks_of_1_and_3() {
    for chunk in [1, 3] {
        let run = (0..10i32).futureproof(Raise).chunk_size(chunk).ordered();
        let run = run.map_tasks(infallible(|n: &i32| n.pow(3)));
        assert!(
            run.map(|task| task.unwrap().output)
                .eq((0..10).map(|n: i32| n.pow(3)))
        );
    }
}

#[test]
fn ordered_raise_yields_every_task_before_the_failed_one() {
    watchdog(|| {
        for chunk in [0, 1, 3] {
            // The failure happens while all the tasks before it still run, or have not even started.
            let gate = Gate::default();
            let (hold, release) = (gate.clone(), gate.clone());
            let mut run = (0..1_000u32)
                .futureproof(Raise)
                .num_threads(2)
                .chunk_size(chunk)
                .ordered()
                .map_tasks(move |n: &u32| {
                    match n {
                        0 if chunk == 1 => hold.pass(),
                        12 => {
                            release.open();
                            return Err("the failed one");
                        }
                        _ => {}
                    }
                    Ok(*n)
                });
            let results: Vec<_> = run.by_ref().collect();
            assert_eq!(results.len(), 13, "chunks of {chunk}");
            for (n, result) in results.iter().enumerate().take(12) {
                assert_eq!(result.as_ref().unwrap().index, n as u64);
            }
            let failure = results[12].as_ref().unwrap_err();
            assert_eq!(
                (failure.index(), failure.error()),
                (12, Some(&"the failed one"))
            );
            assert!(run.next().is_none());
            assert_eq!(run.ending(), Some(Ending::Failed));
        }
    });
}

#[test]
fn ordered_raise_reports_the_first_failure_in_order() {
    watchdog(|| {
        // The later failure happens first.
        let gate = Gate::default();
        let (hold, release) = (gate.clone(), gate.clone());
        let run = (0..10u32)
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(1)
            .ordered()
            .map_tasks(move |n: &u32| match n {
                0 => {
                    hold.pass();
                    Err(*n)
                }
                1 => {
                    release.open();
                    Err(*n)
                }
                _ => Ok(()),
            });
        let results: Vec<_> = run.collect();
        assert_eq!(results.len(), 1);
        assert_eq!(results[0].as_ref().unwrap_err().error(), Some(&0));
    });
}

#[test]
fn ordered_raise_waits_for_the_retries_of_earlier_tasks() {
    watchdog(|| {
        let calls = AtomicUsize::new(0);
        let run = (0..50u32)
            .futureproof(Raise)
            .num_threads(3)
            .chunk_size(1)
            .ordered()
            .map_tasks(move |n: &u32| match n {
                2 if calls.fetch_add(1, Ordering::SeqCst) < 3 => Err("busy"),
                5 => panic!("expected"),
                _ => Ok(*n),
            })
            .retry(|| [Duration::from_millis(1); 3]);
        let results: Vec<_> = run.collect();
        assert_eq!(results.len(), 6);
        assert!(results[..5].iter().all(Result::is_ok));
        assert!(results[5].as_ref().unwrap_err().is_panic());
    });
}

#[test]
fn slow_head_stops_new_starts_beyond_the_window() {
    watchdog(|| {
        const WINDOW: usize = 8;
        let gate = Gate::default();
        let (hold, started) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
        let (others_done, count) = (Gate::default(), Arc::clone(&started));
        let announce = others_done.clone();
        let pulled = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&pulled);
        let source = (0..100usize).inspect(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let mut run = source
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(1)
            .max_in_flight(WINDOW)
            .ordered()
            .map_tasks(infallible(move |n: &usize| {
                if count.fetch_add(1, Ordering::SeqCst) + 1 == WINDOW {
                    announce.open();
                }
                if *n == 0 {
                    hold.pass();
                }
            }));
        let progress = run.progress();
        let watcher = {
            let (started, gate) = (Arc::clone(&started), gate.clone());
            thread::spawn(move || {
                others_done.pass();
                while progress.snapshot().completed() < WINDOW as u64 - 1 {
                    thread::yield_now();
                }
                // All but the head are finished, and nothing more starts while it runs.
                let seen = (
                    started.load(Ordering::SeqCst),
                    pulled.load(Ordering::SeqCst),
                );
                gate.open();
                seen
            })
        };
        assert_eq!(run.next().unwrap().unwrap().index, 0);
        assert_eq!(watcher.join().unwrap(), (WINDOW, WINDOW));
        assert_eq!(run.count(), 99);
    });
}

#[test]
fn tolerated_failures_are_counted_in_order() {
    watchdog(|| {
        for chunk in [0, 1, 4] {
            let mut run = (0..1_000u32)
                .futureproof(Tolerate(3))
                .num_threads(4)
                .chunk_size(chunk)
                .ordered()
                .map_tasks(|n| if n % 10 == 9 { Err(*n) } else { Ok(*n) });
            let results: Vec<_> = run.by_ref().collect();
            // The fourth failure is the one of item 39, whichever happened first.
            assert_eq!(results.len(), 40, "chunks of {chunk}");
            let failed: Vec<_> = results
                .iter()
                .filter_map(|result| result.as_ref().err())
                .collect();
            assert!(
                failed
                    .iter()
                    .map(|error| *error.input())
                    .eq([9, 19, 29, 39])
            );
            assert_eq!(run.ending(), Some(Ending::Failed));
        }
    });
}

#[test]
fn an_error_at_item_50_is_the_error() {
    for _ in 0..if cfg!(miri) { 2 } else { 50 } {
        let run = (0..1_000u32).futureproof(Raise).num_threads(4).ordered();
        let run = run.map_tasks(|n| if *n < 50 { Ok(*n) } else { Err(*n) });
        let result: Result<Vec<_>, _> = run.collect();
        assert_eq!(result.unwrap_err().error(), Some(&50));
    }
    let run = (0..1_000u32).futureproof(Raise).num_threads(4).ordered();
    let result: Result<Vec<_>, _> = run.map_tasks(infallible(|n: &u32| *n)).collect();
    assert_eq!(result.unwrap().len(), 1_000);
}

#[test]
fn one_thread_stops_at_the_panic() {
    // As rayon's iter_panic_fuse: fewer calls than without it.
    for chunk in [0, 1, 7] {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let run = (0..1_000u32)
            .futureproof(Raise)
            .num_threads(1)
            .chunk_size(chunk);
        let run = run.map_tasks(infallible(move |n: &u32| {
            count.fetch_add(1, Ordering::SeqCst);
            if *n == 500 {
                std::panic::resume_unwind(Box::new("expected"));
            }
        }));
        assert_eq!(run.count(), 501);
        assert_eq!(calls.load(Ordering::SeqCst), 501);
    }
}
