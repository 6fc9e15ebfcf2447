//! One account that comes in several texts, and types that cannot be compared.

use anyhow::{Result, ensure};

use crate::support::{World, taken, text};

const RULE: &str = r#"
[[events]]
type = "ticket.created"
table = "public.tickets"
on = ["insert"]
account = "account_id"
columns = ["id"]
"#;

/// The types of an endpoint's account and of a ticket's.
async fn world(endpoint: &str, ticket: &str) -> Result<World> {
    let world = World::bare("", RULE, &[]).await?;
    let schema = format!(
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE DOMAIN code AS char(8);
         CREATE TABLE tickets (id bigint PRIMARY KEY, account_id {ticket});
         CREATE TABLE webhooks (id bigint PRIMARY KEY, account_id {endpoint}, url text NOT NULL,
             event_types text[] NOT NULL DEFAULT '{{*}}', secret text, enabled boolean DEFAULT true)"
    );
    world.sql.batch_execute(&schema).await?;
    world.set_up().await?;
    Ok(world)
}

#[tokio::test]
async fn new_endpoint_gets_the_next_event_although_its_account_comes_in_another_text() -> Result<()>
{
    for (endpoint, ticket, account, other) in [
        ("bigint", "numeric(12, 2)", "42", "42.00"),
        ("text COLLATE nocase", "text", "acme", "ACME"),
        ("code", "code", "acme", "acme"),
    ] {
        let mut world = world(endpoint, ticket).await?;
        let _running = world.run().await?;
        for id in 1..=3 {
            let url = world.mock.url(&format!("/{id}"));
            let secret = crate::support::SECRET;
            let both = format!(
                "INSERT INTO webhooks (id, account_id, url, secret)
                     VALUES ({id}, '{account}', '{url}', '{secret}');
                 INSERT INTO tickets VALUES ({id}, '{other}')"
            );
            world.sql.batch_execute(&both).await?;
            world.settled().await?;
            let taken = taken(&world.mock.received());
            let last = |path: String| taken.get(&path).and_then(|rows| Some(rows.last()?.1));
            for path in 1..=id {
                let found = last(format!("/{path}"));
                ensure!(found == Some(id), "{endpoint}, {ticket}: /{path} of {id}: {found:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn types_that_cannot_be_compared_stop_run_at_its_start_as_they_fail_check() -> Result<()> {
    let mut world = world("bigint", "bigint").await?;
    for (table, kind, says) in [
        ("webhooks", "json USING to_json(1)", "is json, or is made of it, which has no equality"),
        ("webhooks", "date USING '2026-01-01'", ""),
        ("tickets", "timestamptz USING '2026-01-01'", "would take only a part"),
    ] {
        let alter = format!("ALTER TABLE {table} ALTER account_id TYPE {kind}");
        world.sql.batch_execute(&alter).await?;
        let check = world.walhook(&["check"]).await?;
        let printed = text(&check.stdout);
        if says.is_empty() {
            let warns = "warn  rule 1 (ticket.created): account: account_id of public.tickets";
            ensure!(check.status.success() && printed.contains(warns), "{kind}: {printed}");
            continue;
        }
        ensure!(check.status.code() == Some(1) && printed.contains(says), "{kind}: {printed}");
        let (status, log) = world.spawn()?.ended_with_log().await?;
        ensure!(status.code() == Some(2) && log.contains(says), "{kind}: {status}:\n{log}");
    }
    Ok(())
}
