//! The connection of a caller.

use std::fmt;
use std::sync::Arc;

use crate::error::SetupError;
use crate::function::Function;
use crate::server::{Link, Server};

/// Connects to a server, for callers.
///
/// The connection has one background thread. It is made again by itself whenever it is lost.
///
/// # Errors
///
/// If the address cannot be read, or the server cannot be reached now or refuses us.
///
/// ```no_run
/// use std::time::Duration;
///
/// let thumbs = futureproof_nats::connect("nats://queue:4222")?
///     .function::<String, Vec<u8>, String>("thumbs")
///     .deadline(Duration::from_secs(60))
///     .start()?;
/// # Ok::<(), futureproof_nats::SetupError>(())
/// ```
pub fn connect(server: impl Into<Server>) -> Result<Connection, SetupError> {
    let link = Arc::new(Link::open(&server.into())?);
    Ok(Connection { link })
}

/// A connection of a caller, made by [`connect`]. Clones share it; it is closed with the last function.
#[derive(Clone)]
pub struct Connection {
    link: Arc<Link>,
}

impl Connection {
    /// Describes a function that workers [serve](crate::serve) under this name: it takes an `I`, and
    /// returns a `T` or an `E`. The name is checked by [`start`](Function::start).
    pub fn function<I, T, E>(&self, name: &str) -> Function<I, T, E> {
        Function::new(Arc::clone(&self.link), name)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("address", &self.link.address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_at_the_address_is_a_clear_error() {
        let Err(error) = connect("nats://me:hush@127.0.0.1:1") else {
            panic!("nothing listens on port 1");
        };
        let text = error.to_string();
        assert!(
            text.contains("nats://127.0.0.1:1") && text.contains("nats-server"),
            "{text}"
        );
        assert!(!format!("{error:?}").contains("hush"));
    }
}
