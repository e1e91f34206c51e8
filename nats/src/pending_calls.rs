//! The caller's side: sends tasks, routes each answer to its call, and drops duplicates.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, Message, Subscriber, connection::State};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::counters::CallerCounts;
use crate::frame::{AnswerHead, Kind, NO, TaskHead, YES};
use crate::names::Names;
use crate::queue;

/// How long to wait before looking again for the connection or the stream.
const RETRY_DELAY: Duration = Duration::from_millis(50);

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
    pub(crate) client: Client,
    pub(crate) context: Context,
    pub(crate) names: Names,
    /// A unique id, which tells the runs of all callers of this function apart.
    pub(crate) run: String,
    pub(crate) max_queued: i64,
    pub(crate) counts: CallerCounts,
    pub(crate) stopped: watch::Sender<bool>,
    /// Whether the queue may still hold tasks that no call waits for.
    may_have_queued: AtomicBool,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
}

impl PendingCalls {
    pub(crate) fn new(client: Client, context: Context, names: Names, max_queued: i64) -> Self {
        let inbox = client.new_inbox();
        let unique = inbox.rsplit('.').next();
        let unique = unique.unwrap_or_else(|| unreachable!("a split has at least one part"));
        Self {
            run: unique.to_owned(),
            counts: CallerCounts::new(names.name()),
            client,
            context,
            names,
            max_queued,
            stopped: watch::Sender::new(false),
            may_have_queued: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Reply>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles answers and questions until the subscription ends.
    pub(crate) async fn receive(self: Arc<Self>, mut answers: Subscriber) {
        while let Some(message) = answers.next().await {
            let confirmation = self.handle(&message);
            if let Some(reply) = message.reply {
                let _ = self.client.publish(reply, confirmation).await;
            }
        }
    }

    /// Handles one message and returns the reply to the worker.
    fn handle(&self, message: &Message) -> Bytes {
        let Some(head) = AnswerHead::read(message.headers.as_ref()) else {
            log::warn!(
                target: "futureproof",
                "{}: dropped a message that is not an answer: check who else publishes to {}",
                self.names.name(), self.names.answers("*")
            );
            return NO;
        };
        if head.kind == Kind::Wanted {
            return if self.waiting().contains_key(&head.id) {
                YES
            } else {
                NO
            };
        }
        let Some(call) = self.waiting().remove(&head.id) else {
            self.counts.late.add();
            // The worker need not send it again.
            return YES;
        };
        let payload = message.payload.clone();
        let _ = call.send(Reply { head, payload });
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
        self.waiting().insert(head.id, sender);
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
        loop {
            let sent = self.context.publish_with_headers(
                subject.clone(),
                headers.clone(),
                payload.clone(),
            );
            let stored = match sent.await {
                Ok(stored) => stored.await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(stored) => {
                    sequence.store(stored.sequence, Ordering::Relaxed);
                    return std::future::pending().await;
                }
                Err(error) => {
                    log::debug!(target: "futureproof", "{}: the server did not store task {}: {error}", self.names.name(), head.id);
                    match publish_failure(&error) {
                        PublishFailure::Full => return NoReply::QueueFull,
                        PublishFailure::Final(reason) => return NoReply::Transport(reason),
                        PublishFailure::NoStream => {
                            sleep(RETRY_DELAY).await;
                            // The server lost the stream, for example with its disk.
                            let _ =
                                queue::stream(&self.context, &self.names, self.max_queued).await;
                        }
                        PublishFailure::Unavailable => sleep(RETRY_DELAY).await,
                    }
                }
            }
            // Wait for the connection, so that the client does not buffer a copy on every retry.
            while self.client.connection_state() != State::Connected {
                sleep(RETRY_DELAY).await;
            }
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
        let (context, stream) = (self.context.clone(), self.names.stream());
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
        background.spawn(async move { pending.purge().await });
    }

    /// Whether a purge may find something.
    pub(crate) fn may_have_queued(&self) -> bool {
        self.may_have_queued.load(Ordering::Relaxed)
    }

    pub(crate) async fn purge(&self) {
        let filter = self.names.tasks(&self.run);
        let purged = match self.context.get_stream_no_info(self.names.stream()).await {
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

/// What a failed publish means for the task.
#[derive(Debug, PartialEq)]
enum PublishFailure {
    Full,
    Final(String),
    NoStream,
    Unavailable,
}

fn publish_failure(error: &PublishError) -> PublishFailure {
    match error.kind() {
        PublishErrorKind::StreamNotFound => return PublishFailure::NoStream,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
            return PublishFailure::Unavailable;
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
        PublishFailure::Unavailable
    } else if server.code() == 503 && !is_store {
        // The server is not ready, for example after a start.
        PublishFailure::Unavailable
    } else {
        PublishFailure::Final(text)
    }
}
