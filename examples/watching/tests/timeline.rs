//! The trace is read back as Perfetto reads it.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::process::Command;

use watching::{Event, bars};

#[test]
fn every_task_is_a_bar_on_its_worker() {
    let dir = tempfile::tempdir().unwrap();
    let (trace, svg) = (dir.path().join("trace.json"), dir.path().join("trace.svg"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_timeline"));
    let output = command
        .arg("--trace")
        .arg(&trace)
        .arg("--svg")
        .arg(&svg)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        told.starts_with("100 calls in") && told.contains("limited by the workers"),
        "{told}"
    );

    let events: Vec<Event> = serde_json::from_str(&read_to_string(trace).unwrap()).unwrap();
    let rows = bars(&events);
    assert!(
        rows.keys().all(|name| name.starts_with("worker-")),
        "{:?}",
        rows.keys()
    );
    let all: Vec<_> = rows.values().flatten().collect();
    let indices: BTreeSet<_> = all
        .iter()
        .map(|bar| bar.index.parse::<u64>().unwrap())
        .collect();
    assert!(all.len() == 100 && indices.into_iter().eq(0..100));
    assert_eq!(all.iter().filter(|bar| bar.has_failed).count(), 6);
    assert!(
        all.iter().all(|bar| bar.end - bar.start >= 1_000.0),
        "a task takes a millisecond"
    );
    for bars in rows.values() {
        assert!(
            bars.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "one at a time"
        );
    }
    let picture = read_to_string(svg).unwrap();
    assert_eq!(picture.matches("fill=\"#d33\"").count(), 6);
    assert_eq!(picture.matches("fill=\"#48a\"").count(), 94);
}
