//! Keeps panics of user code from getting out where they would do harm.
//!
//! rayon aborts the process when a job unwinds, and Rust aborts when a destructor panics during an
//! unwind. So wherever either could happen, a user's value is dropped by
//! `drop_catching`.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::{self, AssertUnwindSafe};

/// How many payloads of payloads `drop_catching` drops before it leaks the next one.
const DEPTH: usize = 8;

/// Drops `value`. A panic of its destructor ends here.
pub(crate) fn drop_catching<V>(value: V) {
    let Err(mut payload) = panic::catch_unwind(AssertUnwindSafe(move || drop(value))) else {
        return;
    };
    // A payload is a value as well: its destructor may panic with another payload, and so on.
    for _ in 0..DEPTH {
        match panic::catch_unwind(AssertUnwindSafe(move || drop(payload))) {
            Ok(()) => return,
            Err(next) => payload = next,
        }
    }
    mem::forget(payload);
}

/// Drops each of `values` by itself, so that one bad destructor does not keep the others from running.
pub(crate) fn drop_all_catching<C: IntoIterator + Default>(values: &mut C) {
    // Their memory goes with them.
    let values = mem::take(values);
    if mem::needs_drop::<C::Item>() {
        values.into_iter().for_each(drop_catching);
    }
}

/// A value that is dropped by `drop_catching` when its owner goes.
#[derive(Debug)]
pub(crate) struct CatchDrop<V> {
    /// `Some` up to the drop.
    value: Option<V>,
}

const THERE: &str = "it is there up to the drop";

impl<V> CatchDrop<V> {
    pub(crate) fn new(value: V) -> Self {
        Self { value: Some(value) }
    }

    pub(crate) fn into_inner(mut self) -> V {
        self.value.take().expect(THERE)
    }
}

impl<V> Deref for CatchDrop<V> {
    type Target = V;

    fn deref(&self) -> &V {
        self.value.as_ref().expect(THERE)
    }
}

impl<V> DerefMut for CatchDrop<V> {
    fn deref_mut(&mut self) -> &mut V {
        self.value.as_mut().expect(THERE)
    }
}

impl<V> Drop for CatchDrop<V> {
    fn drop(&mut self) {
        drop_catching(self.value.take());
    }
}

/// Calls `f`; `None` if it panicked.
pub(crate) fn catch_panic<R>(f: impl FnOnce() -> R) -> Option<R> {
    match panic::catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => Some(result),
        Err(payload) => {
            drop_catching(payload);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::panic::panic_any;

    thread_local!(static CHARGES: Cell<usize> = const { Cell::new(0) });

    /// Panics when dropped, with a payload that does so as well, as long as there are charges. It has no size,
    /// so that one that is leaked costs nothing.
    struct Bomb;

    fn bomb(charges: usize) -> Bomb {
        CHARGES.set(charges);
        Bomb
    }

    impl Drop for Bomb {
        fn drop(&mut self) {
            if CHARGES.get() > 0 {
                CHARGES.set(CHARGES.get() - 1);
                panic_any(Bomb);
            }
        }
    }

    #[test]
    fn a_drop_survives_payloads_of_payloads() {
        for charges in [1, DEPTH, 1_000] {
            drop_catching(bomb(charges));
            assert_eq!(CHARGES.get(), charges.saturating_sub(DEPTH + 1));
        }
    }

    #[test]
    fn the_neighbours_of_a_bomb_are_dropped() {
        let witness = std::rc::Rc::new(());
        let mut values: Vec<Box<dyn std::any::Any>> = vec![
            Box::new(witness.clone()),
            Box::new(bomb(1)),
            Box::new(witness.clone()),
        ];
        drop_all_catching(&mut values);
        assert_eq!(std::rc::Rc::strong_count(&witness), 1);
    }

    #[test]
    fn catch_panic_gives_the_result_or_nothing() {
        assert_eq!(catch_panic(|| 7), Some(7));
        assert_eq!(catch_panic(|| -> i32 { panic_any(bomb(3)) }), None);
    }
}
