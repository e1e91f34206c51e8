//! The bar as a terminal shows it.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use futureproof::prelude::*;

const BAR: &str = env!("CARGO_BIN_EXE_bar");

/// What the example writes to a terminal: `script` gives it one.
fn on_a_terminal(option: &str) -> String {
    let mut command = Command::new("script");
    command.args([
        "-qec",
        &format!("stty cols 120; {BAR} {option}"),
        "/dev/null",
    ]);
    let output = command
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_terminal_sees_length_rate_and_failures_in_red() {
    let text = on_a_terminal("");
    for part in ["300/300", "/s", " left", "\u{1b}[31m, 6 failed", "294 done"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // The bar is drawn more than once, and its last state stays below the log's lines.
    assert!(text.matches("/300").count() > 2, "{text}");
    assert!(
        text.rfind("300/300") > text.rfind("task 299 failed"),
        "{text}"
    );
    assert!(text.contains("task 299 failed: \"broken\""), "{text}");
}

#[test]
fn a_run_of_unknown_size_has_a_spinner() {
    let text = on_a_terminal("--spinner");
    assert!(
        text.contains("300 done") && !text.contains("/300"),
        "{text}"
    );
}

#[test]
fn the_plain_way_works_as_well() {
    let text = on_a_terminal("--plain");
    // indicatif takes its bar away at the end.
    assert!(
        text.matches("/300").count() > 2 && text.contains("294 done"),
        "{text}"
    );
}

#[test]
fn what_is_no_terminal_gets_no_control_characters() {
    let output = Command::new(BAR).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(
        text.contains("task 49 failed") && text.contains("294 done\n"),
        "{text}"
    );
    assert!(
        !text.contains(|c: char| c.is_control() && c != '\n'),
        "{text:?}"
    );
}

#[test]
fn a_bar_that_is_used_again_forgets_the_failures_before() {
    let bar = indicatif::ProgressBar::no_length();
    for (failures, message) in [(3, ", 3 failed"), (0, "")] {
        let run = (0..10).futureproof(Ignore).progress_bar(bar.clone());
        let run = run.map_tasks(move |n| if *n < failures { Err(()) } else { Ok(()) });
        assert_eq!(run.count(), 10);
        assert_eq!(bar.message(), message);
    }
}

#[test]
fn a_bar_has_its_length_from_the_start_and_stands_still_at_the_end() {
    let bar = indicatif::ProgressBar::no_length();
    let run = (0..10).futureproof(Raise).progress_bar(bar.clone());
    let mut run = run.map_tasks(infallible(|n: &i32| *n));
    run.next();
    // The monitor's thread tells it.
    let end = Instant::now() + Duration::from_secs(5);
    while bar.length().is_none() && Instant::now() < end {
        thread::yield_now();
    }
    assert_eq!((bar.length(), bar.is_finished()), (Some(10), false));
    assert_eq!(run.by_ref().count(), 9);
    assert_eq!((bar.position(), bar.is_finished()), (10, true));
}
