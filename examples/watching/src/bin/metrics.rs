//! Exposes the figures of runs to Prometheus.
//!
//! ```sh
//! cargo run --release -p watching --bin metrics -- --listen 127.0.0.1:9000
//! curl http://127.0.0.1:9000/metrics
//! ```

use std::error::Error;
use std::io::stdin;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use futureproof::prelude::*;
use metrics_exporter_prometheus::PrometheusBuilder;

/// Runs 200 tasks, and answers until its standard input ends.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    PrometheusBuilder::new()
        .with_http_listener(options.listen)
        .install()?;
    let run = (0..200u64)
        .futureproof(Ignore)
        .name("resize")
        .num_threads(2);
    let run = run.map_tasks(|n| {
        sleep(Duration::from_millis(1));
        if n % 10 == 0 { Err("broken") } else { Ok(()) }
    });
    run.for_each(drop);
    println!(
        "done; see http://{}/metrics until you press Ctrl-D",
        options.listen
    );
    std::io::copy(&mut stdin(), &mut std::io::sink())?;
    Ok(())
}
