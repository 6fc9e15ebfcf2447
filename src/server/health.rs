//! What an instance says of itself: its role, what moved last, and what is wrong.
//!
//! The pipeline's tasks tell; the admin server, the metrics and the writer (for `walhook status`) listen.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::stop::Stop;
use super::trouble::{Instance, NAMES_FIX, PASSING, PROXY_FIX, Part, Trouble};
use super::work::Shown;
use walhook_core::event::rfc3339;
use walhook_postgres::fix::Failure;
use walhook_process::clock::unix_us;
use walhook_state::Told;

/// A leader whose stream has been silent for this long is not ready. The server speaks at least
/// every 10 s, because status updates ask it to.
pub const STREAM_SILENT: Duration = Duration::from_secs(30);

/// A worker without a lease that has not heard a leader for so long is not ready. Leaders speak twice a second.
pub const LEADER_SILENT: Duration = Duration::from_secs(10);

/// A worker that hears a leader and has had no lease for so long is not ready. It is granted within a moment.
pub const NO_LEASE: Duration = Duration::from_secs(10);

/// A leader whose checkpoint is this old is not ready. It is written every 10 s even when idle.
pub const CHECKPOINT_OLD: Duration = Duration::from_secs(30);

/// How often it is looked at whether the checkpoint is.
const CHECKPOINT_LOOK: Duration = Duration::from_secs(5);

/// What is said of one that nobody writes.
const CHECKPOINT_LATE: &str =
    "the checkpoint was not written for 30 s or more, and no state transaction says why";

/// What to do about it.
const CHECKPOINT_FIX: &str = "see whether this process gets CPU and memory, and whether its disk answers; if nothing \
                              moves, restart it: nothing is lost, and what was not stored is sent again";

/// Characters of an error that are kept.
const ERROR_MAX: usize = 1_000;

/// How often the log repeats what still fails.
const REPEAT: Duration = Duration::from_secs(60);

/// So long the log says nothing of what fails beside the deliveries: a server that starts again is
/// trouble enough for one line.
const MINOR: Duration = Duration::from_secs(10);

/// What an instance is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Not yet connected.
    Starting,
    /// Waits for the slot, which another instance holds.
    Standby,
    /// Holds the slot.
    Leader,
    /// Sends for a leader, and never leads.
    Worker,
    /// Stopped to protect data, for this reason.
    Halted(String),
}

/// How a process serves that sends for a leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serving {
    /// When a leader was last heard.
    pub leader_heard_at: Option<Instant>,
    /// Until when it may begin requests.
    pub lease_until: Option<Instant>,
    /// Since when a leader is heard, and there is no lease; and why, as far as the bus says.
    pub no_lease: Option<(Instant, String)>,
    /// Why a leader that may be there is not served, as far as that is known.
    pub ignored: Option<String>,
    /// Why the leader has no use for it, where it said so.
    pub refused: Option<String>,
    /// Since when the bus is away, while it is, and what is wrong with it.
    pub bus_away: Option<(Instant, String)>,
    /// Whether it takes no new requests, for it is to end.
    pub draining: bool,
}

impl Serving {
    /// Why it serves nobody, one reason a line.
    fn reasons(&self, now: Instant) -> Vec<String> {
        if self.draining {
            return vec!["draining: it ends its requests and takes no new ones".to_owned()];
        }
        if let Some(refused) = &self.refused {
            return vec![format!("the leader refuses it: {refused}")];
        }
        if let Some((since, why)) = &self.no_lease
            && now.duration_since(*since) >= NO_LEASE
        {
            let seconds = now.duration_since(*since).as_secs();
            return vec![format!(
                "a leader is heard, and for {seconds} s it grants no lease: {why}"
            )];
        }
        let heard = self.leader_heard_at.map(|at| now.duration_since(at));
        if self.lease_until.is_some_and(|until| now < until)
            || heard.is_some_and(|age| age < LEADER_SILENT)
        {
            return Vec::new();
        }
        let silent = match heard {
            None => "no leader was heard yet".to_owned(),
            Some(age) => format!("a leader was last heard {} s ago", age.as_secs()),
        };
        let away = self.bus_away.iter().map(|(since, why)| {
            let seconds = now.saturating_duration_since(*since).as_secs();
            format!("for {seconds} s the bus is away: {why}")
        });
        std::iter::once(silent).chain(self.ignored.clone()).chain(away).collect()
    }
}

/// What the pipeline last said of itself.
#[derive(Debug, Clone)]
pub struct Health {
    /// The slot's name.
    pub pipeline: String,
    /// What it is doing.
    pub role: Role,
    /// When the server was last heard on the replication connection.
    pub stream_moving_at: Option<Instant>,
    /// When the checkpoint was last written.
    pub checkpoint_written_at: Option<Instant>,
    /// How it sends for a leader, where it does.
    pub serving: Serving,
    /// What fails now.
    pub troubles: BTreeMap<Part, Trouble>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            pipeline: String::new(),
            role: Role::Starting,
            stream_moving_at: None,
            checkpoint_written_at: None,
            serving: Serving::default(),
            troubles: BTreeMap::new(),
        }
    }
}

impl Health {
    /// Whether the instance does its part, as seen at `now`; if not, why.
    ///
    /// # Errors
    /// The reasons, one a line, for a person.
    pub fn readiness(&self, now: Instant) -> Result<(), String> {
        let mut reasons: Vec<String> = match &self.role {
            Role::Starting => vec!["starting".to_owned()],
            Role::Standby => Vec::new(),
            Role::Worker => self.serving.reasons(now),
            Role::Halted(reason) => vec![format!("halted: {reason}")],
            Role::Leader => {
                let late = |what: &str, at: Option<Instant>, bound: Duration| match at {
                    None => Some(format!("{what}: not yet")),
                    Some(at) if now.duration_since(at) >= bound => {
                        Some(format!("{what}: last {} s ago", now.duration_since(at).as_secs()))
                    }
                    Some(_) => None,
                };
                [
                    late("the stream moved", self.stream_moving_at, STREAM_SILENT),
                    late("the checkpoint was written", self.checkpoint_written_at, CHECKPOINT_OLD),
                ]
                .into_iter()
                .flatten()
                .collect()
            }
        };
        let lasting = self.troubles.iter().filter(|(part, trouble)| {
            part.stops_delivery() && now.duration_since(trouble.since) >= PASSING
        });
        reasons.extend(lasting.map(|(part, trouble)| trouble.to_line(*part, now)));
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
    }

    /// What the instance says to a `status` on the same machine.
    #[must_use]
    pub fn instance(&self) -> Instance {
        let role = match self.role {
            Role::Starting => "starting",
            Role::Standby => "standby",
            Role::Leader => "leader",
            Role::Worker => "worker",
            Role::Halted(_) => "halted",
        };
        let (pipeline, role) = (self.pipeline.clone(), role.to_owned());
        Instance { pipeline, role, troubles: self.told() }
    }

    /// What fails now.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        let tell = |(part, trouble): (&Part, &Trouble)| Told {
            part: part.as_str().to_owned(),
            says: part.says().to_owned(),
            since: rfc3339(trouble.since_us),
            error: trouble.error.clone(),
            fix: trouble.fix.clone(),
        };
        self.troubles.iter().map(tell).collect()
    }
}

/// Where the pipeline's tasks say how they fare. Cheap to clone, and to call while all is well.
#[derive(Debug, Clone)]
pub struct Teller {
    health: Arc<watch::Sender<Health>>,
    work: Shown,
}

impl Teller {
    /// The two ends, for the pipeline of this name.
    #[must_use]
    pub fn new(pipeline: &str) -> (Self, watch::Receiver<Health>) {
        let health = Health { pipeline: pipeline.to_owned(), ..Health::default() };
        let (tell, listen) = watch::channel(health);
        (Self { health: Arc::new(tell), work: Shown::default() }, listen)
    }

    /// How things stand.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// What the leader has to do now, where this process leads.
    #[must_use]
    pub fn work(&self) -> Shown {
        self.work.clone()
    }

    /// What the instance does from now on. A leader starts anew, with nothing wrong: to take the lease it
    /// wrote to the state database and read the stream's first answer.
    pub fn set_role(&self, role: Role) {
        self.work.clear();
        self.health.send_modify(|health| {
            if role == Role::Leader {
                let now = Some(Instant::now());
                health.stream_moving_at = now;
                health.checkpoint_written_at = now;
            }
            health.role = role;
            health.troubles.clear();
        });
    }

    /// How it sends for a leader from now on.
    pub fn serves(&self, serving: Serving) {
        self.health.send_if_modified(|health| {
            let is_new = health.serving != serving;
            health.serving = serving;
            is_new
        });
    }

    /// The server was heard on the replication connection.
    pub fn stream_moved(&self) {
        self.health.send_modify(|health| health.stream_moving_at = Some(Instant::now()));
    }

    /// The replication connection ended.
    pub fn stream_lost(&self) {
        self.health.send_modify(|health| health.stream_moving_at = None);
    }

    /// The checkpoint is stored.
    pub fn checkpoint_written(&self) {
        self.health.send_modify(|health| health.checkpoint_written_at = Some(Instant::now()));
    }

    /// Tells of a checkpoint that has become old at `now` without a word of the writer's.
    fn look_at_checkpoint(&self, now: Instant) {
        let health = self.health();
        let Some(at) = health.checkpoint_written_at.filter(|_| health.role == Role::Leader) else {
            return;
        };
        let writer_says = |trouble: &Trouble| trouble.error != CHECKPOINT_LATE;
        if now.duration_since(at) >= CHECKPOINT_OLD
            && !health.troubles.get(&Part::State).is_some_and(writer_says)
        {
            self.fails_with(Part::State, at, CHECKPOINT_LATE, CHECKPOINT_FIX);
        }
    }

    /// `part` fails, and has done so since `since` at the latest. The log is told when it begins, and once
    /// a minute while it lasts.
    pub fn fails(&self, part: Part, since: Instant, error: &impl Failure) {
        self.fails_with(part, since, &error.line(), &error.fix());
    }

    /// The same, where what fails is no error of a database.
    pub fn fails_with(&self, part: Part, since: Instant, error: &str, fix: &str) {
        let now = Instant::now();
        self.health.send_modify(|health| {
            let trouble = health.troubles.entry(part).or_insert_with(|| {
                let age = i64::try_from(now.duration_since(since).as_micros()).unwrap_or(0);
                let since_us = unix_us().saturating_sub(age);
                Trouble { since, since_us, error: String::new(), fix: String::new(), told: None }
            });
            trouble.error = clipped(error);
            fix.clone_into(&mut trouble.fix);
            let (lasts, problem) = (now.duration_since(trouble.since), &trouble.error);
            let seconds = lasts.as_secs();
            match trouble.told {
                None if part.stops_delivery() || lasts >= MINOR => {
                    trouble.told = Some(now);
                    tracing::warn!(%problem, fix, "{}; trying again", part.says());
                }
                Some(at) if now.duration_since(at) >= REPEAT => {
                    trouble.told = Some(now);
                    tracing::warn!(%problem, fix, seconds, "still: {}", part.says());
                }
                _ => tracing::debug!(%problem, seconds, "still: {}", part.says()),
            }
        });
    }

    /// How `egress.proxy` fares: since when it fails and why, or nothing where it does not.
    pub fn proxy(&self, trouble: Option<(Instant, &str)>) {
        match trouble {
            Some((since, reason)) => self.fails_with(Part::Proxy, since, reason, PROXY_FIX),
            None => self.works(Part::Proxy),
        }
    }

    /// How the name servers fare: since when they answer for no name and why, or nothing where they do.
    pub fn names(&self, trouble: Option<(Instant, &str)>) {
        match trouble {
            Some((since, reason)) => self.fails_with(Part::Names, since, reason, NAMES_FIX),
            None => self.works(Part::Names),
        }
    }

    /// `part` works.
    pub fn works(&self, part: Part) {
        self.ends_where(part, |_| true);
    }

    /// `part` does not fail with this error any more. It may with another.
    pub fn ended(&self, part: Part, error: &str) {
        self.ends_where(part, |trouble| trouble.error == clipped(error));
    }

    fn ends_where(&self, part: Part, ends: impl FnOnce(&Trouble) -> bool) {
        self.health.send_if_modified(|health| {
            if !health.troubles.get(&part).is_some_and(ends) {
                return false;
            }
            let Some(trouble) = health.troubles.remove(&part) else { return false };
            let seconds = trouble.since.elapsed().as_secs();
            if trouble.told.is_some() {
                tracing::info!(part = part.as_str(), seconds, "works again: {}", part.works());
            }
            true
        });
    }
}

/// As much of an error as is kept.
fn clipped(error: &str) -> String {
    error.chars().take(ERROR_MAX).collect()
}

/// Watches over the checkpoint of a leader until `abort`: whatever keeps it from being written is told as a trouble of
/// [`Part::State`], also where nobody asks for it.
pub(super) async fn watch_checkpoint(tell: Teller, abort: CancellationToken) -> Result<(), Stop> {
    while abort.run_until_cancelled(sleep(CHECKPOINT_LOOK)).await.is_some() {
        tell.look_at_checkpoint(Instant::now());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoint_that_nobody_writes_is_a_trouble_until_it_is_written() {
        let (tell, _listen) = Teller::new("p");
        tell.set_role(Role::Leader);
        let written_at = tell.health().checkpoint_written_at.unwrap();
        let look = |after: u64| {
            tell.look_at_checkpoint(written_at + Duration::from_secs(after));
            tell.health().troubles.get(&Part::State).cloned()
        };
        assert_eq!(look(29), None);
        let trouble = look(30).unwrap();
        assert_eq!((trouble.since, &*trouble.error), (written_at, CHECKPOINT_LATE));
        assert!(!trouble.fix.is_empty());
        tell.fails_with(Part::State, written_at, "disk full", "make room");
        assert_eq!(look(35).unwrap().error, "disk full", "the writer knows better");
        tell.checkpoint_written();
        tell.works(Part::State);
        assert_eq!(look(29), None);
        tell.set_role(Role::Standby);
        assert_eq!(look(90), None, "others have none to write");
    }

    #[test]
    fn leader_is_ready_while_its_stream_moves_and_its_checkpoint_is_written() {
        let start = Instant::now();
        let leader = Health {
            role: Role::Leader,
            stream_moving_at: Some(start),
            checkpoint_written_at: Some(start + Duration::from_secs(20)),
            ..Health::default()
        };
        assert_eq!(leader.readiness(start + Duration::from_secs(29)), Ok(()));
        let reasons = leader.readiness(start + Duration::from_secs(31)).unwrap_err();
        assert_eq!(reasons, "the stream moved: last 31 s ago");
        let reasons = leader.readiness(start + Duration::from_secs(60)).unwrap_err();
        assert!(reasons.contains("checkpoint was written: last 40 s ago"), "{reasons}");
        let new = Health { role: Role::Leader, ..Health::default() };
        assert!(new.readiness(start).unwrap_err().contains("not yet"));
    }

    #[test]
    fn worker_is_ready_with_a_lease_or_a_leader_and_not_while_it_drains() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let worker = |serving| Health { role: Role::Worker, serving, ..Health::default() };
        let why = |serving, at| worker(serving).readiness(at).unwrap_err();
        let away = Some((start, "refused".to_owned()));
        let nobody = Serving { bus_away: away, ..Serving::default() };
        let said = why(nobody, after(7));
        assert_eq!(said, "no leader was heard yet\nfor 7 s the bus is away: refused");
        let heard = Serving { leader_heard_at: Some(start), ..Serving::default() };
        assert_eq!(worker(heard.clone()).readiness(after(9)), Ok(()));
        assert_eq!(why(heard.clone(), after(10)), "a leader was last heard 10 s ago");
        let lower = "a leader of a lower epoch is heard".to_owned();
        let deaf = Serving { ignored: Some(lower), ..heard.clone() };
        let said = why(deaf, after(10));
        assert_eq!(said, "a leader was last heard 10 s ago\na leader of a lower epoch is heard");
        let alone = Serving {
            leader_heard_at: Some(after(10)),
            no_lease: Some((start, "the bus refuses us something".to_owned())),
            ..Serving::default()
        };
        assert_eq!(worker(alone.clone()).readiness(after(9)), Ok(()));
        let said = why(alone, after(10));
        assert!(said.contains("grants no lease: the bus refuses us something"), "{said}");
        let leased = Serving { lease_until: Some(after(60)), ..heard };
        assert_eq!(worker(leased.clone()).readiness(after(59)), Ok(()));
        let refused = Serving { refused: Some("its [egress] differs".into()), ..leased.clone() };
        assert_eq!(why(refused, start), "the leader refuses it: its [egress] differs");
        let draining = Serving { draining: true, ..leased };
        assert!(why(draining, start).starts_with("draining"));
    }

    #[test]
    fn instance_is_not_ready_while_something_fails_that_stops_deliveries() {
        let (tell, listen) = Teller::new("p");
        for role in [Role::Leader, Role::Standby] {
            tell.set_role(role);
            let ready =
                |after: u64| listen.borrow().readiness(Instant::now() + Duration::from_secs(after));
            assert_eq!(ready(9), Ok(()));
            tell.fails_with(Part::ReplayWindow, Instant::now(), "no slot", "make one");
            assert_eq!(ready(9), Ok(()), "delivery goes on");
            tell.fails_with(Part::Lookups, Instant::now(), "locked", "unlock");
            tell.fails_with(Part::Lookups, Instant::now(), "still locked", "unlock it");
            assert_eq!(ready(0), Ok(()), "it may pass in a moment");
            let why = ready(9).unwrap_err();
            assert!(why.contains("still locked; fix: unlock it"), "{why}");
            let told = listen.borrow().told();
            assert_eq!(
                told.iter().map(|t| &*t.part).collect::<Vec<_>>(),
                ["lookups", "replay_window"]
            );
            tell.works(Part::Lookups);
            assert_eq!(ready(9), Ok(()));
        }
    }
}
