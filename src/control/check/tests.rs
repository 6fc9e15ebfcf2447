use super::*;
use crate::control::endpoints::{Query, list};
use crate::control::fixture::Fixture;
use crate::control::setup;
use walhook_core::endpoint::Secret;

mod connections;

/// The findings that are not passes, one a line.
async fn complaints(config: &Config) -> Vec<String> {
    let mut report = Report::default();
    check(config, &mut report).await.unwrap();
    // The usual role of these tests is a superuser, and there is mostly no endpoint.
    let told = |f: &&Finding| f.verdict != Verdict::Pass && f.what != "role" && !has_none(f);
    report.0.iter().filter(told).map(ToString::to_string).collect()
}

fn has_none(finding: &Finding) -> bool {
    finding.what == "endpoints" && finding.finding.ends_with(" holds none")
}

async fn passes(config: &Config) -> Vec<String> {
    let mut report = Report::default();
    check(config, &mut report).await.unwrap();
    report.0.iter().filter(|f| f.verdict == Verdict::Pass).map(ToString::to_string).collect()
}

#[tokio::test]
async fn check_passes_what_setup_made_and_warns_of_unbounded_wal() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let found = complaints(&config).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("warn  max_slot_wal_keep_size: "), "{found:?}");
}

#[tokio::test]
async fn check_and_status_tell_of_a_pipeline_that_nobody_runs() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let config = fixture.config("");
    let mut second = config.clone();
    second.source.slot = "second".to_owned();
    second.source.publication = "second".to_owned();
    for config in [&config, &second] {
        setup::quietly(config).await.unwrap();
    }
    let found = complaints(&second).await;
    let expected = "warn  pipelines: no instance runs the pipeline walhook of this schema";
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    assert!(found[0].contains("changed from walhook to second, set it back"), "{found:?}");
    let idle = async |config| {
        let view = crate::control::status::read(config, None).await.unwrap();
        view.idle_pipelines.into_iter().map(|idle| idle.pipeline).collect::<Vec<_>>()
    };
    assert_eq!(idle(&second).await, ["walhook"]);
    let reader = fixture.read_slot().await;
    assert_eq!(complaints(&second).await, Vec::<String>::new());
    assert!(idle(&second).await.is_empty());
    drop(reader);
}

#[tokio::test]
async fn check_fails_before_setup_and_says_what_to_run() {
    let fixture =
        Fixture::start_with(&[("wal_level", "replica"), ("wal_sender_timeout", "0")]).await;
    let found = complaints(&fixture.config("")).await;
    for expected in [
        "fail  wal_level: replica; set wal_level = logical",
        "warn  wal_sender_timeout: 0",
        "fail  state: the schema walhook has 0 of",
        "fail  publication: walhook does not exist; run `walhook setup`",
        "fail  slot: walhook does not exist; run `walhook setup`",
    ] {
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
    }
}

#[tokio::test]
async fn check_tells_before_setup_which_tables_it_would_not_publish() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let says =
        "fail  publication: public.subscribers has no replica identity that can be published";
    fixture.run("ALTER TABLE subscribers DROP CONSTRAINT subscribers_pkey").await;
    let found = complaints(&config).await;
    assert!(found.iter().any(|line| line.starts_with(says)), "{found:?}");
    fixture.run("CREATE PUBLICATION walhook FOR TABLE webhooks").await;
    let says = "fail  publication: walhook does not hold public.subscribers; public.subscribers has no replica";
    let found = complaints(&config).await;
    assert!(found.iter().any(|line| line.starts_with(says)), "{found:?}");
}

#[tokio::test]
async fn check_names_each_fault_with_its_fix() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    assert_eq!(complaints(&config).await, Vec::<String>::new());
    for (breaks, fixes, expected) in [
        (
            "UPDATE walhook.meta SET schema_version = 1",
            "UPDATE walhook.meta SET schema_version = 2",
            "warn  state: the tables have version 1",
        ),
        (
            "ALTER ROLE postgres SET plan_cache_mode = force_generic_plan;
             ALTER ROLE postgres SET quote_all_identifiers = on;
             ALTER ROLE postgres SET lock_timeout = '29s'",
            "ALTER ROLE postgres RESET ALL",
            "warn  lock_timeout: 29000 ms for postgres",
        ),
        (
            "ALTER ROLE postgres SET default_transaction_read_only = on",
            "SET transaction_read_only = off; ALTER ROLE postgres RESET ALL",
            "fail  read-only: the transactions of postgres may not write",
        ),
        (
            "ALTER TABLE webhooks RENAME enabled TO active",
            "ALTER TABLE webhooks RENAME active TO enabled",
            "fail  endpoints.enabled: public.webhooks has no column enabled",
        ),
        (
            "ALTER TABLE webhooks ALTER event_types TYPE text USING ''",
            "ALTER TABLE webhooks ALTER event_types TYPE text[] USING '{}'",
            "fail  endpoints.event_types: public.webhooks.event_types is text; it must be text[]",
        ),
        (
            "ALTER TABLE subscribers RENAME email TO mail",
            "ALTER TABLE subscribers RENAME mail TO email",
            "fail  rule 1 (a.b): columns: public.subscribers has no column email (did you mean",
        ),
        (
            "ALTER TABLE subscribers REPLICA IDENTITY NOTHING",
            "ALTER TABLE subscribers REPLICA IDENTITY DEFAULT",
            "fail  replica identity: public.subscribers has no replica identity",
        ),
        (
            "ALTER PUBLICATION walhook SET (publish = 'insert')",
            "ALTER PUBLICATION walhook SET (publish = 'insert, update, delete, truncate')",
            "fail  publication: walhook does not publish update",
        ),
        (
            "ALTER PUBLICATION walhook DROP TABLE subscribers",
            "ALTER PUBLICATION walhook ADD TABLE subscribers",
            "fail  publication: walhook does not hold public.subscribers",
        ),
        (
            "ALTER PUBLICATION walhook SET TABLE webhooks, subscribers WHERE (id > 0)",
            "ALTER PUBLICATION walhook SET TABLE webhooks, subscribers",
            "fail  publication: walhook has a row filter on public.subscribers",
        ),
        (
            "UPDATE walhook.meta SET timeline = 7",
            "UPDATE walhook.meta SET timeline = 1",
            "fail  state: this is not the database that walhook was set up for: its timeline is 1, it was 7",
        ),
    ] {
        fixture.run(breaks).await;
        let found = complaints(&config).await;
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
        fixture.run(fixes).await;
        let mut left = complaints(&config).await;
        // From version 18 on nobody can tell whether it was made again, or only altered, as here.
        left.retain(|line| !line.starts_with("warn  publication: walhook was made or altered"));
        assert_eq!(left, Vec::<String>::new(), "after {fixes}");
    }
}

#[tokio::test]
async fn check_fails_where_run_would_halt_and_says_how_to_recover() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    for expected in ["does not exist any more", "after the checkpoint"] {
        let found = complaints(&config).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("fail  slot: ") && found[0].contains(expected));
        assert!(found[0].contains("`walhook recover --accept-gap`"), "{found:?}");
        let again = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')
                     WHERE NOT EXISTS (SELECT FROM pg_replication_slots)";
        fixture.run(again).await;
    }
}

#[tokio::test]
async fn check_names_search_path_where_the_endpoint_view_relies_on_one() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    fixture
        .run(
            "CREATE SCHEMA \"Billing\";
             CREATE FUNCTION \"Billing\".is_paid(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true';
             CREATE FUNCTION public.is_on(bigint) RETURNS boolean LANGUAGE plpgsql AS
                 'BEGIN RETURN is_paid($1); END';
             INSERT INTO webhooks (account_id, url, event_types, secret)
                 VALUES (7, 'https://a.example', '{*}', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');
             CREATE VIEW paid AS SELECT id, account_id, url, event_types, secret,
                 is_on(account_id) AS enabled FROM webhooks",
        )
        .await;
    let mut config = fixture.config("");
    config.endpoints.watch = vec!["public.webhooks".to_owned()];
    config.endpoints.table = "public.paid".to_owned();
    setup::quietly(&config).await.unwrap();
    let found = complaints(&config).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("fail  look-up: "), "{found:?}");
    assert!(found[0].contains("is_paid(bigint) does not exist"), "{found:?}");
    assert!(found[0].contains("endpoints.search_path"), "{found:?}");
    config.endpoints.search_path = "pg_catalog, \"Billing\", pg_temp".to_owned();
    assert_eq!(complaints(&config).await, Vec::<String>::new());
}

#[tokio::test]
async fn check_fails_when_the_customers_commits_would_wait_for_us() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let set = async |names: &str| {
        let client = fixture.connect().await;
        // Each in a transaction of its own, and nothing that would wait for a standby.
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = {names}");
        client.batch_execute("SET synchronous_commit = off").await.unwrap();
        client.batch_execute(&set).await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        let shown = "SELECT current_setting('synchronous_standby_names')";
        let wanted = names.trim_matches('\'');
        let seen = async { while fixture.text(shown).await != wanted {} };
        tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.unwrap();
    };
    for names in ["'*'", "'FIRST 1 (replica, \"WalHook\")'"] {
        set(names).await;
        let found = complaints(&config).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("fail  synchronous_standby_names: "), "{found:?}");
    }
    set("'ANY 1 (replica, walhook2)'").await;
    assert_eq!(complaints(&config).await, Vec::<String>::new());
}

#[tokio::test]
async fn check_names_missing_privileges_and_hidden_rows() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    setup::quietly(&fixture.config("")).await.unwrap();
    fixture.run("CREATE ROLE sender LOGIN").await;
    let config = fixture.config_as("sender", "");
    let found = complaints(&config).await;
    for expected in [
        "fail  privileges: sender may not replicate; ALTER ROLE \"sender\" REPLICATION",
        "fail  privileges: sender may not read public.webhooks; GRANT SELECT",
        "fail  state: sender may not use the schema walhook",
    ] {
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
    }
    fixture
        .run(
            "ALTER ROLE sender REPLICATION; GRANT SELECT ON webhooks TO sender;
             GRANT USAGE ON SCHEMA walhook TO sender;
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walhook TO sender;
             ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY",
        )
        .await;
    let found = complaints(&config).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("fail  row-level security: hides rows of public.webhooks"));
}

#[tokio::test]
async fn check_and_list_say_that_the_endpoint_table_is_locked() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let migration = fixture.connect().await;
    migration.batch_execute("BEGIN; LOCK TABLE webhooks, subscribers").await.unwrap();
    let query = Query { limit: 1, ..Query::default() };
    let (found, listed) = tokio::join!(complaints(&config), list(&config, &query));
    let locked = found.iter().filter(|line| line.starts_with("fail"));
    let [line] = &locked.collect::<Vec<_>>()[..] else { panic!("{found:?}") };
    assert!(line.contains("lock timeout") && line.contains("pg_locks shows"), "{line}");
    let refused = format!("{:#}", listed.unwrap_err());
    assert!(
        refused.contains("cannot read the endpoint table") && refused.contains("55P03"),
        "{refused}"
    );
}

#[tokio::test]
async fn check_shows_what_each_rule_costs_a_row_and_warns_of_a_costly_one() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let mut config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let cheap = passes(&config).await;
    let line = cheap.iter().find(|line| line.contains("rule 1 (a.b): fits ")).unwrap();
    assert!(
        line.contains(" a row, ") && line.ends_with("where texts and json have 16 KiB"),
        "{line}"
    );

    // Every column is read some hundred times.
    let reads = vec!["new.email.contains('y')"; 150].join(" || ");
    config.events[0].when = Some(reads);
    let found = complaints(&config).await;
    assert!(found.iter().any(|line| line.starts_with("warn  rule 1 (a.b): costs ")), "{found:?}");
}

#[tokio::test]
async fn check_warns_of_a_pattern_that_looks_for_a_backslash() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let mut config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    config.events[0].when = Some(r"new.email.matches('^\\\\w+@')".to_owned());
    let found = complaints(&config).await;
    let says = r"warn  rule 1 (a.b): when: the pattern looks for a literal backslash followed by `w`; write `\\w`";
    assert!(found.len() == 1 && found[0].starts_with(says), "{found:?}");
}

#[tokio::test]
async fn check_warns_of_a_column_that_may_be_null_where_the_rule_fails_by_that() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let mut config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    config.events[0].when = Some("new.id > 5 && new.email.size() > 5".to_owned());
    assert_eq!(complaints(&config).await, [""; 0], "it never is");
    fixture.run("ALTER TABLE subscribers ALTER email DROP NOT NULL").await;
    let found = complaints(&config).await;
    let says = "warn  rule 1 (a.b): when: new.email may be null, and then the change becomes a dead letter; write \
                new.email != null && before";
    assert!(found.len() == 1 && found[0].starts_with(says), "{found:?}");
}

#[test]
fn check_warns_where_the_limit_of_open_files_does_not_suffice_for_all_slots() {
    let said = |limit| {
        let mut report = Report::default();
        open_files((256, 1_024), limit, &mut report);
        report.0[0].to_string()
    };
    assert_eq!(said(1_376), "pass  open files: the limit here is 1376; all slots need 1376");
    let warned = said(1_024);
    assert!(warned.starts_with("warn  open files: the limit here is 1024"), "{warned}");
    assert!(
        warned.contains("256 fast and 672 slow") && warned.contains("LimitNOFILE=1376"),
        "{warned}"
    );
}

/// All findings with this subject, whatever the verdict.
async fn told(config: &Config, what: &str) -> Vec<String> {
    let mut report = Report::default();
    check(config, &mut report).await.unwrap();
    report.0.iter().filter(|finding| finding.what == what).map(ToString::to_string).collect()
}

#[tokio::test]
async fn check_warns_of_rows_and_never_fails_for_them() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let accounts = "CREATE TABLE accounts (id bigint PRIMARY KEY, weight numeric, slots bigint)";
    fixture.run(accounts).await;
    let config = fixture.config("[accounts]\ntable = \"public.accounts\"\nreserved = \"slots\"\n");
    setup::quietly(&config).await.unwrap();
    assert!(told(&config, "endpoints").await[1].contains("public.webhooks holds none"));
    assert!(told(&config, "role").await[0].starts_with("warn  role: postgres is a superuser"));

    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    fixture
        .run(&format!(
            "INSERT INTO webhooks (account_id, url, event_types, secret)
             SELECT n, 'https://a.example/', '{{a.*}}', '{secret}' FROM generate_series(1, 3) n;
             INSERT INTO webhooks (account_id, url, event_types, secret)
             SELECT 4, 'http://10.0.0.1/' || n, '{{*}}', '{secret}' FROM generate_series(1, 12) n;
             INSERT INTO webhooks (account_id, url, event_types, secret) VALUES
                 (5, 'https://a.example/', '{{a.b,subscriber.creatd}}', '{secret}'),
                 (6, 'https://a.example/', '{{*}}', 'whsec_?hush!'),
                 (7, 'gopher://a', '{{*}}', '{secret}');
             INSERT INTO accounts VALUES (1, 2, 100), (2, NULL, 29), (3, 0, -1), (4, 'NaN', NULL)"
        ))
        .await;
    let found = complaints(&config).await;
    for expected in [
        "warn  endpoints: 2 of 18 endpoints cannot be used: 17 (the secret ",
        "warn  endpoints: 12 of 18 endpoints have a URL that [egress] refuses: 10 (",
        "warn  endpoints: 1 of 18 endpoints want event types that no rule makes: 16 (subscriber.creatd)",
        "warn  accounts: 3 of 4 accounts have no weight above 0, so that it counts as 1: 2, 3, 4",
        "warn  accounts: 1 of 4 accounts reserve no whole number of slots, so that they have none: 3",
        "warn  accounts: 129 slots are reserved for accounts; of 256 fast and 1024 slow ones 128 can be",
    ] {
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:#?}");
    }
    assert!(found.iter().all(|line| line.starts_with("warn")), "{found:#?}");
    let refused = found.iter().find(|line| line.contains("[egress] refuses")).unwrap();
    assert!(refused.contains(", ...") && !refused.contains("http"), "{refused}");
    assert!(!found.iter().any(|line| line.contains("hush")), "{found:#?}");

    fixture.run("UPDATE webhooks SET enabled = false").await;
    assert!(told(&config, "endpoints").await[1].contains("none of the 18 in public.webhooks is"));
}

#[tokio::test]
async fn check_warns_of_ids_that_endpoints_of_several_accounts_share() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    fixture
        .run(&format!(
            "ALTER TABLE webhooks DROP CONSTRAINT webhooks_pkey, ADD PRIMARY KEY (account_id, id);
             INSERT INTO webhooks (id, account_id, url, event_types, secret) OVERRIDING SYSTEM VALUE
             SELECT n % 3, n, 'https://a.example/', '{{*}}', '{secret}' FROM generate_series(1, 4) n"
        ))
        .await;
    let shared = "warn  endpoints: 2 of 4 endpoints have an id that one of another account has too: \
                  1 (accounts 1 and 4), 1 (accounts 4 and 1)";
    let found = complaints(&config).await;
    assert!(found.iter().any(|line| line.starts_with(shared)), "{found:#?}");
}

#[tokio::test]
async fn check_takes_event_types_in_json() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    for kind in ["jsonb", "json"] {
        let alter = format!(
            "ALTER TABLE webhooks ALTER event_types DROP DEFAULT,
                 ALTER event_types TYPE {kind} USING to_json(event_types)::{kind}"
        );
        fixture.run(&alter).await;
        assert_eq!(complaints(&config).await, Vec::<String>::new(), "{kind}");
        fixture
            .run(
                "ALTER TABLE webhooks DROP event_types;
                 ALTER TABLE webhooks ADD event_types text[] NOT NULL DEFAULT '{*}'",
            )
            .await;
    }
}

#[tokio::test]
async fn check_that_ends_early_tells_what_it_has_found_and_why() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    fixture.run("UPDATE walhook.meta SET schema_version = 99").await;
    let CheckView { failures, findings, .. } = run(&config).await;
    let last = findings.last().unwrap().to_string();
    assert!(last.starts_with("fail  check: ended before its end: "), "{last}");
    assert!(last.contains("version 99") && last.contains("run a later walhook"), "{last}");
    assert!(failures >= 1 && findings.iter().any(|f| f.what == "server"), "{findings:?}");
}

#[tokio::test]
async fn check_warns_of_a_weak_secret_of_notices_and_of_a_timeout_that_the_url_sets() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    let mut config = fixture.config("[notify]\nurl = \"https://127.0.0.1/\"\nsecret = \"short\"");
    setup::quietly(&config).await.unwrap();
    let url = format!("{}?options=-c%20statement_timeout%3D5000", config.source.url.expose());
    config.source.url = Secret::new(url).into();
    let found = complaints(&config).await;
    for says in
        ["notify.secret: has fewer than 24 bytes", "take statement_timeout out of `options`"]
    {
        assert!(found.iter().any(|line| line.contains(says)), "{says}: {found:#?}");
    }
}
