//! Items that were pulled and not yet delivered never exceed the window.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::watchdog;
use futureproof::prelude::*;

#[test]
fn the_window_is_never_exceeded() {
    watchdog(|| {
        for (threads, window, chunk) in [
            (1, 1, 0),
            (1, 2, 1),
            (2, 2, 5),
            (3, 6, 0),
            (3, 7, 3),
            (2, 100, 64),
            (4, 3, 1000),
        ] {
            for is_ordered in [false, true] {
                let (pulled, delivered) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
                let (pulls, deliveries) = (Rc::clone(&pulled), Rc::clone(&delivered));
                let source = (0..2_000u32).inspect(move |_| {
                    pulls.set(pulls.get() + 1);
                    assert!(
                        pulls.get() - deliveries.get() <= window,
                        "more than {window} in flight"
                    );
                });
                let mut run = source
                    .futureproof(Raise)
                    .num_threads(threads)
                    .max_in_flight(window)
                    .chunk_size(chunk);
                if is_ordered {
                    run = run.ordered();
                }
                for task in run.map_tasks(infallible(|n: &u32| *n)) {
                    task.unwrap();
                    delivered.set(delivered.get() + 1);
                }
                assert_eq!((pulled.get(), delivered.get()), (2_000, 2_000));
            }
        }
    });
}

#[test]
fn a_run_over_a_million_items_holds_a_bounded_number() {
    watchdog(|| {
        assert_held_is_bounded(1_000_000, |_| ());
    });
}

// Chunks become smaller, and so more, while large ones are in flight.
#[test]
fn slow_tasks_among_many_tiny_ones_hold_no_more() {
    watchdog(|| {
        assert_held_is_bounded(2_000_000, |n| {
            if n % 40_000 == 39_999 {
                thread::sleep(Duration::from_millis(20));
            }
        });
    });
}

// Results may be large, and the consumer writes them somewhere.
#[test]
fn a_slow_consumer_is_not_given_more_than_it_needs() {
    watchdog(|| {
        const ITEMS: u64 = 4_000;
        let pulled = Rc::new(Cell::new(0u64));
        let pulls = Rc::clone(&pulled);
        let source = (0..ITEMS).inspect(move |_| pulls.set(pulls.get() + 1));
        let run = source.futureproof(Raise).num_threads(2);
        let mut held = Vec::new();
        for (delivered, task) in (1..).zip(run.map_tasks(infallible(|n: &u64| *n))) {
            task.unwrap();
            held.push(pulled.get() - delivered);
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(50) {}
        }
        // The first ones were pulled before anything was known of the consumer, and the source comes to its end.
        let held = &held[2_000..3_000];
        let most = held.iter().max().unwrap();
        assert!(*most <= 200, "{most} were held");
    });
}

fn assert_held_is_bounded(items: u64, work: fn(u64)) {
    let delivered = Rc::new(Cell::new(0u64));
    let most = Rc::new(Cell::new(0));
    let (deliveries, lead) = (Rc::clone(&delivered), Rc::clone(&most));
    let source = (0..items).inspect(move |n| lead.set(lead.get().max(n + 1 - deliveries.get())));
    let task = move |n: &u64| {
        work(*n);
        n + 1
    };
    let mut sum = 0;
    let run = source.futureproof(Raise).num_threads(2);
    for task in run.map_tasks(infallible(task)) {
        sum += task.unwrap().output;
        delivered.set(delivered.get() + 1);
    }
    assert_eq!(sum, items * (items + 1) / 2);
    // Two threads, each with 64 Ki of the smallest items.
    assert!(most.get() <= 2 << 16, "{} were held", most.get());
}

// p-map: "pMapIterable backpressure".
#[test]
fn the_source_rests_while_the_consumer_does() {
    let pulled = Rc::new(Cell::new(0));
    let pulls = Rc::clone(&pulled);
    let source = (0u64..).inspect(move |_| pulls.set(pulls.get() + 1));
    let mut run = source
        .futureproof(Raise)
        .num_threads(2)
        .max_in_flight(4)
        .map_tasks(infallible(|n: &u64| *n));
    for delivered in 1..=20 {
        run.next().unwrap().unwrap();
        assert!(pulled.get() <= delivered + 4);
        assert_eq!(run.progress().snapshot().pulled(), pulled.get());
    }
}

// joblib: test_dispatch_one_job.
#[test]
fn a_window_of_one_alternates_pull_and_run() {
    watchdog(|| {
        let (events, log) = mpsc::channel();
        let ran = events.clone();
        let source = (0..50u32).inspect(move |n| events.send(("pull", *n)).unwrap());
        let run = source
            .futureproof(Raise)
            .num_threads(1)
            .max_in_flight(1)
            .map_tasks(infallible(move |n: &u32| ran.send(("run", *n)).unwrap()));
        assert_eq!(run.count(), 50);
        let expected = (0..50).flat_map(|n| [("pull", n), ("run", n)]);
        assert!(log.iter().eq(expected));
    });
}

// par-iter-sync: test_large_iter.
#[test]
fn a_million_items_arrive_once_each() {
    watchdog(|| {
        let mut seen = vec![false; 1_000_000];
        for task in (0..1_000_000usize)
            .futureproof(Raise)
            .num_threads(3)
            .map_tasks(infallible(|n: &usize| *n))
        {
            let task = task.unwrap();
            assert_eq!((task.index as usize, task.output), (task.input, task.input));
            assert!(!std::mem::replace(&mut seen[task.input], true), "twice");
        }
        assert!(seen.into_iter().all(|seen| seen));
    });
}

// rayon: spawn_fifo_order.
#[test]
fn one_thread_completes_in_the_order_of_the_source() {
    for chunk in [1, 3] {
        let run = (0..500)
            .futureproof(Raise)
            .num_threads(1)
            .chunk_size(chunk)
            .map_tasks(infallible(|n: &u32| *n));
        assert!(run.map(|task| task.unwrap().output).eq(0..500));
    }
}

#[test]
fn large_outputs_arrive_whole() {
    let run = (0..20usize)
        .futureproof(Raise)
        .num_threads(2)
        .map_tasks(infallible(|n: &usize| vec![*n as u8; 1 << 20]));
    assert_eq!(
        run.filter(
            |task| task.as_ref().unwrap().output[1 << 19] == task.as_ref().unwrap().input as u8
        )
        .count(),
        20
    );
}

// cpython: test_map_buffersize.
#[test]
fn extreme_options_do_no_harm() {
    watchdog(|| {
        for (window, chunk) in [
            (usize::MAX, 0),
            (usize::MAX, usize::MAX),
            (0, usize::MAX),
            (1, usize::MAX),
            (100, 100),
            (200, 100),
        ] {
            let run = (0..100)
                .futureproof(Raise)
                .num_threads(2)
                .max_in_flight(window)
                .chunk_size(chunk);
            assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 100);
        }
    });
}

/// Of dear tasks, one runs and two are queued or have finished for each worker, also while the consumer is away.
#[test]
fn dear_tasks_are_few_where_no_window_is_given() {
    watchdog(|| {
        for width in [1, 2, 8] {
            let (pulled, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let (count, ended) = (Arc::clone(&pulled), Arc::clone(&done));
            let source = (0..200u64).inspect(move |_| {
                count.fetch_add(1, SeqCst);
            });
            let run = source.futureproof(Raise).num_threads(width);
            let mut run = run.map_tasks(infallible(move |_: &u64| {
                thread::sleep(Duration::from_millis(6));
                ended.fetch_add(1, SeqCst);
            }));
            for taken in 1..=10 {
                assert!(run.next().is_some());
                // Until whatever may run has run.
                let few = 3 * width as u64;
                assert!(pulled.load(SeqCst) <= few + taken);
                thread::sleep(Duration::from_millis(10));
                assert!(done.load(SeqCst) <= few + taken);
            }
        }
    });
}
