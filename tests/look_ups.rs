//! Accounts whose endpoints take long to read, beside all others; and endpoints that are read from what is refreshed.

use anyhow::Result;

use crate::support::{RULES, SCHEMA, SECRET, World, taken};

/// To read the URL of account 42's endpoints takes for as long as somebody holds the lock 42. The type is named as that
/// of an extension is, for the column must be of a type for text.
const SLOW_URLS: &str = "
    CREATE TYPE citext AS (value text);
    CREATE FUNCTION citext_text(citext) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        IF ($1).value LIKE '%/42' THEN
            PERFORM pg_catalog.pg_advisory_xact_lock_shared(42);
        END IF;
        RETURN ($1).value;
    END $$;
    CREATE CAST (citext AS text) WITH FUNCTION citext_text(citext);
    ALTER TABLE webhooks ALTER url TYPE citext USING ROW(url)::citext";

/// Whose statement waits for a lock of ours.
const WAITERS: &str = "SELECT coalesce(string_agg(application_name, ','), '')
    FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND NOT granted";

/// An endpoint for each account from `first` to `last`, `each` rows of which but one are switched off.
fn hooks(world: &World, accounts: [i64; 2], each: i64) -> String {
    let ([first, last], url) = (accounts, world.mock.url("/"));
    format!(
        "INSERT INTO webhooks (id, account_id, url, secret, enabled)
         SELECT account * 10000 + n, account, ROW('{url}' || account)::citext, '{SECRET}', n = 1
         FROM generate_series({first}, {last}) account, generate_series(1, {each}) n"
    )
}

#[tokio::test]
async fn account_that_takes_long_to_read_keeps_no_other_waiting() -> Result<()> {
    let mut world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(&format!("{SCHEMA}; {SLOW_URLS}")).await?;
    world.set_up().await?;
    world.sql.batch_execute(&hooks(&world, [42, 42], 2_000)).await?;
    let _running = world.run().await?;
    // From now on it is known that this one has many.
    world.subscribe(1, 42).await?;
    world.delivered(1).await?;

    let holder = world.connect().await?;
    holder.batch_execute("SELECT pg_advisory_lock(42)").await?;
    world.sql.batch_execute("UPDATE webhooks SET event_types = '{*}' WHERE id = 420001").await?;
    world.subscribe(2, 42).await?;
    world.until(WAITERS, "walhook costly look-ups").await?;
    // None of these was ever looked up.
    world.sql.batch_execute(&hooks(&world, [1, 20], 1)).await?;
    let insert = "INSERT INTO subscribers SELECT 100 + n, n FROM generate_series(1, 20) n";
    world.sql.batch_execute(insert).await?;
    let received = world.delivered(21).await?;
    assert_eq!(taken(&received)["/42"].len(), 1, "its second event waits");

    holder.batch_execute("SELECT pg_advisory_unlock(42)").await?;
    let received = world.delivered(22).await?;
    assert_eq!(taken(&received)["/42"].len(), 2);
    world.settled().await?;
    let sessions = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'walhook costly look-ups'";
    world.until(sessions, "0").await
}

#[tokio::test]
async fn materialized_view_is_followed_where_each_refresh_changes_a_watched_table() -> Result<()> {
    let mut world = World::bare("", RULES, &[]).await?;
    world
        .sql
        .batch_execute(&format!(
            "{SCHEMA}; CREATE MATERIALIZED VIEW hooks AS SELECT * FROM webhooks;
             CREATE TABLE refreshes (at timestamptz NOT NULL PRIMARY KEY)"
        ))
        .await?;
    let view = "\"public.hooks\"\nwatch = [\"public.webhooks\", \"public.refreshes\"]";
    world.reconfigure("\"public.webhooks\"", view)?;
    world.set_up().await?;
    let _running = world.run().await?;
    world.hook(1, 42, "").await?;
    // The look-up that follows finds what was before.
    world.subscribe(1, 42).await?;
    world.settled().await?;
    assert!(world.mock.received().is_empty());
    let refresh =
        "BEGIN; REFRESH MATERIALIZED VIEW hooks; INSERT INTO refreshes VALUES (now()); COMMIT";
    world.sql.batch_execute(refresh).await?;
    world.subscribe(2, 42).await?;
    let received = world.delivered(1).await?;
    assert_eq!(taken(&received)["/1"], [("subscriber.created".to_owned(), 2)]);
    Ok(())
}
