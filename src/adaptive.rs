//! Finds how many calls at once are best: hill climbing on the throughput, as .NET's thread pool does it (Hellerstein and others,
//! *Optimizing concurrency levels in the .NET ThreadPool*, 2008), with the doubling start of TCP and its multiplicative decrease
//! when failures rise. Pure.
//!
//! The throughput at a width is the width divided by what a call takes (Little's law). So neither a slow consumer nor a slow source is
//! taken for a slow function: while not all who may be at work are, nothing is measured.

use std::time::{Duration, Instant};

/// A width is measured for at least this long.
const WINDOW: Duration = Duration::from_millis(20);
/// So much of the width must be at work for a measure to count.
const BUSY: f64 = 0.6;
/// Twice the width must be worth so much at the start.
const DOUBLED: f64 = 1.4;
/// A wider run must have this share of the throughput that it would have if calls took no longer.
const WORTH: f64 = 0.5;
/// A narrower run may lose this share of what it would lose if the throughput followed the width.
const WORTHLESS: f64 = 0.25;
/// Between two trials, so many measures are taken of the width that is the best so far: twice as many after each that was in
/// vain.
const REST: u32 = 2;
const LONGEST_REST: u32 = 16;

/// What the climber does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Doubles the width.
    Start,
    /// Measures the best width again, so many times.
    Rest(u32),
    /// Tries a wider run, or a narrower one.
    Wider,
    Narrower,
}

/// What came back from the workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) calls: usize,
    pub(crate) failed: usize,
    /// How long the calls took, added up.
    pub(crate) busy: Duration,
}

/// Climbs to the width with the highest throughput.
#[derive(Debug)]
pub(crate) struct Adaptive {
    width: usize,
    phase: Phase,
    /// The best width so far, and its throughput in calls a second; 0 if it is not known.
    best: (usize, f64),
    stride: usize,
    rest: u32,
    is_wider_next: bool,
    /// The usual share of failures.
    failures: f64,
    /// Calls that began before the width was set.
    to_skip: usize,
    since: Option<Instant>,
    sum: Sample,
}

const NOTHING: Sample = Sample {
    calls: 0,
    failed: 0,
    busy: Duration::ZERO,
};

impl Adaptive {
    pub(crate) fn new() -> Self {
        Self {
            width: 1,
            phase: Phase::Start,
            best: (1, 0.0),
            stride: 1,
            rest: REST,
            is_wider_next: false,
            failures: 0.0,
            to_skip: 0,
            since: None,
            sum: NOTHING,
        }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Somebody else has set the width; `usize::MAX` is the beginning.
    pub(crate) fn start_at(&mut self, width: usize) {
        *self = Self::new();
        if width < usize::MAX {
            self.width = width;
            self.best.0 = width;
        }
    }

    /// Calls have come back; the width is to be `max` at most.
    pub(crate) fn record(&mut self, sample: Sample, now: Instant, max: usize) {
        // Somebody has set more than there are threads.
        if self.width > max {
            self.start_at(max.max(1));
        }
        if self.to_skip > 0 {
            self.to_skip = self.to_skip.saturating_sub(sample.calls);
            self.since = None;
            return;
        }
        let Some(since) = self.since else {
            // What has just come back began before.
            self.since = Some(now);
            self.sum = NOTHING;
            return;
        };
        self.sum.calls += sample.calls;
        self.sum.failed += sample.failed;
        self.sum.busy += sample.busy;
        let enough = match self.phase {
            Phase::Start => (2 * self.width).max(8),
            _ => (4 * self.width).max(24),
        };
        let time = now - since;
        if self.sum.calls < enough || time < WINDOW {
            return;
        }
        let Sample {
            calls,
            failed,
            busy,
        } = self.sum;
        self.since = Some(now);
        self.sum = NOTHING;
        let busy = busy.as_secs_f64();
        let at_work = busy / time.as_secs_f64();
        if at_work < BUSY * self.width.min(max) as f64 || busy == 0.0 {
            return;
        }
        let rate = self.width as f64 * calls as f64 / busy;
        self.judge(rate, failed as f64 / calls as f64, max);
    }

    fn judge(&mut self, rate: f64, failures: f64, max: usize) {
        if failures > 2.0 * self.failures + 0.1 {
            self.failures += (failures - self.failures) / 4.0;
            self.best = ((self.width * 2 / 3).max(1), 0.0);
            self.rest(LONGEST_REST);
            return;
        }
        self.failures += (failures - self.failures) / 16.0;
        let (best, best_rate) = self.best;
        let gain = if best_rate > 0.0 {
            rate / best_rate
        } else {
            f64::INFINITY
        };
        let change = self.width as f64 / best as f64 - 1.0;
        match self.phase {
            Phase::Start if gain >= DOUBLED => {
                self.best = (self.width, rate);
                if self.width >= max {
                    self.rest(REST);
                } else {
                    self.set(2 * self.width, max);
                }
            }
            // The best one is between this and the one before.
            Phase::Start => {
                self.best = ((best as f64 * gain.max(1.0)).round() as usize, 0.0);
                self.rest(REST);
            }
            Phase::Rest(left) => {
                self.best.1 = if best_rate > 0.0 {
                    (best_rate + rate) / 2.0
                } else {
                    rate
                };
                if left > 1 {
                    self.phase = Phase::Rest(left - 1);
                } else {
                    self.stride = (best / 8).max(1);
                    self.try_next(max);
                }
            }
            Phase::Wider if gain >= 1.0 + WORTH * change => {
                self.best = (self.width, rate);
                self.stride *= 2;
                self.rest = REST;
                self.try_wider(max);
            }
            Phase::Narrower if gain >= 1.0 + WORTHLESS * change => {
                self.best = (self.width, rate);
                self.rest = REST;
                self.try_narrower(max);
            }
            Phase::Wider | Phase::Narrower => {
                self.rest = (2 * self.rest).min(LONGEST_REST);
                self.rest(self.rest);
            }
        }
    }

    fn try_next(&mut self, max: usize) {
        self.is_wider_next = !self.is_wider_next;
        if self.is_wider_next {
            self.try_wider(max);
        } else {
            self.try_narrower(max);
        }
    }

    fn try_wider(&mut self, max: usize) {
        self.phase = Phase::Wider;
        if self.best.0 >= max {
            self.rest(self.rest);
        } else {
            self.set(self.best.0 + self.stride, max);
        }
    }

    fn try_narrower(&mut self, max: usize) {
        self.phase = Phase::Narrower;
        if self.best.0 <= 1 {
            self.rest(self.rest);
        } else {
            self.set(self.best.0.saturating_sub(self.stride), max);
        }
    }

    fn rest(&mut self, measures: u32) {
        self.phase = Phase::Rest(measures);
        self.set(self.best.0, usize::MAX);
    }

    fn set(&mut self, width: usize, max: usize) {
        let width = width.clamp(1, max.max(1));
        if width != self.width {
            self.to_skip = self.width.max(width);
            self.width = width;
        }
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::sync::now;

    /// A closed system in which a call takes as long as `latency` says of the width. Returns, for each 100 ms, the throughput
    /// as a share of the best that a fixed width has.
    fn shares(max: usize, seconds: f64, latency: impl Fn(usize, u64) -> f64) -> Vec<f64> {
        let rate = |width| width as f64 / (0..64).map(|n| latency(width, n)).sum::<f64>() * 64.0;
        let best = (1..=max).map(rate).fold(0.0, f64::max);
        let (mut adaptive, start) = (Adaptive::new(), now());
        // When each call ends, and how long it took.
        let mut calls: Vec<(f64, f64)> = Vec::new();
        let mut ended = vec![0.0; (seconds * 10.0) as usize];
        let (mut time, mut count) = (0.0, 0);
        loop {
            while calls.len() < adaptive.width() {
                let took = latency(adaptive.width(), count);
                count += 1;
                calls.push((time + took, took));
            }
            let next = (0..calls.len())
                .min_by(|a, b| calls[*a].0.total_cmp(&calls[*b].0))
                .unwrap();
            let (end, took) = calls.swap_remove(next);
            time = end;
            let Some(slice) = ended.get_mut((time * 10.0) as usize) else {
                break;
            };
            *slice += 10.0 / best;
            let sample = Sample {
                calls: 1,
                failed: 0,
                busy: Duration::from_secs_f64(took),
            };
            adaptive.record(sample, start + Duration::from_secs_f64(time), max);
        }
        ended
    }

    /// At most ten slices in a row are below 70 %, and from the fifth second on the mean is above 90 %.
    fn assert_finds_it(what: &str, shares: &[f64]) {
        let low = shares.split(|share| *share >= 0.7).map(<[f64]>::len).max();
        assert!(low <= Some(10), "{what}: {shares:.2?}");
        let late = &shares[50..];
        let mean = late.iter().sum::<f64>() / late.len() as f64;
        assert!(mean >= 0.9, "{what}: {mean:.3}, {shares:.2?}");
    }

    /// Between 0.5 and 1.5.
    fn noise(n: u64) -> f64 {
        0.5 + (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / (1u64 << 24) as f64
    }

    #[test]
    fn it_finds_the_knee_of_a_service() {
        for knee in [1, 2, 6, 40, 64] {
            for (each, seconds) in [(0.003, 8.0), (0.020, 15.0)] {
                let over = |width: usize| (width as f64 / knee as f64).max(1.0);
                let even = shares(64, seconds, |width, _| each * over(width));
                assert_finds_it(&format!("knee {knee}, {each} s"), &even);
                let noisy = shares(64, seconds, |width, n| each * over(width) * noise(n));
                assert_finds_it(&format!("knee {knee}, {each} s, noisy"), &noisy);
            }
        }
    }

    #[test]
    fn it_leaves_a_service_alone_that_slows_past_its_knee() {
        for knee in [6, 40] {
            let over = |width: usize| (width as f64 / knee as f64).max(1.0).powi(2);
            let even = shares(64, 15.0, |width, _| 0.010 * over(width));
            assert_finds_it(&format!("knee {knee}"), &even);
        }
    }

    /// So many calls come back one by one, `width` of them in each `latency`. Gives after which ones the width has changed,
    /// and to what.
    fn changes(
        adaptive: &mut Adaptive,
        calls: u32,
        latency: Duration,
        max: usize,
    ) -> Vec<(u32, usize)> {
        let (mut time, mut changes) = (now(), Vec::new());
        for call in 1..=calls {
            let before = adaptive.width();
            time += latency / before as u32;
            let sample = Sample {
                calls: 1,
                failed: 0,
                busy: latency,
            };
            adaptive.record(sample, time, max);
            if adaptive.width() != before {
                changes.push((call, adaptive.width()));
            }
        }
        changes
    }

    #[test]
    fn a_measure_takes_its_calls_and_its_time() {
        let ms = Duration::from_millis;
        // The first call back starts the clock, then it takes 20 ms.
        assert_eq!(changes(&mut Adaptive::new(), 21, ms(1), 64), [(21, 2)]);
        // Or eight calls, or twice the width; as many as were out under another width do not count.
        let slow = changes(&mut Adaptive::new(), 45, ms(160), 64);
        assert_eq!(slow, [(9, 2), (20, 4), (33, 8)]);
        let wide = |phase| Adaptive {
            width: 16,
            best: (16, 100.0),
            stride: 2,
            phase,
            ..Adaptive::new()
        };
        // 80 calls a second are no gain over 100: back to 16.
        let start = Adaptive {
            best: (4, 100.0),
            ..wide(Phase::Start)
        };
        let back = changes(&mut { start }, 40, ms(200), 64);
        assert_eq!(back, [(33, 4)]);
        // At other times four times the width.
        let rest = changes(&mut wide(Phase::Rest(1)), 90, ms(160), 64);
        assert_eq!(rest, [(65, 18)]);
        // Or 24 calls.
        let narrow = Adaptive {
            width: 3,
            best: (3, 18.75),
            ..wide(Phase::Rest(1))
        };
        assert_eq!(changes(&mut { narrow }, 40, ms(160), 64), [(25, 4)]);
    }

    #[test]
    fn nothing_is_measured_while_not_all_are_at_work() {
        let waits = |busy| {
            let mut adaptive = Adaptive {
                width: 4,
                ..Adaptive::new()
            };
            let mut time = now();
            for _ in 0..2 {
                let sample = Sample {
                    calls: 64,
                    failed: 0,
                    busy: Duration::from_millis(busy),
                };
                adaptive.record(sample, time, 64);
                time += Duration::from_millis(100);
            }
            adaptive.width() == 4
        };
        // Four who could have been at work for 400 ms altogether.
        assert!(waits(0));
        assert!(waits(239));
        assert!(!waits(241));
        assert!(!waits(400));
    }

    /// What a measure makes of a climber: its phase, its width, the best one and the throughput there.
    fn judged(adaptive: &mut Adaptive, rate: f64, max: usize) -> (Phase, usize, usize, f64) {
        adaptive.judge(rate, 0.0, max);
        let (best, best_rate) = adaptive.best;
        (adaptive.phase, adaptive.width, best, best_rate)
    }

    fn climber(phase: Phase, width: usize, best: (usize, f64)) -> Adaptive {
        Adaptive {
            width,
            phase,
            best,
            ..Adaptive::new()
        }
    }

    #[test]
    fn the_start_doubles_while_that_is_worth_it() {
        use Phase::{Rest, Start};
        let start = |width, best| climber(Start, width, best);
        assert_eq!(
            judged(&mut start(1, (1, 0.0)), 10.0, 64),
            (Start, 2, 1, 10.0)
        );
        assert_eq!(
            judged(&mut start(8, (4, 10.0)), 14.0, 64),
            (Start, 16, 8, 14.0)
        );
        // Not wider than may be; there it rests.
        assert_eq!(
            judged(&mut start(8, (4, 10.0)), 14.0, 12),
            (Start, 12, 8, 14.0)
        );
        assert_eq!(
            judged(&mut start(12, (8, 10.0)), 14.0, 12),
            (Rest(REST), 12, 12, 14.0)
        );
        // Between the last two, as far as it was worth it.
        assert_eq!(
            judged(&mut start(16, (8, 10.0)), 12.5, 64),
            (Rest(REST), 10, 10, 0.0)
        );
        assert_eq!(
            judged(&mut start(16, (8, 10.0)), 7.0, 64),
            (Rest(REST), 8, 8, 0.0)
        );
    }

    #[test]
    fn a_rest_measures_the_best_width_again_and_then_tries_another() {
        use Phase::{Narrower, Rest, Wider};
        let rest = |left, best| climber(Rest(left), best, (best, 10.0));
        assert_eq!(judged(&mut rest(3, 40), 14.0, 64), (Rest(2), 40, 40, 12.0));
        let first = &mut climber(Rest(3), 40, (40, 0.0));
        assert_eq!(judged(first, 14.0, 64), (Rest(2), 40, 40, 14.0));
        // An eighth wider, and the next time narrower.
        let last = &mut rest(1, 40);
        assert_eq!(judged(last, 10.0, 64), (Wider, 45, 40, 10.0));
        assert_eq!(judged(last, 10.0, 64), (Rest(2 * REST), 40, 40, 10.0));
        for _ in 1..2 * REST {
            assert_eq!(judged(last, 10.0, 64).1, 40);
        }
        assert_eq!(judged(last, 10.0, 64), (Narrower, 35, 40, 10.0));
        // By one at least; not beyond the most, nor below one.
        assert_eq!(judged(&mut rest(1, 3), 10.0, 64), (Wider, 4, 3, 10.0));
        assert_eq!(judged(&mut rest(1, 60), 10.0, 64), (Wider, 64, 60, 10.0));
        assert_eq!(
            judged(&mut rest(1, 64), 10.0, 64),
            (Rest(REST), 64, 64, 10.0)
        );
        let one = &mut rest(1, 1);
        one.is_wider_next = true;
        assert_eq!(judged(one, 10.0, 64), (Rest(REST), 1, 1, 10.0));
    }

    #[test]
    fn a_trial_must_be_worth_its_width() {
        use Phase::{Narrower, Rest, Wider};
        let trial = |phase, width| Adaptive {
            stride: 8,
            rest: 4,
            ..climber(phase, width, (32, 16.0))
        };
        // A quarter wider: an eighth more; the next step is twice as long, and the next rest short.
        let wider = &mut trial(Wider, 40);
        assert_eq!(judged(wider, 18.0, 64), (Wider, 56, 40, 18.0));
        assert_eq!(wider.rest, REST);
        let in_vain = &mut trial(Wider, 40);
        assert_eq!(judged(in_vain, 17.5, 64), (Rest(8), 32, 32, 16.0));
        assert_eq!(in_vain.rest, 8);
        // A quarter narrower: it may lose a sixteenth.
        let narrower = &mut trial(Narrower, 24);
        assert_eq!(judged(narrower, 15.0, 64), (Narrower, 16, 24, 15.0));
        assert_eq!((narrower.rest, narrower.stride), (REST, 8));
        let slower = &mut trial(Narrower, 24);
        assert_eq!(judged(slower, 14.5, 64), (Rest(8), 32, 32, 16.0));
        let often = &mut trial(Narrower, 24);
        often.rest = LONGEST_REST;
        assert_eq!(judged(often, 0.0, 64), (Rest(LONGEST_REST), 32, 32, 16.0));
    }

    #[test]
    fn more_failures_than_usual_make_it_narrower() {
        let failing = |width, usual, share| {
            let mut adaptive = Adaptive {
                failures: usual,
                ..climber(Phase::Wider, width, (8, 10.0))
            };
            adaptive.judge(10.0, share, 64);
            (
                adaptive.phase,
                adaptive.best,
                adaptive.width,
                adaptive.failures,
            )
        };
        let rest = Phase::Rest(LONGEST_REST);
        assert_eq!(failing(12, 0.0, 0.5), (rest, (8, 0.0), 8, 0.125));
        assert_eq!(failing(1, 0.0, 0.5), (rest, (1, 0.0), 1, 0.125));
        assert_eq!(failing(12, 0.25, 0.75), (rest, (8, 0.0), 8, 0.375));
        // Twice the usual share and a tenth is not too many.
        let usual = failing(12, 0.25, 0.5);
        assert_eq!((usual.1, usual.3), ((8, 10.0), 0.265625));
        let usual = failing(12, 0.0, 0.1);
        assert_eq!((usual.1, usual.3), ((8, 10.0), 0.00625));
        // The share is that of the measure.
        let mut adaptive = climber(Phase::Wider, 12, (8, 10.0));
        for millis in [0, 100] {
            let sample = Sample {
                calls: 64,
                failed: 32,
                busy: Duration::from_millis(1_200),
            };
            adaptive.record(sample, now() + Duration::from_millis(millis), 64);
        }
        assert_eq!(adaptive.failures, 0.125);
    }

    #[test]
    fn it_starts_again_where_somebody_sets_the_width() {
        let mut adaptive = climber(Phase::Rest(3), 40, (40, 10.0));
        let state = |adaptive: &Adaptive| (adaptive.phase, adaptive.width(), adaptive.best);
        adaptive.start_at(7);
        assert_eq!(state(&adaptive), (Phase::Start, 7, (7, 0.0)));
        adaptive.start_at(usize::MAX);
        assert_eq!(state(&adaptive), (Phase::Start, 1, (1, 0.0)));
        // More than there are threads.
        adaptive.start_at(100);
        adaptive.record(NOTHING, now(), 8);
        assert_eq!(state(&adaptive), (Phase::Start, 8, (8, 0.0)));
        let mut narrow = climber(Phase::Rest(3), 4, (4, 10.0));
        narrow.record(NOTHING, now(), 8);
        assert_eq!(state(&narrow), (Phase::Rest(3), 4, (4, 10.0)));
    }

    #[test]
    fn it_gets_narrower_when_failures_rise() {
        let mut adaptive = Adaptive::new();
        let start = now();
        // The narrowest that it gets.
        let mut run = |failed: usize, from: u64| {
            let mut least = usize::MAX;
            for millis in from..from + 2_000 {
                let sample = Sample {
                    calls: adaptive.width(),
                    failed: adaptive.width() * failed / 10,
                    busy: Duration::from_millis(adaptive.width() as u64),
                };
                adaptive.record(sample, start + Duration::from_millis(millis), 64);
                least = least.min(adaptive.width());
            }
            least
        };
        run(0, 0);
        let before = run(0, 2_000);
        let after = run(5, 4_000);
        assert!(after < before, "{after}, {before}");
    }
}
