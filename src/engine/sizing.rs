//! How many items the next chunk takes, from what was measured. Pure.
//!
//! It costs about a microsecond to hand a chunk over and back, so many tiny tasks travel together. A
//! slow task, or an item that is slow to pull or to consume, travels alone, so that nothing waits for it.

use std::num::NonZero;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What a chunk should take to run, in nanoseconds. What has finished may wait for the end of its chunk,
/// so it is short.
const CHUNK_TIME: f64 = 100_000.0;
/// How much work should be queued for each worker while the consumer waits, in nanoseconds: more than it takes to wake up.
/// Where the workers have all cores, it has to wait for a time slice.
const QUEUE: RangeInclusive<f64> = 2_000_000.0..=8_000_000.0;
/// Chunks that are queued for each worker, however slow or quick they are.
const DEPTH: RangeInclusive<usize> = 8..=64;
/// What a chunk should take its consumer, in nanoseconds: it costs about a microsecond of the caller's time as well.
const CONSUMER_TIME: f64 = 25_000.0;
/// Tasks that take this long, in nanoseconds, are few: one that runs and two that are queued for each worker. What they make may be
/// large.
const DEAR: f64 = 5_000_000.0;
const FEW: usize = 3;
/// Near the end of a source whose length is known, chunks are smaller; but they take no less than this, in nanoseconds.
const LEAST: f64 = 10_000.0;
/// A chunk is at most so many times as large as the one before it that was measured.
const GROWTH: usize = 8;
/// What pulling a chunk's items may take: so much that what it costs to hand the chunk over is little beside that.
pub(crate) const PULL_TIME: Duration = Duration::from_micros(50);
/// An item that takes this long to pull, in nanoseconds, is submitted by itself: to hand it over costs a twentieth of that at
/// most, and the next pull may wait for this item.
const SLOW_PULL: f64 = 12_000.0;
/// A worker takes a lock to begin tasks, which costs more than a tiny one. So it begins as many at a time as take this
/// long, in nanoseconds.
const GRAIN_TIME: f64 = 2_000.0;
/// But no more than this, as tasks that were begun can wait for a neighbour.
const MAX_BEGUN: usize = 128;
/// A chunk's inputs and outputs should stay in a core's cache.
const BYTES: usize = 128 << 10;

/// Chooses chunk sizes.
#[derive(Debug)]
pub(crate) struct Sizing {
    /// The user's choice.
    fixed: Option<NonZero<usize>>,
    /// The most that is ever put in one chunk.
    cap: usize,
    /// What the measured runs allow.
    by_run: usize,
    /// What the measured pulls allow.
    by_pull: usize,
    /// What the consumer's time allows.
    by_consumer: usize,
    /// Whether the consumer waits for tasks, rather than they for it.
    is_consumer_quicker: bool,
    /// What an item took to run when that was last measured, in nanoseconds.
    each: f64,
    /// How much work is queued for each worker.
    queue: f64,
}

impl Sizing {
    /// `fixed`: the size that was asked for, 0 if none was. `item_bytes`: what one item needs, in and out.
    pub(crate) fn new(fixed: usize, item_bytes: usize) -> Self {
        let cap = (BYTES / item_bytes.max(1)).clamp(1, 8192);
        Self {
            fixed: NonZero::new(fixed),
            cap,
            by_run: 1,
            by_pull: 1,
            by_consumer: cap,
            is_consumer_quicker: false,
            each: f64::INFINITY,
            queue: *QUEUE.start(),
        }
    }

    /// How many items the next chunk should take. `left`: how many are still to be pulled, if that is known, for `width`
    /// workers.
    pub(crate) fn next_of(&self, left: Option<u64>, width: usize) -> usize {
        let size = self.next();
        let Some(left) = left.filter(|left| *left > 0 && self.fixed.is_none()) else {
            return size;
        };
        // So that all end at the same time, but not so small that handing them over shows.
        let share = left.div_ceil(2 * width as u64);
        let least = (LEAST / self.each) as u64;
        size.min(share.max(least).max(1).try_into().unwrap_or(usize::MAX))
    }

    fn next(&self) -> usize {
        let chosen = || self.by_run.min(self.by_pull).min(self.by_consumer);
        self.fixed.map_or_else(chosen, NonZero::get)
    }

    /// How many items its consumer takes in a moment.
    pub(crate) fn consumed_at_once(&self) -> usize {
        self.by_consumer
    }

    /// Whether an item is had so quickly that pulling a chunk of them delays nothing.
    pub(crate) fn is_source_quick(&self) -> bool {
        self.by_pull > 1
    }

    /// How many items a worker may begin at a time.
    pub(crate) fn grain(&self) -> usize {
        ((GRAIN_TIME / self.each) as usize).clamp(1, MAX_BEGUN)
    }

    /// The most that `next` can become.
    pub(crate) fn max(&self) -> usize {
        self.fixed.map_or(self.cap, NonZero::get)
    }

    /// How many chunks should be in flight for each worker. Large ones are fewer, to stay in the caches.
    pub(crate) fn depth(&self) -> usize {
        // Nothing is known of the first ones.
        if self.each >= DEAR {
            return FEW;
        }
        // More would only take memory, and be cold when its turn comes.
        if !self.is_consumer_quicker {
            return *DEPTH.start();
        }
        let size = self.next();
        let by_time = (self.queue / (size as f64 * self.each)) as usize;
        by_time
            .min(self.window() / size)
            .clamp(*DEPTH.start(), *DEPTH.end())
    }

    /// The most items that should be in flight for each worker.
    pub(crate) fn window(&self) -> usize {
        self.cap.max(self.max()).saturating_mul(*DEPTH.start())
    }

    /// `items` were run in `time`. Grows by steps. Falls at once where they took far too long, else
    /// little by little: a worker that was interrupted has not become slow.
    pub(crate) fn record_run(&mut self, items: usize, time: Duration) {
        self.each = nanos(time) / items as f64;
        let grown = self.by_run.max(items) * GROWTH;
        let fits = Self::fit(CHUNK_TIME, items, time).min(grown);
        let is_overrun = nanos(time) > 2.0 * CHUNK_TIME;
        self.by_run = if is_overrun || fits > self.by_run {
            fits
        } else {
            self.by_run - (self.by_run - fits) / 8
        };
        self.by_run = self.by_run.clamp(1, self.cap);
    }

    /// All that was queued has been run while the consumer slept: it is to be more.
    pub(crate) fn record_overslept(&mut self) {
        self.queue = (2.0 * self.queue).min(*QUEUE.end());
    }

    /// The consumer took `time` for `items`. Grows by steps, falls at once: the next chunk shows whether that was a hiccup.
    pub(crate) fn record_consumed(&mut self, items: usize, time: Duration) {
        self.by_consumer = Self::fit(CONSUMER_TIME, items, time)
            .min(self.by_consumer * GROWTH)
            .clamp(1, self.cap);
    }

    /// Whether the consumer waits for tasks, rather than they for it.
    pub(crate) fn set_consumer_quicker(&mut self, is_consumer_quicker: bool) {
        self.is_consumer_quicker = is_consumer_quicker;
    }

    /// `items` were pulled in `time`. Grows by steps, falls at once.
    pub(crate) fn record_pull(&mut self, items: usize, time: Duration) {
        let each = nanos(time) / items as f64;
        self.by_pull = if each >= SLOW_PULL {
            1
        } else {
            Self::fit(PULL_TIME.as_nanos() as f64, items, time)
                .min(self.by_pull * GROWTH)
                .clamp(1, self.cap)
        };
    }

    /// How many items fit into `slice` nanoseconds if `items` took `time`.
    fn fit(slice: f64, items: usize, time: Duration) -> usize {
        // A float divided by zero is infinite, and casts saturate.
        (slice * items as f64 / nanos(time)) as usize
    }
}

/// Quicker than by way of the 128 bits of `as_nanos`.
fn nanos(time: Duration) -> f64 {
    1e9 * time.as_secs() as f64 + f64::from(time.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// A sizing for which pulls are no matter.
    fn quick_source() -> Sizing {
        let mut sizing = Sizing::new(0, 16);
        (0..20).for_each(|_| {
            sizing.record_pull(sizing.by_pull, Duration::from_nanos(sizing.by_pull as u64))
        });
        sizing
    }

    #[test]
    fn starts_with_one_item() {
        assert_eq!(Sizing::new(0, 16).next(), 1);
    }

    #[test]
    fn grows_by_steps_to_the_cap() {
        let mut sizing = quick_source();
        let mut last = sizing.next();
        for _ in 0..20 {
            sizing.record_run(last, Duration::ZERO);
            assert!(sizing.next() <= GROWTH * last);
            last = sizing.next();
        }
        assert_eq!(last, sizing.max());
    }

    #[test]
    fn slow_tasks_travel_alone_at_once() {
        let mut sizing = quick_source();
        (0..20).for_each(|_| sizing.record_run(sizing.next(), Duration::from_nanos(1)));
        assert!(sizing.next() > 1_000);
        sizing.record_run(sizing.next(), 10_000_000 * US);
        assert_eq!(sizing.next(), 1);
    }

    #[test]
    fn a_chunk_fills_its_slice() {
        let mut sizing = quick_source();
        (0..20).for_each(|_| sizing.record_run(10, 10 * US));
        assert_eq!(sizing.next(), 100);
    }

    #[test]
    fn slow_pulls_come_one_at_a_time() {
        let mut sizing = quick_source();
        (0..20).for_each(|_| sizing.record_run(sizing.next(), Duration::from_nanos(1)));
        assert!(sizing.is_source_quick());
        sizing.record_pull(100, 100 * US);
        assert_eq!(sizing.next(), 50);
        sizing.record_pull(50, 500 * US);
        assert_eq!(sizing.next(), 5);
        assert!(sizing.is_source_quick());
        sizing.record_pull(5, 60 * US);
        assert_eq!(sizing.next(), 1);
        assert!(!sizing.is_source_quick());
    }

    #[test]
    fn near_the_end_all_workers_have_a_share() {
        let mut sizing = quick_source();
        (0..20).for_each(|_| sizing.record_run(10, 10 * US));
        for (left, size) in [
            (None, 100),
            (Some(1_000_000), 100),
            (Some(200), 50),
            (Some(41), 11),
            (Some(1), 10),
            // It was wrong, or more than the source has.
            (Some(0), 100),
        ] {
            assert_eq!(sizing.next_of(left, 2), size, "{left:?}");
        }
        assert_eq!(sizing.next_of(Some(240), 3), 40);
        assert_eq!(Sizing::new(7, 16).next_of(Some(4), 2), 7);
        assert_eq!(Sizing::new(0, 16).next_of(Some(4), 2), 1);
    }

    #[test]
    fn a_fixed_size_stays() {
        let mut sizing = Sizing::new(7, 1 << 30);
        sizing.record_run(7, 10_000_000 * US);
        sizing.record_pull(7, 10_000_000 * US);
        assert_eq!((sizing.next(), sizing.max()), (7, 7));
    }

    #[test]
    fn a_slow_consumer_has_small_chunks_and_few() {
        let mut sizing = quick_source();
        (0..20).for_each(|_| sizing.record_run(10, 10 * US));
        sizing.set_consumer_quicker(true);
        assert_eq!((sizing.next(), sizing.depth()), (100, 20));
        sizing.set_consumer_quicker(false);
        assert_eq!((sizing.next(), sizing.depth()), (100, 8));
        sizing.record_consumed(100, 1_000 * US);
        assert_eq!(sizing.next(), 2);
        // It was a hiccup.
        let sizes = [(); 4].map(|()| {
            sizing.record_consumed(sizing.next(), US);
            sizing.next()
        });
        assert_eq!(sizes, [16, 100, 100, 100]);
        sizing.record_consumed(1, 1_000 * US);
        assert_eq!(sizing.next(), 1);
    }

    #[test]
    fn two_milliseconds_of_work_are_queued_in_8_to_64_chunks() {
        for (chunk, each, depth) in [
            (1, 10, 64),
            (1, 100, 20),
            (2, 100, 10),
            (1, 1_000, 8),
            (1, 5_000, 3),
        ] {
            let mut sizing = Sizing::new(chunk, 16);
            sizing.record_run(10, 10 * each * US);
            sizing.set_consumer_quicker(true);
            assert_eq!(sizing.depth(), depth, "{chunk} items of {each} µs");
        }
    }

    #[test]
    fn a_consumer_that_oversleeps_has_more_queued() {
        let mut sizing = Sizing::new(1, 16);
        sizing.record_run(1, 200 * US);
        sizing.set_consumer_quicker(true);
        let depths = [(); 4].map(|()| {
            let depth = sizing.depth();
            sizing.record_overslept();
            depth
        });
        assert_eq!(depths, [10, 20, 40, 40]);
    }

    #[test]
    fn large_chunks_are_few() {
        let mut sizing = quick_source();
        (0..20).for_each(|_| sizing.record_run(sizing.next(), Duration::from_nanos(1)));
        assert_eq!((sizing.window(), sizing.depth()), (8 * 8192, 8));
    }

    #[test]
    fn an_interruption_shrinks_little_an_overrun_at_once() {
        let grown = || {
            let mut sizing = quick_source();
            (0..20).for_each(|_| sizing.record_run(1_000, 100 * US));
            sizing
        };
        for (micros, next) in [
            (100, 1_000),
            (160, 1_000 - 375 / 8),
            (200, 1_000 - 500 / 8),
            (250, 400),
        ] {
            let mut sizing = grown();
            sizing.record_run(1_000, micros * US);
            assert_eq!(sizing.next(), next, "{micros} µs");
        }
    }

    #[test]
    fn huge_and_empty_items_are_no_trouble() {
        assert_eq!(Sizing::new(0, usize::MAX).max(), 1);
        assert_eq!(Sizing::new(0, 0).max(), 8192);
    }

    #[test]
    fn two_microseconds_of_tasks_are_begun_together() {
        for (each, grain) in [(1, 128), (100, 20), (1_000, 2), (2_000, 1), (5_000_000, 1)] {
            let mut sizing = quick_source();
            assert_eq!(sizing.grain(), 1);
            sizing.record_run(1_000, 1_000 * Duration::from_nanos(each));
            assert_eq!(sizing.grain(), grain, "{each} ns");
        }
    }
}
