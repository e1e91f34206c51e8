//! What stops a run, and how its workers and its caller learn of it.
//!
//! Workers ask this before each item, so it is a handful of loads. Those of this file are relaxed, because nothing is
//! published through them: results travel under locks, and a stop that is seen one item later is still a stop.

use std::collections::VecDeque;
use std::sync::{OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::cancel::CancellationToken;
use crate::control::Control;
use crate::policy::ErrorPolicy;
use crate::util::sync::atomic::{AtomicU64, Ordering};
use crate::util::sync::{Mutex, now};

/// Stops a run: by a failure, a token, a deadline, or because it is left.
#[derive(Debug)]
pub(crate) struct Stop {
    /// No item at or past this index starts.
    limit: AtomicU64,
    policy: ErrorPolicy,
    /// In an ordered run, what comes before the failure that stops it still runs.
    ordered: bool,
    /// Final failures so far, and the highest index among them.
    failures: AtomicU64,
    highest: AtomicU64,
    /// How many of them are on their way to the consumer, and how many have reached it.
    handed_over: AtomicU64,
    delivered: AtomicU64,
    /// Under [`ErrorPolicy::TolerateRate`]: how many tasks have ended, and when the last failures came, counted in those.
    ended: AtomicU64,
    recent: Mutex<VecDeque<u64>>,
    /// The failure that was one too many among those; `u64::MAX` if none was.
    fatal: AtomicU64,
    /// Each of them stops the run.
    tokens: Vec<CancellationToken>,
    /// A child of all `tokens`: the token of the tasks. It is cancelled when nobody waits for them any more.
    tasks_token: CancellationToken,
    /// The run's own deadline.
    deadline: OnceLock<Instant>,
    /// What pauses the run, and says how wide it is.
    control: Option<Control>,
}

impl Stop {
    pub(crate) fn new(
        policy: ErrorPolicy,
        ordered: bool,
        tokens: Vec<CancellationToken>,
        control: Option<Control>,
    ) -> Self {
        Self {
            limit: AtomicU64::new(u64::MAX),
            policy,
            ordered,
            failures: AtomicU64::new(0),
            highest: AtomicU64::new(0),
            handed_over: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            recent: Mutex::default(),
            fatal: AtomicU64::new(u64::MAX),
            tasks_token: CancellationToken::child_of(&tokens),
            tokens,
            deadline: OnceLock::new(),
            control,
        }
    }

    /// The run starts, and may last so long.
    pub(crate) fn start(&self, deadline: Option<Duration>) {
        // A deadline past the end of time is none.
        if let Some(deadline) = deadline.and_then(|after| now().checked_add(after)) {
            let _ = self.deadline.set(deadline);
            self.tasks_token.set_deadline(deadline);
        }
    }

    /// No further call starts.
    pub(crate) fn forbid_all(&self) {
        self.limit.store(0, Ordering::Relaxed);
    }

    /// Tells the tasks that run that nobody waits for them any more.
    pub(crate) fn cancel_tasks(&self) {
        self.tasks_token.cancel();
    }

    /// Whether the item at `index` may start, now or after a pause.
    pub(crate) fn allows(&self, index: u64) -> bool {
        index < self.limit() && !self.is_interrupted()
    }

    /// What a worker asks before each item. `epoch`: that of the control when the worker last looked at it.
    #[inline]
    pub(crate) fn guard(&self, epoch: u64) -> Guard<'_> {
        let from_outside =
            !self.tokens.is_empty() || self.deadline.get().is_some() || self.control.is_some();
        Guard {
            limit: &self.limit,
            from_outside: from_outside.then_some((self, epoch)),
        }
    }

    pub(crate) fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// No item at or past this index starts.
    #[inline]
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether the limit lets anything start. It knows nothing of a cancel or a deadline.
    #[inline]
    pub(crate) fn allows_any(&self) -> bool {
        self.limit() > 0
    }

    /// Whether failures can stop the run.
    pub(crate) fn has_failure_limit(&self) -> bool {
        self.policy.can_stop()
    }

    /// So many tasks have succeeded.
    #[inline]
    pub(crate) fn record_successes(&self, tasks: usize) {
        if let ErrorPolicy::TolerateRate { .. } = self.policy {
            self.ended.fetch_add(tasks as u64, Ordering::Relaxed);
        }
    }

    /// A failure that no retry can mend has happened at `index`, after `succeeded` tasks that are not counted yet: stops the
    /// run if that is one too many.
    pub(crate) fn record_failure(&self, index: u64, succeeded: usize) {
        if let ErrorPolicy::TolerateRate { failures, window } = self.policy {
            return self.record_failure_of_window(index, succeeded, failures, window);
        }
        let Some(tolerated) = self.policy.tolerated() else {
            return;
        };
        // Each read-modify-write is atomic by itself, and that is enough: whoever finds the count
        // too high reads a `highest` that covers more failures than are tolerated.
        self.highest.fetch_max(index, Ordering::AcqRel);
        if self.failures.fetch_add(1, Ordering::AcqRel) < tolerated {
            return;
        }
        let limit = match (self.ordered, tolerated) {
            (false, _) => 0,
            (true, 0) => index,
            // The failure that is one too many, in the order of the source, is not past this one.
            (true, _) => self.highest.load(Ordering::Acquire),
        };
        self.limit.fetch_min(limit, Ordering::Relaxed);
    }

    fn record_failure_of_window(&self, index: u64, succeeded: usize, failures: u32, window: u32) {
        // So many can never fail.
        if window <= failures {
            return;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = succeeded as u64 + 1;
        let place = self.ended.fetch_add(ended, Ordering::Relaxed) + ended;
        recent.push_back(place);
        if recent.len() as u64 <= u64::from(failures) {
            return;
        }
        let first = recent.pop_front().unwrap_or(place);
        if place - first >= u64::from(window) {
            return;
        }
        let is_first = self.fatal.load(Ordering::Relaxed) == u64::MAX;
        // In an ordered run, the earliest counts, as it is delivered first.
        if is_first || self.ordered {
            self.fatal.fetch_min(index, Ordering::Relaxed);
        }
        let limit = if self.ordered { index } else { 0 };
        self.limit.fetch_min(limit, Ordering::Relaxed);
    }

    /// So many final failures are on their way to the consumer. If the run does not outlive them, its tasks are told;
    /// but in an ordered run, what comes before the failure is wanted.
    ///
    /// Not earlier: a task that fails because it is told to stop must not arrive before the failure that stopped it.
    pub(crate) fn record_handed_over(&self, failures: u64) {
        if failures == 0 || self.ordered {
            return;
        }
        let before = self.handed_over.fetch_add(failures, Ordering::AcqRel);
        let is_over = match self.policy {
            ErrorPolicy::TolerateRate { .. } => !self.allows_any(),
            _ => self.is_too_many(before + failures),
        };
        if is_over {
            self.cancel_tasks();
        }
    }

    /// The consumer gets the failure at `index`. Returns whether it ends the run.
    pub(crate) fn record_delivered_failure(&self, index: u64) -> bool {
        if let ErrorPolicy::TolerateRate { .. } = self.policy {
            return index == self.fatal.load(Ordering::Relaxed);
        }
        let before = self.delivered.fetch_add(1, Ordering::Relaxed);
        self.is_too_many(before + 1)
    }

    fn is_too_many(&self, failures: u64) -> bool {
        let tolerated = self.policy.tolerated();
        tolerated.is_some_and(|tolerated| failures > tolerated)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.tokens.iter().any(CancellationToken::is_cancelled)
    }

    /// Whether the run's own deadline has passed. Reads the clock only if there is one.
    pub(crate) fn is_late(&self) -> bool {
        self.deadline
            .get()
            .is_some_and(|deadline| now() >= *deadline)
    }

    /// Whether the run is cut short from outside. Few can be.
    #[inline]
    pub(crate) fn is_interrupted(&self) -> bool {
        let is_guarded = !self.tokens.is_empty() || self.deadline.get().is_some();
        is_guarded && (self.is_cancelled() || self.is_late())
    }

    /// When the run is cut short: at its own deadline, or at that of a token.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.tasks_token.deadline()
    }

    pub(crate) fn tokens(&self) -> &[CancellationToken] {
        &self.tokens
    }

    /// The tasks' own.
    pub(crate) fn tasks_token(&self) -> &CancellationToken {
        &self.tasks_token
    }
}

/// What a worker looks at before each item.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard<'a> {
    limit: &'a AtomicU64,
    /// There if something else than a failure can stop or pause the run.
    from_outside: Option<(&'a Stop, u64)>,
}

impl Guard<'_> {
    /// Whether the item at `index` may start now.
    #[inline]
    pub(crate) fn allows(&self, index: u64) -> bool {
        index < self.limit.load(Ordering::Relaxed)
            && self.from_outside.is_none_or(|(stop, epoch)| {
                let control = stop.control.as_ref();
                !stop.is_interrupted() && control.is_none_or(|it| it.epoch() == epoch)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ErrorPolicy::{Ignore, Raise, Tolerate};

    fn stop(policy: ErrorPolicy, ordered: bool) -> Stop {
        Stop::new(policy, ordered, Vec::new(), None)
    }

    #[test]
    fn a_failure_past_the_tolerated_ones_stops_everything() {
        let stop = stop(Tolerate(1), false);
        stop.record_failure(10, 0);
        assert!(stop.allows(0) && stop.allows(1_000));
        stop.record_failure(5, 0);
        assert!(!stop.allows(0));
    }

    #[test]
    fn tasks_are_told_once_the_failure_is_on_its_way() {
        let (once, in_order) = (stop(Tolerate(1), false), stop(Raise, true));
        once.record_handed_over(1);
        in_order.record_handed_over(5);
        for stop in [&once, &in_order] {
            assert!(!stop.tasks_token().is_cancelled());
        }
        once.record_handed_over(1);
        assert!(once.tasks_token().is_cancelled() && !once.is_cancelled());
    }

    #[test]
    fn the_failure_that_ends_the_run_is_the_one_after_the_tolerated() {
        let stop = stop(Tolerate(2), false);
        assert_eq!(
            [0; 4].map(|index| stop.record_delivered_failure(index)),
            [false, false, true, true]
        );
    }

    #[test]
    fn in_order_what_comes_before_the_failure_still_runs() {
        let stop = stop(Raise, true);
        stop.record_failure(10, 0);
        assert!(stop.allows(9) && !stop.allows(10));
        stop.record_failure(5, 0);
        assert!(stop.allows(4) && !stop.allows(5));
        stop.record_failure(8, 0);
        assert!(!stop.allows(5));
    }

    #[test]
    fn in_order_tolerated_failures_leave_room_for_each_other() {
        let stop = stop(Tolerate(1), true);
        stop.record_failure(10, 0);
        stop.record_failure(3, 0);
        // In order, 10 is the second failure.
        assert!(stop.allows(9) && !stop.allows(10));
    }

    #[test]
    fn any_number_is_tolerated_without_a_budget() {
        let stop = stop(Ignore, false);
        (0..100).for_each(|index| stop.record_failure(index, 0));
        assert!(stop.allows(0));
        stop.forbid_all();
        assert!(!stop.allows(0));
    }

    #[test]
    fn too_many_of_the_last_tasks_stop_everything() {
        let policy = ErrorPolicy::TolerateRate {
            failures: 2,
            window: 10,
        };
        let rare = stop(policy, false);
        // Three of ten would be too many, three of eleven are not.
        for index in (0..100).step_by(5) {
            rare.record_failure(index, 4);
        }
        assert!(rare.allows(1_000));
        rare.record_handed_over(20);
        assert!(!rare.tasks_token().is_cancelled());
        let often = stop(policy, false);
        often.record_successes(100);
        [100, 103]
            .iter()
            .for_each(|index| often.record_failure(*index, 0));
        often.record_successes(7);
        assert!(often.allows(0));
        // The tenth since the first of them.
        often.record_failure(110, 0);
        assert!(!often.allows(0));
        assert!(!often.tasks_token().is_cancelled());
        often.record_handed_over(3);
        assert!(often.tasks_token().is_cancelled());
        assert_eq!(
            [100, 103, 110].map(|it| often.record_delivered_failure(it)),
            [false, false, true]
        );
        // The fourth, the eighth and the tenth that end.
        let mixed = stop(policy, false);
        [3, 3, 1]
            .iter()
            .for_each(|succeeded| mixed.record_failure(0, *succeeded));
        assert!(!mixed.allows(0));
        let ordered = stop(policy, true);
        [5, 3, 9]
            .iter()
            .for_each(|index| ordered.record_failure(*index, 0));
        assert!(ordered.allows(8) && !ordered.allows(9));
    }

    #[test]
    fn a_cancel_and_a_deadline_each_interrupt() {
        let token = CancellationToken::new();
        let cancelled = Stop::new(Ignore, false, vec![token.clone()], None);
        assert!(!cancelled.is_interrupted());
        token.cancel();
        assert!(cancelled.is_interrupted() && !cancelled.is_late());
        assert!(cancelled.tasks_token().is_cancelled());
        let early = stop(Ignore, false);
        early.start(Some(Duration::from_secs(3_600)));
        assert!(!early.is_interrupted() && early.allows(0));
        let late = stop(Ignore, false);
        late.start(Some(Duration::ZERO));
        assert!(late.is_late() && late.is_interrupted() && !late.allows(0));
    }

    #[test]
    fn only_what_can_stop_the_run_is_a_limit() {
        assert!(stop(Raise, false).has_failure_limit());
        assert!(!stop(Ignore, false).has_failure_limit());
    }
}
