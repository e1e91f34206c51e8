//! Bugs that are put in on purpose, to see that the tests find each of them.
//!
//! With the feature `seeded-bugs`, the environment variable `FUTUREPROOF_BUG` names the one that is there.

#[cfg(feature = "seeded-bugs")]
pub(crate) fn has(bug: &str) -> bool {
    static BUG: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let there = BUG.get_or_init(|| std::env::var("FUTUREPROOF_BUG").ok());
    there.as_deref() == Some(bug)
}

#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub(crate) const fn has(_: &str) -> bool {
    false
}
