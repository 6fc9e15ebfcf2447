//! A value of any kind and any text: one JSON value, or an error that leaves the buffer as it was.

#![no_main]

use std::sync::Arc;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use walhook_rules::settings::Bigint;
use walhook_core::types::Kind;
use walhook_rules::value::put_value;

/// The first byte: which kind, in how many arrays.
fn kind(byte: u8) -> Kind {
    let kind = match byte % 11 {
        0 => Kind::Bool,
        1 => Kind::Integer,
        2 => Kind::Bigint,
        3 => Kind::Float,
        4 => Kind::Numeric,
        5 => Kind::Json,
        6 => Kind::Date,
        7 => Kind::Timestamp,
        8 => Kind::TimestampTz,
        9 => Kind::Bytea,
        _ => Kind::Text,
    };
    let array = |kind, delimiter| Kind::Array { element: Arc::new(kind), delimiter };
    match byte / 11 % 4 {
        0 => kind,
        1 => array(kind, b','),
        2 => array(kind, b';'),
        _ => array(array(kind, b','), b','),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let bigint = if *first < 128 { Bigint::Number } else { Bigint::String };
    let mut out = BytesMut::from(&b"before"[..]);
    let put = put_value(&mut out, &kind(*first), text, bigint);
    let Some(json) = out.strip_prefix(b"before") else { panic!("the buffer was changed") };
    match put {
        Ok(()) => {
            let json = serde_json::from_slice::<serde::de::IgnoredAny>(json);
            assert!(json.is_ok(), "{json:?}");
        }
        Err(_) => assert!(json.is_empty()),
    }
});
