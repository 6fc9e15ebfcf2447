//! The span of a delivery: what it says, and what it never says.

use std::fmt;
use std::sync::PoisonError;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event as LogEvent, Level, Metadata, Subscriber};

use super::*;
use crate::sender::Sender;

/// The fields of a span, its own name first.
type Said = Vec<(&'static str, String)>;

/// Keeps the spans that are made, each with its fields, and the texts of all that is logged.
#[derive(Clone)]
struct Kept {
    level: Level,
    spans: Arc<Mutex<Vec<Said>>>,
}

impl Kept {
    fn at(level: Level) -> Self {
        Self { level, spans: Arc::default() }
    }

    fn spans(&self) -> Vec<Said> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Fields<'a>(&'a mut Said);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("walhook") && *metadata.level() <= self.level
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fields = vec![("span", span.metadata().name().to_owned())];
        span.record(&mut Fields(&mut fields));
        spans.push(fields);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn event(&self, _event: &LogEvent<'_>) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

/// The third attempt, to an endpoint whose URL, secret and header hold [`HUSH`], of an event with a body.
async fn attempt_under(kept: &Kept, sender: &Sender) -> Attempt {
    let first = attempt(endpoint(&format!("http://127.0.0.1:1/{HUSH}?token={HUSH}")));
    let deliveries = Deliveries::from(Delivery { number: 3, ..first.first().clone() });
    let third = Attempt { deliveries, ..first };
    let _here = tracing::subscriber::set_default(kept.clone());
    sender.send(&third).await;
    third
}

#[tokio::test]
async fn delivery_has_a_span_with_event_account_endpoint_and_attempt_and_nothing_else() {
    for sender in [Sender::Live(Arc::new(transport())), Sender::Log] {
        let kept = Kept::at(Level::TRACE);
        let sent = attempt_under(&kept, &sender).await;
        let spans = kept.spans();
        let ours: Vec<_> = spans.iter().filter(|fields| fields[0].1 == "delivery").collect();
        let field = |name, value: &dyn fmt::Display| (name, value.to_string());
        let expected = vec![
            field("span", &"delivery"),
            field("event", &sent.first().event.id),
            field("account", &sent.first().event.account),
            field("endpoint", &sent.endpoint.id),
            field("attempt", &3),
        ];
        assert_eq!(ours, [&expected], "{spans:?}");
        let all = format!("{spans:?}");
        assert!(!all.contains(HUSH) && !all.contains("Zoë"), "{all}");
    }
}

#[tokio::test]
async fn delivery_has_no_span_at_debug_and_above() {
    let kept = Kept::at(Level::DEBUG);
    attempt_under(&kept, &Sender::Live(Arc::new(transport()))).await;
    assert_eq!(kept.spans(), Vec::<Said>::new());
}
