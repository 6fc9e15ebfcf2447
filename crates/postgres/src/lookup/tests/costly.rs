//! Which accounts take long to read.

use super::*;

#[tokio::test]
async fn account_whose_rows_are_many_or_long_or_refused_is_costly_and_no_other() {
    let (_cluster, client) = start().await;
    client
        .batch_execute(
            "CREATE TABLE hooks (id bigint PRIMARY KEY, account_id bigint, url text, event_types text[],
                 secret text, enabled boolean);
             CREATE INDEX ON hooks (account_id);
             INSERT INTO hooks SELECT g, 1, 'http://x/', '{*}', 's', true FROM generate_series(1, 50) g;
             INSERT INTO hooks SELECT g, 2, 'http://x/', '{*}', 's', true FROM generate_series(1001, 3000) g;
             INSERT INTO hooks VALUES (4000, 3, 'http://x/', '{*}', repeat('s', 10 << 20), true)",
        )
        .await
        .unwrap();
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
    client
        .batch_execute(
            "CREATE TABLE hooks (id bigint PRIMARY KEY, account_id bigint, url text, event_types text[],
                 secret text, enabled boolean);
             INSERT INTO hooks SELECT g, g % 100, 'http://x/', '{*}', 's', true FROM generate_series(1, 100000) g;
             INSERT INTO hooks SELECT 200000 + g, 1000, 'http://x/', '{*}', 's', true FROM generate_series(1, 256) g;
             INSERT INTO hooks SELECT 300000 + g, 2000, 'http://x/', '{*}', 's', true FROM generate_series(1, 257) g;
             CREATE INDEX hooks_account ON hooks (account_id);
             ANALYZE hooks",
        )
        .await
        .unwrap();
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
    let read: Vec<&str> = lines.lines().filter(|line| line.contains("hooks_account")).collect();
    assert!(!read.is_empty() && !lines.contains("Seq Scan"), "{lines}");

    // Without an index each account would cost a look at all rows.
    client.batch_execute("DROP INDEX hooks_account").await.unwrap();
    let unindexed = lookups(PLAIN).of_few();
    let fetched = unindexed.fetch(&client, &ids(&["7", "1000"])).await.unwrap();
    assert!(fetched.costly.is_empty() && fetched.routes.len() == 2);
    assert!(unindexed.known_plan().unwrap().few.is_none());
}
