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
