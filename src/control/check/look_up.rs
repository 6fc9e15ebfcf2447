//! Does a look-up work, in the session in which `run` makes them?

use anyhow::Result;
use tokio_postgres::error::SqlState;
use url::Url;

use super::{NAME, Report, Verdict, accounts, proxy};
use crate::config::Config;
use walhook_core::escape;
use walhook_core::event::AccountId;
use walhook_http::transport::Transport;
use walhook_postgres::fix::Failure;
use walhook_postgres::lookup::{self, Listed, LookupError, Lookups, Which};
use walhook_sign::Weakness;

const WHAT: &str = "look-up";

/// Endpoints that are looked at, by their ids.
pub(super) const LOOKED_AT: i64 = 10_000;

/// Endpoints that are named of those with one thing wrong.
const NAMED: usize = 10;

/// Characters of an event type that are shown.
const LONGEST_NAMED: usize = 64;

/// What a name that is not found says, in the words of the server.
const MISSING: [SqlState; 5] = [
    SqlState::UNDEFINED_FUNCTION,
    SqlState::UNDEFINED_TABLE,
    SqlState::UNDEFINED_OBJECT,
    SqlState::UNDEFINED_COLUMN,
    SqlState::INVALID_SCHEMA_NAME,
];

/// Looks up the endpoints of an account that has one: functions behind a view are only called for rows. `through`: what
/// asks the proxy for tunnels to some of them.
pub(super) async fn check(
    config: &Config,
    through: Option<&Transport>,
    report: &mut Report,
) -> Result<()> {
    let client = match lookup::connect(config.lookups(), NAME).await {
        Ok(client) => client,
        Err(error) => {
            report.fail(WHAT, format!("{error:#}"), "correct endpoints.search_path");
            return Ok(());
        }
    };
    let looked_up = async {
        let lookups = Lookups::of(config.lookups());
        let listed = lookups.list(&client, Which { limit: LOOKED_AT, ..Which::default() }).await?;
        let first = listed.iter().find(|row| row.invalid.is_none()).or(listed.first());
        let accounts: Vec<_> = first.iter().map(|row| AccountId::new(&*row.account)).collect();
        lookups.fetch(&client, &accounts).await?;
        Ok::<_, LookupError>(listed)
    };
    match looked_up.await {
        Ok(listed) => {
            let path = &config.endpoints.search_path;
            report.pass(WHAT, format!("works under the search_path {path}"));
            endpoints(config, &listed, report);
            if let Some(transport) = through {
                proxy::tunnels(config, transport, &listed, report).await;
            }
            accounts::check(config, &client, report).await?;
        }
        Err(error) => {
            let fix = fix(config, &error);
            report.add(Verdict::Fail, WHAT, format!("{:#}", anyhow::Error::from(error)), fix);
        }
    }
    Ok(())
}

/// What is wrong, or weak, with the endpoints that are switched on. Never fails: other endpoints work, and
/// rows can be corrected while we run.
fn endpoints(config: &Config, listed: &[Listed], report: &mut Report) {
    let enabled: Vec<&Listed> = listed.iter().filter(|row| row.enabled).collect();
    let table = &config.endpoints.table;
    if enabled.is_empty() {
        let finding = match listed.len() {
            0 => format!("{table} holds none"),
            all => format!("none of the {all} in {table} is switched on"),
        };
        report.warn("endpoints", finding, "events find nobody until a row is added or switched on");
        return;
    }
    let among = match i64::try_from(listed.len()) {
        Ok(LOOKED_AT) => format!("of the first {LOOKED_AT} endpoints"),
        _ => format!("of {} endpoints", listed.len()),
    };
    let mut tell = |what: &str, finding: &str, fix: &str, ids: &[String]| {
        if let Some(named) = named(ids) {
            report.warn(what, format!("{} {among} {finding}: {named}", ids.len()), fix);
        }
    };
    let of = |wrong: &dyn Fn(&Listed) -> Option<String>| -> Vec<String> {
        let rows = enabled.iter().filter_map(|row| Some((row, wrong(row)?)));
        rows.map(|(row, why)| match why.is_empty() {
            true => row.id.clone(),
            false => format!("{} ({why})", row.id),
        })
        .collect()
    };
    tell(
        "endpoints",
        "cannot be used",
        "correct their rows: until then what comes for them becomes dead letters",
        &of(&|row| row.invalid.clone()),
    );
    tell(
        "endpoints",
        "have an id that one of another account has too",
        "give each an id of its own, by a view where the table has none: what pauses or switches off an endpoint goes \
         by its id, and would do so to the other account's",
        &of(&|row| {
            let has_it = |other: &&Listed| other.id == row.id && other.account != row.account;
            // They stand side by side.
            let from = listed.partition_point(|other| other.id < row.id);
            let of_id = listed.iter().skip(from).take_while(|other| other.id == row.id);
            of_id
                .clone()
                .find(has_it)
                .map(|other| format!("accounts {} and {}", row.account, other.account))
        }),
    );
    let policy = config.egress.policy();
    let refused = of(&|row| {
        let url = row.invalid.is_none().then(|| Url::parse(&row.url).ok())??;
        policy.check_url(&url).err().map(|refusal| refusal.to_string())
    });
    tell(
        "endpoints",
        "have a URL that [egress] refuses",
        "correct their rows, or allow it in [egress]: until then deliveries to them fail",
        &refused,
    );
    let unknown = of(&|row| {
        let is_made = |pattern: &&String| config.events.iter().any(|rule| rule.makes(pattern));
        let mut types = row.event_types.iter().filter(|pattern| !is_made(pattern));
        let first = types.next().filter(|_| row.invalid.is_none())?;
        Some(escape::one_line(&first.chars().take(LONGEST_NAMED).collect::<String>()).into_owned())
    });
    tell(
        "endpoints",
        "want event types that no rule makes",
        "correct their rows (a pattern is *, or ends in .*), or add a rule",
        &unknown,
    );
    let weak = |wanted| of(&|row| (row.weak == Some(wanted)).then(String::new));
    let fix = "use whsec_ and the base64 of 24 to 64 random bytes";
    let finding = "have a secret of plain text, which few libraries take";
    tell("secrets", finding, fix, &weak(Weakness::Plain));
    tell("secrets", "have a secret of fewer than 24 bytes", fix, &weak(Weakness::Short));
}

/// The first of them; `None` where there is none.
pub(super) fn named(ids: &[String]) -> Option<String> {
    if ids.is_empty() {
        return None;
    }
    let more = if ids.len() > NAMED { ", ..." } else { "" };
    Some(format!("{}{more}", ids.get(..NAMED).unwrap_or(ids).join(", ")))
}

/// `None` where the error names it.
fn fix(config: &Config, error: &LookupError) -> Option<String> {
    let table = &config.endpoints.table;
    let error = match error {
        LookupError::Sql(error) => error,
        LookupError::NoTable { .. }
        | LookupError::NoColumn { .. }
        | LookupError::Incomparable { .. } => return None,
        LookupError::Shape(_)
        | LookupError::Retyped { .. }
        | LookupError::Hidden { .. }
        | LookupError::Connect(_)
        | LookupError::Many(_)
        | LookupError::TypeChanged => return Some(error.fix().into_owned()),
    };
    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
        return Some(error.fix().into_owned());
    }
    if error.code().is_some_and(|code| MISSING.contains(code)) {
        return Some(format!(
            "{table} is read under the search_path {}: name the schemas that its functions rely on in \
             endpoints.search_path, or better give those functions a path of their own with ALTER \
             FUNCTION ... SET search_path",
            config.endpoints.search_path
        ));
    }
    Some(format!("correct what {table} holds or calls"))
}
