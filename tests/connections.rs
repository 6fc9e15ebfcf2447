//! Where connections lead: the environment, `.pgpass`, several hosts, addresses; and the program as a
//! whole over verified TLS, also when the certificate changes while it runs.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::PKCS_ECDSA_P256_SHA256;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{ConnectError, Connection, SERVER_SEARCH_PATH};
use walhook_postgres::wire::{self, WireError};
use walhook_testkit::cluster::{Cluster, StopMode};

use crate::support::{PATIENCE, RULES, World, text};
use walhook_testkit::tls::{Authority, by_socket, host_rules, present, private_file};

/// A world whose server wants TLS and the password of the role `sender`, for `localhost`.
async fn guarded() -> Result<(World, Authority)> {
    let world = World::new().await?;
    let admin = by_socket(&world.cluster).await?;
    admin.batch_execute("CREATE ROLE sender SUPERUSER LOGIN PASSWORD 'hush'").await?;
    let authority = Authority::ecdsa(&PKCS_ECDSA_P256_SHA256)?;
    present(&world.cluster, &admin, &authority.issue("localhost")?, None).await?;
    let rules =
        "hostssl all sender 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 trust";
    host_rules(&world.cluster, &admin, rules).await?;
    Ok((world, authority))
}

#[tokio::test]
async fn environment_and_password_file_complete_a_url() -> Result<()> {
    let (world, authority) = guarded().await?;
    let whole = world.cluster.url("postgres");
    // The state remembers the host that it was set up for.
    world.edit_config(&whole, "postgres://")?;
    let dir = TempDir::new()?;
    let port = world.cluster.port().to_string();
    let pass = format!("localhost:{port}:postgres:sender:hush\n");
    let pass = private_file(dir.path(), "pass", &pass)?;
    let (pass, root) = (pass.display().to_string(), authority.file());
    let env = [
        ("PGHOST", "localhost"),
        ("PGPORT", &port),
        ("PGUSER", "sender"),
        ("PGDATABASE", "postgres"),
        ("PGPASSFILE", &pass),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", &root),
        ("PGCHANNELBINDING", "require"),
        ("PGTARGETSESSIONATTRS", "primary"),
        ("PGCONNECT_TIMEOUT", "20"),
    ];
    let connection = async |changed: &[(&str, &str)]| -> Result<String> {
        let output = world.walhook_with(&["check"], &[&env[..], changed].concat()).await?;
        let lines = text(&output.stdout);
        let line = lines.lines().find(|line| line.contains("  connection: "));
        Ok(line.with_context(|| text(&output.stderr))?.to_owned())
    };
    let line = connection(&[]).await?;
    assert!(
        line.starts_with("pass  connection: the source database answers over TLSv1.3"),
        "{line}"
    );
    assert!(line.ends_with(", sslmode=verify-full"), "{line}");
    for (changed, expected) in [
        (("PGPASSWORD", "wrong"), "password authentication failed for user \"sender\""),
        (("PGHOST", "127.0.0.1"), "\"localhost\""),
        (("PGUSER", "nobody"), "add a line to the server's pg_hba.conf that lets nobody connect"),
        (("PGDATABASE", "template1"), "the server wants a password, and there is none"),
        (("PGDATABASE", "template1"), "no line of"),
        (("PGTARGETSESSIONATTRS", "standby"), "is not what target_session_attrs asks for"),
        (("PGSSLROOTCERT", "/nowhere"), "sslrootcert /nowhere: cannot be read"),
    ] {
        let line = connection(&[changed]).await?;
        assert!(line.starts_with("fail  connection: ") && line.contains(expected), "{line}");
    }
    let output =
        world.walhook_with(&["check"], &[&env[..], &[("PGSSLMODE", "x")]].concat()).await?;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("source.url: PGSSLMODE is none of disable, prefer"));
    fs::set_permissions(&pass, std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    let line = connection(&[]).await?;
    assert!(line.contains("is ignored, for others may read it: chmod 600 it"), "{line}");
    Ok(())
}

#[tokio::test]
async fn run_delivers_over_verified_tls_and_waits_for_a_certificate_that_is_wrong() -> Result<()> {
    let (mut world, authority) = guarded().await?;
    let admin = by_socket(&world.cluster).await?;
    let whole = world.cluster.url("postgres");
    let options = format!("sslmode=verify-full&sslrootcert={}", authority.file());
    let tls = format!(
        "postgres://sender:hush@localhost:{}/postgres?{options}&channel_binding=require",
        world.cluster.port()
    );
    world.edit_config(&whole, &tls)?;
    // Set up under the name that is in the certificate.
    admin.batch_execute("UPDATE walhook.meta SET host = 'localhost'").await?;
    world.hook(1, 7, "").await?;
    let mut running = world.run().await?;
    world.subscribe(1, 7).await?;
    world.delivered(1).await?;
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                     WHERE usename = 'sender'";
    assert_eq!(world.value(encrypted).await?, "t");

    let other = Authority::ecdsa(&PKCS_ECDSA_P256_SHA256)?;
    present(&world.cluster, &admin, &other.issue("localhost")?, None).await?;
    let end =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'sender'";
    world.value(end).await?;
    running.until_logged("is not signed by a CA in sslrootcert").await?;
    world.subscribe(2, 7).await?;
    present(&world.cluster, &admin, &authority.issue("localhost")?, None).await?;
    world.delivered(2).await?;
    running.until_leading(world.admin).await?;
    assert!(!running.log().contains("hush"));
    assert!(running.terminate().await?.success());

    // At start, when it has never been otherwise, it is the configuration.
    present(&world.cluster, &admin, &other.issue("localhost")?, None).await?;
    let (status, log) = world.spawn()?.ended_with_log().await?;
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("is not signed by a CA in sslrootcert"), "{log}");
    Ok(())
}

/// Stands between clients and a server, and as a pooler does, names another process than the one that
/// serves.
async fn stand_between(server: u16) -> Result<(u16, JoinSet<()>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut pairs = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", server)).await else {
                return;
            };
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            pairs.spawn(async move {
                let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            });
            pairs.spawn(async move {
                let mut bytes = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
                    let key_data = b"K\0\0\0\x0c";
                    let answer = &mut bytes[..count];
                    if let Some(at) = answer.windows(5).position(|piece| piece == key_data) {
                        answer[at + 8] ^= 1;
                    }
                    if to_client.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok((port, tasks))
}

#[tokio::test]
async fn check_tells_of_a_pooler_and_what_it_needs() -> Result<()> {
    let world = World::new().await?;
    let (port, _tasks) = stand_between(world.cluster.port()).await?;
    let direct = world.cluster.url("postgres");
    let pooled = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    assert!(!wire::is_pooled(&Secret::new(&*direct), "test").await?);
    assert!(wire::is_pooled(&Secret::new(&*pooled), "test").await?);
    let lines = async || -> Result<String> {
        let output = world.walhook(&["check"]).await?;
        let lines = text(&output.stdout);
        let told = lines.lines().filter(|line| line.contains("pooler"));
        Ok(told.map(|line| format!("{line}\n")).collect())
    };
    assert_eq!(lines().await?, "");
    let both = format!("{pooled}\"\nreplication_url = \"{direct}");
    world.edit_config(&direct, &both)?;
    let keeps = "pass  connection pooler: source.url leads through one that keeps sessions\n";
    assert_eq!(lines().await?, keeps);
    world.edit_config(&both, &format!("{pooled}\"\nreplication_url = \"{pooled}"))?;
    let told = lines().await?;
    assert!(told.contains("fail  replication connection: source.replication_url leads"), "{told}");
    Ok(())
}

/// What a SQL session and the replication connection say to a URL.
async fn reach(url: &str) -> [Result<(), String>; 2] {
    let url = Secret::new(url);
    let sql = match Connection::open_with_path(&url, "test", SERVER_SEARCH_PATH).await {
        Ok(_) => Ok(()),
        Err(ConnectError::WrongHost { .. }) => Err("wrong host".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    };
    let replication = match wire::connect(&url, "test").await {
        Ok(_) => Ok(()),
        Err(WireError::WrongHost { .. }) => Err("wrong host".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    };
    [sql, replication]
}

#[tokio::test]
async fn hosts_are_tried_in_turn_until_one_is_of_the_wanted_kind() -> Result<()> {
    let primary = Cluster::start_distinct(&[]).await?;
    let mut standby = Cluster::start_distinct(&[]).await?;
    standby.stop(StopMode::Fast).await?;
    // Without anybody to follow, but in recovery.
    fs::write(standby.data().join("standby.signal"), "")?;
    standby.start_again().await?;
    let (dead, wrong) = ("127.0.0.1:1", Err("wrong host".to_owned()));
    let on = |cluster: &Cluster| format!("127.0.0.1:{}", cluster.port());
    let (primary, standby) = (on(&primary), on(&standby));
    for (hosts, attrs, expected) in [
        (vec![dead, &standby], "any", Ok(())),
        (vec![&standby], "primary", wrong.clone()),
        (vec![&standby], "read-write", wrong.clone()),
        (vec![&primary], "standby", wrong.clone()),
        (vec![&primary], "read-only", wrong),
        (vec![&standby, dead, &primary], "primary", Ok(())),
        (vec![dead, &standby, &primary], "read-write", Ok(())),
        (vec![&primary, &standby], "standby", Ok(())),
        (vec![&primary, &standby], "read-only", Ok(())),
    ] {
        let hosts = hosts.join(",");
        let url = format!("postgres://postgres@{hosts}/postgres?target_session_attrs={attrs}");
        let reached = reach(&url).await;
        assert_eq!(reached, [expected.clone(), expected], "{url}");
    }
    Ok(())
}

#[tokio::test]
async fn address_of_ip_version_6_stands_in_brackets() -> Result<()> {
    if TcpListener::bind("[::1]:0").is_err() {
        return Ok(()); // the machine has none
    }
    let listen = [("listen_addresses", "127.0.0.1,::1")];
    let cluster = Cluster::start_distinct(&listen).await?;
    let port = cluster.port();
    for hosts in [format!("[::1]:{port}"), format!("[::1]:1,[::1]:{port}")] {
        let reached = reach(&format!("postgres://postgres@{hosts}/postgres")).await;
        assert_eq!(reached, [Ok(()), Ok(())], "{hosts}");
    }
    let by_address = format!("postgres://postgres@db.example:{port}/postgres?hostaddr=::1");
    assert_eq!(reach(&by_address).await, [Ok(()), Ok(())]);
    Ok(())
}

#[tokio::test]
async fn running_leader_has_as_many_sessions_as_check_says() -> Result<()> {
    let mut world = World::new().await?;
    world
        .sql
        .batch_execute("CREATE ROLE reader SUPERUSER LOGIN; CREATE ROLE keeper SUPERUSER LOGIN")
        .await?;
    let url = |role: &str| world.cluster.url("postgres").replace("postgres@", &format!("{role}@"));
    let urls = [("WALHOOK_SOURCE__URL", url("reader")), ("WALHOOK_STATE__URL", url("keeper"))];
    world.env.extend(urls.map(|(name, url)| (name.to_owned(), url)));
    world.hook(1, 7, "").await?;
    let running = world.run().await?;
    world.subscribe(1, 7).await?;
    world.delivered(1).await?;
    let found = world.walhook_json(&["check"]).await?;
    let told: Vec<String> = found["findings"]
        .as_array()
        .context("no findings")?
        .iter()
        .filter(|finding| finding["what"] == "sessions")
        .filter_map(|finding| finding["finding"].as_str().map(str::to_owned))
        .collect();
    for (role, key) in [("reader", "source.url"), ("keeper", "state.url")] {
        let count = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE usename = '{role}' AND application_name <> 'walhook check'"
        );
        // Each task opens its own once it has something to ask.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let says = format!("{key} may have the {} of a leader", world.value(&count).await?);
            if told.iter().any(|line| line.starts_with(&says)) {
                break;
            }
            ensure!(Instant::now() < deadline, "{says}: {told:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(running.terminate().await?.success());
    Ok(())
}

/// Limits of sessions for SQL have the same SQLSTATE, and another fix.
#[tokio::test]
async fn want_of_a_sender_is_told_with_its_setting_at_the_start_and_of_a_replay() -> Result<()> {
    let mut world = World::with("", RULES, &[("max_wal_senders", "1")]).await?;
    world.hook(1, 1, "").await?;
    let url = Secret::new(world.cluster.url("postgres"));
    let taken = wire::connect(&url, "test").await?;
    let mut running = world.spawn()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = world.walhook_json(&["status"]).await?;
        let fix = &status["troubles"][0]["fix"];
        if fix.as_str().is_some_and(|fix| fix.starts_with("raise max_wal_senders")) {
            break;
        }
        ensure!(Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(50)).await;
    }
    drop(taken);
    world.until_ready(true).await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;

    // The leader has the only one.
    world
        .until("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'", "1")
        .await?;
    world.settled().await?;
    let dry = world.walhook(&["replay", "start", "--from", "oldest", "--dry-run"]).await?;
    let says = text(&dry.stderr);
    ensure!(dry.status.code() == Some(1), "{says}");
    ensure!(says.contains("53300") && says.contains("; raise max_wal_senders"), "{says}");
    ensure!(running.has_ended()?.is_none(), "{}", running.log());
    ensure!(running.terminate().await?.success());
    Ok(())
}
