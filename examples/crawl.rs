//! Crawls a site that it serves itself: fetches on many threads, reads the links on two, and adds what is new to
//! the queue. Some pages are busy at first and tried again; some links lead nowhere.
//!
//! ```sh
//! cargo run --release --example crawl
//! ```

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futureproof::prelude::*;

const PAGES: u32 = 300;

/// A page links to three others; a few links lead to pages that there are not.
fn links(page: u32) -> [u32; 3] {
    [2 * page + 1, 3 * page + 2, 7 * page].map(|link| link % (PAGES + 3))
}

/// Serves the pages. Every tenth is busy when it is asked for the first time.
fn serve() -> anyhow::Result<String> {
    let server = tiny_http::Server::http("127.0.0.1:0").map_err(|error| anyhow!(error))?;
    let address = format!("http://{}", server.server_addr());
    thread::spawn(move || {
        let asked = Mutex::new(HashSet::new());
        for request in server.incoming_requests() {
            let page = request
                .url()
                .trim_start_matches('/')
                .parse()
                .unwrap_or(PAGES);
            let is_busy = page % 10 == 0 && asked.lock().is_ok_and(|mut asked| asked.insert(page));
            let (status, text) = match page {
                _ if is_busy => (503, String::from("busy")),
                PAGES.. => (404, String::from("no such page")),
                _ => (
                    200,
                    links(page)
                        .map(|link| format!("<a href='/{link}'>"))
                        .join(" "),
                ),
            };
            let response = tiny_http::Response::from_string(text).with_status_code(status);
            // A client that has gone away is its own affair.
            let _ = request.respond(response);
        }
    });
    Ok(address)
}

fn read_links(page: &str) -> anyhow::Result<Vec<u32>> {
    let links = page.split("href='/").skip(1);
    let number = |link: &str| {
        let end = link.find('\'').context("a link without an end")?;
        Ok(link[..end].parse()?)
    };
    links.map(number).collect()
}

fn main() -> anyhow::Result<()> {
    let address = serve()?;
    let config = ureq::Agent::config_builder().proxy(None);
    let agent = config
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let fetch = move |page: &u32| -> anyhow::Result<String> {
        Ok(agent
            .get(format!("{address}/{page}"))
            .call()?
            .body_mut()
            .read_to_string()?)
    };
    let is_busy =
        |error: &anyhow::Error| matches!(error.downcast_ref(), Some(ureq::Error::StatusCode(503)));

    let queue = Queue::from_iter([0]);
    let mut seen = HashSet::from([0]);
    let (mut read, mut dead) = (Vec::new(), Vec::new());
    let run = queue
        .source()
        .futureproof(Ignore)
        .num_threads(16)
        .name("fetch")
        .stage(fetch);
    let run = run
        .num_threads(2)
        .name("read")
        .map_tasks(|page: &String| read_links(page));
    for task in run
        .retry(|| [Duration::from_millis(5); 3])
        .retry_if(is_busy)
    {
        match task {
            Ok(task) => {
                read.push(task.input);
                (&queue).extend(task.output.into_iter().filter(|link| seen.insert(*link)));
            }
            Err(error) => {
                println!("page {}: {}", error.input(), error.cause());
                dead.push(*error.input());
            }
        }
    }

    // Another way: one page after the other.
    let mut expected = HashSet::from([0]);
    let mut stack = vec![0];
    while let Some(page) = stack.pop() {
        if page < PAGES {
            stack.extend(
                links(page)
                    .into_iter()
                    .filter(|link| expected.insert(*link)),
            );
        }
    }
    assert_eq!(seen, expected);
    assert_eq!(read.len() + dead.len(), seen.len());
    println!(
        "{} pages were read, each once; {} links lead nowhere",
        read.len(),
        dead.len()
    );
    Ok(())
}
