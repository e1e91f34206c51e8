//! Runs that have the shape of people's jobs: cheap items and slow ones mixed, tasks that wait for each other, a
//! consumer that is away, a source that blocks, a run that is left half-way.
//!
//! That something is not held up is asserted as a deadlock would be: by a gate that opens only if the promise holds.
//! Where that cannot be, two times of one run are compared, with room.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, mpsc};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use common::{FOREVER, Gate, MS, pool, soon, watchdog};
use futureproof::prelude::*;
use futureproof::{Ending, Spawn};

/// Opens once so many wait at it. Whoever waits in vain fails the test.
struct Meeting {
    expected: usize,
    there: Mutex<usize>,
    all: Condvar,
}

impl Meeting {
    fn of(expected: usize) -> Arc<Self> {
        Arc::new(Self {
            expected,
            there: Mutex::new(0),
            all: Condvar::new(),
        })
    }

    fn meet(&self) {
        let mut there = self.there.lock().unwrap();
        *there += 1;
        self.all.notify_all();
        let is_missing = |there: &mut usize| *there < self.expected;
        let patience = Duration::from_secs(30);
        let (there, timeout) = self
            .all
            .wait_timeout_while(there, patience, is_missing)
            .unwrap();
        assert!(!timeout.timed_out(), "only {} of {}", *there, self.expected);
    }
}

/// How a job's results are taken.
#[derive(Clone, Copy, Debug)]
enum Way {
    Completion,
    Order,
    Pool,
}

/// All of `threads` workers meet in the last items, after so many that cost nothing.
fn meet_after(cheap: usize, threads: usize, way: Way) {
    let meeting = Meeting::of(threads);
    let f = move |n: &usize| {
        if *n >= cheap {
            meeting.meet();
        }
    };
    let run = (0..cheap + threads)
        .futureproof(Raise)
        .num_threads(threads)
        .max_in_flight(1 << 17);
    let count = match way {
        Way::Completion => run.map_tasks(infallible(f)).flatten().count(),
        Way::Order => run.ordered().map_tasks(infallible(f)).flatten().count(),
        Way::Pool => run
            .on(pool(threads))
            .map_tasks(infallible(f))
            .flatten()
            .count(),
    };
    assert_eq!(
        count,
        cheap + threads,
        "{cheap} cheap ones, {threads}, {way:?}"
    );
}

#[test]
fn tasks_that_wait_for_each_other_meet_after_cheap_ones() {
    watchdog(|| {
        for cheap in [0, 1, 10, 300, 1_000, 10_000, 50_000, 100_000] {
            for threads in [2, 8] {
                for way in [Way::Completion, Way::Order, Way::Pool] {
                    meet_after(cheap, threads, way);
                }
            }
        }
    });
}

/// Slow tasks that follow cheap ones take as long as on a pool of rayon's that has nothing else to do.
#[test]
fn slow_tasks_after_cheap_ones_have_every_thread() {
    const SLOW: u32 = 64;
    let ours = |cheap: u32| {
        let start = Arc::new(OnceLock::new());
        let begun = Arc::clone(&start);
        let run = (0..cheap + SLOW).futureproof(Raise).num_threads(8);
        let run = run.map_tasks(infallible(move |n| {
            if *n >= cheap {
                begun.get_or_init(Instant::now);
                sleep(20 * MS);
            }
        }));
        assert_eq!(run.count(), (cheap + SLOW) as usize);
        start.get().unwrap().elapsed()
    };
    let theirs = || {
        let pool = pool(8);
        let start = Instant::now();
        pool.scope(|scope| (0..SLOW).for_each(|_| scope.spawn(|_| sleep(20 * MS))));
        start.elapsed()
    };
    watchdog(move || {
        for cheap in [10, 100, 1_000, 10_000, 100_000] {
            // Others may keep the machine busy during one of the two.
            let is_quick = || ours(cheap) < theirs() * 13 / 10;
            assert!((0..5).any(|_| is_quick()), "after {cheap} cheap ones");
        }
    });
}

#[test]
fn slow_tasks_are_shared_out_while_the_consumer_is_away() {
    watchdog(|| {
        let (threads, cheap) = (8, 300);
        let meeting = Meeting::of(threads);
        let met = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&met);
        let run = (0..cheap + threads)
            .futureproof(Raise)
            .num_threads(threads)
            .chunk_size(cheap + threads);
        let mut run = run.map_tasks(infallible(move |n: &usize| {
            if *n >= cheap {
                meeting.meet();
                count.fetch_add(1, SeqCst);
            }
        }));
        // All is one chunk. Its first result comes, and then nobody asks for any.
        assert!(run.next().is_some());
        assert!(soon(|| met.load(SeqCst) == threads), "{met:?} have met");
        assert_eq!(run.count(), cheap + threads - 1);
    });
}

#[test]
fn a_task_that_a_later_one_releases_is_released() {
    watchdog(|| {
        for chunk in [0, 1, 2, 64] {
            for at in [0, 1, 5, 40, 62] {
                let gate = Gate::default();
                let run = (0..64).futureproof(Raise).num_threads(2).chunk_size(chunk);
                let run = run.map_tasks(infallible(move |n: &u32| match *n {
                    n if n == at => gate.pass(),
                    63 => gate.open(),
                    _ => {}
                }));
                assert_eq!(run.count(), 64, "chunks of {chunk}, {at} waits");
            }
        }
    });
}

/// What has finished is delivered although its neighbour in the chunk goes on.
#[test]
fn a_result_does_not_wait_for_its_neighbour() {
    watchdog(|| {
        let (gate, inner) = (Gate::default(), Gate::default());
        let release = gate.clone();
        let run = (0..2).futureproof(Raise).num_threads(1).chunk_size(2);
        let mut run = run.map_tasks(infallible(move |n: &u32| {
            if *n == 1 {
                inner.open();
                gate.pass();
            }
            *n
        }));
        assert_eq!(run.next().unwrap().unwrap().output, 0);
        release.open();
        assert_eq!(run.next().unwrap().unwrap().output, 1);
    });
}

/// Tiny tasks are begun several at a time, up to 128 by one worker. No more wait for one that hangs.
#[test]
fn tiny_results_do_not_wait_for_a_task_that_hangs() {
    watchdog(|| {
        const ITEMS: usize = 100_000;
        for (threads, at) in [(1, 1), (2, 1), (2, ITEMS / 2), (8, 1), (8, ITEMS / 2)] {
            let hangs = ITEMS - at;
            let gate = Gate::default();
            let release = gate.clone();
            let run = (0..ITEMS).futureproof(Raise).num_threads(threads);
            let run = run.max_in_flight(ITEMS);
            let run = run.map_tasks(infallible(move |n: &usize| {
                if *n == hangs {
                    gate.pass();
                }
            }));
            for (count, task) in run.enumerate() {
                task.unwrap();
                if count + 1 >= ITEMS - 128 {
                    release.open();
                }
            }
        }
    });
}

/// A source that is quick at first and blocks later on: it waits until what came before was delivered.
#[test]
fn a_source_that_turns_slow_delays_no_result() {
    watchdog(|| turns_slow(false));
}

#[test]
fn a_source_that_turns_slow_delays_no_failure() {
    watchdog(|| turns_slow(true));
}

/// Takes 2 ms for each item after `first`, and counts those.
fn slow_after(first: u32, pulls: Arc<AtomicU32>) -> impl Iterator<Item = u32> {
    (0..first + 200).inspect(move |n| {
        if *n > first {
            pulls.fetch_add(1, SeqCst);
            sleep(2 * MS);
        }
    })
}

fn turns_slow(fails: bool) {
    // At the beginning, where chunks grow, and later, where they are large.
    let positions = (0..60u32).chain((0..60).map(|n| 20_000 + 37 * n));
    for first in positions {
        let late = Arc::new(AtomicU32::new(0));
        let pulls = Arc::clone(&late);
        let run = slow_after(first, pulls).futureproof(Raise).num_threads(2);
        let mut run = run.map_tasks(move |n| {
            if fails && *n == first {
                Err(*n)
            } else {
                Ok(*n)
            }
        });
        // The last quick item, or its failure, comes within a few pulls.
        let _ = run.find(|task| task.as_ref().map_or(true, |task| task.input == first));
        let pulls = late.load(SeqCst);
        assert!(pulls < 25, "after {pulls} pulls, at {first}");
    }
}

#[test]
fn every_thread_works_while_the_consumer_is_away() {
    watchdog(|| {
        for round in 0..100 {
            let (meeting, met) = (Meeting::of(2), Arc::new(AtomicUsize::new(0)));
            let count = Arc::clone(&met);
            let (are_pulled, has_begun) = (Gate::default(), Gate::default());
            let (pulled, begun) = (are_pulled.clone(), has_begun.clone());
            let chunk = [1, 8][round % 2];
            let first = Gate::default();
            let first_begun = first.clone();
            let source = (0..32).inspect(move |n| match n {
                // One thread has what it needs when more is handed out.
                1 if chunk == 1 => first_begun.pass(),
                2 => {
                    pulled.open();
                    if chunk == 1 {
                        // The same thread goes on. The first result is there, so the consumer does not have to wait.
                        begun.pass();
                    }
                }
                _ => {}
            });
            let run = source.futureproof(Raise).num_threads(2).chunk_size(chunk);
            let mut run = run.map_tasks(infallible(move |n: &u32| match n {
                // When the consumer has its result and goes away, the others are handed out.
                0 => {
                    first.open();
                    are_pulled.pass();
                }
                1 | 2 => {
                    has_begun.open();
                    meeting.meet();
                    count.fetch_add(1, SeqCst);
                }
                _ => {}
            }));
            assert!(run.next().is_some());
            assert!(soon(|| met.load(SeqCst) == 2));
        }
    });
}

/// The threads of a run's own pool are there for what its tasks do with rayon, whoever waits.
#[test]
fn leaving_ends_though_tasks_wait_for_threads() {
    watchdog(|| {
        for round in 0..200 {
            let [is_done, has_begun, is_pulled] = [(); 3].map(|()| Gate::default());
            let (done, begun, pulled) = (is_done.clone(), has_begun.clone(), is_pulled.clone());
            // The first result is there when the consumer looks for it, and the second item is handed out.
            let source = (0..2).inspect(move |n| {
                if *n == 1 {
                    is_pulled.open();
                    is_done.pass();
                }
            });
            let run = source.futureproof(Raise).num_threads(2).chunk_size(1);
            let mut run = run.map_tasks(infallible(move |n: &u32| match n {
                0 => {
                    pulled.pass();
                    done.open();
                }
                _ => {
                    begun.open();
                    rayon::broadcast(|_| ());
                }
            }));
            assert!(run.next().is_some());
            has_begun.pass();
            // Nobody has waited for the second thread, and now nobody asks for anything.
            if round % 2 == 0 {
                drop(run);
            } else {
                drop(run.into_remainder());
            }
        }
    });
}

#[test]
fn a_run_on_the_pool_of_its_consumer_uses_all_of_it() {
    watchdog(|| {
        for threads in [1, 2, 8] {
            let pool = pool(threads);
            let meet = |meeting: Arc<Meeting>| infallible(move |_: &usize| meeting.meet());
            let here = Arc::clone(&pool);
            let inside = pool.install(|| {
                let run = (0..threads).futureproof(Raise).on(here);
                run.map_tasks(meet(Meeting::of(threads))).count()
            });
            let scoped = pool.scope(|scope| {
                let run = (0..threads)
                    .futureproof(Raise)
                    .num_threads(threads)
                    .on(scope);
                run.map_tasks(meet(Meeting::of(threads))).count()
            });
            assert_eq!((inside, scoped), (threads, threads));
        }
    });
}

#[test]
fn results_come_as_they_finish_on_the_pool_of_the_consumer() {
    watchdog(|| {
        let pool = pool(2);
        let here = Arc::clone(&pool);
        pool.install(|| {
            let (gate, others) = (Gate::default(), Gate::default());
            let (release, consumer) = (gate.clone(), thread::current().id());
            let run = (0..40)
                .futureproof(Raise)
                .on(here)
                .map_tasks(infallible(move |n: &u32| {
                    let is_consumer = thread::current().id() == consumer;
                    // The first waits for the consumer to have seen another one, or, if it is the consumer that took
                    // it, for somebody else to be at work.
                    match (*n, is_consumer) {
                        (0, false) => gate.pass(),
                        (0, true) => others.pass(),
                        (_, false) => others.open(),
                        (_, true) => {}
                    }
                }));
            let mut count = 0;
            for task in run {
                task.unwrap();
                count += 1;
                release.open();
            }
            assert_eq!(count, 40);
        });
    });
}

/// A run that is left takes back what was queued on a home that is busy with other things.
#[test]
fn leaving_does_not_wait_for_others_on_a_shared_pool() {
    watchdog(|| {
        let pool = pool(1);
        let (gate, busy) = (Gate::default(), Gate::default());
        let (passes, begun) = (gate.clone(), busy.clone());
        pool.spawn(move || {
            begun.open();
            passes.pass();
        });
        busy.pass();
        let token = CancellationToken::new();
        let run = (0..10)
            .futureproof(Raise)
            .on(Arc::clone(&pool))
            .cancel_on(&token);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        thread::spawn(move || token.cancel());
        assert!(run.next().is_none());
        let left = run.into_remainder();
        assert_eq!(left.unprocessed.len() + left.source.count(), 10);
        gate.open();
    });
}

#[test]
fn a_token_hands_its_deadline_on() {
    fn is_handed_on() -> bool {
        let outer = (0..2u32).futureproof(Raise).deadline(200 * MS);
        let (sender, inner_ended) = mpsc::channel();
        let outer = outer.num_threads(2);
        let mut outer = outer.map_tasks(infallible(move |n| {
            if *n == 0 {
                return;
            }
            let inner = (0..)
                .futureproof(Raise)
                .num_threads(1)
                .cancel_on(&CancellationToken::current());
            // Nothing of this run comes to its end before the deadline.
            let mut inner = inner.map_tasks(infallible(|_: &u32| sleep(Duration::from_secs(1))));
            let start = Instant::now();
            assert!(inner.next().is_none());
            assert_eq!(inner.ending(), Some(Ending::Cancelled));
            sender.send(start.elapsed()).unwrap();
        }));
        // Then the consumer is away. On a busy machine, the deadline may come first.
        outer.next().is_some() && inner_ended.recv().is_ok_and(|time| time < 900 * MS)
    }
    watchdog(|| assert!((0..5).any(|_| is_handed_on())));
}

#[test]
fn each_of_several_tokens_stops_the_run() {
    watchdog(|| {
        for which in 0..2 {
            let tokens = [(); 2].map(|()| CancellationToken::new());
            let run = (0..).futureproof(Raise).num_threads(1);
            let run = run.cancel_on(&tokens[0]).cancel_on(&tokens[1]);
            let mut run = run.map_tasks(infallible(|n: &u32| *n));
            assert!(run.next().is_some());
            tokens[which].cancel();
            assert!(run.next().is_none());
            assert_eq!(run.ending(), Some(Ending::Cancelled));
        }
    });
}

/// Twice as many take about twice as long, not four times.
#[test]
fn what_waits_for_a_retry_costs_nothing_at_each_delivery() {
    fn time(items: usize) -> Duration {
        let run = (0..items)
            .futureproof(Ignore)
            .num_threads(1)
            .chunk_size(1)
            .max_in_flight(items);
        let run = run.map_tasks(move |n| if n + 1 < items { Err(()) } else { Ok(()) });
        let mut run = run.retry(|| [FOREVER]);
        let start = Instant::now();
        assert!(run.next().is_some());
        start.elapsed()
    }
    watchdog(|| {
        let is_linear = || time(32_000) < 8 * time(8_000) + 20 * MS;
        assert!((0..3).any(|_| is_linear()));
    });
}

#[test]
fn a_run_whose_source_is_read_ahead_is_left_at_once() {
    fn job(receiver: mpsc::Receiver<u32>) -> Result<(), u32> {
        let run = receiver.into_iter().futureproof(Raise).read_ahead(64);
        for task in run.map_tasks(|n: &u32| if *n == 0 { Err(*n) } else { Ok(()) }) {
            task.map_err(|error| *error.input())?;
        }
        Ok(())
    }
    watchdog(|| {
        let (sender, receiver) = mpsc::channel();
        sender.send(0).unwrap();
        assert_eq!(job(receiver), Err(0));
        // Up to here, the source blocks.
        drop(sender);
    });
}

#[test]
fn a_source_that_is_read_ahead_is_told_that_nobody_wants_it() {
    watchdog(|| {
        let (sender, told) = mpsc::channel();
        let (is_read, reads) = mpsc::channel();
        let source = std::iter::from_fn(move || {
            is_read.send(()).unwrap();
            let (woken, wait) = mpsc::channel();
            let _listener = CancellationToken::current().on_cancel(move || woken.send(()).unwrap());
            wait.recv().unwrap();
            sender.send(()).unwrap();
            Some(0u32)
        });
        let token = CancellationToken::new();
        let run = source.futureproof(Raise).read_ahead(2).cancel_on(&token);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        thread::spawn(move || {
            reads.recv().unwrap();
            token.cancel();
            // Up to its last pull.
            reads.iter().for_each(drop);
        });
        assert!(run.next().is_none());
        drop(run);
        told.recv().unwrap();
    });
}

#[test]
fn a_task_that_feeds_its_own_source_ends_with_the_run() {
    watchdog(|| {
        let (sender, receiver) = mpsc::sync_channel(4);
        sender.send(1).unwrap();
        let run = receiver.into_iter().futureproof(Raise).num_threads(2);
        let mut run = run.map_tasks(infallible(move |n: &u32| {
            if *n == 1 {
                sender.send(0).unwrap();
                while sender.send(2).is_ok() {}
            }
        }));
        // One result comes. Then nobody pulls, so that the task blocks, until the source is gone.
        assert!(run.next().is_some());
        drop(run);
    });
}

#[test]
fn a_callback_that_blocks_does_not_keep_the_run() {
    watchdog(|| {
        let (sender, figures) = mpsc::sync_channel(0);
        let run = (0..10u32).futureproof(Raise).on_progress(move |now| {
            let _ = sender.send(*now);
        });
        assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 10);
        // Read only now.
        assert_eq!(figures.recv().unwrap().completed(), 10);
    });
}

/// A home that starts a thread for each job, and says that there can be any number.
struct Endless;

impl Spawn<'static> for Endless {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        thread::spawn(job);
    }

    fn open(&mut self, _: usize, _: &str) -> usize {
        usize::MAX
    }
}

#[test]
fn a_home_without_bounds_is_no_trouble() {
    watchdog(|| {
        let run = (0..100u32).futureproof(Raise).on(Endless).max_in_flight(16);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        assert_eq!(run.by_ref().count(), 100);
        assert!(!run.report().workers().is_empty());
    });
}

/// Threads start as work needs them, so a large number that was asked for costs little.
#[test]
fn many_threads_are_started_only_if_they_are_needed() {
    watchdog(|| {
        let at_once = Arc::new(AtomicUsize::new(0));
        let is_started = Arc::new(AtomicBool::new(false));
        let (count, flag) = (Arc::clone(&at_once), Arc::clone(&is_started));
        let run = (0..3u32).futureproof(Raise).num_threads(4_000).name("many");
        let run = run.map_tasks(infallible(move |_: &u32| {
            #[cfg(target_os = "linux")]
            count.fetch_max(common::threads_named("many-").len(), SeqCst);
            flag.store(true, SeqCst);
            let _ = &count;
        }));
        assert_eq!(run.count(), 3);
        assert!(is_started.load(SeqCst));
        assert!(
            at_once.load(SeqCst) <= 70,
            "{at_once:?} threads for three items"
        );
    });
}

#[test]
fn chunk_mates_meet() {
    watchdog(|| {
        for chunk in [2, 3, 16, 100] {
            let barrier = Arc::new(Barrier::new(2));
            let run = (0..100u32)
                .futureproof(Raise)
                .num_threads(2)
                .chunk_size(chunk);
            let run = run.map_tasks(infallible(move |_: &u32| {
                barrier.wait();
            }));
            assert_eq!(run.count(), 100);
        }
    });
}

/// Those who come for later chunks are as many as can share in what is left of the earlier ones as well.
#[test]
fn mates_of_several_chunks_meet() {
    watchdog(|| {
        for _ in 0..20 {
            let (meeting, has_begun) = (Meeting::of(8), Gate::default());
            let begun = has_begun.clone();
            let source = (0..8).inspect(move |n| {
                if *n == 3 {
                    begun.pass();
                }
            });
            let run = source.futureproof(Raise).num_threads(8).chunk_size(3);
            let run = run.map_tasks(infallible(move |_: &u32| {
                has_begun.open();
                meeting.meet();
            }));
            assert_eq!(run.count(), 8);
        }
    });
}

/// A home that is slow to come back from handing a job out: the job is over by then.
struct Slow;

impl Spawn<'static> for Slow {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        thread::spawn(job).join().unwrap();
    }
}

/// A worker that runs dry says so, also while the caller hands out what it has just run.
#[test]
fn a_caller_that_is_held_up_delays_nothing() {
    watchdog(|| {
        let first = 5_000u32;
        let late = Arc::new(AtomicU32::new(0));
        let pulls = Arc::clone(&late);
        let run = slow_after(first, pulls).futureproof(Raise);
        let run = run.num_threads(2).on(Slow);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        let _ = run.find(|task| task.as_ref().is_ok_and(|task| task.input == first));
        let pulls = late.load(SeqCst);
        assert!(pulls < 25, "after {pulls} pulls");
    });
}

/// A home of one thread that says it has more.
struct Overrated(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Spawn<'static> for Overrated {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.0.send(Box::new(job)).unwrap();
    }
}

/// The consumer is woken although the worker goes on with the next chunk, and is held up there.
#[test]
fn a_result_does_not_wait_for_the_next_chunk() {
    watchdog(|| {
        for _ in 0..100 {
            let (sender, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
            let worker = thread::spawn(move || jobs.iter().for_each(|job| job()));
            let gate = Gate::default();
            let release = gate.clone();
            let run = (0..4).futureproof(Raise).num_threads(4).chunk_size(1);
            let mut run = run
                .on(Overrated(sender))
                .map_tasks(infallible(move |n: &u32| {
                    if *n == 0 {
                        // The consumer falls asleep meanwhile; for a longer task it is woken in any case.
                        let start = Instant::now();
                        while start.elapsed() < MS / 5 {
                            thread::yield_now();
                        }
                    } else {
                        gate.pass();
                    }
                }));
            assert!(run.next().is_some());
            release.open();
            assert_eq!(run.count(), 3);
            worker.join().unwrap();
        }
    });
}
