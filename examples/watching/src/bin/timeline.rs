//! Draws a run: a row for each worker, a bar for each task, failures in red.
//!
//! ```sh
//! cargo run --release -p watching --bin timeline    # writes timeline.json and timeline.svg
//! ```
//!
//! The JSON opens in <https://ui.perfetto.dev>: who worked when, and where the gaps are.

use std::error::Error;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use futureproof::prelude::*;
use tracing_chrome::ChromeLayerBuilder;
use tracing_subscriber::layer::SubscriberExt;

/// Draws a run as a timeline.
#[derive(Parser)]
struct Options {
    /// Where the trace goes.
    #[arg(long, default_value = "timeline.json")]
    trace: PathBuf,
    /// Where the picture goes.
    #[arg(long, default_value = "timeline.svg")]
    svg: PathBuf,
    /// How many threads there are.
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

/// Takes from 1 to 10 ms; every fifteenth fails.
fn work(n: &u64) -> Result<(), &'static str> {
    sleep(Duration::from_micros(1_000 + n * 7_919 % 9_000));
    if n % 15 == 14 { Err("broken") } else { Ok(()) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let layer = ChromeLayerBuilder::new()
        .file(&options.trace)
        .include_args(true);
    let (layer, guard) = layer.build();
    let run = {
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::set_global_default(subscriber)?;
        let run = (0..100)
            .futureproof(Ignore)
            .num_threads(options.threads)
            .name("worker");
        let mut run = run.map_tasks(work);
        run.by_ref().for_each(drop);
        run
    };
    println!("{}", run.report());
    // The trace is complete when this is gone.
    drop(guard);
    let events: Vec<watching::Event> =
        serde_json::from_str(&std::fs::read_to_string(&options.trace)?)?;
    std::fs::write(&options.svg, watching::svg(&events))?;
    println!(
        "wrote {} and {}",
        options.trace.display(),
        options.svg.display()
    );
    Ok(())
}
