//! How often tasks may start: evenly spread, as the generic cell rate algorithm (GCRA) has it.

use std::time::{Duration, Instant};

/// A caller that wakes up late makes up for this much. Timers are late by some 60 µs, and on a busy machine by milliseconds: quick
/// rates would suffer from that.
const CATCH_UP: Duration = Duration::from_millis(5);

/// When the next tasks may start.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    next: Option<Instant>,
}

impl Pace {
    /// `calls` in each `per`; `None` is no limit.
    pub(crate) fn new(calls: u32, per: Duration) -> Option<Self> {
        let interval = per.checked_div(calls).filter(|it| !it.is_zero())?;
        Some(Self {
            interval,
            next: None,
        })
    }

    /// When the next task may start; `None` is at once.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// When the next start was due, as far as it can still be made up for.
    fn due(&self, now: Instant) -> Instant {
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        self.next.map_or(now, |next| next.max(earliest))
    }

    /// How many tasks may start now.
    pub(crate) fn ready(&self, now: Instant) -> usize {
        let due = self.due(now);
        if due > now {
            return 0;
        }
        let behind = (now - due).as_nanos() / self.interval.as_nanos();
        1 + behind as usize
    }

    /// So many tasks start.
    pub(crate) fn start(&mut self, tasks: usize, now: Instant) {
        let due = self.due(now);
        let time = self.interval.saturating_mul(tasks as u32);
        // Past the end of time is never.
        let next = due.checked_add(time);
        self.next = Some(next.unwrap_or(due + Duration::from_secs(1 << 32)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::sync::now;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn starts_are_spread_evenly() {
        let mut pace = Pace::new(100, Duration::from_secs(1)).unwrap();
        let start = now();
        let mut times = Vec::new();
        for millis in 0..100 {
            let time = start + millis * MS;
            for _ in 0..pace.ready(time) {
                pace.start(1, time);
                times.push(millis);
            }
        }
        assert_eq!(times, (0..100).step_by(10).collect::<Vec<_>>());
    }

    #[test]
    fn a_caller_that_is_a_little_late_makes_up_for_it_and_one_that_was_away_does_not() {
        let mut pace = Pace::new(10_000, Duration::from_secs(1)).unwrap();
        let start = now();
        pace.start(1, start);
        // Of the next 500 µs, and those are gone then.
        assert_eq!(pace.ready(start + MS / 2), 5);
        pace.start(5, start + MS / 2);
        assert_eq!(pace.ready(start + MS / 2), 0);
        // Of the last five milliseconds only.
        assert_eq!(pace.ready(start + 1_000 * MS), 51);
        let mut slow = Pace::new(1, Duration::from_secs(60)).unwrap();
        slow.start(1, start);
        assert_eq!(slow.ready(start + 59_999 * MS), 0);
        assert_eq!(slow.ready(start + 600_000 * MS), 1);
    }

    #[test]
    fn it_says_when_the_next_one_may_start() {
        let mut pace = Pace::new(100, Duration::from_secs(1)).unwrap();
        assert_eq!(pace.next(), None);
        let start = now();
        pace.start(3, start);
        assert_eq!(pace.next(), Some(start + 30 * MS));
    }

    #[test]
    fn odd_values_are_no_limit_or_never() {
        assert!(Pace::new(0, MS).is_none());
        assert!(Pace::new(5, Duration::ZERO).is_none());
        assert!(Pace::new(u32::MAX, MS).is_none());
        let mut never = Pace::new(1, Duration::MAX).unwrap();
        let start = now();
        assert_eq!(never.ready(start), 1);
        never.start(1, start);
        assert_eq!(never.ready(start + Duration::from_secs(1 << 30)), 0);
    }
}
