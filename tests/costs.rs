//! Random jobs whose tasks cost what people's do: nothing, then a lot; some wait for each other, or for what comes
//! later, and a source blocks until what came before is done. Each promise is a gate that opens only if it holds.
//!
//! A job follows from its seed. `SEED=17 JOBS=1 cargo test --test costs` runs that one alone.

mod common;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{MS, Random, pool};
use futureproof::MapTasks;
use futureproof::prelude::*;
use rayon::ThreadPool;

/// So many jobs run at a time.
const SHARDS: usize = 8;

/// A job that makes no headway for so long hangs.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn whatever_tasks_cost_nobody_waits_in_vain() {
    let number = |name, default| env::var(name).map_or(default, |text| text.parse().unwrap());
    let (jobs, first) = (number("JOBS", 1_000), number("SEED", 0));
    let (sender, outcomes) = mpsc::channel();
    // Several at a time, which disturb each other: on a quiet machine, and on a busy one, chunks have other sizes.
    for shard in 0..SHARDS {
        let sender = sender.clone();
        thread::spawn(move || {
            let pools: Vec<_> = (1..=THREADS).map(pool).collect();
            for seed in (first..first + jobs).skip(shard).step_by(SHARDS) {
                sender.send((shard, seed, None)).unwrap();
                let job = Job::new(seed);
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job.check(&pools))) {
                    let text = payload.downcast_ref::<String>().cloned();
                    sender
                        .send((shard, seed, Some(text.unwrap_or_default())))
                        .unwrap();
                }
            }
        });
    }
    drop(sender);
    let mut current = [first; SHARDS];
    loop {
        match outcomes.recv_timeout(PATIENCE) {
            Ok((shard, seed, None)) => current[shard] = seed,
            Ok((_, seed, Some(text))) => panic!("{text}\nwith SEED={seed}: {:?}", Job::new(seed)),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let jobs = current.map(Job::new);
                panic!("one of these hangs, SEED={current:?}: {jobs:#?}")
            }
        }
    }
}

/// At most so many workers.
const THREADS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Own,
    Shared,
    /// The consumer is on a thread of the pool, which works as well.
    Inside,
}

/// What is not quick.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slow {
    /// The last tasks, one for each worker, wait for each other.
    Meeting,
    /// A task waits until the last one begins, so many later.
    Hanger(u64),
    /// A task in so many takes a millisecond.
    Now(u64),
    /// Each pull in so many waits until all that was pulled before has been begun or, with read-ahead, delivered.
    Source(u64),
}

#[derive(Debug)]
struct Job {
    len: u64,
    place: Place,
    threads: usize,
    chunk: usize,
    window: usize,
    is_ordered: bool,
    slow: Slow,
    read_ahead: Option<usize>,
    /// After the first task, the consumer stays away until the slow ones have ended.
    is_away: bool,
    /// Each task in so many fails once, or for good.
    fails: u64,
    is_retried: bool,
}

impl Job {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut threads = 1 + random.below(THREADS as u64) as usize;
        let place = match random.below(4) {
            0 => Place::Shared,
            1 => Place::Inside,
            _ => Place::Own,
        };
        let cheap = match random.below(8) {
            0 => random.below(4_000),
            1 | 2 => random.below(600),
            _ => random.below(30),
        };
        let slow = match random.below(8) {
            0..3 => Slow::Meeting,
            3 | 4 => Slow::Hanger(1 + random.below(2 * threads as u64 - 1)),
            5 => Slow::Now(1 + cheap / (1 + random.below(10))),
            _ => Slow::Source(1 + random.below(20)),
        };
        if matches!(slow, Slow::Hanger(_)) {
            threads = threads.max(2);
        }
        let len = cheap + 2 * threads as u64;
        let mut job = Self {
            len,
            place,
            threads,
            chunk: random.below(12) as usize,
            window: if random.one_in(2) {
                0
            } else {
                2 * threads + random.below(20) as usize
            },
            is_ordered: random.one_in(2),
            slow,
            read_ahead: random.one_in(3).then(|| random.below(20) as usize),
            is_away: false,
            fails: if random.one_in(3) {
                1 + random.below(40)
            } else {
                u64::MAX
            },
            is_retried: random.one_in(2),
        };
        match slow {
            // All is one chunk: else it may not have been pulled when the consumer goes away.
            Slow::Meeting | Slow::Hanger(_)
                if place != Place::Inside && job.read_ahead.is_none() && random.one_in(3) =>
            {
                job.is_away = true;
                (job.chunk, job.window) = (len as usize, len as usize);
            }
            // A consumer that is in a task does not pull.
            Slow::Meeting | Slow::Hanger(_) if place == Place::Inside => {
                (job.window, job.read_ahead) = (len as usize, None);
            }
            // What is pulled is submitted at once, and others than the consumer can begin it.
            Slow::Source(_) if job.read_ahead.is_none() => {
                job.chunk = 1;
                job.place = Place::Own;
            }
            _ => {}
        }
        job
    }

    fn fails(&self, n: u64) -> bool {
        n % self.fails == self.fails - 1
    }

    fn check(self, pools: &[Arc<ThreadPool>]) {
        let job = Arc::new(self);
        let home = Arc::clone(&pools[job.threads - 1]);
        match job.place {
            Place::Own => job.check_on(None),
            Place::Shared => job.check_on(Some(home)),
            Place::Inside => {
                let there = Arc::clone(&home);
                there.install(|| job.check_on(Some(home)));
            }
        }
    }

    fn check_on(self: &Arc<Self>, home: Option<Arc<ThreadPool>>) {
        let world = Arc::new(World::default());
        let (job, seen) = (Arc::clone(self), Arc::clone(&world));
        let source = (0..self.len).inspect(move |n| {
            if let Slow::Source(every) = job.slow {
                if n % every == 0 {
                    let of_all = |world: &State| match job.read_ahead {
                        Some(_) => world.delivered >= *n,
                        None => world.begun >= *n,
                    };
                    seen.wait_until(of_all);
                }
            }
        });
        let policy = if self.fails < u64::MAX { Ignore } else { Raise };
        let run = source
            .futureproof(policy)
            .num_threads(self.threads)
            .chunk_size(self.chunk)
            .max_in_flight(self.window)
            .monitor_interval(Duration::ZERO);
        let run = if self.is_ordered { run.ordered() } else { run };
        let (job, seen) = (Arc::clone(self), Arc::clone(&world));
        let f = move |n: &u64| job.call(*n, &seen);
        match (home, self.read_ahead) {
            (None, None) => self.consume(run.map_tasks(f), &world),
            (None, Some(ahead)) => self.consume(run.read_ahead(ahead).map_tasks(f), &world),
            (Some(home), None) => self.consume(run.on(home).map_tasks(f), &world),
            (Some(home), Some(ahead)) => {
                self.consume(run.read_ahead(ahead).on(home).map_tasks(f), &world)
            }
        }
    }

    fn call(&self, n: u64, world: &World) -> Result<u64, u64> {
        let is_first = world.begin(n);
        let from_end = self.len - 1 - n;
        match self.slow {
            Slow::Meeting if from_end < self.threads as u64 => {
                world.change(|state| state.met += 1);
                world.wait_until(|state| state.met >= self.threads);
                world.change(|state| state.slow_ended += 1);
                return Ok(n);
            }
            Slow::Hanger(offset) if from_end == offset => {
                world.wait_until(|state| state.last_begun >= self.len - 1);
                world.change(|state| state.slow_ended += 1);
                return Ok(n);
            }
            // Those that release others do not fail.
            Slow::Hanger(_) | Slow::Meeting if from_end == 0 => return Ok(n),
            Slow::Now(every) if n % every == 0 => thread::sleep(MS),
            _ => {}
        }
        if self.fails(n) && (is_first || !self.is_retried) {
            return Err(n);
        }
        Ok(n)
    }

    fn consume<S>(&self, run: MapTasks<'static, S, u64, u64>, world: &World)
    where
        S: Iterator<Item = u64>,
    {
        let mut run = run;
        if self.is_retried {
            run = run.retry(|| [Duration::ZERO]);
        }
        let mut seen = vec![false; self.len as usize];
        let mut delivered = 0;
        for task in run.by_ref() {
            let (index, fails) = match &task {
                Ok(task) => (task.output, false),
                Err(error) => (error.index(), true),
            };
            let is_slow = match self.slow {
                Slow::Meeting => self.len - 1 - index < self.threads as u64,
                Slow::Hanger(offset) => [0, offset].contains(&(self.len - 1 - index)),
                _ => false,
            };
            assert_eq!(
                fails,
                self.fails(index) && !self.is_retried && !is_slow,
                "the fate of {index}"
            );
            assert!(!self.is_ordered || index == delivered, "out of order");
            assert!(!std::mem::replace(&mut seen[index as usize], true), "twice");
            delivered += 1;
            world.change(|state| state.delivered = delivered);
            if delivered == 1 && self.is_away {
                let slow = match self.slow {
                    Slow::Meeting => self.threads,
                    _ => 1,
                };
                world.wait_until(|state| state.slow_ended == slow);
            }
        }
        assert_eq!(delivered, self.len, "{:?}", run.ending());
    }
}

/// What has happened so far.
#[derive(Default)]
struct World {
    state: Mutex<State>,
    changed: Condvar,
    waiters: AtomicUsize,
}

#[derive(Default)]
struct State {
    begun: u64,
    last_begun: u64,
    delivered: u64,
    met: usize,
    slow_ended: usize,
    tried: Vec<bool>,
}

impl World {
    /// Returns whether this is the first attempt.
    fn begin(&self, n: u64) -> bool {
        let mut is_first = true;
        self.change(|state| {
            let len = state.tried.len().max(n as usize + 1);
            state.tried.resize(len, false);
            is_first = !std::mem::replace(&mut state.tried[n as usize], true);
            state.begun += u64::from(is_first);
            state.last_begun = state.last_begun.max(n);
        });
        is_first
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        if self.waiters.load(SeqCst) > 0 {
            self.changed.notify_all();
        }
    }

    fn wait_until(&self, condition: impl Fn(&State) -> bool) {
        let mut state = self.state.lock().unwrap();
        if condition(&state) {
            return;
        }
        self.waiters.fetch_add(1, SeqCst);
        while !condition(&state) {
            state = self.changed.wait(state).unwrap();
        }
        self.waiters.fetch_sub(1, SeqCst);
    }
}
