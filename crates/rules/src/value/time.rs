//! Dates and times: ISO 8601 where PostgreSQL's text can become that, else PostgreSQL's text.

use bytes::{BufMut, BytesMut};

use super::ValueError;
use walhook_core::event::put_json_text;

/// A date or timestamp in PostgreSQL's ISO style.
enum Iso<'a> {
    /// Year 1 to 9999: `YYYY-MM-DD` and what follows it.
    Plain { date: &'a str, rest: &'a str },
    /// Infinity, BC, or a year of five digits: ISO 8601 has no common form for these.
    Other,
}

fn parse(text: &str) -> Option<Iso<'_>> {
    if matches!(text, "infinity" | "-infinity") {
        return Some(Iso::Other);
    }
    let year = text.bytes().take_while(u8::is_ascii_digit).count();
    let (date, rest) = text.split_at_checked(year + "-MM-DD".len())?;
    let month_and_day = date.as_bytes().get(year..)?;
    if year < 4 || !has_shape(month_and_day, b"-00-00") {
        return None;
    }
    let other = year > 4 || rest.ends_with(" BC");
    Some(if other { Iso::Other } else { Iso::Plain { date, rest } })
}

/// Whether `bytes` equal `shape`, where a `0` in it stands for any digit.
fn has_shape(bytes: &[u8], shape: &[u8]) -> bool {
    bytes.len() == shape.len()
        && bytes.iter().zip(shape).all(|(byte, wanted)| match wanted {
            b'0' => byte.is_ascii_digit(),
            _ => byte == wanted,
        })
}

/// Whether `text` is `HH:MM:SS` with an optional fraction.
fn is_time(text: &str) -> bool {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, "0"));
    has_shape(clock.as_bytes(), b"00:00:00")
        && !fraction.is_empty()
        && fraction.bytes().all(|byte| byte.is_ascii_digit())
}

/// A date's text, which is ISO 8601 already.
pub(super) fn date(text: &str) -> Result<&str, ValueError> {
    match parse(text) {
        Some(Iso::Plain { rest: "", .. } | Iso::Other) => Ok(text),
        Some(Iso::Plain { .. }) | None => Err(ValueError { expected: "a date in ISO style" }),
    }
}

pub(super) fn put_timestamp(out: &mut BytesMut, text: &str) -> Result<(), ValueError> {
    const ERROR: ValueError = ValueError { expected: "a timestamp in ISO style" };
    match parse(text).ok_or(ERROR)? {
        Iso::Other => put_json_text(out, text),
        Iso::Plain { date, rest } => {
            let time = rest.strip_prefix(' ').filter(|time| is_time(time)).ok_or(ERROR)?;
            put_joined(out, [date, "T", time, ""]);
        }
    }
    Ok(())
}

pub(super) fn put_timestamptz(out: &mut BytesMut, text: &str) -> Result<(), ValueError> {
    const ERROR: ValueError =
        ValueError { expected: "a timestamptz in ISO style and the time zone UTC" };
    match parse(text).ok_or(ERROR)? {
        Iso::Other => put_json_text(out, text),
        Iso::Plain { date, rest } => {
            let time = rest
                .strip_prefix(' ')
                .and_then(|rest| rest.strip_suffix("+00"))
                .filter(|time| is_time(time))
                .ok_or(ERROR)?;
            put_joined(out, [date, "T", time, "Z"]);
        }
    }
    Ok(())
}

/// The parts hold digits and signs only: nothing to escape.
fn put_joined(out: &mut BytesMut, parts: [&str; 4]) {
    out.put_u8(b'"');
    for part in parts {
        out.put_slice(part.as_bytes());
    }
    out.put_u8(b'"');
}
