//! The way in: an iterator becomes a run, option by option.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::cancel::CancellationToken;
use crate::engine::driver::Driver;
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

/// Adds [`futureproof`](Self::futureproof) to every iterator.
pub trait FutureproofIterator: Iterator + Sized {
    /// Starts to describe a parallel run over this iterator's items; `policy` decides what a failure
    /// does to it. Nothing runs before the first `next` of what
    /// [`map_tasks`](Futureproof::map_tasks) returns.
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

    /// Short for [`futureproof`](Self::futureproof) and its step [`read_ahead`](Futureproof::read_ahead):
    /// `iter.read_ahead(64).futureproof(Raise)`.
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
    /// As [`FutureproofIterator::futureproof`], followed by [`Futureproof::read_ahead`].
    pub fn futureproof(self, policy: ErrorPolicy) -> Futureproof<ReadAhead<I>> {
        let (source, limit) = self.into_parts();
        source.futureproof(policy).read_ahead(limit)
    }
}

impl<T> QueueSource<T> {
    /// As [`FutureproofIterator::futureproof`], for a run that ends when the queue is empty and nothing is in flight.
    pub fn futureproof(self, policy: ErrorPolicy) -> Futureproof<QueueItems<T>> {
        self.into_items().futureproof(policy)
    }
}

impl<T> QueueItems<T> {
    /// As [`QueueSource::futureproof`]: for what is left in a [`Remainder`](crate::Remainder).
    pub fn futureproof(self, policy: ErrorPolicy) -> Futureproof<Self> {
        Futureproof::new(self, Some(Self::OPS), policy)
    }
}

/// The options of a run, each with a default that is right for most.
///
/// Made by [`FutureproofIterator::futureproof`], finished by [`map_tasks`](Self::map_tasks). No value of
/// an option is an error; 0 means "chosen for you" for every count.
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
}

impl<I: Iterator> Futureproof<I> {
    /// `ops`: for a source that may have nothing to give for a while.
    fn new(source: I, ops: Option<SourceOps<I>>, policy: ErrorPolicy) -> Self {
        Self {
            source,
            ops,
            options: Options::new(policy),
            spawner: Spawner::of_own_pool(),
            stages: (),
        }
    }
}

impl<I: Iterator, P, S> Futureproof<I, P, S> {
    /// How many threads the run's own pool has. 0, the default, is rayon's default: the environment's
    /// `RAYON_NUM_THREADS`, or one per core. For tasks that wait rather than compute, ask for more.
    ///
    /// A pool that is given with [`on`](Self::on) brings its own width.
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

    /// How many items may be pulled and not yet delivered, at most: queued, running, waiting for a
    /// retry or finished. This is what bounds memory.
    ///
    /// 0, the default, follows the cost of a task: eight slow tasks a thread, or four milliseconds of
    /// quick ones, as far as that is not more than some 64 Ki items. A run of several [stages](Self::stage) counts the threads of all.
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

    /// Pulls the source on its own thread, up to `limit` items ahead, so that a source that blocks does not delay
    /// results. 0 means 64; more than 65,536 are not read ahead.
    ///
    /// For a source such as a socket or a directory walk over a network. Without this, a run pulls its source on the
    /// consumer's thread, and delivers nothing while that blocks.
    ///
    /// A [`Queue`](crate::Queue) never blocks, so it is not read ahead.
    ///
    /// What was read ahead is held besides [`max_in_flight`](Self::max_in_flight). Leaving the run never waits for
    /// the source: its thread ends with the pull that is under way. A source that can look at
    /// [`CancellationToken::current`] in its `next` is told when nobody wants its items any more.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::sync::mpsc;
    ///
    /// let (sender, receiver) = mpsc::channel();
    /// sender.send(1).unwrap();
    /// // The channel stays open: a pull of the second item blocks.
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
        }
    }

    /// How many items travel together to a worker and back; 65,536 at most.
    ///
    /// 0, the default, adapts it while the run goes on: 1 where a task or a pull takes long, more for
    /// tiny ones. A fixed size serves tests, and tasks whose cost swings widely.
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
    /// Tasks that wait for their turn count as in flight, so a slow one stops new ones from starting
    /// once the window is full. Under [`Raise`](ErrorPolicy::Raise), every task before the failed one
    /// is delivered first.
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

    /// How often the monitor tells, through [`log`] at `info!` with target `futureproof`, how the run is
    /// going. The default is every 2 s; the first and the last line come in any case.
    ///
    /// With [`Duration::ZERO`] there is no line and no [`on_progress`](Self::on_progress). There is no thread
    /// either, nor where nobody would see the lines, unless [`warn_after`](Self::warn_after), a progress bar or
    /// the feature `metrics` needs it.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// # use std::time::Duration;
    /// let run = (0..100).futureproof(Raise).monitor_interval(Duration::from_secs(60)).map_tasks(infallible(|n: &u32| *n));
    /// assert_eq!(run.count(), 100);
    /// ```
    pub fn monitor_interval(mut self, every: Duration) -> Self {
        self.options.interval = every;
        self
    }

    /// Has the monitor call `f` at every [interval](Self::monitor_interval), and once at the end.
    ///
    /// It is called on the monitor's thread, so it costs the run nothing. If it panics, nothing else is
    /// lost.
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

    /// Warns, through [`log`] at `warn!`, of every task that has been running for `duration`, by its index and its
    /// worker's name, and again each time that has doubled.
    ///
    /// A call that runs cannot be stopped; this tells which one it is. With it, a worker notes the index of
    /// each task, which costs a few nanoseconds.
    ///
    /// The monitor looks four times in that time, so a task is told of when it has run for something between
    /// `duration` and 5/4 of it; one that is over before that look is not. The time that is told is exact for the
    /// first task of a [chunk](Self::chunk_size), and that is every task where all are slow; for one that others
    /// came before in its chunk, it is up to a quarter of `duration` too short.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// # use std::time::Duration;
    /// let run = (0..100).futureproof(Raise).warn_after(Duration::from_secs(30)).map_tasks(infallible(|n: &u32| n + 1));
    /// assert_eq!(run.count(), 100);
    /// // WARN futureproof: task 17 has been running for 30.1s, on futureproof-3
    /// ```
    pub fn warn_after(mut self, duration: Duration) -> Self {
        self.options.warn_after = Some(duration);
        self
    }

    /// How many items there will be, for the time left that the monitor tells, [`Snapshot::eta`](crate::Snapshot::eta) and a progress
    /// bar: where the source does not know, as behind a `filter`. Nothing else depends on it, so an estimate will do.
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

    /// Names the run, in its log lines and its threads: `NAME-0`, `NAME-1` … The default is
    /// `futureproof`.
    ///
    /// ```
    /// # use futureproof::prelude::*;
    /// let name = |_: &()| std::thread::current().name().map(str::to_owned);
    /// let mut run = [()].into_iter().futureproof(Raise).num_threads(1).name("thumbnails").map_tasks(infallible(name));
    /// assert_eq!(run.next().unwrap().unwrap().output.as_deref(), Some("thumbnails-0"));
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        // A thread cannot be named with a NUL.
        self.spawner.name = name.into().replace('\0', "");
        self
    }

    /// Stops the run when `token` is cancelled: no further call starts, and a consumer that is blocked
    /// in `next` gets `None` at once. See [`CancellationToken`]. Whoever collects the tasks asks [`ending`](MapTasks::ending), or
    /// takes [`checked`](MapTasks::checked), where it is an error that a run was cancelled.
    ///
    /// It can be called several times: each of the tokens stops the run. A token hands its deadline on: with
    /// [`CancellationToken::current`] inside a task, an inner run ends when the outer one's deadline comes.
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

    /// Stops the run, as a cancel does, when this time has passed since the first `next`. The iterator then just ends: whoever
    /// collects it asks [`ending`](MapTasks::ending), or takes [`checked`](MapTasks::checked), where that is an error.
    ///
    /// With a deadline, workers read the clock before each item, which costs some 20 ns.
    ///
    /// ```
    /// # use futureproof::{Ending, prelude::*};
    /// # use std::time::Duration;
    /// let mut run = (0u64..).futureproof(Raise).deadline(Duration::from_millis(20)).map_tasks(infallible(|n: &u64| n + 1));
    /// assert!(run.by_ref().count() > 0);
    /// assert_eq!(run.ending(), Some(Ending::DeadlineExceeded));
    /// ```
    pub fn deadline(mut self, after: Duration) -> Self {
        self.options.deadline = Some(after);
        self
    }

    /// Starts at most `calls` tasks in each `per`, evenly spread: for services that ask for it.
    ///
    /// Further attempts of [`retry`](MapTasks::retry) count as well. Tasks that wait for their time hold no worker; a cancel, a deadline or
    /// a drop does not wait for them. After a pause there is no burst to catch up: a run makes up for five milliseconds at most,
    /// so that timers that are late do not slow it down. 0 calls, or a `per` of 0, is no limit.
    ///
    /// In a run of several [stages](Self::stage), it limits how often the first stage starts.
    ///
    /// Each run has a limit of its own. For one that several runs share, call a limiter of the `governor` crate in the function.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use std::time::{Duration, Instant};
    ///
    /// let start = Instant::now();
    /// let run = (0..5).futureproof(Raise).rate_limit(100, Duration::from_secs(1));
    /// assert_eq!(run.map_tasks(infallible(|n: &u32| n + 1)).count(), 5);
    /// assert!(start.elapsed() >= Duration::from_millis(40)); // one at once, and four at 10 ms each
    /// ```
    pub fn rate_limit(mut self, calls: u32, per: Duration) -> Self {
        self.options.pace = Pace::new(calls, per);
        self
    }

    /// Runs the tasks elsewhere than on a pool of the run's own: on an `Arc<rayon::ThreadPool>` that many
    /// runs share, on a [`&Scope`](crate::Scope) to borrow from the stack, or on anything that is
    /// [`Spawn`].
    ///
    /// A consumer that is itself on a thread of that pool works as well while it waits, and pulls nothing meanwhile. So its
    /// tasks must not wait for items that are still to be pulled. If a task on pool `a` waits for one on pool `b`, which waits for one on
    /// `a`, they wait for ever.
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
                warm_up: None,
                num_threads: self.spawner.num_threads,
                name: self.spawner.name,
            },
            stages: self.stages,
        }
    }

    /// What was described so far is a stage; what follows describes the next.
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
        }
    }

    /// Makes the run. `dispatch` makes its stages, for what they are to share.
    fn into_run<'a, T, E: fmt::Debug>(
        mut self,
        dispatch: impl FnOnce(
            S,
            Spawner<P>,
            &Arc<Shared<I::Item, T, E>>,
        ) -> Box<dyn Dispatch<I::Item, T, E> + 'a>,
    ) -> MapTasks<'a, I, T, E> {
        // The last stage's name is the run's, or else that of the first that has one.
        if !self.spawner.name.is_empty() {
            self.options.name.clone_from(&self.spawner.name);
        }
        let (stages, spawner) = (self.stages, self.spawner);
        let workers = Workers::new(&self.options, |shared| dispatch(stages, spawner, shared));
        MapTasks::new(Driver::new(self.source, self.ops, self.options, workers))
    }
}

impl<I: Iterator, P> Futureproof<I, P> {
    /// Runs `f` on the items as a stage of its own, on threads of its own, and what it makes goes on to what follows: to the
    /// next stage, or to the function of [`map_tasks`](Self::map_tasks).
    ///
    /// For work of which one part waits and the other computes: each has as many threads as it needs.
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
    /// [`num_threads`](Self::num_threads), [`on`](Self::on) and [`name`](Self::name) before a stage are that stage's; all else is the
    /// run's: one policy, one window, one index. A failure in any stage is the item's failure. It goes past the later stages, and a
    /// policy that stops the run stops all of them. [`TaskError::stage`](crate::TaskError::stage) tells where it was. Another
    /// [attempt](MapTasks::retry) starts at the first stage.
    ///
    /// What a stage makes is lent to the next: `&V` for `stage` and `map_tasks`, `&mut V` for `map_tasks_mut`; `map_tasks_owned` takes it.
    /// Functions for `map_tasks`, of [`with_state`](crate::with_state) say, are functions for stages as well.
    ///
    /// Stages that share a pool, each [`on`](Self::on) the same one, run one after the other: the thread that has finished an item in one
    /// stage goes on with it in the next.
    ///
    /// All stages have the same type of error: where theirs differ, let each end with `anyhow::Error`, or with an error of your own
    /// (`.map_err(Mine::Fetch)`). The threads of a stage without a name are called `stage-0-0`, `stage-0-1` and so on.
    ///
    /// To borrow from the stack, each stage has a [`scope`](crate::scope) of its own, the first stage's inside the next one's. (A stage that is
    /// lent something for a scope cannot follow one with a pool of its own.)
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// let words = ["one".to_owned(), "three".to_owned()];
    /// let limit = 4;
    /// let long = futureproof::scope(2, |parsers| {
    ///     futureproof::scope(8, |fetchers| {
    ///         let run = words.iter().futureproof(Raise).on(fetchers).stage(|word: &&String| Ok::<_, String>(word.len()));
    ///         run.on(parsers).map_tasks(|len: &usize| Ok(*len > limit)).flatten().filter(|task| task.output).count()
    ///     })
    /// });
    /// assert_eq!(long, 1);
    /// ```
    ///
    /// [`Report::stages`](crate::Report::stages) tells which stage limits the run.
    pub fn stage<V, E, F>(self, f: F) -> Futureproof<I, OwnPool, Stages<(), P, F, V>>
    where
        F: Fn(&I::Item) -> Result<V, E>,
    {
        self.add_stage(f, Stages::new)
    }

    /// Runs `f` on the items in parallel, and gives the finished tasks as an iterator.
    ///
    /// Nothing happens before its first `next`. Items are pulled on the thread that calls `next`, so
    /// the source need not be `Send`.
    ///
    /// `f` borrows its item; the item comes back with the task. What `f` returns as `Err`, and its panics, are
    /// failures; an error value inside an `Ok` is not. To change an item, there is [`map_tasks_mut`](Self::map_tasks_mut), and to
    /// take it, [`map_tasks_owned`](Self::map_tasks_owned). An item may be a closure:
    ///
    /// ```
    /// use futureproof::prelude::*;
    ///
    /// // Closures as items, of different kinds.
    /// type Job = Box<dyn Fn() -> Result<usize, std::num::ParseIntError> + Send>;
    /// let jobs: Vec<Job> = vec![Box::new(|| Ok(42)), Box::new(|| "7".parse())];
    /// let run = jobs.into_iter().futureproof(Raise).map_tasks(|job| job());
    /// assert_eq!(run.map(|task| task.unwrap().output).sum::<usize>(), 49);
    /// ```
    ///
    /// Where `f` uses rayon itself, it must not hold a lock that another task takes while it does so: a
    /// worker that waits inside rayon takes up another task in the meantime, on the same stack, and that
    /// one would wait for the first for ever. No lock of this crate is held while `f` runs.
    ///
    /// What `f` captures must be shareable between threads:
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

    /// As [`map_tasks`](Self::map_tasks), for a function that changes its items: they come back changed. It costs the same.
    ///
    /// What a call that fails or panics has left of its item comes back with the failure. Another
    /// [attempt](MapTasks::retry) gets the item as the one before has left it.
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

    /// As [`map_tasks`](Self::map_tasks), for a function that takes its items: closures that can be called once, files to read
    /// to their end, values to be sent on.
    ///
    /// The [`input`](crate::Task::input) of a task is `None` once the function has had it, and `Some` where it was never called. A
    /// function that has had its item cannot be given it again: with [`retry`](MapTasks::retry), the first error stands, and the log says so
    /// once.
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
        };
        run.options.takes_items = true;
        run.map_tasks_mut(move |item: &mut Option<I::Item>| match item.take() {
            Some(item) => f(item),
            // Nothing that was taken is tried again.
            None => unreachable!("an item is given to its function once"),
        })
    }
}

#[expect(
    private_bounds,
    reason = "what a list of stages is to the engine is the engine's"
)]
impl<I: Iterator, P, L, Q, G, U> Futureproof<I, P, Stages<L, Q, G, U>> {
    #[expect(clippy::type_complexity, reason = "the list of stages is the type")]
    /// One more [stage](Futureproof::stage): `f` is lent what the one before has made.
    pub fn stage<V, E, F>(
        self,
        f: F,
    ) -> Futureproof<I, OwnPool, Stages<Stages<L, Q, G, U>, P, F, V>>
    where
        F: Fn(&U) -> Result<V, E>,
    {
        self.add_stage(f, Stages::new)
    }

    /// As [`Futureproof::map_tasks`], on what the last [stage](Futureproof::stage) has made.
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

    /// As [`Futureproof::map_tasks_mut`], on what the last [stage](Futureproof::stage) has made. What `f` changes of it is
    /// seen by nobody else: the task's input is the source's item.
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

    /// As [`Futureproof::map_tasks_owned`], on what the last [stage](Futureproof::stage) has made. The task's input is the
    /// source's item, and another [attempt](MapTasks::retry) makes it anew.
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
