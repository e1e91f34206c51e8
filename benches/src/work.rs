//! The work of a task: dependent arithmetic that takes a given time.

use std::hint::black_box;
use std::time::Instant;

/// What a contender runs on each item.
pub trait Work: Fn(u64) -> u64 + Copy + Send + Sync + 'static {}
impl<F: Fn(u64) -> u64 + Copy + Send + Sync + 'static> Work for F {}

/// So many steps of a generator of random numbers.
pub fn steps(item: u64, steps: u64) -> u64 {
    let mut x = item | 1;
    for _ in 0..steps {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    if steps == 0 { item } else { x }
}

/// The number of steps with which a plain loop takes about `nanos` an item.
pub fn steps_for(nanos: u64) -> u64 {
    if nanos == 0 {
        return 0;
    }
    // By trial, as short tasks overlap in the processor and long ones do not.
    let mut count = nanos.max(1);
    for _ in 0..4 {
        let items = (20_000_000 / nanos).clamp(20, 2_000_000);
        let mut times: Vec<f64> = (0..5)
            .map(|_| {
                let start = Instant::now();
                black_box(plain_loop(items, move |item| steps(item, count)));
                start.elapsed().as_nanos() as f64 / items as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        count = ((count as f64 * nanos as f64 / times[2]).round() as u64).max(1);
    }
    count
}

/// What all others are compared to.
pub fn plain_loop(items: u64, work: impl Work) -> u64 {
    (0..items).fold(0, |sum, item| sum.wrapping_add(work(black_box(item))))
}
