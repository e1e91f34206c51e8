//! What a run keeps in memory at its peak, and how often it allocates. Each figure comes from a process of
//! its own. Prints a table, and the bars for it.
//!
//! The pools of the peers, and the memory of their threads, are part of the empty program.

use std::alloc::System;
use std::process::Command;
use std::time::Duration;
use std::{env, fs, thread};

use crossbeam_channel::bounded;
use futureproof::prelude::*;
use futureproof_benches::bars::{Bars, MARK};
use futureproof_benches::contenders::{CHANNEL, ORDERED, OURS, PARITER, Rig, all};
use pariter::IteratorExt;
use rayon::prelude::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MILLION: u64 = 1_000_000;
const MIB: usize = 1 << 20;
/// How many large items may be in flight, where that can be said.
const WINDOW: usize = 8;

type Run = fn(&Rig, u64);

/// What is run on how many items.
const CASES: [(&str, u64, Run); 12] = [
    ("an empty program", 1, |_, _| {}),
    (OURS, MILLION, |rig, items| small(OURS, rig, items)),
    (OURS, 100 * MILLION, |rig, items| small(OURS, rig, items)),
    (ORDERED, MILLION, |rig, items| small(ORDERED, rig, items)),
    (ORDERED, 100 * MILLION, |rig, items| {
        small(ORDERED, rig, items)
    }),
    (CHANNEL, MILLION, |rig, items| small(CHANNEL, rig, items)),
    (CHANNEL, 10 * MILLION, |rig, items| {
        small(CHANNEL, rig, items)
    }),
    (PARITER, MILLION, |rig, items| small(PARITER, rig, items)),
    (LARGE, 300, |_, items| large(items, 0)),
    (LARGE_WINDOW, 300, |_, items| large(items, WINDOW)),
    (LARGE_CHANNEL, 300, large_channel),
    (LARGE_PARITER, 300, large_pariter),
];
const LARGE: &str = "1 MiB items, a slow consumer";
const LARGE_WINDOW: &str = "the same, `max_in_flight(8)`";
const LARGE_CHANNEL: &str = "the same, `par_bridge` into a channel of 8";
const LARGE_PARITER: &str = "the same, pariter, `buffer_size(8)`";

fn main() {
    if let Some(case) = env::args().skip_while(|arg| arg != "--case").nth(1) {
        return child(case.parse().expect("the number of a case"));
    }
    println!("| what | items | allocations | per item | peak, MiB |\n|---|--:|--:|--:|--:|");
    let figures: Vec<(u64, f64)> = (0..CASES.len()).map(measure).collect();
    for ((name, items, _), (count, peak)) in CASES.iter().zip(&figures) {
        let each = *count as f64 / *items as f64;
        println!("| {name} | {items} | {count} | {each:.4} | {peak:.1} |");
    }
    println!("{MARK}\n{}", judge(&figures).rows());
}

/// Runs one case and tells its figures.
fn child(case: usize) {
    let (_, items, run) = CASES[case];
    let rig = Rig::of_this_machine();
    let region = Region::new(ALLOCATOR);
    run(&rig, items);
    let change = region.change();
    println!("{} {}", change.allocations + change.reallocations, peak());
}

/// Allocations, and MiB at the peak.
fn measure(case: usize) -> (u64, f64) {
    let program = env::current_exe().expect("this program has a path");
    let child = Command::new(program)
        .args(["--case", &case.to_string()])
        .output();
    let output = child.expect("it starts").stdout;
    let text = String::from_utf8_lossy(&output);
    let (count, peak) = text.trim().split_once(' ').expect("two figures");
    (
        count.parse().expect("a number"),
        peak.parse().expect("a number"),
    )
}

fn judge(figures: &[(u64, f64)]) -> Bars {
    let of = |name, items| {
        let case = CASES
            .iter()
            .position(|case| (case.0, case.1) == (name, items));
        figures[case.expect("a case of this name")]
    };
    let empty = figures[0].1;
    let ((few, _), (many, peak)) = (of(OURS, MILLION), of(OURS, 100 * MILLION));
    let mut bars = Bars::default();
    let each = few as f64 / MILLION as f64;
    bars.add(
        "allocations per item, 10⁶ items",
        "≤ 0.01",
        format!("{each:.4}"),
        each <= 0.01,
    );
    bars.add(
        "allocations of 10⁸ items",
        "≤ those of 10⁶",
        format!("{many}, those of 10⁶ {few}"),
        many <= few,
    );
    let more = peak - empty;
    let measured = format!("{more:.1} MiB");
    bars.add(
        "peak of 10⁸ small items, above an empty program",
        "≤ 8 MiB",
        measured,
        more <= 8.0,
    );
    // One more is with the consumer, and another is being made.
    let bound = (WINDOW + 2) as f64;
    let more = of(LARGE_WINDOW, 300).1 - empty;
    bars.add(
        "peak of 1 MiB items with a slow consumer, `max_in_flight(8)`",
        &format!("≤ {bound} MiB"),
        format!("{more:.1} MiB"),
        more <= bound,
    );
    bars
}

fn small(name: &str, rig: &Rig, items: u64) {
    let contender = all().into_iter().find(|it| it.name == name);
    (contender.expect("a contender").run)(rig, items, |item: u64| item);
}

/// Large items are written to, so that they are in memory.
fn source(items: u64) -> impl Iterator<Item = Vec<u8>> + Send {
    (0..items).map(|_| vec![1u8; MIB])
}

/// Takes its time.
fn consume(bytes: Vec<u8>) {
    assert_eq!(bytes.len(), MIB);
    thread::sleep(Duration::from_millis(1));
}

fn large(items: u64, max_in_flight: usize) {
    let run = source(items)
        .futureproof(Raise)
        .max_in_flight(max_in_flight);
    for task in run.map_tasks(infallible(|bytes: &Vec<u8>| bytes.len())) {
        consume(task.expect("it cannot fail").input);
    }
}

fn large_channel(_: &Rig, items: u64) {
    let (sender, results) = bounded(WINDOW);
    rayon::spawn(move || {
        let send = |sender: &mut crossbeam_channel::Sender<_>, bytes: Vec<u8>| {
            sender.send(bytes).expect("the receiver lives");
        };
        source(items).par_bridge().for_each_with(sender, send);
    });
    results.iter().for_each(consume);
}

fn large_pariter(_: &Rig, items: u64) {
    let run = source(items).parallel_map_custom(|options| options.buffer_size(WINDOW), |it| it);
    run.for_each(consume);
}

/// The most memory that this process has had, in MiB, where the system tells.
fn peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kibibytes.map_or(f64::NAN, |kibibytes| kibibytes / 1024.0)
}
