//! Chunks go round: what is submitted comes back, is tried again where it may be, and is put in order.

use std::mem;
use std::time::Duration;

use crate::engine::chunk::{Chunk, Outcome};
use crate::engine::options::Options;
use crate::engine::order::Order;
use crate::engine::retry::{Delays, RetryRule, Waiting};
use crate::engine::sizing::Sizing;
use crate::engine::workers::Workers;
use crate::observe::report::{Report, Timings};
use crate::source::Incoming;
use crate::task::Cause;
use crate::util::bugs;
use crate::util::panics::{drop_all_catching, drop_catching};
use crate::util::sync::now;

/// A consumer that has waited this long for an answer asks workers for what they have finished.
const PATIENCE: Duration = Duration::from_millis(1);

/// What has been submitted and is not being delivered yet.
///
/// An item is in exactly one place: the workers's dispatch, `waiting`, `unrun` or `order`.
pub(crate) struct InFlight<'a, I, T, E> {
    // Dropped first: all work ends before anything else goes.
    pub(crate) workers: Workers<'a, I, T, E>,
    pub(crate) order: Order<Box<Chunk<I, T, E>>>,
    waiting: Waiting<Box<Chunk<I, T, E>>>,
    retry: Option<RetryRule<'a, E>>,
    /// Items that were pulled and that a stop kept from being run, with their indices.
    unrun: Vec<(u64, I)>,
    /// Items past this index are not waiting for another attempt any more.
    limit: u64,
    /// Emptied chunks, to be filled again.
    spare: Vec<Box<Chunk<I, T, E>>>,
    pub(crate) sizing: Sizing,
    pub(crate) timings: Timings,
}

impl<'a, I, T, E> InFlight<'a, I, T, E> {
    pub(crate) fn new(workers: Workers<'a, I, T, E>, options: &Options) -> Self {
        let item_bytes = size_of::<I>() + size_of::<T>();
        Self {
            workers,
            order: Order::new(options.ordered),
            waiting: Waiting::new(),
            retry: None,
            unrun: Vec::new(),
            limit: u64::MAX,
            spare: Vec::new(),
            sizing: Sizing::new(options.fixed_chunk(), item_bytes),
            timings: Timings::default(),
        }
    }

    /// Which failures are tried again; to begin with, none.
    pub(crate) fn retry_rule(&mut self, title: &str) -> &mut RetryRule<'a, E> {
        self.retry.get_or_insert_with(|| RetryRule::never(title))
    }

    /// Whether an `Err` is final, as no retry can follow.
    pub(crate) fn is_final(&self) -> bool {
        self.retry.is_none()
    }

    /// Whether another chunk may be submitted while so many items are in flight.
    pub(crate) fn has_room(&self, options: &Options, in_flight: u64) -> bool {
        match options.max_in_flight {
            // Chunks rather than items: slow tasks make small chunks, so their window is small.
            0 => {
                let chunks = self.workers.outstanding() + self.order.len() + self.waiting.len();
                chunks < self.sizing.depth().saturating_mul(self.workers.width())
            }
            window => in_flight < window as u64,
        }
    }

    /// How many items the next chunk takes.
    pub(crate) fn chunk_size(&self, options: &Options, in_flight: u64) -> usize {
        let width = self.workers.width();
        let window = options.window(self.sizing.window().saturating_mul(width));
        let room = (window as u64).saturating_sub(in_flight);
        self.sizing
            .next()
            .min(options.share(window, width))
            .min(room.try_into().unwrap_or(usize::MAX))
    }

    /// Whether anything can still come back.
    pub(crate) fn is_idle(&self) -> bool {
        self.workers.is_idle() && self.waiting.is_empty()
    }

    /// An empty chunk, its buffers used before if possible.
    pub(crate) fn empty_chunk(&mut self) -> Box<Chunk<I, T, E>> {
        self.spare.pop().unwrap_or_else(|| Box::new(Chunk::new()))
    }

    /// Keeps an emptied chunk for another use, unless those that are under way will do.
    pub(crate) fn recycle(&mut self, emptied: Box<Chunk<I, T, E>>) {
        let others = self.spare.len() + self.workers.outstanding() + self.order.len();
        if others < self.sizing.depth().saturating_mul(self.workers.width()) {
            self.spare.push(emptied);
        }
    }

    /// Takes in all answers that are there. Returns whether there was one.
    pub(crate) fn receive(&mut self) -> bool {
        let mut has_received = false;
        while let Some(answer) = self.workers.try_receive() {
            self.accept(answer);
            has_received = true;
        }
        has_received
    }

    /// Takes in what a worker has finished.
    fn accept(&mut self, mut answer: Box<Chunk<I, T, E>>) {
        if bugs::loses(answer.first) {
            return;
        }
        let ran = answer.len();
        if ran > 0 {
            let before = answer.each_before.saturating_mul(ran as u32);
            self.sizing.record_run(ran, answer.busy.max(before));
        }
        write_down(&mut self.timings, &answer, self.workers.width());
        self.unrun.extend(answer.take_rest());
        if answer.failed() > 0 && !answer.is_final {
            self.sort_failures(&mut answer);
        } else if ran > 0 {
            self.order.push(answer.first, ran, answer);
        }
    }

    /// Whether an item came back unrun although nothing forbade it: its spawner drops its jobs.
    pub(crate) fn is_deserted(&self) -> bool {
        let signals = self.workers.signals();
        self.unrun.iter().any(|(index, _)| signals.allows(*index))
    }

    /// Sets apart what is to be tried again. What succeeded between two failures stays together.
    fn sort_failures(&mut self, answer: &mut Box<Chunk<I, T, E>>) {
        let (attempts, stage) = (answer.attempts, answer.stage);
        let mut delays = answer.delays.take();
        while answer.len() > 0 {
            let before = answer.successes();
            if before == answer.len() {
                let mut rest = mem::replace(answer, Box::new(Chunk::new()));
                rest.forget_taken();
                return self.arrive(rest);
            }
            if before > 0 {
                let successes = answer.split_off_front(before);
                self.arrive(successes);
            }
            let Some(outcome) = answer.pop() else {
                unreachable!("an answer has as many tasks as it says");
            };
            if let Some(outcome) = self.sort_failure(outcome, attempts, delays.take()) {
                let mut failure = Chunk::of_one(outcome, attempts);
                failure.stage = stage;
                self.arrive(failure);
            }
        }
    }

    fn arrive(&mut self, answer: Box<Chunk<I, T, E>>) {
        self.order.push(answer.first, answer.len(), answer);
    }

    /// Gives a failure back if it is final.
    fn sort_failure(
        &mut self,
        outcome: Outcome<I, T, E>,
        attempts: u32,
        mut delays: Option<Delays>,
    ) -> Option<Outcome<I, T, E>> {
        let Err(cause) = &outcome.result else {
            return Some(outcome);
        };
        let Some(delay) = self.delay(cause, attempts, &mut delays) else {
            self.workers.counters().complete(1, 1);
            // A panic has stopped the run where it happened.
            if matches!(cause, Cause::Failed(_)) {
                let signals = self.workers.signals();
                signals.failed(outcome.index);
                signals.handed_over(1);
            }
            return Some(outcome);
        };
        let mut chunk = self.empty_chunk();
        let is_final = delays.as_ref().is_some_and(|delays| delays.is_spent());
        chunk.reset(outcome.index, is_final);
        chunk.attempts = attempts + 1;
        chunk.delays = delays;
        chunk.rest.push(outcome.input);
        // The error is the user's: its destructor may panic.
        drop_catching(outcome.result);
        let now = now();
        // A delay past the end of time is one that never ends.
        let due = now
            .checked_add(delay)
            .unwrap_or(now + Duration::from_secs(1 << 32));
        self.waiting.push(due, chunk.first, chunk);
        None
    }

    /// How long to wait before another attempt, if there is one.
    fn delay(
        &self,
        cause: &Cause<E>,
        attempts: u32,
        delays: &mut Option<Delays>,
    ) -> Option<Duration> {
        match (&self.retry, cause) {
            (Some(retry), Cause::Failed(error)) => retry.delay(error, attempts, delays),
            _ => None,
        }
    }

    /// Submits what has waited long enough for another attempt.
    pub(crate) fn resubmit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let signals = self.workers.signals();
        // The limit falls a few times at most, so what waits is gone through a few times at most.
        let limit = signals.limit();
        if limit < self.limit {
            self.limit = limit;
            for mut chunk in self.waiting.remove(|index| index < limit) {
                self.unrun.extend(chunk.take_rest());
            }
        }
        while let Some(chunk) = self.waiting.pop_due() {
            self.workers.counters().retry();
            self.workers.submit(chunk);
        }
    }

    /// Blocks until there is something to do; also for an item of `source`, if that is given.
    pub(crate) fn wait(&mut self, source: Option<&dyn Incoming>) {
        let start = now();
        let outstanding = self.workers.outstanding();
        self.block(source);
        let time = now() - start;
        if source.is_some() && outstanding < self.workers.width() {
            self.timings.pulled(time);
        } else if outstanding == 0 {
            self.timings.waited_for_retries(time);
        } else {
            self.timings.waited(time);
        }
    }

    fn block(&mut self, source: Option<&dyn Incoming>) {
        let workers = &self.workers;
        let until = [workers.signals().deadline(), self.waiting.next_due()]
            .into_iter()
            .flatten()
            .min();
        if workers.may_hold_back() && !workers.signals().is_flush_requested() {
            let patience = now() + PATIENCE;
            if until.is_none_or(|until| patience < until) {
                if !workers.wait(source, Some(patience)) {
                    workers.flush();
                }
                return;
            }
        }
        workers.wait(source, until);
        workers.signals().request_flush(false);
    }

    /// Waits for what runs, unless the run is cut short from outside.
    pub(crate) fn drain(&mut self) {
        let start = now();
        self.workers.close();
        // Looked for first: a source that panicked may have come between the ring and the look.
        self.receive();
        while !self.workers.is_idle() && !self.workers.signals().is_interrupted() {
            self.workers.wait(None, self.workers.signals().deadline());
            self.receive();
        }
        self.timings.waited(now() - start);
    }

    /// Stops everybody and takes in what they have.
    pub(crate) fn join(&mut self) {
        let mut answers = Vec::new();
        self.workers.join(|answer| answers.push(answer));
        answers.into_iter().for_each(|answer| self.accept(answer));
    }

    /// Where the time went so far.
    pub(crate) fn report(&self) -> Report {
        let elapsed = self.workers.counters().snapshot().elapsed();
        let stages = self.workers.stages();
        let width = stages
            .last()
            .map_or(self.workers.width(), |last| last.num_threads());
        let mut report = self.timings.report(elapsed, width);
        report.set_stages(stages);
        report
    }

    /// The items that were not run to an end, by index.
    pub(crate) fn take_unprocessed(&mut self) -> Vec<(u64, I)> {
        let mut unprocessed = mem::take(&mut self.unrun);
        for mut chunk in self.waiting.remove(|_| false) {
            unprocessed.extend(chunk.take_rest());
        }
        unprocessed.sort_unstable_by_key(|(index, _)| *index);
        unprocessed
    }
}

/// Adds an answer to the figures.
fn write_down<I, T, E>(timings: &mut Timings, answer: &Chunk<I, T, E>, width: usize) {
    let ran = answer.len() as u64;
    if let Some(worker) = answer.worker.filter(|_| ran > 0) {
        let indices = answer.first..answer.first + ran;
        timings.ran(indices, answer.busy, worker, width);
    }
}

impl<I, T, E> Drop for InFlight<'_, I, T, E> {
    fn drop(&mut self) {
        let width = self.workers.width();
        let timings = &mut self.timings;
        timings.take_back();
        self.workers
            .abandon(|answer| write_down(timings, &answer, width));
        // The monitor's last line, which says this, is written when the workers is dismissed.
        self.workers.counters().set_load(self.report().load());
        self.workers.finish();
        drop_all_catching(&mut self.unrun);
    }
}
