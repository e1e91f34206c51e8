//! Runs a command for each line of its input, and goes on where it was after `kill -9`, as `parallel --joblog --resume`
//! does. Without arguments, it shows on a hundred items of its own how a batch goes on.
//!
//! ```sh
//! cargo build --release --example journal --features journal
//! alias journal=target/release/examples/journal
//! ls *.log | journal run compress.journal gzip -k   # kill it, and start it again
//! journal show compress.journal                     # how many are done, and what failed
//! ls *.log | journal show compress.journal --items  # a line for each of these: done, failed or pending
//! ```

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs, io, process};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use futureproof::journal::Journal;
use futureproof::prelude::*;

/// Runs a command for each line of its input, and goes on where it was after `kill -9`.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Runs the command with each line as its last argument, if it has not succeeded with that yet
    Run {
        /// The file that tells what is done
        journal: PathBuf,
        /// The command, and its first arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Prints what is done and what has failed
    Show {
        /// The file that tells what is done
        journal: PathBuf,
        /// Prints a line for each line of the input: done, failed or pending
        #[arg(long)]
        items: bool,
    },
}

/// What tells an item from the others: itself.
const KEY: fn(&String) -> String = String::clone;

fn call(command: &[String], item: &str) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(&command[0]);
    let child = child.args(&command[1..]).arg(item).stdin(Stdio::null());
    let output = child
        .output()
        .with_context(|| format!("cannot start {:?}", command[0]))?;
    if !output.status.success() {
        match String::from_utf8_lossy(&output.stderr).trim_end() {
            "" => bail!("{}", output.status),
            text => bail!("{}: {text}", output.status),
        }
    }
    Ok(output.stdout)
}

fn run(path: &Path, command: &[String]) -> anyhow::Result<bool> {
    let items = io::stdin().lines().collect::<Result<Vec<_>, _>>()?;
    let journal = Journal::open(path)?;
    futureproof::scope(0, |scope| {
        let call = journal.record(KEY, |item: &String| call(command, item));
        let run = journal.pending(items, KEY).futureproof(Ignore).on(scope);
        for task in run.map_tasks(call) {
            match task {
                Ok(task) => io::stdout().write_all(&task.output)?,
                Err(error) => eprintln!("{}: {}", error.input(), error.cause()),
            }
        }
        anyhow::Ok(())
    })?;
    // It fails if the last commit did.
    let summary = journal.summary()?;
    eprintln!("{} done, {} failed", summary.done, summary.failed.len());
    Ok(summary.failed.is_empty())
}

fn show(path: &Path, with_items: bool) -> anyhow::Result<()> {
    if !path.exists() {
        bail!("there is no {}", path.display());
    }
    let journal = Journal::open(path)?;
    let summary = journal.summary()?;
    if !with_items {
        println!("{} done, {} failed", summary.done, summary.failed.len());
        for failure in summary.failed {
            println!("failed {failure}");
        }
        return Ok(());
    }
    let items = io::stdin().lines().collect::<Result<Vec<_>, _>>()?;
    let pending: HashSet<_> = journal.pending(&items, |item| KEY(item)).collect();
    let failed = summary.failed.iter();
    let failed: HashMap<_, _> = failed.map(|it| (&it.key, &it.reason)).collect();
    for item in &items {
        match (pending.contains(item), failed.get(item)) {
            (false, _) => println!("done {item}"),
            (true, Some(reason)) => println!("failed {item}: {reason}"),
            (true, None) => println!("pending {item}"),
        }
    }
    Ok(())
}

fn demo() -> anyhow::Result<()> {
    let dir = env::temp_dir().join(format!("journal-{}", process::id()));
    fs::create_dir_all(&dir)?;
    let items = || (1..=100).map(|n| format!("item {n}"));
    let mut before = 0;
    for first in [30, 100] {
        let journal = Journal::open(dir.join("demo.journal"))?;
        let length = journal.record(KEY, |item: &String| Ok::<_, String>(item.len()));
        let run = journal
            .pending(items(), KEY)
            .futureproof(Raise)
            .num_threads(2);
        // The first start leaves early. What has finished by then is done, delivered or not.
        for task in run.max_in_flight(10).map_tasks(length).take(first) {
            task?;
        }
        let done = journal.summary()?.done;
        println!(
            "{} were done by this start, {} are left",
            done - before,
            100 - done
        );
        before = done;
    }
    println!("all {before} are done, each once");
    fs::remove_dir_all(dir)?;
    Ok(())
}

fn main() -> anyhow::Result<ExitCode> {
    let is_fine = match Args::parse().action {
        Some(Action::Run { journal, command }) => run(&journal, &command)?,
        Some(Action::Show { journal, items }) => show(&journal, items).map(|()| true)?,
        None => demo().map(|()| true)?,
    };
    Ok(match is_fine {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
