//! Whether a worker reaches its leader: the bus, what it lets us publish and hear, and who leads.
//!
//! Publishes nothing that a leader takes for a worker's word: an empty message, which is no frame.

use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};

use super::{BUS, NO_EPOCH, PATIENCE, Report, SETTLE, reach};
use crate::config::WorkerConfig;
use crate::control::check::proxy;
use crate::server::workers::{SHARED_FIX, egress_digest, shared};
use walhook_bus::{Bus, Received, Subscription};
use walhook_core::id::Epoch;
use walhook_fleet::LEAD_EVERY;
use walhook_fleet::frame::{Body, Frame, Lead, SPOKEN, SessionId};
use walhook_fleet::subjects::Subjects;

const LEADER: &str = "leader";

/// Looks, as a worker of this configuration.
pub(in crate::control::check) async fn check(config: &WorkerConfig, report: &mut Report) {
    match config.transport() {
        Ok(transport) => _ = proxy::check(&transport, proxy::Sends::Requests, report).await,
        Err(error) => report.fail("requests", error.to_string(), "correct [egress]"),
    }
    let meanwhile = "until then this worker sends nothing";
    let reached = reach(&config.workers, config.pipeline(), meanwhile, report).await;
    let Some((bus, subjects)) = reached else { return };
    let Some(mut leads) = permissions(&bus, &subjects, report).await else { return };
    let deadline = Instant::now() + 2 * LEAD_EVERY + SETTLE;
    let (mut first, mut named) = (None, BTreeSet::new());
    while let Ok(Some(received)) = timeout_at(deadline, leads.next()).await {
        let Received::Frame { payload, .. } = received else { continue };
        let Ok(frame) = Frame::decode(payload, SPOKEN) else { continue };
        if let Body::Lead(lead) = frame.body {
            named.extend(frame.pipeline);
            first.get_or_insert((frame.epoch, lead));
        }
    }
    if named.len() > 1 {
        let finding = shared(&config.workers.subject);
        report.fail(LEADER, format!("{finding}: {} leaders were heard", named.len()), SHARED_FIX);
    }
    leader(config, first.as_ref(), report);
}

/// Whether we may publish and hear what a worker does. Returns what leaders say, where that is so.
async fn permissions(bus: &Bus, subjects: &Subjects, report: &mut Report) -> Option<Subscription> {
    let (publishes, hears) = subjects.of_worker();
    let advice = format!(
        "allow the workers' user to publish {} and subscribe to {}",
        publishes.join(", "),
        hears.join(", ")
    );
    let session = SessionId(rand::random());
    let leads = bus.subscribe(&subjects.lead()).await;
    let own = bus.subscribe(&subjects.worker(session)).await;
    let (leads, _own) = match (leads, own) {
        (Ok(leads), Ok(own)) => (leads, own),
        (Err(error), _) | (_, Err(error)) => {
            report.fail(BUS, error.to_string(), advice);
            return None;
        }
    };
    for subject in [subjects.hello(), subjects.leader(NO_EPOCH, session)] {
        if let Err(error) = bus.publish(&subject, None, Bytes::new()) {
            report.fail(BUS, format!("cannot publish: {error}"), advice);
            return None;
        }
    }
    // What the server refuses it says by then.
    let heard = bus.flush(PATIENCE).await;
    sleep(SETTLE).await;
    match bus.state().trouble {
        Some(trouble) => report.fail(BUS, trouble.to_string(), advice),
        None if !heard => {
            report.fail(BUS, format!("does not answer within {PATIENCE:?}"), advice);
        }
        None => {
            report.pass(BUS, format!("we may publish to {subjects}.* and hear the leader"));
            return Some(leads);
        }
    }
    None
}

/// Who leads, and whether this worker is taken.
fn leader(config: &WorkerConfig, lead: Option<&(Epoch, Lead)>, report: &mut Report) {
    let Some((epoch, lead)) = lead else {
        let fix = "start `walhook run` with [workers]; workers wait for it";
        return report.warn(LEADER, "none was heard", fix);
    };
    if lead.versions.common(SPOKEN).is_none() {
        let fix = "bring both to neighbouring releases";
        return report.fail(LEADER, "speaks no version that we speak", fix);
    }
    let ours = egress_digest(&config.egress);
    match lead.egress {
        Some(theirs) if theirs != ours => report.fail(
            LEADER,
            format!("has [egress] {theirs}, ours is {ours}: it refuses this worker"),
            "make them alike, or set workers.egress = \"own\" at the leader",
        ),
        Some(_) | None => {
            let finding = format!("one of epoch {} was heard, and takes this worker", epoch.0);
            report.pass(LEADER, finding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::check::{Finding, Verdict};
    use walhook_fleet::frame::Digest;
    use walhook_testkit::nats::Nats;

    async fn findings(nats: &Nats, more: &str) -> Vec<Finding> {
        let text = format!("[workers]\nurl = \"{}\"\n{more}", nats.url());
        let path = std::path::Path::new("test.toml");
        let config = crate::config::parse_worker(path, &text, []).unwrap();
        let mut report = Report::default();
        check(&config, &mut report).await;
        report.0
    }

    #[tokio::test]
    async fn check_of_a_worker_names_the_subject_that_a_permission_is_missing_for() {
        let (publishes, hears) = Subjects::new("walhook", "walhook").unwrap().of_worker();
        let all = [publishes.clone(), hears.clone()].concat();
        for missing in [None, Some(0), Some(1), Some(2), Some(3)] {
            let allowed = |of: &[String]| {
                let has = |subject: &&String| missing.is_none_or(|n: usize| all[n] != **subject);
                let of: Vec<_> = of.iter().filter(has).map(|it| format!("\"{it}\"")).collect();
                of.join(", ")
            };
            let users = format!(
                "authorization {{ users: [ {{ user: worker, password: hush, permissions: {{ \
                 publish: {{ allow: [{}] }}, subscribe: {{ allow: [{}] }} }} }} ] }}",
                allowed(&publishes),
                allowed(&hears)
            );
            let nats = Nats::start(&users).await.unwrap();
            let found = findings(&nats, "user = \"worker\"\npassword = \"hush\"").await;
            let failed: Vec<_> = found.iter().filter(|it| it.verdict == Verdict::Fail).collect();
            let Some(missing) = missing else {
                assert!(failed.is_empty(), "{failed:?}");
                let last = found.last().unwrap().to_string();
                assert!(last.starts_with("warn  leader: none was heard"), "{last}");
                continue;
            };
            let [failed] = &failed[..] else { panic!("{missing}: {found:?}") };
            let subject = all[missing].trim_end_matches(['>', '*']).trim_end_matches('.');
            assert!(failed.finding.contains(subject), "{subject}: {failed}");
            assert!(failed.fix.as_ref().unwrap().contains(&all[missing]), "{failed}");
        }
    }

    #[tokio::test]
    async fn check_of_a_worker_says_whether_the_leader_takes_it() {
        let nats = Nats::start("").await.unwrap();
        let last = async |egress| {
            let config = crate::config::parse_worker(
                std::path::Path::new("test.toml"),
                &format!("[workers]\nurl = \"{}\"\n", nats.url()),
                [],
            );
            let options = config.unwrap().workers.bus("leader").unwrap();
            let bus = Bus::connect_now(&options).await.unwrap();
            let subject = Subjects::new("walhook", "walhook").unwrap().lead();
            let lead = Lead { versions: SPOKEN, lease: LEAD_EVERY, egress, asks: true };
            let frame = Frame {
                version: 1,
                epoch: Epoch(1),
                pipeline: None,
                session: SessionId::default(),
                seq: 0,
                body: Body::Lead(lead),
            };
            let mut leads = tokio::task::JoinSet::new();
            leads.spawn(async move {
                loop {
                    let _away = bus.publish(&subject, None, frame.encode());
                    sleep(LEAD_EVERY / 5).await;
                }
            });
            findings(&nats, "").await.last().unwrap().to_string()
        };
        assert_eq!(
            last(None).await,
            "pass  leader: one of epoch 1 was heard, and takes this worker"
        );
        let other = last(Some(Digest([7; 32]))).await;
        assert!(other.starts_with("fail  leader: has [egress] 0707070707070707"), "{other}");
        assert!(other.contains("make them alike"), "{other}");
    }
}
