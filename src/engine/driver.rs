//! The caller's half of a run: items are pulled and fed, tasks delivered.
//!
//! # Invariants
//!
//! 1. An item that was pulled is in exactly one place: `filling`, the in_flight or `current`. It leaves by
//!    being delivered, or with the remainder.
//! 2. `current` is empty once the run has ended, so that `next` needs no second look.

use std::fmt;
use std::mem;

use crate::engine::chunk::Chunk;
use crate::engine::in_flight::InFlight;
use crate::engine::options::Options;
use crate::engine::workers::{StopOnDrop, Workers};
use crate::observe::failure_log::FailureLog;
use crate::source::{Incoming, SourceOps};
use crate::task::{Ending, Remainder, Task, TaskError, TaskResult};
use crate::util::sync::now;

/// The finished tasks of a run, as an iterator; made by [`map_tasks`](crate::Futureproof::map_tasks).
///
/// Tasks come in the order in which they finish, or [in the source's](crate::Futureproof::ordered).
/// The source is pulled only in `next`. Dropping this stops the run: calls of the function that run are
/// waited for, and none starts. Only where it is dropped by one of its own tasks does it not wait.
///
/// Its type names neither the function nor the pool, so it can be a field or be returned:
///
/// ```
/// use futureproof::{MapTasks, prelude::*};
/// use std::{num::ParseIntError, ops::Range};
///
/// struct Job {
///     tasks: MapTasks<'static, Range<u32>, String, ParseIntError>,
/// }
///
/// let mut job = Job { tasks: (0..10).futureproof(Raise).map_tasks(|n| Ok(n.to_string())) };
/// assert!(job.tasks.next().unwrap().is_ok());
/// ```
#[must_use = "iterator adaptors are lazy and do nothing unless consumed"]
pub struct MapTasks<'a, I: Iterator, T, E> {
    // Dropped first: nothing starts any more. Then the source goes, as a task may wait for it to be gone; and then what
    // runs is waited for, before anything else goes.
    _halt: StopOnDrop<I::Item, T, E>,
    source: I,
    pub(crate) in_flight: InFlight<'a, I::Item, T, E>,
    /// The answer that is being delivered.
    pub(crate) current: Box<Chunk<I::Item, T, E>>,
    pub(crate) options: Options,
    pub(crate) is_guarded: bool,
    pub(crate) failure_log: FailureLog<'a, I::Item, E>,
    failures: u64,
    ending: Option<Ending>,
    pulled: u64,
    /// Without those of `current`.
    delivered: u64,
    /// What is being pulled. Here rather than on the stack, lest a panic of the source lose it.
    filling: Box<Chunk<I::Item, T, E>>,
    is_pulling: bool,
    /// Whether a chunk was fed since the last answer was taken up.
    has_fed: bool,
    is_exhausted: bool,
    ops: Option<SourceOps<I>>,
}

impl<'a, I: Iterator, T, E> MapTasks<'a, I, T, E> {
    pub(crate) fn new(
        source: I,
        ops: Option<SourceOps<I>>,
        options: Options,
        workers: Workers<'a, I::Item, T, E>,
    ) -> Self
    where
        E: fmt::Debug,
    {
        Self {
            _halt: workers.halt(),
            source,
            in_flight: InFlight::new(workers, &options),
            current: Box::new(Chunk::new()),
            is_guarded: options.is_guarded(),
            options,
            failure_log: FailureLog::new(),
            failures: 0,
            ending: None,
            pulled: 0,
            delivered: 0,
            filling: Box::new(Chunk::new()),
            is_pulling: false,
            has_fed: false,
            is_exhausted: false,
            ops,
        }
    }

    /// How the run ended, if it has. A pull that never returned has panicked.
    pub(crate) fn how_it_ended(&self) -> Option<Ending> {
        if self.is_pulling {
            Some(Ending::SourcePanicked)
        } else {
            self.ending
        }
    }

    /// Items pulled and not delivered.
    pub(crate) fn in_flight(&self) -> u64 {
        self.pulled + self.filling.inputs.len() as u64 - self.delivered()
    }

    /// Tasks delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered + self.current.delivered() as u64
    }

    /// What the source says is still to come.
    pub(crate) fn source_hint(&self) -> (usize, Option<usize>) {
        if self.is_exhausted {
            (0, Some(0))
        } else {
            self.source.size_hint()
        }
    }

    /// Stops the run and takes it to pieces.
    pub(crate) fn take_remainder(mut self) -> Remainder<I, T, E> {
        self.stop();
        let mut unprocessed = self.in_flight.take_unprocessed();
        // Pulled last, so these are past all others.
        self.filling.set_pending();
        unprocessed.extend(self.filling.take_rest());
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

    /// Stops the run and brings everything spawner.
    fn stop(&mut self) {
        self.in_flight.timings.take_back();
        self.in_flight.join();
        self.put_current_back();
        // A panic of the source leaves what was pulled before it.
        let pulled = self.pulled + self.filling.inputs.len() as u64;
        self.in_flight.workers.counters().set_pulled(pulled);
        let load = self.in_flight.report().load();
        self.in_flight.workers.counters().set_load(load);
        self.in_flight.workers.finish();
    }

    fn put_current_back(&mut self) {
        let chunk = mem::replace(&mut self.current, Box::new(Chunk::new()));
        self.count_delivered(&chunk);
        if chunk.len() > 0 {
            self.in_flight.order.put_back(chunk);
        }
    }

    fn count_delivered(&mut self, chunk: &Chunk<I::Item, T, E>) {
        self.delivered += chunk.delivered() as u64;
        self.in_flight
            .workers
            .counters()
            .set_delivered(self.delivered);
    }

    /// The run ends in this way; nothing more is delivered.
    fn end(&mut self, ending: Ending) {
        if self.ending.is_none() {
            self.ending = Some(ending);
            self.in_flight.timings.take_back();
            self.in_flight.workers.counters().leave(Some(ending));
            self.in_flight.workers.counters().end();
            let signals = self.in_flight.workers.signals();
            signals.halt();
            // Nobody wants what still runs.
            if ending != Ending::Exhausted {
                signals.abandon();
            }
            self.put_current_back();
        }
    }

    /// Whether the run has ended, now at the latest if a cancel or the deadline says so.
    pub(crate) fn has_ended(&mut self) -> bool {
        if self.ending.is_none() {
            let signals = self.in_flight.workers.signals();
            if signals.is_cancelled() {
                self.end(Ending::Cancelled);
            } else if signals.is_late() {
                self.end(Ending::DeadlineExceeded);
            }
        }
        self.ending.is_some()
    }

    fn open(&mut self) {
        self.in_flight
            .workers
            .signals()
            .start(self.options.deadline);
        // The source is user code here as well: if it panics, it is not asked again.
        self.is_pulling = true;
        let total = match self.source.size_hint() {
            (lower, Some(upper)) if lower == upper => Some(lower as u64),
            _ => None,
        };
        let total = self.options.total.or(total);
        if let Some(ops) = &self.ops {
            (ops.start)(&mut self.source);
        }
        self.is_pulling = false;
        #[cfg(feature = "metrics")]
        self.in_flight.timings.open(self.options.title());
        self.in_flight.workers.open(&mut self.options, total);
    }

    /// Finds the next task to deliver, if it can be had: `false` is the end.
    fn refill(&mut self) -> bool {
        self.in_flight.timings.take_back();
        if self.is_pulling {
            // The last pull never returned: it panicked, and the caller knows.
            self.is_pulling = false;
            self.end(Ending::SourcePanicked);
        }
        if self.ending.is_some() {
            self.drain();
            return false;
        }
        // Before anything is made or pulled: a token may be cancelled beforehand.
        if self.has_ended() {
            return false;
        }
        if self.in_flight.workers.width() == 0 {
            self.open();
        }
        loop {
            if self.has_ended() {
                return false;
            }
            self.in_flight.resubmit();
            // Before it is asked whether there is room: what has come back takes some.
            let has_received = self.in_flight.receive();
            if has_received && self.in_flight.is_deserted() {
                self.end(Ending::Cancelled);
                continue;
            }
            // A quick source is fed from between any two answers, or workers would run dry while a
            // slow consumer works off what has arrived. A slow one would delay what has arrived.
            if !self.has_fed && self.in_flight.sizing.is_source_quick() && self.can_feed() {
                self.feed();
            }
            if let Some(chunk) = self.in_flight.order.pop() {
                self.turn_to(chunk);
                return true;
            }
            if has_received {
                continue;
            }
            if self.can_feed() {
                self.feed();
            } else if self.may_pull() && !(self.ends_when_idle() && self.in_flight.is_idle()) {
                // Else it could be fed: so the source has nothing yet, and may have something later.
                self.in_flight.wait(incoming(&self.ops, &self.source));
            } else if !self.in_flight.is_idle() {
                self.in_flight.wait(None);
            } else {
                // Unless there is nothing to do because of a stop of this very moment.
                if !self.has_ended() {
                    self.end(Ending::Exhausted);
                    self.drain();
                }
                return false;
            }
        }
    }

    /// After the end, waits for what still runs, unless the run was cut short from outside.
    fn drain(&mut self) {
        self.in_flight.drain();
        if !self.in_flight.workers.signals().is_interrupted() {
            self.stop();
        }
    }

    /// Starts to deliver `chunk`; the one before has been emptied.
    fn turn_to(&mut self, chunk: Box<Chunk<I::Item, T, E>>) {
        let emptied = mem::replace(&mut self.current, chunk);
        self.count_delivered(&emptied);
        self.in_flight.recycle(emptied);
        self.in_flight.timings.hand_over();
        self.has_fed = false;
    }

    /// Whether the window lets the source be pulled now.
    fn may_pull(&self) -> bool {
        !self.is_exhausted
            && self.in_flight.has_room(&self.options, self.in_flight())
            && self.in_flight.workers.signals().allows(self.pulled)
    }

    /// Whether the source may be filled again as long as something is in flight.
    fn ends_when_idle(&self) -> bool {
        incoming(&self.ops, &self.source).is_some_and(Incoming::ends_when_idle)
    }

    /// Whether the source has nothing to give right now, and may have something later.
    fn has_nothing_ready(&self) -> bool {
        incoming(&self.ops, &self.source).is_some_and(Incoming::is_empty)
    }

    fn can_feed(&self) -> bool {
        self.may_pull() && !self.has_nothing_ready()
    }

    /// Pulls a chunk's items and submits them.
    fn feed(&mut self) {
        let size = self.in_flight.chunk_size(&self.options, self.in_flight());
        self.filling.reset(self.pulled, self.in_flight.is_final());
        self.is_pulling = true;
        let start = now();
        let signals = self.in_flight.workers.signals();
        let submitted = signals.submitted();
        let ends_when_idle = self.ends_when_idle();
        let items = &mut self.filling.inputs;
        loop {
            let Some(item) = self.source.next() else {
                self.is_exhausted = !ends_when_idle;
                break;
            };
            items.push(item);
            // Nothing waits for its chunk to be filled while workers have nothing to do, or once nothing may start.
            if items.len() >= size
                || signals.is_starved(submitted)
                || !signals.may_go_on()
                || incoming(&self.ops, &self.source).is_some_and(Incoming::is_empty)
            {
                break;
            }
        }
        self.is_pulling = false;
        self.has_fed = true;
        let end = now();
        let time = end - start;
        self.in_flight.timings.pulled(time);
        let len = self.filling.inputs.len();
        if len > 0 {
            self.in_flight.sizing.record_pull(len, time);
            self.pulled += len as u64;
            self.in_flight.workers.counters().set_pulled(self.pulled);
            let next = self.in_flight.empty_chunk();
            let mut chunk = mem::replace(&mut self.filling, next);
            chunk.set_pending();
            chunk.grain = self.in_flight.sizing.grain(self.in_flight.workers.width());
            self.in_flight.workers.submit(chunk);
        }
    }

    /// The next task, if it is had by just taking it.
    #[inline]
    pub(crate) fn next_fast(&mut self) -> Option<Task<I::Item, T>> {
        if self.is_guarded {
            // The run may be cut short between any two tasks.
            return None;
        }
        self.current.pop_fast()
    }

    /// The next task, where it takes more than that.
    #[inline(never)]
    pub(crate) fn next_slow(&mut self) -> Option<TaskResult<I::Item, T, E>> {
        loop {
            if self.is_guarded && self.has_ended() {
                self.drain();
                return None;
            }
            if let Some(result) = self.pop() {
                return Some(result);
            }
            if !self.refill() {
                return None;
            }
        }
    }

    /// The next task of the answer that is being delivered; nothing is pulled.
    #[cfg(feature = "stream")]
    pub(crate) fn next_at_hand(&mut self) -> Option<TaskResult<I::Item, T, E>> {
        if self.is_guarded && self.has_ended() {
            return None;
        }
        self.pop()
    }

    fn pop(&mut self) -> Option<TaskResult<I::Item, T, E>> {
        let outcome = self.current.pop()?;
        let result = outcome.into_result(self.current.attempts, self.current.stage);
        Some(result.inspect_err(|error| self.apply_policy(error)))
    }

    fn apply_policy(&mut self, error: &TaskError<I::Item, E>) {
        let policy = self.options.policy;
        if let Some(level) = policy.log_level() {
            self.failure_log.write(self.options.title(), level, error);
        }
        self.failures += 1;
        if policy
            .tolerated()
            .is_some_and(|tolerated| self.failures > tolerated)
        {
            self.end(Ending::Failed);
        }
    }
}

/// What is to come from a source that may have nothing to give right now.
fn incoming<'s, I>(ops: &Option<SourceOps<I>>, source: &'s I) -> Option<&'s (dyn Incoming + 's)> {
    ops.as_ref().and_then(|ops| (ops.incoming)(source))
}
