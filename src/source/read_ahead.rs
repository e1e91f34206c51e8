//! A source that is pulled on its own thread.

use std::any::Any;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
#[cfg(feature = "stream")]
use std::sync::Arc;
#[cfg(feature = "stream")]
use std::task::Waker;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::ops::{Incoming, SourceOps};
use crate::cancel::CancellationToken;
#[cfg(feature = "stream")]
use crate::util::notify::Notifier;
use crate::util::panics::{CatchDrop, drop_catching};
use crate::util::sync::channel::Select;

/// The default limit, and the largest one: a bounded channel allocates its slots in advance.
const DEFAULT_LIMIT: usize = 64;
const MAX_LIMIT: usize = 1 << 16;

/// What the reading thread sends.
enum Read<I> {
    Item(I),
    /// The source has ended.
    End,
    /// The source panicked.
    Panicked(Box<dyn Any + Send>),
}

/// What was read. Each element has its own `CatchDrop`.
struct Items<I> {
    received: Receiver<CatchDrop<Read<I>>>,
    /// Told of each item, for a run that is a stream.
    #[cfg(feature = "stream")]
    notifier: Arc<Notifier>,
}

impl<I> Incoming for Items<I> {
    fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    fn wait_in<'s>(&'s self, select: &mut Select<'s>) {
        select.recv(&self.received);
    }

    #[cfg(feature = "stream")]
    fn wake_next(&self, waker: Waker) {
        self.notifier.wake_next(waker);
    }

    fn ends_when_idle(&self) -> bool {
        false
    }
}

/// An iterator to be read ahead in a run, created by
/// [`FutureproofIterator::read_ahead`](crate::FutureproofIterator::read_ahead).
///
/// It is not an iterator. Behind an adaptor, the run could not know that its source reads ahead, and would block with
/// it.
///
/// ```compile_fail,E0599
/// use futureproof::prelude::*;
///
/// let numbered = ["a", "b"].into_iter().read_ahead(2).enumerate();
/// ```
///
/// Put adaptors first: `iter.enumerate().read_ahead(2)`.
#[derive(Clone, Debug)]
#[must_use = "nothing is read before a run is made and its tasks are consumed"]
pub struct ToReadAhead<I> {
    source: I,
    limit: usize,
}

impl<I> ToReadAhead<I>
where
    I: Iterator + Send + 'static,
    I::Item: Send + 'static,
{
    pub(crate) fn new(source: I, limit: usize) -> Self {
        Self { source, limit }
    }

    /// The source and the limit.
    pub(crate) fn into_parts(self) -> (I, usize) {
        (self.source, self.limit)
    }
}

/// A source that is read ahead on its own thread, created by
/// [`Futureproof::read_ahead`](crate::Futureproof::read_ahead).
///
/// As part of a [`Remainder`](crate::Remainder), it yields what was read and not pulled, then continues with the
/// source.
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct ReadAhead<I: Iterator> {
    state: State<I>,
    limit: usize,
}

enum State<I: Iterator> {
    /// Not started.
    Idle(I),
    /// The source never blocks, and has operations of its own.
    Direct(I, SourceOps<I>),
    Reading(Reader<I::Item>),
    Ended,
}

struct Reader<T> {
    /// Dropping it stops the thread at its next item.
    items: Items<T>,
    /// Cancelled when the items are no longer wanted.
    token: CancellationToken,
}

impl<I: Iterator> ReadAhead<I> {
    /// `ops`: the source's own, if any. Such a source never blocks, so it is not read ahead.
    pub(crate) fn new(source: I, limit: usize, ops: Option<SourceOps<I>>) -> Self {
        let limit = if limit == 0 {
            DEFAULT_LIMIT
        } else {
            limit.min(MAX_LIMIT)
        };
        Self {
            state: match ops {
                None => State::Idle(source),
                Some(ops) => State::Direct(source, ops),
            },
            limit,
        }
    }

    /// The receiver, once the thread runs.
    fn items(&self) -> Option<&Items<I::Item>> {
        match &self.state {
            State::Reading(reader) => Some(&reader.items),
            State::Idle(_) | State::Direct(..) | State::Ended => None,
        }
    }

    fn incoming(&self) -> Option<&dyn Incoming>
    where
        I::Item: 'static,
    {
        match &self.state {
            State::Direct(source, ops) => (ops.incoming)(source),
            _ => self.items().map(|items| items as _),
        }
    }
}

impl<I> ReadAhead<I>
where
    I: Iterator + Send + 'static,
    I::Item: Send + 'static,
{
    pub(crate) const OPS: SourceOps<Self> = SourceOps {
        start: Self::start,
        incoming: Self::incoming,
    };

    /// Starts the thread, once.
    fn start(&mut self) {
        if let State::Direct(source, ops) = &mut self.state {
            return (ops.start)(source);
        }
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

    /// Returns the next item. Blocks until it has been read.
    ///
    /// # Panics
    ///
    /// If the source panics, with its panic, after the items that were read before it. If the thread cannot be
    /// started.
    fn next(&mut self) -> Option<I::Item> {
        if let State::Direct(source, _) = &mut self.state {
            return source.next();
        }
        self.start();
        let read = self.items()?.received.recv().map(CatchDrop::into_inner);
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

    /// Returns the source's hint before the first `next`, and `(0, None)` after it.
    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.state {
            State::Idle(source) | State::Direct(source, _) => source.size_hint(),
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
        let (sender, received) = bounded(limit);
        #[cfg(feature = "stream")]
        let (notifier, _) = Notifier::new();
        let items = Items {
            received,
            #[cfg(feature = "stream")]
            notifier: Arc::clone(&notifier),
        };
        let notify = move || {
            #[cfg(feature = "stream")]
            notifier.notify();
        };
        let token = CancellationToken::new();
        let current = token.clone();
        thread::Builder::new()
            .name("futureproof-read-ahead".into())
            .spawn(move || {
                let _entered = current.enter(1);
                read(source, &sender, notify);
            })
            .unwrap_or_else(|error| panic!("cannot start the thread that reads ahead: {error}"));
        Self { items, token }
    }
}

fn read<T>(
    mut source: impl Iterator<Item = T>,
    sender: &Sender<CatchDrop<Read<T>>>,
    notify: impl Fn(),
) {
    loop {
        // Caught here, and resumed on the consumer's thread.
        let read = match panic::catch_unwind(AssertUnwindSafe(|| source.next())) {
            Ok(Some(item)) => Read::Item(item),
            Ok(None) => Read::End,
            Err(payload) => Read::Panicked(payload),
        };
        let is_item = matches!(read, Read::Item(_));
        let is_wanted = sender.send(CatchDrop::new(read)).is_ok();
        notify();
        if !is_wanted || !is_item {
            break;
        }
    }
    drop_catching(source);
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        // Not joined, because the source may block for ever. The thread ends when the current pull returns.
        self.token.cancel();
    }
}

impl<I: Iterator> fmt::Debug for ReadAhead<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Idle(_) => "idle",
            State::Direct(..) => "direct",
            State::Reading(_) => "reading",
            State::Ended => "ended",
        };
        f.debug_struct("ReadAhead")
            .field("state", &state)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
