//! Which accounts take long to read.

use super::*;

const HOOKS: &str = "CREATE TABLE hooks (id bigint PRIMARY KEY, account_id bigint, url text,
    event_types text[], secret text, enabled boolean)";

/// Rows of the account, with these ids.
fn insert(account: &str, ids: &str) -> String {
    format!(
        "INSERT INTO hooks SELECT g, {account}, 'http://x/', '{{*}}', 's', true FROM generate_series({ids}) g"
    )
}

async fn run(client: &Client, statements: &[&str]) {
    client.batch_execute(&statements.join(";\n")).await.unwrap();
}

#[tokio::test]
async fn account_whose_rows_are_many_or_long_or_refused_is_costly_and_no_other() {
    let (_cluster, client) = start().await;
    let (some, many) = (insert("1", "1, 50"), insert("2", "1001, 3000"));
    let long =
        "INSERT INTO hooks VALUES (4000, 3, 'http://x/', '{*}', repeat('s', 10 << 20), true)";
    run(&client, &[HOOKS, "CREATE INDEX ON hooks (account_id)", &some, &many, long]).await;
    let tables = lookups(PLAIN);
    let asked = ids(&["1", "2", "3", "4"]);
    for accounts in [&asked[..], &asked[1..2], &asked[2..3]] {
        let fetched = tables.fetch(&client, accounts).await.unwrap();
        for (account, routes) in &fetched.routes {
            assert_eq!(routes.is_costly, matches!(account.as_str(), "2" | "3"), "{account}");
        }
    }

    let divided =
        "CREATE VIEW divided AS SELECT h.id, h.account_id, h.url, h.event_types, h.secret,
         1 / (h.id % 5000) > -1 AS enabled FROM hooks h;
         INSERT INTO hooks VALUES (5000, 5, 'http://x/', '{*}', 's', true)";
    client.batch_execute(divided).await.unwrap();
    let divided = lookups("[endpoints]\ntable = 'public.divided'");
    let fetched = divided.fetch(&client, &ids(&["1", "5"])).await.unwrap();
    for (account, routes) in &fetched.routes {
        let is_refused = account.as_str() == "5";
        assert_eq!(routes.is_costly, is_refused, "{account}");
        assert_eq!(routes.endpoints[0].invalid.is_some(), is_refused, "{account}");
    }
}

/// A hundred accounts have a thousand rows each, so that the planner expects as many of every account, and to find the
/// first of them soon wherever it begins.
#[tokio::test]
async fn look_up_for_few_rows_reads_no_more_of_an_account_and_names_it() {
    let (_cluster, client) = start().await;
    let all = insert("g % 100", "1, 100000");
    let (few, more) = (insert("1000", "200001, 200256"), insert("2000", "300001, 300257"));
    let index = "CREATE INDEX hooks_account ON hooks (account_id)";
    run(&client, &[HOOKS, &all, &few, &more, index, "ANALYZE hooks"]).await;
    let few = lookups(PLAIN).of_few();
    let fetched = few.fetch(&client, &ids(&["7", "1000", "2000", "3000"])).await.unwrap();
    assert_eq!(fetched.costly, ids(&["7", "2000"]));
    let answered: Vec<(&str, usize)> =
        fetched.routes.iter().map(|(a, routes)| (a.as_str(), routes.endpoints.len())).collect();
    assert_eq!(answered, [("1000", 256), ("3000", 0)]);
    assert!(fetched.routes.iter().all(|(_, routes)| !routes.is_costly));
    let alone = few.fetch(&client, &ids(&["7"])).await.unwrap();
    assert_eq!((alone.costly, alone.routes.len()), (ids(&["7"]), 0));
    let all = lookups(PLAIN).fetch(&client, &ids(&["7", "2000"])).await.unwrap();
    assert!(all.costly.is_empty() && all.routes.iter().all(|(_, routes)| routes.is_costly));

    let plan = few.known_plan().unwrap();
    let lines = explained(&client, plan.few.as_ref().unwrap(), &["7", "1000"]).await;
    assert!(lines.contains("hooks_account") && !lines.contains("Seq Scan"), "{lines}");
    // 257 of one and 256 of the other.
    assert!(lines.contains("(actual rows=513 loops=1)"), "{lines}");

    // Without an index each account would cost a look at all rows.
    client.batch_execute("DROP INDEX hooks_account").await.unwrap();
    let unindexed = lookups(PLAIN).of_few();
    let fetched = unindexed.fetch(&client, &ids(&["7", "1000"])).await.unwrap();
    assert!(fetched.costly.is_empty() && fetched.routes.len() == 2);
    assert!(unindexed.known_plan().unwrap().few.is_none());
}
