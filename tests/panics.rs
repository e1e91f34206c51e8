//! No panic of anybody's code aborts the process, hangs the run or loses another task.

mod common;

use std::fmt;
use std::panic::{self, AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::Duration;

#[cfg(feature = "tracing")]
use common::child::Child;
use common::child::in_child;
use common::lines::on_log;
use common::{AThreadEach, Gate, Tally, Token, pool, watchdog};
use futureproof::prelude::*;
use futureproof::{Cause, Ending, Spawn};
use log::LevelFilter;
use rayon::ThreadPool;

/// Panics when it is dropped, but tells its tally first.
struct Bomb(#[allow(dead_code)] Option<Token>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0 = None;
        panic_any(BombOfBombs(3));
    }
}

/// A payload that panics when it is dropped, with another.
struct BombOfBombs(u32);

impl Drop for BombOfBombs {
    fn drop(&mut self) {
        if self.0 > 0 {
            panic_any(BombOfBombs(self.0 - 1));
        }
    }
}

impl fmt::Debug for Bomb {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("a bomb has no text")
    }
}

/// Drops what may panic, here, and what it panics with.
fn defuse<T>(value: T) {
    let mut outcome = catch_unwind(AssertUnwindSafe(|| drop(value)));
    while let Err(payload) = outcome {
        outcome = catch_unwind(AssertUnwindSafe(|| drop(payload)));
    }
}

// rayon: panic_fwd.
#[test]
fn the_payload_arrives_intact() {
    let mut run = [0]
        .into_iter()
        .futureproof(Raise)
        .map_tasks(|_: &u32| -> Result<(), ()> { panic!("Hello, world!") });
    let error = run.next().unwrap().unwrap_err();
    assert!(error.is_panic());
    assert_eq!(error.panic_message(), Some("Hello, world!"));
    assert_eq!(error.to_string(), "task 0 panicked: Hello, world!");
    let Cause::Panicked(panic) = error.into_parts().2 else {
        panic!("not a panic")
    };
    assert_eq!(
        *panic.into_payload().downcast::<&str>().unwrap(),
        "Hello, world!"
    );
    assert!(run.next().is_none());
}

#[test]
fn any_payload_can_be_resumed() {
    let run = [7]
        .into_iter()
        .futureproof(Raise)
        .map_tasks(|n: &u32| -> Result<(), ()> { panic_any(*n) });
    let error = run.filter_map(Result::err).next().unwrap();
    assert_eq!(error.panic_message(), None);
    let payload = catch_unwind(AssertUnwindSafe(|| error.resume_unwind())).unwrap_err();
    assert_eq!(*payload.downcast::<u32>().unwrap(), 7);
}

// pebble: test_thread_pool_exception_isolated; conc: "panics do not exhaust goroutines".
#[test]
fn a_panic_does_not_touch_its_neighbours() {
    watchdog(|| {
        for (threads, chunk) in [(1, 1), (1, 16), (2, 0), (2, 64)] {
            let run = (0..200u32)
                .futureproof(Ignore)
                .num_threads(threads)
                .chunk_size(chunk);
            let run = run.map_tasks(infallible(
                |n: &u32| if n % 7 == 0 { panic!("{n}") } else { *n },
            ));
            let (good, bad): (Vec<_>, Vec<_>) = run.partition(Result::is_ok);
            assert_eq!((good.len(), bad.len()), (171, 29));
            assert!(
                good.into_iter()
                    .flatten()
                    .all(|task| task.output == task.input)
            );
            assert!(
                bad.into_iter()
                    .filter_map(Result::err)
                    .all(|error| error.panic_message() == Some(&error.input().to_string()))
            );
        }
    });
}

// pariter: panic_always, panic_once, panic_after_a_point.
#[test]
fn each_policy_treats_a_panic_as_a_failure() {
    watchdog(|| {
        for threads in [1, 8] {
            for (policy, errors, ending) in [
                (Raise, 1, Ending::Failed),
                (Tolerate(3), 4, Ending::Failed),
                (Log, 50, Ending::Exhausted),
                (Ignore, 50, Ending::Exhausted),
            ] {
                let run = (0..100u32).futureproof(policy).num_threads(threads);
                let mut run =
                    run.map_tasks(|n: &u32| if *n >= 50 { panic!() } else { Ok::<_, ()>(*n) });
                assert_eq!(run.by_ref().filter(Result::is_err).count(), errors);
                assert_eq!(run.ending(), Some(ending));
            }
        }
    });
}

// rayon: iter_panic_fuse.
#[test]
fn fewer_items_run_after_a_panic_under_raise() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let run = (0..1000)
        .futureproof(Raise)
        .num_threads(1)
        .map_tasks(infallible(move |n: &u32| {
            count.fetch_add(1, SeqCst);
            assert!(*n < 10);
        }));
    run.for_each(drop);
    assert_eq!(calls.load(SeqCst), 11);
}

// threadpool: test_recovery_from_subtask_panic.
#[test]
fn a_shared_pool_survives_panics() {
    let pool = pool(2);
    let run = (0..50u32).futureproof(Ignore).on(Arc::clone(&pool));
    assert_eq!(
        run.map_tasks(infallible(|_: &u32| panic!()))
            .filter(|task: &Result<Task<u32, ()>, _>| task.is_err())
            .count(),
        50
    );
    let run = (0..50u32).futureproof(Raise).on(Arc::clone(&pool));
    assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 50);
    assert_eq!(pool.install(|| rayon::join(|| 1, || 2)), (1, 2));
}

// par_bridge: a panic of an infinite source never returns.
#[test]
fn a_panic_of_the_source_reaches_the_caller_then_none() {
    watchdog(|| {
        for chunk in [0, 1, 8, 64] {
            let source = (0u64..).inspect(|n| {
                if *n == 100 {
                    panic!("dry")
                }
            });
            let mut run = source
                .futureproof(Raise)
                .num_threads(2)
                .chunk_size(chunk)
                .map_tasks(infallible(|n: &u64| *n));
            let mut seen = Vec::new();
            let payload = catch_unwind(AssertUnwindSafe(|| {
                run.by_ref().for_each(|task| seen.push(task.unwrap().index))
            }))
            .unwrap_err();
            assert_eq!(*payload.downcast::<&str>().unwrap(), "dry");
            assert!((0..3).all(|_| run.next().is_none()));
            assert_eq!(run.ending(), Some(Ending::SourcePanicked));
            let remainder = run.into_remainder();
            seen.extend(
                remainder
                    .finished
                    .into_iter()
                    .map(|task| task.unwrap().index),
            );
            seen.extend(remainder.unprocessed.into_iter().map(|(index, _)| index));
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..100), "chunks of {chunk}");
        }
    });
}

#[test]
fn a_remainder_right_after_a_panic_of_the_source_is_whole() {
    let source = (0u64..).inspect(|n| {
        if *n == 3 {
            panic!("dry")
        }
    });
    let mut run = source
        .futureproof(Raise)
        .num_threads(1)
        .chunk_size(10)
        .map_tasks(infallible(|n: &u64| *n));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(run.next()))).is_err());
    let unprocessed = run.into_remainder().unprocessed;
    assert_eq!(unprocessed, [(0, 0), (1, 1), (2, 2)]);
}

// conc: "panic in callback does not block producers"; plmap: a panic, then a drop during unwind, aborts.
#[test]
fn a_consumer_that_panics_unwinds_cleanly() {
    watchdog(|| {
        let tally = Tally::default();
        let tokens = tally.clone();
        let source = (0..1000).map(move |_| tokens.token());
        let run = source
            .futureproof(Raise)
            .num_threads(3)
            .map_tasks(infallible(|_: &Token| ()));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            run.enumerate().for_each(|(n, _)| assert!(n < 20))
        }));
        assert!(outcome.is_err());
        tally.assert_all_dropped_once();
    });
}

#[test]
fn bombs_in_flight_do_not_abort_an_unwinding_consumer() {
    watchdog(|| {
        for chunk in [0, 1, 16] {
            let tally = Tally::default();
            let (inputs, outputs) = (tally.clone(), tally.clone());
            let source = (0..300).map(move |_| Bomb(Some(inputs.token())));
            let run = source
                .futureproof(Raise)
                .num_threads(2)
                .max_in_flight(64)
                .chunk_size(chunk)
                .map_tasks(infallible(move |_: &Bomb| Bomb(Some(outputs.token()))));
            let mut kept = None;
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let mut run = run;
                kept = run.next();
                panic!("the consumer's");
            }));
            defuse(outcome.unwrap_err());
            assert_eq!(
                tally.made() - tally.dropped(),
                2,
                "the delivered task's own"
            );
            if let Some(Ok(task)) = kept {
                defuse(task.input);
                defuse(task.output);
            }
        }
    });
}

#[test]
fn inputs_and_outputs_that_panic_when_dropped_lose_nothing() {
    watchdog(|| {
        for chunk in [0, 1, 16] {
            let tally = Tally::default();
            let (inputs, outputs) = (tally.clone(), tally.clone());
            let source = (0..200).map(move |_| Bomb(Some(inputs.token())));
            let run = source
                .futureproof(Raise)
                .num_threads(2)
                .chunk_size(chunk)
                .map_tasks(infallible(move |_: &Bomb| Bomb(Some(outputs.token()))));
            let mut delivered = 0;
            for task in run {
                delivered += 1;
                let task = task.unwrap();
                defuse(task.input);
                defuse(task.output);
            }
            assert_eq!(delivered, 200);
            tally.assert_all_dropped_once();
        }
    });
}

#[test]
fn undelivered_bombs_go_off_one_by_one() {
    watchdog(|| {
        for (chunk, taken) in [(0, 0), (1, 1), (16, 1), (16, 20), (64, 3)] {
            let tally = Tally::default();
            let (inputs, errors) = (tally.clone(), tally.clone());
            let source = (0..500).map(move |_| Bomb(Some(inputs.token())));
            let mut run = source
                .futureproof(Ignore)
                .num_threads(2)
                .max_in_flight(128)
                .chunk_size(chunk)
                .map_tasks(move |_: &Bomb| {
                    let bomb = Bomb(Some(errors.token()));
                    if errors.made() % 3 == 0 {
                        Ok(bomb)
                    } else {
                        Err(bomb)
                    }
                });
            for task in run.by_ref().take(taken) {
                match task {
                    Ok(task) => {
                        defuse(task.input);
                        defuse(task.output);
                    }
                    Err(error) => {
                        let (_, input, cause) = error.into_parts();
                        defuse(input);
                        defuse(cause);
                    }
                }
            }
            defuse(run);
            tally.assert_all_dropped_once();
        }
    });
}

#[test]
fn payloads_that_panic_when_dropped_are_contained() {
    watchdog(|| {
        for policy in [Ignore, Log] {
            let run = (0..60u32).futureproof(policy).num_threads(2).chunk_size(8);
            let run = run.map_tasks(infallible(|n: &u32| {
                if n % 3 == 0 {
                    panic_any(Bomb(None))
                } else {
                    *n
                }
            }));
            let (good, bad): (Vec<_>, Vec<_>) = run.partition(Result::is_ok);
            assert_eq!((good.len(), bad.len()), (40, 20));
            bad.into_iter().for_each(drop); // an error's own drop contains its payload's
        }
        let run = (0..100u32).futureproof(Ignore).num_threads(2).chunk_size(8);
        let mut run = run.map_tasks(infallible(|_: &u32| -> () { panic_any(Bomb(None)) }));
        run.next().unwrap().unwrap_err();
        drop(run);
    });
}

#[test]
fn captures_that_panic_when_dropped_are_contained() {
    watchdog(|| {
        let tally = Tally::default();
        let bomb = Bomb(Some(tally.token()));
        let run = (0..100u32)
            .futureproof(Raise)
            .num_threads(2)
            .map_tasks(infallible(move |n: &u32| {
                let _ = &bomb;
                *n
            }));
        let mut delivered = 0;
        run.for_each(|_| delivered += 1);
        assert_eq!(delivered, 100);
        tally.assert_all_dropped_once();
    });
}

#[test]
fn a_source_that_panics_when_dropped_leaves_nothing_running() {
    watchdog(|| {
        let bomb = Bomb(None);
        let running = Arc::new(());
        let guard = Arc::clone(&running);
        let source = (0..100u32).inspect(move |_| {
            let _ = &bomb;
        });
        let mut run = source
            .futureproof(Raise)
            .num_threads(2)
            .map_tasks(infallible(move |n: &u32| {
                let _ = &guard;
                *n
            }));
        run.next().unwrap().unwrap();
        defuse(run);
        assert_eq!(Arc::strong_count(&running), 1);
    });
}

#[test]
fn a_progress_callback_may_panic() {
    watchdog(|| {
        let calls = Arc::new(AtomicUsize::new(0));
        let (count, bomb) = (Arc::clone(&calls), Bomb(None));
        let run = (0..20u32)
            .futureproof(Raise)
            .num_threads(2)
            .monitor_interval(Duration::from_millis(1))
            .on_progress(move |_| {
                let _ = &bomb;
                count.fetch_add(1, SeqCst);
                panic_any(Bomb(None));
            });
        let run = run.map_tasks(infallible(|_: &u32| {
            std::thread::sleep(Duration::from_millis(2))
        }));
        assert_eq!(run.count(), 20);
        assert!(calls.load(SeqCst) >= 2, "called again after a panic");
    });
}

#[test]
fn a_logger_may_panic() {
    static LOGS: AtomicBool = AtomicBool::new(false);
    on_log(LevelFilter::Trace, |record| {
        LOGS.store(true, SeqCst);
        let text = record.args().to_string();
        panic_any((text, Bomb(None)));
    });
    watchdog(|| {
        let run = (0..50u32)
            .futureproof(Log)
            .num_threads(2)
            .monitor_interval(Duration::from_millis(1));
        let run = run.map_tasks(|n: &u32| if n % 2 == 0 { Err(*n) } else { Ok(*n) });
        assert_eq!(run.count(), 50);
        assert!(LOGS.load(SeqCst));
    });
}

#[test]
fn an_error_that_cannot_be_formatted_is_delivered_all_the_same() {
    watchdog(|| {
        struct Unspeakable;
        impl fmt::Debug for Unspeakable {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic_any(Bomb(None))
            }
        }
        let run = (0..20u32)
            .futureproof(Log)
            .num_threads(2)
            .map_tasks(|_: &u32| Err::<(), _>(Unspeakable));
        assert_eq!(run.filter(Result::is_err).count(), 20);
        let run = (0..20u32)
            .futureproof(Log)
            .num_threads(2)
            .map_tasks(|_: &u32| Err::<(), _>(()));
        assert_eq!(
            run.describe(|_| panic_any(Bomb(None)))
                .filter(Result::is_err)
                .count(),
            20
        );
    });
}

#[test]
fn errors_that_panic_when_dropped_are_contained_when_retried() {
    watchdog(|| {
        for chunk in [1, 16] {
            let tally = Tally::default();
            let errors = tally.clone();
            let run = (0..64u32)
                .futureproof(Ignore)
                .num_threads(2)
                .chunk_size(chunk);
            let run = run.map_tasks(move |_: &u32| Err::<(), _>(Bomb(Some(errors.token()))));
            let mut delivered = 0;
            let mut run = run.retry(|| [Duration::ZERO]);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                for task in run.by_ref() {
                    delivered += 1;
                    defuse(task);
                }
            }));
            let is_contained = outcome.map_err(defuse).is_ok();
            assert!(
                is_contained,
                "the error's drop got out after {delivered} tasks"
            );
            drop(run);
            assert_eq!(delivered, 64);
            assert_eq!(tally.made(), 128);
            tally.assert_all_dropped_once();
        }
    });
}

#[test]
fn rules_that_panic_are_contained() {
    watchdog(|| {
        let run = (0..20u32)
            .futureproof(Log)
            .num_threads(2)
            .map_tasks(|_: &u32| Err::<(), _>(()));
        let run = run
            .retry(|| [Duration::ZERO])
            .retry_if(|_| panic_any(Bomb(None)));
        assert_eq!(run.count(), 20);
        let run = (0..20u32)
            .futureproof(Ignore)
            .num_threads(2)
            .map_tasks(|_: &u32| Err::<(), _>(()));
        let run = run.retry(|| -> [Duration; 1] { panic_any(Bomb(None)) });
        assert_eq!(run.count(), 20);
    });
}

#[test]
fn rules_that_hold_bombs_do_not_abort() {
    watchdog(|| {
        let (one, two) = (Bomb(None), Bomb(None));
        let run = (0..20u32)
            .futureproof(Ignore)
            .num_threads(2)
            .map_tasks(|_: &u32| Err::<(), _>(()));
        let run = run.retry(move || {
            let _ = &one;
            [Duration::ZERO]
        });
        let mut run = run.describe(move |_| {
            let _ = &two;
            String::new()
        });
        assert_eq!(run.by_ref().count(), 20);
        defuse(run);
    });
}

#[test]
fn a_source_that_panics_among_bombs_loses_none() {
    watchdog(|| {
        for (chunk, is_kept) in [(1, false), (16, false), (16, true)] {
            let tally = Tally::default();
            let inputs = tally.clone();
            let source = (0..).map(move |n| {
                if n < 40 {
                    Bomb(Some(inputs.token()))
                } else {
                    panic!("dry")
                }
            });
            let mut run = source
                .futureproof(Raise)
                .num_threads(2)
                .chunk_size(chunk)
                .map_tasks(infallible(|_: &Bomb| ()));
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                for task in run.by_ref() {
                    defuse(task);
                }
            }));
            assert_eq!(*outcome.unwrap_err().downcast::<&str>().unwrap(), "dry");
            if is_kept {
                let remainder = run.into_remainder();
                remainder.finished.into_iter().for_each(defuse);
                remainder.unprocessed.into_iter().for_each(defuse);
            } else {
                defuse(run);
            }
            tally.assert_all_dropped_once();
        }
    });
}

#[test]
fn cancelled_bombs_are_dropped_one_by_one() {
    watchdog(|| {
        let tally = Tally::default();
        let inputs = tally.clone();
        let token = CancellationToken::new();
        let (trigger, calls) = (token.clone(), AtomicUsize::new(0));
        let source = (0..500).map(move |_| Bomb(Some(inputs.token())));
        let mut run = source
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(16)
            .cancel_on(&token)
            .map_tasks(infallible(move |_: &Bomb| {
                if calls.fetch_add(1, SeqCst) == 40 {
                    trigger.cancel();
                }
            }));
        for task in run.by_ref() {
            defuse(task);
        }
        defuse(run);
        tally.assert_all_dropped_once();
    });
}

#[test]
fn bombs_on_a_pool_that_is_lent_are_contained() {
    watchdog(|| {
        let pool = pool(1);
        let tally = Tally::default();
        let run = |tally: &Tally, pool: &Arc<ThreadPool>| {
            let (inputs, in_f) = (tally.clone(), Bomb(Some(tally.token())));
            let source = (0..100).map(move |_| Bomb(Some(inputs.token())));
            source
                .futureproof(Raise)
                .on(Arc::clone(pool))
                .chunk_size(4)
                .map_tasks(infallible(move |_: &Bomb| {
                    let _ = &in_f;
                }))
        };
        let mut outside = run(&tally, &pool);
        defuse(outside.next());
        defuse(outside);
        tally.assert_all_dropped_once();
        // Inline, on the pool's own thread.
        let mut inside = run(&tally, &pool);
        pool.install(move || {
            defuse(inside.next());
            defuse(inside);
        });
        tally.assert_all_dropped_once();
        futureproof::scope(2, |scope| {
            let mut run = (0..50)
                .map(|_| Bomb(Some(tally.token())))
                .futureproof(Raise)
                .on(scope)
                .map_tasks(infallible(|_: &Bomb| ()));
            defuse(run.next());
            defuse(run);
        });
        tally.assert_all_dropped_once();
    });
}

/// Drops every third job.
struct Forgetful(AtomicUsize, Arc<ThreadPool>);

impl Spawn<'static> for Forgetful {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        if self.0.fetch_add(1, SeqCst) % 3 != 2 {
            self.1.spawn(job);
        }
    }
}

#[test]
fn a_home_that_drops_jobs_loses_nothing() {
    watchdog(|| {
        for chunk in [0, 1, 8] {
            let home = Forgetful(AtomicUsize::new(0), pool(2));
            let mut run = (0..200u32)
                .futureproof(Raise)
                .on(home)
                .chunk_size(chunk)
                .map_tasks(infallible(|n: &u32| *n));
            let delivered = run
                .by_ref()
                .map(|task| task.unwrap().input)
                .collect::<Vec<_>>();
            let remainder = run.into_remainder();
            let mut all = delivered;
            all.extend(
                remainder
                    .finished
                    .into_iter()
                    .map(|task| task.unwrap().input),
            );
            all.extend(remainder.unprocessed.into_iter().map(|(_, input)| input));
            all.extend(remainder.source);
            all.sort_unstable();
            assert!(all.into_iter().eq(0..200));
        }
    });
}

#[test]
fn a_panic_at_any_item_is_reported_once_with_its_index() {
    watchdog(|| {
        for at in 0..40 {
            for (threads, chunk) in [(1, 1), (2, 3), (4, 16)] {
                let run = (0..40u64)
                    .futureproof(Raise)
                    .num_threads(threads)
                    .chunk_size(chunk);
                let run = run.map_tasks(infallible(move |n: &u64| {
                    if *n == at {
                        resume_unwind(Box::new(*n));
                    }
                }));
                let failures: Vec<_> = run
                    .filter_map(Result::err)
                    .map(|error| error.index())
                    .collect();
                assert_eq!(failures, [at]);
            }
        }
        // Two at the same time are one failure under `Raise`.
        let barrier = Barrier::new(2);
        let run = (0..2u32).futureproof(Raise).num_threads(2).chunk_size(1);
        let run = run.map_tasks(infallible(move |_: &u32| -> () {
            barrier.wait();
            resume_unwind(Box::new(()));
        }));
        assert_eq!(run.count(), 1);
        let run = (0..2000u32).futureproof(Ignore).num_threads(2);
        let run = run.map_tasks(infallible(|_: &u32| -> () { resume_unwind(Box::new(())) }));
        assert_eq!(run.filter(Result::is_err).count(), 2000);
    });
}

/// A hook that takes its time, as one that prints a backtrace does.
#[test]
fn others_go_on_while_a_panic_is_reported() {
    in_child(|| {
        let (gate, blocked) = (Gate::default(), Gate::default());
        let (inside, entered) = (gate.clone(), blocked.clone());
        panic::set_hook(Box::new(move |_| {
            entered.open();
            inside.pass();
        }));
        let run = (0..50u32).futureproof(Raise).num_threads(2).chunk_size(1);
        let mut run = run.map_tasks(infallible(|n: &u32| assert!(*n > 0)));
        for _ in 1..50 {
            run.next().unwrap().unwrap();
        }
        blocked.pass();
        gate.open();
        assert_eq!(run.next().unwrap().unwrap_err().index(), 0);
        assert!(run.next().is_none());
    });
}

#[test]
fn a_logger_that_panics_when_asked_is_contained() {
    struct Bad;
    impl log::Log for Bad {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            panic_any(())
        }
        fn log(&self, _: &log::Record<'_>) {}
        fn flush(&self) {}
    }
    in_child(|| {
        log::set_logger(&Bad).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        let run = (0..10u32).futureproof(Raise).num_threads(1);
        assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 10);
    });
}

#[test]
fn a_home_and_a_function_may_both_panic_when_they_go() {
    struct Unguarded;
    impl Drop for Unguarded {
        fn drop(&mut self) {
            panic_any(())
        }
    }
    struct Home(#[allow(dead_code)] Unguarded);
    impl Spawn<'static> for Home {
        fn spawn(&self, job: impl FnOnce() + Send + 'static) {
            AThreadEach.spawn(job);
        }
    }
    in_child(|| {
        let capture = Unguarded;
        let run = (0..10u32).futureproof(Raise).on(Home(Unguarded));
        let run = run.map_tasks(infallible(move |n: &u32| {
            let _ = &capture;
            *n
        }));
        assert_eq!(run.count(), 10);
    });
}

#[cfg(feature = "tracing")]
#[test]
fn a_subscriber_that_panics_loses_no_task() {
    for places in [
        "enabled",
        "new_span",
        "enter",
        "event",
        "exit",
        "try_close",
        "exit, try_close",
        "enabled, new_span, enter, event, exit, try_close",
    ] {
        Child::new(places).must_survive(|| subscriber(places.to_owned()));
    }
}

#[cfg(feature = "tracing")]
fn subscriber(places: String) {
    use tracing::span::{Attributes, Id, Record};
    use tracing::subscriber::{Interest, Subscriber, set_global_default};
    use tracing::{Event, Metadata};

    struct Bad {
        places: String,
        spans: AtomicUsize,
    }
    impl Bad {
        fn at(&self, place: &str) {
            if self.places.contains(place) {
                panic_any(());
            }
        }
    }
    impl Subscriber for Bad {
        fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
            Interest::sometimes()
        }
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            self.at("enabled");
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            self.at("new_span");
            Id::from_u64(self.spans.fetch_add(1, SeqCst) as u64 + 1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.at("event");
        }
        fn enter(&self, _: &Id) {
            self.at("enter");
        }
        fn exit(&self, _: &Id) {
            self.at("exit");
        }
        fn try_close(&self, _: Id) -> bool {
            self.at("try_close");
            true
        }
    }

    set_global_default(Bad {
        places,
        spans: AtomicUsize::new(0),
    })
    .unwrap();
    let pool = pool(2);
    let f = |n: &u32| match n % 3 {
        0 => Ok(*n),
        1 => Err("bad"),
        _ => panic_any(()),
    };
    for round in 0..100 {
        let run = (0..30u32).futureproof(Ignore).num_threads(2);
        let run = match round % 2 {
            0 => run.map_tasks(f),
            _ => run.on(Arc::clone(&pool)).map_tasks(f),
        };
        let mut count = 0;
        for result in run {
            match result {
                Ok(task) => assert_eq!(task.output % 3, 0),
                Err(error) => assert_eq!(error.index() % 3, 1 + u64::from(error.is_panic())),
            }
            count += 1;
        }
        assert_eq!(count, 30);
    }
}
