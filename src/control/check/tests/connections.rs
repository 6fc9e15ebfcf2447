//! What `check` says of connections: those that fail, and how many there may be.

use super::*;

#[tokio::test]
async fn check_says_that_the_server_cannot_be_reached() {
    let text =
        "[source]\nurl = \"postgres://u:hush@127.0.0.1:1/d\"\n[endpoints]\ntable = \"a.b\"\n";
    let config = crate::config::parse(std::path::Path::new("t"), text, []).unwrap();
    let found = complaints(&config).await;
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("fail  connection: ") && !found[0].contains("hush"));
}

#[tokio::test]
async fn check_compares_limits_of_connections_with_what_a_leader_needs() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    setup::quietly(&fixture.config("")).await.unwrap();
    fixture
        .run(
            "CREATE ROLE sender LOGIN REPLICATION; GRANT SELECT ON webhooks TO sender;
             GRANT USAGE ON SCHEMA walhook TO sender; GRANT pg_read_all_data TO sender;
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walhook TO sender",
        )
        .await;
    let config = fixture.config_as("sender", "");
    let sessions = async || told(&config, "sessions").await;
    assert!(sessions().await[0].starts_with("pass"), "{:?}", sessions().await);
    for (sets, verdict, says) in [
        ("ALTER ROLE sender CONNECTION LIMIT 6", "fail", "the role sender may have 6"),
        (
            "ALTER ROLE sender CONNECTION LIMIT 14",
            "warn",
            "ALTER ROLE \"sender\" CONNECTION LIMIT 19",
        ),
        ("ALTER ROLE sender CONNECTION LIMIT 19", "pass", ""),
        ("ALTER DATABASE app CONNECTION LIMIT 6", "fail", "the database app takes 6"),
        ("ALTER DATABASE app CONNECTION LIMIT -1", "pass", ""),
    ] {
        fixture.run(sets).await;
        let found = sessions().await;
        assert!(found[0].starts_with(verdict) && found[0].contains(says), "{sets}: {found:?}");
    }
}

#[tokio::test]
async fn check_names_the_cause_of_a_failed_connection_and_the_fix() {
    let fixture = Fixture::start_with(&[("max_slot_wal_keep_size", "1GB")]).await;
    fixture
        .run("CREATE ROLE barred NOLOGIN; CREATE ROLE outside LOGIN; REVOKE CONNECT ON DATABASE app FROM PUBLIC")
        .await;
    let port = fixture.cluster.port();
    let at = |user: &str, place: &str, database: &str| {
        let text = format!(
            "[source]\nurl = \"postgres://{user}@{place}/{database}\"\n[endpoints]\ntable = \"a.b\"\n"
        );
        crate::config::parse(std::path::Path::new("t"), &text, []).unwrap()
    };
    let here = format!("127.0.0.1:{port}");
    for (config, cause, fix) in [
        (
            at("u", "127.0.0.1:1", "d"),
            "Connection refused",
            "nobody listens there; start the server",
        ),
        (
            at("u", "no-such-host.invalid", "d"),
            "there is no such host name",
            "correct it in the URL",
        ),
        (at("u", "", "d?host=/nowhere"), "No such file", "the server's socket is not there"),
        (
            at("nobody", &here, "app"),
            "role \"nobody\" does not exist",
            "CREATE ROLE \"nobody\" LOGIN",
        ),
        (at("barred", &here, "app"), "not permitted to log in", "ALTER ROLE \"barred\" LOGIN"),
        (
            at("outside", &here, "app"),
            "permission denied for database",
            "GRANT CONNECT ON DATABASE \"app\"",
        ),
        (at("postgres", &here, "nowhere"), "does not exist (SQLSTATE 3D000)", "or create nowhere"),
        (at("postgres", &here, "app?sslmode=require"), "offers no TLS", "set ssl = on"),
    ] {
        let found = complaints(&config).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("fail  connection: source.url: "), "{found:?}");
        assert!(found[0].contains(cause) && found[0].contains(fix), "{cause}: {found:?}");
    }
}
