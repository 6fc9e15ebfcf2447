//! Times as people compare them: how long ago.

use walhook_process::clock;

/// What a view has as RFC 3339, with how long ago that is.
pub(super) fn with_ago(at: &str) -> String {
    match ago(at) {
        Some(ago) => format!("{at} ({ago})"),
        None => at.to_owned(),
    }
}

/// How long ago; `None` where it is no time.
pub(super) fn ago(at: &str) -> Option<String> {
    let at: jiff::Timestamp = at.parse().ok()?;
    Some(words(clock::unix_us().saturating_sub(at.as_microsecond())))
}

/// The two largest units are enough for people, and of seconds alone one.
fn words(us: i64) -> String {
    let seconds = us / 1_000_000;
    let (amount, sign) = (seconds.unsigned_abs(), seconds < 0);
    let text = match amount {
        0 => return "now".to_owned(),
        1..60 => format!("{amount} s"),
        60..3_600 => format!("{} min", amount / 60),
        3_600..86_400 => format!("{} h {} min", amount / 3_600, amount % 3_600 / 60),
        _ => format!("{} d {} h", amount / 86_400, amount % 86_400 / 3_600),
    };
    if sign { format!("in {text}") } else { format!("{text} ago") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_told_in_the_units_that_matter() {
        for (seconds, said) in [
            (0, "now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3_599, "59 min ago"),
            (3_660, "1 h 1 min ago"),
            (90_000, "1 d 1 h ago"),
            (-61, "in 1 min"),
        ] {
            assert_eq!(words(seconds * 1_000_000), said);
        }
        assert_eq!(ago("2000-01-01T00:00:00Z").unwrap().split(' ').next_back(), Some("ago"));
        assert_eq!(with_ago("yesterday"), "yesterday");
    }
}
