//! PostgreSQL's text output → JSON, appended to a buffer without a tree in between.
//!
//! ```text
//! type OID ──Types──► Kind          (once, when a rule is bound)
//! Kind + text ──put_value──► JSON   (for each value)
//! ```
//!
//! The text is that of a session with `DateStyle = ISO`, `TimeZone = UTC`, `bytea_output = hex` and
//! `extra_float_digits` at its default: the replication connection pins them. Nothing is converted
//! through a binary number, so digits are exact. What is not the text of its kind is an error, so
//! that the output is valid JSON whatever the input.

mod array;
mod time;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use serde::de::IgnoredAny;

use crate::settings::Bigint;
use walhook_core::event::put_json_text;
use walhook_core::types::Kind;

/// A value's text is not what PostgreSQL prints for its type. Holds no part of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value's text is not that of {expected}")]
pub struct ValueError {
    /// What it should have been, such as `an integer`.
    pub expected: &'static str,
}

/// Appends `text`, PostgreSQL's output for a value of `kind`, as JSON.
///
/// Shape, by kind: integers and floats as numbers with PostgreSQL's digits; NaN and infinities as
/// strings; numeric as a string; bool; json and jsonb as they are; timestamptz as RFC 3339 in UTC;
/// date and timestamp as ISO 8601; bytea as base64; arrays as arrays; all else as a string. Dates
/// that those formats cannot express (infinity, BC, years above 9999) are strings in PostgreSQL's
/// own form.
/// Invariant: on success exactly one JSON value was appended; on an error, nothing.
///
/// # Errors
/// When `text` is not the output of a value of `kind`.
pub fn put_value(
    out: &mut BytesMut,
    kind: &Kind,
    text: &str,
    bigint: Bigint,
) -> Result<(), ValueError> {
    let start = out.len();
    let result = put_kind(out, kind, text, bigint);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn put_kind(out: &mut BytesMut, kind: &Kind, text: &str, bigint: Bigint) -> Result<(), ValueError> {
    match kind {
        Kind::Bool => match text {
            "t" => out.put_slice(b"true"),
            "f" => out.put_slice(b"false"),
            _ => return Err(ValueError { expected: "a boolean" }),
        },
        Kind::Integer => put_integer(out, text)?,
        Kind::Bigint => match bigint {
            Bigint::Number => put_integer(out, text)?,
            Bigint::String => put_json_text(out, text),
        },
        Kind::Float => put_float(out, text)?,
        Kind::Json => put_json(out, text)?,
        Kind::Date => put_json_text(out, time::date(text)?),
        Kind::Timestamp => time::put_timestamp(out, text)?,
        Kind::TimestampTz => time::put_timestamptz(out, text)?,
        Kind::Bytea => put_base64(out, text)?,
        Kind::Array { element, delimiter } => {
            array::put_array(out, element, *delimiter, text, bigint)?;
        }
        Kind::Numeric | Kind::Text => put_json_text(out, text),
    }
    Ok(())
}

fn put_integer(out: &mut BytesMut, text: &str) -> Result<(), ValueError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if whole_digits(digits.as_bytes()) != Some(digits.len()) {
        return Err(ValueError { expected: "an integer" });
    }
    out.put_slice(text.as_bytes());
    Ok(())
}

fn put_float(out: &mut BytesMut, text: &str) -> Result<(), ValueError> {
    match text {
        "NaN" | "Infinity" | "-Infinity" => put_json_text(out, text),
        _ if is_json_number(text) => out.put_slice(text.as_bytes()),
        _ => return Err(ValueError { expected: "a floating-point number" }),
    }
    Ok(())
}

/// PostgreSQL validated it already; checked again because one bad byte would spoil the whole body.
fn put_json(out: &mut BytesMut, text: &str) -> Result<(), ValueError> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|_| ValueError { expected: "JSON" })?;
    out.put_slice(text.as_bytes());
    Ok(())
}

fn put_base64(out: &mut BytesMut, text: &str) -> Result<(), ValueError> {
    const ERROR: ValueError = ValueError { expected: "a bytea in hex" };
    /// A multiple of three, so that only the last piece is padded.
    const PIECE: usize = 192;
    let hex = text.strip_prefix("\\x").ok_or(ERROR)?.as_bytes();
    let (pairs, rest) = hex.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(ERROR);
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let mut bytes = Vec::with_capacity(PIECE);
    let mut encoded = String::with_capacity(PIECE / 3 * 4);
    out.put_u8(b'"');
    for piece in pairs.chunks(PIECE) {
        bytes.clear();
        for [high, low] in piece {
            bytes.push(nibble(*high).ok_or(ERROR)? << 4 | nibble(*low).ok_or(ERROR)?);
        }
        encoded.clear();
        STANDARD.encode_string(&bytes, &mut encoded);
        out.put_slice(encoded.as_bytes());
    }
    out.put_u8(b'"');
    Ok(())
}

/// How many bytes at the start are a JSON integer without sign: `0`, or digits that begin with
/// another.
fn whole_digits(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        b'0' => Some(1),
        b'1'..=b'9' => Some(count_digits(bytes)),
        _ => None,
    }
}

fn count_digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// Whether `text` is a number in JSON's grammar (RFC 8259, section 6).
fn is_json_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let Some((_, mut rest)) = whole_digits(unsigned).and_then(|n| unsigned.split_at_checked(n))
    else {
        return false;
    };
    if let [b'.', fraction @ ..] = rest {
        let digits = count_digits(fraction);
        rest = fraction.get(digits..).unwrap_or_default();
        if digits == 0 {
            return false;
        }
    }
    match rest {
        [] => true,
        [b'e' | b'E', b'+' | b'-', exponent @ ..] | [b'e' | b'E', exponent @ ..] => {
            !exponent.is_empty() && count_digits(exponent) == exponent.len()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
