//! What a journal costs: the same run with it and without, in turns, on one disk; and what it costs to start again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use futureproof::journal::Journal;
use futureproof::prelude::*;

/// How often each run is repeated; the quickest counts, as others use the machine too.
const ROUNDS: usize = 7;
const THREADS: usize = 2;

/// A path of 40 bytes; in the order of `n`, or in none.
fn path(n: u64, in_order: bool) -> PathBuf {
    let n = match in_order {
        true => n,
        false => n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    };
    PathBuf::from(format!("/srv/photos/2024/{n:020}.jpg"))
}

/// Works for `time`, then fails or not.
fn spin(time: Duration, fails: bool) -> impl Fn(&PathBuf) -> Result<usize, String> + Send + Sync {
    move |path| {
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
        match fails {
            true => Err("no such file".to_owned()),
            false => Ok(path.as_os_str().len()),
        }
    }
}

#[derive(Clone, Copy)]
struct Job {
    items: u64,
    in_order: bool,
    time: Duration,
    fails: bool,
}

impl Job {
    fn paths(self) -> impl Iterator<Item = PathBuf> {
        (0..self.items).map(move |n| path(n, self.in_order))
    }

    /// Runs it, from the opening of the journal, if there is one, to the last commit. Returns the µs a task.
    fn run(self, file: Option<&Path>) -> f64 {
        let _ = file.map(fs::remove_file);
        let start = Instant::now();
        let work = spin(self.time, self.fails);
        let count = match file {
            None => {
                let run = self.paths().futureproof(Ignore).num_threads(THREADS);
                run.map_tasks(work).count()
            }
            Some(file) => {
                let journal = Journal::open(file).unwrap();
                let paths = journal.pending(self.paths(), PathBuf::clone);
                let run = paths.futureproof(Ignore).num_threads(THREADS);
                run.map_tasks(journal.record(PathBuf::clone, work)).count()
            }
        };
        assert_eq!(count as u64, self.items);
        start.elapsed().as_secs_f64() * 1e6 / self.items as f64
    }
}

fn main() {
    let dir = env::temp_dir().join(format!("futureproof-bench-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("bench.journal");

    println!("| task, µs | keys | items | without, µs a task | with | costs |");
    println!("|---|---|---|---|---|---|");
    let works = [
        (0, 200_000, false),
        (10, 50_000, false),
        (100, 10_000, false),
        (0, 100_000, true),
    ];
    for (micros, items, fails) in works {
        for in_order in [true, false] {
            let time = Duration::from_micros(micros);
            let job = Job {
                items,
                in_order,
                time,
                fails,
            };
            let (mut off, mut on) = (f64::MAX, f64::MAX);
            for _ in 0..ROUNDS {
                off = off.min(job.run(None));
                on = on.min(job.run(Some(&file)));
            }
            let keys = if in_order { "in order" } else { "random" };
            let micros = if fails {
                "fails".to_owned()
            } else {
                micros.to_string()
            };
            let costs = on - off;
            println!("| {micros} | {keys} | {items} | {off:.2} | {on:.2} | {costs:.2} |");
        }
    }

    let time = Duration::ZERO;
    let job = Job {
        items: 1_000_000,
        in_order: false,
        time,
        fails: false,
    };
    let items = job.items;
    job.run(Some(&file));
    let size = fs::metadata(&file).unwrap().len();
    let start = Instant::now();
    let journal = Journal::open(&file).unwrap();
    println!(
        "a journal of {items} done items, {} MB: opened in {:?}",
        size / 1_000_000,
        start.elapsed()
    );
    let start = Instant::now();
    let left = journal.pending(job.paths(), PathBuf::clone);
    assert_eq!(left.count(), 0);
    println!(
        "all skipped: {:.2} µs an item",
        start.elapsed().as_secs_f64() * 1e6 / items as f64
    );
    drop(journal);
    fs::remove_dir_all(dir).unwrap();
}
