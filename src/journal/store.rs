//! What is in the file: an SQLite database, so that a commit is all or nothing whenever the power goes.

use std::hash::{BuildHasher, RandomState};
use std::path::{self, Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, fs, str, thread};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::error::Error;

/// Marks a database as a journal: "fpjl".
const APPLICATION_ID: i32 = 0x6670_6a6c;
/// Of the tables below.
const VERSION: i32 = 1;
/// `done` has no index: a row is appended in a fraction of a microsecond, where an index of keys in random order
/// takes ten. No key is in it twice.
const TABLES: &str = "CREATE TABLE done (key NOT NULL);
    CREATE TABLE failed (key PRIMARY KEY NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;";
/// How long to try to open a file that is in use: whoever has it may just be ending.
const PATIENCE: Duration = Duration::from_millis(500);

/// A line of the journal.
pub(super) struct Entry {
    pub(super) key: Box<[u8]>,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    /// `had_failed`: there is a failure to strike out.
    Done {
        had_failed: bool,
    },
    Failed {
        reason: String,
    },
}

/// An item that failed when it last ran; see [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The item's key. Bytes that are not UTF-8 are replaced by `\u{fffd}`.
    pub key: String,
    /// The error and the whole chain of its sources, or the panic.
    pub reason: String,
}

/// `KEY: REASON`.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// What is written down, returned by [`Journal::summary`](super::Journal::summary).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// How many items are done.
    pub done: u64,
    /// The items that failed when they last ran, sorted by key.
    pub failed: Vec<Failure>,
}

pub(super) struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let start = Instant::now();
        loop {
            match Self::try_open(path) {
                // Whoever tries holds a lock for a moment, and keeps others from theirs: those who begin at once all
                // let go, and each comes back after another time.
                Err(Error::InUse { .. }) if start.elapsed() < PATIENCE => {
                    let millis = RandomState::new().hash_one(0) % 16;
                    thread::sleep(Duration::from_millis(millis));
                }
                result => return result,
            }
        }
    }

    fn try_open(path: &Path) -> Result<Self, Error> {
        let open_error = |reason: &dyn ToString| Error::Open {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        // SQLite gives some relative names a meaning, such as `:memory:`.
        let absolute = path::absolute(path).map_err(|error| open_error(&error))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&absolute, flags).map_err(|error| {
            // SQLite does not say why.
            let file = fs::OpenOptions::new().append(true).create(true).open(path);
            file.map_or_else(|why| open_error(&why), |_| open_error(&error))
        })?;
        let path = path.to_owned();
        let mut store = Self { path, connection };
        match store.prepare() {
            Ok(None) => store.check_length().map(|()| store),
            Ok(Some(what)) => Err(store.not_a_journal(what)),
            Err(error) => Err(store.explain(&error, |path, reason| Error::Open { path, reason })),
        }
    }

    /// `Some`: the file is something else.
    fn prepare(&mut self) -> rusqlite::Result<Option<String>> {
        self.connection.busy_timeout(Duration::ZERO)?;
        // The file stays locked until it is closed.
        let set =
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON;";
        self.connection.execute_batch(set)?;
        let exclusive = TransactionBehavior::Exclusive;
        let transaction = self.connection.transaction_with_behavior(exclusive)?;
        let number = |sql| transaction.query_row(sql, [], |row| row.get::<_, i32>(0));
        let mark = number("PRAGMA application_id")?;
        let version = number("PRAGMA user_version")?;
        if mark == 0 && number("SELECT count(*) FROM sqlite_schema")? == 0 {
            let mark = format!(
                "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
            );
            transaction.execute_batch(&(mark + TABLES))?;
        } else if mark != APPLICATION_ID {
            return Ok(Some("a database of something else".to_owned()));
        } else if version != VERSION {
            return Ok(Some(format!("one of version {version} of the format")));
        }
        transaction.commit()?;
        // Each commit appends to a file beside this one, and waits for the disk once.
        self.connection.execute_batch("PRAGMA journal_mode = WAL")?;
        Ok(None)
    }

    /// SQLite reads what is missing of the last page as zeros.
    fn check_length(&self) -> Result<(), Error> {
        // Only then the file must be complete.
        let merge = "PRAGMA wal_checkpoint(TRUNCATE)";
        if self.connection.execute_batch(merge).is_err() {
            return Ok(());
        }
        let number = |sql| {
            self.connection
                .query_row(sql, [], |row| row.get::<_, i64>(0))
        };
        let pages = number("PRAGMA page_count").map_err(|error| self.unreadable(&error))?;
        let size = number("PRAGMA page_size").map_err(|error| self.unreadable(&error))?;
        let path = self.path.clone();
        let (wanted, found) = ((pages * size).unsigned_abs(), fs::metadata(&path));
        match found.map(|file| file.len()) {
            Ok(found) if found < wanted => {
                let reason = format!("it has {found} of {wanted} bytes");
                Err(Error::Damaged { path, reason })
            }
            Ok(_) => Ok(()),
            Err(error) => {
                let reason = error.to_string();
                Err(Error::Open { path, reason })
            }
        }
    }

    /// Calls `f` with each key, and whether its item is done; else it has failed.
    pub(super) fn each_key(&self, mut f: impl FnMut(&[u8], bool)) -> Result<(), Error> {
        let mut read = || {
            let sql = "SELECT key, TRUE FROM done UNION ALL SELECT key, FALSE FROM failed";
            let mut statement = self.connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                f(row.get_ref(0)?.as_bytes()?, row.get(1)?);
            }
            Ok(())
        };
        read().map_err(|error| self.unreadable(&error))
    }

    pub(super) fn summary(&self) -> Result<Summary, Error> {
        let read = || {
            let sql = "SELECT count(*) FROM done";
            let done: i64 = self.connection.query_row(sql, [], |row| row.get(0))?;
            let sql = "SELECT key, reason FROM failed ORDER BY CAST(key AS BLOB)";
            let mut statement = self.connection.prepare(sql)?;
            let failures = statement.query_map([], |row| {
                let text = |column| {
                    let bytes = row.get_ref(column)?.as_bytes()?;
                    Ok::<_, rusqlite::Error>(String::from_utf8_lossy(bytes).into_owned())
                };
                Ok(Failure {
                    key: text(0)?,
                    reason: text(1)?,
                })
            })?;
            Ok(Summary {
                done: done.unsigned_abs(),
                failed: failures.collect::<Result<_, _>>()?,
            })
        };
        read().map_err(|error| self.unreadable(&error))
    }

    /// Once this returns, the entries survive a power cut. If it fails, none of them is in the file.
    pub(super) fn commit(&mut self, entries: &[Entry]) -> Result<(), Error> {
        write(&mut self.connection, entries)
            .map_err(|error| self.explain(&error, |path, reason| Error::Write { path, reason }))
    }

    fn unreadable(&self, error: &rusqlite::Error) -> Error {
        self.explain(error, |path, reason| Error::Open { path, reason })
    }

    fn not_a_journal(&self, what: String) -> Error {
        let path = self.path.clone();
        Error::NotAJournal { path, what }
    }

    /// `other` makes the error of what is neither a lock nor damage.
    fn explain(&self, error: &rusqlite::Error, other: fn(PathBuf, String) -> Error) -> Error {
        let path = self.path.clone();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::InUse { path },
            Some(ErrorCode::NotADatabase) => {
                self.not_a_journal("another file, or a damaged one".to_owned())
            }
            // `None`: a value is not of the type that was written.
            Some(ErrorCode::DatabaseCorrupt) | None => {
                let reason = error.to_string();
                Error::Damaged { path, reason }
            }
            Some(_) => other(path, error.to_string()),
        }
    }
}

fn write(connection: &mut Connection, entries: &[Entry]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut done = transaction.prepare("INSERT INTO done VALUES (?1)")?;
        let mut failed = transaction.prepare("INSERT OR REPLACE INTO failed VALUES (?1, ?2)")?;
        let mut strike = transaction.prepare("DELETE FROM failed WHERE key = ?1")?;
        for Entry { key, outcome } in entries {
            let key = value(key);
            match outcome {
                Outcome::Failed { reason } => failed.execute((&key, reason))?,
                Outcome::Done { had_failed: false } => done.execute([&key])?,
                Outcome::Done { had_failed: true } => {
                    done.execute([&key])?;
                    strike.execute([&key])?
                }
            };
        }
    }
    transaction.commit()
}

/// A text where it is one, so that people can read it with other tools.
fn value(key: &[u8]) -> ToSqlOutput<'_> {
    ToSqlOutput::Borrowed(match str::from_utf8(key) {
        Ok(_) => ValueRef::Text(key),
        Err(_) => ValueRef::Blob(key),
    })
}
