//! A source that tasks can add to.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "stream")]
use std::task::Waker;

use super::ops::{Incoming, SourceOps};
use crate::util::notify::Notifier;
use crate::util::panics::drop_all_catching;
use crate::util::sync::channel::{Receiver, Select};

/// A queue of items that a run can add to while it pulls them: the pages of a crawl, the nodes of a search, the
/// folders of a tree.
///
/// A run over [`source`](Self::source) ends when the queue is empty *and* nothing of the run is in flight. So you can
/// push from a task, or from the loop over the tasks. The run neither ends too early nor blocks for ever.
///
/// ```
/// use std::collections::HashSet;
/// use futureproof::prelude::*;
///
/// // Each page links to two others, and some of these were seen before.
/// let links = |page: &u32| vec![2 * page % 1_000, (2 * page + 1) % 1_000];
/// let queue = Queue::from_iter([1]);
/// let mut seen = HashSet::from([1]);
/// for task in queue.source().futureproof(Raise).num_threads(4).map_tasks(infallible(links)) {
///     for link in task?.output {
///         if seen.insert(link) {
///             queue.push(link);
///         }
///     }
/// }
/// assert_eq!(seen.len(), 1_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A function that pushes items needs a clone of the queue. The queue is unbounded: it holds every item until a run
/// pulls it.
///
/// The `index` of a task is the number of its pull, so an item may have another index in the next run.
pub struct Queue<T> {
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    items: VecDeque<T>,
    /// Of the runs that may wait for an item.
    notifiers: Vec<Arc<Notifier>>,
}

impl<T> Drop for State<T> {
    fn drop(&mut self) {
        // One by one, because their destructors may panic.
        drop_all_catching(&mut self.items);
    }
}

impl<T> Queue<T> {
    /// Creates an empty queue.
    pub fn new() -> Self {
        let state = State {
            items: VecDeque::new(),
            notifiers: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Adds an item for a run to pull.
    pub fn push(&self, item: T) {
        self.extend_by([item]);
    }

    fn extend_by(&self, items: impl IntoIterator<Item = T>) {
        // One by one, and without the lock around `next` of the iterator, which is user code.
        for item in items {
            let mut state = self.state();
            state.items.push_back(item);
            let notifiers = state.notifiers.clone();
            drop(state);
            notifiers.iter().for_each(|notifier| notifier.notify());
        }
    }

    /// Returns how many items wait to be pulled.
    pub fn len(&self) -> usize {
        self.state().items.len()
    }

    /// Returns whether no item waits to be pulled. More may come.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the source for a run: `queue.source().futureproof(Raise)`.
    ///
    /// Several runs may share the items.
    pub fn source(&self) -> QueueSource<T> {
        QueueSource {
            queue: self.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Queue<T> {
    /// Returns another handle on the same items.
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
        }
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> FromIterator<T> for Queue<T> {
    fn from_iter<A: IntoIterator<Item = T>>(items: A) -> Self {
        let queue = Self::new();
        queue.extend_by(items);
        queue
    }
}

impl<T> Extend<T> for Queue<T> {
    fn extend<A: IntoIterator<Item = T>>(&mut self, items: A) {
        self.extend_by(items);
    }
}

impl<T> Extend<T> for &Queue<T> {
    fn extend<A: IntoIterator<Item = T>>(&mut self, items: A) {
        self.extend_by(items);
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The source for a run over a [`Queue`], created by [`Queue::source`].
///
/// It is not an iterator. Behind an adaptor, the run could not know that the source may be filled again, and would
/// end when the queue is empty for the first time.
///
/// ```compile_fail,E0599
/// use futureproof::prelude::*;
///
/// let numbered = Queue::from_iter(["a", "b"]).source().enumerate();
/// ```
#[derive(Debug)]
#[must_use = "nothing is pulled before a run is made and its tasks are consumed"]
pub struct QueueSource<T> {
    queue: Queue<T>,
}

impl<T> QueueSource<T> {
    /// Each run over the queue has its own.
    pub(crate) fn into_items(self) -> QueueItems<T> {
        let (notifier, notified) = Notifier::new();
        self.queue.state().notifiers.push(Arc::clone(&notifier));
        QueueItems {
            queue: self.queue,
            notifier,
            notified,
        }
    }
}

/// The items of a [`Queue`], as the source of a run.
///
/// As part of a [`Remainder`](crate::Remainder), it yields the items that wait in the queue.
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct QueueItems<T> {
    queue: Queue<T>,
    notifier: Arc<Notifier>,
    notified: Receiver<()>,
}

impl<T> QueueItems<T> {
    pub(crate) const OPS: SourceOps<Self> = SourceOps {
        start: |_| (),
        incoming: |items| Some(items),
    };
}

impl<T> Incoming for QueueItems<T> {
    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn wait_in<'s>(&'s self, select: &mut Select<'s>) {
        select.recv(&self.notified);
    }

    #[cfg(feature = "stream")]
    fn wake_next(&self, waker: Waker) {
        self.notifier.wake_next(waker);
    }

    fn forget_waking(&self) {
        let _ = self.notified.try_recv();
    }

    fn ends_when_idle(&self) -> bool {
        true
    }
}

impl<T> Iterator for QueueItems<T> {
    type Item = T;

    /// Takes the item that was pushed first. Returns `None` if there is none right now.
    fn next(&mut self) -> Option<T> {
        self.queue.state().items.pop_front()
    }

    /// Returns `(0, None)`, because others may pull and push.
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, None)
    }
}

impl<T> Drop for QueueItems<T> {
    fn drop(&mut self) {
        let notifier = &self.notifier;
        self.queue
            .state()
            .notifiers
            .retain(|other| !Arc::ptr_eq(other, notifier));
    }
}

impl<T> fmt::Debug for QueueItems<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("QueueItems").field(&self.queue).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_that_are_gone_are_not_told() {
        let queue = Queue::<u32>::new();
        let told = || queue.state().notifiers.len();
        let sources = [(); 2].map(|()| queue.source().into_items());
        assert_eq!(told(), 2);
        let [first, second] = sources;
        drop(first);
        assert_eq!(told(), 1);
        assert!(Arc::ptr_eq(&queue.state().notifiers[0], &second.notifier));
        drop(second);
        assert_eq!(told(), 0);
    }

    #[cfg(feature = "stream")]
    #[test]
    fn whoever_polls_is_woken_by_a_push() {
        struct Woken(std::sync::mpsc::Sender<()>);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.send(()).unwrap();
            }
        }
        let queue = Queue::new();
        let items = queue.source().into_items();
        let (wakes, woken) = std::sync::mpsc::channel();
        items.wake_next(Arc::new(Woken(wakes)).into());
        assert!(woken.try_recv().is_err());
        queue.push(1);
        assert!(woken.try_recv().is_ok());
    }
}
