//! What walhook refuses, each mistake made on a real server: `check` names it in one line with the
//! fix, `run` does not start, or ends when the mistake is made while it runs.

mod publication;
mod rights;
mod server;

use anyhow::{Context, Result, ensure};

use crate::support::{SCHEMA, World, text};

/// A mistake.
struct Mistake {
    breaks: &'static str,
    fixes: &'static str,
    /// How the line of `check` begins.
    check: &'static str,
    /// How that line ends.
    fix: &'static str,
    /// What `run` says, which does not start.
    run: &'static str,
}

/// A world whose role may do only what `setup --admin-url` granted it.
async fn world_of_sender(sections: &str, rules: &str) -> Result<World> {
    let world = World::bare(sections, rules, &[("max_slot_wal_keep_size", "1GB")]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute("CREATE ROLE sender LOGIN").await?;
    world.edit_config("postgres://postgres@", "postgres://sender@")?;
    let admin = world.cluster.url("postgres");
    let output = world.walhook(&["setup", "--admin-url", &admin]).await?;
    ensure!(output.status.success(), "setup: {}", text(&output.stderr));
    Ok(world)
}

/// The lines of `check` that are no passes, without the one that tells of the last halt.
async fn complaints(world: &World) -> Result<Vec<String>> {
    let output = world.walhook(&["check"]).await?;
    let lines = text(&output.stdout);
    let lines: Vec<String> = lines
        .lines()
        .filter(|line| !line.starts_with("pass") && !line.contains(": halted at "))
        // These worlds have mostly none, which is a warning.
        .filter(|line| !(line.starts_with("warn  endpoints: ") && line.contains(" holds none; ")))
        .map(str::to_owned)
        .collect();
    let failed = lines.iter().any(|line| line.starts_with("fail"));
    let expected = if failed { Some(1) } else { Some(0) };
    ensure!(output.status.code() == expected, "{}: {lines:?}", output.status);
    Ok(lines)
}

async fn refused(world: &mut World, mistake: &Mistake) -> Result<()> {
    let Mistake { breaks, fixes, check, fix, run } = mistake;
    world.sql.batch_execute(breaks).await?;
    let found = complaints(world).await?;
    let line = found.iter().find(|line| line.starts_with(check));
    let line = line.with_context(|| format!("no line begins with {check:?}: {found:#?}"))?;
    ensure!(line.ends_with(fix), "{line:?} does not end with {fix:?}");

    let (status, log) = world.spawn()?.ended_with_log().await?;
    ensure!(status.code() == Some(2), "{status}:\n{log}");
    ensure!(log.contains(run), "run does not say {run:?}:\n{log}");

    world.sql.batch_execute(fixes).await?;
    let left = complaints(world).await?;
    ensure!(left.is_empty(), "after the fix: {left:#?}");
    Ok(())
}
