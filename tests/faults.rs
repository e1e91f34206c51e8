//! What must not hurt: panics in pairs, absurd options, threads that cannot be had, runs that are forgotten.
//!
//! What could abort or hang a process is done in a child: this very binary, told by a variable to run a scenario.
#![cfg(target_os = "linux")]

mod common;

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::panic::{self, AssertUnwindSafe, catch_unwind, panic_any};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};
use std::{env, thread};

use common::{Tally, Token};
use futureproof::prelude::*;
use futureproof::{Futureproof, MapTasks, Spawn, TaskError};

const SCENARIO: &str = "FUTUREPROOF_FAULT";

/// How a round of the matrix is run.
#[derive(Clone, Copy)]
struct Options {
    policy: ErrorPolicy,
    chunk: usize,
    number: usize,
}

/// What a child came to.
struct Ended {
    status: ExitStatus,
    text: String,
}

/// The command that runs `scenario` in a child.
fn command(scenario: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]);
    command.env(SCENARIO, scenario).env("RUST_BACKTRACE", "0");
    if scenario.starts_with("forget") || scenario.starts_with("matrix") {
        // What is forgotten is never freed: runs here, payloads that bear payloads without end there.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
    }
    command
}

/// Runs `command` to its end; kills it after 50 s. `signal` is sent to it once it says that it is ready.
fn watch(mut command: Command, signal: Option<&str>) -> Ended {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || {
        stdout
            .lines()
            .try_for_each(|line| sender.send(line.unwrap()))
    });
    // All along: whoever writes much of it must not wait for us.
    let mut stderr = child.stderr.take().unwrap();
    let errors = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let end = Instant::now() + Duration::from_secs(50);
    let mut text = String::new();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                text += &(line + "\n");
                if let Some(signal) = signal.filter(|_| text.ends_with("ready\n")) {
                    let pid = child.id().to_string();
                    let kill = Command::new("kill").args([signal, &pid]).status();
                    assert!(kill.unwrap().success());
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill().unwrap();
                panic!("the child hangs, after {text}");
            }
        }
    }
    text += &errors.join().unwrap().unwrap();
    let status = child.wait().unwrap();
    Ended { status, text }
}

/// Runs `scenario` in a child, which must end well.
fn survive(scenario: &str) {
    let ended = watch(command(scenario), None);
    let last = ended.text.lines().rev().take(12).collect::<Vec<_>>();
    assert!(
        ended.status.success(),
        "{scenario}: {}: {last:#?}",
        ended.status
    );
    assert!(ended.text.contains("done"), "{scenario}: {last:#?}");
}

#[test]
fn child() {
    let Ok(scenario) = env::var(SCENARIO) else {
        return;
    };
    // Only what an assertion says: to print each planned panic takes long.
    panic::set_hook(Box::new(|info| {
        if info.payload().is::<&str>() || info.payload().is::<String>() {
            eprintln!("{info}");
        }
    }));
    let (name, rest) = scenario.split_once(' ').unwrap_or((&scenario, ""));
    match name {
        "matrix" => matrix(rest),
        "threads" => threads(),
        "some" => some_threads(),
        "hook" => hook(),
        "logger" => logger(),
        "many" => many(),
        "forget" => forget(rest),
        "exit" => exit(rest),
        "overflow" => overflow(),
        "signal" => signal(),
        "width" => width(),
        "states" => states(),
        "ring" => ring(),
        "enabled" => enabled(),
        "reader" => reader(),
        "home" => home(),
        #[cfg(feature = "tracing")]
        "subscriber" => subscriber(rest.to_owned()),
        _ => panic!("no scenario {name}"),
    }
    println!("done");
}

type OnLog = Arc<dyn Fn(String) + Send + Sync>;

/// What the child's logger does.
static ON_LOG: Mutex<Option<OnLog>> = Mutex::new(None);

struct Recorder;

impl log::Log for Recorder {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let on_log = ON_LOG.lock().unwrap().clone();
        if let Some(on_log) = on_log {
            on_log(record.args().to_string());
        }
    }
    fn flush(&self) {}
}

fn on_log(f: impl Fn(String) + Send + Sync + 'static) {
    let _ = log::set_logger(&Recorder);
    log::set_max_level(log::LevelFilter::Trace);
    *ON_LOG.lock().unwrap() = Some(Arc::new(f));
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

fn round(options: Options, armed: [Place; 2], consumer: Consumer) -> Vec<Place> {
    let (tally, fired) = (Tally::default(), Arc::default());
    let faults = Faults {
        armed,
        fired,
        tally,
    };
    let inside = faults.clone();
    on_log(move |_| inside.at(Logger));
    let source = Items {
        next: 0,
        bomb: faults.bomb(SourceDrop),
    };
    static POOL: OnceLock<Arc<rayon::ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        Arc::new(
            rayon::ThreadPoolBuilder::new()
                .num_threads(2)
                .build()
                .unwrap(),
        )
    });
    let is_shared = options.number % 7 == 0;
    if faults.has(ReadAheadSource) {
        let run = source.read_ahead(4).futureproof(options.policy);
        if is_shared {
            consume(
                tasks(run.on(Arc::clone(pool)), &faults, options),
                &faults,
                consumer,
            );
        } else {
            consume(tasks(run, &faults, options), &faults, consumer);
        }
    } else {
        let run = source.futureproof(options.policy);
        if is_shared {
            consume(
                tasks(run.on(Arc::clone(pool)), &faults, options),
                &faults,
                consumer,
            );
        } else {
            consume(tasks(run, &faults, options), &faults, consumer);
        }
    }
    faults.tally.assert_all_dropped_once();
    faults.fired.lock().unwrap().clone()
}

/// A source is dropped as it is, and so aborts a consumer that unwinds, as it would without a run.
fn is_spared(armed: [Place; 2], consumer: Consumer) -> bool {
    armed.contains(&SourceDrop) && consumer == Consumer::Panics
}

fn matrix(consumer: &str) {
    let all = [
        Consumer::All,
        Consumer::Few,
        Consumer::Panics,
        Consumer::Remainder,
    ];
    let consumer = *all.iter().find(|it| format!("{it:?}") == consumer).unwrap();
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
    for consumer in ["All", "Few", "Panics", "Remainder"] {
        survive(&format!("matrix {consumer}"));
    }
}

/// With stacks that no machine has room for, no thread can be had but those that say how large theirs is.
#[test]
fn threads_that_cannot_be_had_are_an_answer() {
    let mut child = command("threads");
    child.env("RUST_MIN_STACK", (1u64 << 60).to_string());
    let ended = watch(child, None);
    assert!(ended.status.success(), "{}", ended.text);
}

fn threads() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&lines);
    on_log(move |line| log.lock().unwrap().push(line));
    let message_of = |next: &mut dyn FnMut()| {
        let payload = catch_unwind(AssertUnwindSafe(next)).unwrap_err();
        payload.downcast_ref::<String>().unwrap().clone()
    };
    let run = (0..10u32).futureproof(Raise).num_threads(2);
    let mut run = run.map_tasks(infallible(|n: &u32| *n));
    let message = message_of(&mut || drop(run.next()));
    assert!(
        message.starts_with("cannot build a pool of 2 threads"),
        "{message}"
    );
    assert_eq!(run.into_remainder().source.count(), 10);
    let message = message_of(&mut || futureproof::scope(1, |_| ()));
    assert!(
        message.starts_with("cannot build a pool of 1 threads"),
        "{message}"
    );
    // A pool that does run, but no thread for the monitor, and none to read ahead.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .stack_size(1 << 20)
        .build();
    let pool = Arc::new(pool.unwrap());
    let run = (0..10u32).futureproof(Raise).on(Arc::clone(&pool));
    assert_eq!(
        run.on_progress(|_| ())
            .map_tasks(infallible(|n: &u32| *n))
            .count(),
        10
    );
    let lines = lines.lock().unwrap();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("runs without a monitor")),
        "{lines:?}"
    );
    let run = (0..10u32).read_ahead(4).futureproof(Raise).on(pool);
    let mut run = run.map_tasks(infallible(|n: &u32| *n));
    let message = message_of(&mut || drop(run.next()));
    assert!(
        message.starts_with("cannot start the thread that reads ahead"),
        "{message}"
    );
    assert!(run.next().is_none());
}

/// Where some threads can be had, the run makes do with them.
#[test]
fn a_pool_makes_do_with_the_threads_that_it_gets() {
    let inner = command("some");
    let mut child = Command::new("sh");
    child.args(["-c", "ulimit -v 1048576 && exec \"$0\" \"$@\""]);
    child.arg(inner.get_program()).args(inner.get_args());
    child
        .env(SCENARIO, "some")
        .env("RUST_MIN_STACK", (256u64 << 20).to_string());
    let ended = watch(child, None);
    assert!(ended.status.success(), "{}", ended.text);
    assert!(ended.text.contains("of 32 threads:"), "{}", ended.text);
}

fn some_threads() {
    on_log(|line| println!("{line}"));
    let run = (0..100u32)
        .futureproof(Raise)
        .num_threads(32)
        .monitor_interval(Duration::ZERO);
    assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 100);
}

/// No value of an option is an error, with whatever home.
#[test]
fn threads_without_number_are_no_trouble() {
    for items in [1, 1_000u32] {
        let run = (0..items).futureproof(Raise).num_threads(usize::MAX);
        assert_eq!(
            run.map_tasks(infallible(|n: &u32| *n)).count(),
            items as usize
        );
        let run = (0..items).futureproof(Raise).num_threads(usize::MAX);
        let run = run.max_in_flight(usize::MAX).on(AThreadEach);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        assert_eq!(run.by_ref().count(), items as usize);
        assert!(!run.report().workers().is_empty());
    }
}

struct AThreadEach;

impl futureproof::Spawn<'static> for AThreadEach {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        thread::spawn(job);
    }
}

/// One run with these options, whose every index must come once.
fn counts<I, T>(items: usize, window: usize, chunk: usize, source: I, f: fn(&I::Item) -> T)
where
    I: Iterator<Item: Send + 'static>,
    T: Send + 'static,
{
    let run = source
        .futureproof(Raise)
        .num_threads(2)
        .max_in_flight(window)
        .chunk_size(chunk);
    let mut seen: Vec<_> = run
        .map_tasks(infallible(f))
        .map(|task| task.unwrap().index)
        .collect();
    seen.sort_unstable();
    assert!(
        seen.into_iter().eq(0..items as u64),
        "{items} items, {window}, {chunk}"
    );
}

#[test]
fn any_counts_fit_any_items() {
    common::watchdog(|| {
        for window in [0, 1, 5, usize::MAX] {
            for chunk in [0, 1, 8, 65_536, 65_537, usize::MAX] {
                for items in [0, 1, 7, 8, 9, 15, 16, 17, 24] {
                    counts(items, window, chunk, 0..items, |n| *n);
                    counts(items, window, chunk, (0..items).map(|_| ()), |_| ());
                }
                counts(
                    3,
                    window,
                    chunk,
                    (0..3).map(|_| Box::new([0u8; 1 << 20])),
                    |block| block.len(),
                );
                counts(
                    9,
                    window,
                    chunk,
                    (0..9).map(|n| [n as u8; 64 << 10]),
                    |block| block[0],
                );
                let run = (0..3000u32).futureproof(Raise).read_ahead(usize::MAX);
                let run = run.map_tasks(infallible(|n: &u32| *n));
                let mut source = run.into_remainder().source;
                assert_eq!(source.next(), Some(0));
                counts(2999, window, chunk, source, |n| *n);
            }
        }
    });
}

#[test]
fn the_longest_durations_do() {
    common::watchdog(|| {
        let longest = Duration::MAX;
        let run = (0..50u32).futureproof(Ignore).monitor_interval(longest);
        let run = run.on_progress(|_| ()).deadline(longest);
        let run = run.map_tasks(|n: &u32| if *n == 3 { Err(()) } else { Ok(()) });
        let mut run = run.retry(move || [longest]);
        assert_eq!(run.by_ref().take(49).count(), 49);
        assert_eq!(run.into_remainder().unprocessed, [(3, 3)]);
    });
}

#[test]
fn a_panic_at_any_item_is_reported_once_with_its_index() {
    common::watchdog(|| {
        for at in 0..40 {
            for (threads, chunk) in [(1, 1), (2, 3), (4, 16)] {
                let run = (0..40u64)
                    .futureproof(Raise)
                    .num_threads(threads)
                    .chunk_size(chunk);
                let run = run.map_tasks(infallible(move |n: &u64| {
                    if *n == at {
                        panic::resume_unwind(Box::new(*n));
                    }
                }));
                let failures: Vec<_> = run
                    .filter_map(Result::err)
                    .map(|error| error.index())
                    .collect();
                assert_eq!(failures, [at]);
            }
        }
        // Two at the same time are one failure under `Raise`.
        let barrier = std::sync::Barrier::new(2);
        let run = (0..2u32).futureproof(Raise).num_threads(2).chunk_size(1);
        let run = run.map_tasks(infallible(move |_: &u32| -> () {
            barrier.wait();
            panic::resume_unwind(Box::new(()));
        }));
        assert_eq!(run.count(), 1);
        let run = (0..2000u32).futureproof(Ignore).num_threads(2);
        let run = run.map_tasks(infallible(|_: &u32| -> () {
            panic::resume_unwind(Box::new(()))
        }));
        assert_eq!(run.filter(Result::is_err).count(), 2000);
    });
}

#[test]
fn a_result_that_was_yielded_is_held_by_nobody_else() {
    let run = (0..100).map(Arc::new).futureproof(Raise).num_threads(2);
    let mut run = run.map_tasks(infallible(|n: &Arc<u32>| Arc::new(**n)));
    for task in run.by_ref() {
        let task = task.unwrap();
        let held = (Arc::downgrade(&task.input), Arc::downgrade(&task.output));
        drop(task);
        assert!(held.0.upgrade().is_none() && held.1.upgrade().is_none());
    }
}

#[test]
fn others_go_on_while_a_panic_is_reported() {
    survive("hook");
}

/// A hook that takes its time, as one that prints a backtrace does.
fn hook() {
    let (gate, blocked) = (common::Gate::default(), common::Gate::default());
    let (inside, entered) = (gate.clone(), blocked.clone());
    panic::set_hook(Box::new(move |_| {
        entered.open();
        inside.pass();
    }));
    let run = (0..50u32).futureproof(Raise).num_threads(2).chunk_size(1);
    let mut run = run.map_tasks(infallible(|n: &u32| assert!(*n > 0)));
    for _ in 1..50 {
        run.next().unwrap().unwrap();
    }
    blocked.pass();
    gate.open();
    assert_eq!(run.next().unwrap().unwrap_err().index(), 0);
    assert!(run.next().is_none());
}

#[test]
fn a_logger_that_blocks_stops_no_worker_and_may_look_at_the_run() {
    survive("logger");
}

/// Task 1 runs before the logger is called and ends while it is.
fn logger() {
    let (gate, meeting) = (common::Gate::default(), std::sync::Barrier::new(2));
    let (entered, (sender, ended)) = (gate.clone(), mpsc::channel());
    let run = (0..50u32).futureproof(Log).num_threads(2).chunk_size(1);
    let run = run.monitor_interval(Duration::ZERO).max_in_flight(4);
    let run = run.map_tasks(move |n: &u32| match n {
        0 => {
            meeting.wait();
            Err(())
        }
        1 => {
            meeting.wait();
            gate.pass();
            sender.send(()).map_err(drop)
        }
        _ => Ok(()),
    });
    let (progress, ended) = (run.progress(), Mutex::new(ended));
    let (written, lines) = mpsc::channel();
    on_log(move |line| {
        entered.open();
        ended.lock().unwrap().recv().unwrap();
        assert!(progress.snapshot().pulled() >= 2);
        written.send(line).unwrap();
    });
    assert_eq!(run.count(), 50);
    assert!(lines.recv().unwrap().contains("task 0 failed"));
}

/// Ticks of processor time that this process has used, its threads, and its resident pages.
fn usage() -> (u64, usize, u64) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let stat = read("stat");
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let pages = read("statm").split(' ').nth(1).unwrap().parse().unwrap();
    (ticks, fields[17].parse().unwrap(), pages)
}

#[test]
fn a_thousand_runs_leave_nothing_behind() {
    survive("many");
}

fn many() {
    let one = |round: usize| {
        let token = CancellationToken::new();
        let run = (0..300usize)
            .futureproof(Raise)
            .num_threads(2)
            .cancel_on(&token);
        let mut run = run.map_tasks(move |n: &usize| {
            if round % 4 == 2 && *n == 200 {
                Err(vec![0u8; 100])
            } else {
                Ok(vec![0u8; 100])
            }
        });
        match round % 4 {
            1 => drop(run.next()),
            3 => token.cancel(),
            _ => assert!(run.by_ref().count() > 0),
        }
        assert_eq!(run.by_ref().take(1).count(), usize::from(round % 4 == 1));
    };
    (0..200).for_each(one);
    let (_, threads, pages) = usage();
    (0..1000).for_each(one);
    // A thread that was joined may stay in the table for a moment.
    assert!(
        common::soon(|| usage().1 <= threads),
        "{} threads, not {threads}",
        usage().1
    );
    let grown = usage().2.saturating_sub(pages);
    assert!(grown < 1024, "{grown} pages more, after {pages}");
}

#[test]
fn a_run_that_is_forgotten_stops_nothing_and_takes_no_time() {
    for home in ["own", "scope"] {
        survive(&format!("forget {home}"));
    }
}

fn forget(home: &str) {
    let calls = AtomicUsize::new(0);
    if home == "own" {
        let run = (0u64..)
            .futureproof(Raise)
            .num_threads(2)
            .max_in_flight(100);
        let mut run = run.on_progress(|_| ()).map_tasks(infallible(|n: &u64| *n));
        run.next().unwrap().unwrap();
        std::mem::forget(run);
    } else {
        // The end of the scope waits for what was submitted, and for nothing else.
        futureproof::scope(2, |scope| {
            let run = (0u64..).futureproof(Raise).on(scope).max_in_flight(100);
            let mut run = run.map_tasks(infallible(|_: &u64| calls.fetch_add(1, SeqCst)));
            run.next().unwrap().unwrap();
            std::mem::forget(run);
        });
        assert!((1..=101).contains(&calls.load(SeqCst)));
    }
    // Nobody spins. Time has to pass for that to be seen; a tick is 10 ms.
    let (before, ..) = usage();
    let (_sender, never) = mpsc::channel::<()>();
    assert!(never.recv_timeout(Duration::from_millis(300)).is_err());
    let used = usage().0 - before;
    assert!(used < 10, "{used} ticks");
}

#[test]
fn a_process_may_end_in_the_midst_of_a_run() {
    for (how, status) in [("inside", 3), ("live", 0), ("returns", 0)] {
        let ended = watch(command(&format!("exit {how}")), None);
        assert_eq!(ended.status.code(), Some(status), "{how}: {}", ended.text);
    }
}

fn exit(how: &str) {
    let is_inside = how == "inside";
    let run = (0u64..).futureproof(Raise).num_threads(2);
    let run = run
        .on_progress(|_| ())
        .map_tasks(infallible(move |n: &u64| {
            if is_inside && *n == 5 {
                std::process::exit(3);
            }
        }));
    let (sender, goes) = mpsc::channel();
    let mut run = run;
    let consumer = move || run.try_for_each(|_| sender.send(()));
    thread::spawn(consumer);
    goes.iter().take_while(|_| is_inside).for_each(drop);
    if how == "live" {
        std::process::exit(0);
    }
    // Else the test returns, and then `main` does.
}

#[test]
fn a_stack_that_overflows_kills_the_process_and_does_not_hang_it() {
    let ended = watch(command("overflow"), None);
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&ended.status),
        Some(6),
        "{}",
        ended.text
    );
    assert!(
        ended.text.contains("overflowed its stack"),
        "{}",
        ended.text
    );
}

fn overflow() {
    fn deep(n: u64) -> u64 {
        std::hint::black_box([n; 100])[7] + if n == u64::MAX { 0 } else { deep(n + 1) }
    }
    let run = (0..4u64).futureproof(Ignore).num_threads(2);
    run.map_tasks(infallible(|n: &u64| deep(*n))).for_each(drop);
}

#[test]
fn an_interrupt_that_cancels_lets_what_runs_finish() {
    let ended = watch(command("signal"), Some("-INT"));
    assert!(
        ended.status.success() && ended.text.contains("done"),
        "{}",
        ended.text
    );
}

fn signal() {
    let (token, gate) = (CancellationToken::new(), common::Gate::default());
    let (stop, inside) = (token.clone(), gate.clone());
    ctrlc::set_handler(move || {
        stop.cancel();
        inside.open();
    })
    .unwrap();
    let finished = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&finished);
    let run = (0u64..).futureproof(Raise).num_threads(2).cancel_on(&token);
    let mut run = run.map_tasks(infallible(move |n: &u64| {
        if *n == 0 {
            println!("\nready");
            gate.pass();
            count.fetch_add(1, SeqCst);
        }
    }));
    run.by_ref().for_each(drop);
    assert_eq!(run.ending(), Some(futureproof::Ending::Cancelled));
    drop(run);
    assert_eq!(finished.load(SeqCst), 1);
}

#[test]
fn no_count_of_threads_means_that_of_the_environment() {
    let mut child = command("width");
    child.env("RAYON_NUM_THREADS", "3");
    assert!(watch(child, None).status.success());
}

fn width() {
    let barrier = Arc::new(std::sync::Barrier::new(3));
    let run = (0..3u32).futureproof(Raise).chunk_size(1);
    let run = run.map_tasks(infallible(move |_: &u32| barrier.wait().is_leader()));
    assert_eq!(run.count(), 3);
}

#[test]
fn states_that_panic_at_the_end_are_dropped_one_by_one() {
    survive("states");
}

/// From the third thread on, states share a bucket of `thread_local`.
fn states() {
    for threads in [2, 8] {
        let faults = Faults {
            armed: [StateDrop; 2],
            fired: Arc::default(),
            tally: Tally::default(),
        };
        let (inside, barrier) = (faults.clone(), std::sync::Barrier::new(threads));
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
}

#[test]
fn next_after_the_panic_of_a_source_that_reads_ahead_returns() {
    survive("ring");
}

/// The answer of the last task may come before the panic or after it.
fn ring() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2);
    let pool = Arc::new(pool.build().unwrap());
    for _ in 0..500 {
        let source = (0..).inspect(|n| {
            if *n == 17 {
                panic_any(())
            }
        });
        let run = source.read_ahead(4).futureproof(Ignore);
        let run = run.on(Arc::clone(&pool)).chunk_size(8);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        while let Ok(task) = catch_unwind(AssertUnwindSafe(|| run.next())) {
            assert!(task.is_some());
        }
        assert!(run.next().is_none());
    }
}

#[test]
fn a_logger_that_panics_when_asked_is_contained() {
    survive("enabled");
}

fn enabled() {
    struct Bad;
    impl log::Log for Bad {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            panic_any(())
        }
        fn log(&self, _: &log::Record<'_>) {}
        fn flush(&self) {}
    }
    log::set_logger(&Bad).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let run = (0..10u32).futureproof(Raise).num_threads(1);
    assert_eq!(run.map_tasks(infallible(|n: &u32| *n)).count(), 10);
}

#[test]
fn what_was_read_ahead_is_dropped_while_more_is_read() {
    survive("reader");
}

/// The source is quicker than the drop of an item, and never ends.
fn reader() {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let run = std::iter::repeat_with(|| Slow).read_ahead(64);
    let run = run.futureproof(Raise).num_threads(1);
    let mut run = run.map_tasks(infallible(|_: &Slow| ()));
    assert!(run.next().is_some());
    drop(run);
}

#[test]
fn a_home_and_a_function_may_both_panic_when_they_go() {
    survive("home");
}

fn home() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(())
        }
    }
    struct Home(#[allow(dead_code)] Bomb);
    impl Spawn<'static> for Home {
        fn spawn(&self, job: impl FnOnce() + Send + 'static) {
            thread::spawn(job);
        }
    }
    let capture = Bomb;
    let run = (0..10u32).futureproof(Raise).on(Home(Bomb));
    let run = run.map_tasks(infallible(move |n: &u32| {
        let _ = &capture;
        *n
    }));
    assert_eq!(run.count(), 10);
}

#[cfg(feature = "tracing")]
#[test]
fn a_subscriber_that_panics_loses_no_task() {
    for places in [
        "enabled",
        "new_span",
        "enter",
        "event",
        "exit",
        "try_close",
        "exit, try_close",
        "enabled, new_span, enter, event, exit, try_close",
    ] {
        survive(&format!("subscriber {places}"));
    }
}

#[cfg(feature = "tracing")]
fn subscriber(places: String) {
    use tracing::span::{Attributes, Id, Record};
    use tracing::subscriber::{Interest, Subscriber, set_global_default};
    use tracing::{Event, Metadata};

    struct Bad {
        places: String,
        spans: AtomicUsize,
    }
    impl Bad {
        fn at(&self, place: &str) {
            if self.places.contains(place) {
                panic_any(());
            }
        }
    }
    impl Subscriber for Bad {
        fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
            Interest::sometimes()
        }
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            self.at("enabled");
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            self.at("new_span");
            Id::from_u64(self.spans.fetch_add(1, SeqCst) as u64 + 1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.at("event");
        }
        fn enter(&self, _: &Id) {
            self.at("enter");
        }
        fn exit(&self, _: &Id) {
            self.at("exit");
        }
        fn try_close(&self, _: Id) -> bool {
            self.at("try_close");
            true
        }
    }

    set_global_default(Bad {
        places,
        spans: AtomicUsize::new(0),
    })
    .unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2);
    let pool = Arc::new(pool.build().unwrap());
    let f = |n: &u32| match n % 3 {
        0 => Ok(*n),
        1 => Err("bad"),
        _ => panic_any(()),
    };
    for round in 0..100 {
        let run = (0..30u32).futureproof(Ignore).num_threads(2);
        let run = match round % 2 {
            0 => run.map_tasks(f),
            _ => run.on(Arc::clone(&pool)).map_tasks(f),
        };
        let mut count = 0;
        for result in run {
            match result {
                Ok(task) => assert_eq!(task.output % 3, 0),
                Err(error) => assert_eq!(error.index() % 3, 1 + u64::from(error.is_panic())),
            }
            count += 1;
        }
        assert_eq!(count, 30);
    }
}
