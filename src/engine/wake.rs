//! When the caller and the workers of a run wake each other, and when a worker hands over early.
//!
//! `README.md` tells for each place where a thread blocks why no wake-up is lost. Nearly all loads and stores are relaxed:
//! they only decide how early something is told. What must not be missed is ordered by the locks of the queues.

use std::cell::Cell;
use std::time::Duration;

use crate::util::seeded_bugs;
use crate::util::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::util::sync::{hint, now, thread_local};

/// What the caller and the workers tell each other while the run goes on.
#[derive(Debug)]
pub(crate) struct Wake {
    /// The consumer waits, so results must not be held back.
    flush_requested: AtomicBool,
    /// Chunks that were submitted, and those that have come back.
    submitted: AtomicU64,
    completed: AtomicU64,
    /// The count of completed chunks at which a consumer that waits is woken.
    awaited: AtomicU64,
    /// Whether nothing more will be submitted, and the consumer needs nothing before the last chunk.
    awaits_last: AtomicBool,
    /// One more than the chunks that were submitted when a worker last found nothing to do.
    starved_at: AtomicU64,
}

/// How long a worker without work spins before it says so.
const SPIN: Duration = Duration::from_micros(20);

thread_local! {
    /// Whether this thread gives a pool a job at this moment.
    static IS_SPAWNING: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread gives jobs to a pool: what it runs meanwhile, it runs inline.
pub(crate) struct Spawning {
    before: bool,
}

impl Spawning {
    pub(crate) fn new() -> Self {
        let before = IS_SPAWNING.with(|it| it.replace(true));
        Self { before }
    }
}

impl Drop for Spawning {
    fn drop(&mut self) {
        IS_SPAWNING.with(|it| it.set(self.before));
    }
}

impl Wake {
    pub(crate) fn new() -> Self {
        Self {
            flush_requested: AtomicBool::new(false),
            submitted: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            awaited: AtomicU64::new(u64::MAX),
            awaits_last: AtomicBool::new(false),
            starved_at: AtomicU64::new(0),
        }
    }

    /// Whether results are to be handed over as soon as they are there.
    pub(crate) fn is_flush_requested(&self) -> bool {
        self.flush_requested.load(Ordering::Relaxed)
    }

    pub(crate) fn request_flush(&self, requested: bool) {
        self.flush_requested.store(requested, Ordering::Relaxed);
    }

    /// A chunk is about to be submitted.
    pub(crate) fn submit(&self) {
        self.submitted.fetch_add(1, Ordering::Relaxed);
    }

    /// How many chunks have been submitted.
    pub(crate) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// A chunk has come back. Returns whether to wake the consumer: if it waits for this one, or if fewer chunks are
    /// left than `width` workers can be busy with, and there may be more. Whoever has completed this one may go on with
    /// another for long.
    pub(crate) fn complete(&self, width: usize) -> bool {
        // As `is_last_awaited` has it.
        let completed = self.completed.fetch_add(1, Ordering::AcqRel) + 1;
        let left = self.submitted().saturating_sub(completed);
        let awaits_last = self.awaits_last.load(Ordering::Relaxed);
        let enough = if awaits_last { 1 } else { width as u64 };
        completed >= self.awaited.load(Ordering::Relaxed) || left < enough
    }

    /// Whether the consumer needs nothing before the last chunk, and that has not come back. Who completes it will wake the
    /// consumer.
    pub(crate) fn is_last_awaited(&self) -> bool {
        if !self.awaits_last.load(Ordering::Relaxed) {
            return false;
        }
        // Written, so that it is the latest. Of who completes the last chunk and who has sent a part of it, the later one
        // wakes the consumer, and has seen what the other one did before.
        let completed = self.completed.fetch_add(0, Ordering::AcqRel);
        self.submitted() > completed
    }

    /// How many chunks have not come back.
    pub(crate) fn outstanding(&self) -> usize {
        let completed = self.completed.load(Ordering::Relaxed);
        self.submitted().saturating_sub(completed) as usize
    }

    /// The consumer is about to wait, but not longer than until half of what is outstanding has come back; or all, if it is
    /// `for_last`.
    pub(crate) fn begin_wait(&self, for_last: bool) {
        let half = self.outstanding() as u64 / 2;
        let awaited = self.submitted() - if for_last { 0 } else { half };
        self.awaited.store(awaited, Ordering::Relaxed);
        self.awaits_last.store(for_last, Ordering::Relaxed);
    }

    /// Whether the consumer waits, or is about to.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed) != u64::MAX
    }

    /// The consumer is awake.
    pub(crate) fn end_wait(&self) {
        self.awaited.store(u64::MAX, Ordering::Relaxed);
    }

    /// A worker without work spins for a moment, and says so if none comes. `allows_any`: whether anything may still start.
    ///
    /// A consumer that fills a chunk does not read the clock after each pull: that would cost more than a
    /// tiny task. But it must notice when a pull takes long, or what it has pulled would wait for more
    /// slow ones. Then the workers run out of work, and they have the time to notice.
    pub(crate) fn spin_before_idle(&self, allows_any: impl Fn() -> bool) {
        // Where jobs run inline, it would be the caller who waits here for itself.
        if IS_SPAWNING.with(Cell::get) {
            return;
        }
        let submitted = self.submitted();
        // Not by yielding: on a busy machine, who yields may be away for a whole time slice.
        let start = now();
        while self.submitted() == submitted && allows_any() {
            // A consumer that waits has been woken, and must know at once when it goes on.
            if self.is_awaited() || now() - start >= SPIN {
                break;
            }
            hint::spin_loop();
        }
        self.starve(submitted);
    }

    /// A worker has found nothing to do when so many chunks had been submitted. The latest counts, whoever is late to say so.
    fn starve(&self, submitted: u64) {
        let at = submitted + 1;
        if seeded_bugs::has("late signal") {
            self.starved_at.store(at, Ordering::Relaxed);
        }
        self.starved_at.fetch_max(at, Ordering::Relaxed);
    }

    /// Whether a worker has found nothing to do since so many chunks were submitted.
    #[inline]
    pub(crate) fn is_starved(&self, submitted: u64) -> bool {
        self.starved_at.load(Ordering::Relaxed) > submitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_woken_at_half_of_what_is_outstanding() {
        let wake = Wake::new();
        (0..10).for_each(|_| wake.submit());
        wake.begin_wait(false);
        let wakes: Vec<bool> = (0..6).map(|_| wake.complete(1)).collect();
        assert_eq!(wakes, [false, false, false, false, true, true]);
        wake.end_wait();
        assert!(!wake.complete(1));
        // Nobody waits, but fewer are left than there are workers.
        assert!(!wake.complete(2));
        assert!(wake.complete(2));
    }

    #[test]
    fn a_consumer_that_needs_nothing_else_is_woken_by_the_last() {
        let wake = Wake::new();
        (0..4).for_each(|_| wake.submit());
        assert!(!wake.is_last_awaited());
        wake.begin_wait(true);
        let wakes: Vec<(bool, bool)> = (0..4)
            .map(|_| (wake.is_last_awaited(), wake.complete(4)))
            .collect();
        let before_the_last = (true, false);
        assert_eq!(wakes[..3], [before_the_last; 3]);
        assert_eq!(wakes[3], (true, true));
        // Whoever has sent a part of it after that wakes as well.
        assert!(!wake.is_last_awaited());
    }

    #[test]
    fn a_worker_that_waits_in_vain_says_so() {
        let wake = Wake::new();
        wake.submit();
        assert!(!wake.is_starved(1));
        wake.spin_before_idle(|| true);
        assert!(wake.is_starved(1));
        wake.submit();
        assert!(!wake.is_starved(2));
    }

    #[test]
    fn whoever_is_late_to_say_so_hides_nobody() {
        let wake = Wake::new();
        (0..3).for_each(|_| wake.submit());
        wake.spin_before_idle(|| true);
        // Said late: it was seen before the last two were submitted.
        wake.starve(1);
        assert!(wake.is_starved(3));
    }

    #[test]
    fn a_consumer_that_waits_is_told_as_well() {
        let wake = Wake::new();
        wake.begin_wait(false);
        assert!(wake.is_awaited());
        wake.spin_before_idle(|| true);
        assert!(wake.is_starved(0));
        wake.end_wait();
        assert!(!wake.is_awaited());
    }

    #[test]
    fn a_worker_that_finds_the_run_over_says_so_too() {
        let wake = Wake::new();
        let asked = Cell::new(0);
        wake.spin_before_idle(|| {
            asked.set(asked.get() + 1);
            false
        });
        assert!(wake.is_starved(0));
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn who_runs_a_job_while_it_gives_it_does_not_wait_for_itself() {
        let wake = Wake::new();
        let spawning = Spawning::new();
        drop(Spawning::new());
        wake.spin_before_idle(|| true);
        assert!(!wake.is_starved(0));
        drop(spawning);
        wake.spin_before_idle(|| true);
        assert!(wake.is_starved(0));
    }
}
