//! With `with_state`, each worker has a state of its own, and a panic never leaves a broken one behind.

mod common;

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Weak};
use std::thread;

use common::{Tally, Token, pool, watchdog};
use futureproof::Ending;
use futureproof::prelude::*;

#[test]
fn state_is_made_once_per_worker() {
    // As CPython's test_initializer.
    watchdog(|| {
        const THREADS: usize = 4;
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let all_at_work = Barrier::new(THREADS);
        let init = move || (count.fetch_add(1, Ordering::SeqCst), thread::current().id());
        let work = with_state(init, move |(number, maker), n: &usize| {
            assert_eq!(*maker, thread::current().id());
            if *n < THREADS {
                all_at_work.wait();
            }
            Ok::<_, ()>((*number, *maker))
        });
        let run = (0..500)
            .futureproof(Raise)
            .num_threads(THREADS)
            .chunk_size(1);
        let outputs: Vec<_> = run
            .map_tasks(work)
            .map(|task| task.unwrap().output)
            .collect();
        assert_eq!(outputs.len(), 500);
        assert_eq!(made.load(Ordering::SeqCst), THREADS);
        let makers: HashMap<_, _> = outputs.into_iter().collect();
        assert_eq!(makers.len(), THREADS);
    });
}

#[test]
fn state_carries_over_from_task_to_task() {
    let count = with_state(
        || 0,
        |seen: &mut u32, _: &u32| {
            *seen += 1;
            Ok::<_, ()>(*seen)
        },
    );
    let run = (0..100).futureproof(Raise).num_threads(1).map_tasks(count);
    assert!(run.map(|task| task.unwrap().output).eq(1..=100));
}

#[test]
fn state_survives_an_error() {
    let count = with_state(
        || 0,
        |seen: &mut u32, n: &u32| {
            *seen += 1;
            if n % 2 == 0 { Err(*seen) } else { Ok(*seen) }
        },
    );
    let run = (0..10).futureproof(Ignore).num_threads(1).map_tasks(count);
    let seen = run.map(|result| match result {
        Ok(task) => task.output,
        Err(error) => *error.error().unwrap(),
    });
    assert!(seen.eq(1..=10));
}

#[test]
fn panic_discards_the_state() {
    let count = with_state(
        || 0,
        |seen: &mut u32, n: &u32| {
            *seen += 1;
            if *n == 4 {
                resume_unwind(Box::new("expected"));
            }
            Ok::<_, ()>(*seen)
        },
    );
    let run = (0..10)
        .futureproof(Ignore)
        .num_threads(1)
        .ordered()
        .map_tasks(count);
    let seen: Vec<_> = run
        .map(|result| result.map_or(0, |task| task.output))
        .collect();
    assert_eq!(seen, [1, 2, 3, 4, 0, 1, 2, 3, 4, 5]);
}

#[test]
fn init_that_panics_is_the_failure_of_that_task() {
    let made = AtomicUsize::new(0);
    let init = move || {
        if made.fetch_add(1, Ordering::SeqCst) == 0 {
            resume_unwind(Box::new("no connection"));
        }
    };
    let work = with_state(init, |(), n: &u32| Ok::<_, ()>(*n));
    let run = (0..5)
        .futureproof(Ignore)
        .num_threads(1)
        .ordered()
        .map_tasks(work);
    let results: Vec<_> = run.collect();
    assert_eq!(
        results[0].as_ref().unwrap_err().panic_message(),
        Some("no connection")
    );
    assert!(results[1..].iter().all(Result::is_ok));
}

#[test]
fn init_that_always_panics_fails_every_task() {
    watchdog(|| {
        let init = || -> () { resume_unwind(Box::new("no connection")) };
        let run = (0..50u32).futureproof(Ignore).num_threads(3);
        let run = run.map_tasks(with_state(init, |(), n: &u32| Ok::<_, ()>(*n)));
        assert_eq!(
            run.filter(|result| result.as_ref().is_err_and(TaskError::is_panic))
                .count(),
            50
        );

        let run = (0..50u32).futureproof(Raise).num_threads(3);
        let mut run = run.map_tasks(with_state(init, |(), n: &u32| Ok::<_, ()>(*n)));
        assert!(run.next().unwrap().unwrap_err().is_panic());
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Failed));
    });
}

#[test]
fn call_inside_a_call_gets_a_fresh_state() {
    watchdog(|| {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let pool = pool(1);
        let init = move || {
            count.fetch_add(1, Ordering::SeqCst);
            false
        };
        // The only worker takes up another job while it waits in the first.
        let work = with_state(init, |in_use: &mut bool, n: &u32| {
            assert!(!*in_use, "a state was lent twice");
            *in_use = true;
            if *n % 2 == 0 {
                rayon::yield_now();
            }
            *in_use = false;
            Ok::<_, ()>(())
        });
        let run = (0..20u32).futureproof(Raise).chunk_size(1).on(pool);
        for task in run.map_tasks(work) {
            task.unwrap();
        }
        assert!(made.load(Ordering::SeqCst) >= 1);
    });
}

#[test]
fn recursion_gets_a_state_of_its_own() {
    type Work = dyn Fn(&u32) -> Result<u32, ()> + Send + Sync;
    let itself: Arc<std::sync::OnceLock<Weak<Work>>> = Arc::default();
    let inner = Arc::clone(&itself);
    let work: Arc<Work> = Arc::new(with_state(
        || 0,
        move |calls: &mut u32, n: &u32| {
            *calls += 1;
            if *n > 0 {
                let work = inner.get().unwrap().upgrade().unwrap();
                assert_eq!(work(&(n - 1)), Ok(1));
            }
            Ok(*calls)
        },
    ));
    assert!(itself.set(Arc::downgrade(&work)).is_ok());
    assert_eq!(work(&3), Ok(1));
    // The state of the outermost call was put back last.
    assert_eq!(work(&0), Ok(2));
}

#[test]
fn states_are_dropped_with_the_run() {
    let tally = Tally::default();
    let states = tally.clone();
    let work = with_state(
        move || states.token(),
        |_: &mut Token, n: &u32| {
            if *n % 7 == 0 {
                resume_unwind(Box::new("expected"));
            }
            Ok::<_, ()>(())
        },
    );
    let mut run = (0..).futureproof(Ignore).num_threads(3).map_tasks(work);
    assert_eq!(run.by_ref().take(100).count(), 100);
    drop(run);
    assert!(tally.made() > 0);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn one_function_serves_an_unsized_input() {
    let lengths = with_state(String::new, |buffer: &mut String, text: &str| {
        buffer.push_str(text);
        Ok::<_, ()>(buffer.len())
    });
    assert_eq!(lengths("abc"), Ok(3));
    assert_eq!(lengths("de"), Ok(5));
}
