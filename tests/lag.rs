//! Results do not wait behind what they do not need, and nobody polls for them.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use common::{Gate, watchdog};
use futureproof::prelude::*;

#[test]
fn a_slow_source_delays_results_by_one_pull() {
    watchdog(|| {
        let (delivered, late) = (Rc::new(Cell::new(0u32)), Rc::new(Cell::new(0)));
        let (deliveries, lag) = (Rc::clone(&delivered), Rc::clone(&late));
        let source = (0..60u32).inspect(move |n| {
            // All but the last two are out.
            if deliveries.get() + 2 < *n {
                lag.set(lag.get() + 1);
            }
            thread::sleep(Duration::from_millis(5));
        });
        for task in source
            .futureproof(Raise)
            .num_threads(2)
            .map_tasks(infallible(|n: &u32| *n))
        {
            task.unwrap();
            delivered.set(delivered.get() + 1);
        }
        assert_eq!(delivered.get(), 60);
        assert!(late.get() <= 6, "{} of 60 were late", late.get()); // a busy machine may delay some
    });
}

// futureproof: the first result waits for a full window.
#[test]
fn the_first_result_does_not_wait_for_a_window() {
    watchdog(|| {
        let source = (0..1000u32).inspect(|n| {
            assert!(*n < 50, "still nothing delivered");
            thread::sleep(Duration::from_millis(2));
        });
        let mut run = source
            .futureproof(Raise)
            .num_threads(1)
            .max_in_flight(1000)
            .map_tasks(infallible(|n: &u32| *n));
        run.next().unwrap().unwrap();
    });
}

#[test]
fn a_quick_task_passes_a_slow_neighbour() {
    watchdog(|| {
        for chunk in [0, 1] {
            let gate = Gate::default();
            let blocked = gate.clone();
            let run = (0..20u32)
                .futureproof(Raise)
                .num_threads(2)
                .chunk_size(chunk);
            let mut run = run.map_tasks(infallible(move |n: &u32| {
                if *n == 0 {
                    blocked.pass()
                }
            }));
            let first: Vec<u32> = run
                .by_ref()
                .take(19)
                .map(|task| task.unwrap().input)
                .collect();
            assert!(!first.contains(&0));
            gate.open();
            assert_eq!(run.next().unwrap().unwrap().input, 0);
            assert!(run.next().is_none());
        }
    });
}

#[test]
fn a_chunk_that_overruns_sends_what_it_has() {
    watchdog(|| {
        for threads in [1, 2] {
            let gate = Gate::default();
            let blocked = gate.clone();
            let run = (0..1000u32)
                .futureproof(Raise)
                .num_threads(threads)
                .chunk_size(1000);
            let mut run = run.map_tasks(infallible(move |n: &u32| match n {
                500 => thread::sleep(Duration::from_millis(50)), // far past a slice
                600 => blocked.pass(),
                _ => (),
            }));
            assert_eq!(run.by_ref().take(500).flatten().count(), 500);
            gate.open();
            assert_eq!(run.flatten().count(), 500);
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn an_idle_run_does_not_wake() {
    use common::threads_named;
    /// How often this run's threads were given a processor.
    fn wakes() -> u64 {
        let stats = threads_named("calm").into_iter().filter_map(|id| {
            std::fs::read_to_string(format!("/proc/self/task/{id}/schedstat")).ok()
        });
        stats
            .map(|text| {
                text.split_whitespace()
                    .nth(2)
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
            .sum()
    }
    watchdog(|| {
        let gate = Gate::default();
        let blocked = gate.clone();
        let run = (0..2u32)
            .futureproof(Raise)
            .num_threads(3)
            .name("calm")
            .monitor_interval(Duration::from_secs(60))
            .on_progress(|_| ());
        let run = run.map_tasks(infallible(move |_: &u32| blocked.pass()));
        let consumer = thread::Builder::new()
            .name("calm-consumer".into())
            .spawn(move || run.count())
            .unwrap();
        assert!(common::soon(|| threads_named("calm").len() == 5));
        thread::sleep(Duration::from_millis(100));
        let before = wakes();
        thread::sleep(Duration::from_millis(300));
        let woken = wakes() - before;
        gate.open();
        assert_eq!(consumer.join().unwrap(), 2);
        assert!(woken < 60, "{woken} times in 300 ms");
    });
}
