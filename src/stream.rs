//! A run as a stream, for async code.
//!
//! Whoever polls is the consumer: the driver does what it does for an iterator, but for blocking.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

use futures_core::{FusedStream, Stream};
use futures_timer::Delay;

use crate::cancel::OnCancel;
use crate::ending::Ending;
use crate::engine::driver::{PollWait, Step};
use crate::map_tasks::MapTasks;
use crate::task::{Task, TaskError, TaskResult};
use crate::util::panics::drop_catching;

impl<I, T, E> MapTasks<'static, I, T, E>
where
    I: Iterator<Item: Send> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    /// Turns the run into a [`Stream`] of the same tasks, for async code on any runtime.
    ///
    /// Needs the feature `stream`.
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
    /// - **A poll** pulls the source, as `futures::stream::iter` does, and delivers what has finished. It never waits for
    ///   calls. The task that polls is woken by results (once per chunk), by the end and by a cancel. There is no
    ///   thread of the stream's own.
    /// - **A source that blocks** would block the poll, and so the executor: let the run [read it
    ///   ahead](crate::Futureproof::read_ahead).
    /// - **The source** waits for the consumer: nothing is pulled while nobody polls. So the window bounds memory here
    ///   as well.
    /// - **The end**, when the source is exhausted or the policy stops the run: `None` comes after running calls have
    ///   ended. By then the run's threads, the function and the source are gone.
    /// - **A cancel or a deadline**: `None` comes at once. No further results are delivered. Running calls end by
    ///   themselves, and the threads with them.
    /// - **A panic of the source** reaches the poll.
    /// - **A drop** stops the run and does not block. Running calls can [learn of
    ///   it](crate::CancellationToken::current). The threads end when these calls have ended; a call that blocks
    ///   keeps them until it returns. Undelivered results are dropped on a thread that is started for that. If the run
    ///   never began, the drop itself drops the source and the function.
    ///
    /// If the executor runs on threads of the very pool that the run uses, a poll runs tasks itself: nobody else may be there
    /// to do it.
    ///
    /// # In a server
    ///
    /// The stream is `Send`, `Unpin` and `'static`, so you can spawn it, or make it the body of a response. Let all
    /// runs [share a pool](crate::Futureproof::on) with `.on(Arc::clone(&pool))`, or each request starts its own
    /// threads. When a client disconnects, the server drops the body, and with it the stream; that stops the run.
    pub fn into_stream(self) -> TaskStream<I, T, E> {
        TaskStream {
            _on_cancel: self.driver.workers.notify_on_cancel(),
            run: Some(Box::new(self)),
            wait: None,
            timer: None,
            leave,
            ending: None,
        }
    }
}

/// A stream of the finished tasks of a run, created by [`MapTasks::into_stream`].
#[must_use = "streams do nothing unless polled"]
pub struct TaskStream<I: Iterator + 'static, T: 'static, E: 'static> {
    /// `None` once the stream has ended.
    run: Option<Run<I, T, E>>,
    /// What the last poll waits for.
    wait: Option<PollWait>,
    /// For what has its time: deadlines, retries, rate limits.
    timer: Option<Delay>,
    /// Wakes whoever polls.
    _on_cancel: Vec<OnCancel>,
    leave: fn(Run<I, T, E>),
    /// How the run ended, once the stream has.
    ending: Option<Ending>,
}

type Run<I, T, E> = Box<MapTasks<'static, I, T, E>>;

/// Drops a run whose calls may still be running, where that holds up nobody.
fn leave<I, T, E>(run: Run<I, T, E>)
where
    I: Iterator<Item: Send> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    let name = format!("{}-stream", run.driver.options.title());
    // If there can be no thread, this one has to wait.
    let _ = thread::Builder::new()
        .name(name)
        .spawn(move || drop_catching(run));
}

impl<I: Iterator, T, E> TaskStream<I, T, E> {
    /// Returns how the run ended, or `None` while it goes on.
    pub fn ending(&self) -> Option<Ending> {
        let run = self.run.as_ref().and_then(|run| run.ending());
        run.or(self.ending)
    }

    fn end(&mut self) {
        self.timer = None;
        self.ending = self.ending();
        let Some(run) = self.run.take() else {
            return;
        };
        if run.driver.is_done() {
            drop(run);
        } else {
            (self.leave)(run);
        }
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
    #[inline]
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(run) = &mut this.run else {
            return Poll::Ready(None);
        };
        match run.driver.next_fast() {
            Some(task) => Poll::Ready(Some(Ok(task))),
            None => this.poll_slow(cx),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let hint = self.run.as_ref().map(|run| run.size_hint());
        hint.unwrap_or((0, Some(0)))
    }
}

impl<I: Iterator, T, E> TaskStream<I, T, E> {
    #[inline(never)]
    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<Option<TaskResult<I::Item, T, E>>> {
        while let Some(run) = &mut self.run {
            let driver = &mut run.driver;
            if let Some(wait) = self.wait.take() {
                driver.end_poll(&wait);
            }
            let for_source = match driver.try_next() {
                Step::Task(result) => return Poll::Ready(Some(result)),
                Step::End => {
                    self.end();
                    break;
                }
                Step::Wait { for_source } => for_source,
            };
            let Some(wait) = driver.begin_poll(for_source, cx.waker()) else {
                continue;
            };
            let until = wait.until;
            self.wait = Some(wait);
            let waker = driver.workers.waker();
            if until.is_none_or(|until| !self.is_over(until, &waker)) {
                return Poll::Pending;
            }
        }
        Poll::Ready(None)
    }

    /// Whether the time is over; else `waker` is woken then.
    fn is_over(&mut self, until: Instant, waker: &Waker) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let timer = match &mut self.timer {
            Some(timer) => {
                timer.reset(left);
                timer
            }
            None => self.timer.insert(Delay::new(left)),
        };
        Pin::new(timer)
            .poll(&mut Context::from_waker(waker))
            .is_ready()
    }
}

impl<I, T, E> FusedStream for TaskStream<I, T, E>
where
    I: Iterator<Item: Send> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    fn is_terminated(&self) -> bool {
        self.run.is_none()
    }
}

impl<I: Iterator, T, E> Drop for TaskStream<I, T, E> {
    fn drop(&mut self) {
        let Some(run) = self.run.take() else {
            return;
        };
        if run.driver.workers.width() == 0 {
            drop_catching(run);
        } else {
            // At once, whenever the thread gets to it.
            run.driver.workers.stop().forbid_all();
            run.driver.workers.stop().cancel_tasks();
            (self.leave)(run);
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
