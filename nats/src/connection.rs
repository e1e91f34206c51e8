//! The caller's connection to a server.

use std::fmt;
use std::sync::Arc;

use crate::error::SetupError;
use crate::function::Function;
use crate::server::{Link, Server};

/// Connects to a server, to call functions.
///
/// The connection has one background thread, and reconnects by itself when it is lost.
///
/// # Errors
///
/// Returns an error if the address is invalid, or the server is unreachable or refuses the login.
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

/// A caller's connection, made by [`connect`].
///
/// Clones share one connection. It closes when the last clone and the last function made from it are dropped.
#[derive(Clone)]
pub struct Connection {
    link: Arc<Link>,
}

impl Connection {
    /// Describes the function that workers [serve](crate::serve) under `name`. It takes an `I` and returns
    /// a `T` or an `E`.
    ///
    /// [`start`](Function::start) checks the name.
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
