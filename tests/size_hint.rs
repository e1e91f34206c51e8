//! `size_hint` brackets what still comes, at every moment, and the end is for ever.

mod common;

use std::iter::{self, FusedIterator};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use common::watchdog;
use futureproof::MapTasks;
use futureproof::prelude::*;

/// Consumes the run; asserts at each step that the hint was right.
fn check<I: Iterator, T, E>(mut run: MapTasks<'_, I, T, E>) -> usize {
    let mut hints = vec![run.size_hint()];
    while run.next().is_some() {
        hints.push(run.size_hint());
    }
    assert_eq!(run.size_hint(), (0, Some(0)));
    for (left, (lower, upper)) in hints.iter().rev().enumerate() {
        assert!(
            *lower <= left && upper.is_none_or(|upper| left <= upper),
            "{left} left, hint {lower}..{upper:?}"
        );
    }
    hints.len() - 1
}

#[test]
fn the_hint_is_exact_where_nothing_can_stop_the_run() {
    for policy in [Ignore, Log] {
        for (window, chunk) in [(0, 0), (1, 1), (10, 3), (7, 100)] {
            let mut run = (0..200u32)
                .futureproof(policy)
                .num_threads(2)
                .max_in_flight(window)
                .chunk_size(chunk)
                .map_tasks(|n: &u32| if n % 3 == 0 { Err(()) } else { Ok(()) });
            for left in (0..=200).rev() {
                assert_eq!(run.size_hint(), (left, Some(left)));
                assert_eq!(run.next().is_some(), left > 0);
            }
        }
    }
}

#[test]
fn the_hint_brackets_the_truth_whatever_stops_the_run() {
    watchdog(|| {
        for chunk in [0, 1, 5, 64] {
            let base = |policy| {
                (0..300u32)
                    .futureproof(policy)
                    .num_threads(2)
                    .chunk_size(chunk)
            };
            let fail = |n: &u32| if *n >= 100 { Err(()) } else { Ok(()) };
            check(base(Raise).map_tasks(fail));
            check(base(Raise).ordered().map_tasks(fail));
            check(base(Tolerate(7)).map_tasks(fail));
            assert_eq!(check(base(Ignore).map_tasks(fail)), 300);
            assert_eq!(
                check(
                    base(Ignore)
                        .ordered()
                        .map_tasks(fail)
                        .retry(|| [Duration::ZERO])
                ),
                300
            );
            let token = CancellationToken::new();
            let trigger = token.clone();
            check(
                base(Ignore)
                    .cancel_on(&token)
                    .map_tasks(infallible(move |n: &u32| {
                        if *n == 150 {
                            trigger.cancel()
                        }
                    })),
            );
            check(
                base(Ignore)
                    .deadline(Duration::from_millis(3))
                    .map_tasks(infallible(|_: &u32| {
                        std::thread::sleep(Duration::from_micros(50))
                    })),
            );
        }
    });
}

#[test]
fn the_lower_bound_is_zero_where_something_can_stop_the_run() {
    let token = CancellationToken::new();
    let run = || (0..100u32).futureproof(Ignore);
    assert_eq!(
        (0..100u32)
            .futureproof(Raise)
            .map_tasks(infallible(|n: &u32| *n))
            .size_hint(),
        (0, Some(100))
    );
    assert_eq!(
        (0..100u32)
            .futureproof(Tolerate(200))
            .map_tasks(infallible(|n: &u32| *n))
            .size_hint(),
        (0, Some(100))
    );
    assert_eq!(
        run()
            .cancel_on(&token)
            .map_tasks(infallible(|n: &u32| *n))
            .size_hint(),
        (0, Some(100))
    );
    assert_eq!(
        run()
            .deadline(Duration::MAX)
            .map_tasks(infallible(|n: &u32| *n))
            .size_hint(),
        (0, Some(100))
    );
    assert_eq!(
        run().map_tasks(infallible(|n: &u32| *n)).size_hint(),
        (100, Some(100))
    );
}

#[test]
fn an_unknown_or_infinite_source_has_no_upper_bound() {
    let mut run = (0u64..)
        .futureproof(Ignore)
        .num_threads(1)
        .map_tasks(infallible(|n: &u64| *n));
    run.next().unwrap().unwrap();
    assert_eq!(run.size_hint(), (usize::MAX, None));
    let mut left = 50;
    let source = iter::from_fn(|| (left > 0).then(|| left -= 1));
    assert_eq!(
        check(
            source
                .futureproof(Ignore)
                .num_threads(1)
                .map_tasks(infallible(|_: &()| ()))
        ),
        50
    );
}

/// Says one thing and does another.
struct Liar(u32, (usize, Option<usize>));

impl Iterator for Liar {
    type Item = u32;
    fn next(&mut self) -> Option<u32> {
        self.0 = self.0.checked_sub(1)?;
        Some(self.0)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.1
    }
}

#[test]
fn a_source_that_lies_about_its_size_loses_nothing() {
    watchdog(|| {
        for hint in [
            (0, Some(0)),
            (1000, Some(1000)),
            (usize::MAX, None),
            (usize::MAX, Some(usize::MAX)),
            (9, Some(3)),
        ] {
            for policy in [Raise, Ignore] {
                let mut run = Liar(100, hint)
                    .futureproof(policy)
                    .num_threads(2)
                    .max_in_flight(9)
                    .on_progress(|_| ())
                    .monitor_interval(Duration::from_millis(1))
                    .map_tasks(infallible(|n: &u32| *n));
                let progress = run.progress();
                for _ in 0..100 {
                    let _ = run.size_hint();
                    run.next().unwrap().unwrap();
                }
                assert!(run.next().is_none());
                assert_eq!(run.size_hint(), (0, Some(0)));
                let _ = (progress.snapshot().eta(), progress.snapshot().total());
            }
        }
    });
}

#[test]
fn a_size_hint_that_panics_reaches_the_caller() {
    struct Sizeless;
    impl Iterator for Sizeless {
        type Item = u32;
        fn next(&mut self) -> Option<u32> {
            None
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            panic!("no idea")
        }
    }
    watchdog(|| {
        let mut run = Sizeless
            .futureproof(Raise)
            .num_threads(1)
            .map_tasks(infallible(|n: &u32| *n));
        assert!(catch_unwind(AssertUnwindSafe(|| run.size_hint())).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| run.next())).is_err());
        assert!(run.next().is_none());
    });
}

#[test]
fn an_ended_run_stays_ended() {
    fn is_fused(_: &impl FusedIterator) {}
    // A source that goes on after its first `None`.
    let mut n = 0;
    let source = iter::from_fn(move || {
        n += 1;
        (n % 5 != 0).then_some(n)
    });
    let mut run = source
        .futureproof(Raise)
        .num_threads(1)
        .map_tasks(infallible(|n: &u32| *n));
    is_fused(&run);
    assert_eq!(run.by_ref().count(), 4);
    assert!((0..10).all(|_| run.next().is_none()));
}

#[test]
fn folding_equals_stepping() {
    let run = || {
        (0..500u32)
            .futureproof(Tolerate(2))
            .num_threads(1)
            .map_tasks(|n: &u32| if n % 50 == 9 { Err(*n) } else { Ok(n * 2) })
    };
    let mut stepped = Vec::new();
    let steps = run();
    for task in steps {
        stepped.push(task.map(|task| task.output).map_err(|error| error.index()));
    }
    let folded = run().fold(Vec::new(), |mut all, task| {
        all.push(task.map(|task| task.output).map_err(|error| error.index()));
        all
    });
    assert_eq!(stepped, folded);
}

#[test]
fn a_source_that_is_wrapped_says_as_much_as_before() {
    let owned = || {
        let run = (0..10u32).futureproof(Ignore).num_threads(1);
        run.map_tasks_owned(|n: u32| if n > 20 { Err(n) } else { Ok(n) })
    };
    assert_eq!(owned().size_hint(), (10, Some(10)));
    let mut run = owned();
    run.next();
    assert_eq!(run.size_hint(), (9, Some(9)));
    assert_eq!(owned().into_remainder().source.size_hint(), (10, Some(10)));
    // Others may push and take.
    let queue = Queue::from_iter(0..10u32);
    let run = queue.source().futureproof(Ignore).num_threads(1);
    let run = run.map_tasks(infallible(|n: &u32| *n));
    assert_eq!(run.size_hint(), (0, None));
    assert_eq!(run.into_remainder().source.size_hint(), (0, None));
}
