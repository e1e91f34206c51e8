//! A source that is pulled on a thread of its own.

use std::any::Any;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::contain::{Buried, bury};

/// The buffer that is chosen for those who ask for 0 items, and the largest there is: a channel's
/// slots are made in advance.
const DEFAULT_LIMIT: usize = 64;
const MAX_LIMIT: usize = 1 << 16;

/// What the reading thread hands over.
pub(crate) enum Read<I> {
    Item(I),
    /// The source has come to its end.
    End,
    /// The source panicked.
    Panicked(Box<dyn Any + Send>),
}

/// Where what was read arrives. What nobody takes is buried, one by one.
pub(crate) type Items<I> = Receiver<Buried<Read<I>>>;

/// How to deal with a source that reads ahead, without a bound that says so.
pub(crate) struct Bell<I: Iterator> {
    /// Starts its thread.
    pub(crate) start: fn(&mut I),
    /// Where its items arrive, to look whether there is one and to wait for it.
    pub(crate) items: fn(&I) -> Option<&Items<I::Item>>,
}

/// An iterator that another one is read into, on a thread of its own and ahead of its consumer.
///
/// Made by [`read_ahead`](crate::FutureproofIterator::read_ahead). It is an ordinary iterator as well:
///
/// ```
/// use futureproof::prelude::*;
///
/// let lines = ["a", "b", "c"].into_iter().read_ahead(2);
/// assert!(lines.eq(["a", "b", "c"]));
/// ```
pub struct ReadAhead<I: Iterator> {
    state: State<I>,
    limit: usize,
}

enum State<I: Iterator> {
    /// Nothing was asked for yet.
    Idle(I),
    Reading(Reader<I::Item>),
    Ended,
}

struct Reader<T> {
    /// Taken only to be dropped: that stops the thread, at its next item.
    items: Option<Items<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<I: Iterator> ReadAhead<I> {
    pub(crate) fn new(source: I, limit: usize) -> Self {
        let limit = if limit == 0 {
            DEFAULT_LIMIT
        } else {
            limit.min(MAX_LIMIT)
        };
        Self {
            state: State::Idle(source),
            limit,
        }
    }

    /// Where the items come from, once the thread runs.
    pub(crate) fn items(&self) -> Option<&Items<I::Item>> {
        match &self.state {
            State::Reading(reader) => reader.items.as_ref(),
            State::Idle(_) | State::Ended => None,
        }
    }
}

impl<I> ReadAhead<I>
where
    I: Iterator + Send + 'static,
    I::Item: Send + 'static,
{
    /// Starts to read, if that has not been done.
    pub(crate) fn start(&mut self) {
        match mem::replace(&mut self.state, State::Ended) {
            State::Idle(source) => self.state = State::Reading(Reader::start(source, self.limit)),
            state => self.state = state,
        }
    }
}

impl<I> Iterator for ReadAhead<I>
where
    I: Iterator + Send + 'static,
    I::Item: Send + 'static,
{
    type Item = I::Item;

    /// The next item, as soon as it has been read.
    ///
    /// # Panics
    ///
    /// With the source's panic, once what was read before it is delivered; and if the thread cannot be
    /// started.
    fn next(&mut self) -> Option<I::Item> {
        self.start();
        let read = self.items()?.recv().map(Buried::into_inner);
        match read {
            Ok(Read::Item(item)) => Some(item),
            Ok(Read::Panicked(payload)) => {
                self.state = State::Ended;
                panic::resume_unwind(payload)
            }
            Ok(Read::End) | Err(_) => {
                self.state = State::Ended;
                None
            }
        }
    }

    /// Before the first `next`, what the source says; then the least that is known.
    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.state {
            State::Idle(source) => source.size_hint(),
            State::Reading(_) => (0, None),
            State::Ended => (0, Some(0)),
        }
    }
}

impl<I> std::iter::FusedIterator for ReadAhead<I>
where
    I: Iterator + Send + 'static,
    I::Item: Send + 'static,
{
}

impl<T: Send + 'static> Reader<T> {
    fn start(source: impl Iterator<Item = T> + Send + 'static, limit: usize) -> Self {
        let (sender, items) = bounded(limit);
        let thread = thread::Builder::new()
            .name("futureproof-read-ahead".into())
            .spawn(move || read(source, &sender))
            .unwrap_or_else(|error| panic!("cannot start the thread that reads ahead: {error}"));
        Self {
            items: Some(items),
            thread: Some(thread),
        }
    }
}

fn read<T>(mut source: impl Iterator<Item = T>, sender: &Sender<Buried<Read<T>>>) {
    loop {
        // Caught here to go on where the consumer is: on this thread nobody would see it.
        let read = match panic::catch_unwind(AssertUnwindSafe(|| source.next())) {
            Ok(Some(item)) => Read::Item(item),
            Ok(None) => Read::End,
            Err(payload) => Read::Panicked(payload),
        };
        let is_item = matches!(read, Read::Item(_));
        if sender.send(Buried::new(read)).is_err() || !is_item {
            break;
        }
    }
    bury(source);
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.items = None;
        if let Some(thread) = self.thread.take() {
            // The panics of the source were caught.
            let _ = thread.join();
        }
    }
}

impl<I: Iterator> fmt::Debug for ReadAhead<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Idle(_) => "idle",
            State::Reading(_) => "reading",
            State::Ended => "ended",
        };
        f.debug_struct("ReadAhead")
            .field("state", &state)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
