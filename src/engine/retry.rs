//! Items that wait for another attempt, on the caller's side: a back-off occupies no worker.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};
use std::vec;

use log::warn;

use crate::util::TARGET;
use crate::util::panics::{CatchDrop, catch_panic};

/// How many delays are drawn at a time.
const BLOCK: usize = 64;

/// Gives the delays of a fresh item, but for the first so many.
type Ask<'a> = Box<dyn Fn(usize) -> Vec<Duration> + Send + 'a>;
/// Whether an error is worth another attempt.
type Judge<'a, E> = Box<dyn Fn(&E) -> bool + Send + 'a>;
/// How long to wait after an error that came of so many attempts.
type Answer<'a, E> = Box<dyn Fn(&E, u32) -> Option<Duration> + Send + 'a>;

/// Which failures are tried again, and when.
pub(crate) struct RetryRule<'a, E> {
    /// What the run is called in the log.
    title: String,
    // Each by itself, as two destructors that panic in a row would abort.
    ask: CatchDrop<Ask<'a>>,
    judge: CatchDrop<Judge<'a, E>>,
    /// In place of `ask`.
    answer: Option<CatchDrop<Answer<'a, E>>>,
}

impl<'a, E> RetryRule<'a, E> {
    /// Nothing is tried again, whatever it is.
    pub(crate) fn never(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            ask: CatchDrop::new(Box::new(|_| Vec::new())),
            judge: CatchDrop::new(Box::new(|_| true)),
            answer: None,
        }
    }

    pub(crate) fn set_delays<D: IntoIterator<Item = Duration>>(
        &mut self,
        delays: impl Fn() -> D + Send + 'a,
    ) {
        self.answer = None;
        // The iterator itself is not kept, as it need not be `Send`. Drawing in blocks lets an
        // endless one be drawn on.
        self.ask = CatchDrop::new(Box::new(move |drawn| {
            delays().into_iter().skip(drawn).take(BLOCK).collect()
        }));
    }

    pub(crate) fn set_judge(&mut self, judge: impl Fn(&E) -> bool + Send + 'a) {
        self.judge = CatchDrop::new(Box::new(judge));
    }

    pub(crate) fn set_answer(&mut self, answer: impl Fn(&E, u32) -> Option<Duration> + Send + 'a) {
        self.answer = Some(CatchDrop::new(Box::new(answer)));
    }

    /// How long to wait before `error`'s item is tried again, after so many attempts; `None` if it is not.
    pub(crate) fn delay(
        &self,
        error: &E,
        attempts: u32,
        delays: &mut Option<Delays>,
    ) -> Option<Duration> {
        let delay = catch_panic(|| match &self.answer {
            _ if !(self.judge)(error) => None,
            Some(answer) => answer(error, attempts),
            None => delays.get_or_insert_default().next(&self.ask),
        });
        delay.unwrap_or_else(|| {
            catch_panic(|| warn!(target: TARGET, "{}: the function given to `retry`, `retry_if` or `retry_with` panicked, so the item is not tried again", self.title));
            None
        })
    }
}

/// The delays of one item.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delays {
    block: vec::IntoIter<Duration>,
    drawn: usize,
    is_complete: bool,
}

impl Delays {
    fn next(&mut self, ask: &Ask<'_>) -> Option<Duration> {
        if self.block.as_slice().is_empty() && !self.is_complete {
            let block = ask(self.drawn);
            self.drawn += block.len();
            self.is_complete = block.len() < BLOCK;
            self.block = block.into_iter();
        }
        self.block.next()
    }

    /// Whether no further attempt can follow.
    pub(crate) fn is_spent(&self) -> bool {
        self.is_complete && self.block.as_slice().is_empty()
    }
}

/// What waits for its time, soonest first.
#[derive(Debug)]
pub(crate) struct Waiting<I> {
    heap: BinaryHeap<Reverse<Entry<I>>>,
}

/// An item that waits for another attempt.
#[derive(Debug)]
pub(crate) struct Entry<I> {
    pub(crate) due: Instant,
    pub(crate) index: u64,
    pub(crate) input: I,
    /// Which attempt will be its next, and what is left of its delays for one more.
    pub(crate) attempt: u32,
    pub(crate) delays: Option<Delays>,
}

impl<I> Entry<I> {
    /// Whether an `Err` is final, as no retry can follow.
    pub(crate) fn is_final(&self) -> bool {
        self.delays.as_ref().is_some_and(Delays::is_spent)
    }
}

impl<I> Waiting<I> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
        }
    }

    pub(crate) fn push(&mut self, entry: Entry<I>) {
        self.heap.push(Reverse(entry));
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.due)
    }

    /// One that is due at `now`, if `fits` says that the next one will do.
    pub(crate) fn pop_due(
        &mut self,
        now: Instant,
        fits: impl FnOnce(&Entry<I>) -> bool,
    ) -> Option<Entry<I>> {
        let Reverse(next) = self.heap.peek()?;
        if next.due > now || !fits(next) {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Takes out those whose index is not allowed any more.
    pub(crate) fn remove(&mut self, is_allowed: impl Fn(u64) -> bool) -> Vec<Entry<I>> {
        let (kept, removed) = self
            .heap
            .drain()
            .partition::<Vec<_>, _>(|Reverse(entry)| is_allowed(entry.index));
        self.heap = kept.into();
        removed.into_iter().map(|Reverse(entry)| entry).collect()
    }
}

// Ordered by time, then by index.
impl<I> Ord for Entry<I> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.index).cmp(&(other.due, other.index))
    }
}

impl<I> PartialOrd for Entry<I> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<I> PartialEq for Entry<I> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<I> Eq for Entry<I> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn delays_of(rule: &RetryRule<'_, ()>, limit: usize) -> Vec<Duration> {
        let mut delays = None;
        std::iter::from_fn(|| rule.delay(&(), 1, &mut delays))
            .take(limit)
            .collect()
    }

    #[test]
    fn delays_are_drawn_in_order_however_many() {
        for count in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let expected: Vec<_> = (0..count as u64).map(Duration::from_millis).collect();
            let mut rule = RetryRule::never("");
            rule.set_delays(|| expected.clone());
            assert_eq!(delays_of(&rule, usize::MAX), expected);
        }
    }

    #[test]
    fn an_endless_iterator_is_drawn_on() {
        let mut rule = RetryRule::never("");
        rule.set_delays(|| (0..).map(Duration::from_secs));
        assert_eq!(
            delays_of(&rule, 1_000).last(),
            Some(&Duration::from_secs(999))
        );
    }

    #[test]
    fn the_factory_is_asked_once_per_item() {
        let asked = Mutex::new(0);
        let mut rule = RetryRule::never("");
        rule.set_delays(|| {
            *asked.lock().unwrap() += 1;
            [Duration::ZERO; 3]
        });
        assert_eq!(delays_of(&rule, usize::MAX).len(), 3);
        drop(rule);
        assert_eq!(asked.into_inner().unwrap(), 1);
    }

    #[test]
    fn the_last_delay_leaves_them_spent() {
        let mut rule = RetryRule::never("");
        rule.set_delays(|| [Duration::ZERO; 2]);
        let mut delays = None;
        rule.delay(&(), 1, &mut delays);
        assert!(!delays.as_ref().unwrap().is_spent());
        rule.delay(&(), 1, &mut delays);
        assert!(delays.as_ref().unwrap().is_spent());
    }

    fn entry(due: Instant, index: u64) -> Entry<char> {
        Entry {
            due,
            index,
            input: ' ',
            attempt: 2,
            delays: None,
        }
    }

    #[test]
    fn the_soonest_comes_first() {
        let now = Instant::now();
        let hour = Duration::from_secs(3_600);
        let mut waiting = Waiting::new();
        [(now, 2), (now + hour, 0), (now, 1)]
            .into_iter()
            .for_each(|(due, index)| waiting.push(entry(due, index)));
        let mut next = |now, fits| waiting.pop_due(now, |_| fits).map(|entry| entry.index);
        assert_eq!(next(now, true), Some(1));
        assert_eq!(next(now, false), None);
        assert_eq!(next(now, true), Some(2));
        assert_eq!(next(now, true), None);
        assert!(waiting.remove(|index| index == 0).is_empty());
        assert_eq!(waiting.remove(|index| index > 0)[0].index, 0);
        assert!(waiting.is_empty());
    }

    #[test]
    fn those_that_are_due_at_the_same_time_come_by_index() {
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        assert!(entry(now, 1) == entry(now, 1));
        assert!(entry(now, 1) != entry(now, 2) && entry(now, 1) < entry(now, 2));
        assert!(entry(now, 2) < entry(later, 1));
    }
}
