//! Passwords that are rotated while the program runs: the file that holds the URL is read at each
//! connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::{PATIENCE, World, text};
use walhook_testkit::session::Session;
use walhook_testkit::tls::{by_socket, host_rules};

const OF_PASSWORD: &str = "local all all trust\nhost all sender 127.0.0.1/32 scram-sha-256\n\
                           host all postgres 127.0.0.1/32 trust";

/// A world whose role `sender` has a password, with URLs of all three kinds in files.
struct Guarded {
    world: World,
    admin: Session,
    dir: TempDir,
}

impl Guarded {
    async fn new() -> Result<Self> {
        let mut world = World::new().await?;
        let admin = by_socket(&world.cluster).await?;
        admin.batch_execute("CREATE ROLE sender SUPERUSER LOGIN PASSWORD 'first'").await?;
        host_rules(&world.cluster, &admin, OF_PASSWORD).await?;
        let dir = TempDir::new()?;
        world.edit_config(&format!("url = \"{}\"\n", world.cluster.url("postgres")), "")?;
        for (variable, name) in [
            ("WALHOOK_SOURCE__URL_FILE", "source"),
            ("WALHOOK_SOURCE__REPLICATION_URL_FILE", "replication"),
            ("WALHOOK_STATE__URL_FILE", "state"),
        ] {
            let file = dir.path().join(name).display().to_string();
            world.env.push((variable.to_owned(), file));
        }
        let guarded = Self { world, admin, dir };
        guarded.write("first")?;
        Ok(guarded)
    }

    fn files(&self) -> [PathBuf; 3] {
        ["source", "replication", "state"].map(|name| self.dir.path().join(name))
    }

    /// Writes all files with this password.
    fn write(&self, password: &str) -> Result<()> {
        let url = self.url("sender", password);
        self.files().iter().try_for_each(|file| put(file, &format!("{url}\n")))
    }

    fn url(&self, user: &str, password: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/postgres", self.world.cluster.port())
    }

    /// Gives the role another password and ends all of its sessions.
    async fn rotate(&self, password: &str) -> Result<()> {
        let alter = format!("ALTER ROLE sender PASSWORD '{password}'");
        self.admin.batch_execute(&alter).await?;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sender'";
        Ok(self.admin.batch_execute(end).await?)
    }
}

fn put(file: &Path, text: &str) -> Result<()> {
    Ok(std::fs::write(file, text)?)
}

#[tokio::test]
async fn rotated_password_in_a_file_serves_every_session_without_a_restart() -> Result<()> {
    let mut guarded = Guarded::new().await?;
    guarded.world.hook(1, 7, "").await?;
    let mut running = guarded.world.run().await?;
    let mut sent = 0;
    // What stands in the files until the new password does.
    for (round, between) in [None, Some(""), Some("postgres://sender:fi")].into_iter().enumerate() {
        let password = format!("next{round}");
        if let Some(text) = between {
            guarded.files().iter().try_for_each(|file| put(file, text))?;
        }
        guarded.rotate(&password).await?;
        let says = match between {
            None => "correct the password, which is taken from the file",
            Some("") => "the file is empty",
            Some(_) => "in the file",
        };
        running.until_logged(says).await?;
        guarded.write(&password)?;
        sent += 1;
        guarded.world.subscribe(sent, 7).await?;
        guarded.world.delivered(sent.unsigned_abs()).await?;
        running.until_leading(guarded.world.admin).await?;
    }
    // Gone for a moment.
    guarded.files().iter().try_for_each(std::fs::remove_file)?;
    guarded.rotate("last").await?;
    running.until_logged("cannot be read: No such file").await?;
    // Another user, and a way to elsewhere, of which only the user is taken.
    guarded.admin.batch_execute("CREATE ROLE other SUPERUSER LOGIN").await?;
    let elsewhere =
        format!("{}?host=192.0.2.1", guarded.url("other", "x").replace("@127.0.0.1", "@"));
    guarded.files().iter().try_for_each(|file| put(file, &elsewhere))?;
    host_rules(
        &guarded.world.cluster,
        &guarded.admin,
        &format!("{OF_PASSWORD}\nhost all other 127.0.0.1/32 trust"),
    )
    .await?;
    sent += 1;
    guarded.world.subscribe(sent, 7).await?;
    guarded.world.delivered(sent.unsigned_abs()).await?;
    running.until_logged("leads to another host or database than at the start").await?;
    let log = running.log();
    for secret in ["first", "next0", "next1", "next2", ":last"] {
        ensure!(!log.contains(secret), "the log holds the password {secret}");
    }
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn password_that_lets_nobody_in_is_what_is_told_of_the_state_until_it_does() -> Result<()> {
    let mut guarded = Guarded::new().await?;
    guarded.world.hook(1, 7, "?delay=2s").await?;
    let mut running = guarded.world.run().await?;
    guarded.world.subscribe(1, 7).await?;
    // What becomes of it is to be stored.
    guarded.world.mock.wait_until("a request", PATIENCE, |stats| stats.in_flight == 1).await?;
    guarded.rotate("second").await?;
    let mut told = 0;
    let deadline = Instant::now() + PATIENCE;
    // More often than it is tried: at no moment is it the lost session.
    while told < 30 {
        ensure!(Instant::now() < deadline, "told {told} times: {}", running.log());
        let said = guarded.world.until_ready(false).await?;
        let state = said.lines().find(|line| line.starts_with("cannot store the checkpoint"));
        let names_it = state.is_some_and(|line| line.contains("password authentication failed"));
        ensure!(names_it || told == 0, "{said}");
        told += u32::from(names_it);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    guarded.write("second")?;
    running.until_leading(guarded.world.admin).await?;
    guarded.world.settled().await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn wrong_password_at_the_start_is_refused_from_a_url_and_waited_for_from_a_file() -> Result<()>
{
    let mut guarded = Guarded::new().await?;
    guarded.world.hook(1, 7, "").await?;
    // In the window between the two halves of a rotation.
    guarded.rotate("second").await?;
    let mut running = guarded.world.spawn()?;
    running.until_logged("password authentication failed").await?;
    ensure!(running.has_ended()?.is_none(), "{}", running.log());
    guarded.write("second")?;
    running.until_leading(guarded.world.admin).await?;
    ensure!(running.terminate().await?.success());

    guarded.world.env.clear();
    let url = guarded.url("sender", "hush");
    guarded.world.env.push(("WALHOOK_SOURCE__URL".to_owned(), url));
    let (status, log) = guarded.world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(2), "{status}: {log}");
    ensure!(log.contains("correct the password") && !log.contains("hush"), "{log}");

    // A file that is not there, or empty, is refused by name, by commands that somebody waits for.
    for (content, says) in
        [(None, "cannot read the file"), (Some("\n"), "is empty; write the value")]
    {
        let file = guarded.dir.path().join("source");
        match content {
            None => std::fs::remove_file(&file)?,
            Some(content) => put(&file, content)?,
        }
        guarded.world.env.clear();
        let file = ("WALHOOK_SOURCE__URL_FILE".to_owned(), file.display().to_string());
        guarded.world.env.push(file);
        let output = guarded.world.walhook(&["check"]).await?;
        let said = text(&output.stderr);
        ensure!(output.status.code() == Some(2) && said.contains(says), "{said}");
        ensure!(
            said.starts_with("error: environment variable WALHOOK_SOURCE__URL_FILE: "),
            "{said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn run_waits_for_a_file_whose_url_is_missing_or_cut_and_reads_all_of_it_once_it_is_whole()
-> Result<()> {
    let mut guarded = Guarded::new().await?;
    guarded.world.hook(1, 7, "").await?;
    let whole = guarded.url("sender", "first");
    let (source, _) = guarded.world.env.remove(0);
    let file = guarded.dir.path().join("source");
    guarded.world.env = vec![(source, file.display().to_string())];
    let cut = |till: &str| Some(whole.split_inclusive(till).next().unwrap_or_default().to_owned());
    let mut sent = 0;
    for (content, says) in [
        (None, "cannot read the file"),
        (Some("\n".to_owned()), "is empty"),
        (cut("fi"), "port is not a port number"),
        // Whole URLs, that lead elsewhere.
        (cut("@127.0.0.1"), "walhook starts"),
        (whole.strip_suffix("gres").map(str::to_owned), "does not exist"),
    ] {
        match &content {
            None => std::fs::remove_file(&file)?,
            Some(content) => put(&file, content)?,
        }
        let mut running = guarded.world.spawn()?;
        running.until_logged(says).await?;
        ensure!(running.has_ended()?.is_none(), "{}", running.log());
        put(&file, &format!("{whole}\n"))?;
        running.until_leading(guarded.world.admin).await?;
        sent += 1;
        guarded.world.subscribe(sent, 7).await?;
        guarded.world.delivered(sent.unsigned_abs()).await?;
        ensure!(!running.log().contains("first"), "{}", running.log());
        ensure!(running.terminate().await?.success());
    }
    // It ends at once when it is told to.
    std::fs::remove_file(&file)?;
    let running = guarded.world.spawn()?;
    running.until_logged("waiting for it").await?;
    ensure!(running.terminate().await?.success());
    // What is no file stays so.
    std::fs::create_dir(&file)?;
    let (status, log) = guarded.world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(2) && log.contains("cannot read the file"), "{status}: {log}");
    Ok(())
}
