//! Draws a trace.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

/// An event of a trace in Chrome's format, as `tracing-chrome` writes it.
#[derive(Debug, Deserialize)]
pub struct Event {
    /// Begin, end, instant or metadata: `B`, `E`, `i`, `M`.
    pub ph: String,
    pub name: String,
    /// The number of the thread.
    #[serde(default)]
    pub tid: u64,
    /// Microseconds.
    #[serde(default)]
    pub ts: f64,
    #[serde(default)]
    pub args: serde_json::Value,
}

/// A task on its worker.
#[derive(Debug, PartialEq)]
pub struct Bar {
    pub index: String,
    pub start: f64,
    pub end: f64,
    pub has_failed: bool,
}

/// The tasks of each worker, by the worker's name.
pub fn bars(events: &[Event]) -> BTreeMap<String, Vec<Bar>> {
    let mut names = BTreeMap::new();
    let mut open: BTreeMap<u64, Bar> = BTreeMap::new();
    let mut bars: BTreeMap<u64, Vec<Bar>> = BTreeMap::new();
    let text = |value: &serde_json::Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    for event in events {
        match (&*event.ph, &*event.name) {
            ("M", "thread_name") => drop(names.insert(event.tid, text(&event.args["name"]))),
            ("B", "task") => {
                let index = text(&event.args["index"]);
                let (start, end) = (event.ts, event.ts);
                open.insert(
                    event.tid,
                    Bar {
                        index,
                        start,
                        end,
                        has_failed: false,
                    },
                );
            }
            ("i", _) => {
                if let Some(bar) = open.get_mut(&event.tid) {
                    bar.has_failed |= event.args["message"] == "failed";
                }
            }
            ("E", "task") => {
                if let Some(mut bar) = open.remove(&event.tid) {
                    bar.end = event.ts;
                    bars.entry(event.tid).or_default().push(bar);
                }
            }
            _ => {}
        }
    }
    let name = |tid: &u64| {
        names
            .get(tid)
            .cloned()
            .unwrap_or_else(|| format!("thread {tid}"))
    };
    bars.into_iter()
        .map(|(tid, bars)| (name(&tid), bars))
        .collect()
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 110.0;
const ROW: f64 = 26.0;

/// A row for each worker, a bar for each task; failures are red.
pub fn svg(events: &[Event]) -> String {
    let rows = bars(events);
    let all = || rows.values().flatten();
    let start = all().map(|bar| bar.start).fold(f64::INFINITY, f64::min);
    let end = all().map(|bar| bar.end).fold(0.0, f64::max);
    let scale = (WIDTH - LEFT) / (end - start).max(1.0);
    let height = ROW * (rows.len() + 1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (row, (name, bars)) in rows.iter().enumerate() {
        let top = ROW * row as f64 + 4.0;
        let _ = writeln!(svg, "<text x=\"4\" y=\"{}\">{name}</text>", top + 14.0);
        for bar in bars {
            let (x, width) = (
                LEFT + (bar.start - start) * scale,
                (bar.end - bar.start) * scale,
            );
            let color = if bar.has_failed { "#d33" } else { "#48a" };
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{}\" fill=\"{color}\"><title>task {}: {:.2} ms</title></rect>",
                (width - 0.5).max(0.5),
                ROW - 8.0,
                bar.index,
                (bar.end - bar.start) / 1000.0,
            );
        }
    }
    let millis = (end - start).max(0.0) / 1000.0;
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">0 ms</text>", height - 8.0);
    let _ = writeln!(
        svg,
        "<text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">{millis:.0} ms</text>\n</svg>",
        height - 8.0
    );
    svg
}
