//! A failed item is tried again after its delay, and occupies nothing while it waits.

mod common;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use backon::BackoffBuilder;
use common::{FOREVER, watchdog};
use futureproof::prelude::*;
use futureproof::{Ending, Futureproof, OwnPool, Spawn, current_attempt};

#[test]
fn three_failures_then_success_is_one_delivered_task() {
    // As more-executors' test_basic_retry.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inside = Arc::clone(&seen);
    let run = ["job"]
        .into_iter()
        .futureproof(Raise)
        .map_tasks(move |job: &&str| {
            let mut seen = inside.lock().unwrap();
            seen.push(*job);
            if seen.len() < 4 {
                Err("busy")
            } else {
                Ok(seen.len())
            }
        });
    let mut run = run.retry(|| [Duration::ZERO; 3]);
    let results: Vec<_> = run.by_ref().collect();
    assert_eq!(results.len(), 1);
    assert_eq!(results[0].as_ref().unwrap().output, 4);
    assert_eq!(*seen.lock().unwrap(), ["job"; 4]);
    let end = run.progress().snapshot();
    assert_eq!((end.completed(), end.failed(), end.retried()), (1, 0, 3));
}

#[test]
fn last_error_is_reported_with_its_attempts() {
    // As more-executors' test_fail.
    for retries in 0..4u32 {
        let calls = AtomicU32::new(0);
        let run = [7].into_iter().futureproof(Raise);
        let run = run.map_tasks(move |_: &i32| Err::<(), _>(calls.fetch_add(1, Ordering::SeqCst)));
        let mut run = run.retry(move || vec![Duration::ZERO; retries as usize]);
        let error = run.next().unwrap().unwrap_err();
        assert_eq!(
            (error.error(), error.attempts()),
            (Some(&retries), retries + 1)
        );
        assert_eq!(error.input(), &7);
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Failed));
    }
}

#[test]
fn item_that_succeeds_is_called_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let inside = Arc::clone(&calls);
    let run = (0..500u32).futureproof(Raise).map_tasks(move |n| {
        inside.fetch_add(1, Ordering::SeqCst);
        Ok::<_, ()>(*n)
    });
    assert_eq!(run.retry(|| [Duration::ZERO; 3]).count(), 500);
    assert_eq!(calls.load(Ordering::SeqCst), 500);
}

#[test]
fn panic_is_not_retried() {
    let calls = Arc::new(AtomicUsize::new(0));
    let inside = Arc::clone(&calls);
    let run = [()]
        .into_iter()
        .futureproof(Ignore)
        .map_tasks(move |()| -> Result<(), ()> {
            inside.fetch_add(1, Ordering::SeqCst);
            resume_unwind(Box::new("expected"))
        });
    let error = run
        .retry(|| [Duration::ZERO; 3])
        .next()
        .unwrap()
        .unwrap_err();
    assert!(error.is_panic());
    assert_eq!((error.attempts(), calls.load(Ordering::SeqCst)), (1, 1));
}

#[test]
fn panic_at_a_later_attempt_is_final() {
    let calls = AtomicUsize::new(0);
    let run = [()]
        .into_iter()
        .futureproof(Raise)
        .map_tasks(move |()| -> Result<(), &str> {
            match calls.fetch_add(1, Ordering::SeqCst) {
                0 => Err("busy"),
                _ => resume_unwind(Box::new("expected")),
            }
        });
    let error = run
        .retry(|| [Duration::ZERO; 3])
        .next()
        .unwrap()
        .unwrap_err();
    assert!(error.is_panic());
    assert_eq!(error.attempts(), 2);
}

#[test]
fn first_error_that_retry_if_refuses_is_final() {
    // As more-executors' test_only_retry_exception_type.
    let calls = AtomicUsize::new(0);
    let run = [()].into_iter().futureproof(Raise).map_tasks(move |()| {
        let errors = ["busy", "busy", "broken"];
        Err::<(), _>(errors[calls.fetch_add(1, Ordering::SeqCst)])
    });
    let run = run
        .retry(|| [Duration::ZERO; 9])
        .retry_if(|error| *error == "busy");
    let errors: Vec<_> = run.filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(
        (errors[0].error(), errors[0].attempts()),
        (Some(&"broken"), 3)
    );
}

#[test]
fn retry_if_may_come_before_retry() {
    let run = ["busy", "broken"].into_iter().futureproof(Ignore).ordered();
    let run = run.map_tasks(|error: &&'static str| Err::<(), _>(*error));
    let run = run
        .retry_if(|error| *error == "busy")
        .retry(|| [Duration::ZERO; 2]);
    assert!(run.map(|result| result.unwrap_err().attempts()).eq([3, 1]));
}

#[test]
fn retry_if_that_panics_means_no_retry() {
    let run = (0..3)
        .futureproof(Ignore)
        .map_tasks(|n: &i32| Err::<(), _>(*n));
    let run = run.retry(|| [Duration::ZERO; 3]);
    let run = run.retry_if(|_| resume_unwind(Box::new("expected")));
    assert!(
        run.map(|result| result.unwrap_err().attempts())
            .eq([1, 1, 1])
    );
}

#[test]
fn delays_that_panic_mean_no_retry() {
    let run = (0..3)
        .futureproof(Ignore)
        .map_tasks(|n: &i32| Err::<(), _>(*n));
    let run = run.retry(|| -> Vec<Duration> { resume_unwind(Box::new("expected")) });
    assert!(
        run.map(|result| result.unwrap_err().attempts())
            .eq([1, 1, 1])
    );
}

#[test]
fn waiting_item_occupies_no_worker() {
    watchdog(|| {
        // Item 0 is tried again only after a delay that never ends; on one thread the rest goes by.
        let token = CancellationToken::new();
        let run = (0..100u32)
            .futureproof(Raise)
            .num_threads(1)
            .cancel_on(&token);
        let run = run.map_tasks(|n| if *n == 0 { Err("busy") } else { Ok(*n) });
        let mut run = run.retry(|| [FOREVER]);
        let others: Vec<_> = run
            .by_ref()
            .take(99)
            .map(|task| task.unwrap().output)
            .collect();
        assert!(others.into_iter().eq(1..100));
        assert_eq!(run.progress().snapshot().completed(), 99);
        token.cancel();
        assert!(run.next().is_none());
        let remainder = run.into_remainder();
        assert_eq!(remainder.unprocessed, [(0, 0)]);
    });
}

#[test]
fn cancel_beats_a_delay() {
    watchdog(|| {
        let token = CancellationToken::new();
        let run = [0u32].into_iter().futureproof(Raise).cancel_on(&token);
        let (failed, has_failed) = mpsc::channel();
        let mut run = run.map_tasks(move |_| {
            failed.send(()).unwrap();
            Err::<(), _>("busy")
        });
        run = run.retry(|| [FOREVER]);
        let canceller = thread::spawn(move || {
            has_failed.recv().unwrap();
            token.cancel();
        });
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Cancelled));
        canceller.join().unwrap();
    });
}

#[test]
fn drop_beats_a_delay() {
    watchdog(|| {
        let run = (0..2u32).futureproof(Raise).num_threads(1);
        let run = run.map_tasks(|n| if *n == 0 { Err("busy") } else { Ok(()) });
        let mut run = run.retry(|| [FOREVER]);
        assert_eq!(run.next().unwrap().unwrap().index, 1);
        drop(run);
    });
}

#[test]
fn failure_under_raise_beats_a_delay() {
    watchdog(|| {
        let run = (0..2u32).futureproof(Raise).num_threads(1);
        let run = run.map_tasks(|n| Err::<(), _>(if *n == 0 { "busy" } else { "broken" }));
        let mut run = run.retry(|| [FOREVER]).retry_if(|error| *error == "busy");
        assert_eq!(run.next().unwrap().unwrap_err().error(), Some(&"broken"));
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Failed));
        assert_eq!(run.into_remainder().unprocessed, [(0, 0)]);
    });
}

#[test]
fn deadline_beats_a_delay() {
    watchdog(|| {
        let run = [0u32]
            .into_iter()
            .futureproof(Raise)
            .deadline(Duration::from_millis(20));
        let mut run = run.map_tasks(|_| Err::<(), _>("busy")).retry(|| [FOREVER]);
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
        assert_eq!(run.into_remainder().unprocessed, [(0, 0)]);
    });
}

#[test]
fn delay_of_the_longest_duration_does_not_overflow() {
    watchdog(|| {
        let run = (0..2u32).futureproof(Raise).num_threads(1);
        let run = run.map_tasks(|n| if *n == 0 { Err("busy") } else { Ok(()) });
        let mut run = run.retry(|| [Duration::MAX]);
        assert_eq!(run.next().unwrap().unwrap().index, 1);
    });
}

#[test]
fn backon_builder_gives_the_delays() {
    let run = (0..3u32)
        .futureproof(Ignore)
        .map_tasks(|n| Err::<(), _>(*n));
    let run = run.retry(|| {
        let delays = backon::ExponentialBuilder::default().with_min_delay(Duration::from_micros(1));
        delays.with_jitter().with_max_times(2).build()
    });
    assert!(
        run.map(|result| result.unwrap_err().attempts())
            .eq([3, 3, 3])
    );
}

#[test]
fn endless_delays_are_drawn_on_until_success() {
    let calls = AtomicU32::new(0);
    let run = [()].into_iter().futureproof(Raise).map_tasks(move |()| {
        if calls.fetch_add(1, Ordering::SeqCst) < 300 {
            Err("busy")
        } else {
            Ok(())
        }
    });
    let mut run = run.retry(|| std::iter::repeat(Duration::ZERO));
    assert!(run.next().unwrap().is_ok());
    assert_eq!(run.progress().snapshot().retried(), 300);
}

#[test]
fn the_factory_may_borrow_and_is_asked_once_per_failing_item() {
    let asked = Mutex::new(0);
    let run = (0..20u32).futureproof(Ignore);
    let run = run.map_tasks(|n| if n % 2 == 0 { Err(*n) } else { Ok(*n) });
    let run = run.retry(|| {
        *asked.lock().unwrap() += 1;
        [Duration::ZERO; 2]
    });
    assert_eq!(run.flatten().count(), 10);
    assert_eq!(asked.into_inner().unwrap(), 10);
}

#[test]
fn many_flaky_items_are_each_delivered_once() {
    watchdog(|| {
        for chunk in [0, 1, 5] {
            let calls: Arc<Vec<AtomicU32>> =
                Arc::new((0..500).map(|_| AtomicU32::new(0)).collect());
            let inside = Arc::clone(&calls);
            let run = (0..500usize)
                .futureproof(Raise)
                .num_threads(3)
                .chunk_size(chunk);
            let run = run.map_tasks(move |n: &usize| {
                let earlier = inside[*n].fetch_add(1, Ordering::SeqCst) as usize;
                if earlier < n % 4 { Err("busy") } else { Ok(*n) }
            });
            let run = run.retry(|| [Duration::ZERO; 3]);
            let mut outputs: Vec<_> = run.map(|task| task.unwrap().output).collect();
            outputs.sort_unstable();
            assert!(outputs.into_iter().eq(0..500));
            let calls = calls.iter().map(|calls| calls.load(Ordering::SeqCst));
            assert!(calls.eq((0..500).map(|n| n % 4 + 1)));
        }
    });
}

/// Runs jobs at once, and counts them.
struct Counting(Arc<AtomicUsize>);

impl Spawn<'static> for Counting {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.0.fetch_add(1, Ordering::SeqCst);
        job();
    }

    fn is_current(&self) -> bool {
        true
    }
}

#[test]
fn what_a_service_refuses_now_and_then_is_not_handed_over_one_by_one() {
    watchdog(|| {
        let jobs = Arc::new(AtomicUsize::new(0));
        let run = (0..10_000u32).futureproof(Raise).chunk_size(100);
        let run = run.on(Counting(Arc::clone(&jobs)));
        // One in ten is refused, and one in a hundred twice.
        let ask = |n: &u32| match (n % 10, n % 100, current_attempt()) {
            (0, _, 1) | (_, 0, 2) => Err("busy"),
            (_, _, attempt) => Ok(attempt),
        };
        let run = run.map_tasks(ask).retry(|| [Duration::ZERO; 3]);
        let mut attempts = vec![0; 10_000];
        let mut given = 0;
        for task in run {
            let task = task.unwrap();
            assert_eq!(u64::from(task.input), task.index);
            attempts[task.index as usize] = task.output;
            given += 1;
        }
        assert_eq!(given, 10_000);
        for (n, attempt) in attempts.into_iter().enumerate() {
            let refused = u32::from(n % 10 == 0) + u32::from(n % 100 == 0);
            assert_eq!(attempt, 1 + refused);
        }
        // A hundred chunks, and those who are tried again: not 1,100 of them.
        let jobs = jobs.load(Ordering::SeqCst);
        assert!(jobs <= 500, "{jobs} hand-overs");
    });
}

#[test]
fn what_is_tried_again_together_comes_back_one_by_one_where_it_has_to() {
    watchdog(|| {
        let fails = |n: &u32| match (n % 7, current_attempt()) {
            (0, 1) => Err("busy"),
            (3, _) => Err("broken"),
            _ => Ok(*n),
        };
        let all = |run: Futureproof<std::ops::Range<u32>, OwnPool>| -> Vec<(u64, bool, u32)> {
            let run = run.num_threads(3).map_tasks(fails);
            let run = run.retry(|| [Duration::ZERO; 2]);
            run.map(|result| match result {
                Ok(task) => (task.index, true, task.input),
                Err(error) => {
                    assert_eq!(error.attempts(), 3);
                    (error.index(), false, *error.input())
                }
            })
            .collect()
        };
        let expected: Vec<_> = (0..2_000u32)
            .map(|n| (u64::from(n), n % 7 != 3, n))
            .collect();
        let run = || (0..2_000u32).futureproof(Ignore);
        assert_eq!(all(run().ordered()), expected);
        for run in [
            run(),
            run().by_key(|n| n % 5),
            run().max_weight(30, |n| u64::from(n % 9)),
        ] {
            let mut results = all(run);
            results.sort_unstable();
            assert_eq!(results, expected);
        }
    });
}

#[test]
fn the_delay_may_come_from_the_error() {
    watchdog(|| {
        // Each error says when to come back, and the third time is too often.
        let run = (0..20u32).futureproof(Ignore).num_threads(2);
        let run = run.map_tasks(|n: &u32| Err::<(), _>(Duration::from_micros(u64::from(*n))));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        let run = run.retry_with(move |error, attempts| {
            heard
                .lock()
                .unwrap()
                .push((error.as_micros() as u64, attempts));
            (attempts < 3).then_some(*error)
        });
        let mut failed: Vec<(u64, u32)> = run
            .map(|task| task.unwrap_err())
            .map(|error| (error.index(), error.attempts()))
            .collect();
        failed.sort();
        assert!(failed.into_iter().eq((0..20).map(|n| (n, 3))));
        let mut asked = std::mem::take(&mut *asked.lock().unwrap());
        asked.sort();
        assert!(
            asked
                .into_iter()
                .eq((0..20).flat_map(|n| (1..=3).map(move |attempts| (n, attempts))))
        );
    });
}

#[test]
fn of_several_rules_the_last_says_how_long_and_retry_if_says_whether() {
    watchdog(|| {
        let attempts = |of: u32| {
            let run = [1u32, 2]
                .into_iter()
                .futureproof(Ignore)
                .ordered()
                .map_tasks(|n: &u32| Err::<(), _>(*n));
            let run = run
                .retry(|| [Duration::ZERO; 5])
                .retry_if(|error| *error == 2);
            let run = run.retry_with(move |_, attempts| (attempts < of).then_some(Duration::ZERO));
            let run = if of == 0 {
                run.retry(|| [Duration::ZERO; 1])
            } else {
                run
            };
            run.map(|task| task.unwrap_err().attempts())
                .collect::<Vec<_>>()
        };
        assert_eq!(attempts(3), [1, 3]);
        assert_eq!(attempts(0), [1, 2]);
        // A rule that panics is final.
        let run = [1u32]
            .into_iter()
            .futureproof(Ignore)
            .map_tasks(|n: &u32| Err::<(), _>(*n));
        let mut run = run.retry_with(|_, _| panic!("no rule"));
        assert_eq!(run.next().unwrap().unwrap_err().attempts(), 1);
    });
}

/// Each call knows which attempt it is, in the first stage and in the last one; nested runs do not confuse it.
#[test]
fn a_call_knows_its_attempt() {
    watchdog(|| {
        let inner = || {
            let run = (0..2u32).futureproof(Ignore).num_threads(1);
            let run = run.map_tasks(|_: &u32| Err::<(), _>(futureproof::current_attempt()));
            let run = run.retry(|| [Duration::ZERO]);
            run.map(|task| *task.unwrap_err().error().unwrap())
                .collect::<Vec<u32>>()
        };
        let first = move |n: &u32| {
            assert_eq!(inner(), [2, 2]);
            Ok(n * 100 + futureproof::current_attempt())
        };
        let last = |tried: &u32| {
            let attempt = futureproof::current_attempt();
            assert_eq!(tried % 100, attempt);
            if attempt <= tried / 100 {
                Err("again")
            } else {
                Ok(attempt)
            }
        };
        let run = (0..4u32).futureproof(Raise).num_threads(2).ordered();
        let run = run.stage(first).num_threads(2).map_tasks(last);
        let attempts = run
            .retry(|| [Duration::ZERO; 5])
            .map(|task| task.unwrap().output);
        assert_eq!(attempts.collect::<Vec<u32>>(), [1, 2, 3, 4]);
        assert_eq!(futureproof::current_attempt(), 1);
    });
}
