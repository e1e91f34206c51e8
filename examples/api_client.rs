//! A client of a service that has its rules: 50 calls a second, and who comes too early is told when to come back
//! (`Retry-After`). The run gives up when more than 5 of the last 100 calls fail for good. Meanwhile an operator pauses it and
//! widens it.
//!
//! ```sh
//! cargo run --release --example api_client          # a service of its own, and an operator who follows a script
//! cargo run --release --example api_client -- 60    # the service breaks down after 60 customers
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futureproof::{Control, prelude::*};
use tiny_http::{Header, Response, Server, StatusCode};

const CUSTOMERS: u32 = 120;
const CALLS: u32 = 50;
const SECOND: Duration = Duration::from_secs(1);

/// Why a customer has no answer.
#[derive(Debug)]
enum Refusal {
    /// The service is busy, and says when to come back.
    Busy(Duration),
    Other(String),
}

/// The service. Every seventh customer finds it busy at first; from customer `breaks_at` on, nobody gets an answer.
fn serve(server: &Server, calls: &Mutex<Vec<Instant>>, breaks_at: u32) {
    let mut has_waited = [false; CUSTOMERS as usize];
    for request in server.incoming_requests() {
        calls.lock().unwrap().push(Instant::now());
        let customer: u32 = request.url()[1..].parse().unwrap_or(0);
        let is_first = !std::mem::replace(&mut has_waited[customer as usize], true);
        let answer = if customer >= breaks_at {
            Response::from_string("the disk is full").with_status_code(StatusCode(500))
        } else if customer % 7 == 3 && is_first {
            let later = Header::from_bytes("Retry-After", "1").expect("is a header");
            Response::from_string("busy")
                .with_status_code(StatusCode(429))
                .with_header(later)
        } else {
            Response::from_string(format!("customer {customer} owes nothing"))
        };
        // A client that has gone away is its own affair.
        let _ = request.respond(answer);
    }
}

fn ask(agent: &ureq::Agent, at: SocketAddr, customer: u32) -> Result<String, Refusal> {
    let other = |error: ureq::Error| Refusal::Other(error.to_string());
    let mut answer = agent
        .get(format!("http://{at}/{customer}"))
        .call()
        .map_err(other)?;
    if answer.status() == 429 {
        let later = answer
            .headers()
            .get("Retry-After")
            .and_then(|text| text.to_str().ok()?.parse().ok());
        return Err(Refusal::Busy(Duration::from_secs(later.unwrap_or(1))));
    }
    let text = answer.body_mut().read_to_string().map_err(other)?;
    if answer.status().is_success() {
        Ok(text)
    } else {
        Err(Refusal::Other(text))
    }
}

/// The most calls in any second.
fn busiest_second(calls: &[Instant]) -> usize {
    let within = |first: &Instant| {
        calls
            .iter()
            .filter(|call| (*first..*first + SECOND).contains(call))
            .count()
    };
    calls.iter().map(within).max().unwrap_or(0)
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let breaks_at = std::env::args()
        .nth(1)
        .map_or(Ok(u32::MAX), |text| text.parse())?;
    let server = Server::http("127.0.0.1:0")?;
    let at = server.server_addr().to_ip().ok_or("no address")?;
    let calls = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&calls);
    thread::spawn(move || serve(&server, &log, breaks_at));

    let config = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false);
    let agent = config
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .new_agent();

    let control = Control::new();
    control.set_concurrency(2);
    let answered = Arc::new(AtomicU32::new(0));
    let (operator, seen) = (control.clone(), Arc::clone(&answered));
    thread::spawn(move || {
        while seen.load(Ordering::Relaxed) < 40 {
            thread::sleep(Duration::from_millis(10));
        }
        operator.pause();
        eprintln!("operator: paused");
        thread::sleep(SECOND / 2);
        operator.set_concurrency(8);
        operator.resume();
        eprintln!("operator: resumed, eight at once");
    });

    let start = Instant::now();
    let run = (0..CUSTOMERS).futureproof(TolerateRate {
        failures: 5,
        window: 100,
    });
    let run = run
        .num_threads(8)
        .control(&control)
        .rate_limit(CALLS, SECOND);
    let run = run.map_tasks(move |customer| ask(&agent, at, *customer));
    let mut run = run.retry_with(|refusal, attempts| match refusal {
        Refusal::Busy(later) if attempts < 5 => Some(*later),
        _ => None,
    });
    for task in run.by_ref() {
        match task {
            Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
            Err(error) => match error.error() {
                Some(Refusal::Other(why)) => eprintln!("customer {}: {why}", error.input()),
                _ => eprintln!("customer {}: {error}", error.input()),
            },
        }
    }
    let end = run.progress().snapshot();
    let calls = calls.lock().unwrap();
    println!(
        "{} customers answered, {} failed, {} came back later; {:?}",
        end.completed() - end.failed(),
        end.failed(),
        end.retried(),
        run.ending().ok_or("not at its end")?,
    );
    println!(
        "{} calls in {:.1} s, {} in the busiest second",
        calls.len(),
        start.elapsed().as_secs_f64(),
        busiest_second(&calls)
    );
    Ok(())
}
