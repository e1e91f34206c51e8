//! What each policy does with a failure.

mod common;

use std::error::Error as _;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::child::in_child;
use common::lines::{collect_lines, lines_of, on_log};
use common::{Gate, pool, until_told, watchdog};
use futureproof::prelude::*;
use futureproof::{Cause, Ending, Futureproof};
use log::{Level, LevelFilter};

/// The lines about failures of the run of this name.
fn failures_of(name: &str) -> Vec<(Level, String)> {
    let lines = lines_of(name).into_iter();
    lines.filter(|(level, _)| *level <= Level::Warn).collect()
}

#[derive(Debug, PartialEq)]
struct Odd(u32);

impl std::fmt::Display for Odd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is odd", self.0)
    }
}

impl std::error::Error for Odd {}

fn fail_from(first: u32) -> impl Fn(&u32) -> Result<u32, Odd> {
    move |n| if *n >= first { Err(Odd(*n)) } else { Ok(*n) }
}

fn fail_at(which: u32) -> impl Fn(&u32) -> Result<u32, Odd> {
    move |n| if *n == which { Err(Odd(*n)) } else { Ok(*n) }
}

// futureproof: test_raise_immediate_exceptions.
#[test]
fn raise_hands_over_the_original_error_and_its_item() {
    let run = (0..100)
        .futureproof(Raise)
        .num_threads(2)
        .map_tasks(fail_at(7));
    let error = run.filter_map(Result::err).next().unwrap();
    assert_eq!(
        (
            error.index(),
            *error.input(),
            error.attempts(),
            error.is_panic()
        ),
        (7, 7, 1, false)
    );
    assert_eq!(error.error(), Some(&Odd(7)));
    assert_eq!(error.source().unwrap().to_string(), "7 is odd");
    assert_eq!(error.to_string(), "task 7 failed");
    let (index, input, cause) = error.into_parts();
    assert!(matches!(
        (index, input, cause),
        (7, 7, Cause::Failed(Odd(7)))
    ));
}

// fs2: "if two errors happen only one is reported".
#[test]
fn raise_yields_one_error_then_none() {
    watchdog(|| {
        for round in 0..100 {
            let mut run = (0..1000)
                .futureproof(Raise)
                .num_threads(4)
                .chunk_size(round % 5)
                .map_tasks(fail_from(20));
            assert_eq!(run.by_ref().filter(Result::is_err).count(), 1);
            assert!((0..3).all(|_| run.next().is_none()));
            assert_eq!(run.ending(), Some(Ending::Failed));
        }
    });
}

#[test]
fn raise_starts_nothing_after_a_failure() {
    watchdog(|| {
        for chunk in [0, 1, 3, 64] {
            let calls = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&calls);
            let run = (0..1000)
                .futureproof(Raise)
                .num_threads(1)
                .chunk_size(chunk)
                .map_tasks(move |n: &u32| {
                    count.fetch_add(1, SeqCst);
                    fail_at(10)(n)
                });
            assert_eq!(run.filter(Result::is_err).count(), 1);
            assert_eq!(calls.load(SeqCst), 11, "chunks of {chunk}");
        }
    });
}

#[test]
fn raise_delivers_the_failure_at_once_and_then_waits_for_what_runs() {
    delivers_a_failure_and_waits_for_what_runs(|run| run);
}

#[test]
fn raise_waits_for_what_runs_where_a_cancel_could_cut_that_short() {
    delivers_a_failure_and_waits_for_what_runs(|run| run.cancel_on(&CancellationToken::new()));
}

fn delivers_a_failure_and_waits_for_what_runs(
    guard: fn(Futureproof<Range<u32>>) -> Futureproof<Range<u32>>,
) {
    watchdog(move || {
        let (gate, entered) = (Gate::default(), Gate::default());
        let done = Arc::new(AtomicBool::new(false));
        let (blocked, first_runs, finished) = (gate.clone(), entered.clone(), Arc::clone(&done));
        let run = (0..2u32).futureproof(Raise).num_threads(2).chunk_size(1);
        let mut run = guard(run).map_tasks(move |n: &u32| {
            if *n == 1 {
                first_runs.pass();
                return Err(());
            }
            first_runs.open();
            blocked.pass();
            finished.store(true, SeqCst);
            Ok(())
        });
        assert_eq!(run.next().unwrap().unwrap_err().index(), 1);
        assert!(!done.load(SeqCst));
        let opener = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            gate.open();
        });
        assert!(run.next().is_none());
        assert!(done.load(SeqCst));
        opener.join().unwrap();
        let remainder = run.into_remainder();
        assert_eq!(remainder.finished.len(), 1);
        assert_eq!(remainder.finished[0].as_ref().unwrap().input, 0);
    });
}

// futureproof: test_submit_flaky_functions.
#[test]
fn raise_stops_a_flaky_batch_early() {
    let run = (1..=100u32)
        .futureproof(Raise)
        .num_threads(3)
        .map_tasks(|n: &u32| {
            thread::sleep(Duration::from_millis(10));
            if n % 5 == 0 { Err(Odd(*n)) } else { Ok(()) }
        });
    let tasks: Vec<_> = run.collect();
    assert!(tasks.len() < 20, "{} of 100", tasks.len());
    let error = tasks.into_iter().find_map(Result::err).unwrap();
    assert_eq!(error.input() % 5, 0);
}

#[test]
fn raise_ends_an_infinite_run() {
    watchdog(|| {
        assert_eq!(
            (0..)
                .futureproof(Raise)
                .map_tasks(fail_at(5_000))
                .filter(Result::is_err)
                .count(),
            1
        )
    });
}

// orx-parallel: res_collect.
#[test]
fn the_result_of_a_collect_is_the_failure_or_all() {
    for (which, expected) in [(50, Err(Odd(50))), (1000, Ok(100))] {
        let run = (0..100)
            .futureproof(Raise)
            .num_threads(3)
            .map_tasks(fail_at(which));
        let result: Result<Vec<_>, _> = run.collect();
        let result = result
            .map(|tasks| tasks.len())
            .map_err(|error| match error.into_parts().2 {
                Cause::Failed(error) => error,
                _ => unreachable!(),
            });
        assert_eq!(result, expected);
    }
}

#[test]
fn ordered_raise_delivers_all_before_the_failure() {
    watchdog(|| {
        for chunk in [0, 1, 7] {
            let run = (0..1000)
                .futureproof(Raise)
                .num_threads(4)
                .ordered()
                .chunk_size(chunk)
                .map_tasks(fail_from(123));
            let seen: Vec<_> = run
                .map(|task| task.map_or_else(|error| error.index(), |task| task.index))
                .collect();
            assert!(seen.into_iter().eq(0..=123));
        }
    });
}

// GNU parallel: --halt soon,fail=N; Spring Batch: skip limit.
#[test]
fn tolerate_stops_at_one_failure_more() {
    watchdog(|| {
        for budget in [0, 1, 5] {
            let mut run = (0..1000)
                .futureproof(Tolerate(budget))
                .num_threads(1)
                .map_tasks(fail_from(10));
            assert_eq!(
                run.by_ref().filter(Result::is_err).count() as u64,
                budget + 1
            );
            assert_eq!(run.ending(), Some(Ending::Failed));
            assert!(run.next().is_none());
        }
    });
}

#[test]
fn tolerate_survives_exactly_its_budget() {
    for chunk in [0, 1, 7] {
        let run = (0..1000)
            .futureproof(Tolerate(5))
            .num_threads(3)
            .chunk_size(chunk);
        let mut run = run.map_tasks(|n: &u32| if n % 200 == 0 { Err(()) } else { Ok(()) });
        assert_eq!(run.by_ref().count(), 1000);
        assert_eq!(run.ending(), Some(Ending::Exhausted));
    }
}

// cpython: test_map_exception; pebble: test_thread_pool_map_error.
#[test]
fn ignore_gives_values_error_and_later_values() {
    for chunk in [1, 3] {
        let run = (0..9)
            .futureproof(Ignore)
            .num_threads(2)
            .ordered()
            .chunk_size(chunk);
        let mut run = run.map_tasks(fail_at(4));
        let outcomes: Vec<_> = run
            .by_ref()
            .map(|task| task.map(|task| task.output).map_err(|error| error.index()))
            .collect();
        assert_eq!(
            outcomes,
            [
                Ok(0),
                Ok(1),
                Ok(2),
                Ok(3),
                Err(4),
                Ok(5),
                Ok(6),
                Ok(7),
                Ok(8)
            ]
        );
        assert!((0..3).all(|_| run.next().is_none()));
    }
}

// more-executors: test_submit_mixed.
#[test]
fn mixed_outcomes_keep_their_identity() {
    let run = (0..300u32).futureproof(Ignore).num_threads(4);
    let run = run.map_tasks(|n: &u32| match n % 3 {
        0 => Ok(n * 2),
        1 => Err(*n),
        _ => panic!("{n}"),
    });
    let mut seen = [0; 3];
    for task in run {
        match task {
            Ok(task) => {
                assert_eq!(
                    (task.index as u32, task.output),
                    (task.input, task.input * 2)
                );
                seen[0] += 1;
            }
            Err(error) if error.is_panic() => {
                assert_eq!(error.panic_message(), Some(&*error.input().to_string()));
                assert!(error.error().is_none());
                seen[2] += 1;
            }
            Err(error) => {
                assert_eq!(error.error(), Some(error.input()));
                seen[1] += 1;
            }
        }
    }
    assert_eq!(seen, [100; 3]);
}

#[test]
fn an_error_value_in_an_ok_is_a_success() {
    let run = (0..10)
        .futureproof(Raise)
        .map_tasks(|n: &u32| Ok::<Result<(), Odd>, ()>(Err(Odd(*n))));
    let progress = run.progress();
    assert_eq!(
        run.flatten().filter(|task| task.output.is_err()).count(),
        10
    );
    assert_eq!(progress.snapshot().failed(), 0);
}

// fs2: "error after the stream succeeded is lost".
#[test]
fn a_failure_after_take_has_ended_harms_nobody() {
    watchdog(|| {
        for _ in 0..50 {
            let run = (0..100)
                .futureproof(Raise)
                .num_threads(2)
                .max_in_flight(20)
                .ordered()
                .map_tasks(fail_from(3));
            assert_eq!(run.take(3).filter(Result::is_ok).count(), 3);
        }
    });
}

// futureproof: test_log_immediate_exceptions; pekko: "not invoke the decider twice".
#[test]
fn log_logs_each_failure_once() {
    collect_lines(LevelFilter::Trace);
    let run = (0..100).futureproof(Log).num_threads(3).name("log-once");
    let described = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&described);
    let run = run.map_tasks(|n: &u32| if n % 10 == 3 { Err(Odd(*n)) } else { Ok(()) });
    let run = run.describe(move |error| {
        count.fetch_add(1, SeqCst);
        format!("<{}>", error.input())
    });
    assert_eq!(run.count(), 100);
    let mut lines = failures_of("log-once");
    lines.sort();
    assert_eq!((lines.len(), described.load(SeqCst)), (10, 10));
    assert!(
        lines
            .iter()
            .all(|(level, line)| *level == Level::Error && line.contains('<'))
    );
    assert!(lines.windows(2).all(|two| two[0] != two[1]));
}

#[test]
fn log_logs_when_it_delivers() {
    collect_lines(LevelFilter::Trace);
    let mut run = (0..20)
        .futureproof(Log)
        .num_threads(1)
        .chunk_size(20)
        .name("log-when")
        .map_tasks(fail_from(0));
    for delivered in 1..=20 {
        assert!(run.next().unwrap().is_err());
        assert_eq!(failures_of("log-when").len(), delivered);
    }
}

#[test]
fn log_tells_of_panics_and_errors_by_their_text() {
    collect_lines(LevelFilter::Trace);
    let run = (0..2).futureproof(Log).num_threads(1).name("log-text");
    let run = run.map_tasks(|n: &u32| {
        if *n == 0 {
            Err::<(), _>(Odd(5))
        } else {
            panic!("ouch")
        }
    });
    assert_eq!(run.count(), 2);
    let lines = failures_of("log-text");
    assert!(
        lines[0].1.contains("task 0 failed") && lines[0].1.contains("Odd(5)"),
        "{lines:?}"
    );
    assert!(lines[1].1.contains("ouch"), "{lines:?}");
}

#[test]
fn tolerate_warns_and_the_silent_policies_do_not() {
    collect_lines(LevelFilter::Trace);
    for (policy, name, level, expected) in [
        (Tolerate(50), "p-tolerate", Some(Level::Warn), 10),
        (Raise, "p-raise", None, 0),
        (Ignore, "p-ignore", None, 0),
    ] {
        (0..10)
            .futureproof(policy)
            .num_threads(2)
            .name(name)
            .map_tasks(fail_from(0))
            .for_each(drop);
        let lines = failures_of(name);
        assert_eq!(lines.len(), expected);
        assert!(lines.iter().all(|(own, _)| Some(*own) == level));
    }
}

#[test]
fn failures_are_counted() {
    let run = (0..100)
        .futureproof(Ignore)
        .num_threads(3)
        .map_tasks(fail_from(60));
    let progress = run.progress();
    run.for_each(drop);
    let now = progress.snapshot();
    assert_eq!(
        (
            now.completed(),
            now.failed(),
            now.pulled(),
            now.in_flight(),
            now.total()
        ),
        (100, 40, 100, 0, Some(100))
    );
}

#[test]
fn what_was_taken_is_not_tried_again_and_the_log_says_so() {
    collect_lines(LevelFilter::Trace);
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let run = (0..20u32).futureproof(Ignore).name("taken");
    let run = run.map_tasks_owned(move |n: u32| {
        count.fetch_add(1, SeqCst);
        if n < 5 { Err(n) } else { Ok(n) }
    });
    let run = run.retry(|| [Duration::ZERO; 3]).retry_if(|_| true);
    let failures: Vec<TaskError<_, u32>> = run.filter_map(Result::err).collect();
    assert!(
        failures
            .iter()
            .all(|error| error.error() == Some(&(error.index() as u32)))
    );
    assert_eq!((failures.len(), calls.load(SeqCst)), (5, 20));
    let line = "`retry` has no effect: the function takes its item, so nothing is left to try again; use `map_tasks_mut` instead";
    let lines = lines_of("taken").into_iter();
    let told = lines.filter(|told| *told == (Level::Warn, line.into()));
    assert_eq!(told.count(), 1);
}

/// Task 1 runs before the logger is called and ends while it is.
#[test]
fn a_logger_that_blocks_stops_no_worker_and_may_look_at_the_run() {
    in_child(|| {
        let (gate, meeting) = (Gate::default(), Barrier::new(2));
        let (entered, (sender, ended)) = (gate.clone(), mpsc::channel());
        let run = (0..50u32).futureproof(Log).num_threads(2).chunk_size(1);
        let run = run.monitor_interval(Duration::ZERO).max_in_flight(4);
        let run = run.map_tasks(move |n: &u32| match n {
            0 => {
                meeting.wait();
                Err(())
            }
            1 => {
                meeting.wait();
                gate.pass();
                sender.send(()).map_err(drop)
            }
            _ => Ok(()),
        });
        let (progress, ended) = (run.progress(), Mutex::new(ended));
        let (written, lines) = mpsc::channel();
        on_log(LevelFilter::Trace, move |record| {
            entered.open();
            ended.lock().unwrap().recv().unwrap();
            assert!(progress.snapshot().pulled() >= 2);
            written.send(record.args().to_string()).unwrap();
        });
        assert_eq!(run.count(), 50);
        assert!(lines.recv().unwrap().contains("task 0 failed"));
    });
}

/// Else this would last as long as its slowest task. And it is the first failure that is raised, never that of a task which was told.
#[test]
fn a_stop_tells_the_tasks_that_run() {
    #[derive(Clone, Copy, Debug)]
    enum How {
        Fails,
        Panics,
        FailsTwice,
    }
    watchdog(|| {
        for round in 0..50u32 {
            for how in [How::Fails, How::Panics, How::FailsTwice] {
                for (policy, fails) in [(Raise, 3u32), (Tolerate(1), 2)] {
                    let begun = Arc::new(AtomicUsize::new(0));
                    let run = (0..4u32).futureproof(policy).num_threads(4).chunk_size(1);
                    let run = run.map_tasks(move |n: &u32| {
                        if *n == 0 && matches!(policy, Tolerate(_)) {
                            return Err("tolerated");
                        }
                        begun.fetch_add(1, SeqCst);
                        if *n != fails {
                            until_told();
                            return Err("told");
                        }
                        while begun.load(SeqCst) < 3 {
                            thread::yield_now();
                        }
                        match how {
                            How::Panics => panic!("first"),
                            How::Fails | How::FailsTwice => Err::<(), _>("first"),
                        }
                    });
                    let run = match how {
                        How::FailsTwice => run
                            .retry(|| [Duration::ZERO])
                            .retry_if(|error| *error == "first"),
                        _ => run,
                    };
                    let mut failures: Vec<u64> =
                        run.map(|task| task.unwrap_err().index()).collect();
                    failures.sort();
                    let expected = if policy == Raise { vec![3] } else { vec![0, 2] };
                    assert_eq!(failures, expected, "round {round}, {how:?}, {policy}");
                }
            }
        }
    });
}

/// What comes before the failure is delivered, so it is not told; what comes after it is, once the failure is delivered.
#[test]
fn in_order_a_stop_tells_what_comes_after_the_failure() {
    watchdog(|| {
        let (failed, begun) = (Gate::default(), Gate::default());
        let (fails, begins) = (failed.clone(), begun.clone());
        let run = (0..3u32)
            .futureproof(Raise)
            .num_threads(3)
            .chunk_size(1)
            .ordered();
        let run = run.map_tasks(move |n: &u32| match n {
            0 => {
                failed.pass();
                Ok(CancellationToken::current().is_cancelled())
            }
            1 => {
                begun.pass();
                fails.open();
                Err("one")
            }
            _ => {
                begins.open();
                until_told();
                Ok(true)
            }
        });
        let results: Vec<_> = run
            .map(|task| task.map(|task| task.output).map_err(|error| error.index()))
            .collect();
        assert_eq!(results, [Ok(false), Err(1)]);
    });
}

/// Tiny tasks are begun several at a time. A failure among them is found although the next of them waits to be told of it.
#[test]
fn a_failure_among_tiny_tasks_is_told_to_its_neighbour() {
    const ITEMS: u32 = 100_000;
    watchdog(|| {
        for fails in [ITEMS - 2, ITEMS - 40, ITEMS / 2] {
            let (begun, begins) = (Gate::default(), Gate::default());
            let (opens, waits) = (begun.clone(), begins.clone());
            let run = (0..ITEMS)
                .futureproof(Tolerate(1))
                .num_threads(2)
                .max_in_flight(ITEMS as usize);
            let run = run.map_tasks(move |n: &u32| match *n {
                // On another worker, from the beginning.
                0 => {
                    begun.pass();
                    Err("second")
                }
                n if n == fails => {
                    begins.open();
                    Err("first")
                }
                n if n == fails + 1 => {
                    waits.pass();
                    opens.open();
                    until_told();
                    Ok(())
                }
                _ => Ok(()),
            });
            assert_eq!(run.filter(Result::is_err).count(), 2);
        }
        // Where a retry may follow, it is the caller who has to find the failure.
        let run = (0..ITEMS)
            .futureproof(Raise)
            .num_threads(1)
            .max_in_flight(ITEMS as usize);
        let run = run.map_tasks(|n: &u32| match *n {
            n if n == ITEMS - 2 => Err("fatal"),
            n if n == ITEMS - 1 => {
                until_told();
                Ok(())
            }
            _ => Ok(()),
        });
        let run = run
            .retry(|| [Duration::ZERO])
            .retry_if(|error| *error != "fatal");
        assert_eq!(run.filter(Result::is_err).count(), 1);
    });
}

/// After the failure, nothing of the run runs; the pool is busy with something else.
#[test]
fn the_end_does_not_wait_for_what_others_do_on_the_pool() {
    watchdog(|| {
        let pool = pool(1);
        let gate = Gate::default();
        let (busy, passes) = (Arc::clone(&pool), gate.clone());
        let run = (0..8u32)
            .futureproof(Raise)
            .chunk_size(1)
            .on(Arc::clone(&pool));
        let mut run = run.map_tasks(move |n: &u32| {
            let passes = passes.clone();
            if *n == 0 {
                busy.spawn(move || passes.pass());
                return Err("zero");
            }
            Ok(())
        });
        assert!(run.next().unwrap().is_err());
        assert!(run.next().is_none());
        let rest = run.into_remainder();
        assert_eq!(
            rest.finished.len() + rest.unprocessed.len() + rest.source.count(),
            7
        );
        gate.open();
    });
}

const RATE: ErrorPolicy = ErrorPolicy::TolerateRate {
    failures: 3,
    window: 20,
};

/// On one thread, tasks end in the order of the source.
#[test]
fn a_run_goes_on_while_few_of_the_last_tasks_fail() {
    watchdog(|| {
        for is_ordered in [false, true] {
            // Three in each twenty, for ever; by an error, or a panic.
            let run = (0..2_000u32).futureproof(RATE).num_threads(1);
            let run = if is_ordered { run.ordered() } else { run };
            let call = |n: &u32| match n % 20 {
                0 | 9 => Err("no answer"),
                10 => resume_unwind(Box::new("no hook is called")),
                _ => Ok(*n),
            };
            let mut run = run.map_tasks(call);
            let run = run.by_ref();
            assert_eq!(run.filter(Result::is_err).count(), 300);
            // The fourth of twenty, and not the fourth of twenty-one.
            for (fourth, is_over) in [(1_019u32, true), (1_020, false)] {
                let run = (0..2_000u32).futureproof(RATE).num_threads(1);
                let run = if is_ordered { run.ordered() } else { run };
                let fails = move |n: &u32| [1_000, 1_005, 1_018, fourth].contains(n);
                let mut run = run.map_tasks(move |n: &u32| if fails(n) { Err(*n) } else { Ok(()) });
                let failed: Vec<u64> = run
                    .by_ref()
                    .filter_map(Result::err)
                    .map(|it| it.index())
                    .collect();
                assert_eq!(failed, [1_000, 1_005, 1_018, u64::from(fourth)]);
                let ending = if is_over {
                    Ending::Failed
                } else {
                    Ending::Exhausted
                };
                assert_eq!(run.ending(), Some(ending), "{fourth}");
                assert_eq!(run.progress().snapshot().failed(), 4);
            }
        }
    });
}

/// A service that goes away: on any width, the run ends soon after, and what still runs is told.
#[test]
fn a_run_stops_once_most_tasks_fail() {
    watchdog(|| {
        for (width, is_staged) in [(1, false), (4, false), (2, true)] {
            let calls = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&calls);
            let call = move |n: &u32| {
                count.fetch_add(1, SeqCst);
                if *n < 500 { Ok(*n) } else { Err("gone") }
            };
            let run = (0..).futureproof(RATE).num_threads(width);
            let (failed, ending) = if is_staged {
                let run = run.stage(|n: &u32| Ok(*n)).num_threads(width);
                let mut run = run.map_tasks(call);
                (run.by_ref().filter(Result::is_err).count(), run.ending())
            } else {
                let mut run = run.map_tasks(call);
                (run.by_ref().filter(Result::is_err).count(), run.ending())
            };
            assert_eq!(ending, Some(Ending::Failed));
            let calls = calls.load(SeqCst);
            if width == 1 {
                assert_eq!((failed, calls), (4, 504));
            }
            // Elsewhere, others succeed and fail at the same time.
            assert!(
                failed > 0 && calls < 1_000,
                "{failed} of {calls}, on {width}"
            );
        }
    });
}

/// With retries, whose failures are counted later than what succeeds, the rate is the same; and in stages, where each task counts once.
#[test]
fn a_tolerated_rate_is_the_same_with_retries_and_stages() {
    watchdog(|| {
        let rate = |failures| TolerateRate {
            failures,
            window: 100,
        };
        // One in eight fails for good.
        let call = |n: &u32| if n % 8 == 3 { Err("no") } else { Ok(*n) };
        for is_ordered in [false, true] {
            let run = (0..50_000u32).futureproof(rate(30)).num_threads(2);
            let run = if is_ordered { run.ordered() } else { run };
            let mut run = run.map_tasks(call).retry(|| [Duration::ZERO; 0]);
            run.by_ref().for_each(drop);
            assert_eq!(run.ending(), Some(Ending::Exhausted));
        }
        let run = (0..50_000u32).futureproof(rate(5)).num_threads(2);
        let run = run.map_tasks(call).retry(|| [Duration::ZERO; 0]);
        let mut run = run;
        run.by_ref().for_each(drop);
        assert_eq!(run.ending(), Some(Ending::Failed));
        // One thread a stage, each task in a chunk of its own: 6 of 100 fail in the first one, which would be 3 of 100 counted twice.
        let odd = |n: &u32| if n % 16 == 3 { Err("no") } else { Ok(*n) };
        let run = (0..1_000u32)
            .futureproof(rate(5))
            .num_threads(1)
            .chunk_size(1);
        let mut run = run.stage(odd).num_threads(1).map_tasks(|n: &u32| Ok(*n));
        run.by_ref().for_each(drop);
        assert_eq!(run.ending(), Some(Ending::Failed));
        // So many can never fail.
        let never = TolerateRate {
            failures: 10,
            window: 10,
        };
        let mut run = (0..1_000u32)
            .futureproof(never)
            .map_tasks(|n| Err::<(), _>(*n));
        assert_eq!(run.by_ref().count(), 1_000);
        assert_eq!(run.ending(), Some(Ending::Exhausted));
    });
}
