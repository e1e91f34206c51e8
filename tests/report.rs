//! Where the time went, and which tasks run for long.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::sleep;
use std::time::Duration;

use common::lines::on_log;
use common::{AThreadEach, Gate, MS, pool, watchdog};
use futureproof::prelude::*;
use futureproof::{Bottleneck, Report};
use log::{Level, LevelFilter};

fn report(source: impl Iterator<Item = u64>, work: Duration, consume: Duration) -> Report {
    let run = source.futureproof(Raise).num_threads(2);
    let mut run = run.map_tasks(infallible(move |_: &u64| sleep(work)));
    run.by_ref().for_each(|_| sleep(consume));
    run.report()
}

/// What sleeps is slower than what does nothing, on any machine.
#[test]
fn whoever_takes_the_time_is_named() {
    let slow = || (0..40u64).inspect(|_| sleep(2 * MS));
    let none = Duration::ZERO;
    for (report, who) in [
        (report(slow(), none, none), Bottleneck::Source),
        (report(0..80, 2 * MS, none), Bottleneck::Workers),
        (report(0..40, none, 2 * MS), Bottleneck::Consumer),
    ] {
        assert_eq!(report.bottleneck(), who, "{report}");
        assert!(report.elapsed() >= 80 * MS);
    }
}

#[test]
fn a_source_that_is_read_ahead_is_named_as_well() {
    let source = (0..40u64).inspect(|_| sleep(2 * MS)).read_ahead(4);
    // More than can be busy, even if each answer comes late.
    let run = source.futureproof(Raise).num_threads(8);
    let mut run = run.map_tasks(infallible(|n: &u64| *n));
    run.by_ref().for_each(drop);
    let report = run.report();
    assert_eq!(report.bottleneck(), Bottleneck::Source, "{report}");
    assert!(report.source() >= 40 * MS, "{report}");
}

#[test]
fn a_task_that_outlasts_all_others_is_named() {
    let run = (0..100u64).futureproof(Raise).num_threads(8);
    let work = |n: &u64| sleep(if *n == 7 { 500 * MS } else { MS });
    let mut run = run.map_tasks(infallible(work));
    // Slower than the workers are together, and not what the run waits for.
    run.by_ref().for_each(|_| sleep(MS));
    let report = run.report();
    assert_eq!(report.bottleneck(), Bottleneck::SlowTask, "{report}");
    assert!(report.to_string().contains("limited by task 7 alone"));
}

#[test]
fn the_delays_of_retries_are_named() {
    let tried = AtomicBool::new(false);
    let run = [()].into_iter().futureproof(Raise).num_threads(2);
    let run = run.map_tasks(move |()| match tried.swap(true, SeqCst) {
        false => Err("not yet"),
        true => Ok(()),
    });
    let mut run = run.retry(|| [100 * MS]);
    assert_eq!(run.by_ref().flatten().count(), 1);
    let report = run.report();
    assert_eq!(report.bottleneck(), Bottleneck::Retries, "{report}");
}

#[test]
fn workers_that_have_others_to_work_for_are_named() {
    let pool = pool(1);
    let work = |_: &u64| sleep(5 * MS);
    // The caller is the only worker.
    let report = pool.install(|| {
        let run = (0..20).futureproof(Raise).on(Arc::clone(&pool));
        let mut run = run.map_tasks(infallible(work));
        run.by_ref().for_each(|_| sleep(MS));
        run.report()
    });
    assert_eq!(report.bottleneck(), Bottleneck::Workers, "{report}");
    assert!(report.waited() >= 100 * MS, "{report}");
}

#[test]
fn a_consumer_is_named_before_it_comes_back() {
    let run = (0..1_000)
        .futureproof(Raise)
        .num_threads(2)
        .chunk_size(1_000);
    let mut run = run.map_tasks(infallible(|n: &u64| *n));
    for _ in 0..50 {
        run.next();
        sleep(2 * MS);
    }
    let report = run.report();
    assert_eq!(report.bottleneck(), Bottleneck::Consumer, "{report}");
    assert!(report.consumer() >= 98 * MS, "{report}");
}

#[test]
fn threads_without_number_count_as_the_workers_that_there_can_be() {
    let run = (0..50).futureproof(Raise).on(AThreadEach).num_threads(3);
    let mut run = run.chunk_size(1).map_tasks(infallible(|_: &u64| sleep(MS)));
    assert_eq!(run.by_ref().count(), 50);
    assert_eq!(run.report().workers().len(), 3);
}

#[test]
fn the_clock_stops_at_the_end_though_a_task_runs_on() {
    watchdog(|| {
        let (begun, gate) = (Gate::default(), Gate::default());
        let (begins, passes) = (begun.clone(), gate.clone());
        let token = CancellationToken::new();
        let run = (0..1u32)
            .futureproof(Raise)
            .num_threads(1)
            .cancel_on(&token);
        let mut run = run.map_tasks(infallible(move |_: &u32| {
            begins.open();
            passes.pass();
        }));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begun.pass();
                token.cancel();
            });
            assert!(run.next().is_none());
        });
        let elapsed = run.report().elapsed();
        sleep(MS);
        assert_eq!(run.report().elapsed(), elapsed);
        assert_eq!(run.progress().snapshot().eta(), None);
        gate.open();
    });
}

#[test]
fn times_add_up() {
    let report = report(0..50, MS, Duration::ZERO);
    let busy: Duration = report.workers().iter().map(|worker| worker.busy()).sum();
    assert!(busy >= 50 * MS && report.mean() >= MS);
    for worker in report.workers() {
        assert!(worker.busy() + worker.idle() >= report.elapsed());
    }
    assert_eq!(report.slowest().len(), 5);
    let durations: Vec<_> = report
        .slowest()
        .iter()
        .map(|slow| slow.duration())
        .collect();
    assert!(durations.is_sorted_by(|a, b| a >= b) && durations[4] >= MS);
}

#[test]
fn a_task_that_was_stopped_before_it_began_is_not_reported() {
    watchdog(|| {
        let gate = Gate::default();
        let (inside, opener) = (gate.clone(), gate);
        // The others are queued behind the one that fails.
        let source = (0..8u64).inspect(move |n| {
            if *n == 2 {
                opener.open();
            }
        });
        let run = source.futureproof(Raise).num_threads(1).chunk_size(1);
        let mut run = run.map_tasks(move |_: &u64| {
            inside.pass();
            Err::<(), _>("the first")
        });
        assert_eq!(run.by_ref().count(), 1);
        let report = run.report();
        let indices: Vec<_> = report
            .slowest()
            .iter()
            .flat_map(|slow| slow.indices())
            .collect();
        assert_eq!(indices, [0]);
        assert_eq!(report.slowest().len(), 1);
    });
}

#[test]
fn a_report_before_the_run_is_empty() {
    let run = (0..10)
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u32| *n));
    assert_eq!(run.report().elapsed(), Duration::ZERO);
    assert!(run.report().slowest().is_empty());
}

#[test]
fn a_task_that_hangs_is_told_by_its_index() {
    let gate = Gate::default();
    let told = gate.clone();
    on_log(LevelFilter::Trace, move |record| {
        let text = record.args().to_string();
        let is_wanted = text.starts_with("hangs: task 3 has been running for ");
        if is_wanted && record.level() == Level::Warn {
            told.open();
        }
    });
    watchdog(move || {
        let run = (0..10u32).futureproof(Raise).num_threads(2).name("hangs");
        let run = run.warn_after(5 * MS).monitor_interval(Duration::ZERO);
        let run = run.map_tasks(infallible(move |n: &u32| {
            if *n == 3 {
                // It ends because the monitor has told.
                gate.pass();
            }
        }));
        assert_eq!(run.count(), 10);
    });
}
