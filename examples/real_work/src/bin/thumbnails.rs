//! Makes small copies of all images below a directory; what is damaged is reported, and costs nothing else.
//!
//! ```sh
//! cargo run --release -p real-work --bin thumbnails -- photos small
//! cargo run --release -p real-work --bin thumbnails -- --make 100 photos small    # draws photos first
//! cargo run --release -p real-work --bin thumbnails -- --isolate photos small     # in child processes
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use futureproof::prelude::*;
use futureproof::process::{self, isolate};
use image::{ImageReader, Rgb, RgbImage};
use tempfile::NamedTempFile;
use walkdir::WalkDir;

/// Makes small copies of all images below a directory.
#[derive(Parser)]
struct Args {
    photos: PathBuf,
    small: PathBuf,
    /// The longest side, in pixels
    #[arg(long, default_value_t = 128)]
    size: u32,
    /// Work in child processes: an image that hangs, crashes or eats memory costs one task
    #[arg(long)]
    isolate: bool,
    /// First draw so many images
    #[arg(long, default_value_t = 0)]
    make: u32,
}

fn draw(photos: &Path, n: u32) -> image::ImageResult<()> {
    let kind = ["png", "jpg"][n as usize % 2];
    let path = photos.join(format!("{n:04}.{kind}"));
    let (width, height) = (300 + n * 37 % 400, 200 + n * 53 % 400);
    let image = RgbImage::from_fn(width, height, |x, y| {
        Rgb([
            (x * 255 / width) as u8,
            (y * 255 / height) as u8,
            (n * 40) as u8,
        ])
    });
    image.save(path)
}

/// Gives the size of the copy. It appears when it is complete, or not at all.
fn shrink(photo: &Path, small: &Path, size: u32) -> anyhow::Result<(u32, u32)> {
    let format = ImageReader::open(photo)?.with_guessed_format()?;
    let thumbnail = format.decode()?.thumbnail(size, size);
    let directory = small.parent().context("no directory")?;
    fs::create_dir_all(directory)?;
    let mut file = NamedTempFile::new_in(directory)?;
    let format = image::ImageFormat::from_path(small)?;
    thumbnail.write_to(&mut file, format)?;
    file.persist(small)?;
    Ok((thumbnail.width(), thumbnail.height()))
}

/// A function that may be one of two.
type Shrink = Box<dyn Fn(&PathBuf) -> Result<(u32, u32), String> + Send + Sync>;

fn main() -> anyhow::Result<ExitCode> {
    real_work::log_to_stderr();
    let args = Args::parse();
    let (from, to, size) = (args.photos.clone(), args.small, args.size);
    let shrink = move |photo: &PathBuf| {
        let small = to.join(
            photo
                .strip_prefix(&from)
                .map_err(|error| error.to_string())?,
        );
        // As text, so that it can travel.
        let shrunk = shrink(photo, &small, size);
        shrunk.map_err(|error| format!("{}: {error:#}", photo.display()))
    };
    let shrink: Shrink = if args.isolate {
        // In a child process this does not return, so it comes before the work.
        let isolated = isolate("shrink", shrink)
            .timeout(Duration::from_secs(10))
            .memory_limit(256 << 20);
        let isolated = isolated.start()?.into_fn();
        Box::new(move |photo| {
            isolated(photo).map_err(|error| match error {
                process::Error::Task(reason) => reason,
                other => format!("{}: {other}", photo.display()),
            })
        })
    } else {
        Box::new(shrink)
    };

    if args.make > 0 {
        fs::create_dir_all(&args.photos)?;
        let photos = args.photos.clone();
        let run = (0..args.make).futureproof(Raise).name("draw");
        for task in run.map_tasks(move |n| draw(&photos, *n)) {
            task?;
        }
    }
    let files = WalkDir::new(&args.photos)
        .into_iter()
        .filter_map(Result::ok);
    let photos = files.map(walkdir::DirEntry::into_path).filter(|path| {
        let extension = path.extension().map(|it| it.to_ascii_lowercase());
        extension.is_some_and(|it| it == "png" || it == "jpg" || it == "jpeg")
    });
    let run = photos.futureproof(Log).name("shrink").map_tasks(shrink);
    let mut run = run.describe(|failure| match failure.error() {
        Some(reason) => reason.clone(),
        None => format!("{}: the task panicked", failure.input().display()),
    });
    let (mut done, mut failed) = (0, 0);
    for task in run.by_ref() {
        match task {
            Ok(_) => done += 1,
            Err(_) => failed += 1, // the policy has logged it
        }
    }
    println!("{done} thumbnails; {failed} images could not be read");
    Ok(real_work::status(failed, run.ending()))
}
