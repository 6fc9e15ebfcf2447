//! How every error looks to a script: `error: ` on standard error, nothing of it on standard output, and the
//! exit code of its kind.

use std::process::Output;

use anyhow::{Result, ensure};

use crate::support::{RULES, SCHEMA, World, text};

/// What is called, with which variables; the exit code, and what the error names.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a str);

/// The id of no event, of 1970.
const LONG_AGO: &str = "evt_00000000000000000000000001";

/// Standard error begins with the error, but for `run`, which logs there first.
fn judge(args: &[&str], output: &Output, code: i32, names: &str) -> Result<()> {
    let said = text(&output.stderr);
    ensure!(output.status.code() == Some(code), "{args:?}: {}: {said}", output.status);
    let begins = said.lines().position(|line| line.starts_with("error: "));
    let Some(begins) = begins else { anyhow::bail!("{args:?}: no line begins with error: {said}") };
    ensure!(begins == 0 || args == ["run"], "{args:?}: something stands before the error: {said}");
    let error: Vec<&str> = said.lines().skip(begins).collect();
    ensure!(error.join("\n").contains(names), "{args:?} does not name {names}: {said}");
    ensure!(!text(&output.stdout).contains("error: "), "{args:?}: {}", text(&output.stdout));
    Ok(())
}

#[tokio::test]
async fn every_error_begins_with_error_and_ends_with_the_code_of_its_kind() -> Result<()> {
    let world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.set_up().await?;
    let nobody = [("WALHOOK_SOURCE__URL", "postgres://u:hush@127.0.0.1:1/d")];
    let wrong = [("WALHOOK_DELIVERY__TIMEOUT", "soon")];
    let missing = [("WALHOOK_SOURCE__URL_FILE", "/nowhere/url")];
    let unknown = [("WALHOOK_SOURCE__COLOUR", "red")];
    let cases: [Case<'_>; 22] = [
        (&["status", "--colour"], &[], 2, "--colour"),
        (&["fly"], &[], 2, "fly"),
        (&["deferred", "list", "--limit", "0"], &[], 2, "--limit"),
        (&["deferred", "list", "--since", "soon"], &[], 2, "--since"),
        (&["deferred", "discard"], &[], 2, "say which"),
        (&["status"], &missing, 2, "/nowhere/url"),
        (&["config", "validate"], &wrong, 2, "WALHOOK_DELIVERY__TIMEOUT"),
        (&["status"], &unknown, 2, "WALHOOK_SOURCE__COLOUR"),
        (&["status"], &nobody, 1, "127.0.0.1"),
        (&["dead-letters", "list"], &nobody, 1, "127.0.0.1"),
        (&["setup"], &nobody, 1, "127.0.0.1"),
        (&["deferred", "retry", "--account", "none"], &[], 1, "no deferred delivery fits"),
        (&["deferred", "list", "--type", "sub*"], &[], 2, "subscriber.*"),
        (&["events", "count", "--type", "sub*"], &[], 2, "subscriber.*"),
        (&["dead-letters", "show", "4711"], &[], 1, "there is no dead letter 4711"),
        (&["events", "show", "evt_1"], &[], 2, "expected evt_ and 26 characters"),
        (
            &["events", "show", LONG_AGO],
            &[],
            1,
            "nothing is known of evt_00000000000000000000000001",
        ),
        (&["events", "show", LONG_AGO, "--json"], &[], 1, "nothing is known of"),
        (&["events", "list", "--since", "1h", "--until", "2h"], &[], 2, "is later than --until"),
        (&["events", "count", "--since", "1h", "--until", "2h"], &[], 2, "is later than --until"),
        (&["deferred", "list", "--since", "1h", "--until", "2h"], &[], 2, "is later than --until"),
        (
            &["replay", "start", "--from", "1h", "--to", "2h", "--dry-run"],
            &[],
            2,
            "is later than --to",
        ),
    ];
    for (args, env, code, names) in cases {
        let output = world.walhook_with(args, env).await?;
        judge(args, &output, code, names)?;
        ensure!(!text(&output.stderr).contains("hush"), "{args:?}: {}", text(&output.stderr));
    }
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_walhook"));
    let args = ["run", "--config", "/nowhere/w.toml"];
    judge(&args, &command.args(args).output().await?, 2, "/nowhere/w.toml")?;
    // Halted to protect data.
    world.sql.batch_execute("UPDATE walhook.meta SET host = 'elsewhere'").await?;
    for args in [&["setup"][..], &["run"]] {
        judge(args, &world.walhook(args).await?, 3, "recover --adopt-cluster")?;
    }
    Ok(())
}
