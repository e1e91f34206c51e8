//! Buffers that are changed in place: many threads brighten the rows of an image, and no row is copied. The example
//! writes the image itself, as a PGM file, before and after.
//!
//! ```sh
//! cargo run --release --example brighten -- before.pgm after.pgm
//! ```

use std::env::args;
use std::fs;

use anyhow::Context;
use futureproof::prelude::*;

const WIDTH: usize = 640;
const HEIGHT: usize = 480;
/// What is added to each pixel.
const MORE: u8 = 60;

fn brighten(row: &mut [u8]) -> Result<(), String> {
    row.iter_mut()
        .for_each(|pixel| *pixel = pixel.saturating_add(MORE));
    Ok(())
}

fn write(path: &str, rows: &[Vec<u8>]) -> std::io::Result<()> {
    let header = format!("P5\n{WIDTH} {HEIGHT}\n255\n").into_bytes();
    fs::write(path, [header, rows.concat()].concat())
}

fn main() -> anyhow::Result<()> {
    let mut paths = args().skip(1);
    let (before, after) = paths.next().zip(paths.next()).context("name two files")?;

    let pixel = |x: usize, y: usize| (x * y / 7 % 256) as u8;
    let row = |y: usize| (0..WIDTH).map(|x| pixel(x, y)).collect();
    let rows: Vec<Vec<u8>> = (0..HEIGHT).map(row).collect();
    write(&before, &rows)?;

    // Each row is lent to be changed, and comes back as the task's input.
    let run = rows.into_iter().futureproof(Raise).ordered();
    let brightened = run
        .map_tasks_mut(|row: &mut Vec<u8>| brighten(row))
        .checked();
    let rows = brightened.map(|task| Ok(task?.input));
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    write(&after, &rows)?;
    println!("{} rows were brightened by {MORE}", rows.len());
    Ok(())
}
