//! What is wrong with a leader's workers, for `/readyz`, `walhook status`, the metrics and the log.

use std::time::Duration;

use tokio::time::Instant;

use super::{SHARED_FIX, enlarge, shared};
use crate::config::{LocalSending, Workers};
use crate::server::health::Teller;
use crate::server::trouble::{PASSING, Part};
use walhook_bus::State;
use walhook_core::attempt::{FailureKind, Outcome};
use walhook_core::tick::Tick;
use walhook_fleet::frame::Refusal;
use walhook_fleet::leader::{FleetCounters, FleetGauges, WorkerChanged, WorkerState};
use walhook_fleet::subjects::Subjects;

/// A refused worker asks again every 10 s: one that was refused within this time is there.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);

/// A worker says how it is eight times a lease: one of another pipeline that was heard within this time is there.
const FOREIGN_WITHIN: Duration = Duration::from_secs(30);

/// Likewise one that follows a leader of a higher epoch; it may serve this one at any moment.
const AHEAD_WITHIN: Duration = Duration::from_secs(10);

/// What was not sent, for a worker's proxy fails, is given to workers again within 5 s: one that said so within this
/// time has the trouble still.
const PROXY_WITHIN: Duration = Duration::from_secs(20);

/// A worker joins within a second of hearing a leader. Where none serves so long after the leader was there, and the
/// bus, none has come.
const COME_WITHIN: Duration = Duration::from_secs(20);

/// What helps where workers should be there.
const SEE_THEIR_LOGS: &str = "start workers, or see in their logs why they do not come: `walhook check --role worker` there says whether the \
     bus takes them";

/// Leases run out, and it is no permission that is missing.
const SLOW: &str = "what we publish to workers reaches them late, for the bus is too slow for it";

const SLOW_FIX: &str = "give the leader and the workers more bandwidth to NATS, or set a longer workers.lease (docs/scale-out.md says how \
     much they need)";

/// Says that nobody sends, where only workers may, that workers are there and serve another pipeline, and that what
/// becomes of workers' requests is not heard.
pub(super) struct Troubles {
    tell: Teller,
    local: LocalSending,
    /// `workers.subject`.
    subject: String,
    subjects: Subjects,
    /// Since when no worker serves.
    unserved: Option<Instant>,
    /// Since when a worker is mute, and the machine of the last one.
    mute: Option<Instant>,
    mute_host: String,
    /// The last worker that was refused: when, its machine, and why.
    refused: Option<(Tick, String, &'static str)>,
    /// The machine of the last worker that was lost, while none has served since.
    lost: Option<String>,
    /// Whether one has served this leader, and since when the bus is there without that.
    served: bool,
    awaited: Option<Instant>,
    /// Words of other pipelines' workers so far, and when the last one came.
    foreign: (u64, Option<Tick>),
    /// Hellos of workers that follow a leader of a higher epoch so far, and when the last one came.
    ahead: (u64, Option<Tick>),
    /// Since when there are workers that do not show that they hear us.
    unconfirmed: Option<Instant>,
    /// Since when something is too large for the bus, and the largest event that the rules allow.
    oversize: Option<Instant>,
    largest_event: u64,
    /// Since when something keeps leader and workers from coming together.
    apart: Option<Instant>,
    /// Workers sent nothing, for their proxy fails: since when, when that was said last, and why.
    proxy: Option<(Instant, Tick, String)>,
}

impl Troubles {
    pub(super) fn new(
        tell: &Teller,
        workers: &Workers,
        largest_event: u64,
        subjects: &Subjects,
    ) -> Self {
        Self {
            tell: tell.clone(),
            local: workers.local,
            subject: workers.subject.clone(),
            subjects: subjects.clone(),
            unconfirmed: None,
            oversize: None,
            largest_event,
            unserved: None,
            mute: None,
            mute_host: String::new(),
            refused: None,
            lost: None,
            served: false,
            awaited: None,
            foreign: (0, None),
            ahead: (0, None),
            apart: None,
            proxy: None,
        }
    }

    /// Takes note of what came of a request that workers were given. One that another has sent tells nothing.
    pub(super) fn note_outcome(&mut self, now: Tick, outcome: &Outcome) {
        if outcome.is_local() && outcome.record.failure == Some(FailureKind::Proxy) {
            let since = self.proxy(now).map_or_else(Instant::now, |(since, _)| since);
            let reason = format!("at a worker: {}", outcome.record.text);
            self.proxy = Some((since, now, reason));
        }
    }

    /// Since when workers send nothing for want of their proxy, and why.
    pub(super) fn proxy(&self, now: Tick) -> Option<(Instant, String)> {
        let (since, _, reason) =
            self.proxy.as_ref().filter(|(_, last, _)| now.since(*last) < PROXY_WITHIN)?;
        Some((*since, reason.clone()))
    }

    /// Takes note of what a worker has become.
    pub(super) fn note(&mut self, now: Tick, changed: &WorkerChanged) {
        // A session that is over is refused once, and its worker begins another.
        if let Some(why) = changed.refused.filter(|why| *why != Refusal::Lost) {
            self.refused = Some((now, changed.host.clone(), why.as_str()));
        }
        if changed.state == WorkerState::Lost {
            self.lost = Some(changed.host.clone());
        }
        if changed.state == WorkerState::Mute {
            self.mute_host.clone_from(&changed.host);
        }
    }

    /// Says how things stand. To be called now and then.
    pub(super) fn report(
        &mut self,
        now: Tick,
        gauges: &FleetGauges,
        counters: &FleetCounters,
        bus: &State,
    ) {
        if self.foreign.0 != counters.foreign {
            self.foreign = (counters.foreign, Some(now));
        }
        if self.ahead.0 != counters.ahead {
            self.ahead = (counters.ahead, Some(now));
        }
        if gauges.unconfirmed > 0 && bus.connected {
            self.unconfirmed.get_or_insert_with(Instant::now);
        } else {
            self.unconfirmed = None;
        }
        // One in quarantine is given a request at a time.
        let serve = gauges.serving + gauges.quarantined;
        if serve > 0 {
            self.lost = None;
            self.served = true;
        }
        if bus.connected && !self.served {
            self.awaited.get_or_insert_with(Instant::now);
        } else {
            self.awaited = None;
        }
        let away = (!bus.connected && self.local != LocalSending::Never).then(|| {
            // Where only workers may send, nobody does, which is told as that.
            let (error, fix) = why_away(bus);
            (format!("{error}; the leader sends all"), fix)
        });
        let apart = away
            .or_else(|| self.why_apart(now, gauges, bus))
            .or_else(|| self.none_has_come(gauges, bus));
        if let Some((error, fix)) = &apart {
            let since = *self.apart.get_or_insert_with(Instant::now);
            self.tell.fails_with(Part::Bus, since, error, fix);
        } else {
            self.apart = None;
            self.tell.works(Part::Bus);
        }
        if self.local != LocalSending::Never || serve > 0 {
            self.unserved = None;
            self.tell.works(Part::Sending);
        } else {
            let since = *self.unserved.get_or_insert_with(Instant::now);
            // Workers join within a moment after the leader began.
            if since.elapsed() >= PASSING {
                let (error, fix) = self.why_unserved(now, gauges, bus);
                self.tell.fails_with(Part::Sending, since, &error, &fix);
            }
        }
        match gauges.too_large {
            Some(bytes) => {
                let since = *self.oversize.get_or_insert_with(Instant::now);
                let error = format!(
                    "the bus takes messages of {} bytes, and a request takes {bytes}",
                    bus.max_payload
                );
                let fix = format!(
                    "{} and have it reloaded, which is seen within a minute, or lower max_bytes of the rules",
                    enlarge(self.largest_event, bytes)
                );
                self.tell.fails_with(Part::Oversize, since, &error, &fix);
            }
            None => {
                self.oversize = None;
                self.tell.works(Part::Oversize);
            }
        }
        if gauges.mute == 0 {
            self.mute = None;
            self.tell.works(Part::Outcomes);
        } else {
            let since = *self.mute.get_or_insert_with(Instant::now);
            let said = bus.trouble.as_ref().map(|it| format!("; the bus said last: {it}"));
            let error = format!(
                "a worker on {} is heard, and its outcomes are not{}",
                self.mute_host,
                said.unwrap_or_default()
            );
            self.tell.fails_with(Part::Outcomes, since, &error, &self.unmute());
        }
    }

    /// Why workers that are there do not serve this leader, and the fix.
    fn why_apart(&self, now: Tick, gauges: &FleetGauges, bus: &State) -> Option<(String, String)> {
        let refused = self.refused.as_ref().filter(|(at, ..)| now.since(*at) < REFUSED_WITHIN);
        if let Some((_, host, why)) = refused.filter(|_| bus.connected) {
            return Some((
                format!("the worker on {host} is refused: {why}"),
                "correct the worker's configuration or build; `walhook check` names what differs"
                    .to_owned(),
            ));
        }
        if self.foreign.1.is_some_and(|at| now.since(at) < FOREIGN_WITHIN) {
            let error = format!("{}, and has workers that could be ours", shared(&self.subject));
            return Some((error, SHARED_FIX.to_owned()));
        }
        if self.ahead.1.is_some_and(|at| now.since(at) < AHEAD_WITHIN) {
            return Some((
                "workers follow a leader of a higher epoch than this one: the state tables were made anew, or \
                 restored from a backup, or another instance leads"
                    .to_owned(),
                "start these workers again, and they serve this leader at once; else each does when it has not heard \
                 the one before for a minute"
                    .to_owned(),
            ));
        }
        if let Some(host) = self.lost.as_ref().filter(|_| bus.connected && gauges.mute == 0) {
            let refusal = refusal(bus);
            return Some((
                format!(
                    "all workers are lost, the last one on {host}, and none serves since{refusal}"
                ),
                self.bring_them(bus, SEE_THEIR_LOGS),
            ));
        }
        // One that was killed as it joined is lost within this time.
        if self.unconfirmed.is_none_or(|since| since.elapsed() < PASSING) {
            return None;
        }
        if gauges.slow {
            return Some((SLOW.to_owned(), SLOW_FIX.to_owned()));
        }
        let subjects = &self.subjects;
        Some((
            format!("workers are heard, and do not hear what we publish to them{}", refusal(bus)),
            format!(
                "let the leader's user of the bus publish to {subjects}.w.> and the workers' subscribe to \
                 {subjects}.w.*; `walhook check` and `walhook check --role worker` say what is missing"
            ),
        ))
    }

    /// That no worker has come since this leader began, and the fix. Where only workers may send that is told as what
    /// it comes to.
    fn none_has_come(&self, gauges: &FleetGauges, bus: &State) -> Option<(String, String)> {
        let late = self.awaited.is_some_and(|since| since.elapsed() >= COME_WITHIN);
        let is_told = gauges.mute > 0 || self.local == LocalSending::Never;
        (late && !is_told).then(|| {
            let refusal = refusal(bus);
            let or = format!("{SEE_THEIR_LOGS}; where there are to be none, remove [workers]");
            (
                format!("no worker serves since this instance leads; it sends all itself{refusal}"),
                self.bring_them(bus, &or),
            )
        })
    }

    /// What helps where no worker comes: what the bus refuses us, if it does, or else this.
    fn bring_them(&self, bus: &State, or: &str) -> String {
        if bus.refused.is_none() {
            return or.to_owned();
        }
        let (publishes, hears) = self.subjects.of_leader();
        format!(
            "let the leader's user of the bus publish to {} and subscribe to {}; `walhook check` says what is missing",
            publishes.join(", "),
            hears.join(", ")
        )
    }

    /// What lets outcomes come.
    fn unmute(&self) -> String {
        let subjects = &self.subjects;
        format!(
            "let the workers' user of the bus publish to {subjects}.l.> and the leader's subscribe to it, and start these \
             workers again; `walhook workers list` shows which they are"
        )
    }

    /// Why no worker serves, and the fix.
    fn why_unserved(&self, now: Tick, gauges: &FleetGauges, bus: &State) -> (String, String) {
        let because = "workers.local is \"never\"";
        let or = "or set workers.local = \"fallback\", so that the leader sends meanwhile";
        if !bus.connected {
            let (error, fix) = why_away(bus);
            return (format!("{because}, and {error}"), format!("{fix}, {or}"));
        }
        if gauges.mute > 0 {
            let error = format!("{because}, and the outcomes of all workers are not heard");
            return (error, format!("{}, {or}", self.unmute()));
        }
        if let Some((error, fix)) = self.why_apart(now, gauges, bus) {
            return (format!("{because}, and {error}"), format!("{fix}, {or}"));
        }
        if bus.refused.is_some() {
            return (
                format!("{because}, and no worker serves{}", refusal(bus)),
                format!("{}; {or}", self.bring_them(bus, "")),
            );
        }
        if gauges.slow {
            return (
                format!("{because}, and no worker serves: {SLOW}"),
                format!("{SLOW_FIX}, {or}"),
            );
        }
        let (silent, draining) = (gauges.silent, gauges.draining);
        (
            format!("{because}, and no worker serves ({silent} silent, {draining} draining)"),
            format!("start workers: `walhook run --role worker`, {or}"),
        )
    }
}

/// That the bus is away, and the fix. What was read of a file of a secret is not read again.
fn why_away(bus: &State) -> (String, String) {
    let trouble = bus.trouble.as_deref().unwrap_or("connecting");
    (
        format!("the bus is away: {trouble}"),
        "start nats-server, or correct [workers] and start this instance again (see `walhook check`; files of \
         secrets are read at the start)"
            .to_owned(),
    )
}

/// What the bus refuses of us, behind what follows from it.
pub(super) fn refusal(bus: &State) -> String {
    bus.refused
        .as_ref()
        .map_or_else(String::new, |it| format!("; the bus refuses us something: {it}"))
}

#[cfg(test)]
mod tests;
