//! A run as a stream, for async code.
//!
//! A thread drives the run and puts results into a handover. The stream takes them from there when it is polled.

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
use crate::ending::Ending;
use crate::engine::workers::StopHandle;
use crate::map_tasks::MapTasks;
use crate::task::{Task, TaskError, TaskResult};
use crate::util::panics::{catch_panic, drop_catching};

impl<I, T, E> MapTasks<'static, I, T, E>
where
    I: Iterator<Item: Send> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    /// Turns the run into a [`Stream`] of the same tasks, for async code on any runtime.
    ///
    /// Needs the feature `stream`. The first poll starts a thread, which pulls the source and drives the run.
    ///
    /// ```
    /// use futureproof::prelude::*;
    /// use futures_core::Stream;
    /// use std::future::poll_fn;
    /// use std::pin::Pin;
    ///
    /// async fn sum_of_squares() -> u64 {
    ///     let run = (0..100u64).futureproof(Raise).map_tasks(infallible(|n: &u64| n * n));
    ///     let (mut stream, mut sum) = (run.into_stream(), 0);
    ///     // With the crate `futures` and its `StreamExt`, it is `stream.next().await`.
    ///     while let Some(task) = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
    ///         sum += task.unwrap().output;
    ///     }
    ///     sum
    /// }
    /// # struct Unpark(std::thread::Thread);
    /// # impl std::task::Wake for Unpark {
    /// #     fn wake(self: std::sync::Arc<Self>) {
    /// #         self.0.unpark();
    /// #     }
    /// # }
    /// # let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    /// # let mut future = std::pin::pin!(sum_of_squares());
    /// # let sum = loop {
    /// #     match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
    /// #         std::task::Poll::Ready(sum) => break sum,
    /// #         std::task::Poll::Pending => std::thread::park(),
    /// #     }
    /// # };
    /// # assert_eq!(sum, 328_350);
    /// ```
    ///
    /// # What waits for what
    ///
    /// - **A poll** never blocks. The task that polls is woken by results (once per chunk), by the end and by a
    ///   cancel.
    /// - **The source** waits for the consumer: nothing is pulled while a result waits to be taken. So the window
    ///   bounds memory here as well.
    /// - **Finished results** wait while the source blocks, because one thread pulls the source and delivers. To
    ///   avoid that, [read ahead](crate::Futureproof::read_ahead).
    /// - **The end**, when the source is exhausted or the policy stops the run: `None` comes after running calls have
    ///   ended. By then the run's threads, the function and the source are gone.
    /// - **A cancel or a deadline**: `None` comes at once. No further results are delivered, except the failure that
    ///   had ended the run before. Running calls end by themselves, and the threads with them. A deadline does not
    ///   wake the task while the source blocks; a poll then yields `None`.
    /// - **A panic of the source** reaches the next poll at once, without waiting for running calls.
    /// - **A drop** stops the run and does not block. Running calls can [learn of
    ///   it](crate::CancellationToken::current). The threads end when these calls have ended; a call or a source that
    ///   blocks keeps them until it returns. Undelivered results are dropped on the stream's thread. If the run never
    ///   began, the drop itself drops the source and the function.
    ///
    /// # What it costs
    ///
    /// Each handover is a trip between threads. Measured on two cores: 60 ns per task of no work, and 20 to 30 µs per
    /// task of 100 µs. For the iterator it is 3 ns and 2 µs.
    ///
    /// # In a server
    ///
    /// The stream is `Send`, `Unpin` and `'static`, so you can spawn it, or make it the body of a response. Let all
    /// runs [share a pool](crate::Futureproof::on) with `.on(Arc::clone(&pool))`, or each request starts its own
    /// threads. When a client disconnects, the server drops the body, and with it the stream; that stops the run.
    pub fn into_stream(self) -> TaskStream<I, T, E> {
        let handover = Arc::<Handover<_>>::default();
        let stop_handle = self.driver.workers.stop_handle();
        let waiting = Arc::clone(&handover);
        let on_cancel = stop_handle.on_cancel(move || waiting.wake());
        let supplied = Arc::clone(&handover);
        let thread = StreamThread {
            name: format!("{}-stream", self.driver.options.title()),
            has_begun: self.driver.workers.width() > 0,
            work: Box::new(move || drive(self, &supplied)),
        };
        TaskStream {
            thread: Some(thread),
            stop_handle,
            _on_cancel: on_cancel,
            handover,
            is_terminated: false,
        }
    }
}

/// A stream of the finished tasks of a run, created by [`MapTasks::into_stream`].
#[must_use = "streams do nothing unless polled"]
pub struct TaskStream<I: Iterator, T, E> {
    /// `None` after the first poll.
    thread: Option<StreamThread>,
    stop_handle: StopHandle<I::Item, T, E>,
    /// Wakes the polling task on a cancel, even if the driver is busy with a pull.
    _on_cancel: Vec<OnCancel>,
    handover: Arc<Handover<TaskResult<I::Item, T, E>>>,
    is_terminated: bool,
}

/// The thread to start. Its work owns the run.
struct StreamThread {
    name: String,
    /// Whether calls may already be running.
    has_begun: bool,
    work: Box<dyn FnOnce() + Send>,
}

impl StreamThread {
    fn start(self) -> io::Result<()> {
        thread::Builder::new()
            .name(self.name)
            .spawn(self.work)
            .map(drop)
    }
}

/// Passes results from the driver to the stream.
struct Handover<R> {
    state: Mutex<State<R>>,
    /// Signals that all results were taken, or that the stream is gone.
    taken: Condvar,
}

struct State<R> {
    results: VecDeque<R>,
    /// The task that waits for results.
    waker: Option<Waker>,
    /// How the run ended. Results still in the queue came before that.
    ending: Option<Ending>,
    /// The source's panic, for the next poll.
    panic: Option<Payload>,
    /// Whether the driver is done.
    is_over: bool,
    /// Whether the stream is gone or has ended.
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
        // The waker is user code, so its panics are caught.
        waker.map(|waker| catch_panic(|| waker.wake()));
    }

    /// Puts `results` and waits until they are taken. Returns whether more are wanted. If not, drops the rest here,
    /// not on the thread of the consumer, which must not be held up.
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
        left.into_iter().for_each(drop_catching);
        is_wanted
    }

    /// Called when the driver is done, with the ending or the source's panic.
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
        drop_catching(panic);
    }

    /// Called when the stream is gone or has ended. Returns a panic of the source that was not delivered.
    fn abandon(&self) -> Option<Payload> {
        let mut state = self.state();
        state.is_abandoned = true;
        let (waker, panic) = (state.waker.take(), state.panic.take());
        drop(state);
        self.taken.notify_one();
        drop_catching(waker);
        panic
    }
}

/// The body of the stream's thread.
fn drive<I: Iterator, T, E>(
    mut run: MapTasks<'static, I, T, E>,
    handover: &Handover<TaskResult<I::Item, T, E>>,
) {
    // The source's panics go to the next poll.
    let end = panic::catch_unwind(AssertUnwindSafe(|| {
        while let Some(first) = run.next() {
            // The rest of the chunk is ready too. Taking it pulls nothing, so the window holds.
            let mut results = VecDeque::from([first]);
            results.extend(std::iter::from_fn(|| run.driver.next_at_hand()));
            // A failure is delivered even if a cancel follows it.
            let ending = run.ending().filter(|ending| *ending == Ending::Failed);
            if !handover.put(results, ending) {
                break;
            }
        }
        run.ending()
    }));
    let is_at_rest = matches!(end, Ok(Some(Ending::Exhausted | Ending::Failed)))
        && !run.driver.workers.stop().is_interrupted();
    if is_at_rest {
        // The source's destructor may panic, which goes to the next poll as well.
        let gone = panic::catch_unwind(AssertUnwindSafe(move || drop(run)));
        handover.end(gone.and(end));
    } else {
        // Calls may still be running, and the consumer must not wait for them.
        handover.end(end);
        drop_catching(run);
    }
}

impl<I: Iterator, T, E> TaskStream<I, T, E> {
    /// Returns what is ready. If nothing is, stores `waker` to be woken later.
    fn take_up(&mut self, mut waker: Option<Waker>) -> Poll<Option<TaskResult<I::Item, T, E>>> {
        let mut state = self.handover.state();
        let interruption = self.stop_handle.interruption();
        if state.ending.is_none() && interruption.is_some() {
            state.ending = interruption;
        } else if let Some(result) = state.results.pop_front() {
            if state.results.is_empty() {
                self.handover.taken.notify_one();
            }
            return Poll::Ready(Some(result));
        }
        // An interrupted run may still be busy; its driver cleans up.
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
        drop_catching(waker);
        Poll::Pending
    }

    /// Returns how the run ended, or `None` while it runs or has results to deliver.
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

    /// Polls for the next finished task.
    ///
    /// # Panics
    ///
    /// If the source panics, with its panic. At the first poll also if a thread cannot be started.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_terminated {
            return Poll::Ready(None);
        }
        if let Some(thread) = self.thread.take() {
            if let Err(error) = thread.start() {
                self.is_terminated = true;
                panic!("cannot start the thread of a stream: {error}");
            }
        }
        let poll = self.take_up(None);
        if poll.is_ready() {
            return poll;
        }
        // Cloning the waker is user code, so it is done only if needed and not under the lock. By now there may be a
        // result.
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
        self.stop_handle.stop();
        drop_catching(self.handover.abandon());
        if let Some(thread) = self.thread.take() {
            // If calls are running, the thread waits for them, not this drop. If it cannot be started, this drop
            // does.
            if thread.has_begun {
                let _ = thread.start();
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
