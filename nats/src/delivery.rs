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
use crate::station::{Station, Wanted};
use crate::task_message::Letter;

/// How long a caller has to confirm before it is told again.
const CONFIRM: Duration = Duration::from_secs(1);

/// How long an answer is offered to a caller that is not there.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a task whose caller does not answer is put aside.
const ASIDE: Duration = Duration::from_secs(5);

/// Between two offers.
const AGAIN: Duration = Duration::from_millis(100);

impl Station {
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
        let letter = match Letter::open(&self.names, message) {
            Ok(letter) => letter,
            Err(acker) => {
                // There is nobody to tell.
                self.counts.unreadable.add();
                log::warn!(target: "futureproof", "{}: dropped a message that is no task", self.names.name());
                let _ = acker.ack_with(AckKind::Term).await;
                return None;
            }
        };
        let suspect = self.is_suspect(&letter.run);
        if letter.deliveries > 1 {
            self.counts.redelivered.add();
        }
        if letter.deliveries > 1 || letter.is_overdue() || suspect {
            match self.ask(&letter).await {
                Wanted::Yes => self.clear(&letter.run),
                Wanted::No => {
                    self.counts.unwanted.add();
                    letter.terminate().await;
                    return None;
                }
                Wanted::Unknown if suspect && letter.is_overdue() => {
                    // Its caller is gone. By two signs, as clocks of machines differ.
                    self.counts.unwanted.add();
                    letter.terminate().await;
                    return None;
                }
                Wanted::Unknown if suspect || letter.is_overdue() => {
                    self.suspect(&letter.run);
                    letter.put_aside(ASIDE).await;
                    return None;
                }
                // Its caller may be connecting again, as we have.
                Wanted::Unknown => {}
            }
        }
        let max_deliver = letter.head.max_deliver;
        let too_large = letter.payload.len() > self.limits.max_item_bytes;
        let delivery = Delivery::start(Arc::clone(self), letter);
        if delivery.letter.deliveries > max_deliver {
            self.counts.lost.add();
            delivery.settle(Kind::Lost, Vec::new().into()).await;
            return None;
        }
        if too_large {
            self.counts.unreadable.add();
            let reason = format!(
                "the item has more than the {} bytes that this worker reads",
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
        let headers = self.letter.answer_head(&station.worker, kind);
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
