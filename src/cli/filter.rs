//! What `dead-letters` and `deferred` can be filtered by, both.

use anyhow::anyhow;

use super::Failure;
use crate::control::Filter;
use crate::control::time::time_us;

/// Filters; those given must all fit.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Shared {
    /// Of this endpoint
    #[arg(long, value_name = "ID")]
    pub(super) endpoint: Option<String>,
    /// Of this account
    #[arg(long, value_name = "ID")]
    pub(super) account: Option<String>,
    /// Of this event type
    #[arg(long = "type", value_name = "TYPE")]
    pub(super) event_type: Option<String>,
    /// Of this replay, as `replay list` shows it
    #[arg(long, value_name = "ID")]
    pub(super) replay: Option<i64>,
    /// Stored at this time or later: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    pub(super) since: Option<i64>,
    /// Stored before this time: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    pub(super) until: Option<i64>,
}

impl Shared {
    pub(super) fn to_filter<Id>(&self, reason: Option<String>) -> Filter<Id> {
        Filter {
            ids: None,
            endpoint: self.endpoint.clone(),
            account: self.account.clone(),
            event_type: self.event_type.clone(),
            reason,
            replay: self.replay,
            since_us: self.since,
            until_us: self.until,
        }
    }
}

/// The filter, where it names something, or `all` says that nothing need be named. `what` is what the
/// ids are of.
pub(super) fn openly<Id: Default + PartialEq>(
    filter: Filter<Id>,
    all: bool,
    what: &str,
) -> Result<Filter<Id>, Failure> {
    if filter.is_empty() != all {
        return Err(Failure::Usage(anyhow!(
            "say which: give {what}, filters such as --endpoint, or --all (and not both)"
        )));
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_of_everything_must_be_said_openly() {
        let none = Filter::<i64>::default;
        let one = || Filter { ids: Some(vec![1]), ..none() };
        assert!(matches!(openly(none(), false, "ids"), Err(Failure::Usage(_))));
        assert_eq!(openly(none(), true, "ids").unwrap(), none());
        assert!(matches!(openly(one(), true, "ids"), Err(Failure::Usage(_))));
        assert_eq!(openly(one(), false, "ids").unwrap(), one());
    }
}
