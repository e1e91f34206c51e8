//! `warn_after` tells which task runs for long, and on which thread.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, mpsc};
use std::thread::{self, JoinHandle, sleep};

use common::lines::{collect_lines, lines_of};
use common::{Gate, MS, soon, watchdog};
use futureproof::Spawn;
use futureproof::prelude::*;
use log::LevelFilter;

/// The first line that starts so, of what the run of this name has logged.
fn find(name: &str, start: &str) -> Option<String> {
    let mut lines = lines_of(name).into_iter().map(|(_, line)| line);
    lines.find(|line| line.starts_with(start))
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
    collect_lines(LevelFilter::Info);
    watchdog(|| {
        let run = (0..3u32).futureproof(Raise).on(OneByOne::default());
        let run = run.num_threads(1).max_in_flight(1).chunk_size(1);
        let run = run.name("names").warn_after(5 * MS);
        let run = run.map_tasks(infallible(|n: &u32| {
            let start = format!("task {n} has been running for ");
            assert!(soon(|| find("names", &start).is_some()));
            let name = thread::current().name().unwrap().to_owned();
            (find("names", &start).unwrap(), name)
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
    collect_lines(LevelFilter::Info);
    watchdog(|| {
        let run = (0..u32::MAX).futureproof(Raise).num_threads(1);
        let run = run.chunk_size(1).name("inside").warn_after(5 * MS);
        let mut run = run.map_tasks(infallible(|n: &u32| {
            let is_told = || find("inside", "task 0 has been running for ").is_some();
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
    collect_lines(LevelFilter::Info);
    watchdog(|| {
        let told = |start: &str| soon(|| find("stages", start).is_some());
        let fetch =
            move |n: &u32| Ok::<_, ()>((*n == 0, told("task 0 in stage 0 has been running for ")));
        let parse = move |first: &(bool, bool)| {
            Ok((first.1, told("task 0 in stage 1 has been running for ")))
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

/// A run is dropped while a task looks for nothing. After a second the log says what the drop waits for, and the
/// monitor says that the run was left.
#[test]
fn a_drop_that_waits_says_for_what() {
    collect_lines(LevelFilter::Info);
    watchdog(|| {
        let (gate, open) = (Gate::default(), Gate::default());
        let (begun, entered) = mpsc::channel();
        let (passed, opened) = (gate.clone(), open.clone());
        let told = thread::spawn(move || {
            entered.recv().unwrap();
            let waits = "the run has ended, but for 1s it has been waiting for task 1 on left-";
            let is_told = soon(|| find("left", waits).is_some());
            let watched = "left before its end; waiting for calls that still run";
            let is_watched = soon(|| find("left", watched).is_some());
            opened.open();
            (is_told, is_watched)
        });
        let run = (0..9u32).futureproof(Raise).num_threads(2).chunk_size(1);
        let run = run.max_in_flight(2).name("left");
        let run = run.monitor_interval(100 * MS);
        let mut run = run.map_tasks(infallible(move |n: &u32| {
            if *n == 1 {
                passed.open();
                begun.send(()).unwrap();
                open.pass();
            } else {
                gate.pass();
            }
        }));
        run.next();
        drop(run);
        assert_eq!(told.join().unwrap(), (true, true));
    });
}
