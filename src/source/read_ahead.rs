//! A source that is pulled on a thread of its own.

use std::any::Any;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::ops::{Incoming, SourceOps};
use crate::cancel::CancellationToken;
use crate::util::panics::{CatchDrop, drop_catching};
use crate::util::sync::channel::Select;

/// The buffer that is chosen for those who ask for 0 items, and the largest there is: a channel's
/// slots are made in advance.
const DEFAULT_LIMIT: usize = 64;
const MAX_LIMIT: usize = 1 << 16;

/// What the reading thread sends.
enum Read<I> {
    Item(I),
    /// The source has come to its end.
    End,
    /// The source panicked.
    Panicked(Box<dyn Any + Send>),
}

/// Where what was read arrives. What nobody takes is dropped one by one.
type Items<I> = Receiver<CatchDrop<Read<I>>>;

impl<I> Incoming for Items<I> {
    fn is_empty(&self) -> bool {
        Receiver::is_empty(self)
    }

    fn wait_in<'s>(&'s self, select: &mut Select<'s>) {
        select.recv(self);
    }

    fn ends_when_idle(&self) -> bool {
        false
    }
}

/// An iterator that is to be read ahead, and that waits for its policy; made by
/// [`FutureproofIterator::read_ahead`](crate::FutureproofIterator::read_ahead).
///
/// It is no iterator itself: behind an adaptor, a run could not tell that its source reads ahead, and would block with it.
///
/// ```compile_fail,E0599
/// use futureproof::prelude::*;
///
/// let numbered = ["a", "b"].into_iter().read_ahead(2).enumerate();
/// ```
///
/// Adaptors come first: `iter.enumerate().read_ahead(2)`.
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

    /// The source, and how many items are read ahead.
    pub(crate) fn into_parts(self) -> (I, usize) {
        (self.source, self.limit)
    }
}

/// A source that is read on a thread of its own, ahead of its run; made by
/// [`Futureproof::read_ahead`](crate::Futureproof::read_ahead).
///
/// As part of a [`Remainder`](crate::Remainder) it gives what was read and not pulled, and goes on with the source.
#[must_use = "iterators are lazy and do nothing unless consumed"]
pub struct ReadAhead<I: Iterator> {
    state: State<I>,
    limit: usize,
}

enum State<I: Iterator> {
    /// Nothing was asked for yet.
    Idle(I),
    /// The source never blocks, and says itself what is to come.
    Direct(I, SourceOps<I>),
    Reading(Reader<I::Item>),
    Ended,
}

struct Reader<T> {
    /// Dropping it stops the thread, at its next item.
    items: Items<T>,
    /// Cancelled when nobody wants the items any more.
    token: CancellationToken,
}

impl<I: Iterator> ReadAhead<I> {
    /// `ops`: of a source that has them. It is not read ahead, as it never blocks.
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

    /// Where the items come from, once the thread runs.
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

    /// Starts to read, if that has not been done.
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

    /// The next item, as soon as it has been read.
    ///
    /// # Panics
    ///
    /// With the source's panic, once what was read before it is delivered; and if the thread cannot be
    /// started.
    fn next(&mut self) -> Option<I::Item> {
        if let State::Direct(source, _) = &mut self.state {
            return source.next();
        }
        self.start();
        let read = self.items()?.recv().map(CatchDrop::into_inner);
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
        let (sender, items) = bounded(limit);
        let token = CancellationToken::new();
        let current = token.clone();
        thread::Builder::new()
            .name("futureproof-read-ahead".into())
            .spawn(move || {
                let _entered = current.enter();
                read(source, &sender);
            })
            .unwrap_or_else(|error| panic!("cannot start the thread that reads ahead: {error}"));
        Self { items, token }
    }
}

fn read<T>(mut source: impl Iterator<Item = T>, sender: &Sender<CatchDrop<Read<T>>>) {
    loop {
        // Caught here to go on where the consumer is: on this thread nobody would see it.
        let read = match panic::catch_unwind(AssertUnwindSafe(|| source.next())) {
            Ok(Some(item)) => Read::Item(item),
            Ok(None) => Read::End,
            Err(payload) => Read::Panicked(payload),
        };
        let is_item = matches!(read, Read::Item(_));
        if sender.send(CatchDrop::new(read)).is_err() || !is_item {
            break;
        }
    }
    drop_catching(source);
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        // Not joined: a source that blocks could keep whoever leaves for ever. Its thread ends with the pull that is
        // under way.
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
