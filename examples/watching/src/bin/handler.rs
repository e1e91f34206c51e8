//! CPU-heavy work inside a web handler: a bounded window, results as they come, and nothing goes on when the client
//! hangs up.
//!
//! ```sh
//! cargo run --release -p watching --bin handler -- --listen 127.0.0.1:8000
//! curl -N 'http://127.0.0.1:8000/primes?below=2000000'      # press Ctrl-C half-way
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::{Router, body::Body, extract::Query, extract::State, routing::get};
use clap::Parser;
use futureproof::Progress;
use futureproof::prelude::*;
use futures_util::StreamExt;
use rayon::ThreadPool;
use serde::Deserialize;
use tokio::net::TcpListener;

/// Serves primes.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
}

#[derive(Deserialize)]
struct Request {
    below: u64,
}

/// Tells, when a response is done with, how far its run had come.
struct Farewell(Progress);

impl Drop for Farewell {
    fn drop(&mut self) {
        let figures = self.0.snapshot();
        println!(
            "{} of {} blocks",
            figures.completed(),
            figures.total().unwrap_or(0)
        );
    }
}

const BLOCK: u64 = 1_000;

fn primes(block: &u64) -> usize {
    let is_prime = |n: &u64| {
        *n > 1
            && (2..)
                .take_while(|d| d * d <= *n)
                .all(|d| !n.is_multiple_of(d))
    };
    (block * BLOCK..(block + 1) * BLOCK)
        .filter(is_prime)
        .count()
}

async fn answer(State(pool): State<Arc<ThreadPool>>, Query(request): Query<Request>) -> Body {
    // All requests share the pool, and none may take more than its window.
    let run = (0..request.below.div_ceil(BLOCK))
        .futureproof(Raise)
        .on(pool)
        .max_in_flight(16);
    let run = run.map_tasks(infallible(primes));
    let farewell = Farewell(run.progress());
    Body::from_stream(run.into_stream().map(move |task| {
        let _ = &farewell;
        task.map(|task| format!("{} {}\n", task.index * BLOCK, task.output))
    }))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let listener = TcpListener::bind(options.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build()?);
    axum::serve(
        listener,
        Router::new().route("/primes", get(answer)).with_state(pool),
    )
    .await?;
    Ok(())
}
