//! A task can learn that nobody waits for it any more: that its run was cancelled, is late, or is being dropped.

mod common;

use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{FOREVER, Gate, Inline, pool, soon, until_told, watchdog};
use futureproof::prelude::*;
use futureproof::{Ending, MapTasks};

/// Waits in each task until its token is cancelled. Also gives how many tasks wait.
fn endless(
    run: futureproof::Futureproof<std::ops::Range<u32>>,
) -> (
    MapTasks<'static, std::ops::Range<u32>, (), std::convert::Infallible>,
    Arc<AtomicUsize>,
) {
    let waiting = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&waiting);
    let run = run.map_tasks(infallible(move |_: &u32| {
        count.fetch_add(1, SeqCst);
        until_told();
        assert!(CancellationToken::current().is_cancelled());
        count.fetch_sub(1, SeqCst);
    }));
    (run, waiting)
}

/// Looks at the task's token until it is cancelled.
fn look_until_cancelled() {
    let token = CancellationToken::current();
    while !token.is_cancelled() {
        thread::yield_now();
    }
}

#[test]
fn a_cancel_of_the_run_reaches_its_tasks() {
    watchdog(|| {
        let token = CancellationToken::new();
        let run = (0..10).futureproof(Raise).num_threads(2).cancel_on(&token);
        let (mut run, _) = endless(run);
        thread::scope(|scope| {
            scope.spawn(|| token.cancel());
            assert!(run.next().is_none());
        });
        assert_eq!(run.ending(), Some(Ending::Cancelled));
    });
}

#[test]
fn a_cancel_reaches_tasks_though_the_consumer_is_away() {
    watchdog(|| {
        let token = CancellationToken::new();
        let begun = Gate::default();
        let run = (0..2).futureproof(Raise).num_threads(2).chunk_size(1);
        let mut run = run.cancel_on(&token).map_tasks(move |n| match n {
            0 => {
                begun.pass();
                Ok(())
            }
            _ => {
                begun.open();
                look_until_cancelled();
                Err("cancelled")
            }
        });
        assert!(run.next().unwrap().is_ok());
        token.cancel();
        let progress = run.progress();
        assert!(soon(|| progress.snapshot().failed() == 1));
    });
}

#[test]
fn a_deadline_reaches_tasks() {
    watchdog(|| {
        let moment = Duration::from_millis(20);
        let run = (0..10).futureproof(Raise).num_threads(2).deadline(moment);
        let (mut run, waiting) = endless(run);
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
        // Without waiting for the drop.
        assert!(soon(|| waiting.load(SeqCst) == 0));
    });
}

#[test]
fn a_deadline_reaches_tasks_that_look_though_the_consumer_is_away() {
    watchdog(|| {
        let begun = Gate::default();
        let moment = Duration::from_millis(200);
        let run = (0..2).futureproof(Ignore).num_threads(2).chunk_size(1);
        let mut run = run.deadline(moment).map_tasks(move |n| match n {
            0 => {
                begun.pass();
                Ok(())
            }
            _ => {
                begun.open();
                look_until_cancelled();
                Err("late")
            }
        });
        // On a machine that is too busy for anything, the deadline comes first.
        if run.next().is_some() {
            let progress = run.progress();
            assert!(soon(|| progress.snapshot().failed() == 1));
        }
    });
}

/// Drops a run while a task of it is under way that ends when it is told.
fn drop_under_way(leave: impl FnOnce(MapTasks<'static, std::ops::Range<u32>, u32, &'static str>)) {
    let started = Gate::default();
    let told = Arc::new(AtomicUsize::new(0));
    let (starts, tells) = (started.clone(), Arc::clone(&told));
    let run = (0..2).futureproof(Raise).num_threads(2).chunk_size(1);
    let mut run = run.map_tasks(move |n| match n {
        0 => {
            starts.pass();
            Ok(*n)
        }
        _ => {
            starts.open();
            look_until_cancelled();
            tells.fetch_add(1, SeqCst);
            Err("nobody waits")
        }
    });
    assert!(run.next().unwrap().is_ok());
    leave(run);
    assert_eq!(told.load(SeqCst), 1);
}

#[test]
fn a_drop_of_the_run_reaches_its_tasks() {
    watchdog(|| drop_under_way(drop));
}

#[cfg(feature = "stream")]
#[test]
fn a_drop_of_the_stream_reaches_its_tasks() {
    watchdog(|| {
        let (sender, ended) = mpsc::channel();
        let run = (0..1u32).futureproof(Raise).num_threads(1);
        let stream = run.map_tasks(infallible(move |_: &u32| {
            sender.send("started").unwrap();
            look_until_cancelled();
            sender.send("told").unwrap();
        }));
        let mut stream = stream.into_stream();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let poll = futures_core::Stream::poll_next(std::pin::Pin::new(&mut stream), &mut context);
        assert!(poll.is_pending());
        assert_eq!(ended.recv(), Ok("started"));
        drop(stream);
        assert_eq!(ended.recv(), Ok("told"));
    });
}

/// Lets a second task end only after `meanwhile`, and gives what it then knows of its token.
fn seen_after(
    policy: ErrorPolicy,
    meanwhile: impl FnOnce(MapTasks<'static, std::ops::Range<u32>, bool, &'static str>, &Gate),
) -> bool {
    let (begun, gate) = (Gate::default(), Gate::default());
    let (sender, seen) = mpsc::channel();
    let (begins, opened) = (begun.clone(), gate.clone());
    let run = (0..2).futureproof(policy).num_threads(2).chunk_size(1);
    let run = run.map_tasks(move |n| match n {
        0 => {
            begins.pass();
            Err("alas")
        }
        _ => {
            begins.open();
            opened.pass();
            let is_cancelled = CancellationToken::current().is_cancelled();
            sender.send(is_cancelled).unwrap();
            Ok(is_cancelled)
        }
    });
    meanwhile(run, &gate);
    seen.recv().unwrap()
}

#[test]
fn the_failure_that_stops_the_run_is_told() {
    let seen = watchdog(|| {
        seen_after(Raise, |mut run, gate| {
            assert!(run.next().unwrap().is_err());
            gate.open();
            // Waits for what runs.
            assert!(run.next().is_none());
        })
    });
    assert!(seen);
}

#[test]
fn to_take_a_run_to_pieces_is_no_cancel() {
    let seen = watchdog(|| {
        seen_after(Ignore, |mut run, gate| {
            assert!(run.next().unwrap().is_err());
            let opener = gate.clone();
            // Most often opened only when `into_remainder` waits already.
            let opener = thread::spawn(move || opener.open());
            let rest = run.into_remainder();
            assert!(rest.finished[0].is_ok());
            opener.join().unwrap();
        })
    });
    assert!(!seen);
}

#[test]
fn each_run_has_a_token_of_its_own_even_on_one_thread() {
    watchdog(|| {
        let pool = pool(1);
        let shared = Arc::clone(&pool);
        let outer = CancellationToken::new();
        let of_outer = outer.clone();
        let run = (0..1u32).futureproof(Raise).on(pool).cancel_on(&outer);
        let mut run = run.map_tasks(infallible(move |_: &u32| {
            // Inline, on this very thread.
            let inner = (0..1u32).futureproof(Raise).on(Arc::clone(&shared));
            let of_outer = of_outer.clone();
            let inner = inner.map_tasks(infallible(move |_: &u32| {
                let inner = CancellationToken::current();
                of_outer.cancel();
                inner.is_cancelled()
            }));
            let is_inner_cancelled = inner.flatten().next().unwrap().output;
            assert!(!is_inner_cancelled);
            assert!(CancellationToken::current().is_cancelled());
        }));
        assert!(run.next().is_none());
        let rest = run.into_remainder();
        assert!(rest.finished[0].is_ok(), "{:?}", rest.finished);
    });
}

#[test]
fn a_token_is_current_only_while_its_task_runs() {
    let run = (0..3u32).futureproof(Raise).on(Inline);
    let mut run = run.map_tasks(infallible(|_: &u32| CancellationToken::current()));
    let of_task = run.next().unwrap().unwrap().output;
    assert!(!of_task.is_cancelled());
    drop(run);
    assert!(of_task.is_cancelled());
    assert!(!CancellationToken::current().is_cancelled());
}

#[test]
fn a_deadline_that_has_not_come_is_no_cancel() {
    let run = (0..3u32).futureproof(Raise).num_threads(1);
    let run = run.deadline(FOREVER);
    let run = run.map_tasks(infallible(|_: &u32| {
        CancellationToken::current().is_cancelled()
    }));
    assert!(run.flatten().all(|task| !task.output));
}

#[test]
fn a_thread_without_a_task_has_a_token_that_nobody_cancels() {
    let token = CancellationToken::current();
    (0..10u32)
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u32| *n))
        .for_each(drop);
    assert!(!token.is_cancelled());
    token.cancel();
    // It was nobody's.
    assert!(!CancellationToken::current().is_cancelled());
}

/// A function to give to `on_cancel`, and how often it was called.
fn counter() -> (impl FnOnce() + Send + 'static + Clone, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let count = move || {
        counted.fetch_add(1, SeqCst);
    };
    (count, calls)
}

#[test]
fn a_listener_is_called_once() {
    let (count, calls) = counter();
    let token = CancellationToken::new();
    let _listener = token.on_cancel(count);
    assert_eq!(calls.load(SeqCst), 0);
    token.cancel();
    token.cancel();
    assert_eq!(calls.load(SeqCst), 1);
}

#[test]
fn a_listener_that_comes_late_is_called_at_once() {
    let (count, calls) = counter();
    let token = CancellationToken::new();
    token.cancel();
    let listener = token.on_cancel(count);
    assert_eq!(calls.load(SeqCst), 1);
    drop(listener);
}

#[test]
fn a_listener_that_is_dropped_is_not_called() {
    let (count, calls) = counter();
    let token = CancellationToken::new();
    let [first, second] = [token.on_cancel(count.clone()), token.on_cancel(count)];
    drop(first);
    token.cancel();
    assert_eq!(calls.load(SeqCst), 1);
    drop(second);
    // What they captured is gone as well.
    assert_eq!(Arc::strong_count(&calls), 1);
}

#[test]
fn listeners_may_panic_and_use_the_token() {
    watchdog(|| {
        let (count, calls) = counter();
        let token = CancellationToken::new();
        let again = token.clone();
        let own = Arc::new(Mutex::new(None));
        let taken = Arc::clone(&own);
        let first = token.on_cancel(move || {
            assert!(again.is_cancelled());
            again.cancel();
            drop(again.on_cancel(count));
            drop(taken.lock().unwrap().take());
            panic!("a listener's");
        });
        *own.lock().unwrap() = Some(first);
        let (count, later) = counter();
        let _listener = token.on_cancel(count);
        token.cancel();
        assert_eq!((calls.load(SeqCst), later.load(SeqCst)), (1, 1));
    });
}

/// What lies in chunks that go on counts as well, though nobody asks for it.
#[test]
fn a_failure_too_many_reaches_the_neighbour_of_the_one_before() {
    watchdog(|| {
        let [all_there, away, begun, over] = [(); 4].map(|()| Gate::default());
        let leave = (away.clone(), over.clone());
        let (told, is_told) = mpsc::channel();
        // Nobody begins before all three chunks are there.
        let (pool, all_pulled) = (pool(3), Gate::default());
        for _ in 0..3 {
            let all_pulled = all_pulled.clone();
            pool.spawn(move || all_pulled.pass());
        }
        let mut items = 0..9u32;
        let source = iter::from_fn(move || {
            let item = items.next();
            if item.is_none() {
                all_pulled.open();
            }
            item
        });
        let run = source.futureproof(Tolerate(1)).on(pool);
        // Then all three threads are busy, so nobody takes over task 5.
        let mut run = run.chunk_size(3).map_tasks(move |n: &u32| {
            match n {
                0 => all_there.pass(),
                1 => over.pass(),
                // If the loop still asks for results, this is what it is sent.
                3 => away.pass(),
                4 => return Err("the first"),
                5 => {
                    begun.open();
                    until_told();
                    told.send(()).unwrap();
                }
                6 => {
                    all_there.open();
                    begun.pass();
                    return Err("one too many");
                }
                _ => {}
            }
            Ok(())
        });
        run.next().unwrap().unwrap();
        let (away, over) = leave;
        away.open();
        assert!(is_told.recv_timeout(FOREVER).is_ok());
        over.open();
    });
}
