//! Watches a run: the monitor logs how it is going every half second, and a function of our own
//! is called as often, here to tell when the run will be done.
//!
//! ```sh
//! cargo run --release --example monitoring
//! ```

use std::thread;
use std::time::Duration;

use futureproof::prelude::*;

fn slow_sum(&(a, b): &(u64, u64)) -> u64 {
    thread::sleep(Duration::from_millis(500));
    a + b
}

fn main() {
    // The monitor's lines are logged at `info`.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();

    let sums = (0..20).zip(100..);
    let run = sums
        .futureproof(Raise)
        .num_threads(4)
        .name("sums")
        .monitor_interval(Duration::from_millis(500))
        .on_progress(|now| match now.eta() {
            Some(eta) => println!("{} done, {:.1} s to go", now.completed(), eta.as_secs_f64()),
            None => println!("{} done", now.completed()),
        })
        .map_tasks(infallible(slow_sum));
    let total: u64 = run.flatten().map(|task| task.output).sum();
    println!("the sums add up to {total}");
}
