//! The same work under each error policy: forty sums, of which every fifth fails.
//!
//! ```sh
//! cargo run --release --example error_policy
//! ```

use std::thread;
use std::time::Duration;

use futureproof::prelude::*;

/// Adds two numbers, slowly, and not always.
fn flaky_sum(&(a, b): &(u32, u32)) -> Result<u32, String> {
    thread::sleep(Duration::from_millis(20));
    if a % 5 == 4 {
        return Err(format!("cannot add {a} and {b} today"));
    }
    Ok(a + b)
}

fn main() {
    // Shows what `Log` and `Tolerate` log.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();

    for policy in [Raise, Log, Ignore, Tolerate(3)] {
        println!("{policy}:");
        let sums = (0..40).map(|n| (n, 1));
        let mut run = sums.futureproof(policy).num_threads(4).map_tasks(flaky_sum);
        let (mut succeeded, mut failed) = (0, 0);
        for task in run.by_ref() {
            match task {
                Ok(_) => succeeded += 1,
                Err(_) => failed += 1,
            }
        }
        if let Some(ending) = run.ending() {
            println!("    {succeeded} succeeded, {failed} failed, ended: {ending:?}");
        }
    }
}
