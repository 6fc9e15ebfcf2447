//! The task that makes outcomes durable: one state transaction at a time, tried until it succeeds.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::stop::{Fatal, Stop};
use crate::server::health::Teller;
use crate::server::pace::LinePace;
use crate::server::trouble::Part;
use walhook_core::persist::{
    DeadLetter, LETTERS_MAX, PersistBatch, Persisted, Purged, QueueId, UnroutedPurged,
};
use walhook_core::tick::Tick;
use walhook_process::failpoint::Failpoint;
use walhook_state::{Class, StateError, StateStore, Told};

/// What the dispatcher asks.
pub(super) struct PersistRequest {
    pub(super) batch: Box<PersistBatch>,
}

/// One that takes longer is told of, and waited for.
const PERSIST_LATE: Duration = Duration::from_secs(8);

/// How often `walhook status` is shown what fails, at most.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Until it is shown again, where it could not be.
const SHOW_AGAIN: Duration = Duration::from_secs(10);

/// To show it takes no longer.
const SHOW_TIMEOUT: Duration = Duration::from_secs(2);

/// A state transaction that takes longer is given up and tried again on a new connection.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Stores batch after batch, until the dispatcher ends or `abort`.
///
/// While the state database is away it tries the same batch again with backoff: nothing is
/// acknowledged meanwhile, and the dispatcher sends nothing. Likewise where it refuses every value (by a
/// constraint or trigger that somebody put on our tables, a right that was revoked, a full disk): rows from
/// outside must not end the process, and what a person did, a person can undo. Meanwhile `tell` is told. Of a full disk
/// the delivery log makes room first.
///
/// # Errors
/// [`Stop::Fenced`] when another leader has taken over; [`Stop::WentBack`] when the tables are older than they were;
/// [`Stop::Failed`] when what stands
/// there is not what this program wrote.
pub(super) async fn write(
    mut store: StateStore,
    mut requests: mpsc::Receiver<PersistRequest>,
    persisted: mpsc::Sender<Persisted>,
    tell: Teller,
    abort: CancellationToken,
) -> Result<(), Stop> {
    let mut letters = LetterLog::new();
    let mut shown = Shown::default();
    loop {
        let request = tokio::select! {
            request = requests.recv() => request,
            () = sleep(SHOW_EVERY) => {
                look_again(&mut store, &abort).await?;
                shown.update(&mut store, &tell).await;
                continue;
            }
        };
        let Some(PersistRequest { batch }) = request else { return Ok(()) };
        let since = Instant::now();
        let mut backoff = Backoff::new();
        Failpoint::Storing.pass();
        let done = loop {
            let stored = tokio::select! {
                biased;
                () = abort.cancelled() => return Ok(()),
                stored = persist(&mut store, &batch, &tell, since) => stored,
            };
            let problem = match stored {
                Ok(Ok(done)) => break done,
                Ok(Err(error)) => match error.class() {
                    Class::Fenced => return Err(Stop::Fenced),
                    Class::WentBack => return Err(Stop::WentBack),
                    // Nothing is sent while all else lasts, and a person or time fixes it.
                    Class::Defect | Class::SchemaTooNew => {
                        return Err(Fatal::NotStored(error).into());
                    }
                    Class::Fixable => Some(error),
                },
                Err(_) => None,
            };
            if problem.as_ref().is_some_and(StateError::is_disk_full) {
                make_room(&mut store, &abort).await;
            }
            tell_of(&tell, since, problem.as_ref());
            let reconnected = reconnect(&mut store, &tell, since, &mut backoff);
            tokio::select! {
                () = abort.cancelled() => return Ok(()),
                () = reconnected => {}
            }
        };
        report(&done);
        match store.log_refused() {
            Some(error) => tell.fails(Part::DeliveryLog, since, error),
            None if !batch.log.is_empty() => tell.works(Part::DeliveryLog),
            None => {}
        }
        letters.log(&store, &batch).await;
        if !batch.deferred.is_empty() {
            Failpoint::DeferredCommitted.pass();
        }
        if !batch.dead_letters.is_empty() || !batch.died.is_empty() {
            Failpoint::DeadLetterCommitted.pass();
        }
        let purges = batch.purges.len() + batch.letter_purges.len() + batch.unrouted_purges.len();
        if purges > 0 {
            Failpoint::GapCommitted.pass();
        }
        Failpoint::CheckpointCommitted.pass();
        tell.checkpoint_written();
        tell.works(Part::State);
        if persisted.send(done).await.is_err() {
            return Ok(());
        }
        if store.log_lacks_room() {
            make_room(&mut store, &abort).await;
        }
        shown.update(&mut store, &tell).await;
    }
}

/// Waits for the next attempt, and opens a session for it. Without one nothing is asked: the old one would say no more
/// than that it is closed, and why none is opened would not be told.
async fn reconnect(store: &mut StateStore, tell: &Teller, since: Instant, backoff: &mut Backoff) {
    loop {
        backoff.wait().await;
        match store.reconnect().await {
            Ok(()) => return,
            Err(error) => tell.fails(Part::State, since, &error),
        }
    }
}

/// After a lost session, while nothing is to be stored: whether another one finds the tables as they were. What does not
/// answer is asked again, and told when something is to be stored.
async fn look_again(store: &mut StateStore, abort: &CancellationToken) -> Result<(), Stop> {
    if !store.is_closed() {
        return Ok(());
    }
    let look = async {
        store.reconnect().await?;
        store.check_last().await
    };
    let looked = tokio::select! {
        () = abort.cancelled() => return Ok(()),
        looked = timeout(PERSIST_TIMEOUT, look) => looked,
    };
    match looked.map(|looked| looked.map_err(|error| error.class())) {
        Ok(Err(Class::Fenced)) => Err(Stop::Fenced),
        Ok(Err(Class::WentBack)) => Err(Stop::WentBack),
        Ok(Ok(()) | Err(Class::Defect | Class::SchemaTooNew | Class::Fixable)) | Err(_) => Ok(()),
    }
}

/// Stores a batch. `Err`: there was no answer in time.
async fn persist(
    store: &mut StateStore,
    batch: &PersistBatch,
    tell: &Teller,
    since: Instant,
) -> Result<Result<Persisted, StateError>, Elapsed> {
    let mut stored = pin!(timeout(PERSIST_TIMEOUT, store.persist(batch)));
    if let Ok(stored) = timeout(PERSIST_LATE, &mut stored).await {
        return stored;
    }
    tell_unanswered(tell, since, PERSIST_LATE);
    stored.await
}

/// A state transaction failed; `None`: it was not answered in time.
fn tell_of(tell: &Teller, since: Instant, problem: Option<&StateError>) {
    match problem {
        Some(error) => tell.fails(Part::State, since, error),
        None => tell_unanswered(tell, since, PERSIST_TIMEOUT),
    }
}

fn tell_unanswered(tell: &Teller, since: Instant, within: Duration) {
    tell.fails_with(
        Part::State,
        since,
        &format!("no answer within {within:?}"),
        "find out what keeps the state database: a lock, its disk, the network",
    );
}

/// The disk is full: the older half of the delivery log goes, before all else waits for a person. Ends at once when
/// `abort` says so.
async fn make_room(store: &mut StateStore, abort: &CancellationToken) {
    const FULL: &str = "the state database's disk is full";
    let yielded = tokio::select! {
        () = abort.cancelled() => return,
        yielded = timeout(PERSIST_TIMEOUT, store.yield_deliveries()) => yielded,
    };
    match yielded {
        Ok(Ok(0)) => {}
        Ok(Ok(bytes)) => {
            tracing::warn!(bytes, "{FULL}: removed the older half of the delivery log");
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "{FULL}, and nothing of the delivery log can be removed");
        }
        Err(_) => {
            tracing::warn!(
                "{FULL}, and it takes longer than {PERSIST_TIMEOUT:?} to remove some of the delivery log"
            );
            // What was asked is under way: the next state transaction does not wait for it.
            let _is_tried_again = store.reconnect().await;
        }
    }
}

/// What `walhook status` is shown of what fails: by this task, for it has the one session that must be
/// there in any case.
#[derive(Default)]
struct Shown {
    /// What stands in the table; at first that is not known.
    stored: Option<Vec<Told>>,
    next: Option<Instant>,
}

impl Shown {
    /// Stores what fails now, where the table says something else. What does not go in is tried again.
    async fn update(&mut self, store: &mut StateStore, tell: &Teller) {
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        self.next = Some(now + SHOW_EVERY);
        let troubles = tell.health().told();
        if self.stored.as_ref() == Some(&troubles) {
            return;
        }
        match timeout(SHOW_TIMEOUT, store.store_troubles(&troubles)).await {
            Ok(Ok(())) => {
                self.stored = Some(troubles);
                return;
            }
            Ok(Err(error)) => tracing::debug!(%error, "cannot store what fails"),
            Err(_) => {
                tracing::debug!("cannot store what fails: no answer");
                // What was asked is under way: the next state transaction does not wait for it.
                let _is_tried_again = store.reconnect().await;
            }
        }
        self.next = Some(now + SHOW_AGAIN);
    }
}

/// What is lost to a bound of the dead letters is said aloud.
fn report(Persisted { letters_purged, beyond, unrouted_purged, .. }: &Persisted) {
    for UnroutedPurged { account, rows, .. } in
        unrouted_purged.iter().filter(|purged| purged.rows > 0)
    {
        tracing::error!(
            %account, rows,
            "events that cannot be routed take a quarter of state.max_size, and the account has the most: \
             they are counted in one gap; `walhook gaps list` shows the replay that sends them"
        );
    }
    for QueueId { account, endpoint } in beyond {
        tracing::error!(
            %endpoint, %account,
            "{LETTERS_MAX} dead letters stand there for it: those that follow are counted in one gap; \
             `walhook gaps list` shows the replay that sends them"
        );
    }
    for Purged { queue: QueueId { account, endpoint }, rows, .. } in letters_purged {
        if *rows > 0 {
            tracing::error!(
                %endpoint, %account, rows,
                "state.max_size is reached, and it holds the most: its dead letters are counted in one gap; \
                 `walhook gaps list` shows the replay that sends them"
            );
        }
    }
}

/// A line for each dead letter, at a bounded rate.
struct LetterLog {
    pace: LinePace,
    began: Instant,
}

/// To learn the ids of a few letters may take so long.
const IDS_TIMEOUT: Duration = Duration::from_secs(1);

impl LetterLog {
    fn new() -> Self {
        Self { pace: LinePace::default(), began: Instant::now() }
    }

    /// Logs those that the batch has stored.
    async fn log(&mut self, store: &StateStore, batch: &PersistBatch) {
        let now = Tick(0) + self.began.elapsed();
        let died = batch.died.iter().map(|(_, letter)| letter);
        let letters = batch.dead_letters.iter().chain(died);
        let logged: Vec<&DeadLetter> = letters.filter(|_| self.pace.admits(now)).collect();
        if !logged.is_empty() {
            let ids = timeout(IDS_TIMEOUT, store.letter_ids(&logged)).await;
            let ids = ids.ok().and_then(Result::ok).unwrap_or_default();
            for (n, letter) in logged.into_iter().enumerate() {
                let DeadLetter { event, endpoint, reason, detail, attempts, replay, .. } = letter;
                let detail: String = detail.chars().take(240).collect();
                tracing::warn!(
                    dead_letter = ids.get(n).copied().flatten(),
                    endpoint = %endpoint.as_deref().unwrap_or("none"), account = %event.account,
                    event = %event.id, reason = reason.as_str(), attempts, replay = replay.map(|replay| replay.0), %detail,
                    "a delivery is a dead letter; `walhook dead-letters show` shows one, `retry` sends it again"
                );
            }
        }
        if let Some(more) = self.pace.take_withheld(now) {
            tracing::warn!(
                more,
                "and so many more dead letters; `walhook dead-letters list` shows them"
            );
        }
    }
}
