//! How many instructions an item costs on its way, counted by valgrind's callgrind and so the same on a busy
//! machine. Fails if it is over 5 % more than what `instructions.txt` says.
//!
//! valgrind makes tasks slow, so that each is begun by itself, as those of 2 µs and more are; what tiny ones cost, of which
//! several are begun at a time, is in the report.
//!
//! Jobs are run inline, so that no other thread interferes: threads that wait for each other spin a little,
//! and to count that says nothing.
//!
//! ```sh
//! cargo bench -p futureproof-benches --bench instructions            # compares
//! cargo bench -p futureproof-benches --bench instructions -- --save  # after a change that is worth it
//! ```

use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::{env, fs, thread};

use futureproof::{Futureproof, Spawn, current_attempt, prelude::*};
use futures::StreamExt;

/// Counted on so many items, and again on three times as many: the difference is free of start and end.
const ITEMS: u64 = 100_000;
const TOLERANCE: f64 = 1.05;

type Case = (&'static str, fn(u64));

const CASES: [Case; 10] = [
    ("for", |items| {
        for task in numbers(items).map_tasks(infallible(double)) {
            assert_eq!(task.expect("it cannot fail").output % 2, 0);
        }
    }),
    ("fold", |items| {
        let run = numbers(items).map_tasks(infallible(double));
        assert_eq!(run.flatten().count() as u64, items);
    }),
    ("ordered", |items| {
        let run = numbers(items).ordered().map_tasks(infallible(double));
        assert_eq!(run.flatten().count() as u64, items);
    }),
    ("with_state", |items| {
        let count = |calls: &mut u64, _: &u64| {
            *calls += 1;
            Ok::<_, ()>(*calls)
        };
        let run = numbers(items).map_tasks(with_state(|| 0, count));
        assert_eq!(run.flatten().count() as u64, items);
    }),
    ("failures", |items| {
        let run = (0..items).futureproof(Ignore).on(Here).chunk_size(256);
        let run = run.map_tasks(|item| if item % 2 == 0 { Err(()) } else { Ok(()) });
        assert_eq!(run.filter(Result::is_err).count() as u64, items / 2);
    }),
    ("chunks of one", |items| {
        let run = numbers(items / 10)
            .chunk_size(1)
            .map_tasks(infallible(double));
        assert_eq!(run.flatten().count() as u64, items / 10);
    }),
    ("warn_after", |items| {
        let run = numbers(items).warn_after(Duration::from_secs(60));
        let run = run.map_tasks(infallible(double));
        assert_eq!(run.flatten().count() as u64, items);
    }),
    ("a slow source", |items| {
        // Long enough to be submitted one by one.
        let slow = (0..items / 10).inspect(|_| thread::sleep(Duration::from_micros(50)));
        let run = slow
            .futureproof(Raise)
            .on(Here)
            .map_tasks(infallible(double));
        assert_eq!(run.flatten().count() as u64, items / 10);
    }),
    ("a stream", |items| {
        let run = numbers(items / 10).chunk_size(1);
        let mut stream = run.map_tasks(infallible(double)).into_stream();
        let mut context = Context::from_waker(Waker::noop());
        let mut count = 0;
        while let Poll::Ready(Some(task)) = stream.poll_next_unpin(&mut context) {
            assert_eq!(task.expect("it cannot fail").output % 2, 0);
            count += 1;
        }
        assert_eq!(count, items / 10);
    }),
    ("one in ten fails once", |items| {
        let fails = |n: &u64| n.is_multiple_of(10) && current_attempt() == 1;
        let run = numbers(items).map_tasks(move |n| if fails(n) { Err(()) } else { Ok(2 * n) });
        let run = run.retry(|| [Duration::ZERO]);
        assert_eq!(run.flatten().count() as u64, items);
    }),
];

/// Chunks of a fixed size, since time means nothing under valgrind.
fn numbers(items: u64) -> Futureproof<Range<u64>, Here> {
    (0..items).futureproof(Raise).on(Here).chunk_size(256)
}

/// Runs jobs inline.
struct Here;

impl Spawn<'static> for Here {
    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        job();
    }

    fn is_current(&self) -> bool {
        true
    }
}

fn double(item: &u64) -> u64 {
    2 * item
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--case") {
        let case: usize = args[at + 1].parse()?;
        CASES[case].1(args[at + 2].parse()?);
        return Ok(());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let mut found = String::new();
    let mut regressions = Vec::new();
    for (number, (name, _)) in CASES.iter().enumerate() {
        let each = (count(number, 3 * ITEMS)? - count(number, ITEMS)?) / (2 * ITEMS) as f64;
        found += &format!("{name}: {each:.1}\n");
        let before = expected.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(": ")?
                .parse::<f64>()
                .ok()
        });
        println!(
            "{name}: {each:.1} instructions an item, {} before",
            before.map_or("none".into(), |it| it.to_string())
        );
        // Watched one by one, a task is also asked whether it wants a span.
        let is_other = cfg!(feature = "watched") && *name == "warn_after";
        if !is_other && before.is_some_and(|before| each > before * TOLERANCE) {
            regressions.push(*name);
        }
    }
    if args.iter().any(|arg| arg == "--save") {
        fs::write(path, found)?;
    } else if !regressions.is_empty() {
        return Err(format!(
            "over 5 % more instructions than before: {}",
            regressions.join(", ")
        )
        .into());
    }
    Ok(())
}

/// The instructions of one case in a process of its own.
fn count(case: usize, items: u64) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--case", &case.to_string(), &items.to_string()])
        .output()
        .map_err(|error| format!("valgrind cannot be started (is it installed?): {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let figure = text
        .lines()
        .find_map(|line| line.split_once("Collected : ")?.1.parse().ok());
    figure.ok_or_else(|| format!("valgrind did not count: {text}").into())
}
