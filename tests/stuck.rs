//! `warn_after` tells which task runs for long, and on which thread.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use common::{soon, watchdog};
use futureproof::Spawn;
use futureproof::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// Keeps the lines.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.lines().push(record.args().to_string());
    }
    fn flush(&self) {}
}

impl Lines {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap()
    }

    fn install() {
        let _ = log::set_logger(&LINES);
        log::set_max_level(log::LevelFilter::Warn);
    }

    fn find(&self, start: &str) -> Option<String> {
        let lines = self.lines();
        lines.iter().find(|line| line.starts_with(start)).cloned()
    }
}

/// A thread for each job. It begins when the one before is gone.
#[derive(Default)]
struct OneByOne {
    last: Mutex<Option<JoinHandle<()>>>,
    count: AtomicUsize,
}

impl Spawn<'static> for OneByOne {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let mut last = self.last.lock().unwrap();
        if let Some(thread) = last.take() {
            thread.join().unwrap();
        }
        let name = format!("mine-{}", self.count.fetch_add(1, SeqCst));
        *last = thread::Builder::new().name(name).spawn(job).ok();
    }
}

// thread_local: the id of a thread that has ended is that of the next one.
#[test]
fn a_task_is_told_on_the_thread_that_it_is_on() {
    Lines::install();
    watchdog(|| {
        let run = (0..3u32).futureproof(Raise).on(OneByOne::default());
        let run = run.num_threads(1).max_in_flight(1).chunk_size(1);
        let run = run.name("names").warn_after(5 * MS);
        let run = run.map_tasks(infallible(|n: &u32| {
            let start = format!("names: task {n} has been running for ");
            assert!(soon(|| LINES.find(&start).is_some()));
            let name = thread::current().name().unwrap().to_owned();
            (LINES.find(&start).unwrap(), name)
        }));
        for task in run {
            let (line, name) = task.unwrap().output;
            assert!(line.ends_with(&format!(", on {name}")), "{line}, on {name}");
        }
    });
}

// rayon: a worker that waits takes up other jobs.
#[test]
fn a_task_is_told_while_others_run_inside_it() {
    Lines::install();
    watchdog(|| {
        let run = (0..u32::MAX).futureproof(Raise).num_threads(1);
        let run = run.chunk_size(1).name("inside").warn_after(5 * MS);
        let mut run = run.map_tasks(infallible(|n: &u32| {
            let is_told = || LINES.find("inside: task 0 has been running for ").is_some();
            if *n > 0 {
                // Long enough to be seen, and over before it would be told of.
                sleep(2 * MS);
                return true;
            }
            soon(|| {
                rayon::yield_now();
                is_told()
            })
        }));
        let first = run.find(|task| task.as_ref().is_ok_and(|task| task.index == 0));
        assert!(first.unwrap().unwrap().output, "it was never told of");
    });
}

#[test]
fn a_task_is_told_with_its_stage() {
    Lines::install();
    watchdog(|| {
        let told = |start: &str| soon(|| LINES.find(start).is_some());
        let fetch = move |n: &u32| {
            Ok::<_, ()>((
                *n == 0,
                told("stages: task 0 in stage 0 has been running for "),
            ))
        };
        let parse = move |first: &(bool, bool)| {
            Ok((
                first.1,
                told("stages: task 0 in stage 1 has been running for "),
            ))
        };
        let run = [0]
            .into_iter()
            .futureproof(Raise)
            .name("stages")
            .warn_after(5 * MS);
        let mut run = run.stage(fetch).map_tasks(parse);
        assert_eq!(run.next().unwrap().unwrap().output, (true, true));
    });
}
