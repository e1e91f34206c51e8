//! Counts the words of all files below a folder, with a map for each worker, and once more with rayon's `fold`, which
//! has the same idea: no map is shared, and all are merged at the end. Files that are no text are told, and gone past.
//!
//! ```sh
//! cargo run --release --example word_frequencies -- src
//! ```

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use futureproof::PerWorker;
use futureproof::prelude::*;
use rayon::prelude::*;
use walkdir::WalkDir;

type Counts = HashMap<String, u64>;

fn count_words(counts: &mut Counts, file: &Path) -> std::io::Result<()> {
    let text = fs::read_to_string(file)?;
    for word in text
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    Ok(())
}

fn merge(mut all: Counts, part: Counts) -> Counts {
    for (word, count) in part {
        *all.entry(word).or_default() += count;
    }
    all
}

fn files(root: &str) -> impl Iterator<Item = PathBuf> {
    let entries = WalkDir::new(root).into_iter().flatten();
    entries
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| entry.into_path())
}

fn main() {
    let root = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let counts = PerWorker::new(Counts::new);
    let count = counts.with(|counts, file: &PathBuf| count_words(counts, file));
    let (mut read, mut failed) = (0, 0);
    for task in files(&root).futureproof(Ignore).map_tasks(count) {
        match task {
            Ok(_) => read += 1,
            Err(error) => {
                failed += 1;
                eprintln!("{}: {}", error.input().display(), error.cause());
            }
        }
    }
    let all = counts.into_vec().into_iter().fold(Counts::new(), merge);

    let by_rayon = files(&root)
        .par_bridge()
        .fold(Counts::new, |mut counts, file| {
            let _ = count_words(&mut counts, &file);
            counts
        });
    assert_eq!(all, by_rayon.reduce(Counts::new, merge));

    let mut sorted: Vec<_> = all.iter().collect();
    sorted.sort_by_key(|(word, count)| (std::cmp::Reverse(**count), *word));
    for (word, count) in sorted.iter().take(5) {
        println!("{count:>8} {word}");
    }
    let total: u64 = all.values().sum();
    println!(
        "{total} words, {} different ones, in {read} files; {failed} are no text",
        all.len()
    );
}
