//! The caller's half of a run: pulls items, submits them, and delivers tasks.
//!
//! # Invariants
//!
//! 1. An item that was pulled is in exactly one place: `filling`, with the workers, `in_flight` or `current`. It leaves by
//!    being delivered, or with the remainder.
//! 2. `current` is empty once nothing is delivered any more, so that `next` needs no second look.

use std::fmt;
use std::mem;
#[cfg(feature = "stream")]
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::ending::Ending;
use crate::engine::chunk::{BoxedChunk, Chunk};
use crate::engine::holds::{HoldRules, Holds};
use crate::engine::in_flight::InFlight;
use crate::engine::options::Options;
use crate::engine::retry::RetryRule;
use crate::engine::sizing::{PULL_TIME, Sizing};
use crate::engine::workers::{StopOnDrop, Workers};
use crate::observe::log_lines::FailureLog;
use crate::source::{Incoming, SourceOps};
use crate::task::{Remainder, Task, TaskError, TaskResult};
use crate::util::seeded_bugs;
use crate::util::sync::now;

/// A consumer that has waited this long asks the workers for what they have finished.
const FLUSH_AFTER: Duration = Duration::from_millis(1);

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was pulled, and there is no thread.
    New,
    Running,
    /// Inside the source's code. If it still is at the next call, that has panicked.
    Pulling,
    /// The source has come to its end, and what is in flight is delivered.
    SourceEnded,
    /// Nothing starts and nothing is delivered any more. What runs is waited for, unless the run was cut short from outside.
    Draining(Ending),
    /// All threads and values are released.
    Done(Ending),
}

/// Drives a run, whenever its consumer calls.
pub(crate) struct Driver<'a, I: Iterator, T, E> {
    // Dropped in this order. At first nothing starts any more. Then the source goes, as a task may wait for it to be gone.
    // Then what runs is waited for, before anything else goes.
    _stop_on_drop: StopOnDrop<I::Item, T, E>,
    source: I,
    pub(crate) workers: Workers<'a, I::Item, T, E>,
    in_flight: InFlight<'a, I::Item, T, E>,
    /// The chunk that is being delivered.
    current: Chunk<I::Item, T, E>,
    /// What the slow path has found, on its way to whoever calls `next`; none between two calls. If a call returned it, the fast
    /// path would write its tasks to the same place in memory, word by word, and who keeps them reads two words at once: that
    /// has to wait for both.
    found: Option<TaskResult<I::Item, T, E>>,
    /// What is being pulled. Here rather than on the stack, so that a panic of the source does not lose it.
    filling: BoxedChunk<I::Item, T, E>,
    phase: Phase,
    /// Whether something from outside can end the run between any two tasks.
    is_guarded: bool,
    sizing: Sizing,
    pub(crate) options: Options,
    pub(crate) failure_log: FailureLog<'a, I::Item, E>,
    /// For a source that may have nothing to give for a while.
    ops: Option<SourceOps<I>>,
    pulled: u64,
    /// How many there will be, if that is known.
    total: Option<u64>,
    /// Without those of `current`.
    delivered: u64,
    /// Whether the source was pulled since the last chunk was delivered.
    has_fed: bool,
}

/// How the search for the next chunk goes on.
enum Refill {
    /// There is one.
    Chunk,
    /// There will be none.
    End,
    /// Something has to happen first; an item of the source will do, if `for_source`.
    Wait { for_source: bool },
}

/// What whoever polls gets.
#[cfg(feature = "stream")]
pub(crate) enum Step<R> {
    Task(R),
    End,
    /// As with [`Refill::Wait`].
    Wait {
        for_source: bool,
    },
}

/// A wait of whoever polls.
#[cfg(feature = "stream")]
pub(crate) struct PollWait {
    waiting: Waiting,
    /// When to poll again, if nothing else happens.
    pub(crate) until: Option<Instant>,
    is_patient: bool,
}

/// A wait that has begun.
struct Waiting {
    since: Instant,
    for_source: bool,
    /// Until all have come back, unless that takes long.
    for_last: bool,
    outstanding: usize,
    is_paused: bool,
    is_paced: bool,
}

impl<'a, I: Iterator, T, E> Driver<'a, I, T, E> {
    pub(crate) fn new(
        source: I,
        ops: Option<SourceOps<I>>,
        options: Options,
        workers: Workers<'a, I::Item, T, E>,
    ) -> Self
    where
        E: fmt::Debug,
    {
        let item_bytes = size_of::<I::Item>() + size_of::<T>();
        Self {
            _stop_on_drop: workers.stop_on_drop(),
            source,
            workers,
            in_flight: InFlight::new(options.ordered),
            current: Chunk::new(),
            found: None,
            filling: Box::new(Chunk::new()),
            phase: Phase::New,
            is_guarded: options.is_guarded(),
            sizing: Sizing::new(options.fixed_chunk(), item_bytes),
            options,
            failure_log: FailureLog::new(),
            ops,
            pulled: 0,
            total: None,
            delivered: 0,
            has_fed: false,
        }
    }

    /// Which failures are tried again.
    pub(crate) fn retry_rule(&mut self) -> &mut RetryRule<'a, E> {
        self.in_flight.retry_rule(self.options.title())
    }

    /// Which items wait before they start.
    pub(crate) fn hold_by(&mut self, rules: HoldRules<'a, I::Item>) {
        self.in_flight.holds = Holds::new(rules);
    }

    /// How the run ended, if it has.
    pub(crate) fn ending(&self) -> Option<Ending> {
        match self.phase {
            Phase::New | Phase::Running | Phase::SourceEnded => None,
            Phase::Pulling => Some(Ending::SourcePanicked),
            Phase::Draining(ending) | Phase::Done(ending) => Some(ending),
        }
    }

    /// Items pulled and not delivered.
    pub(crate) fn in_flight(&self) -> u64 {
        self.pulled - self.delivered()
    }

    /// Tasks delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered + self.current.delivered() as u64
    }

    /// What the source says is still to come.
    pub(crate) fn source_hint(&self) -> (usize, Option<usize>) {
        if self.phase == Phase::SourceEnded {
            (0, Some(0))
        } else {
            self.source.size_hint()
        }
    }

    /// The next task, on the fast path.
    #[inline]
    pub(crate) fn next_fast(&mut self) -> Option<Task<I::Item, T>> {
        if self.is_guarded {
            // The run may be cut short between any two tasks.
            return None;
        }
        self.current.pop_fast()
    }

    /// Folds over the tasks on the fast path, up to the next one that is not.
    #[inline]
    pub(crate) fn fold_fast<B>(&mut self, init: B, f: impl FnMut(B, Task<I::Item, T>) -> B) -> B {
        if self.is_guarded {
            return init;
        }
        self.current.fold_fast(init, f)
    }

    /// The next task, where it takes more than that.
    #[inline]
    pub(crate) fn next_slow(&mut self) -> Option<TaskResult<I::Item, T, E>> {
        self.find();
        self.found.take()
    }

    #[cold]
    #[inline(never)]
    fn find(&mut self) {
        loop {
            if self.is_guarded && self.has_ended() {
                return self.drain();
            }
            self.found = self.pop();
            if self.found.is_some() || !self.refill() {
                return;
            }
        }
    }

    /// The next task, for whoever polls.
    #[cfg(feature = "stream")]
    pub(crate) fn try_next(&mut self) -> Step<TaskResult<I::Item, T, E>> {
        loop {
            if self.is_guarded && self.has_ended() {
                break;
            }
            if let Some(result) = self.pop() {
                return Step::Task(result);
            }
            match self.try_refill() {
                Refill::Chunk => {}
                Refill::End => break,
                Refill::Wait { for_source } => return Step::Wait { for_source },
            }
        }
        if self.try_drain() {
            Step::End
        } else {
            Step::Wait { for_source: false }
        }
    }

    /// Has `waker` woken when there may be something to do; `None` if there is now.
    #[cfg(feature = "stream")]
    pub(crate) fn begin_poll(&mut self, for_source: bool, waker: &Waker) -> Option<PollWait> {
        let waiting = self.begin_wait(for_source);
        let source = incoming(&self.ops, &self.source).filter(|_| for_source);
        let (until, is_patient) = self.wait_until(waiting.for_last);
        let is_ready = self.workers.begin_poll(source, waker, waiting.for_last);
        (!is_ready).then_some(PollWait {
            waiting,
            until,
            is_patient,
        })
    }

    /// Whoever waited polls again.
    #[cfg(feature = "stream")]
    pub(crate) fn end_poll(&mut self, wait: &PollWait) {
        let source = incoming(&self.ops, &self.source).filter(|_| wait.waiting.for_source);
        self.workers.end_poll(source);
        let is_late = wait.until.is_some_and(|until| now() >= until);
        if !wait.is_patient {
            self.workers.wake().request_flush(false);
        } else if is_late {
            self.workers.flush();
        }
        self.end_wait(&wait.waiting);
    }

    /// Whether all threads and values are released.
    #[cfg(feature = "stream")]
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done(_))
    }

    fn pop(&mut self) -> Option<TaskResult<I::Item, T, E>> {
        let outcome = self.current.pop()?;
        let result = outcome.into_result(self.current.attempts, self.current.stage);
        Some(result.inspect_err(|error| self.apply_policy(error)))
    }

    fn apply_policy(&mut self, error: &TaskError<I::Item, E>) {
        if let Some(level) = self.options.policy.log_level() {
            self.failure_log.write(self.options.title(), level, error);
        }
        let in_flight = self.in_flight();
        self.failure_log
            .advise(self.options.title(), error, in_flight);
        if self.workers.stop().record_delivered_failure(error.index()) {
            self.stop(Ending::Failed);
        }
    }

    /// Finds the next chunk to deliver; `false` is the end.
    fn refill(&mut self) -> bool {
        loop {
            match self.try_refill() {
                Refill::Chunk => return true,
                Refill::End => {
                    self.drain();
                    return false;
                }
                Refill::Wait { for_source } => self.wait(for_source),
            }
        }
    }

    /// The same, but never blocks.
    fn try_refill(&mut self) -> Refill {
        let timings = &mut self.workers.timings;
        if let Some(time) = timings.take_back() {
            self.sizing.record_consumed(self.current.delivered(), time);
        }
        self.sizing
            .set_consumer_quicker(timings.is_consumer_quicker());
        self.in_flight.note_delivered(&self.current);
        // Before anything is made or pulled: a token may be cancelled beforehand.
        if self.phase == Phase::New && !self.has_ended() {
            self.open();
        }
        loop {
            if self.has_ended() {
                return Refill::End;
            }
            self.workers.follow_control();
            self.resubmit();
            // Before it is asked whether there is room: what has come back takes some.
            let has_received = self.receive();
            if has_received && self.in_flight.is_deserted(self.workers.stop()) {
                self.stop(Ending::Cancelled);
                continue;
            }
            // A quick source is fed from between any two chunks, or workers would run out of work while a
            // slow consumer works off what has arrived. A slow one would delay what has arrived.
            if !self.has_fed && self.sizing.is_source_quick() && self.can_feed() {
                self.feed();
                self.has_fed = true;
            }
            if let Some(chunk) = self.in_flight.order.pop() {
                self.deliver(chunk);
                return Refill::Chunk;
            }
            if has_received {
                continue;
            }
            let is_idle = self.workers.is_idle() && self.in_flight.is_idle();
            if self.can_feed() {
                self.feed();
                self.has_fed = true;
            } else if self.is_held_back() {
                return Refill::Wait { for_source: false };
            } else if self.may_pull() && !(is_idle && self.ends_when_idle()) {
                // Else it could be fed: so the source has nothing yet, and may have something later.
                return Refill::Wait { for_source: true };
            } else if !is_idle {
                return Refill::Wait { for_source: false };
            } else if !self.has_ended() {
                // Else a cancel may be why nothing is left; that is not reported as `Exhausted`.
                self.stop(Ending::Exhausted);
            }
        }
    }

    fn open(&mut self) {
        self.workers.stop().start(self.options.deadline);
        // The source is user code here as well: if it panics, it is not asked again.
        self.phase = Phase::Pulling;
        let total = match self.source.size_hint() {
            (lower, Some(upper)) if lower == upper => Some(lower as u64),
            _ => None,
        };
        self.total = self.options.total.or(total);
        if let Some(ops) = &self.ops {
            (ops.start)(&mut self.source);
        }
        self.phase = Phase::New;
        self.workers.open(&mut self.options, self.total);
        self.phase = Phase::Running;
    }

    /// Whether the run has ended, now at the latest if a cancel or the deadline says so.
    pub(crate) fn has_ended(&mut self) -> bool {
        match self.phase {
            Phase::Draining(_) | Phase::Done(_) => return true,
            // The last pull never returned: it panicked, and the caller knows.
            Phase::Pulling => self.stop(Ending::SourcePanicked),
            Phase::New | Phase::Running | Phase::SourceEnded => {
                if self.workers.stop().is_cancelled() {
                    self.stop(Ending::Cancelled);
                } else if self.workers.stop().is_late() {
                    self.stop(Ending::DeadlineExceeded);
                }
            }
        }
        self.ending().is_some()
    }

    /// Nothing starts and nothing is delivered any more.
    fn stop(&mut self, ending: Ending) {
        self.phase = Phase::Draining(ending);
        self.workers.timings.take_back();
        self.workers.counters().leave(Some(ending));
        self.workers.counters().end();
        self.workers.stop().forbid_all();
        // Nobody wants what still runs.
        if ending != Ending::Exhausted {
            self.workers.stop().cancel_tasks();
        }
        self.put_current_back();
    }

    /// Waits for what runs, unless the run was cut short from outside; then all is released.
    fn drain(&mut self) {
        while !self.try_drain() {
            let start = now();
            self.workers
                .wait(None, self.workers.stop().deadline(), false);
            self.workers.timings.waited(now() - start);
        }
    }

    /// The same, but never blocks. Returns whether nothing more is waited for.
    fn try_drain(&mut self) -> bool {
        let Phase::Draining(ending) = self.phase else {
            return true;
        };
        self.workers.close();
        // Received before any wait: if the source panicked, the notification may be spent already.
        self.receive();
        if self.workers.stop().is_interrupted() {
            return true;
        }
        if self.workers.is_idle() {
            self.release();
            self.phase = Phase::Done(ending);
        }
        self.workers.is_idle()
    }

    /// Waits for what runs, takes in what comes back, and gives back threads and values.
    fn release(&mut self) {
        self.workers.timings.take_back();
        let mut chunks = Vec::new();
        self.workers.join(|chunk| chunks.push(chunk));
        chunks.into_iter().for_each(|chunk| self.accept(chunk));
        self.put_current_back();
        // A panic of the source leaves what was pulled before it.
        let pulled = self.pulled + self.filling.inputs.len() as u64;
        self.workers.counters().set_pulled(pulled);
        self.workers.finish();
    }

    /// Stops the run and takes it to pieces.
    pub(crate) fn into_remainder(mut self) -> Remainder<I, T, E> {
        self.release();
        let mut unprocessed = self.in_flight.take_unprocessed();
        // Pulled last, so these are past all others.
        self.filling.set_pending();
        unprocessed.extend(self.filling.take_pending());
        let mut finished = Vec::new();
        for mut chunk in self.in_flight.order.drain() {
            let (attempts, stage) = (chunk.attempts, chunk.stage);
            while let Some(outcome) = chunk.pop() {
                finished.push(outcome.into_result(attempts, stage));
            }
        }
        Remainder {
            finished,
            unprocessed,
            source: self.source,
        }
    }

    /// Takes in what has come back. Returns whether there was something.
    fn receive(&mut self) -> bool {
        let mut has_received = false;
        self.workers.receive();
        while let Some(chunk) = self.workers.next_received() {
            self.accept(chunk);
            has_received = true;
        }
        has_received
    }

    fn accept(&mut self, chunk: BoxedChunk<I::Item, T, E>) {
        if seeded_bugs::loses(chunk.first) {
            return;
        }
        let ran = chunk.len();
        // What is tried again travels alone, and says little of how long the others take.
        if ran != 0 && chunk.attempts == 1 {
            let before = chunk.each_before.saturating_mul(ran as u32);
            self.sizing.record_run(ran, chunk.busy.max(before));
        }
        self.in_flight.accept(chunk, self.workers.run());
    }

    /// Submits what was held, or has waited long enough for another attempt.
    fn resubmit(&mut self) {
        while self.in_flight.has_ready() && self.may_start() != 0 {
            let Some(chunk) = self.in_flight.pop_ready() else {
                break;
            };
            self.submit(chunk);
        }
        while self.in_flight.waiting() != 0 && self.may_start() != 0 {
            let most = self.retries_at_once();
            let Some(mut chunk) = self.in_flight.pop_due(self.workers.stop(), most) else {
                return;
            };
            chunk.grain = self.sizing.grain();
            self.workers.counters().retry(chunk.pending.len());
            self.submit(chunk);
        }
        self.in_flight.give_up_stopped(self.workers.stop());
    }

    /// How many items that are tried again may travel together.
    fn retries_at_once(&self) -> usize {
        let is_one_by_one = self.options.ordered || self.options.pace.is_some();
        if is_one_by_one || self.in_flight.holds.is_some() {
            return 1;
        }
        let waiting = self.in_flight.waiting() as u64;
        self.sizing.next_of(Some(waiting), self.workers.width())
    }

    fn submit(&mut self, chunk: BoxedChunk<I::Item, T, E>) {
        if let Some(pace) = &mut self.options.pace {
            pace.start(chunk.pending.len(), now());
        }
        self.workers.submit(chunk);
    }

    /// How many tasks the control and the rate limit let start now.
    fn may_start(&self) -> usize {
        if self.workers.is_paused() {
            return 0;
        }
        match &self.options.pace {
            None => usize::MAX,
            // Nothing is queued, as it would start at another time.
            Some(_) if !self.has_idle_worker() => 0,
            Some(pace) => pace.ready(now()),
        }
    }

    /// Whether only the control or the rate limit keeps an item from being pulled.
    fn is_held_back(&self) -> bool {
        self.may_start() == 0 && self.may_pull() && !self.has_nothing_ready()
    }

    fn has_idle_worker(&self) -> bool {
        self.workers.has_idle_worker()
    }

    /// Begins to deliver `chunk`; the one before has been emptied.
    fn deliver(&mut self, mut chunk: BoxedChunk<I::Item, T, E>) {
        mem::swap(&mut self.current, &mut *chunk);
        let emptied = chunk;
        self.count_delivered(&emptied);
        self.has_fed = false;
        let enough = self.sizing.depth().saturating_mul(self.workers.width());
        self.in_flight
            .recycle(emptied, self.workers.outstanding(), enough);
        self.workers.timings.hand_over();
    }

    fn put_current_back(&mut self) {
        let chunk = mem::replace(&mut self.current, Chunk::new());
        self.count_delivered(&chunk);
        if chunk.len() > 0 {
            self.in_flight.order.put_back(Box::new(chunk));
        }
    }

    fn count_delivered(&mut self, chunk: &Chunk<I::Item, T, E>) {
        self.delivered += chunk.delivered() as u64;
        self.workers.counters().set_delivered(self.delivered);
    }

    fn can_feed(&self) -> bool {
        self.may_pull() && !self.has_nothing_ready() && self.may_start() != 0
    }

    /// Whether the phase, the window and the limit let the source be pulled now.
    fn may_pull(&self) -> bool {
        self.phase == Phase::Running && self.has_room() && self.workers.stop().allows(self.pulled)
    }

    fn has_room(&self) -> bool {
        let (is_bounded, width) = (self.options.max_in_flight != 0, self.workers.width());
        let holds = self.in_flight.holds.as_ref();
        if holds.is_some_and(|holds| !holds.has_room(is_bounded, width)) {
            return false;
        }
        // What is held has a bound of its own, which may be further.
        if (is_bounded || holds.is_none()) && self.room() == 0 {
            return false;
        }
        // Chunks as well: slow tasks make small ones, so their window is small.
        is_bounded || {
            let chunks = self.workers.outstanding() + self.in_flight.chunks();
            chunks < self.sizing.depth().saturating_mul(width)
        }
    }

    /// The most items that may be in flight.
    fn window(&self) -> usize {
        let chosen = self.sizing.window().saturating_mul(self.workers.width());
        self.options.window(chosen)
    }

    /// How many more items may be in flight.
    fn room(&self) -> u64 {
        (self.window() as u64).saturating_sub(self.in_flight())
    }

    /// How many items the next chunk takes.
    fn chunk_size(&self) -> usize {
        // What may be held is looked at one by one.
        if self.in_flight.holds.is_some() {
            return 1;
        }
        let width = self.workers.width();
        let left = self.total.map(|total| total.saturating_sub(self.pulled));
        self.sizing
            .next_of(left, width)
            .min(self.options.share(self.window(), width))
            .min(self.room().try_into().unwrap_or(usize::MAX))
            .min(self.may_start().max(1))
    }

    /// Pulls a chunk's items and submits them. Where items are held, goes on until one may start, for a moment.
    fn feed(&mut self) {
        self.pull();
        if self.in_flight.holds.is_some() {
            let start = now();
            while !self.in_flight.has_ready() && self.can_feed() && now() - start < PULL_TIME {
                self.pull();
            }
        }
        self.resubmit();
    }

    fn pull(&mut self) {
        let size = self.chunk_size();
        self.filling.reset(self.pulled, self.in_flight.is_final());
        let start = now();
        let (stop, wake) = (self.workers.stop(), self.workers.wake());
        let control = stop.control();
        let submitted = wake.submitted();
        // Under a rate limit, workers often have nothing to do, though nothing is late.
        let is_paced = self.options.pace.is_some();
        let ends_when_idle = self.ends_when_idle();
        let mut is_exhausted = false;
        let items = &mut self.filling.inputs;
        // One by one where the source is asked after each.
        let most = if self.ops.is_none() { size } else { 1 };
        self.phase = Phase::Pulling;
        // Nothing waits for its chunk to be filled while workers have nothing to do, or once nothing may start.
        let is_wanted = move || wake.is_starved(submitted);
        let is_stopped = move || !stop.allows_any() || control.is_some_and(Control::is_paused);
        loop {
            let is_enough = move || is_wanted() || is_stopped();
            if pull_until(&mut self.source, items, most, is_enough) {
                is_exhausted = !ends_when_idle;
                break;
            }
            if items.len() >= size
                || (is_wanted() && (!is_paced || now() - start >= PULL_TIME))
                || is_stopped()
                || incoming(&self.ops, &self.source).is_some_and(Incoming::is_empty)
            {
                break;
            }
        }
        // There is one at most. Asked inside the source's phase, as this is user code as well.
        let holds = self.in_flight.holds.as_ref();
        let mark = holds.and_then(|holds| Some(holds.mark(self.filling.inputs.first()?)));
        if seeded_bugs::has("queue ends early") && self.ends_when_idle() {
            is_exhausted = self.has_nothing_ready();
        }
        self.phase = if is_exhausted {
            Phase::SourceEnded
        } else {
            Phase::Running
        };
        let time = now() - start;
        self.workers.timings.pulled(time);
        let len = self.filling.inputs.len();
        if len > 0 {
            self.sizing.record_pull(len, time);
            self.pulled += len as u64;
            self.workers.counters().set_pulled(self.pulled);
            if let (Some(holds), Some(mark)) = (&mut self.in_flight.holds, mark) {
                let items = self.filling.inputs.drain(..);
                items.for_each(|item| holds.push(self.filling.first, item, mark));
                return;
            }
            let next = self.in_flight.empty_chunk();
            let mut chunk = mem::replace(&mut self.filling, next);
            chunk.set_pending();
            chunk.grain = self.sizing.grain();
            self.submit(chunk);
        }
    }

    /// Whether the source's `None` ends the run only once nothing is in flight.
    fn ends_when_idle(&self) -> bool {
        incoming(&self.ops, &self.source).is_some_and(Incoming::ends_when_idle)
    }

    /// Whether the source has nothing to give right now, and may have something later.
    fn has_nothing_ready(&self) -> bool {
        incoming(&self.ops, &self.source).is_some_and(Incoming::is_empty)
    }

    /// Blocks until there is something to do; also for an item of the source, if `for_source`.
    fn wait(&mut self, for_source: bool) {
        let waiting = self.begin_wait(for_source);
        self.block(&waiting);
        self.end_wait(&waiting);
    }

    fn begin_wait(&self, for_source: bool) -> Waiting {
        Waiting {
            since: now(),
            for_source,
            for_last: self.waits_for_last(),
            outstanding: self.workers.outstanding(),
            is_paused: self.workers.is_paused(),
            is_paced: self.may_start() == 0,
        }
    }

    /// Notes what was waited for.
    fn end_wait(&mut self, waiting: &Waiting) {
        let time = now() - waiting.since;
        let is_idle = waiting.outstanding == 0;
        let width = self.workers.width();
        // What is left is looked at first: that costs less.
        let full = || self.sizing.depth().saturating_mul(width);
        if self.workers.outstanding() < width && waiting.outstanding >= full() {
            self.sizing.record_overslept();
        }
        let timings = &mut self.workers.timings;
        if waiting.for_source && waiting.outstanding < width {
            timings.pulled(time);
        } else if waiting.is_paused {
            timings.paused(time);
        } else if is_idle && waiting.is_paced {
            timings.waited_for_rate_limit(time);
        } else if is_idle {
            timings.waited_for_retries(time);
        } else {
            timings.waited(time);
        }
    }

    /// When there may be something to start, if nothing else happens: an attempt that is due, or what the rate limit holds back.
    fn next_start(&self) -> Option<Instant> {
        if self.workers.is_paused() {
            return None;
        }
        let due = self.in_flight.next_due();
        let Some(pace) = &self.options.pace else {
            return due;
        };
        if !self.has_idle_worker() {
            return None;
        }
        let may_start = pace.next().unwrap_or_else(now);
        let can_pull = self.may_pull() && !self.has_nothing_ready();
        let pull = (can_pull || self.in_flight.has_ready()).then_some(may_start);
        pull.or_else(|| due.map(|due| due.max(may_start)))
    }

    fn block(&self, waiting: &Waiting) {
        let (workers, wake) = (&self.workers, self.workers.wake());
        let source = incoming(&self.ops, &self.source).filter(|_| waiting.for_source);
        let (until, is_patient) = self.wait_until(waiting.for_last);
        let is_ready = workers.wait(source, until, waiting.for_last);
        if !is_patient {
            wake.request_flush(false);
        } else if !is_ready {
            workers.flush();
        }
    }

    /// Whether there is nothing to do before all have come back: nothing more will be submitted, and the consumer is quick. To be
    /// woken in between costs more than that, and a worker its core.
    fn waits_for_last(&self) -> bool {
        let is_all = self.phase == Phase::SourceEnded || self.total == Some(self.pulled);
        is_all
            && self.in_flight.is_final()
            && self.in_flight.is_idle()
            && !self.workers.is_chain()
            && self.workers.items <= self.sizing.consumed_at_once()
    }

    /// How long to wait at most, and whether that is how long the workers may keep what they have finished.
    fn wait_until(&self, for_last: bool) -> (Option<Instant>, bool) {
        let workers = &self.workers;
        let ends = [workers.stop().deadline(), self.next_start()];
        let until = ends.into_iter().flatten().min();
        if workers.may_hold_back(for_last) && !workers.wake().is_flush_requested() {
            let patience = now() + FLUSH_AFTER;
            if until.is_none_or(|until| patience < until) {
                return (Some(patience), true);
            }
        }
        (until, false)
    }
}

/// Pulls an item and more, until there are `most`, or the buffer is full, or `is_enough`. Returns whether the source has ended.
///
/// Never inlined: here, the compiler knows that no two of these overlap, and keeps all in registers.
#[inline(never)]
fn pull_until<I: Iterator>(
    source: &mut I,
    items: &mut Vec<I::Item>,
    most: usize,
    is_enough: impl Fn() -> bool,
) -> bool {
    items.reserve(1);
    while items.len() < items.capacity() {
        let Some(item) = source.next() else {
            return true;
        };
        items.push(item);
        if items.len() >= most || is_enough() {
            break;
        }
    }
    false
}

/// What is to come from a source that may have nothing to give for a while.
fn incoming<'s, I>(ops: &Option<SourceOps<I>>, source: &'s I) -> Option<&'s (dyn Incoming + 's)> {
    ops.as_ref().and_then(|ops| (ops.incoming)(source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::chunk::Outcome;
    use crate::prelude::*;

    #[test]
    fn what_is_tried_again_says_nothing_of_how_long_the_others_take() {
        let items = 0..10u32;
        let mut run = items.futureproof(Raise).map_tasks(infallible(|n: &u32| *n));
        let driver = &mut run.driver;
        for (attempts, nanos, grain) in [(1, 1_000, 2), (2, 50_000_000, 2), (1, 500, 4)] {
            let outcome = Outcome {
                index: 0,
                input: 7,
                result: Ok(7),
            };
            let mut chunk = Chunk::of_one(outcome, attempts);
            chunk.busy = Duration::from_nanos(nanos);
            driver.accept(chunk);
            assert_eq!(driver.sizing.grain(), grain);
        }
    }

    #[test]
    fn a_full_window_has_no_room_for_one_more() {
        let run = [0u32].into_iter().futureproof(Raise).num_threads(2);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        assert!(run.next().is_some());
        let driver = &mut run.driver;
        let full = driver.delivered() + (2 << 16);
        for (pulled, room) in [(full - 2, 2), (full - 1, 1), (full, 0), (full + 1, 0)] {
            driver.pulled = pulled;
            assert_eq!((driver.room(), driver.has_room()), (room, room != 0));
        }
    }

    #[test]
    fn a_quick_consumer_of_a_run_without_retries_waits_for_the_last() {
        type Run = crate::MapTasks<'static, std::ops::Range<u32>, u32, &'static str>;
        let double = |n: &u32| Ok(2 * n);
        let run = |policy| (0..3).futureproof(policy).num_threads(1).map_tasks(double);
        let is_so = |mut run: Run| {
            assert!(run.next().is_some());
            run.driver.waits_for_last()
        };
        assert!(is_so(run(Raise)));
        assert!(!is_so(run(Raise).retry(|| [Duration::ZERO])));
        let chain = (0..3).futureproof(Raise).stage(double);
        let mut chain = chain.num_threads(1).map_tasks(double);
        assert!(chain.next().is_some() && !chain.driver.waits_for_last());
        let mut slow = run(Raise);
        assert!(slow.next().is_some());
        slow.driver
            .sizing
            .record_consumed(1, Duration::from_secs(1));
        let items = slow.driver.workers.items;
        for (items, waits_for_last) in [(2, false), (1, true), (items, items < 2)] {
            slow.driver.workers.items = items;
            assert_eq!(slow.driver.waits_for_last(), waits_for_last);
        }
        let mut more = (0..).futureproof(Raise).num_threads(1).map_tasks(double);
        assert!(more.next().is_some() && !more.driver.waits_for_last());
    }

    #[test]
    fn more_is_queued_while_the_consumer_waits_for_it() {
        let run = [0u32].into_iter().futureproof(Raise).chunk_size(1);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        assert!(run.next().is_some());
        let sizing = &mut run.driver.sizing;
        sizing.record_run(1, Duration::from_micros(100));
        assert_eq!(sizing.depth(), 8);
        run.driver
            .workers
            .timings
            .waited(Duration::from_secs(3_600));
        assert!(run.next().is_none());
        assert_eq!(run.driver.sizing.depth(), 20);
    }

    #[test]
    fn a_full_queue_that_has_run_dry_becomes_deeper() {
        let run = [0u32]
            .into_iter()
            .futureproof(Raise)
            .num_threads(2)
            .chunk_size(1);
        let mut run = run.map_tasks(infallible(|n: &u32| *n));
        // Nothing is outstanding after that.
        assert!(run.next().is_some());
        let driver = &mut run.driver;
        driver.sizing.record_run(1, Duration::from_micros(200));
        driver.sizing.set_consumer_quicker(true);
        for (outstanding, depth) in [(19, 10), (20, 20), (39, 20), (40, 40)] {
            let waiting = Waiting {
                outstanding,
                ..driver.begin_wait(false)
            };
            driver.end_wait(&waiting);
            assert_eq!(driver.sizing.depth(), depth);
        }
    }
}
