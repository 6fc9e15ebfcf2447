//! Who means harm: what each registers and commits.

use std::time::Duration;

use super::servers::{Answers, Malice, Servers};

/// An endpoint table that takes anything, and a table whose rule is costly.
pub(crate) const SCHEMA: &str = "
    DROP TABLE webhooks;
    ALTER TABLE subscribers DROP CONSTRAINT subscribers_account_id_fkey;
    CREATE TABLE webhooks (id text PRIMARY KEY, account_id bigint, url text,
        event_types text[] DEFAULT '{*}', secret text[] DEFAULT '{whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw}',
        enabled boolean DEFAULT true, headers json, max_in_flight bigint, rate_per_second numeric);
    ALTER TABLE webhooks REPLICA IDENTITY FULL;
    CREATE INDEX ON webhooks (account_id);
    CREATE TABLE blobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account_id bigint, body text);
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
type = \"blob.created\"
table = \"public.blobs\"
on = [\"insert\"]
account = \"account_id\"
columns = [\"id\", \"body\"]

[[events]]
type = \"hint.given\"
on = [\"message\"]
prefix = \"hint\"
account = \"account\"
";

/// Whoever means harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Adversary {
    Whale,
    Whales,
    Endpoints,
    Keys,
    Hanging,
    Informational,
    SilentNames,
    Huge,
    Unroutable,
    Rows,
    Receivers,
    Rules,
}

/// What it does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// As it begins.
    pub(crate) register: String,
    /// What is committed in turn, and how many deliveries it makes.
    pub(crate) events: Vec<(String, u64)>,
    /// Between two of them.
    pub(crate) every: Duration,
    /// Commits at most.
    pub(crate) most: usize,
}

impl Adversary {
    pub(crate) const ALL: [Self; 12] = [
        Self::Whale,
        Self::Whales,
        Self::Endpoints,
        Self::Keys,
        Self::Hanging,
        Self::Informational,
        Self::SilentNames,
        Self::Huge,
        Self::Unroutable,
        Self::Rows,
        Self::Receivers,
        Self::Rules,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Whale => "whale",
            Self::Whales => "whales",
            Self::Endpoints => "endpoints",
            Self::Keys => "keys",
            Self::Hanging => "hanging",
            Self::Informational => "1xx",
            Self::SilentNames => "silent-names",
            Self::Huge => "huge",
            Self::Unroutable => "unroutable",
            Self::Rows => "rows",
            Self::Receivers => "receivers",
            Self::Rules => "rules",
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Whale => "one account with 2,000 rows a second, whose endpoint takes 50 ms",
            Self::Whales => {
                "twenty accounts with 100 rows a second each, whose endpoints take 50 ms"
            }
            Self::Endpoints => {
                "an account with ten thousand endpoints, and an event for all of them every 4 s"
            }
            Self::Keys => {
                "100,000 rows of one account, each with an ordering key of its own, whose endpoint takes 50 ms"
            }
            Self::Hanging => "300 accounts whose endpoints never answer",
            Self::Informational => "ten accounts whose endpoints answer 1xx without end",
            Self::SilentNames => "300 accounts whose name servers are silent",
            Self::Huge => "ten rows of 900 KB a second of one account",
            Self::Unroutable => "messages of rubbish: no JSON, nesting, NUL, 8 KB accounts, 900 KB",
            Self::Rows => {
                "endpoint rows of rubbish: nesting, numbers, escapes, 1,000 secrets, 10 MB"
            }
            Self::Receivers => {
                "receivers with heads or bodies without end, that reset, that trickle"
            }
            Self::Rules => "rows of 20 KB for a rule of two regular expressions",
        }
    }

    /// What it does in a stage where its endpoints are to answer like that; `named`: by names.
    pub(crate) fn plan(self, servers: &Servers, answers: Answers, named: bool) -> Plan {
        let url = |own: Malice| servers.url(answers.of(own), named.then_some("a.well.test"));
        match self {
            Self::Whale => whales(1, 200, &url(Malice::Late)),
            Self::Whales => whales(20, 10, &url(Malice::Late)),
            Self::Endpoints => endpoints(servers, answers.of(Malice::Well), named),
            Self::Keys => keys(&url(Malice::Late)),
            Self::Hanging => accounts(300, &url(Malice::Hangs)),
            Self::Informational => accounts(10, &url(Malice::Informs)),
            Self::SilentNames => silent_names(),
            Self::Huge => huge(&url(Malice::Well)),
            Self::Unroutable => unroutable(),
            Self::Rows => rows(servers),
            Self::Receivers => receivers(servers),
            Self::Rules => rules(servers),
        }
    }
}

/// Rows of an account, in one transaction.
fn events(account: u64, rows: u64) -> (String, u64) {
    let sql = format!(
        "INSERT INTO subscribers (account_id, email, version)
         SELECT {account}, '', -1 FROM generate_series(1, {rows})"
    );
    (sql, rows)
}

fn event(account: u64) -> (String, u64) {
    events(account, 1)
}

/// The first of the adversaries' accounts.
const FIRST: u64 = 100;

/// Accounts with an endpoint each.
fn register(accounts: u64, url: &str) -> String {
    format!(
        "INSERT INTO webhooks (id, account_id, url)
         SELECT 'e' || g, g, '{url}' || g FROM generate_series({FIRST}, {}) g",
        FIRST + accounts - 1
    )
}

fn whales(accounts: u64, rows: u64, url: &str) -> Plan {
    let (text, each): (Vec<_>, Vec<_>) =
        (FIRST..FIRST + accounts).map(|account| events(account, rows)).unzip();
    Plan {
        register: register(accounts, url),
        events: vec![(text.join(";"), each.into_iter().sum())],
        every: Duration::from_millis(100),
        most: 80,
    }
}

fn endpoints(servers: &Servers, malice: Malice, named: bool) -> Plan {
    const ENDPOINTS: u64 = 10_000;
    let host = if named { "'h' || g || '.well.test'" } else { "'127.0.0.1'" };
    let port = servers.port(malice);
    Plan {
        register: format!(
            "INSERT INTO webhooks (id, account_id, url)
             SELECT 'e' || g, {FIRST}, 'http://' || {host} || ':{port}/' || g
             FROM generate_series(1, {ENDPOINTS}) g; ANALYZE webhooks"
        ),
        events: vec![(event(FIRST).0, ENDPOINTS)],
        every: Duration::from_secs(4),
        most: 2,
    }
}

fn keys(url: &str) -> Plan {
    Plan {
        register: register(1, url),
        events: vec![events(FIRST, 10_000)],
        every: Duration::from_millis(300),
        most: 10,
    }
}

/// Accounts that each have a little.
fn accounts(accounts: u64, url: &str) -> Plan {
    Plan {
        register: register(accounts, url),
        events: (FIRST..FIRST + accounts).map(event).collect(),
        every: Duration::from_millis(10),
        most: 800,
    }
}

fn silent_names() -> Plan {
    let register = format!(
        "INSERT INTO webhooks (id, account_id, url)
         SELECT 'e' || g, g, 'http://hook' || g || '.silent.test/' FROM generate_series({FIRST}, 399) g"
    );
    Plan { register, ..accounts(300, "") }
}

fn huge(url: &str) -> Plan {
    let insert =
        format!("INSERT INTO blobs (account_id, body) VALUES ({FIRST}, repeat('huge', 225000))");
    Plan {
        register: register(1, url),
        events: vec![(insert, 1)],
        every: Duration::from_millis(100),
        most: 80,
    }
}

/// Each row belongs to an account of its own.
fn rows(servers: &Servers) -> Plan {
    let sink = servers.url(Malice::Well, None);
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
        ("max_in_flight", i64::MAX.to_string()),
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
    Plan { register, events, every: Duration::from_millis(20), most: usize::MAX }
}

/// Ten accounts for each kind.
fn receivers(servers: &Servers) -> Plan {
    let mut register = String::new();
    let mut events = Vec::new();
    for (kind, malice) in (0_u64..).zip(Malice::HARMFUL) {
        for n in 0..10 {
            let account = 100 + kind * 10 + n;
            let url = servers.url(malice, None);
            register += &format!(
                "INSERT INTO webhooks (id, account_id, url) VALUES ('e{account}', {account}, '{url}{account}');\n"
            );
        }
    }
    let kinds = Malice::HARMFUL.len() as u64;
    events.extend((0..10).flat_map(|n| (0..kinds).map(move |kind| event(100 + kind * 10 + n))));
    Plan { register, events, every: Duration::from_millis(10), most: usize::MAX }
}

fn unroutable() -> Plan {
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
        every: Duration::from_millis(20),
        most: usize::MAX,
        ..Plan::default()
    }
}

fn rules(servers: &Servers) -> Plan {
    let url = servers.url(Malice::Well, None);
    let insert = |body: &str| format!("INSERT INTO notes (account_id, body) VALUES (100, {body})");
    Plan {
        register: format!("INSERT INTO webhooks (id, account_id, url) VALUES ('e', 100, '{url}')"),
        events: vec![(insert("repeat('a', 20000)"), 1), (insert("repeat('abcdefghij ', 39)"), 1)],
        every: Duration::from_millis(10),
        most: usize::MAX,
    }
}
