//! Whatever the options, a parallel run gives what a sequential one would, and loses nothing.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use futureproof::Ending;
use futureproof::prelude::*;
use proptest::collection::vec;
use proptest::prelude::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `check` on a thread of its own; a hang becomes a panic that shows the plan.
fn watched<P: std::fmt::Debug + Clone + Send + 'static>(
    plan: &P,
    check: impl FnOnce(P) + Send + 'static,
) {
    let (done, is_done) = mpsc::channel();
    let owned = plan.clone();
    thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| check(owned)));
        let _ = done.send(result);
    });
    match is_done.recv_timeout(PATIENCE) {
        Ok(Ok(())) => {}
        Ok(Err(payload)) => resume_unwind(payload),
        Err(_) => panic!("hangs: {plan:?}"),
    }
}

/// A panic that is expected, and so does not go through the panic hook.
fn expected_panic() -> ! {
    resume_unwind(Box::new("expected"))
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 5 } else { cases },
        failure_persistence: None,
        max_shrink_time: 30_000,
        ..ProptestConfig::default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Succeeds,
    /// Fails so many times first.
    Fails(u32),
    Panics,
}

impl Fate {
    fn fails_for_good(self, retries: usize) -> bool {
        match self {
            Self::Succeeds => false,
            Self::Fails(times) => times as usize > retries,
            Self::Panics => true,
        }
    }

    fn attempts(self, retries: usize) -> u32 {
        match self {
            Self::Succeeds | Self::Panics => 1,
            Self::Fails(times) => (times + 1).min(retries as u32 + 1),
        }
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        16 => Just(Fate::Succeeds),
        2 => (1u32..5).prop_map(Fate::Fails),
        1 => Just(Fate::Panics),
    ]
}

fn policy() -> impl Strategy<Value = ErrorPolicy> {
    prop_oneof![
        Just(Raise),
        Just(Ignore),
        Just(Log),
        (0u64..6).prop_map(Tolerate)
    ]
}

fn tolerated(policy: ErrorPolicy) -> Option<u64> {
    match policy {
        Raise => Some(0),
        Tolerate(n) => Some(n),
        _ => None,
    }
}

#[derive(Clone, Debug)]
struct Batch {
    fates: Vec<Fate>,
    threads: usize,
    window: usize,
    chunk: usize,
    policy: ErrorPolicy,
    is_ordered: bool,
    retries: usize,
    folds: bool,
    is_shared: bool,
}

fn batch() -> impl Strategy<Value = Batch> {
    (
        vec(fate(), 0..80),
        1usize..5,
        0usize..20,
        0usize..9,
        policy(),
        any::<bool>(),
        0usize..3,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(fates, threads, window, chunk, policy, is_ordered, retries, folds, is_shared)| {
                Batch {
                    fates,
                    threads,
                    window,
                    chunk,
                    policy,
                    is_ordered,
                    retries,
                    folds,
                    is_shared,
                }
            },
        )
}

fn equals_sequential(batch: Batch) {
    let fates = Arc::new(batch.fates.clone());
    let calls: Arc<Vec<AtomicU32>> = Arc::new(fates.iter().map(|_| AtomicU32::new(0)).collect());
    let work = {
        let (fates, calls) = (Arc::clone(&fates), Arc::clone(&calls));
        move |n: &usize| {
            let earlier = calls[*n].fetch_add(1, Ordering::Relaxed);
            match fates[*n] {
                Fate::Succeeds => Ok(n * 3),
                Fate::Fails(times) if earlier >= times => Ok(n * 3),
                Fate::Fails(_) => Err(*n),
                Fate::Panics => expected_panic(),
            }
        }
    };
    let options = (0..fates.len())
        .futureproof(batch.policy)
        .num_threads(batch.threads)
        .max_in_flight(batch.window)
        .chunk_size(batch.chunk)
        .monitor_interval(Duration::ZERO);
    let options = if batch.is_ordered {
        options.ordered()
    } else {
        options
    };
    let mut run = if batch.is_shared {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(batch.threads);
        options.on(Arc::new(pool.build().unwrap())).map_tasks(work)
    } else {
        options.map_tasks(work)
    };
    let retries = batch.retries;
    if retries > 0 {
        run = run.retry(move || vec![Duration::ZERO; retries]);
    }

    // What is to be had: all, or up to the failure that is one too many.
    let failing = fates
        .iter()
        .filter(|fate| fate.fails_for_good(retries))
        .count() as u64;
    let stops = tolerated(batch.policy).is_some_and(|tolerated| failing > tolerated);

    let results: Vec<_> = if batch.folds {
        run.collect()
    } else {
        let mut results = Vec::new();
        for result in run.by_ref() {
            results.push(result);
        }
        assert!(run.next().is_none() && run.next().is_none());
        let ending = if stops {
            Ending::Failed
        } else {
            Ending::Exhausted
        };
        assert_eq!(run.ending(), Some(ending));
        results
    };

    let mut indices = Vec::new();
    let mut failures = 0;
    for result in &results {
        match result {
            Ok(task) => {
                assert_eq!(
                    (task.index as usize, task.output),
                    (task.input, task.input * 3)
                );
                assert!(!fates[task.input].fails_for_good(retries));
                indices.push(task.input);
            }
            Err(error) => {
                let n = *error.input();
                assert_eq!(error.index() as usize, n);
                assert!(fates[n].fails_for_good(retries));
                assert_eq!(error.is_panic(), fates[n] == Fate::Panics);
                assert_eq!(error.error(), (!error.is_panic()).then_some(&n));
                assert_eq!(error.attempts(), fates[n].attempts(retries));
                indices.push(n);
                failures += 1;
            }
        }
    }
    for (n, calls) in calls.iter().enumerate() {
        let calls = calls.load(Ordering::Relaxed);
        assert!(calls <= fates[n].attempts(retries));
        if indices.contains(&n) {
            assert_eq!(calls, fates[n].attempts(retries));
        }
    }
    if batch.is_ordered {
        assert!(indices.iter().copied().eq(0..indices.len()), "{indices:?}");
    }
    indices.sort_unstable();
    if stops {
        assert_eq!(failures, tolerated(batch.policy).unwrap() + 1);
        assert!(results.last().unwrap().is_err());
        let len = indices.len();
        indices.dedup();
        assert_eq!(indices.len(), len);
    } else {
        assert_eq!(failures, failing);
        assert!(indices.into_iter().eq(0..fates.len()));
    }
}

proptest! {
    #![proptest_config(config(1_000))]

    #[test]
    fn parallel_equals_sequential(batch in batch()) {
        watched(&batch, equals_sequential);
    }
}

#[test]
fn any_threads_and_window_agree_with_sequential() {
    // As pariter's map_vs_map_parallel: a window of 0 included.
    let limit = if cfg!(miri) { 3 } else { 40 };
    for n in 0..limit {
        let (threads, window) = (n * 7 % 32 + 1, n * 13 % 128);
        watched(&(threads, window), |(threads, window)| {
            let run = (0..300u64)
                .futureproof(Raise)
                .num_threads(threads)
                .max_in_flight(window)
                .map_tasks(infallible(|n: &u64| n * n));
            let mut outputs: Vec<u64> = run.map(|task| task.unwrap().output).collect();
            outputs.sort_unstable();
            assert!(outputs.into_iter().eq((0..300).map(|n| n * n)));
        });
    }
}
