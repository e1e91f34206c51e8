//! How the caller's half and the workers of a run stop and wake each other.
//!
//! Everything here is read by workers before each item, so it is a handful of relaxed loads. They
//! may be relaxed since nothing is published through them: results travel through a channel, and a
//! stop that is seen an item later is a stop all the same.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cancel::{CancellationToken, OnCancel};
use crate::util::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::util::sync::{hint, now, thread_local};

/// What the caller's half and the workers of one run tell each other while it runs.
#[derive(Debug)]
pub(crate) struct Signals {
    /// No item at or past this index starts.
    limit: AtomicU64,
    /// Whether the consumer waits, so that results should not be kept back.
    flush_requested: AtomicBool,
    /// Final failures so far, and the highest index among them.
    failures: AtomicU64,
    highest: AtomicU64,
    /// How many of them are on their way to the consumer.
    handed_over: AtomicU64,
    /// How many failures the run outlives; `None`: any number.
    tolerated: Option<u64>,
    /// In an ordered run, what comes before the failure that stops it is still run.
    ordered: bool,
    /// Each of them stops the run.
    tokens: Vec<CancellationToken>,
    /// The tasks' own: cancelled when nobody waits for them any more, with one of `tokens` at the latest.
    tasks_token: CancellationToken,
    _links: Vec<OnCancel>,
    /// When the run itself was told to end.
    deadline: OnceLock<Instant>,
    /// Chunks submitted and chunks answered.
    submitted: AtomicU64,
    answered: AtomicU64,
    /// The number of the answer at which a consumer that waits is to be woken.
    awaited: AtomicU64,
    /// One more than the chunks that were submitted when a worker found nothing to do, the latest time that one did.
    starved_at: AtomicU64,
}

/// How long a worker without work waits for some before it says so.
const SPIN: Duration = Duration::from_micros(20);

thread_local! {
    /// Whether this thread dispatch a chunk to a spawner at this moment.
    static HANDS_OUT: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread dispatch a chunk out: what it runs meanwhile, it runs inline.
pub(crate) struct HandingOut {
    before: bool,
}

impl HandingOut {
    pub(crate) fn new() -> Self {
        let before = HANDS_OUT.with(|it| it.replace(true));
        Self { before }
    }
}

impl Drop for HandingOut {
    fn drop(&mut self) {
        HANDS_OUT.with(|it| it.set(self.before));
    }
}

impl Signals {
    pub(crate) fn new(
        tolerated: Option<u64>,
        ordered: bool,
        tokens: Vec<CancellationToken>,
    ) -> Self {
        let tasks_token = CancellationToken::new();
        let link = |token: &CancellationToken| {
            let tasks_token = tasks_token.clone();
            token.on_cancel(move || tasks_token.cancel())
        };
        let links = tokens.iter().map(link).collect();
        Self {
            limit: AtomicU64::new(u64::MAX),
            flush_requested: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            highest: AtomicU64::new(0),
            handed_over: AtomicU64::new(0),
            tolerated,
            ordered,
            tokens,
            tasks_token,
            _links: links,
            deadline: OnceLock::new(),
            submitted: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            awaited: AtomicU64::new(u64::MAX),
            starved_at: AtomicU64::new(0),
        }
    }

    /// Whether the item at `index` may start.
    pub(crate) fn allows(&self, index: u64) -> bool {
        self.guard().allows(index)
    }

    /// The same question, for a loop that asks it before every item.
    pub(crate) fn guard(&self) -> Guard<'_> {
        Guard {
            limit: &self.limit,
            tokens: &self.tokens,
            deadline: self.deadline.get().copied(),
        }
    }

    /// A failure that no retry can mend has happened at `index`: stops the run if that is one too many.
    pub(crate) fn failed(&self, index: u64) {
        let Some(tolerated) = self.tolerated else {
            return;
        };
        // Each read-modify-write is atomic by itself, and that is enough: whoever finds the count
        // too high reads a `highest` that covers more failures than are tolerated.
        self.highest.fetch_max(index, Ordering::AcqRel);
        if self.failures.fetch_add(1, Ordering::AcqRel) < tolerated {
            return;
        }
        let limit = match (self.ordered, tolerated) {
            (false, _) => 0,
            (true, 0) => index,
            // The failure that is one too many, in the order of the source, is not past this one.
            (true, _) => self.highest.load(Ordering::Acquire),
        };
        self.limit.fetch_min(limit, Ordering::Relaxed);
    }

    /// Whether failures can stop the run, so that somebody waits for them.
    pub(crate) fn awaits_failures(&self) -> bool {
        self.tolerated.is_some()
    }

    /// So many final failures are on their way to the consumer. Once these are more than the run outlives, nobody wants
    /// what still runs; but in an ordered run, what comes before the failure is wanted.
    ///
    /// Not earlier: a task that fails as it is told to stop is not to arrive before the failure that stopped it.
    pub(crate) fn handed_over(&self, failures: u64) {
        if failures == 0 || self.ordered {
            return;
        }
        let before = self.handed_over.fetch_add(failures, Ordering::AcqRel);
        if self
            .tolerated
            .is_some_and(|tolerated| before + failures > tolerated)
        {
            self.abandon();
        }
    }

    /// Nothing starts from now on.
    pub(crate) fn halt(&self) {
        self.limit.store(0, Ordering::Relaxed);
    }

    /// Nobody waits any more for what runs.
    pub(crate) fn abandon(&self) {
        self.tasks_token.cancel();
    }

    /// Whether results are to be handed over as soon as they are there.
    pub(crate) fn is_flush_requested(&self) -> bool {
        self.flush_requested.load(Ordering::Relaxed)
    }

    pub(crate) fn request_flush(&self, flush_requested: bool) {
        self.flush_requested
            .store(flush_requested, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.tokens.iter().any(CancellationToken::is_cancelled)
    }

    /// Whether the run's own deadline has passed. Reads the clock only if there is one.
    pub(crate) fn is_late(&self) -> bool {
        self.deadline
            .get()
            .is_some_and(|deadline| now() >= *deadline)
    }

    /// Whether the run is cut short from outside.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.is_cancelled() || self.is_late()
    }

    /// The run starts, and may last so long.
    pub(crate) fn start(&self, deadline: Option<Duration>) {
        // A deadline past the end of time is none.
        if let Some(deadline) = deadline.and_then(|after| now().checked_add(after)) {
            let _ = self.deadline.set(deadline);
        }
        // Tasks, and what they start, learn of the earliest that ends the run.
        if let Some(deadline) = self.deadline() {
            self.tasks_token.set_deadline(deadline);
        }
    }

    /// When the run is cut short: at its own deadline, or at that of a token.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let of_tokens = self.tokens.iter().filter_map(CancellationToken::deadline);
        self.deadline
            .get()
            .copied()
            .into_iter()
            .chain(of_tokens)
            .min()
    }

    pub(crate) fn tasks_token(&self) -> &CancellationToken {
        &self.tasks_token
    }

    pub(crate) fn tokens(&self) -> &[CancellationToken] {
        &self.tokens
    }

    /// A chunk is about to be submitted.
    pub(crate) fn submit(&self) {
        self.submitted.fetch_add(1, Ordering::Relaxed);
    }

    /// A chunk has been answered. Returns whether the consumer should be woken: if so many were, or if what is left is
    /// less than `width` workers can be busy with. Whoever has answered may go on with another, and that may take long.
    pub(crate) fn answer(&self, width: usize) -> bool {
        let answered = self.answered.fetch_add(1, Ordering::Relaxed) + 1;
        let left = self.submitted().saturating_sub(answered);
        answered >= self.awaited.load(Ordering::Relaxed) || left < width as u64
    }

    /// How many chunks are not answered.
    pub(crate) fn outstanding(&self) -> usize {
        let answered = self.answered.load(Ordering::Relaxed);
        self.submitted().saturating_sub(answered) as usize
    }

    /// The consumer will wait, but not longer than until half of what is outstanding is answered.
    pub(crate) fn await_answers(&self) {
        let awaited = self.submitted() - self.outstanding() as u64 / 2;
        self.awaited.store(awaited, Ordering::Relaxed);
    }

    /// Whether the consumer waits, or is about to.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed) != u64::MAX
    }

    /// The consumer is awake.
    pub(crate) fn await_nothing(&self) {
        self.awaited.store(u64::MAX, Ordering::Relaxed);
    }

    /// A worker that is out of work stays a moment, and says so if none comes.
    ///
    /// A consumer that fills a chunk does not look at the clock after each pull: that would cost more than a
    /// tiny task. But it must notice when a pull takes long, or what it has pulled would wait for more
    /// slow ones. Then the workers run dry, and they have the time to notice.
    pub(crate) fn spin_before_idle(&self) {
        // Where jobs are run inline, it would be the caller who waits here for itself.
        if HANDS_OUT.with(Cell::get) {
            return;
        }
        let submitted = self.submitted();
        // Spinning, for so short a time: on a busy machine, a thread that yields is away for milliseconds.
        let start = now();
        while self.submitted() == submitted && self.may_go_on() {
            // A consumer that waits has been woken, and is to know at once when it goes on.
            if self.is_awaited() || now() - start >= SPIN {
                break;
            }
            hint::spin_loop();
        }
        // The latest counts, whoever is late to say so.
        self.starved_at.fetch_max(submitted + 1, Ordering::Relaxed);
    }

    /// Whether a worker has found nothing to do since so many chunks were submitted.
    #[inline]
    pub(crate) fn is_starved(&self, submitted: u64) -> bool {
        self.starved_at.load(Ordering::Relaxed) > submitted
    }

    /// Whether anything may still start.
    #[inline]
    pub(crate) fn may_go_on(&self) -> bool {
        self.limit() > 0
    }

    /// No item at or past this index starts.
    #[inline]
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// How many chunks have been submitted.
    pub(crate) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }
}

/// What a worker looks at before each item.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    limit: &'a AtomicU64,
    tokens: &'a [CancellationToken],
    deadline: Option<Instant>,
}

impl Guard<'_> {
    /// Whether the item at `index` may start.
    #[inline]
    pub(crate) fn allows(&self, index: u64) -> bool {
        index < self.limit.load(Ordering::Relaxed)
            && !self.tokens.iter().any(CancellationToken::is_cancelled)
            && self.deadline.is_none_or(|deadline| now() < deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_past_the_tolerated_ones_stops_everything() {
        let signals = Signals::new(Some(1), false, Vec::new());
        signals.failed(10);
        assert!(signals.allows(0) && signals.allows(1_000));
        signals.failed(5);
        assert!(!signals.allows(0));
    }

    #[test]
    fn in_order_what_comes_before_the_failure_still_runs() {
        let signals = Signals::new(Some(0), true, Vec::new());
        signals.failed(10);
        assert!(signals.allows(9) && !signals.allows(10));
        signals.failed(5);
        assert!(signals.allows(4) && !signals.allows(5));
        signals.failed(8);
        assert!(!signals.allows(5));
    }

    #[test]
    fn in_order_tolerated_failures_leave_room_for_each_other() {
        let signals = Signals::new(Some(1), true, Vec::new());
        signals.failed(10);
        signals.failed(3);
        // In order, 10 is the second failure.
        assert!(signals.allows(9) && !signals.allows(10));
    }

    #[test]
    fn any_number_is_tolerated_without_a_budget() {
        let signals = Signals::new(None, false, Vec::new());
        (0..100).for_each(|index| signals.failed(index));
        assert!(signals.allows(0));
        signals.halt();
        assert!(!signals.allows(0));
    }

    #[test]
    fn a_consumer_is_woken_at_half_of_what_is_outstanding() {
        let signals = Signals::new(None, false, Vec::new());
        (0..10).for_each(|_| signals.submit());
        signals.await_answers();
        let wakes: Vec<bool> = (0..6).map(|_| signals.answer(1)).collect();
        assert_eq!(wakes, [false, false, false, false, true, true]);
        signals.await_nothing();
        assert!(!signals.answer(1));
        assert!(signals.answer(3));
    }

    #[test]
    fn a_worker_that_waits_in_vain_says_so() {
        let signals = Signals::new(None, false, Vec::new());
        signals.submit();
        assert!(!signals.is_starved(1));
        signals.spin_before_idle();
        assert!(signals.is_starved(1));
        signals.submit();
        assert!(!signals.is_starved(2));
    }

    #[test]
    fn whoever_is_late_to_say_so_hides_nobody() {
        let signals = Signals::new(None, false, Vec::new());
        (0..3).for_each(|_| signals.submit());
        signals.spin_before_idle();
        // Stored late: it was seen before the last two were submitted.
        signals.starved_at.fetch_max(2, Ordering::Relaxed);
        assert!(signals.is_starved(3));
    }

    #[test]
    fn a_worker_that_finds_the_run_over_says_so_too() {
        let signals = Signals::new(None, false, Vec::new());
        signals.halt();
        signals.spin_before_idle();
        assert!(signals.is_starved(0));
    }

    #[test]
    fn a_consumer_that_waits_is_told_as_well() {
        let signals = Signals::new(None, false, Vec::new());
        signals.await_answers();
        assert!(signals.is_awaited());
        signals.spin_before_idle();
        assert!(signals.is_starved(0));
        signals.await_nothing();
        assert!(!signals.is_awaited());
    }

    #[test]
    fn a_cancel_and_a_deadline_each_interrupt() {
        let token = CancellationToken::new();
        let signals = Signals::new(None, false, vec![token.clone()]);
        assert!(!signals.is_interrupted());
        token.cancel();
        assert!(signals.is_interrupted() && !signals.is_late());
        let signals = Signals::new(None, false, Vec::new());
        signals.start(Some(Duration::from_secs(3_600)));
        assert!(!signals.is_interrupted() && signals.allows(0));
        let signals = Signals::new(None, false, Vec::new());
        signals.start(Some(Duration::ZERO));
        assert!(signals.is_late() && signals.is_interrupted() && !signals.allows(0));
    }
}
