//! Medians and percentiles.

use std::time::{Duration, Instant};

/// The middle of `values`.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Some durations, to be looked at together.
#[derive(Default)]
pub struct Spread(Vec<Duration>);

impl Spread {
    pub fn add(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// The duration that `share` of all do not exceed.
    pub fn percentile(&mut self, share: f64) -> Duration {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        self.0
            .get((last as f64 * share).round() as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Those longer than `limit`: how many, and the longest of the others.
    pub fn beyond(&mut self, limit: Duration) -> (usize, Duration) {
        self.0.sort_unstable();
        let within = self.0.partition_point(|it| *it <= limit);
        let longest = within
            .checked_sub(1)
            .map_or(Duration::ZERO, |it| self.0[it]);
        (self.0.len() - within, longest)
    }
}

/// Seconds that `f` takes.
pub fn time<R>(f: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    std::hint::black_box(f());
    start.elapsed().as_secs_f64()
}

/// Times each of `runs` once per round, beginning with another one each time; the medians, in seconds.
pub fn side_by_side(rounds: usize, runs: &mut [Box<dyn FnMut() + '_>]) -> Vec<f64> {
    let mut times = vec![Vec::new(); runs.len()];
    for round in 0..rounds {
        for turn in 0..runs.len() {
            let which = (turn + round) % runs.len();
            times[which].push(time(&mut runs[which]));
        }
    }
    times.into_iter().map(median).collect()
}

/// `1.2 µs` and the like.
pub fn nanos(value: f64) -> String {
    match value {
        v if v < 9.95 => format!("{v:.1}"),
        v if v < 1e6 => format!("{v:.0}"),
        v => format!("{:.2} ms", v / 1e6),
    }
}
