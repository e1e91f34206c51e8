//! Functions that wrap the user's function. The engine knows nothing of them.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use thread_local::ThreadLocal;

use crate::util::panics::CatchDrop;

/// Wraps a function that cannot fail, for [`map_tasks`](crate::Futureproof::map_tasks).
///
/// The function may still panic.
///
/// ```
/// use futureproof::prelude::*;
///
/// let run = (1..=10u64).futureproof(Raise).map_tasks(infallible(|n: &u64| n * n));
/// let sum: u64 = run.map(|task| task.expect("squares do not fail").output).sum();
/// assert_eq!(sum, 385);
/// ```
///
/// For `map_tasks_mut` and `map_tasks_owned`, end the function with `Ok::<_, Infallible>(…)` instead; `Infallible` is
/// in `std::convert`.
pub fn infallible<I: ?Sized, T>(f: impl Fn(&I) -> T) -> impl Fn(&I) -> Result<T, Infallible> {
    move |input| Ok(f(input))
}

/// Gives each worker thread its own state, such as a connection or a buffer.
///
/// `init` is called on a worker when it first needs a state. The states are dropped with the run.
///
/// A call that panics loses its state, and the next call on that thread gets a new one. A call that starts inside
/// another one on the same thread gets a new state too. This happens if `f` uses rayon, because a worker that waits
/// inside rayon runs other jobs. If `init` panics, the task that needed the state fails.
///
/// If `init` can fail, make the state an `Option` that `f` fills, as below. Then a failed attempt is an ordinary
/// failure, which can be [retried](crate::MapTasks::retry), and the next task tries again. With a `Result` as the
/// state, one failure would fail every later task of that worker.
///
/// ```
/// use futureproof::prelude::*;
/// # struct Connection;
/// # impl Connection {
/// #     fn open() -> Result<Self, String> { Ok(Self) }
/// #     fn look_up(&mut self, id: &u32) -> Result<u32, String> { Ok(id * 10) }
/// # }
///
/// let look_up = with_state(|| None, |state: &mut Option<Connection>, id: &u32| {
///     let connection = match state {
///         Some(connection) => connection,
///         None => state.insert(Connection::open()?),
///     };
///     connection.look_up(id)
/// });
/// let run = (0..100).futureproof(Log).num_threads(16).ordered().map_tasks(look_up);
/// # assert_eq!(run.flatten().count(), 100);
/// ```
///
/// It costs a few nanoseconds per call, whatever the size of `S`.
///
/// ```
/// use futureproof::prelude::*;
///
/// let lines = ["3 1 2", "9 8", "5"];
/// // One buffer per worker, instead of one allocation per line.
/// let largest = with_state(Vec::new, |numbers: &mut Vec<u32>, line: &&str| {
///     numbers.clear();
///     for word in line.split(' ') {
///         numbers.push(word.parse::<u32>()?);
///     }
///     Ok::<_, std::num::ParseIntError>(numbers.iter().copied().max())
/// });
/// for task in lines.into_iter().futureproof(Raise).num_threads(2).map_tasks(largest) {
///     let task = task?;
///     assert_eq!(task.output, task.input.split(' ').map(|word| word.parse().unwrap()).max());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn with_state<S, I, T, E>(
    init: impl Fn() -> S + Send + Sync,
    f: impl Fn(&mut S, &I) -> Result<T, E> + Send + Sync,
) -> impl Fn(&I) -> Result<T, E> + Send + Sync
where
    S: Send,
    I: ?Sized,
{
    // Boxed, so that taking a state out and putting it back moves one word. Each has its own `CatchDrop`, because a
    // call that panics drops it while unwinding.
    let states = ThreadLocal::<Cell<Option<CatchDrop<Box<S>>>>>::new();
    move |input| {
        let slot = states.get_or_default();
        let mut state = slot
            .take()
            .unwrap_or_else(|| CatchDrop::new(Box::new(init())));
        let result = f(&mut state, input);
        slot.set(Some(state));
        result
    }
}

/// A state for each worker that you get back after the run: counts, sums, or maps to merge at the end.
///
/// As with [`with_state`], `init` makes a state when a worker first needs one. The tasks do not have to return what
/// they add to the state:
///
/// ```
/// use std::collections::HashMap;
/// use futureproof::{PerWorker, prelude::*};
///
/// let lines = ["to be", "or not", "to be"];
/// let counts = PerWorker::new(HashMap::<String, u32>::new);
/// let count = counts.with(|counts, line: &&str| {
///     line.split(' ').for_each(|word| *counts.entry(word.to_owned()).or_default() += 1);
///     Ok::<(), String>(())
/// });
/// for task in lines.into_iter().futureproof(Raise).num_threads(2).map_tasks(count).checked() {
///     task?;
/// }
/// let mut total = HashMap::new();
/// for (word, count) in counts.into_vec().into_iter().flatten() {
///     *total.entry(word).or_insert(0) += count;
/// }
/// assert_eq!((total["to"], total["not"]), (2, 1));
/// # Ok::<(), futureproof::RunError>(())
/// ```
///
/// A call that panics loses its state. A call that starts inside another one on the same thread, which happens if the
/// function uses rayon, gets its own state. So there can be more states than workers.
pub struct PerWorker<S: Send> {
    shared: Arc<States<S>>,
}

struct States<S: Send> {
    init: Box<dyn Fn() -> S + Send + Sync>,
    // Each has its own `CatchDrop`, because a call that panics drops it while unwinding.
    states: ThreadLocal<Mutex<Vec<CatchDrop<Box<S>>>>>,
}

impl<S: Send> PerWorker<S> {
    /// Creates an empty set of states. `init` makes each state on its worker, when it is first needed.
    pub fn new(init: impl Fn() -> S + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(States {
                init: Box::new(init),
                states: ThreadLocal::new(),
            }),
        }
    }

    /// Returns a function for [`map_tasks`](crate::Futureproof::map_tasks) that gets its worker's state.
    ///
    /// Several functions and several runs may share the states.
    pub fn with<I, T, E, F>(
        &self,
        f: F,
    ) -> impl Fn(&I) -> Result<T, E> + Send + Sync + use<S, I, T, E, F>
    where
        F: Fn(&mut S, &I) -> Result<T, E> + Send + Sync,
        I: ?Sized,
    {
        let shared = Arc::clone(&self.shared);
        move |input| {
            let states = shared.states.get_or_default();
            let taken = states.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut state = taken.unwrap_or_else(|| CatchDrop::new(Box::new((shared.init)())));
            let result = f(&mut state, input);
            states
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(state);
            result
        }
    }

    /// Returns the states, in no particular order. If you want to know whose each is, let `init` put
    /// `thread::current().name()` into it.
    ///
    /// Call this when the run has been dropped, as a `for` loop over it does at its end. Until then calls may still
    /// be running, even after a failure or a cancel stopped the run. A state that is in use at that moment is not
    /// returned, nor is one that was lost to a panic.
    pub fn into_vec(self) -> Vec<S> {
        let states = self.shared.states.iter();
        let take = |states: &Mutex<Vec<_>>| {
            std::mem::take(&mut *states.lock().unwrap_or_else(PoisonError::into_inner))
        };
        states
            .flat_map(take)
            .map(|state| *CatchDrop::into_inner(state))
            .collect()
    }
}

impl<S: Send> fmt::Debug for PerWorker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerWorker").finish_non_exhaustive()
    }
}
