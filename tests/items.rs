//! Functions that change their items, that take them, and that keep something for each worker.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{Tally, watchdog};
use futureproof::PerWorker;
use futureproof::prelude::*;

#[test]
fn buffers_are_changed_in_place() {
    let buffers: Vec<Vec<u32>> = (0..1_000).map(|n| vec![n, 0, 2 * n]).collect();
    let first = buffers[7].as_ptr();
    let run = buffers
        .into_iter()
        .futureproof(Raise)
        .num_threads(2)
        .ordered();
    let run = run.map_tasks_mut(|buffer: &mut Vec<u32>| {
        buffer.sort();
        Ok::<_, String>(buffer.len())
    });
    let tasks: Vec<_> = run.checked().collect::<Result<_, _>>().unwrap();
    for (task, n) in tasks.iter().zip(0..) {
        assert_eq!(
            (task.input.as_slice(), task.output),
            (&[0, n, 2 * n][..], 3)
        );
    }
    assert_eq!(tasks[7].input.as_ptr(), first, "they were never copied");
}

/// A further attempt, and whoever looks at the failure, sees what the one before has left.
#[test]
fn what_a_failed_call_has_changed_stays_changed() {
    let run = [0u32, 10].into_iter().futureproof(Ignore).ordered();
    let run = run.map_tasks_mut(|count: &mut u32| {
        *count += 1;
        match *count {
            3 => Ok("third"),
            13 => panic!("thirteenth"),
            _ => Err("too early"),
        }
    });
    let mut run = run.retry(|| [Duration::ZERO; 5]);
    let task = run.next().unwrap().unwrap();
    assert_eq!((task.input, task.output), (3, "third"));
    let error = run.next().unwrap().unwrap_err();
    assert_eq!(
        (*error.input(), error.attempts(), error.is_panic()),
        (13, 3, true)
    );
}

#[test]
fn closures_that_can_be_called_once_are_called_once() {
    type Job = Box<dyn FnOnce() -> Result<usize, String> + Send>;
    let tally = Tally::default();
    let jobs = (0..1_000usize).map(|n| {
        let token = tally.token();
        Box::new(move || {
            let _token = token;
            if n % 10 == 0 {
                Err(format!("{n}"))
            } else {
                Ok(n)
            }
        }) as Job
    });
    let run = jobs
        .futureproof(Ignore)
        .num_threads(2)
        .map_tasks_owned(|job: Job| job());
    let (mut sum, mut failed) = (0, 0);
    for task in run {
        match task {
            Ok(task) => {
                assert!(task.input.is_none());
                sum += task.output;
            }
            Err(error) => {
                assert!(error.input().is_none());
                assert_eq!(error.error(), Some(&error.index().to_string()));
                failed += 1;
            }
        }
    }
    assert_eq!((sum, failed), (450_000, 100));
    assert_eq!((tally.made(), tally.dropped()), (1_000, 1_000));
}

/// Items that were not given to the function are there, wherever they are found.
#[test]
fn items_that_were_not_taken_come_back() {
    watchdog(|| {
        let run = (0..1_000u32)
            .map(|n| n.to_string())
            .futureproof(Raise)
            .num_threads(2);
        let mut run =
            run.map_tasks_owned(|text: String| if text == "500" { Err(text) } else { Ok(text) });
        let delivered = run.by_ref().count();
        let rest = run.into_remainder();
        assert!(
            rest.unprocessed
                .iter()
                .all(|(index, item)| item.as_ref() == Some(&index.to_string()))
        );
        let left = rest.finished.len() + rest.unprocessed.len() + rest.source.into_inner().count();
        assert_eq!(delivered + left, 1_000);
    });
}

#[test]
fn a_source_that_is_read_ahead_gives_items_to_be_taken() {
    watchdog(|| {
        let (sender, receiver) = std::sync::mpsc::channel();
        sender.send(String::from("first")).unwrap();
        let run = receiver.into_iter().futureproof(Raise).read_ahead(4);
        let mut run = run.map_tasks_owned(|text: String| Ok::<_, ()>(text.len()));
        // The source blocks, and the result comes.
        assert_eq!(run.next().unwrap().unwrap().output, 5);
        drop(run);
        drop(sender);
    });
}

#[test]
fn the_states_of_the_workers_come_back() {
    let counts = PerWorker::new(HashMap::<u32, u32>::new);
    let count = counts.with(|counts, n: &u32| {
        *counts.entry(n % 7).or_default() += 1;
        if *n == 5_000 { Err("bad") } else { Ok(()) }
    });
    let run = (0..10_000u32)
        .futureproof(Ignore)
        .num_threads(4)
        .map_tasks(count);
    assert_eq!(run.filter(Result::is_err).count(), 1);
    // A second run adds to them.
    let run = (0..700u32)
        .futureproof(Raise)
        .map_tasks(counts.with(|counts, n: &u32| {
            *counts.entry(n % 7).or_default() += 1;
            Ok::<_, ()>(())
        }));
    assert_eq!(run.count(), 700);
    let states = counts.into_vec();
    assert!(!states.is_empty());
    let mut total = HashMap::new();
    for (key, count) in states.into_iter().flatten() {
        *total.entry(key).or_insert(0) += count;
    }
    for key in 0..7 {
        let expected = (0..10_000).filter(|n| n % 7 == key).count() + 100;
        assert_eq!(total[&key] as usize, expected);
    }
}

#[test]
fn a_state_is_lost_to_a_panic_only() {
    let sums = PerWorker::new(Vec::new);
    let add = sums.with(|sum: &mut Vec<u32>, n: &u32| {
        assert!(*n != 99, "the last one");
        // Whoever waits inside rayon may take up another task on the same thread, and that one has a state of its own.
        rayon::join(|| (), || ());
        sum.push(*n);
        Ok::<_, ()>(())
    });
    let run = (0..100u32)
        .futureproof(Ignore)
        .num_threads(1)
        .map_tasks(add);
    assert_eq!(run.filter(Result::is_err).count(), 1);
    assert_eq!(
        sums.into_vec(),
        Vec::<Vec<u32>>::new(),
        "one worker, whose last call panicked"
    );
    let sums = PerWorker::new(|| 0u32);
    let add = sums.with(|sum, n: &u32| {
        *sum += n;
        Ok::<_, ()>(())
    });
    // A run that is left as well.
    let mut run = (0..)
        .futureproof(Raise)
        .num_threads(2)
        .max_in_flight(8)
        .map_tasks(add);
    run.next();
    drop(run);
    assert!(!sums.into_vec().is_empty());
}
