//! What the engine asks of a source that may have nothing to give for a while.

use crate::util::sync::channel::Select;

/// How to deal with such a source: a table of functions, so that no bound on the source is needed.
pub(crate) struct SourceOps<I> {
    /// Called once, before anything else.
    pub(crate) start: fn(&mut I),
    /// What is to come; `None` where `next` gives an item, or the end, at once.
    pub(crate) incoming: for<'s> fn(&'s I) -> Option<&'s (dyn Incoming + 's)>,
}

/// What is to come from a source.
pub(crate) trait Incoming {
    /// Whether there is nothing right now.
    fn is_empty(&self) -> bool;

    /// Something that is there ends a wait.
    fn wait_in<'s>(&'s self, select: &mut Select<'s>);

    /// What has ended a wait is seen.
    fn forget_waking(&self) {}

    /// Whether it has come to its end when there is nothing, and nothing in flight either: what runs may add to it.
    fn ends_when_idle(&self) -> bool;
}
