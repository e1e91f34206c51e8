//! How long it takes until a consumer knows: the first result, a failure, a cancel, any result, and results
//! whose chunk-mate hangs. Prints tables, and the bars for them.

use std::thread;
use std::time::{Duration, Instant};

use futureproof::prelude::*;
use futureproof_benches::bars::{Bars, MARK};
use futureproof_benches::overhead::duration;
use futureproof_benches::stats::Spread;
use futureproof_benches::work::{steps, steps_for};
use pariter::IteratorExt;
use rayon::prelude::*;

const ROUNDS: usize = 300;
const THREADS: usize = 2;
/// As much work as a delivery is watched for, in nanoseconds.
const WATCHED: u64 = 300_000_000;
/// For how long a task hangs.
const HANG: Duration = Duration::from_secs(2);
/// A result that takes longer to its consumer is late.
const LATE: Duration = Duration::from_millis(5);
/// As many may be late as a hanging task may have in its grain.
const FEW: usize = 64;

fn main() {
    let mut bars = Bars::default();
    println!("| from … to … | p50 | p99 | max |\n|---|---|---|---|");
    cold_starts(&mut bars);
    stops(&mut bars);
    for nanos in [100, 1_000, 10_000, 100_000, 1_000_000] {
        let name = format!("a task's end to its delivery, {}", duration(nanos));
        row(&name, &mut delivery(nanos, WATCHED / nanos, None));
    }
    for nanos in [10_000, 1_000_000] {
        let name = format!("the same in pariter, in order, {}", duration(nanos));
        row(&name, &mut delivery_pariter(nanos, WATCHED / nanos));
    }
    hangs(&mut bars);
    println!("{MARK}\n{}", bars.rows());
}

/// In turns, and in each turn in another order: who comes after a pool whose threads still end is worse off.
fn cold_starts(bars: &mut Bars) {
    let ways: [(&str, Way); 5] = [
        ("cold start to first result", cold_start),
        ("the same, pariter", cold_start_pariter),
        ("the same, `par_bridge` into a channel", cold_start_channel),
        (
            "the floor: two bare threads are started, one answers",
            bare_threads,
        ),
        (
            "the floor: a rayon pool of two is built and answers",
            bare_pool,
        ),
    ];
    let mut spreads = ways.map(|_| Spread::new());
    for round in 0..ROUNDS {
        // As five is a prime, each step goes through all.
        let step = 1 + round % (ways.len() - 1);
        for turn in 0..ways.len() {
            let next = (round + turn * step) % ways.len();
            spreads[next].add(ways[next].1());
        }
    }
    for ((name, _), spread) in ways.iter().zip(&mut spreads) {
        row(name, spread);
    }
    let [ours, pariter, _, threads, pool] = spreads.map(|mut spread| spread.percentile(0.5));
    bars.add(
        "cold start to first result, p50",
        "≤ pariter's",
        format!(
            "{ours:.1?}, pariter's {pariter:.1?}, two bare threads {threads:.1?}, a rayon pool {pool:.1?}"
        ),
        ours <= pariter,
    );
}

fn bare_threads() -> Duration {
    let start = Instant::now();
    let (sender, result) = crossbeam_channel::bounded(THREADS);
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let sender = sender.clone();
            thread::spawn(move || sender.send(()))
        })
        .collect();
    assert!(result.recv().is_ok());
    let elapsed = start.elapsed();
    threads
        .into_iter()
        .for_each(|it| assert!(it.join().is_ok()));
    elapsed
}

fn bare_pool() -> Duration {
    let start = Instant::now();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build()
        .expect("threads can be had");
    let (sender, result) = crossbeam_channel::bounded(1);
    pool.spawn(move || assert!(sender.send(()).is_ok()));
    assert!(result.recv().is_ok());
    start.elapsed()
}

type Way = fn() -> Duration;

fn stops(bars: &mut Bars) {
    let ways: [(&str, Way); 3] = [
        ("a failure to the `Err`", failure),
        ("a cancel to the `None`, in a blocked `next`", cancel),
        ("a cancel to the `None`, among tasks of 10 µs", cancel_busy),
    ];
    for (name, measure) in ways {
        let mut spread = Spread::new();
        (0..ROUNDS).for_each(|_| spread.add(measure()));
        row(name, &mut spread);
        let most = spread.percentile(0.99);
        let bar = Duration::from_micros(200);
        let name = format!("{name}, p99");
        bars.add(&name, "≤ 200 µs", format!("{most:.1?}"), most <= bar);
    }
}

/// Each beside the same without a hang, which shows how late results are by the machine's doing alone.
fn hangs(bars: &mut Bars) {
    println!(
        "\n| one task hangs for 2 s, tasks of | results | later than 5 ms | than 1 s | max | without a hang: later than 5 ms | max |\n|---|---|---|---|---|---|---|"
    );
    for nanos in [100, 1_000, 10_000, 100_000] {
        let items = 1_000_000_000 / nanos;
        let mut calm = delivery(nanos, items, None);
        let mut hung = delivery(nanos, items, Some(items / 3));
        let late = hung.beyond(LATE);
        println!(
            "| {} | {items} | {late} | {} | {:.1?} | {} | {:.1?} |",
            duration(nanos),
            hung.beyond(HANG / 2),
            hung.percentile(1.0),
            calm.beyond(LATE),
            calm.percentile(1.0),
        );
        bars.add(
            &format!(
                "{}: later than 5 ms while a chunk-mate hangs",
                duration(nanos)
            ),
            &format!("≤ {FEW} of {items}"),
            format!(
                "{late}, {} of them as long as the hang; {} without a hang",
                hung.beyond(HANG / 2),
                calm.beyond(LATE)
            ),
            late <= FEW,
        );
    }
}

fn row(name: &str, spread: &mut Spread) {
    let [half, most, max] = [0.5, 0.99, 1.0].map(|share| spread.percentile(share));
    println!("| {name} | {half:.1?} | {most:.1?} | {max:.1?} |");
}

fn cold_start() -> Duration {
    let start = Instant::now();
    let mut run = (0..10u64)
        .futureproof(Raise)
        .num_threads(THREADS)
        .map_tasks(infallible(|item: &u64| *item));
    let first = run.next();
    let elapsed = start.elapsed();
    assert!(first.is_some_and(|task| task.is_ok()));
    elapsed
}

fn cold_start_pariter() -> Duration {
    let start = Instant::now();
    let mut run = (0..10u64).parallel_map_custom(|options| options.threads(THREADS), |item| item);
    assert!(run.next().is_some());
    start.elapsed()
}

fn cold_start_channel() -> Duration {
    let start = Instant::now();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build()
        .expect("threads can be had");
    let (sender, results) = crossbeam_channel::bounded(1024);
    pool.spawn(move || {
        (0..10u64)
            .par_bridge()
            .for_each_with(sender, |sender, item| {
                let _ = sender.send(item);
            })
    });
    assert!(results.recv().is_ok());
    start.elapsed()
}

/// Among tasks of 10 µs; the error is the moment when it happened.
fn failure() -> Duration {
    let count = steps_for_10_us();
    let work = move |item: &u64| match item {
        500 => Err(Instant::now()),
        item => Ok(steps(*item, count)),
    };
    let mut run = (0u64..)
        .futureproof(Raise)
        .num_threads(THREADS)
        .map_tasks(work);
    let error = run.find_map(Result::err).expect("one task fails");
    error.error().expect("it does not panic").elapsed()
}

/// While the consumer is blocked in `next`: no task ends before the gate is opened.
fn cancel() -> Duration {
    let token = CancellationToken::new();
    let (gate, shut) = crossbeam_channel::bounded::<()>(0);
    let wait = infallible(move |_: &u64| shut.recv().is_err());
    let mut run = (0u64..)
        .futureproof(Raise)
        .num_threads(THREADS)
        .cancel_on(&token)
        .map_tasks(wait);
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(1));
        let start = Instant::now();
        token.cancel();
        start
    });
    assert!(run.next().is_none());
    let end = Instant::now();
    drop(gate);
    end - canceller.join().expect("no panic")
}

/// Among tasks of 10 µs, of which one cancels.
fn cancel_busy() -> Duration {
    let count = steps_for_10_us();
    let token = CancellationToken::new();
    let (stop, (sender, moment)) = (token.clone(), crossbeam_channel::bounded(1));
    let work = infallible(move |item: &u64| {
        if *item == 500 {
            sender.send(Instant::now()).expect("the receiver lives");
            stop.cancel();
        }
        steps(*item, count)
    });
    let mut run = (0u64..)
        .futureproof(Raise)
        .num_threads(THREADS)
        .cancel_on(&token)
        .map_tasks(work);
    run.by_ref().for_each(drop);
    let end = Instant::now();
    end - moment.recv().expect("one task cancels")
}

/// How long each result waits; the task at `hangs` takes two seconds.
fn delivery(nanos: u64, items: u64, hangs: Option<u64>) -> Spread {
    let count = steps_for(nanos);
    let work = infallible(move |item: &u64| {
        if Some(*item) == hangs {
            thread::sleep(HANG);
        }
        std::hint::black_box(steps(*item, count));
        Instant::now()
    });
    let mut spread = Spread::of(items);
    for task in (0..items)
        .futureproof(Raise)
        .num_threads(THREADS)
        .map_tasks(work)
    {
        spread.add(task.expect("it cannot fail").output.elapsed());
    }
    spread
}

fn delivery_pariter(nanos: u64, items: u64) -> Spread {
    let count = steps_for(nanos);
    let work = move |item| {
        std::hint::black_box(steps(item, count));
        Instant::now()
    };
    let mut spread = Spread::new();
    for end in (0..items).parallel_map_custom(|options| options.threads(THREADS), work) {
        spread.add(end.elapsed());
    }
    spread
}

fn steps_for_10_us() -> u64 {
    static COUNT: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *COUNT.get_or_init(|| steps_for(10_000))
}
