//! The order in which what has arrived is delivered: as it came, or as the source gave it.

use std::collections::{BTreeMap, VecDeque};

/// Finished chunks that wait for delivery.
#[derive(Debug)]
pub(crate) enum Order<C> {
    /// Completion order.
    Completion(VecDeque<C>),
    /// Input order: what is next, and what has arrived out of turn, by the index of its first item.
    Input {
        next: u64,
        early: BTreeMap<u64, (usize, C)>,
    },
}

impl<C> Order<C> {
    pub(crate) fn new(ordered: bool) -> Self {
        if ordered {
            Self::Input {
                next: 0,
                early: BTreeMap::new(),
            }
        } else {
            Self::Completion(VecDeque::new())
        }
    }

    /// Whether what is delivered next is the next index.
    pub(crate) fn is_by_index(&self) -> bool {
        matches!(self, Self::Input { .. })
    }

    /// A chunk of `len` tasks, the first of index `first`, has arrived.
    pub(crate) fn push(&mut self, first: u64, len: usize, chunk: C) {
        match self {
            Self::Completion(queue) => queue.push_back(chunk),
            Self::Input { early, .. } => {
                early.insert(first, (len, chunk));
            }
        }
    }

    /// How many chunks wait.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Completion(queue) => queue.len(),
            Self::Input { early, .. } => early.len(),
        }
    }

    /// The chunk to deliver now, if it is there.
    pub(crate) fn pop(&mut self) -> Option<C> {
        match self {
            Self::Completion(queue) => queue.pop_front(),
            Self::Input { next, early } => {
                let (len, chunk) = early.remove(next)?;
                *next += len as u64;
                Some(chunk)
            }
        }
    }

    /// Takes back a chunk that was popped, to be the first of what is drained.
    pub(crate) fn put_back(&mut self, chunk: C) {
        match self {
            Self::Completion(queue) => queue.push_front(chunk),
            // Its place is the one before `next`, which is past its first item in any case.
            Self::Input { next, early } => {
                early.insert(next.saturating_sub(1), (0, chunk));
            }
        }
    }

    /// All that has arrived, whether its turn has come or not.
    pub(crate) fn drain(&mut self) -> Vec<C> {
        match self {
            Self::Completion(queue) => queue.drain(..).collect(),
            Self::Input { early, .. } => std::mem::take(early)
                .into_values()
                .map(|(_, chunk)| chunk)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pop_all(order: &mut Order<char>) -> String {
        std::iter::from_fn(|| order.pop()).collect()
    }

    #[test]
    fn completion_order_is_the_order_of_arrival() {
        let mut order = Order::new(false);
        for (first, chunk) in [(4, 'c'), (0, 'a'), (2, 'b')] {
            order.push(first, 2, chunk);
        }
        assert_eq!(pop_all(&mut order), "cab");
    }

    #[test]
    fn input_order_waits_for_the_head() {
        let mut order = Order::new(true);
        order.push(5, 1, 'c');
        order.push(2, 3, 'b');
        assert_eq!(pop_all(&mut order), "");
        order.push(0, 2, 'a');
        assert_eq!(pop_all(&mut order), "abc");
        order.push(7, 1, 'e');
        assert_eq!(pop_all(&mut order), "");
        assert_eq!(order.drain(), ['e']);
    }
}
