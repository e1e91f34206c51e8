//! The monitor tells how a run is going, takes no worker and holds nothing up.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{FOREVER, Gate, lines, soon, watchdog};
use futureproof::prelude::*;
use log::{Level, LevelFilter};

/// What the run of this name has logged, without the name: nothing to worry about.
fn lines_of(name: &str) -> Vec<String> {
    let lines = lines::lines_of(name).into_iter();
    let text = |(level, line)| {
        assert_eq!(level, Level::Info, "{line}");
        line
    };
    lines.map(text).collect()
}

// futureproof: test_monitor_logging, test_monitor_interval.
#[test]
fn a_run_logs_its_start_its_progress_and_its_end() {
    lines::collect_lines(LevelFilter::Info);
    watchdog(|| {
        let gate = Gate::default();
        let blocked = gate.clone();
        let run = (0..10u32)
            .futureproof(Raise)
            .num_threads(1)
            .chunk_size(1)
            .name("m-lines")
            .monitor_interval(Duration::from_millis(10));
        let run = run.map_tasks(infallible(move |n: &u32| {
            if *n == 5 {
                blocked.pass()
            }
        }));
        let consumer = thread::spawn(move || run.count());
        assert!(soon(|| lines_of("m-lines").len() >= 4));
        gate.open();
        assert_eq!(consumer.join().unwrap(), 10);
        let lines = lines_of("m-lines");
        assert_eq!(lines[0], "started, 10 items");
        let (last, between) = lines[1..].split_last().unwrap();
        // On a busy machine there are ticks while the threads end.
        let waits = |line: &String| line.starts_with("all items are done; waiting for ");
        let progress = between.partition_point(|line| !waits(line));
        let (between, waiting) = between.split_at(progress);
        assert!(waiting.iter().all(waits), "{lines:?}");
        assert!(
            between
                .iter()
                .all(|line| line.contains("tasks completed in the last 0.")
                    && line.contains(" failed")),
            "{lines:?}"
        );
        assert!(
            last.starts_with("ended after ") && last.contains("10 tasks completed, 0 failed"),
            "{last}"
        );
        let counted: u32 = between
            .iter()
            .map(|line| line.split(' ').next().unwrap().parse::<u32>().unwrap())
            .sum();
        assert!((5..=10).contains(&counted), "{lines:?}");
    });
}

#[test]
fn the_last_line_tells_what_limited_a_run_that_was_left() {
    lines::collect_lines(LevelFilter::Info);
    watchdog(|| {
        let run = (0..1_000u32).futureproof(Raise).num_threads(2);
        let run = run.chunk_size(500).name("m-left");
        for task in run.map_tasks(infallible(|n: &u32| *n)) {
            thread::sleep(Duration::from_millis(2));
            if task.unwrap().index % 500 == 100 {
                break;
            }
        }
        let lines = lines_of("m-left");
        let last = lines.last().unwrap();
        assert!(last.contains("; limited by the consumer"), "{last}");
    });
}

#[test]
fn an_interval_of_zero_silences_the_monitor() {
    lines::collect_lines(LevelFilter::Info);
    let run = (0..10u32)
        .futureproof(Raise)
        .num_threads(1)
        .name("m-zero")
        .monitor_interval(Duration::ZERO)
        .on_progress(|_| panic!("called"));
    let mut run = run.map_tasks(infallible(|n: &u32| *n));
    run.next().unwrap().unwrap();
    // Figures for `metrics` need the thread all the same.
    #[cfg(all(target_os = "linux", not(feature = "metrics")))]
    assert!(soon(|| common::threads_named("m-zero")
        == common::threads_named("m-zero-0")
        && common::threads_named("m-zero").len() == 1));
    assert_eq!(run.count(), 9);
    assert!(lines_of("m-zero").is_empty());
}

// futureproof: a 50 ms run takes 2 s to end.
#[test]
fn nothing_waits_for_the_tick() {
    lines::collect_lines(LevelFilter::Info);
    let start = Instant::now();
    let run = (0..10u32)
        .futureproof(Raise)
        .num_threads(2)
        .name("m-tick")
        .monitor_interval(FOREVER);
    assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 10);
    let mut run = (0..)
        .futureproof(Raise)
        .num_threads(2)
        .monitor_interval(Duration::MAX)
        .map_tasks(infallible(|n: &u32| *n));
    run.next().unwrap().unwrap();
    drop(run);
    assert!(start.elapsed() < Duration::from_secs(60));
    let lines = lines_of("m-tick");
    assert_eq!(lines.len(), 2, "{lines:?}");
}

// futureproof: with one worker, its monitor takes it and the run hangs.
#[test]
fn the_monitor_takes_no_worker() {
    lines::collect_lines(LevelFilter::Info);
    watchdog(|| {
        let run = (0..100u32)
            .futureproof(Raise)
            .num_threads(1)
            .monitor_interval(Duration::from_millis(1));
        assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 100);
        let barrier = std::sync::Barrier::new(3);
        let run = (0..30u32)
            .futureproof(Raise)
            .num_threads(3)
            .chunk_size(1)
            .monitor_interval(Duration::from_millis(1));
        assert_eq!(
            run.map_tasks(infallible(move |_: &u32| {
                barrier.wait();
            }))
            .count(),
            30
        );
    });
}

#[test]
fn progress_is_reported_at_each_interval_and_at_the_end() {
    watchdog(|| {
        let (sender, snapshots) = mpsc::channel();
        let gate = Gate::default();
        let (blocked, ticks) = (gate.clone(), AtomicUsize::new(0));
        let run = (0..10u32)
            .futureproof(Ignore)
            .num_threads(1)
            .chunk_size(1)
            .monitor_interval(Duration::from_millis(5))
            .on_progress(move |now| {
                sender.send(*now).unwrap();
                if ticks.fetch_add(1, SeqCst) == 2 {
                    gate.open();
                }
            });
        let run = run.map_tasks(move |n: &u32| match n {
            5 => {
                let _: () = blocked.pass();
                Ok(())
            }
            7 => Err(()),
            _ => Ok(()),
        });
        assert_eq!(run.count(), 10);
        let all: Vec<_> = snapshots.iter().collect();
        assert!(all.len() >= 4, "three ticks and the end");
        assert!(
            all.windows(2)
                .all(|two| two[0].completed() <= two[1].completed()
                    && two[0].elapsed() <= two[1].elapsed())
        );
        assert!(all.iter().all(|now| now.completed() <= now.pulled()
            && now.in_flight() <= 10
            && now.rate().is_finite()));
        let last = all.last().unwrap();
        assert_eq!(
            (last.completed(), last.failed(), last.pulled(), last.total()),
            (10, 1, 10, Some(10))
        );
    });
}

#[test]
fn the_end_is_told_however_a_run_ends() {
    lines::collect_lines(LevelFilter::Info);
    let fail = |n: &u32| if *n == 5 { Err(()) } else { Ok(()) };
    let base = |name: &str| {
        (0..100u32)
            .futureproof(Raise)
            .num_threads(1)
            .chunk_size(1)
            .max_in_flight(10)
            .name(name)
    };
    base("m-failed").map_tasks(fail).for_each(drop);
    drop(base("m-dropped").map_tasks(fail).next());
    assert_eq!(base("m-given-back").map_tasks(fail).take(2).count(), 2);
    let mut run = base("m-remainder").map_tasks(fail);
    run.next().unwrap().unwrap();
    drop(run.into_remainder());
    for name in ["m-failed", "m-dropped", "m-given-back", "m-remainder"] {
        let lines = lines_of(name);
        assert_eq!(lines.len(), 2, "{name}: {lines:?}");
        assert!(lines[1].starts_with("ended after "), "{lines:?}");
    }
    assert!(lines_of("m-failed")[1].contains("1 failed"));
}

#[test]
fn the_end_is_told_before_a_run_that_has_ended_is_dropped() {
    watchdog(|| {
        let (sender, told) = mpsc::channel();
        let run = (0..10u32).futureproof(Raise).num_threads(1);
        let run = run.monitor_interval(FOREVER);
        let run = run.on_progress(move |now| sender.send(now.completed()).unwrap());
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        run.by_ref().for_each(drop);
        assert_eq!(told.recv(), Ok(10));
        drop(run);
    });
}

#[test]
fn the_clock_stops_when_a_run_is_dropped() {
    let mut run = (0..10u32)
        .futureproof(Raise)
        .num_threads(1)
        .map_tasks(infallible(|n: &u32| *n));
    run.next();
    let progress = run.progress();
    drop(run);
    let elapsed = progress.snapshot().elapsed();
    thread::sleep(Duration::from_millis(1));
    assert_eq!(progress.snapshot().elapsed(), elapsed);
}

#[test]
fn progress_can_be_read_from_elsewhere_and_later() {
    watchdog(|| {
        let run = (0..1000u32)
            .futureproof(Raise)
            .num_threads(2)
            .map_tasks(infallible(|n: &u32| *n));
        let progress = run.progress();
        let watcher = thread::spawn(move || {
            while progress.snapshot().completed() < 1000 {
                thread::yield_now();
            }
            progress
        });
        assert_eq!(run.count(), 1000);
        let progress = watcher.join().unwrap();
        let (one, two) = (progress.snapshot(), progress.snapshot());
        assert_eq!(
            one.elapsed(),
            two.elapsed(),
            "the clock of a run that has ended stands"
        );
    });
}

#[test]
fn a_progress_callback_may_own_what_others_share() {
    let shared = Arc::new(());
    let own = Arc::clone(&shared);
    let run = (0..3u32)
        .futureproof(Raise)
        .on_progress(move |_| drop(Arc::clone(&own)));
    assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 3);
    assert_eq!(Arc::strong_count(&shared), 1);
}

/// The handles of a run are made where it begins, so this recorder is that of one test.
#[cfg(feature = "metrics")]
#[test]
fn counters_that_panic_do_not_hold_up_the_gauge() {
    use metrics::{CounterFn, GaugeFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    struct Bad;
    impl CounterFn for Bad {
        fn increment(&self, _: u64) {
            std::panic::resume_unwind(Box::new(()))
        }
        fn absolute(&self, _: u64) {}
    }

    /// Tells by how much it has changed.
    struct Change(mpsc::Sender<f64>);
    impl GaugeFn for Change {
        fn increment(&self, value: f64) {
            self.0.send(value).unwrap();
        }
        fn decrement(&self, _: f64) {}
        fn set(&self, _: f64) {}
    }

    struct Changes(Arc<Change>);
    impl Recorder for Changes {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> metrics::Counter {
            metrics::Counter::from_arc(Arc::new(Bad))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> metrics::Gauge {
            metrics::Gauge::from_arc(Arc::clone(&self.0))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> metrics::Histogram {
            metrics::Histogram::noop()
        }
    }

    let (sender, changes) = mpsc::channel();
    let gate = Gate::default();
    let blocked = gate.clone();
    let run = (0..3u32).futureproof(Raise).num_threads(1);
    let mut run = run.map_tasks(infallible(move |_: &u32| blocked.pass()));
    let recorder = Changes(Arc::new(Change(sender)));
    thread::spawn(move || metrics::with_local_recorder(&recorder, || run.by_ref().for_each(drop)));
    let mut flying = 0.0;
    while flying == 0.0 {
        let change = changes.recv_timeout(Duration::from_secs(20));
        flying += change.expect("the gauge stands still");
    }
    gate.open();
    assert_eq!(flying + changes.iter().sum::<f64>(), 0.0);
}
