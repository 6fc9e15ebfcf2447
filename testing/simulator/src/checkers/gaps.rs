//! A gap counts what is missing in it, once, and nothing else; when all has ended none grows any more.
//!
//! What was committed before the endpoint joined may have come to it, and so may count; it need not, and so is
//! not missing. And what an endpoint took of a process that died before that was stored may count, as it may be
//! sent twice elsewhere.

use walhook_core::event::EndpointId;

use super::{Checker, Scene, Seen};
use crate::state::{Gap, GapKind};

#[derive(Debug, Default)]
pub(crate) struct Gaps;

impl Checker for Gaps {
    fn name(&self) -> &'static str {
        "gaps"
    }

    fn see(&mut self, _scene: &Scene<'_>, _seen: &Seen<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        if let Some(growing) = scene.state.gaps.iter().find(|gap| gap.growing) {
            return Err(format!("{growing:?} still grows"));
        }
        // What a replay deferred is counted as well, and was owed before.
        let replayed = !scene.facts.replays.is_empty();
        for (endpoint, versions) in &scene.postgres.versions {
            let [(_, Some(row))] = &versions[..] else { continue };
            let gaps: Vec<&Gap> = scene
                .state
                .gaps
                .iter()
                .filter(|gap| matches!(gap.kind, GapKind::Suspended | GapKind::Letters))
                .filter(|gap| gap.queue.endpoint == *endpoint)
                .collect();
            if gaps.is_empty() {
                continue;
            }
            let (mut may_count, mut missing) = (0, Vec::new());
            for expect in &scene.postgres.expects {
                let at = expect.position.commit_lsn;
                let inside = gaps.iter().any(|gap| (gap.from..=gap.to).contains(&at));
                if !inside || expect.unroutable || !row.fits(&expect.account, expect.event_type) {
                    continue;
                }
                let key = (expect.id, endpoint.clone());
                let ended = scene.facts.received.contains_key(&key)
                    || scene.state.has_letter(expect.id, endpoint)
                    || scene.facts.discarded.contains(&key);
                may_count += u64::from(!ended);
                let is_missing = !ended
                    && !scene.facts.resent.contains_key(&key)
                    && !is_given_up(scene, &expect.account, at);
                if is_missing && scene.postgres.is_owed(expect, endpoint) {
                    missing.push((expect.id, at));
                }
            }
            let counted: u64 = gaps.iter().map(|gap| gap.removed + gap.skipped).sum();
            if missing.len() as u64 > counted {
                return Err(format!("{endpoint}: {missing:?} are missing, and {gaps:?}"));
            }
            let most = may_count + scene.facts.excused;
            if counted > most && !replayed {
                return Err(format!(
                    "{endpoint}: {counted} are counted, {most} could be: {gaps:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Whether the event may be in a gap of its account, or of the stream.
fn is_given_up(scene: &Scene<'_>, account: &str, at: walhook_core::lsn::Lsn) -> bool {
    let nobody = EndpointId::new("");
    scene.state.gaps.iter().any(|gap| {
        let kind = match gap.kind {
            GapKind::Unrouted | GapKind::Stream => true,
            // Of an account that was refused, dead letters without an endpoint.
            GapKind::Letters => scene.facts.refused.contains(account),
            GapKind::Suspended => false,
        };
        kind && (gap.from..=gap.to).contains(&at)
            && (*gap.queue.account == *account || gap.queue.account.is_empty())
            && gap.queue.endpoint == nobody
    })
}
