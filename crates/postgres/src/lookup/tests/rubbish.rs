//! Rows that cannot be used, and a database that refuses to read some: each spoils its own endpoint or account,
//! and what is nobody's fault spoils none.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;

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
