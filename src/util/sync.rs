//! What threads meet at: the real thing or, with `--cfg shuttle`, one whose schedule a test chooses.

use std::time::Instant;

#[cfg(not(shuttle))]
pub(crate) use {crossbeam_channel as channel, rayon_core as rayon, std::hint, std::thread};
#[cfg(not(shuttle))]
pub(crate) use {
    std::sync::Mutex, std::sync::MutexGuard, std::sync::RwLock, std::sync::atomic,
    std::thread_local,
};

#[cfg(shuttle)]
pub(crate) use shuttle::{
    hint, sync::Mutex, sync::MutexGuard, sync::RwLock, sync::atomic, thread, thread_local,
};

pub(crate) fn now() -> Instant {
    #[cfg(not(shuttle))]
    return Instant::now();
    #[cfg(shuttle)]
    return channel::now();
}

/// shuttle has no channels like these, no pool and no clock.
#[cfg(shuttle)]
#[path = "../../tests/model/channel.rs"]
pub(crate) mod channel;
#[cfg(shuttle)]
#[path = "../../tests/model/rayon.rs"]
pub(crate) mod rayon;
