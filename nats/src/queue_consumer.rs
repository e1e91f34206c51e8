//! The worker's side of the queue: pulls one task for each idle thread, and opens the queue again after the
//! server was away.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, Request};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, sleep};

use crate::counters::WorkerCounts;
use crate::frame::{Kind, NO};
use crate::names::Names;
use crate::queue::{self, Failure};
use crate::task_message::TaskMessage;

/// How long a pull request waits at the server before it is sent again.
const PULL_TIMEOUT: Duration = Duration::from_secs(5);

/// A pull request that ends sooner than this without a task was rejected.
const MIN_PULL: Duration = Duration::from_millis(100);

/// How long to wait before opening the queue again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How long a caller has to reply.
pub(crate) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// How many unresponsive callers to remember.
const MAX_UNRESPONSIVE: usize = 1024;

/// Whether the caller still waits for a task.
pub(crate) enum CallerStatus {
    Waiting,
    Gone,
    /// The caller did not reply.
    Unknown,
}

pub(crate) struct Limits {
    pub(crate) lease: Duration,
    pub(crate) max_queued: i64,
    pub(crate) max_item_bytes: usize,
    /// How long a task's lease is renewed. `None` is the caller's deadline.
    pub(crate) time_limit: Option<Duration>,
}

pub(crate) struct QueueConsumer {
    pub(crate) client: Client,
    context: Context,
    connects: watch::Receiver<u64>,
    pub(crate) names: Names,
    /// This worker's id, for answers.
    pub(crate) worker: String,
    pub(crate) limits: Limits,
    pub(crate) counts: WorkerCounts,
    stopped: watch::Receiver<bool>,
    /// Has the lease that the server grants, which may differ from this worker's option.
    consumer: Mutex<PullConsumer>,
    restored: AsyncMutex<Instant>,
    /// The runs whose callers did not respond, and since when.
    unresponsive: Mutex<HashMap<String, Instant>>,
}

impl QueueConsumer {
    pub(crate) async fn open(
        connection: (Client, Context, watch::Receiver<u64>),
        names: Names,
        worker: String,
        limits: Limits,
        stopped: watch::Receiver<bool>,
    ) -> Result<Self, Failure> {
        let (client, context, connects) = connection;
        let consumer = find_consumer(&context, &names, &limits).await?;
        let granted = consumer.cached_info().config.ack_wait;
        if granted != limits.lease {
            log::warn!(
                target: "futureproof",
                "{}: the queue keeps its lease of {granted:?}, {:?} has no effect: to change it, stop all workers and \
                 run `nats consumer rm {} {}`",
                names.name(), limits.lease, names.stream(), crate::names::CONSUMER
            );
        }
        Ok(Self {
            client,
            context,
            connects,
            counts: WorkerCounts::new(names.name()),
            names,
            worker,
            limits,
            stopped,
            consumer: Mutex::new(consumer),
            restored: AsyncMutex::new(Instant::now()),
            unresponsive: Mutex::default(),
        })
    }

    pub(crate) fn lease(&self) -> Duration {
        self.consumer().cached_info().config.ack_wait
    }

    fn consumer(&self) -> PullConsumer {
        self.consumer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns the next message of the queue, or `None` when the worker is stopped.
    pub(crate) async fn next_message(&self) -> Option<jetstream::Message> {
        let mut connects = self.connects.clone();
        let mut stopped = self.stopped.clone();
        loop {
            connects.mark_unchanged();
            let asked = Instant::now();
            let taken = tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => return None,
                taken = self.pull() => taken,
                // Pull again, as the server may have lost the request.
                Ok(()) = connects.changed() => continue,
            };
            match taken {
                Ok(Some(message)) => return Some(message),
                Ok(None) if asked.elapsed() > MIN_PULL => {}
                refused => {
                    if let Err(error) = refused {
                        log::debug!(target: "futureproof", "{}: cannot pull a task, retrying: {error}", self.names.name());
                    }
                    self.restore().await;
                }
            }
        }
    }

    async fn pull(&self) -> Result<Option<jetstream::Message>, Failure> {
        let consumer = self.consumer();
        let mut batch = consumer
            .fetch()
            .max_messages(1)
            .expires(PULL_TIMEOUT)
            .messages()
            .await?;
        batch.next().await.transpose()
    }

    /// Opens the queue again, after the server was away or lost it. One thread does it, the others wait.
    async fn restore(&self) {
        let asked = Instant::now();
        let mut restored = self.restored.lock().await;
        if *restored > asked {
            return;
        }
        sleep(RETRY_DELAY).await;
        match find_consumer(&self.context, &self.names, &self.limits).await {
            Ok(consumer) => {
                *self.consumer.lock().unwrap_or_else(PoisonError::into_inner) = consumer;
            }
            Err(error) => {
                log::warn!(target: "futureproof", "{}: cannot open the queue, retrying: {error}", self.names.name());
            }
        }
        *restored = Instant::now();
    }

    /// Asks the caller whether it still waits for this task.
    pub(crate) async fn ask_caller(&self, task: &TaskMessage) -> CallerStatus {
        let request = Request::new()
            .headers(task.answer_head(&self.worker, Kind::Wanted))
            .payload(Bytes::new())
            .timeout(Some(CONFIRM_TIMEOUT));
        let subject = self.names.answers(&task.run);
        match self.client.send_request(subject, request).await {
            Ok(reply) if reply.payload == NO => CallerStatus::Gone,
            Ok(_) => CallerStatus::Waiting,
            Err(_) => CallerStatus::Unknown,
        }
    }

    pub(crate) fn is_unresponsive(&self, run: &str) -> bool {
        self.unresponsive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(run)
    }

    pub(crate) fn mark_responsive(&self, run: &str) {
        self.unresponsive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(run);
    }

    /// Remembers that the caller of this run did not respond.
    pub(crate) fn mark_unresponsive(&self, run: &str) {
        let mut unresponsive = self
            .unresponsive
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if unresponsive.len() >= MAX_UNRESPONSIVE {
            let oldest = unresponsive
                .iter()
                .min_by_key(|(_, since)| **since)
                .map(|(run, _)| run.clone());
            let oldest = oldest.unwrap_or_else(|| unreachable!("it has entries: it is full"));
            unresponsive.remove(&oldest);
        }
        unresponsive
            .entry(run.to_owned())
            .or_insert_with(Instant::now);
    }
}

async fn find_consumer(
    context: &Context,
    names: &Names,
    limits: &Limits,
) -> Result<PullConsumer, Failure> {
    let stream = queue::stream(context, names, limits.max_queued).await?;
    match queue::consumer(&stream, limits.lease).await {
        Err(failure) if queue::has_lost_files(&failure) => {
            let stream = queue::recreate(context, names, limits.max_queued).await?;
            queue::consumer(&stream, limits.lease).await
        }
        outcome => outcome,
    }
}
