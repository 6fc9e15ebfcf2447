//! The headers that an endpoint's row sets: judged when the row is read, so that a mistake in them is
//! told before anything is sent.

use std::collections::BTreeSet;
use std::fmt;

use http::header::{HeaderName, HeaderValue};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Headers that a row may set, at most.
pub const HEADERS_MAX: usize = 100;

/// What names and values of a row's headers take together, at most; and their JSON text.
pub const HEADERS_BYTES_MAX: usize = 64 << 10;

/// Headers that a row may not set: ours, and those that belong to the connection.
const RESERVED: [&str; 12] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// Reads the text of a row's headers: a JSON object, in its order.
///
/// A value is a string, or a number or a boolean, which is sent as its text. `prefix` is
/// `delivery.header_prefix`.
///
/// # Errors
/// What is wrong with them, for a person; never a value, which may be secret.
pub fn read_headers(json: &str, prefix: &str) -> Result<Vec<(String, String)>, String> {
    let mut json = serde_json::Deserializer::from_str(json);
    let entries = json.deserialize_any(Entries).map_err(|error| match error.is_data() {
        true => plain(&error),
        false => "are not JSON that can be read".to_owned(),
    })?;
    json.end().map_err(|_| "are not JSON that can be read".to_owned())?;
    let mut headers = Vec::with_capacity(entries.len());
    let mut bytes = 0;
    for (name, value) in entries {
        let value = scalar(&value).ok_or_else(|| {
            format!("hold a value that is no string, number or boolean, under {name:?}")
        })?;
        parse_header(&name, &value, prefix)?;
        bytes += name.len() + value.len();
        headers.push((name, value));
    }
    if bytes > HEADERS_BYTES_MAX {
        return Err(format!("take more than {HEADERS_BYTES_MAX} bytes"));
    }
    Ok(headers)
}

/// A header of a row, as it is sent.
///
/// # Errors
/// What is wrong with it, to stand after "the headers"; never its value.
pub fn parse_header(
    name: &str,
    value: &str,
    prefix: &str,
) -> Result<(HeaderName, HeaderValue), String> {
    let parsed = HeaderName::try_from(name)
        .map_err(|_| format!("hold {name:?}, which is no header's name"))?;
    let suffix = parsed.as_str().strip_prefix(prefix.to_ascii_lowercase().as_str());
    if RESERVED.contains(&parsed.as_str()) || matches!(suffix, Some("-attempt" | "-replay")) {
        return Err(format!("hold {parsed}, which a row may not set"));
    }
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| format!("hold a value that cannot stand in a header, under {parsed}"))?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

/// The text that is sent for a JSON value. A number keeps its digits, where any receiver can read it.
fn scalar(value: &RawValue) -> Option<String> {
    let text = value.get();
    match text.bytes().next()? {
        b'"' => serde_json::from_str(text).ok(),
        b't' | b'f' => Some(text.to_owned()),
        b'-' | b'0'..=b'9' => {
            text.parse().ok().filter(|number: &f64| number.is_finite()).map(|_| text.to_owned())
        }
        _ => None,
    }
}

/// The error's words without the position that serde_json adds.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// The entries of an object in their order, or none of a null.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, Box<RawValue>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Self::Value = Vec::new();
        let mut names = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if entries.len() == HEADERS_MAX {
                return Err(A::Error::custom(format!("are more than {HEADERS_MAX}")));
            }
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("hold {name:?} twice")));
            }
            entries.push((name, map.next_value()?));
        }
        Ok(entries)
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::custom(NO_OBJECT))
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Err(E::custom(NO_OBJECT))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Err(E::custom(NO_OBJECT))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Err(E::custom(NO_OBJECT))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Err(E::custom(NO_OBJECT))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Err(A::Error::custom(NO_OBJECT))
    }
}

const NO_OBJECT: &str = "are no object";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_in_their_order_numbers_and_booleans_as_text() {
        let json =
            r#"{"b": "1", "A": 42, "c": 0.50, "d": true, "e": "", "f": 12345678901234567890123}"#;
        let read = read_headers(json, "walhook").unwrap();
        let read: Vec<(&str, &str)> = read.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let expected = [
            ("b", "1"),
            ("A", "42"),
            ("c", "0.50"),
            ("d", "true"),
            ("e", ""),
            ("f", "12345678901234567890123"),
        ];
        assert_eq!(read, expected);
        assert_eq!(read_headers("null", "walhook"), Ok(vec![]));
        assert_eq!(read_headers("{}", "walhook"), Ok(vec![]));
    }

    #[test]
    fn headers_that_cannot_be_sent_are_told_without_their_values() {
        let nested = format!("{{\"a\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
        let many: Vec<String> = (0..=HEADERS_MAX).map(|n| format!("\"h{n}\":\"hush\"")).collect();
        let many = format!("{{{}}}", many.join(","));
        let large = format!("{{\"a\":\"{}\"}}", "hush".repeat(HEADERS_BYTES_MAX / 4 + 1));
        for (json, complaint) in [
            ("", "are not JSON that can be read"),
            ("\"hush\"", "are no object"),
            ("[\"hush\"]", "are no object"),
            ("7", "are no object"),
            ("true", "are no object"),
            ("{\"a\":\"hush\"} x", "are not JSON that can be read"),
            (&nested, "hold a value that is no string, number or boolean, under \"a\""),
            ("{\"a\":1e400}", "hold a value that is no string, number or boolean, under \"a\""),
            ("{\"a\":null}", "hold a value that is no string, number or boolean, under \"a\""),
            (r#"{"a":"\ud800"}"#, "hold a value that is no string, number or boolean, under \"a\""),
            (r#"{"a":"\u0000"}"#, "hold a value that cannot stand in a header, under a"),
            (r#"{"a":"hush\r\nb: c"}"#, "hold a value that cannot stand in a header, under a"),
            (r#"{"a":"hush\n"}"#, "hold a value that cannot stand in a header, under a"),
            (r#"{"a":"hush\u007f"}"#, "hold a value that cannot stand in a header, under a"),
            (r#"{"":"hush"}"#, "hold \"\", which is no header's name"),
            (r#"{"a b":"hush"}"#, "hold \"a b\", which is no header's name"),
            (r#"{"a":"1","a":"2"}"#, "hold \"a\" twice"),
            (r#"{"Host":"hush"}"#, "hold host, which a row may not set"),
            (r#"{"Walhook-Attempt":"9"}"#, "hold walhook-attempt, which a row may not set"),
            (&many, "are more than 100"),
            (&large, "take more than 65536 bytes"),
        ] {
            let error = read_headers(json, "walhook").unwrap_err();
            assert_eq!(error, complaint, "{}", json.chars().take(60).collect::<String>());
        }
    }
}
