//! Runs of several functions, each on threads of its own.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Gate, Inline, MS, Random, Tally, Token, pool, until_told, watchdog};
use futureproof::Ending;
use futureproof::prelude::*;

#[test]
fn the_outputs_are_those_of_the_functions_one_after_the_other() {
    watchdog(|| {
        let double = |n: &u64| Ok::<_, String>(2 * n);
        let text = |n: &u64| Ok(n.to_string());
        let run = (0..10_000u64)
            .futureproof(Raise)
            .num_threads(2)
            .ordered()
            .stage(double)
            .num_threads(3);
        let run = run
            .stage(text)
            .num_threads(2)
            .map_tasks(|text: &String| Ok(text.len()));
        for (n, task) in run.enumerate() {
            let task = task.unwrap();
            assert_eq!((task.index, task.input), (n as u64, n as u64));
            assert_eq!(task.output, (2 * n).to_string().len());
        }
    });
}

/// Each stage has all of its threads at work, at the same time.
#[test]
fn each_stage_has_threads_of_its_own() {
    watchdog(|| {
        let (fetchers, parsers) = (Arc::new(Barrier::new(4)), Arc::new(Barrier::new(2)));
        let both = Arc::new(Barrier::new(2));
        let here = Arc::clone(&both);
        let fetch = move |n: &u32| {
            fetchers.wait();
            if *n == 39 {
                here.wait();
            }
            Ok::<_, ()>(*n)
        };
        let parse = move |n: &u32| {
            parsers.wait();
            if *n == 0 {
                both.wait();
            }
            Ok(())
        };
        let run = (0..40u32)
            .futureproof(Raise)
            .num_threads(4)
            .max_in_flight(100)
            .stage(fetch)
            .num_threads(2);
        assert_eq!(run.map_tasks(parse).flatten().count(), 40);
    });
}

/// A first stage whose item `last` waits at the gate.
fn waits(last: u32, gate: &Gate) -> impl Fn(&u32) -> Result<u32, ()> + Send + Sync + use<> {
    let gate = gate.clone();
    move |n| {
        if *n == last {
            gate.pass();
        }
        Ok(*n)
    }
}

/// A second stage whose item `made` opens it.
fn opens(made: u32, gate: &Gate) -> impl Fn(&u32) -> Result<(), ()> + Send + Sync + use<> {
    let gate = gate.clone();
    move |n| {
        if *n == made {
            gate.open();
        }
        Ok(())
    }
}

/// What the first stage has made does not wait for its neighbours there.
#[test]
fn what_is_made_goes_on_at_once() {
    watchdog(|| {
        for chunk in [0, 1, 16] {
            let gate = Gate::default();
            let (fetch, parse) = (waits(15, &gate), opens(0, &gate));
            let run = (0..16u32)
                .futureproof(Raise)
                .num_threads(1)
                .chunk_size(chunk)
                .stage(fetch);
            let mut run = run.num_threads(1).map_tasks(parse);
            assert!(run.next().is_some());
            assert_eq!(run.count(), 15);
        }
    });
}

/// Nor where the pool was busy with other things for so long that the consumer has flushed before.
#[test]
fn what_is_made_after_a_flush_goes_on_as_well() {
    watchdog(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pool = Arc::new(pool.unwrap());
        for _ in 0..10 {
            pool.spawn(|| thread::sleep(Duration::from_millis(5)));
            let gate = Gate::default();
            let (fetch, parse) = (waits(3, &gate), opens(2, &gate));
            let run = (0..4u32)
                .futureproof(Raise)
                .chunk_size(4)
                .on(Arc::clone(&pool))
                .stage(fetch);
            assert_eq!(run.num_threads(1).map_tasks(parse).count(), 4);
        }
    });
}

#[test]
fn a_failure_of_the_first_stage_stops_all() {
    watchdog(|| {
        for round in 0..20 {
            let (begun, has_failed) = (
                Arc::new(AtomicUsize::new(0)),
                Arc::new(AtomicBool::new(false)),
            );
            let (late, failed) = (Arc::clone(&begun), Arc::clone(&has_failed));
            let parsing = Gate::default();
            let is_parsing = parsing.clone();
            let fetch = move |n: &u32| {
                if failed.load(SeqCst) {
                    late.fetch_add(1, SeqCst);
                }
                if *n == 60 {
                    parsing.pass();
                    failed.store(true, SeqCst);
                    return Err("no network");
                }
                Ok(*n)
            };
            let (late, failed) = (Arc::clone(&begun), Arc::clone(&has_failed));
            let parse = move |_: &u32| {
                if failed.load(SeqCst) {
                    late.fetch_add(1, SeqCst);
                }
                is_parsing.open();
                // Else it would take longer than the test has.
                until_told();
                Ok::<_, &str>(())
            };
            let run = (0..1_000u32)
                .futureproof(Raise)
                .num_threads(16)
                .max_in_flight(200)
                .stage(fetch);
            let mut run = run.num_threads(2).map_tasks(parse);
            let error = run.next().unwrap().unwrap_err();
            assert_eq!(
                (
                    error.index(),
                    error.stage(),
                    *error.cause().error().unwrap()
                ),
                (60, 0, "no network")
            );
            assert_eq!(error.to_string(), "task 60 failed in stage 0");
            assert!(run.next().is_none());
            assert_eq!(run.ending(), Some(Ending::Failed));
            // Those that were about to begin as it failed.
            assert!(begun.load(SeqCst) <= 18, "{begun:?} in round {round}");
        }
    });
}

trait ErrorOf<E> {
    fn error(&self) -> Option<&E>;
}

impl<E> ErrorOf<E> for futureproof::Cause<E> {
    fn error(&self) -> Option<&E> {
        match self {
            Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}

#[test]
fn failures_say_in_which_stage_and_are_tried_again_from_the_first() {
    watchdog(|| {
        let calls = Arc::new([0; 3].map(|_: u32| AtomicUsize::new(0)));
        let count = |stage: usize| {
            let calls = Arc::clone(&calls);
            move |n: &u32| {
                calls[stage].fetch_add(1, SeqCst);
                if *n as usize == stage {
                    Err(stage)
                } else {
                    Ok(*n)
                }
            }
        };
        let run = (0..4u32)
            .futureproof(Ignore)
            .ordered()
            .stage(count(0))
            .stage(count(1));
        let run = run.map_tasks(count(2)).retry(|| [Duration::ZERO; 2]);
        let results: Vec<_> = run
            .map(|task| {
                task.map(|task| task.output)
                    .map_err(|error| (error.stage(), error.attempts()))
            })
            .collect();
        assert_eq!(results, [Err((0, 3)), Err((1, 3)), Err((2, 3)), Ok(3)]);
        let calls: Vec<usize> = calls.iter().map(|calls| calls.load(SeqCst)).collect();
        // Item 0 three times, 1 and 2 three times, 3 once; the later stages without what failed before.
        assert_eq!(calls, [10, 7, 4]);
    });
}

#[test]
fn panics_are_failures_of_their_stage() {
    watchdog(|| {
        let first = |n: &u32| {
            if *n == 1 {
                panic!("first")
            } else {
                Ok::<_, ()>(*n)
            }
        };
        let second = |n: &u32| if *n == 2 { panic!("second") } else { Ok(*n) };
        let run = (0..4u32)
            .futureproof(Ignore)
            .ordered()
            .stage(first)
            .map_tasks(second);
        let texts: Vec<String> = run
            .filter_map(Result::err)
            .map(|error| error.to_string())
            .collect();
        assert_eq!(
            texts,
            [
                "task 1 in stage 0 panicked: first",
                "task 2 in stage 1 panicked: second"
            ]
        );
        let run = (0..4u32)
            .futureproof(Ignore)
            .ordered()
            .stage(|n: &u32| Ok::<_, String>(*n));
        let run = run.map_tasks(|n: &u32| {
            if *n == 2 {
                Err(String::from("two"))
            } else {
                Ok(())
            }
        });
        let error = run.checked().find_map(Result::err).unwrap();
        assert_eq!(format!("{error:?}"), "task 2 failed in stage 1: two");
    });
}

#[test]
fn what_was_made_can_be_changed_or_taken() {
    watchdog(|| {
        let letters = |n: &u32| Ok::<_, String>(vec![*n, 2, 1]);
        let run = (3..6u32).futureproof(Raise).ordered().stage(letters);
        let sorted: Vec<_> = run
            .map_tasks_mut(|made: &mut Vec<u32>| {
                made.sort();
                Ok(made.clone())
            })
            .map(|task| task.unwrap().output)
            .collect();
        assert_eq!(sorted, [[1, 2, 3], [1, 2, 4], [1, 2, 5]]);
        let tries = AtomicUsize::new(0);
        let run = (3..6u32).futureproof(Raise).ordered().stage(letters);
        let run = run.map_tasks_owned(move |made: Vec<u32>| match tries.fetch_add(1, SeqCst) {
            1 => Err("once".into()),
            _ => Ok(made),
        });
        // It is made anew.
        let taken: Vec<_> = run
            .retry(|| [Duration::ZERO])
            .map(|task| task.unwrap())
            .map(|task| (task.input, task.output))
            .collect();
        assert_eq!(taken, [3, 4, 5].map(|n| (n, vec![n, 2, 1])));
    });
}

#[test]
fn stages_run_anywhere() {
    watchdog(|| {
        let add = |n: &u64| Ok::<_, ()>(n + 1);
        let sum = 1_000 * 999 / 2 + 2 * 1_000;
        // On two pools, on one, on the one that the consumer is on.
        let (one, other) = (pool(1), pool(2));
        let run = (0..1_000u64)
            .futureproof(Raise)
            .on(Arc::clone(&one))
            .stage(add)
            .on(Arc::clone(&other));
        assert_eq!(
            run.map_tasks(add)
                .map(|task| task.unwrap().output)
                .sum::<u64>(),
            sum
        );
        let run = (0..1_000u64)
            .futureproof(Raise)
            .on(Arc::clone(&one))
            .stage(add)
            .on(Arc::clone(&one));
        assert_eq!(
            run.map_tasks(add)
                .map(|task| task.unwrap().output)
                .sum::<u64>(),
            sum
        );
        let here = Arc::clone(&one);
        let inside = one.install(|| {
            let run = (0..1_000u64)
                .futureproof(Raise)
                .on(Arc::clone(&here))
                .stage(add)
                .on(here);
            run.map_tasks(add)
                .map(|task| task.unwrap().output)
                .sum::<u64>()
        });
        assert_eq!(inside, sum);
        let here = Arc::clone(&one);
        let mixed = one.install(|| {
            let run = (0..1_000u64).futureproof(Raise).stage(add).on(here);
            run.map_tasks(add)
                .map(|task| task.unwrap().output)
                .sum::<u64>()
        });
        assert_eq!(mixed, sum);
        // Inline.
        let run = (0..1_000u64)
            .futureproof(Raise)
            .on(Inline)
            .stage(add)
            .on(Inline)
            .stage(add)
            .on(Inline);
        assert_eq!(
            run.map_tasks(add)
                .map(|task| task.unwrap().output)
                .sum::<u64>(),
            sum + 1_000
        );
    });
}

/// What a stage has made goes on on the same thread where the next one has the same pool, and not on a thread of another's.
#[test]
fn stages_on_one_pool_go_on_where_they_are() {
    watchdog(|| {
        let where_am_i = || {
            // Long enough for others to take what is queued.
            thread::sleep(Duration::from_micros(200));
            thread::current().name().map(str::to_owned)
        };
        let here = move |_: &u32| Ok::<_, ()>(where_am_i());
        let there = move |before: &Option<String>| Ok((before.clone(), where_am_i()));
        let named = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .thread_name(|n| format!("shared-{n}"));
        let named = Arc::new(named.build().unwrap());
        let run = (0..500u32).futureproof(Raise).chunk_size(1);
        let run = run.on(Arc::clone(&named)).stage(here).on(named);
        for task in run.map_tasks(there) {
            let (first, second) = task.unwrap().output;
            assert_eq!(first, second);
        }
        // A scope of rayon's takes every pool for its own.
        let outer = pool(1);
        outer.in_place_scope(|outer| {
            pool(1).in_place_scope(|inner| {
                let where_am_i = || thread::current().id();
                let here = move |_: &u32| Ok::<_, ()>(where_am_i());
                let there = move |before: &thread::ThreadId| Ok((*before, where_am_i()));
                let run = (0..50u32).futureproof(Raise).chunk_size(1);
                let run = run.on(inner).stage(here).on(outer);
                run.map_tasks(there).for_each(|task| {
                    let (first, second) = task.unwrap().output;
                    assert_ne!(first, second);
                });
            });
        });
        // Those that work on one chunk share in what it gives.
        let both = Barrier::new(2);
        let meet = move |n: &u32| {
            both.wait();
            Ok::<_, ()>(*n)
        };
        let pass = |n: &u32| Ok::<_, ()>(*n);
        let shared = pool(2);
        let run = (0..64u32).futureproof(Raise).chunk_size(64);
        let run = run.on(Arc::clone(&shared)).stage(pass).on(shared);
        assert_eq!(run.map_tasks(meet).flatten().count(), 64);
    });
}

/// Whoever has nothing to do in one stage shares in what the next one has, if both have the same pool.
#[test]
fn mates_meet_in_any_stage_of_one_pool() {
    watchdog(|| {
        for (slow, width) in [(0, 2), (1, 2), (1, 3), (2, 2)] {
            let shared = pool(width);
            let both = Arc::new(Barrier::new(2));
            let call = |stage: usize| {
                let both = Arc::clone(&both);
                move |n: &u32| {
                    if stage == slow && *n >= 20_000 {
                        both.wait();
                    }
                    Ok::<_, ()>(*n)
                }
            };
            let run = (0..20_010u32).futureproof(Raise).max_in_flight(100_000);
            let run = run.on(Arc::clone(&shared)).stage(call(0));
            let run = run.on(Arc::clone(&shared)).stage(call(1));
            let mut run = run.on(shared).map_tasks(call(2));
            // The consumer is away for a while.
            assert!(run.next().is_some());
            thread::sleep(Duration::from_millis(5));
            assert_eq!(run.flatten().count(), 20_009);
        }
    });
}

#[test]
fn stages_borrow_from_scopes_that_are_nested() {
    let words = ["one".to_owned(), "three".to_owned()];
    let limit = 4;
    let long = futureproof::scope(2, |parsers| {
        futureproof::scope(3, |fetchers| {
            let run = words
                .iter()
                .futureproof(Raise)
                .ordered()
                .on(fetchers)
                .stage(|word: &&String| Ok::<_, ()>(word.len()));
            let run = run.on(parsers).map_tasks(|len: &usize| Ok(*len > limit));
            run.map(|task| task.unwrap())
                .map(|task| (task.input.as_str(), task.output))
                .collect::<Vec<_>>()
        })
    });
    assert_eq!(long, [("one", false), ("three", true)]);
}

#[test]
fn functions_for_tasks_are_functions_for_stages() {
    watchdog(|| {
        let count = with_state(
            || 0u32,
            |calls: &mut u32, n: &u32| {
                *calls += 1;
                Ok::<_, String>((*n, *calls))
            },
        );
        let run = (0..100u32).futureproof(Raise).num_threads(1).stage(count);
        let run = run.map_tasks(with_state(
            Vec::new,
            |seen: &mut Vec<u32>, (n, calls): &(u32, u32)| {
                seen.push(*n);
                Ok(*calls)
            },
        ));
        let mut calls: Vec<u32> = run.map(|task| task.unwrap().output).collect();
        calls.sort();
        assert!(calls.into_iter().eq(1..=100));
    });
}

#[test]
#[cfg(target_os = "linux")]
fn threads_are_named_and_gone() {
    watchdog(|| {
        let name = |_: &u32| Ok::<_, ()>(thread::current().name().unwrap().to_owned());
        let run = (0..20u32)
            .futureproof(Raise)
            .num_threads(2)
            .name("fetch")
            .stage(name)
            .num_threads(2)
            .name("parse");
        let mut run = run.map_tasks(|first: &String| {
            Ok((first.clone(), thread::current().name().unwrap().to_owned()))
        });
        let (first, second) = run.next().unwrap().unwrap().output;
        assert!(
            first.starts_with("fetch-") && second.starts_with("parse-"),
            "{first}, {second}"
        );
        drop(run);
        let run = (0..20u32).futureproof(Raise).stage(name).num_threads(1);
        let mut run = run.map_tasks(|first: &String| {
            Ok((first.clone(), thread::current().name().unwrap().to_owned()))
        });
        let (first, second) = run.next().unwrap().unwrap().output;
        assert!(
            first.starts_with("stage-0-") && second == "stage-1-0",
            "{first}, {second}"
        );
        drop(run);
        assert!(
            common::threads_named("fetch-").is_empty()
                && common::threads_named("parse-").is_empty()
        );
    });
}

/// Of two stages with the same work, each has about half of it, so they take about as long as the slower one.
#[test]
fn stages_work_at_the_same_time() {
    watchdog(|| {
        let work = |n: &u32| {
            thread::sleep(2 * MS);
            Ok::<_, ()>(*n)
        };
        let is_quick = || {
            let start = Instant::now();
            assert_eq!(
                (0..50u32)
                    .futureproof(Raise)
                    .num_threads(1)
                    .stage(work)
                    .num_threads(1)
                    .map_tasks(work)
                    .count(),
                50
            );
            let both = start.elapsed();
            let start = Instant::now();
            assert_eq!(
                (0..50u32)
                    .filter_map(|n| work(&work(&n).ok()?).ok())
                    .count(),
                50
            );
            both < start.elapsed() * 8 / 10
        };
        assert!((0..5).any(|_| is_quick()));
    });
}

/// What a value of a stage is, and that it is dropped once.
#[derive(Debug)]
struct Made {
    n: u64,
    _token: Token,
}

impl Made {
    fn new(n: u64, tally: &Tally) -> Self {
        Self {
            n,
            _token: tally.token(),
        }
    }
}

/// Stages, widths, orders, policies, retries and ways to leave at random: each item is in exactly one place.
#[test]
fn whatever_the_stages_nothing_is_lost() {
    watchdog(|| {
        let pools = [pool(2), pool(2)];
        for seed in 0..1_500 {
            check(seed, &pools);
        }
    });
}

fn check(seed: u64, pools: &[Arc<rayon::ThreadPool>; 2]) {
    let mut random = Random(seed);
    let len = random.below(60);
    let bad = 1 + random.below(30);
    // In which stage an item fails, how often, and whether by a panic.
    let fates: Vec<Option<(usize, u32)>> = (0..len)
        .map(|_| {
            (random.below(bad) == 0).then(|| (random.below(3) as usize, 1 + random.below(3) as u32))
        })
        .collect();
    let retries = random.below(3) as u32;
    let policy = [Raise, Ignore, Tolerate(2)][random.below(3) as usize];
    let (is_ordered, chunk, window) = (
        random.one_in(2),
        random.below(5) as usize,
        random.below(12) as usize,
    );
    let widths = [0; 3].map(|_| 1 + random.below(3) as usize);
    let (is_shared, step) = (!random.one_in(4), random.below(len + 2));
    let (is_cancelled, leaves, is_dropped) = (random.one_in(4), random.one_in(2), random.one_in(2));
    let is_one = random.one_in(2);
    let tally = Tally::default();
    let tried: Arc<Vec<AtomicUsize>> = Arc::new((0..len).map(|_| AtomicUsize::new(0)).collect());
    let all = Arc::new(fates);
    let call = |stage: usize| {
        let (tally, tried, fates) = (tally.clone(), Arc::clone(&tried), Arc::clone(&all));
        move |made: &Made| match fates[made.n as usize] {
            Some((fails, times))
                if fails == stage
                    && tried[made.n as usize].fetch_add(1, SeqCst) < times as usize =>
            {
                Err(Made::new(made.n, &tally))
            }
            _ => Ok(Made::new(made.n, &tally)),
        }
    };
    let pulled = Arc::new(AtomicUsize::new(0));
    let (count, items) = (Arc::clone(&pulled), tally.clone());
    let source = (0..len).map(move |n| {
        count.fetch_add(1, SeqCst);
        Made::new(n, &items)
    });
    let token = CancellationToken::new();
    let run = source
        .futureproof(policy)
        .chunk_size(chunk)
        .max_in_flight(window)
        .cancel_on(&token)
        .monitor_interval(Duration::ZERO);
    let run = if is_ordered { run.ordered() } else { run };
    let run = if is_shared {
        let [one, two] = pools.clone();
        let between = if is_one { Arc::clone(&one) } else { two };
        run.on(Arc::clone(&one))
            .stage(call(0))
            .on(between)
            .stage(call(1))
            .on(one)
            .map_tasks(call(2))
    } else {
        let run = run
            .num_threads(widths[0])
            .stage(call(0))
            .num_threads(widths[1])
            .stage(call(1));
        run.num_threads(widths[2]).map_tasks(call(2))
    };
    let mut run = run.retry(move || vec![Duration::ZERO; retries as usize]);
    let mut seen = HashSet::new();
    let (mut delivered, mut failed) = (0, 0);
    for task in run.by_ref() {
        let index = task
            .as_ref()
            .map_or_else(TaskError::index, |task| task.index);
        assert!(seen.insert(index), "{seed}: {index} twice");
        assert!(!is_ordered || index == delivered, "{seed}: out of order");
        delivered += 1;
        match (task, all[index as usize]) {
            (Ok(task), fate) => {
                assert!(
                    fate.is_none_or(|(_, times)| times <= retries),
                    "{seed}: {index}"
                );
                assert_eq!((task.input.n, task.output.n), (index, index), "{seed}");
            }
            (Err(error), Some((stage, times))) => {
                failed += 1;
                assert!(times > retries, "{seed}: {index}");
                assert_eq!(
                    (error.stage(), error.attempts(), error.input().n),
                    (stage, retries + 1, index),
                    "{seed}"
                );
            }
            (Err(error), None) => panic!("{seed}: {error:?}", error = error.to_string()),
        }
        if window > 0 {
            assert!(
                pulled.load(SeqCst) as u64 - delivered < window as u64,
                "{seed}"
            );
        }
        if delivered == step {
            if is_cancelled {
                token.cancel();
            } else if leaves {
                break;
            }
        }
    }
    match run.ending() {
        Some(Ending::Exhausted) => assert_eq!(delivered, len, "{seed}"),
        Some(Ending::Failed) => assert_eq!(failed, if policy == Raise { 1 } else { 3 }, "{seed}"),
        Some(Ending::Cancelled) => assert!(is_cancelled && delivered == step, "{seed}"),
        None => assert!(leaves && delivered == step, "{seed}"),
        other => panic!("{seed}: {other:?}"),
    }
    if is_dropped {
        drop(run);
    } else {
        let rest = run.into_remainder();
        let finished = rest.finished.iter().map(|task| {
            task.as_ref()
                .map_or_else(TaskError::index, |task| task.index)
        });
        let left: Vec<u64> = finished
            .chain(rest.unprocessed.iter().map(|(index, item)| {
                assert_eq!(*index, item.n);
                *index
            }))
            .collect();
        assert!(
            left.iter().all(|index| seen.insert(*index)),
            "{seed}: twice"
        );
        assert_eq!(seen.len(), pulled.load(SeqCst), "{seed}: lost");
    }
    let left = tally.alive();
    assert_eq!(left, 0, "{seed}: {left} values are left");
}

#[test]
fn a_run_of_stages_that_is_left_ends_at_once() {
    watchdog(|| {
        for round in 0..100 {
            let wait = |n: &u32| {
                if *n > 2 {
                    until_told();
                }
                Ok::<_, ()>(*n)
            };
            let token = CancellationToken::new();
            let run = (0..).futureproof(Raise).num_threads(2).cancel_on(&token);
            let mut run = run.stage(wait).num_threads(2).map_tasks(wait);
            assert!(run.next().is_some());
            if round % 2 == 0 {
                drop(run);
            } else {
                let canceller = thread::spawn(move || token.cancel());
                // Whatever was made before is delivered, or not.
                assert!(run.by_ref().count() <= 2);
                assert_eq!(run.ending(), Some(Ending::Cancelled));
                canceller.join().unwrap();
            }
        }
    });
}

/// A run whose source is another run: whoever leaves the one leaves both.
#[test]
fn a_chain_of_runs_that_is_left_tells_the_tasks_of_both() {
    watchdog(|| {
        let begun = [(); 2].map(|()| Gate::default());
        let wait = |which: usize| {
            let begun = begun[which].clone();
            infallible(move |n: &u32| {
                if *n > 0 {
                    begun.open();
                    until_told();
                }
                *n
            })
        };
        // Two come out of the first run: the second one is held up in the second run, and the others in the first.
        let inner = (0..9u32)
            .map(|n| n.saturating_sub(1))
            .futureproof(Raise)
            .num_threads(2)
            .map_tasks(wait(0));
        let items = inner.map(|task| task.unwrap()).zip(0..).map(|(_, n)| n);
        let mut outer = items
            .futureproof(Raise)
            .num_threads(1)
            .max_in_flight(2)
            .map_tasks(wait(1));
        assert!(outer.next().is_some());
        begun[0].pass();
        drop(outer);
    });
}

#[test]
fn the_report_tells_which_stage_limits() {
    watchdog(|| {
        let quick = |n: &u32| Ok::<_, ()>(*n);
        let slow = |n: &u32| {
            thread::sleep(2 * MS);
            Ok::<_, ()>(*n)
        };
        let run = (0..30u32)
            .futureproof(Raise)
            .num_threads(2)
            .name("quick")
            .stage(quick)
            .num_threads(1)
            .name("slow");
        let mut run = run.map_tasks(slow);
        assert_eq!(run.by_ref().count(), 30);
        let report = run.report();
        let [first, second] = report.stages() else {
            panic!("{report}")
        };
        assert_eq!(
            (
                first.name(),
                first.num_threads(),
                second.name(),
                second.num_threads()
            ),
            ("quick", 2, "slow", 1)
        );
        assert!(
            second.busy() >= 60 * MS && second.busy() > first.busy(),
            "{report}"
        );
        assert!(report.to_string().contains("stage 1 (slow): "), "{report}");
        assert!(
            report
                .to_string()
                .contains("; limited by stage 1 (workers busy "),
            "{report}"
        );
        assert!(
            (0..3u32)
                .futureproof(Raise)
                .map_tasks(quick)
                .report()
                .stages()
                .is_empty()
        );
    });
}

/// What a stage has made is the user's: its destructor may panic, on a worker.
#[test]
fn values_whose_destructors_panic_do_no_harm() {
    struct Bomb(u32);
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !thread::panicking() && self.0 % 3 == 0 {
                std::panic::resume_unwind(Box::new("a destructor"));
            }
        }
    }
    watchdog(|| {
        for leaves in [false, true] {
            let run = (0..300u32)
                .futureproof(Ignore)
                .num_threads(2)
                .stage(|n: &u32| Ok::<_, u32>(Bomb(*n)))
                .num_threads(2);
            let run = run.stage(|bomb: &Bomb| {
                if bomb.0 % 7 == 0 {
                    Err(bomb.0)
                } else {
                    Ok(Bomb(bomb.0))
                }
            });
            let mut run = run.map_tasks(|bomb: &Bomb| {
                if bomb.0 % 11 == 0 {
                    Err(bomb.0)
                } else {
                    Ok(bomb.0)
                }
            });
            if leaves {
                assert!(run.next().is_some());
                drop(run);
            } else {
                let (good, bad): (Vec<_>, Vec<_>) = run.partition(Result::is_ok);
                assert_eq!((good.len(), bad.len()), (300 - 43 - 24, 43 + 24));
            }
        }
    });
}

/// A run that one of its own tasks drops: what that task makes has nowhere to go on to.
#[test]
fn a_run_of_stages_may_be_dropped_by_one_of_its_tasks() {
    type Slot = Arc<Mutex<Option<Box<dyn Send>>>>;
    watchdog(|| {
        for stage in 0..3 {
            let slot = Slot::default();
            let (is_there, is_dropped) = (Gate::default(), Gate::default());
            let drops = |here: usize| {
                let (slot, waits, tells) =
                    (Arc::clone(&slot), is_there.clone(), is_dropped.clone());
                move |n: &u32| {
                    if *n == 1 && here == stage {
                        waits.pass();
                        drop(slot.lock().unwrap().take());
                        tells.open();
                    }
                    Ok::<_, ()>(*n)
                }
            };
            let run = (0..9u32)
                .futureproof(Raise)
                .num_threads(1)
                .chunk_size(1)
                .stage(drops(0));
            let run = run.num_threads(1).stage(drops(1)).on(pool(1));
            let mut run = run.map_tasks(drops(2));
            assert!(run.next().is_some());
            *slot.lock().unwrap() = Some(Box::new(run));
            is_there.open();
            is_dropped.pass();
        }
    });
}
