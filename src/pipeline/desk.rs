//! Questions of the dispatcher that a database answers: one at a time, each until it is answered.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;

/// A question that takes longer is given up and asked again on a new connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where one kind of question is answered, over a connection of its own.
pub(super) trait Desk {
    /// What is asked.
    type Question: Send + Sync;
    /// What comes back.
    type Answer: Send;

    /// What cannot be done while there is no answer, for the log.
    const DOES: &str;

    /// Answers, on the connection that it has, or else on a new one.
    fn answer(
        &mut self,
        question: &Self::Question,
    ) -> impl Future<Output = anyhow::Result<Self::Answer>> + Send;

    /// Forgets the connection.
    fn hang_up(&mut self);
}

/// Answers until the dispatcher ends or `abort`. While the database is away, or refuses, it tries
/// again with backoff.
pub(super) async fn serve<D: Desk>(
    mut desk: D,
    mut questions: mpsc::Receiver<D::Question>,
    answers: mpsc::Sender<D::Answer>,
    abort: CancellationToken,
) {
    while let Some(question) = questions.recv().await {
        let mut backoff = Backoff::new();
        let answer = loop {
            let answered = tokio::select! {
                biased;
                () = abort.cancelled() => return,
                answered = timeout(PATIENCE, desk.answer(&question)) => answered,
            };
            let problem = match answered {
                Ok(Ok(answer)) => break answer,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("no answer within {PATIENCE:?}"),
            };
            desk.hang_up();
            tracing::warn!(%problem, "cannot {}; trying again", D::DOES);
            tokio::select! {
                () = abort.cancelled() => return,
                () = backoff.wait() => {}
            }
        };
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}
