//! What a leader costs the primary while nothing is committed.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;
use walhook_loadtest::world::{Layout, World};

use walhook_loadtest::figure::{Better, Figure};

/// Behind a start, until it has done what it does once, and sessions that are idle since have told the server's
/// statistics of it, which may take them 10 s.
const CALM: Duration = Duration::from_secs(15);

/// What the server does by itself in its own time is not the leader's.
const SERVER: [(&str, &str); 2] = [("autovacuum", "off"), ("checkpoint_timeout", "1h")];

/// The same time without it and with it, in turn; the difference counts.
pub(crate) async fn measure(time: Duration, pairs: usize) -> Result<Vec<Figure>> {
    let group = "idle";
    let mut transactions =
        Figure::new(group, "transactions", "transactions a second", Better::Less);
    let mut wal = Figure::new(group, "wal", "WAL bytes a second", Better::Less);
    let mut sessions = Figure::new(group, "sessions", "sessions", Better::Less);
    let mut world = World::arranged(Layout { server: &SERVER, ..Layout::default() }).await?;
    for _ in 0..pairs {
        let without = look(&world, time).await?;
        world.run().await?;
        sleep(CALM).await;
        let with = look(&world, time).await?;
        for ((figure, with), without) in
            [&mut transactions, &mut wal].into_iter().zip(with).zip(without)
        {
            figure.value((with - without) / time.as_secs_f64());
        }
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender')
                   AND pid <> pg_backend_pid()";
        #[expect(clippy::cast_precision_loss, reason = "some")]
        sessions.value(world.number(sql).await? as f64);
        world.walhook.stop().await?;
    }
    Ok(vec![transactions, wal, sessions])
}

/// Transactions and WAL bytes of this time.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
async fn look(world: &World, time: Duration) -> Result<[f64; 2]> {
    let queries = [
        "SELECT sum(xact_commit + xact_rollback)::bigint FROM pg_stat_database",
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint",
    ];
    let mut values = [0.0; 2];
    for (value, query) in values.iter_mut().zip(queries) {
        *value -= world.number(query).await? as f64;
    }
    sleep(time).await;
    for (value, query) in values.iter_mut().zip(queries) {
        *value += world.number(query).await? as f64;
    }
    Ok(values)
}
