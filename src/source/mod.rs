//! Sources that can be empty now and have items later.

mod ops;
mod owned;
mod queue;
mod read_ahead;

pub(crate) use self::ops::{Incoming, SourceOps};
pub use self::owned::Owned;
pub use self::queue::{Queue, QueueItems, QueueSource};
pub use self::read_ahead::{ReadAhead, ToReadAhead};
