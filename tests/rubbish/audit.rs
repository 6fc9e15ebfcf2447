//! What is owed after all that rubbish: that it has arrived, or stands in a table.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use walhook_testkit::stored;

use super::{Endpoint, Test, victim};
use crate::support::{PATIENCE, text};

/// An id or account is no longer than this.
const ID_BYTES: usize = 512;

/// The row that a body tells of. Read as text: JSON of a row goes out as it is, and so a body may hold
/// what few can read, such as half a surrogate pair.
fn row_of(body: &str) -> Option<usize> {
    let behind = |mark: &str| Some(body.split_once(mark)?.1);
    let number = behind("\"type\":\"note.n").or_else(|| {
        behind("\"type\":\"thing.made\"")?;
        behind("\"data\":{\"id\":")
    })?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl Test {
    /// Waits until the victims have all of theirs.
    pub(super) async fn victims_have_theirs(&self) -> Result<()> {
        let has_all = || {
            let received = self.world.mock.received();
            self.owed.iter().all(|(n, types)| {
                let path = format!("/{}", victim(*n));
                let taken = received.iter().filter(|r| r.is_taken() && r.path == path);
                let taken: BTreeSet<String> = taken
                    .map(|r| r.json()["type"].as_str().unwrap_or_default().to_owned())
                    .collect();
                types.is_subset(&taken)
            })
        };
        self.world.mock.wait_until("all of the victims'", PATIENCE, |_| has_all()).await
    }

    /// What the tables of state hold: the event's commit and the endpoint of each delivery, '' for a
    /// letter without endpoint.
    async fn stored(&self) -> Result<Vec<(u64, String)>> {
        let all = stored::deliveries(&self.world.sql).await?;
        Ok(all.into_iter().map(|delivery| (delivery.commit_lsn, delivery.endpoint)).collect())
    }

    /// Each delivery that is owed has arrived, or stands in a table.
    pub(super) async fn audit(&self) -> Result<String> {
        let stored = self.stored().await?;
        let by_event = |lsn: u64| {
            let at = self.events.partition_point(|event| event.wal.0 < lsn);
            at.checked_sub(1).filter(|at| lsn <= self.events[*at].wal.1)
        };
        let mut ended: BTreeSet<(usize, String)> = BTreeSet::new();
        for (lsn, endpoint) in &stored {
            ended.extend(by_event(*lsn).map(|at| (at, endpoint.clone())));
        }
        let delivered = self.world.mock.received();
        for request in delivered.iter().filter(|request| request.is_taken()) {
            let row = row_of(&text(&request.body));
            let endpoint = request.path.strip_prefix("/e").and_then(|n| n.parse::<usize>().ok());
            let (Some(row), Some(n)) = (row, endpoint) else { continue };
            let at = self.events.iter().position(|event| event.row == row);
            let endpoint = self.endpoints.iter().find(|endpoint| endpoint.n == n);
            if let (Some(at), Some(Endpoint { id: Some(id), .. })) = (at, endpoint) {
                ended.insert((at, id.clone()));
            }
        }
        let (mut owed, mut lost) = (0, Vec::new());
        for (at, event) in self.events.iter().enumerate() {
            let unroutable = ended.contains(&(at, String::new()));
            for endpoint in self.endpoints.iter().filter(|e| e.owed && e.account == event.account) {
                owed += 1;
                let id = endpoint.id.clone().filter(|id| id.len() <= ID_BYTES);
                // One whose id cannot be told stands under another name.
                let has = match id {
                    Some(id) => ended.contains(&(at, id)),
                    None => {
                        ended.range((at, String::new())..(at + 1, String::new())).next().is_some()
                    }
                };
                if !has && !unroutable && event.account.is_some() {
                    lost.push(format!("row {} for {:?} (e{})", event.row, endpoint.id, endpoint.n));
                }
            }
            if event.account.is_none() && !unroutable {
                lost.push(format!("row {}, which has no account", event.row));
            }
        }
        ensure!(
            lost.is_empty(),
            "{} of {owed} are lost: {:?}",
            lost.len(),
            &lost[..lost.len().min(10)]
        );
        Ok(format!(
            "{} rows refused, {} endpoints, {} events of others, {owed} deliveries owed, {} stored",
            self.refused,
            self.endpoints.len(),
            self.events.len(),
            stored.len()
        ))
    }
}
