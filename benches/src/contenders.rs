//! Ways to run a function on the items of an iterator in parallel, each on the same job: the numbers from 0
//! on go through the function, the sum of its results comes back to the calling thread.
//!
//! This crate starts its threads in each run, as its users do; rayon's and tokio's are started beforehand.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futureproof::{Control, Task, prelude::*};
use futures::StreamExt;
use orx_parallel::{IterIntoParIter, Par};
use par_iter_sync::IntoParallelIteratorSync;
use pariter::IteratorExt;
use rayon::prelude::*;

use crate::work::{Work, plain_loop};

/// What contenders need that is made once.
pub struct Rig {
    pub threads: usize,
    pool: Arc<rayon::ThreadPool>,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    pub fn new(threads: usize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(threads)
            .build();
        Self {
            threads,
            pool: Arc::new(pool.build().expect("threads can be had")),
            runtime: runtime.expect("threads can be had"),
        }
    }

    /// As many threads as there are cores.
    pub fn of_this_machine() -> Self {
        Self::new(thread::available_parallelism().map_or(2, usize::from))
    }
}

/// One way to do it.
pub struct Contender<W> {
    pub name: &'static str,
    /// About what it costs an item, in nanoseconds: decides on how many items it is measured.
    pub cost: u64,
    /// Whether it gives a stream of results, so that it does the same job as this crate.
    pub is_stream: bool,
    pub run: fn(&Rig, u64, W) -> u64,
}

impl<W> Contender<W> {
    /// Whether it is another crate's.
    pub fn is_peer(&self) -> bool {
        !self.name.starts_with("futureproof")
            && ![PLAIN, SPLIT, BARE, BACK, LAID].contains(&self.name)
    }

    /// Whether it runs on as many threads as it is told.
    pub fn has_threads(&self) -> bool {
        self.name != PLAIN && self.name != SYNC
    }
}

pub const PLAIN: &str = "plain loop";
pub const SPLIT: &str = "static split (the limit)";
pub const BARE: &str = "bare chunks down a channel (a stream's limit)";
pub const BACK: &str = "bare chunks there and back, with their items";
pub const LAID: &str = "the same, 128 items at a time, laid down for others";
pub const OURS: &str = "futureproof, `for`";
pub const FOLD: &str = "futureproof, `fold`";
pub const KEPT: &str = "futureproof, tasks kept, 1,024 at a time";
pub const ORDERED: &str = "futureproof, `ordered`";
pub const STATE: &str = "futureproof, `with_state`";
pub const RETRY: &str = "futureproof, `retry` armed";
/// Whatever can watch a run does; with the feature `watched`, so does a bar.
pub const WATCHED: &str = "futureproof, `on_progress`, `report`";
pub const WARN: &str = "futureproof, `warn_after`";
pub const CONTROL: &str = "futureproof, `control`";
pub const STREAM: &str = "futureproof, `into_stream`";
pub const POOL: &str = "futureproof, `on` a pool that runs";
pub const BRIDGE: &str = "rayon `par_bridge`, reduced";
pub const CHANNEL: &str = "rayon `par_bridge` into a channel";
pub const PARITER: &str = "pariter, tuned";
pub const SYNC: &str = "par-iter-sync";

/// Everybody.
pub fn all<W: Work>() -> Vec<Contender<W>> {
    let of = |name, cost, is_stream, run| Contender {
        name,
        cost,
        is_stream,
        run,
    };
    vec![
        of(PLAIN, 1, false, |_, items, work| plain_loop(items, work)),
        of(SPLIT, 1, false, static_split),
        of(BARE, 3, true, bare_chunks),
        of(BACK, 3, true, there_and_back),
        of(LAID, 3, true, laid_down),
        of(OURS, 3, true, by_for),
        of(FOLD, 3, true, by_fold),
        of(KEPT, 4, true, kept),
        of(ORDERED, 4, true, ordered),
        of(STATE, 6, true, stateful),
        of(RETRY, 4, true, with_retry),
        of(WATCHED, 4, true, watched),
        of(WARN, 6, true, with_warning),
        of(CONTROL, 4, true, controlled),
        of(STREAM, 20, true, as_stream),
        of(POOL, 4, true, on_pool),
        of("rayon `par_iter` of a `Vec`", 4, false, par_iter),
        of(BRIDGE, 50, false, par_bridge),
        of(CHANNEL, 80, true, par_bridge_channel),
        of("orx-parallel, reduced", 3, false, orx),
        of("pariter", 200, true, pariter_default),
        of(PARITER, 200, true, pariter_tuned),
        of(SYNC, 200, true, par_iter_sync),
        of(
            "`buffer_unordered`, `spawn_blocking`",
            3_000,
            true,
            buffer_unordered,
        ),
    ]
}

fn static_split<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let threads = rig.threads as u64;
    thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                let range = items * part / threads..items * (part + 1) / threads;
                scope.spawn(move || {
                    range.fold(0u64, |sum, item| {
                        sum.wrapping_add(work(std::hint::black_box(item)))
                    })
                })
            })
            .collect();
        let sums = parts.into_iter().map(|part| part.join().expect("no panic"));
        sums.fold(0, u64::wrapping_add)
    })
}

/// A static split whose results come back in chunks of some 100 µs: what a stream of results costs at least.
fn bare_chunks<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let threads = rig.threads as u64;
    let (sender, chunks) = crossbeam_channel::bounded(128);
    thread::scope(|scope| {
        for part in 0..threads {
            let mut range = items * part / threads..items * (part + 1) / threads;
            let sender = sender.clone();
            scope.spawn(move || {
                let mut size = 1;
                while !range.is_empty() {
                    let start = Instant::now();
                    let chunk: Vec<u64> = range.by_ref().take(size).map(work).collect();
                    if start.elapsed() < Duration::from_micros(50) {
                        size = (2 * size).min(8192);
                    }
                    sender.send(chunk).expect("the receiver lives");
                }
            });
        }
        drop(sender);
        chunks.iter().flatten().fold(0, u64::wrapping_add)
    })
}

/// The caller pulls the items, and gets them back with their results: what a stream of tasks costs at least. Buffers go round,
/// as many and as large as this crate's. After each pull it is asked whether a worker waits, and before each call whether it may
/// start; but nothing is shared, and no panic is caught.
fn there_and_back<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    go_round(rig, items, move |inputs, mut outputs, is_stopped| {
        run_all(&inputs, &mut outputs, is_stopped, work);
        (inputs, outputs)
    })
}

/// A worker begins 128 items at a time, and lays down what it has run where others can take it under a lock. So a task that
/// hangs holds up no other than those. The price is that each item is moved twice more, and each result once.
fn laid_down<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut spare = Vec::new();
    go_round(rig, items, move |inputs, outputs, is_stopped| {
        let mut waiting = inputs.into_iter();
        let finished = Mutex::new((mem::take(&mut spare), outputs));
        let (mut begun, mut results) = (Vec::with_capacity(128), Vec::with_capacity(128));
        loop {
            let mut finished = finished.lock().expect("no panic");
            finished.0.append(&mut begun);
            finished.1.append(&mut results);
            begun.extend(waiting.by_ref().take(128));
            drop(finished);
            if begun.is_empty() {
                break;
            }
            run_all(&begun, &mut results, is_stopped, work);
        }
        // Collected in place.
        spare = waiting.collect();
        finished.into_inner().expect("no panic")
    })
}

/// Items and results.
type Round = (Vec<u64>, Vec<u64>);

#[inline]
fn run_all(inputs: &[u64], outputs: &mut Vec<u64>, is_stopped: &AtomicBool, work: impl Work) {
    outputs.reserve(inputs.len());
    for item in inputs {
        if is_stopped.load(Ordering::Relaxed) {
            break;
        }
        outputs.push(work(*item));
    }
}

fn go_round(
    rig: &Rig,
    items: u64,
    run: impl FnMut(Vec<u64>, Vec<u64>, &AtomicBool) -> Round + Clone + Send,
) -> u64 {
    let (to_workers, submitted) = crossbeam_channel::unbounded::<Round>();
    let (to_caller, finished) = crossbeam_channel::unbounded();
    let (is_stopped, is_starved) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..rig.threads {
            let (submitted, to_caller) = (submitted.clone(), to_caller.clone());
            let (mut run, is_stopped) = (run.clone(), &is_stopped);
            scope.spawn(move || {
                for (inputs, outputs) in submitted {
                    let start = Instant::now();
                    let (inputs, outputs) = run(inputs, outputs, is_stopped);
                    let finished = (inputs, outputs, start.elapsed());
                    to_caller.send(finished).expect("the receiver lives");
                }
            });
        }
        let (mut source, mut sum) = (0..items, 0u64);
        let (mut size, mut in_flight) = (1, 0);
        let mut spare: Vec<Round> = Vec::new();
        loop {
            while in_flight < 8 * rig.threads && !source.is_empty() {
                let (mut inputs, outputs) = spare.pop().unwrap_or_default();
                inputs.reserve(size);
                for item in source.by_ref() {
                    if inputs.len() < inputs.capacity() {
                        inputs.push(item);
                    }
                    if inputs.len() >= size || is_starved.load(Ordering::Relaxed) {
                        break;
                    }
                }
                in_flight += 1;
                to_workers.send((inputs, outputs)).expect("they live");
            }
            if in_flight == 0 {
                drop(to_workers);
                return sum;
            }
            let (mut inputs, mut outputs, time) = finished.recv().expect("a worker lives");
            in_flight -= 1;
            if time < Duration::from_micros(50) {
                size = (2 * inputs.len()).clamp(size, 8192);
            }
            let tasks = inputs.drain(..).zip(outputs.drain(..));
            sum = tasks.fold(sum, |sum, (_, output)| sum.wrapping_add(output));
            spare.push((inputs, outputs));
        }
    })
}

fn by_for<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut sum = 0u64;
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    for task in run.map_tasks(infallible(move |item: &u64| work(*item))) {
        sum = sum.wrapping_add(task.expect("it cannot fail").output);
    }
    sum
}

fn by_fold<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    let run = run.map_tasks(infallible(move |item: &u64| work(*item)));
    run.fold(0, |sum, task| {
        sum.wrapping_add(task.expect("it cannot fail").output)
    })
}

/// Whoever keeps the tasks moves them as a whole.
fn kept<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    const MOST: usize = 1024;
    let add = |sum: u64, task: Task<u64, u64>| sum.wrapping_add(task.output);
    let (mut kept, mut sum) = (Vec::with_capacity(MOST), 0);
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    for task in run.map_tasks(infallible(move |item: &u64| work(*item))) {
        kept.push(task.expect("it cannot fail"));
        if kept.len() == MOST {
            sum = kept.drain(..).fold(sum, add);
        }
    }
    kept.into_iter().fold(sum, add)
}

fn ordered<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut sum = 0u64;
    let run = (0..items)
        .futureproof(Raise)
        .num_threads(rig.threads)
        .ordered();
    for task in run.map_tasks(infallible(move |item: &u64| work(*item))) {
        sum = sum.wrapping_add(task.expect("it cannot fail").output);
    }
    sum
}

fn stateful<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut sum = 0u64;
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    let count = move |calls: &mut u64, item: &u64| {
        *calls += 1;
        Ok::<_, ()>(work(*item))
    };
    for task in run.map_tasks(with_state(|| 0, count)) {
        sum = sum.wrapping_add(task.expect("it cannot fail").output);
    }
    sum
}

fn with_retry<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut sum = 0u64;
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    let run = run.map_tasks(infallible(move |item: &u64| work(*item)));
    for task in run.retry(|| [Duration::from_millis(10); 3]) {
        sum = sum.wrapping_add(task.expect("it cannot fail").output);
    }
    sum
}

fn watched<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut sum = 0u64;
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    let run = run.monitor_interval(Duration::from_millis(10));
    let run = run.on_progress(|now| {
        std::hint::black_box(now.rate());
    });
    #[cfg(feature = "watched")]
    let run = run.progress_bar(indicatif::ProgressBar::hidden());
    let mut run = run.map_tasks(infallible(move |item: &u64| work(*item)));
    for task in run.by_ref() {
        sum = sum.wrapping_add(task.expect("it cannot fail").output);
    }
    std::hint::black_box(run.report());
    sum
}

fn with_warning<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut sum = 0u64;
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    let run = run.warn_after(Duration::from_secs(60));
    for task in run.map_tasks(infallible(move |item: &u64| work(*item))) {
        sum = sum.wrapping_add(task.expect("it cannot fail").output);
    }
    sum
}

fn controlled<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut sum = 0u64;
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    let run = run.control(&Control::new());
    for task in run.map_tasks(infallible(move |item: &u64| work(*item))) {
        sum = sum.wrapping_add(task.expect("it cannot fail").output);
    }
    sum
}

fn as_stream<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let run = (0..items).futureproof(Raise).num_threads(rig.threads);
    let mut stream = run
        .map_tasks(infallible(move |item: &u64| work(*item)))
        .into_stream();
    rig.runtime.block_on(async move {
        let mut sum = 0u64;
        while let Some(task) = stream.next().await {
            sum = sum.wrapping_add(task.expect("it cannot fail").output);
        }
        sum
    })
}

fn on_pool<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let mut sum = 0u64;
    let run = (0..items).futureproof(Raise).on(Arc::clone(&rig.pool));
    for task in run.map_tasks(infallible(move |item: &u64| work(*item))) {
        sum = sum.wrapping_add(task.expect("it cannot fail").output);
    }
    sum
}

fn par_iter<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let items: Vec<u64> = (0..items).collect();
    let sum = || {
        items
            .par_iter()
            .map(|item| work(*item))
            .reduce(|| 0, u64::wrapping_add)
    };
    rig.pool.install(sum)
}

fn par_bridge<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let sum = || {
        (0..items)
            .par_bridge()
            .map(work)
            .reduce(|| 0, u64::wrapping_add)
    };
    rig.pool.install(sum)
}

fn par_bridge_channel<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let (sender, results) = crossbeam_channel::bounded(1024);
    rig.pool.spawn(move || {
        let send = |sender: &mut crossbeam_channel::Sender<u64>, item| {
            sender.send(work(item)).expect("the receiver lives")
        };
        (0..items).par_bridge().for_each_with(sender, send);
    });
    results.iter().fold(0, u64::wrapping_add)
}

fn orx<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let run = (0..items).iter_into_par().num_threads(rig.threads);
    run.map(work).reduce(u64::wrapping_add).unwrap_or(0)
}

fn pariter_default<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let threads = rig.threads;
    let run = (0..items).parallel_map_custom(|options| options.threads(threads), work);
    run.fold(0, u64::wrapping_add)
}

fn pariter_tuned<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let threads = rig.threads;
    let run =
        (0..items).parallel_map_custom(|options| options.threads(threads).buffer_size(1024), work);
    run.fold(0, u64::wrapping_add)
}

/// It takes as many threads as there are cores.
fn par_iter_sync<W: Work>(_: &Rig, items: u64, work: W) -> u64 {
    let run = (0..items).into_par_iter_sync(move |item| Ok(work(item)));
    run.fold(0, u64::wrapping_add)
}

fn buffer_unordered<W: Work>(rig: &Rig, items: u64, work: W) -> u64 {
    let calls = (0..items).map(|item| rig.runtime.spawn_blocking(move || work(item)));
    let mut stream = futures::stream::iter(calls).buffer_unordered(8 * rig.threads);
    rig.runtime.block_on(async move {
        let mut sum = 0u64;
        while let Some(result) = stream.next().await {
            sum = sum.wrapping_add(result.expect("no panic"));
        }
        sum
    })
}
