//! What the engine asks of a source that can be empty now and have items later.

#[cfg(feature = "stream")]
use std::task::Waker;

use crate::util::sync::channel::Select;

/// The operations of such a source, as a table of functions, so that the source needs no trait bound.
pub(crate) struct SourceOps<I> {
    /// Called once, before anything else.
    pub(crate) start: fn(&mut I),
    /// The source's [`Incoming`]; `None` if `next` returns an item or the end at once.
    pub(crate) incoming: for<'s> fn(&'s I) -> Option<&'s (dyn Incoming + 's)>,
}

/// The items that such a source has yet to give.
pub(crate) trait Incoming {
    /// Whether there is no item right now.
    fn is_empty(&self) -> bool;

    /// Makes `select` wake when there is an item.
    fn wait_in<'s>(&'s self, select: &mut Select<'s>);

    /// Has `waker` woken when there is an item. One that is there already does not wake it.
    #[cfg(feature = "stream")]
    fn wake_next(&self, waker: Waker);

    /// Clears the wake-up that ended a wait.
    fn forget_waking(&self) {}

    /// Whether the source has ended once it is empty and nothing is in flight, because only running tasks could add
    /// to it.
    fn ends_when_idle(&self) -> bool;
}
