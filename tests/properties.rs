//! Whatever the options, a parallel run gives what a sequential one would, and loses nothing.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use futureproof::prelude::*;
use futureproof::{Ending, Progress};
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

/// How many values of a kind are alive, and how many were made.
#[derive(Debug, Default)]
struct Ledger {
    alive: AtomicI64,
    made: AtomicU64,
}

#[derive(Debug)]
struct Token {
    value: u64,
    ledger: Arc<Ledger>,
}

impl Token {
    fn new(value: u64, ledger: &Arc<Ledger>) -> Self {
        ledger.alive.fetch_add(1, Ordering::SeqCst);
        ledger.made.fetch_add(1, Ordering::SeqCst);
        Self {
            value,
            ledger: Arc::clone(ledger),
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.ledger.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Source {
    next: u64,
    len: u64,
    panic_at: Option<u64>,
    ledger: Arc<Ledger>,
    has_ended: bool,
}

impl Iterator for Source {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        assert!(!self.has_ended, "the source was asked again");
        if self.panic_at == Some(self.next) {
            self.has_ended = true;
            expected_panic();
        }
        if self.next == self.len {
            self.has_ended = true;
            return None;
        }
        self.next += 1;
        Some(Token::new(self.next - 1, &self.ledger))
    }
}

#[derive(Clone, Copy, Debug)]
enum Leave {
    Consumed,
    Cancelled,
    CancelledInside,
    Dropped,
    /// `into_remainder` at once.
    Remainder,
    Late,
}

#[derive(Clone, Debug)]
struct Story {
    batch: Batch,
    leave: Leave,
    step: usize,
    source_panics_at: Option<u64>,
}

fn story() -> impl Strategy<Value = Story> {
    let leave = prop_oneof![
        Just(Leave::Consumed),
        Just(Leave::Cancelled),
        Just(Leave::CancelledInside),
        Just(Leave::Dropped),
        Just(Leave::Remainder),
        Just(Leave::Late),
    ];
    let panic_at = prop_oneof![3 => Just(None), 1 => (0u64..80).prop_map(Some)];
    (batch(), leave, 0usize..60, panic_at).prop_map(|(batch, leave, step, source_panics_at)| {
        Story {
            batch,
            leave,
            step,
            source_panics_at,
        }
    })
}

fn check_figures(progress: &Progress) {
    let now = progress.snapshot();
    assert!(
        now.failed() <= now.completed() && now.completed() <= now.pulled(),
        "{now:?}"
    );
    assert!(now.in_flight() <= now.pulled(), "{now:?}");
}

fn everything_is_in_one_place(story: Story) {
    let Story {
        batch,
        leave,
        step,
        source_panics_at,
    } = story;
    let inputs = Arc::new(Ledger::default());
    let outputs = Arc::new(Ledger::default());
    let errors = Arc::new(Ledger::default());
    let source = Source {
        next: 0,
        len: batch.fates.len() as u64,
        panic_at: source_panics_at,
        ledger: Arc::clone(&inputs),
        has_ended: false,
    };
    let token = CancellationToken::new();
    let calls: Vec<AtomicU32> = batch.fates.iter().map(|_| AtomicU32::new(0)).collect();
    let running = Arc::new(AtomicI64::new(0));
    let work = {
        let fates = batch.fates.clone();
        let (outputs, errors) = (Arc::clone(&outputs), Arc::clone(&errors));
        let (token, running) = (token.clone(), Arc::clone(&running));
        move |item: &Token| {
            struct Leaving<'a>(&'a AtomicI64);
            impl Drop for Leaving<'_> {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::SeqCst);
                }
            }
            running.fetch_add(1, Ordering::SeqCst);
            let _leaving = Leaving(&running);
            let n = item.value as usize;
            if matches!(leave, Leave::CancelledInside) && n == step {
                token.cancel();
            }
            let earlier = calls[n].fetch_add(1, Ordering::SeqCst);
            match fates[n] {
                Fate::Fails(times) if earlier < times => Err(Token::new(item.value, &errors)),
                Fate::Panics => expected_panic(),
                _ => Ok(Token::new(item.value, &outputs)),
            }
        }
    };
    let mut options = source
        .futureproof(batch.policy)
        .num_threads(batch.threads)
        .max_in_flight(batch.window)
        .chunk_size(batch.chunk)
        .cancel_on(&token)
        .monitor_interval(Duration::ZERO);
    if batch.is_ordered {
        options = options.ordered();
    }
    if matches!(leave, Leave::Late) {
        options = options.deadline(Duration::from_micros(step as u64 * 10));
    }
    let mut run = if batch.is_shared {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(batch.threads);
        options.on(Arc::new(pool.build().unwrap())).map_tasks(work)
    } else {
        options.map_tasks(work)
    };
    let retries = batch.retries;
    if retries > 0 {
        run = run.retry(move || vec![Duration::from_micros(5); retries]);
    }

    let progress = run.progress();
    let is_over = Arc::new(AtomicBool::new(false));
    let looker = {
        let (progress, is_over) = (progress.clone(), Arc::clone(&is_over));
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                check_figures(&progress);
                thread::yield_now();
            }
        })
    };

    let mut delivered = Vec::new();
    let mut panicked = false;
    loop {
        if delivered.len() == step {
            match leave {
                Leave::Cancelled => token.cancel(),
                Leave::Dropped | Leave::Remainder => break,
                _ => {}
            }
        }
        let (low, high) = run.size_hint();
        assert!(high.is_none_or(|high| low <= high));
        match catch_unwind(AssertUnwindSafe(|| run.next())) {
            Ok(Some(result)) => {
                if batch.window > 0 {
                    let in_flight = inputs.made.load(Ordering::SeqCst) - delivered.len() as u64;
                    assert!(in_flight <= batch.window as u64, "{in_flight} in flight");
                }
                delivered.push(result);
            }
            Ok(None) => break,
            Err(payload) => {
                assert_eq!(payload.downcast_ref(), Some(&"expected"));
                assert!(!panicked);
                panicked = true;
                assert_eq!(run.ending(), Some(Ending::SourcePanicked));
                if step % 2 == 0 {
                    break;
                }
            }
        }
        check_figures(&progress);
    }
    if panicked {
        assert_eq!(run.ending(), Some(Ending::SourcePanicked));
        if step % 2 == 1 {
            assert!(run.next().is_none());
        }
    }

    let index_of = |result: &Result<Task<Token, Token>, TaskError<Token, Token>>| match result {
        Ok(task) => {
            assert_eq!(task.index, task.input.value);
            assert_eq!(task.index, task.output.value);
            task.index
        }
        Err(error) => {
            assert_eq!(error.index(), error.input().value);
            if let Some(own) = error.error() {
                assert_eq!(error.index(), own.value);
            }
            error.index()
        }
    };
    let mut indices: Vec<u64> = delivered.iter().map(index_of).collect();
    if batch.is_ordered {
        assert!(indices.iter().copied().eq(0..indices.len() as u64));
    }
    if matches!(leave, Leave::Dropped) {
        drop(run);
        assert_eq!(running.load(Ordering::SeqCst), 0);
        let last = inputs.alive.load(Ordering::SeqCst);
        assert_eq!(last, delivered.len() as i64);
    } else {
        let ending = run.ending();
        let remainder = run.into_remainder();
        assert_eq!(running.load(Ordering::SeqCst), 0);
        indices.extend(remainder.finished.iter().map(index_of));
        let unprocessed = remainder.unprocessed.iter();
        assert!(
            unprocessed.clone().is_sorted_by_key(|(index, _)| *index),
            "not in the source's order"
        );
        for (index, item) in unprocessed {
            assert_eq!(*index, item.value);
            indices.push(*index);
        }
        let pulled = remainder.source.next;
        indices.sort_unstable();
        assert!(
            indices.iter().copied().eq(0..pulled),
            "{pulled} pulled, but there are {indices:?}"
        );
        if ending == Some(Ending::Exhausted) {
            assert!(remainder.finished.is_empty() && remainder.unprocessed.is_empty());
        }
        let end = progress.snapshot();
        assert_eq!(end.pulled(), pulled);
        assert_eq!(
            end.completed(),
            (delivered.len() + remainder.finished.len()) as u64
        );
        let failed = delivered.iter().chain(&remainder.finished);
        assert_eq!(
            end.failed(),
            failed.filter(|result| result.is_err()).count() as u64
        );
    }
    is_over.store(true, Ordering::Relaxed);
    looker
        .join()
        .expect("the figures are in order at every moment");
    drop(delivered);
    for ledger in [&inputs, &outputs, &errors] {
        assert_eq!(ledger.alive.load(Ordering::SeqCst), 0);
    }
}

proptest! {
    #![proptest_config(config(1_000))]

    #[test]
    fn parallel_equals_sequential(batch in batch()) {
        watched(&batch, equals_sequential);
    }

    #[test]
    fn every_pulled_item_is_in_exactly_one_place(story in story()) {
        watched(&story, everything_is_in_one_place);
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
