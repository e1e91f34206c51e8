//! Medians and percentiles.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::machine::Cores;
use crate::work::steps;

/// The middle of `values`.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Some durations, to be looked at together.
///
/// Kept in nanoseconds, four bytes each: there are millions, and they should not disturb what is measured.
#[derive(Default)]
pub struct Spread(Vec<u32>);

impl Spread {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Room for `count`, so that nothing is moved while they are added.
    pub fn of(count: u64) -> Self {
        Self(Vec::with_capacity(count as usize))
    }

    pub fn add(&mut self, duration: Duration) {
        self.0
            .push(duration.as_nanos().try_into().unwrap_or(u32::MAX));
    }

    /// The duration that `share` of all do not exceed.
    pub fn percentile(&mut self, share: f64) -> Duration {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        let at = self.0.get((last as f64 * share).round() as usize);
        Duration::from_nanos(at.map_or(0, |nanos| u64::from(*nanos)))
    }

    /// How many are longer than `limit`.
    pub fn beyond(&self, limit: Duration) -> usize {
        let limit = limit.as_nanos();
        let beyond = self.0.iter().filter(|nanos| u128::from(**nanos) > limit);
        beyond.count()
    }
}

/// Seconds that `f` takes.
pub fn time<R>(f: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    std::hint::black_box(f());
    start.elapsed().as_secs_f64()
}

/// What [`side_by_side`] looks at, if anything.
static CORES: OnceLock<Cores> = OnceLock::new();

/// From now on, what is measured while the cores are far apart is measured again, for as long as `patience` lasts.
pub fn insist_on_near_cores(patience: Duration) {
    CORES.get_or_init(|| Cores::new(patience));
}

/// How often that was so.
pub fn measured_again() -> String {
    CORES.get().map(Cores::describe).unwrap_or_default()
}

/// Times each of `runs` once per round, in seconds. The order is shuffled anew in each round, so that nobody
/// always follows the same neighbour and inherits its caches, clock or threads.
pub fn side_by_side(rounds: usize, runs: &mut [Box<dyn FnMut() + '_>]) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::new(); runs.len()];
    for round in 0..rounds {
        let mut turns: Vec<usize> = (0..runs.len()).collect();
        turns.sort_by_key(|which| steps((round * runs.len() + which) as u64 * 2 + 1, 5));
        for which in turns {
            let run = &mut runs[which];
            times[which].push(match CORES.get() {
                Some(cores) => cores.measure(run).as_secs_f64(),
                None => time(run),
            });
        }
    }
    times
}

/// The median, over the rounds, of what `relate` makes of the figures of two that stood side by side.
pub fn paired(ours: &[f64], theirs: &[f64], relate: impl Fn(f64, f64) -> f64) -> f64 {
    let pairs = ours.iter().zip(theirs);
    median(pairs.map(|(ours, theirs)| relate(*ours, *theirs)).collect())
}

/// With a decimal where one says something.
pub fn nanos(value: f64) -> String {
    match value {
        v if v < 9.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}
