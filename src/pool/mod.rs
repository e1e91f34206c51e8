//! Where jobs run: a pool of the run's own, a pool that is shared, or a scope that lends from the stack.

mod own;
#[cfg(not(shuttle))]
mod scope;
mod spawn;

pub use self::own::OwnPool;
#[cfg(not(shuttle))]
pub use self::scope::{Scope, scope};
pub use self::spawn::Spawn;
