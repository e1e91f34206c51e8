//! Finds the lines of JSON Lines files that are not JSON, and tells them by file and number.
//!
//! ```sh
//! cargo run --release -p real-work --bin validate_jsonl -- events.jsonl more.jsonl
//! zcat events.jsonl.gz | cargo run --release -p real-work --bin validate_jsonl -- --policy tolerate:10
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use futureproof::{Ending, TaskError, prelude::*};
use serde::de::IgnoredAny;

/// Finds the lines that are not JSON.
#[derive(Parser)]
struct Args {
    /// What to read; standard input if there is none
    files: Vec<PathBuf>,
    /// What a bad line does: raise, log, ignore or tolerate:N
    #[arg(long, default_value_t = Ignore)]
    policy: ErrorPolicy,
}

/// A line and where it is from; what cannot be read is a line as well.
struct Line {
    file: Arc<str>,
    number: u64,
    text: io::Result<Vec<u8>>,
}

/// As bytes: a line that is no text is a bad line, not the end.
fn lines(file: PathBuf) -> Box<dyn Iterator<Item = Line>> {
    let name: Arc<str> = file.display().to_string().into();
    let line = move |(text, number)| Line {
        file: name.clone(),
        number,
        text,
    };
    let reader: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        match File::open(&file) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => return Box::new(iter::once(line((Err(error), 0)))),
        }
    };
    // Who cannot read, for one reason or another, cannot read on.
    let mut broken = false;
    let texts = reader.split(b'\n').map_while(move |text| {
        let text = (!broken).then_some(text);
        broken |= matches!(text, Some(Err(_)));
        text
    });
    Box::new(texts.zip(1..).map(line))
}

fn check(line: &Line) -> Result<(), String> {
    let text = line.text.as_ref().map_err(ToString::to_string)?;
    // What is skipped is not looked at for UTF-8.
    let text = str::from_utf8(text).map_err(|error| error.to_string())?;
    match serde_json::from_str(text) {
        Ok(IgnoredAny) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn describe(failure: &TaskError<Line, String>) -> String {
    let Line { file, number, .. } = failure.input();
    let reason = failure.error().map_or("the check panicked", |it| it);
    format!("{file}:{number}: {reason}")
}

fn main() -> ExitCode {
    real_work::log_to_stderr();
    let Args { mut files, policy } = Args::parse();
    if files.is_empty() {
        files.push("-".into());
    }
    let run = files
        .into_iter()
        .flat_map(lines)
        .futureproof(policy)
        .ordered()
        .name("validate");
    let mut run = run.map_tasks(check).describe(describe);
    let (mut good, mut bad) = (0u64, 0);
    for task in run.by_ref() {
        let Err(failure) = task else {
            good += 1;
            continue;
        };
        bad += 1;
        println!("{}", describe(&failure));
    }
    let stopped = match run.ending() {
        Some(Ending::Failed) => "; stopped there",
        _ => "",
    };
    println!("{good} good lines, {bad} bad{stopped}");
    real_work::status(bad, run.ending())
}
