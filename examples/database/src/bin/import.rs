//! Imports a CSV file (id, name, cents; no quotes) into SQLite: parses lines in parallel, and inserts them in the file's
//! order, 1,000 rows in a transaction. A bad line is printed and left out; an I/O error ends it, what is committed stays.
//!
//! ```sh
//! cargo run --release -p database --bin import -- --make 10000 products.csv shop.db    # makes both files
//! cargo run --release -p database --bin import -- products.csv shop.db                 # reads what is there
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use clap::Parser;
use futureproof::prelude::*;
use indicatif::ProgressBar;
use rusqlite::Connection;

const START: &str = "CREATE TABLE IF NOT EXISTS product
    (id INTEGER NOT NULL UNIQUE, name TEXT NOT NULL, cents INTEGER NOT NULL); BEGIN";

/// Imports a CSV file into SQLite.
#[derive(Parser)]
struct Args {
    file: PathBuf,
    /// The database; it is made, or gets further rows
    #[arg(required_unless_present = "make")]
    db: Option<PathBuf>,
    /// First make the file, with so many lines
    #[arg(long)]
    make: Option<u64>,
}

/// Every 997th line is bad. Ids count down, so their order is not that of the file.
fn write_csv(file: &Path, lines: u64) -> io::Result<()> {
    let mut file = BufWriter::new(File::create_new(file)?);
    for n in 1..=lines {
        let bad = if n % 997 == 0 { " or so" } else { "" };
        writeln!(file, "{},lamp {n},{}{bad}", lines - n, n * 7919 % 5000)?;
    }
    file.flush()
}

fn parse(line: &[u8]) -> anyhow::Result<(i64, String, i64)> {
    let line = str::from_utf8(line)?.trim_end();
    ensure!(!line.contains('"'), "it has quotes");
    let fields: Vec<_> = line.split(',').collect();
    ensure!(fields.len() == 3, "fields: {} instead of 3", fields.len());
    let number = |text: &str| text.parse().with_context(|| format!("{text:?}"));
    Ok((number(fields[0])?, fields[1].to_owned(), number(fields[2])?))
}

fn main() -> anyhow::Result<()> {
    let Args { file, db, make } = Args::parse();
    let name = || file.display().to_string();
    if let Some(lines) = make {
        write_csv(&file, lines).with_context(name)?;
    }
    let Some(db) = db else { return Ok(()) };
    let lines = BufReader::new(File::open(&file).with_context(name)?).split(b'\n');
    let bar = ProgressBar::no_length(); // draws nothing where there is no terminal
    let run = lines.futureproof(Raise).ordered().progress_bar(bar.clone());
    // Only the file can fail. A bad line is a result, as a good one is.
    let run = run.map_tasks_owned(|line: io::Result<Vec<u8>>| io::Result::Ok(parse(&line?)));

    let connection = Connection::open(&db).with_context(|| db.display().to_string())?;
    connection.execute_batch(START)?;
    let mut insert = connection.prepare("INSERT OR IGNORE INTO product VALUES (?, ?, ?)")?;
    let (mut imported, mut bad) = (0, 0);
    for task in run.checked() {
        let task = task.with_context(name)?;
        let reason = match task.output {
            Ok((id, name, cents)) if insert.execute((id, &name, cents))? == 1 => {
                imported += 1;
                if imported % 1_000 == 0 {
                    connection.execute_batch("COMMIT; BEGIN")?;
                }
                continue;
            }
            Ok(_) => anyhow!("its id is there already"),
            Err(reason) => reason,
        };
        bad += 1;
        bar.suspend(|| println!("line {}: {reason:#}", task.index + 1));
    }
    connection.execute_batch("COMMIT")?;
    println!("{imported} rows imported, {bad} bad lines");
    Ok(())
}
