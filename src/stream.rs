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
    /// The same tasks as a [`Stream`], for async code on any runtime. Needs the feature `stream`.
    ///
    /// A thread of the stream's own, which the first poll starts, pulls the source and drives the run.
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
    /// - A poll waits for nothing. Whoever polls is woken by results (once a chunk), the end, and a cancel.
    /// - The source waits for whoever polls: nothing is pulled while a result waits to be taken. So the window
    ///   bounds what is in flight here as well.
    /// - Finished results wait for a pull that is under way, since one thread pulls and hands over, unless
    ///   the source [is read ahead](crate::Futureproof::read_ahead).
    /// - `None` waits for the calls that run when the tasks are exhausted or the policy ends the run. By then the
    ///   run's threads, the function and the source are gone.
    /// - After a cancel or at the deadline, `None` waits for nothing, and no result is delivered any more
    ///   but the failure that had ended the run before. Calls that run come to their end by themselves, and the
    ///   threads then. If the source blocks at the deadline, nobody is woken until it returns; a poll gives `None`.
    /// - A panic of the source reaches the next poll at once, without waiting for calls that run.
    /// - A drop stops the run and waits for nothing. Calls that run can
    ///   [learn of it](crate::CancellationToken::current); once they have come to their end, so do the threads. A call or
    ///   a source that blocks keeps them until it returns. What was not delivered is dropped on the stream's thread;
    ///   only if the run has never begun, the source and the function are dropped on the spot.
    ///
    /// # What it costs
    ///
    /// Each handover is a trip between threads. Measured on two cores: 60 ns per task of no work, and 20 to 30 µs per task
    /// of 100 µs, beside 3 ns and 2 µs for the iterator.
    ///
    /// # In a server
    ///
    /// The stream is `Send`, `Unpin` and `'static`, so it can be spawned, and be the body of a response. Give all runs one
    /// pool [to share](crate::Futureproof::on), `.on(Arc::clone(&pool))`: else each request makes one. When a client hangs
    /// up, the server drops the body, so the stream, and that stops the run.
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

/// The finished tasks of a run, as a stream; made by [`MapTasks::into_stream`].
#[must_use = "streams do nothing unless polled"]
pub struct TaskStream<I: Iterator, T, E> {
    /// Up to the first poll.
    thread: Option<StreamThread>,
    stop_handle: StopHandle<I::Item, T, E>,
    /// Wakes whoever waits: the driver may be busy with a pull.
    _on_cancel: Vec<OnCancel>,
    handover: Arc<Handover<TaskResult<I::Item, T, E>>>,
    is_terminated: bool,
}

/// A thread that is to be started, and what it is to do. It has the run.
struct StreamThread {
    name: String,
    /// Whether calls may be running before it is started.
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
        waker.map(|waker| catch_panic(|| waker.wake()));
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
        left.into_iter().for_each(drop_catching);
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
        drop_catching(panic);
    }

    /// Nobody takes up anything more. Gives the panic that nobody has seen.
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

/// What the thread of a stream does.
fn drive<I: Iterator, T, E>(
    mut run: MapTasks<'static, I, T, E>,
    handover: &Handover<TaskResult<I::Item, T, E>>,
) {
    // The source's panics are for whoever polls.
    let end = panic::catch_unwind(AssertUnwindSafe(|| {
        while let Some(first) = run.next() {
            // The rest of its chunk is there as well. Nothing is pulled for that, so the window holds.
            let mut results = VecDeque::from([first]);
            results.extend(std::iter::from_fn(|| run.driver.next_at_hand()));
            // After a cancel nothing is delivered, but a failure is what came before it.
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
        // The destructor of the source may panic: that is for whoever polls as well.
        let gone = panic::catch_unwind(AssertUnwindSafe(move || drop(run)));
        handover.end(gone.and(end));
    } else {
        // Calls may run on, and nobody is to wait for them.
        handover.end(end);
        drop_catching(run);
    }
}

impl<I: Iterator, T, E> TaskStream<I, T, E> {
    /// What there is for a poll. If that is nothing, `waker` will be woken.
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
        drop_catching(waker);
        Poll::Pending
    }

    /// How the run ended; `None` while it runs, and while results are to be delivered.
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
        self.stop_handle.stop();
        drop_catching(self.handover.abandon());
        if let Some(thread) = self.thread.take() {
            // What runs is waited for, but not here. Without a thread there is no other place.
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
