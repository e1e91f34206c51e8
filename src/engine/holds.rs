//! Items that were pulled and may not start yet: one of their key is on its way, or what is in flight is too heavy.
//!
//! An item waits at most in one place: as the one that is too heavy for now, then behind others of its key, then until the
//! driver submits it.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::mem;

use crate::util::panics::{CatchDrop, drop_all_catching};
use crate::util::seeded_bugs;

/// So many items for each worker may wait behind others of their key, where the window is not given.
const BEHIND: usize = 64;

/// A function of an item.
type Of<'a, I> = CatchDrop<Box<dyn Fn(&I) -> u64 + Send + 'a>>;

/// What items are held by.
pub(crate) struct HoldRules<'a, I> {
    /// Gives a hash of the key. Two keys that share one wait for each other, which does no harm.
    key: Option<Of<'a, I>>,
    /// Gives the weight, and how much of it may be in flight.
    weight: Option<(u64, Of<'a, I>)>,
}

impl<'a, I> HoldRules<'a, I> {
    pub(crate) fn none() -> Self {
        Self {
            key: None,
            weight: None,
        }
    }

    pub(crate) fn by_key<K: Hash>(&mut self, key: impl Fn(&I) -> K + Send + 'a) {
        let hasher = RandomState::new();
        let hash = move |item: &I| hasher.hash_one(key(item));
        self.key = Some(CatchDrop::new(Box::new(hash)));
    }

    pub(crate) fn max_weight(&mut self, limit: u64, weigh: impl Fn(&I) -> u64 + Send + 'a) {
        self.weight = Some((limit, CatchDrop::new(Box::new(weigh))));
    }

    /// The same for items that the function consumes. When these rules are asked, it has not had them yet.
    pub(crate) fn of_owned<'b>(self) -> HoldRules<'b, Option<I>>
    where
        I: 'b,
        'a: 'b,
    {
        let of_owned = |of: Of<'a, I>| -> Of<'b, Option<I>> {
            let of = move |item: &Option<I>| item.as_ref().map_or(0, &*of);
            CatchDrop::new(Box::new(of))
        };
        HoldRules {
            key: self.key.map(of_owned),
            weight: self.weight.map(|(limit, of)| (limit, of_owned(of))),
        }
    }
}

/// What the rules say of an item.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    key: u64,
    weight: u64,
}

/// The items that are held, and those for which they are.
pub(crate) struct Holds<'a, I> {
    rules: HoldRules<'a, I>,
    /// What is in flight, by index; and the sum.
    weights: HashMap<u64, u64>,
    weight: u64,
    /// Pulled last, and too heavy for now.
    heavy: Option<(u64, I, Mark)>,
    /// For each key of which an item is on its way: those behind it, first to last.
    behind: HashMap<u64, VecDeque<(u64, I)>>,
    /// How many those are.
    waiting: usize,
    /// The key of each item that is on its way, by index.
    keys: HashMap<u64, u64>,
    /// What may start.
    ready: VecDeque<(u64, I)>,
}

impl<'a, I> Holds<'a, I> {
    /// `None` if nothing is ever held.
    pub(crate) fn new(rules: HoldRules<'a, I>) -> Option<Box<Self>> {
        if rules.key.is_none() && rules.weight.is_none() {
            return None;
        }
        Some(Box::new(Self {
            rules,
            weights: HashMap::new(),
            weight: 0,
            heavy: None,
            behind: HashMap::new(),
            waiting: 0,
            keys: HashMap::new(),
            ready: VecDeque::new(),
        }))
    }

    /// Asks the user's functions, which may panic.
    pub(crate) fn mark(&self, item: &I) -> Mark {
        let HoldRules { key, weight } = &self.rules;
        Mark {
            key: key.as_ref().map_or(0, |key| key(item)),
            weight: weight.as_ref().map_or(0, |(_, weigh)| weigh(item)),
        }
    }

    /// An item was pulled.
    pub(crate) fn push(&mut self, index: u64, item: I, mark: Mark) {
        debug_assert!(self.heavy.is_none(), "nothing is pulled meanwhile");
        self.heavy = Some((index, item, mark));
        self.admit();
    }

    /// Lets in the heavy item, if it fits or is alone.
    fn admit(&mut self) {
        let fits = |(_, _, mark): &mut (u64, I, Mark)| match &self.rules.weight {
            Some((limit, _)) => {
                self.weights.is_empty() || self.weight.saturating_add(mark.weight) <= *limit
            }
            None => true,
        };
        let Some((index, item, mark)) = self.heavy.take_if(fits) else {
            return;
        };
        if self.rules.weight.is_some() {
            self.weights.insert(index, mark.weight);
            self.weight = self.weight.saturating_add(mark.weight);
        }
        if self.rules.key.is_none() {
            self.ready.push_back((index, item));
            return;
        }
        match self.behind.entry(mark.key) {
            Entry::Occupied(mut behind) => {
                behind.get_mut().push_back((index, item));
                self.waiting += 1;
            }
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                self.keys.insert(index, mark.key);
                self.ready.push_back((index, item));
            }
        }
    }

    /// The item at `index` has come to its end: the next of its key may start.
    pub(crate) fn end(&mut self, index: u64) {
        let Some(key) = self.keys.remove(&index) else {
            return;
        };
        let Entry::Occupied(mut behind) = self.behind.entry(key) else {
            return;
        };
        match behind.get_mut().pop_front() {
            Some(_) if seeded_bugs::has("held item forgotten") => {}
            Some((next, item)) => {
                self.waiting -= 1;
                self.keys.insert(next, key);
                self.ready.push_back((next, item));
            }
            None => {
                behind.remove();
            }
        }
    }

    /// The item at `index` was delivered: its weight is free.
    pub(crate) fn deliver(&mut self, index: u64) {
        if let Some(weight) = self.weights.remove(&index) {
            // The sum may have been cut off.
            self.weight = match self.weights.is_empty() {
                true => 0,
                false => self.weight.saturating_sub(weight),
            };
            self.admit();
        }
    }

    /// Whether another item may be pulled. `is_bounded`: a window was asked for, and bounds what is held as well.
    pub(crate) fn has_room(&self, is_bounded: bool, width: usize) -> bool {
        self.heavy.is_none() && (is_bounded || self.waiting < BEHIND.saturating_mul(width))
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.heavy.is_none() && self.waiting == 0 && self.ready.is_empty()
    }

    /// Whether something may start.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next item that may start.
    pub(crate) fn pop(&mut self) -> Option<(u64, I)> {
        self.ready.pop_front()
    }

    /// All that is held.
    pub(crate) fn drain(&mut self) -> Vec<(u64, I)> {
        self.waiting = 0;
        let heavy = self.heavy.take().map(|(index, item, _)| (index, item));
        let behind = mem::take(&mut self.behind);
        let ready = mem::take(&mut self.ready);
        let waiting = behind.into_values().flatten();
        waiting.chain(ready).chain(heavy).collect()
    }
}

impl<I> Drop for Holds<'_, I> {
    fn drop(&mut self) {
        drop_all_catching(&mut self.drain());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds<'a>(rules: impl FnOnce(&mut HoldRules<'a, u64>)) -> Box<Holds<'a, u64>> {
        let mut all = HoldRules::none();
        rules(&mut all);
        Holds::new(all).unwrap()
    }

    fn push(holds: &mut Holds<'_, u64>, index: u64, item: u64) {
        let mark = holds.mark(&item);
        holds.push(index, item, mark);
    }

    fn ready(holds: &mut Holds<'_, u64>) -> Vec<u64> {
        std::iter::from_fn(|| holds.pop())
            .map(|(index, _)| index)
            .collect()
    }

    #[test]
    fn items_of_a_key_come_one_after_the_other() {
        let mut holds = holds(|rules| rules.by_key(|item| item % 2));
        (0..5).for_each(|n| push(&mut holds, n, n));
        assert_eq!(ready(&mut holds), [0, 1]);
        holds.end(1);
        holds.end(1);
        assert_eq!(ready(&mut holds), [3]);
        holds.end(0);
        holds.end(2);
        assert_eq!(ready(&mut holds), [2, 4]);
        holds.end(3);
        holds.end(4);
        assert!(holds.is_empty() && holds.behind.is_empty() && holds.keys.is_empty());
    }

    #[test]
    fn what_is_too_heavy_waits_and_goes_alone() {
        let mut holds = holds(|rules| rules.max_weight(10, |item| *item));
        push(&mut holds, 0, 6);
        push(&mut holds, 1, 4);
        assert!(holds.has_room(true, 1));
        push(&mut holds, 2, 100);
        assert_eq!(ready(&mut holds), [0, 1]);
        assert!(!holds.has_room(true, 1));
        holds.deliver(0);
        assert!(ready(&mut holds).is_empty());
        holds.deliver(1);
        assert_eq!(ready(&mut holds), [2]);
        push(&mut holds, 3, 0);
        assert!(ready(&mut holds).is_empty());
        holds.deliver(2);
        assert_eq!(ready(&mut holds), [3]);
        push(&mut holds, 4, u64::MAX);
        holds.deliver(3);
        push(&mut holds, 5, u64::MAX);
        holds.deliver(4);
        assert_eq!(ready(&mut holds), [4, 5]);
    }

    #[test]
    fn it_says_what_it_holds() {
        let mut holds = holds(|rules| {
            rules.by_key(|_| 0);
            rules.max_weight(10, |item| *item);
        });
        let says = |holds: &Holds<'_, u64>| (holds.is_empty(), holds.is_ready());
        assert_eq!(says(&holds), (true, false));
        push(&mut holds, 0, 1);
        assert_eq!(says(&holds), (false, true));
        // Behind another one of its key.
        push(&mut holds, 1, 1);
        assert_eq!(ready(&mut holds), [0]);
        assert_eq!(says(&holds), (false, false));
        holds.end(0);
        assert_eq!(ready(&mut holds), [1]);
        assert_eq!(says(&holds), (true, false));
        // Too heavy while others are there.
        holds.end(1);
        push(&mut holds, 2, 100);
        assert_eq!(says(&holds), (false, false));
        [0, 1].into_iter().for_each(|index| holds.deliver(index));
        assert_eq!(says(&holds), (false, true));
    }

    #[test]
    fn behind_one_key_there_is_room_for_so_many_per_worker() {
        let mut holds = holds(|rules| rules.by_key(|_| 0));
        (0..2 * BEHIND as u64).for_each(|n| push(&mut holds, n, n));
        // One of them is ready.
        assert!(holds.has_room(false, 2));
        push(&mut holds, 2 * BEHIND as u64, 0);
        assert!(!holds.has_room(false, 2));
        assert!(holds.has_room(false, 3) && holds.has_room(true, 2));
    }

    #[test]
    fn a_key_of_its_own_is_not_held_and_all_that_is_held_is_drained() {
        let mut holds = holds(|rules| {
            rules.by_key(|item| *item);
            rules.max_weight(3, |_| 1);
        });
        for (index, key) in [7, 7, 8, 9].into_iter().enumerate() {
            push(&mut holds, index as u64, key);
        }
        assert_eq!(holds.pop(), Some((0, 7)));
        let mut left: Vec<u64> = holds.drain().into_iter().map(|(index, _)| index).collect();
        left.sort_unstable();
        assert_eq!(left, [1, 2, 3]);
    }

    #[test]
    fn what_is_held_may_panic_when_it_is_dropped() {
        struct Bomb(std::sync::Arc<()>);
        impl Drop for Bomb {
            fn drop(&mut self) {
                let alive = std::sync::Arc::strong_count(&self.0);
                std::panic::resume_unwind(Box::new(alive));
            }
        }
        let alive = std::sync::Arc::new(());
        let mut rules = HoldRules::none();
        rules.by_key(|_| 0);
        let mut holds = Holds::new(rules).unwrap();
        for index in 0..3 {
            let item = Bomb(alive.clone());
            let mark = holds.mark(&item);
            holds.push(index, item, mark);
        }
        drop(holds);
        assert_eq!(std::sync::Arc::strong_count(&alive), 1);
    }
}
