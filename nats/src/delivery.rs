//! One task at a worker: from the queue to the answer that its caller has confirmed.

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

/// How long an answer is offered to a caller that is not there.
const CALLER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a task whose caller does not answer is put aside.
const REDELIVERY_DELAY: Duration = Duration::from_secs(5);

/// Between two offers.
const RETRY_DELAY: Duration = Duration::from_millis(100);

impl QueueConsumer {
    /// The next task to run; `None` when the worker is stopped.
    pub(crate) async fn next(self: Arc<Self>) -> Option<Delivery> {
        loop {
            let message = self.next_message().await?;
            if let Some(delivery) = self.admit(message).await {
                return Some(delivery);
            }
        }
    }

    /// Whether a task is to be run. What cannot be read, is not wanted or has killed too many is dealt with.
    async fn admit(self: &Arc<Self>, message: jetstream::Message) -> Option<Delivery> {
        let task = match TaskMessage::parse(&self.names, message) {
            Ok(task) => task,
            Err(acker) => {
                // There is nobody to tell.
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
                    // Its caller is gone. By two signs, as clocks of machines differ.
                    self.counts.unwanted.add();
                    task.terminate().await;
                    return None;
                }
                CallerStatus::Unknown if unresponsive || task.is_overdue() => {
                    self.mark_unresponsive(&task.run);
                    task.redeliver_after(REDELIVERY_DELAY).await;
                    return None;
                }
                // Its caller may be connecting again, as we have.
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

/// A task that is being run. Its lease is kept for as long as this lives, within the limit.
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
                    // It hangs, or the caller has given up: somebody else may try.
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

    /// Gives the caller its answer until it confirms it, and then takes the task off the queue.
    ///
    /// Not before: an answer that is lost with a connection would be lost for good. Returns the kind of what was
    /// sent: an output that is too large is none.
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
                        // It may be a caller that is gone. If it comes back, the task is run again.
                        consumer.mark_unresponsive(&self.task.run);
                        self.task.redeliver_after(REDELIVERY_DELAY).await;
                        return kind;
                    }
                }
                // We are cut off ourselves, or the answer was lost on its way.
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
