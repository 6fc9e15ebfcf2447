//! What keeps a worker and leaders apart that hear of each other, for `/readyz`, `/troubles` and the log.

use std::time::Duration;

use tokio::time::Instant;

use super::serve::Serves;
use super::{SHARED_FIX, shared};
use crate::server::health::{LEADER_SILENT, NO_LEASE, Teller};
use crate::server::trouble::Part;
use walhook_bus::State;
use walhook_fleet::subjects::Subjects;

/// A pipeline that is not served was heard within this time: its leader speaks twice a second.
const ANOTHER_WITHIN: Duration = Duration::from_secs(5);

/// What a worker hears.
pub(super) struct Heard {
    /// How long ago its leader was.
    pub(super) leader: Option<Duration>,
    /// How long ago the leader of another pipeline was.
    pub(super) another: Option<Duration>,
    /// Whether it has a lease.
    pub(super) has_lease: bool,
}

/// See the module's documentation.
pub(super) struct Apart {
    tell: Teller,
    subject: String,
    subjects: Subjects,
    /// Since when something is wrong, and since when a leader is heard and there is no lease.
    since: Option<Instant>,
    no_lease_since: Option<Instant>,
}

impl Apart {
    pub(super) fn new(serves: &Serves) -> Self {
        Self {
            tell: serves.tell.clone(),
            subject: serves.subject.clone(),
            subjects: serves.link.subjects.clone(),
            since: None,
            no_lease_since: None,
        }
    }

    /// Tells how things stand; `None`: this worker is none that waits for a lease. Returns since when a leader is heard
    /// that grants none, and why.
    pub(super) fn report(
        &mut self,
        now: Instant,
        heard: Option<Heard>,
        bus: &State,
    ) -> Option<(Instant, String)> {
        let heard = heard.unwrap_or(Heard { leader: None, another: None, has_lease: false });
        let leads = heard.leader.is_some_and(|ago| ago < LEADER_SILENT);
        if leads && !heard.has_lease {
            self.no_lease_since.get_or_insert(now);
        } else {
            self.no_lease_since = None;
        }
        let no_lease = self.no_lease_since.map(|since| (since, why(bus)));
        let lasting = no_lease.as_ref().filter(|(since, _)| now.duration_since(*since) >= NO_LEASE);
        let trouble = if heard.another.is_some_and(|ago| ago < ANOTHER_WITHIN) {
            let error = format!("{}; its leader is not served", shared(&self.subject));
            Some((error, SHARED_FIX.to_owned()))
        } else {
            let error = |why| format!("a leader is heard, and grants no lease: {why}");
            lasting.map(|(_, why)| (error(why), self.permissions()))
        };
        if let Some((error, fix)) = trouble {
            let since = *self.since.get_or_insert(lasting.map_or(now, |(since, _)| *since));
            self.tell.fails_with(Part::Bus, since, &error, &fix);
        } else if self.since.take().is_some() {
            self.tell.works(Part::Bus);
        }
        no_lease
    }

    fn permissions(&self) -> String {
        let subjects = &self.subjects;
        let (publishes, hears) = subjects.of_worker();
        format!(
            "let the workers' user of the bus publish to {} and subscribe to {}, and the leader's publish to \
             {subjects}.w.>; `walhook check --role worker` and `walhook check` say what is missing",
            publishes.join(", "),
            hears.join(", ")
        )
    }
}

/// Why a leader that is heard grants no lease, as far as it can be seen from here.
fn why(bus: &State) -> String {
    match &bus.refused {
        Some(refused) => format!("the bus refuses us something: {refused}"),
        None => "what one says does not reach the other".to_owned(),
    }
}
