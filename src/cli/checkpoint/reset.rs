//! `walhook checkpoint reset`: back sends again, forward skips.

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::json;

use crate::cli::confirm::confirm;
use crate::cli::holder::refuse_while_active;
use crate::cli::replay::{Moment, Wait, Window, carry_out};
use crate::cli::status::{bytes, open_state};
use crate::cli::{CommandResult, Failure, print_json, print_line, print_remark};
use crate::config::Config;
use walhook_core::lsn::Lsn;
use walhook_core::replay::ReplayFilter;
use walhook_postgres::slot;
use walhook_postgres::sql::Connection;

#[derive(Debug, clap::Args)]
pub(super) struct Reset {
    /// Where to: an LSN, an RFC 3339 time, an age such as 2h, or oldest: as far back as can be
    #[arg(long, value_name = "POSITION", value_parser = Moment::parse)]
    to: Moment,
    /// Forward, too: what lies in between is never sent
    #[arg(long)]
    skip: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Back: how long to wait for the end of the replay; 0s does not wait
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    wait: Duration,
}

pub(super) async fn run(config: &Config, args: Reset, json: bool) -> CommandResult {
    let mut state = open_state(config).await?;
    let checkpoint = state.frontier().await?;
    if let Moment::Position(to) = args.to
        && to > checkpoint
    {
        return skip(config, checkpoint, to, &args, json).await;
    }
    let window = Window::read(config, &state).await?;
    let range = window.range(&state, args.to, None, ReplayFilter::default()).await?;
    let plan = format!(
        "This sends again, with the same ids, what was committed from {} to the checkpoint {} ({} of \
         WAL), to the endpoints of now. `walhook replay start --dry-run` counts it.",
        range.from,
        range.to,
        bytes(range.to.bytes_since(range.from))
    );
    if !args.yes {
        confirm("checkpoint reset", &plan, &config.source.slot)?;
    } else if !json {
        print_remark(&plan.to_string());
    }
    carry_out(config, &mut state, &range, Wait::for_range(args.wait), json).await
}

/// Moves the checkpoint forward over what is not delivered, and records that.
async fn skip(
    config: &Config,
    checkpoint: Lsn,
    to: Lsn,
    args: &Reset,
    json: bool,
) -> CommandResult {
    let source = Connection::open(&config.source.url, "walhook checkpoint")
        .await
        .map_err(anyhow::Error::from)?;
    let wal_end = slot::wal_end(&source).await.context("cannot read the end of the WAL")?;
    if to > wal_end {
        return Err(anyhow!(
            "{to} lies beyond the end of the WAL; the checkpoint {checkpoint} can be moved forward to \
             at most {wal_end}"
        )
        .into());
    }
    let plan = format!(
        "This gives up what was committed from the checkpoint {checkpoint} to {to} ({} of WAL) and is \
         not delivered yet. It is recorded in `gaps`.",
        bytes(to.bytes_since(checkpoint))
    );
    if !args.skip {
        return Err(Failure::Usage(anyhow!("{plan} If that is meant, add --skip")));
    }
    refuse_while_active(config, &source).await?;
    if !args.yes {
        confirm("checkpoint reset", &plan, &config.source.slot)?;
    } else if !json {
        print_remark(&plan.to_string());
    }
    let reason = "skipped with `walhook checkpoint reset --skip`";
    open_state(config).await?.accept_gap(checkpoint, to, reason, None).await?;
    if json {
        print_json(&json!({ "skipped": { "from": checkpoint, "to": to } }))
    } else {
        print_line(&format!("skipped {checkpoint} to {to}; start `walhook run`"))
    }
}
