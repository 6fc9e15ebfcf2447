//! Locks that a migration holds.

use super::*;
use crate::pg::DatabaseUrl;
use crate::sql::Connection;

const SCHEMA: &str = "
    CREATE TABLE hooks (id bigint, account_id bigint, url text, event_types text[], secret text, enabled boolean);
    CREATE TABLE accounts (id bigint, weight int);
    INSERT INTO hooks VALUES (1, 7, 'http://x/', '{*}', 's', true);
    INSERT INTO accounts VALUES (7, 2);";

const WEIGHTED: &str = "
    [endpoints]
    table = 'public.hooks'
    [accounts]
    table = 'public.accounts'
    weight = 'weight'";

async fn until_one_waits(client: &Connection) {
    let waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)";
    while !client.query_one(waiting, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The server ends whoever waits longest in a circle, and that would be the migration.
#[tokio::test]
async fn look_up_gives_way_before_a_migration_that_alters_both_tables_is_a_deadlock() {
    let (cluster, client) = start().await;
    client.batch_execute(SCHEMA).await.unwrap();
    for deadlock_timeout in [1_000, 100] {
        let set = format!("ALTER DATABASE postgres SET deadlock_timeout = {deadlock_timeout}");
        client.batch_execute(&set).await.unwrap();
        let migration = session(&cluster).await;
        let parsed: Tables = toml::from_str(WEIGHTED).unwrap();
        let settings = LookupSettings {
            url: &DatabaseUrl::from(Secret::new(cluster.url("postgres"))),
            endpoints: &parsed.endpoints,
            accounts: parsed.accounts.as_ref(),
            header_prefix: settings::HEADER_PREFIX,
            max_account_bytes: usize::MAX,
        };
        let looking = LookupSession::open(settings, "look-ups").await.unwrap();
        let lookups = Lookups::of(settings);
        // Afterwards the statement is known, and needs no catalog.
        looking.fetch(&lookups, &ids(&["7"])).await.unwrap();
        migration.batch_execute("BEGIN; LOCK TABLE hooks").await.unwrap();
        let alters = async {
            until_one_waits(&client).await;
            // Once a session has waited for that long, another that comes to wait for it is the one that is ended.
            tokio::time::sleep(Duration::from_millis(deadlock_timeout * 3 / 2)).await;
            migration.batch_execute("LOCK TABLE accounts; COMMIT").await.unwrap();
        };
        let asked = ids(&["7"]);
        let (fetched, ()) = tokio::join!(looking.fetch(&lookups, &asked), alters);
        assert_eq!(found(&fetched.unwrap()), [("7", vec!["1"])], "{deadlock_timeout}");
    }
}

#[tokio::test]
async fn look_up_that_a_lock_outlasts_says_so() {
    let (cluster, client) = start().await;
    client.batch_execute(SCHEMA).await.unwrap();
    client.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
    let migration = session(&cluster).await;
    migration.batch_execute("BEGIN; LOCK TABLE hooks").await.unwrap();
    let lookups = Lookups { lock_patience: Duration::from_millis(400), ..lookups(WEIGHTED) };
    let began = Instant::now();
    for error in [
        lookups.fetch(&client, &ids(&["7"])).await.unwrap_err(),
        lookups.list(&client, Which { limit: 1, ..Which::default() }).await.unwrap_err(),
    ] {
        let said = error.line();
        assert!(said.contains("55P03") && said.contains("lock timeout"), "{said}");
    }
    assert!(began.elapsed() > Duration::from_millis(800), "it was not tried again");
}
