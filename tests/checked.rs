//! Errors that go with `?` wherever the program is, and ends that cannot be overlooked.

mod common;

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::panic;
use std::time::Duration;

use common::{Brittle, watchdog};
use futureproof::prelude::*;
use futureproof::{Cause, Ending, RunError};

/// An error with a cause of its own.
#[derive(Debug)]
struct Outer(std::num::ParseIntError);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("line 7 is wrong")
    }
}

impl Error for Outer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

fn parse(text: &&'static str) -> Result<i32, Outer> {
    text.parse().map_err(Outer)
}

const WORDS: [&str; 3] = ["1", "x", "3"];

/// What `error` and its sources say.
fn chain(error: &dyn Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    texts.extend(error.source().map(chain).into_iter().flatten());
    texts
}

const CHAIN: [&str; 3] = [
    "task 1 failed",
    "line 7 is wrong",
    "invalid digit found in string",
];

#[test]
fn a_boxed_error_keeps_the_chain() {
    fn sum() -> Result<i32, Box<dyn Error>> {
        let mut sum = 0;
        for task in WORDS
            .into_iter()
            .futureproof(Raise)
            .ordered()
            .map_tasks(parse)
            .checked()
        {
            sum += task?.output;
        }
        Ok(sum)
    }
    assert_eq!(chain(&*sum().unwrap_err()), CHAIN);
    fn first_failure() -> Result<(), Box<dyn Error + Send + Sync>> {
        for task in WORDS
            .into_iter()
            .futureproof(Raise)
            .ordered()
            .map_tasks(parse)
        {
            task.map_err(TaskError::erase)?;
        }
        Ok(())
    }
    assert_eq!(chain(&*first_failure().unwrap_err()), CHAIN);
}

#[test]
fn a_cause_is_as_the_error_it_is() {
    let cause = Cause::Failed(parse(&"x").unwrap_err());
    assert_eq!(chain(&cause), CHAIN[1..]);
    let run = ["1"].into_iter().futureproof(Raise).num_threads(1);
    let mut run =
        run.map_tasks(|_: &&str| -> Result<(), Outer> { panic::resume_unwind(Box::new("boom")) });
    let error = run.next().unwrap().unwrap_err();
    assert_eq!(chain(error.cause()).len(), 1);
}

#[test]
fn anyhow_takes_it_and_gives_it() {
    use anyhow::Context;
    fn sum() -> anyhow::Result<i32> {
        let parse = |text: &&str| parse(&"x").with_context(|| format!("in {text:?}"));
        let mut sum = 0;
        for task in ["a"]
            .into_iter()
            .futureproof(Raise)
            .map_tasks(parse)
            .checked()
        {
            sum += task?.output;
        }
        Ok(sum)
    }
    let error = sum().unwrap_err();
    let text = "task 0 failed: in \"a\": line 7 is wrong: invalid digit found in string";
    assert_eq!(format!("{error:#}"), text);
    assert_eq!(
        (error.downcast_ref::<RunError>().and_then(RunError::index)),
        Some(0)
    );
    // And the function's own error can be found.
    assert!(error.downcast_ref::<RunError>().is_some());
}

#[test]
fn eyre_takes_it_and_gives_it() {
    fn sum() -> eyre::Result<i32> {
        let parse = |text: &&'static str| Ok::<_, eyre::Report>(parse(text)?);
        let mut sum = 0;
        for task in WORDS
            .into_iter()
            .futureproof(Raise)
            .ordered()
            .map_tasks(parse)
            .checked()
        {
            sum += task?.output;
        }
        Ok(sum)
    }
    let error = sum().unwrap_err();
    let texts: Vec<String> = error.chain().map(ToString::to_string).collect();
    assert_eq!(texts, CHAIN);
}

#[test]
fn texts_are_errors_as_well() {
    fn job(words: &[&'static str]) -> Result<usize, Box<dyn Error>> {
        let owned = |word: &&str| {
            if *word == "x" {
                Err(String::from("no x"))
            } else {
                Ok(())
            }
        };
        let run = words.iter().copied().futureproof(Raise).map_tasks(owned);
        let count = run.checked().collect::<Result<Vec<_>, _>>()?.len();
        let lent = |word: &&str| if *word == "y" { Err("no y") } else { Ok(()) };
        let run = words.iter().copied().futureproof(Raise).map_tasks(lent);
        Ok(count + run.checked().collect::<Result<Vec<_>, _>>()?.len())
    }
    assert_eq!(job(&["a", "b"]).unwrap(), 4);
    assert_eq!(chain(&*job(&["x"]).unwrap_err()), ["task 0 failed", "no x"]);
    assert_eq!(
        chain(&*job(&["a", "y"]).unwrap_err()),
        ["task 1 failed", "no y"]
    );
}

/// Neither can be part of an error that `?` takes.
#[test]
fn items_may_borrow_or_not_be_sync() {
    fn borrowed(text: &str) -> Result<usize, Box<dyn Error>> {
        futureproof::scope(2, |scope| {
            let words = text.split(' ').futureproof(Raise).on(scope);
            let run = words.ordered().map_tasks(|word: &&str| word.parse::<u8>());
            Ok(run.checked().collect::<Result<Vec<_>, _>>()?.len())
        })
    }
    fn cells() -> Result<(), Box<dyn Error>> {
        let cells = (0..3).map(Cell::new).futureproof(Raise).ordered();
        for task in cells.map_tasks(|cell| if cell.get() == 1 { Err("one") } else { Ok(()) }) {
            task.map_err(TaskError::erase)?;
        }
        Ok(())
    }
    let text = String::from("1 2 300");
    assert_eq!(chain(&*borrowed(&text).unwrap_err())[0], "task 2 failed");
    assert_eq!(borrowed("1 2 30").unwrap(), 3);
    assert_eq!(chain(&*cells().unwrap_err()), ["task 1 failed", "one"]);
}

#[test]
fn a_panic_is_the_source() {
    let run = [1]
        .into_iter()
        .futureproof(Raise)
        .map_tasks(infallible(|_: &i32| panic!("boom")));
    let error = run.checked().find_map(Result::err).unwrap();
    assert_eq!(chain(&error), ["task 0 failed", "panicked: boom"]);
    assert_eq!(format!("{error:?}"), "task 0 failed: panicked: boom");
}

#[test]
fn a_run_that_is_cut_short_is_no_success() {
    watchdog(|| {
        let work = |n: &u32| {
            std::thread::sleep(Duration::from_millis(1));
            Ok::<_, String>(*n)
        };
        let run = (0..100_000)
            .futureproof(Ignore)
            .num_threads(1)
            .deadline(Duration::from_millis(50));
        let error = run
            .map_tasks(work)
            .checked()
            .collect::<Result<Vec<_>, _>>()
            .unwrap_err();
        assert_eq!(error.ending(), Some(Ending::DeadlineExceeded));
        assert_eq!(error.index(), None);
        assert!(
            error
                .to_string()
                .starts_with("the run reached its deadline after "),
            "{error}"
        );

        let token = CancellationToken::new();
        let mut tasks = (0..100_000)
            .futureproof(Ignore)
            .num_threads(1)
            .cancel_on(&token)
            .map_tasks(work)
            .checked();
        for _ in 0..3 {
            tasks.next().unwrap().unwrap();
        }
        token.cancel();
        let error = tasks.next().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the run was cancelled after 3 tasks");
        // Once, and at the very end.
        assert_eq!(tasks.size_hint(), (0, Some(0)));
        assert!(tasks.next().is_none() && tasks.next().is_none());
        assert_eq!(tasks.get_ref().ending(), Some(Ending::Cancelled));
        let rest = tasks.into_inner().into_remainder();
        assert_eq!(
            3 + rest.finished.len() + rest.unprocessed.len() + rest.source.count(),
            100_000
        );
    });
}

#[test]
fn a_run_that_ends_by_itself_has_no_further_error() {
    let run = (0..100u32)
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u32| *n));
    let mut tasks = run.checked();
    assert_eq!(tasks.size_hint(), (0, Some(101)));
    assert_eq!(
        tasks.by_ref().map(|task| task.unwrap().output).sum::<u32>(),
        4950
    );
    assert!(tasks.next().is_none());
    // One failure stops the run, and is the only error.
    let run = (0..100u32)
        .futureproof(Raise)
        .map_tasks(|n: &u32| if *n == 50 { Err("fifty") } else { Ok(()) });
    assert_eq!(run.checked().filter(Result::is_err).count(), 1);
    // Without `checked`, they are all there.
    let run = (0..100u32)
        .futureproof(Ignore)
        .map_tasks(|n: &u32| if n % 2 == 0 { Err("even") } else { Ok(()) });
    assert_eq!(run.checked().filter(Result::is_err).count(), 50);
}

#[test]
fn a_source_that_panics_is_no_success_for_who_catches_it() {
    let source = (0..10u32).inspect(|n| assert!(*n < 5, "the source breaks"));
    let mut tasks = source
        .futureproof(Raise)
        .map_tasks(infallible(|n: &u32| *n))
        .checked();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tasks.by_ref().count()));
    assert!(caught.is_err());
    let error = tasks.next().unwrap().unwrap_err();
    assert_eq!(error.ending(), Some(Ending::SourcePanicked));
    assert!(tasks.next().is_none());
}

#[test]
fn an_item_whose_destructor_panics_does_not_hide_the_failure() {
    let run = [Brittle]
        .into_iter()
        .futureproof(Raise)
        .map_tasks(|_: &Brittle| Err::<(), _>("why"));
    let error = run.checked().next().unwrap().unwrap_err();
    assert_eq!(chain(&error), ["task 0 failed", "why"]);
}
