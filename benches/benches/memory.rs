//! What a run keeps in memory at its peak, and how often it allocates. Each figure comes from a process of
//! its own. Prints a table.

use std::alloc::System;
use std::process::Command;
use std::time::Duration;
use std::{env, fs, thread};

use futureproof::prelude::*;
use futureproof_benches::contenders::{self, Rig};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MILLION: u64 = 1_000_000;

struct Case {
    name: &'static str,
    items: u64,
    run: fn(u64),
}

const CASES: [Case; 8] = [
    Case {
        name: "an empty program",
        items: 1,
        run: |_| {},
    },
    Case {
        name: contenders::OURS,
        items: MILLION,
        run: |items| contender(contenders::OURS, items),
    },
    Case {
        name: contenders::OURS,
        items: 100 * MILLION,
        run: |items| contender(contenders::OURS, items),
    },
    Case {
        name: contenders::ORDERED,
        items: MILLION,
        run: |items| contender(contenders::ORDERED, items),
    },
    Case {
        name: contenders::CHANNEL,
        items: MILLION,
        run: |items| contender(contenders::CHANNEL, items),
    },
    Case {
        name: contenders::PARITER,
        items: MILLION,
        run: |items| contender(contenders::PARITER, items),
    },
    Case {
        name: "1 MiB items, a slow consumer",
        items: 300,
        run: |items| large(items, 0),
    },
    Case {
        name: "the same, `max_in_flight(8)`",
        items: 300,
        run: |items| large(items, 8),
    },
];

fn main() {
    if let Some(case) = env::args().skip_while(|arg| arg != "--case").nth(1) {
        let case = &CASES[case.parse::<usize>().expect("the number of a case")];
        let region = Region::new(ALLOCATOR);
        (case.run)(case.items);
        let allocations = region.change().allocations as f64 / case.items as f64;
        println!("{allocations:.4} {:.1}", peak());
        return;
    }
    println!("| what | items | allocations per item | peak, MiB |\n|---|---|---|---|");
    let program = env::current_exe().expect("this program has a path");
    for (number, Case { name, items, .. }) in CASES.iter().enumerate() {
        let child = Command::new(&program)
            .args(["--case", &number.to_string()])
            .output()
            .expect("it starts");
        let figures = String::from_utf8_lossy(&child.stdout)
            .trim()
            .replace(' ', " | ");
        println!("| {name} | {items} | {figures} |");
    }
}

fn contender(name: &str, items: u64) {
    let rig = Rig::of_this_machine();
    let contender = contenders::all().into_iter().find(|it| it.name == name);
    (contender.expect("a contender").run)(&rig, items, |item: u64| item);
}

fn large(items: u64, max_in_flight: usize) {
    let source = (0..items).map(|_| vec![1u8; 1 << 20]);
    let run = source.futureproof(Raise).max_in_flight(max_in_flight);
    for task in run.map_tasks(infallible(|bytes: &Vec<u8>| bytes.len())) {
        assert_eq!(task.expect("it cannot fail").output, 1 << 20);
        thread::sleep(Duration::from_millis(1));
    }
}

/// The most memory that this process has had, where the system tells.
fn peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kibibytes.map_or(f64::NAN, |kibibytes| kibibytes / 1024.0)
}
