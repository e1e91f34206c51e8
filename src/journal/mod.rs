//! Writes down which items are done, so that a batch survives `kill -9`, a crash or a power cut.
//!
//! [`Journal::record`] wraps a function: it writes down in a file whether an item is done or has failed, and why.
//! [`Journal::pending`] wraps the source: it skips the items that are done. Start the program again after whatever
//! ended it, and it goes on where it was. Needs the feature `journal`.
//!
//! ```
//! use std::path::PathBuf;
//! use futureproof::{journal::Journal, prelude::*};
//!
//! # fn shrink(path: &PathBuf) -> Result<(), String> {
//! #     if path.ends_with("3.jpg") { Err("not an image".to_owned()) } else { Ok(()) }
//! # }
//! # let dir = std::env::temp_dir().join(format!("futureproof-journal-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir)?;
//! # let file = dir.join("photos.journal");
//! let photos = ["1.jpg", "2.jpg", "3.jpg"].map(PathBuf::from);
//! let key = PathBuf::clone; // what tells an item from the others, in every run of the program
//!
//! let journal = Journal::open(&file)?;
//! for task in journal.pending(photos, key).futureproof(Log).map_tasks(journal.record(key, shrink)).flatten() {
//!     println!("{} is done", task.input.display());
//! }
//! let summary = journal.summary()?;
//! assert_eq!(summary.done, 2);
//! assert_eq!(summary.failed[0].to_string(), "3.jpg: not an image");
//! # drop(journal);
//! # std::fs::remove_dir_all(dir)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised
//!
//! - **An item that is written down as done is never run again**, in this or a later run of the program, if it comes
//!   through `pending` with the same key.
//! - **Done** means that the function has returned `Ok`. Its output is not kept, and what the loop over the tasks does with
//!   it is not waited for: what must not be lost, the function itself writes to a file or a database.
//! - **What may run again** after a kill or a power cut: items that were running, and those that finished since the last
//!   commit. A commit is due 100 ms after an item has finished, and there are never more than 1,000 finished items that
//!   are not committed: tasks wait for the disk rather than exceed that. [`Journal::commit_every`] sets other limits.
//!   So make the function safe to run twice, for example by writing to a temporary file and renaming it at the end.
//! - **Failures** are written down with their reason, which is the error with its whole chain of sources, or the panic.
//!   They are tried again the next time, and struck out when they succeed.
//! - **One at a time.** If another process has the journal open, [`Journal::open`] fails with [`Error::InUse`].
//! - **A commit that fails**, as on a full disk, is not silent: from then on every task fails with [`Error::Write`]
//!   before it starts, so under `Raise` the run stops. What was committed is safe, and what was not is kept in memory:
//!   [`Journal::commit`] tries again, and so does the drop of the journal. If nothing starts after the last commit, only
//!   `commit`, [`Journal::summary`] or a log line at `error` tells you, so call one of them at the end.
//! - **A damaged file** is [`Error::Damaged`], if it has lost its end or its structure. (A bit that flips within a key is
//!   noticed by nobody.) A file that is something else is [`Error::NotAJournal`], and is left as it is.
//! - **Dropping** the journal and the functions that it made commits the rest. `std::process::exit` drops nothing.
//!
//! # Keys
//!
//! A key tells an item from the others, and must be the same in every run of the program: a path, an URL, an id as text
//! (`id.to_string()`). It can be anything that is `AsRef<OsStr>`, such as `String`, `&str` and `PathBuf`, so a path need
//! not be UTF-8. Keys do not depend on the order or number of the items, so a list that has changed goes on where it
//! can: what is new runs, what is done does not. Of two items with the same key, the second is skipped once the first is
//! done. To run everything again, as after a change of the function, begin another file, or put a version into the key.
//!
//! # With other features
//!
//! `record` takes any function that borrows its item: one made by [`with_state`](crate::with_state) or by
//! `process::Isolated::into_fn` too. With [retries](crate::MapTasks::retry), each failed attempt is written down until one
//! succeeds. With [stages](crate::Futureproof::stage), record the last one; its input must have the key, and an item that
//! fails in an earlier stage stays as it was. The wrapped function's error is [`Error`];
//! [`retry_if`](crate::MapTasks::retry_if) can downcast what is in [`Error::Task`].
//!
//! ```no_run
//! # #[cfg(feature = "process")] {
//! # fn parse(text: &String) -> Result<u32, String> { text.parse().map_err(|_| text.clone()) }
//! use futureproof::{journal::Journal, prelude::*, process::isolate};
//!
//! let parse = isolate("parse", parse).start()?.into_fn(); // first: a child opens no journal
//! // Only needed where the function's own error is a text.
//! let parse = move |text: &String| parse(text).map_err(|error| error.to_string());
//! let journal = Journal::open("texts.journal")?;
//! let texts = journal.pending(std::env::args().skip(1), String::clone);
//! texts.futureproof(Log).map_tasks(journal.record(String::clone, parse)).for_each(drop);
//! journal.commit()?;
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it costs
//!
//! Measured on two cores with an SSD and the default commit: 1.1 to 2.4 µs a task, for tasks of 0, 10 and 100 µs, whatever
//! the order of the keys. A task that fails costs 2 µs, or 11 µs if most tasks fail and their keys are in random order. A
//! million done items take 50 MB, are read in 0.6 s when the journal is opened, and are skipped in 0.4 µs each. In memory,
//! each done or failed item takes 16 bytes, or 20 to 40 with the room that a hash table needs. One thread commits; it
//! sleeps while nothing is recorded.
//!
//! The feature compiles SQLite: it needs a C compiler, and takes a core 40 s, once. With Rust before 1.89, choose an
//! older `rusqlite`: `cargo update -p rusqlite --precise 0.39.0`. A program has one SQLite only: if you use `rusqlite`
//! yourself, take a version from 0.37 to 0.43.
//!
//! # The file
//!
//! The file is an SQLite database, which any tool can read when no program has it open:
//!
//! ```text
//! sqlite3 photos.journal 'SELECT key FROM done'
//! sqlite3 photos.journal 'SELECT key, reason FROM failed'
//! ```
//!
//! While it is open, and after a kill, a second file with the suffix `-wal` holds the last commits: move or copy both.
//! Keep them on a local disk, as locks are unreliable on network file systems. Do not open the file with anything else
//! in a program that has it as a journal: on Unix, closing it would give up the lock.

mod error;
mod recorder;
mod store;

use std::error::Error as StdError;
use std::ffi::OsStr;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use error::Error;
use recorder::Recorder;
pub use store::{Failure, Summary};

use crate::task::Panic;

/// A file that tells which items of a batch are done, and which have failed and why.
///
/// See [the module](self) for what it promises.
///
/// ```
/// use futureproof::{journal::Journal, prelude::*};
///
/// # let dir = std::env::temp_dir().join(format!("futureproof-journal-type-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let file = dir.join("ids.journal");
/// let key = |id: &u64| id.to_string();
/// for left in [1_000, 0] {
///     // In a program, this is its next start.
///     let journal = Journal::open(&file)?;
///     let double = journal.record(key, |id: &u64| Ok::<_, String>(id * 2));
///     let run = journal.pending(0..1_000, key).futureproof(Raise).map_tasks(double);
///     assert_eq!(run.count(), left);
/// }
/// # std::fs::remove_dir_all(dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Journal {
    recorder: Arc<Recorder>,
}

impl Journal {
    /// Opens the journal at `path`, or creates it.
    ///
    /// It is locked until it is dropped, together with the functions and iterators that it made.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if it is open already, [`Error::NotAJournal`] or [`Error::Damaged`] if the file cannot be used,
    /// and [`Error::Open`] if the system refuses it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let recorder = Recorder::open(path.as_ref(), 1_000, Duration::from_millis(100))?;
        Ok(Self {
            recorder: Arc::new(recorder),
        })
    }

    /// Sets what a kill may cost: `items` finished tasks, or those that finished in the last `time` plus the duration of
    /// a commit. The default is 1,000 and 100 ms.
    ///
    /// A commit takes from half a millisecond on a fast disk to tens of them on a slow one. With 1, a task ends
    /// only when it is written down, or a commit has failed: `Journal::open(path)?.commit_every(1, Duration::ZERO)`.
    pub fn commit_every(self, items: usize, time: Duration) -> Self {
        self.recorder.commit_every(items, time);
        self
    }

    /// Skips the items that are done, lazily: each is looked up when it is pulled.
    ///
    /// An item that failed is not skipped.
    pub fn pending<I, K, F>(&self, items: I, key: F) -> impl Iterator<Item = I::Item> + use<I, K, F>
    where
        I: IntoIterator,
        K: AsRef<OsStr>,
        F: Fn(&I::Item) -> K,
    {
        let recorder = Arc::clone(&self.recorder);
        let items = items.into_iter();
        items.filter(move |item| !recorder.is_done(bytes(&key(item))))
    }

    /// Wraps `f` for [`map_tasks`](crate::Futureproof::map_tasks): writes down each item as done, or as failed with
    /// its reason.
    ///
    /// The function's error can be any [`Error`](StdError), a `String`, a `&str`, an `anyhow::Error` or a `Box<dyn Error
    /// + Send + Sync>`.
    ///
    /// The task does not wait for the disk, unless as many outcomes wait as [`commit_every`](Self::commit_every) allows.
    pub fn record<I, T, E, K, F, G>(
        &self,
        key: F,
        f: G,
    ) -> impl Fn(&I) -> Result<T, Error> + Send + Sync + use<I, T, E, K, F, G>
    where
        I: ?Sized,
        E: Into<Box<dyn StdError + Send + Sync>>,
        K: AsRef<OsStr>,
        F: Fn(&I) -> K + Send + Sync,
        G: Fn(&I) -> Result<T, E> + Send + Sync,
    {
        let recorder = Arc::clone(&self.recorder);
        move |item| {
            let key = key(item);
            recorder.check()?;
            // A panic is written down as a failure, and goes on to the engine.
            match catch_unwind(AssertUnwindSafe(|| f(item))) {
                Ok(Ok(output)) => {
                    recorder.record(bytes(&key), Ok(()));
                    Ok(output)
                }
                Ok(Err(error)) => {
                    let error = error.into();
                    recorder.record(bytes(&key), Err(chain(&*error)));
                    Err(Error::Task(error))
                }
                Err(payload) => {
                    let panic = Panic::new(payload);
                    recorder.record(bytes(&key), Err(panic.to_string()));
                    resume_unwind(panic.into_payload())
                }
            }
        }
    }

    /// Commits what was recorded before, and returns once it is on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Write`] if that fails. Nothing is lost by that: a later commit tries again.
    pub fn commit(&self) -> Result<(), Error> {
        self.recorder.commit()
    }

    /// Commits what was recorded before, and returns what is in the file.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit), and [`Error::Damaged`] or [`Error::Open`] if the file cannot be read.
    pub fn summary(&self) -> Result<Summary, Error> {
        self.recorder.summary()
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

fn bytes<K: AsRef<OsStr>>(key: &K) -> &[u8] {
    key.as_ref().as_encoded_bytes()
}

/// The error and its sources.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
