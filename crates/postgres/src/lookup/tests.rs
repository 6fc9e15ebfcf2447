//! Against a real PostgreSQL.

use std::collections::BTreeMap;
use std::fmt::Write as _;

mod apart;

use super::*;
use crate::fix::Failure;
use crate::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_core::endpoint::Secret;
use walhook_testkit::cluster::Cluster;

async fn start() -> (Cluster, Connection) {
    let cluster = Cluster::start_copied(&std::env::temp_dir(), &[]).await.unwrap();
    let client = Connection::open_with_path(
        &Secret::new(cluster.url("postgres")),
        "test",
        SERVER_SEARCH_PATH,
    )
    .await
    .unwrap();
    (cluster, client)
}

fn lookups(toml: &str) -> Lookups {
    #[derive(serde::Deserialize)]
    struct Tables {
        endpoints: settings::Endpoints,
        accounts: Option<settings::Accounts>,
    }
    let tables: Tables = toml::from_str(toml).unwrap();
    Lookups::new(&tables.endpoints, tables.accounts.as_ref())
}

const PLAIN: &str = "[endpoints]\ntable = 'public.hooks'";

fn ids(accounts: &[&str]) -> Vec<AccountId> {
    accounts.iter().map(|a| AccountId::new(*a)).collect()
}

fn found(fetched: &Fetched) -> Vec<(&str, Vec<&str>)> {
    fetched
        .routes
        .iter()
        .map(|(account, r)| (account.as_str(), r.endpoints.iter().map(|e| e.id.as_str()).collect()))
        .collect()
}

#[tokio::test]
async fn lookup_serves_every_type_of_account_column_by_its_index() {
    let (_cluster, client) = start().await;
    let uuid = "00000000-0000-0000-0000-00000000002a";
    for (kind, value, known, others) in [
        ("int", "g", "42", ["99999999999", "abc", "", "4 2"]),
        ("bigint", "g", "42", ["99999999999999999999", "4.2", "x", "0x2a"]),
        ("smallint", "g % 30000", "42", ["70000", "x", "-1", "1e1"]),
        (
            "uuid",
            "lpad(to_hex(g), 32, '0')::uuid",
            uuid,
            ["42", "", "zz", "0000000000000000000000000000002g"],
        ),
        ("text", "g", "42", ["", "'; drop table hooks; --", "\\", "{}"]),
        ("varchar(20)", "g", "42", ["", "x", "y", "z"]),
        ("char(8)", "g", "42      ", ["", "x", "y", "z"]),
        ("account_number", "g", "42", ["99999999999999999999", "x", "y", "z"]),
    ] {
        let sql = format!(
            "DROP TABLE IF EXISTS hooks;
             DROP DOMAIN IF EXISTS account_number;
             CREATE DOMAIN account_number AS bigint CHECK (value > 0);
             CREATE TABLE hooks (id bigint PRIMARY KEY, account_id {kind}, url text,
                 event_types text[], secret text, enabled boolean);
             INSERT INTO hooks SELECT g, {value}, 'http://x/', '{{*}}', 's', true
                 FROM generate_series(1, 20000) g;
             CREATE INDEX hooks_account ON hooks (account_id);
             ANALYZE hooks;"
        );
        client.batch_execute(&sql).await.unwrap();
        let lookups = lookups(PLAIN);
        let mut asked = ids(&others);
        asked.push(AccountId::new(known));
        let fetched = lookups.fetch(&client, &asked).await.unwrap();
        let (with, without): (Vec<_>, Vec<_>) =
            found(&fetched).into_iter().partition(|(_, endpoints)| !endpoints.is_empty());
        assert_eq!(with, [(known, vec!["42"])], "{kind}");
        assert_eq!(without.len(), 4, "{kind}: a value that is none of the type fails nobody");
        assert_eq!(&*fetched.routes[4].1.endpoints[0].account, known, "{kind}");

        let plan = lookups.known_plan().unwrap();
        let explain = format!("EXPLAIN {}", plan.batch);
        let accounts = vec![Some(known)];
        let lines = client
            .query_typed(&explain, &[(&accounts, Type::TEXT_ARRAY), (&accounts, Type::TEXT_ARRAY)])
            .await
            .unwrap();
        let lines: Vec<String> = lines.iter().map(|l| l.get(0)).collect();
        let lines = lines.join("\n");
        assert!(lines.contains("hooks_account") && !lines.contains("Seq Scan"), "{kind}:\n{lines}");
    }
}

/// The catalog was read over a minute ago, and a look-up was slow.
fn age_plan(lookups: &Lookups) {
    let mut memory = lookups.memory();
    memory.planned_at = memory.planned_at.map(|at| at - Duration::from_secs(61));
    memory.doubt_plan();
}

/// Rows of which the planner knows nothing, and a batch of accounts.
#[tokio::test]
async fn batch_goes_by_the_index_where_there_is_one_whatever_the_statistics_say() {
    let (_cluster, client) = start().await;
    let sql = "CREATE TABLE hooks (id bigint PRIMARY KEY, account_id bigint, url text,
            event_types text[], secret text, enabled boolean) WITH (autovacuum_enabled = off);
        INSERT INTO hooks SELECT g, g, 'http://x/', '{*}', 's', true FROM generate_series(1, 50000) g;";
    client.batch_execute(sql).await.unwrap();
    let accounts: Vec<String> = (1..=500).map(|n| (n * 97).to_string()).collect();
    let asked: Vec<AccountId> = accounts.iter().map(|a| AccountId::new(a.as_str())).collect();
    let scanned = async |lookups: &Lookups| {
        assert_eq!(lookups.fetch(&client, &asked).await.unwrap().routes.len(), 500);
        let explain =
            format!("EXPLAIN (ANALYZE, TIMING OFF) {}", lookups.known_plan().unwrap().batch);
        let params: [(&(dyn ToSql + Sync), Type); 2] =
            [(&accounts, Type::TEXT_ARRAY), (&accounts, Type::TEXT_ARRAY)];
        let lines = client.query_typed(&explain, &params).await.unwrap();
        let lines: Vec<String> = lines.iter().map(|line| line.get(0)).collect();
        lines.into_iter().filter(|line| line.contains("hooks")).collect::<String>()
    };
    let lookups = lookups(PLAIN);
    let without = scanned(&lookups).await;
    assert!(without.contains("Seq Scan") && without.contains("loops=1)"), "{without}");
    client.batch_execute("CREATE INDEX hooks_account ON hooks (account_id)").await.unwrap();
    // The catalog is read again where look-ups are slow, once a minute.
    lookups.memory().doubt_plan();
    assert!(lookups.known_plan().is_some());
    age_plan(&lookups);
    let with = scanned(&lookups).await;
    assert!(with.contains("hooks_account") && !with.contains("Seq Scan"), "{with}");
    assert!(with.contains("loops=500)") && !with.contains("loops=1)"), "{with}");
    // The rows of a child are in none of its parent's indexes, and would be read for each account.
    client.batch_execute("CREATE TABLE more_hooks () INHERITS (hooks)").await.unwrap();
    age_plan(&lookups);
    let child = scanned(&lookups).await;
    assert!(child.contains("more_hooks") && !child.contains("loops=500)"), "{child}");
}

#[tokio::test]
async fn lookup_reads_secrets_headers_limits_and_weights() {
    let (_cluster, client) = start().await;
    client
        .batch_execute(
            r#"CREATE TABLE "Hooks" (id int, "Account" text, url text, event_types text[],
                   secret text[], enabled boolean, extra jsonb, most int, rate numeric);
               INSERT INTO "Hooks" VALUES
                   (10, 'a', 'http://ten/', '{a.b,c.*}', '{s1,s2}', true, '{"x": "1", "y": "2"}', 3, 0.5),
                   (9, 'a', 'http://nine/', NULL, '{s}', NULL, NULL, NULL, NULL),
                   (1, 'b', NULL, '{*}', NULL, true, '{"x": 1}', 0, 'NaN'),
                   (2, 'b', 'http://b/', '{*,NULL}', '{}', true, '[]', -1, 0),
                   (3, 'b', 'http://b/', '{*}', '{a,NULL}', true, NULL, NULL, NULL),
                   (4, 'b', 'http://b/', '{*}', '{""}', true, NULL, NULL, NULL);
               CREATE TABLE accounts (id bigint PRIMARY KEY, weight numeric);
               INSERT INTO accounts VALUES (1, 2.5), (2, NULL), (3, 0), (4, 'NaN')"#,
        )
        .await
        .unwrap();
    let lookups = lookups(
        "[endpoints]\ntable = 'public.\"Hooks\"'\naccount = 'Account'\nheaders = 'extra'\n\
         max_in_flight = 'most'\nrate_per_second = 'rate'\n\
         [accounts]\ntable = 'public.accounts'",
    );
    let asked = ids(&["a", "b", "1", "2", "3", "4", "5"]);
    let fetched = lookups.fetch(&client, &asked).await.unwrap();
    assert_eq!(found(&fetched)[0], ("a", vec!["10", "9"]), "by the bytes of the id");
    let weights: Vec<f64> = fetched.routes.iter().map(|(_, r)| r.share.weight).collect();
    assert_eq!(weights, [1.0, 1.0, 2.5, 1.0, 1.0, 1.0, 1.0]);

    let both = &fetched.routes[0].1;
    let [ten, nine] = &both.endpoints[..] else { panic!("two endpoints") };
    assert_eq!(both.endpoint(&nine.id), Some(nine), "found by its id");
    assert_eq!(both.endpoint(&ten.id), Some(ten), "found by its id");
    assert_eq!(ten.url, "http://ten/");
    assert_eq!(ten.event_types, ["a.b", "c.*"]);
    assert_eq!(ten.secrets, [Secret::new("s1"), Secret::new("s2")]);
    assert_eq!(ten.headers, [("x".into(), "1".into()), ("y".into(), "2".into())]);
    assert_eq!((ten.max_in_flight, ten.rate_per_second), (Some(3), Some(0.5)));
    assert_eq!((ten.enabled, &ten.invalid), (true, &None));
    assert_eq!((nine.enabled, nine.event_types.len(), &nine.invalid), (false, 0, &None));

    let complaints: Vec<&str> =
        fetched.routes[1].1.endpoints.iter().map(|e| e.invalid.as_deref().unwrap()).collect();
    assert_eq!(
        complaints,
        [
            "the url is null; the secret is null; \
             the limit of requests in flight is no whole number above 0; \
             the limit of requests a second is no number above 0",
            "the secret is an empty array; the headers are no object; \
             the limit of requests in flight is no whole number above 0; \
             the limit of requests a second is no number above 0",
            "the secret holds a null",
            "the secret cannot be used: a secret is empty",
        ]
    );
    assert!(fetched.routes[1].1.endpoints.iter().all(|e| e.wants("any")), "still wanted");
}

#[tokio::test]
async fn lookup_snapshot_is_that_of_the_rows() {
    let (cluster, client) = start().await;
    let hooks = "CREATE TABLE hooks (id int, account_id int, url text, event_types text[],
                     secret text, enabled boolean)";
    client.batch_execute(hooks).await.unwrap();
    let lookups = lookups(PLAIN);
    let none = lookups.fetch(&client, &[]).await.unwrap();
    assert!(none.routes.is_empty() && none.snapshot.contains(':'), "{none:?}");

    let writer = Connection::open_with_path(
        &Secret::new(cluster.url("postgres")),
        "test",
        SERVER_SEARCH_PATH,
    )
    .await
    .unwrap();
    let insert = "BEGIN; INSERT INTO hooks VALUES (1, 7, 'http://x/', '{*}', 's', true)";
    writer.batch_execute(insert).await.unwrap();
    let xid: String =
        writer.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    let sees = "SELECT pg_visible_in_snapshot($1::text::xid8, $2::text::pg_snapshot)";
    for committed in [false, true] {
        let fetched = lookups.fetch(&client, &ids(&["7"])).await.unwrap();
        let visible = client.query_one(sees, &[&xid, &fetched.snapshot]).await.unwrap();
        assert_eq!(visible.get::<_, bool>(0), committed);
        assert_eq!(fetched.routes[0].1.endpoints.len(), usize::from(committed));
        writer.batch_execute("COMMIT").await.unwrap();
    }
}

#[tokio::test]
async fn lookup_notices_a_migrated_account_column() {
    let (_cluster, client) = start().await;
    let hooks = "CREATE TABLE hooks (id int, account_id int, url text, event_types text[],
                     secret text, enabled boolean)";
    client.batch_execute(hooks).await.unwrap();
    let lookups = lookups(PLAIN);
    let big = ids(&["99999999999"]);
    assert_eq!(found(&lookups.fetch(&client, &big).await.unwrap())[0].1, Vec::<&str>::new());
    let migrate = "ALTER TABLE hooks ALTER account_id TYPE bigint;
                   INSERT INTO hooks VALUES (1, 99999999999, 'http://x/', '{*}', 's', true)";
    client.batch_execute(migrate).await.unwrap();
    assert_eq!(found(&lookups.fetch(&client, &big).await.unwrap())[0].1, ["1"]);

    // An enumeration is compared as text.
    let migrate = "CREATE TYPE tier AS ENUM ('gold');
                   DELETE FROM hooks;
                   ALTER TABLE hooks ALTER account_id TYPE tier USING 'gold';
                   INSERT INTO hooks VALUES (1, 'gold', 'http://x/', '{*}', 's', true)";
    client.batch_execute(migrate).await.unwrap();
    let fetched = lookups.fetch(&client, &ids(&["lead", "gold"])).await.unwrap();
    assert_eq!(found(&fetched), [("lead", vec![]), ("gold", vec!["1"])]);

    client.batch_execute("ALTER TABLE hooks RENAME account_id TO owner").await.unwrap();
    let error = lookups.fetch(&client, &big).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "public.hooks has no column account_id; correct `endpoints.account`"
    );
    assert!(!error.fixed_by().is_waiting());
}

/// An endpoint for each of the accounts 1 to 8, in a table whose columns take anything.
const ANYTHING: &str = "
    CREATE TABLE hooks (id text, account_id bigint, url text, event_types text[], secret text[],
        enabled text, headers json, max_in_flight text, rate_per_second text);
    INSERT INTO hooks SELECT g, g, 'http://x/' || g, '{*}', '{s}', 'true'
        FROM generate_series(1, 8) g;";

const ALL_COLUMNS: &str = "[endpoints]\ntable = 'public.hooks'\nheaders = 'headers'\n\
     max_in_flight = 'max_in_flight'\nrate_per_second = 'rate_per_second'";

fn eight() -> Vec<AccountId> {
    (1..=8).map(|n| AccountId::new(n.to_string())).collect()
}

/// What is wrong with each account's endpoints, or with the account.
fn complaints(fetched: &Fetched) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (account, routes) in &fetched.routes {
        let invalid = routes.endpoints.iter().filter_map(|e| e.invalid.clone());
        all.extend(invalid.chain(routes.refused.clone()).map(|why| (account.to_string(), why)));
    }
    all.sort();
    all
}

#[tokio::test]
async fn row_of_rubbish_spoils_its_own_endpoint_and_no_other() {
    let (_cluster, client) = start().await;
    client.batch_execute(ANYTHING).await.unwrap();
    let lookups = lookups(ALL_COLUMNS);
    let nested = format!("{}1{}", "{\"a\":".repeat(2_000), "}".repeat(2_000));
    let cases: Vec<(String, &str)> = vec![
        (format!("headers = '{nested}'"), "the headers hold a value that is no string"),
        ("headers = '{\"a\": 1e400}'".into(), "the headers hold a value that is no string"),
        (r#"headers = '{"a": "\u0000"}'"#.into(), "the headers hold a value that cannot stand"),
        (r#"headers = '{"a": "\ud800"}'"#.into(), "the headers hold a value that is no string"),
        (r#"headers = '{"\ud800": "a"}'"#.into(), "the headers are not JSON"),
        (
            "headers = (SELECT json_object_agg(g, 'x') FROM generate_series(1, 101) g)".into(),
            "are more than 100",
        ),
        (
            "headers = json_build_object('a', repeat('x', 10000000))".into(),
            "take more than 65536 bytes",
        ),
        ("event_types = '{{a,b},{c,d}}'".into(), "the event types are no array"),
        (
            "event_types = array_fill('a'::text, '{1001}')".into(),
            "the event types are more than 1000",
        ),
        ("event_types = ARRAY[repeat('x', 10000000)]".into(), "the event types are longer"),
        ("secret = '{{a},{b}}'".into(), "the secret is neither text"),
        ("secret = array_fill('a'::text, '{10000}')".into(), "the secret holds more than 10"),
        ("secret = ARRAY[repeat('x', 10000000)]".into(), "is longer than 256 KiB"),
        ("secret = '{\"v1,whsec_AAAA\"}'".into(), "the secret cannot be used"),
        ("url = 'http://x/' || repeat('x', 10000000)".into(), "the url is longer than 8 KiB"),
        (r"url = E'http://x/\r\na: b'".into(), "the url holds a control character"),
        ("url = NULL".into(), "the url is null"),
        ("enabled = 'perhaps'".into(), "the switch is no boolean"),
        ("max_in_flight = repeat('x', 10000)".into(), "the limit of requests in flight"),
        ("rate_per_second = '1e400'".into(), "the limit of requests a second"),
        ("rate_per_second = 'hush'".into(), "the limit of requests a second"),
        ("id = NULL".into(), "the id is null"),
        ("id = repeat('x', 10000000)".into(), "the id is longer than 512 bytes"),
    ];
    for (rubbish, complaint) in cases {
        let update = format!("{ANYTHING} UPDATE hooks SET {rubbish} WHERE account_id = 3");
        client.batch_execute(&format!("DROP TABLE hooks; {update}")).await.unwrap();
        let fetched = lookups.fetch(&client, &eight()).await.unwrap();
        assert!(fetched.bytes < 64 << 10, "{complaint}: {}", fetched.bytes);
        let [(account, said)] = &complaints(&fetched)[..] else {
            panic!("{complaint}: {fetched:?}")
        };
        assert_eq!(account, "3");
        assert!(said.contains(complaint) && !said.contains("hush"), "{said}");
        assert!(fetched.routes.iter().all(|(_, routes)| routes.endpoints.len() == 1));
        assert!(fetched.routes[2].1.endpoints[0].wants("any"), "what it asks for is told");
    }
}

#[tokio::test]
async fn account_whose_rows_the_database_refuses_is_answered_for_alone() {
    let (_cluster, client) = start().await;
    // A view that fails for single rows, in ways of its own.
    let mut view = "CREATE FUNCTION pick(text, text) RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN
            CASE $1
                WHEN 'raise' THEN RAISE 'hush';
                WHEN 'own code' THEN RAISE 'hush' USING ERRCODE = 'WH001';
                WHEN 'division' THEN RETURN 1 / 0;
                WHEN 'cast' THEN RETURN 'hush'::int;
                WHEN 'two rows' THEN RETURN (SELECT g FROM generate_series(1, 2) g);
                WHEN 'too large' THEN RETURN repeat($2, 2000000000);
                WHEN 'unique' THEN RAISE unique_violation;
                ELSE RETURN $2;
            END CASE;
        END $$;
        CREATE TABLE stored (id bigint, account_id bigint, url text, event_types text[], secret text,
            enabled boolean, fault text DEFAULT '');
        INSERT INTO stored SELECT g, (g + 1) / 2, 'http://x/', '{*}', 's', true
            FROM generate_series(1, 16) g;"
        .to_owned();
    write!(
        view,
        "CREATE VIEW hooks AS SELECT id, account_id, pick(fault, url) AS url, event_types, secret, enabled
         FROM stored"
    )
    .unwrap();
    client.batch_execute(&view).await.unwrap();
    let lookups = lookups(PLAIN);
    let faults = ["raise", "own code", "division", "cast", "two rows", "too large", "unique"];
    for fault in faults {
        let set = format!(
            "UPDATE stored SET fault = ''; UPDATE stored SET fault = '{fault}' WHERE id = 5"
        );
        client.batch_execute(&set).await.unwrap();
        let fetched = lookups.fetch(&client, &eight()).await.unwrap();
        assert_eq!(fetched.routes.len(), 8, "{fault}");
        assert!(
            fetched.routes.iter().all(|(_, routes)| routes.endpoints.len() == 2),
            "{fault}: {fetched:?}"
        );
        let [(account, said)] = &complaints(&fetched)[..] else { panic!("{fault}: {fetched:?}") };
        assert_eq!(account, "3", "{fault}");
        assert!(said.starts_with("the database refuses to read it: SQLSTATE"), "{said}");
        assert!(!said.contains("hush"), "{said}");
        let listed = lookups.list(&client, Which { limit: 100, ..Which::default() }).await.unwrap();
        let invalid: Vec<&str> =
            listed.iter().filter(|l| l.invalid.is_some()).map(|l| l.id.as_str()).collect();
        assert_eq!((listed.len(), invalid), (16, vec!["5"]), "{fault}");
    }
    // Which rows there are cannot be told either.
    let whole = "CREATE INDEX ON stored (account_id);
        CREATE OR REPLACE VIEW hooks AS SELECT id, account_id, url, event_types, secret, enabled
        FROM stored WHERE pick(fault, url) IS NOT NULL";
    client.batch_execute(whole).await.unwrap();
    let fetched = lookups.fetch(&client, &eight()).await.unwrap();
    let refused: Vec<&str> = fetched
        .routes
        .iter()
        .filter(|(_, routes)| routes.refused.is_some())
        .map(|(account, _)| account.as_str())
        .collect();
    assert_eq!(refused, ["3"]);
    // It is looked at again, and then good.
    client.batch_execute("UPDATE stored SET fault = ''").await.unwrap();
    let fetched = lookups.fetch(&client, &eight()).await.unwrap();
    assert_eq!(complaints(&fetched), []);
    // For all of them it is nobody's fault: an outage.
    let all =
        "CREATE OR REPLACE VIEW hooks AS SELECT id, account_id, url, event_types, secret, enabled
        FROM stored WHERE pick('raise', url) IS NOT NULL";
    client.batch_execute(all).await.unwrap();
    lookups.fetch(&client, &eight()).await.unwrap_err();
}

#[tokio::test]
async fn outage_splits_and_marks_nothing() {
    let (_cluster, client) = start().await;
    let hooks = "CREATE TABLE hooks (id bigint, account_id bigint, url text, event_types text[],
            secret text, enabled boolean);
        INSERT INTO hooks VALUES (1, 1, 'http://x/', '{*}', 's', true);
        CREATE ROLE stranger";
    client.batch_execute(hooks).await.unwrap();
    let lookups = lookups(PLAIN);
    lookups.fetch(&client, &eight()).await.unwrap();
    for (cause, fix) in [
        ("SET ROLE stranger", "RESET ROLE"),
        (
            "SET statement_timeout = '50ms'; ALTER TABLE hooks RENAME TO h;
          CREATE VIEW hooks AS SELECT h.* FROM h, pg_sleep(1)",
            "RESET statement_timeout; DROP VIEW hooks; ALTER TABLE h RENAME TO hooks",
        ),
        ("ALTER TABLE hooks RENAME url TO u", "ALTER TABLE hooks RENAME u TO url"),
    ] {
        client.batch_execute(cause).await.unwrap();
        let error = lookups.fetch(&client, &eight()).await.unwrap_err();
        assert!(matches!(error, LookupError::Sql(_)), "{cause}: {error}");
        client.batch_execute(fix).await.unwrap();
        let fetched = lookups.fetch(&client, &eight()).await.unwrap();
        assert_eq!(complaints(&fetched), [], "{cause}");
    }
}

#[tokio::test]
async fn weight_that_cannot_be_used_is_one_and_fails_nobody() {
    let (_cluster, client) = start().await;
    client.batch_execute(ANYTHING).await.unwrap();
    let accounts = "CREATE TABLE accounts (id bigint, weight text);
        INSERT INTO accounts VALUES (1, '2.5'), (2, 'hush'), (3, repeat('9', 100000)), (4, '-1'),
            (5, 'NaN'), (6, '1e400'), (7, NULL);
        CREATE VIEW failing AS SELECT id, CASE WHEN id = 2 THEN 1 / (id - 2) ELSE 3 END AS weight
        FROM accounts";
    client.batch_execute(accounts).await.unwrap();
    let weights = |fetched: Fetched| -> BTreeMap<String, f64> {
        assert!(fetched.routes.iter().all(|(_, routes)| routes.endpoints.len() == 1));
        fetched.routes.iter().map(|(account, r)| (account.to_string(), r.share.weight)).collect()
    };
    let section = "[accounts]\ntable = 'public.accounts'";
    let fetched = lookups(&format!("{PLAIN}\n{section}")).fetch(&client, &eight()).await.unwrap();
    let found = weights(fetched);
    assert_eq!(found["1"], 2.5);
    assert!(found.iter().all(|(account, weight)| account == "1" || *weight == 1.0), "{found:?}");
    let section = "[accounts]\ntable = 'public.failing'";
    let fetched = lookups(&format!("{PLAIN}\n{section}")).fetch(&client, &eight()).await.unwrap();
    let found = weights(fetched);
    assert_eq!((found["1"], found["2"], found["3"], found["8"]), (3.0, 1.0, 3.0, 1.0));
}

#[tokio::test]
async fn answer_is_bounded_whatever_the_rows_hold() {
    let (_cluster, client) = start().await;
    client.batch_execute(ANYTHING).await.unwrap();
    let large = "INSERT INTO hooks
        SELECT account || '-' || g, account, 'http://x/', array_fill(repeat('x', 200), '{100}'), '{s}', 'true'
        FROM generate_series(1, 2) account, generate_series(1, 60) g";
    client.batch_execute(large).await.unwrap();
    let lookups = Lookups { max_bytes: 1 << 20, ..lookups(PLAIN) };
    let fetched = lookups.fetch(&client, &eight()).await.unwrap();
    assert!(fetched.bytes < 2 << 20 && fetched.routes.len() < 8, "{}", fetched.bytes);
    let all = lookups.fetch_all(&client, &eight()).await.unwrap();
    assert_eq!(all.len(), 8);
    for (account, routes) in &all {
        let is_large = ["1", "2"].contains(&account.as_str());
        assert_eq!(routes.refused.is_some(), is_large, "{account}");
        assert_eq!(routes.endpoints.len(), usize::from(!is_large), "{account}");
    }
}

#[tokio::test]
async fn rows_with_one_id_are_invalid_unless_they_are_alike() {
    let (_cluster, client) = start().await;
    let double = "INSERT INTO hooks SELECT * FROM hooks WHERE account_id = 1;
        INSERT INTO hooks SELECT id, account_id, 'http://y/', event_types, secret, enabled FROM hooks
        WHERE account_id = 2";
    client.batch_execute(&format!("{ANYTHING} {double}")).await.unwrap();
    let fetched = lookups(PLAIN).fetch(&client, &eight()).await.unwrap();
    assert_eq!(complaints(&fetched), [("2".to_owned(), "several rows have this id".to_owned())]);
    assert!(fetched.routes.iter().all(|(_, routes)| routes.endpoints.len() == 1));
}
