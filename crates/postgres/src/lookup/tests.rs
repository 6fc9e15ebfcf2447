//! Against a real PostgreSQL.

mod apart;
mod costly;
mod locks;
mod rubbish;

use tokio_postgres::types::{ToSql, Type};

use super::*;
use crate::fix::Failure;
use crate::fixture::{session, start};
use walhook_core::endpoint::Secret;

#[derive(serde::Deserialize)]
struct Tables {
    endpoints: settings::Endpoints,
    accounts: Option<settings::Accounts>,
}

fn lookups(toml: &str) -> Lookups {
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
        for statement in [&plan.batch, plan.few.as_ref().unwrap()] {
            let lines = explained(&client, statement, &[known]).await;
            assert!(lines.contains("hooks_account"), "{kind}:\n{lines}");
            assert!(!lines.contains("Seq Scan"), "{kind}:\n{lines}");
        }
    }
}

/// What the server does for a statement that asks for these accounts, and how many rows that were.
async fn explained(client: &Client, statement: &str, accounts: &[&str]) -> String {
    let explain = format!("EXPLAIN (ANALYZE, TIMING OFF) {statement}");
    let params: [(&(dyn ToSql + Sync), Type); 2] =
        [(&accounts, Type::TEXT_ARRAY), (&accounts, Type::TEXT_ARRAY)];
    let lines = client.query_typed(&explain, &params).await.unwrap();
    let lines: Vec<String> = lines.iter().map(|line| line.get(0)).collect();
    // Since version 18 rows are told as a mean, `513.00`.
    lines.join("\n").replace(".00 loops=", " loops=")
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
        let plan = lookups.known_plan().unwrap();
        let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
        let lines = explained(&client, &plan.batch, &accounts).await;
        lines.lines().filter(|line| line.contains("hooks")).collect::<String>()
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

    let writer = session(&cluster).await;
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

#[tokio::test]
async fn table_that_is_gone_is_named_with_its_key_and_not_one_of_its_columns() {
    let (_cluster, client) = start().await;
    let tables =
        "CREATE TABLE hooks (id int, account_id int, url text, event_types text[], secret text,
             enabled boolean);
         CREATE TABLE payers (id int, weight int);
         INSERT INTO hooks VALUES (1, 1, 'http://x/', '{*}', 's', true)";
    client.batch_execute(tables).await.unwrap();
    let lookups = lookups(&format!("{PLAIN}\n[accounts]\ntable = 'public.payers'"));
    let asked = ids(&["1"]);
    lookups.fetch(&client, &asked).await.unwrap();
    for (table, section, cause, back) in [
        (
            "public.hooks",
            "endpoints",
            "ALTER TABLE hooks RENAME TO h",
            "ALTER TABLE h RENAME TO hooks",
        ),
        (
            "public.payers",
            "accounts",
            "DROP TABLE payers",
            "CREATE TABLE payers (id int, weight int)",
        ),
    ] {
        client.batch_execute(cause).await.unwrap();
        let error = lookups.fetch(&client, &asked).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("there is no table {table}; correct `{section}.table`")
        );
        let fix = error.fix();
        assert!(fix.contains(&format!("put the table {table} back")), "{fix}");
        assert!(fix.contains(&format!("correct {section}.table")), "{fix}");
        assert!(!error.fixed_by().is_waiting());
        client.batch_execute(back).await.unwrap();
        let fetched = lookups.fetch(&client, &asked).await.unwrap();
        assert_eq!(found(&fetched), [("1", vec!["1"])], "{cause}");
    }
}

#[tokio::test]
async fn column_of_another_type_that_spoils_all_endpoints_is_an_outage_whose_fix_helps() {
    let (_cluster, client) = start().await;
    let hooks =
        "CREATE TABLE hooks (id int, account_id int, url text, event_types text[], secret text,
             enabled boolean);
         INSERT INTO hooks SELECT g, g, 'http://x/', '{*}', 's', true FROM generate_series(1, 8) g";
    client.batch_execute(hooks).await.unwrap();
    let lookups = lookups(PLAIN);
    let asked = ids(&["1", "2"]);
    lookups.fetch(&client, &asked).await.unwrap();
    for (column, was, is, migrate, back) in [
        ("enabled", "boolean", "text", "text USING 'perhaps'", "boolean USING true"),
        // Its text is one that could sign.
        ("secret", "text", "bytea", "bytea USING secret::bytea", "text USING 's'"),
    ] {
        let alter = format!("ALTER TABLE hooks ALTER {column} TYPE ");
        client.batch_execute(&format!("{alter}{migrate}")).await.unwrap();
        let error = lookups.fetch(&client, &asked).await.unwrap_err();
        let says = format!(
            "public.hooks.{column} is {is} now and was {was}, and no endpoint can be used any more"
        );
        assert_eq!(error.line(), says);
        let fix = error.fix();
        let expected = format!("give public.hooks.{column} its type {was} back, or write ");
        assert!(fix.starts_with(&expected), "{fix}");
        client.batch_execute(&format!("{alter}{back}")).await.unwrap();
        let fetched = lookups.fetch(&client, &asked).await.unwrap();
        assert_eq!(found(&fetched), [("1", vec!["1"]), ("2", vec!["2"])]);
    }
}
