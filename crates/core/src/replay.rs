//! A replay: a range of past changes whose events are sent again.

use serde::{Deserialize, Serialize};

use super::endpoint::wants;
use super::event::Event;
use super::lsn::Lsn;

/// What an operator asked to have sent again.
///
/// Shape: `from` and `to` bound the LSNs of commit records, `from` inclusive and `to` exclusive, as
/// START_REPLICATION counts them. Invariant: `from` ≤ `to`, and everything before `to` is settled in
/// the live stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayRange {
    /// The first commit record may begin here.
    pub from: Lsn,
    /// Commit records from here on do not count.
    pub to: Lsn,
    /// Where what can be sent again begins behind `from` by now, it begins there: that is what was asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_oldest: bool,
    /// Which of the events in between.
    #[serde(default)]
    pub filter: ReplayFilter,
}

/// Which events of a range, and for whom. What is left out filters nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayFilter {
    /// Events of this account only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Deliveries to this endpoint only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Events of these types only: exact, or patterns as an endpoint's row has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
    /// These events only: their ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// Committed at or after this: microseconds since 1970-01-01 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_us: Option<i64>,
    /// Committed before this: microseconds since 1970-01-01 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_us: Option<i64>,
}

impl ReplayFilter {
    /// Whether the event is to be sent again, to whichever endpoints.
    #[must_use]
    pub fn admits(&self, event: &Event) -> bool {
        self.account.as_ref().is_none_or(|account| *account == *event.account)
            && (self.types.is_empty() || wants(&self.types, &event.event_type))
            && self.since_us.is_none_or(|since| event.commit_time_us >= since)
            && self.until_us.is_none_or(|until| event.commit_time_us < until)
            && (self.events.is_empty() || self.events.contains(&event.id.to_string()))
    }

    /// Whether it admits everything of an account or endpoint, or of all of them.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Self { types, events, since_us, until_us, account: _, endpoint: _ } = self;
        types.is_empty() && events.is_empty() && since_us.is_none() && until_us.is_none()
    }

    /// Whether it is to be sent again to this endpoint.
    #[must_use]
    pub fn admits_endpoint(&self, endpoint: &str) -> bool {
        self.endpoint.as_ref().is_none_or(|wanted| wanted == endpoint)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{AccountId, Operation, RowKeys};
    use crate::position::{EventId, Position, WalPosition};

    fn event(account: &str, event_type: &str, commit_time_us: i64) -> Event {
        let position = WalPosition { commit_lsn: Lsn(9), change_lsn: Lsn(8), relation: 1, n: 0 };
        let position = Position::Wal(position);
        Event {
            id: EventId::derive(1, &position, event_type, commit_time_us),
            position,
            event_type: event_type.into(),
            account: AccountId::new(account),
            operation: Operation::Insert,
            commit_time_us,
            keys: RowKeys::new(),
            row: Bytes::new(),
        }
    }

    #[test]
    fn replay_filter_admits_what_every_part_of_it_admits() {
        let filter = ReplayFilter {
            account: Some("42".into()),
            endpoint: Some("7".into()),
            types: vec!["subscriber.*".into(), "a.b".into()],
            since_us: Some(10),
            until_us: Some(20),
            ..ReplayFilter::default()
        };
        assert!(filter.admits(&event("42", "subscriber.created", 10)));
        assert!(filter.admits(&event("42", "a.b", 19)));
        for other in [
            event("43", "a.b", 15),
            event("42", "a.c", 15),
            event("42", "a.b", 9),
            event("42", "a.b", 20),
        ] {
            assert!(!filter.admits(&other), "{other:?}");
        }
        assert!(filter.admits_endpoint("7") && !filter.admits_endpoint("8"));
        assert!(ReplayFilter::default().admits(&event("1", "x", 0)));
        assert!(ReplayFilter::default().is_whole() && !filter.is_whole());
        let (one, other) = (event("42", "a.b", 15), event("42", "subscriber.created", 15));
        let named = ReplayFilter { events: vec![one.id.to_string()], ..filter };
        assert!(named.admits(&one) && !named.admits(&other));
    }

    #[test]
    fn replay_range_round_trips_through_the_text_of_its_job() {
        let range = ReplayRange {
            from: Lsn(0x1_0000_0002),
            to: Lsn(u64::MAX),
            from_oldest: false,
            filter: ReplayFilter { account: Some("42".into()), ..ReplayFilter::default() },
        };
        let text = serde_json::to_string(&range).unwrap();
        assert!(text.contains(r#""from":"1/2""#), "{text}");
        assert!(!text.contains("oldest"), "an earlier version can read it: {text}");
        assert_eq!(serde_json::from_str::<ReplayRange>(&text).unwrap(), range);
    }
}
