//! The children of a function: which are idle, and whether another may be started.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::worker::{Failure, Recipe, Worker, lock};
use crate::cancel::CancellationToken;

/// While no child has ever served, no more are started after this many failures in a row.
const TRIES: u32 = 3;
/// The pause after a failed start. It doubles with each failure in a row.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Children {
    recipe: Recipe,
    /// After how many tasks a child is replaced; 0 for never.
    max_tasks: u64,
    state: Mutex<State>,
    /// A child became idle, or a start has succeeded or failed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Children without a task. The last one that was busy is taken first.
    idle: Vec<Worker>,
    /// How many children there are, idle and busy.
    count: usize,
    starting: usize,
    /// Whether any child has ever served. Until then, a program may be one that cannot.
    has_served: bool,
    outage: Option<Outage>,
}

/// Starts that have failed in a row.
#[derive(Debug)]
struct Outage {
    since: Instant,
    failures: u32,
    reason: String,
    next_try: Instant,
}

/// Why there is no child.
pub(super) enum Refusal {
    Cancelled,
    /// No child can be started, and there is none to wait for.
    Start(String),
}

/// What a thread is to do that needs a child.
enum Next {
    Take(Worker),
    Start,
    /// Until then, or until something changes.
    Wait(Option<Instant>),
    GiveUp(String),
}

impl Children {
    pub(super) fn new(recipe: Recipe, max_tasks: u64) -> Self {
        let (state, changed) = Default::default();
        Self {
            recipe,
            max_tasks,
            state,
            changed,
        }
    }

    pub(super) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Takes an idle child, or starts one. If none can be started now, waits until one is idle or another try is due.
    pub(super) fn take(self: &Arc<Self>, token: &CancellationToken) -> Result<Lease, Refusal> {
        let mut listener = None;
        loop {
            if token.is_cancelled() {
                return Err(Refusal::Cancelled);
            }
            // Those that died while idle are reaped when the lock is free again.
            let mut dead = Vec::new();
            let mut state = lock(&self.state);
            match state.next(&mut dead, self.recipe.start_timeout.saturating_mul(2)) {
                Next::Take(worker) => return Ok(self.lease(worker)),
                Next::GiveUp(reason) => return Err(Refusal::Start(reason)),
                Next::Start => {
                    drop(state);
                    drop(dead);
                    if let Some(worker) = self.start(token) {
                        return Ok(self.lease(worker));
                    }
                }
                Next::Wait(until) if listener.is_some() && dead.is_empty() => {
                    let until = until.into_iter().chain(token.deadline()).min();
                    self.wait(state, until);
                }
                Next::Wait(_) => {
                    drop(state);
                    let children = Arc::clone(self);
                    // Under the lock, so that whoever is about to wait is woken.
                    let wake = move || {
                        let _state = lock(&children.state);
                        children.changed.notify_all();
                    };
                    listener.get_or_insert_with(|| token.on_cancel(wake));
                }
            }
        }
    }

    fn wait(&self, state: MutexGuard<'_, State>, until: Option<Instant>) {
        match until {
            None => drop(self.changed.wait(state)),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                drop(self.changed.wait_timeout(state, left));
            }
        }
    }

    fn lease(self: &Arc<Self>, worker: Worker) -> Lease {
        let children = Arc::clone(self);
        let worker = Some(worker);
        Lease { children, worker }
    }

    /// `None` if it failed; then [`State::next`] knows what to do.
    fn start(&self, token: &CancellationToken) -> Option<Worker> {
        let started = Worker::start(&self.recipe, token, token.deadline());
        let mut state = lock(&self.state);
        state.starting -= 1;
        let worker = match started {
            Ok(worker) => {
                state.count += 1;
                state.has_served = true;
                state.outage = None;
                Some(worker)
            }
            Err(failure) => {
                // A cancel is not a failed start.
                if !token.is_cancelled() {
                    state.note(failure, &self.recipe.name);
                }
                None
            }
        };
        self.changed.notify_all();
        worker
    }

    fn put_back(&self, worker: Worker) {
        let mut state = lock(&self.state);
        let done = match worker.can_go_on(self.max_tasks) {
            true => {
                state.idle.push(worker);
                None
            }
            false => {
                state.count -= 1;
                Some(worker)
            }
        };
        drop(state);
        self.changed.notify_all();
        drop(done);
    }
}

impl State {
    fn next(&mut self, dead: &mut Vec<Worker>, patience: Duration) -> Next {
        while let Some(worker) = self.idle.pop() {
            if !worker.has_ended() {
                return Next::Take(worker);
            }
            self.count -= 1;
            dead.push(worker);
        }
        let now = Instant::now();
        let next = match &self.outage {
            None => Next::Start,
            Some(outage) if !self.has_served && outage.failures >= TRIES => match self.starting {
                0 => Next::GiveUp(outage.reason.clone()),
                // One of those that are starting may serve yet.
                _ => Next::Wait(None),
            },
            Some(outage) if now >= outage.next_try => Next::Start,
            Some(outage) if self.count + self.starting == 0 && now - outage.since >= patience => {
                Next::GiveUp(outage.reason.clone())
            }
            Some(outage) => Next::Wait(Some(outage.next_try)),
        };
        if let Next::Start = next {
            self.starting += 1;
            // One thread tries, the others wait for the outcome.
            if let Some(outage) = &mut self.outage {
                outage.next_try = now + LONGEST_PAUSE;
            }
        }
        next
    }

    fn note(&mut self, failure: Failure, name: &str) {
        let now = Instant::now();
        let failures = self.outage.as_ref().map_or(0, |outage| outage.failures) + 1;
        let failures = match failure.is_final && !self.has_served {
            true => TRIES,
            false => failures,
        };
        let reason = failure.text;
        if self.outage.is_none() && (self.has_served || self.starting != 0) {
            log::warn!(
                target: "futureproof",
                "{name}: cannot start another worker process, going on with {}: {reason}",
                self.count
            );
        }
        let pause = PAUSE.saturating_mul(1 << (failures - 1).min(10));
        self.outage = Some(Outage {
            since: self.outage.as_ref().map_or(now, |outage| outage.since),
            failures,
            reason,
            next_try: now + pause.min(LONGEST_PAUSE),
        });
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // All first, because waiting for each takes a while.
        self.idle.iter().for_each(Worker::condemn);
    }
}

/// A child that works for one thread. Goes back when dropped, or ends if it is amid a task.
#[derive(Debug)]
pub(super) struct Lease {
    children: Arc<Children>,
    /// `Some` up to the drop.
    worker: Option<Worker>,
}

const THERE: &str = "it is there up to the drop";

impl Deref for Lease {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        self.worker.as_ref().expect(THERE)
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Worker {
        self.worker.as_mut().expect(THERE)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.children.put_back(worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn fail(state: &mut State, is_final: bool) {
        let text = "no such program".to_owned();
        state.note(Failure { text, is_final }, "f");
    }

    fn outage(state: &mut State) -> &mut Outage {
        state.outage.as_mut().expect("a start has failed")
    }

    fn next(state: &mut State, patience: Duration) -> Next {
        state.next(&mut Vec::new(), patience)
    }

    #[test]
    fn the_pause_after_a_failed_start_doubles() {
        let mut state = State::default();
        fail(&mut state, false);
        let first = outage(&mut state);
        assert_eq!((first.failures, first.next_try - first.since), (1, PAUSE));
        fail(&mut state, false);
        let second = outage(&mut state);
        assert_eq!(second.failures, 2);
        assert!(second.next_try - second.since >= 2 * PAUSE);
        (0..60).for_each(|_| fail(&mut state, false));
        assert!(outage(&mut state).next_try <= Instant::now() + LONGEST_PAUSE);
    }

    #[test]
    fn a_program_that_cannot_serve_is_not_tried_again() {
        let mut state = State::default();
        fail(&mut state, true);
        assert_eq!(outage(&mut state).failures, TRIES);
        assert!(matches!(next(&mut state, HOUR), Next::GiveUp(_)));
        state.starting = 1;
        assert!(matches!(next(&mut state, HOUR), Next::Wait(None)));
        // One that has served may serve again.
        let mut state = State::default();
        state.has_served = true;
        fail(&mut state, true);
        assert_eq!(outage(&mut state).failures, 1);
    }

    #[test]
    fn one_thread_tries_and_the_others_wait() {
        let mut state = State::default();
        assert!(matches!(next(&mut state, HOUR), Next::Start));
        fail(&mut state, false);
        outage(&mut state).next_try = Instant::now();
        assert!(matches!(next(&mut state, HOUR), Next::Start));
        assert_eq!(state.starting, 2);
        assert!(matches!(next(&mut state, HOUR), Next::Wait(Some(_))));
        // It gives up once that has lasted, but not while there are children.
        (state.starting, state.count) = (0, 1);
        assert!(matches!(next(&mut state, Duration::ZERO), Next::Wait(_)));
        state.count = 0;
        assert!(matches!(next(&mut state, Duration::ZERO), Next::GiveUp(_)));
    }
}
