//! What keeps a worker from serving a leader: that it has no bus, and what keeps apart those that hear of each other. For
//! `/readyz`, `/troubles` and the log.

use std::time::Duration;

use tokio::time::Instant;

use super::serve::Serves;
use super::{SHARED_FIX, shared};
use crate::server::health::{LEADER_SILENT, NO_LEASE, Teller};
use crate::server::trouble::{PASSING, Part};
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
    /// Requests of which no leader has heard what came of them.
    pub(super) untold: u64,
}

/// What keeps it from serving, for `/readyz`.
pub(super) struct Kept {
    /// Since when a leader is heard that grants no lease, and why.
    pub(super) no_lease: Option<(Instant, String)>,
    /// Why a leader that is there is not served.
    pub(super) ignored: Option<String>,
}

/// What to do about a leader of a lower epoch.
const LOWER_FIX: &str = "start this worker again, and it serves that leader at once; else it does when the one before was not heard for \
     a minute";

/// What to do about a bus that is away.
const AWAY_FIX: &str = "start nats-server, or correct [workers] and start this worker again: `walhook check --role worker` says whether \
     the bus takes it; files of secrets are read at the start";

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
        let Some(heard) = heard else {
            // It comes to its end, and a bus that is away is so meanwhile.
            if bus.connected {
                self.works();
            }
            self.no_lease_since = None;
            return Kept { no_lease: None, ignored: None };
        };
        if let Some(error) = away(now, &heard, bus) {
            let since = *self.since.get_or_insert(bus.since);
            self.tell.fails_with(Part::Bus, since, &error, AWAY_FIX);
            self.no_lease_since = None;
            return Kept { no_lease: None, ignored: None };
        }
        let leads = heard.leader.is_some_and(|ago| ago < LEADER_SILENT);
        if leads && !heard.has_lease {
            self.no_lease_since.get_or_insert(now);
        } else {
            self.no_lease_since = None;
        }
        let no_lease = self.no_lease_since.map(|since| (since, why(bus)));
        let lasting = no_lease.as_ref().filter(|(since, _)| now.duration_since(*since) >= NO_LEASE);
        let is_heard = |ago: Option<Duration>| ago.is_some_and(|ago| ago < ANOTHER_WITHIN);
        let ignored = if is_heard(heard.another) {
            let error = format!("{}; its leader is not served", shared(&self.subject));
            Some((error, SHARED_FIX.to_owned()))
        } else if is_heard(heard.lower) && !leads {
            // One that was only stopped, and comes back, finds out by itself that it was followed.
            let error = "a leader of a lower epoch than the one before is heard, and not served yet: the state tables \
                         were made anew, or restored from a backup";
            Some((error.to_owned(), LOWER_FIX.to_owned()))
        } else {
            let refused = bus.refused.as_ref().filter(|_| !leads);
            refused.map(|it| {
                let error = format!("no leader is heard, and the bus refuses us something: {it}");
                (error, self.permissions())
            })
        };
        let trouble = ignored.clone().or_else(|| {
            let error = |why| format!("a leader is heard, and grants no lease: {why}");
            lasting.map(|(_, why)| (error(why), self.permissions()))
        });
        if let Some((error, fix)) = trouble {
            let since = *self.since.get_or_insert(lasting.map_or(now, |(since, _)| *since));
            self.tell.fails_with(Part::Bus, since, &error, &fix);
        } else {
            self.works();
        }
        Kept { no_lease, ignored: ignored.map(|(error, _)| error) }
    }

    fn works(&mut self) {
        if self.since.take().is_some() {
            self.tell.works(Part::Bus);
        }
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

/// That there is no bus, where that does not pass in a moment.
fn away(now: Instant, heard: &Heard, bus: &State) -> Option<String> {
    let lasts = !bus.connected && now.saturating_duration_since(bus.since) >= PASSING;
    lasts.then(|| {
        let trouble = bus.trouble.as_deref().unwrap_or("connecting");
        let untold = match heard.untold {
            0 => String::new(),
            untold => {
                format!(", and no leader has heard yet what came of {untold} of its requests")
            }
        };
        format!("the bus is away: {trouble}; this worker gets no requests{untold}")
    })
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
            let heard =
                Heard { leader: Some(leader), another: None, lower, has_lease: false, untold: 0 };
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

    #[tokio::test(start_paused = true)]
    async fn bus_that_is_away_is_told_with_its_since_until_it_is_back() {
        let (tell, listen) = Teller::new("p");
        let subjects = Subjects::new("walhook", "p").unwrap();
        let subject = "walhook".to_owned();
        let mut apart = Apart { tell, subject, subjects, since: None, no_lease_since: None };
        let mut bus = State {
            connected: false,
            since: Instant::now(),
            max_payload: 0,
            connections: 0,
            dropped: 0,
            trouble: Some("connection refused".into()),
            refused: None,
        };
        let began = bus.since;
        let mut said = |bus: &State, untold: Option<u64>| {
            let heard = untold.map(|untold| Heard {
                leader: None,
                another: None,
                lower: None,
                has_lease: false,
                untold,
            });
            apart.report(Instant::now(), heard, bus);
            listen.borrow().troubles.get(&Part::Bus).map(|it| (it.since, it.error.clone()))
        };
        assert_eq!(said(&bus, Some(0)), None, "it may pass in a moment");
        tokio::time::advance(PASSING).await;
        let (since, error) = said(&bus, Some(0)).unwrap();
        assert_eq!(since, began);
        assert_eq!(error, "the bus is away: connection refused; this worker gets no requests");
        let (since, error) = said(&bus, Some(2)).unwrap();
        assert!(since == began && error.ends_with("heard yet what came of 2 of its requests"));
        assert!(said(&bus, None).is_some(), "it ends without a bus");
        (bus.connected, bus.since) = (true, Instant::now());
        assert_eq!(said(&bus, None), None);
    }
}
