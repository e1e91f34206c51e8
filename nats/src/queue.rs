//! The queue of a function on the server: a bounded stream on disk, and one consumer for all workers.

use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{ConsumerInfoError, ConsumerInfoErrorKind};
use async_nats::jetstream::stream::{
    Config, ConsumerError, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};

use tokio::time::sleep;

use crate::frame::MAX_DEADLINE;
use crate::names::{CONSUMER, Names};

/// What nobody has taken after this time belonged to a caller that is gone.
const MAX_AGE: Duration = MAX_DEADLINE.saturating_add(Duration::from_secs(24 * 3600));

/// How long the server remembers the ids of tasks, so that one that is sent twice is stored once.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How many workers' threads may wait for a task, and how many tasks may be under way, in all.
const MAX_WAITING: i64 = 8192;
const MAX_IN_FLIGHT: i64 = 65_536;

/// How often the stream is asked for again, and the time between.
const MAX_RETRIES: u32 = 5;
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// How long at most one waits before one makes a stream, in case others are about to.
const MAX_RANDOM_DELAY: Duration = Duration::from_millis(200);

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The stream, made if it is not there. One that is there keeps its settings: they are the operator's.
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
        // Full means full: a caller is told, and nothing that was taken is thrown away.
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
            // Somebody else makes it at this moment, and the server says "in use" or "overlaps".
            Err(error) if retries < MAX_RETRIES => {
                retries += 1;
                log::debug!(target: "futureproof", "{}: cannot create the stream yet, retrying: {error}", names.name());
                sleep(RETRY_DELAY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Workers are often started all at once, callers beside them. A server of 2.9 that is asked twice for the same
/// stream at the same moment may end up with one that has lost its files.
async fn random_delay() {
    let hash = RandomState::new().build_hasher().finish();
    sleep(MAX_RANDOM_DELAY.mul_f64(hash as f64 / u64::MAX as f64)).await;
}

/// Makes a stream anew that has lost its files, if it holds nothing.
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

/// Whether a consumer could not be made as the server has lost the files of the stream, or cannot write any.
pub(crate) fn has_lost_files(failure: &Failure) -> bool {
    let error = failure.downcast_ref::<ConsumerError>();
    error.is_some_and(|error| match error.kind() {
        ConsumerErrorKind::JetStream(error) => error.error_code() == ErrorCode::CONSUMER_CREATE,
        _ => false,
    })
}

/// The consumer, made if it is not there.
pub(crate) async fn consumer(stream: &Stream, lease: Duration) -> Result<PullConsumer, Failure> {
    let config = pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: lease,
        // Counted by the workers instead: the server would fall silent, and the caller would never
        // hear that a task was given up.
        max_deliver: -1,
        max_waiting: MAX_WAITING,
        max_ack_pending: MAX_IN_FLIGHT,
        ..pull::Config::default()
    };
    let error = match stream.get_consumer(CONSUMER).await {
        Ok(consumer) => return Ok(consumer),
        Err(error) => error,
    };
    // One that is there must not be made again: that would give it our lease.
    let is_missing = error
        .downcast_ref::<ConsumerInfoError>()
        .is_some_and(|error| error.kind() == ConsumerInfoErrorKind::NotFound);
    if !is_missing {
        return Err(error);
    }
    match stream.create_consumer(config).await {
        Ok(consumer) => Ok(consumer),
        // Another worker was quicker, with another lease.
        Err(error) => match stream.get_consumer(CONSUMER).await {
            Ok(consumer) => Ok(consumer),
            Err(_) => Err(Box::new(error)),
        },
    }
}
