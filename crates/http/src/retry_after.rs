//! The wait that an answer asks for in `Retry-After`.
//!
//! Source: RFC 9110, sections 5.6.7 and 10.2.3.

use std::time::Duration;

use jiff::civil;

/// A sender whose clock is further from ours than this has none to speak of, such as a device that begins at 1970.
const CLOCKS_DIFFER_S: u64 = 86_400;

/// Reads the value of `Retry-After`: seconds, or a date in any of the three forms of HTTP. None when
/// it is neither. A date in the past is no wait; a number beyond all bounds saturates.
///
/// A date is by the clock of whoever answers, which the answer's own `date` tells.
///
/// Units: `now_unix_s` is seconds since 1970-01-01 UTC.
#[must_use]
pub fn parse_retry_after(value: &str, date: Option<&str>, now_unix_s: i64) -> Option<Duration> {
    let value = value.trim_matches([' ', '\t']);
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Only too many digits can fail here.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until_s = http_date(value)?;
    let theirs = date.and_then(http_date).filter(|it| it.abs_diff(now_unix_s) <= CLOCKS_DIFFER_S);
    let wait_s = until_s.saturating_sub(theirs.unwrap_or(now_unix_s));
    Some(Duration::from_secs(u64::try_from(wait_s).unwrap_or(0)))
}

/// Seconds since 1970 of an HTTP-date (RFC 9110, section 5.6.7).
fn http_date(value: &str) -> Option<i64> {
    let value = value.trim_matches([' ', '\t']);
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
        fn retry_after_never_panics(value: String, date: Option<String>, now: i64) {
            let _ = parse_retry_after(&value, date.as_deref(), now);
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds() {
        let parse = |value| parse_retry_after(value, None, 0);
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
            let parse = |now| parse_retry_after(date, None, now);
            assert_eq!(parse(now), Some(seconds(90)), "{date}");
            assert_eq!(parse(now + 91), Some(seconds(0)), "{date} is past");
        }
    }

    #[test]
    fn retry_after_date_is_by_the_clock_of_the_answer_unless_that_is_none() {
        let until = "Sun, 06 Nov 1994 08:49:37 GMT";
        let own = 784_111_777 - 90 + 3_600;
        for (date, expected) in [
            (Some("Sun, 06 Nov 1994 08:48:07 GMT"), 90),
            (Some(" Sunday, 06-Nov-94 08:48:07 GMT\t"), 90),
            (Some("Thu, 01 Jan 1970 00:00:00 GMT"), 0),
            (Some("today"), 0),
            (None, 0),
        ] {
            assert_eq!(parse_retry_after(until, date, own), Some(seconds(expected)), "{date:?}");
        }
        assert_eq!(parse_retry_after("7", Some(until), own), Some(seconds(7)));
    }
}
