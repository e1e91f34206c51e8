//! Shapes that jobs have, each beside what does it best: slow sources, streams, small runs, retries, large results, many threads.
//! Prints tables, and the bars for them.
//!
//! `cargo bench -p futureproof-benches --bench shapes`, with the names of some shapes to measure those alone.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use futureproof::prelude::*;
use futureproof_benches::bars::{Bars, MARK};
use futureproof_benches::overhead::duration;
use futureproof_benches::stats::{
    insist_on_near_cores, measured_again, median, paired, side_by_side,
};
use futureproof_benches::work::{steps, steps_for};
use futures::StreamExt;
use pariter::IteratorExt;
use rayon::prelude::*;

const ROUNDS: usize = 9;
const THREADS: usize = 2;
/// How much longer it may take, so that the cores are near to each other.
const PATIENCE: Duration = Duration::from_secs(120);

/// A name, and what measures it.
type Shape = (&'static str, fn(&mut Bars));
type Run<'a> = Box<dyn FnMut() + 'a>;

/// What the compiler must not leave out.
fn take<R>(value: R) {
    black_box(value);
}

fn main() {
    let shapes: [Shape; 7] = [
        ("source", sources),
        ("stream", streams),
        ("small", small_runs),
        ("retry", retries),
        ("large", large_results),
        ("slow", slow_tasks),
        ("wide", many_threads),
    ];
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| !it.starts_with("--"))
        .collect();
    insist_on_near_cores(PATIENCE);
    let mut bars = Bars::default();
    println!("| shape | who | median | beside the first |\n|---|---|--:|--:|");
    for (name, measure) in shapes {
        if wanted.is_empty() || wanted.iter().any(|it| it == name) {
            measure(&mut bars);
        }
    }
    println!("\n{}", measured_again());
    println!("{MARK}\n{}", bars.rows());
}

/// Prints a row for each, per item of `items`; returns how many times the time of the first each takes.
fn compare(shape: &str, items: u64, mut contenders: Vec<(&str, Run<'_>)>) -> Vec<f64> {
    let names: Vec<&str> = contenders.iter().map(|it| it.0).collect();
    // Once unmeasured: threads, buffers, the clock of the processor.
    contenders.iter_mut().for_each(|(_, run)| run());
    let mut runs: Vec<Run<'_>> = contenders.into_iter().map(|it| it.1).collect();
    let rounds = side_by_side(ROUNDS, &mut runs);
    let ratios: Vec<f64> = rounds
        .iter()
        .map(|it| paired(it, &rounds[0], |it, first| it / first))
        .collect();
    for ((name, seconds), ratio) in names.iter().zip(rounds).zip(&ratios) {
        let each = 1e9 * median(seconds) / items as f64;
        println!("| {shape} | {name} | {each:.0} ns | {ratio:.2} |");
    }
    ratios
}

fn pool(threads: usize) -> Arc<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    Arc::new(pool.expect("threads can be had"))
}

fn times(value: f64) -> String {
    format!("{value:.2}")
}

/// The least that it takes to pull items here, and to get the results of a pool back here: jobs of `size` items, so many in flight.
fn by_hand<R: Send + 'static>(
    pool: &rayon::ThreadPool,
    mut source: impl Iterator<Item = u64>,
    (size, most): (usize, usize),
    work: impl Fn(u64) -> R + Copy + Send + 'static,
    consume: impl Fn(R),
) {
    let (sender, finished) = crossbeam_channel::unbounded();
    let mut in_flight = 0;
    loop {
        while in_flight < most {
            let chunk: Vec<u64> = source.by_ref().take(size).collect();
            if chunk.is_empty() {
                break;
            }
            let sender = sender.clone();
            pool.spawn(move || {
                let results = chunk.into_iter().map(work);
                take(sender.send(results.collect::<Vec<R>>()));
            });
            in_flight += 1;
        }
        if in_flight == 0 {
            return;
        }
        let results = finished.recv().expect("a sender lives");
        results.into_iter().for_each(&consume);
        in_flight -= 1;
    }
}

/// Items that take a while to come.
fn sources(bars: &mut Bars) {
    for (pull, work, most) in [
        (1_000, 1_000, 1.10),
        (3_000, 3_000, 1.05),
        (10_000, 10_000, 1.05),
        (100, 1_000, 1.1),
        (1_000, 100, 1.1),
    ] {
        let items = 30_000_000 / pull.max(work);
        let (pull_steps, work_steps) = (steps_for(pull), steps_for(work));
        let source = move || (0..items).inspect(move |n| take(steps(*n, pull_steps)));
        let work_on = move |n: u64| steps(n, work_steps);
        let shape = format!("{} a pull, {} a task", duration(pull), duration(work));
        let rig = pool(THREADS);
        // The slower of the two halves: the source alone, or the tasks shared out.
        let contenders: Vec<(&str, Run<'_>)> = vec![
            (
                "the slower half alone",
                if pull * THREADS as u64 >= work {
                    Box::new(move || source().for_each(take))
                } else {
                    Box::new(|| {
                        let half = |part| (0..items / 2).map(|n| work_on(n + part)).sum::<u64>();
                        rig.install(|| take(rayon::join(|| half(0), || half(1))));
                    })
                },
            ),
            (
                "futureproof",
                Box::new(move || {
                    let run = source().futureproof(Raise).num_threads(THREADS);
                    let run = run.map_tasks(infallible(move |n: &u64| work_on(*n)));
                    run.for_each(take);
                }),
            ),
            (
                "pariter, a buffer of 1,024",
                Box::new(move || {
                    let run = source().parallel_map_custom(
                        |options| options.threads(THREADS).buffer_size(1_024),
                        work_on,
                    );
                    run.for_each(take);
                }),
            ),
            (
                "par_bridge into a channel",
                Box::new(|| {
                    let (sender, results) = crossbeam_channel::bounded(1_024);
                    rig.in_place_scope(|scope| {
                        scope.spawn(move |_| {
                            let all = source().par_bridge();
                            all.for_each_with(sender, |to, n| take(to.send(work_on(n))));
                        });
                        results.iter().for_each(take);
                    });
                }),
            ),
            (
                "jobs of 50 µs, pulled here, on a pool that runs",
                Box::new(|| {
                    let size = (50_000 / pull.max(work)) as usize;
                    by_hand(&rig, source(), (size, 16), work_on, take);
                }),
            ),
            (
                "pulls and tasks, shared out beforehand",
                Box::new(|| {
                    let half = || {
                        let pulled = (0..items / 2).map(|n| steps(n, pull_steps) | n);
                        take(pulled.map(work_on).sum::<u64>());
                    };
                    rig.install(|| rayon::join(half, half));
                }),
            ),
        ];
        let ratios = compare(&shape, items, contenders);
        let beside = ratios[1] / ratios[2].min(ratios[3]);
        bars.add(
            &shape,
            &format!("≤ {most} of the slower half alone, ≤ 1.02 of the best peer"),
            format!(
                "{:.2}, {beside:.2}; by hand {:.2}, shared out beforehand {:.2}",
                ratios[1], ratios[4], ratios[5]
            ),
            ratios[1] <= most && beside <= 1.02,
        );
    }
}

/// From async code.
fn streams(bars: &mut Bars) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(THREADS)
        .build()
        .expect("threads can be had");
    let runtime = &runtime;
    for nanos in [0, 100, 1_000, 10_000, 100_000] {
        let items = 60_000_000 / u64::max(nanos, 30);
        let count = steps_for(nanos);
        let run = move || {
            let run = (0..items).futureproof(Raise).num_threads(THREADS);
            run.map_tasks(infallible(move |n: &u64| steps(*n, count)))
        };
        let shape = format!("a stream, {} a task", duration(nanos));
        let few = if nanos < 1_000 { items / 20 } else { items };
        let contenders: Vec<(&str, Run<'_>)> = vec![
            ("the iterator", Box::new(move || run().for_each(take))),
            (
                "into_stream",
                Box::new(move || {
                    let mut all = run().into_stream();
                    runtime.block_on(async {
                        while let Some(task) = all.next().await {
                            take(task);
                        }
                    });
                }),
            ),
            (
                "spawn_blocking, buffer_unordered (fewer items where they are tiny)",
                Box::new(move || {
                    let call = move |n| runtime.spawn_blocking(move || steps(n, count));
                    let mut all = futures::stream::iter(0..few).map(call).buffer_unordered(64);
                    runtime.block_on(async {
                        while let Some(result) = all.next().await {
                            take(result);
                        }
                    });
                }),
            ),
        ];
        let mut ratios = compare(&shape, items, contenders);
        ratios[2] *= items as f64 / few as f64;
        // What an empty task costs in nanoseconds is a goal by itself.
        let most = if nanos == 0 { f64::INFINITY } else { 1.25 };
        bars.add(
            &shape,
            if nanos == 0 {
                "ahead of the peer"
            } else {
                "≤ 1.25 of the iterator, ahead of the peer"
            },
            format!(
                "{:.2} of the iterator; the peer {:.2}",
                ratios[1], ratios[2]
            ),
            ratios[1] <= most && ratios[1] < ratios[2],
        );
    }
}

/// Runs that are over soon. A shared pool is a new one in each round: where the system has put its threads decides how quick it is.
fn small_runs(bars: &mut Bars) {
    for (items, nanos, most) in [(100, 1_000, Some(1.0)), (10, 10_000, None)] {
        const RUNS: u64 = 200;
        let count = steps_for(nanos);
        let work = move |n: &u64| steps(*n, count);
        let shape = format!("runs of {items} items of {}", duration(nanos));
        let contenders: Vec<(&str, Run<'_>)> = vec![
            (
                "a plain loop",
                Box::new(move || (0..RUNS * items).for_each(|n| take(work(&n)))),
            ),
            (
                "futureproof, on a shared pool",
                Box::new(|| {
                    let shared = pool(THREADS);
                    for _ in 0..RUNS {
                        let run = (0..items).futureproof(Raise).on(Arc::clone(&shared));
                        let run = run.monitor_interval(Duration::ZERO);
                        run.map_tasks(infallible(work)).for_each(take);
                    }
                }),
            ),
            (
                "par_bridge, summed",
                Box::new(|| {
                    let shared = pool(THREADS);
                    for _ in 0..RUNS {
                        let sum: u64 =
                            shared.install(|| (0..items).par_bridge().map(|n| work(&n) & 1).sum());
                        black_box(sum);
                    }
                }),
            ),
            (
                "two jobs on a shared pool, that share the items beforehand",
                Box::new(|| {
                    let shared = pool(THREADS);
                    for _ in 0..RUNS {
                        shared_out(items, work, |job| shared.spawn(job));
                    }
                }),
            ),
            (
                "jobs of one item on a shared pool, six in flight",
                Box::new(|| {
                    let shared = pool(THREADS);
                    for _ in 0..RUNS {
                        by_hand(&shared, 0..items, (1, 6), move |n| work(&n), take);
                    }
                }),
            ),
            (
                "futureproof, a pool each",
                Box::new(|| {
                    for _ in 0..RUNS {
                        let run = (0..items).futureproof(Raise).num_threads(THREADS);
                        let run = run.monitor_interval(Duration::ZERO);
                        run.map_tasks(infallible(work)).for_each(take);
                    }
                }),
            ),
            (
                "threads each, that share the items beforehand",
                Box::new(|| (0..RUNS).for_each(|_| bare_threads(items, work))),
            ),
            (
                "a rayon pool each, that shares the items beforehand and is joined",
                Box::new(|| (0..RUNS).for_each(|_| bare_pool(items, work))),
            ),
        ];
        let ratios = compare(&shape, items * RUNS, contenders);
        let most_shared = most.unwrap_or(ratios[2]);
        bars.add(
            &format!("{shape}, shared pool, beside a plain loop"),
            &most.map_or("≤ par_bridge".to_owned(), |most| format!("≤ {most}")),
            format!(
                "{:.2}, par_bridge {:.2}, a job each {:.2}, two jobs {:.2}",
                ratios[1], ratios[2], ratios[4], ratios[3]
            ),
            ratios[1] <= most_shared,
        );
        if most.is_some() {
            bars.add(
                &format!("{shape}, a pool each"),
                "≤ 1.6",
                format!(
                    "{:.2}, a rayon pool each {:.2}, threads each {:.2}",
                    ratios[5], ratios[7], ratios[6]
                ),
                ratios[5] <= 1.6,
            );
        }
    }
}

/// The least that a run with threads of its own takes: they start, send what they have, and end.
fn bare_threads(items: u64, work: impl Fn(&u64) -> u64 + Copy + Send + 'static) {
    thread::scope(|scope| shared_out(items, work, |job| drop(scope.spawn(job))));
}

/// The same on a rayon pool, whose threads have ended in the end.
fn bare_pool(items: u64, work: impl Fn(&u64) -> u64 + Copy + Send + 'static) {
    with_bare_pool(THREADS, |pool| {
        shared_out(items, work, |job| pool.spawn(job))
    });
}

/// Builds a rayon pool, and waits for the end of its threads.
fn with_bare_pool(num_threads: usize, run: impl FnOnce(&rayon::ThreadPool)) {
    let mut threads = Vec::new();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .spawn_handler(|thread| {
            threads.push(thread::spawn(|| thread.run()));
            Ok(())
        })
        .build()
        .expect("threads can be had");
    run(&pool);
    drop(pool);
    threads.into_iter().for_each(|it| take(it.join()));
}

/// A job for each thread, which sends all its results at once; takes them.
fn shared_out(
    items: u64,
    work: impl Fn(&u64) -> u64 + Copy + Send + 'static,
    start: impl Fn(Box<dyn FnOnce() + Send>),
) {
    let (sender, results) = crossbeam_channel::unbounded();
    for first in 0..THREADS as u64 {
        let sender = sender.clone();
        start(Box::new(move || {
            let all = (first..items).step_by(THREADS).map(|n| work(&n));
            take(sender.send(all.collect::<Vec<_>>()));
        }));
    }
    drop(sender);
    results.iter().flatten().for_each(take);
}

/// One in ten fails once.
fn retries(bars: &mut Bars) {
    const ITEMS: u64 = 200_000;
    let count = steps_for(50);
    let run = move |one_in: u64| {
        let tried: Arc<Vec<AtomicU64>> =
            Arc::new((0..ITEMS / 64 + 1).map(|_| AtomicU64::new(0)).collect());
        let call = move |n: &u64| {
            black_box(steps(*n, count));
            let bit = 1 << (n % 64);
            let is_first = || tried[(n / 64) as usize].fetch_or(bit, Ordering::Relaxed) & bit == 0;
            if n.is_multiple_of(one_in) && is_first() {
                Err("busy")
            } else {
                Ok(*n)
            }
        };
        let run = (0..ITEMS)
            .futureproof(Raise)
            .num_threads(THREADS)
            .map_tasks(call);
        run.retry(|| [Duration::ZERO]).for_each(take);
    };
    let contenders: Vec<(&str, Run<'_>)> = vec![
        ("none fails", Box::new(move || run(u64::MAX))),
        ("one in ten fails once", Box::new(move || run(10))),
    ];
    let ratios = compare(
        "failures that are tried again, 50 ns a task",
        ITEMS,
        contenders,
    );
    bars.add(
        "one in ten fails once, beside none",
        "≤ 2",
        times(ratios[1]),
        ratios[1] <= 2.0,
    );
}

/// Results that do not fit into a cache when many are in flight.
fn large_results(bars: &mut Bars) {
    const ITEMS: u64 = 4_000;
    let make = |n: u64| vec![n as u8; 64 << 10];
    let rig = pool(THREADS);
    let sum = |bytes: &[u8]| take(bytes.iter().map(|it| u64::from(*it)).sum::<u64>());
    let contenders: Vec<(&str, Run<'_>)> = vec![
        (
            "par_bridge into a channel",
            Box::new(|| {
                let (sender, results) = crossbeam_channel::bounded(THREADS);
                rig.in_place_scope(|scope| {
                    scope.spawn(move |_| {
                        let all = (0..ITEMS).par_bridge();
                        all.for_each_with(sender, |to, n| take(to.send(make(n))));
                    });
                    results.iter().for_each(|bytes| sum(&bytes));
                });
            }),
        ),
        (
            "futureproof",
            Box::new(move || {
                let run = (0..ITEMS).futureproof(Raise).num_threads(THREADS);
                let run = run.map_tasks(infallible(move |n: &u64| make(*n)));
                run.flatten().for_each(|task| sum(&task.output));
            }),
        ),
        (
            "futureproof, 8 in flight",
            Box::new(move || {
                let run = (0..ITEMS).futureproof(Raise).num_threads(THREADS);
                let run = run.max_in_flight(8);
                let run = run.map_tasks(infallible(move |n: &u64| make(*n)));
                run.flatten().for_each(|task| sum(&task.output));
            }),
        ),
        (
            "jobs of one item, pulled here, 8 in flight",
            Box::new(|| by_hand(&rig, 0..ITEMS, (1, 8), make, |bytes| sum(&bytes))),
        ),
        (
            "the consumer alone",
            Box::new(move || {
                let bytes = vec![1; 64 << 10];
                (0..ITEMS).for_each(|_| sum(&bytes));
            }),
        ),
    ];
    let ratios = compare("results of 64 KiB", ITEMS, contenders);
    bars.add(
        "results of 64 KiB, beside par_bridge",
        "≤ 1.0",
        format!(
            "{:.2}, with 8 in flight {:.2}; by hand {:.2}, the consumer alone {:.2}",
            ratios[1], ratios[2], ratios[3], ratios[4]
        ),
        ratios[1] <= 1.0,
    );
}

/// Tasks long enough for nothing to show but what is lost.
fn slow_tasks(bars: &mut Bars) {
    let rig = pool(THREADS);
    for nanos in [100_000, 1_000_000] {
        let items = 200_000_000 / nanos;
        let count = steps_for(nanos);
        let work = move |n: u64| steps(n, count);
        let contenders: Vec<(&str, Run<'_>)> = vec![
            (
                "par_bridge into a channel",
                Box::new(|| {
                    let (sender, results) = crossbeam_channel::unbounded();
                    rig.in_place_scope(|scope| {
                        scope.spawn(move |_| {
                            let all = (0..items).par_bridge();
                            all.for_each_with(sender, |to, n| take(to.send(work(n))));
                        });
                        results.iter().for_each(take);
                    });
                }),
            ),
            (
                "futureproof",
                Box::new(move || {
                    let run = (0..items).futureproof(Raise).num_threads(THREADS);
                    let run = run.map_tasks(infallible(move |n: &u64| work(*n)));
                    run.for_each(take);
                }),
            ),
            (
                "futureproof, on a pool that runs",
                Box::new(|| {
                    let run = (0..items).futureproof(Raise).on(Arc::clone(&rig));
                    let run = run.map_tasks(infallible(move |n: &u64| work(*n)));
                    run.for_each(take);
                }),
            ),
            (
                "threads each, that take turns, into a channel",
                Box::new(move || taking_turns(items, work)),
            ),
        ];
        let shape = format!("{} a task", duration(nanos));
        let ratios = compare(&shape, items, contenders);
        let what = format!("{shape}, beside par_bridge");
        bars.add(
            &what,
            "≤ 1.01",
            format!(
                "{:.3}, on a pool that runs {:.3}, threads each {:.3}",
                ratios[1], ratios[2], ratios[3]
            ),
            ratios[1] <= 1.01,
        );
    }
}

/// The least that a run of slow tasks with threads of its own takes: the thread that is free takes the next one, and sends its
/// result.
fn taking_turns(items: u64, work: impl Fn(u64) -> u64 + Copy + Send) {
    let next = AtomicU64::new(0);
    let (sender, results) = crossbeam_channel::unbounded();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                let turns = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                turns
                    .take_while(|n| *n < items)
                    .for_each(|n| take(sender.send(work(n))));
            });
        }
        drop(sender);
        results.iter().for_each(take);
    });
}

/// More threads than cores.
fn many_threads(bars: &mut Bars) {
    const ITEMS: u64 = 1_000_000;
    let count = steps_for(50);
    let run = move |threads: usize| {
        let run = (0..ITEMS).futureproof(Raise).num_threads(threads);
        let run = run.map_tasks(infallible(move |n: &u64| steps(*n, count)));
        run.for_each(take);
    };
    // Each takes its share, and nothing is handed over: what it costs to start threads, and that they take turns.
    let by_hand = move |threads: u64| {
        thread::scope(|scope| {
            for part in 0..threads {
                scope.spawn(move || {
                    let share = ITEMS * part / threads..ITEMS * (part + 1) / threads;
                    share.for_each(|n| take(steps(n, count)));
                });
            }
        });
    };
    // A rayon pool each, with chunks of some 100 µs, whose results come back.
    let on_rayon = move |threads: usize| {
        let (sender, results) = crossbeam_channel::unbounded();
        with_bare_pool(threads, |pool| {
            for first in (0..ITEMS).step_by(2_000) {
                let sender = sender.clone();
                pool.spawn(move || {
                    let all = (first..first + 2_000).map(|n| steps(n, count));
                    take(sender.send(all.collect::<Vec<_>>()));
                });
            }
            drop(sender);
            results.iter().flatten().for_each(take);
        });
    };
    let contenders: Vec<(&str, Run<'_>)> = vec![
        ("2 threads", Box::new(move || run(2))),
        ("4 threads", Box::new(move || run(4))),
        ("16 threads", Box::new(move || run(16))),
        ("64 threads", Box::new(move || run(64))),
        ("2 bare threads", Box::new(move || by_hand(2))),
        ("4 bare threads", Box::new(move || by_hand(4))),
        ("16 bare threads", Box::new(move || by_hand(16))),
        ("64 bare threads", Box::new(move || by_hand(64))),
        ("2 threads of rayon's", Box::new(|| on_rayon(2))),
        ("4 threads of rayon's", Box::new(|| on_rayon(4))),
        ("16 threads of rayon's", Box::new(|| on_rayon(16))),
        ("64 threads of rayon's", Box::new(|| on_rayon(64))),
    ];
    let ratios = compare("50 ns a task", ITEMS, contenders);
    let [ours, bare, rayons] = [0, 4, 8].map(|first| &ratios[first..]);
    for (place, (threads, most)) in [(4, 1.05), (16, 1.1), (64, 1.3)].into_iter().enumerate() {
        let ratio = ours[1 + place];
        bars.add(
            &format!("{threads} threads on two cores, beside 2 threads"),
            &format!("≤ {most}"),
            format!(
                "{ratio:.2}, bare threads {:.2}, rayon's {:.2}",
                bare[1 + place] / bare[0],
                rayons[1 + place] / rayons[0]
            ),
            ratio <= most,
        );
    }
}
