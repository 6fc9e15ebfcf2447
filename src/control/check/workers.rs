//! Whether a leader reaches its workers: the bus, what it lets us publish and hear, how large a message it takes,
//! and who answers. And whether a worker reaches its leader ([`worker`]).
//!
//! Publishes nothing that a worker takes for a leader's word: an empty message, which is no frame.

pub(super) mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Databases, Report};
use crate::config::{Config, DeliveryMode, LocalSending, WorkerEgress, Workers};
use crate::control::bytes;
use crate::server::workers::{SHARED_FIX, bounds, egress_digest, enlarge, pipeline_id, shared};
use walhook_bus::{Bus, BusEvent, Options, Received, Subscription};
use walhook_core::id::Epoch;
use walhook_fleet::frame::{Body, Digest, Frame, Hello, HelloState, PipelineId, SPOKEN, SessionId};
use walhook_fleet::subjects::Subjects;
use walhook_fleet::worker::REFUSED_FOR;
use walhook_fleet::{HELLOS_PER_LEASE, LEAD_EVERY};
use walhook_postgres::pg::Conninfo;
use walhook_postgres::source;
use walhook_postgres::sql::Connection;

const BUS: &str = "bus";

const WORKERS: &str = "workers";

/// Two round trips to the bus take no longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server says of a permission comes by another way than its messages, and a moment later.
const SETTLE: Duration = Duration::from_millis(200);

/// Of no leader: those count from 1.
const NO_EPOCH: Epoch = Epoch(0);

/// Workers that are named each.
const NAMED: usize = 10;

/// Looks, where there is a section `[workers]`.
pub(super) async fn check(config: &Config, report: &mut Report) {
    let Some(workers) = &config.workers else { return };
    let meanwhile = match workers.local {
        LocalSending::Never => "until then nothing is sent",
        LocalSending::Fallback | LocalSending::Always => "until then the leader sends all",
    };
    let reached = reach(workers, &config.source.slot, meanwhile, report).await;
    let Some((bus, subjects)) = reached else { return };
    largest(config, workers, bus.state().max_payload, report);
    let Some(hellos) = permissions(&bus, &subjects, report).await else { return };
    if config.delivery.mode == DeliveryMode::Log {
        let finding = "none is led: delivery.mode is \"log\", and nothing is sent";
        return report.pass(WORKERS, finding);
    }
    let seen = listen(workers, hellos).await;
    let ours = pipeline_of(config).await;
    // After they were heard: a leader that begins meanwhile is followed by them later.
    let epoch = epoch_of(config).await;
    let heard = !seen.is_empty();
    let seen = without_those_ahead(seen, epoch, ours, report);
    if heard && seen.is_empty() {
        return;
    }
    known(config, workers, ours, seen, report);
}

/// The epoch that the state tables have, where they answer.
async fn epoch_of(config: &Config) -> Option<Epoch> {
    let state = timeout(PATIENCE, Databases::of(config).open_state()).await.ok()?.ok()?;
    timeout(PATIENCE, state.current_epoch()).await.ok()?.ok()
}

/// Those that can be taken by their epoch. The others follow a leader that the state tables do not know.
fn without_those_ahead(
    mut seen: Seen,
    epoch: Option<Epoch>,
    ours: Option<PipelineId>,
    report: &mut Report,
) -> Seen {
    let Some(epoch) = epoch else { return seen };
    let is_ahead = |it: &Said| it.epoch > epoch && it.pipeline.is_some() && it.pipeline == ours;
    let ahead: BTreeSet<_> = seen.values().filter(|it| is_ahead(it)).map(|it| it.epoch).collect();
    if let Some(highest) = ahead.last() {
        let finding = format!(
            "some follow a leader of epoch {}, and the state tables have {}: they were made anew, or restored from a \
             backup",
            highest.0, epoch.0
        );
        let fix = "start these workers again, and they serve a leader of these tables at once; else each does when it \
                   has not heard the one before for a minute";
        report.fail(WORKERS, finding, fix);
        seen.retain(|_, it| !is_ahead(it));
    }
    seen
}

/// What a leader of this configuration leads, where its source answers: whoever looks at that tells why it does not.
async fn pipeline_of(config: &Config) -> Option<PipelineId> {
    let url = &config.source.url;
    let info = Conninfo::parse(url).ok()?;
    let opened = timeout(PATIENCE, Connection::open(url, super::NAME)).await.ok()?.ok()?;
    let source = source::identity(&opened, &info).await.ok()?;
    Some(pipeline_id(config, &source))
}

/// The bus and the names on it, where it takes us. `meanwhile`: what happens while it does not.
async fn reach(
    workers: &Workers,
    pipeline: &str,
    meanwhile: &str,
    report: &mut Report,
) -> Option<(Bus, Subjects)> {
    let options = match workers.bus("walhook check") {
        Ok(options) => options,
        Err(error) => {
            report.fail(BUS, format!("workers.url {error}"), "correct it");
            return None;
        }
    };
    let subjects = match Subjects::new(&workers.subject, pipeline) {
        Ok(subjects) => subjects,
        Err(error) => {
            report.fail(BUS, format!("workers.subject {error}"), "correct it");
            return None;
        }
    };
    let bus = match connect(&options).await {
        Ok(bus) => bus,
        Err(problem) => {
            let fix = format!("start nats-server, or correct [workers]; {meanwhile}");
            report.fail(BUS, problem, fix);
            return None;
        }
    };
    let servers = workers.url.join(", ");
    if options.servers.tls() {
        report.pass(BUS, format!("{servers} takes us, with TLS"));
    } else if options.servers.beyond_loopback().is_none() {
        report.pass(BUS, format!("{servers} takes us, on this machine and without TLS"));
    } else {
        let finding = format!("{servers} takes us, and what is sent travels there in the clear");
        report.warn(BUS, finding, "write tls://, and take workers.insecure away");
    }
    Some((bus, subjects))
}

/// Connects, and waits until the bus carries; or says why it does not.
async fn connect(options: &Options) -> Result<Bus, String> {
    let bus = Bus::connect_now(options).await.map_err(|error| error.to_string())?;
    match timeout(PATIENCE, bus.watch().next()).await {
        Ok(Some(BusEvent::Up { .. })) => Ok(bus),
        Ok(Some(BusEvent::Down) | None) | Err(_) => {
            let trouble = bus.state().trouble;
            Err(trouble.map_or_else(|| "takes us, and is gone".to_owned(), |it| it.to_string()))
        }
    }
}

/// Whether the bus takes the largest event that the rules allow.
fn largest(config: &Config, workers: &Workers, max_payload: usize, report: &mut Report) {
    let (takes, largest) = bounds(config, max_payload);
    let finding =
        format!("takes events of {} at most, and the rules allow {}", bytes(takes), bytes(largest));
    match workers.local {
        _ if largest <= takes => report.pass(BUS, finding),
        LocalSending::Never => report.fail(
            BUS,
            format!("{finding}: with workers.local = \"never\" nobody could send larger ones"),
            format!("{}, or lower max_bytes of the rules", enlarge(largest, 0)),
        ),
        LocalSending::Fallback | LocalSending::Always => {
            report.pass(BUS, format!("{finding}: the leader itself sends larger ones"));
        }
    }
}

/// Whether we may publish and hear what a leader does. Returns what workers say, where that is so.
///
/// The bus answers what nobody hears, by our own subject: so what comes back shows that we may publish to workers,
/// and hear what they publish. What it refuses it names, before that answer.
async fn permissions(bus: &Bus, subjects: &Subjects, report: &mut Report) -> Option<Subscription> {
    let (publishes, hears) = subjects.of_leader();
    let advice = format!(
        "allow the leader's user to publish {} and subscribe to {}",
        publishes.join(", "),
        hears.join(", ")
    );
    let session = SessionId(rand::random());
    let hellos = bus.subscribe(&subjects.hello()).await;
    let inbox = bus.subscribe(&subjects.inbox(NO_EPOCH)).await;
    let (hellos, mut inbox) = match (hellos, inbox) {
        (Ok(hellos), Ok(inbox)) => (hellos, inbox),
        (Err(error), _) | (_, Err(error)) => {
            report.fail(BUS, error.to_string(), advice);
            return None;
        }
    };
    let reply = subjects.reply(NO_EPOCH, session, 1);
    let lead = bus.publish(&subjects.lead(), None, Bytes::new());
    let published =
        lead.and_then(|()| bus.publish(&subjects.worker(session), Some(&reply), Bytes::new()));
    if let Err(error) = published {
        report.fail(BUS, format!("cannot publish: {error}"), advice);
        return None;
    }
    let deadline = Instant::now() + PATIENCE;
    let answered = loop {
        let look = (Instant::now() + SETTLE).min(deadline);
        match timeout_at(look, inbox.next()).await {
            Ok(Some(Received::NoResponders { reply: of })) if *of == *reply => break true,
            Ok(Some(_)) => {}
            Ok(None) => break false,
            Err(_) if look == deadline || bus.state().trouble.is_some() => break false,
            Err(_) => {}
        }
    };
    if answered {
        sleep(SETTLE).await;
    }
    match bus.state().trouble {
        Some(trouble) => report.fail(BUS, trouble.to_string(), advice),
        None if !answered => {
            let finding = format!("what we publish does not come back within {PATIENCE:?}");
            report.fail(BUS, finding, advice);
        }
        None => {
            report.pass(BUS, format!("we may publish to {subjects}.* and hear ourselves"));
            return Some(hellos);
        }
    }
    None
}

/// Sessions that serve, and what each says of itself.
type Seen = BTreeMap<SessionId, Said>;

/// What a worker says, of which pipeline and for which leader.
struct Said {
    pipeline: Option<PipelineId>,
    epoch: Epoch,
    hello: Hello,
}

/// What workers say within the time in which each says something, while somebody leads. Where none does, for longer.
async fn listen(workers: &Workers, mut hellos: Subscription) -> Seen {
    let every = workers.lease / HELLOS_PER_LEASE;
    let usual = Instant::now() + every + LEAD_EVERY + SETTLE;
    // One that was refused says nothing for a while.
    let mut deadline = usual + REFUSED_FOR;
    let mut seen = BTreeMap::new();
    while let Ok(Some(received)) = timeout_at(deadline, hellos.next()).await {
        let Received::Frame { payload, .. } = received else { continue };
        let Ok(frame) = Frame::decode(payload, SPOKEN) else { continue };
        let Body::Hello(hello) = frame.body else { continue };
        match hello.state {
            HelloState::Serving => {
                let Frame { pipeline, epoch, .. } = frame;
                seen.insert(frame.session, Said { pipeline, epoch, hello })
            }
            HelloState::Closing(_) => seen.remove(&frame.session),
        };
        if !seen.is_empty() {
            deadline = deadline.min(usual.max(Instant::now() + SETTLE));
        }
    }
    seen
}

/// Who is there, and whether a leader of this configuration takes them.
fn known(
    config: &Config,
    workers: &Workers,
    ours: Option<PipelineId>,
    mut seen: Seen,
    report: &mut Report,
) {
    let named: BTreeSet<_> = seen.values().filter_map(|it| it.pipeline).chain(ours).collect();
    if named.len() > 1 {
        let finding = format!("{}, and has workers there", shared(&workers.subject));
        report.fail(WORKERS, finding, SHARED_FIX);
        seen.retain(|_, it| ours.is_none() || it.pipeline.is_none() || it.pipeline == ours);
    }
    if seen.is_empty() {
        let fix =
            "start some with `walhook run --role worker`; they say so while an instance leads";
        return report.warn(WORKERS, "none was heard", fix);
    }
    let ours = egress_digest(&config.egress);
    let refused = |hello: &Hello| {
        if hello.versions.common(SPOKEN).is_none() {
            return Some("speaks no version that we speak: bring both to neighbouring releases");
        }
        let differs = workers.egress == WorkerEgress::Same && hello.egress != ours;
        differs.then_some(
            "has another [egress] than this configuration, and is refused: make them alike, or set \
             workers.egress = \"own\"",
        )
    };
    let mut taken = BTreeMap::<(&str, Digest), (usize, u64)>::new();
    let (mut named, mut counted) = (0, BTreeSet::new());
    for Said { hello, .. } in seen.values() {
        let (host, build, digest) = (&hello.host, &hello.build, hello.egress);
        if let Some(why) = refused(hello) {
            named += 1;
            if named <= NAMED {
                let finding = format!("{host}, version {build}, [egress] {digest}");
                report.fail(WORKERS, finding, why);
            }
            continue;
        }
        // One that began a session while we listened was heard by both.
        if hello.worker.is_some_and(|worker| !counted.insert(worker)) {
            continue;
        }
        let (count, slots) = taken.entry((build, digest)).or_default();
        *count += 1;
        *slots += u64::from(hello.fast_slots) + u64::from(hello.slow_slots);
    }
    if named > NAMED {
        report.fail(WORKERS, format!("and {} more", named - NAMED), "as above");
    }
    for ((build, digest), (count, slots)) in taken {
        let finding = format!("{count} of version {build}, [egress] {digest}, with {slots} slots");
        report.pass(WORKERS, finding);
    }
}

#[cfg(test)]
mod tests;
