//! Collects what was recorded, and commits it in groups on a thread of its own.
//!
//! 1. An entry is in the batch, in the commit under way, or in the file; a commit that fails puts it back in the batch.
//! 2. Whoever commits holds the store first, so commits follow each other in the order of their entries.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use log::error;

use super::error::Error;
use super::store::{Entry, Outcome, Store, Summary};
use crate::util::TARGET;
use crate::util::panics::catch_panic;

/// What the journal and the functions that it made share. The last of them commits the rest.
pub(super) struct Recorder {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    store: Mutex<Store>,
    state: Mutex<State>,
    /// The batch has its first entry, or is large enough, or there will be no more.
    for_writer: Condvar,
    /// A commit has ended.
    for_tasks: Condvar,
    hashers: [RandomState; 2],
}

#[derive(Default)]
struct State {
    // 128 bits stand for a key: with a billion keys, the chance that any two look alike is below 10^-20.
    done: HashSet<u128>,
    failed: HashSet<u128>,
    batch: Vec<Entry>,
    /// When its first entry came.
    since: Option<Instant>,
    /// How many entries are in the commit under way.
    committing: usize,
    max_items: usize,
    max_time: Duration,
    /// Why the last commit failed.
    failure: Option<String>,
    is_closed: bool,
}

impl Recorder {
    pub(super) fn open(path: &Path, max_items: usize, max_time: Duration) -> Result<Self, Error> {
        let store = Store::open(path)?;
        let hashers = [RandomState::new(), RandomState::new()];
        let mut state = State {
            max_items,
            max_time,
            ..State::default()
        };
        store.each_key(|key, is_done| {
            let keys = match is_done {
                true => &mut state.done,
                false => &mut state.failed,
            };
            keys.insert(fingerprint(&hashers, key));
        })?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            store: Mutex::new(store),
            state: Mutex::new(state),
            for_writer: Condvar::new(),
            for_tasks: Condvar::new(),
            hashers,
        });
        let writer = {
            let shared = Arc::clone(&shared);
            let name = "futureproof-journal".to_owned();
            thread::Builder::new()
                .name(name)
                .spawn(move || shared.run_writer())
        };
        let cannot_open = |error: io::Error| Error::Open {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        Ok(Self {
            shared,
            writer: Some(writer.map_err(cannot_open)?),
        })
    }

    pub(super) fn commit_every(&self, max_items: usize, max_time: Duration) {
        let mut state = lock(&self.shared.state);
        state.max_items = max_items;
        state.max_time = max_time;
    }

    /// Fails if the last commit failed.
    pub(super) fn check(&self) -> Result<(), Error> {
        match &lock(&self.shared.state).failure {
            None => Ok(()),
            Some(reason) => Err(self.shared.write_error(reason.clone())),
        }
    }

    pub(super) fn is_done(&self, key: &[u8]) -> bool {
        let fingerprint = fingerprint(&self.shared.hashers, key);
        lock(&self.shared.state).done.contains(&fingerprint)
    }

    /// Takes down that the item is done, or why it failed. Waits while too much is not committed.
    pub(super) fn record(&self, key: &[u8], outcome: Result<(), String>) {
        let fingerprint = fingerprint(&self.shared.hashers, key);
        let key = key.into();
        let mut state = lock(&self.shared.state);
        // Whoever is done stays done, even if another item with the same key fails.
        if state.done.contains(&fingerprint) {
            return;
        }
        let outcome = match outcome {
            Err(reason) => {
                state.failed.insert(fingerprint);
                Outcome::Failed { reason }
            }
            Ok(()) => {
                state.done.insert(fingerprint);
                let had_failed = state.failed.remove(&fingerprint);
                Outcome::Done { had_failed }
            }
        };
        state.batch.push(Entry { key, outcome });
        if state.batch.len() == 1 {
            state.since = Some(Instant::now());
        }
        if state.batch.len() == 1 || state.is_full() {
            self.shared.for_writer.notify_one();
        }
        while state.has_no_room() {
            state = wait(&self.shared.for_tasks, state);
        }
    }

    pub(super) fn commit(&self) -> Result<(), Error> {
        self.shared.commit()
    }

    pub(super) fn summary(&self) -> Result<Summary, Error> {
        self.commit()?;
        lock(&self.shared.store).summary()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        lock(&self.shared.state).is_closed = true;
        self.shared.for_writer.notify_one();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join(); // Its panics are caught.
        }
        if let Err(error) = self.commit() {
            let left = lock(&self.shared.state).batch.len();
            // The logger is the user's.
            catch_panic(|| {
                error!(target: TARGET, "{left} outcomes are not written down, and their items will run again: {error}");
            });
        }
    }
}

impl Shared {
    /// What the writer does until the journal is closed.
    fn run_writer(&self) {
        let mut state = lock(&self.state);
        while !state.is_closed {
            // After a failure nobody tries again but who asks for it: a full disk would be hammered.
            if state.batch.is_empty() || state.failure.is_some() {
                state = wait(&self.for_writer, state);
                continue;
            }
            let left = match state.is_full() {
                true => Some(Duration::ZERO),
                false => state.time_left(),
            };
            if left == Some(Duration::ZERO) {
                drop(state);
                let _ = self.commit(); // `failure` has it.
                state = lock(&self.state);
            } else {
                state = wait_for(&self.for_writer, state, left);
            }
        }
    }

    /// Commits everything that was recorded before.
    fn commit(&self) -> Result<(), Error> {
        let mut store = lock(&self.store);
        let mut batch = {
            let mut state = lock(&self.state);
            state.committing = state.batch.len();
            mem::take(&mut state.batch)
        };
        let result = match batch.is_empty() {
            true => Ok(()),
            // The writer must not die: tasks wait for it.
            false => catch_panic(|| store.commit(&batch))
                .unwrap_or_else(|| Err(self.write_error("the database panicked".to_owned()))),
        };
        let mut state = lock(&self.state);
        state.committing = 0;
        state.failure = result.as_ref().err().map(|error| match error {
            Error::Write { reason, .. } => reason.clone(),
            other => other.to_string(),
        });
        if result.is_err() {
            batch.append(&mut state.batch);
            state.batch = batch;
        }
        self.for_tasks.notify_all();
        // It sleeps through a failure, whatever comes meanwhile.
        self.for_writer.notify_one();
        result
    }

    fn write_error(&self, reason: String) -> Error {
        let path = self.path.clone();
        Error::Write { path, reason }
    }
}

impl State {
    /// Half of what may be lost is in a commit, the other half is collected meanwhile.
    fn is_full(&self) -> bool {
        self.batch.len() >= (self.max_items / 2).max(1)
    }

    fn has_no_room(&self) -> bool {
        // After a failure no task starts, so what comes is from those that ran.
        self.batch.len() + self.committing >= self.max_items.max(1) && self.failure.is_none()
    }

    /// Until the batch is due; `None` for ever.
    fn time_left(&self) -> Option<Duration> {
        let due = self.since?.checked_add(self.max_time)?;
        Some(due.saturating_duration_since(Instant::now()))
    }
}

fn fingerprint(hashers: &[RandomState; 2], key: &[u8]) -> u128 {
    let [high, low] = hashers.each_ref().map(|hasher| hasher.hash_one(key));
    u128::from(high) << 64 | u128::from(low)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

fn wait_for<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    time: Option<Duration>,
) -> MutexGuard<'a, T> {
    let Some(time) = time else {
        return wait(condvar, guard);
    };
    let waited = condvar.wait_timeout(guard, time);
    waited.unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_by_two_hashes() {
        let hashers = [RandomState::new(), RandomState::new()];
        let [high, low] = hashers
            .each_ref()
            .map(|hasher| hasher.hash_one(&b"key"[..]));
        let found = fingerprint(&hashers, b"key");
        assert_eq!(((found >> 64) as u64, found as u64), (high, low));
    }
}
