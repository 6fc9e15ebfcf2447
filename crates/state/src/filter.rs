//! Which dead letters or deferred rows an operator means.

use serde::{Deserialize, Serialize};
use tokio_postgres::types::{ToSql, Type};

use super::Param;
use walhook_core::endpoint::is_pattern;
use walhook_postgres::op::{EQ, GE, LT, from_us};

/// Those that fit everything that is given. The `args` of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter<Id> {
    /// These: dead letters by the ids of their table, deferred rows by those of their events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<Id>>,
    /// This endpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// This account's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Of this event type, or of those that this pattern fits, as an endpoint's row has them.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// Dead, or deferred, for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of this replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<i64>,
    /// Stored at this time or later: microseconds since 1970-01-01 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_us: Option<i64>,
    /// Stored before this time: microseconds since 1970-01-01 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_us: Option<i64>,
}

/// Which dead letters.
pub type DeadLetterFilter = Filter<i64>;

/// Which deferred rows.
pub type DeferredFilter = Filter<String>;

impl<Id: Default + PartialEq> Filter<Id> {
    /// Whether it names nothing, so that everything fits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl<Id: PartialEq> Filter<Id> {
    /// Whether something may fit both. What fits one endpoint, account or replay fits no other.
    #[must_use]
    pub fn may_share(&self, other: &Self) -> bool {
        fn differ<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            one.zip(other).is_some_and(|(one, other)| one != other)
        }
        let apart = differ(self.endpoint.as_ref(), other.endpoint.as_ref())
            || differ(self.account.as_ref(), other.account.as_ref())
            || differ(self.replay.as_ref(), other.replay.as_ref());
        let ids = self.ids.as_ref().zip(other.ids.as_ref());
        !apart && ids.is_none_or(|(ids, others)| ids.iter().any(|id| others.contains(id)))
    }
}

impl DeadLetterFilter {
    /// The condition over `dead_letters d` and `bodies b`, which takes `$1` to `$8`.
    pub(super) fn condition(&self) -> String {
        condition("d.id", "b", "d.died_at", self)
    }

    pub(super) fn params<'a>(&'a self, pipeline: &'a String) -> Vec<Param<'a>> {
        self.params_with(pipeline, Type::INT8_ARRAY)
    }
}

impl DeferredFilter {
    /// The condition over `deferred d`, which takes `$1` to `$8`.
    pub(super) fn condition(&self) -> String {
        condition("d.event_id", "d", "d.deferred_at", self)
    }

    pub(super) fn params<'a>(&'a self, pipeline: &'a String) -> Vec<Param<'a>> {
        self.params_with(pipeline, Type::TEXT_ARRAY)
    }
}

impl<Id: ToSql + Sync> Filter<Id> {
    fn params_with<'a>(&'a self, pipeline: &'a String, ids: Type) -> Vec<Param<'a>> {
        vec![
            (pipeline, Type::TEXT),
            (&self.ids, ids),
            (&self.endpoint, Type::TEXT),
            (&self.account, Type::TEXT),
            (&self.event_type, Type::TEXT),
            (&self.reason, Type::TEXT),
            (&self.since_us, Type::INT8),
            (&self.until_us, Type::INT8),
        ]
    }
}

/// `event` names the table that knows account and type.
fn condition<Id>(id: &str, event: &str, at: &str, filter: &Filter<Id>) -> String {
    let replay = filter.replay;
    let replay = replay.map_or_else(String::new, |replay| format!("AND d.replay_id {EQ} {replay}"));
    let (since, until) = (from_us("$7"), from_us("$8"));
    let of_type = match filter.event_type.as_deref() {
        Some(pattern) if is_pattern(pattern) => {
            format!("pg_catalog.starts_with({event}.event_type, pg_catalog.left($5, -1))")
        }
        _ => format!("{event}.event_type {EQ} $5"),
    };
    format!(
        "d.pipeline {EQ} $1
         AND ($2 IS NULL OR {id} {EQ} ANY ($2))
         AND ($3 IS NULL OR d.endpoint {EQ} $3)
         AND ($4 IS NULL OR {event}.account {EQ} $4)
         AND ($5 IS NULL OR {of_type})
         AND ($6 IS NULL OR d.reason {EQ} $6)
         AND ($7 IS NULL OR {at} {GE} {since})
         AND ($8 IS NULL OR {at} {LT} {until}) {replay}"
    )
}
