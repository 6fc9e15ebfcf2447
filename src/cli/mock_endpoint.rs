//! `walhook mock-endpoint`: a receiver to try things with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use walhook_testkit::receiver::{Behaviour, Hook, Received, Receiver, Settings};
use walhook_testkit::sign::{Signed, Verifier};

use super::{CommandResult, Common, Failure, print_json, print_line, print_remark};
use walhook_core::endpoint::Secret;
use walhook_sign as sign;

/// Receive webhooks, for tests: verify signatures, delay and fail as scripted
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints a line for each request, and the counts at the end; `GET /stats` shows them meanwhile. Every
path is an endpoint. Beside the options, a URL's query scripts its own endpoint:

  http://127.0.0.1:9724/slow?delay=2s
  http://127.0.0.1:9724/flaky?fail=0.3&retry_after=2
  http://127.0.0.1:9724/broken?status=500
  http://127.0.0.1:9724/stuck?hang

With a secret, what is not signed with it, or was minutes ago, is answered with 401, whatever the
script says.

Memory is bounded. It tells 2,097,152 different deliveries apart (those after are counted as
`untold`), counts 10,000 paths of at most 1 KiB apart, reads bodies of at most 2 MiB, 128 at a
time, holds 256 MiB of those that wait for their answer, and answers 503 when 10,000 requests wait.

Examples:
  walhook mock-endpoint
  walhook mock-endpoint --listen 127.0.0.1:9724")]
pub struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9724")]
    listen: SocketAddr,
    /// Verify signatures with this secret (whsec_ and base64, as in an endpoint's row), and answer 401 where
    /// it does not fit; given several times, one of them has to
    #[arg(long, env = "WALHOOK_MOCK_SECRET", hide_env_values = true)]
    secret: Vec<String>,
    /// Wait before each answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// Answer with this status
    #[arg(long)]
    status: Option<StatusCode>,
    /// Answer this share of requests, from 0 to 1, with 503
    #[arg(long, value_name = "SHARE")]
    fail_rate: Option<f64>,
    /// Print no line for each request
    #[arg(long)]
    quiet: bool,
}

/// Runs the command until Ctrl-C or SIGTERM.
///
/// # Errors
/// When the address cannot be had, or a secret is none.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    if args.fail_rate.is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
        return Err(Failure::Usage(anyhow::anyhow!("--fail-rate is a share from 0 to 1")));
    }
    let secrets: Vec<Secret> = args.secret.into_iter().map(Secret::new).collect();
    for secret in &secrets {
        sign::judge(secret).map_err(|why| Failure::Usage(anyhow::anyhow!("--secret: {why}")))?;
    }
    let verifies = !secrets.is_empty();
    let on_request: Option<Hook> = match args.quiet || common.json {
        true => None,
        false => Some(Arc::new(move |received| {
            show(received, verifies);
            Ok(())
        })),
    };
    let scripted = args.delay.is_some() || args.status.is_some() || args.fail_rate.is_some();
    let plain = Behaviour::ok();
    let default = scripted.then(|| Behaviour {
        delay: args.delay.unwrap_or(plain.delay),
        status: args.status.unwrap_or(plain.status),
        fail_rate: args.fail_rate.unwrap_or(plain.fail_rate),
        ..plain
    });
    let settings = Settings {
        verify: verifies.then(|| verifier(secrets)),
        strict: verifies,
        // Nobody asks for them.
        keep: 0,
        on_request,
        default,
        ..Settings::default()
    };
    let receiver = Receiver::start(args.listen, settings).await?;
    print_remark(&format!("listening on http://{}; Ctrl-C ends it", receiver.address()));
    super::run::until_signal().await.map_err(anyhow::Error::from)?;
    let stats = receiver.stats();
    if common.json {
        return print_json(&stats);
    }
    let untold = match stats.untold {
        0 => String::new(),
        n => format!(", {n} too many to tell apart"),
    };
    print_line(&format!(
        "{} received, {} taken, {} distinct, {} duplicates{untold}, {} verified",
        stats.received, stats.taken, stats.distinct, stats.duplicates, stats.verified
    ))
}

/// Takes every kind of secret that an endpoint's row may hold.
fn verifier(secrets: Vec<Secret>) -> Verifier {
    Arc::new(move |signed| {
        let Signed { id, timestamp, body, signatures, .. } = *signed;
        secrets.iter().any(|secret| sign::verify(id, timestamp, body, signatures, secret))
    })
}

fn show(received: &Received, verifies: bool) {
    let signature = match (verifies, received.verified) {
        (false, _) => "not checked",
        (true, true) => "verified",
        (true, false) => "NOT VERIFIED",
    };
    let body = received.json();
    let event_type = body.get("type").and_then(serde_json::Value::as_str).unwrap_or("-");
    let Received { path, id, attempt, answered, .. } = received;
    // A closed pipe is no reason to stop receiving.
    let _ = print_line(&format!(
        "{path}  {id}  {event_type}  attempt {attempt}  {signature}  {answered}"
    ));
}
