//! Where and when something was measured.

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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

/// How many nanoseconds a cache line takes from one thread to another and back, on average of so many times.
pub fn there_and_back(times: u64) -> f64 {
    // Until both threads are there.
    const BEFORE: u64 = 100;
    let turn = AtomicU64::new(0);
    let take_turns = |turns: Range<u64>, first| {
        for now in (2 * turns.start + first..2 * turns.end).step_by(2) {
            while turn.load(Ordering::Acquire) != now {
                std::hint::spin_loop();
            }
            turn.store(now + 1, Ordering::Release);
        }
    };
    let time = thread::scope(|scope| {
        scope.spawn(|| take_turns(0..BEFORE + times, 1));
        take_turns(0..BEFORE, 0);
        let start = Instant::now();
        take_turns(BEFORE..BEFORE + times, 0);
        start.elapsed()
    });
    time.as_nanos() as f64 / times as f64
}

/// Tells whether the cores are near to each other. The host of a virtual machine may move them, many times a
/// minute: all that crosses between them then takes five times as long, whoever it is that is measured.
pub struct Cores {
    /// How long it may still take for them.
    patience: Mutex<Duration>,
    runs: AtomicU64,
    again: AtomicU64,
}

impl Cores {
    const PROBE: u64 = 2_000;

    /// Nanoseconds there and back, up to which they are near: seen were 36 to 200, and 430 or more when they were far. A limit
    /// beside the least would not do: 36 was seen now and then where it is 130 otherwise, and all else would be waited for.
    const NEAR: f64 = 250.0;

    pub fn new(patience: Duration) -> Self {
        Self {
            patience: Mutex::new(patience),
            runs: AtomicU64::new(0),
            again: AtomicU64::new(0),
        }
    }

    fn are_near() -> bool {
        there_and_back(Self::PROBE) <= Self::NEAR
    }

    /// Measures once they are near, and again if they are not any more when that is done, for as long as its patience lasts.
    pub fn measure(&self, mut measure: impl FnMut()) -> Duration {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let mut patience = self.patience.lock().expect("no panic");
        loop {
            let start = Instant::now();
            while !Self::are_near() && start.elapsed() < *patience {
                thread::sleep(Duration::from_millis(20));
            }
            let waited = start.elapsed();
            measure();
            let time = start.elapsed() - waited;
            if patience.is_zero() || Self::are_near() {
                *patience = patience.saturating_sub(waited);
                return time;
            }
            *patience = patience.saturating_sub(start.elapsed());
            self.again.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often something was measured again.
    pub fn describe(&self) -> String {
        let [runs, again] = [&self.runs, &self.again].map(|it| it.load(Ordering::Relaxed));
        let patience = *self.patience.lock().expect("no panic");
        let end = if patience.is_zero() {
            ", until that had taken too long"
        } else {
            ""
        };
        format!(
            "Of {runs} runs, {again} were measured again, as the host had moved the cores apart meanwhile{end}."
        )
    }
}

fn version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    rest.split('"').next()
}

fn output(program: &str, args: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new(program).args(args).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
