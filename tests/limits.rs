//! Too much and too little: counts and durations of any size, threads that cannot be had, a stack that is too small.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use common::child::Child;
use common::lines::{collect_lines, lines_of, on_log};
use common::{AThreadEach, Gate, watchdog};
use futureproof::prelude::*;
use log::LevelFilter;

/// With stacks that no machine has room for, no thread can be had but those that say how large theirs is.
#[cfg(target_os = "linux")]
#[test]
fn threads_that_cannot_be_had_are_an_answer() {
    let child = Child::new("").env("RUST_MIN_STACK", 1u64 << 60);
    child.must_survive(|| {
        collect_lines(LevelFilter::Trace);
        let message_of = |next: &mut dyn FnMut()| {
            let payload = catch_unwind(AssertUnwindSafe(next)).unwrap_err();
            payload.downcast_ref::<String>().unwrap().clone()
        };
        let run = (0..10u32).futureproof(Raise).num_threads(2);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        let message = message_of(&mut || drop(run.next()));
        assert!(
            message.starts_with("cannot build a pool of 2 threads"),
            "{message}"
        );
        assert_eq!(run.into_remainder().source.count(), 10);
        let message = message_of(&mut || futureproof::scope(1, |_| ()));
        assert!(
            message.starts_with("cannot build a pool of 1 threads"),
            "{message}"
        );
        // A pool that does run, but no thread for the monitor, and none to read ahead.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .stack_size(1 << 20)
            .build();
        let pool = Arc::new(pool.unwrap());
        let run = (0..10u32).futureproof(Raise).on(Arc::clone(&pool));
        assert_eq!(
            run.name("unwatched")
                .on_progress(|_| ())
                .map_tasks(infallible(|n: &u32| *n))
                .count(),
            10
        );
        let lines = lines_of("unwatched");
        let is_told = |(_, line): &(_, String)| line.contains("cannot start the monitor's thread");
        assert!(lines.iter().any(is_told), "{lines:?}");
        let run = (0..10u32).read_ahead(4).futureproof(Raise).on(pool);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        let message = message_of(&mut || drop(run.next()));
        assert!(
            message.starts_with("cannot start the thread that reads ahead"),
            "{message}"
        );
        assert!(run.next().is_none());
    });
}

/// Where some threads can be had, the run makes do with them.
#[cfg(target_os = "linux")]
#[test]
fn a_pool_makes_do_with_the_threads_that_it_gets() {
    let child = Child::new("").after("ulimit -v 1048576");
    let ended = child.env("RUST_MIN_STACK", 256u64 << 20).run(|| {
        // The tasks take until it is said, as a run that is over needs no more threads.
        let is_said = Gate::default();
        let gate = is_said.clone();
        on_log(LevelFilter::Trace, move |record| {
            let line = record.args().to_string();
            println!("{line}");
            if line.contains("of 32 threads") {
                gate.open();
            }
        });
        let run = (0..100u32)
            .futureproof(Raise)
            .num_threads(32)
            .monitor_interval(Duration::ZERO);
        let run = run.map_tasks(infallible(move |_: &u32| is_said.pass()));
        assert_eq!(run.count(), 100);
    });
    if let Some(ended) = ended {
        assert!(ended.status.success(), "{}", ended.text);
        assert!(
            ended
                .text
                .contains("of 32 threads, and goes on with those:"),
            "{}",
            ended.text
        );
    }
}

#[test]
fn no_count_of_threads_means_that_of_the_environment() {
    let child = Child::new("").env("RAYON_NUM_THREADS", 3);
    child.must_survive(|| {
        let barrier = Arc::new(Barrier::new(3));
        let run = (0..3u32).futureproof(Raise).chunk_size(1);
        let run = run.map_tasks(infallible(move |_: &u32| barrier.wait().is_leader()));
        assert_eq!(run.count(), 3);
    });
}

/// No value of an option is an error, with whatever home.
#[test]
fn threads_without_number_are_no_trouble() {
    let run = (0..200u32).futureproof(Raise).num_threads(usize::MAX);
    assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 200);
    for items in [1, 1_000u32] {
        let run = (0..items).futureproof(Raise).num_threads(usize::MAX);
        let run = run.max_in_flight(usize::MAX).on(AThreadEach);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        assert_eq!(run.by_ref().count(), items as usize);
        assert!(!run.report().workers().is_empty());
    }
}

/// One run with these options, whose every index must come once.
fn counts<I, T>(items: usize, window: usize, chunk: usize, source: I, f: fn(&I::Item) -> T)
where
    I: Iterator<Item: Send + 'static>,
    T: Send + 'static,
{
    let run = source
        .futureproof(Raise)
        .num_threads(2)
        .max_in_flight(window)
        .chunk_size(chunk);
    let mut seen: Vec<_> = run
        .map_tasks(infallible(f))
        .map(|task| task.unwrap().index)
        .collect();
    seen.sort_unstable();
    assert!(
        seen.into_iter().eq(0..items as u64),
        "{items} items, {window}, {chunk}"
    );
}

#[test]
fn any_counts_fit_any_items() {
    // A watch for each window, as these are many runs.
    for window in [0, 1, 5, usize::MAX] {
        watchdog(move || {
            for chunk in [0, 1, 8, 65_536, 65_537, usize::MAX] {
                for items in [0, 1, 7, 8, 9, 15, 16, 17, 24] {
                    counts(items, window, chunk, 0..items, |n| *n);
                    counts(items, window, chunk, (0..items).map(|_| ()), |_| ());
                }
                counts(
                    3,
                    window,
                    chunk,
                    (0..3).map(|_| Box::new([0u8; 1 << 20])),
                    |block| block.len(),
                );
                counts(
                    9,
                    window,
                    chunk,
                    (0..9).map(|n| [n as u8; 64 << 10]),
                    |block| block[0],
                );
                let run = (0..300u32).futureproof(Raise).read_ahead(usize::MAX);
                let run = run.map_tasks(infallible(|n: &u32| *n));
                let mut source = run.into_remainder().source;
                assert_eq!(source.next(), Some(0));
                counts(299, window, chunk, source, |n| *n);
            }
        });
    }
}

#[test]
fn the_longest_durations_do() {
    watchdog(|| {
        let longest = Duration::MAX;
        let run = (0..50u32).futureproof(Ignore).monitor_interval(longest);
        let run = run.on_progress(|_| ()).deadline(longest);
        let run = run.map_tasks(|n: &u32| if *n == 3 { Err(()) } else { Ok(()) });
        let mut run = run.retry(move || [longest]);
        assert_eq!(run.by_ref().take(49).count(), 49);
        assert_eq!(run.into_remainder().unprocessed, [(3, 3)]);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_stack_that_overflows_kills_the_process_and_does_not_hang_it() {
    fn deep(n: u64) -> u64 {
        std::hint::black_box([n; 100])[7] + if n == u64::MAX { 0 } else { deep(n + 1) }
    }
    let ended = Child::new("").run(|| {
        let run = (0..4u64).futureproof(Ignore).num_threads(2);
        run.map_tasks(infallible(|n: &u64| deep(*n))).for_each(drop);
    });
    if let Some(ended) = ended {
        let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        assert_eq!(signal, Some(6), "{}", ended.text);
        assert!(
            ended.text.contains("overflowed its stack"),
            "{}",
            ended.text
        );
    }
}

/// Where each item holds a file open, the log says once why tasks fail, and what to do.
#[cfg(target_os = "linux")]
#[test]
fn the_log_says_what_to_do_about_too_many_open_files() {
    let child = Child::new("").after("ulimit -n 200");
    child.must_survive(|| {
        collect_lines(LevelFilter::Warn);
        let run = |name: &str, window: usize| {
            let run = (0..5_000u32).futureproof(Ignore).name(name);
            let run = run.num_threads(4).max_in_flight(window).ordered();
            // The results stay open until they are delivered.
            let run = run.map_tasks(|_: &u32| std::fs::File::open("/dev/null"));
            let failed = run.filter(Result::is_err).count();
            (failed, lines_of(name))
        };
        let (failed, lines) = run("wide", 4_000);
        let [(_, line)] = &lines[..] else {
            panic!("{failed} failed: {lines:?}");
        };
        assert!(failed > 0 && line.contains("too many files are open, while "));
        assert!(line.ends_with("set `max_in_flight`"), "{line}");
        assert_eq!(run("narrow", 60), (0, vec![]));
    });
}
