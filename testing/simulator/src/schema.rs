//! The database that is simulated: its tables, and the rules that make events of them.

use serde::Deserialize;
use walhook_core::catalog::{Catalog, Generated, ReplicaIdentity, Table, TableColumn};
use walhook_core::settings::Endpoints;
use walhook_core::types::{Types, oid};
use walhook_rules::rule::{RuleSettings, Rules};
use walhook_rules::settings::{EventRule, Payload};

/// The cluster's own number.
pub(crate) const SYSTEM: u64 = 7_300_000_000_000_000_001;

pub(crate) const SUBSCRIBERS: u32 = 20_000;
pub(crate) const NOTES: u32 = 20_001;
pub(crate) const PLANS: u32 = 20_002;
pub(crate) const WEBHOOKS: u32 = 20_003;
pub(crate) const ACCOUNTS: u32 = 20_004;
pub(crate) const DOCUMENTS: u32 = 20_005;
pub(crate) const OUTBOX: u32 = 20_006;

/// What an event takes at most.
pub(crate) const MAX_BYTES: usize = 512;

/// The prefix of the messages that a rule wants.
pub(crate) const PREFIX: &str = "outbox";

/// The account of what has no account column.
pub(crate) const OPERATOR: &str = "a1";

const CONFIG: &str = r#"
[endpoints]
table = "public.webhooks"
max_in_flight = "max_in_flight"
rate_per_second = "rate_per_second"
watch = ["public.webhooks", "public.accounts"]

[[events]]
type = "subscriber.created"
table = "public.subscribers"
on = ["insert"]
account = "account_id"
columns = ["id", "status"]
rename = { status = "state" }
max_bytes = "512"

[[events]]
type = "subscriber.updated"
table = "public.subscribers"
on = ["update"]
account = "account_id"
when = "old.status != new.status"
columns = ["id", "status"]

[[events]]
type = "subscriber.deleted"
table = "public.subscribers"
on = ["delete"]
account = "account_id"
columns = ["id"]

[[events]]
type = "note.written"
table = "public.notes"
on = ["insert"]
account = "account_id"
when = "int(new.text) >= 0"
columns = ["text"]

[[events]]
type = "plans.cleared"
table = "public.plans"
on = ["truncate"]
account_value = "a1"
columns = ["*"]

[[events]]
type = "document.*"
table = "public.documents"
on = ["insert", "update"]
account = "account_id"
type_column = "kind"
columns = ["id", "title", "body"]

[[events]]
type = "account.*"
table = "public.outbox"
on = ["insert"]
account = "account_id"
type_column = "kind"
data_column = "content"

[[events]]
type = "order.placed"
on = ["message"]
prefix = "outbox"
account = "account"
"#;

#[derive(Debug, Deserialize)]
struct Config {
    endpoints: Endpoints,
    events: Vec<EventRule>,
    #[serde(default)]
    payload: Payload,
}

/// A table of the simulated database.
struct Described {
    oid: u32,
    name: &'static str,
    columns: &'static [(&'static str, u32)],
    /// The first so many columns are its primary key.
    key: usize,
    identity: ReplicaIdentity,
}

const FULL: ReplicaIdentity = ReplicaIdentity::Full;

const TABLES: [Described; 7] = [
    Described {
        oid: SUBSCRIBERS,
        name: "subscribers",
        columns: &[("id", oid::INT8), ("account_id", oid::TEXT), ("status", oid::TEXT)],
        key: 1,
        identity: FULL,
    },
    Described {
        oid: NOTES,
        name: "notes",
        columns: &[("account_id", oid::TEXT), ("text", oid::TEXT)],
        key: 0,
        identity: FULL,
    },
    Described { oid: PLANS, name: "plans", columns: &[("id", oid::INT8)], key: 1, identity: FULL },
    Described {
        oid: WEBHOOKS,
        name: "webhooks",
        columns: &[
            ("id", oid::TEXT),
            ("account_id", oid::TEXT),
            ("url", oid::TEXT),
            ("event_types", oid::TEXT_ARRAY),
            ("secret", oid::TEXT),
            ("enabled", oid::BOOL),
            ("max_in_flight", oid::INT4),
            ("rate_per_second", oid::FLOAT8),
        ],
        key: 1,
        identity: FULL,
    },
    Described {
        oid: ACCOUNTS,
        name: "accounts",
        columns: &[("id", oid::TEXT), ("weight", oid::FLOAT8)],
        key: 1,
        identity: FULL,
    },
    Described {
        oid: DOCUMENTS,
        name: "documents",
        columns: &[
            ("id", oid::INT8),
            ("account_id", oid::TEXT),
            ("kind", oid::TEXT),
            ("title", oid::TEXT),
            ("body", oid::TEXT),
        ],
        key: 1,
        identity: ReplicaIdentity::Default,
    },
    Described {
        oid: OUTBOX,
        name: "outbox",
        columns: &[
            ("id", oid::INT8),
            ("account_id", oid::TEXT),
            ("kind", oid::TEXT),
            ("content", oid::TEXT),
        ],
        key: 1,
        identity: ReplicaIdentity::Default,
    },
];

impl Described {
    fn table(&self) -> Table {
        let column = |(name, type_oid): &(&str, u32)| TableColumn {
            name: (*name).to_owned(),
            type_oid: *type_oid,
            is_nullable: true,
            is_loose: false,
            generated: Generated::No,
            is_left_out: false,
        };
        let names = |columns: usize| -> Vec<String> {
            self.columns.iter().take(columns).map(|(name, _)| (*name).to_owned()).collect()
        };
        let logged = if self.identity == FULL { self.columns.len() } else { self.key };
        Table {
            oid: self.oid,
            schema: "public".to_owned(),
            name: self.name.to_owned(),
            is_view: false,
            is_partitioned: false,
            is_inherited: false,
            ancestors: Vec::new(),
            columns: self.columns.iter().map(column).collect(),
            primary_key: names(self.key),
            identity: self.identity,
            identity_columns: names(logged),
        }
    }
}

/// All tables, by the catalog.
pub(crate) fn tables() -> impl Iterator<Item = Table> {
    TABLES.iter().map(Described::table)
}

/// One of them.
pub(crate) fn table(relation: u32) -> Option<Table> {
    TABLES.iter().find(|table| table.oid == relation).map(Described::table)
}

/// The rules, compiled as a new leader does.
#[expect(clippy::expect_used, reason = "the configuration is a constant")]
pub(crate) fn rules() -> Rules {
    let config: Config = toml::from_str(CONFIG).expect("the simulated configuration is valid");
    let settings = RuleSettings {
        events: &config.events,
        endpoints: &config.endpoints,
        payload: &config.payload,
    };
    let catalog = Catalog::new(tables(), Types::default());
    Rules::compile(settings, &catalog, SYSTEM).expect("the simulated rules fit the tables")
}
