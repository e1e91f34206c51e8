//! Runs the user's function on one item. No other code calls it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{self, Kind};

/// Decodes the item, calls the function and encodes the answer. Catches the panics of all three.
pub(crate) fn answer<I, T, E>(f: &impl Fn(&I) -> Result<T, E>, payload: &[u8]) -> (Kind, Bytes)
where
    I: DeserializeOwned,
    T: Serialize,
    E: Serialize,
{
    let call = || {
        let item: I = match frame::decode(payload) {
            Ok(item) => item,
            Err(reason) => {
                let reason = format!(
                    "the item does not deserialize: {reason}; check that caller and worker have the same types"
                );
                return (Kind::Decode, reason.into());
            }
        };
        let (kind, what, encoded) = match f(&item) {
            Ok(output) => (Kind::Ok, "output", frame::encode(&output)),
            Err(error) => (Kind::Err, "function's error", frame::encode(&error)),
        };
        match encoded {
            Ok(bytes) => (kind, bytes),
            Err(reason) => (
                Kind::Encode,
                format!("the {what} does not serialize: {reason}").into(),
            ),
        }
    };
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let message = message(&*payload);
        // The payload's destructor may panic too.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        (Kind::Panicked, message.into())
    })
}

/// The message of a panic.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let known = payload.downcast_ref::<&str>().copied();
    let known = known.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    frame::text(known.unwrap_or("the panic payload is not a string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_an_answer() {
        let f = |n: &u64| match n {
            0 => Err("zero"),
            1 => panic!("one is {}", "bad"),
            2 => std::panic::panic_any(3),
            n => Ok(n + 1),
        };
        let run = |n: u64| answer(&f, &frame::encode(&n).unwrap());
        assert_eq!(run(7), (Kind::Ok, frame::encode(&8u64).unwrap()));
        assert_eq!(run(0), (Kind::Err, frame::encode(&"zero").unwrap()));
        assert_eq!(run(1), (Kind::Panicked, "one is bad".into()));
        assert_eq!(
            run(2),
            (Kind::Panicked, "the panic payload is not a string".into())
        );
        assert_eq!(answer(&f, b"\xc1").0, Kind::Decode);
    }
}
