//! A function's queue on the server: a bounded stream on disk, and one consumer for all workers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{ConsumerInfoError, ConsumerInfoErrorKind};
use async_nats::jetstream::stream::{
    Config, ConsumerError, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};

use tokio::time::{sleep, timeout};

use crate::error::Failure;
use crate::frame::MAX_DEADLINE;
use crate::names::{CONSUMER, Names};

/// How long a task stays in the queue. After that its caller must be gone.
const MAX_AGE: Duration = MAX_DEADLINE.saturating_add(Duration::from_secs(24 * 3600));

/// How long the server remembers task ids to detect duplicates.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How many pull requests may wait, and how many tasks may be in flight, in all.
const MAX_WAITING: i64 = 8192;
const MAX_IN_FLIGHT: i64 = 65_536;

/// How often creating the stream is retried, and the delay between.
const MAX_RETRIES: u32 = 5;
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// The longest random delay before a stream is created.
const MAX_RANDOM_DELAY: Duration = Duration::from_millis(200);

/// How long the server may take to open the queue.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens something in time, or says that the server is silent.
pub(crate) async fn within_time<T>(
    open: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let opened = timeout(OPEN_TIMEOUT, open).await;
    opened.unwrap_or_else(|_| Err(format!("no answer within {OPEN_TIMEOUT:?}").into()))
}

/// Opens the stream, or creates it. An existing stream keeps its settings, as the operator may have changed them.
pub(crate) async fn stream(
    context: &Context,
    names: &Names,
    max_queued: i64,
) -> Result<Stream, Failure> {
    let config = Config {
        name: names.stream(),
        subjects: vec![names.tasks("*")],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        // A full queue rejects new tasks and never drops old ones.
        discard: DiscardPolicy::New,
        max_messages: max_queued,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        max_age: MAX_AGE,
        duplicate_window: DUPLICATE_WINDOW,
        num_replicas: 1,
        ..Config::default()
    };
    if let Ok(stream) = context.get_stream(&config.name).await {
        return Ok(stream);
    }
    random_delay().await;
    let mut retries = 0;
    loop {
        match context.get_or_create_stream(config.clone()).await {
            Ok(stream) => return Ok(stream),
            // Another client creates it at the same time, and the server reports "in use" or "overlaps".
            Err(error) if retries < MAX_RETRIES => {
                retries += 1;
                log::debug!(target: "futureproof", "{}: cannot create the stream yet, retrying: {error}", names.name());
                sleep(RETRY_DELAY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits a random time, as callers and workers often start together. If two clients create a stream at the
/// same moment, nats-server 2.9 may create one without files.
async fn random_delay() {
    let hash = RandomState::new().build_hasher().finish();
    sleep(MAX_RANDOM_DELAY.mul_f64(hash as f64 / u64::MAX as f64)).await;
}

/// Creates a stream again that has lost its files, if it is empty.
pub(crate) async fn recreate(
    context: &Context,
    names: &Names,
    max_queued: i64,
) -> Result<Stream, Failure> {
    random_delay().await;
    let mut there = context.get_stream(names.stream()).await?;
    if there.info().await?.state.messages == 0 {
        log::warn!(
            target: "futureproof",
            "{}: the server lost the files of stream {}, which is empty: creating it again",
            names.name(), names.stream()
        );
        context.delete_stream(names.stream()).await?;
    }
    stream(context, names, max_queued).await
}

/// Whether creating the consumer failed because the stream's files are lost or cannot be written.
pub(crate) fn has_lost_files(failure: &Failure) -> bool {
    let error = failure.downcast_ref::<ConsumerError>();
    error.is_some_and(|error| match error.kind() {
        ConsumerErrorKind::JetStream(error) => error.error_code() == ErrorCode::CONSUMER_CREATE,
        _ => false,
    })
}

/// Opens the consumer, or creates it.
pub(crate) async fn consumer(stream: &Stream, lease: Duration) -> Result<PullConsumer, Failure> {
    let config = pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: lease,
        // Workers count deliveries instead. The server would stop delivering without a word, and the caller
        // would never learn that the task was given up.
        max_deliver: -1,
        max_waiting: MAX_WAITING,
        max_ack_pending: MAX_IN_FLIGHT,
        ..pull::Config::default()
    };
    let error = match stream.get_consumer(CONSUMER).await {
        Ok(consumer) => return Ok(consumer),
        Err(error) => error,
    };
    // Creating a consumer that exists would overwrite its lease.
    let is_missing = error
        .downcast_ref::<ConsumerInfoError>()
        .is_some_and(|error| error.kind() == ConsumerInfoErrorKind::NotFound);
    if !is_missing {
        return Err(error);
    }
    match stream.create_consumer(config).await {
        Ok(consumer) => Ok(consumer),
        // Another worker created it first, with another lease.
        Err(error) => match stream.get_consumer(CONSUMER).await {
            Ok(consumer) => Ok(consumer),
            Err(_) => Err(Box::new(error)),
        },
    }
}
