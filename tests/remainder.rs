//! What a stopped run has not delivered, it hands back.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{FOREVER, watchdog};
use futureproof::prelude::*;
use futureproof::{Ending, Remainder};

/// Every index once, from 0 on: what was delivered, what is left, and the rest of the source.
fn is_complete<E>(
    delivered: impl IntoIterator<Item = u64>,
    remainder: Remainder<impl Iterator<Item = u64>, u64, E>,
    count: u64,
) {
    let mut all: Vec<u64> = delivered.into_iter().collect();
    for result in &remainder.finished {
        all.push(match result {
            Ok(task) => task.index,
            Err(error) => error.index(),
        });
    }
    assert!(remainder.unprocessed.is_sorted());
    for (index, input) in &remainder.unprocessed {
        assert_eq!(index, input);
        all.push(*index);
    }
    all.extend(remainder.source);
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..count), "{all:?}");
}

#[test]
fn run_that_never_began_gives_its_source_back() {
    let run = (0..10u64)
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u64| *n));
    let remainder = run.into_remainder();
    assert!(remainder.finished.is_empty() && remainder.unprocessed.is_empty());
    assert_eq!(remainder.source, 0..10);
}

#[test]
fn exhausted_run_leaves_nothing() {
    for is_ordered in [false, true] {
        let run = (0..100u64).futureproof(Raise);
        let run = if is_ordered { run.ordered() } else { run };
        let mut run = run.map_tasks(infallible(|n: &u64| *n));
        assert_eq!(run.by_ref().count(), 100);
        let remainder = run.into_remainder();
        assert!(remainder.finished.is_empty() && remainder.unprocessed.is_empty());
        assert_eq!(remainder.source.count(), 0);
    }
}

#[test]
fn run_left_at_any_step_hands_back_the_rest() {
    watchdog(|| {
        for chunk in [0, 1, 3, 16] {
            for is_ordered in [false, true] {
                for step in 0..30 {
                    let run = (0..60u64)
                        .futureproof(Ignore)
                        .num_threads(2)
                        .chunk_size(chunk);
                    let run = if is_ordered { run.ordered() } else { run };
                    let mut run = run.map_tasks(|n| if n % 5 == 0 { Err(*n) } else { Ok(*n) });
                    let delivered: Vec<_> = run
                        .by_ref()
                        .take(step)
                        .map(|result| result.map_or_else(|error| error.index(), |task| task.index))
                        .collect();
                    assert_eq!(delivered.len(), step);
                    is_complete(delivered, run.into_remainder(), 60);
                }
            }
        }
    });
}

#[test]
fn failed_run_hands_back_the_rest() {
    watchdog(|| {
        for chunk in [0, 1, 8] {
            for policy in [Raise, Tolerate(2)] {
                for is_ordered in [false, true] {
                    let run = (0..200u64)
                        .futureproof(policy)
                        .num_threads(3)
                        .chunk_size(chunk);
                    let run = if is_ordered { run.ordered() } else { run };
                    let mut run = run.map_tasks(|n| if n % 20 == 19 { Err(*n) } else { Ok(*n) });
                    let delivered: Vec<_> = run
                        .by_ref()
                        .map(|result| result.map_or_else(|error| error.index(), |task| task.index))
                        .collect();
                    assert_eq!(run.ending(), Some(Ending::Failed));
                    is_complete(delivered, run.into_remainder(), 200);
                }
            }
        }
    });
}

#[test]
fn remainder_right_after_the_failure_is_complete() {
    // Without the `next` that waits for what still runs.
    let run = (0..100u64).futureproof(Raise).num_threads(2);
    let mut run = run.map_tasks(|n| if *n == 30 { Err(()) } else { Ok(*n) });
    let mut delivered = Vec::new();
    for result in run.by_ref() {
        match result {
            Ok(task) => delivered.push(task.index),
            Err(error) => {
                delivered.push(error.index());
                break;
            }
        }
    }
    is_complete(delivered, run.into_remainder(), 100);
}

#[test]
fn cancelled_run_hands_back_the_rest() {
    watchdog(|| {
        for chunk in [0, 1, 10] {
            let token = CancellationToken::new();
            let run = (0..100u64)
                .futureproof(Raise)
                .num_threads(2)
                .chunk_size(chunk)
                .cancel_on(&token);
            let mut run = run.map_tasks(infallible(|n: &u64| *n));
            let mut delivered = Vec::new();
            for task in run.by_ref() {
                delivered.push(task.unwrap().index);
                if delivered.len() == 13 {
                    token.cancel();
                }
            }
            assert_eq!(delivered.len(), 13);
            assert_eq!(run.ending(), Some(Ending::Cancelled));
            is_complete(delivered, run.into_remainder(), 100);
        }
    });
}

#[test]
fn late_run_waits_for_its_calls_and_hands_back_the_rest() {
    watchdog(|| {
        // On a busy machine, a short deadline may pass before any call begins.
        let is_late_among_calls = |deadline: Duration| {
            let (release, released) = mpsc::channel::<()>();
            let released = Mutex::new(released);
            let run = (0..100u64).futureproof(Raise).num_threads(2);
            let mut run = run.deadline(deadline).map_tasks(infallible(move |n: &u64| {
                let _ = released.lock().unwrap().recv();
                *n
            }));
            assert!(run.next().is_none());
            drop(release);
            let remainder = run.into_remainder();
            let has_finished = !remainder.finished.is_empty();
            is_complete([], remainder, 100);
            has_finished
        };
        let mut deadlines = [20, 200, 2_000, 20_000]
            .map(Duration::from_millis)
            .into_iter();
        assert!(deadlines.any(is_late_among_calls), "no call was running");
    });
}

#[test]
fn items_waiting_for_a_retry_are_handed_back() {
    watchdog(|| {
        let run = (0..10u64).futureproof(Raise).num_threads(1);
        let run = run.map_tasks(|n| if n % 2 == 0 { Err("busy") } else { Ok(*n) });
        let mut run = run.retry(|| [FOREVER]);
        let delivered: Vec<_> = run
            .by_ref()
            .take(5)
            .map(|task| task.unwrap().index)
            .collect();
        let remainder = run.into_remainder();
        assert!(
            remainder
                .unprocessed
                .iter()
                .map(|(index, _)| *index)
                .eq([0, 2, 4, 6, 8])
        );
        is_complete(delivered, remainder, 10);
    });
}

struct PanicsAt(u64, std::ops::Range<u64>);

impl Iterator for PanicsAt {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.1.start == self.0 {
            resume_unwind(Box::new("expected"));
        }
        self.1.next()
    }
}

#[test]
fn panic_of_the_source_loses_nothing() {
    watchdog(|| {
        for asks_again in [false, true] {
            for (chunk, at) in [(0, 0), (0, 17), (1, 5), (10, 5), (10, 25)] {
                let run = PanicsAt(at, 0..50)
                    .futureproof(Raise)
                    .num_threads(2)
                    .chunk_size(chunk);
                let mut run = run.map_tasks(infallible(|n: &u64| *n));
                let mut delivered = Vec::new();
                let payload = loop {
                    match catch_unwind(AssertUnwindSafe(|| run.next())) {
                        Ok(task) => delivered.push(task.unwrap().unwrap().index),
                        Err(payload) => break payload,
                    }
                };
                assert_eq!(payload.downcast_ref(), Some(&"expected"));
                assert_eq!(run.ending(), Some(Ending::SourcePanicked));
                if asks_again {
                    assert!(run.next().is_none() && run.next().is_none());
                }
                let mut remainder = run.into_remainder();
                assert_eq!(remainder.source.1, at..50);
                remainder.source.0 = u64::MAX;
                is_complete(delivered, remainder, 50);
            }
        }
    });
}

#[test]
fn failures_that_were_not_delivered_keep_what_they_are() {
    watchdog(|| {
        // In order, they wait behind a head that waits for its own retry until the run is cancelled.
        let token = CancellationToken::new();
        let run = (0..3u64)
            .futureproof(Ignore)
            .num_threads(1)
            .ordered()
            .cancel_on(&token);
        let run = run.map_tasks(|n| Err::<u64, _>(if *n == 0 { "busy" } else { "broken" }));
        let run = run.retry(|| [FOREVER]);
        let mut run = run.retry_if(|error| *error == "busy");
        let progress = run.progress();
        let canceller = thread::spawn(move || {
            while progress.snapshot().failed() < 2 {
                thread::yield_now();
            }
            token.cancel();
        });
        assert!(run.next().is_none());
        canceller.join().unwrap();
        let remainder = run.into_remainder();
        assert_eq!(remainder.unprocessed, [(0, 0)]);
        let errors = remainder.finished.iter().map(|result| {
            let error = result.as_ref().unwrap_err();
            (error.index(), *error.error().unwrap(), error.attempts())
        });
        assert!(errors.eq([(1, "broken", 1), (2, "broken", 1)]));
    });
}

#[test]
fn figures_count_what_was_pulled_before_the_source_panicked() {
    let run = PanicsAt(1, 0..3)
        .futureproof(Raise)
        .num_threads(1)
        .chunk_size(2);
    let mut run = run.map_tasks(infallible(|n: &u64| *n));
    let progress = run.progress();
    assert!(catch_unwind(AssertUnwindSafe(|| run.next().is_some())).is_err());
    assert_eq!(run.into_remainder().unprocessed, [(0, 0)]);
    assert_eq!(progress.snapshot().pulled(), 1);
}
