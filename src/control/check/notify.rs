//! Whether notices can be sent where `notify.url` says.

use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;
use url::{Host, Url};

use super::Report;
use crate::config::Config;
use walhook_sign::Weakness;

const WHAT: &str = "notify.url";

/// A name server that takes longer is of no use to the sender either.
const PATIENCE: Duration = Duration::from_secs(5);

/// Contacts nobody but the name server. What it finds is no failure: deliveries go on without.
pub(super) async fn check(config: &Config, report: &mut Report) {
    let Some(url) = &config.notify.url else { return };
    if let Some(Ok(Some(weakness))) = config.notify.secret.as_ref().map(walhook_sign::judge) {
        let finding = match weakness {
            Weakness::Plain => "is plain text, which the standard's libraries do not take",
            Weakness::Short => "has fewer than 24 bytes",
        };
        let fix = "write whsec_ and the base64 of 24 to 64 random bytes, here and at the receiver";
        report.warn("notify.secret", finding, fix);
    }
    let Ok(url) = Url::parse(url.expose()) else { return };
    match problem(config, &url).await {
        None => report.pass(WHAT, format!("leads to {}", url.host_str().unwrap_or_default())),
        Some(problem) => report.warn(
            WHAT,
            format!("{problem}: nobody will be told of endpoints that are switched off"),
            match url.username().is_empty() && url.password().is_none() {
                true => "correct it, or allow it in [egress]",
                false => "correct it",
            },
        ),
    }
}

async fn problem(config: &Config, url: &Url) -> Option<String> {
    let policy = config.egress.policy();
    if let Err(refusal) = policy.check_url(url) {
        return Some(refusal.to_string());
    }
    let Some(Host::Domain(name)) = url.host() else { return None };
    let asked = lookup_host((name, url.port_or_known_default().unwrap_or(0)));
    let addresses = match timeout(PATIENCE, asked).await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return Some(format!("{name} does not resolve: {error}")),
        Err(_) => return Some(format!("{name} is not resolved within {PATIENCE:?}")),
    };
    let mut first = None;
    for address in addresses {
        match policy.check_address(address.ip()) {
            Ok(()) => return None,
            Err(refusal) => first = first.or(Some(refusal.to_string())),
        }
    }
    Some(first.unwrap_or_else(|| format!("{name} resolves to no address")))
}
