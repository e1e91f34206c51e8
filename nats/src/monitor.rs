//! A worker's counters, and the log lines that report them.

use std::sync::Arc;
use std::time::Duration;

use crate::frame::Kind;
use crate::queue_consumer::QueueConsumer;

pub(crate) fn count_finished(consumer: &QueueConsumer, kind: Kind) {
    let counts = &consumer.counts;
    counts.running.sub();
    counts.done.add();
    match kind {
        Kind::Ok => counts.ok.add(),
        Kind::Err => counts.failed.add(),
        Kind::Panicked => counts.panicked.add(),
        Kind::Decode | Kind::Encode => counts.unreadable.add(),
        Kind::Lost | Kind::Wanted | Kind::Start | Kind::Returned => {
            unreachable!("a task that has run ends with none of these")
        }
    }
}

pub(crate) async fn monitor(consumer: Arc<QueueConsumer>, every: Duration) {
    if every.is_zero() {
        return;
    }
    let mut last_done = 0;
    loop {
        tokio::time::sleep(every).await;
        let done = consumer.counts.done.get();
        if done != last_done {
            last_done = done;
            log_counts(&consumer, "active");
        }
    }
}

pub(crate) fn log_counts(consumer: &QueueConsumer, state: &str) {
    let counts = &consumer.counts;
    log::info!(
        target: "futureproof",
        "{}: worker {} {state}: {} done, {} running, {} failed, {} panicked, {} redelivered, {} unreadable, {} unwanted",
        consumer.names.name(), consumer.worker, counts.done.get(), counts.running.get(), counts.failed.get(),
        counts.panicked.get(), counts.redelivered.get(), counts.unreadable.get(), counts.unwanted.get(),
    );
}
