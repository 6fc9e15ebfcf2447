//! Notices: what whoever runs walhook is to be told of, as signed requests to `notify.url`.
//!
//! ```text
//! dispatcher ─► Notices ─batch─► the table notices ─► a request ─2xx─► done
//!               one for each endpoint and kind         └─ else ─► later
//! ```
//!
//! A notice is stored by the state transaction that makes its cause durable, so that no crash comes
//! between the two. It is one row for each endpoint and kind: what happens again before it is sent is
//! added to its count. So a hundred thousand deliveries that end without success are a few notices,
//! and the table is no larger than the endpoints are many.
//!
//! It is sent at least once. What a receiver has seen already it tells by the id, which changes only
//! with what the notice says. One count may be too high: that of a batch whose commit was not
//! acknowledged, and which was therefore stored again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::event::{AccountId, EndpointId, rfc3339};
use super::lsn::Lsn;
use super::persist::{DeadLetter, DeadReason};
use super::position::{EventId, Position, WalPosition};

/// A notice that was not taken in so many attempts is given up. With [`wait_after`]'s waits that is a
/// day.
pub const ATTEMPTS_MAX: u32 = 34;

/// A further notice of the same kind on the same endpoint waits so long, and counts meanwhile.
pub const PAUSE: Duration = Duration::from_secs(600);

const WAIT_FIRST: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// What a notice tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub enum NoticeKind {
    /// walhook has switched an endpoint off.
    EndpointDisabled,
    /// The state tables are full: an endpoint's deliveries are counted in a gap.
    EndpointSuspended,
    /// An endpoint is on again or no longer suspended, or its breaker has closed.
    EndpointRecovered,
    /// Deliveries became dead letters because their last attempts failed.
    DeliveryExhausted,
}

impl NoticeKind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::EndpointDisabled,
        Self::EndpointSuspended,
        Self::EndpointRecovered,
        Self::DeliveryExhausted,
    ];

    /// The event's type, also in the state tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointDisabled => "endpoint.disabled",
            Self::EndpointSuspended => "endpoint.suspended",
            Self::EndpointRecovered => "endpoint.recovered",
            Self::DeliveryExhausted => "delivery.exhausted",
        }
    }
}

/// What happened since the last batch, to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Notice {
    /// What.
    pub kind: NoticeKind,
    /// To which endpoint.
    pub endpoint: EndpointId,
    /// The account that owns it, where that is known.
    pub account: Option<AccountId>,
    /// Why it happened the last time, for a person: lowercase, no secrets.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub detail: String,
    /// How often it happened; at least 1.
    pub count: u64,
}

/// What is to be stored with the next batch: one notice at most for each endpoint and kind.
#[derive(Debug, Default)]
pub struct Notices {
    wanted: bool,
    pending: BTreeMap<(EndpointId, NoticeKind), Notice>,
}

impl Notices {
    /// With `wanted` false nothing is ever collected: nobody is to be notified.
    #[must_use]
    pub fn new(wanted: bool) -> Self {
        Self { wanted, pending: BTreeMap::new() }
    }

    /// It happened, once more.
    pub fn add(
        &mut self,
        kind: NoticeKind,
        endpoint: &EndpointId,
        account: Option<&AccountId>,
        detail: &str,
    ) {
        if !self.wanted {
            return;
        }
        let notice = self.pending.entry((endpoint.clone(), kind)).or_insert_with(|| Notice {
            kind,
            endpoint: endpoint.clone(),
            account: None,
            detail: String::new(),
            count: 0,
        });
        notice.account = account.cloned().or_else(|| notice.account.take());
        detail.clone_into(&mut notice.detail);
        notice.count += 1;
    }

    /// A dead letter is to be stored: one that was tried in vain is worth a notice, where it is not a
    /// replay's, whose operator is told by the command.
    pub fn add_letter(&mut self, letter: &DeadLetter) {
        if letter.reason == DeadReason::Exhausted
            && letter.replay.is_none()
            && let Some(endpoint) = &letter.endpoint
        {
            let account = Some(&letter.event.account);
            self.add(NoticeKind::DeliveryExhausted, endpoint, account, &letter.detail);
        }
    }

    /// All of them, for the batch.
    pub fn hand_out(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.pending).into_values().collect()
    }
}

/// A notice as the table has it, to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueNotice {
    /// The type: [`NoticeKind::as_str`].
    pub kind: String,
    /// The endpoint.
    pub endpoint: String,
    /// The account that owns it, where that is known.
    pub account: Option<String>,
    /// Why it happened the last time.
    pub detail: String,
    /// How often it happened since the last notice of this kind on the endpoint.
    pub count: i64,
    /// When it happened for the first time of these: microseconds since 1970-01-01 UTC.
    pub first_us: i64,
    /// And the last time.
    pub last_us: i64,
    /// Requests that were made for it so far, whatever it said then.
    pub attempts: u32,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    r#type: &'a str,
    timestamp: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    pipeline: &'a str,
    endpoint_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
    detail: &'a str,
    count: i64,
    since: String,
}

impl DueNotice {
    /// The id, which is the same as long as the notice says the same.
    #[must_use]
    pub fn id(&self, pipeline: &str) -> EventId {
        let Self { kind, endpoint, count, first_us, last_us, .. } = self;
        let nowhere = Lsn::ZERO;
        let position = WalPosition { commit_lsn: nowhere, change_lsn: nowhere, relation: 0, n: 0 };
        let named = format!("{kind}\n{pipeline}\n{endpoint}\n{count}\n{first_us}\n{last_us}");
        EventId::derive(0, &Position::Wal(position), &named, *last_us)
    }

    /// The request's body, as `docs/operations/deliveries-and-support.md` describes it.
    #[must_use]
    pub fn body(&self, pipeline: &str) -> Bytes {
        let body = Body {
            id: &self.id(pipeline).to_string(),
            r#type: &self.kind,
            timestamp: rfc3339(self.last_us),
            data: Data {
                pipeline,
                endpoint_id: &self.endpoint,
                account_id: self.account.as_deref(),
                detail: &self.detail,
                count: self.count,
                since: rfc3339(self.first_us),
            },
        };
        // Texts and numbers: nothing that JSON has no form for.
        serde_json::to_vec(&body).unwrap_or_default().into()
    }
}

/// How long to wait after so many attempts in vain; `None`: it is given up. There is one sender and
/// one receiver, so no jitter.
#[must_use]
pub fn wait_after(attempts: u32) -> Option<Duration> {
    let doubled = WAIT_FIRST.saturating_mul(2u32.saturating_pow(attempts.saturating_sub(1)));
    (attempts < ATTEMPTS_MAX).then_some(doubled.min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_one_for_each_endpoint_and_kind_however_often_it_happens() {
        let (one, two) = (EndpointId::new("1"), EndpointId::new("2"));
        let account = AccountId::new("42");
        let mut notices = Notices::new(true);
        for n in 0..100_000 {
            let detail = format!("status {}", 500 + n % 100);
            notices.add(NoticeKind::DeliveryExhausted, &one, Some(&account), &detail);
        }
        notices.add(NoticeKind::EndpointDisabled, &one, None, "status 410");
        notices.add(NoticeKind::EndpointDisabled, &two, None, "status 410");
        let told = notices.hand_out();
        let counts: Vec<_> = told.iter().map(|n| (n.kind, &*n.endpoint, n.count)).collect();
        let expected = [
            (NoticeKind::EndpointDisabled, "1", 1),
            (NoticeKind::DeliveryExhausted, "1", 100_000),
            (NoticeKind::EndpointDisabled, "2", 1),
        ];
        assert_eq!(counts, expected);
        assert_eq!((&*told[1].detail, &told[1].account), ("status 599", &Some(account)));
        assert!(notices.hand_out().is_empty());

        let mut unwanted = Notices::new(false);
        unwanted.add(NoticeKind::EndpointDisabled, &one, None, "status 410");
        assert!(unwanted.hand_out().is_empty());
    }

    #[test]
    fn notice_has_one_id_for_what_it_says_and_the_documented_body() {
        let notice = DueNotice {
            kind: "delivery.exhausted".into(),
            endpoint: "17".into(),
            account: Some("4\"2".into()),
            detail: "status 500".into(),
            count: 3,
            first_us: 1_763_919_960_000_000,
            last_us: 1_763_919_961_000_000,
            attempts: 1,
        };
        let again = DueNotice { attempts: 7, ..notice.clone() };
        assert_eq!((notice.id("p"), notice.body("p")), (again.id("p"), again.body("p")));
        let more = DueNotice { count: 4, ..notice.clone() };
        assert_ne!(notice.id("p"), more.id("p"));
        assert_ne!(notice.id("p"), notice.id("q"));
        let body: serde_json::Value = serde_json::from_slice(&notice.body("p")).unwrap();
        let expected = serde_json::json!({
            "id": notice.id("p").to_string(), "type": "delivery.exhausted",
            "timestamp": "2025-11-23T17:46:01.000000Z",
            "data": {"pipeline": "p", "endpoint_id": "17", "account_id": "4\"2",
                     "detail": "status 500", "count": 3, "since": "2025-11-23T17:46:00.000000Z"},
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn notice_that_is_never_taken_is_given_up_after_a_day() {
        let waits: Vec<Duration> = (1..).map_while(wait_after).collect();
        assert_eq!(waits.len(), 33);
        assert_eq!(waits[..3], [5, 10, 20].map(Duration::from_secs));
        let hours = waits.iter().sum::<Duration>().as_secs_f64() / 3_600.0;
        assert!((23.0..26.0).contains(&hours), "{hours}");
    }
}
