//! What a journal costs: the same run with it and without, in turns, on one disk; and what it costs to start again.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use futureproof::journal::Journal;
use futureproof::prelude::*;

/// How often each run is repeated; the median counts.
const ROUNDS: usize = 5;
const THREADS: usize = 2;

/// A path of 40 bytes; in the order of `n`, or in none.
fn path(n: u64, in_order: bool) -> PathBuf {
    let n = match in_order {
        true => n,
        false => n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    };
    PathBuf::from(format!("/srv/photos/2024/{n:020}.jpg"))
}

fn spin(time: Duration) -> impl Fn(&PathBuf) -> Result<usize, String> + Send + Sync {
    move |path| {
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
        Ok(path.as_os_str().len())
    }
}

/// How long a task takes in a run over new items, in µs.
fn without(items: u64, in_order: bool, time: Duration) -> f64 {
    let start = Instant::now();
    let run = (0..items).map(|n| path(n, in_order)).futureproof(Raise);
    let run = run.num_threads(THREADS).map_tasks(spin(time));
    assert_eq!(black_box(run.flatten().count() as u64), items);
    start.elapsed().as_secs_f64() * 1e6 / items as f64
}

/// The same with a journal, from its opening to the last commit.
fn with(file: &Path, items: u64, in_order: bool, time: Duration) -> f64 {
    let _ = fs::remove_file(file);
    let start = Instant::now();
    let journal = Journal::open(file).unwrap();
    let items_left = journal.pending((0..items).map(|n| path(n, in_order)), PathBuf::clone);
    let run = items_left.futureproof(Raise).num_threads(THREADS);
    let run = run.map_tasks(journal.record(PathBuf::clone, spin(time)));
    assert_eq!(black_box(run.flatten().count() as u64), items);
    drop(journal);
    start.elapsed().as_secs_f64() * 1e6 / items as f64
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let dir = env::temp_dir().join(format!("futureproof-bench-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("bench.journal");

    println!(
        "| task, µs | keys | items | without, µs a task | with | costs |\n|---|---|---|---|---|---|"
    );
    for (time, items) in [(0, 200_000), (10, 100_000), (100, 20_000)] {
        for in_order in [true, false] {
            let (mut off, mut on) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                off.push(without(items, in_order, Duration::from_micros(time)));
                on.push(with(&file, items, in_order, Duration::from_micros(time)));
            }
            let (off, on) = (median(off), median(on));
            let keys = if in_order { "in order" } else { "random" };
            println!(
                "| {time} | {keys} | {items} | {off:.2} | {on:.2} | {:.2} |",
                on - off
            );
        }
    }

    let items = 1_000_000;
    with(&file, items, false, Duration::ZERO);
    let size = fs::metadata(&file).unwrap().len();
    let start = Instant::now();
    let journal = Journal::open(&file).unwrap();
    println!(
        "a journal of {items} done items, {} MB: opened in {:?}",
        size / 1_000_000,
        start.elapsed()
    );
    let start = Instant::now();
    let left = journal.pending((0..items).map(|n| path(n, false)), PathBuf::clone);
    assert_eq!(left.count(), 0);
    println!(
        "all skipped: {:.2} µs an item",
        start.elapsed().as_secs_f64() * 1e6 / items as f64
    );
    drop(journal);
    fs::remove_dir_all(dir).unwrap();
}
