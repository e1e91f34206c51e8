//! Runs inside runs, and runs on pools that others use too, end without a deadlock.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use common::{pool, watchdog};
use futureproof::Ending;
use futureproof::prelude::*;
use rayon::ThreadPool;
use rayon::prelude::*;

fn double(n: &u64) -> u64 {
    n * 2
}

fn sum_on(pool: &Arc<ThreadPool>, count: u64) -> u64 {
    let run = (0..count).futureproof(Raise).on(Arc::clone(pool));
    run.map_tasks(infallible(double))
        .map(|task| task.unwrap().output)
        .sum()
}

#[test]
fn two_chained_runs_agree_with_sequential() {
    // As pariter's map_vs_map_parallel_double.
    watchdog(|| {
        for (threads, window) in [(1, 0), (1, 1), (2, 1), (3, 7), (4, 64)] {
            let first = (0..300u64)
                .futureproof(Raise)
                .num_threads(threads)
                .max_in_flight(window);
            let first = first
                .map_tasks(infallible(double))
                .map(|task| task.unwrap().output);
            let second = first
                .futureproof(Raise)
                .num_threads(threads)
                .max_in_flight(window);
            let mut outputs: Vec<u64> = second
                .map_tasks(infallible(double))
                .map(|task| task.unwrap().output)
                .collect();
            outputs.sort_unstable();
            assert!(outputs.into_iter().eq((0..300).map(|n| n * 4)));
        }
    });
}

#[test]
fn two_chained_runs_share_a_pool_of_one_thread() {
    watchdog(|| {
        let pool = pool(1);
        let first = (0..100u64).futureproof(Raise).on(Arc::clone(&pool));
        let first = first
            .map_tasks(infallible(double))
            .map(|task| task.unwrap().output);
        let second = first
            .futureproof(Raise)
            .on(pool)
            .map_tasks(infallible(double));
        assert_eq!(
            second.map(|task| task.unwrap().output).sum::<u64>(),
            4_950 * 4
        );
    });
}

#[test]
fn consumed_on_the_only_thread_of_its_pool_runs_inline() {
    watchdog(|| {
        let pool = pool(1);
        assert_eq!(pool.install(|| sum_on(&pool, 100)), 9_900);
        let threads: Vec<_> = pool.install(|| {
            let run = (0..5).futureproof(Raise).on(Arc::clone(&pool));
            let run = run.map_tasks(infallible(|_: &i32| thread::current().id()));
            let here = thread::current().id();
            run.map(|task| task.unwrap().output == here).collect()
        });
        assert_eq!(threads, [true; 5]);
    });
}

#[test]
fn run_inside_a_task_of_the_same_one_thread_pool_completes() {
    // As rayon's self_install.
    watchdog(|| {
        let shared = pool(1);
        let inner = Arc::clone(&shared);
        let run = (0..10u64).futureproof(Raise).on(shared);
        let run = run.map_tasks(infallible(move |n: &u64| sum_on(&inner, *n)));
        let total: u64 = run.map(|task| task.unwrap().output).sum();
        assert_eq!(total, (0..10u64).map(|n| n * n.saturating_sub(1)).sum());
    });
}

#[test]
fn runs_nest_three_deep_on_one_pool() {
    watchdog(|| {
        for threads in [1, 2] {
            let outer = pool(threads);
            let (middle, inner) = (Arc::clone(&outer), Arc::clone(&outer));
            let run =
                (0..4u64)
                    .futureproof(Raise)
                    .on(outer)
                    .map_tasks(infallible(move |_: &u64| {
                        let inner = Arc::clone(&inner);
                        let run = (0..4u64).futureproof(Raise).on(Arc::clone(&middle));
                        let run = run.map_tasks(infallible(move |_: &u64| sum_on(&inner, 4)));
                        run.map(|task| task.unwrap().output).sum::<u64>()
                    }));
            assert_eq!(run.map(|task| task.unwrap().output).sum::<u64>(), 16 * 12);
        }
    });
}

#[test]
fn own_pool_inside_a_task_of_another_run_completes() {
    watchdog(|| {
        let run = (0..8u64)
            .futureproof(Raise)
            .num_threads(1)
            .map_tasks(infallible(|n: &u64| {
                let run = (0..*n).futureproof(Raise).num_threads(2);
                run.map_tasks(infallible(double))
                    .map(|task| task.unwrap().output)
                    .sum::<u64>()
            }));
        assert_eq!(run.count(), 8);
    });
}

#[test]
fn run_on_the_scope_inside_a_pool_completes() {
    // As rayon's in_place_scope_no_deadlock.
    watchdog(|| {
        let pool = pool(1);
        let items = [1u64, 2, 3];
        let sum = pool.install(|| {
            rayon::in_place_scope(|s| {
                let run = items.iter().futureproof(Raise).on(s);
                let run = run.map_tasks(infallible(|n: &&u64| **n * 2));
                run.map(|task| task.unwrap().output).sum::<u64>()
            })
        });
        assert_eq!(sum, 12);
    });
}

#[test]
fn source_and_function_may_both_use_rayon() {
    // As rayon's par_bridge_recursion.
    watchdog(|| {
        let shared = pool(2);
        let (sources, tasks) = (Arc::clone(&shared), Arc::clone(&shared));
        let source =
            (0..50u64).map(move |n| sources.install(|| (0..n).into_par_iter().sum::<u64>()));
        let run = source
            .futureproof(Raise)
            .on(shared)
            .map_tasks(infallible(move |n: &u64| {
                let (a, b) = rayon::join(|| n + 1, || n + 2);
                tasks.install(|| (0..10u64).into_par_iter().map(|i| i + a + b).sum::<u64>())
            }));
        assert_eq!(run.count(), 50);
    });
}

#[test]
fn iterated_inside_another_pool_while_tasks_install_on_the_first() {
    // As rayon's cross_pool_busy: the only thread of the first pool waits in `install`.
    watchdog(|| {
        let (first, second) = (pool(1), pool(1));
        for is_shared in [false, true] {
            let back = Arc::clone(&first);
            let work = infallible(move |n: &u64| back.install(|| n * 2));
            let sum: u64 = first.install(|| {
                second.install(|| {
                    let run = (0..20u64).futureproof(Raise).num_threads(2);
                    let run = if is_shared {
                        run.on(Arc::clone(&second)).map_tasks(work)
                    } else {
                        run.map_tasks(work)
                    };
                    run.map(|task| task.unwrap().output).sum()
                })
            });
            assert_eq!(sum, 380);
        }
    });
}

#[test]
fn panic_of_the_consumer_leaves_a_shared_pool_as_it_was() {
    // As conc's "panic in callback does not block producers".
    watchdog(|| {
        let pool = pool(2);
        for _ in 0..20 {
            let left = catch_unwind(AssertUnwindSafe(|| {
                let run = (0u64..).futureproof(Raise).on(Arc::clone(&pool));
                for task in run.map_tasks(infallible(double)) {
                    if task.unwrap().index > 10 {
                        resume_unwind(Box::new("expected"));
                    }
                }
            }));
            assert_eq!(left.unwrap_err().downcast_ref(), Some(&"expected"));
        }
        assert_eq!(sum_on(&pool, 100), 9_900);
    });
}

#[test]
fn shared_pool_is_usable_after_panics() {
    // As threadpool's test_recovery_from_subtask_panic.
    watchdog(|| {
        let pool = pool(2);
        for _ in 0..5 {
            let run = (0..10u32).futureproof(Ignore).on(Arc::clone(&pool));
            let run = run.map_tasks(|_| -> Result<(), ()> { resume_unwind(Box::new("expected")) });
            assert!(
                run.map(|result| result.unwrap_err().is_panic())
                    .eq([true; 10])
            );
            let run = (0..10u32).futureproof(Raise).on(Arc::clone(&pool));
            let run = run.map_tasks(|_| -> Result<(), ()> { resume_unwind(Box::new("expected")) });
            assert_eq!(run.count(), 1);
            assert_eq!(sum_on(&pool, 100), 9_900);
        }
        assert_eq!(
            pool.install(|| (0..100u64).into_par_iter().sum::<u64>()),
            4_950
        );
    });
}

#[test]
fn shared_pool_serves_two_interleaved_runs() {
    watchdog(|| {
        let pool = pool(1);
        let run = |pool: &Arc<ThreadPool>| {
            let run = (0..100u64).futureproof(Raise).on(Arc::clone(pool));
            run.map_tasks(infallible(double))
        };
        let (mut a, mut b) = (run(&pool), run(&pool));
        let mut delivered = 0;
        while let (Some(a), Some(b)) = (a.next(), b.next()) {
            delivered += a.unwrap().output + b.unwrap().output;
        }
        assert_eq!(delivered, 2 * 9_900);
    });
}

#[test]
fn shared_pool_outlives_runs_that_are_dropped() {
    watchdog(|| {
        let pool = pool(2);
        for taken in 0..30 {
            let run = (0u64..).futureproof(Raise).on(Arc::clone(&pool));
            assert_eq!(run.map_tasks(infallible(double)).take(taken).count(), taken);
        }
        assert_eq!(sum_on(&pool, 10), 90);
        let mut pool = pool;
        assert!(Arc::get_mut(&mut pool).is_some(), "a run has kept the pool");
    });
}

#[test]
fn an_error_in_any_of_three_stages_ends_all() {
    // As par-iter-sync's par_iter_chained_exception.
    watchdog(|| {
        for failing in 0..3 {
            let stage = move |at: usize| {
                move |n: &u64| {
                    if at == failing && *n >= 20 {
                        Err(at)
                    } else {
                        Ok(*n)
                    }
                }
            };
            let failure = Arc::new(Mutex::new(None));
            let pulled = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&pulled);
            let source = (0..1_000_000u64).inspect(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            let note = |failure: &Arc<Mutex<Option<usize>>>| {
                let failure = Arc::clone(failure);
                move |result: Result<Task<u64, u64>, TaskError<u64, usize>>| match result {
                    Ok(task) => Some(task.output),
                    Err(error) => {
                        *failure.lock().unwrap() = error.error().copied();
                        None
                    }
                }
            };
            let first = source.futureproof(Raise).num_threads(2).max_in_flight(16);
            let first = first.map_tasks(stage(0)).map_while(note(&failure));
            let second = first.futureproof(Raise).num_threads(2).max_in_flight(16);
            let second = second.map_tasks(stage(1)).map_while(note(&failure));
            let third = second.futureproof(Raise).num_threads(2).max_in_flight(16);
            let third = third.map_tasks(stage(2)).map_while(note(&failure));
            assert!(third.count() < 1_000_000);
            assert_eq!(*failure.lock().unwrap(), Some(failing));
            assert!(pulled.load(Ordering::Relaxed) < 1_000_000);
        }
    });
}

#[test]
fn no_lock_is_held_while_user_code_runs() {
    // As rayon#592 and #1142: here a task reads the run's figures and cancels its token.
    watchdog(|| {
        let token = CancellationToken::new();
        let (progress, shared) = mpsc::channel();
        let shared = Mutex::new(shared);
        let inside = token.clone();
        let mut run = (0..)
            .futureproof(Raise)
            .num_threads(2)
            .cancel_on(&token)
            .map_tasks(infallible(move |n: &u64| {
                if *n == 0 {
                    let progress: futureproof::Progress = shared.lock().unwrap().recv().unwrap();
                    inside.cancel();
                    assert!(progress.snapshot().pulled() > 0);
                }
            }));
        progress.send(run.progress()).unwrap();
        run.by_ref().for_each(drop);
        assert_eq!(run.ending(), Some(Ending::Cancelled));
    });
}

/// Whether the tasks of `run` are on other threads than this one.
fn is_elsewhere<'s>(home: impl futureproof::Spawn<'s>) -> bool {
    let here = thread::current().id();
    let run = (0..10u32).futureproof(Raise).on(home);
    let run = run.map_tasks(infallible(move |_: &u32| thread::current().id() != here));
    run.flatten().all(|task| task.output)
}

#[test]
fn tasks_run_on_the_threads_that_are_given() {
    watchdog(|| {
        assert!(is_elsewhere(pool(2)));
        // On this thread, and so on none of rayon's.
        assert!(rayon::in_place_scope(|s| is_elsewhere(s)));
        assert!(futureproof::scope(2, |s| is_elsewhere(s)));
    });
}
