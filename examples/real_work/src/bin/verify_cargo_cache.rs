//! Checks every archive in the local cargo cache that a `Cargo.lock` names against the checksum there.
//!
//! ```sh
//! cargo run --release -p real-work --bin verify_cargo_cache                     # this workspace's lock file
//! cargo run --release -p real-work --bin verify_cargo_cache -- ../other/Cargo.lock --policy raise
//! ```

use std::collections::HashMap;
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use futureproof::prelude::*;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// Checks the archives of the local cargo cache against a lock file.
#[derive(Parser)]
struct Args {
    #[arg(default_value = "Cargo.lock")]
    lock: PathBuf,
    /// Where cargo keeps archives, if not in `$CARGO_HOME/registry/cache`
    #[arg(long)]
    cache: Option<PathBuf>,
    /// What a failure does: raise, log, ignore or tolerate:N
    #[arg(long, default_value_t = Log)]
    policy: ErrorPolicy,
}

/// The archive's file name, and the checksum that it should have.
#[derive(Debug)]
struct Locked {
    archive: String,
    checksum: String,
}

/// What comes from a registry; the packages of a workspace have no checksum.
fn locked(lock: &str) -> anyhow::Result<Vec<Locked>> {
    let lock: toml::Table = lock.parse()?;
    let packages = lock
        .get("package")
        .and_then(|it| it.as_array())
        .context("it lists no packages")?;
    let locked = packages.iter().filter_map(|package| {
        let text = |key| package.get(key).and_then(|value| value.as_str());
        let archive = format!("{}-{}.crate", text("name")?, text("version")?);
        Some(Locked {
            archive,
            checksum: text("checksum")?.to_owned(),
        })
    });
    Ok(locked.collect())
}

fn verify(archives: &HashMap<String, PathBuf>, locked: &Locked) -> anyhow::Result<u64> {
    let Some(path) = archives.get(&locked.archive) else {
        bail!("{} is not in the cache", locked.archive)
    };
    // Archives are small: cargo's registry takes 10 MB at most.
    let archive = fs::read(path).with_context(|| path.display().to_string())?;
    let mut hash = String::new();
    for byte in Sha256::digest(&archive) {
        write!(hash, "{byte:02x}")?;
    }
    ensure!(
        hash == locked.checksum,
        "{} is damaged: {hash} instead of {}",
        path.display(),
        locked.checksum
    );
    Ok(archive.len() as u64)
}

fn main() -> anyhow::Result<ExitCode> {
    real_work::log_to_stderr();
    let args = Args::parse();
    let text = fs::read_to_string(&args.lock).with_context(|| args.lock.display().to_string())?;
    let locked = locked(&text).with_context(|| args.lock.display().to_string())?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    let cache = args.cache.or_else(|| Some(home?.join("registry/cache")));
    let cache = cache.context("neither --cache nor a home directory")?;
    // There is a directory for each registry.
    let mut archives = HashMap::new();
    for entry in WalkDir::new(&cache) {
        let entry = entry.with_context(|| format!("no cache at {}", cache.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        archives.insert(name, entry.into_path());
    }

    let run = locked.into_iter().futureproof(args.policy).name("verify");
    let mut run = run
        .map_tasks(move |locked| verify(&archives, locked))
        .describe(real_work::describe);
    let (mut sound, mut bytes, mut failed) = (0, 0, 0);
    for task in run.by_ref() {
        match task {
            Ok(task) => (sound, bytes) = (sound + 1, bytes + task.output),
            Err(failure) => {
                failed += 1;
                // The other policies have logged it, or were told not to.
                if args.policy == Raise {
                    eprintln!("{}", real_work::describe(&failure));
                }
            }
        }
    }
    println!(
        "{sound} archives are sound, {} MB; {failed} are not",
        bytes / 1_000_000
    );
    Ok(real_work::status(failed, run.ending()))
}
