//! How times look in JSON.

use walhook_core::event::rfc3339;

/// RFC 3339 in UTC.
pub(super) fn as_rfc3339<S: serde::Serializer>(
    unix_us: &i64,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*unix_us))
}

/// As [`as_rfc3339`]; `null` where there is no time.
pub(super) fn as_optional_rfc3339<S: serde::Serializer>(
    unix_us: &Option<i64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match unix_us {
        Some(unix_us) => as_rfc3339(unix_us, serializer),
        None => serializer.serialize_none(),
    }
}
