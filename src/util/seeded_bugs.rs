//! Bugs that are put in on purpose, to see that the tests find each of them.
//!
//! Built with `--cfg seeded_bugs`, the crate has the one that the environment variable `FUTUREPROOF_BUG` names.

use crate::util::sync::atomic::AtomicU64;

#[cfg(seeded_bugs)]
pub(crate) fn has(bug: &str) -> bool {
    static BUG: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let there = BUG.get_or_init(|| std::env::var("FUTUREPROOF_BUG").ok());
    there.as_deref() == Some(bug)
}

#[cfg(not(seeded_bugs))]
#[inline(always)]
pub(crate) const fn has(_: &str) -> bool {
    false
}

/// Whether the chunk that begins with this item is lost on its way back.
pub(crate) fn loses(first: u64) -> bool {
    has("lost chunk") && first % 8 == 7
}

/// Adds so that what another adds at the same time is lost; `false` if nothing was added.
pub(crate) fn adds_in_two_steps(sum: &AtomicU64, more: u64) -> bool {
    use crate::util::sync::atomic::Ordering::SeqCst;
    let is_there = has("lost counter update");
    if is_there {
        sum.store(sum.load(SeqCst) + more, SeqCst);
    }
    is_there
}
