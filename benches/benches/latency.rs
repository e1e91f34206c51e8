//! How long it takes until a consumer knows: the first result, a failure, a cancel, any result, and results
//! whose chunk-mate hangs. Prints a table.

use std::thread;
use std::time::{Duration, Instant};

use futureproof::prelude::*;
use futureproof_benches::stats::Spread;
use futureproof_benches::work::{steps, steps_for};
use pariter::IteratorExt;
use rayon::prelude::*;

const ROUNDS: usize = 300;
const THREADS: usize = 2;
/// For how long a task hangs.
const HANG: Duration = Duration::from_secs(2);

fn main() {
    println!("| from … to … | p50 | p99 | max |\n|---|---|---|---|");
    row("cold start to first result", repeat(cold_start));
    row("the same, pariter", repeat(cold_start_pariter));
    row(
        "the same, `par_bridge` into a channel",
        repeat(cold_start_channel),
    );
    row("a failure to the `Err`", repeat(failure));
    row("a cancel to the `None`", repeat(cancel));
    for nanos in [100, 1_000, 10_000, 100_000, 1_000_000] {
        row(
            &format!("a task's end to its delivery, tasks of {nanos} ns"),
            delivery(nanos, None),
        );
    }
    println!(
        "\n| while a task hangs for 2 s, tasks of | delivered later than 5 ms | of | the longest of the others |\n|---|---|---|---|"
    );
    for nanos in [100, 1_000, 10_000, 100_000] {
        let items = 1_000_000_000 / nanos;
        let (late, longest) = delivery(nanos, Some(items / 3)).beyond(Duration::from_millis(5));
        println!("| {nanos} ns | {late} | {items} | {longest:.0?} |");
    }
}

fn row(name: &str, mut spread: Spread) {
    let [half, most, max] = [0.5, 0.99, 1.0].map(|share| spread.percentile(share));
    println!("| {name} | {half:.1?} | {most:.1?} | {max:.1?} |");
}

fn repeat(measure: fn() -> Duration) -> Spread {
    let mut spread = Spread::default();
    for _ in 0..ROUNDS {
        spread.add(measure());
    }
    spread
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

/// While the consumer is blocked in `next`.
fn cancel() -> Duration {
    let token = CancellationToken::new();
    let sleep = infallible(|_: &u64| thread::sleep(Duration::from_millis(3)));
    let mut run = (0u64..)
        .futureproof(Raise)
        .num_threads(THREADS)
        .cancel_on(&token)
        .map_tasks(sleep);
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(1));
        let start = Instant::now();
        token.cancel();
        start
    });
    assert!(run.next().is_none());
    let end = Instant::now();
    end - canceller.join().expect("no panic")
}

/// How long each result waits; the task at `hangs` takes two seconds.
fn delivery(nanos: u64, hangs: Option<u64>) -> Spread {
    let count = steps_for(nanos);
    let items = if hangs.is_some() {
        1_000_000_000
    } else {
        300_000_000
    } / nanos;
    let work = infallible(move |item: &u64| {
        if Some(*item) == hangs {
            thread::sleep(HANG);
        }
        std::hint::black_box(steps(*item, count));
        Instant::now()
    });
    let mut spread = Spread::default();
    for task in (0..items)
        .futureproof(Raise)
        .num_threads(THREADS)
        .map_tasks(work)
    {
        spread.add(task.expect("it cannot fail").output.elapsed());
    }
    spread
}

fn steps_for_10_us() -> u64 {
    static COUNT: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *COUNT.get_or_init(|| steps_for(10_000))
}
