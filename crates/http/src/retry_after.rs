//! The wait that an answer asks for in `Retry-After`.
//!
//! Source: RFC 9110, sections 5.6.7 and 10.2.3.

use std::time::Duration;

use jiff::civil;

/// Reads the value of `Retry-After`: seconds, or a date in any of the three forms of HTTP. None when
/// it is neither. A date in the past is no wait; a number beyond all bounds saturates.
///
/// Units: `now_unix_s` is seconds since 1970-01-01 UTC.
#[must_use]
pub fn parse_retry_after(value: &str, now_unix_s: i64) -> Option<Duration> {
    let value = value.trim_matches([' ', '\t']);
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Only too many digits can fail here.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let wait_s = http_date(value)?.saturating_sub(now_unix_s);
    Some(Duration::from_secs(u64::try_from(wait_s).unwrap_or(0)))
}

/// Seconds since 1970 of an HTTP-date (RFC 9110, section 5.6.7).
fn http_date(value: &str) -> Option<i64> {
    // The name of the day is redundant, and senders get it wrong: it is not compared with the date.
    let parse = |format: &str, text: &str| civil::DateTime::strptime(format, text).ok();
    let date = match value.split_once(", ") {
        // Two digits of a year mean 1969 to 2068.
        Some((_, rest)) => {
            parse("%d %b %Y %H:%M:%S GMT", rest).or_else(|| parse("%d-%b-%y %H:%M:%S GMT", rest))?
        }
        None => parse("%b %e %H:%M:%S %Y", value.split_once(' ')?.1)?,
    };
    Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    proptest! {
        #[test]
        fn retry_after_never_panics(value: String, now: i64) {
            let _ = parse_retry_after(&value, now);
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds() {
        let parse = |value| parse_retry_after(value, 0);
        assert_eq!(parse("120"), Some(seconds(120)));
        assert_eq!(parse(" 0 "), Some(seconds(0)));
        assert_eq!(parse("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        for neither in ["", "-1", "+1", "1.5", "1s", "soon", "Sun, 06 Nov 1994", "٣"] {
            assert_eq!(parse(neither), None, "{neither:?}");
        }
    }

    #[test]
    fn retry_after_is_read_as_a_date_in_all_three_forms() {
        let now = 784_111_777 - 90; // 90 s before 1994-11-06 08:49:37
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse_retry_after(date, now), Some(seconds(90)), "{date}");
            assert_eq!(parse_retry_after(date, now + 91), Some(seconds(0)), "{date} is past");
        }
    }
}
