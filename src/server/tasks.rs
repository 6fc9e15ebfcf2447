//! How the tasks of a leader are started, stopped, begun again and joined: all of them by [`Tasks`].
//!
//! Two tokens stop them. `drain` lets the dispatcher end what is in flight: with it, what would bring it new
//! work stops. The dispatcher gives it, a while after a shutdown has begun. `abort` stops all else, once the
//! dispatcher has ended or something has failed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::error::TaskError;
use super::health::Teller;
use super::stop::{Fatal, Stop};
use super::trouble::Part;

/// What stops a task, where it does not see to that itself. Whatever it is, `abort` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The moment from which a shutdown lets nothing new begin.
    Drain,
    /// The dispatcher's end, or a failure.
    Abort,
}

/// Work that begins anew when it has failed. What it must keep over a failure, the value holds.
pub(super) trait Work: Send + 'static {
    /// The task's name.
    const NAME: &'static str;
    /// What fails meanwhile.
    const PART: Part;
    /// What stops it; it is dropped then, wherever it waits.
    const UNTIL: Until;
    /// From a failure to the next beginning.
    const PAUSE: Duration;

    /// Works until something fails, and says when it does well ([`Teller::works`]).
    fn work(&mut self) -> impl Future<Output = Result<Infallible, TaskError>> + Send;
}

/// The tasks of a leader. Dropped, it ends them where they wait.
#[derive(Debug)]
pub(super) struct Tasks {
    running: JoinSet<Result<(), Stop>>,
    names: HashMap<Id, &'static str>,
    tell: Teller,
    pub(super) drain: CancellationToken,
    pub(super) abort: CancellationToken,
}

impl Tasks {
    /// None runs yet.
    pub(super) fn new(tell: Teller) -> Self {
        let (drain, abort) = (CancellationToken::new(), CancellationToken::new());
        Self { running: JoinSet::new(), names: HashMap::new(), tell, drain, abort }
    }

    /// Runs a task that ends by itself, on `drain` and `abort` too. Its error ends the pipeline.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), Stop>> + Send + 'static,
    ) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Runs work over and over until it is to stop. A failure is told; [`TaskError::Stop`] ends the
    /// pipeline.
    pub(super) fn keep<W: Work>(&mut self, mut work: W) {
        let (tell, abort) = (self.tell.clone(), self.abort.clone());
        let stop = match W::UNTIL {
            Until::Drain => self.drain.clone(),
            Until::Abort => abort.clone(),
        };
        self.spawn(W::NAME, async move {
            let work = async {
                loop {
                    match work.work().await {
                        Ok(never) => match never {},
                        Err(TaskError::Stop(stop)) => return Err(stop),
                        Err(error) => tell.fails(W::PART, Instant::now(), &error),
                    }
                    sleep(W::PAUSE).await;
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                () = abort.cancelled() => Ok(()),
                ended = work => ended,
            }
        });
    }

    /// Waits for all of them.
    ///
    /// # Errors
    /// The first failure, which has stopped the others: it is the cause, what follows from it is not.
    pub(super) async fn join(mut self) -> Result<(), Stop> {
        let mut result = Ok(());
        while let Some(ended) = self.running.join_next_with_id().await {
            let ended = match ended {
                Ok((_, ended)) => ended,
                Err(source) => {
                    let name = self.names.get(&source.id()).copied().unwrap_or("unknown");
                    Err(Fatal::Panicked { name, source }.into())
                }
            };
            if let Err(stop) = ended {
                self.abort.cancel();
                result = result.and(Err(stop));
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use walhook_core::halt::Halt;

    fn tasks() -> (Tasks, Teller) {
        let (tell, _) = Teller::new("p");
        (Tasks::new(tell.clone()), tell)
    }

    /// Fails some times, then stops the pipeline or works for ever.
    struct Fails {
        times: Arc<AtomicU32>,
        stops: bool,
    }

    impl Work for Fails {
        const NAME: &'static str = "fails";
        const PART: Part = Part::Jobs;
        const UNTIL: Until = Until::Drain;
        const PAUSE: Duration = Duration::from_millis(1);

        async fn work(&mut self) -> Result<Infallible, TaskError> {
            match self.times.fetch_add(1, Ordering::Relaxed) {
                0..3 => Err(TaskError::NoAnswer(Duration::from_secs(7))),
                _ if self.stops => Err(TaskError::Stop(Stop::Fenced)),
                _ => std::future::pending().await,
            }
        }
    }

    #[tokio::test]
    async fn work_that_fails_is_told_of_and_begun_again_until_the_drain() {
        let (mut tasks, tell) = tasks();
        let drain = tasks.drain.clone();
        let times = Arc::new(AtomicU32::new(0));
        tasks.keep(Fails { times: Arc::clone(&times), stops: false });
        while times.load(Ordering::Relaxed) < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let told = tell.health().told();
        assert_eq!(told.len(), 1);
        assert_eq!(
            (told[0].part.as_str(), told[0].error.as_str()),
            ("jobs", "no answer within 7s")
        );
        drain.cancel();
        tasks.join().await.unwrap();
    }

    #[tokio::test]
    async fn work_that_cannot_go_on_ends_every_task_with_its_reason() {
        let (mut tasks, _) = tasks();
        let abort = tasks.abort.clone();
        tasks.spawn("waits", async move {
            abort.cancelled().await;
            Err(Stop::Halted(Halt::RuleBroken("what follows".to_owned())))
        });
        // Nothing drains, and it works well: it is to stop all the same.
        tasks.keep(Fails { times: Arc::new(AtomicU32::new(3)), stops: false });
        tasks.keep(Fails { times: Arc::default(), stops: true });
        let ended = tasks.join().await;
        assert!(matches!(ended, Err(Stop::Fenced)), "{ended:?}");
    }

    #[tokio::test]
    async fn task_that_panics_is_named_and_ends_the_pipeline() {
        let (mut tasks, _) = tasks();
        let abort = tasks.abort.clone();
        tasks.spawn("waits", async move {
            abort.cancelled().await;
            Ok(())
        });
        tasks.spawn("breaks", async { panic!("on purpose") });
        let error = tasks.join().await.unwrap_err().to_string();
        assert_eq!(error, "the task \"breaks\" of the pipeline panicked");
    }
}
