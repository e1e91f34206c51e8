//! Fetches pages with five threads and tells the size of each as soon as it is there: the example
//! that Python's documentation gives for `concurrent.futures`. A page that fails stops no other.
//! This one speaks plain HTTP only; for HTTPS, build `ureq` with TLS.
//!
//! ```sh
//! cargo run --release --example fetch_urls      # five pages that it serves itself; one is down
//! cargo run --release --example fetch_urls -- http://example.com/ http://example.org/
//! ```

use std::error::Error;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use futureproof::prelude::*;

/// Four pages that are served from here, and one at a port where nobody listens.
fn local_pages() -> Result<Vec<String>, Box<dyn Error + Send + Sync>> {
    let server = tiny_http::Server::http("127.0.0.1:0")?;
    let here = server.server_addr();
    thread::spawn(move || {
        for request in server.incoming_requests() {
            let page = request.url().repeat(1000);
            // A client that has gone away is its own affair.
            let _ = request.respond(tiny_http::Response::from_string(page));
        }
    });
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut urls: Vec<String> = ["", "news", "weather", "sports"]
        .iter()
        .map(|page| format!("http://{here}/{page}"))
        .collect();
    urls.insert(2, format!("http://{nobody}/"));
    Ok(urls)
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut urls: Vec<String> = std::env::args().skip(1).collect();
    let mut config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60)));
    if urls.is_empty() {
        urls = local_pages()?;
        config = config.proxy(None);
    }
    let agent = config.build().new_agent();

    let load = move |url: &String| agent.get(url).call()?.body_mut().read_to_vec();
    for task in urls
        .into_iter()
        .futureproof(Ignore)
        .num_threads(5)
        .map_tasks(load)
    {
        match task {
            Ok(task) => println!("'{}' page is {} bytes", task.input, task.output.len()),
            Err(failure) => match failure.error() {
                Some(error) => println!("'{}' generated an exception: {error}", failure.input()),
                None => println!("'{}' generated an exception: {failure}", failure.input()),
            },
        }
    }
    Ok(())
}
