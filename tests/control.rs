//! Runs that are paused, resumed, narrowed and widened.

mod common;

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use common::lines::{collect_lines, lines_of};
use common::{FOREVER, MS, pool, soon, watchdog};
use futureproof::prelude::*;
use futureproof::{Control, Ending};
use log::LevelFilter;

/// Counts how many are inside at once.
#[derive(Clone, Default)]
struct Inside(Arc<(AtomicUsize, AtomicUsize)>);

impl Inside {
    fn call<R>(&self, f: impl FnOnce() -> R) -> R {
        let now = self.0.0.fetch_add(1, SeqCst) + 1;
        self.0.1.fetch_max(now, SeqCst);
        let result = f();
        self.0.0.fetch_sub(1, SeqCst);
        result
    }

    /// The most that there were since this was last asked, once nobody is inside.
    fn most(&self) -> usize {
        self.0.1.swap(0, SeqCst)
    }
}

/// Waits for a pause, then has `f` called and resumes.
fn operator(control: &Control, f: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    let control = control.clone();
    thread::spawn(move || {
        while !control.is_paused() {
            thread::yield_now();
        }
        f();
        control.resume();
    })
}

/// Also those that lie in the chunk that is being run wait; a thread of a shared pool does not.
#[test]
fn a_pause_reaches_into_a_chunk_and_blocks_no_thread() {
    watchdog(|| {
        for chunk in [0, 1, 1_000] {
            for is_shared in [false, true] {
                let (control, started) = (Control::new(), Arc::new(AtomicUsize::new(0)));
                let shared = pool(1);
                let (pause, count) = (control.clone(), Arc::clone(&started));
                let call = move |n: &usize| {
                    count.fetch_add(1, SeqCst);
                    if *n == 300 {
                        pause.pause();
                    }
                };
                let (seen, same) = (Arc::clone(&started), Arc::clone(&shared));
                let operator = operator(&control, move || {
                    // The pool's only thread has time for others.
                    let other = (0..10).futureproof(Raise).on(same);
                    assert_eq!(other.map_tasks(infallible(|n: &u32| *n)).count(), 10);
                    assert_eq!(seen.load(SeqCst), 301);
                });
                let run = (0..1_000usize)
                    .futureproof(Raise)
                    .num_threads(1)
                    .chunk_size(chunk)
                    .control(&control);
                if is_shared {
                    assert_eq!(run.on(shared).map_tasks(infallible(call)).count(), 1_000);
                } else {
                    assert_eq!(run.map_tasks(infallible(call)).count(), 1_000);
                }
                assert_eq!(started.load(SeqCst), 1_000);
                operator.join().unwrap();
            }
        }
    });
}

/// Nothing starts in a later stage either, and what it waits with is not lost.
#[test]
fn a_pause_stops_every_stage() {
    watchdog(|| {
        let shared = pool(2);
        for is_shared in [false, true] {
            let (control, parsed) = (Control::new(), Arc::new(AtomicUsize::new(0)));
            let (pause, count) = (control.clone(), Arc::clone(&parsed));
            let fetch = |n: &u64| Ok::<_, String>(n + 1);
            let parse = move |n: &u64| {
                if count.fetch_add(1, SeqCst) == 50 {
                    pause.pause();
                }
                Ok(*n)
            };
            let seen = Arc::clone(&parsed);
            let operator = operator(&control, move || {
                // The other thread may have been about to start one.
                let before = seen.load(SeqCst);
                thread::sleep(20 * MS);
                assert!(seen.load(SeqCst) <= before + 1);
            });
            let run = (0..500u64)
                .futureproof(Raise)
                .num_threads(2)
                .control(&control);
            let sum = if is_shared {
                let run = run.on(Arc::clone(&shared)).stage(fetch);
                let run = run.on(Arc::clone(&shared)).map_tasks(parse);
                run.map(|task| task.unwrap().output).sum::<u64>()
            } else {
                let run = run.stage(fetch).num_threads(2).map_tasks(parse);
                run.map(|task| task.unwrap().output).sum()
            };
            assert_eq!(sum, 500 * 501 / 2);
            operator.join().unwrap();
        }
    });
}

#[test]
fn what_has_finished_is_delivered_while_the_run_is_paused() {
    watchdog(|| {
        let control = Control::new();
        let pause = control.clone();
        let call = move |n: &u32| {
            if *n == 5 {
                pause.pause();
            }
        };
        let run = (0..20u32).futureproof(Raise).num_threads(1).chunk_size(10);
        let mut run = run.control(&control).map_tasks(infallible(call));
        let delivered = run.by_ref().take(6).map(|task| task.unwrap().index);
        assert_eq!(delivered.collect::<Vec<_>>(), (0..6).collect::<Vec<_>>());
        assert!(run.progress().snapshot().is_paused());
        control.resume();
        assert_eq!(run.count(), 14);
    });
}

#[test]
fn whatever_ends_a_run_beats_its_pause() {
    watchdog(|| {
        let control = Control::new();
        control.pause();
        let run = || (0..10u32).futureproof(Raise).control(&control);
        let mut late = run().deadline(20 * MS).map_tasks(infallible(|n: &u32| *n));
        assert!(late.next().is_none());
        assert_eq!(late.ending(), Some(Ending::DeadlineExceeded));
        assert!(late.report().waited() >= 5 * MS);

        let token = CancellationToken::new();
        let mut cancelled = run().cancel_on(&token).map_tasks(infallible(|n: &u32| *n));
        let cancel = thread::spawn(move || {
            thread::sleep(20 * MS);
            token.cancel();
        });
        assert!(cancelled.next().is_none());
        assert_eq!(cancelled.ending(), Some(Ending::Cancelled));
        let left = cancelled.into_remainder();
        assert_eq!(left.unprocessed.len() + left.source.count(), 10);
        cancel.join().unwrap();

        // Left with items in the queue, and some whose attempt is due.
        control.resume();
        let pause = control.clone();
        let call = move |n: &u32| {
            if *n == 4 {
                pause.pause();
            }
            if n % 2 == 0 { Err("busy") } else { Ok(*n) }
        };
        let run = (0..1_000u32).futureproof(Ignore).num_threads(2);
        let run = run.chunk_size(10).control(&control).map_tasks(call);
        let mut run = run.retry(|| [MS]);
        assert!(run.next().is_some());
        drop(run);
    });
}

/// A failure behind a pause ends the run, as it does without one.
#[test]
fn a_failure_ends_a_paused_run() {
    watchdog(|| {
        let control = Control::new();
        let pause = control.clone();
        let call = move |n: &u32| {
            if *n == 7 {
                pause.pause();
                return Err("broken");
            }
            Ok(*n)
        };
        for is_ordered in [false, true] {
            control.resume();
            let run = (0..100u32).futureproof(Raise).num_threads(1);
            let run = run.control(&control);
            let run = if is_ordered { run.ordered() } else { run };
            let mut run = run.map_tasks(call.clone());
            let failed = run.by_ref().find_map(Result::err);
            assert_eq!(failed.unwrap().index(), 7);
            assert_eq!(run.ending(), Some(Ending::Failed));
        }
    });
}

#[test]
fn a_run_is_as_wide_as_its_control_says() {
    watchdog(|| {
        let (control, inside) = (Control::new(), Inside::default());
        control.set_concurrency(2);
        assert_eq!(control.concurrency(), Some(2));
        for chunk in [0, 5] {
            let within = inside.clone();
            let run = (0..40u32)
                .futureproof(Raise)
                .num_threads(8)
                .chunk_size(chunk);
            let run = run.control(&control);
            let call = move |_: &u32| within.call(|| thread::sleep(MS));
            assert_eq!(run.map_tasks(infallible(call)).count(), 40);
            assert_eq!(inside.most(), 2);
        }
        // 0 is no limit, nor is more than there are threads.
        for wide in [0, 100, usize::MAX] {
            control.set_concurrency(wide);
            let meeting = Barrier::new(4);
            let run = (0..4).futureproof(Raise).num_threads(4).control(&control);
            let meet = move |_: &u32| {
                meeting.wait();
            };
            assert_eq!(run.map_tasks(infallible(meet)).count(), 4);
        }
    });
}

/// Narrower in the middle of long chunks, then wider while the consumer waits.
#[test]
fn a_run_gets_narrower_and_wider_as_it_goes_on() {
    watchdog(|| {
        let (control, inside) = (Control::new(), Inside::default());
        let (narrow, within, meeting) = (control.clone(), inside.clone(), Barrier::new(4));
        let (told, heard) = mpsc::channel();
        let call = move |n: &u32| match n {
            0 => {
                narrow.set_concurrency(1);
                told.send(()).unwrap();
            }
            // All of them are there at the beginning, and so may be inside for one more.
            1..100 => thread::sleep(MS),
            100..200 => within.call(|| thread::sleep(MS)),
            200 => {
                told.send(()).unwrap();
            }
            _ => {
                meeting.wait();
            }
        };
        let widen = control.clone();
        let operator = thread::spawn(move || {
            heard.recv().unwrap();
            heard.recv().unwrap();
            // The next one waits for three others.
            thread::sleep(5 * MS);
            widen.set_concurrency(4);
        });
        let run = (0..205u32).futureproof(Raise).num_threads(4).chunk_size(7);
        let run = run.max_in_flight(300).ordered().control(&control);
        assert_eq!(run.map_tasks(infallible(call)).count(), 205);
        assert_eq!(inside.most(), 1);
        operator.join().unwrap();
    });
}

#[test]
fn one_control_serves_many_runs_and_forgets_those_that_are_over() {
    watchdog(|| {
        let control = Control::new();
        let runs: Vec<_> = (0..8)
            .map(|n| {
                let control = control.clone();
                thread::spawn(move || {
                    let run = (0..2_000u32).futureproof(Raise).num_threads(2);
                    let run = run.name(format!("controlled-{n}")).control(&control);
                    run.map_tasks(infallible(|n: &u32| thread::sleep(MS / 100 * (n % 2))))
                        .count()
                })
            })
            .collect();
        for n in 0..50 {
            control.pause();
            control.set_concurrency(n % 4);
            thread::sleep(MS / 2);
            control.resume();
            thread::sleep(MS / 2);
        }
        control.set_concurrency(0);
        for run in runs {
            assert_eq!(run.join().unwrap(), 2_000);
        }
        assert_eq!(control, control.clone());
        assert_ne!(control, Control::new());
        assert_eq!(control.concurrency(), None);
    });
}

/// The consumer is a thread of the pool, and so runs tasks itself; not while the run is paused.
#[test]
fn a_consumer_that_is_a_worker_pauses_as_well() {
    watchdog(|| {
        for width in [1, 3] {
            let shared = pool(width);
            let control = Control::new();
            control.pause();
            let started = Arc::new(AtomicUsize::new(0));
            let (count, seen) = (Arc::clone(&started), Arc::clone(&started));
            let operator = operator(&control, move || {
                thread::sleep(10 * MS);
                assert_eq!(seen.load(SeqCst), 0);
            });
            let on = Arc::clone(&shared);
            let all = shared.install(|| {
                let run = (0..100u32).futureproof(Raise).on(on).control(&control);
                let call = move |_: &u32| {
                    count.fetch_add(1, SeqCst);
                };
                run.map_tasks(infallible(call)).count()
            });
            assert_eq!(all, 100);
            operator.join().unwrap();
        }
    });
}

/// A paused run uses no processor, with an attempt that is due and a rate limit as well.
#[cfg(target_os = "linux")]
#[test]
fn a_paused_run_is_calm() {
    watchdog(|| {
        let control = Control::new();
        let pause = control.clone();
        let call = move |_: &u32| {
            pause.pause();
            Err::<(), _>("busy")
        };
        let operator = operator(&control, || {
            let used = || common::processor_time_of("calm-pause");
            thread::sleep(20 * MS);
            let before = used();
            thread::sleep(300 * MS);
            let used = used() - before;
            assert!(used < 100 * MS, "{used:?} of 300 ms");
        });
        let run = (0..1u32).futureproof(Ignore).name("calm-pause");
        let run = run.rate_limit(1_000, 1_000 * MS).control(&control);
        let run = run.map_tasks(call).retry(|| [MS / 10]);
        let consumer = thread::Builder::new().name("calm-pause-next".into());
        let consumer = consumer.spawn(move || run.count()).unwrap();
        let again = control.clone();
        let late = thread::spawn(move || {
            // The second attempt pauses it once more.
            operator.join().unwrap();
            assert!(soon(|| again.is_paused()));
            again.resume();
        });
        assert_eq!(consumer.join().unwrap(), 1);
        late.join().unwrap();
    });
}

#[test]
fn the_log_and_the_figures_tell_of_it() {
    collect_lines(LevelFilter::Info);
    let control = Control::new();
    control.set_concurrency(2);
    let pause = control.clone();
    let call = move |n: &u32| {
        if *n == 3 {
            pause.pause();
        }
    };
    let run = (0..10u32)
        .futureproof(Raise)
        .name("told-of-a-pause")
        .num_threads(4);
    let run = run.monitor_interval(10 * MS).control(&control);
    let mut run = run.map_tasks(infallible(call));
    let progress = run.progress();
    let operator = operator(&control, move || {
        let now = progress.snapshot();
        assert!(now.is_paused());
        assert_eq!(now.concurrency(), Some(2));
        let is_told = |(_, line): (_, String)| line.contains(", 2 at once, paused");
        assert!(soon(|| lines_of("told-of-a-pause")
            .into_iter()
            .any(is_told)));
    });
    assert_eq!(run.by_ref().count(), 10);
    operator.join().unwrap();
    assert!(FOREVER > run.report().elapsed());
}

/// More than there are threads is as many as there are, also for a width that finds itself.
#[test]
fn an_adaptive_width_takes_any_number() {
    watchdog(|| {
        for n in [0, 1, 64, usize::MAX - 1, usize::MAX] {
            let control = Control::adaptive();
            control.set_concurrency(n);
            let run = (0..2_000u32)
                .futureproof(Raise)
                .num_threads(2)
                .control(&control);
            let call = |_: &u32| thread::sleep(MS / 20);
            assert_eq!(run.map_tasks(infallible(call)).count(), 2_000);
            assert!(control.concurrency().is_some_and(|n| (1..=2).contains(&n)));
        }
    });
}

/// The source is not pulled on while the run is paused, though a chunk was being filled.
#[test]
fn a_pause_ends_the_filling_of_a_chunk() {
    watchdog(|| {
        let control = Control::new();
        let pause = control.clone();
        let pulled = Arc::new(AtomicUsize::new(0));
        let (count, seen) = (Arc::clone(&pulled), Arc::clone(&pulled));
        let source = (0..100u32).inspect(move |n| {
            count.fetch_add(1, SeqCst);
            if *n == 30 {
                pause.pause();
            }
        });
        let operator = operator(&control, move || {
            thread::sleep(20 * MS);
            assert_eq!(seen.load(SeqCst), 31);
        });
        let run = source.futureproof(Raise).chunk_size(100).control(&control);
        assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 100);
        operator.join().unwrap();
    });
}

/// What limits a run is told of the time in which it was not paused.
#[test]
fn a_report_leaves_out_the_pause() {
    watchdog(|| {
        let control = Control::new();
        let pause = control.clone();
        let operator = operator(&control, || thread::sleep(200 * MS));
        let call = move |n: &u32| {
            if *n == 5 {
                pause.pause();
            }
            thread::sleep(2 * MS);
        };
        let run = (0..20u32)
            .futureproof(Raise)
            .num_threads(1)
            .control(&control);
        let mut run = run.map_tasks(infallible(call));
        assert_eq!(run.by_ref().count(), 20);
        operator.join().unwrap();
        let (report, text) = (run.report(), run.report().to_string());
        assert!(report.elapsed() >= 200 * MS);
        let busy = text.split("workers busy ").nth(1).unwrap();
        let busy: f64 = busy.split(' ').next().unwrap().parse().unwrap();
        assert!(busy >= 50.0, "{text}");
    });
}

/// What was held behind another task of its key may start when that one ends; but not during a pause.
#[test]
fn what_is_held_no_longer_waits_for_the_end_of_a_pause() {
    watchdog(|| {
        let (control, started) = (Control::new(), Arc::new(AtomicUsize::new(0)));
        let (pause, count) = (control.clone(), Arc::clone(&started));
        let run = (0..10u32).futureproof(Raise).num_threads(2);
        let run = run.control(&control).by_key(|_| "all");
        let run = run.map_tasks(infallible(move |n: &u32| {
            count.fetch_add(1, SeqCst);
            if *n == 0 {
                pause.pause();
            }
        }));
        let operator = operator(&control, move || {
            thread::sleep(50 * MS); // lets those that do not wait come first
            assert_eq!(started.load(SeqCst), 1);
        });
        assert_eq!(run.count(), 10);
        operator.join().unwrap();
    });
}
