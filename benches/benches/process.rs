//! What a child process costs: a round trip, throughput, a fresh child, a kill.
//! `python3 benches/process_pool.py` measures Python's pools on the same jobs.

use std::thread;
use std::time::{Duration, Instant};

use futureproof::prelude::*;
use futureproof::process::{Error, Isolate, Isolated, isolate};
use futureproof_benches::stats::Spread;
use serde_bytes::ByteBuf;

/// How long each is measured.
const SPAN: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_millis(100);

fn add(n: &u64) -> Result<u64, u64> {
    Ok(n + 1)
}

fn echo(bytes: &ByteBuf) -> Result<ByteBuf, u64> {
    Ok(bytes.clone())
}

fn hang(n: &u64) -> Result<u64, u64> {
    match n {
        0 => Ok(0),
        _ => loop {
            thread::park();
        },
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procspawn::init();
    let adds = || -> Isolate<u64, u64, u64> { isolate("add", add) };
    let echoes = || -> Isolate<ByteBuf, ByteBuf, u64> { isolate("echo", echo) };
    let hangs = || -> Isolate<u64, u64, u64> { isolate("hang", hang) };
    drop((adds(), echoes(), hangs()));

    println!("| what | p50 | p99 | a second |\n|---|---|---|---|");
    let adder = adds().start()?;
    round_trips("round trip, one caller", &adder, &1);
    let adder = adds().timeout(Duration::from_secs(5)).start()?;
    round_trips("the same with a time limit", &adder, &1);
    throughput("a run on two threads", adds().start()?, 1);
    two_callers("two callers", &adds().start()?);
    let echoer = echoes().start()?;
    round_trips(
        "1 KiB there and back",
        &echoer,
        &ByteBuf::from(vec![7; 1 << 10]),
    );
    throughput(
        "the same, a run on two threads",
        echoes().start()?,
        ByteBuf::from(vec![7; 1 << 10]),
    );
    round_trips(
        "1 MiB there and back",
        &echoer,
        &ByteBuf::from(vec![7; 1 << 20]),
    );
    throughput(
        "the same, a run on two threads",
        echoes().start()?,
        ByteBuf::from(vec![7; 1 << 20]),
    );
    let fresh = adds().max_tasks(1).start()?;
    round_trips("a fresh child for each", &fresh, &1);
    peer(1, 1);
    peer(2, 1);
    peer(1, 1 << 10);
    peer(2, 1 << 10);
    peer(2, 1 << 20);
    kills(&hangs().timeout(LIMIT).start()?);
    Ok(())
}

fn row(name: &str, spread: &mut Spread, rate: f64) {
    let [half, most] = [0.5, 0.99].map(|share| spread.percentile(share));
    println!("| {name} | {half:.1?} | {most:.1?} | {rate:.0} |");
}

/// Calls `f` for a while.
fn repeat(name: &str, mut f: impl FnMut()) {
    f();
    let mut spread = Spread::new();
    let start = Instant::now();
    let mut count = 0.0;
    while start.elapsed() < SPAN {
        let call = Instant::now();
        f();
        spread.add(call.elapsed());
        count += 1.0;
    }
    row(name, &mut spread, count / start.elapsed().as_secs_f64());
}

fn round_trips<I, T, E>(name: &str, function: &Isolated<I, T, E>, input: &I)
where
    I: serde::Serialize,
    T: serde::de::DeserializeOwned,
    E: serde::de::DeserializeOwned,
{
    repeat(name, || assert!(function.call(input).is_ok()));
}

fn two_callers(name: &str, function: &Isolated<u64, u64, u64>) {
    let serve = || {
        assert!(function.call(&1).is_ok());
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < SPAN {
            assert!(function.call(&1).is_ok());
            count += 1;
        }
        count
    };
    let count: u64 = thread::scope(|scope| {
        let threads = [scope.spawn(serve), scope.spawn(serve)];
        threads
            .map(|thread| thread.join().expect("no panic"))
            .iter()
            .sum()
    });
    println!("| {name} | | | {:.0} |", count as f64 / SPAN.as_secs_f64());
}

fn throughput<I, T, E>(name: &str, function: Isolated<I, T, E>, input: I)
where
    I: serde::Serialize + Clone + Send + 'static,
    T: serde::de::DeserializeOwned + Send + 'static,
    E: serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let source = std::iter::repeat(input);
    let mut run = source
        .futureproof(Raise)
        .num_threads(2)
        .map_tasks(function.into_fn());
    // The children start.
    assert!(run.next().is_some());
    let start = Instant::now();
    let mut count = 0.0;
    while start.elapsed() < SPAN {
        assert!(run.next().is_some_and(|task| task.is_ok()));
        count += 1.0;
    }
    println!(
        "| {name} | | | {:.0} |",
        count / start.elapsed().as_secs_f64()
    );
}

/// procspawn's pool, with so many children. Two callers' worth of calls are under way, as a call is asked for before
/// its answer is waited for.
fn peer(children: usize, size: usize) {
    let pool = procspawn::Pool::new(children).expect("a pool");
    let input = ByteBuf::from(vec![7; size]);
    let ask = || procspawn::spawn!(in pool, (input.clone() => bytes) || bytes);
    let name = format!("procspawn, {size} bytes, rounds of {children}");
    repeat(&name, || {
        let calls: Vec<_> = (0..children).map(|_| ask()).collect();
        for call in calls {
            assert!(call.join().is_ok());
        }
    });
}

/// From the limit to the error.
fn kills(function: &Isolated<u64, u64, u64>) {
    let mut spread = Spread::new();
    for _ in 0..20 {
        assert!(function.call(&0).is_ok());
        let start = Instant::now();
        let error = function.call(&1);
        assert_eq!(error, Err(Error::TimedOut { after: LIMIT }));
        spread.add(start.elapsed() - LIMIT);
    }
    let [half, most] = [0.5, 1.0].map(|share| spread.percentile(share));
    println!("| from a limit to the killed task's error (p50, max) | {half:.1?} | {most:.1?} | |");
}
