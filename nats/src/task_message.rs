//! A task as the queue delivers it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;

use crate::frame::{AnswerHead, Kind, TaskHead};
use crate::names::Names;

/// A task as the queue delivers it.
pub(crate) struct TaskMessage {
    pub(crate) run: String,
    pub(crate) head: TaskHead,
    pub(crate) payload: Bytes,
    /// How many workers took it, this one included.
    pub(crate) deliveries: u64,
    age: Duration,
    pub(crate) acker: Arc<Acker>,
}

impl TaskMessage {
    /// Parses a message. Returns its acker if it is not a task.
    pub(crate) fn parse(names: &Names, message: jetstream::Message) -> Result<Self, Box<Acker>> {
        let (deliveries, published) = match message.info() {
            Ok(info) => (info.delivered, info.published.unix_timestamp_nanos()),
            Err(_) => return Err(Box::new(message.split().1)),
        };
        let (message, acker) = message.split();
        let run = names.run(&message.subject);
        let head = TaskHead::read(message.headers.as_ref());
        let (Some(run), Some(head)) = (run, head) else {
            return Err(Box::new(acker));
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let age = now.unwrap_or_default().as_nanos() as i128 - published;
        Ok(Self {
            run: run.to_owned(),
            head,
            payload: message.payload,
            deliveries: deliveries.try_into().unwrap_or(1),
            age: Duration::from_nanos(age.clamp(0, u64::MAX.into()) as u64),
            acker: Arc::new(acker),
        })
    }

    /// Whether the deadline is over. A hint only, as the server's clock may differ from ours.
    pub(crate) fn is_overdue(&self) -> bool {
        self.age > self.head.deadline
    }

    pub(crate) async fn terminate(&self) {
        let _ = self.acker.ack_with(AckKind::Term).await;
    }

    pub(crate) async fn redeliver_after(&self, time: Duration) {
        let _ = self.acker.ack_with(AckKind::Nak(Some(time))).await;
    }

    /// The headers of an answer to this task, or of a question about it, from `worker`.
    pub(crate) fn answer_head(&self, worker: &str, kind: Kind) -> HeaderMap {
        // The worker that reports a task as lost has not run it.
        let deliveries = self.deliveries - u64::from(kind == Kind::Lost);
        let head = AnswerHead {
            id: self.head.id,
            kind,
            worker: worker.to_owned(),
            deliveries,
        };
        head.write()
    }
}
