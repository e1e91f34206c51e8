//! A progress bar, and log lines that do not tear it.
//!
//! ```sh
//! cargo run --release -p watching --bin bar                  # the monitor moves it
//! cargo run --release -p watching --bin bar -- --plain       # indicatif's own adaptor does
//! cargo run --release -p watching --bin bar -- --spinner     # the size is not known
//! ```

use std::error::Error;
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use futureproof::prelude::*;
use indicatif::{MultiProgress, ProgressBar, ProgressIterator};
use indicatif_log_bridge::LogWrapper;

/// Shows a run on a progress bar.
#[derive(Parser)]
struct Options {
    /// Move the bar by hand, with what indicatif has for every iterator.
    #[arg(long)]
    plain: bool,
    /// Hide how many items there are.
    #[arg(long)]
    spinner: bool,
}

fn work(n: &u64) -> Result<(), &'static str> {
    sleep(Duration::from_millis(5));
    if n % 50 == 49 { Err("broken") } else { Ok(()) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let bars = MultiProgress::new();
    let logger =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error"))
            .build();
    let level = logger.filter();
    LogWrapper::new(bars.clone(), logger).try_init()?;
    log::set_max_level(level);

    let bar = bars.add(ProgressBar::no_length());
    // A filter cannot tell how many items will pass it.
    let source: Box<dyn Iterator<Item = u64>> = match options.spinner {
        true => Box::new((0..300).filter(|_| true)),
        false => Box::new(0..300),
    };
    let run = source.futureproof(Log).num_threads(4);
    let done = if options.plain {
        bar.set_length(300);
        run.map_tasks(work).progress_with(bar).flatten().count()
    } else {
        run.progress_bar(bar).map_tasks(work).flatten().count()
    };
    println!("{done} done");
    Ok(())
}
