//! Where jobs run: the run's own pool, a shared pool, or a scope that lets them borrow from the stack.

mod own;
#[cfg(not(shuttle))]
mod scope;
mod spawn;

pub use self::own::OwnPool;
#[cfg(not(shuttle))]
pub use self::scope::{Scope, scope};
pub use self::spawn::Spawn;
