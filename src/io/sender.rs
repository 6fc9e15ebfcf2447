//! What becomes of attempts: requests, or, with `delivery.mode = "log"`, lines in the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::transport::Transport;
use crate::engine::attempt::{Answer, Attempt, Outcome};
use crate::engine::endpoint::Endpoint;
use crate::engine::notice::DueNotice;

/// Makes attempts. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Sender {
    /// Each is a request.
    Live(Arc<Transport>),
    /// Each is logged at info, and ends as if the endpoint had taken it. Nothing is contacted.
    Log,
}

impl Sender {
    /// Whether attempts are requests.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Spawns what makes an attempt, on the threads for requests where there are any.
    pub fn spawn<T: Send + 'static>(
        &self,
        attempts: &mut JoinSet<T>,
        attempt: impl Future<Output = T> + Send + 'static,
    ) {
        match self {
            Self::Live(transport) => attempts.spawn_on(attempt, transport.threads()),
            Self::Log => attempts.spawn(attempt),
        };
    }

    /// Bytes that connections and unfinished answers hold.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Live(transport) => transport.held_bytes(),
            Self::Log => 0,
        }
    }

    /// Makes one attempt. See [`Transport::send`].
    pub async fn send(&self, attempt: &Attempt) -> Outcome {
        match self {
            Self::Live(transport) => transport.send(attempt).await,
            Self::Log => {
                let Attempt { event, endpoint, .. } = attempt;
                tracing::info!(
                    event = %event.id, r#type = %event.event_type, account = %event.account,
                    endpoint = %endpoint.id, replay = attempt.replay,
                    "not sent, because delivery.mode is \"log\""
                );
                taken()
            }
        }
    }

    /// Sends a notice of the pipeline to the endpoint of whoever runs it.
    pub async fn send_notice(&self, to: &Endpoint, notice: &DueNotice, pipeline: &str) -> Outcome {
        let (id, number) = (notice.id(pipeline), notice.attempts.saturating_add(1));
        match self {
            Self::Live(transport) => {
                transport.post_notice(to, id, notice.body(pipeline), number).await
            }
            Self::Log => {
                tracing::info!(
                    notice = %id, r#type = notice.kind, endpoint = notice.endpoint,
                    "not sent, because delivery.mode is \"log\""
                );
                taken()
            }
        }
    }
}

fn taken() -> Outcome {
    let answer = Answer { status: 200, retry_after: None, excerpt: String::new() };
    Outcome::new(Ok(answer), Duration::ZERO)
}
