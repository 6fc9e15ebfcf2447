//! Whether `egress.proxy` answers, and opens tunnels.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;
use url::Url;

use super::Report;
use crate::config::Config;
use crate::control::Databases;
use walhook_http::transport::Transport;
use walhook_postgres::lookup::Listed;

const WHAT: &str = "egress.proxy";

/// Endpoints that a tunnel is asked for, each of another host: some may be dead.
const TRIED: usize = 5;

/// What is sent through the proxy from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sends {
    /// Requests.
    Requests,
    /// Nothing but notices: workers send the requests.
    Notices,
}

/// Asks the proxy for nothing but an answer. Whether there is more to ask it.
pub(super) async fn check(transport: &Transport, sends: Sends, report: &mut Report) -> bool {
    match transport.look_at_proxy().await {
        None => false,
        Some(Ok(())) => {
            report.pass(WHAT, "answers");
            true
        }
        Some(Err(reason)) => {
            let fix = "start it, or correct egress.proxy: its address, user and password";
            match sends {
                Sends::Requests => {
                    report.fail(WHAT, format!("{reason}: until it works nothing is sent"), fix);
                }
                Sends::Notices => report.warn(
                    WHAT,
                    format!(
                        "{reason}: until it works no notice leaves from this machine; requests leave from workers \
                         (workers.local = \"never\"), which `walhook check --role worker` asks there"
                    ),
                    fix,
                ),
            }
            false
        }
    }
}

/// Asks it for tunnels to some endpoints, any of them, but rather to those that are well. Nothing is sent through them.
pub(super) async fn tunnels(
    config: &Config,
    transport: &Transport,
    listed: &[Listed],
    report: &mut Report,
) {
    let mut usable: Vec<&Listed> =
        listed.iter().filter(|row| row.enabled && row.invalid.is_none()).collect();
    usable.shuffle(&mut rand::rng());
    let unwell = unwell(config).await;
    usable.sort_by_key(|row| unwell.contains(&row.id));
    let (mut hosts, mut refused) = (Vec::new(), Vec::new());
    for row in usable {
        let Some(host) = Url::parse(&row.url).ok().and_then(|it| it.host().map(|h| h.to_owned()))
        else {
            continue;
        };
        if hosts.len() == TRIED {
            break;
        }
        if hosts.contains(&host) {
            continue;
        }
        hosts.push(host);
        match transport.look_for_tunnel(&row.url).await {
            None => {}
            Some(Ok(())) => return report.pass(WHAT, "opens tunnels"),
            Some(Err(reason)) => refused.push(format!("{} ({reason})", row.id)),
        }
    }
    if !refused.is_empty() {
        report.warn(
            WHAT,
            format!("opened no tunnel to the endpoints that were tried: {}", refused.join(", ")),
            "have it allow CONNECT to addresses, on the ports of endpoints, or correct those endpoints",
        );
    }
}

/// The endpoints that fail, or to which nothing is sent. Of state that cannot be read another line tells.
async fn unwell(config: &Config) -> BTreeSet<String> {
    let Ok(state) = Databases::of(config).open_state().await else { return BTreeSet::new() };
    let standings = state.standings(None, "", super::look_up::LOOKED_AT).await.unwrap_or_default();
    let is_unwell = standings.into_iter().filter(|standing| standing.state != "ok");
    is_unwell.map(|standing| standing.endpoint).collect()
}
