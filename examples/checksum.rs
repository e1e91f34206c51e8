//! Prints the SHA-256 checksum of every regular file below a directory, as `sha256sum` does; the
//! files are found while others are read, and what cannot be read is dealt with as the policy says.
//!
//! ```sh
//! cargo run --release --example checksum                    # the current directory
//! cargo run --release --example checksum -- /usr/share --policy log --threads 8
//! cargo run --release --example checksum -- src | sha256sum -c
//! ```

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use futureproof::{Ending, prelude::*};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// Prints the SHA-256 checksum of every regular file below a directory.
#[derive(Parser)]
struct Args {
    /// Where to look for files
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// What a failure does: raise, log, ignore or tolerate:N
    #[arg(long, default_value_t)]
    policy: ErrorPolicy,
    /// How many threads read files; 0: one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// A file to read, or the reason why the walk could not look somewhere.
type Found = Result<PathBuf, walkdir::Error>;

fn hash(buffer: &mut [u8], found: &Found) -> io::Result<Vec<u8>> {
    let path = found.as_ref().map_err(|error| match error.io_error() {
        Some(cause) => io::Error::new(cause.kind(), cause.to_string()),
        None => io::Error::other(error.to_string()),
    })?;
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(hasher.finalize().to_vec()),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn describe(failure: &TaskError<Found, io::Error>) -> String {
    let path = match failure.input() {
        Ok(path) => path,
        Err(error) => error.path().unwrap_or(Path::new("?")),
    };
    match failure.error() {
        Some(error) => format!("{}: {error}", path.display()),
        None => path.display().to_string(),
    }
}

/// Writes `HASH  PATH`; a path that would break the line is escaped, and the line marked with `\`.
fn print(out: &mut impl Write, hash: &[u8], path: &Path) -> io::Result<()> {
    let path = path.as_os_str().as_encoded_bytes();
    if path.iter().any(|byte| b"\\\n\r".contains(byte)) {
        out.write_all(b"\\")?;
    }
    for byte in hash {
        write!(out, "{byte:02x}")?;
    }
    out.write_all(b"  ")?;
    for &byte in path {
        match byte {
            b'\\' => out.write_all(b"\\\\")?,
            b'\n' => out.write_all(b"\\n")?,
            b'\r' => out.write_all(b"\\r")?,
            _ => out.write_all(&[byte])?,
        }
    }
    out.write_all(b"\n")
}

/// Whether all went well.
fn run(args: Args) -> io::Result<bool> {
    let files = WalkDir::new(args.dir)
        .into_iter()
        .filter(|entry| {
            entry
                .as_ref()
                .map_or(true, |entry| entry.file_type().is_file())
        })
        .map(|entry| entry.map(walkdir::DirEntry::into_path));
    let mut run = files
        .futureproof(args.policy)
        .num_threads(args.threads)
        .name("checksum")
        .map_tasks(with_state(
            || vec![0; 64 << 10],
            |buffer: &mut Vec<u8>, found| hash(buffer, found),
        ))
        .describe(describe);

    let mut out = BufWriter::new(io::stdout().lock());
    let mut last_failure = None;
    for task in run.by_ref() {
        match task {
            Ok(Task {
                input: Ok(path),
                output,
                ..
            }) => print(&mut out, &output, &path)?,
            Ok(_) => {}
            Err(failure) => last_failure = Some(failure),
        }
    }
    out.flush()?;
    match last_failure {
        Some(failure) if run.ending() == Some(Ending::Failed) => {
            eprintln!("error: {failure}: {}", describe(&failure));
            Ok(false)
        }
        failure => Ok(failure.is_none() || args.policy == Ignore),
    }
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever read our output has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: standard output: {error}");
            ExitCode::FAILURE
        }
    }
}
