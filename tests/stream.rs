//! A run as a stream, on the smallest executor there is.
#![cfg(feature = "stream")]

mod common;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use common::{FOREVER, Gate, Tally, watchdog};
use futureproof::prelude::*;
use futureproof::{Ending, Futureproof, MapTasks, TaskStream};
use futures_core::{FusedStream, Stream};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Parks until there is a next one.
fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match Pin::new(&mut *stream).poll_next(&mut context) {
            Poll::Ready(next) => return next,
            Poll::Pending => thread::park(),
        }
    }
}

fn poll<S: Stream + Unpin>(stream: &mut S) -> Poll<Option<S::Item>> {
    Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()))
}

fn stream<I, T, E>(run: MapTasks<'static, I, T, E>) -> TaskStream<I, T, E>
where
    I: Iterator<Item: Send> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    run.into_stream()
}

#[test]
fn every_task_comes_once() {
    watchdog(|| {
        for count in [0, 1, 10, 100_000] {
            let run = (0..count).futureproof(Raise).num_threads(2);
            let mut stream = run.map_tasks(infallible(|n: &u64| n + 1)).into_stream();
            let mut seen = Vec::new();
            assert!(!stream.is_terminated());
            while let Some(task) = next(&mut stream) {
                let task = task.unwrap();
                assert_eq!(task.output, task.input + 1);
                seen.push(task.index);
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..count));
            assert!(stream.is_terminated() && next(&mut stream).is_none());
            assert!(format!("{stream:?}").contains("TaskStream { ending: Some(Exhausted)"));
            assert_eq!(stream.ending(), Some(Ending::Exhausted));
        }
    });
}

#[test]
fn nothing_happens_before_the_first_poll() {
    let pulled = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&pulled);
    let source = (0..10u32).inspect(move |_| {
        count.fetch_add(1, SeqCst);
    });
    let run = source.futureproof(Raise).name("unpolled");
    drop(stream(run.map_tasks(infallible(|n: &u32| *n))));
    assert_eq!(pulled.load(SeqCst), 0);
    assert!(common::threads_named("unpolled").is_empty());
}

#[test]
fn a_failure_ends_the_stream() {
    watchdog(|| {
        let run = (0u32..).futureproof(Raise).num_threads(2);
        let mut stream = stream(run.map_tasks(|n| if *n == 1000 { Err("no") } else { Ok(()) }));
        let failures = std::iter::from_fn(|| next(&mut stream)).filter(Result::is_err);
        assert_eq!(failures.count(), 1);
        assert_eq!(stream.ending(), Some(Ending::Failed));
    });
}

#[test]
fn the_window_holds_while_nobody_polls() {
    watchdog(|| {
        for (window, chunk) in [(1, 1), (7, 3), (100, 100)] {
            let pulled = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&pulled);
            let source = (0..2_000u64).inspect(move |_| {
                count.fetch_add(1, SeqCst);
            });
            let run = source
                .futureproof(Raise)
                .num_threads(2)
                .max_in_flight(window);
            let run = run.chunk_size(chunk).map_tasks(infallible(|n: &u64| *n));
            let mut stream = run.into_stream();
            let mut taken = 0;
            while next(&mut stream).is_some() {
                taken += 1;
                let in_flight = pulled.load(SeqCst) - taken;
                assert!(
                    in_flight <= window as u64,
                    "{in_flight} in flight, not {window}"
                );
            }
            assert_eq!(taken, 2_000);
        }
    });
}

#[test]
fn polling_never_blocks_and_a_result_wakes() {
    watchdog(|| {
        let gate = Gate::default();
        let inside = gate.clone();
        let run = (0..1u32).futureproof(Raise).num_threads(1);
        let mut stream = stream(run.map_tasks(infallible(move |_: &u32| inside.pass())));
        assert!(poll(&mut stream).is_pending());
        gate.open();
        assert!(next(&mut stream).is_some());
        assert!(next(&mut stream).is_none());
    });
}

/// Counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicU64);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn nobody_is_woken_for_what_need_not_be_taken_yet() {
    watchdog(|| {
        for _ in 0..100 {
            let (gate, wakes) = (Gate::default(), Arc::new(Wakes::default()));
            let (inside, seen) = (gate.clone(), Arc::clone(&wakes));
            let (sender, told) = mpsc::channel();
            let start = Instant::now();
            // When a task begins, the ones before it have come back: there is one thread.
            let task = move |n: &u32| match n {
                0 => inside.pass(),
                1 => (),
                _ => sender.send((seen.0.load(SeqCst), start.elapsed())).unwrap(),
            };
            let run = (0..3u32).futureproof(Raise).num_threads(1);
            let mut stream = stream(run.map_tasks(infallible(task)));
            let waker = Waker::from(wakes);
            let first = Pin::new(&mut stream).poll_next(&mut Context::from_waker(&waker));
            assert!(first.is_pending());
            gate.open();
            let (wakes, elapsed) = told.recv().unwrap();
            // On a busy machine, enough has come together, or the consumer asks for what has finished.
            assert!(
                wakes == 0 || elapsed > Duration::from_micros(400),
                "{wakes}, {elapsed:?}"
            );
        }
    });
}

#[test]
fn a_dropped_stream_waits_for_nothing_and_leaves_nothing() {
    watchdog(|| {
        let (tally, gate, entered) = (Tally::default(), Gate::default(), Gate::default());
        let (tokens, inside, begun) = (tally.clone(), gate.clone(), entered.clone());
        let source = std::iter::repeat_with(move || tokens.token());
        let run = source.futureproof(Raise).num_threads(2).name("left");
        let run = run.map_tasks(infallible(move |_: &_| {
            begun.open();
            inside.pass();
        }));
        let mut stream = run.into_stream();
        assert!(poll(&mut stream).is_pending());
        entered.pass();
        // Calls are running, and go on.
        drop(stream);
        gate.open();
        assert!(common::soon(|| tally.made() == tally.dropped()));
        assert!(common::soon(|| common::threads_named("left").is_empty()));
    });
}

#[test]
fn a_stream_is_dropped_while_an_item_waits_for_another_attempt() {
    watchdog(|| {
        let (sender, called) = mpsc::channel();
        let run = (0..1u32).futureproof(Raise).num_threads(1).name("waiting");
        let run = run.map_tasks(move |n: &u32| {
            sender.send(()).unwrap();
            Err::<(), _>(*n)
        });
        let mut stream = run.retry(|| [FOREVER]).into_stream();
        assert!(poll(&mut stream).is_pending());
        called.recv().unwrap();
        drop(stream);
        assert!(common::soon(|| common::threads_named("waiting").is_empty()));
    });
}

#[test]
fn a_panic_of_the_source_reaches_whoever_polls() {
    watchdog(|| {
        let source = (0..10u32).inspect(|n| {
            if *n == 5 {
                panic_any(7u8)
            }
        });
        let run = source.futureproof(Ignore).num_threads(1);
        let mut stream = stream(run.map_tasks(infallible(|n: &u32| *n)));
        let payload = loop {
            match catch_unwind(AssertUnwindSafe(|| next(&mut stream))) {
                Ok(task) => assert!(task.is_some()),
                Err(payload) => break payload,
            }
        };
        assert_eq!(payload.downcast_ref(), Some(&7u8));
        assert!(next(&mut stream).is_none());
        assert_eq!(stream.ending(), Some(Ending::SourcePanicked));
    });
}

#[test]
fn a_cancel_wakes_whoever_waits_and_nothing_more_is_delivered() {
    watchdog(|| {
        let token = CancellationToken::new();
        let run = (0u32..).futureproof(Raise).num_threads(2).cancel_on(&token);
        let mut stream = stream(run.chunk_size(64).map_tasks(infallible(|n: &u32| *n)));
        assert!(next(&mut stream).is_some());
        token.cancel();
        assert!(next(&mut stream).is_none());
        assert_eq!(stream.ending(), Some(Ending::Cancelled));
    });
}

#[test]
fn a_stream_can_be_kept_and_moved_between_threads() {
    fn claim<S: FusedStream + Send + Unpin + 'static>(_: S) {}
    claim(stream(
        (0..1u32)
            .futureproof(Raise)
            .map_tasks(infallible(|n: &u32| *n)),
    ));
}

/// Polls a stream that has nothing yet; it then holds the only clone of the waker.
fn wait_with<S: Stream + Unpin>(stream: &mut S, waker: impl Wake + Send + Sync + 'static) {
    let waker = Waker::from(Arc::new(waker));
    let poll = Pin::new(stream).poll_next(&mut Context::from_waker(&waker));
    assert!(poll.is_pending());
}

/// Says when it was woken.
struct Report(mpsc::Sender<()>);

impl Wake for Report {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

/// Polls a stream that has nothing yet, and gives what tells of the wake-up.
fn wait_elsewhere<S: Stream + Unpin>(stream: &mut S) -> mpsc::Receiver<()> {
    let (sender, woken) = mpsc::channel();
    wait_with(stream, Report(sender));
    woken
}

/// As with the iterator: whoever cancels wants nothing more.
#[test]
fn a_cancel_beats_a_failure_that_nobody_has_polled_for() {
    watchdog(|| {
        let (token, gate) = (CancellationToken::new(), Gate::default());
        let inside = gate.clone();
        let run = (0..1u32).futureproof(Raise).cancel_on(&token);
        let run = run.map_tasks(move |_| {
            inside.pass();
            Err::<(), _>("no")
        });
        let mut stream = run.into_stream();
        let woken = wait_elsewhere(&mut stream);
        gate.open();
        woken.recv().unwrap();
        assert_eq!(stream.ending(), None);
        token.cancel();
        assert!(next(&mut stream).is_none());
        assert_eq!(stream.ending(), Some(Ending::Cancelled));
    });
}

#[test]
fn results_that_came_before_a_cancel_are_not_delivered() {
    watchdog(|| {
        let (token, gate) = (CancellationToken::new(), Gate::default());
        let inside = gate.clone();
        let run = (0..1u32).futureproof(Raise).cancel_on(&token);
        let mut stream = stream(run.map_tasks(infallible(move |_: &u32| inside.pass())));
        let woken = wait_elsewhere(&mut stream);
        gate.open();
        woken.recv().unwrap();
        token.cancel();
        assert!(matches!(poll(&mut stream), Poll::Ready(None)));
        assert_eq!(stream.ending(), Some(Ending::Cancelled));
    });
}

#[test]
fn a_stream_of_a_run_that_had_begun_is_dropped_without_waiting() {
    watchdog(|| {
        let (tally, gate, entered) = (Tally::default(), Gate::default(), Gate::default());
        let (tokens, inside, begun) = (tally.clone(), gate.clone(), entered.clone());
        let source = (0..10).map(move |n| (n, tokens.token()));
        let run = source.futureproof(Raise).num_threads(1).chunk_size(1);
        let mut run = run.name("begun").map_tasks(infallible(move |(n, _): &_| {
            if *n > 0 {
                begun.open();
                inside.pass();
            }
        }));
        assert!(run.next().is_some());
        entered.pass();
        drop(stream(run));
        gate.open();
        assert!(common::soon(|| tally.made() == tally.dropped()));
        assert!(common::soon(|| common::threads_named("begun").is_empty()));
    });
}

#[test]
fn a_run_that_had_begun_goes_on_as_a_stream() {
    watchdog(|| {
        let run = (0..1_000u64).futureproof(Raise).num_threads(2);
        let mut run = run.map_tasks(infallible(|n: &u64| *n));
        assert!(run.next().is_some());
        let mut stream = stream(run);
        assert_eq!(std::iter::from_fn(|| next(&mut stream)).count(), 999);
        assert_eq!(stream.ending(), Some(Ending::Exhausted));
    });
}

/// Tells where it is dropped.
struct Grave(mpsc::Sender<ThreadId>);

impl Drop for Grave {
    fn drop(&mut self) {
        self.0.send(thread::current().id()).unwrap();
    }
}

type Numbers = std::ops::Range<u32>;

/// Leaves a stream with 99 results at hand, and gives the threads on which they are dropped.
fn graves(
    leave: impl FnOnce(TaskStream<Numbers, Grave, Infallible>),
    token: &CancellationToken,
) -> Vec<ThreadId> {
    let (sender, graves) = mpsc::channel();
    let run = (0..100).futureproof(Raise).num_threads(1).chunk_size(100);
    let run = run.max_in_flight(100).cancel_on(token);
    let run = run.map_tasks(infallible(move |_: &u32| Grave(sender.clone())));
    let progress = run.progress();
    let mut stream = run.into_stream();
    drop(next(&mut stream).unwrap());
    graves.recv().unwrap();
    assert!(common::soon(|| progress.snapshot().completed() == 100));
    leave(stream);
    graves.into_iter().collect()
}

#[test]
fn what_a_dropped_stream_has_not_delivered_is_dropped_elsewhere() {
    let graves = watchdog(|| {
        let graves = graves(drop, &CancellationToken::new());
        (graves, thread::current().id())
    });
    assert_eq!(graves.0.len(), 99);
    assert!(!graves.0.contains(&graves.1));
}

#[test]
fn what_a_cancelled_stream_has_not_delivered_is_dropped_elsewhere() {
    let graves = watchdog(|| {
        let token = CancellationToken::new();
        let cancel = |mut stream: TaskStream<_, _, _>| {
            token.cancel();
            assert!(next(&mut stream).is_none());
            assert_eq!(stream.ending(), Some(Ending::Cancelled));
        };
        (graves(cancel, &token), thread::current().id())
    });
    assert_eq!(graves.0.len(), 99);
    assert!(!graves.0.contains(&graves.1));
}

/// A stream of one task, which waits for the first gate, and opens the second one when it starts.
fn waiting(run: Futureproof<Numbers>) -> (TaskStream<Numbers, (), Infallible>, Gate, Gate) {
    let (gate, entered) = (Gate::default(), Gate::default());
    let (inside, begun) = (gate.clone(), entered.clone());
    let run = run.map_tasks(infallible(move |_: &u32| {
        begun.open();
        inside.pass();
    }));
    (run.into_stream(), gate, entered)
}

#[test]
fn a_cancel_ends_a_stream_though_calls_run_on() {
    watchdog(|| {
        let token = CancellationToken::new();
        let run = (0..1).futureproof(Raise).name("cancelled");
        let (mut stream, gate, entered) = waiting(run.cancel_on(&token));
        let woken = wait_elsewhere(&mut stream);
        entered.pass();
        token.cancel();
        woken.recv().unwrap();
        assert!(next(&mut stream).is_none());
        assert_eq!(stream.ending(), Some(Ending::Cancelled));
        // The threads end by themselves, though the stream is still there.
        gate.open();
        assert!(common::soon(
            || common::threads_named("cancelled").is_empty()
        ));
        assert_eq!(stream.ending(), Some(Ending::Cancelled));
    });
}

#[test]
fn a_deadline_ends_a_stream_though_calls_run_on() {
    watchdog(|| {
        let run = (0..1).futureproof(Raise).num_threads(1).name("late");
        let (mut stream, gate, _) = waiting(run.deadline(Duration::from_millis(100)));
        assert!(next(&mut stream).is_none());
        assert_eq!(stream.ending(), Some(Ending::DeadlineExceeded));
        gate.open();
        assert!(common::soon(|| common::threads_named("late").is_empty()));
    });
}

/// A stream that has delivered a failure, while another call runs until the gate is opened.
fn failed(run: Futureproof<Numbers>) -> (TaskStream<Numbers, (), &'static str>, Gate) {
    let (gate, entered) = (Gate::default(), Gate::default());
    let (inside, begun) = (gate.clone(), entered.clone());
    let run = run.num_threads(2).chunk_size(1).map_tasks(move |n| {
        if *n == 0 {
            begun.pass();
            return Err("no");
        }
        begun.open();
        inside.pass();
        Ok(())
    });
    let mut stream = run.into_stream();
    assert!(next(&mut stream).is_none_or(|task| task.is_err()));
    (stream, gate)
}

#[test]
fn a_cancel_ends_a_stream_that_waits_after_a_failure() {
    watchdog(|| {
        let token = CancellationToken::new();
        let (mut stream, gate) = failed((0..2).futureproof(Raise).cancel_on(&token));
        let woken = wait_elsewhere(&mut stream);
        token.cancel();
        woken.recv().unwrap();
        assert!(next(&mut stream).is_none());
        assert_eq!(stream.ending(), Some(Ending::Failed));
        gate.open();
    });
}

#[test]
fn a_deadline_ends_a_stream_that_waits_after_a_failure() {
    watchdog(|| {
        let moment = Duration::from_millis(200);
        let (mut stream, gate) = failed((0..2).futureproof(Raise).deadline(moment));
        assert!(next(&mut stream).is_none());
        gate.open();
    });
}

#[test]
fn a_cancel_ends_a_stream_though_its_source_blocks() {
    watchdog(|| {
        let (token, gate, entered) = (CancellationToken::new(), Gate::default(), Gate::default());
        let (inside, begun) = (gate.clone(), entered.clone());
        let source = (0..1u32).inspect(move |_| {
            begun.open();
            inside.pass();
        });
        let run = source.futureproof(Raise).read_ahead(1).name("blocked");
        let run = run.cancel_on(&token).map_tasks(infallible(|n: &u32| *n));
        let mut stream = stream(run);
        let woken = wait_elsewhere(&mut stream);
        entered.pass();
        token.cancel();
        woken.recv().unwrap();
        assert!(next(&mut stream).is_none());
        assert_eq!(stream.ending(), Some(Ending::Cancelled));
        gate.open();
        assert!(common::soon(|| common::threads_named("blocked").is_empty()));
    });
}

/// Whatever a stream waits for wakes it: an item that is read ahead, one that is pushed, a retry's time, a rate limit, the end of
/// a pause, a result behind a neighbour that hangs.
#[test]
fn everything_that_a_stream_can_wait_for_wakes_it() {
    watchdog(|| {
        let (sender, receiver) = mpsc::channel();
        let feeder = thread::spawn(move || {
            for n in 0..50u32 {
                thread::sleep(Duration::from_micros(200));
                sender.send(n).unwrap();
            }
        });
        let run = receiver.into_iter().futureproof(Raise).read_ahead(4);
        let mut ahead = stream(run.map_tasks(infallible(|n: &u32| *n)));
        assert_eq!(std::iter::from_fn(|| next(&mut ahead)).count(), 50);
        feeder.join().unwrap();

        let queue = Queue::from_iter([1u32]);
        let more = queue.clone();
        let push = move |n: &u32| {
            thread::sleep(Duration::from_micros(100));
            if *n < 64 {
                more.push(2 * n);
                more.push(2 * n + 1);
            }
        };
        let run = queue.source().futureproof(Raise).num_threads(2);
        let mut pushed = stream(run.map_tasks(infallible(push)));
        assert_eq!(std::iter::from_fn(|| next(&mut pushed)).count(), 127);

        // By the code that awaits the results.
        let queue = Queue::from_iter([1u32]);
        let run = queue.source().futureproof(Raise).num_threads(2);
        let mut walked = stream(run.map_tasks(infallible(|n: &u32| *n)));
        let mut count = 0;
        while let Some(task) = next(&mut walked) {
            let n = task.unwrap().output;
            if n < 64 {
                queue.push(2 * n);
                queue.push(2 * n + 1);
            }
            count += 1;
        }
        assert_eq!(count, 127);

        let tries = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&tries);
        let run = (0..3u32)
            .futureproof(Raise)
            .rate_limit(500, Duration::from_secs(1));
        let run = run.map_tasks(move |n: &u32| {
            if count.fetch_add(1, SeqCst) < 3 {
                Err("busy")
            } else {
                Ok(*n)
            }
        });
        let mut tried = stream(run.retry(|| [Duration::from_millis(2); 3]));
        assert_eq!(std::iter::from_fn(|| next(&mut tried)).flatten().count(), 3);
        assert_eq!(tries.load(SeqCst), 6);

        let control = futureproof::Control::new();
        control.pause();
        let run = (0..10u32).futureproof(Raise).control(&control);
        let mut paused = stream(run.map_tasks(infallible(|n: &u32| *n)));
        let woken = wait_elsewhere(&mut paused);
        control.resume();
        woken.recv().unwrap();
        assert_eq!(std::iter::from_fn(|| next(&mut paused)).count(), 10);

        // Tiny results, laid down behind one that waits until they are delivered.
        let gate = Gate::default();
        let hang = gate.clone();
        let run = (0..1_000u32)
            .futureproof(Raise)
            .num_threads(1)
            .chunk_size(1_000);
        let run = run.max_in_flight(1_000);
        let mut behind = stream(run.map_tasks(infallible(move |n: &u32| {
            if *n == 500 {
                hang.pass();
            }
        })));
        let delivered = std::iter::from_fn(|| next(&mut behind)).take(437).count();
        assert_eq!(delivered, 437);
        gate.open();
        assert_eq!(std::iter::from_fn(|| next(&mut behind)).count(), 563);
    });
}

/// Nothing that a pause, a key, a weight or a retry holds keeps a dropped stream's threads and values.
#[test]
fn a_stream_is_dropped_while_its_run_is_paused_or_held() {
    watchdog(|| {
        for way in 0..4 {
            let tally = Tally::default();
            let tokens = tally.clone();
            let control = futureproof::Control::new();
            let (pause, begun) = (control.clone(), Gate::default());
            let begin = begun.clone();
            let source = (0..100u32).map(move |n| (n, tokens.token()));
            let run = source.futureproof(Ignore).num_threads(2).name("held");
            let run = match way {
                0 => run.control(&control),
                1 => run.control(&control).by_key(|(n, _)| n % 3),
                2 => run.by_key(|_| 0),
                _ => run.max_weight(1, |_| 1),
            };
            let run = run.map_tasks(move |(n, _): &(u32, _)| {
                if *n == 0 {
                    pause.pause();
                    begin.open();
                }
                Err::<(), _>("busy")
            });
            let mut held = stream(run.retry(|| [FOREVER]));
            assert!(poll(&mut held).is_pending());
            begun.pass();
            drop(held);
            assert!(common::soon(|| tally.made() == tally.dropped()), "{way}");
            assert!(common::soon(|| common::threads_named("held").is_empty()));
        }
    });
}

/// The executor's threads are the pool's own.
#[test]
fn a_stream_is_blocked_on_inside_its_own_pool() {
    watchdog(|| {
        for width in [1, 2] {
            let shared = common::pool(width);
            let on = Arc::clone(&shared);
            let count = shared.install(|| {
                let run = (0..100u32).futureproof(Raise).on(on);
                let mut inside = stream(run.map_tasks(infallible(|n: &u32| *n)));
                std::iter::from_fn(|| next(&mut inside)).count()
            });
            assert_eq!(count, 100);
        }
    });
}

/// While it goes on, the stream has no thread of its own, and knows how much is to come.
#[test]
fn a_stream_has_no_thread_of_its_own() {
    watchdog(|| {
        let shared = common::pool(2);
        let run = (0..100u32).futureproof(Ignore).on(shared).name("alone");
        let run = run.monitor_interval(Duration::ZERO);
        let mut alone = stream(run.map_tasks(infallible(|n: &u32| *n)));
        for left in (0..100).rev() {
            assert!(next(&mut alone).is_some());
            assert_eq!(alone.size_hint(), (left, Some(left)));
            assert!(common::threads_named("alone-s").is_empty());
        }
        assert!(next(&mut alone).is_none());
        assert_eq!(alone.size_hint(), (0, Some(0)));
    });
}

#[test]
fn a_panic_of_the_source_does_not_wait_for_calls_that_run() {
    watchdog(|| {
        let (gate, entered) = (Gate::default(), Gate::default());
        let (inside, begun) = (gate.clone(), entered.clone());
        let source = (0..2u32).inspect(move |n| {
            if *n == 1 {
                entered.pass();
                resume_unwind(Box::new("the source's"));
            }
        });
        let run = source.futureproof(Raise).num_threads(1).chunk_size(1);
        let mut stream = stream(run.map_tasks(infallible(move |_: &u32| {
            begun.open();
            inside.pass();
        })));
        assert!(catch_unwind(AssertUnwindSafe(|| next(&mut stream))).is_err());
        gate.open();
        assert!(next(&mut stream).is_none());
    });
}

/// Panics when it wakes.
struct Shy(mpsc::Sender<()>);

impl Wake for Shy {
    fn wake(self: Arc<Self>) {
        self.0.send(()).unwrap();
        resume_unwind(Box::new("a waker's"));
    }
}

/// Panics when its last clone is dropped.
struct Clingy;

impl Wake for Clingy {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Clingy {
    fn drop(&mut self) {
        resume_unwind(Box::new("a waker's"));
    }
}

#[test]
fn a_waker_that_panics_loses_nothing() {
    watchdog(|| {
        let gate = Gate::default();
        let inside = gate.clone();
        let run = (0..100u32).futureproof(Raise).num_threads(2);
        let mut stream = stream(run.map_tasks(infallible(move |_: &u32| inside.pass())));
        let (sender, woken) = mpsc::channel();
        wait_with(&mut stream, Shy(sender));
        gate.open();
        woken.recv().unwrap();
        assert_eq!(std::iter::from_fn(|| next(&mut stream)).count(), 100);
        assert_eq!(stream.ending(), Some(Ending::Exhausted));
    });
}

#[test]
fn a_waker_that_panics_when_it_is_dropped_harms_nobody() {
    watchdog(|| {
        let gate = Gate::default();
        let inside = gate.clone();
        let run = (0..1u32).futureproof(Raise).num_threads(1);
        let mut stream = stream(run.map_tasks(infallible(move |_: &u32| inside.pass())));
        // The second takes the first one's place.
        wait_with(&mut stream, Clingy);
        wait_with(&mut stream, Clingy);
        drop(stream);
        gate.open();
    });
}

#[test]
fn a_stream_that_was_never_polled_is_dropped_on_the_spot() {
    let (sender, dropped) = mpsc::channel();
    let grave = Grave(sender);
    let run = (0..10u32).futureproof(Raise);
    let stream = run.map_tasks(infallible(move |n: &u32| {
        let _ = &grave;
        *n
    }));
    drop(stream.into_stream());
    assert_eq!(dropped.try_recv(), Ok(thread::current().id()));
}

/// The source as well, though it is not asked for anything any more.
#[test]
fn at_the_end_all_is_gone_before_the_none() {
    watchdog(|| {
        let (dropped, graves) = mpsc::channel();
        let grave = Grave(dropped);
        let source = (0..100u32).inspect(move |_| _ = &grave);
        let run = source.futureproof(Raise).num_threads(2);
        let mut stream = stream(run.map_tasks(infallible(|n: &u32| *n)));
        while next(&mut stream).is_some() {}
        assert_eq!(graves.try_recv(), Ok(thread::current().id()));
    });
}
