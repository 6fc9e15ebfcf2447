//! The commands of the documents for operators: each one is run, as it stands there, against a live pipeline; and each
//! one that is named within a text is one that walhook knows.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use clap::Parser as _;
use clap::error::ErrorKind;
use walhook_testkit::receiver::Behaviour;

use crate::support::{RULES, World, text};

/// The documents whose blocks are run.
const RUN: [&str; 6] = [
    "docs/operations.md",
    "docs/operations/health-and-metrics.md",
    "docs/operations/deliveries-and-support.md",
    "docs/operations/halts-and-gaps.md",
    "docs/operations/upkeep.md",
    "docs/receivers.md",
];

/// Those whose text names commands, beside these.
const PARSED: [&str; 4] =
    ["README.md", "docs/install.md", "docs/configuration.md", "docs/guarantees.md"];

/// What stands in the documents, and what it is here: ids and times are examples.
struct Names {
    event: String,
    oldest: String,
    letters: [String; 2],
    gap: String,
    replay: String,
}

fn read(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The commands of a document's blocks: a line of its own, indented or fenced, that begins with one of our programs.
fn blocks(document: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut commands = Vec::new();
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            let line = line.trim();
            if line.starts_with("walhook ") || line.starts_with("walhook-simulator ") {
                commands.push(line);
            }
        }
    }
    commands
}

/// A line's words, as a shell has them: between spaces, or within single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match (c, quoted) {
            ('\'', _) => quoted = !quoted,
            (' ', false) => words.push(String::new()),
            _ => words.last_mut().expect("there is one").push(c),
        }
    }
    words
}

impl Names {
    /// The command, with what there is here in place of its examples.
    fn of_here(&self, command: &str) -> String {
        let [first, second] = &self.letters;
        let mut command = command.to_owned();
        for (there, here) in [
            ("evt_01M89HY61Z3KDGFQWS3TGAXFGY", self.event.as_str()),
            ("2026-11-23T17:00:00Z", self.oldest.as_str()),
            ("16/B374D848", self.oldest.as_str()),
            ("4711", first.as_str()),
            ("4712", second.as_str()),
            ("gaps close 3", format!("gaps close {}", self.gap).as_str()),
            ("replay cancel 12", format!("replay cancel {}", self.replay).as_str()),
            // The pipeline of the test is younger: it has no position of that age.
            ("--from 2h", "--from oldest"),
            (" --to 2026-11-23T18:00:00Z", ""),
        ] {
            command = command.replace(there, here);
        }
        command
    }
}

/// An account whose deliveries wait, are dead, and are missing, so that every command has something to do.
async fn prepare(world: &World, row: i64) -> Result<Names> {
    let run = async |args: &str| world.walhook_json(&args.split(' ').collect::<Vec<_>>()).await;
    let sql = async |sql: &str| world.sql.batch_execute(sql).await.with_context(|| sql.to_owned());
    run("endpoints resume 17").await?;
    // What comes for a row that cannot be used is dead at once.
    sql("UPDATE webhooks SET secret = NULL WHERE id = 17").await?;
    let dead = "SELECT count(*) FROM walhook.dead_letters";
    let before: i64 = world.value(dead).await?.parse()?;
    world.subscribe(row, 42).await?;
    world.subscribe(row + 1, 42).await?;
    // What waited for it, of a replay say, may be dead too.
    world.until(&format!("SELECT ({dead}) >= {}", before + 2), "t").await?;
    sql(&format!("UPDATE webhooks SET secret = '{}' WHERE id = 17", crate::support::SECRET))
        .await?;
    let letter = async |order: &str| {
        world
            .value(&format!("SELECT id FROM walhook.dead_letters ORDER BY id {order} LIMIT 1"))
            .await
    };
    let letters = [letter("ASC").await?, letter("DESC").await?];
    sql("INSERT INTO walhook.gaps (pipeline, from_lsn, to_lsn, reason)
         SELECT pipeline, frontier, frontier, 'test' FROM walhook.checkpoint")
    .await?;
    let gap = world.value("SELECT max(id) FROM walhook.gaps").await?;
    // A replay to an endpoint that is paused waits, and so does what is committed.
    world.settled().await?;
    run("endpoints pause 17").await?;
    let started = run("replay start --from oldest --endpoint 17").await?;
    let replay = started["id"].to_string();
    world.subscribe(row + 2, 42).await?;
    let waits = "SELECT count(*) > 0 FROM walhook.deliveries_pending WHERE replay_id > 0";
    world.until(waits, "t").await?;
    world.settled().await?;
    let event = world.value("SELECT event_id FROM walhook.deliveries_pending LIMIT 1").await?;
    let shown = run("checkpoint show").await?;
    let oldest =
        shown["replayable"]["from"].as_str().with_context(|| shown.to_string())?.to_owned();
    Ok(Names { event, oldest, letters, gap, replay })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_documents_do_what_they_say_on_a_live_pipeline() -> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(17, 42, "").await?;
    world.mock.set_behaviour("/17", Behaviour::status(StatusCode::OK));
    let running = world.run().await?;
    let anchor = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchor, "1").await?;
    world.subscribe(1, 42).await?;
    world.delivered(1).await?;
    let (mut ran, mut row) = (0, 100);
    let mut names = prepare(&world, row).await?;
    for document in RUN {
        for command in blocks(&read(document)?) {
            let place = format!("{document}: {command}");
            // Started by tests/recording.rs, and the simulator by its own.
            if command.starts_with("walhook-simulator ") || command.starts_with("walhook run ") {
                parses(command).context(place)?;
                continue;
            }
            // What the commands before have used up.
            if [" cancel ", " close ", "deferred ", " discard ", " retry "]
                .iter()
                .any(|uses| command.contains(uses))
            {
                row += 10;
                names = prepare(&world, row).await.with_context(|| place.clone())?;
            }
            let paused =
                [" cancel ", "deferred ", " resume "].iter().any(|one| command.contains(one));
            if !paused {
                let resumed = world.walhook_json(&["endpoints", "resume", "17"]).await;
                resumed.with_context(|| place.clone())?;
            }
            let here = names.of_here(command);
            let words = words(&here);
            let args: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
            let output = world.walhook(&args).await?;
            let said = text(&output.stdout) + &text(&output.stderr);
            ensure!(output.status.success(), "{place}: {here}: {}\n{said}", output.status);
            ensure!(!said.trim().is_empty(), "{place}: it prints nothing");
            ran += 1;
        }
    }
    ensure!(ran > 20, "{ran} commands were run");
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// Whether walhook knows the command with its arguments.
fn parses(command: &str) -> Result<()> {
    if !command.starts_with("walhook ") {
        return Ok(());
    }
    match walhook::cli::Cli::try_parse_from(words(command)) {
        Ok(_) => Ok(()),
        Err(error) if !error.use_stderr() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Of what stands in `code` within the text: that it begins with a command that there is, and where nothing of it is
/// left open, that its arguments are right.
#[test]
fn commands_that_documents_name_are_those_of_the_program() {
    let mut named = 0;
    for document in RUN.into_iter().chain(PARSED) {
        let page = read(document).unwrap();
        // A table of sessions begins its rows with their names.
        let lines =
            page.lines().filter(|line| !line.starts_with("    ") && !line.starts_with("| `"));
        let code = lines.flat_map(|line| line.split('`').skip(1).step_by(2));
        for command in code.filter(|code| code.starts_with("walhook ")) {
            let is_open = command.contains(['<', '…', '[']);
            let parsed = parses(command);
            let known = parsed.as_ref().err().and_then(|error| error.downcast_ref::<clap::Error>());
            let known = known.map(clap::Error::kind);
            let is_short = matches!(
                known,
                Some(
                    ErrorKind::MissingRequiredArgument
                        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                )
            );
            assert!(parsed.is_ok() || is_open || is_short, "{document}: `{command}`: {parsed:?}");
            named += 1;
        }
    }
    assert!(named > 60, "{named} are named");
}
