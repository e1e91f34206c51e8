//! One task at a worker: from the queue to the answer that its caller has confirmed.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{self, AckKind};
use async_nats::{HeaderMap, Request};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::frame::{self, AnswerHead, Kind, NO, TaskHead};
use crate::names::Names;
use crate::station::Station;

/// How long a caller has to confirm before it is told again.
const CONFIRM: Duration = Duration::from_secs(1);

/// How long an answer is offered to a caller that is not there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two offers.
const AGAIN: Duration = Duration::from_millis(100);

/// Whether the caller still waits for a task.
pub(crate) enum Wanted {
    Yes,
    No,
    /// The caller does not answer.
    Unknown,
}

/// A task as it came.
pub(crate) struct Letter {
    pub(crate) run: String,
    pub(crate) head: TaskHead,
    pub(crate) payload: Bytes,
    /// How many workers took it, this one included.
    pub(crate) deliveries: u64,
    age: Duration,
    acker: Arc<Acker>,
}

impl Letter {
    /// What cannot be read gives its acknowledger back.
    pub(crate) fn open(names: &Names, message: jetstream::Message) -> Result<Self, Box<Acker>> {
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

    /// By our clock and the server's, which may differ: a hint only.
    pub(crate) fn is_overdue(&self) -> bool {
        self.age > self.head.deadline
    }

    pub(crate) async fn terminate(&self) {
        let _ = self.acker.ack_with(AckKind::Term).await;
    }

    pub(crate) async fn put_aside(&self, time: Duration) {
        let _ = self.acker.ack_with(AckKind::Nak(Some(time))).await;
    }

    fn answer_head(&self, station: &Station, kind: Kind) -> HeaderMap {
        // The one that finds a task lost has not run it.
        let deliveries = self.deliveries - u64::from(kind == Kind::Lost);
        let head = AnswerHead {
            id: self.head.id,
            kind,
            worker: station.worker.clone(),
            deliveries,
        };
        head.write()
    }
}

impl Station {
    /// Asks the caller whether it still waits.
    pub(crate) async fn ask(&self, letter: &Letter) -> Wanted {
        let request = Request::new()
            .headers(letter.answer_head(self, Kind::Wanted))
            .payload(Bytes::new())
            .timeout(Some(CONFIRM));
        let subject = self.names.answers(&letter.run);
        match self.client.send_request(subject, request).await {
            Ok(word) if word.payload == NO => Wanted::No,
            Ok(_) => Wanted::Yes,
            Err(_) => Wanted::Unknown,
        }
    }
}

/// A task that is being run. Its lease is kept for as long as this lives, within the limit.
pub(crate) struct Delivery {
    pub(crate) letter: Letter,
    station: Arc<Station>,
    taken: Instant,
    keeper: JoinHandle<()>,
}

impl Delivery {
    pub(crate) fn start(station: Arc<Station>, letter: Letter) -> Self {
        let limit = station.limits.time_limit.unwrap_or(letter.head.deadline);
        let every = station.lease() / 4;
        let taken = Instant::now();
        let acker = Arc::clone(&letter.acker);
        let keeper = tokio::spawn(async move {
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
            letter,
            station,
            taken,
            keeper,
        }
    }

    /// Gives the caller its answer until it confirms it, and then takes the task off the queue.
    ///
    /// Not before: an answer that is lost with a connection would be lost for good. Returns the kind of what was
    /// sent: an output that is too large is none.
    pub(crate) async fn settle(self, mut kind: Kind, mut payload: Bytes) -> Kind {
        let station = &self.station;
        if let Err(reason) = frame::check_length("output", &payload, &station.client) {
            (kind, payload) = (Kind::Encode, reason.into());
        }
        let subject = station.names.answers(&self.letter.run);
        let headers = self.letter.answer_head(station, kind);
        let finished = Instant::now();
        loop {
            let request = Request::new()
                .headers(headers.clone())
                .payload(payload.clone())
                .timeout(Some(CONFIRM));
            match station.client.send_request(subject.clone(), request).await {
                Ok(_) => {
                    let _ = self.letter.acker.ack().await;
                    return kind;
                }
                Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                    if finished.elapsed() > PATIENCE {
                        // It may be a caller that is gone. If it comes back, the task is run again.
                        station.suspect(&self.letter.run);
                        self.letter.put_aside(PATIENCE).await;
                        return kind;
                    }
                }
                // We are cut off ourselves, or the answer was lost on its way.
                Err(_) if self.taken.elapsed() > self.letter.head.deadline + PATIENCE => {
                    return kind;
                }
                Err(_) => {}
            }
            sleep(AGAIN).await;
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}
