//! A billion tasks in flat memory: items are taken from the source only as fast as tasks are
//! consumed. Ctrl-C stops the run at once.
//!
//! ```sh
//! cargo run --release --example backpressure
//! cargo run --release --example backpressure -- --tasks 1000000
//! ```

use std::error::Error;
use std::fs;
use std::time::Instant;

use clap::Parser;
use futureproof::{Ending, prelude::*};

/// Runs many tiny tasks and tells how much memory that took.
#[derive(Parser)]
struct Args {
    /// How many tasks to run
    #[arg(long, default_value_t = 1_000_000_000)]
    tasks: u64,
}

/// The peak where the system tells it, else what is used now; in bytes.
fn peak_memory() -> Option<u64> {
    fn from_status() -> Option<u64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kibibytes * 1024)
    }
    from_status().or_else(|| Some(memory_stats::memory_stats()?.physical_mem as u64))
}

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let args = Args::parse();

    let token = CancellationToken::new();
    let on_ctrl_c = token.clone();
    ctrlc::set_handler(move || on_ctrl_c.cancel())?;

    let start = Instant::now();
    let mut run = (0..args.tasks)
        .futureproof(Raise)
        .cancel_on(&token)
        .map_tasks(infallible(|n: &u64| n.wrapping_mul(3)));
    let count = run.by_ref().count();
    let seconds = start.elapsed().as_secs_f64();

    if run.ending() == Some(Ending::Cancelled) {
        println!("stopped by Ctrl-C");
    }
    match peak_memory() {
        Some(bytes) => {
            let mebibytes = bytes as f64 / f64::from(1 << 20);
            println!("{count} tasks, {seconds:.1} s, peak memory {mebibytes:.1} MiB");
        }
        None => println!("{count} tasks, {seconds:.1} s, peak memory unknown"),
    }
    Ok(())
}
