//! A journal: what is written down as done is never run again, whenever the process or the power goes.
//!
//! `KILLS` is how often the batch is killed, 10 by default; with `EVERY_LENGTH` set, the store's files are cut at every
//! length near their end, not at some.
#![cfg(feature = "journal")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use common::child::{Child, in_child};
use common::{FOREVER, Gate, Random, soon, watchdog};
use futureproof::PerWorker;
use futureproof::journal::{Error, Journal, Summary};
use futureproof::prelude::*;

const DIR: &str = "FUTUREPROOF_JOURNAL_DIR";

fn key(n: &u64) -> String {
    n.to_string()
}

fn fine(n: &u64) -> Result<u64, String> {
    Ok(*n)
}

/// Runs `f` on what is left of `items`, and counts the calls.
fn calls(journal: &Journal, items: u64, f: fn(&u64) -> Result<u64, String>) -> usize {
    let count = AtomicUsize::new(0);
    futureproof::scope(2, |scope| {
        let count = |n: &u64| {
            count.fetch_add(1, SeqCst);
            f(n)
        };
        let run = journal.pending(0..items, key).futureproof(Ignore).on(scope);
        run.map_tasks(journal.record(key, count)).for_each(drop);
    });
    count.into_inner()
}

/// The items below `items` that are done.
fn done(journal: &Journal, items: u64) -> BTreeSet<u64> {
    let left = BTreeSet::from_iter(journal.pending(0..items, key));
    (0..items).filter(|n| !left.contains(n)).collect()
}

fn wal(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Copies a journal as a kill leaves it.
fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    let _ = fs::remove_file(wal(to));
    if wal(from).exists() {
        fs::copy(wal(from), wal(to)).unwrap();
    }
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn what_is_done_is_skipped_and_what_failed_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = Journal::open(&path).unwrap();
    assert_eq!(format!("{journal:?}"), "Journal { .. }");
    let odd = |n: &u64| match n % 2 {
        0 => Ok(*n),
        _ => Err(format!("{n} is odd")),
    };
    assert_eq!(calls(&journal, 100, odd), 100);
    // At once in this process, and in the next one.
    assert_eq!(calls(&journal, 100, odd), 50);
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    let summary = journal.summary().unwrap();
    assert_eq!((summary.done, summary.failed.len()), (50, 50));
    assert_eq!(summary.failed[0].to_string(), "1: 1 is odd");
    // A list that has grown goes on where it can.
    assert_eq!(calls(&journal, 110, fine), 60);
    let summary = journal.summary().unwrap();
    assert_eq!((summary.done, summary.failed), (110, vec![]));
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    assert_eq!(calls(&journal, 110, fine), 0);
}

#[test]
fn a_failure_keeps_its_whole_chain_and_a_panic_its_message() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {0}")]
    struct Read(&'static str, #[source] std::num::ParseIntError);

    fn boxed(n: &u64) -> Result<(), Box<dyn StdError + Send + Sync>> {
        match n {
            0 => Err(Read("zero", "x".parse::<u8>().unwrap_err()).into()),
            1 => Err("a text".into()),
            2 => panic!("no two"),
            _ => std::panic::panic_any(3),
        }
    }
    fn contexts(_: &u64) -> anyhow::Result<()> {
        Err(anyhow::anyhow!("the cause").context("the context"))
    }

    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path().join("journal")).unwrap();
    let run = (0..4u64).futureproof(Ignore).ordered();
    let failures = run.map_tasks(journal.record(key, boxed));
    let failures = Vec::from_iter(failures.map(Result::unwrap_err));
    assert_eq!(failures[0].cause().to_string(), "cannot read zero");
    let Some(Error::Task(error)) = failures[0].error() else {
        panic!("{failures:?}");
    };
    assert!(error.downcast_ref::<Read>().unwrap().source().is_some());
    assert_eq!(failures[2].panic_message(), Some("no two"));
    let run = [4].into_iter().futureproof(Ignore);
    run.map_tasks(journal.record(key, contexts)).for_each(drop);
    let summary = journal.summary().unwrap();
    let reasons = summary.failed.iter().map(|failure| failure.reason.as_str());
    let wanted = [
        "cannot read zero: invalid digit found in string",
        "a text",
        "panicked: no two",
        "panicked with a payload that is not a text",
        "the context: the cause",
    ];
    assert!(reasons.eq(wanted), "{summary:?}");
}

#[test]
fn keys_may_be_paths_that_are_no_text() {
    #[cfg(unix)]
    let names = {
        use std::os::unix::ffi::OsStringExt;
        // The second is what the first looks like when it is printed.
        let names = [&b"a\xff"[..], "a\u{fffd}".as_bytes(), b"", b"a\0b", b"a"];
        names.map(|name| PathBuf::from(std::ffi::OsString::from_vec(name.to_vec())))
    };
    #[cfg(not(unix))]
    let names = ["a\u{fffd}", "", "a\0b", "a"].map(PathBuf::from);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let key = |name: &PathBuf| name.clone();
    for n in 0..names.len() {
        let journal = Journal::open(&path).unwrap();
        let left = Vec::from_iter(journal.pending(names.clone(), key));
        assert_eq!(left, names[n..]);
        journal.record(key, |_: &PathBuf| Ok::<_, String>(()))(&names[n]).unwrap();
    }
    let journal = Journal::open(&path).unwrap();
    let fail = journal.record(|_: &()| "b\u{1F980}", |()| Err::<(), _>("no"));
    fail(&()).unwrap_err();
    assert_eq!(
        journal.summary().unwrap().failed[0].to_string(),
        "b\u{1F980}: no"
    );
}

#[test]
fn of_two_items_with_one_key_the_second_is_skipped_once_the_first_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path().join("journal")).unwrap();
    let same = |_: &u64| "the same";
    let run = journal.pending(0..100, same).futureproof(Raise);
    let run = run.num_threads(1).max_in_flight(1);
    assert_eq!(run.map_tasks(journal.record(same, fine)).count(), 1);
    // Who comes past `pending` is run; it stays done, whatever comes of it.
    journal.record(same, |_: &u64| Err::<u64, _>("no"))(&7).unwrap_err();
    journal.record(same, fine)(&7).unwrap();
    let summary = journal.summary().unwrap();
    assert_eq!((summary.done, summary.failed), (1, vec![]));
}

#[test]
fn it_goes_with_retries_states_and_stages() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path().join("journal")).unwrap();
    let attempts = PerWorker::new(BTreeMap::<u64, u32>::new);
    let second = attempts.with(|attempts, n: &u64| {
        let attempts = attempts.entry(*n).or_default();
        *attempts += 1;
        if *attempts == 1 {
            Err("not at once")
        } else {
            Ok(*n)
        }
    });
    let run = (0..20u64).futureproof(Raise).num_threads(1);
    let run = run.map_tasks(journal.record(key, second));
    let run = run.retry(|| [Duration::ZERO]);
    assert_eq!(run.flatten().count(), 20);
    let summary = journal.summary().unwrap();
    assert_eq!((summary.done, summary.failed), (20, vec![]));

    let double = |n: &u64| Ok::<_, Error>((*n, n * 2));
    let sum = with_state(
        || 0,
        |sum: &mut u64, (_, double): &(u64, u64)| {
            *sum += double;
            Ok::<_, String>(*sum)
        },
    );
    let run = journal.pending(0..40u64, key).futureproof(Raise);
    let run = run
        .stage(double)
        .map_tasks(journal.record(|(n, _): &(u64, u64)| key(n), sum));
    assert_eq!(run.flatten().count(), 20);
    assert_eq!(journal.summary().unwrap().done, 40);
}

#[test]
fn pending_is_lazy() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path().join("journal")).unwrap();
    let pulled = AtomicU64::new(0);
    let source = (0..).inspect(|n| pulled.store(*n + 1, SeqCst));
    let mut pending = journal.pending(source, key);
    assert_eq!(pulled.load(SeqCst), 0);
    for n in 0..10 {
        journal.record(key, fine)(&n).unwrap();
    }
    assert_eq!(pending.next(), Some(10));
    assert_eq!(pulled.load(SeqCst), 11);
}

#[test]
fn the_last_that_is_dropped_commits_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = Journal::open(&path).unwrap().commit_every(1_000, FOREVER);
    let record = journal.record(key, fine);
    record(&1).unwrap();
    drop(journal);
    record(&2).unwrap();
    assert!(matches!(Journal::open(&path), Err(Error::InUse { .. })));
    drop(record);
    // And leaves one file.
    let files = fs::read_dir(dir.path()).unwrap();
    assert!(files.map(|file| file.unwrap().file_name()).eq(["journal"]));
    assert!(
        done(&Journal::open(&path).unwrap(), 5)
            .into_iter()
            .eq([1, 2])
    );
}

#[test]
fn a_batch_is_due_after_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("journal"), dir.path().join("copy"));
    let journal = Journal::open(&path)
        .unwrap()
        .commit_every(1_000, Duration::from_millis(1));
    journal.record(key, fine)(&1).unwrap();
    assert!(soon(|| {
        copy(&path, &other);
        !done(&Journal::open(&other).unwrap(), 5).is_empty()
    }));
}

#[test]
fn a_batch_is_due_when_half_of_what_may_be_lost_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("journal"), dir.path().join("copy"));
    let journal = Journal::open(&path).unwrap().commit_every(20, FOREVER);
    for n in 0..10 {
        journal.record(key, fine)(&n).unwrap();
    }
    assert!(soon(|| {
        copy(&path, &other);
        done(&Journal::open(&other).unwrap(), 20).len() == 10
    }));
}

#[test]
fn with_a_limit_of_one_a_task_ends_when_it_is_written_down() {
    for limit in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("journal"), dir.path().join("copy"));
        let journal = Journal::open(&path).unwrap().commit_every(limit, FOREVER);
        let run = (0..10).futureproof(Raise).num_threads(2);
        for task in run.map_tasks(journal.record(key, fine)).flatten() {
            copy(&path, &other);
            assert!(done(&Journal::open(&other).unwrap(), 10).contains(&task.input));
        }
    }
}

#[test]
fn no_limit_is_an_error() {
    for items in [10, usize::MAX] {
        for time in [Duration::ZERO, Duration::MAX] {
            watchdog(move || {
                let dir = tempfile::tempdir().unwrap();
                let journal = Journal::open(dir.path().join("journal")).unwrap();
                let journal = journal.commit_every(items, time);
                // One at a time, so that the writer looks at the clock for each.
                for n in 1_000..1_050 {
                    journal.record(key, fine)(&n).unwrap();
                    journal.commit().unwrap();
                }
                assert_eq!(calls(&journal, 1_000, fine), 1_000);
                assert_eq!(journal.summary().unwrap().done, 1_050);
            });
        }
    }
}

/// Whether the thread of the only journal neither works nor polls.
#[cfg(target_os = "linux")]
fn writer_sleeps() -> bool {
    let threads = common::threads_named("futureproof-jou");
    assert_eq!(threads.len(), 1);
    let switches = || {
        let status = fs::read_to_string(format!("/proc/self/task/{}/status", threads[0])).unwrap();
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    // It may still be on its way to bed.
    soon(|| {
        let before = switches();
        thread::sleep(Duration::from_millis(300));
        switches() == before
    })
}

/// An idle journal's thread sleeps, and is gone with it.
#[cfg(target_os = "linux")]
#[test]
fn the_thread_is_calm_and_ends_with_the_journal() {
    in_child(|| {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("journal")).unwrap();
        calls(&journal, 1_000, fine);
        journal.commit().unwrap();
        assert!(writer_sleeps());
        drop(journal);
        assert!(common::threads_named("futureproof-jou").is_empty());
    });
}

#[test]
fn public_types_cross_threads() {
    fn is<T: Send + Sync + Debug + 'static>() {}
    is::<Journal>();
    is::<Summary>();
    is::<Error>();
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path().join("journal")).unwrap();
    let source = journal.pending(0..10u64, key);
    let record = journal.record(key, fine);
    let run = thread::spawn(move || source.futureproof(Raise).map_tasks(record).count());
    assert_eq!(run.join().unwrap(), 10);
}

#[test]
fn errors_work_with_question_marks() {
    fn run(path: &Path) -> anyhow::Result<u64> {
        let journal = Journal::open(path)?;
        let halve = |n: &u64| if *n == 3 { Err("odd") } else { Ok(n / 2) };
        let run = (0..10).futureproof(Raise).ordered();
        for task in run.map_tasks(journal.record(key, halve)).checked() {
            task?;
        }
        Ok(journal.summary()?.done)
    }
    let dir = tempfile::tempdir().unwrap();
    let error = run(&dir.path().join("journal")).unwrap_err();
    assert_eq!(format!("{error:#}"), "task 3 failed: odd");
}

#[test]
fn a_second_process_is_refused_and_may_have_it_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = match env::var_os(DIR) {
        None => Some(Journal::open(&path).unwrap()),
        Some(_) => None,
    };
    let refused = Child::new("refused").env(DIR, path.display());
    refused.must_survive(|| {
        let error = Journal::open(env::var_os(DIR).unwrap()).unwrap_err();
        let wanted =
            "is in use: wait until the program that has opened this journal has ended, or end it";
        assert!(error.to_string().ends_with(wanted), "{error}");
    });
    if let Some(journal) = journal {
        // It is refused only after a while, as whoever has it may be about to end.
        let start = Instant::now();
        assert!(matches!(Journal::open(&path), Err(Error::InUse { .. })));
        assert!(start.elapsed() >= Duration::from_millis(500));
        journal.record(key, fine)(&1).unwrap();
    }
    let admitted = Child::new("admitted").env(DIR, path.display());
    admitted.must_survive(|| {
        let journal = Journal::open(env::var_os(DIR).unwrap()).unwrap();
        assert_eq!(calls(&journal, 10, fine), 9);
    });
}

#[test]
fn of_processes_that_begin_a_journal_at_once_one_has_it() {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let dir = tempfile::tempdir().unwrap();
    let texts = thread::scope(|scope| {
        let children = NAMES.map(|name| {
            let child = Child::new(name).env(DIR, dir.path().display());
            scope.spawn(|| {
                child.run(|| {
                    let dir = PathBuf::from(env::var_os(DIR).unwrap());
                    let begin = |name: &str| drop(File::create(dir.join(name)).unwrap());
                    let seen = |prefix| {
                        let files = fs::read_dir(&dir).unwrap();
                        let names = files.map(|file| file.unwrap().file_name());
                        names
                            .filter(|name| name.to_string_lossy().starts_with(prefix))
                            .count()
                    };
                    begin(&format!("here {}", process::id()));
                    assert!(soon(|| seen("here") == NAMES.len()));
                    match Journal::open(dir.join("journal")) {
                        Ok(_journal) => {
                            println!("has it");
                            // Keeps it until all others were refused.
                            assert!(soon(|| seen("refused") == NAMES.len() - 1));
                        }
                        Err(error) => {
                            assert!(matches!(error, Error::InUse { .. }), "{error}");
                            begin(&format!("refused {}", process::id()));
                        }
                    }
                })
            })
        });
        children.map(|child| child.join().unwrap())
    });
    let mut has_it = 0;
    for ended in texts.into_iter().flatten() {
        assert!(ended.status.success(), "{}", ended.text);
        has_it += usize::from(ended.text.contains("has it"));
    }
    if env::var_os(DIR).is_none() && !cfg!(miri) {
        assert_eq!(has_it, 1);
    }
}

#[test]
fn of_threads_that_open_a_journal_at_once_one_has_it() {
    for _ in 0..number("ROUNDS", 2) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        // New, closed well, and as a kill leaves it.
        for state in 0..3 {
            if state == 2 {
                let other = dir.path().join("other");
                let journal = Journal::open(&other).unwrap();
                journal.record(key, fine)(&1).unwrap();
                journal.commit().unwrap();
                copy(&other, &path);
            }
            let start = Barrier::new(8);
            let open = || {
                start.wait();
                let journal = Journal::open(&path);
                start.wait();
                journal
            };
            let all = thread::scope(|scope| {
                let threads = [(); 8].map(|()| scope.spawn(open));
                threads.map(|thread| thread.join().unwrap())
            });
            let has_it = all.iter().filter(|journal| journal.is_ok()).count();
            assert_eq!(has_it, 1, "in state {state}");
            for error in all.into_iter().filter_map(Result::err) {
                assert!(matches!(error, Error::InUse { .. }), "{error:?}");
            }
        }
    }
}

#[test]
fn what_is_no_journal_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert!(matches!(error, Error::NotAJournal { .. }), "{error:?}");
        assert!(error.to_string().contains(what), "{error}");
        assert!(fs::read(&path).unwrap() == bytes, "it was changed");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    };
    refused("two\nlines\n".repeat(1_000).as_bytes(), "another file");
    refused(b"short", "another file");
    fs::remove_file(&path).unwrap();
    drop(Journal::open(&path).unwrap());
    let good = fs::read(&path).unwrap();
    // The header of SQLite's format: the version of the user at 60, the mark of the application at 68.
    for (place, what) in [(60, "one of version"), (68, "a database of something else")] {
        let mut bytes = good.clone();
        bytes[place..place + 4].fill(0x11);
        refused(&bytes, what);
    }
    // No mark, but tables.
    let mut bytes = good.clone();
    bytes[68..72].fill(0);
    refused(&bytes, "a database of something else");
}

#[cfg(unix)]
#[test]
fn what_the_system_refuses_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| {
        let error = Journal::open(path).unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{error:?}");
        error.to_string()
    };
    let text = error(&dir.path().join("none/journal"));
    assert!(text.contains("No such file or directory"), "{text}");
    let text = error(dir.path());
    assert!(text.contains("Is a directory"), "{text}");
    let text = error(Path::new(""));
    assert!(text.contains("empty path"), "{text}");
}

/// What ten commits of four items leave behind: the file and what stands beside it, as after a power cut.
fn ten_commits(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    let path = dir.join("journal");
    let journal = Journal::open(&path).unwrap().commit_every(1_000, FOREVER);
    for n in 0..40 {
        journal.record(key, fine)(&n).unwrap();
        if n % 4 == 3 {
            journal.commit().unwrap();
        }
    }
    (fs::read(&path).unwrap(), fs::read(wal(&path)).unwrap())
}

#[test]
fn a_power_cut_takes_whole_commits_from_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (main, log) = ten_commits(dir.path());
    let path = dir.path().join("cut");
    let step = if env::var_os("EVERY_LENGTH").is_some() {
        1
    } else {
        97
    };
    // A frame is a page of 4,096 bytes with a header of 24, after the 32 bytes of the file's.
    let frames = (log.len() - 32) / 4_120;
    assert!(frames >= 10, "{frames}");
    let lengths = (log.len() - 3 * 4_120 - 2..=log.len())
        .filter(|length| length % step == 0 || (length + 2 - 32) % 4_120 < 4)
        .chain([0, 1, 31, 32, 33]);
    let mut last = 0;
    let mut opened = 0;
    for length in lengths.collect::<BTreeSet<_>>() {
        fs::write(&path, &main).unwrap();
        fs::write(wal(&path), &log[..length]).unwrap();
        let journal = Journal::open(&path).unwrap();
        let done = done(&journal, 40);
        let count = done.len() as u64;
        assert!(done.into_iter().eq(0..count), "at {length}");
        assert_eq!(count % 4, 0, "at {length}");
        assert!(count >= last, "at {length}");
        last = count;
        // And it goes on.
        journal.record(key, fine)(&count).unwrap();
        assert_eq!(journal.summary().unwrap().done, count + 1);
        opened += 1;
    }
    assert_eq!(last, 40);
    println!("{opened} lengths");
}

/// The file of a journal of 2,000 items that was closed.
fn closed(path: &Path) -> Vec<u8> {
    let journal = Journal::open(path).unwrap();
    let odd = |n: &u64| match n % 10 {
        0 => Err(format!("{n} is round")),
        _ => Ok(*n),
    };
    assert_eq!(calls(&journal, 2_000, odd), 2_000);
    drop(journal);
    fs::read(path).unwrap()
}

#[test]
fn a_file_that_was_cut_short_is_an_error_and_makes_nothing_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let good = closed(&path);
    let step = if env::var_os("EVERY_LENGTH").is_some() {
        1
    } else {
        61
    };
    for length in (good.len() - 3 * 4_096..good.len())
        .step_by(step)
        .chain(good.len() - 64..good.len())
        .chain([2, 99, 100, 4_096])
    {
        fs::write(&path, &good[..length]).unwrap();
        // SQLite takes a file of one byte for an empty one.
        let Err(error) = Journal::open(&path) else {
            panic!("at {length} of {}", good.len())
        };
        assert!(
            matches!(error, Error::Damaged { .. } | Error::NotAJournal { .. }),
            "at {length}: {error:?}"
        );
    }
}

#[test]
fn a_damaged_page_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let good = closed(&path);
    let pages = good.len() / 4_096;
    assert!(pages > 5, "{pages}");
    for page in 0..pages {
        for byte in [0x00, 0xa5, 0xff] {
            let mut bytes = good.clone();
            bytes[page * 4_096..][..4_096].fill(byte);
            fs::write(&path, &bytes).unwrap();
            let error = Journal::open(&path).unwrap_err();
            let text = error.to_string();
            match error {
                Error::Damaged { .. } => {
                    assert!(text.contains("restore it from a copy, or move it away"))
                }
                Error::NotAJournal { .. } => assert_eq!(page, 0),
                other => panic!("page {page}: {other:?}"),
            }
        }
    }
}

/// Runs items until the journal cannot be written, and beyond.
fn fill(journal: &Journal) -> u64 {
    let ran = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&ran);
    let long = |n: &u64| format!("{n:0200}");
    let run = journal.pending(0..20_000u64, long).futureproof(Ignore);
    let run = run
        .num_threads(2)
        .map_tasks(journal.record(long, move |_: &u64| {
            count.fetch_add(1, SeqCst);
            Ok::<(), String>(())
        }));
    let (mut fine, mut refused) = (0, 0);
    for task in run {
        match task {
            Ok(_) => fine += 1,
            Err(error) => {
                let text = error.cause().to_string();
                assert!(matches!(error.error(), Some(Error::Write { .. })), "{text}");
                assert!(text.contains("what is written down is safe"), "{text}");
                if refused == 0 {
                    println!("refused: {text}");
                }
                refused += 1;
            }
        }
    }
    // Who is refused was not started.
    assert_eq!(fine, ran.load(SeqCst));
    assert!(fine > 0 && refused > 0, "{fine} {refused}");
    assert!(journal.commit().is_err() && journal.summary().is_err());
    fine
}

fn long_done(path: &Path) -> u64 {
    Journal::open(path).unwrap().summary().unwrap().done
}

#[cfg(unix)]
#[test]
fn a_full_disk_stops_the_run_and_loses_nothing_that_was_committed() {
    for limit in ["1", "1000"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let child = Child::new(limit).env(DIR, path.display());
        // No file may have more than 512 KiB.
        let child = child.after("trap '' XFSZ && ulimit -f 1024");
        let limit = limit.parse().unwrap();
        let ended = child.run(|| {
            let journal = Journal::open(env::var_os(DIR).unwrap()).unwrap();
            let journal = journal.commit_every(limit, Duration::from_millis(100));
            println!("fine: {}", fill(&journal));
        });
        let Some(ended) = ended else { continue };
        assert!(ended.status.success(), "{}", ended.text);
        let lines = ended.text.lines();
        let fine = lines.filter_map(|line| line.strip_prefix("fine: ")).next();
        let (fine, done) = (fine.unwrap().parse::<u64>().unwrap(), long_done(&path));
        let lost = fine.checked_sub(done).unwrap();
        assert!(done > 0 && lost <= limit as u64 + 2, "{done} of {fine}");
    }
}

/// A file system of 512 KiB of its own; where the system allows nobody to have one, this shows nothing.
#[cfg(target_os = "linux")]
#[test]
fn once_there_is_room_again_nothing_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let may = process::Command::new("unshare")
        .args(["-rm", "true"])
        .status();
    if !may.is_ok_and(|status| status.success()) {
        println!("no file system of one's own here");
        return;
    }
    let child = Child::new("").env(DIR, dir.path().display());
    let mount = format!(
        "exec unshare -rm sh -c 'mount -t tmpfs -o size=512k tmpfs ${DIR} && exec \"$0\" \"$@\"' \"$0\" \"$@\""
    );
    child.after(&mount).must_survive(|| {
        let dir = PathBuf::from(env::var_os(DIR).unwrap());
        let path = dir.join("journal");
        let ballast = dir.join("ballast");
        fs::write(&ballast, vec![1; 300 << 10]).unwrap();
        let journal = Journal::open(&path).unwrap();
        let fine = fill(&journal);
        // A full disk is not tried again and again.
        assert!(writer_sleeps());
        fs::remove_file(ballast).unwrap();
        journal.commit().unwrap();
        assert_eq!(journal.summary().unwrap().done, fine);
        journal.record(key, |n: &u64| Ok::<_, String>(*n))(&1).unwrap();
        drop(journal);
        assert_eq!(long_done(&path), fine + 1);
    });
}

/// A commit that fails at the very end is told by the log alone.
#[cfg(unix)]
#[test]
fn a_last_commit_that_fails_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let child = Child::new("").env(DIR, dir.path().display());
    let child = child.after("trap '' XFSZ && ulimit -f 64");
    child.must_survive(|| {
        let path = PathBuf::from(env::var_os(DIR).unwrap()).join("journal");
        let (sender, lines) = mpsc::channel();
        common::lines::on_log(log::LevelFilter::Error, move |record| {
            let _ = sender.send(record.args().to_string());
        });
        let journal = Journal::open(path).unwrap().commit_every(1_000, FOREVER);
        let long = |n: &u64| format!("{n:01000}");
        for n in 0..100 {
            journal.record(long, fine)(&n).unwrap();
        }
        drop(journal);
        let line = lines.recv().unwrap();
        let start =
            "100 outcomes are not written down, and their items will run again: cannot write to";
        assert!(line.starts_with(start), "{line}");
    });
}

/// Nobody hangs whose run is dropped while the journal is full of what waits for the disk.
#[test]
fn a_dropped_run_ends_while_tasks_wait_for_the_disk() {
    watchdog(|| {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("journal"))
            .unwrap()
            .commit_every(2, FOREVER);
        for _ in 0..20 {
            let run = (0u64..).futureproof(Raise).num_threads(4);
            let mut run = run.map_tasks(journal.record(key, fine));
            run.next().unwrap().unwrap();
        }
    });
}

const ITEMS: u64 = 10_000;
/// What the batch may lose, besides what its two threads run.
const LOSS: u64 = 200;
const READY: &str = "FUTUREPROOF_READY";
const START: &str = "FUTUREPROOF_START";

fn fails(n: u64) -> bool {
    n % 100 == 7
}

/// Each task writes a file, and a line that tells that it ran. `READY` is after how many successes it is killed; there
/// is no such number in the last start, when nothing fails any more.
fn batch(dir: &Path) {
    let ready = env::var(READY)
        .ok()
        .map(|text| text.parse::<u64>().unwrap());
    let log = dir.join(format!("ran {}", env::var(START).unwrap()));
    let log = File::create(log).unwrap();
    if ready == Some(0) {
        println!("ready");
    }
    let successes = AtomicU64::new(0);
    let journal = Journal::open(dir.join("journal")).unwrap();
    let journal = journal.commit_every(LOSS as usize, Duration::from_millis(5));
    let out = dir.join("out");
    let write = move |n: &u64| -> anyhow::Result<()> {
        (&log).write_all(format!("{n}\n").as_bytes())?;
        if fails(*n) && ready.is_some() {
            assert!(n % 200 != 7, "cannot stand {n}");
            return Err(anyhow::anyhow!("it has a seven").context(format!("cannot write {n}")));
        }
        let part = out.join(format!("{n}.part"));
        fs::write(&part, n.to_string())?;
        fs::rename(part, out.join(n.to_string()))?;
        if Some(successes.fetch_add(1, SeqCst) + 1) == ready {
            println!("ready");
        }
        Ok(())
    };
    let run = journal
        .pending(0..ITEMS, key)
        .futureproof(Ignore)
        .num_threads(2);
    run.map_tasks(journal.record(key, write)).for_each(drop);
}

#[cfg(unix)]
#[test]
fn a_batch_survives_kill_9_at_any_moment() {
    use std::os::unix::process::ExitStatusExt;

    let play = || batch(Path::new(&env::var_os(DIR).unwrap()));
    if env::var_os(DIR).is_some() {
        // A child, which is to leave nothing of its own when it is killed.
        Child::new("").run(play);
        return;
    }
    let kills = number("KILLS", 10);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    let path = dir.path().join("journal");
    let seed = u64::from(process::id());
    let mut random = Random(seed);
    let mut known = BTreeSet::new();
    let mut tries_of_a_failing_one = 0;
    let (mut killed, mut ran_again) = (0, 0);
    for start in 0..=kills {
        let mut child = Child::new("")
            .env(DIR, dir.path().display())
            .env(START, start);
        if start < kills {
            // One in ten while the journal is being opened.
            let ready = match random.one_in(10) {
                true => 0,
                false => random.below(ITEMS / kills),
            };
            child = child.env(READY, ready).signal("-9");
        }
        let Some(ended) = child.run(play) else { return };
        killed += u64::from(ended.status.signal() == Some(9));
        let ran = fs::read_to_string(dir.path().join(format!("ran {start}"))).unwrap_or_default();
        let ran = BTreeSet::from_iter(ran.lines().map(|line| line.parse::<u64>().unwrap()));
        let what = format!("seed {seed}, start {start}: {}", ended.text);
        let again = ran.intersection(&known).count();
        assert_eq!(again, 0, "done, and run again: {what}");
        tries_of_a_failing_one += u64::from(ran.contains(&7));
        if !path.exists() {
            continue;
        }
        // The next start finds it as the kill has left it.
        let other = dir.path().join("copy");
        copy(&path, &other);
        let journal = Journal::open(&other).unwrap();
        let summary = journal.summary().unwrap();
        let done = done(&journal, ITEMS);
        assert_eq!(summary.done, done.len() as u64, "{what}");
        assert!(known.is_subset(&done), "no longer done: {what}");
        for n in done.difference(&known) {
            let text = fs::read_to_string(dir.path().join(format!("out/{n}"))).unwrap();
            assert_eq!(text, n.to_string(), "done, but not: {what}");
        }
        if start < kills {
            let lost = ran
                .iter()
                .filter(|n| !fails(**n) && !done.contains(n))
                .count() as u64;
            assert!(lost <= LOSS + 2, "{lost} are lost: {what}");
            ran_again += lost;
            for failure in &summary.failed {
                let n = &failure.key;
                let panics = n.parse::<u64>().unwrap() % 200 == 7;
                let wanted = match panics {
                    true => format!("panicked: cannot stand {n}"),
                    false => format!("cannot write {n}: it has a seven"),
                };
                assert_eq!(failure.reason, wanted, "{what}");
            }
        } else {
            assert!(ended.status.success(), "{what}");
            assert_eq!((summary.done, summary.failed), (ITEMS, vec![]), "{what}");
        }
        known = done;
    }
    assert!(tries_of_a_failing_one >= 2, "{tries_of_a_failing_one}");
    assert!(
        killed >= kills / 2,
        "only {killed} of {kills} were killed in time"
    );
    println!("{killed} of {kills} were killed in time; {ran_again} calls were made again");
}

/// A task that waits in the journal's lock would hold up the source, and so on: everybody gets through.
#[test]
fn many_threads_get_through_a_small_limit() {
    watchdog(|| {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("journal")).unwrap();
        let journal = journal.commit_every(3, Duration::from_millis(1));
        let gate = Gate::default();
        gate.open();
        let pass = journal.record(key, move |n: &u64| {
            gate.pass();
            fine(n)
        });
        let run = journal
            .pending(0..500, key)
            .futureproof(Raise)
            .num_threads(16);
        assert_eq!(run.map_tasks(pass).flatten().count(), 500);
        assert_eq!(journal.summary().unwrap().done, 500);
    });
}

/// One task, and then nothing for a while: it is written down all the same.
#[test]
fn a_single_outcome_is_durable_in_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = Journal::open(&path).unwrap();
    let size = || {
        let files = [path.clone(), wal(&path)];
        let sizes = files.map(|file| file.metadata().map_or(0, |data| data.len()));
        sizes.into_iter().sum::<u64>()
    };
    let record = journal.record(key, fine);
    for n in 0..4 {
        let before = size();
        record(&n).unwrap();
        assert!(soon(|| size() > before), "{n}");
    }
}
