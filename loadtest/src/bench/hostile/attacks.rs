//! What each behaviour registers and commits.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::servers::{Malice, Servers};

/// An endpoint table that takes anything, and a table whose rule is costly.
pub(crate) const SCHEMA: &str = "
    DROP TABLE webhooks;
    ALTER TABLE subscribers DROP CONSTRAINT subscribers_account_id_fkey;
    CREATE TABLE webhooks (id text PRIMARY KEY, account_id bigint, url text,
        event_types text[] DEFAULT '{*}', secret text[] DEFAULT '{whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw}',
        enabled boolean DEFAULT true, headers json, max_in_flight numeric, rate_per_second numeric);
    ALTER TABLE webhooks REPLICA IDENTITY FULL;
    CREATE INDEX ON webhooks (account_id);
    CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account_id bigint, body text)";

/// Rules beside those of every scenario.
pub(crate) const EVENTS: &str = "
[[events]]
type = \"note.created\"
table = \"public.notes\"
on = [\"insert\"]
account = \"account_id\"
columns = [\"id\"]
when = \"new.body.matches('^([a-z]+ ?){1,40}$') && new.body.matches('(x|y|z)*')\"

[[events]]
type = \"hint.given\"
on = [\"message\"]
prefix = \"hint\"
account = \"account\"
";

/// A behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    Rows,
    Receivers,
    Names,
    Messages,
    Descriptors,
    Rules,
    FanOut,
}

/// What it does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Run instead of walhook.
    pub(crate) program: Option<PathBuf>,
    /// The name by which the victim's receiver is called, where it is not its address.
    pub(crate) victim_host: Option<&'static str>,
    /// Before walhook starts.
    pub(crate) prepare: String,
    /// As each hostile phase begins.
    pub(crate) register: String,
    /// What is committed in turn, and how many deliveries it makes.
    pub(crate) events: Vec<(String, u64)>,
    /// Between two of them; `None`: the first, once.
    pub(crate) every: Option<Duration>,
    /// There is one hostile phase, which lasts until so many deliveries have gone.
    pub(crate) is_once: bool,
    pub(crate) once_done: u64,
}

impl Attack {
    pub(crate) const ALL: [Self; 7] = [
        Self::Rows,
        Self::Receivers,
        Self::Names,
        Self::Messages,
        Self::Descriptors,
        Self::Rules,
        Self::FanOut,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Receivers => "receivers",
            Self::Names => "names",
            Self::Messages => "messages",
            Self::Descriptors => "descriptors",
            Self::Rules => "rules",
            Self::FanOut => "fan-out",
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Rows => {
                "endpoint rows of rubbish: nesting, numbers, escapes, 1,000 secrets, 10 MB"
            }
            Self::Receivers => {
                "receivers that answer 1xx, heads or bodies without end, hang, reset, trickle"
            }
            Self::Names => "300 accounts whose name servers are silent",
            Self::Messages => "messages of rubbish: no JSON, nesting, NUL, 8 KB accounts, 900 KB",
            Self::Descriptors => "400 endpoints that hang, with 256 file descriptors",
            Self::Rules => "rows of 20 KB for a rule of two regular expressions",
            Self::FanOut => "one event of an account with very many endpoints",
        }
    }

    /// What it does; or why it cannot be done here.
    pub(crate) async fn plan(
        self,
        servers: &Servers,
        endpoints: u64,
    ) -> Result<Result<Plan, String>> {
        Ok(Ok(match self {
            Self::Rows => rows(servers),
            Self::Receivers => receivers(servers),
            Self::Names => match names(servers).await? {
                Ok(plan) => plan,
                Err(why) => return Ok(Err(why)),
            },
            Self::Messages => messages(),
            Self::Descriptors => descriptors(servers)?,
            Self::Rules => rules(servers),
            Self::FanOut => fan_out(servers, endpoints),
        }))
    }
}

fn event(account: u64) -> (String, u64) {
    let sql =
        format!("INSERT INTO subscribers (account_id, email, version) VALUES ({account}, '', -1)");
    (sql, 1)
}

/// Each row belongs to an account of its own.
fn rows(servers: &Servers) -> Plan {
    let sink = servers.url(Malice::Well);
    let nested = format!("'{}1{}'", "{\"a\":".repeat(200), "}".repeat(200));
    let many =
        |n: u32, of: &str| format!("(SELECT array_agg({of}) FROM generate_series(1, {n}) g)");
    let secret = "'whsec_' || encode(sha256(g::text::bytea), 'base64')";
    let headers = |n: u32, bytes: u32| {
        format!(
            "(SELECT json_object_agg('x-' || g, repeat('v', {bytes})) FROM generate_series(1, {n}) g)"
        )
    };
    let columns: Vec<(&str, String)> = vec![
        ("headers", nested),
        ("headers", "'{\"x\": 1e400}'".into()),
        ("headers", "'{\"x\": 5}'".into()),
        ("headers", "'[[[]]]'".into()),
        ("headers", r#"'{"x": "\u0000"}'"#.into()),
        ("headers", r#"'{"x": "\ud800"}'"#.into()),
        ("headers", "'{\"host\": \"a\\r\\nb: c\"}'".into()),
        ("headers", headers(10_000, 10)),
        ("headers", headers(100, 100_000)),
        ("event_types", "'{{*,a},{b,c}}'".into()),
        ("event_types", format!("{} || '*'::text", many(20_000, "'type.' || g"))),
        ("secret", many(1_000, secret)),
        ("secret", many(10_000, secret)),
        ("secret", "'{whsec_!!!!}'".into()),
        ("secret", "'{NULL}'".into()),
        ("secret", "'{{a,b},{c,d}}'".into()),
        ("url", "'http://127.0.0.1/' || repeat('u', 100000)".into()),
        ("url", "'\u{1b}[2J\u{202e}'".into()),
        ("max_in_flight", "'1e300'".into()),
        ("rate_per_second", "'NaN'".into()),
        ("rate_per_second", "1e308::numeric * 1e308::numeric".into()),
    ];
    let mut register = String::new();
    let mut events = Vec::new();
    for (account, (column, value)) in (2_u64..).zip(&columns) {
        let url = if *column == "url" { value.clone() } else { format!("'{sink}'") };
        let (extra, value) = if *column == "url" {
            (String::new(), String::new())
        } else {
            (format!(", {column}"), format!(", {value}"))
        };
        register += &format!(
            "INSERT INTO webhooks (id, account_id, url{extra}) VALUES ('e{account}', {account}, {url}{value});\n"
        );
        events.push(event(account));
    }
    Plan { register, events, every: Some(Duration::from_millis(20)), ..Plan::default() }
}

/// Ten accounts for each kind.
fn receivers(servers: &Servers) -> Plan {
    let mut register = String::new();
    let mut events = Vec::new();
    for (kind, malice) in (0_u64..).zip(Malice::HOSTILE) {
        for n in 0..10 {
            let account = 100 + kind * 10 + n;
            let url = servers.url(malice);
            register += &format!(
                "INSERT INTO webhooks (id, account_id, url) VALUES ('e{account}', {account}, '{url}{account}');\n"
            );
        }
    }
    let kinds = Malice::HOSTILE.len() as u64;
    events.extend((0..10).flat_map(|n| (0..kinds).map(move |kind| event(100 + kind * 10 + n))));
    Plan { register, events, every: Some(Duration::from_millis(10)), ..Plan::default() }
}

async fn names(servers: &Servers) -> Result<Result<Plan, String>> {
    let program = match servers.with_names().await? {
        Ok(program) => program,
        Err(why) => return Ok(Err(why)),
    };
    let register = "INSERT INTO webhooks (id, account_id, url)
        SELECT 'e' || g, 100 + g, 'http://hook' || g || '.silent.test/' FROM generate_series(1, 300) g";
    Ok(Ok(Plan {
        program: Some(program),
        victim_host: Some("victim.test"),
        register: register.to_owned(),
        events: (101..=400).map(event).collect(),
        every: Some(Duration::from_millis(10)),
        ..Plan::default()
    }))
}

fn messages() -> Plan {
    let emit = |content: &str| format!("SELECT pg_logical_emit_message(true, 'hint', {content})");
    let contents = [
        "'no JSON'".to_owned(),
        "''".to_owned(),
        "'[]'".to_owned(),
        "'{}'".to_owned(),
        "'{\"account\": null}'".to_owned(),
        "'{\"account\": {\"a\": 1}}'".to_owned(),
        r#"'{"account": "\u0000"}'"#.to_owned(),
        r#"'{"account": "\ud800"}'"#.to_owned(),
        "'{\"account\": \"' || repeat('a', 8000) || '\"}'".to_owned(),
        "repeat('[', 100000)".to_owned(),
        "repeat('{\"account\":', 50000)".to_owned(),
        "'{\"account\": [' || repeat('1,', 450000) || '1]}'".to_owned(),
        r"'\xff00fe'::bytea".to_owned(),
    ];
    Plan {
        events: contents.iter().map(|content| (emit(content), 1)).collect(),
        every: Some(Duration::from_millis(20)),
        ..Plan::default()
    }
}

/// Each on an address of its own, so that no connection serves two.
fn descriptors(servers: &Servers) -> Result<Plan> {
    let port = servers.port(Malice::Hangs);
    let register = format!(
        "INSERT INTO webhooks (id, account_id, url)
         SELECT 'e' || g, 100 + g, format('http://127.0.%s.%s:{port}/', 1 + g / 200, 1 + g % 200)
         FROM generate_series(1, 400) g"
    );
    Ok(Plan {
        program: Some(servers.with_files(256)?),
        register,
        events: (101..=500).map(event).collect(),
        every: Some(Duration::from_millis(10)),
        ..Plan::default()
    })
}

fn rules(servers: &Servers) -> Plan {
    let url = servers.url(Malice::Well);
    let insert = |body: &str| format!("INSERT INTO notes (account_id, body) VALUES (100, {body})");
    Plan {
        register: format!("INSERT INTO webhooks (id, account_id, url) VALUES ('e', 100, '{url}')"),
        events: vec![(insert("repeat('a', 20000)"), 1), (insert("repeat('abcdefghij ', 39)"), 1)],
        every: Some(Duration::from_millis(10)),
        ..Plan::default()
    }
}

fn fan_out(servers: &Servers, endpoints: u64) -> Plan {
    let url = servers.url(Malice::Well);
    Plan {
        prepare: format!(
            "INSERT INTO webhooks (id, account_id, url)
             SELECT g, 100, '{url}' || g FROM generate_series(1, {endpoints}) g; ANALYZE webhooks"
        ),
        events: vec![(event(100).0, endpoints)],
        is_once: true,
        once_done: endpoints,
        ..Plan::default()
    }
}
