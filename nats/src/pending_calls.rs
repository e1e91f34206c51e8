//! The caller's side: sends tasks, routes each answer to its call, and drops duplicates.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Message;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::{GetStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::stream::RawMessageErrorKind;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::counters::CallerCounts;
use crate::frame::{self, AnswerHead, Kind, NO, NOT_YOU, TaskHead, YES};
use crate::names::Names;
use crate::queue;
use crate::server::Session;

/// How long to wait before looking again for the connection or the stream.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// How long to wait before looking again for a task, after the server did not say.
const LOOK_DELAY: Duration = Duration::from_secs(1);

/// How long publishing may take, before it is done again.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

/// How often to say that the server does not store tasks.
const WARN_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) struct Reply {
    pub(crate) head: AnswerHead,
    pub(crate) payload: Bytes,
}

/// Why a call has no reply.
pub(crate) enum NoReply {
    Deadline,
    QueueFull,
    Transport(String),
    Stopped,
}

/// The calls of one run that wait for an answer.
pub(crate) struct PendingCalls {
    pub(crate) session: Session,
    /// How many connections there had been when the first call could be made.
    connects: u64,
    pub(crate) names: Names,
    /// A unique id, which tells the runs of all callers of this function apart.
    pub(crate) run: String,
    pub(crate) max_queued: i64,
    pub(crate) counts: CallerCounts,
    pub(crate) stopped: watch::Sender<bool>,
    /// Whether the queue may still hold tasks that no call waits for.
    may_have_queued: AtomicBool,
    waiting: Mutex<HashMap<u64, Waiting>>,
    warned: Mutex<Option<Instant>>,
}

struct Waiting {
    answer: oneshot::Sender<Reply>,
    /// How often workers have started the task. The first start is not reported: it is taken for granted.
    started: u64,
}

impl PendingCalls {
    pub(crate) fn new(session: Session, names: Names, max_queued: i64) -> Self {
        let inbox = session.client().new_inbox();
        let unique = inbox.rsplit('.').next();
        let unique = unique.unwrap_or_else(|| unreachable!("a split has at least one part"));
        Self {
            run: unique.to_owned(),
            counts: CallerCounts::new(names.name()),
            connects: *session.connects().borrow(),
            session,
            names,
            max_queued,
            stopped: watch::Sender::new(false),
            may_have_queued: AtomicBool::new(false),
            waiting: Mutex::default(),
            warned: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles one message and returns the reply to the worker.
    pub(crate) fn handle(&self, message: &Message) -> Bytes {
        let Some(head) = AnswerHead::read(message.headers.as_ref()) else {
            log::warn!(
                target: "futureproof",
                "{}: dropped a message that is not an answer: check who else publishes to {}",
                self.names.name(), self.names.answers("*")
            );
            return NO;
        };
        if matches!(head.kind, Kind::Wanted | Kind::Start | Kind::Returned) {
            return match self.waiting().get_mut(&head.id) {
                Some(call) => call.reply(&head),
                None => NO,
            };
        }
        let Some(call) = self.waiting().remove(&head.id) else {
            self.counts.late.add();
            // The worker need not send it again.
            return YES;
        };
        let payload = message.payload.clone();
        let _ = call.answer.send(Reply { head, payload });
        YES
    }

    /// Sends a task and waits for its answer, a stop or the deadline.
    pub(crate) async fn call(
        self: Arc<Self>,
        head: TaskHead,
        payload: Bytes,
        stopped: oneshot::Receiver<()>,
    ) -> Result<Reply, NoReply> {
        let deadline = Instant::now() + head.deadline;
        let (sender, mut answer) = oneshot::channel();
        let call = Waiting {
            answer: sender,
            started: 1,
        };
        self.waiting().insert(head.id, call);
        let mut all_stopped = self.stopped.subscribe();
        let sequence = AtomicU64::new(0);
        let result = tokio::select! {
            biased;
            reply = &mut answer => Ok(reply.unwrap_or_else(|_| {
                unreachable!("`waiting` holds the sender until it has sent or this call has ended")
            })),
            _ = all_stopped.wait_for(|stopped| *stopped) => Err(NoReply::Stopped),
            Ok(()) = stopped => Err(NoReply::Stopped),
            () = sleep_until(deadline) => Err(NoReply::Deadline),
            failure = self.send(head, payload, &sequence) => Err(failure),
        };
        self.waiting().remove(&head.id);
        if matches!(result, Err(NoReply::Deadline | NoReply::Stopped)) {
            self.withdraw(head.id, sequence.into_inner());
        }
        result
    }

    /// The id by which the server detects duplicates of a task.
    fn message_id(&self, id: u64) -> String {
        format!("{}-{id}", self.run)
    }

    /// Publishes the task. Returns only if that fails for good; after a success it stays pending.
    ///
    /// If the server does not confirm, the task is published again with the same id, and stored once.
    async fn send(&self, head: TaskHead, payload: Bytes, sequence: &AtomicU64) -> NoReply {
        let subject = self.names.tasks(&self.run);
        let mut headers = head.write();
        headers.insert(NATS_MESSAGE_ID, self.message_id(head.id));
        let mut connects = self.session.connects();
        loop {
            connects.mark_unchanged();
            let context = self.session.context();
            let stored = async {
                let sent =
                    context.publish_with_headers(subject.clone(), headers.clone(), payload.clone());
                sent.await?.await
            };
            // The client is patient with a full buffer.
            let stored = timeout(PUBLISH_TIMEOUT, stored).await;
            let stored =
                stored.unwrap_or_else(|_| Err(PublishError::new(PublishErrorKind::TimedOut)));
            match stored {
                Ok(stored) => {
                    sequence.store(stored.sequence, Ordering::Relaxed);
                    self.is_missing(head.id, stored.sequence, &mut connects)
                        .await;
                    log::warn!(target: "futureproof", "{}: the server has lost task {}, sending it again", self.names.name(), head.id);
                }
                Err(error) => {
                    match publish_failure(&error) {
                        PublishFailure::Full => return NoReply::QueueFull,
                        PublishFailure::Final(reason) => return NoReply::Transport(reason),
                        PublishFailure::NoStream => {
                            sleep(RETRY_DELAY).await;
                            // The server lost the stream, for example with its disk.
                            let _ = queue::stream(&context, &self.names, self.max_queued).await;
                        }
                        PublishFailure::Unavailable(reason) => {
                            if self.is_to_warn() {
                                log::warn!(target: "futureproof", "{}: the server does not store tasks, retrying until their deadlines: {reason}", self.names.name());
                                if error.kind() == PublishErrorKind::TimedOut {
                                    self.session.check().await;
                                }
                            }
                            sleep(RETRY_DELAY).await;
                        }
                    }
                }
            }
            // Wait for the connection, so that the client does not buffer a copy on every retry.
            while !self.session.is_connected() {
                sleep(RETRY_DELAY).await;
            }
        }
    }

    /// Whether to say what all calls run into.
    fn is_to_warn(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = warned.is_none_or(|warned| warned.elapsed() > WARN_INTERVAL);
        if is_due {
            *warned = Some(Instant::now());
        }
        is_due
    }

    /// Waits until a task is no longer in the queue. Looks after each reconnect, as the server may have lost it.
    async fn is_missing(&self, id: u64, sequence: u64, connects: &mut watch::Receiver<u64>) {
        loop {
            if connects.changed().await.is_err() {
                return std::future::pending().await;
            }
            loop {
                match self.is_stored(id, sequence).await {
                    Some(true) => break,
                    Some(false) => return,
                    None => sleep(LOOK_DELAY).await,
                }
            }
        }
    }

    /// `None` if the server does not say.
    async fn is_stored(&self, id: u64, sequence: u64) -> Option<bool> {
        let stream = self.session.context().get_stream(self.names.stream()).await;
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                let GetStreamErrorKind::JetStream(error) = error.kind() else {
                    return None;
                };
                return (error.error_code() == ErrorCode::STREAM_NOT_FOUND).then_some(false);
            }
        };
        match stream.get_raw_message(sequence).await {
            Ok(message) => {
                let found = message.headers.get(NATS_MESSAGE_ID);
                Some(found.is_some_and(|found| found.as_str() == self.message_id(id)))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Some(false),
            Err(_) => None,
        }
    }

    /// Deletes a task from the queue that no call waits for. If it is running, its answer is dropped later.
    fn withdraw(&self, id: u64, sequence: u64) {
        // The deletion may fail, or the program end first.
        self.may_have_queued.store(true, Ordering::Relaxed);
        // A stop purges all tasks at once.
        if sequence == 0 || *self.stopped.borrow() {
            return;
        }
        let (context, stream) = (self.session.context(), self.names.stream());
        let message_id = self.message_id(id);
        // Spawned, as the call must return now.
        tokio::spawn(async move {
            if let Ok(stream) = context.get_stream_no_info(&stream).await {
                // A server that lost its disk reuses sequence numbers, so check that it is the same task.
                let Ok(message) = stream.get_raw_message(sequence).await else {
                    return;
                };
                let found = message.headers.get(NATS_MESSAGE_ID);
                if found.is_some_and(|found| found.as_str() == message_id) {
                    let _ = stream.delete_message(sequence).await;
                }
            }
        });
    }

    /// Stops all calls and purges the queued tasks of this run.
    pub(crate) fn stop(self: &Arc<Self>, background: &tokio::runtime::Handle) {
        if self.stopped.send_replace(true) {
            return;
        }
        self.may_have_queued.store(true, Ordering::Relaxed);
        let pending = Arc::clone(self);
        background.spawn(async move { pending.end().await });
    }

    /// Whether a purge may find something. A server that was killed may have forgotten what it has deleted.
    pub(crate) fn may_have_queued(&self) -> bool {
        let was_lost = *self.session.connects().borrow() != self.connects;
        was_lost || self.may_have_queued.load(Ordering::Relaxed)
    }

    /// Tells the workers that this run is over, and purges its tasks.
    pub(crate) async fn end(&self) {
        self.session
            .publish(self.names.over(&self.run), Bytes::new())
            .await;
        if self.may_have_queued() {
            self.purge().await;
        }
        let _ = self.session.client().flush().await;
    }

    async fn purge(&self) {
        let filter = self.names.tasks(&self.run);
        let purged = match self
            .session
            .context()
            .get_stream_no_info(self.names.stream())
            .await
        {
            Ok(stream) => stream
                .purge()
                .filter(filter)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = purged {
            log::warn!(
                target: "futureproof",
                "{}: cannot purge the queued tasks of this run, workers may still run them: {error}",
                self.names.name()
            );
        }
    }
}

impl Waiting {
    /// The reply to a worker's question about this call.
    fn reply(&mut self, head: &AnswerHead) -> Bytes {
        match head.kind {
            Kind::Start if head.deliveries != self.started + 1 => return NOT_YOU,
            Kind::Start => self.started += 1,
            Kind::Returned if head.deliveries == self.started => self.started -= 1,
            _ => {}
        }
        frame::wanted(self.started)
    }
}

/// What a failed publish means for the task.
#[derive(Debug, PartialEq)]
enum PublishFailure {
    Full,
    Final(String),
    NoStream,
    Unavailable(String),
}

fn publish_failure(error: &PublishError) -> PublishFailure {
    match error.kind() {
        PublishErrorKind::StreamNotFound => return PublishFailure::NoStream,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
            return PublishFailure::Unavailable(error.to_string());
        }
        _ => {}
    }
    let server = error
        .source()
        .and_then(|source| source.downcast_ref::<jetstream::Error>());
    let Some(server) = server else {
        return PublishFailure::Final(error.to_string());
    };
    let text = server.to_string();
    let full = text.contains("maximum messages") || text.contains("maximum bytes");
    let is_store = server.error_code() == ErrorCode::STREAM_STORE_FAILED;
    if full && is_store {
        PublishFailure::Full
    } else if is_store && text.contains("no such file") {
        // The stream has lost its files. A worker creates it again.
        PublishFailure::Unavailable(text)
    } else if server.code() == 503 && !is_store {
        // The server is not ready, for example after a start, or its disk is full.
        PublishFailure::Unavailable(text)
    } else {
        PublishFailure::Final(text)
    }
}
