//! Work that makes work: a run over a queue that is filled by its tasks, by the loop over them, by others.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{Brittle, Gate, Random, until_told, watchdog};
use futureproof::prelude::*;
use futureproof::{Ending, Queue};

/// The pages that a page links to.
fn links(page: u64, pages: u64) -> impl Iterator<Item = u64> {
    let steps = [3 * page + 1, 5 * page + 7, page / 2];
    (0..page % 4).map(move |at| steps[at as usize % 3] % pages)
}

/// What a sequential search visits.
fn visited(pages: u64) -> HashSet<u64> {
    let mut seen = HashSet::from([11]);
    let mut stack = vec![11];
    while let Some(page) = stack.pop() {
        stack.extend(links(page, pages).filter(|link| seen.insert(*link)));
    }
    seen
}

const PAGES: u64 = 3_000;

#[test]
fn a_crawl_whose_loop_pushes_visits_everything() {
    watchdog(|| {
        for threads in [1, 4, 16] {
            let queue = Queue::from_iter([11]);
            let mut seen = HashSet::from([11]);
            let run = queue.source().futureproof(Raise).num_threads(threads);
            let mut run = run.map_tasks(infallible(|page: &u64| {
                links(*page, PAGES).collect::<Vec<_>>()
            }));
            for task in run.by_ref() {
                (&queue).extend(
                    task.unwrap()
                        .output
                        .into_iter()
                        .filter(|link| seen.insert(*link)),
                );
            }
            assert_eq!(run.ending(), Some(Ending::Exhausted));
            assert_eq!(seen, visited(PAGES), "{threads} threads");
        }
    });
}

/// Pages fail at first, now and then, and are tried again; what a task pushes is heard however late.
#[test]
fn a_crawl_whose_tasks_push_visits_everything() {
    watchdog(|| {
        for threads in [1, 4, 16] {
            for is_ordered in [false, true] {
                let queue = Queue::from_iter([11]);
                let seen = Arc::new(Mutex::new(HashSet::from([11])));
                let tried = Mutex::new(HashSet::new());
                let (pushes, known) = (queue.clone(), Arc::clone(&seen));
                let run = queue
                    .source()
                    .futureproof(Raise)
                    .num_threads(threads)
                    .max_in_flight(7);
                let run = if is_ordered { run.ordered() } else { run };
                let run = run.map_tasks(move |page: &u64| {
                    if page % 5 == 0 && tried.lock().unwrap().insert(*page) {
                        return Err("busy");
                    }
                    for link in links(*page, PAGES) {
                        if known.lock().unwrap().insert(link) {
                            pushes.push(link);
                        }
                    }
                    Ok(())
                });
                let run = run.retry(|| [Duration::from_micros(10)]);
                let count = run.checked().collect::<Result<Vec<_>, _>>().unwrap().len();
                assert_eq!(
                    *seen.lock().unwrap(),
                    visited(PAGES),
                    "{threads} threads, ordered: {is_ordered}"
                );
                assert_eq!(count, visited(PAGES).len());
            }
        }
    });
}

/// Nothing else is in flight, and the consumer waits: an item that another thread pushes ends the wait.
#[test]
fn a_push_wakes_the_consumer() {
    watchdog(|| {
        for _ in 0..200 {
            let queue = Queue::from_iter([0]);
            let (gate, is_there) = (Gate::default(), Gate::default());
            let (release, waits) = (gate.clone(), is_there.clone());
            let mut run = queue
                .source()
                .futureproof(Raise)
                .num_threads(2)
                .map_tasks(infallible(move |n: &u32| match n {
                    0 => {
                        waits.open();
                        gate.pass();
                    }
                    _ => release.open(),
                }));
            let pushes = queue.clone();
            // The first task ends once the second has run, so the consumer has to be told of it.
            let other = thread::spawn(move || {
                is_there.pass();
                pushes.push(1);
            });
            assert_eq!(run.by_ref().count(), 2);
            assert_eq!(run.ending(), Some(Ending::Exhausted));
            other.join().unwrap();
        }
    });
}

#[test]
fn an_empty_queue_is_a_run_of_nothing() {
    let queue = Queue::<u32>::new();
    let mut run = queue
        .source()
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u32| *n));
    assert!(run.next().is_none());
    assert_eq!(run.ending(), Some(Ending::Exhausted));
    // What comes after the end stays in the queue.
    queue.push(1);
    assert!(run.next().is_none());
    assert_eq!(queue.len(), 1);
    let run = queue
        .source()
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u32| *n));
    assert_eq!(run.count(), 1);
    assert!(queue.is_empty());
}

#[test]
fn a_crawl_can_be_left_in_any_way() {
    watchdog(|| {
        let endless = |queue: &Queue<u64>| {
            let pushes = queue.clone();
            infallible(move |n: &u64| {
                pushes.push(n + 1);
                pushes.push(n + 2);
            })
        };
        // Dropped.
        let queue = Queue::from_iter([0]);
        let mut run = queue
            .source()
            .futureproof(Raise)
            .num_threads(4)
            .map_tasks(endless(&queue));
        assert_eq!(run.by_ref().take(100).count(), 100);
        drop(run);
        // With a remainder.
        let queue = Queue::from_iter([0]);
        let mut run = queue
            .source()
            .futureproof(Raise)
            .num_threads(4)
            .map_tasks(endless(&queue));
        let delivered = run.by_ref().take(100).count();
        let rest = run.into_remainder();
        let left = rest.unprocessed.len() + rest.source.count();
        // Each task that was run has pushed two.
        assert_eq!(
            1 + 2 * (delivered + rest.finished.len()),
            delivered + rest.finished.len() + left
        );
        // Cancelled, while the consumer waits for a task that does not end before.
        let queue = Queue::from_iter([0u64]);
        let token = CancellationToken::new();
        let (started, starts) = mpsc::channel();
        let run = queue.source().futureproof(Raise).cancel_on(&token);
        let mut run = run.map_tasks(infallible(move |_: &u64| {
            started.send(()).unwrap();
            until_told();
        }));
        thread::spawn(move || {
            starts.recv().unwrap();
            token.cancel();
        });
        assert!(run.next().is_none());
        assert_eq!(run.ending(), Some(Ending::Cancelled));
    });
}

/// Each item goes to one of them.
#[test]
fn two_runs_share_a_queue() {
    watchdog(|| {
        let queue = Queue::from_iter(0..1_000u32);
        let sum = Arc::new(AtomicU32::new(0));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (queue, sum) = (queue.clone(), Arc::clone(&sum));
                thread::spawn(move || {
                    let pushes = queue.clone();
                    let run =
                        queue
                            .source()
                            .futureproof(Raise)
                            .num_threads(2)
                            .map_tasks(infallible(move |n: &u32| {
                                // One generation more.
                                if *n < 1_000 {
                                    pushes.push(n + 1_000);
                                }
                                sum.fetch_add(n % 1_000, SeqCst);
                            }));
                    run.count()
                })
            })
            .collect();
        let counts: Vec<usize> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect();
        // The one that is there last pulls what the other's tasks have pushed after that run's end, if it can.
        let rest = queue
            .source()
            .futureproof(Raise)
            .map_tasks(infallible(|_: &u32| ()))
            .count();
        assert_eq!(counts.iter().sum::<usize>() + rest, 2_000);
        assert_eq!(rest, 0, "whoever pushes is in flight, so its run goes on");
        assert_eq!(sum.load(SeqCst), 2 * 499_500);
    });
}

#[test]
fn items_of_a_queue_may_be_taken() {
    watchdog(|| {
        let queue = Queue::from_iter([String::from("a")]);
        let pushes = queue.clone();
        let run = queue
            .source()
            .futureproof(Raise)
            .map_tasks_owned(move |text: String| {
                if text.len() < 10 {
                    pushes.push(format!("{text}a"));
                }
                Ok::<_, ()>(text)
            });
        assert_eq!(
            run.flatten().map(|task| task.output.len()).sum::<usize>(),
            55
        );
    });
}

/// The queue fills faster than it is emptied; what is in flight stays bounded.
#[test]
fn the_window_holds() {
    watchdog(|| {
        let queue = Queue::from_iter(0..10_000u32);
        let run = queue
            .source()
            .futureproof(Raise)
            .num_threads(2)
            .max_in_flight(5);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        let progress = run.progress();
        for task in run.by_ref() {
            task.unwrap();
            assert!(progress.snapshot().in_flight() <= 5);
        }
    });
}

/// A tree of random shape, its nodes run in a random way and left in a random way: each node is in exactly one place.
#[test]
fn whatever_the_crawl_nothing_is_lost() {
    // A watch for each thousand: next to others that compute, each of these runs takes some 20 ms.
    for first in [0, 1_000, 2_000] {
        watchdog(move || (first..first + 1_000).for_each(crawl));
    }
}

fn crawl(seed: u64) {
    let mut random = Random(seed);
    let nodes = random.below(60);
    // The parent of each node but the first.
    let parents: Vec<u64> = (1..nodes).map(|n| random.below(n)).collect();
    let children = move |node: u64| {
        (1..nodes)
            .zip(parents.clone())
            .filter_map(move |(n, parent)| (parent == node).then_some(n))
    };
    let bad = 1 + random.below(40);
    let fails: Vec<u64> = (0..nodes)
        .map(|_| {
            if random.below(bad) == 0 {
                1 + random.below(3)
            } else {
                0
            }
        })
        .collect();
    let (threads, window, retries) = (
        1 + random.below(4) as usize,
        random.below(8) as usize,
        random.below(3),
    );
    let policy = [Raise, Ignore, Tolerate(2)][random.below(3) as usize];
    let (is_ordered, tasks_push, step) =
        (random.one_in(2), random.one_in(2), random.below(nodes + 2));
    let (leaves, is_cancelled) = (random.one_in(2), random.one_in(4));

    let queue = Queue::from_iter((0..nodes).take(1));
    let pushed = Arc::new(AtomicU32::new(queue.len() as u32));
    let calls: Arc<Vec<AtomicU32>> = Arc::new((0..nodes).map(|_| AtomicU32::new(0)).collect());
    let (push_to, count, tried, children_of) = (
        queue.clone(),
        Arc::clone(&pushed),
        Arc::clone(&calls),
        children.clone(),
    );
    let token = CancellationToken::new();
    let run = queue
        .source()
        .futureproof(policy)
        .num_threads(threads)
        .max_in_flight(window)
        .cancel_on(&token);
    let run = if is_ordered { run.ordered() } else { run };
    let fails_so_often = fails.clone();
    let run = run.map_tasks(move |node: &u64| {
        let earlier = tried[*node as usize].fetch_add(1, SeqCst);
        if u64::from(earlier) < fails_so_often[*node as usize] {
            return Err(());
        }
        if tasks_push {
            for child in children_of(*node) {
                count.fetch_add(1, SeqCst);
                push_to.push(child);
            }
        }
        Ok(())
    });
    let mut run = run.retry(move || vec![Duration::ZERO; retries as usize]);
    let mut seen = vec![0; nodes as usize];
    let (mut delivered, mut failed) = (0, 0);
    for task in run.by_ref() {
        let node = task
            .as_ref()
            .map_or_else(|error| *error.input(), |task| task.input);
        seen[node as usize] += 1;
        delivered += 1;
        assert_eq!(
            task.is_err(),
            fails[node as usize] > retries,
            "{seed}: the fate of {node}"
        );
        failed += u64::from(task.is_err());
        if !tasks_push && task.is_ok() {
            for child in children(node) {
                pushed.fetch_add(1, SeqCst);
                queue.push(child);
            }
        }
        if delivered == step && is_cancelled {
            token.cancel();
        } else if delivered == step && leaves {
            break;
        }
    }
    let ending = run.ending();
    match ending {
        Some(Ending::Exhausted) => assert!(delivered == u64::from(pushed.load(SeqCst)), "{seed}"),
        Some(Ending::Failed) => assert_eq!(failed, if policy == Raise { 1 } else { 3 }, "{seed}"),
        Some(Ending::Cancelled) => assert!(is_cancelled && delivered == step, "{seed}"),
        None => assert!(leaves && delivered == step, "{seed}"),
        other => panic!("{seed}: {other:?}"),
    }
    let rest = run.into_remainder();
    let finished = rest.finished.iter().map(|task| {
        task.as_ref()
            .map_or_else(|error| *error.input(), |task| task.input)
    });
    let left = finished
        .chain(rest.unprocessed.iter().map(|(_, node)| *node))
        .chain(rest.source);
    left.for_each(|node| seen[node as usize] += 1);
    assert!(seen.iter().all(|times| *times <= 1), "{seed}: twice");
    assert_eq!(
        seen.iter().sum::<u32>(),
        pushed.load(SeqCst),
        "{seed}: lost"
    );
}

/// A queue never blocks, so it is not read ahead: the thread that reads could not tell the end.
#[test]
fn a_queue_can_be_asked_to_be_read_ahead() {
    watchdog(|| {
        let queue = Queue::from_iter([0u32]);
        let pushes = queue.clone();
        let run = queue.source().futureproof(Raise).read_ahead(4);
        let run = run.map_tasks(infallible(move |n: &u32| {
            if *n < 10 {
                pushes.push(n + 1);
            }
        }));
        assert_eq!(run.count(), 11);
    });
}

#[test]
fn a_crawl_goes_on_from_its_remainder() {
    watchdog(|| {
        let queue = Queue::from_iter([0u32]);
        let grow = |queue: &Queue<u32>| {
            let pushes = queue.clone();
            infallible(move |n: &u32| {
                if *n < 100 {
                    pushes.push(n + 1);
                }
            })
        };
        let mut run = queue.source().futureproof(Raise).map_tasks(grow(&queue));
        let first = run.by_ref().take(10).count();
        let rest = run.into_remainder();
        (&queue).extend(rest.unprocessed.into_iter().map(|(_, n)| n));
        let second = rest
            .source
            .futureproof(Raise)
            .map_tasks(grow(&queue))
            .count();
        assert_eq!(first + rest.finished.len() + second, 101);
    });
}

#[test]
fn items_whose_destructors_panic_do_no_harm() {
    let queue = Queue::from_iter([0; 5].map(|_| Brittle));
    let run = queue
        .source()
        .futureproof(Ignore)
        .map_tasks(infallible(|_: &Brittle| ()));
    drop(queue);
    drop(run);
}
