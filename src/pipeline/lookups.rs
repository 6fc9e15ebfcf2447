//! The task that looks accounts' endpoints up, batch after batch, on a connection of its own.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Stop;
use super::backoff::Backoff;
use crate::engine::endpoint::{Routes, Secret};
use crate::engine::event::AccountId;
use crate::engine::route::Snapshot;
use crate::io::lookup::{Fetched, Lookups};
use crate::io::sql::Connection;

/// What the dispatcher asks.
pub(super) struct LookupRequest {
    pub(super) accounts: Vec<AccountId>,
}

/// The answer: one for each request.
pub(super) struct LookupReply {
    pub(super) snapshot: Snapshot,
    pub(super) answers: Vec<(AccountId, Routes)>,
}

/// A look-up that takes longer is given up and asked again on a new connection.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers look-ups until the dispatcher ends or `abort`. While the database is away it tries again
/// with backoff; also when the endpoint table cannot be read, which is a person's to mend: what is
/// committed meanwhile waits, and nothing is lost.
pub(super) async fn look_up(
    url: Secret,
    lookups: Lookups,
    mut requests: mpsc::Receiver<LookupRequest>,
    replies: mpsc::Sender<LookupReply>,
    abort: CancellationToken,
) -> Result<(), Stop> {
    let mut connection: Option<Connection> = None;
    while let Some(LookupRequest { accounts }) = requests.recv().await {
        let mut backoff = Backoff::new();
        let reply = loop {
            let asked = ask(&mut connection, &url, &lookups, &accounts);
            let answered = tokio::select! {
                biased;
                () = abort.cancelled() => return Ok(()),
                answered = tokio::time::timeout(LOOKUP_TIMEOUT, asked) => answered,
            };
            let problem = match answered {
                Ok(Ok(reply)) => break reply,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("no answer within {LOOKUP_TIMEOUT:?}"),
            };
            connection = None;
            tracing::warn!(%problem, accounts = accounts.len(), "cannot look endpoints up; trying again");
            tokio::select! {
                () = abort.cancelled() => return Ok(()),
                () = backoff.wait() => {}
            }
        };
        if replies.send(reply).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn ask(
    connection: &mut Option<Connection>,
    url: &Secret,
    lookups: &Lookups,
    accounts: &[AccountId],
) -> anyhow::Result<LookupReply> {
    let client = match connection {
        Some(client) => client,
        None => connection.insert(Connection::open(url, "walhook look-ups").await?),
    };
    let Fetched { snapshot, routes } = lookups.fetch(client, accounts).await?;
    Ok(LookupReply { snapshot: snapshot.parse()?, answers: routes })
}
