//! Items that the function consumes.

use std::fmt;
use std::iter::FusedIterator;

use super::ops::{Incoming, SourceOps};

/// The source of a run whose function consumes its items; see
/// [`Futureproof::map_tasks_owned`](crate::Futureproof::map_tasks_owned).
///
/// An item is `Some` until the function takes it. As part of a [`Remainder`](crate::Remainder), this continues with
/// the source.
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct Owned<I> {
    source: I,
    ops: Option<SourceOps<I>>,
}

impl<I: Iterator> Owned<I> {
    pub(crate) fn new(source: I, ops: Option<SourceOps<I>>) -> Self {
        Self { source, ops }
    }

    /// Returns the source itself.
    pub fn into_inner(self) -> I {
        self.source
    }

    pub(crate) fn ops(&self) -> Option<SourceOps<Self>> {
        self.ops.as_ref()?;
        Some(SourceOps {
            start: |owned| {
                if let Some(ops) = &owned.ops {
                    (ops.start)(&mut owned.source);
                }
            },
            incoming: Self::incoming,
        })
    }

    fn incoming(&self) -> Option<&dyn Incoming> {
        let ops = self.ops.as_ref()?;
        (ops.incoming)(&self.source)
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
