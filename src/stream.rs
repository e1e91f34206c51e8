//! A run as a stream, for async code.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use futures_core::{FusedStream, Stream};

use crate::cancel::OnCancel;
use crate::contain::{bury, contain};
use crate::crew::Remote;
use crate::task::{Ending, Task, TaskError, TaskResult};
use crate::tasks::MapTasks;

impl<I, T, E> MapTasks<'static, I, T, E>
where
    I: Iterator<Item: Send> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    /// The same tasks as a [`Stream`], for async code on any runtime. Needs the feature `stream`.
    ///
    /// The source is pulled, and the run is driven, on a thread of its own that starts at the first poll.
    /// Polling never blocks. The same window bounds what is in flight: nothing is pulled while a result waits
    /// to be taken. Where the stream is given results, whoever polls it is woken once a chunk.
    ///
    /// Dropping the stream stops the run and waits for nothing: calls that run come to their end by
    /// themselves, then the threads do, and what was not delivered is dropped there. When the stream has
    /// ended with `None`, all of that is done.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use futures_core::Stream;
    ///
    /// fn squares() -> impl Stream<Item = u64> {
    ///     # struct Outputs<S>(S);
    ///     # impl<S, T, E> Stream for Outputs<S> where S: Stream<Item = Result<Task<u64, T>, E>> + Unpin {
    ///     #     type Item = T;
    ///     #     fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
    ///     #         std::pin::Pin::new(&mut self.0).poll_next(cx).map(|it| it.and_then(Result::ok).map(|it| it.output))
    ///     #     }
    ///     # }
    ///     let stream = (0..100u64).futureproof(Raise).map_tasks(infallible(|n: &u64| n * n)).into_stream();
    ///     // With the `futures` crate: `stream.map(|task| …)`.
    ///     # Outputs(stream)
    /// }
    /// # let mut stream = squares();
    /// # let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let mut sum = 0;
    /// # loop {
    /// #     match std::pin::Pin::new(&mut stream).poll_next(&mut cx) {
    /// #         std::task::Poll::Ready(Some(square)) => sum += square,
    /// #         std::task::Poll::Ready(None) => break,
    /// #         std::task::Poll::Pending => std::thread::yield_now(),
    /// #     }
    /// # }
    /// # assert_eq!(sum, 328_350);
    /// ```
    pub fn into_stream(self) -> TaskStream<I, T, E> {
        let handover = Arc::<Handover<_>>::default();
        let remote = self.circle.crew.remote();
        let name = format!("{}-stream", self.plan.title());
        let waiting = Arc::clone(&handover);
        let on_cancel = remote.on_cancel(move || waiting.wake());
        let has_begun = self.circle.crew.width() > 0;
        let run = Box::new(self);
        let there = Arc::clone(&handover);
        let driver = Driver {
            name,
            has_begun,
            work: Box::new(move || drive(run, &there)),
        };
        TaskStream {
            driver: Some(driver),
            remote,
            _on_cancel: on_cancel,
            handover,
            is_terminated: false,
        }
    }
}

/// The finished tasks of a run, as a stream; made by [`MapTasks::into_stream`].
#[must_use = "streams do nothing unless polled"]
pub struct TaskStream<I: Iterator, T, E> {
    /// Up to the first poll.
    driver: Option<Driver>,
    remote: Remote<I::Item, T, E>,
    /// Wakes whoever waits: the driver may be busy with a pull.
    _on_cancel: Option<OnCancel>,
    handover: Arc<Handover<TaskResult<I::Item, T, E>>>,
    is_terminated: bool,
}

/// A thread that is to be started, and what it is to do. It has the run.
struct Driver {
    name: String,
    /// Whether calls may be running before it is started.
    has_begun: bool,
    work: Box<dyn FnOnce() + Send>,
}

impl Driver {
    fn start(self) -> io::Result<()> {
        thread::Builder::new()
            .name(self.name)
            .spawn(self.work)
            .map(drop)
    }
}

/// Where the driver lays results down, and the stream takes them up.
struct Handover<R> {
    state: Mutex<State<R>>,
    /// All results were taken, or nobody wants any.
    taken: Condvar,
}

struct State<R> {
    results: VecDeque<R>,
    /// Whoever waits for results.
    waker: Option<Waker>,
    /// How the run has ended. The results that lie here came before that.
    ending: Option<Ending>,
    /// The source's panic, for whoever polls.
    panic: Option<Payload>,
    /// Whether the driver lays down nothing more.
    is_over: bool,
    /// Whether nobody takes up anything more.
    is_abandoned: bool,
}

type Payload = Box<dyn Any + Send>;

impl<R> Default for Handover<R> {
    fn default() -> Self {
        let state = State {
            results: VecDeque::new(),
            waker: None,
            ending: None,
            panic: None,
            is_over: false,
            is_abandoned: false,
        };
        Self {
            state: Mutex::new(state),
            taken: Condvar::new(),
        }
    }
}

impl<R> Handover<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        // Nothing that could panic is done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let waker = self.state().waker.take();
        // It is the user's: its panics end here.
        waker.map(|waker| contain(|| waker.wake()));
    }

    /// Lays `results` down and waits until they were taken. Returns whether more are wanted; if not, those that are
    /// left are dropped here rather than on a thread that must not be kept.
    fn put(&self, results: VecDeque<R>, ending: Option<Ending>) -> bool {
        let mut state = self.state();
        state.results = results;
        state.ending = state.ending.or(ending);
        drop(state);
        self.wake();
        let state = self.state();
        let is_waiting = |state: &mut State<R>| !state.results.is_empty() && !state.is_abandoned;
        let state = self.taken.wait_while(state, is_waiting);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let is_wanted = !state.is_abandoned;
        let left = mem::take(&mut state.results);
        drop(state);
        left.into_iter().for_each(bury);
        is_wanted
    }

    /// The driver lays down nothing more.
    fn end(&self, end: thread::Result<Option<Ending>>) {
        let (ending, mut panic) = match end {
            Ok(ending) => (ending, None),
            Err(payload) => (Some(Ending::SourcePanicked), Some(payload)),
        };
        let mut state = self.state();
        state.is_over = true;
        state.ending = state.ending.or(ending);
        if !state.is_abandoned {
            mem::swap(&mut state.panic, &mut panic);
        }
        drop(state);
        self.wake();
        bury(panic);
    }

    /// Nobody takes up anything more. Gives the panic that nobody has seen.
    fn abandon(&self) -> Option<Payload> {
        let mut state = self.state();
        state.is_abandoned = true;
        let (waker, panic) = (state.waker.take(), state.panic.take());
        drop(state);
        self.taken.notify_one();
        bury(waker);
        panic
    }
}

/// What the thread of a stream does.
fn drive<I: Iterator, T, E>(
    mut run: Box<MapTasks<'static, I, T, E>>,
    handover: &Handover<TaskResult<I::Item, T, E>>,
) {
    // The source's panics are for whoever polls.
    let end = panic::catch_unwind(AssertUnwindSafe(|| {
        while let Some(first) = run.next() {
            // The rest of its chunk is there as well. Nothing is pulled for that, so the window holds.
            let mut results = VecDeque::from([first]);
            results.extend(std::iter::from_fn(|| run.next_at_hand()));
            // After a cancel nothing is delivered, but a failure is what came before it.
            let ending = run.ending().filter(|ending| *ending == Ending::Failed);
            if !handover.put(results, ending) {
                break;
            }
        }
        run.ending()
    }));
    let is_at_rest = matches!(end, Ok(Some(Ending::Exhausted | Ending::Failed)))
        && !run.circle.crew.signals().is_interrupted();
    if is_at_rest {
        let gone = panic::catch_unwind(AssertUnwindSafe(move || drop(run)));
        handover.end(gone.and(end));
    } else {
        // Calls may run on, and nobody is to wait for them.
        handover.end(end);
        bury(run);
    }
}

impl<I: Iterator, T, E> TaskStream<I, T, E> {
    /// What there is for a poll. If that is nothing, `waker` will be woken.
    fn take_up(&mut self, mut waker: Option<Waker>) -> Poll<Option<TaskResult<I::Item, T, E>>> {
        let mut state = self.handover.state();
        let interruption = self.remote.interruption();
        if state.ending.is_none() && interruption.is_some() {
            state.ending = interruption;
        } else if let Some(result) = state.results.pop_front() {
            if state.results.is_empty() {
                self.handover.taken.notify_one();
            }
            return Poll::Ready(Some(result));
        }
        // An interrupted run may still be busy, and is left to its driver.
        if state.is_over || interruption.is_some() {
            drop(state);
            self.is_terminated = true;
            return match self.handover.abandon() {
                Some(payload) => panic::resume_unwind(payload),
                None => Poll::Ready(None),
            };
        }
        mem::swap(&mut state.waker, &mut waker);
        drop(state);
        bury(waker);
        Poll::Pending
    }

    /// How the run ended; `None` while it runs.
    pub fn ending(&self) -> Option<Ending> {
        let state = self.handover.state();
        let is_all = state.results.is_empty() || self.is_terminated;
        state.ending.filter(|_| is_all)
    }
}

impl<I, T, E> Stream for TaskStream<I, T, E>
where
    I: Iterator<Item: Send> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Item = Result<Task<I::Item, T>, TaskError<I::Item, E>>;

    /// The next task that has finished.
    ///
    /// # Panics
    ///
    /// With the source's panic, and, at the first poll, if a thread cannot be had.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_terminated {
            return Poll::Ready(None);
        }
        if let Some(driver) = self.driver.take() {
            if let Err(error) = driver.start() {
                self.is_terminated = true;
                panic!("cannot start the thread of a stream: {error}");
            }
        }
        let poll = self.take_up(None);
        if poll.is_ready() {
            return poll;
        }
        // Cloned only where it is needed, and not under the lock. So there may be something by now.
        self.take_up(Some(cx.waker().clone()))
    }
}

impl<I, T, E> FusedStream for TaskStream<I, T, E>
where
    I: Iterator<Item: Send> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    fn is_terminated(&self) -> bool {
        self.is_terminated
    }
}

impl<I: Iterator, T, E> Drop for TaskStream<I, T, E> {
    fn drop(&mut self) {
        self.remote.halt();
        bury(self.handover.abandon());
        if let Some(driver) = self.driver.take() {
            // What runs is waited for, but not here. Without a thread there is no other place.
            if driver.has_begun {
                let _ = driver.start();
            }
        }
    }
}

impl<I: Iterator, T, E> fmt::Debug for TaskStream<I, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskStream")
            .field("ending", &self.ending())
            .finish_non_exhaustive()
    }
}
