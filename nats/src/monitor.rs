//! A worker's counts, and the lines that tell them.

use std::sync::Arc;
use std::time::Duration;

use crate::frame::Kind;
use crate::station::Station;

pub(crate) fn count(station: &Station, kind: Kind) {
    let counts = &station.counts;
    counts.running.sub();
    counts.done.add();
    match kind {
        Kind::Ok => counts.ok.add(),
        Kind::Err => counts.failed.add(),
        Kind::Panicked => counts.panicked.add(),
        Kind::Decode | Kind::Encode => counts.unreadable.add(),
        Kind::Lost | Kind::Wanted => {}
    }
}

pub(crate) async fn monitor(station: Arc<Station>, every: Duration) {
    if every.is_zero() {
        return;
    }
    let mut told = 0;
    loop {
        tokio::time::sleep(every).await;
        let done = station.counts.done.get();
        if done != told {
            told = done;
            tell(&station, "works");
        }
    }
}

pub(crate) fn tell(station: &Station, what: &str) {
    let counts = &station.counts;
    log::info!(
        target: "futureproof",
        "{}: {} {what}: {} done, {} running, {} failed, {} panicked, {} redelivered, {} unreadable, {} no longer wanted",
        station.names.name(), station.worker, counts.done.get(), counts.running.get(), counts.failed.get(),
        counts.panicked.get(), counts.redelivered.get(), counts.unreadable.get(), counts.unwanted.get(),
    );
}
