//! Under `Raise`, no further task starts after the first failure: of 100,000 tasks, of which the
//! 51st fails, only some fifty ever start, and the source is not read to its end either.
//!
//! ```sh
//! cargo run --release --example fail_fast
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use futureproof::prelude::*;

const TOTAL: usize = 100_000;
static STARTED: AtomicUsize = AtomicUsize::new(0);

fn work(n: &usize) -> Result<usize, &'static str> {
    STARTED.fetch_add(1, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(5));
    if *n == 50 {
        Err("out of luck")
    } else {
        Ok(n * 2)
    }
}

fn main() {
    let mut run = (0..TOTAL).futureproof(Raise).num_threads(4).map_tasks(work);
    for task in run.by_ref() {
        if let Err(failure) = task {
            println!("{failure}: {}", failure.error().unwrap_or(&"panicked"));
        }
    }
    // The run is over, and so is every task that had started.
    let started = STARTED.load(Ordering::Relaxed);
    println!("{started} of {TOTAL} tasks were started");
    assert!(started < TOTAL / 100);
}
