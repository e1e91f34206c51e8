//! Where and when something was measured.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

const PEERS: [&str; 7] = [
    "futureproof",
    "rayon",
    "pariter",
    "par-iter-sync",
    "orx-parallel",
    "futures",
    "tokio",
];

/// The machine, the date and the versions, in one sentence.
pub fn describe(threads: usize) -> Result<String, Box<dyn Error>> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unknown processor", |(_, model)| model);
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock"))?;
    let versions: Vec<String> = PEERS
        .iter()
        .filter_map(|name| Some(format!("{name} {}", version(&lock, name)?)))
        .collect();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().find_map(|line| {
        let (kib, _) = line.strip_prefix("MemTotal:")?.trim().split_once(' ')?;
        kib.parse::<f64>().ok()
    });
    let memory = memory.map_or(String::new(), |kib| format!(" {:.0} GiB,", kib / 1048576.0));
    Ok(format!(
        "{model},{memory} {threads} threads on as many cores; {}; {}; {}.",
        output("date", &["-u", "+%Y-%m-%d"])?,
        output("rustc", &["--version"])?,
        versions.join(", ")
    ))
}

/// How many nanoseconds a cache line takes from one thread to another and back.
pub fn there_and_back() -> f64 {
    const TIMES: u64 = 1_000_000;
    let turn = AtomicU64::new(0);
    let take_turns = |first| {
        for now in (first..2 * TIMES).step_by(2) {
            while turn.load(Ordering::Acquire) != now {
                std::hint::spin_loop();
            }
            turn.store(now + 1, Ordering::Release);
        }
    };
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| take_turns(1));
        take_turns(0);
    });
    start.elapsed().as_nanos() as f64 / TIMES as f64
}

fn version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    rest.split('"').next()
}

fn output(program: &str, args: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new(program).args(args).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
