//! Counts what a message holds before it is kept.

use super::FrameError;
use super::wire::bound;

/// The values of each length-delimited field `number` on the top level of a message, which are `max` at most: they are
/// counted before they are kept.
pub(super) fn fields<'a>(
    what: &'static str,
    message: &'a [u8],
    number: u64,
    max: usize,
) -> Result<Vec<&'a [u8]>, FrameError> {
    let mut found = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let (field, value, after) = field(rest).ok_or(FrameError::Field(what))?;
        if let Some(value) = value.filter(|_| field == number) {
            bound(what, found.len() + 1, max)?;
            found.push(value);
        }
        rest = after;
    }
    Ok(found)
}

/// A field's number, its value where it has a length of its own, and what follows it.
type Field<'a> = (u64, Option<&'a [u8]>, &'a [u8]);

/// The number of the field that `bytes` begin with, its value where it is delimited by its length, and what follows
/// it. `None`: there is none, or it is a group, of which we write none.
fn field(bytes: &[u8]) -> Option<Field<'_>> {
    let (tag, rest) = varint(bytes)?;
    let (value, rest) = match tag & 7 {
        0 => (None, varint(rest)?.1),
        1 => (None, rest.split_at_checked(8)?.1),
        2 => {
            let (length, rest) = varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (Some(value), rest)
        }
        5 => (None, rest.split_at_checked(4)?.1),
        _ => return None,
    };
    Some((tag >> 3, value, rest))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut rest = bytes;
    let value = prost::encoding::decode_varint(&mut rest).ok()?;
    Some((value, rest))
}
