//! Items that wait for others of their key, or for room by weight.

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use common::{FOREVER, Gate, MS, Tally, pool, watchdog};
use futureproof::prelude::*;
use futureproof::{Control, Ending};

/// What each key saw, and whether two were inside at once.
#[derive(Clone, Default)]
struct Accounts(Arc<Account>);

#[derive(Default)]
struct Account {
    items: Mutex<HashMap<u64, Vec<u64>>>,
    inside: Mutex<HashSet<u64>>,
}

impl Accounts {
    fn call(&self, key: u64, item: u64, f: impl FnOnce()) {
        assert!(self.0.inside.lock().unwrap().insert(key), "two at once");
        f();
        self.0
            .items
            .lock()
            .unwrap()
            .entry(key)
            .or_default()
            .push(item);
        self.0.inside.lock().unwrap().remove(&key);
    }
}

/// Events of accounts: some fail and are tried again, on pools of several kinds, in any order of delivery.
#[test]
fn items_of_a_key_run_in_the_order_of_the_source() {
    watchdog(|| {
        for (kind, is_ordered) in [(0, false), (1, true), (2, false), (3, true)] {
            let (accounts, seen) = (Accounts::default(), Accounts::default());
            let tried = Mutex::new(HashMap::new());
            let called = accounts.clone();
            let call = move |n: &u64| {
                let key = n * n % 7;
                let mut result = Ok(*n);
                called.call(key, *n, || {
                    if n % 11 == 0 {
                        thread::sleep(MS / 5);
                    }
                    let mut tried = tried.lock().unwrap();
                    let tries = tried.entry(*n).or_insert(0);
                    *tries += 1;
                    if n % 5 == 0 && *tries < 3 {
                        result = Err("busy");
                    }
                });
                result
            };
            let run = (0..700u64).futureproof(Raise).num_threads(4);
            let run = run.by_key(|n| n * n % 7);
            let run = if is_ordered { run.ordered() } else { run };
            let run = match kind {
                0 | 1 => run.map_tasks(call),
                2 => run.on(pool(3)).max_in_flight(9).map_tasks(call),
                _ => run.rate_limit(100_000, 1_000 * MS).map_tasks(call),
            };
            for task in run.retry(|| [MS / 10, MS / 5]) {
                let n = task.unwrap().output;
                seen.call(n * n % 7, n, || {});
            }
            for (key, items) in accounts.0.items.lock().unwrap().iter_mut() {
                // Each attempt is listed.
                assert!(items.is_sorted(), "key {key}: {items:?}");
                items.dedup();
                let expected: Vec<u64> = (0..700).filter(|n| n * n % 7 == *key).collect();
                assert_eq!(*items, expected);
            }
            let delivered = seen.0.items.lock().unwrap();
            assert_eq!(delivered.values().map(Vec::len).sum::<usize>(), 700);
        }
    });
}

/// While one key's item hangs, and many wait behind it, other keys go on; they even release it.
#[test]
fn a_key_that_hangs_does_not_hold_up_the_others() {
    watchdog(|| {
        let gate = Gate::default();
        let (pass, open) = (gate.clone(), gate);
        let others = AtomicUsize::new(0);
        let call = move |n: &usize| match n {
            0 => pass.pass(),
            // Every second item has the key of the one that hangs.
            _ if n % 2 == 1 && others.fetch_add(1, SeqCst) + 1 == 60 => open.open(),
            _ => {}
        };
        let run = (0..2_000usize).futureproof(Raise).num_threads(2);
        let run = run.by_key(|n| if n % 2 == 0 { 0 } else { *n });
        assert_eq!(run.map_tasks(infallible(call)).count(), 2_000);
    });
}

/// Items of different keys do run at once, also where one key has most of them.
#[test]
fn different_keys_run_in_parallel() {
    watchdog(|| {
        let meeting = Barrier::new(3);
        let call = move |n: &u32| {
            if n % 20 > 16 {
                meeting.wait();
            }
        };
        // 17, 18 and 19 of each twenty meet; the others share a key.
        let run = (0..200u32).futureproof(Raise).num_threads(4);
        let run = run.by_key(|n| (*n % 20).saturating_sub(16));
        assert_eq!(run.map_tasks(infallible(call)).count(), 200);
    });
}

/// A hot key fills the window that was asked for, and no more is pulled.
#[test]
fn what_waits_for_its_key_counts_as_in_flight() {
    watchdog(|| {
        let gate = Gate::default();
        let (pass, pulled) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&pulled);
        let source = (0..1_000u32).inspect(move |_| {
            count.fetch_add(1, SeqCst);
        });
        let token = CancellationToken::new();
        let run = source.futureproof(Raise).num_threads(2).max_in_flight(50);
        let run = run.by_key(|_| "all").cancel_on(&token);
        let mut run = run.map_tasks(infallible(move |n: &u32| {
            if *n == 5 {
                pass.pass();
            }
        }));
        assert_eq!(run.by_ref().take(5).count(), 5);
        let stop = thread::spawn(move || {
            thread::sleep(50 * MS);
            token.cancel();
            gate.open();
        });
        assert!(run.next().is_none());
        stop.join().unwrap();
        assert_eq!(pulled.load(SeqCst), 55);
        let left = run.into_remainder();
        let unprocessed: Vec<u64> = left.unprocessed.iter().map(|(index, _)| *index).collect();
        assert_eq!(left.finished.len(), 1);
        assert_eq!(unprocessed, (6..55).collect::<Vec<_>>());
    });
}

/// Files of all sizes: never more than the limit in flight, but for one that is pulled and waits.
#[test]
fn the_weight_in_flight_is_bounded() {
    watchdog(|| {
        let weight = |n: &u64| n * 7 % 40;
        for is_ordered in [false, true] {
            let inside = Arc::new(AtomicU64::new(0));
            let (running, begun) = (Arc::clone(&inside), Mutex::new(HashSet::new()));
            let call = move |n: &u64| {
                // Counted from its first attempt until it is delivered.
                if begun.lock().unwrap().insert(*n) {
                    let now = running.fetch_add(weight(n), SeqCst) + weight(n);
                    assert!(now <= 60, "{now} at once");
                }
                if n % 10 == 0 {
                    thread::sleep(MS / 10);
                }
                if n % 9 == 0 { Err("odd") } else { Ok(()) }
            };
            let run = (0..1_000u64).futureproof(Ignore).num_threads(4);
            let run = run.max_weight(60, move |n| weight(n));
            let run = if is_ordered { run.ordered() } else { run };
            let mut delivered = 0;
            for task in run.map_tasks(call).retry(|| [MS / 20]) {
                let error = task.as_ref().err().and_then(TaskError::panic_message);
                assert_eq!(error, None);
                let index = task.map_or_else(|error| error.index(), |task| task.index);
                inside.fetch_sub(weight(&index), SeqCst);
                delivered += 1;
            }
            assert_eq!(delivered, 1_000);
        }
    });
}

/// One that is too heavy by itself goes alone; what comes after it waits.
#[test]
fn what_is_too_heavy_runs_alone() {
    watchdog(|| {
        let running = Arc::new(AtomicUsize::new(0));
        let inside = Arc::clone(&running);
        let call = move |n: &u32| {
            let others = inside.fetch_add(1, SeqCst);
            if *n % 10 == 3 {
                assert_eq!(others, 0);
                thread::sleep(MS);
                assert_eq!(inside.load(SeqCst), 1);
            }
            inside.fetch_sub(1, SeqCst);
        };
        let run = (0..40u32).futureproof(Raise).num_threads(4);
        let run = run.max_weight(4, |n| if n % 10 == 3 { u64::MAX } else { 1 });
        assert_eq!(run.map_tasks(infallible(call)).flatten().count(), 40);
        // Nothing fits.
        let run = (0..20u32).futureproof(Raise).max_weight(0, |_| 1);
        assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 20);
    });
}

/// Both rules, with items that the function consumes, in stages, and over a queue that its tasks fill.
#[test]
fn items_are_held_in_every_kind_of_run() {
    watchdog(|| {
        let owned = (0..100u64)
            .map(|n| vec![n; 3])
            .futureproof(Raise)
            .num_threads(3);
        let owned = owned
            .by_key(|it| it[0] % 3)
            .max_weight(10, |it| it.len() as u64);
        let sum =
            owned.map_tasks_owned(|it: Vec<u64>| Ok::<_, String>(it.into_iter().sum::<u64>()));
        assert_eq!(
            sum.map(|task| task.unwrap().output).sum::<u64>(),
            3 * 99 * 50
        );

        let last = Arc::new(Mutex::new(HashMap::new()));
        let parse = move |n: &u64| {
            let before = last.lock().unwrap().insert((n / 10) % 4, *n);
            assert!(before.is_none_or(|before| before < *n));
            Ok(*n)
        };
        let staged = (0..200u64)
            .futureproof(Raise)
            .num_threads(4)
            .by_key(|n| n % 4);
        let staged = staged
            .stage(|n: &u64| Ok::<_, String>(n * 10))
            .num_threads(4);
        assert_eq!(staged.map_tasks(parse).flatten().count(), 200);

        let queue: Queue<u32> = [1].into_iter().collect();
        let more = queue.clone();
        let run = queue.source().futureproof(Raise).num_threads(2);
        let run = run.by_key(|n| n % 2).max_weight(3, |_| 1);
        let call = move |n: &u32| {
            if *n < 64 {
                more.push(n * 2);
                more.push(n * 2 + 1);
            }
        };
        assert_eq!(run.map_tasks(infallible(call)).count(), 127);

        let (sender, receiver) = crossbeam_channel::bounded(4);
        let feeder = thread::spawn(move || (0..100).for_each(|n| sender.send(n).unwrap()));
        let run = receiver.into_iter().futureproof(Raise).read_ahead(8);
        let run = run.by_key(|n: &u32| n % 5).max_weight(6, |_| 2);
        assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 100);
        feeder.join().unwrap();
    });
}

/// Stopped in any way, everything that was held comes back or is dropped.
#[test]
fn a_stop_loses_nothing_that_is_held() {
    watchdog(|| {
        for way in 0..5 {
            let tally = Tally::default();
            let tokens = tally.clone();
            let source = (0..500u64).map(move |n| (n, tokens.token()));
            let (token, control) = (CancellationToken::new(), Control::new());
            let (cancel, pause) = (token.clone(), control.clone());
            let has_failed = AtomicBool::new(false);
            let call = move |(n, _): &(u64, _)| match (n, way) {
                (20, 0) => cancel.cancel(),
                (20, 1) => pause.pause(),
                (20, 2) if !has_failed.swap(true, SeqCst) => panic!("once"),
                _ => {}
            };
            let run = source.futureproof(Raise).num_threads(3).max_in_flight(40);
            let run = run.by_key(|(n, _)| n % 3).max_weight(30, |_| 1);
            let run = run
                .cancel_on(&token)
                .control(&control)
                .deadline(if way == 1 { 50 * MS } else { FOREVER });
            let mut run = run.map_tasks(infallible(call));
            let delivered = match way {
                3 => run.by_ref().take(10).count(),
                _ => run.by_ref().count(),
            };
            match way {
                0 => assert_eq!(run.ending(), Some(Ending::Cancelled)),
                1 => assert_eq!(run.ending(), Some(Ending::DeadlineExceeded)),
                2 => assert_eq!(run.ending(), Some(Ending::Failed)),
                3 => drop(run),
                _ => {
                    assert_eq!(delivered, 500);
                    assert_eq!(run.into_remainder().unprocessed.len(), 0);
                    tally.assert_all_dropped_once();
                    continue;
                }
            }
            if way < 3 {
                continue;
            }
            tally.assert_all_dropped_once();
        }
    });
}

/// A key or a weight that panics is like a source that does: its item is not lost.
#[test]
fn a_panic_of_a_rule_reaches_the_caller() {
    watchdog(|| {
        for by_weight in [false, true] {
            let bad = |n: &u32| if *n == 7 { panic!("no key") } else { *n };
            let run = (0..20u32).futureproof(Raise).num_threads(2);
            let run = if by_weight {
                run.max_weight(100, move |n| bad(n).into())
            } else {
                run.by_key(bad)
            };
            let mut run = run.map_tasks(infallible(|n: &u32| *n));
            let mut delivered = 0;
            let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                run.by_ref().for_each(|_| delivered += 1);
            }));
            assert!(all.is_err());
            assert_eq!(run.ending(), Some(Ending::SourcePanicked));
            assert!(run.next().is_none());
            let left = run.into_remainder();
            assert_eq!(delivered + left.finished.len() + left.unprocessed.len(), 8);
            assert_eq!(left.unprocessed.last().unwrap().1, 7);
        }
    });
}

/// A window that was asked for is filled, however much of it waits for its key.
#[test]
fn a_hot_key_may_fill_a_large_window() {
    watchdog(|| {
        let gate = Gate::default();
        let opener = gate.clone();
        let source = (0..1_000u32).inspect(move |n| {
            if *n == 900 {
                opener.open();
            }
        });
        let run = source
            .futureproof(Raise)
            .num_threads(2)
            .max_in_flight(1_000);
        let run = run.by_key(|_| "all").map_tasks(infallible(move |n: &u32| {
            if *n == 0 {
                gate.pass();
            }
        }));
        assert_eq!(run.count(), 1_000);
    });
}
