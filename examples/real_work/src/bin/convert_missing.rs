//! Keeps upper-case copies of all `.txt` files below a directory, in a tree of the same shape. A copy that is as old as its
//! text, or younger, is left alone: most tasks cost next to nothing, some much. A copy appears when it is complete.
//!
//! ```sh
//! cargo run --release -p real-work --bin convert_missing -- texts capitals
//! ```

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;
use futureproof::prelude::*;
use tempfile::NamedTempFile;
use walkdir::{DirEntry, WalkDir};

/// Keeps upper-case copies of all `.txt` files below a directory.
#[derive(Parser)]
struct Args {
    source: PathBuf,
    target: PathBuf,
}

/// Tells whether there was something to do.
fn convert(text: &Path, copy: &Path) -> anyhow::Result<bool> {
    let metadata = fs::metadata(text)?;
    let changed = metadata.modified()?;
    let copied = fs::metadata(copy).ok().filter(fs::Metadata::is_file);
    if copied.is_some_and(|it| it.modified().is_ok_and(|copied| copied >= changed)) {
        return Ok(false);
    }
    let capitals = fs::read_to_string(text)?.to_uppercase();
    let directory = copy.parent().context("no directory")?;
    fs::create_dir_all(directory)?;
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(capitals.as_bytes())?;
    file.as_file().set_permissions(metadata.permissions())?;
    // As of before the text was read: if it has changed since then, the copy is older.
    file.as_file().set_modified(changed)?;
    file.as_file().sync_all()?;
    file.persist(copy)?;
    Ok(true)
}

fn is_text(entry: &DirEntry) -> bool {
    let extension = entry.path().extension();
    entry.file_type().is_file() && extension.is_some_and(|it| it.eq_ignore_ascii_case("txt"))
}

fn main() -> anyhow::Result<ExitCode> {
    real_work::log_to_stderr();
    let Args { source, target } = Args::parse();
    let real = |path: &Path| {
        path.canonicalize()
            .with_context(|| path.display().to_string())
    };
    let source = real(&source)?;
    ensure!(source.is_dir(), "{} is no directory", source.display());
    fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
    let target = real(&target)?;
    ensure!(
        !source.starts_with(&target) && !target.starts_with(&source),
        "one directory is in the other"
    );
    // What cannot be listed is a task as well, and fails.
    let files = WalkDir::new(&source)
        .into_iter()
        .filter(|entry| entry.as_ref().map_or(true, is_text));
    let run = files.futureproof(Log).name("convert");
    let mut run = run
        .map_tasks_owned(move |entry: walkdir::Result<DirEntry>| {
            let text = entry?.into_path();
            let copy = target.join(text.strip_prefix(&source)?);
            convert(&text, &copy).with_context(|| text.display().to_string())
        })
        .describe(real_work::describe);
    let (mut converted, mut up_to_date, mut failed) = (0, 0, 0);
    for task in run.by_ref() {
        match task {
            Ok(task) if task.output => converted += 1,
            Ok(_) => up_to_date += 1,
            Err(_) => failed += 1, // the policy has logged it
        }
    }
    println!("{converted} converted, {up_to_date} up to date, {failed} failed");
    Ok(real_work::status(failed, run.ending()))
}
