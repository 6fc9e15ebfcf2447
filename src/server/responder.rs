//! Questions of the dispatcher that a database answers: one at a time, each until it is answered.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::error::TaskError;
use crate::server::health::Teller;
use crate::server::trouble::{Part, SLOW_FIX};

/// A question that takes longer is a trouble, although it may yet be answered.
const SLOW: Duration = Duration::from_secs(8);

/// What is told of one that does.
const SLOW_SAYS: &str = "the database has not answered for 8 s or more";

/// How often an idle responder looks whether it could answer.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// And how often while it could not.
const PROBE_FAILING: Duration = Duration::from_secs(2);

/// Where one kind of question is answered, over a connection of its own.
pub(super) trait Responder: Send + 'static {
    /// What is asked.
    type Question: Send + Sync;
    /// What comes back.
    type Answer: Send;

    /// A question that takes longer is given up and asked again on a new connection.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// What fails while there is no answer.
    fn part(&self) -> Part;

    /// Answers, on the connection that it has, or else on a new one.
    fn answer(
        &mut self,
        question: &Self::Question,
    ) -> impl Future<Output = Result<Self::Answer, TaskError>> + Send;

    /// Whether it could answer now, as far as a cheap question tells.
    fn probe(&mut self) -> impl Future<Output = Result<(), TaskError>> + Send;

    /// Forgets the connection, where it is of no more use after a failure. `hung`: no answer came.
    fn hang_up(&mut self, hung: bool);
}

/// Answers until the dispatcher ends or `abort`. While the database is away, or refuses, it says so to
/// `tell` and tries again with backoff. While nobody asks, it looks now and then whether it could answer.
pub(super) async fn serve<R: Responder>(
    mut responder: R,
    mut questions: mpsc::Receiver<R::Question>,
    answers: mpsc::Sender<R::Answer>,
    tell: Teller,
    abort: CancellationToken,
) {
    let part = responder.part();
    let mut is_failing = false;
    loop {
        let question = tokio::select! {
            biased;
            () = abort.cancelled() => return,
            question = questions.recv() => match question {
                Some(question) => Some(question),
                None => return,
            },
            () = sleep(if is_failing { PROBE_FAILING } else { PROBE_EVERY }) => None,
        };
        let mut backoff = Backoff::new();
        let mut since = Instant::now();
        loop {
            let asked = async {
                match &question {
                    Some(question) => responder.answer(question).await.map(Some),
                    None => responder.probe().await.map(|()| None),
                }
            };
            let answered = tokio::select! {
                biased;
                () = abort.cancelled() => return,
                answered = timeout(R::PATIENCE, in_time(asked, &tell, part, since)) => answered,
            };
            let (hung, failed) = match answered {
                Ok(Ok(answer)) => {
                    tell.works(part);
                    is_failing = false;
                    if let Some(answer) = answer
                        && answers.send(answer).await.is_err()
                    {
                        return;
                    }
                    break;
                }
                Ok(Err(error)) => (false, Some(error)),
                Err(_) => (true, None),
            };
            match failed {
                Some(error) => tell.fails(part, since, &error),
                None => tell.fails_with(part, since, SLOW_SAYS, SLOW_FIX),
            }
            responder.hang_up(hung);
            is_failing = true;
            if question.is_none() {
                break;
            }
            tokio::select! {
                () = abort.cancelled() => return,
                () = backoff.wait() => {}
            }
            since = Instant::now();
        }
    }
}

/// The answer; when it takes long, that is told meanwhile.
async fn in_time<T>(
    answer: impl Future<Output = T>,
    tell: &Teller,
    part: Part,
    since: Instant,
) -> T {
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        () = sleep_until(since + SLOW) => {}
    }
    tell.fails_with(part, since, SLOW_SAYS, SLOW_FIX);
    answer.await
}
