//! The worker's side of the queue: pulls one task for each idle thread, and opens the queue again after the
//! server was away.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Message;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Mutex as AsyncMutex, RwLock, Semaphore, broadcast, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::callers::Callers;
use crate::counters::WorkerCounts;
use crate::error::Failure;
use crate::frame::{self, Kind, NO, NOT_YOU};
use crate::names::{CONSUMER, Names};
use crate::queue;
use crate::server::Session;
use crate::task_message::TaskMessage;

/// How long a pull request waits at the server. A stop waits for it: a message that came later would be lost.
pub(crate) const PULL_TIMEOUT: Duration = Duration::from_secs(2);

/// How much later the server's word may come.
const PULL_SLACK: Duration = Duration::from_secs(1);

/// A pull request that ends sooner than this without a task was rejected.
const MIN_PULL: Duration = Duration::from_millis(100);

/// How long to wait before opening the queue again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How many answers to keep whose callers do not respond.
const MAX_KEPT: usize = 256;

/// The caller's word on a task.
pub(crate) enum CallerStatus {
    /// It waits, and the task has been started so often.
    Waiting { started: u64 },
    /// It wants no answer.
    Gone,
    /// It did not reply.
    Unknown,
    /// It lets another worker start the task.
    NotYou,
}

pub(crate) struct Limits {
    pub(crate) lease: Duration,
    pub(crate) max_queued: i64,
    pub(crate) max_item_bytes: usize,
    /// How long a task's lease is renewed. `None` is the caller's deadline.
    pub(crate) time_limit: Option<Duration>,
    /// How long running tasks may go on after a stop, before their tokens are cancelled.
    pub(crate) grace: Duration,
}

pub(crate) struct QueueConsumer {
    pub(crate) session: Session,
    pub(crate) names: Names,
    /// This worker's id, for answers.
    pub(crate) worker: String,
    pub(crate) limits: Limits,
    pub(crate) counts: WorkerCounts,
    stopped: watch::Receiver<bool>,
    /// The lease that the server grants, which may differ from this worker's option.
    granted: Mutex<Duration>,
    restored: AsyncMutex<Instant>,
    pub(crate) callers: Callers,
    /// Tells the running tasks whose run is over.
    pub(crate) over: broadcast::Sender<String>,
    /// Running tasks, and answers that are sent for the first time.
    pub(crate) active: Arc<Semaphore>,
    pub(crate) max_active: usize,
    /// Answers whose callers do not respond.
    pub(crate) kept: Arc<Semaphore>,
    /// Tasks run side by side, but for those that may be to blame for the deaths of workers.
    pub(crate) side_by_side: Arc<RwLock<()>>,
}

impl QueueConsumer {
    pub(crate) async fn open(
        session: Session,
        names: Names,
        worker: String,
        threads: usize,
        limits: Limits,
        stopped: watch::Receiver<bool>,
    ) -> Result<Self, Failure> {
        let consumer = find_consumer(&session.context(), &names, &limits).await?;
        let granted = consumer.cached_info().config.ack_wait;
        if granted != limits.lease {
            log::warn!(
                target: "futureproof",
                "{}: the queue keeps its lease of {granted:?}, {:?} has no effect: to change it, stop all workers and \
                 run `nats consumer rm {} {}`",
                names.name(), limits.lease, names.stream(), CONSUMER
            );
        }
        // A thread runs a task while the answer to its last one is under way.
        let max_active = threads.saturating_mul(2).min(Semaphore::MAX_PERMITS);
        Ok(Self {
            session,
            counts: WorkerCounts::new(names.name()),
            names,
            worker,
            limits,
            stopped,
            granted: Mutex::new(granted),
            restored: AsyncMutex::new(Instant::now()),
            callers: Callers::default(),
            over: broadcast::Sender::new(64),
            active: Arc::new(Semaphore::new(max_active)),
            max_active,
            kept: Arc::new(Semaphore::new(MAX_KEPT)),
            side_by_side: Arc::default(),
        })
    }

    pub(crate) fn lease(&self) -> Duration {
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a stop.
    pub(crate) async fn stopped(&self) {
        let mut stopped = self.stopped.clone();
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Handles what callers say of runs that are over, until it is aborted.
    pub(crate) async fn listen(self: Arc<Self>) {
        let subject = self.names.over("*");
        let subscribed = self.session.client().subscribe(subject.clone()).await;
        let Ok(messages) = subscribed else { return };
        let session = self.session.clone();
        let prefix = self.names.over("");
        let handle = move |message: &Message| {
            if let Some(run) = message.subject.strip_prefix(&prefix) {
                self.callers.mark_over(run);
                // Fails if no task runs.
                let _ = self.over.send(run.to_owned());
            }
            Bytes::new()
        };
        session.listen(subject, messages, handle).await;
    }

    /// Waits until all answers are confirmed or given up.
    pub(crate) async fn settled(&self) {
        let active = u32::try_from(self.max_active).unwrap_or(u32::MAX);
        let _ = self.active.acquire_many(active).await;
        let _ = self.kept.acquire_many(MAX_KEPT as u32).await;
    }

    /// Pulls a message. Returns `None` if none comes within the time.
    ///
    /// A stop does not interrupt it: the server counts the message as delivered.
    pub(crate) async fn next_message(&self) -> Option<Message> {
        let mut connects = self.session.connects();
        connects.mark_unchanged();
        let asked = Instant::now();
        let pull = timeout(PULL_TIMEOUT + PULL_SLACK, self.pull());
        let taken = tokio::select! {
            taken = pull => taken,
            // Pull again, as the server has lost the request.
            Ok(()) = connects.changed() => return None,
        };
        match taken {
            Ok(Ok(Some(message))) => return Some(message),
            Ok(Ok(None)) if asked.elapsed() > MIN_PULL => {}
            Ok(Ok(None)) => self.restore("the server refuses to hand out tasks").await,
            Ok(Err(error)) => self.restore(&error.to_string()).await,
            // So it is if the stream or its consumer is gone.
            Err(_) => self.restore("the server says nothing").await,
        }
        None
    }

    async fn pull(&self) -> Result<Option<Message>, Failure> {
        let client = self.session.client();
        let inbox = client.new_inbox();
        let mut replies = client.subscribe(inbox.clone()).await?;
        let (stream, expires) = (self.names.stream(), PULL_TIMEOUT.as_nanos());
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{CONSUMER}");
        let request = format!(r#"{{"batch":1,"expires":{expires}}}"#);
        client
            .publish_with_reply(subject, inbox, request.into())
            .await?;
        let reply = replies.next().await.ok_or("the connection is closed")?;
        match reply.status.map(|status| status.as_u16()) {
            None | Some(200) => Ok(Some(reply)),
            // Nothing has come within the time.
            Some(404 | 408) => Ok(None),
            Some(status) => {
                let why = reply.description.unwrap_or_default();
                Err(format!("{why} ({status})").into())
            }
        }
    }

    /// Opens the queue again, after the server was away or lost it. One thread does it, the others wait.
    async fn restore(&self, why: &str) {
        let asked = Instant::now();
        let mut restored = self.restored.lock().await;
        if *restored > asked || self.is_stopped() {
            return;
        }
        log::warn!(target: "futureproof", "{}: cannot take tasks, opening the queue again: {why}", self.names.name());
        sleep(RETRY_DELAY).await;
        match find_consumer(&self.session.context(), &self.names, &self.limits).await {
            Ok(consumer) => {
                let granted = consumer.cached_info().config.ack_wait;
                *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = granted;
            }
            Err(error) => {
                log::warn!(target: "futureproof", "{}: cannot open the queue, retrying: {error}", self.names.name());
                self.session.check().await;
            }
        }
        *restored = Instant::now();
    }

    /// Sends a message about a task to its caller. Waits for the reply.
    pub(crate) async fn tell_caller(
        &self,
        task: &TaskMessage,
        kind: Kind,
        payload: Bytes,
    ) -> Result<Message, RequestErrorKind> {
        let subject = self.names.answers(&task.run);
        let headers = task.answer_head(&self.worker, kind);
        self.session.request(subject, headers, payload).await
    }

    /// Asks the caller about a task.
    pub(crate) async fn ask_caller(&self, task: &TaskMessage, kind: Kind) -> CallerStatus {
        match self.tell_caller(task, kind, Bytes::new()).await {
            Ok(reply) if reply.payload == NO => CallerStatus::Gone,
            Ok(reply) if reply.payload == NOT_YOU => CallerStatus::NotYou,
            Ok(reply) => match frame::started(&reply.payload) {
                Some(started) => CallerStatus::Waiting { started },
                None => CallerStatus::Unknown,
            },
            Err(_) => CallerStatus::Unknown,
        }
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
