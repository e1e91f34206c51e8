//! Items that the function takes.

use std::fmt;
use std::iter::FusedIterator;

use super::{Door, Incoming};

/// The source of a run whose function takes its items; see [`Futureproof::map_tasks_owned`](crate::Futureproof::map_tasks_owned).
///
/// Its items are there (`Some`) until the function takes them. As part of a [`Remainder`](crate::Remainder), it goes on
/// with the source.
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct Owned<I> {
    source: I,
    door: Option<Door<I>>,
}

impl<I: Iterator> Owned<I> {
    pub(crate) fn new(source: I, door: Option<Door<I>>) -> Self {
        Self { source, door }
    }

    /// The source itself.
    pub fn into_inner(self) -> I {
        self.source
    }

    pub(crate) fn door(&self) -> Option<Door<Self>> {
        self.door.as_ref()?;
        Some(Door {
            start: |owned| {
                if let Some(door) = &owned.door {
                    (door.start)(&mut owned.source);
                }
            },
            incoming: Self::incoming,
        })
    }

    fn incoming(&self) -> Option<&dyn Incoming> {
        let door = self.door.as_ref()?;
        (door.incoming)(&self.source)
    }
}

impl<I: Iterator> Iterator for Owned<I> {
    type Item = Option<I::Item>;

    fn next(&mut self) -> Option<Self::Item> {
        self.source.next().map(Some)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.source.size_hint()
    }
}

impl<I: FusedIterator> FusedIterator for Owned<I> {}

impl<I: fmt::Debug> fmt::Debug for Owned<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owned").field(&self.source).finish()
    }
}
