//! A source that reads ahead may block without holding up what has finished.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use common::child::in_child;
use common::{MS, pool, soon, watchdog};
use futureproof::Ending;
use futureproof::prelude::*;

#[test]
fn blocked_source_does_not_delay_a_finished_task() {
    watchdog(|| {
        for chunk in [0, 1, 16] {
            let (sender, items) = mpsc::channel();
            let run = items
                .into_iter()
                .read_ahead(4)
                .futureproof(Raise)
                .chunk_size(chunk);
            let mut run = run.num_threads(2).map_tasks(infallible(|n: &u32| n + 1));
            for n in 0..20 {
                // Nothing follows until this one has come back.
                sender.send(n).unwrap();
                assert_eq!(run.next().unwrap().unwrap().output, n + 1);
            }
            drop(sender);
            assert!(run.next().is_none());
            assert_eq!(run.ending(), Some(Ending::Exhausted));
        }
    });
}

#[test]
fn blocked_source_does_not_delay_a_failure() {
    watchdog(|| {
        let (sender, items) = mpsc::channel();
        (0..3).for_each(|n| sender.send(n).unwrap());
        let run = items
            .into_iter()
            .read_ahead(0)
            .futureproof(Raise)
            .num_threads(1);
        let mut run = run.map_tasks(|n: &u32| if *n == 2 { Err("broken") } else { Ok(*n) });
        let error = run.find_map(Result::err).unwrap();
        assert_eq!(error.error(), Some(&"broken"));
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Failed));
        drop(sender);
    });
}

#[test]
fn blocked_source_does_not_delay_a_cancel() {
    watchdog(|| {
        let (sender, items) = mpsc::channel();
        sender.send(1).unwrap();
        let token = CancellationToken::new();
        let run = items
            .into_iter()
            .read_ahead(4)
            .futureproof(Raise)
            .cancel_on(&token);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        assert!(run.next().is_some());
        let canceller = thread::spawn(move || token.cancel());
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Cancelled));
        canceller.join().unwrap();
        drop(sender);
    });
}

#[test]
fn blocked_source_does_not_delay_a_deadline() {
    watchdog(|| {
        let (sender, items) = mpsc::channel();
        sender.send(1).unwrap();
        let run = items
            .into_iter()
            .read_ahead(4)
            .futureproof(Raise)
            .deadline(Duration::from_secs(1));
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        run.by_ref().for_each(drop);
        assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
        drop(sender);
    });
}

#[test]
fn source_that_blocks_from_the_start_does_not_delay_a_cancel() {
    watchdog(|| {
        let (sender, items) = mpsc::channel();
        let (asked, is_asked) = mpsc::channel();
        let token = CancellationToken::new();
        let source = std::iter::from_fn(move || {
            let _ = asked.send(());
            items.recv().ok()
        });
        let run = source.read_ahead(4).futureproof(Raise).cancel_on(&token);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        let canceller = thread::spawn(move || {
            is_asked.recv().unwrap();
            token.cancel();
        });
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Cancelled));
        canceller.join().unwrap();
        drop(sender);
    });
}

#[test]
fn source_that_blocks_from_the_start_does_not_delay_a_deadline() {
    watchdog(|| {
        let (sender, items) = mpsc::channel::<u32>();
        let run = items
            .into_iter()
            .read_ahead(4)
            .futureproof(Raise)
            .deadline(Duration::from_millis(20));
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
        drop(sender);
    });
}

#[test]
fn blocked_source_does_not_delay_a_retry() {
    watchdog(|| {
        let (sender, items) = mpsc::channel();
        sender.send(7).unwrap();
        let calls = AtomicUsize::new(0);
        let run = items
            .into_iter()
            .read_ahead(4)
            .futureproof(Raise)
            .num_threads(1);
        let run = run.map_tasks(move |n: &u32| match calls.fetch_add(1, Ordering::SeqCst) {
            0..3 => Err("busy"),
            _ => Ok(*n),
        });
        let mut run = run.retry(|| [Duration::from_millis(1); 3]);
        assert_eq!(run.next().unwrap().unwrap().output, 7);
        drop(sender);
    });
}

#[test]
fn panic_of_the_source_reaches_the_caller() {
    watchdog(|| {
        let source = (0..10u32).inspect(|n| {
            if *n == 5 {
                resume_unwind(Box::new("Hello, world!"));
            }
        });
        let run = source.read_ahead(2).futureproof(Raise).chunk_size(1);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        let mut delivered = Vec::new();
        let payload = loop {
            match catch_unwind(AssertUnwindSafe(|| run.next())) {
                Ok(task) => delivered.push(task.unwrap().unwrap().index),
                Err(payload) => break payload,
            }
        };
        assert_eq!(payload.downcast_ref(), Some(&"Hello, world!"));
        assert_eq!(run.ending(), Some(Ending::SourcePanicked));
        assert!(run.next().is_none() && run.next().is_none());
        let remainder = run.into_remainder();
        let left = remainder.finished.len() + remainder.unprocessed.len();
        assert_eq!(delivered.len() + left, 5);
    });
}

#[test]
fn every_item_arrives_once_and_in_order() {
    watchdog(|| {
        for limit in [0, 1, 2, 1_000] {
            let run = (0..2_000u64)
                .read_ahead(limit)
                .futureproof(Raise)
                .num_threads(2)
                .ordered();
            let run = run.map_tasks(infallible(|n: &u64| *n));
            assert!(run.map(|task| task.unwrap().output).eq(0..2_000));
        }
    });
}

/// Counts the pulls, and tells when it is dropped.
struct Watched {
    pulled: Arc<AtomicUsize>,
    _alive: Arc<()>,
}

impl Iterator for Watched {
    type Item = thread::ThreadId;

    fn next(&mut self) -> Option<thread::ThreadId> {
        self.pulled.fetch_add(1, Ordering::SeqCst);
        Some(thread::current().id())
    }
}

#[test]
fn nothing_is_read_before_the_first_next() {
    let (pulled, alive) = (Arc::default(), Arc::new(()));
    let source = Watched {
        pulled: Arc::clone(&pulled),
        _alive: Arc::clone(&alive),
    };
    let run = source.read_ahead(8).futureproof(Raise);
    let run = run.map_tasks(infallible(|_: &thread::ThreadId| ()));
    drop(run);
    assert_eq!(pulled.load(Ordering::SeqCst), 0);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn drop_ends_the_thread_that_reads_an_endless_source() {
    watchdog(|| {
        for taken in [1, 2, 100] {
            let (pulled, alive) = (Arc::default(), Arc::new(()));
            let source = Watched {
                pulled: Arc::clone(&pulled),
                _alive: Arc::clone(&alive),
            };
            let run = source.read_ahead(8).futureproof(Raise).num_threads(2);
            let mut run = run.map_tasks(infallible(|thread: &thread::ThreadId| *thread));
            for task in run.by_ref().take(taken) {
                assert_ne!(task.unwrap().output, thread::current().id());
            }
            drop(run);
            // It is not waited for, as a pull may take long; but it ends after one.
            let is_gone = soon(|| Arc::strong_count(&alive) == 1);
            assert!(is_gone, "the source is still alive");
            let at_the_end = pulled.load(Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(pulled.load(Ordering::SeqCst), at_the_end);
        }
    });
}

#[test]
fn no_more_than_the_limit_is_read_ahead() {
    watchdog(|| {
        let pulled = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&pulled);
        let source = (0..10_000u32).inspect(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let run = source
            .read_ahead(4)
            .futureproof(Raise)
            .num_threads(1)
            .max_in_flight(2);
        let run = run.map_tasks(infallible(|n: &u32| *n));
        for (delivered, task) in run.enumerate() {
            task.unwrap();
            // In flight, in the channel, and one in the reader's hand.
            assert!(pulled.load(Ordering::SeqCst) <= delivered + 1 + 2 + 4 + 1);
        }
    });
}

#[test]
fn remainder_goes_on_with_what_was_read_ahead() {
    watchdog(|| {
        let run = (0..100u64)
            .read_ahead(16)
            .futureproof(Raise)
            .num_threads(2)
            .ordered();
        let mut run = run.map_tasks(infallible(|n: &u64| *n));
        let mut all: Vec<u64> = run
            .by_ref()
            .take(10)
            .map(|task| task.unwrap().output)
            .collect();
        let remainder = run.into_remainder();
        all.extend(
            remainder
                .finished
                .into_iter()
                .map(|task| task.unwrap().output),
        );
        all.extend(remainder.unprocessed.into_iter().map(|(_, input)| input));
        all.extend(remainder.source);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..100));
    });
}

#[test]
fn what_comes_back_is_the_same_iterator() {
    let run = (0..100u32).futureproof(Raise).read_ahead(3);
    let run = run.map_tasks(infallible(|n: &u32| *n));
    let mut source = run.into_remainder().source;
    assert_eq!(source.size_hint(), (100, Some(100)));
    assert!(source.by_ref().eq(0..100));
    assert!(source.next().is_none() && source.next().is_none());
}

#[test]
fn panic_while_a_chunk_is_filled_loses_nothing() {
    watchdog(|| {
        for at in [1, 3, 10, 33] {
            let source = (0..50u64).inspect(move |n| {
                if *n == at {
                    resume_unwind(Box::new("expected"));
                }
            });
            let run = source.read_ahead(8).futureproof(Raise).chunk_size(5);
            let mut run = run.map_tasks(infallible(|n: &u64| *n));
            let mut delivered = 0;
            while catch_unwind(AssertUnwindSafe(|| run.next().is_some())).is_ok_and(|got| got) {
                delivered += 1;
            }
            let remainder = run.into_remainder();
            let left = (remainder.finished.len() + remainder.unprocessed.len()) as u64;
            assert_eq!(delivered + left, at);
        }
    });
}

/// The answer of the last task may come before the panic or after it.
#[test]
fn next_after_the_panic_of_a_source_that_reads_ahead_returns() {
    in_child(|| {
        let pool = pool(2);
        for _ in 0..500 {
            let source = (0..).inspect(|n| {
                if *n == 17 {
                    panic_any(())
                }
            });
            let run = source.read_ahead(4).futureproof(Ignore);
            let run = run.on(Arc::clone(&pool)).chunk_size(8);
            let mut run = run.map_tasks(infallible(|n: &u32| *n));
            while let Ok(task) = catch_unwind(AssertUnwindSafe(|| run.next())) {
                assert!(task.is_some());
            }
            assert!(run.next().is_none());
        }
    });
}

/// The source is quicker than the drop of an item, and never ends.
#[test]
fn what_was_read_ahead_is_dropped_while_more_is_read() {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(MS);
        }
    }
    in_child(|| {
        let run = std::iter::repeat_with(|| Slow).read_ahead(64);
        let run = run.futureproof(Raise).num_threads(1);
        let mut run = run.map_tasks(infallible(|_: &Slow| ()));
        assert!(run.next().is_some());
        drop(run);
    });
}
