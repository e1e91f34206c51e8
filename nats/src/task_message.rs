//! A task as the queue delivers it.

use std::time::Duration;

use async_nats::jetstream::{self, AckKind};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use crate::frame::{AnswerHead, Kind, TaskHead};
use crate::names::Names;
use crate::server::Session;

/// A task as the queue delivers it.
pub(crate) struct TaskMessage {
    pub(crate) run: String,
    pub(crate) head: TaskHead,
    pub(crate) payload: Bytes,
    /// How many workers took it, this one included: as the server counts, and for a task that was delivered before, as
    /// the caller does.
    pub(crate) deliveries: u64,
    age: Duration,
    pub(crate) ack: Ack,
}

/// Where a message is acknowledged.
#[derive(Clone)]
pub(crate) struct Ack {
    session: Session,
    subject: Option<Subject>,
}

impl Ack {
    pub(crate) async fn send(&self, kind: AckKind) {
        if let Some(subject) = &self.subject {
            self.session.publish(subject.clone(), kind.into()).await;
        }
    }
}

impl TaskMessage {
    /// Parses a message. Returns where to acknowledge it if it is not a task.
    pub(crate) fn parse(
        names: &Names,
        session: &Session,
        message: async_nats::Message,
    ) -> Result<Self, Ack> {
        let ack = Ack {
            session: session.clone(),
            subject: message.reply.clone(),
        };
        let context = session.context();
        let message = jetstream::Message { message, context };
        let (deliveries, published) = match message.info() {
            Ok(info) => (info.delivered, info.published.unix_timestamp_nanos()),
            Err(_) => return Err(ack),
        };
        let run = names.run(&message.subject);
        let head = TaskHead::read(message.headers.as_ref());
        let (Some(run), Some(head)) = (run, head) else {
            return Err(ack);
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let age = now.unwrap_or_default().as_nanos() as i128 - published;
        Ok(Self {
            run: run.to_owned(),
            head,
            payload: message.payload.clone(),
            deliveries: deliveries.try_into().unwrap_or(1),
            age: Duration::from_nanos(age.clamp(0, u64::MAX.into()) as u64),
            ack,
        })
    }

    /// Whether the deadline is over. A hint only, as the server's clock may differ from ours.
    pub(crate) fn is_overdue(&self) -> bool {
        self.age > self.head.deadline
    }

    pub(crate) async fn terminate(&self) {
        self.ack.send(AckKind::Term).await;
    }

    pub(crate) async fn redeliver_after(&self, time: Duration) {
        self.ack.send(AckKind::Nak(Some(time))).await;
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
