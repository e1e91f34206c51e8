//! The builder: turns an iterator into a run, option by option.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use crate::cancel::CancellationToken;
use crate::control::Control;
use crate::engine::driver::Driver;
use crate::engine::holds::HoldRules;
use crate::engine::job::Shared;
use crate::engine::options::Options;
use crate::engine::pace::Pace;
use crate::engine::stage::{Dispatch, Spawner, Stage};
use crate::engine::stages::{Pipeline, StageList, Staged, Stages};
use crate::engine::workers::Workers;
use crate::map_tasks::MapTasks;
use crate::observe::counters::Snapshot;
use crate::policy::ErrorPolicy;
use crate::pool::{OwnPool, Spawn};
use crate::source::{Owned, QueueItems, QueueSource, ReadAhead, SourceOps, ToReadAhead};
use crate::util::panics::CatchDrop;

/// Adds [`futureproof`](Self::futureproof) and [`read_ahead`](Self::read_ahead) to every iterator.
pub trait FutureproofIterator: Iterator + Sized {
    /// Starts building a parallel run over the items of this iterator.
    ///
    /// `policy` decides what happens when a task fails. Nothing runs until the first call of `next` on the iterator
    /// that [`map_tasks`](Futureproof::map_tasks) returns.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// for task in ["a", "bcd"].into_iter().futureproof(Raise).map_tasks(infallible(|text: &&str| text.len())) {
    ///     let task = task?;
    ///     println!("{} has {} bytes", task.input, task.output);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn futureproof(self, policy: ErrorPolicy) -> Futureproof<Self> {
        Futureproof::new(self, None, policy)
    }

    /// Reads this iterator ahead on its own thread.
    ///
    /// `iter.read_ahead(64).futureproof(Raise)` is the same as `iter.futureproof(Raise).read_ahead(64)`; see
    /// [`Futureproof::read_ahead`].
    fn read_ahead(self, limit: usize) -> ToReadAhead<Self>
    where
        Self: Send + 'static,
        Self::Item: Send + 'static,
    {
        ToReadAhead::new(self, limit)
    }
}

impl<I: Iterator> FutureproofIterator for I {}

impl<I> ToReadAhead<I>
where
    I: Iterator + Send + 'static,
    I::Item: Send + 'static,
{
    /// Starts building a run that reads its source ahead.
    ///
    /// The same as [`FutureproofIterator::futureproof`] followed by [`Futureproof::read_ahead`].
    pub fn futureproof(self, policy: ErrorPolicy) -> Futureproof<ReadAhead<I>> {
        let (source, limit) = self.into_parts();
        source.futureproof(policy).read_ahead(limit)
    }
}

impl<T> QueueSource<T> {
    /// Starts building a run over the queue.
    ///
    /// Like [`FutureproofIterator::futureproof`], but the run ends only when the queue is empty and nothing is in
    /// flight.
    pub fn futureproof(self, policy: ErrorPolicy) -> Futureproof<QueueItems<T>> {
        self.into_items().futureproof(policy)
    }
}

impl<T> QueueItems<T> {
    /// Starts building a run over the items left in the queue of a [`Remainder`](crate::Remainder).
    ///
    /// Like [`QueueSource::futureproof`].
    pub fn futureproof(self, policy: ErrorPolicy) -> Futureproof<Self> {
        Futureproof::new(self, Some(Self::OPS), policy)
    }
}

/// The options of a run. The defaults suit most jobs.
///
/// Created by [`FutureproofIterator::futureproof`] and finished by [`map_tasks`](Self::map_tasks). All methods here
/// come before `map_tasks`; [`retry`](MapTasks::retry), [`retry_with`](MapTasks::retry_with),
/// [`retry_if`](MapTasks::retry_if) and [`describe`](MapTasks::describe) come after it.
///
/// No value of an option is an error. For every count, 0 means that the library chooses.
///
/// ```
/// use futureproof::prelude::*;
/// use std::time::Duration;
///
/// let run = (1..=100u64).futureproof(Tolerate(3)).num_threads(2).max_in_flight(10).ordered();
/// let run = run.name("squares").deadline(Duration::from_secs(60)).map_tasks(infallible(|n: &u64| n * n));
/// assert_eq!(run.flatten().map(|task| task.output).sum::<u64>(), 338_350);
/// ```
#[must_use = "a run does nothing unless `map_tasks` is called and its tasks are consumed"]
pub struct Futureproof<I: Iterator, P = OwnPool, S = ()> {
    source: I,
    ops: Option<SourceOps<I>>,
    pub(crate) options: Options,
    spawner: Spawner<P>,
    stages: S,
    hold_rules: HoldRules<'static, I::Item>,
}

impl<I: Iterator> Futureproof<I> {
    /// `ops`: set for a source that can be empty now and have items later.
    fn new(source: I, ops: Option<SourceOps<I>>, policy: ErrorPolicy) -> Self {
        Self {
            source,
            ops,
            options: Options::new(policy),
            spawner: Spawner::of_own_pool(),
            stages: (),
            hold_rules: HoldRules::none(),
        }
    }
}

impl<I: Iterator, P, S> Futureproof<I, P, S> {
    /// Sets how many threads the run's own pool has.
    ///
    /// The default, 0, is rayon's: the environment variable `RAYON_NUM_THREADS`, or one thread per core. If your
    /// tasks wait rather than compute, ask for more threads than cores.
    ///
    /// A rayon pool or a [`Scope`](crate::Scope) passed to [`on`](Self::on) keeps its own number of threads.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let run = (0..8).futureproof(Raise).num_threads(4).map_tasks(infallible(|n: &u32| n + 1));
    /// assert_eq!(run.count(), 8);
    /// ```
    pub fn num_threads(mut self, n: usize) -> Self {
        self.spawner.num_threads = n;
        self
    }

    /// Limits how many items are in flight, which bounds memory.
    ///
    /// An item is in flight from the moment it is pulled until it is delivered: queued, running, waiting for a retry,
    /// or finished.
    ///
    /// The default, 0, follows the cost of a task. Per thread, that is three tasks of 5 ms or more (one that runs and two
    /// that are queued, or have finished), or a few milliseconds' worth of quicker ones, up to about 64 Ki items; less while the
    /// consumer is slower than the tasks. Where items are open files or sockets, set a limit: quick tasks can have thousands of
    /// them open at a time. A run of several [stages](Self::stage) counts the threads of all of them.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let mut run = (0u64..).futureproof(Raise).max_in_flight(10).map_tasks(infallible(|n: &u64| n + 1));
    /// run.next();
    /// assert!(run.progress().snapshot().pulled() <= 11);
    /// ```
    pub fn max_in_flight(mut self, n: usize) -> Self {
        self.options.max_in_flight = n;
        self
    }

    /// Pulls the source on its own thread, so that a source that blocks does not delay results.
    ///
    /// Up to `limit` items are read ahead. 0 means 64; the maximum is 65,536.
    ///
    /// Use it for a source that blocks, such as a socket or a directory walk over a network. Without it, the run
    /// pulls its source on the consumer's thread, and delivers nothing while the source blocks. A
    /// [`Queue`](crate::Queue) never blocks, so it is not read ahead.
    ///
    /// Items that were read ahead do not count towards [`max_in_flight`](Self::max_in_flight). Leaving the run never
    /// waits for the source: its thread ends when the current pull returns. The source can look at
    /// [`CancellationToken::current`] in its `next` to learn that its items are no longer wanted.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::sync::mpsc;
    ///
    /// let (sender, receiver) = mpsc::channel();
    /// sender.send(1).unwrap();
    /// // The channel stays open, so pulling a second item blocks.
    /// let run = receiver.into_iter().futureproof(Raise).read_ahead(16);
    /// let mut run = run.map_tasks(infallible(|n: &i32| n + 1));
    /// assert_eq!(run.next().unwrap().unwrap().output, 2);
    /// drop(run); // does not wait for the channel
    /// drop(sender);
    /// ```
    pub fn read_ahead(self, limit: usize) -> Futureproof<ReadAhead<I>, P, S>
    where
        I: Send + 'static,
        I::Item: Send + 'static,
    {
        Futureproof {
            source: ReadAhead::new(self.source, limit, self.ops),
            ops: Some(ReadAhead::OPS),
            options: self.options,
            spawner: self.spawner,
            stages: self.stages,
            hold_rules: self.hold_rules,
        }
    }

    /// Sets how many items are sent to a worker together, 65,536 at most.
    ///
    /// The default, 0, adapts while the run goes on: 1 where a task or a pull is slow, more for tiny tasks. A fixed
    /// size is useful in tests, and for tasks whose cost varies widely.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let run = (0..100).futureproof(Raise).chunk_size(7).map_tasks(infallible(|n: &u32| n + 1));
    /// assert_eq!(run.count(), 100);
    /// ```
    pub fn chunk_size(mut self, n: usize) -> Self {
        self.options.chunk_size = n;
        self
    }

    /// Delivers tasks in the order of the source instead of the order in which they finish.
    ///
    /// Finished tasks that wait for their turn count as in flight. So one slow task stops new ones from starting once
    /// the window is full. Under [`Raise`](ErrorPolicy::Raise), every task before the failed one is delivered first.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let run = (0..100u32).futureproof(Raise).ordered().map_tasks(infallible(|n: &u32| n * 2));
    /// let outputs: Vec<u32> = run.map(|task| task.unwrap().output).collect();
    /// assert!(outputs.is_sorted());
    /// ```
    pub fn ordered(mut self) -> Self {
        self.options.ordered = true;
        self
    }

    /// Sets how often the monitor logs progress.
    ///
    /// The monitor logs with [`log`] at `info!`, target `futureproof`. The default interval is 2 s. The first and the
    /// last line are always logged, however short the run.
    ///
    /// [`Duration::ZERO`] turns off the lines and [`on_progress`](Self::on_progress). The monitor's thread starts
    /// only if something needs it: an enabled `info!` log, `on_progress`, [`warn_after`](Self::warn_after), a
    /// progress bar or the feature `metrics`.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// # use std::time::Duration;
    /// let run = (0..100).futureproof(Raise).monitor_interval(Duration::from_secs(60));
    /// let run = run.map_tasks(infallible(|n: &u32| *n));
    /// assert_eq!(run.count(), 100);
    /// ```
    pub fn monitor_interval(mut self, every: Duration) -> Self {
        self.options.interval = every;
        self
    }

    /// Calls `f` with the run's counts at every [interval](Self::monitor_interval), and once at the end.
    ///
    /// `f` is called on the monitor's thread, so it does not slow the run down. The end of the run waits for it for
    /// up to a second. If `f` panics, the panic is caught and nothing else is lost.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let (sender, last) = std::sync::mpsc::channel();
    /// let run = (0..100u32).futureproof(Raise).on_progress(move |now| sender.send(now.completed()).unwrap());
    /// run.map_tasks(infallible(|n: &u32| n + 1)).for_each(drop);
    /// assert_eq!(last.iter().last(), Some(100));
    /// ```
    pub fn on_progress(mut self, f: impl FnMut(&Snapshot) + Send + 'static) -> Self {
        self.options.on_progress = Some(CatchDrop::new(Box::new(f)));
        self
    }

    /// Logs a warning for every task that has been running for `duration`.
    ///
    /// The warning gives the task's index and the name of its worker. It comes again each time the running time has
    /// doubled. A running call cannot be stopped; this tells you which one it is.
    ///
    /// Checked every `duration / 4`, so a warning comes between 1× and 1.25× `duration`; tasks over by then are not
    /// reported. The reported time is exact for the first task of a [chunk](Self::chunk_size), and slow tasks are in
    /// chunks of one. For a later task of a chunk it can be up to `duration / 4` too short.
    ///
    /// It costs a few nanoseconds per task.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// # use std::time::Duration;
    /// let run = (0..100).futureproof(Raise).warn_after(Duration::from_secs(30));
    /// let run = run.map_tasks(infallible(|n: &u32| n + 1));
    /// assert_eq!(run.count(), 100);
    /// // WARN futureproof: task 17 has been running for 30.1s, on futureproof-3
    /// ```
    pub fn warn_after(mut self, duration: Duration) -> Self {
        self.options.warn_after = Some(duration);
        self
    }

    /// Sets how many items to expect, for a source that does not know, such as a `filter`.
    ///
    /// The number is used for the time left in log lines, for [`Snapshot::eta`](crate::Snapshot::eta) and for a
    /// progress bar. Nothing else depends on it, so an estimate will do.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let even = (0..100u32).filter(|n| n % 2 == 0);
    /// let mut run = even.futureproof(Raise).total(50).map_tasks(infallible(|n: &u32| n + 1));
    /// run.by_ref().for_each(drop);
    /// assert_eq!(run.progress().snapshot().total(), Some(50));
    /// ```
    pub fn total(mut self, items: u64) -> Self {
        self.options.total = Some(items);
        self
    }

    /// Names the run in log lines and its threads: `NAME-0`, `NAME-1` and so on.
    ///
    /// The default is `futureproof`.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let name = |_: &()| std::thread::current().name().map(str::to_owned);
    /// let mut run = [()].into_iter().futureproof(Raise).num_threads(1).name("thumbnails").map_tasks(infallible(name));
    /// assert_eq!(run.next().unwrap().unwrap().output.as_deref(), Some("thumbnails-0"));
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        // A thread's name cannot contain a NUL.
        self.spawner.name = name.into().replace('\0', "");
        self
    }

    /// Stops the run when `token` is cancelled.
    ///
    /// No further call starts, and a consumer that is blocked in `next` gets `None` at once. See
    /// [`CancellationToken`].
    ///
    /// The iterator just ends, so what you collect may be incomplete. Ask [`ending`](MapTasks::ending), or use
    /// [`checked`](MapTasks::checked), which yields an error for a cancelled run.
    ///
    /// Can be called several times: each of the tokens stops the run. The run also inherits a token's deadline. So if
    /// a task passes [`CancellationToken::current`] to an inner run, the inner run ends at the outer run's deadline.
    ///
    /// ```
    /// # use futureproof::{Ending, prelude::*};
    /// let token = CancellationToken::new();
    /// let stop = token.clone();
    /// let find = move |n: &u64| if *n == 500 { stop.cancel() };
    /// let mut run = (0u64..).futureproof(Raise).cancel_on(&token).map_tasks(infallible(find));
    /// run.by_ref().for_each(drop);
    /// assert_eq!(run.ending(), Some(Ending::Cancelled));
    /// ```
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        self.options.tokens.push(token.clone());
        self
    }

    /// Stops the run when `after` has passed since the first `next`.
    ///
    /// It stops the run as a [cancel](Self::cancel_on) does. The iterator just ends, so what you collect may be
    /// incomplete. Ask [`ending`](MapTasks::ending), or use [`checked`](MapTasks::checked), which yields an error for
    /// a run that reached its deadline.
    ///
    /// Workers then read the clock before each item, which costs about 20 ns.
    ///
    /// ```
    /// # use futureproof::{Ending, prelude::*};
    /// # use std::time::Duration;
    /// let run = (0u64..).futureproof(Raise).deadline(Duration::from_millis(20));
    /// let mut run = run.map_tasks(infallible(|n: &u64| n + 1));
    /// assert!(run.by_ref().count() > 0);
    /// assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
    /// ```
    pub fn deadline(mut self, after: Duration) -> Self {
        self.options.deadline = Some(after);
        self
    }

    /// Limits how often tasks start: `calls` in each `per` on average, evenly spread.
    ///
    /// Retries count as well. A task that waits for its time holds no worker, and a cancel, a deadline or a drop does not
    /// wait for it. There is no burst after a pause. But after a timer that was late, up to five milliseconds' worth of tasks
    /// start at once, so a window of one `per` can hold that many more, and one: for at most 50 in any second, ask for 49.
    /// 0 calls, or a `per` of zero, means no limit.
    ///
    /// In a run with several [stages](Self::stage), the limit applies to the first one.
    ///
    /// Each run has its own limit. To share one between runs, call a limiter from the `governor` crate in the function.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::time::{Duration, Instant};
    ///
    /// let start = Instant::now();
    /// let run = (0..5).futureproof(Raise).rate_limit(100, Duration::from_secs(1));
    /// assert_eq!(run.map_tasks(infallible(|n: &u32| n + 1)).count(), 5);
    /// assert!(start.elapsed() >= Duration::from_millis(40)); // the first at once, then one every 10 ms
    /// ```
    pub fn rate_limit(mut self, calls: u32, per: Duration) -> Self {
        self.options.pace = Pace::new(calls, per);
        self
    }

    /// Runs items that share a key one after the other, in the order of the source.
    ///
    /// An item starts once the one before it with the same key has succeeded or failed for good; so it waits for that
    /// one's retries as well. Items of different keys run in parallel. (Two keys with the same [`Hash`] are taken for one.) Whether a failure of one item is a reason to skip
    /// the next of its key is for your function to decide.
    ///
    /// An item that waits for its key holds no worker. It counts as in flight. If most items have the same key, they fill the
    /// [window](Self::max_in_flight), and what has other keys is not pulled until there is room again; without a window,
    /// up to 64 items for each thread wait in that way.
    ///
    /// `key` is called once for each item, on the thread that pulls. A panic of it is like one of the source. Each item
    /// travels in a chunk of its own, which costs about a microsecond.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::sync::Mutex;
    ///
    /// let events = [("ann", 1), ("bob", 1), ("ann", 2), ("ann", 3), ("bob", 2)];
    /// let seen = Mutex::new(Vec::new());
    /// let apply = |event: &(&'static str, u32)| seen.lock().unwrap().push(*event);
    /// futureproof::scope(4, |threads| {
    ///     let run = events.into_iter().futureproof(Raise).on(threads).by_key(|(user, _)| *user);
    ///     assert_eq!(run.map_tasks(infallible(apply)).count(), 5);
    /// });
    /// let of_ann: Vec<u32> = seen.into_inner().unwrap().iter().filter(|event| event.0 == "ann").map(|event| event.1).collect();
    /// assert_eq!(of_ann, [1, 2, 3]);
    /// ```
    pub fn by_key<K: Hash + Eq>(mut self, key: impl Fn(&I::Item) -> K + Send + 'static) -> Self {
        self.hold_rules.by_key(key);
        self
    }

    /// Limits the weight of what is in flight, besides [its number](Self::max_in_flight).
    ///
    /// `weigh` gives the weight of an item in any unit: bytes, pages, connections. An item that would exceed `limit`
    /// waits until enough has been delivered, and nothing further is pulled meanwhile. So one item more than the limit
    /// allows can be in memory. An item that is too heavy alone runs alone.
    ///
    /// `weigh` is called once for each item, on the thread that pulls. A panic of it is like one of the source. Each item
    /// travels in a chunk of its own, which costs about a microsecond.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// // No more than 100 MB of images at a time, as far as their files tell.
    /// let files = [("a.png", 60_000_000), ("b.png", 70_000_000), ("c.png", 5_000)];
    /// let run = files.into_iter().futureproof(Raise).max_weight(100_000_000, |(_, bytes)| *bytes);
    /// assert_eq!(run.map_tasks(infallible(|(name, _): &(&str, u64)| name.len())).count(), 3);
    /// ```
    pub fn max_weight(
        mut self,
        limit: u64,
        weigh: impl Fn(&I::Item) -> u64 + Send + 'static,
    ) -> Self {
        self.hold_rules.max_weight(limit, weigh);
        self
    }

    /// Pauses, resumes, narrows and widens the run by `control`; see [`Control`].
    ///
    /// Called twice, the last control counts. Workers look at it before each item, which costs less than a nanosecond.
    ///
    /// ```
    /// use futureproof::{Control, prelude::*};
    ///
    /// let control = Control::new();
    /// control.set_concurrency(2);
    /// let run = (0..100u32).futureproof(Raise).num_threads(8).control(&control);
    /// assert_eq!(run.map_tasks(infallible(|n: &u32| n + 1)).count(), 100);
    /// ```
    pub fn control(mut self, control: &Control) -> Self {
        self.options.control = Some(control.clone());
        self
    }

    /// Runs the tasks on `pool` instead of a pool of the run's own.
    ///
    /// `pool` is an `Arc<rayon::ThreadPool>`, which several runs can share, a [`&Scope`](crate::Scope), to borrow
    /// from the stack, or anything else that implements [`Spawn`].
    ///
    /// If the consumer itself is on a thread of that pool, it runs tasks while it waits, and pulls nothing meanwhile.
    /// So its tasks must not wait for items that are still to be pulled. Tasks that wait for each other across pools
    /// deadlock: one on pool `a` waits for one on pool `b`, which waits for one on `a`.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::sync::Arc;
    ///
    /// let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build()?);
    /// for _ in 0..3 {
    ///     let run = (0..10u32).futureproof(Raise).on(Arc::clone(&pool));
    ///     assert_eq!(run.map_tasks(infallible(|n: &u32| n + 1)).count(), 10);
    /// }
    /// # Ok::<(), rayon::ThreadPoolBuildError>(())
    /// ```
    pub fn on<'s, Q: Spawn<'s>>(self, pool: Q) -> Futureproof<I, Q, S> {
        Futureproof {
            source: self.source,
            ops: self.ops,
            options: self.options,
            spawner: Spawner {
                pool,
                own: None,
                num_threads: self.spawner.num_threads,
                name: self.spawner.name,
            },
            stages: self.stages,
            hold_rules: self.hold_rules,
        }
    }

    /// Ends the current stage; later options are for the next one.
    fn add_stage<F, L>(
        mut self,
        f: F,
        list: impl FnOnce(S, Spawner<P>, F) -> L,
    ) -> Futureproof<I, OwnPool, L> {
        if self.options.name.is_empty() {
            self.options.name.clone_from(&self.spawner.name);
        }
        Futureproof {
            source: self.source,
            ops: self.ops,
            options: self.options,
            spawner: Spawner::of_own_pool(),
            stages: list(self.stages, self.spawner, f),
            hold_rules: self.hold_rules,
        }
    }

    /// Builds the run. `dispatch` builds its stages from the state that they share.
    fn into_run<'a, T, E: fmt::Debug>(
        mut self,
        dispatch: impl FnOnce(
            S,
            Spawner<P>,
            &Arc<Shared<I::Item, T, E>>,
        ) -> Box<dyn Dispatch<I::Item, T, E> + 'a>,
    ) -> MapTasks<'a, I, T, E>
    where
        I::Item: 'a,
    {
        // The run is named after its last stage, or else after the first stage that has a name.
        if !self.spawner.name.is_empty() {
            self.options.name.clone_from(&self.spawner.name);
        }
        let (stages, spawner) = (self.stages, self.spawner);
        let workers = Workers::new(&self.options, |shared| dispatch(stages, spawner, shared));
        let mut driver = Driver::new(self.source, self.ops, self.options, workers);
        driver.hold_by(self.hold_rules);
        MapTasks::new(driver)
    }
}

impl<I: Iterator, P> Futureproof<I, P> {
    /// Runs `f` on the items as a stage with its own threads, and passes its outputs on.
    ///
    /// They go to the next stage, or to the function of [`map_tasks`](Self::map_tasks). Use stages where one part of
    /// the work waits and another computes: each gets as many threads as it needs.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// # fn fetch(url: &String) -> Result<String, String> { Ok(format!("page of {url}")) }
    /// # fn parse(page: &String) -> Result<usize, String> { Ok(page.len()) }
    /// let urls = vec!["/a".to_owned(), "/b".to_owned()];
    /// let run = urls.into_iter().futureproof(Raise).num_threads(32).stage(fetch).num_threads(2).map_tasks(parse);
    /// for task in run {
    ///     let task = task.unwrap();
    ///     assert_eq!((task.input.len(), task.output), (2, 10)); // the url, and what `parse` made of its page
    /// }
    /// ```
    ///
    /// **Options.** [`num_threads`](Self::num_threads), [`on`](Self::on) and [`name`](Self::name) apply to the stage
    /// that they precede. Everything else applies to the whole run: there is one policy, one window and one index.
    /// The threads of a stage without a name are called `stage-0-0`, `stage-0-1` and so on.
    ///
    /// **Failures.** A failure in any stage is the item's failure. The item skips the later stages, and a policy that
    /// stops the run stops all stages. [`TaskError::stage`](crate::TaskError::stage) says where the item failed. A
    /// [retry](MapTasks::retry) starts again at the first stage.
    ///
    /// **Types.** Each function borrows the output of the stage before: `stage` and `map_tasks` take `&V`,
    /// `map_tasks_mut` takes `&mut V`, and `map_tasks_owned` takes `V`. Any function for `map_tasks`, such as one
    /// made by [`with_state`](crate::with_state), works in a stage too. All stages have the same error type. If yours
    /// differ, convert them to `anyhow::Error` or to an error of your own (`.map_err(Mine::Fetch)`).
    ///
    /// **Pools.** If two stages share a pool, each [`on`](Self::on) the same one, the thread that finishes an item in
    /// one stage goes on with it in the next.
    ///
    /// To borrow from the stack, give each stage its own [`scope`](crate::scope), the first stage's inside the next
    /// one's. A stage that borrows this way cannot follow a stage that has a pool of its own.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let words = ["one".to_owned(), "three".to_owned()];
    /// let limit = 4;
    /// let long = futureproof::scope(2, |parsers| {
    ///     futureproof::scope(8, |fetchers| {
    ///         let length = |word: &&String| Ok::<_, String>(word.len());
    ///         let run = words.iter().futureproof(Raise).on(fetchers).stage(length);
    ///         run.on(parsers).map_tasks(|len: &usize| Ok(*len > limit)).flatten().filter(|task| task.output).count()
    ///     })
    /// });
    /// assert_eq!(long, 1);
    /// ```
    ///
    /// [`Report::stages`](crate::Report::stages) shows which stage limits the run.
    pub fn stage<V, E, F>(self, f: F) -> Futureproof<I, OwnPool, Stages<(), P, F, V>>
    where
        F: Fn(&I::Item) -> Result<V, E>,
    {
        self.add_stage(f, Stages::new)
    }

    /// Runs `f` on the items in parallel, and returns the finished tasks as an iterator.
    ///
    /// Nothing happens before the first `next`. The source is pulled on the thread that calls `next`, so it need not
    /// be `Send`.
    ///
    /// `f` borrows its item, and the item comes back with the task. A task fails if `f` returns an `Err` or panics;
    /// an error value inside an `Ok` is not a failure. To change the items, use
    /// [`map_tasks_mut`](Self::map_tasks_mut); to consume them, use [`map_tasks_owned`](Self::map_tasks_owned).
    ///
    /// If your function takes `&str` or `&Path` and the items are `String` or `PathBuf`, wrap it in a closure:
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// fn parse(text: &str) -> Result<u32, std::num::ParseIntError> {
    ///     text.parse()
    /// }
    ///
    /// let texts = vec!["1".to_owned(), "2".to_owned()];
    /// let run = texts.into_iter().futureproof(Raise).map_tasks(|text: &String| parse(text));
    /// assert_eq!(run.map(|task| task.unwrap().output).sum::<u32>(), 3);
    /// ```
    ///
    /// The items can be closures:
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// // Closures of different types.
    /// type Job = Box<dyn Fn() -> Result<usize, std::num::ParseIntError> + Send>;
    /// let jobs: Vec<Job> = vec![Box::new(|| Ok(42)), Box::new(|| "7".parse())];
    /// let run = jobs.into_iter().futureproof(Raise).map_tasks(|job| job());
    /// assert_eq!(run.map(|task| task.unwrap().output).sum::<usize>(), 49);
    /// ```
    ///
    /// If `f` uses rayon itself, it must not hold a lock during that which another task takes. A worker that waits
    /// inside rayon runs another task meanwhile, on the same stack; if that task takes the lock, both wait forever.
    /// This crate holds no lock while `f` runs.
    ///
    /// The values that `f` captures must be `Send` and `Sync`, and `'static` unless the run is [`on`](Self::on) a [scope](crate::scope):
    ///
    /// ```compile_fail,E0277
    /// use futureproof::prelude::*;
    ///
    /// let shared = std::rc::Rc::new(1);
    /// (0..10).futureproof(Raise).map_tasks(infallible(move |n: &i32| n + *shared)).count();
    /// ```
    pub fn map_tasks<'a, 's, T, E, F>(self, f: F) -> MapTasks<'a, I, T, E>
    where
        's: 'a,
        P: Spawn<'s> + 'a,
        F: Fn(&I::Item) -> Result<T, E> + Send + Sync + 's,
        I::Item: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        self.map_tasks_mut(move |item: &mut I::Item| f(item))
    }

    /// Runs a function that changes its items, like [`map_tasks`](Self::map_tasks) otherwise.
    ///
    /// The items come back changed. If a call fails or panics, its item comes back as the call left it, and a
    /// [retry](MapTasks::retry) gets it in that state. The cost is the same as that of `map_tasks`.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let buffers = vec![vec![3, 1, 2], vec![9, 8], vec![]];
    /// let run = buffers.into_iter().futureproof(Raise).ordered().map_tasks_mut(|buffer: &mut Vec<u32>| {
    ///     buffer.sort();
    ///     buffer.first().copied().ok_or("empty")
    /// });
    /// let sorted: Vec<Vec<u32>> = run.flatten().map(|task| task.input).collect();
    /// assert_eq!(sorted, [vec![1, 2, 3], vec![8, 9]]);
    /// ```
    pub fn map_tasks_mut<'a, 's, T, E, F>(self, f: F) -> MapTasks<'a, I, T, E>
    where
        's: 'a,
        P: Spawn<'s> + 'a,
        F: Fn(&mut I::Item) -> Result<T, E> + Send + Sync + 's,
        I::Item: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        self.into_run(|(), spawner, shared| Box::new(Stage::new(spawner, f, Arc::clone(shared))))
    }

    /// Runs a function that consumes its items, like [`map_tasks`](Self::map_tasks) otherwise.
    ///
    /// Use it for closures that can be called once, files to read to their end, or values to send on.
    ///
    /// The [`input`](crate::Task::input) of a task is `None` once the function has taken it, and `Some` if the
    /// function was never called. Since the item is gone, [`retry`](MapTasks::retry) has no effect here: the first
    /// error stands, and a warning is logged.
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// type Job = Box<dyn FnOnce() -> Result<usize, std::num::ParseIntError> + Send>;
    /// let text = String::from("7");
    /// let jobs: Vec<Job> = vec![Box::new(|| Ok(42)), Box::new(move || text.parse())];
    /// let run = jobs.into_iter().futureproof(Raise).map_tasks_owned(|job: Job| job());
    /// assert_eq!(run.map(|task| task.unwrap().output).sum::<usize>(), 49);
    /// ```
    pub fn map_tasks_owned<'a, 's, T, E, F>(self, f: F) -> MapTasks<'a, Owned<I>, T, E>
    where
        's: 'a,
        P: Spawn<'s> + 'a,
        F: Fn(I::Item) -> Result<T, E> + Send + Sync + 's,
        I::Item: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        let source = Owned::new(self.source, self.ops);
        let mut run = Futureproof {
            ops: source.ops(),
            source,
            options: self.options,
            spawner: self.spawner,
            stages: (),
            hold_rules: HoldRules::none(),
        };
        run.options.takes_items = true;
        let mut run = run.map_tasks_mut(move |item: &mut Option<I::Item>| match item.take() {
            Some(item) => f(item),
            // An item that was taken is never retried.
            None => unreachable!("an item is given to its function once"),
        });
        run.driver.hold_by(self.hold_rules.of_owned());
        run
    }
}

#[expect(
    private_bounds,
    reason = "what a list of stages is to the engine is the engine's"
)]
impl<I: Iterator, P, L, Q, G, U> Futureproof<I, P, Stages<L, Q, G, U>> {
    #[expect(clippy::type_complexity, reason = "the list of stages is the type")]
    /// Adds another [stage](Futureproof::stage); `f` borrows the output of the stage before.
    pub fn stage<V, E, F>(
        self,
        f: F,
    ) -> Futureproof<I, OwnPool, Stages<Stages<L, Q, G, U>, P, F, V>>
    where
        F: Fn(&U) -> Result<V, E>,
    {
        self.add_stage(f, Stages::new)
    }

    /// Runs `f` on the outputs of the last [stage](Futureproof::stage), like [`Futureproof::map_tasks`].
    pub fn map_tasks<'a, 's, 'l, T, E, F>(self, f: F) -> MapTasks<'a, I, T, E>
    where
        's: 'l + 'a,
        'l: 'a,
        Stages<L, Q, G, U>: StageList<'l, 'a, I::Item, U, E, T>,
        P: Spawn<'s> + Send + Sync + 'l,
        F: Fn(&U) -> Result<T, E> + Send + Sync + 's,
        I::Item: Send + 's,
        U: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        self.map_tasks_mut(move |value: &mut U| f(value))
    }

    /// Runs `f` on the outputs of the last [stage](Futureproof::stage), like [`Futureproof::map_tasks_mut`].
    ///
    /// The changes that `f` makes are not returned: the task's input is the source's item.
    pub fn map_tasks_mut<'a, 's, 'l, T, E, F>(self, f: F) -> MapTasks<'a, I, T, E>
    where
        's: 'l + 'a,
        'l: 'a,
        Stages<L, Q, G, U>: StageList<'l, 'a, I::Item, U, E, T>,
        P: Spawn<'s> + Send + Sync + 'l,
        F: Fn(&mut U) -> Result<T, E> + Send + Sync + 's,
        I::Item: Send + 's,
        U: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        self.run_stages(
            move |staged: &mut Staged<I::Item, U>| match staged.value() {
                Some(value) => f(value),
                None => unreachable!("the stage before has made it"),
            },
        )
    }

    /// Runs `f` on the outputs of the last [stage](Futureproof::stage), like [`Futureproof::map_tasks_owned`].
    ///
    /// The task's input is the source's item. A [retry](MapTasks::retry) runs the stages again, so it works here.
    pub fn map_tasks_owned<'a, 's, 'l, T, E, F>(self, f: F) -> MapTasks<'a, I, T, E>
    where
        's: 'l + 'a,
        'l: 'a,
        Stages<L, Q, G, U>: StageList<'l, 'a, I::Item, U, E, T>,
        P: Spawn<'s> + Send + Sync + 'l,
        F: Fn(U) -> Result<T, E> + Send + Sync + 's,
        I::Item: Send + 's,
        U: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        self.run_stages(
            move |staged: &mut Staged<I::Item, U>| match staged.value().take() {
                Some(value) => f(value),
                None => unreachable!("the stage before has made it"),
            },
        )
    }

    fn run_stages<'a, 's, 'l, T, E, F>(self, last: F) -> MapTasks<'a, I, T, E>
    where
        's: 'l + 'a,
        'l: 'a,
        Stages<L, Q, G, U>: StageList<'l, 'a, I::Item, U, E, T>,
        P: Spawn<'s> + Send + Sync + 'l,
        F: Fn(&mut Staged<I::Item, U>) -> Result<T, E> + Send + Sync + 's,
        I::Item: Send + 's,
        U: Send + 's,
        T: Send + 's,
        E: fmt::Debug + Send + 's,
    {
        self.into_run(|stages, spawner, shared| {
            Box::new(Pipeline::new(stages, spawner, last, shared))
        })
    }
}

impl<I: Iterator, P, S> fmt::Debug for Futureproof<I, P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        f.debug_struct("Futureproof")
            .field("policy", &options.policy)
            .field("num_threads", &self.spawner.num_threads)
            .field("max_in_flight", &options.max_in_flight)
            .field("chunk_size", &options.chunk_size)
            .field("ordered", &options.ordered)
            .field("monitor_interval", &options.interval)
            .field("name", &self.spawner.name)
            .field("deadline", &options.deadline)
            .finish_non_exhaustive()
    }
}
