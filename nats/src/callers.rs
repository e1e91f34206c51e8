//! What a worker knows of its callers: which do not respond, and whose runs are over.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many callers to remember.
const MAX_CALLERS: usize = 1024;

/// How often a caller that does not respond is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a task of a caller that does not respond is put aside: as long as the caller has not responded.
const MIN_PUT_ASIDE: Duration = Duration::from_millis(500);
const MAX_PUT_ASIDE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Responsive,
    Unresponsive,
    /// It said that its run is over.
    Over,
}

/// The callers that are not simply there.
#[derive(Default)]
pub(crate) struct Callers {
    runs: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    since: Instant,
    asked: Instant,
    is_over: bool,
}

impl Callers {
    pub(crate) fn state(&self, run: &str) -> Caller {
        match self.runs().get(run) {
            None => Caller::Responsive,
            Some(entry) if entry.is_over => Caller::Over,
            Some(_) => Caller::Unresponsive,
        }
    }

    pub(crate) fn mark_responsive(&self, run: &str) {
        let mut runs = self.runs();
        if runs.get(run).is_some_and(|entry| !entry.is_over) {
            runs.remove(run);
        }
    }

    pub(crate) fn mark_unresponsive(&self, run: &str) {
        self.enter(run);
    }

    pub(crate) fn mark_over(&self, run: &str) {
        self.enter(run);
        if let Some(entry) = self.runs().get_mut(run) {
            entry.is_over = true;
        }
    }

    /// How long to put aside a task of this run.
    pub(crate) fn put_aside(&self, run: &str) -> Duration {
        let since = self.runs().get(run).map(|entry| entry.since.elapsed());
        since
            .unwrap_or_default()
            .clamp(MIN_PUT_ASIDE, MAX_PUT_ASIDE)
    }

    /// Whether it is time to ask this caller again. Whoever hears so does it.
    pub(crate) fn is_to_be_asked(&self, run: &str) -> bool {
        let mut runs = self.runs();
        let due = runs
            .get_mut(run)
            .filter(|entry| !entry.is_over && entry.asked.elapsed() > ASK_INTERVAL);
        due.map(|entry| entry.asked = Instant::now()).is_some()
    }

    fn enter(&self, run: &str) {
        let mut runs = self.runs();
        if runs.len() >= MAX_CALLERS {
            let oldest = runs
                .iter()
                .min_by_key(|(_, entry)| entry.since)
                .map(|(run, _)| run.clone());
            let oldest = oldest.unwrap_or_else(|| unreachable!("it has entries: it is full"));
            runs.remove(&oldest);
        }
        let now = Instant::now();
        runs.entry(run.to_owned()).or_insert(Entry {
            since: now,
            asked: now,
            is_over: false,
        });
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_over_stays_so_and_the_oldest_are_forgotten() {
        let callers = Callers::default();
        callers.mark_over("first");
        callers.mark_responsive("first");
        callers.mark_unresponsive("first");
        assert_eq!(callers.state("first"), Caller::Over);
        callers.mark_unresponsive("second");
        assert_eq!(callers.state("second"), Caller::Unresponsive);
        callers.mark_responsive("second");
        assert_eq!(callers.state("second"), Caller::Responsive);
        for n in 0..2 * MAX_CALLERS {
            callers.mark_unresponsive(&n.to_string());
        }
        assert_eq!(callers.runs().len(), MAX_CALLERS);
        assert_eq!(callers.state("first"), Caller::Responsive);
    }
}
