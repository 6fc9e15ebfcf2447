//! Which dead letters the command line means.

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;

use crate::cli::Failure;
use crate::engine::persist::DeadReason;
use crate::engine::tick::micros;
use crate::io::clock;
use crate::io::state::DeadLetterFilter;

const REASONS: [&str; 4] = [
    DeadReason::Exhausted.as_str(),
    DeadReason::EndpointDisabled.as_str(),
    DeadReason::EndpointInvalid.as_str(),
    DeadReason::Unroutable.as_str(),
];

/// Filters; those given must all fit.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filters {
    /// Of this endpoint
    #[arg(long, value_name = "ID")]
    pub(super) endpoint: Option<String>,
    /// Of this account
    #[arg(long, value_name = "ID")]
    pub(super) account: Option<String>,
    /// Of this event type
    #[arg(long = "type", value_name = "TYPE")]
    pub(super) event_type: Option<String>,
    /// For this reason
    #[arg(long, value_parser = PossibleValuesParser::new(REASONS))]
    pub(super) reason: Option<String>,
    /// Stored at this time or later: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    pub(super) since: Option<i64>,
    /// Stored before this time: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    pub(super) until: Option<i64>,
}

/// Ids, filters or, said openly, all of them.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Selection {
    /// Their ids
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<i64>,
    #[command(flatten)]
    pub(super) filters: Filters,
    /// All of them
    #[arg(long)]
    pub(super) all: bool,
}

impl Filters {
    pub(super) fn to_filter(&self) -> DeadLetterFilter {
        DeadLetterFilter {
            ids: None,
            endpoint: self.endpoint.clone(),
            account: self.account.clone(),
            event_type: self.event_type.clone(),
            reason: self.reason.clone(),
            since_us: self.since,
            until_us: self.until,
        }
    }
}

impl Selection {
    pub(super) fn to_filter(&self) -> Result<DeadLetterFilter, Failure> {
        let ids = (!self.ids.is_empty()).then(|| self.ids.clone());
        let filter = DeadLetterFilter { ids, ..self.filters.to_filter() };
        if filter.is_empty() != self.all {
            return Err(Failure::Usage(anyhow!(
                "say which: give ids, filters such as --endpoint, or --all (and not both)"
            )));
        }
        Ok(filter)
    }
}

fn time_us(text: &str) -> Result<i64, String> {
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

    #[test]
    fn selection_of_everything_must_be_said_openly() {
        assert!(matches!(Selection::default().to_filter(), Err(Failure::Usage(_))));
        let all = Selection { all: true, ..Selection::default() };
        assert_eq!(all.to_filter().unwrap(), DeadLetterFilter::default());
        let both = Selection { ids: vec![1], ..all };
        assert!(matches!(both.to_filter(), Err(Failure::Usage(_))));
        let one = Selection { ids: vec![1], ..Selection::default() };
        assert_eq!(one.to_filter().unwrap().ids, Some(vec![1]));
    }
}
