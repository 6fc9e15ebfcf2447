//! Twenty faults, each made on purpose, and the one or two commands that find it: the table in `docs/operations.md` is
//! made here, with `WALHOOK_UPDATE_DOCS=1`, and compared otherwise.
//!
//! What a row of the table says was printed, on one line, by the real program while the fault was there.

mod found;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use walhook_testkit::receiver::Behaviour;

use found::{Found, asked};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_faults_are_found_by_two_commands_each_and_the_table_says_which() -> Result<()> {
    let mut found = Found::begin().await?;
    let running = found.world.run().await?;
    let tried = async {
        of_rows(&mut found).await?;
        of_endpoints(&mut found).await?;
        of_requests(&mut found).await?;
        of_waiting(&mut found).await?;
        of_databases(&mut found).await
    };
    tried.await.with_context(|| running.log_tail())?;
    ensure!(running.terminate().await?.success());
    of_the_pipeline(&mut found).await?;
    ensure!(found.missed.is_empty(), "{}", found.missed);
    ensure!(found.rows.len() == 20, "{:#?}", found.rows);
    found.compare()
}

/// A change that becomes no event, or one that nobody wants.
async fn of_rows(found: &mut Found) -> Result<()> {
    found.world.hook(1, 1, "").await?;
    let row = found.subscribe(1).await?;
    found.world.delivered(1).await?;
    found.status(row, "bounced").await?;
    found.settled().await?;
    found
        .found(
            "the rule's condition is false for the row",
            &[asked(
                "walhook replay start --from oldest --account 1 --type subscriber.unsubscribed --dry-run",
                &["would send 0 deliveries of 0 events"],
            )],
        )
        .await?;
    found.subscribe(2).await?;
    found
        .found(
            "the account has no endpoint",
            &[asked("walhook endpoints list --account 2", &["account 2 has no endpoint"])],
        )
        .await?;
    found.world.hook(3, 3, "").await?;
    found.run_sql("UPDATE webhooks SET event_types = '{subscriber.deleted}' WHERE id = 3").await?;
    found.subscribe(3).await?;
    found.settled().await?;
    found
        .found(
            "the endpoint does not want the event's type",
            &[
                asked(
                    "walhook endpoints list --account 3",
                    &["no rule makes an event of a type that it wants: subscriber.deleted"],
                ),
                asked(
                    "walhook replay start --from oldest --account 3 --dry-run",
                    &["subscriber.created", "0: no endpoint that is switched on wants it"],
                ),
            ],
        )
        .await
}

/// An endpoint to which nothing is sent.
async fn of_endpoints(found: &mut Found) -> Result<()> {
    found.world.hook(4, 4, "?status=410").await?;
    found.subscribe(4).await?;
    found
        .found(
            "the endpoint is switched off: it answered 410",
            &[asked("walhook endpoints list --account 4", &["disabled", "status 410"])],
        )
        .await?;
    found.world.hook(5, 5, "").await?;
    found.world.walhook(&["endpoints", "pause", "5", "--reason", "being moved"]).await?;
    found.subscribe(5).await?;
    found
        .found(
            "an operator paused the endpoint",
            &[asked("walhook endpoints list --account 5", &["paused", "being moved"])],
        )
        .await
}

/// A request that fails, and how.
async fn of_requests(found: &mut Found) -> Result<()> {
    found.hook_at(6, "http://10.0.0.1/").await?;
    found.hook_at(7, "http://no-such-host.invalid/").await?;
    let plain = found.world.mock.url("/8").replace("http://", "https://");
    found.hook_at(8, &plain).await?;
    found.world.hook(9, 9, "?status=401").await?;
    found.world.hook(10, 10, "?status=503").await?;
    for account in 6..=9 {
        found.subscribe(account).await?;
    }
    for _ in 0..20 {
        found.subscribe(10).await?;
    }
    for (what, asked) in [
        (
            "the endpoint's address is not allowed ([egress])",
            asked("walhook deferred list --account 6", &["failed", "forbidden", "10.0.0.1"]),
        ),
        ("DNS has no such name", asked("walhook deferred list --account 7", &["failed", "dns: "])),
        ("TLS fails", asked("walhook deferred list --account 8", &["failed", "tls: "])),
        (
            "the receiver answers 401",
            asked("walhook deferred list --account 9", &["failed", "status 401"]),
        ),
        (
            "the endpoint failed too often: its breaker is open",
            asked(
                "walhook endpoints list --account 10",
                &["breaker_open", "it failed too often, and is tried again"],
            ),
        ),
    ] {
        found.found(what, &[asked]).await?;
    }
    Ok(())
}

/// A delivery that waits for others, or for room.
async fn of_waiting(found: &mut Found) -> Result<()> {
    found.world.hook(11, 11, "").await?;
    found.run_sql("UPDATE webhooks SET rate_per_second = 0.001 WHERE id = 11").await?;
    for _ in 0..3 {
        found.subscribe(11).await?;
    }
    found
        .found(
            "the endpoint has a rate limit",
            &[asked("walhook deferred list --account 11", &["held"])],
        )
        .await?;
    found.world.hook(12, 12, "").await?;
    found.world.mock.set_behaviour("/12", Behaviour::status(StatusCode::SERVICE_UNAVAILABLE));
    let row = found.subscribe(12).await?;
    found.until_said("walhook deferred list --account 12", &["failed", "status 503"]).await?;
    found.world.mock.set_behaviour("/12", Behaviour::ok());
    found.status(row, "touched").await?;
    found
        .found(
            "an earlier event of the same row waits",
            &[asked("walhook deferred list --account 12", &["behind"])],
        )
        .await?;
    found.suspended().await?;
    found
        .found(
            "the state tables are full, and the endpoint is suspended",
            &[
                asked("walhook endpoints list --account 13", &["suspended", "state.max_size"]),
                asked("walhook gaps list", &["endpoint 13 only", "deliveries"]),
            ],
        )
        .await
}

/// A database that does not do its part.
async fn of_databases(found: &mut Found) -> Result<()> {
    found.run_sql("REVOKE SELECT ON webhooks FROM sender").await?;
    found
        .found(
            "endpoints cannot be looked up",
            &[asked(
                "walhook status",
                &[
                    "FAILING",
                    "lookups, since",
                    "cannot look endpoints up",
                    "permission denied",
                    "fix: ",
                ],
            )],
        )
        .await?;
    found.run_sql("GRANT SELECT ON webhooks TO sender").await?;
    found.world.until_ready(true).await?;
    let away = "ALTER DATABASE state ALLOW_CONNECTIONS false";
    found.run_sql(away).await?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'state'";
    found.run_sql(end).await?;
    found
        .found(
            "the state database is down",
            &[asked(
                "walhook status",
                &["FAILING", "state, since", "cannot store the checkpoint", "fix: "],
            )],
        )
        .await?;
    found.run_sql("ALTER DATABASE state ALLOW_CONNECTIONS true").await?;
    found.world.until_ready(true).await?;
    Ok(())
}

/// Nothing is sent for anyone, or something never will be.
async fn of_the_pipeline(found: &mut Found) -> Result<()> {
    found
        .found("no instance leads", &[asked("walhook status", &["leader", "none runs (last: "])])
        .await?;
    let running = found.world.run().await?;
    found.run_sql("ALTER PUBLICATION walhook DROP TABLE subscribers").await?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}: {log}");
    found
        .found(
            "the publication does not hold the table",
            &[asked(
                "walhook status",
                &["HALTED", "publication", "does not hold the table public.subscribers"],
            )],
        )
        .await?;
    found.run_sql("ALTER PUBLICATION walhook ADD TABLE subscribers").await?;
    let running = found.world.run().await?;
    found
        .found(
            "what was committed for a time is in no stream: a gap",
            &[asked("walhook gaps list", &["table public.subscribers only"])],
        )
        .await?;
    found.run_sql("ALTER TABLE subscribers REPLICA IDENTITY DEFAULT").await?;
    found.run_sql("UPDATE subscribers SET status = 'unsubscribed' WHERE account_id = 1").await?;
    let (status, log) = running.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}: {log}");
    found
        .found(
            "the replica identity logs too little for the rule",
            &[
                asked(
                    "walhook status",
                    &["HALTED", "replica identity", "logs only id", "ALTER TABLE"],
                ),
                asked("walhook check", &["fail", "replica identity"]),
            ],
        )
        .await?;
    found.run_sql("ALTER TABLE subscribers REPLICA IDENTITY FULL").await?;
    for _ in 0..20 {
        found.run_sql("SELECT pg_logical_emit_message(false, 'test', ''), pg_switch_wal()").await?;
    }
    found.run_sql("CHECKPOINT").await?;
    let (status, log) = found.world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(3), "{status}: {log}");
    found
        .found(
            "the slot is lost",
            &[asked("walhook status", &["HALTED", "is lost", "recover --accept-gap"])],
        )
        .await
}
