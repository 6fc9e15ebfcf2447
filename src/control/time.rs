//! Times as an operator writes them.

use walhook_core::tick::micros;
use walhook_process::clock;

/// Reads a time, or an age, as microseconds since 1970-01-01 UTC.
pub(crate) fn time_us(text: &str) -> Result<i64, String> {
    parse_time(text, clock::unix_us())
}

fn parse_time(text: &str, now_us: i64) -> Result<i64, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(now_us.saturating_sub(i64::try_from(micros(age)).unwrap_or(i64::MAX)));
    }
    text.parse().map(jiff::Timestamp::as_microsecond).map_err(|_| {
        format!("{text:?} is no time; write it as 2026-11-23T17:46:00Z, or as an age such as 2h")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_as_rfc3339_or_as_an_age() {
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z", 0), Ok(1_500_000));
        assert_eq!(parse_time("1970-01-01T02:00:00+02:00", 0), Ok(0));
        assert_eq!(parse_time("2h", 7_200_000_001), Ok(1));
        assert!(parse_time("yesterday", 0).is_err());
    }
}
