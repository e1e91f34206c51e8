//! Checks that bytes are one complete MessagePack value and not nested too deep.
//!
//! The decoder recurses with the type and limits the depth of some kinds of values only. Without this check, a
//! few kilobytes for a recursive enum would overflow a worker's stack.

use rmp::Marker;

/// How deep values may nest.
const MAX_DEPTH: usize = 128;

/// Reads each marker once. Stores only how many values are open at each level.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    let mut rest = bytes;
    // The number of values still to come, at each level.
    let mut open: Vec<u64> = vec![1];
    while let Some(left) = open.last_mut() {
        if *left == 0 {
            open.pop();
            continue;
        }
        *left -= 1;
        let inside = value(&mut rest).ok_or("unexpected end of data")?;
        if inside > 0 {
            if open.len() >= MAX_DEPTH {
                return Err(format!("nested deeper than {MAX_DEPTH} levels"));
            }
            open.push(inside);
        }
    }
    match rest.len() {
        0 => Ok(()),
        left => Err(format!("{left} bytes after the end of the value")),
    }
}

/// Skips one marker and its bytes. Returns the number of values inside it.
fn value(rest: &mut &[u8]) -> Option<u64> {
    let (skipped, inside) = match Marker::from_u8(number(rest, 1)? as u8) {
        Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => {
            (0, 0)
        }
        Marker::U8 | Marker::I8 => (1, 0),
        Marker::U16 | Marker::I16 => (2, 0),
        Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
        Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
        Marker::FixStr(len) => (len.into(), 0),
        Marker::Str8 | Marker::Bin8 => (number(rest, 1)?, 0),
        Marker::Str16 | Marker::Bin16 => (number(rest, 2)?, 0),
        Marker::Str32 | Marker::Bin32 => (number(rest, 4)?, 0),
        // One more byte for the extension's type.
        Marker::FixExt1 => (2, 0),
        Marker::FixExt2 => (3, 0),
        Marker::FixExt4 => (5, 0),
        Marker::FixExt8 => (9, 0),
        Marker::FixExt16 => (17, 0),
        Marker::Ext8 => (number(rest, 1)? + 1, 0),
        Marker::Ext16 => (number(rest, 2)? + 1, 0),
        Marker::Ext32 => (number(rest, 4)? + 1, 0),
        Marker::FixArray(len) => (0, len.into()),
        Marker::Array16 => (0, number(rest, 2)?),
        Marker::Array32 => (0, number(rest, 4)?),
        Marker::FixMap(len) => (0, u64::from(len) * 2),
        Marker::Map16 => (0, number(rest, 2)? * 2),
        Marker::Map32 => (0, number(rest, 4)? * 2),
        Marker::Reserved => return None,
    };
    take(rest, skipped)?;
    Some(inside)
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = left;
    Some(taken)
}

/// Reads a big-endian number of `len` bytes.
fn number(rest: &mut &[u8], len: u64) -> Option<u64> {
    Some(
        take(rest, len)?
            .iter()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)),
    )
}
