//! Functions that wrap the user's function: what they add costs the engine no line.

use std::cell::Cell;
use std::convert::Infallible;

use thread_local::ThreadLocal;

use crate::contain::Buried;

/// Makes a function that cannot fail one that can be given to
/// [`map_tasks`](crate::Futureproof::map_tasks). It may still panic.
///
/// ```
/// use futureproof::prelude::*;
///
/// let run = (1..=10u64).futureproof(Raise).map_tasks(infallible(|n: &u64| n * n));
/// let sum: u64 = run.map(|task| task.expect("squares do not fail").output).sum();
/// assert_eq!(sum, 385);
/// ```
pub fn infallible<I: ?Sized, T>(f: impl Fn(&I) -> T) -> impl Fn(&I) -> Result<T, Infallible> {
    move |input| Ok(f(input))
}

/// Gives each worker thread a state of its own, such as a connection or a buffer.
///
/// `init` is called on a worker the first time that it needs a state; the states are dropped with the
/// run. A call that panics takes its state with it, and the next one on that thread gets a fresh one.
/// So does a call that starts inside another on the same thread, which happens where `f` uses rayon:
/// a waiting worker takes up other jobs. An `init` that panics is the failure of the task that
/// needed it.
///
/// Where `init` can fail, let the state be an `Option` that `f` fills. A task whose attempt fails is a failure, to be tried
/// [again](crate::MapTasks::retry) perhaps, and the next task tries anew; a `Result` as the state would have one failure
/// fail every later task of that worker.
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
/// Costs a few nanoseconds a call, whatever the size of `S`.
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
    // Boxed, so that taking a state out for a call and putting it back moves one word. Each is buried by itself,
    // as a call that panics drops it during the unwind.
    let states = ThreadLocal::<Cell<Option<Buried<Box<S>>>>>::new();
    move |input| {
        let slot = states.get_or_default();
        let mut state = slot.take().unwrap_or_else(|| Buried::new(Box::new(init())));
        let result = f(&mut state, input);
        slot.set(Some(state));
        result
    }
}
