//! Which dead letters the command line means.

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;

use crate::cli::Failure;
use crate::cli::time::time_us;
use crate::engine::persist::DeadReason;
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

#[cfg(test)]
mod tests {
    use super::*;

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
