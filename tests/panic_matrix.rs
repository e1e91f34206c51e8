//! User code that panics in any two places at once: no task is lost, nothing is dropped twice, nobody aborts or hangs.
//!
//! Each way to consume is a child, which plays all pairs of places with each policy.

mod common;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, LazyLock, Mutex};
use std::time::Duration;

use common::child::{Child, in_child};
use common::lines::on_log;
use common::{Tally, Token, pool};
use futureproof::prelude::*;
use futureproof::{Futureproof, MapTasks, Spawn, TaskError};
use rayon::ThreadPool;

/// How a round of the matrix is run.
#[derive(Clone, Copy)]
struct Options {
    policy: ErrorPolicy,
    chunk: usize,
    number: usize,
}

macro_rules! places {
    ($($place:ident)*) => {
        /// Where user code runs, and may panic.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Place { $($place),* }
        use Place::*;
        const PLACES: &[Place] = &[$($place),*];
    };
}

places! {
    Function Source ReadAheadSource SourceDrop InputDrop OutputDrop ErrorDrop PayloadDrop CaptureDrop ErrorDebug
    Logger OnProgress ProgressDrop Describe DescribeDrop RetryIf RetryIfDrop Delays DelaysDrop StateInit StateDrop
}

/// The places that panic in a round, and those that did.
#[derive(Clone)]
struct Faults {
    armed: [Place; 2],
    fired: Arc<Mutex<Vec<Place>>>,
    tally: Tally,
}

impl Faults {
    fn has(&self, place: Place) -> bool {
        self.armed.contains(&place)
    }

    /// The place where `place` runs: panics if that is armed. The payload is a bomb as well.
    fn at(&self, place: Place) {
        if self.has(place) {
            self.fired.lock().unwrap().push(place);
            panic_any(self.bomb(PayloadDrop));
        }
    }

    fn bomb(&self, place: Place) -> Bomb {
        let token = (place != PayloadDrop).then(|| self.tally.token());
        Bomb {
            faults: self.clone(),
            place,
            token,
        }
    }
}

/// A value that may panic when it is dropped; it is counted first.
struct Bomb {
    faults: Faults,
    place: Place,
    token: Option<Token>,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.token = None;
        self.faults.at(self.place);
    }
}

struct Item(u64, #[allow(dead_code)] Bomb);

struct Bad(Bomb);

impl fmt::Debug for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.faults.at(ErrorDebug);
        f.write_str("bad")
    }
}

struct Items {
    next: u64,
    bomb: Bomb,
}

impl Iterator for Items {
    type Item = Item;
    fn next(&mut self) -> Option<Item> {
        if self.next == 17 {
            self.bomb.faults.at(Source);
            self.bomb.faults.at(ReadAheadSource);
        }
        self.next += 1;
        (self.next <= 24).then(|| Item(self.next - 1, self.bomb.faults.bomb(InputDrop)))
    }
}

type Run<I> = MapTasks<'static, I, Bomb, Bad>;

fn tasks<I, P>(run: Futureproof<I, P>, faults: &Faults, options: Options) -> Run<I>
where
    I: Iterator<Item = Item>,
    P: Spawn<'static> + 'static,
{
    let mut run = run.num_threads(2).chunk_size(options.chunk);
    if options.number % 5 == 0 {
        run = run.ordered();
    }
    if faults.has(OnProgress) || faults.has(ProgressDrop) {
        let (inside, bomb) = (faults.clone(), faults.bomb(ProgressDrop));
        run = run.on_progress(move |_| {
            let _ = &bomb;
            inside.at(OnProgress);
        });
    }
    let (inside, capture) = (faults.clone(), faults.bomb(CaptureDrop));
    let function = move |item: &Item| {
        let _ = &capture;
        match item.0 % 4 {
            1 => return Err(Bad(inside.bomb(ErrorDrop))),
            2 => {
                inside.at(Function);
                if inside.has(PayloadDrop) {
                    panic_any(inside.bomb(PayloadDrop));
                }
            }
            _ => {}
        }
        Ok(inside.bomb(OutputDrop))
    };
    let mut run = if faults.has(StateInit) || faults.has(StateDrop) {
        let (inside, made) = (faults.clone(), AtomicUsize::new(0));
        let init = move || {
            if made.fetch_add(1, SeqCst) == 0 {
                inside.at(StateInit);
            }
            inside.bomb(StateDrop)
        };
        run.map_tasks(with_state(init, move |_: &mut Bomb, item: &Item| {
            function(item)
        }))
    } else {
        run.map_tasks(function)
    };
    if faults.has(Describe) || faults.has(DescribeDrop) {
        let (inside, bomb) = (faults.clone(), faults.bomb(DescribeDrop));
        run = run.describe(move |_| {
            let _ = &bomb;
            inside.at(Describe);
            String::new()
        });
    }
    if faults.has(RetryIf)
        || faults.has(RetryIfDrop)
        || faults.has(Delays)
        || faults.has(DelaysDrop)
    {
        let (inside, bomb) = (faults.clone(), faults.bomb(RetryIfDrop));
        run = run.retry_if(move |_| {
            let _ = &bomb;
            inside.at(RetryIf);
            true
        });
        let (inside, bomb) = (faults.clone(), faults.bomb(DelaysDrop));
        run = run.retry(move || {
            let _ = &bomb;
            inside.at(Delays);
            [Duration::ZERO]
        });
    }
    run
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Consumer {
    All,
    Few,
    Panics,
    Remainder,
}

/// Drops what may panic. Returns whether it did.
fn defuse<V>(value: V) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| drop(value)));
    outcome.map_err(std::mem::forget).is_err()
}

fn dismantle(result: Result<Task<Item, Bomb>, TaskError<Item, Bad>>) -> u64 {
    match result {
        Ok(task) => {
            assert_eq!(task.index, task.input.0);
            defuse(task.input);
            defuse(task.output);
            task.index
        }
        Err(error) => {
            let (index, input, cause) = error.into_parts();
            assert_eq!(index, input.0);
            defuse(input);
            defuse(cause);
            index
        }
    }
}

fn consume<I: Iterator<Item = Item>>(mut run: Run<I>, faults: &Faults, consumer: Consumer) {
    let mut seen = [false; 24];
    let mut note = |index: u64| assert!(!std::mem::replace(&mut seen[index as usize], true));
    // Whether there may be more.
    let mut step = |run: &mut Run<I>| match catch_unwind(AssertUnwindSafe(|| run.next())) {
        Ok(Some(result)) => {
            note(dismantle(result));
            true
        }
        Ok(None) => false,
        Err(payload) => {
            std::mem::forget(payload);
            assert!(
                faults.has(Source) || faults.has(ReadAheadSource),
                "next panicked"
            );
            true
        }
    };
    let is_reported = match consumer {
        Consumer::All => {
            while step(&mut run) {}
            defuse(run)
        }
        Consumer::Few => {
            let _ = step(&mut run) && step(&mut run);
            defuse(run)
        }
        Consumer::Panics => {
            let outcome = catch_unwind(AssertUnwindSafe(move || {
                let mut run = run;
                let _ = step(&mut run) && step(&mut run);
                panic_any(7u8)
            }));
            assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&7u8));
            false
        }
        Consumer::Remainder => {
            let _ = step(&mut run) && step(&mut run);
            let remainder = run.into_remainder();
            for result in remainder.finished {
                note(dismantle(result));
            }
            for (index, item) in remainder.unprocessed {
                note(index);
                defuse(item);
            }
            defuse(remainder.source)
        }
    };
    // A source that is read ahead goes on a thread where nobody could be told.
    let is_told = faults.has(SourceDrop) && !faults.has(ReadAheadSource);
    assert_eq!(
        is_reported,
        is_told && consumer != Consumer::Panics,
        "the drop panicked"
    );
}

fn run_on_its_pool<I>(run: Futureproof<I>, faults: &Faults, options: Options, consumer: Consumer)
where
    I: Iterator<Item = Item>,
{
    static POOL: LazyLock<Arc<ThreadPool>> = LazyLock::new(|| pool(2));
    let run = match options.number % 7 {
        0 => tasks(run.on(Arc::clone(&POOL)), faults, options),
        _ => tasks(run, faults, options),
    };
    consume(run, faults, consumer);
}

fn round(options: Options, armed: [Place; 2], consumer: Consumer) -> Vec<Place> {
    let (tally, fired) = (Tally::default(), Arc::default());
    let faults = Faults {
        armed,
        fired,
        tally,
    };
    let inside = faults.clone();
    on_log(log::LevelFilter::Trace, move |_| inside.at(Logger));
    let source = Items {
        next: 0,
        bomb: faults.bomb(SourceDrop),
    };
    if faults.has(ReadAheadSource) {
        let run = source.read_ahead(4).futureproof(options.policy);
        run_on_its_pool(run, &faults, options, consumer);
    } else {
        let run = source.futureproof(options.policy);
        run_on_its_pool(run, &faults, options, consumer);
    }
    faults.tally.assert_all_dropped_once();
    faults.fired.lock().unwrap().clone()
}

/// A source is dropped as it is, and so aborts a consumer that unwinds, as it would without a run.
fn is_spared(armed: [Place; 2], consumer: Consumer) -> bool {
    armed.contains(&SourceDrop) && consumer == Consumer::Panics
}

fn matrix(consumer: Consumer) {
    let mut fired = Vec::new();
    let mut number = 0;
    for policy in [Log, Raise, Ignore, Tolerate(2)] {
        for chunk in [1, 8] {
            for (i, one) in PLACES.iter().enumerate() {
                for other in &PLACES[i..] {
                    number += 1;
                    let armed = [*one, *other];
                    if !is_spared(armed, consumer) {
                        println!("{number}: {armed:?}, {policy}, chunks of {chunk}");
                        let options = Options {
                            policy,
                            chunk,
                            number,
                        };
                        fired.extend(round(options, armed, consumer));
                    }
                }
            }
        }
    }
    if consumer == Consumer::All {
        let is_missed = |place: &&Place| !fired.contains(*place);
        assert_eq!(
            PLACES.iter().filter(is_missed).collect::<Vec<_>>(),
            [&Place::Function; 0]
        );
    }
}

#[test]
fn panics_in_any_two_places_do_no_harm() {
    for consumer in [
        Consumer::All,
        Consumer::Few,
        Consumer::Panics,
        Consumer::Remainder,
    ] {
        // Payloads that bear payloads without end are never freed.
        let child = format!("{consumer:?}");
        Child::new(&child).leaks().must_survive(|| matrix(consumer));
    }
}

/// From the third thread on, states share a bucket of `thread_local`.
#[test]
fn states_that_panic_at_the_end_are_dropped_one_by_one() {
    in_child(|| {
        for threads in [2, 8] {
            let faults = Faults {
                armed: [StateDrop; 2],
                fired: Arc::default(),
                tally: Tally::default(),
            };
            let (inside, barrier) = (faults.clone(), Barrier::new(threads));
            let init = move || inside.bomb(StateDrop);
            let f = with_state(init, move |_: &mut Bomb, _: &usize| {
                barrier.wait();
                Ok::<_, ()>(())
            });
            let run = (0..threads).futureproof(Raise).num_threads(threads);
            assert_eq!(run.chunk_size(1).map_tasks(f).count(), threads);
            assert_eq!(faults.tally.made(), threads);
            faults.tally.assert_all_dropped_once();
        }
    });
}
