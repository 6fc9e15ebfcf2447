//! What becomes of attempts: requests, or, with `delivery.mode = "log"`, lines in the log.

use std::sync::Arc;
use std::time::Duration;

use tracing::{Instrument, Span};

use super::egress::ProxyTrouble;
use super::resolve::NamesTrouble;
use super::transport::Transport;
use walhook_core::attempt::{Attempt, Delivery, Meaning, Outcome};
use walhook_core::endpoint::Endpoint;
use walhook_core::notice::DueNotice;

/// Makes attempts. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Sender {
    /// Each is a request.
    Live(Arc<Transport>),
    /// Each is logged at info, and ends as what was taken, without the status that an answer has. Nothing is contacted.
    Log,
}

impl Sender {
    /// Whether attempts are requests.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Bytes that connections and unfinished answers hold.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Live(transport) => transport.held_bytes(),
            Self::Log => 0,
        }
    }

    /// What is wrong with `egress.proxy` now. See [`Transport::proxy_trouble`].
    #[must_use]
    pub fn proxy_trouble(&self) -> Option<ProxyTrouble> {
        match self {
            Self::Live(transport) => transport.proxy_trouble(),
            Self::Log => None,
        }
    }

    /// What is wrong with this machine's name servers now. See [`Transport::names_trouble`].
    #[must_use]
    pub fn names_trouble(&self) -> Option<NamesTrouble> {
        match self {
            Self::Live(transport) => transport.names_trouble(),
            Self::Log => None,
        }
    }

    /// Makes one attempt, in a span of its own at the level `trace`. See [`Transport::send`].
    pub async fn send(&self, attempt: &Attempt) -> Outcome {
        self.make(attempt).instrument(span(attempt)).await
    }

    async fn make(&self, attempt: &Attempt) -> Outcome {
        match self {
            Self::Live(transport) => transport.send(attempt).await.into(),
            Self::Log => {
                for Delivery { event, asked, .. } in attempt.deliveries.as_slice() {
                    tracing::info!(
                        event = %event.id, r#type = %event.event_type, account = %event.account,
                        endpoint = %attempt.endpoint.id, replay = asked.is_some(),
                        "not sent, because delivery.mode is \"log\""
                    );
                }
                logged()
            }
        }
    }

    /// Sends a notice of the pipeline to the endpoint of whoever runs it.
    pub async fn send_notice(&self, to: &Endpoint, notice: &DueNotice, pipeline: &str) -> Outcome {
        let (id, number) = (notice.id(pipeline), notice.attempts.saturating_add(1));
        match self {
            Self::Live(transport) => {
                transport.post_notice(to, id, notice.body(pipeline), number).await.into()
            }
            Self::Log => {
                tracing::info!(
                    notice = %id, r#type = notice.kind, endpoint = notice.endpoint,
                    "not sent, because delivery.mode is \"log\""
                );
                logged()
            }
        }
    }
}

/// Which delivery, and which attempt of it, all that is logged meanwhile belongs to. Names no URL and
/// holds nothing of what is sent. Where nobody asks for `trace`, no field is even put into words.
fn span(attempt: &Attempt) -> Span {
    // The dispatcher makes requests of one delivery.
    let Delivery { event, number, .. } = attempt.first();
    tracing::trace_span!(
        "delivery",
        event = %event.id,
        account = %event.account,
        endpoint = %attempt.endpoint.id,
        attempt = number
    )
}

/// What becomes of an attempt that is only logged: nobody answered, so there is no status.
fn logged() -> Outcome {
    Outcome::new(Meaning::Delivered, Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::endpoint::Secret;
    use walhook_core::notice::NoticeKind;
    use walhook_sign as sign;

    /// What a receiver is built by: the headers, an empty line, the body over several lines.
    #[test]
    fn documented_notice_is_what_is_sent_and_its_signature_is_right() {
        let page = include_str!("../../../docs/operations/deliveries-and-support.md");
        let (_, chapter) = page.split_once("\n## Notices\n").unwrap();
        let block: Vec<&str> = chapter.lines().skip_while(|l| !l.starts_with("    POST")).collect();
        let block: Vec<&str> = block.into_iter().take_while(|l| !l.starts_with('(')).collect();
        let header = |name: &str| {
            let name = format!("    {name}: ");
            block.iter().find_map(|line| line.strip_prefix(&name)).unwrap()
        };
        let body: String =
            block.iter().skip_while(|line| !line.is_empty()).map(|l| l.trim()).collect();

        let us = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_microsecond();
        let notice = DueNotice {
            kind: NoticeKind::DeliveryExhausted.as_str().into(),
            endpoint: "17".into(),
            account: Some("42".into()),
            detail: "status 500: try later".into(),
            count: 1_204,
            first_us: us("2026-11-25T16:36:00.498113Z"),
            last_us: us("2026-11-25T16:46:00.512000Z"),
            attempts: 0,
        };
        assert_eq!(body.as_bytes(), &*notice.body("walhook"));
        assert_eq!(header("webhook-id"), notice.id("walhook").to_string());
        let timestamp = header("webhook-timestamp").parse().unwrap();
        let secret = [Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
        let signed = sign::sign(header("webhook-id"), timestamp, body.as_bytes(), &secret);
        assert_eq!(Ok(header("webhook-signature").to_owned()), signed);
    }
}
