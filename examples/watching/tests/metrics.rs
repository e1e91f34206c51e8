//! The figures as Prometheus scrapes them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use futureproof::prelude::*;
use metrics_exporter_prometheus::PrometheusBuilder;

#[test]
fn a_scrape_finds_counters_a_gauge_and_a_histogram() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_metrics"));
    command.args(["--listen", &free.to_string()]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("done"), "{line}");

    let mut server = TcpStream::connect(free).unwrap();
    server
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    server.read_to_string(&mut page).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());

    let value = |name: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {page}"))
            .trim()
            .parse()
            .unwrap()
    };
    let labels = |outcome: &str| {
        let lines = page
            .lines()
            .filter(|line| line.starts_with("futureproof_tasks_total{"));
        let line = lines
            .filter(|line| line.contains("run=\"resize\""))
            .find(|line| line.contains(outcome));
        line.and_then(|line| line.rsplit(' ').next())
            .map(str::to_owned)
    };
    assert_eq!(labels("outcome=\"ok\"").as_deref(), Some("180"));
    assert_eq!(labels("outcome=\"failed\"").as_deref(), Some("20"));
    assert_eq!(value("futureproof_retries_total{run=\"resize\"}"), 0.0);
    assert_eq!(value("futureproof_tasks_in_flight{run=\"resize\"}"), 0.0);
    let count = value("futureproof_task_duration_seconds_count{run=\"resize\"}");
    let sum = value("futureproof_task_duration_seconds_sum{run=\"resize\"}");
    assert!(
        (1.0..=200.0).contains(&count) && sum >= 0.001 * count,
        "{count} {sum}"
    );
}

#[test]
fn nothing_is_in_flight_in_a_run_that_was_left() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let run = (0..100).futureproof(Raise).num_threads(1).name("left");
        let mut run = run.map_tasks(infallible(|n: &i32| *n));
        run.next();
        assert!(run.progress().snapshot().in_flight() > 0);
    });
    let page = recorder.handle().render();
    let gauge = "futureproof_tasks_in_flight{run=\"left\"} 0";
    assert!(page.lines().any(|line| line == gauge), "{page}");
}

#[test]
fn what_is_counted_during_a_run_is_counted_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let value = |start: &str| {
        let page = handle.render();
        let line = page.lines().find_map(|line| line.strip_prefix(start));
        line.map_or(0, |value| value.trim().parse().unwrap())
    };
    let ok = "futureproof_tasks_total{run=\"twice\",outcome=\"ok\"}";
    let failed = "futureproof_tasks_total{run=\"twice\",outcome=\"failed\"}";
    let retries = "futureproof_retries_total{run=\"twice\"}";
    metrics::with_local_recorder(&recorder, || {
        let run = (0..20).futureproof(Ignore).num_threads(1).name("twice");
        let run = run.max_in_flight(10).chunk_size(1);
        let run = run.map_tasks(|n: &u32| if n.is_multiple_of(5) { Err(*n) } else { Ok(*n) });
        let mut run = run.retry(|| [Duration::ZERO]);
        assert_eq!(run.by_ref().take(10).count(), 10);
        // It is counted now and then, and at the end.
        let end = Instant::now() + Duration::from_secs(5);
        while (value(ok) == 0 || value(failed) == 0 || value(retries) == 0) && Instant::now() < end
        {
            thread::yield_now();
        }
        assert!(value(ok) > 0 && value(failed) > 0 && value(retries) > 0);
        assert_eq!(run.count(), 10);
    });
    assert_eq!([ok, failed, retries].map(value), [16, 4, 4]);
}
