//! Jobs of different kinds in one run: closures that can be called once, each with what it needs.
//!
//! ```sh
//! cargo run --release --example closures
//! ```

use std::env::temp_dir;
use std::fs::{self, File};
use std::io::{Read, Write};

use futureproof::prelude::*;

/// A name for the printed line, and what to do.
type Job = (
    &'static str,
    Box<dyn FnOnce() -> anyhow::Result<u64> + Send>,
);

fn main() -> anyhow::Result<()> {
    let path = temp_dir().join(format!("closures-{}.txt", std::process::id()));
    fs::write(&path, "to be or not to be")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let (mut file, copy) = (File::open(&path)?, path.with_extension("copy"));
    let mut out = File::create(&copy)?;
    let words = vec!["a".to_owned(), "b".to_owned()];

    let jobs: Vec<Job> = vec![
        // It reads the file to its end, and closes it.
        (
            "bytes in a file",
            Box::new(move || Ok(file.read_to_end(&mut Vec::new())? as u64)),
        ),
        (
            "bytes written",
            Box::new(move || Ok(out.write(b"that is the question")? as u64)),
        ),
        // It gives its words away.
        (
            "a message",
            Box::new(move || Ok(sender.send(words).map(|()| 1)?)),
        ),
        ("a sum", Box::new(|| Ok((1..=1_000).sum()))),
        ("a failure", Box::new(|| Ok("seven".parse()?))),
    ];

    let names: Vec<&str> = jobs.iter().map(|(name, _)| *name).collect();
    let run = jobs.into_iter().futureproof(Ignore).ordered();
    for (name, task) in names.iter().zip(run.map_tasks_owned(|(_, job): Job| job())) {
        match task {
            Ok(task) => println!("{name}: {}", task.output),
            Err(error) => println!("{name}: {}", error.cause()),
        }
    }

    assert_eq!(receiver.recv()?, ["a", "b"]);
    assert_eq!(fs::read_to_string(&copy)?, "that is the question");
    fs::remove_file(path)?;
    fs::remove_file(copy)?;
    Ok(())
}
