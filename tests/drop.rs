//! When a run is dropped, nothing of it is left: no call, no thread, no value.

mod common;

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::child::Child;
#[cfg(target_os = "linux")]
use common::child::in_child;
use common::{FOREVER, Gate, Tally, Token, pool, soon, until_told, watchdog};
use futureproof::prelude::*;

#[test]
fn drop_waits_for_running_tasks() {
    watchdog(|| {
        for chunk in [1, 8] {
            let gate = Gate::default();
            let running = Arc::new(AtomicUsize::new(0));
            let (blocked, inside) = (gate.clone(), Arc::clone(&running));
            let (entered, entries) = mpsc::channel();
            let begun = Gate::default();
            let run = (0..1000u32)
                .futureproof(Raise)
                .num_threads(3)
                .max_in_flight(64)
                .chunk_size(chunk);
            let mut run = run.map_tasks(infallible(move |n: &u32| {
                inside.fetch_add(1, SeqCst);
                // Task 0 is not delivered before one of another chunk has begun.
                if *n == 0 {
                    begun.pass();
                }
                if *n >= 8 {
                    begun.open();
                    entered.send(()).unwrap();
                    blocked.pass();
                }
                thread::sleep(Duration::from_millis(5)); // lets a drop that does not wait come first
                inside.fetch_sub(1, SeqCst);
            }));
            run.next().unwrap().unwrap();
            entries.recv().unwrap();
            let opener = thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                gate.open();
            });
            drop(run);
            assert_eq!(running.load(SeqCst), 0);
            opener.join().unwrap();
        }
    });
}

// cpython: test_map_close. pariter: queued items run after drop.
#[test]
fn no_task_starts_after_a_drop() {
    watchdog(|| {
        for chunk in [1, 64] {
            let (calls, is_over) = (
                Arc::new(AtomicUsize::new(0)),
                Arc::new(AtomicBool::new(false)),
            );
            let (count, over) = (Arc::clone(&calls), Arc::clone(&is_over));
            let pool = pool(2);
            let run = (0..u64::MAX)
                .futureproof(Raise)
                .on(Arc::clone(&pool))
                .max_in_flight(1000)
                .chunk_size(chunk);
            let mut run = run.map_tasks(infallible(move |_: &u64| {
                assert!(!over.load(SeqCst));
                count.fetch_add(1, SeqCst);
                thread::sleep(Duration::from_millis(1));
            }));
            run.next().unwrap().unwrap();
            drop(run);
            is_over.store(true, SeqCst);
            let then = calls.load(SeqCst);
            assert!(then < 500, "{then} calls: the queue was worked off");
            // The pool has come to rest when it has run something on every thread.
            pool.broadcast(|_| ());
            assert_eq!(calls.load(SeqCst), then);
        }
    });
}

struct SlowToGo(Arc<AtomicUsize>);

impl Drop for SlowToGo {
    fn drop(&mut self) {
        thread::sleep(Duration::from_millis(20));
        self.0.fetch_add(1, SeqCst);
    }
}

thread_local! {
    static AT_EXIT: RefCell<Option<SlowToGo>> = const { RefCell::new(None) };
}

// pebble: test_thread_pool_join_workers; rayon: workers_stop, whose `ThreadPool::drop` does not wait.
#[test]
fn workers_have_ended_when_a_run_is_dropped() {
    watchdog(|| {
        for is_consumed in [false, true] {
            let exits = Arc::new(AtomicUsize::new(0));
            let (at_exit, barrier) = (Arc::clone(&exits), Barrier::new(22));
            let run = (0..22u32).futureproof(Raise).num_threads(22).chunk_size(1);
            let mut run = run.map_tasks(infallible(move |_: &u32| {
                AT_EXIT.set(Some(SlowToGo(Arc::clone(&at_exit))));
                barrier.wait();
            }));
            run.next().unwrap().unwrap();
            if is_consumed {
                assert_eq!(run.by_ref().count(), 21);
                assert!(run.next().is_none());
            } else {
                // Each thread is at its one item, or past it.
                drop(run);
            }
            assert_eq!(exits.load(SeqCst), 22);
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn threads_are_gone_after_each_ending() {
    use common::threads_named;
    watchdog(|| {
        for round in 0..4 {
            let run = (0..100u32)
                .futureproof(Raise)
                .num_threads(3)
                .name("drop-gone")
                .on_progress(|_| ());
            let mut run = run.map_tasks(move |n: &u32| match (round, n) {
                (1, 50) => Err(()),
                (2, 50) => panic!(),
                _ => Ok(()),
            });
            match round {
                0 => {
                    run.next().unwrap().unwrap();
                    drop(run);
                }
                3 => drop(run.into_remainder()),
                _ => run.for_each(drop),
            }
            assert!(soon(|| threads_named("drop-gone").is_empty()));
        }
    });
}

#[test]
fn the_function_and_the_source_are_gone_when_a_run_is_dropped() {
    watchdog(|| {
        for _ in 0..200 {
            let tally = Tally::default();
            let (in_f, in_source, in_progress) = (tally.token(), tally.token(), tally.token());
            let source = (0..1000u32).inspect(move |_| {
                let _ = &in_source;
            });
            let run = source
                .futureproof(Raise)
                .num_threads(2)
                .on_progress(move |_| {
                    let _ = &in_progress;
                });
            let mut run = run.map_tasks(infallible(move |n: &u32| {
                let _ = &in_f;
                *n
            }));
            run.next().unwrap().unwrap();
            drop(run);
            tally.assert_all_dropped_once();
        }
    });
}

// elixir: "shuts down unused tasks".
#[test]
fn take_gives_right_values_and_leaves_nothing() {
    watchdog(|| {
        for n in [1, 4] {
            let tally = Tally::default();
            let tokens = tally.clone();
            let source = (0..10_000u32).map(move |n| (n, tokens.token()));
            let run = source
                .futureproof(Raise)
                .num_threads(2)
                .ordered()
                .map_tasks(infallible(|item: &(u32, Token)| item.0 + 1));
            let taken: Vec<u32> = run.take(n).map(|task| task.unwrap().output).collect();
            assert!(taken.into_iter().eq(1..=n as u32));
            tally.assert_all_dropped_once();
        }
    });
}

// crossbeam: array::drops; rayon: check_drops.
#[test]
fn every_value_is_dropped_once_wherever_the_consumer_stops() {
    watchdog(|| {
        for stop in 0..=40 {
            for (policy, chunk) in [
                (Raise, 0),
                (Raise, 4),
                (Ignore, 1),
                (Ignore, 7),
                (Tolerate(2), 3),
            ] {
                let tally = Tally::default();
                let (inputs, outputs) = (tally.clone(), tally.clone());
                let source = (0..40).map(move |n| (n, inputs.token()));
                let run = source
                    .futureproof(policy)
                    .num_threads(2)
                    .max_in_flight(20)
                    .chunk_size(chunk);
                let mut run = run.map_tasks(move |item: &(u32, Token)| {
                    match item.0 % 13 {
                        5 => Err(outputs.token()),
                        7 => std::panic::panic_any(outputs.token()),
                        _ => Ok(outputs.token()),
                    }
                    .map_err(Opaque)
                });
                let taken = run.by_ref().take(stop).count();
                if stop % 2 == 0 {
                    drop(run);
                } else {
                    let remainder = run.into_remainder();
                    let held = taken + remainder.finished.len() + remainder.unprocessed.len();
                    assert_eq!(held + remainder.source.count(), 40);
                }
                tally.assert_all_dropped_once();
            }
        }
    });
}

struct Opaque(#[allow(dead_code)] Token);

impl std::fmt::Debug for Opaque {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opaque")
    }
}

// rayon: termination_while_things_are_executing.
#[test]
fn results_that_come_in_during_a_drop_are_dropped() {
    watchdog(|| {
        let tally = Tally::default();
        let (outputs, gate) = (tally.clone(), Gate::default());
        let (blocked, (entered, entries)) = (gate.clone(), mpsc::channel());
        let run = (0..100u32).futureproof(Raise).num_threads(2).chunk_size(1);
        // Task 0 is not delivered before another one runs.
        let meeting = Barrier::new(2);
        let mut run = run.map_tasks(infallible(move |n: &u32| {
            if *n < 2 {
                meeting.wait();
            }
            if *n > 0 {
                entered.send(()).unwrap();
                blocked.pass();
            }
            outputs.token()
        }));
        run.next().unwrap().unwrap();
        entries.recv().unwrap();
        let dropper = thread::spawn(move || drop(run));
        gate.open();
        dropper.join().unwrap();
        tally.assert_all_dropped_once();
    });
}

// par-iter-sync: test_break.
#[test]
fn leaving_half_way_never_deadlocks() {
    let rounds = if cfg!(miri) { 20 } else { 300 };
    watchdog(move || {
        for round in 0..rounds {
            let run = (0..100u32)
                .futureproof(Raise)
                .num_threads(1 + round % 4)
                .max_in_flight(round % 10)
                .map_tasks(infallible(|n: &u32| *n));
            assert_eq!(run.take(round % 60).count(), round % 60);
        }
    });
}

// crossbeam: iter::nested_recv_iter.
#[test]
fn two_interleaved_runs_both_finish() {
    watchdog(|| {
        let run = |from: u32| {
            (from..from + 500)
                .futureproof(Raise)
                .num_threads(2)
                .ordered()
                .map_tasks(infallible(|n: &u32| *n))
        };
        assert!(
            run(0)
                .zip(run(7))
                .all(|(a, b)| a.unwrap().output + 7 == b.unwrap().output)
        );
        let mut total = 0;
        for _ in run(0).take(5) {
            total += run(0).take(100).count();
        }
        assert_eq!(total, 500);
    });
}

// crossbeam: thread_locals::use_while_exiting.
#[test]
fn a_run_may_be_dropped_at_thread_exit() {
    thread_local! {
        static KEPT: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
    }
    watchdog(|| {
        let tally = Tally::default();
        let tokens = tally.clone();
        thread::spawn(move || {
            let source = (0..1000).map(move |_| tokens.token());
            let mut run = source
                .futureproof(Raise)
                .num_threads(2)
                .max_in_flight(50)
                .map_tasks(infallible(|_: &Token| ()));
            run.next().unwrap().unwrap();
            KEPT.set(Some(Box::new(run)));
        })
        .join()
        .unwrap();
        tally.assert_all_dropped_once();
    });
}

#[test]
fn a_run_dropped_on_its_own_worker_does_not_wait_for_itself() {
    watchdog(|| {
        for chunk in [1, 4] {
            let (sender, receiver) = mpsc::channel::<Box<dyn Any + Send>>();
            let (receiver, tally) = (Mutex::new(receiver), Tally::default());
            let (done, dropped) = mpsc::channel();
            let tokens = tally.clone();
            let pulled = Gate::default();
            let opener = pulled.clone();
            let source = (0..10u32).map(move |n| {
                if n == 5 {
                    opener.open();
                }
                (n, tokens.token())
            });
            let mut run = source
                .futureproof(Raise)
                .num_threads(1)
                .chunk_size(chunk)
                .max_in_flight(8)
                .map_tasks(infallible(move |item: &(u32, Token)| {
                    // Task 0 is not delivered before task 5 is on its way.
                    if item.0 == 0 {
                        pulled.pass();
                    }
                    if item.0 == 5 {
                        drop(receiver.lock().unwrap().recv().unwrap());
                        done.send(()).unwrap();
                    }
                }));
            run.next().unwrap().unwrap();
            sender.send(Box::new(run)).unwrap();
            dropped.recv().unwrap();
            assert!(soon(|| tally.made() == tally.dropped()));
        }
    });
}

// threadpool, plmap: the consumer's panic unwinds through the drop.
#[test]
fn an_unwinding_drop_waits_as_well() {
    watchdog(|| {
        let running = Arc::new(());
        let guard = Arc::clone(&running);
        let outcome = catch_unwind(AssertUnwindSafe(move || {
            let run = (0..1000u32)
                .futureproof(Raise)
                .num_threads(3)
                .map_tasks(infallible(move |_: &u32| {
                    thread::sleep(Duration::from_millis(1));
                    Arc::strong_count(&guard)
                }));
            run.for_each(|task| assert_eq!(task.unwrap().output, 0));
        }));
        assert!(outcome.is_err());
        assert_eq!(Arc::strong_count(&running), 1);
    });
}

#[test]
fn a_forgotten_run_leaves_a_shared_pool_usable() {
    watchdog(|| {
        let pool = pool(1);
        let mut run = (0..100u32)
            .futureproof(Raise)
            .on(Arc::clone(&pool))
            .map_tasks(infallible(|n: &u32| *n));
        run.next().unwrap().unwrap();
        // As `forget` does, but it can still be found, so that it is no leak.
        static FORGOTTEN: Mutex<Vec<Box<dyn std::any::Any + Send>>> = Mutex::new(Vec::new());
        FORGOTTEN.lock().unwrap().push(Box::new(run));
        assert_eq!(
            (0..100u32)
                .futureproof(Raise)
                .on(pool)
                .map_tasks(infallible(|n: &u32| *n))
                .count(),
            100
        );
    });
}

#[test]
fn a_result_that_was_yielded_is_held_by_nobody_else() {
    let run = (0..100).map(Arc::new).futureproof(Raise).num_threads(2);
    let mut run = run.map_tasks(infallible(|n: &Arc<u32>| Arc::new(**n)));
    for task in run.by_ref() {
        let task = task.unwrap();
        let held = (Arc::downgrade(&task.input), Arc::downgrade(&task.output));
        drop(task);
        assert!(held.0.upgrade().is_none() && held.1.upgrade().is_none());
    }
}

/// Ticks of processor time that this process has used, its threads, and its resident pages.
#[cfg(target_os = "linux")]
fn usage() -> (u64, usize, u64) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let stat = read("stat");
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let pages = read("statm").split(' ').nth(1).unwrap().parse().unwrap();
    (ticks, fields[17].parse().unwrap(), pages)
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_runs_leave_nothing_behind() {
    in_child(|| {
        let one = |round: usize| {
            let token = CancellationToken::new();
            let run = (0..300usize)
                .futureproof(Raise)
                .num_threads(2)
                .cancel_on(&token);
            let mut run = run.map_tasks(move |n: &usize| {
                if round % 4 == 2 && *n == 200 {
                    Err(vec![0u8; 100])
                } else {
                    Ok(vec![0u8; 100])
                }
            });
            match round % 4 {
                1 => drop(run.next()),
                3 => token.cancel(),
                _ => assert!(run.by_ref().count() > 0),
            }
            assert_eq!(run.by_ref().take(1).count(), usize::from(round % 4 == 1));
        };
        (0..200).for_each(one);
        let (_, threads, pages) = usage();
        (0..1000).for_each(one);
        // A thread that was joined may stay in the table for a moment.
        assert!(
            soon(|| usage().1 <= threads),
            "{} threads, not {threads}",
            usage().1
        );
        let grown = usage().2.saturating_sub(pages);
        assert!(grown < 1024, "{grown} pages more, after {pages}");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_forgotten_stops_nothing_and_takes_no_time() {
    for home in ["own", "scope"] {
        Child::new(home).leaks().must_survive(|| {
            let calls = AtomicUsize::new(0);
            if home == "own" {
                let run = (0u64..)
                    .futureproof(Raise)
                    .num_threads(2)
                    .max_in_flight(100);
                let mut run = run.on_progress(|_| ()).map_tasks(infallible(|n: &u64| *n));
                run.next().unwrap().unwrap();
                std::mem::forget(run);
            } else {
                // The end of the scope waits for what was submitted, and for nothing else.
                futureproof::scope(2, |scope| {
                    let run = (0u64..).futureproof(Raise).on(scope).max_in_flight(100);
                    let mut run = run.map_tasks(infallible(|_: &u64| calls.fetch_add(1, SeqCst)));
                    run.next().unwrap().unwrap();
                    std::mem::forget(run);
                });
                assert!((1..=101).contains(&calls.load(SeqCst)));
            }
            // Nobody spins. Time has to pass for that to be seen; a tick is 10 ms.
            let (before, ..) = usage();
            let (_sender, never) = mpsc::channel::<()>();
            assert!(never.recv_timeout(Duration::from_millis(300)).is_err());
            let used = usage().0 - before;
            assert!(used < 10, "{used} ticks");
        });
    }
}

#[test]
fn a_process_may_end_in_the_midst_of_a_run() {
    for (how, status) in [("inside", 3), ("live", 0), ("returns", 0)] {
        let ended = Child::new(how).run(|| {
            let is_inside = how == "inside";
            let run = (0u64..).futureproof(Raise).num_threads(2);
            let run = run
                .on_progress(|_| ())
                .map_tasks(infallible(move |n: &u64| {
                    if is_inside && *n == 5 {
                        std::process::exit(3);
                    }
                }));
            let (sender, goes) = mpsc::channel();
            let mut run = run;
            let consumer = move || run.try_for_each(|_| sender.send(()));
            thread::spawn(consumer);
            goes.iter().take_while(|_| is_inside).for_each(drop);
            if how == "live" {
                std::process::exit(0);
            }
            // Else the test returns, and then `main` does.
        });
        if let Some(ended) = ended {
            assert_eq!(ended.status.code(), Some(status), "{how}: {}", ended.text);
        }
    }
}

/// A source that has lent something to the tasks, and wants it back.
struct Lender(u32, mpsc::Receiver<()>, Arc<AtomicBool>);

impl Iterator for Lender {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.0 += 1;
        Some(self.0)
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        self.2.store(self.1.recv_timeout(FOREVER).is_ok(), SeqCst);
    }
}

#[test]
fn a_source_may_wait_for_a_task_when_it_is_dropped() {
    watchdog(|| {
        let (told, is_told) = mpsc::channel();
        let (entered, entries) = mpsc::channel();
        let has_heard = Arc::new(AtomicBool::new(false));
        let source = Lender(0, is_told, Arc::clone(&has_heard));
        let run = source.futureproof(Raise).num_threads(1).chunk_size(1);
        let mut run = run.map_tasks(infallible(move |n: &u32| {
            if *n == 2 {
                entered.send(()).unwrap();
                until_told();
                told.send(()).unwrap();
            }
        }));
        run.next().unwrap().unwrap();
        entries.recv().unwrap();
        drop(run);
        assert!(has_heard.load(SeqCst));
    });
}
