//! One task on a worker, from the queue to the confirmed answer.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Request;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::frame::{self, Kind};
use crate::queue_consumer::{CONFIRM_TIMEOUT, CallerStatus, QueueConsumer};
use crate::task_message::TaskMessage;

/// How long a worker keeps sending an answer to a caller that is not connected.
const CALLER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server waits before it redelivers a task whose caller does not respond.
const REDELIVERY_DELAY: Duration = Duration::from_secs(5);

/// How long to wait before the answer is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

impl QueueConsumer {
    /// Returns the next task to run, or `None` when the worker is stopped.
    pub(crate) async fn next(self: Arc<Self>) -> Option<Delivery> {
        loop {
            let message = self.next_message().await?;
            if let Some(delivery) = self.admit(message).await {
                return Some(delivery);
            }
        }
    }

    /// Decides whether to run a task. Returns `None` for a task that is unreadable, unwanted or given up,
    /// after it has been answered or taken off the queue.
    async fn admit(self: &Arc<Self>, message: jetstream::Message) -> Option<Delivery> {
        let task = match TaskMessage::parse(&self.names, message) {
            Ok(task) => task,
            Err(acker) => {
                // It names no caller to answer.
                self.counts.unreadable.add();
                log::warn!(
                    target: "futureproof",
                    "{}: dropped a message that is not a task: check who else publishes to {}",
                    self.names.name(), self.names.tasks("*")
                );
                let _ = acker.ack_with(AckKind::Term).await;
                return None;
            }
        };
        let unresponsive = self.is_unresponsive(&task.run);
        if task.deliveries > 1 {
            self.counts.redelivered.add();
        }
        if task.deliveries > 1 || task.is_overdue() || unresponsive {
            match self.ask_caller(&task).await {
                CallerStatus::Waiting => self.mark_responsive(&task.run),
                CallerStatus::Gone => {
                    self.counts.unwanted.add();
                    task.terminate().await;
                    return None;
                }
                CallerStatus::Unknown if unresponsive && task.is_overdue() => {
                    // Two signs that the caller is gone. One is not enough, as clocks differ between machines.
                    self.counts.unwanted.add();
                    task.terminate().await;
                    return None;
                }
                CallerStatus::Unknown if unresponsive || task.is_overdue() => {
                    self.mark_unresponsive(&task.run);
                    task.redeliver_after(REDELIVERY_DELAY).await;
                    return None;
                }
                // The caller may be reconnecting, as this worker has.
                CallerStatus::Unknown => {}
            }
        }
        let max_deliver = task.head.max_deliver;
        let too_large = task.payload.len() > self.limits.max_item_bytes;
        let delivery = Delivery::start(Arc::clone(self), task);
        if delivery.task.deliveries > max_deliver {
            self.counts.lost.add();
            delivery.settle(Kind::Lost, Vec::new().into()).await;
            return None;
        }
        if too_large {
            self.counts.unreadable.add();
            let reason = format!(
                "the item is larger than the {} bytes that this worker accepts: raise `max_item_bytes`",
                self.limits.max_item_bytes
            );
            delivery.settle(Kind::Decode, reason.into()).await;
            return None;
        }
        Some(delivery)
    }
}

/// A task in progress. Its lease is renewed until this is dropped, or the time limit is over.
pub(crate) struct Delivery {
    pub(crate) task: TaskMessage,
    consumer: Arc<QueueConsumer>,
    taken: Instant,
    lease_renewal: JoinHandle<()>,
}

impl Delivery {
    pub(crate) fn start(consumer: Arc<QueueConsumer>, task: TaskMessage) -> Self {
        let limit = consumer.limits.time_limit.unwrap_or(task.head.deadline);
        let every = consumer.lease() / 4;
        let taken = Instant::now();
        let acker = Arc::clone(&task.acker);
        let lease_renewal = tokio::spawn(async move {
            loop {
                sleep(every).await;
                if taken.elapsed() > limit {
                    // The task hangs, or its caller has given up: let another worker try.
                    break;
                }
                let _ = acker.ack_with(AckKind::Progress).await;
            }
        });
        Self {
            task,
            consumer,
            taken,
            lease_renewal,
        }
    }

    /// Sends the answer until the caller confirms it, then acknowledges the task.
    ///
    /// The acknowledgement comes last, as an answer may be lost with the connection. Returns the kind of
    /// answer that was sent: it is `Encode` if the output was too large.
    pub(crate) async fn settle(self, mut kind: Kind, mut payload: Bytes) -> Kind {
        let consumer = &self.consumer;
        if let Err(reason) = frame::check_length("output", &payload, &consumer.client) {
            (kind, payload) = (Kind::Encode, reason.into());
        }
        let subject = consumer.names.answers(&self.task.run);
        let headers = self.task.answer_head(&consumer.worker, kind);
        let finished = Instant::now();
        loop {
            let request = Request::new()
                .headers(headers.clone())
                .payload(payload.clone())
                .timeout(Some(CONFIRM_TIMEOUT));
            match consumer.client.send_request(subject.clone(), request).await {
                Ok(_) => {
                    let _ = self.task.acker.ack().await;
                    return kind;
                }
                Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                    if finished.elapsed() > CALLER_TIMEOUT {
                        // The caller may be gone. If it comes back, the task runs again.
                        consumer.mark_unresponsive(&self.task.run);
                        self.task.redeliver_after(REDELIVERY_DELAY).await;
                        return kind;
                    }
                }
                // This worker is disconnected, or the answer was lost.
                Err(_) if self.taken.elapsed() > self.task.head.deadline + CALLER_TIMEOUT => {
                    return kind;
                }
                Err(_) => {}
            }
            sleep(RETRY_DELAY).await;
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.lease_renewal.abort();
    }
}
