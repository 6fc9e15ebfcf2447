//! Array literals → JSON arrays.
//!
//! Source: PostgreSQL manual, "Array Input and Output Syntax"; `array_out` prints no white space
//! outside of quotes, so none is allowed for here.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use super::{ValueError, put_kind};
use crate::settings::Bigint;
use walhook_core::types::Kind;

/// PostgreSQL's `MAXDIM`.
const MAX_DIMENSIONS: usize = 6;

const ERROR: ValueError = ValueError { expected: "an array" };

pub(super) fn put_array(
    out: &mut BytesMut,
    element: &Kind,
    delimiter: u8,
    text: &str,
    bigint: Bigint,
) -> Result<(), ValueError> {
    let mut input = Input { rest: strip_bounds(text)?, delimiter };
    let mut depth = 0usize;
    // What may come next: a value after `{` or a delimiter, else a delimiter or `}`.
    let mut value_allowed = true;
    let mut close_allowed = false;
    loop {
        match input.peek() {
            Some(b'{') if value_allowed && depth < MAX_DIMENSIONS => {
                input.skip();
                out.put_u8(b'[');
                depth += 1;
                close_allowed = true;
            }
            Some(b'}') if close_allowed && depth > 0 => {
                input.skip();
                out.put_u8(b']');
                depth -= 1;
                value_allowed = false;
                if depth == 0 {
                    break;
                }
            }
            Some(byte) if byte == delimiter && !value_allowed => {
                input.skip();
                out.put_u8(b',');
                value_allowed = true;
                close_allowed = false;
            }
            Some(_) if value_allowed && depth > 0 => {
                match input.element()? {
                    None => out.put_slice(b"null"),
                    Some(text) => put_kind(out, element, &text, bigint)?,
                }
                value_allowed = false;
                close_allowed = true;
            }
            Some(_) | None => return Err(ERROR),
        }
    }
    if input.rest.is_empty() { Ok(()) } else { Err(ERROR) }
}

/// Drops `[0:2][-1:4]=`, which `array_out` prints where a lower bound is not 1.
fn strip_bounds(text: &str) -> Result<&str, ValueError> {
    if !text.starts_with('[') {
        return Ok(text);
    }
    let (bounds, array) = text.split_once('=').ok_or(ERROR)?;
    let valid = bounds.bytes().all(|byte| matches!(byte, b'[' | b']' | b':' | b'-' | b'0'..=b'9'));
    if valid { Ok(array) } else { Err(ERROR) }
}

struct Input<'a> {
    rest: &'a str,
    delimiter: u8,
}

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.rest.as_bytes().first().copied()
    }

    /// Drops one byte, which `peek` has shown to be ASCII.
    fn skip(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    /// Takes one element's text; `None` is NULL.
    fn element(&mut self) -> Result<Option<Cow<'a, str>>, ValueError> {
        if let Some(quoted) = self.rest.strip_prefix('"') {
            return self.quoted(quoted).map(Some);
        }
        let is_end = |byte: u8| byte == self.delimiter || matches!(byte, b'{' | b'}');
        let end = self.rest.bytes().position(is_end).ok_or(ERROR)?;
        let (text, rest) = self.rest.split_at_checked(end).ok_or(ERROR)?;
        if text.is_empty() || text.contains(['"', '\\']) {
            return Err(ERROR);
        }
        self.rest = rest;
        Ok((text != "NULL").then_some(Cow::Borrowed(text)))
    }

    fn quoted(&mut self, quoted: &'a str) -> Result<Cow<'a, str>, ValueError> {
        let mut unescaped: Option<String> = None;
        let mut left = quoted;
        loop {
            let end = left.find(['"', '\\']).ok_or(ERROR)?;
            let (clean, rest) = left.split_at_checked(end).ok_or(ERROR)?;
            if let Some(rest) = rest.strip_prefix('"') {
                self.rest = rest;
                return Ok(match unescaped {
                    None => Cow::Borrowed(clean),
                    Some(text) => Cow::Owned(text + clean),
                });
            }
            let mut after = rest.chars();
            let escaped = after.nth(1).ok_or(ERROR)?;
            let text = unescaped.get_or_insert_default();
            text.push_str(clean);
            text.push(escaped);
            left = after.as_str();
        }
    }
}
