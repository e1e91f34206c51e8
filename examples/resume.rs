//! Goes on after a failure without losing an item or doing one twice: a run that stopped hands back
//! what it still held, and a second run, with the function mended, does the rest. All of it is in memory: the example
//! `journal` goes on after its process was killed.
//!
//! ```sh
//! cargo run --release --example resume
//! ```

use std::thread;
use std::time::Duration;

use futureproof::prelude::*;

fn broken(n: &u32) -> Result<u32, &'static str> {
    thread::sleep(Duration::from_millis(2));
    if *n == 42 {
        Err("cannot do 42")
    } else {
        Ok(n * n)
    }
}

fn mended(n: &u32) -> u32 {
    n * n
}

fn main() {
    let mut squares = Vec::new();
    let mut again = Vec::new();

    let mut run = (0..100).futureproof(Raise).num_threads(4).map_tasks(broken);
    for task in run.by_ref() {
        match task {
            Ok(task) => squares.push((task.input, task.output)),
            Err(failure) => {
                println!("{failure}: {}", failure.error().unwrap_or(&"panicked"));
                again.push(failure.into_input());
            }
        }
    }
    println!("{} tasks were delivered before that", squares.len());

    let remainder = run.into_remainder();
    println!(
        "left: {} finished, {} unprocessed, {} still in the source",
        remainder.finished.len(),
        remainder.unprocessed.len(),
        remainder.source.len(),
    );
    for task in remainder.finished {
        match task {
            Ok(task) => squares.push((task.input, task.output)),
            Err(failure) => again.push(failure.into_input()),
        }
    }

    let unprocessed = remainder.unprocessed.into_iter().map(|(_, n)| n);
    let rest = again.into_iter().chain(unprocessed).chain(remainder.source);
    let run = rest
        .futureproof(Raise)
        .num_threads(4)
        .map_tasks(infallible(mended));
    squares.extend(run.flatten().map(|task| (task.input, task.output)));

    squares.sort_unstable();
    assert!(squares.iter().copied().eq((0..100).map(|n| (n, n * n))));
    println!("all {} are done, each once", squares.len());
}
