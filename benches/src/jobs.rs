//! Jobs that are not all of one length.

use std::fmt;
use std::thread;
use std::time::Duration;

use crate::work::steps;

/// Where the long tasks of an uneven job stand.
#[derive(Clone, Copy)]
pub enum Order {
    Ascending,
    Descending,
    Random,
}

impl Order {
    pub const ALL: [Self; 3] = [Self::Ascending, Self::Descending, Self::Random];
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ascending => "ascending",
            Self::Descending => "descending",
            Self::Random => "random",
        })
    }
}

/// `items` tasks of `count` steps, of which one in a hundred is a hundred times longer.
pub fn uneven(items: u64, order: Order, count: u64) -> impl crate::work::Work {
    let is_long = move |item| match order {
        Order::Ascending => item >= items - items / 100,
        Order::Descending => item < items / 100,
        Order::Random => steps(item + 1, 3).is_multiple_of(100),
    };
    move |item| steps(item, if is_long(item) { 100 * count } else { count })
}

pub const SLEEPS: u64 = 200;

/// How long the task sleeps: 1 to 5 ms.
pub fn sleep_of(item: u64) -> Duration {
    Duration::from_micros(1_000 + steps(item + 1, 3) % 4_001)
}

/// A task that waits, as for a disk or a network.
pub fn sleep(item: u64) -> u64 {
    thread::sleep(sleep_of(item));
    item
}

/// How long `SLEEPS` tasks take on `threads` threads that lose no time: each takes the next task as soon
/// as it is free.
pub fn greedy_sleeps(threads: usize) -> Duration {
    let mut free_at = vec![Duration::ZERO; threads];
    for item in 0..SLEEPS {
        let first = free_at.iter_mut().min().expect("there are threads");
        *first += sleep_of(item);
    }
    free_at.into_iter().max().expect("there are threads")
}

/// Where the slow tasks of a mixed job stand.
#[derive(Clone, Copy)]
pub enum Mix {
    CheapThenSlow,
    SlowAmongCheap,
}

impl Mix {
    pub const ALL: [Self; 2] = [Self::CheapThenSlow, Self::SlowAmongCheap];
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CheapThenSlow => "cheap, then slow",
            Self::SlowAmongCheap => "slow among cheap",
        })
    }
}

/// How many tasks of a mixed job cost nothing, how many are slow, and for how long these wait.
pub const CHEAP: u64 = 10_000;
pub const SLOW: u64 = 64;
pub const SLOW_SLEEP: Duration = Duration::from_millis(5);

/// A job that skips what is there: most tasks return at once, some wait for a disk or a network.
pub fn mixed(mix: Mix) -> impl crate::work::Work {
    const EVERY: u64 = (CHEAP + SLOW) / SLOW;
    move |item| {
        let is_slow = match mix {
            Mix::CheapThenSlow => item >= CHEAP,
            Mix::SlowAmongCheap => item % EVERY == 0 && item < SLOW * EVERY,
        };
        if is_slow {
            thread::sleep(SLOW_SLEEP);
        }
        item
    }
}

/// How long a mixed job takes on `threads` threads that lose no time.
pub fn ideal_of_mixed(threads: usize) -> Duration {
    SLOW_SLEEP * SLOW.div_ceil(threads as u64) as u32
}
