//! The engine under schedules that shuttle chooses: whatever the order in which threads take their steps, a
//! run ends, and with the right result. A wake-up that is missed is a deadlock here, and shuttle tells.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --release --test schedules`, with `SCHEDULES` for how many of each.
//! A schedule that fails is printed, and `shuttle::replay` takes it.
#![cfg(shuttle)]

use std::sync::Arc;
use std::time::Duration;

use futureproof::prelude::*;
use futureproof::{Control, Ending, Spawn};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Condvar, Mutex};
use shuttle::{Config, Runner, thread};

/// A thread for every job.
struct Threads;

impl Spawn<'static> for Threads {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        thread::spawn(job);
    }
}

/// One thread for all jobs, whatever it is asked for: they run one after another, as those of a pool whose other
/// threads are busy with something else.
struct OneThread(Option<shuttle::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>>);

impl Spawn<'static> for OneThread {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.0.as_ref().unwrap().send(Box::new(job)).unwrap();
    }

    fn open(&mut self, num_threads: usize, _: &str) -> usize {
        let (sender, jobs) = shuttle::sync::mpsc::channel::<Box<dyn FnOnce() + Send>>();
        thread::spawn(move || {
            while let Ok(job) = jobs.recv() {
                job();
            }
        });
        self.0 = Some(sender);
        num_threads
    }
}

/// Opens once so many have come.
#[derive(Clone)]
struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn come(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    fn wait(&self, count: usize) {
        let mut come = self.0.0.lock().unwrap();
        while *come < count {
            come = self.0.1.wait(come).unwrap();
        }
    }
}

/// Runs `scenario` under many schedules: random ones, and some with few, well-placed switches.
fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    explore_part(1, scenario);
}

/// The same, one in so many of the schedules: those of a pool with its threads are long.
fn explore_part(part: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let schedules = std::env::var("SCHEDULES").map_or(50_000, |count| count.parse().unwrap());
    let schedules = schedules / part;
    let scenario = Arc::new(scenario);
    let config = || {
        let mut config = Config::new();
        config.stack_size = 1 << 17;
        config
    };
    let random = Arc::clone(&scenario);
    Runner::new(RandomScheduler::new(schedules), config()).run(move || random());
    Runner::new(PctScheduler::new(3, schedules / 5), config()).run(move || scenario());
}

/// A run of `f` over `0..items`, in chunks of `chunk` items, with two at work and little in flight.
macro_rules! run {
    ($items:expr, $policy:expr, $chunk:expr, $f:expr) => {
        run!($items, $policy, $chunk, $f, |run| run)
    };
    ($items:expr, $policy:expr, $chunk:expr, $f:expr, |$run:ident| $options:expr) => {{
        let $run = (0..$items)
            .futureproof($policy)
            .num_threads(2)
            .chunk_size($chunk)
            .max_in_flight(3 * $chunk)
            .monitor_interval(Duration::ZERO)
            .on(Threads);
        $options.map_tasks($f)
    }};
}

/// How many calls of a function are under way.
#[derive(Clone)]
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(0)))
    }

    fn during<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.fetch_add(1, SeqCst);
        let result = f();
        self.0.fetch_sub(1, SeqCst);
        result
    }

    fn assert_none(&self) {
        assert_eq!(self.0.load(SeqCst), 0, "calls go on");
    }
}

#[test]
fn a_failure_stops_the_others_before_it_is_seen() {
    explore(|| {
        let is_seen = Arc::new(AtomicBool::new(false));
        let late = Arc::new(AtomicUsize::new(0));
        let (seen, started) = (Arc::clone(&is_seen), Arc::clone(&late));
        let mut run = run!(12u32, Raise, 4, move |n: &u32| {
            started.fetch_add(seen.load(SeqCst).into(), SeqCst);
            if *n == 0 { Err("none") } else { Ok(*n) }
        });
        let mut failures = 0;
        for task in run.by_ref() {
            assert_eq!(failures, 0, "a task after the failure");
            if let Err(error) = task {
                is_seen.store(true, SeqCst);
                assert_eq!(error.index(), 0);
                failures += 1;
            }
        }
        assert_eq!(failures, 1);
        assert_eq!(run.ending(), Some(Ending::Failed));
        drop(run);
        // A call of each of two other workers may have been allowed just before.
        assert!(late.load(SeqCst) <= 2, "{late:?} calls started later");
    });
}

#[test]
fn of_two_failures_one_is_raised() {
    explore(|| {
        let run = run!(4u32, Raise, 2, |n: &u32| Err::<(), _>(*n));
        let failures: Vec<_> = run.map(|task| task.unwrap_err().index()).collect();
        assert_eq!(failures.len(), 1);
    });
}

#[test]
fn a_cancel_wakes_a_blocked_consumer() {
    explore(|| {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let token = CancellationToken::new();
        let inner = Arc::clone(&gate);
        let hang = move |_: &u32| {
            let mut is_open = inner.0.lock().unwrap();
            while !*is_open {
                is_open = inner.1.wait(is_open).unwrap();
            }
        };
        let mut run = run!(9u32, Raise, 1, infallible(hang), |run| run
            .cancel_on(&token));
        let canceller = thread::spawn(move || token.cancel());
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Cancelled));
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        let remainder = run.into_remainder();
        let unprocessed = remainder.unprocessed.len();
        let left = remainder.finished.len() + unprocessed + remainder.source.count();
        assert_eq!(left, 9);
        canceller.join().unwrap();
    });
}

#[test]
fn one_cancel_ends_two_runs() {
    explore(|| {
        let token = CancellationToken::new();
        let other = token.clone();
        let consumer = thread::spawn(move || {
            let mut run = run!(2u32, Raise, 1, infallible(|n: &u32| *n), |run| run
                .cancel_on(&other));
            run.by_ref().for_each(drop);
            run.ending()
        });
        let mut run = run!(3u32, Raise, 1, infallible(|n: &u32| *n), |run| run
            .cancel_on(&token));
        assert!(run.next().is_some());
        token.cancel();
        assert!(run.next().is_none());
        let ending = consumer.join().unwrap();
        assert!(matches!(
            ending,
            Some(Ending::Exhausted | Ending::Cancelled)
        ));
    });
}

#[test]
fn a_drop_waits_for_what_runs() {
    explore(|| {
        let items: Vec<Arc<()>> = (0..6).map(|_| Arc::default()).collect();
        let weak: Vec<_> = items.iter().map(Arc::downgrade).collect();
        let running = Running::new();
        let inner = running.clone();
        let mut run = items
            .into_iter()
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(2)
            .max_in_flight(6)
            .monitor_interval(Duration::ZERO)
            .on(Threads)
            .map_tasks(infallible(move |item: &Arc<()>| {
                inner.during(|| Arc::clone(item))
            }));
        assert!(run.next().is_some());
        drop(run);
        running.assert_none();
        assert!(weak.iter().all(|item| item.upgrade().is_none()));
    });
}

#[test]
fn the_last_chunk_and_the_end_of_the_source() {
    for (items, chunk) in [(1u32, 1), (3, 1), (4, 2), (5, 2)] {
        explore(move || {
            let mut run = run!(items, Raise, chunk, infallible(|n: &u32| *n));
            let mut outputs: Vec<u32> = run.by_ref().map(|task| task.unwrap().output).collect();
            outputs.sort_unstable();
            assert!(outputs.into_iter().eq(0..items));
            assert_eq!(run.ending(), Some(Ending::Exhausted));
        });
    }
}

#[test]
fn input_order_holds() {
    explore(|| {
        let run = run!(5u32, Raise, 1, infallible(|n: &u32| *n), |run| run
            .ordered());
        let outputs: Vec<u32> = run.map(|task| task.unwrap().output).collect();
        assert_eq!(outputs, [0, 1, 2, 3, 4]);
    });
}

#[test]
fn what_is_tried_again_comes_once() {
    explore(|| {
        let attempts = Arc::new(AtomicUsize::new(0));
        let flaky = move |n: &u32| match *n {
            1 if attempts.fetch_add(1, SeqCst) < 2 => Err("busy"),
            n => Ok(n),
        };
        let run = run!(3u32, Raise, 1, flaky).retry(|| [Duration::ZERO; 2]);
        let mut outputs: Vec<u32> = run.map(|task| task.unwrap().output).collect();
        outputs.sort_unstable();
        assert_eq!(outputs, [0, 1, 2]);
    });
}

#[test]
fn a_cancel_among_attempts_is_no_exhaustion() {
    explore(|| {
        let token = CancellationToken::new();
        let run = run!(2u32, Ignore, 1, |n: &u32| Err::<(), _>(*n), |run| run
            .cancel_on(&token));
        let mut run = run.retry(|| [Duration::ZERO; 2]);
        let canceller = thread::spawn(move || token.cancel());
        let delivered = run.by_ref().count();
        match run.ending() {
            Some(Ending::Exhausted) => assert_eq!(delivered, 2),
            ending => assert_eq!(ending, Some(Ending::Cancelled)),
        }
        canceller.join().unwrap();
    });
}

#[test]
fn the_monitor_ends_with_the_run() {
    explore(|| {
        let is_over = Arc::new(AtomicBool::new(false));
        let last = Arc::new(AtomicUsize::new(0));
        let (over, seen) = (Arc::clone(&is_over), Arc::clone(&last));
        let mut run = (0..3u32)
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(1)
            .max_in_flight(3)
            .monitor_interval(Duration::from_secs(1))
            .on_progress(move |now| {
                assert!(!over.load(SeqCst));
                seen.store(now.completed() as usize, SeqCst);
            })
            .on(Threads)
            .map_tasks(infallible(|n: &u32| *n));
        assert_eq!(run.by_ref().count(), 3);
        drop(run);
        assert_eq!(last.load(SeqCst), 3);
        is_over.store(true, SeqCst);
    });
}

#[test]
fn figures_are_in_order_at_every_moment() {
    explore(|| {
        let run = run!(4u32, Ignore, 1, |n: &u32| if n % 2 == 0 {
            Err(*n)
        } else {
            Ok(*n)
        });
        let progress = run.progress();
        let reader = thread::spawn(move || {
            for _ in 0..4 {
                let now = progress.snapshot();
                assert!(now.failed() <= now.completed() && now.completed() <= now.pulled());
            }
            progress
        });
        assert_eq!(run.count(), 4);
        let end = reader.join().unwrap().snapshot();
        assert_eq!((end.completed(), end.failed(), end.pulled()), (4, 2, 4));
    });
}

#[test]
fn a_job_that_is_dropped_loses_nothing() {
    /// Drops one job of all.
    struct Dropper(AtomicUsize);

    impl Spawn<'static> for Dropper {
        fn spawn(&self, job: impl FnOnce() + Send + 'static) {
            match self.0.fetch_add(1, SeqCst) {
                1 => drop(thread::spawn(move || drop(job))),
                _ => drop(thread::spawn(job)),
            }
        }
    }

    explore(|| {
        let mut run = (0..4u32)
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(1)
            .max_in_flight(2)
            .monitor_interval(Duration::ZERO)
            .on(Dropper(AtomicUsize::new(0)))
            .map_tasks(infallible(|n: &u32| *n));
        let delivered = run.by_ref().count();
        let ending = run.ending();
        let remainder = run.into_remainder();
        let unprocessed = remainder.unprocessed.len();
        let left = remainder.finished.len() + unprocessed + remainder.source.count();
        assert_eq!(delivered + left, 4);
        // Others may have made up for it.
        match ending {
            Some(Ending::Exhausted) => assert_eq!(delivered, 4),
            Some(Ending::Cancelled) => assert!(unprocessed > 0),
            other => panic!("ended as {other:?}"),
        }
    });
}

#[test]
fn an_own_pool_starts_threads_while_the_consumer_is_away() {
    explore_part(10, || {
        let (pulled, met) = (Gate::new(), Gate::new());
        let (pulls, waits, meets) = (pulled.clone(), pulled, met.clone());
        let source = (0..5u32).inspect(move |_| pulls.come());
        let mut run = source
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(1)
            .max_in_flight(3)
            .monitor_interval(Duration::ZERO)
            .map_tasks(infallible(move |n: &u32| match n {
                // It comes back once the two that meet are on their way.
                0 => waits.wait(3),
                1 | 2 => {
                    meets.come();
                    meets.wait(2);
                }
                _ => {}
            }));
        assert!(run.next().is_some());
        met.wait(2);
        assert_eq!(run.by_ref().count(), 4);
        assert_eq!(run.ending(), Some(Ending::Exhausted));
    });
}

#[test]
fn an_own_pool_is_left_while_tasks_wait_for_each_other() {
    explore_part(10, || {
        let running = Running::new();
        let (gate, inner) = (Gate::new(), running.clone());
        let mut run = (0..9u32)
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(1)
            .monitor_interval(Duration::ZERO)
            .map_tasks(infallible(move |n: &u32| {
                inner.during(|| {
                    if let 1 | 2 = n {
                        let others = gate.clone();
                        // The other one may never begin.
                        let _told = CancellationToken::current().on_cancel(move || others.come());
                        gate.come();
                        gate.wait(2);
                    }
                });
            }));
        assert!(run.next().is_some());
        drop(run);
        running.assert_none();
    });
}

/// Pull `k + 2` blocks until item `k` is delivered or, with a window that lets it be pulled before, has finished.
#[test]
fn a_source_may_wait_for_what_it_gave_before() {
    for (num_threads, window) in [(1, 2), (2, 2), (1, 0), (2, 0)] {
        explore_part(10, move || {
            let gate = Gate::new();
            let (pulls, finishes) = (gate.clone(), gate.clone());
            let source = (0..6u32).inspect(move |n| pulls.wait((*n as usize).saturating_sub(1)));
            let mut run = source
                .futureproof(Raise)
                .num_threads(num_threads)
                .max_in_flight(window)
                .monitor_interval(Duration::ZERO)
                .map_tasks(infallible(move |_: &u32| {
                    if window == 0 {
                        finishes.come();
                    }
                }));
            for task in run.by_ref() {
                task.unwrap();
                if window > 0 {
                    gate.come();
                }
            }
            assert_eq!(run.ending(), Some(Ending::Exhausted));
        });
    }
}

#[test]
fn an_answer_is_seen_while_its_worker_goes_on() {
    explore_part(5, || {
        let is_delivered = Gate::new();
        let gate = is_delivered.clone();
        let mut run = (0..4u32)
            .futureproof(Raise)
            .num_threads(4)
            .chunk_size(1)
            .max_in_flight(4)
            .monitor_interval(Duration::ZERO)
            .on(OneThread(None))
            // Each waits for the one before it to be delivered.
            .map_tasks(infallible(move |n: &u32| gate.wait(*n as usize)));
        for task in run.by_ref() {
            task.unwrap();
            is_delivered.come();
        }
        assert_eq!(run.ending(), Some(Ending::Exhausted));
    });
}

#[test]
fn a_result_does_not_wait_for_its_neighbours() {
    explore_part(5, || {
        let is_delivered = Gate::new();
        let gate = is_delivered.clone();
        // One chunk. The consumer waits for what its worker has finished, and its worker for the consumer.
        let mut run = run!(
            4u32,
            Raise,
            4,
            infallible(move |n: &u32| gate.wait(*n as usize)),
            |run| run.num_threads(1)
        );
        for task in run.by_ref() {
            task.unwrap();
            is_delivered.come();
        }
        assert_eq!(run.ending(), Some(Ending::Exhausted));
    });
}

/// Tiny tasks are begun several at a time; those that were begun before the last ones are not kept by these.
#[test]
fn tiny_results_do_not_wait_for_a_task_that_hangs() {
    explore_part(20, || {
        let is_delivered = Gate::new();
        let gate = is_delivered.clone();
        let f = infallible(move |n: &u32| gate.wait(if *n == 47 { 45 } else { 0 }));
        let mut run = run!(48u32, Raise, 24, f, |run| run.num_threads(1));
        for task in run.by_ref() {
            task.unwrap();
            is_delivered.come();
        }
        assert_eq!(run.ending(), Some(Ending::Exhausted));
    });
}

#[test]
fn items_go_through_all_stages() {
    explore_part(10, || {
        let running = Running::new();
        let (first, second) = (running.clone(), running.clone());
        let run = (0..5u32).futureproof(Raise).chunk_size(2).max_in_flight(4);
        let run = run
            .monitor_interval(Duration::ZERO)
            .num_threads(2)
            .on(Threads);
        let run = run.stage(move |n: &u32| first.during(|| Ok::<_, u32>(n + 1)));
        let run = run.num_threads(2).on(Threads);
        let mut run = run.map_tasks(move |n: &u32| second.during(|| Ok(n + 1)));
        let mut sum = 0;
        for task in run.by_ref() {
            let task = task.unwrap();
            assert_eq!(task.output, task.input + 2);
            sum += task.input;
        }
        assert_eq!((sum, run.ending()), (10, Some(Ending::Exhausted)));
        running.assert_none();
    });
}

/// What the first stage has finished goes on, although its worker is held up, and although the consumer is away.
#[test]
fn a_stage_does_not_keep_what_it_has_finished() {
    explore_part(10, || {
        let gate = Gate::new();
        let opens = gate.clone();
        let run = (0..4u32).futureproof(Raise).chunk_size(4).max_in_flight(8);
        let run = run
            .monitor_interval(Duration::ZERO)
            .num_threads(1)
            .on(Threads);
        // The last waits for the others to have come through the second stage.
        let run = run.stage(move |n: &u32| {
            gate.wait(if *n == 3 { 3 } else { 0 });
            Ok::<_, u32>(*n)
        });
        let run = run.num_threads(1).on(Threads);
        let mut run = run.map_tasks(move |_: &u32| {
            opens.come();
            Ok(())
        });
        assert!(run.next().is_some());
        assert_eq!(run.by_ref().count(), 3);
    });
}

#[test]
fn a_failure_in_a_stage_stops_all_stages() {
    explore_part(10, || {
        let running = Running::new();
        let (first, second) = (running.clone(), running.clone());
        let run = (0..6u32).futureproof(Raise).chunk_size(2).max_in_flight(6);
        let run = run
            .monitor_interval(Duration::ZERO)
            .num_threads(2)
            .on(Threads);
        let run = run.stage(move |n: &u32| first.during(|| if *n == 3 { Err(*n) } else { Ok(*n) }));
        let run = run.num_threads(2).on(Threads);
        let mut run = run.map_tasks(move |n: &u32| second.during(|| Ok(*n)));
        let delivered = run.by_ref().filter(Result::is_ok).count();
        assert_eq!(run.ending(), Some(Ending::Failed));
        let rest = run.into_remainder();
        let left = rest.finished.len() + rest.unprocessed.len() + rest.source.count();
        assert_eq!(delivered + 1 + left, 6);
        running.assert_none();
    });
}

#[test]
fn a_run_of_stages_is_left() {
    explore_part(10, || {
        let running = Running::new();
        let (first, second) = (running.clone(), running.clone());
        let run = (0..9u32).futureproof(Raise).chunk_size(2).max_in_flight(6);
        let run = run
            .monitor_interval(Duration::ZERO)
            .num_threads(2)
            .on(Threads);
        let run = run.stage(move |n: &u32| first.during(|| Ok::<_, u32>(*n)));
        let run = run.num_threads(1).on(Threads);
        let mut run = run.map_tasks(move |n: &u32| second.during(|| Ok(*n)));
        assert!(run.next().is_some());
        drop(run);
        running.assert_none();
    });
}

/// One worker, so that the order in which tasks finish is that of the source, whoever hands over what.
#[test]
fn a_failure_does_not_overtake_what_finished_before_it() {
    explore_part(5, || {
        let f = |n: &u32| if *n == 4 { Err(*n) } else { Ok(*n) };
        let run = run!(6u32, Raise, 6, f, |run| run.num_threads(1));
        let results: Vec<u32> = run
            .map(|task| task.map_or_else(|error| *error.input(), |task| task.input))
            .collect();
        assert_eq!(results, [0, 1, 2, 3, 4]);
    });
}

/// What is paused goes on once it is resumed, whatever its workers were about to do.
#[test]
fn a_pause_and_a_resume_lose_nothing() {
    explore(|| {
        let control = Control::new();
        let run = run!(5, Raise, 2, infallible(|n: &u32| *n), |run| run
            .control(&control));
        let operator = thread::spawn(move || {
            control.pause();
            control.resume();
        });
        let mut indices: Vec<u64> = run.map(|task| task.unwrap().index).collect();
        indices.sort_unstable();
        assert_eq!(indices, [0, 1, 2, 3, 4]);
        operator.join().unwrap();
    });
}

/// Two tasks wait for each other, and the run is wide enough for them only in the end.
#[test]
fn a_run_gets_wider_at_any_moment() {
    explore(|| {
        let control = Control::new();
        control.set_concurrency(1);
        let gate = Gate::new();
        let meet = move |_: &u32| {
            gate.come();
            gate.wait(2);
        };
        let run = run!(2, Raise, 1, infallible(meet), |run| run.control(&control));
        let operator = thread::spawn(move || {
            control.pause();
            control.set_concurrency(2);
            control.resume();
        });
        assert_eq!(run.count(), 2);
        operator.join().unwrap();
    });
}

/// A pool of the run's own, and stages.
#[test]
fn a_pause_of_stages_loses_nothing() {
    explore_part(5, || {
        let control = Control::new();
        let run = (0..3u32)
            .futureproof(Raise)
            .num_threads(2)
            .control(&control);
        let run = run.monitor_interval(Duration::ZERO);
        let run = run.stage(|n: &u32| Ok::<_, ()>(n + 1)).num_threads(1);
        let run = run.map_tasks(|n: &u32| Ok(n * 2));
        let operator = thread::spawn(move || {
            control.set_concurrency(1);
            control.pause();
            control.resume();
        });
        assert_eq!(run.map(|task| task.unwrap().output).sum::<u32>(), 12);
        operator.join().unwrap();
    });
}

/// Each item starts when the one before it has come back, whatever the consumer was about to do.
#[test]
fn items_of_one_key_follow_each_other() {
    explore(|| {
        let last = AtomicUsize::new(0);
        let call = move |n: &usize| assert_eq!(last.swap(n + 1, SeqCst), *n);
        let run = run!(4usize, Raise, 1, infallible(call), |run| run.by_key(|_| ()));
        assert_eq!(run.flatten().count(), 4);
    });
}

/// A pause reaches a chunk that is being opened at that moment: each worker starts one more item at most.
#[test]
fn a_pause_reaches_a_chunk_that_is_being_opened() {
    explore(|| {
        let control = Control::new();
        let started = Arc::new(AtomicUsize::new(0));
        let (count, seen) = (Arc::clone(&started), started);
        let call = move |_: &u32| {
            count.fetch_add(1, SeqCst);
        };
        let run = run!(8, Raise, 8, infallible(call), |run| run.control(&control));
        let operator = thread::spawn(move || {
            control.pause();
            let before = seen.load(SeqCst);
            (0..30).for_each(|_| thread::yield_now());
            let after = seen.load(SeqCst);
            assert!(after <= before + 2, "{before}, then {after}");
            control.resume();
        });
        assert_eq!(run.count(), 8);
        operator.join().unwrap();
    });
}
