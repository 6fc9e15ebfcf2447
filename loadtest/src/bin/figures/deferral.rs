//! What a delivery that is deferred and later delivered costs the primary: WAL, and bytes on disk.

use std::time::Duration;

use anyhow::Result;
use walhook_loadtest::world::{Layout, World};

use crate::sink::Sink;
use walhook_loadtest::figure::{Better, Figure};

/// For all to be deferred, or delivered.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// Rows of one transaction.
const TRANSACTION: u64 = 1_000;

/// Bodies of about 360 bytes, a part of which does not compress, as names and ids do not.
const SCHEMA: &str = "
    CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account_id bigint NOT NULL,
        body text NOT NULL);
    INSERT INTO accounts VALUES (1, 'Account 1')";

const RULE: &str = "[[events]]\ntype = \"note.created\"\ntable = \"public.notes\"\non = [\"insert\"]\n\
    account = \"account_id\"\ncolumns = [\"id\", \"body\"]\n";

/// No checkpoint comes in between, whose images of whole pages would count or not by chance.
const SERVER: [(&str, &str); 2] = [("checkpoint_timeout", "1h"), ("max_wal_size", "32GB")];

/// Each repetition is a server of its own. The source's rows are committed before, so that their WAL is
/// not in it; what the leader writes when idle is.
pub(crate) async fn measure(deliveries: u64, repetitions: usize) -> Result<Vec<Figure>> {
    let group = "deferral";
    let mut wal =
        Figure::new(group, "wal", "WAL bytes a delivery, deferred and drained", Better::Less);
    let mut disk = Figure::new(group, "disk", "bytes on disk a delivery, deferred", Better::Less);
    for _ in 0..repetitions {
        let sink = Sink::start(None).await?;
        let layout = Layout { schema: SCHEMA, events: RULE, server: &SERVER, ..Layout::default() };
        let mut world = World::arranged(layout).await?;
        let insert = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
                      VALUES (1, 1, $1, '{note.created}', 'figures')";
        world.sql.execute(insert, &[&sink.url(0)]).await?;
        let transactions = deliveries.div_ceil(TRANSACTION);
        for n in 0..transactions {
            world.sql.batch_execute(&notes(n)).await?;
        }
        let deliveries = transactions * TRANSACTION;
        sink.fail(true);
        let empty = world.state_bytes().await?;
        let before = wal_bytes(&world).await?;
        world.run().await?;
        let all = async || Ok(deferred(&world).await? >= deliveries);
        world.until("all is deferred", PATIENCE, all).await?;
        world.settled(PATIENCE).await?;
        let full = world.state_bytes().await?;
        // Another process does not wait for the probe of an endpoint that this one found dead.
        world.walhook.stop().await?;
        sink.fail(false);
        sink.reset();
        world.run().await?;
        sink.until(deliveries).await?;
        let none = async || Ok(deferred(&world).await? == 0);
        world.until("nothing is deferred", PATIENCE, none).await?;
        world.walhook.stop().await?;
        let written = wal_bytes(&world).await?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let each = |bytes: u64| bytes as f64 / deliveries as f64;
        wal.value(each(written));
        disk.value(each(full.saturating_sub(empty)));
    }
    Ok(vec![wal, disk])
}

fn notes(transaction: u64) -> String {
    format!(
        "INSERT INTO notes (account_id, body)
         SELECT 1, 'Subscriber ' || n || ' joined segment ' || n % 50 || ' by the form on the page '
             || 'https://shop.example/' || md5(n::text) || ' and confirmed with ' || md5((-n)::text)
             || ' a moment later; nothing else is known of them yet.'
         FROM generate_series({transaction} * {TRANSACTION} + 1, ({transaction} + 1) * {TRANSACTION}) n"
    )
}

async fn deferred(world: &World) -> Result<u64> {
    world.number("SELECT coalesce(sum(deferred), 0)::bigint FROM walhook.backlog").await
}

async fn wal_bytes(world: &World) -> Result<u64> {
    world.number("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").await
}
