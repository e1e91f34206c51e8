//! The workers of a run as its caller sees them: chunks are submitted, completions received, and in the end everything is
//! released.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
#[cfg(feature = "stream")]
use std::task::Waker;
use std::time::{Duration, Instant};

use log::warn;

use crate::adaptive::Sample;
#[cfg(feature = "stream")]
use crate::cancel::{CancellationToken, OnCancel};
use crate::control::{Control, OnChange};
use crate::engine::chunk::BoxedChunk;
use crate::engine::completions::Completions;
use crate::engine::job::{RunState, Shared};
use crate::engine::options::Options;
use crate::engine::stage::{Dispatch, StageHandle};
use crate::engine::stop::Stop;
use crate::engine::wake::Wake;
use crate::observe::counters::Counters;
#[cfg(feature = "metrics")]
use crate::observe::metrics;
use crate::observe::monitor::Monitor;
use crate::observe::report::{Report, StageCounters, Timings};
use crate::source::Incoming;
use crate::util::TARGET;
use crate::util::panics::catch_panic;
use crate::util::sync::channel::Select;
use crate::util::sync::now;
use crate::util::sync::thread::{self, Thread};

/// How long whoever leaves a run waits for its calls before the log says so; then twice as long, and so on.
const WARN_AFTER: Duration = Duration::from_secs(1);

/// Those who work for one run. Dropping them waits for what runs.
pub(crate) struct Workers<'a, I, T, E> {
    /// There until they are released.
    dispatch: Option<Box<dyn Dispatch<I, T, E> + 'a>>,
    shared: Arc<Shared<I, T, E>>,
    /// Completions that were taken from their queue.
    received: VecDeque<BoxedChunk<I, T, E>>,
    monitor: Option<Monitor>,
    title: String,
    stages: Vec<Arc<StageCounters>>,
    width: usize,
    /// The epoch of the control that the stages follow, and what tells of the next one.
    epoch: u64,
    on_change: Option<OnChange>,
    /// Items that were submitted and have not come back.
    pub(crate) items: usize,
    /// Who was how busy.
    pub(crate) timings: Timings,
}

impl<'a, I, T, E> Workers<'a, I, T, E> {
    /// `dispatch` makes the stages, for what they are to share.
    pub(crate) fn new(
        options: &Options,
        dispatch: impl FnOnce(&Arc<Shared<I, T, E>>) -> Box<dyn Dispatch<I, T, E> + 'a>,
    ) -> Self {
        let (tokens, control) = (options.tokens.clone(), options.control.clone());
        let shared = Arc::new(Shared {
            run: RunState {
                counters: Arc::new(Counters::new(control.clone())),
                stop: Stop::new(options.policy, options.ordered, tokens, control),
                wake: Wake::new(),
                instruments: options.instruments(),
            },
            completions: Completions::new(),
        });
        let dispatch = dispatch(&shared);
        let handles = (0..).map_while(|number| dispatch.stage(number));
        Self {
            stages: handles.filter_map(StageHandle::counters).collect(),
            dispatch: Some(dispatch),
            shared,
            received: VecDeque::new(),
            monitor: None,
            title: options.title().to_owned(),
            width: 0,
            epoch: 0,
            on_change: None,
            items: 0,
            timings: Timings::default(),
        }
    }

    /// From the first to the last.
    fn handles(&self) -> impl DoubleEndedIterator<Item = &dyn StageHandle> {
        let count = self.stages.len().max(1);
        let handle = |number| self.dispatch.as_ref()?.stage(number);
        (0..count).filter_map(handle)
    }

    pub(crate) fn run(&self) -> &RunState {
        &self.shared.run
    }

    pub(crate) fn stop(&self) -> &Stop {
        &self.shared.run.stop
    }

    pub(crate) fn wake(&self) -> &Wake {
        &self.shared.run.wake
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.shared.run.counters
    }

    /// Has the consumer notified of a cancel, as long as what is returned lives.
    #[cfg(feature = "stream")]
    pub(crate) fn notify_on_cancel(&self) -> Vec<OnCancel> {
        let notifier = self.shared.completions.notifier();
        let on_cancel = |token: &CancellationToken| {
            let notifier = Arc::clone(notifier);
            token.on_cancel(move || notifier.notify())
        };
        self.stop().tokens().iter().map(on_cancel).collect()
    }

    pub(crate) fn stop_on_drop(&self) -> StopOnDrop<I, T, E> {
        StopOnDrop {
            shared: Arc::clone(&self.shared),
        }
    }

    /// How many can work at once; 0 before the run starts.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Whether a worker of the first stage has nothing to do, and nothing is queued for it.
    pub(crate) fn has_idle_worker(&self) -> bool {
        self.handles().next().is_some_and(StageHandle::is_idle)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.stop().control().is_some_and(Control::is_paused)
    }

    /// Has the stages follow a change of the run's control. A change that comes later wakes whoever waits.
    pub(crate) fn follow_control(&mut self) {
        let Some(control) = self.shared.run.stop.control() else {
            return;
        };
        let epoch = control.epoch();
        if self.epoch != epoch {
            self.epoch = epoch;
            self.handles().for_each(StageHandle::follow_control);
        }
    }

    /// The run starts, over a source of `total` items, if that is known.
    pub(crate) fn open(&mut self, options: &mut Options, total: Option<u64>) {
        self.width = self.handles().map(StageHandle::open).sum::<usize>().max(1);
        #[cfg(feature = "metrics")]
        {
            self.timings.durations = catch_panic(|| metrics::durations(&self.title));
        }
        if let Some(control) = self.stop().control() {
            let notifier = Arc::clone(self.shared.completions.notifier());
            self.on_change = Some(control.on_change(notifier));
        }
        self.counters().start(total);
        #[cfg(feature = "tracing")]
        self.shared.run.instruments.trace.start(&self.title);
        let observers = options.take_observers(&self.shared.run.instruments);
        match Monitor::start(&self.title, Arc::clone(self.counters()), observers) {
            Ok(monitor) => self.monitor = monitor,
            Err(error) => {
                let title = &self.title;
                catch_panic(
                    || warn!(target: TARGET, "{title}: cannot start the monitor's thread, so there are no progress lines: {error}"),
                );
            }
        }
    }

    pub(crate) fn submit(&mut self, chunk: BoxedChunk<I, T, E>) {
        let Some(dispatch) = &self.dispatch else {
            unreachable!("nothing is submitted once the run has ended");
        };
        self.items += chunk.pending.len();
        self.wake().submit();
        dispatch.submit(chunk);
    }

    /// How many chunks have not come back.
    pub(crate) fn outstanding(&self) -> usize {
        self.wake().outstanding()
    }

    /// Whether every item has come back.
    pub(crate) fn is_idle(&self) -> bool {
        self.items == 0
    }

    /// Takes over what has come back by now. What comes back meanwhile is for the next time: after a stop, that may be much, and
    /// a failure is among the first.
    pub(crate) fn receive(&mut self) {
        if self.received.is_empty() {
            self.shared.completions.take(&mut self.received);
        }
    }

    /// The next of what was taken over.
    pub(crate) fn next_received(&mut self) -> Option<BoxedChunk<I, T, E>> {
        let chunk = self.received.pop_front()?;
        let ran = chunk.len() as u64;
        self.items -= chunk.len() + chunk.pending.len();
        if let Some(worker) = chunk.worker.filter(|_| ran > 0) {
            let indices = chunk.indices(chunk.first..chunk.first + ran);
            self.timings
                .ran(ran, indices, chunk.busy, worker, self.width);
            if let Some(control) = self.stop().control() {
                let sample = Sample {
                    calls: chunk.len(),
                    failed: chunk.failed(),
                    busy: chunk.busy,
                };
                control.record(sample, self.width);
            }
        }
        Some(chunk)
    }

    /// Has what is finished handed over, also in chunks that go on.
    pub(crate) fn flush(&self) {
        self.wake().request_flush(true);
        // After that: what finishes later is handed over by whoever has run it.
        self.handles().for_each(StageHandle::flush);
    }

    /// Whether something may be finished that is not known here: an item of a chunk that goes on, or a
    /// chunk for which nobody was woken. `for_last`: as with [`wait`](Self::wait).
    pub(crate) fn may_hold_back(&self, for_last: bool) -> bool {
        let chunks = self.outstanding();
        let told_of = if for_last { 1 } else { self.width };
        self.items > chunks || chunks > told_of
    }

    /// Whether the run has several stages.
    pub(crate) fn is_chain(&self) -> bool {
        !self.stages.is_empty()
    }

    /// Blocks until there may be something to do: a completion, a cancel, an item of `source` if that is
    /// given, or `until`. `for_last`: a completion counts for nothing before the last one, unless it was long or a flush is
    /// requested. Returns whether it was something else than `until`.
    pub(crate) fn wait(
        &self,
        source: Option<&dyn Incoming>,
        until: Option<Instant>,
        for_last: bool,
    ) -> bool {
        self.wake().begin_wait(for_last);
        if self.warm_up() || self.help() {
            self.wake().end_wait();
            return true;
        }
        let notified = self.shared.completions.notified();
        let mut select = Select::new();
        select.recv(notified);
        for token in self.stop().tokens() {
            select.recv(token.disconnected());
        }
        if let Some(source) = source {
            source.wait_in(&mut select);
        }
        let mut is_ready_by = |until: Option<Instant>| match until {
            Some(until) => select.ready_deadline(until).is_ok(),
            None => {
                select.ready();
                true
            }
        };
        let rest_due = self.handles().filter_map(StageHandle::rest_due).min();
        let is_ready = match rest_due.filter(|due| until.is_none_or(|until| *due < until)) {
            Some(due) if !is_ready_by(Some(due)) => {
                self.start_rest();
                is_ready_by(until)
            }
            Some(_) => true,
            None => is_ready_by(until),
        };
        self.wake().end_wait();
        // Before the completions are looked at: what comes after that notifies again.
        let _ = notified.try_recv();
        if let Some(source) = source {
            source.forget_waking();
        }
        is_ready
    }

    /// The same for whoever polls: `waker` is woken. Returns whether there may be something to do now.
    #[cfg(feature = "stream")]
    pub(crate) fn begin_poll(
        &self,
        source: Option<&dyn Incoming>,
        waker: &Waker,
        for_last: bool,
    ) -> bool {
        self.wake().begin_wait(for_last);
        if self.warm_up() || self.help() {
            self.wake().end_wait();
            return true;
        }
        self.start_rest();
        self.shared.completions.notifier().wake_next(waker.clone());
        if let Some(source) = source {
            source.wake_next(waker.clone());
        }
        // After that: what has come before it did not wake.
        let is_notified = self.shared.completions.notified().try_recv().is_ok();
        let is_ready = is_notified || source.is_some_and(|source| !source.is_empty());
        if is_ready {
            self.wake().end_wait();
        }
        is_ready
    }

    /// Whoever waited polls again.
    #[cfg(feature = "stream")]
    pub(crate) fn end_poll(&self, source: Option<&dyn Incoming>) {
        self.wake().end_wait();
        let _ = self.shared.completions.notified().try_recv();
        if let Some(source) = source {
            source.forget_waking();
        }
    }

    /// What wakes whoever polls, whatever its waker does.
    #[cfg(feature = "stream")]
    pub(crate) fn waker(&self) -> Waker {
        Arc::clone(self.shared.completions.notifier()).into()
    }

    /// Whoever is about to wait gives a quick job a moment. Returns whether there is a completion.
    fn warm_up(&self) -> bool {
        let has_completion = || !self.shared.completions.is_empty();
        self.handles().any(|stage| stage.warm_up(&has_completion))
    }

    /// Whoever has waited for long starts the threads that no job has needed: a function may use them.
    fn start_rest(&self) {
        self.handles().for_each(StageHandle::start_rest);
    }

    /// On a thread of the pool, runs what nobody has begun: nobody else may be there to do it. Returns whether there is a
    /// completion.
    fn help(&self) -> bool {
        while self.shared.completions.is_empty() {
            // The last stage first: what is nearest to its end.
            let mut current = self.handles().rev().filter(|stage| stage.is_current());
            if !current.any(StageHandle::help) {
                return false;
            }
        }
        true
    }

    /// Nothing begins any more. What nobody has begun comes back, however busy the pool is with other things.
    pub(crate) fn close(&self) {
        self.handles().for_each(StageHandle::close);
    }

    fn calls(&self) -> Vec<(Thread, Range<u64>)> {
        self.handles().flat_map(StageHandle::calls).collect()
    }

    /// Nothing starts any more. Waits for what runs, gives what comes back to `keep`, and lets go of the function and the
    /// pool.
    pub(crate) fn join(&mut self, mut keep: impl FnMut(BoxedChunk<I, T, E>)) {
        self.stop().forbid_all();
        self.counters().leave(None);
        self.close();
        // Left inside one of its own tasks, a run cannot wait for that.
        let me = thread::current().id();
        let is_inside = self.calls().iter().any(|(worker, _)| worker.id() == me);
        let mut patience = WARN_AFTER;
        loop {
            self.receive();
            while let Some(chunk) = self.next_received() {
                keep(chunk);
            }
            if self.items == 0 || self.dispatch.is_none() || is_inside {
                break;
            }
            // What runs may need the threads that nobody has asked for.
            if self.warm_up() {
                continue;
            }
            self.start_rest();
            // The last completion notifies, if no other does.
            let until = now() + patience;
            let notified = self.shared.completions.notified();
            if notified.recv_deadline(until).is_err() {
                self.tell_who_runs(patience);
                patience *= 2;
            }
        }
        // No job holds the function any more, so this is where its captures are dropped, and the
        // threads of an own pool are joined. The first stage first: its workers hand out what the others do.
        self.handles().for_each(StageHandle::release);
        self.dispatch = None;
    }

    /// All counts are in: the clock stops, the monitor writes its last line, and the run's span ends.
    pub(crate) fn finish(&mut self) {
        self.timings.take_back();
        self.counters().set_load(self.report().load());
        self.counters().end();
        self.monitor = None;
        #[cfg(feature = "tracing")]
        self.shared.run.instruments.trace.end();
    }

    fn tell_who_runs(&self, waited: Duration) {
        let calls: Vec<String> = self.calls().iter().map(call).collect();
        let (title, calls) = (&self.title, calls.join(", "));
        catch_panic(
            || warn!(target: TARGET, "{title}: the run has ended, but for {waited:.0?} it has been waiting for {calls}"),
        );
    }

    /// Where the time went so far.
    pub(crate) fn report(&self) -> Report {
        let elapsed = self.counters().snapshot().elapsed();
        let last = self.stages.last();
        let width = last.map_or(self.width, |last| last.num_threads());
        let mut report = self.timings.report(elapsed, width);
        report.set_stages(&self.stages);
        report
    }
}

impl<I, T, E> Drop for Workers<'_, I, T, E> {
    fn drop(&mut self) {
        // Nobody waits for what comes back, so calls that look for that end soon.
        self.stop().forbid_all();
        self.stop().cancel_tasks();
        self.join(drop);
        self.finish();
    }
}

/// When dropped, nothing starts any more, and what runs is told that nobody waits for it.
pub(crate) struct StopOnDrop<I, T, E> {
    shared: Arc<Shared<I, T, E>>,
}

impl<I, T, E> Drop for StopOnDrop<I, T, E> {
    fn drop(&mut self) {
        self.shared.run.stop.forbid_all();
        self.shared.run.stop.cancel_tasks();
    }
}

/// `task 7 on futureproof-3`.
fn call((worker, tasks): &(Thread, Range<u64>)) -> String {
    let worker = worker.name().unwrap_or("a thread without a name");
    let (first, last) = (tasks.start, tasks.end.saturating_sub(1));
    if first >= last {
        format!("task {first} on {worker}")
    } else {
        format!("one of the tasks {first} to {last} on {worker}")
    }
}
