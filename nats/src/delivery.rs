//! One task on a worker, from the queue to the confirmed answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::Message;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::AckKind;
use bytes::Bytes;
use futureproof::CancellationToken;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, interval_at, sleep, sleep_until};

use crate::callers::Caller;
use crate::frame::{self, Kind};
use crate::queue_consumer::{CallerStatus, PULL_TIMEOUT, QueueConsumer};
use crate::server::REPLY_TIMEOUT;
use crate::task_message::TaskMessage;

/// How long a worker keeps an answer for a caller that does not respond, or as long as the task took.
const CALLER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait before the answer is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long a task that another worker has started is put aside.
const NOT_YOU_DELAY: Duration = Duration::from_secs(1);

impl QueueConsumer {
    /// Returns the next task to run, or `None` when the worker is stopped.
    pub(crate) async fn next(self: Arc<Self>) -> Option<Delivery> {
        loop {
            // Before the pull, so that no message waits in this worker for others to end.
            let ready = async {
                let active = Arc::clone(&self.active).acquire_owned().await;
                (active, Arc::clone(&self.side_by_side).read_owned().await)
            };
            let (active, others) = tokio::select! {
                biased;
                () = self.stopped() => return None,
                ready = ready => ready,
            };
            let active = active.unwrap_or_else(|_| unreachable!("the semaphore is never closed"));
            let Some(message) = self.next_message().await else {
                continue;
            };
            if let Some(delivery) = self.admit(message, active, others).await {
                return Some(delivery);
            }
        }
    }

    /// Decides whether to run a task. Returns `None` for a task that is unreadable, unwanted, put aside or given up,
    /// after it has been answered or acknowledged.
    async fn admit(
        self: &Arc<Self>,
        message: Message,
        active: OwnedSemaphorePermit,
        others: impl Send + 'static,
    ) -> Option<Delivery> {
        let mut task = match TaskMessage::parse(&self.names, &self.session, message) {
            Ok(task) => task,
            Err(ack) => {
                // It names no caller to answer.
                self.counts.unreadable.add();
                log::warn!(
                    target: "futureproof",
                    "{}: dropped a message that is not a task: check who else publishes to {}",
                    self.names.name(), self.names.tasks("*")
                );
                ack.send(AckKind::Term).await;
                return None;
            }
        };
        let was_delivered = task.deliveries > 1;
        if was_delivered {
            self.counts.redelivered.add();
        }
        match self.callers.state(&task.run) {
            Caller::Over => return self.drop_unwanted(&task).await,
            // Two signs that the caller is gone. One is not enough, as clocks differ between machines.
            Caller::Unresponsive if task.is_overdue() => return self.drop_unwanted(&task).await,
            // No thread waits for it: others have work to do.
            Caller::Unresponsive => {
                task.redeliver_after(self.callers.put_aside(&task.run))
                    .await;
                self.ask_again(task);
                return None;
            }
            Caller::Responsive => {}
        }
        let mut started = 0;
        if was_delivered || task.is_overdue() {
            match self.ask_caller(&task, Kind::Wanted).await {
                CallerStatus::Waiting { started: n } => started = n,
                CallerStatus::Gone => return self.drop_unwanted(&task).await,
                CallerStatus::Unknown | CallerStatus::NotYou => {
                    // The caller may be reconnecting, as this worker has.
                    self.callers.mark_unresponsive(&task.run);
                    task.redeliver_after(self.callers.put_aside(&task.run))
                        .await;
                    return None;
                }
            }
        }
        let max_deliver = task.head.max_deliver;
        if was_delivered {
            task.deliveries = started + 1;
        }
        let delivery = Delivery::start(self, task, active);
        if was_delivered && started >= max_deliver {
            self.counts.lost.add();
            delivery.settle_in_background(Kind::Lost, Bytes::new());
            return None;
        }
        if delivery.task.payload.len() > self.limits.max_item_bytes {
            self.counts.unreadable.add();
            let reason = format!(
                "the item is larger than the {} bytes that this worker accepts: raise `max_item_bytes`",
                self.limits.max_item_bytes
            );
            delivery.settle_in_background(Kind::Decode, reason.into());
            return None;
        }
        if !was_delivered {
            return Some(delivery.attend(others));
        }
        if started > 0 && started + 1 >= max_deliver {
            // Its last chance: it runs alone, so that a death is its own, and it cannot die of another's.
            drop(others);
            let alone = Arc::clone(&self.side_by_side).write_owned();
            let alone = tokio::select! {
                alone = alone => alone,
                () = self.stopped() => {
                    // It has not been started: for another worker.
                    delivery.task.redeliver_after(PULL_TIMEOUT).await;
                    return None;
                }
            };
            self.start_again(delivery, alone).await
        } else {
            self.start_again(delivery, others).await
        }
    }

    /// Starts a task that was delivered before, if the caller lets it.
    async fn start_again(
        &self,
        delivery: Delivery,
        beside: impl Send + 'static,
    ) -> Option<Delivery> {
        let task = &delivery.task;
        match self.ask_caller(task, Kind::Start).await {
            CallerStatus::Waiting { .. } => return Some(delivery.attend(beside)),
            CallerStatus::Gone => return self.drop_unwanted(task).await,
            CallerStatus::NotYou => task.redeliver_after(NOT_YOU_DELAY).await,
            CallerStatus::Unknown => {
                self.callers.mark_unresponsive(&task.run);
                task.redeliver_after(self.callers.put_aside(&task.run))
                    .await;
            }
        }
        None
    }

    async fn drop_unwanted(&self, task: &TaskMessage) -> Option<Delivery> {
        self.counts.unwanted.add();
        task.terminate().await;
        None
    }

    /// Asks in the background whether a caller is back.
    fn ask_again(self: &Arc<Self>, task: TaskMessage) {
        if self.callers.is_to_be_asked(&task.run) {
            let consumer = Arc::clone(self);
            tokio::spawn(async move {
                match consumer.ask_caller(&task, Kind::Wanted).await {
                    CallerStatus::Unknown => {}
                    _ => consumer.callers.mark_responsive(&task.run),
                }
            });
        }
    }
}

/// A task in progress. Its lease is renewed until this is dropped, or the time limit is over.
pub(crate) struct Delivery {
    pub(crate) task: TaskMessage,
    /// Cancelled when nobody waits for the task any more, and some time after a stop of the worker.
    pub(crate) token: CancellationToken,
    consumer: Arc<QueueConsumer>,
    taken: Instant,
    _lease_renewal: AbortOnDrop,
    attendance: Option<AbortOnDrop>,
    is_given_back: Arc<AtomicBool>,
    active: Option<OwnedSemaphorePermit>,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Delivery {
    fn start(
        consumer: &Arc<QueueConsumer>,
        task: TaskMessage,
        active: OwnedSemaphorePermit,
    ) -> Self {
        let limit = consumer.limits.time_limit.unwrap_or(task.head.deadline);
        let every = consumer.lease() / 4;
        let taken = Instant::now();
        let ack = task.ack.clone();
        let lease_renewal = tokio::spawn(async move {
            loop {
                sleep(every).await;
                if taken.elapsed() > limit {
                    // The task hangs, or its caller has given up: let another worker try.
                    break;
                }
                ack.send(AckKind::Progress).await;
            }
        });
        Self {
            task,
            token: CancellationToken::new(),
            consumer: Arc::clone(consumer),
            taken,
            _lease_renewal: AbortOnDrop(lease_renewal),
            attendance: None,
            is_given_back: Arc::default(),
            active: Some(active),
        }
    }

    /// Cancels the token in time. Holds `beside` until the function has returned, or the time limit is over.
    fn attend(mut self, beside: impl Send + 'static) -> Self {
        let consumer = Arc::clone(&self.consumer);
        let limit = consumer
            .limits
            .time_limit
            .unwrap_or(self.task.head.deadline);
        let end = Instant::now() + limit;
        let (run, token) = (self.task.run.clone(), self.token.clone());
        let mut over = consumer.over.subscribe();
        let is_given_back = Arc::clone(&self.is_given_back);
        let question = self.task.answer_head(&consumer.worker, Kind::Wanted);
        let attendance = tokio::spawn(async move {
            let _beside = beside;
            let every = consumer.lease() / 2;
            let mut ask = interval_at(Instant::now() + every, every);
            let stop = async {
                consumer.stopped().await;
                sleep(consumer.limits.grace).await;
            };
            tokio::pin!(stop);
            loop {
                tokio::select! {
                    () = sleep_until(end) => break,
                    () = &mut stop => {
                        is_given_back.store(true, Ordering::Relaxed);
                        break;
                    }
                    said = over.recv() => match said {
                        Ok(said) if said == run => break,
                        Ok(_) | Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => break,
                    },
                    _ = ask.tick() => {
                        let subject = consumer.names.answers(&run);
                        let reply = consumer.session.request(subject, question.clone(), Bytes::new()).await;
                        if reply.is_ok_and(|reply| reply.payload == frame::NO) {
                            break;
                        }
                    }
                }
            }
            // Elsewhere, as it calls the user's callbacks.
            let _ = spawn_blocking(move || token.cancel()).await;
            sleep_until(end).await;
        });
        self.attendance = Some(AbortOnDrop(attendance));
        self
    }

    /// The function has returned: others may run, and the answer is sent in the background.
    pub(crate) fn settle_in_background(self, kind: Kind, payload: Bytes) {
        tokio::spawn(self.settle(kind, payload));
    }

    /// Sends the answer until the caller confirms it, then acknowledges the task. Returns the kind of answer that was
    /// sent: it is `Encode` if the output was too large.
    ///
    /// The acknowledgement comes last, as an answer may be lost with the connection.
    pub(crate) async fn settle(mut self, mut kind: Kind, mut payload: Bytes) -> Kind {
        self.attendance = None;
        let consumer = Arc::clone(&self.consumer);
        let is_given_back = self.is_given_back.load(Ordering::Relaxed);
        if is_given_back && matches!(kind, Kind::Err | Kind::Panicked) {
            // It was told to end, and this may be all that it could do.
            self.give_back().await;
            return kind;
        }
        if let Err(reason) = frame::check_length("output", &payload, &consumer.session.client()) {
            (kind, payload) = (Kind::Encode, reason.into());
        }
        let patience = CALLER_TIMEOUT.max(self.taken.elapsed());
        let mut silent_since = Instant::now();
        let mut kept = None;
        loop {
            if consumer.callers.state(&self.task.run) == Caller::Over {
                self.task.terminate().await;
                return kind;
            }
            let asked = Instant::now();
            let answer = consumer.tell_caller(&self.task, kind, payload.clone());
            let Err(error) = answer.await else {
                consumer.callers.mark_responsive(&self.task.run);
                self.task.ack.send(AckKind::Ack).await;
                return kind;
            };
            if !consumer.session.is_connected() {
                // This worker hears from nobody.
                silent_since = Instant::now();
            } else if error == RequestErrorKind::TimedOut || silent_since.elapsed() > REPLY_TIMEOUT
            {
                consumer.callers.mark_unresponsive(&self.task.run);
            }
            if kept.is_none() {
                kept = Arc::clone(&consumer.kept).try_acquire_owned().ok();
                self.active = None;
            }
            let is_late = self.taken.elapsed() > self.task.head.deadline + CALLER_TIMEOUT;
            if kept.is_none() || is_late || silent_since.elapsed() > patience {
                // If the caller comes back, the task runs again.
                let delay = consumer.callers.put_aside(&self.task.run);
                self.task.redeliver_after(delay).await;
                return kind;
            }
            sleep_until(asked + RETRY_DELAY.max(silent_since.elapsed() / 4)).await;
        }
    }

    /// Gives the task to another worker. The caller does not count this start.
    async fn give_back(&self) {
        let _ = self
            .consumer
            .tell_caller(&self.task, Kind::Returned, Bytes::new())
            .await;
        // Not to this worker, whose pulls may still be under way.
        self.task.redeliver_after(PULL_TIMEOUT).await;
    }
}
