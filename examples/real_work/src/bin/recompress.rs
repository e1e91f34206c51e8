//! Turns all gzip files below a directory into zstd, in constant memory; damaged ones are left as they are.
//!
//! ```sh
//! cargo run --release -p real-work --bin recompress -- /var/log/old --level 9
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use flate2::read::MultiGzDecoder;
use futureproof::prelude::*;
use tempfile::NamedTempFile;
use walkdir::WalkDir;

/// Turns all gzip files below a directory into zstd.
#[derive(Parser)]
struct Args {
    dir: PathBuf,
    /// From 1, quick, to 22, small
    #[arg(long, default_value_t = 3)]
    level: i32,
    /// Take the gzip file away once its successor is complete
    #[arg(long)]
    remove: bool,
}

/// Gives the bytes before and after.
fn recompress(path: &Path, level: i32, remove: bool) -> anyhow::Result<(u64, u64)> {
    let source = File::open(path)?;
    let before = source.metadata()?.len();
    let target = path.with_extension("zst");
    // It gets its name when it is complete: a damaged file, or a full disk, leaves nothing half done.
    let file = NamedTempFile::new_in(path.parent().context("no directory")?)?;
    let mut encoder = zstd::Encoder::new(&file, level)?;
    encoder.include_checksum(true)?;
    io::copy(&mut MultiGzDecoder::new(source), &mut encoder)?;
    encoder.finish()?;
    file.as_file().sync_all()?;
    let after = file.as_file().metadata()?.len();
    file.persist_noclobber(&target)
        .with_context(|| target.display().to_string())?;
    if remove {
        std::fs::remove_file(path)?;
    }
    Ok((before, after))
}

fn main() -> ExitCode {
    real_work::log_to_stderr();
    let Args { dir, level, remove } = Args::parse();
    // Listed before any is written.
    let files = WalkDir::new(dir)
        .into_iter()
        .filter_map(Result::ok)
        .map(walkdir::DirEntry::into_path);
    let files: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|it| it == "gz"))
        .collect();
    let run = files.into_iter().futureproof(Log).name("recompress");
    let mut run = run
        .map_tasks(move |path: &PathBuf| {
            recompress(path, level, remove).with_context(|| path.display().to_string())
        })
        .describe(real_work::describe);
    let (mut done, mut before, mut after, mut failed) = (0, 0, 0, 0);
    for task in run.by_ref() {
        match task {
            Ok(task) => {
                (done, before, after) = (done + 1, before + task.output.0, after + task.output.1)
            }
            Err(_) => failed += 1, // the policy has logged it
        }
    }
    println!("{done} files, {before} bytes before, {after} after; {failed} failed");
    real_work::status(failed, run.ending())
}
