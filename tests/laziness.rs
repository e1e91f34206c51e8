//! Nothing happens before the first `next`, and no more than asked for after it.

mod common;

use std::collections::HashSet;
use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::{Tally, watchdog};
use futureproof::Spawn;
use futureproof::prelude::*;

fn untouchable() -> impl Iterator<Item = u32> {
    iter::from_fn(|| panic!("pulled"))
}

#[test]
fn nothing_is_pulled_before_the_first_next() {
    let run = untouchable()
        .futureproof(Raise)
        .num_threads(2)
        .deadline(Duration::ZERO)
        .on_progress(|_| panic!("progress of nothing"))
        .map_tasks(infallible(|n: &u32| *n))
        .retry(|| [Duration::ZERO]);
    assert_eq!(run.progress().snapshot().pulled(), 0);
    assert_eq!(run.ending(), None);
    assert!(!format!("{run:?}").is_empty());
    drop(run);
}

#[cfg(target_os = "linux")]
#[test]
fn no_thread_exists_before_the_first_next() {
    use common::{soon, threads_named};
    let mut run = (0..10)
        .futureproof(Raise)
        .name("lazy-a")
        .num_threads(3)
        .on_progress(|_| ())
        .map_tasks(infallible(|n: &u32| *n));
    assert_eq!(threads_named("lazy-a").len(), 0);
    run.next().unwrap().unwrap();
    // The monitor, and up to three workers, as jobs come; a thread names itself when it starts.
    assert!(soon(|| (2..=4).contains(&threads_named("lazy-a").len())));
    drop(run);
    assert!(soon(|| threads_named("lazy-a").is_empty()));
}

// more-executors: test_no_leak_on_noop.
#[test]
fn an_unconsumed_run_drops_its_parts_once() {
    let tally = Tally::default();
    let (in_source, in_f) = (tally.token(), tally.token());
    let source = iter::from_fn(move || {
        let _ = &in_source;
        panic!("pulled") as Option<u32>
    });
    drop(
        source
            .futureproof(Raise)
            .map_tasks(infallible(move |n: &u32| {
                let _ = &in_f;
                *n
            })),
    );
    assert_eq!((tally.made(), tally.dropped()), (2, 2));
}

#[test]
fn a_remainder_before_the_first_next_is_the_whole_source() {
    let run = (0..10)
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u32| *n));
    let remainder = run.into_remainder();
    assert!(remainder.finished.is_empty() && remainder.unprocessed.is_empty());
    assert!(remainder.source.eq(0..10));
}

#[test]
fn an_empty_source_ends_at_once() {
    let mut run = iter::empty::<u32>()
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u32| *n));
    assert!(run.next().is_none() && run.next().is_none());
    assert_eq!(run.ending(), Some(futureproof::Ending::Exhausted));
}

// joblib: test_parallel_with_exhausted_iterator.
#[test]
fn an_exhausted_source_gives_an_empty_run() {
    let mut source = 0..3u32;
    source.by_ref().for_each(drop);
    assert_eq!(
        source
            .futureproof(Raise)
            .map_tasks(infallible(|n: &u32| *n))
            .count(),
        0
    );
}

#[test]
fn the_first_next_gives_one_task_and_the_others_follow() {
    watchdog(|| {
        let mut run = (0..5u32)
            .futureproof(Raise)
            .num_threads(2)
            .map_tasks(infallible(|n: &u32| n * n));
        let first = run.next().unwrap().unwrap();
        assert_eq!(first.output, first.input * first.input);
        let mut all: Vec<u32> = run
            .map(|task| task.unwrap().input)
            .chain([first.input])
            .collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
    });
}

#[test]
fn the_first_three_of_an_infinite_source_arrive() {
    watchdog(|| {
        for window in [0, 1, 2, 3, 6] {
            let run = (0u64..)
                .futureproof(Raise)
                .num_threads(2)
                .max_in_flight(window);
            assert_eq!(run.map_tasks(infallible(|n: &u64| *n)).take(3).count(), 3);
        }
    });
}

// elixir: "terminates outer effect".
#[test]
fn the_source_is_dropped_once() {
    let tally = Tally::default();
    let token = tally.token();
    let source = (0..100u32)
        .inspect(move |_| {
            let _ = &token;
        })
        .take(7);
    assert_eq!(
        source
            .futureproof(Raise)
            .map_tasks(infallible(|n: &u32| *n))
            .count(),
        7
    );
    assert_eq!(tally.dropped(), 1);
}

#[test]
fn the_source_is_never_asked_again_after_none() {
    watchdog(|| {
        for chunk in [0, 1, 3, 64] {
            let mut asked = 0;
            let source = iter::from_fn(move || {
                asked += 1;
                assert!(asked <= 11, "asked again after `None`");
                (asked <= 10).then_some(asked)
            });
            let mut run = source
                .futureproof(Ignore)
                .num_threads(2)
                .chunk_size(chunk)
                .map_tasks(infallible(|n: &u32| *n));
            assert_eq!(run.by_ref().count(), 10);
            assert!((0..5).all(|_| run.next().is_none()));
            assert_eq!(run.into_remainder().unprocessed.len(), 0);
        }
    });
}

// rayon: compile_fail/rc_upvar, the other way round.
#[test]
fn a_source_need_not_be_send() {
    let shared = std::rc::Rc::new(3u32);
    let source = (0..4u32).map(move |n| n + *shared);
    assert_eq!(
        source
            .futureproof(Raise)
            .map_tasks(infallible(|n: &u32| *n))
            .flatten()
            .map(|task| task.output)
            .sum::<u32>(),
        18
    );
}

#[test]
fn as_many_threads_run_as_were_asked_for() {
    watchdog(|| {
        for threads in [1, 2, 5] {
            let barrier = Barrier::new(threads);
            let run = (0..threads * 20)
                .futureproof(Raise)
                .num_threads(threads)
                .chunk_size(1);
            let run = run.map_tasks(move |_: &usize| {
                barrier.wait(); // passed only by so many at once
                Ok::<_, ()>(thread::current().id())
            });
            let used: HashSet<_> = run.map(|task| task.unwrap().output).collect();
            assert_eq!(used.len(), threads);
        }
    });
}

#[test]
fn concurrency_stays_within_its_limit_and_returns_to_zero() {
    watchdog(|| {
        for threads in [1, 3, 10, 100] {
            let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (inside, highest) = (Arc::clone(&now), Arc::clone(&peak));
            let run = (0..1000)
                .futureproof(Raise)
                .num_threads(threads)
                .map_tasks(infallible(move |_: &u32| {
                    highest.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                    thread::yield_now();
                    inside.fetch_sub(1, SeqCst);
                }));
            assert_eq!(run.count(), 1000);
            assert!(peak.load(SeqCst) <= threads);
            assert_eq!(now.load(SeqCst), 0);
        }
    });
}

#[test]
fn worker_threads_carry_the_name() {
    let name = |_: &u32| thread::current().name().map(str::to_owned);
    let run = (0..50)
        .futureproof(Raise)
        .num_threads(2)
        .name("lazy\0-names")
        .map_tasks(infallible(name));
    assert!(
        run.map(|task| task.unwrap().output.unwrap())
            .all(|name| name == "lazy-names-0" || name == "lazy-names-1")
    );
}

/// Runs jobs where they are handed over, and counts them.
struct Counting(Arc<AtomicUsize>);

impl Spawn<'static> for Counting {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.0.fetch_add(1, SeqCst);
        job();
    }
}

#[test]
fn nobody_is_sent_for_nothing() {
    for items in [0, 1, 4] {
        let jobs = Arc::new(AtomicUsize::new(0));
        let run = (0..items).futureproof(Raise).chunk_size(1);
        let run = run.on(Counting(Arc::clone(&jobs)));
        assert_eq!(
            run.map_tasks(infallible(|n: &u32| *n)).count(),
            items as usize
        );
        assert_eq!(jobs.load(SeqCst), items as usize);
    }
}
