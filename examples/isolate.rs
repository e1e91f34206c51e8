//! Among a hundred good tasks one aborts, one hangs and one eats memory: each costs one task, under every policy.
//!
//! ```sh
//! cargo run --release --example isolate --features process
//! ```

use std::time::Duration;
use std::{process, thread};

use futureproof::prelude::*;
use futureproof::process::{Error, isolate};

/// What would take down or hold up a program that runs it on a thread.
fn work(n: &u64) -> Result<u64, String> {
    match n {
        20 => process::abort(),
        40 => loop {
            thread::sleep(Duration::from_secs(1));
        },
        60 => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![1u8; 16 << 20]);
            }
        }
        _ => Ok(n * n),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First of all: in a child process, the first of these calls does not return.
    let isolated = || {
        isolate("work", work)
            .timeout(Duration::from_millis(500))
            .memory_limit(128 << 20)
            .start()
    };
    let mut functions = Vec::new();
    for policy in [Ignore, Log, Tolerate(2), Raise] {
        functions.push((policy, isolated()?));
    }

    for (policy, function) in functions {
        let run = (0..103u64).futureproof(policy).num_threads(2).ordered();
        let [mut good, mut bad] = [0, 0];
        println!("{policy:?}:");
        for task in run.map_tasks(function.into_fn()) {
            match task {
                Ok(_) => good += 1,
                Err(failure) => {
                    bad += 1;
                    let reason = match failure.error() {
                        Some(Error::TimedOut { after }) => format!("killed after {after:?}"),
                        Some(Error::Crashed { signal, .. }) => format!("died of signal {signal:?}"),
                        other => format!("{other:?}"),
                    };
                    println!("  task {}: {reason}", failure.index());
                }
            }
        }
        println!("  {good} good, {bad} bad");
        match policy {
            Ignore | Log => assert_eq!((good, bad), (100, 3)),
            Tolerate(_) => assert_eq!(bad, 3),
            _ => assert_eq!((good, bad), (20, 1)),
        }
    }
    Ok(())
}
