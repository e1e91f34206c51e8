//! A run in a scope borrows its function, its items and its results from the stack.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

use common::{pool, watchdog};
use futureproof::prelude::*;

#[test]
fn function_items_and_results_are_borrowed() {
    let words = ["one", "three", ""].map(String::from);
    let calls = AtomicUsize::new(0);
    let first_letters: Vec<&str> = futureproof::scope(2, |s| {
        let run = words.iter().futureproof(Raise).on(s).ordered();
        let run = run.map_tasks(|word: &&String| {
            calls.fetch_add(1, Ordering::Relaxed);
            let word: &str = word;
            word.get(..1).ok_or("empty")
        });
        run.map_while(Result::ok).map(|task| task.output).collect()
    });
    assert_eq!(first_letters, ["o", "t"]);
    assert_eq!(calls.into_inner(), 3);
}

#[test]
fn items_may_be_borrowed_mutably() {
    let mut rows = vec![vec![3, 1, 2], vec![9, 8]];
    futureproof::scope(2, |s| {
        let items = rows.iter_mut().map(Mutex::new);
        let run = items.futureproof(Raise).on(s);
        let run = run.map_tasks(infallible(|row: &Mutex<&mut Vec<i32>>| {
            row.lock().unwrap().sort()
        }));
        assert_eq!(run.count(), 2);
    });
    assert_eq!(rows, [vec![1, 2, 3], vec![8, 9]]);
}

#[test]
fn scope_returns_what_its_function_returns() {
    assert_eq!(futureproof::scope(1, |_| "done"), "done");
}

#[test]
fn scope_serves_many_runs() {
    let base = [1u64, 2, 3];
    futureproof::scope(3, |s| {
        for round in 0..20u64 {
            let run = base.iter().futureproof(Raise).on(s);
            let run = run.map_tasks(infallible(move |n: &&u64| **n * round));
            assert_eq!(run.map(|task| task.unwrap().output).sum::<u64>(), 6 * round);
        }
    });
}

#[test]
fn rayon_scope_lends_as_well() {
    let pool = pool(2);
    let texts = ["7".to_string(), "x".to_string(), "35".to_string()];
    let total: i32 = pool.in_place_scope(|s| {
        let run = texts.iter().futureproof(Ignore).on(s);
        let run = run.map_tasks(|text: &&String| text.parse::<i32>());
        run.flatten().map(|task| task.output).sum()
    });
    assert_eq!(total, 42);
}

#[test]
fn two_borrowing_stages_end_with_the_scope() {
    // As pariter's scoped double.
    let numbers: Vec<u64> = (0..200).collect();
    let factor = 3;
    let sum: u64 = futureproof::scope(2, |s| {
        let first = numbers.iter().futureproof(Raise).on(s);
        let first = first.map_tasks(infallible(|n: &&u64| **n + factor));
        let second = first.map(|task| task.unwrap()).futureproof(Raise).on(s);
        let second = second.map_tasks(infallible(|task: &Task<&u64, u64>| task.output * factor));
        second.map(|task| task.unwrap().output).sum()
    });
    assert_eq!(sum, numbers.iter().map(|n| (n + 3) * 3).sum());
}

#[test]
fn failure_leaves_the_scope_with_its_borrow() {
    let names = [String::from("good"), String::from("bad")];
    let failure = futureproof::scope(1, |s| {
        let run = names.iter().futureproof(Raise).on(s);
        let mut run = run.map_tasks(|name: &&String| {
            let name: &str = name;
            if name == "bad" { Err(name) } else { Ok(()) }
        });
        run.find_map(Result::err).unwrap()
    });
    assert_eq!(failure.error(), Some(&"bad"));
    assert_eq!(*failure.input(), "bad");
}

#[test]
fn panic_in_a_scoped_task_is_contained() {
    let limit = 3u32;
    let results: Vec<_> = futureproof::scope(2, |s| {
        let run = (0..6u32).futureproof(Ignore).on(s).ordered();
        let run = run.map_tasks(|n| {
            if *n > limit {
                std::panic::resume_unwind(Box::new("expected"));
            }
            Ok::<_, ()>(*n)
        });
        run.map(|result| result.map_err(|error| error.is_panic()))
            .map(|r| r.map(|t| t.output))
            .collect()
    });
    assert_eq!(results, [Ok(0), Ok(1), Ok(2), Ok(3), Err(true), Err(true)]);
}

#[test]
fn consumer_panic_leaves_the_scope_cleanly() {
    let data = vec![1u32; 100];
    let left = std::panic::catch_unwind(|| {
        futureproof::scope(2, |s| {
            let run = data.iter().futureproof(Raise).on(s);
            for task in run.map_tasks(infallible(|n: &&u32| **n)) {
                if task.unwrap().index > 10 {
                    std::panic::resume_unwind(Box::new("expected"));
                }
            }
        })
    });
    assert_eq!(left.unwrap_err().downcast_ref(), Some(&"expected"));
}

#[test]
fn dropping_a_scoped_run_half_way_joins_its_calls() {
    let running = AtomicUsize::new(0);
    futureproof::scope(3, |s| {
        let run = (0..).futureproof(Raise).on(s);
        let mut run = run.map_tasks(infallible(|_: &u64| {
            running.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            running.fetch_sub(1, Ordering::SeqCst);
        }));
        assert!(run.next().is_some());
        drop(run);
        assert_eq!(running.load(Ordering::SeqCst), 0);
    });
}

/// Four tasks that wait for each other need all threads that there are.
#[test]
fn a_run_in_a_scope_has_all_threads() {
    watchdog(|| {
        let together = Barrier::new(4);
        let meet = infallible(|_: &u32| {
            together.wait();
        });
        let count = futureproof::scope(4, |s| {
            let run = (0..4).futureproof(Raise).on(s);
            run.map_tasks(&meet).count()
        });
        assert_eq!(count, 4);
        let count = pool(4).scope(|s| {
            let run = (0..4).futureproof(Raise).on(s);
            run.map_tasks(&meet).count()
        });
        assert_eq!(count, 4);
        // As many as are asked for, as a scope of rayon's does not say how many it has.
        for (asked, threads) in [(0, 4), (2, 2)] {
            let workers = pool(4).scope(|s| {
                let run = (0..4u32).futureproof(Raise).num_threads(asked).on(s);
                let mut run = run.map_tasks(infallible(|n: &u32| *n));
                run.by_ref().for_each(drop);
                run.report().workers().len()
            });
            assert_eq!(workers, threads);
        }
    });
}
