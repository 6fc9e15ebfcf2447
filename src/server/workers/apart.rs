//! What keeps a worker and leaders apart that hear of each other, for `/readyz`, `/troubles` and the log.

use std::time::Duration;

use tokio::time::Instant;

use super::serve::Serves;
use super::{SHARED_FIX, shared};
use crate::server::health::{LEADER_SILENT, NO_LEASE, Teller};
use crate::server::trouble::Part;
use walhook_bus::State;
use walhook_fleet::subjects::Subjects;

/// A leader that is not served was heard within this time: it speaks twice a second.
const ANOTHER_WITHIN: Duration = Duration::from_secs(5);

/// What a worker hears.
pub(super) struct Heard {
    /// How long ago its leader was.
    pub(super) leader: Option<Duration>,
    /// How long ago the leader of another pipeline was.
    pub(super) another: Option<Duration>,
    /// How long ago one of a lower epoch was that it did not take.
    pub(super) lower: Option<Duration>,
    /// Whether it has a lease.
    pub(super) has_lease: bool,
}

/// What keeps it from serving, for `/readyz`.
pub(super) struct Kept {
    /// Since when a leader is heard that grants no lease, and why.
    pub(super) no_lease: Option<(Instant, String)>,
    /// Why a leader that is heard is not served.
    pub(super) ignored: Option<String>,
}

/// What to do about a leader of a lower epoch.
const LOWER_FIX: &str = "start this worker again, and it serves that leader at once; else it does when the one before was not heard for \
     a minute";

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

    /// Tells how things stand; `None`: this worker is none that waits for a lease.
    pub(super) fn report(&mut self, now: Instant, heard: Option<Heard>, bus: &State) -> Kept {
        let nothing = Heard { leader: None, another: None, lower: None, has_lease: false };
        let heard = heard.unwrap_or(nothing);
        let leads = heard.leader.is_some_and(|ago| ago < LEADER_SILENT);
        if leads && !heard.has_lease {
            self.no_lease_since.get_or_insert(now);
        } else {
            self.no_lease_since = None;
        }
        let no_lease = self.no_lease_since.map(|since| (since, why(bus)));
        let lasting = no_lease.as_ref().filter(|(since, _)| now.duration_since(*since) >= NO_LEASE);
        let is_heard = |ago: Option<Duration>| ago.is_some_and(|ago| ago < ANOTHER_WITHIN);
        let (mut ignored, mut fix) = (None, "");
        if is_heard(heard.another) {
            ignored = Some(format!("{}; its leader is not served", shared(&self.subject)));
            fix = SHARED_FIX;
        } else if is_heard(heard.lower) && !leads {
            // One that was only stopped, and comes back, finds out by itself that it was followed.
            ignored = Some(
                "a leader of a lower epoch than the one before is heard, and not served yet: the state tables were \
                 made anew, or restored from a backup"
                    .to_owned(),
            );
            fix = LOWER_FIX;
        }
        let trouble = if let Some(error) = &ignored {
            Some((error.clone(), fix.to_owned()))
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
        Kept { no_lease, ignored }
    }

    fn permissions(&self) -> String {
        let subjects = &self.subjects;
        let (publishes, hears) = subjects.of_worker();
        format!(
            "let the workers' user of the bus publish to {} and subscribe to {}, and the leader's publish to \
             {subjects}.w.>; `walhook check --role worker` and `walhook check` say what is missing; where \
             nothing is, the way from NATS is too slow for the requests: docs/scale-out.md says what it needs",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn leader_of_a_lower_epoch_is_told_once_the_one_before_is_silent() {
        let (tell, listen) = Teller::new("p");
        let subjects = Subjects::new("walhook", "p").unwrap();
        let subject = "walhook".to_owned();
        let mut apart = Apart { tell, subject, subjects, since: None, no_lease_since: None };
        let bus = State {
            connected: true,
            since: Instant::now(),
            max_payload: 1,
            connections: 1,
            dropped: 0,
            trouble: None,
            refused: None,
        };
        let mut said = |leader, lower| {
            let heard = Heard { leader: Some(leader), another: None, lower, has_lease: false };
            let ignored = apart.report(Instant::now(), Some(heard), &bus).ignored;
            let told = listen.borrow().troubles.get(&Part::Bus).map(|it| it.error.clone());
            assert_eq!(ignored, told);
            told
        };
        let (just_now, long_ago) = (Duration::ZERO, LEADER_SILENT);
        // One that was stopped and comes back is none.
        assert_eq!(said(just_now, Some(just_now)), None);
        let told = said(long_ago, Some(just_now)).unwrap();
        assert!(told.contains("a leader of a lower epoch than the one before is heard"), "{told}");
        assert_eq!(said(long_ago, Some(ANOTHER_WITHIN)), None, "it is not heard any more");
        assert_eq!(said(just_now, None), None);
    }
}
