//! Random plans, each checked against an oracle: every pulled item ends in exactly one place, every value is
//! dropped once, the figures are right at every moment, and nobody is left behind.
//!
//! A plan follows from its seed. `SEED=17 PLANS=1 cargo test --test plans` runs that one alone.
//!
//! Beside them, batches that nobody disturbs: proptest finds the smallest one that fails.

mod common;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use common::{FOREVER, Random, Tally, Token, pool, watchdog_of};
use futureproof::prelude::*;
use futureproof::{Control, Ending, MapTasks, OwnPool, Progress, Spawn};
use proptest::collection::vec;
use proptest::prelude::*;
use rayon::ThreadPool;

/// A plan that makes no headway for so long hangs.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn whatever_the_plan_nothing_is_lost() {
    let number = |name, default| env::var(name).map_or(default, |text| text.parse().unwrap());
    let plans = number("PLANS", 100_000);
    let first = number("SEED", 0);
    let shards = thread::available_parallelism().map_or(2, |cores| cores.get() as u64);
    let seeds: Arc<Vec<AtomicU64>> = Arc::new((0..shards).map(|_| AtomicU64::new(0)).collect());
    let (sender, outcomes) = mpsc::channel();
    for shard in 0..shards {
        let (sender, seeds) = (sender.clone(), Arc::clone(&seeds));
        thread::spawn(move || {
            let workplace = Workplace::new(shard);
            for seed in (first..first + plans)
                .skip(shard as usize)
                .step_by(shards as usize)
            {
                seeds[shard as usize].store(seed, SeqCst);
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| check(seed, &workplace))) {
                    let text = payload.downcast_ref::<String>().cloned();
                    let text = text.or(payload.downcast_ref::<&str>().map(|text| text.to_string()));
                    sender.send(Err((seed, text.unwrap_or_default()))).unwrap();
                    return;
                }
            }
            drop(workplace);
            sender.send(Ok(())).unwrap();
        });
    }
    let mut before = Vec::new();
    let mut running = shards;
    while running > 0 {
        match outcomes.recv_timeout(PATIENCE) {
            Ok(Ok(())) => running -= 1,
            Ok(Err((seed, text))) => fail(seed, &text),
            Err(_) => {
                let now: Vec<u64> = seeds.iter().map(|seed| seed.load(SeqCst)).collect();
                let stuck = now.iter().zip(&before).find(|(now, before)| now == before);
                if let Some((seed, _)) = stuck {
                    fail(*seed, "hangs");
                }
                before = now;
            }
        }
    }
    #[cfg(target_os = "linux")]
    assert!(
        common::soon(|| common::threads_named("plan-").is_empty()),
        "threads are left"
    );
}

fn fail(seed: u64, text: &str) -> ! {
    panic!("{text}\nwith SEED={seed}: {:?}", Plan::new(seed));
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Succeeds,
    /// Fails so many times first.
    Fails(u32),
    Panics,
}

impl Fate {
    fn fails_for_good(self, retries: u32) -> bool {
        match self {
            Self::Succeeds => false,
            Self::Fails(times) => times > retries,
            Self::Panics => true,
        }
    }

    fn attempts(self, retries: u32) -> u32 {
        match self {
            Self::Succeeds | Self::Panics => 1,
            Self::Fails(times) => times.min(retries) + 1,
        }
    }

    /// Whether an attempt fails, after so many earlier ones.
    fn fails(self, earlier: u32) -> bool {
        match self {
            Self::Succeeds => false,
            Self::Fails(times) => earlier < times,
            Self::Panics => true,
        }
    }
}

/// So many failures do not stop the run.
fn tolerated(policy: ErrorPolicy) -> Option<u64> {
    match policy {
        Raise => Some(0),
        Tolerate(n) => Some(n),
        _ => None,
    }
}

/// A panic that is looked for, and that the panic hook does not tell of.
fn expected_panic() -> ! {
    resume_unwind(Box::new("expected"))
}

/// Where jobs run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// At once, on the caller's thread.
    Inline,
    /// The consumer is a worker itself, and may be the only one: of the jobs, some are run when it leaves, or dropped.
    Helped,
    /// In a random order, some later than others, on threads of the test's.
    Threads,
    Shared,
    Own,
}

/// How a consumer leaves, `step` tasks on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    AtTheEnd,
    ByFold,
    Cancelled,
    /// By the function, at the item of index `step`.
    CancelledInside,
    Dropped,
    Remainder,
    /// A deadline of `step` times 10 µs.
    Late,
}

#[derive(Debug)]
struct Plan {
    fates: Vec<Fate>,
    place: Place,
    threads: usize,
    window: usize,
    chunk: usize,
    policy: ErrorPolicy,
    is_ordered: bool,
    retries: u32,
    leave: Leave,
    step: usize,
    source_panics_at: Option<u64>,
    /// The job of this number is dropped instead of run.
    drops_job: Option<u64>,
    has_monitor: bool,
    seed: u64,
    /// The function changes its items.
    changes_items: bool,
    /// How many tasks may start in a second.
    rate: Option<u32>,
    /// The function pauses the run at the item of this index; somebody resumes it, with so many calls at once.
    pauses_at: Option<(u64, usize)>,
    /// How many keys the items have.
    keys: Option<u64>,
    /// How heavy the items in flight may be; their weights are 0 to 4.
    max_weight: Option<u64>,
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let len = if random.one_in(4) { 80 } else { 12 };
        let bad = 1 + random.below(24);
        let fates = (0..random.below(len)).map(|_| match random.below(bad) {
            0 if random.one_in(3) => Fate::Panics,
            0 => Fate::Fails(1 + random.below(4) as u32),
            _ => Fate::Succeeds,
        });
        let fates: Vec<Fate> = fates.collect();
        let steps = fates.len() as u64 + 2;
        Self {
            fates,
            place: match random.below(64) {
                0 => Place::Own,
                1..4 => Place::Shared,
                4..20 => Place::Inline,
                20..44 => Place::Helped,
                _ => Place::Threads,
            },
            threads: 1 + random.below(4) as usize,
            window: if random.one_in(3) {
                0
            } else {
                1 + random.below(20) as usize
            },
            chunk: random.below(9) as usize,
            policy: match random.below(6) {
                0 | 1 => Raise,
                2 => Ignore,
                3 => Log,
                4 => TolerateRate {
                    failures: random.below(4) as u32,
                    window: 1 + random.below(100) as u32,
                },
                _ => Tolerate(random.below(4)),
            },
            is_ordered: random.one_in(2),
            retries: random.below(4).saturating_sub(1) as u32,
            leave: match random.below(10) {
                0..3 => Leave::AtTheEnd,
                3 => Leave::ByFold,
                4 => Leave::Cancelled,
                5 => Leave::CancelledInside,
                6 => Leave::Dropped,
                7 | 8 => Leave::Remainder,
                _ => Leave::Late,
            },
            step: random.below(steps) as usize,
            source_panics_at: random.one_in(6).then(|| random.below(steps)),
            drops_job: random.one_in(20).then(|| random.below(8)),
            has_monitor: random.one_in(64),
            seed: random.next(),
            changes_items: random.one_in(2),
            rate: random.one_in(16).then(|| 100_000 << random.below(6)),
            pauses_at: random
                .one_in(8)
                .then(|| (random.below(steps), random.below(6) as usize)),
            keys: random.one_in(8).then(|| 1 + random.below(6)),
            max_weight: random.one_in(8).then(|| random.below(12)),
        }
    }

    fn tolerated(&self) -> Option<u64> {
        tolerated(self.policy)
    }

    /// The items that fail, however often they are tried.
    fn failing(&self) -> impl Iterator<Item = u64> {
        let fates = (0..).zip(&self.fates);
        fates
            .filter(|(_, fate)| fate.fails_for_good(self.retries))
            .map(|(index, _)| index)
    }

    /// The failure that is one too many, in the order of the source.
    fn last_straw(&self) -> Option<u64> {
        self.failing().nth(self.tolerated()? as usize)
    }

    /// Whether it is stopped by its failures; `None` where that depends on the order in which tasks end.
    fn fails(&self) -> Option<bool> {
        let TolerateRate { failures, window } = self.policy else {
            return Some(self.last_straw().is_some());
        };
        if self.failing().count() <= failures as usize {
            Some(false)
        } else if window as usize >= self.fates.len() {
            Some(true)
        } else {
            None
        }
    }

    /// Whether all jobs run on the thread of the consumer, one after the other.
    fn is_sequential(&self) -> bool {
        matches!(self.place, Place::Inline | Place::Helped)
    }

    /// Whether nothing but its items decides how the run ends.
    fn is_undisturbed(&self) -> bool {
        let cancels_inside = self.leave == Leave::CancelledInside && self.step < self.fates.len();
        let is_dropped = matches!(self.place, Place::Inline | Place::Helped | Place::Threads)
            && self.drops_job.is_some();
        matches!(
            self.leave,
            Leave::AtTheEnd | Leave::ByFold | Leave::CancelledInside
        ) && !cancels_inside
            && !is_dropped
            && self
                .source_panics_at
                .is_none_or(|at| at > self.fates.len() as u64)
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Jobs that wait to be run in a random order.
struct Queue {
    jobs: Mutex<Vec<Job>>,
    random: Mutex<Random>,
}

impl Queue {
    fn push(&self, job: Job) {
        self.jobs.lock().unwrap().push(job);
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.lock().unwrap().below(limit)
    }

    fn take(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap();
        let len = jobs.len() as u64;
        (len > 0).then(|| jobs.swap_remove(self.below(len) as usize))
    }

    fn run_all(&self) {
        while let Some(job) = self.take() {
            job();
        }
    }
}

/// What the plans of one thread share: threads that take jobs, and a pool.
struct Workplace {
    name: String,
    /// A queue to take a job from, after so many others had their turn.
    turns: crossbeam_channel::Sender<(Arc<Queue>, u64)>,
    /// A control that somebody else resumes.
    paused: mpsc::Sender<(Control, usize)>,
    pool: Arc<ThreadPool>,
}

impl Workplace {
    fn new(shard: u64) -> Self {
        let name = format!("plan-{shard}");
        let (turns, to_take) = crossbeam_channel::unbounded::<(Arc<Queue>, u64)>();
        for _ in 0..2 {
            let (to_take, again) = (to_take.clone(), turns.clone());
            // Ends with the process: it may be asked for a turn by another of its kind.
            let builder = thread::Builder::new().name(format!("taker-{shard}"));
            let take = move || {
                for (queue, later) in to_take {
                    if later > 0 {
                        again.send((queue, later - 1)).unwrap();
                    } else if let Some(job) = queue.take() {
                        job();
                    }
                }
            };
            builder.spawn(take).unwrap();
        }
        let (paused, to_resume) = mpsc::channel::<(Control, usize)>();
        thread::spawn(move || {
            for (control, concurrency) in to_resume {
                control.set_concurrency(concurrency);
                control.resume();
            }
        });
        Self {
            name,
            turns,
            paused,
            pool: pool(2),
        }
    }
}

struct Home {
    place: Place,
    queue: Arc<Queue>,
    turns: crossbeam_channel::Sender<(Arc<Queue>, u64)>,
    pool: Arc<ThreadPool>,
    own: OwnPool,
    drops_job: Option<u64>,
    spawned: AtomicU64,
}

impl Spawn<'static> for Home {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        match self.place {
            Place::Shared => return Spawn::spawn(&self.pool, job),
            Place::Own => return self.own.spawn(job),
            _ => {}
        }
        if Some(self.spawned.fetch_add(1, SeqCst)) == self.drops_job {
            return;
        }
        match self.place {
            Place::Inline => job(),
            Place::Helped => self.queue.push(Box::new(job)),
            _ => {
                self.queue.push(Box::new(job));
                let later = self.queue.below(4) * self.queue.below(8);
                self.turns.send((Arc::clone(&self.queue), later)).unwrap();
            }
        }
    }

    fn open(&mut self, num_threads: usize, name: &str) -> usize {
        match self.place {
            Place::Shared => self.pool.open(num_threads, name),
            Place::Own => self.own.open(num_threads, name),
            _ => num_threads,
        }
    }

    fn is_current(&self) -> bool {
        match self.place {
            Place::Own => self.own.is_current(),
            Place::Helped => true,
            _ => false,
        }
    }
}

/// An item, an output or an error.
#[derive(Debug)]
struct Value {
    index: u64,
    /// How often the function has changed it.
    changes: u32,
    _token: Token,
}

impl Value {
    fn new(index: u64, tally: &Tally) -> Self {
        Self {
            index,
            changes: 0,
            _token: tally.token(),
        }
    }
}

struct Source {
    next: u64,
    len: u64,
    panics_at: Option<u64>,
    pulled: Arc<AtomicU64>,
    tally: Tally,
    has_ended: bool,
}

impl Iterator for Source {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        assert!(!self.has_ended, "the source was asked again");
        if self.panics_at == Some(self.next) {
            self.has_ended = true;
            expected_panic();
        }
        if self.next == self.len {
            self.has_ended = true;
            return None;
        }
        self.next += 1;
        self.pulled.fetch_add(1, SeqCst);
        Some(Value::new(self.next - 1, &self.tally))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.len - self.next) as usize;
        (0, Some(left))
    }
}

/// What the function sees and tells.
struct Work {
    calls: Vec<AtomicU32>,
    running: AtomicI64,
    /// Of each key: whether an item of it is inside, and the last that was.
    inside: Vec<AtomicBool>,
    last: Vec<AtomicU64>,
    /// Final failures so far, and the first of them.
    failed: AtomicU64,
    first_failed: AtomicU64,
    progress: OnceLock<Progress>,
    is_over: AtomicBool,
    /// Jobs that waited for their consumer run on several threads.
    is_released: AtomicBool,
    /// What went wrong in a call, where a panic would be taken for a failure of the task.
    complaint: Mutex<Option<String>>,
}

impl Work {
    fn complain(&self, text: String) {
        *self.complaint.lock().unwrap() = Some(text);
    }

    fn call(&self, plan: &Plan, item: &Value, outputs: &Tally) -> Result<Value, Value> {
        let n = item.index;
        if self.is_over.load(SeqCst) {
            self.complain(format!("item {n} starts after the end"));
        }
        if let Err(text) = self.progress.get().map_or(Ok(()), check_figures) {
            self.complain(text);
        }
        // One after the other, and without retries, it is known which failures stop the run.
        if let Some(tolerated) = plan
            .tolerated()
            .filter(|_| plan.is_sequential() && plan.retries == 0)
            .filter(|_| !self.is_released.load(SeqCst))
        {
            let has_failed = self.failed.load(SeqCst) > tolerated;
            if has_failed
                && (!plan.is_ordered || tolerated == 0 && n > self.first_failed.load(SeqCst))
            {
                self.complain(format!(
                    "item {n} starts after the failure that stops the run"
                ));
            }
        }
        if let Some(keys) = plan.keys {
            let key = (n % keys) as usize;
            if self.inside[key].swap(true, SeqCst) {
                self.complain(format!("item {n} is not alone with its key"));
            }
            if self.last[key].swap(n, SeqCst) > n {
                self.complain(format!("item {n} comes after one that is behind it"));
            }
        }
        let result = self.outcome(plan, n, outputs);
        if let Some(keys) = plan.keys {
            self.inside[(n % keys) as usize].store(false, SeqCst);
        }
        result.unwrap_or_else(|()| {
            self.running.fetch_sub(1, SeqCst);
            expected_panic()
        })
    }

    /// `Err(())` is a panic.
    fn outcome(&self, plan: &Plan, n: u64, outputs: &Tally) -> Result<Result<Value, Value>, ()> {
        let earlier = self.calls[n as usize].fetch_add(1, SeqCst);
        let fate = plan.fates[n as usize];
        if earlier >= fate.attempts(plan.retries) {
            self.complain(format!("item {n} is tried once too often"));
        }
        if !fate.fails(earlier) {
            return Ok(Ok(Value::new(n, outputs)));
        }
        if plan.retries == 0 {
            self.failed.fetch_add(1, SeqCst);
            self.first_failed.fetch_min(n, SeqCst);
        }
        if fate == Fate::Panics {
            return Err(());
        }
        Ok(Err(Value::new(n, outputs)))
    }
}

fn check_figures(progress: &Progress) -> Result<(), String> {
    let now = progress.snapshot();
    let is_right = now.failed() <= now.completed()
        && now.completed() <= now.pulled()
        && now.in_flight() <= now.pulled();
    if is_right {
        Ok(())
    } else {
        Err(format!("the figures are wrong: {now:?}"))
    }
}

type Run = MapTasks<'static, Source, Value, Value>;
type Delivery = Result<Task<Value, Value>, TaskError<Value, Value>>;

/// The index of a task that was delivered, when all of its parts agree.
fn index_of(delivery: &Delivery, plan: &Plan) -> u64 {
    let (index, is_right, fails) = match delivery {
        Ok(task) => (
            task.index,
            task.input.index == task.index && task.output.index == task.index,
            false,
        ),
        Err(error) => {
            let index = error.index();
            let own = error.error().is_none_or(|own| own.index == index);
            let fate = plan.fates[index as usize];
            let attempts = error.attempts() == fate.attempts(plan.retries);
            let is_right = error.input().index == index
                && own
                && attempts
                && error.is_panic() == (fate == Fate::Panics);
            (index, is_right, true)
        }
    };
    assert!(is_right, "the parts of task {index} do not agree");
    let input = delivery
        .as_ref()
        .map_or_else(TaskError::input, |task| &task.input);
    let attempts = plan.fates[index as usize].attempts(plan.retries);
    let changes = if plan.changes_items { attempts } else { 0 };
    assert_eq!(input.changes, changes, "of item {index}");
    assert_eq!(
        fails,
        plan.fates[index as usize].fails_for_good(plan.retries),
        "fate of {index}"
    );
    index
}

/// Lets the jobs that wait for their consumer go on without it, as it is about to leave.
struct Release {
    place: Place,
    work: Arc<Work>,
    queue: Arc<Queue>,
    turns: crossbeam_channel::Sender<(Arc<Queue>, u64)>,
}

impl Drop for Release {
    fn drop(&mut self) {
        if self.place == Place::Helped {
            match self.queue.below(3) {
                0 => self.queue.run_all(),
                1 => self.queue.jobs.lock().unwrap().clear(),
                _ => {
                    self.work.is_released.store(true, SeqCst);
                    let waiting = self.queue.jobs.lock().unwrap().len();
                    (0..waiting)
                        .for_each(|_| self.turns.send((Arc::clone(&self.queue), 0)).unwrap());
                }
            }
        }
    }
}

fn check(seed: u64, workplace: &Workplace) {
    let plan = Arc::new(Plan::new(seed));
    let [inputs, outputs] = [(); 2].map(|()| Tally::default());
    let pulled = Arc::new(AtomicU64::new(0));
    let source = Source {
        next: 0,
        len: plan.fates.len() as u64,
        panics_at: plan.source_panics_at,
        pulled: Arc::clone(&pulled),
        tally: inputs.clone(),
        has_ended: false,
    };
    let work = Arc::new(Work {
        calls: plan.fates.iter().map(|_| AtomicU32::new(0)).collect(),
        running: AtomicI64::new(0),
        inside: (0..6).map(|_| AtomicBool::new(false)).collect(),
        last: (0..6).map(|_| AtomicU64::new(0)).collect(),
        failed: AtomicU64::new(0),
        first_failed: AtomicU64::new(u64::MAX),
        progress: OnceLock::new(),
        is_over: AtomicBool::new(false),
        is_released: AtomicBool::new(false),
        complaint: Mutex::new(None),
    });
    let queue = Arc::new(Queue {
        jobs: Mutex::default(),
        random: Mutex::new(Random(plan.seed)),
    });
    let home = Home {
        place: plan.place,
        queue: Arc::clone(&queue),
        turns: workplace.turns.clone(),
        pool: Arc::clone(&workplace.pool),
        own: OwnPool::default(),
        drops_job: plan.drops_job,
        spawned: AtomicU64::new(0),
    };
    let token = CancellationToken::new();
    let control = Control::new();
    let function = {
        let (plan, work, outputs, token) = (
            Arc::clone(&plan),
            Arc::clone(&work),
            outputs.clone(),
            token.clone(),
        );
        let (control, paused) = (control.clone(), workplace.paused.clone());
        move |item: &mut Value| {
            item.changes += u32::from(plan.changes_items);
            work.running.fetch_add(1, SeqCst);
            if let Some((_, concurrency)) = plan.pauses_at.filter(|(at, _)| *at == item.index) {
                control.pause();
                paused.send((control.clone(), concurrency)).unwrap();
            }
            if plan.leave == Leave::CancelledInside && item.index == plan.step as u64 {
                token.cancel();
            }
            let result = work.call(&plan, item, &outputs);
            work.running.fetch_sub(1, SeqCst);
            result
        }
    };
    let mut options = source
        .futureproof(plan.policy)
        .num_threads(plan.threads)
        .max_in_flight(plan.window)
        .chunk_size(plan.chunk)
        .name(&workplace.name)
        .monitor_interval(Duration::ZERO);
    if plan.is_ordered {
        options = options.ordered();
    }
    if matches!(plan.leave, Leave::Cancelled | Leave::CancelledInside) {
        options = options.cancel_on(&token);
    }
    if let Some(rate) = plan.rate {
        options = options.rate_limit(rate, Duration::from_secs(1));
    }
    if plan.pauses_at.is_some() {
        options = options.control(&control);
    }
    if let Some(keys) = plan.keys {
        options = options.by_key(move |item| item.index % keys);
    }
    if let Some(limit) = plan.max_weight {
        options = options.max_weight(limit, |item| item.index % 5);
    }
    if plan.leave == Leave::Late {
        options = options.deadline(Duration::from_micros(plan.step as u64 * 10));
    }
    let last_seen = Arc::new(AtomicU64::new(u64::MAX));
    if plan.has_monitor {
        let last_seen = Arc::clone(&last_seen);
        let look = move |now: &futureproof::Snapshot| last_seen.store(now.completed(), SeqCst);
        options = options.monitor_interval(FOREVER).on_progress(look);
    }
    let mut run: Run = options.on(home).map_tasks_mut(function);
    if plan.retries > 0 {
        let retries = plan.retries as usize;
        run = run.retry(move || vec![Duration::ZERO; retries]);
    }
    let progress = run.progress();
    work.progress.set(progress.clone()).unwrap();
    let release = Release {
        place: plan.place,
        work: Arc::clone(&work),
        queue,
        turns: workplace.turns.clone(),
    };

    let mut delivered: Vec<Delivery> = Vec::new();
    let mut hints = Vec::new();
    if plan.leave == Leave::ByFold {
        let all = catch_unwind(AssertUnwindSafe(|| {
            run.by_ref().for_each(|delivery| delivered.push(delivery))
        }));
        assert!(
            all.is_ok() || run.ending() == Some(Ending::SourcePanicked),
            "{:?}",
            run.ending()
        );
    }
    let mut has_panicked = false;
    loop {
        if delivered.len() >= plan.step {
            match plan.leave {
                Leave::Cancelled => token.cancel(),
                Leave::Dropped | Leave::Remainder => break,
                _ => {}
            }
        }
        hints.push((delivered.len(), run.size_hint()));
        match catch_unwind(AssertUnwindSafe(|| run.next())) {
            Ok(Some(delivery)) => {
                delivered.push(delivery);
                let in_flight = pulled.load(SeqCst) - delivered.len() as u64;
                assert!(
                    plan.window == 0 || in_flight < plan.window as u64,
                    "{in_flight} in flight after a delivery"
                );
            }
            Ok(None) => break,
            Err(payload) => {
                assert_eq!(
                    payload.downcast_ref(),
                    Some(&"expected"),
                    "another panic than the source's"
                );
                assert!(!has_panicked && run.ending() == Some(Ending::SourcePanicked));
                has_panicked = true;
                if plan.step % 2 == 0 {
                    break;
                }
            }
        }
        check_figures(&progress).unwrap();
    }
    let ending = run.ending();
    if ending.is_some() && !has_panicked {
        assert!(run.next().is_none() && run.next().is_none() && run.ending() == ending);
        let len = delivered.len();
        for (before, (lower, upper)) in hints {
            let to_come = len - before;
            // A home that drops a job is not foreseen.
            let is_foreseen = lower <= to_come || plan.drops_job.is_some();
            assert!(
                is_foreseen && upper.is_none_or(|upper| to_come <= upper),
                "size_hint {lower}, {upper:?}: {to_come} came"
            );
        }
    }

    drop(release);
    let mut indices: Vec<u64> = delivered
        .iter()
        .map(|delivery| index_of(delivery, &plan))
        .collect();
    let failures =
        |deliveries: &[Delivery]| deliveries.iter().filter(|it| it.is_err()).count() as u64;
    let pulled = || pulled.load(SeqCst);
    if plan.is_ordered {
        assert!(
            indices.iter().copied().eq(0..indices.len() as u64),
            "not in order: {indices:?}"
        );
    }
    if plan.is_undisturbed() {
        let fails = plan.fails().unwrap_or(ending == Some(Ending::Failed));
        assert_eq!(
            ending,
            Some(if fails {
                Ending::Failed
            } else {
                Ending::Exhausted
            })
        );
        match plan.last_straw() {
            _ if !fails => assert_eq!(indices.len(), plan.fates.len()),
            Some(straw) if plan.is_ordered => assert_eq!(indices.len() as u64, straw + 1),
            Some(_) => assert_eq!(failures(&delivered), plan.tolerated().unwrap() + 1),
            None => {}
        }
        if fails {
            assert!(delivered.last().unwrap().is_err());
        }
    }
    if let Some(tolerated) = plan.tolerated() {
        assert!(failures(&delivered) <= tolerated + 1);
    }
    if plan.leave == Leave::Dropped {
        drop(run);
        assert_eq!(inputs.alive(), delivered.len(), "inputs are left");
    } else {
        let remainder = run.into_remainder();
        indices.extend(
            remainder
                .finished
                .iter()
                .map(|delivery| index_of(delivery, &plan)),
        );
        let (unprocessed, values): (Vec<u64>, Vec<u64>) = remainder
            .unprocessed
            .iter()
            .map(|(index, item)| (*index, item.index))
            .unzip();
        assert!(
            unprocessed == values && unprocessed.is_sorted(),
            "{unprocessed:?}, {values:?}"
        );
        let again = work
            .calls
            .iter()
            .map(|calls| calls.load(SeqCst).saturating_sub(1) as u64)
            .sum::<u64>();
        indices.extend(&unprocessed);
        indices.sort_unstable();
        assert!(
            indices.iter().copied().eq(0..remainder.source.next),
            "{} pulled, but there are {indices:?}",
            pulled()
        );
        if ending == Some(Ending::Exhausted) {
            assert!(remainder.finished.is_empty() && unprocessed.is_empty());
        }
        let end = progress.snapshot();
        let completed = (delivered.len() + remainder.finished.len()) as u64;
        let failed = failures(&delivered) + failures(&remainder.finished);
        assert_eq!(
            (end.pulled(), end.completed(), end.failed()),
            (pulled(), completed, failed)
        );
        assert!(
            (again..=again + unprocessed.len() as u64).contains(&end.retried()),
            "{end:?}"
        );
        if plan.has_monitor && last_seen.load(SeqCst) != u64::MAX {
            assert_eq!(
                last_seen.load(SeqCst),
                completed,
                "the last word of the monitor"
            );
        }
    }
    work.is_over.store(true, SeqCst);
    assert_eq!(work.running.load(SeqCst), 0, "calls go on");
    drop(delivered);
    assert_eq!(inputs.alive(), 0, "inputs");
    assert_eq!(outputs.alive(), 0, "outputs and errors");
    assert_eq!(work.complaint.lock().unwrap().take(), None);
    #[cfg(target_os = "linux")]
    if plan.place == Place::Own || plan.has_monitor {
        let name = format!("{}-", workplace.name);
        // A joined thread may still be listed for a moment.
        assert!(
            common::soon(|| common::threads_named(&name).is_empty()),
            "threads"
        );
    }
}

/// A run that comes to its own end, and so has one right outcome.
#[derive(Debug)]
struct Batch {
    fates: Vec<Fate>,
    threads: usize,
    window: usize,
    chunk: usize,
    policy: ErrorPolicy,
    is_ordered: bool,
    retries: u32,
    is_collected: bool,
    is_shared: bool,
}

fn batch() -> impl Strategy<Value = Batch> {
    let fate = prop_oneof![
        16 => Just(Fate::Succeeds),
        2 => (1u32..5).prop_map(Fate::Fails),
        1 => Just(Fate::Panics),
    ];
    let policy = prop_oneof![
        Just(Raise),
        Just(Ignore),
        Just(Log),
        (0u64..6).prop_map(Tolerate)
    ];
    let counts = (1usize..5, 0usize..20, 0usize..9, 0u32..3);
    (vec(fate, 0..80), counts, policy, any::<[bool; 3]>()).prop_map(
        |(fates, (threads, window, chunk, retries), policy, flags)| Batch {
            fates,
            threads,
            window,
            chunk,
            policy,
            is_ordered: flags[0],
            retries,
            is_collected: flags[1],
            is_shared: flags[2],
        },
    )
}

fn equals_sequential(batch: &Batch) {
    let retries = batch.retries;
    let fates = Arc::new(batch.fates.clone());
    let calls: Arc<Vec<AtomicU32>> = Arc::new(fates.iter().map(|_| AtomicU32::new(0)).collect());
    let work = {
        let (fates, calls) = (Arc::clone(&fates), Arc::clone(&calls));
        move |n: &usize| {
            let earlier = calls[*n].fetch_add(1, SeqCst);
            match fates[*n] {
                fate if !fate.fails(earlier) => Ok(n * 3),
                Fate::Panics => expected_panic(),
                _ => Err(*n),
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
        options.on(pool(batch.threads)).map_tasks(work)
    } else {
        options.map_tasks(work)
    };
    if retries > 0 {
        run = run.retry(move || vec![Duration::ZERO; retries as usize]);
    }

    // What is to be had: all, or up to the failure that is one too many.
    let fail = fates.iter().filter(|fate| fate.fails_for_good(retries));
    let failing = fail.count() as u64;
    let stops = tolerated(batch.policy).is_some_and(|tolerated| failing > tolerated);

    let results: Vec<_> = if batch.is_collected {
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
        let calls = calls.load(SeqCst);
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
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 5 } else { 1_000 },
        failure_persistence: None,
        max_shrink_time: 30_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn parallel_equals_sequential(batch in batch()) {
        watchdog_of(PATIENCE, move || equals_sequential(&batch));
    }
}

#[test]
fn any_threads_and_window_agree_with_sequential() {
    // As pariter's map_vs_map_parallel: a window of 0 included.
    let limit = if cfg!(miri) { 3 } else { 40 };
    for n in 0..limit {
        let (threads, window) = (n * 7 % 32 + 1, n * 13 % 128);
        println!("{threads} threads, a window of {window}");
        watchdog_of(PATIENCE, move || {
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
