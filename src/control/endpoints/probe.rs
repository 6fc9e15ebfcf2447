//! One test event, sent from this process: no leader is needed, and none is in the way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use serde::Serialize;

use super::list::host;
use crate::config::Config;
use crate::control::{Failure, ensure_live};
use walhook_core::attempt::{Attempt, Deliveries, Delivery, DeliveryId, FailureKind};
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, EndpointId, Event, Operation, RowKeys};
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_http::exchange::{self, Exchange};
use walhook_postgres::lookup::{self, Lookups, Which};
use walhook_process::clock::unix_us;

const TYPE: &str = "webhook.test";

/// What came of a test event.
#[derive(Debug, Serialize)]
pub(crate) struct ProbeView {
    /// The account that owns the endpoint.
    pub(crate) account_id: String,
    /// The head of the answer's body; null where there was none.
    pub(crate) answer: Option<String>,
    /// Whether the endpoint took it.
    pub(crate) delivered: bool,
    /// The endpoint's id.
    pub(crate) endpoint: String,
    /// Why it did not; null where it did.
    pub(crate) error: Option<String>,
    /// The event's id.
    pub(crate) event_id: String,
    /// Of the URL, which may hold secrets, this alone. Null where there is no host in it.
    pub(crate) host: Option<String>,
    /// From the call to the end of the answer.
    pub(crate) latency_ms: u64,
    /// The answer's status; null where there was none.
    pub(crate) status: Option<u16>,
}

/// Sends an endpoint a signed event of type `webhook.test`.
///
/// # Errors
/// When there is no such endpoint, its table cannot be read, or nothing is to be sent from here.
pub(crate) async fn probe(config: &Config, id: &str) -> Result<ProbeView, Failure> {
    ensure_live(config)?;
    let endpoint = find(config, id).await?;
    let transport = config.transport();
    let transport = transport.map_err(anyhow::Error::from)?;
    let event = event(&endpoint);
    let attempt = Attempt {
        endpoint: Arc::clone(&endpoint),
        deliveries: Deliveries::from(Delivery {
            id: DeliveryId(0),
            event: Arc::clone(&event),
            number: 1,
            asked: None,
        }),
    };
    let outcome = match &endpoint.invalid {
        Some(problem) => unusable(problem),
        None => transport.probe(&attempt).await,
    };
    let latency_ms = u64::try_from(outcome.elapsed.as_millis()).unwrap_or(u64::MAX);
    let Said { status, answer, error } = Said::of(&outcome);
    Ok(ProbeView {
        account_id: endpoint.account.to_string(),
        answer,
        delivered: outcome.delivered(),
        endpoint: id.to_owned(),
        error,
        event_id: event.id.to_string(),
        host: host(&endpoint.url),
        latency_ms,
        status,
    })
}

/// The end of every attempt on an endpoint whose row cannot be used.
fn unusable(problem: &str) -> Exchange {
    let failure = exchange::Failure { kind: FailureKind::Invalid, detail: problem.to_owned() };
    Exchange::new(Err(failure), Duration::ZERO)
}

/// What came of the attempt, for a person.
struct Said {
    status: Option<u16>,
    answer: Option<String>,
    error: Option<String>,
}

impl Said {
    fn of(outcome: &Exchange) -> Self {
        match &outcome.result {
            Ok(answer) => Self {
                status: Some(answer.status),
                answer: Some(answer.excerpt.clone()),
                error: (!outcome.delivered()).then(|| format!("status {}", answer.status)),
            },
            Err(failure) => {
                let error = format!("{}: {}", failure.kind.as_str(), failure.detail);
                Self { status: None, answer: None, error: Some(error) }
            }
        }
    }
}

/// Looks the endpoint up as an attempt does, whether it is switched on or not.
async fn find(config: &Config, id: &str) -> Result<Arc<Endpoint>, Failure> {
    let source = lookup::connect(config.lookups(), "walhook endpoints").await;
    let source = source.context("source.url")?;
    let ids = [id.to_owned()];
    let lookups = Lookups::of(config.lookups());
    let which = Which { ids: Some(&ids), limit: 1, ..Which::default() };
    let rows = lookups.list(&source, which).await;
    let rows = rows.context("cannot read the endpoint table")?;
    let none = || anyhow!("{} has no endpoint {id}", config.endpoints.table);
    let account = AccountId::new(rows.first().ok_or_else(none)?.account.as_str());
    let found = lookups.fetch_all(&source, &[account]).await;
    let found = found.context("cannot look the endpoint up")?;
    let mut routes = found.into_iter().map(|(_, routes)| routes);
    let endpoint = routes.find_map(|routes| routes.endpoint(&EndpointId::new(id)).cloned());
    Ok(endpoint.ok_or_else(none)?)
}

/// An event that no change made. Its position is none of the WAL's; the time makes its id its own.
fn event(endpoint: &Endpoint) -> Arc<Event> {
    let now_us = unix_us();
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(0),
        change_lsn: Lsn(now_us.unsigned_abs()),
        relation: 0,
        n: 0,
    });
    Arc::new(Event {
        id: EventId::derive(0, &position, TYPE, now_us),
        position,
        event_type: TYPE.into(),
        account: endpoint.account.clone(),
        operation: Operation::Message,
        commit_time_us: now_us,
        keys: RowKeys::new(),
        row: Bytes::from_static(b"\"data\":{\"test\":true}"),
    })
}
