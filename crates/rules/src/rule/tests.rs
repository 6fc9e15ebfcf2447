//! Hand-made tables, relations and changes for the tests of each step.

mod bind;
mod build;
mod compile;
mod learn;
mod message;
mod model;
mod outbox;
mod summary;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use walhook_core::catalog::ReplicaIdentity;
use walhook_core::catalog::{Generated, Table, TableColumn};
use walhook_core::event::{
    AccountId, EndpointId, Event, Invalidation, Operation, Scope, Unroutable, UnroutableReason,
};
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::types::{TypeShape, Types, oid};
use walhook_decode::change::{Rows, Transaction};
use walhook_decode::pgoutput::{Column, Datum, OldTuple, Tuple};

use Datum::{Null, Text as T, Unchanged};

const SUBSCRIBERS: u32 = 20_000;
const WEBHOOKS: u32 = 20_001;
const PLANS: u32 = 20_002;
const SHOWN: u32 = 20_003;
const PARTED: u32 = 20_004;
const PART: u32 = 20_005;
const BARE: u32 = 20_006;

fn table(oid: u32, name: &str, columns: &[(&str, u32)], primary_key: &[&str]) -> Table {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let column = |(name, type_oid): &(&str, u32)| TableColumn {
        name: (*name).to_owned(),
        type_oid: *type_oid,
        is_nullable: *name == "status",
        is_loose: false,
        generated: if *name == "made" { Generated::Unpublishable } else { Generated::No },
        is_left_out: *name == "hidden",
    };
    Table {
        oid,
        schema: "public".to_owned(),
        name: name.to_owned(),
        is_view: oid == SHOWN,
        is_partitioned: oid == PARTED,
        is_inherited: false,
        ancestors: if oid == PART { vec![PARTED] } else { vec![] },
        columns: columns.iter().map(column).collect(),
        primary_key: names(primary_key),
        identity: ReplicaIdentity::Default,
        identity_columns: names(primary_key),
    }
}

fn full(mut table: Table) -> Table {
    table.identity = ReplicaIdentity::Full;
    table.identity_columns = table.columns.iter().map(|column| column.name.clone()).collect();
    table
}

fn subscribers() -> Table {
    let columns = [
        ("id", oid::INT8),
        ("account_id", oid::INT8),
        ("status", oid::TEXT),
        ("attrs", oid::JSONB),
    ];
    table(SUBSCRIBERS, "subscribers", &columns, &["id"])
}

fn webhooks() -> Table {
    let columns = [
        ("id", oid::UUID),
        ("account_id", oid::INT8),
        ("url", oid::TEXT),
        ("event_types", oid::TEXT_ARRAY),
        ("secret", oid::TEXT),
        ("enabled", oid::BOOL),
    ];
    table(WEBHOOKS, "webhooks", &columns, &["id"])
}

fn catalog_with(subscribers: Table) -> Catalog {
    let keyed = [("id", oid::INT4), ("account_id", oid::INT4)];
    let tables = [
        subscribers,
        webhooks(),
        table(PLANS, "plans", &keyed, &["id"]),
        table(SHOWN, "shown", &keyed, &[]),
        table(PARTED, "parted", &keyed, &["id", "account_id"]),
        table(PART, "part", &keyed, &["id", "account_id"]),
        table(BARE, "bare", &[keyed[0], keyed[1], ("made", oid::INT4)], &[]),
    ];
    Catalog::new(tables, Types::default())
}

fn relation(table: &Table) -> Arc<Relation> {
    let is_full = table.identity == ReplicaIdentity::Full;
    let column = |column: &TableColumn| Column {
        key: is_full || table.logs_old(&column.name),
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: -1,
    };
    Arc::new(Relation {
        oid: table.oid,
        schema: table.schema.clone(),
        name: table.name.clone(),
        identity: table.identity,
        columns: table.columns.iter().map(column).collect(),
    })
}

/// What a configuration says about events.
#[derive(serde::Deserialize)]
struct Config {
    endpoints: Endpoints,
    #[serde(default)]
    events: Vec<EventRule>,
    #[serde(default)]
    payload: Payload,
}

impl Config {
    fn rules(&self) -> RuleSettings<'_> {
        RuleSettings { events: &self.events, endpoints: &self.endpoints, payload: &self.payload }
    }
}

/// The configuration, as a user writes it; `webhooks` is the endpoint table.
fn config(events: &str) -> Config {
    toml::from_str(&format!("[endpoints]\ntable = 'webhooks'\n{events}")).unwrap()
}

fn rule(event_type: &str, on: &str, more: &str) -> String {
    let columns = if more.contains("columns") { "" } else { "columns = ['id', 'status', 'attrs']" };
    format!(
        "[[events]]\ntype = '{event_type}'\ntable = 'public.subscribers'\non = {on}\n\
         account = 'account_id'\n{columns}\n{more}\n"
    )
}

const SYSTEM: u64 = 7;

fn errors(config: &Config, catalog: &Catalog) -> Vec<String> {
    match Rules::compile(config.rules(), catalog, SYSTEM) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// Rules bound to the subscribers and webhooks tables.
fn bound(events: &str, subscribers: Table) -> (Rules, Arc<Relation>) {
    let relation = relation(&subscribers);
    let config = config(events);
    let catalog = catalog_with(subscribers);
    let mut rules = Rules::compile(config.rules(), &catalog, SYSTEM).unwrap();
    rules.handle_relation(&relation).unwrap();
    (rules, relation)
}

fn change<'a>(relation: &Arc<Relation>, rows: Rows<'a>) -> Change<'a> {
    let commit_lsn = Lsn(9);
    Change {
        transaction: Transaction { commit_lsn, commit_time_us: 1_000_000, xid: 77 },
        position: WalPosition { commit_lsn, change_lsn: Lsn(8), relation: relation.oid, n: 0 },
        relation: Arc::clone(relation),
        rows,
    }
}

fn items(rules: &mut Rules, relation: &Arc<Relation>, rows: Rows<'_>) -> Vec<Item> {
    let mut out = Vec::new();
    rules.handle_change(&change(relation, rows), &mut out);
    out
}

fn event(rules: &mut Rules, relation: &Arc<Relation>, rows: Rows<'_>) -> Arc<Event> {
    match items(rules, relation, rows).as_slice() {
        [Item::Event(event)] => Arc::clone(event),
        other => panic!("not one event: {other:?}"),
    }
}

fn unroutable(rules: &mut Rules, relation: &Arc<Relation>, rows: Rows<'_>) -> Unroutable {
    match items(rules, relation, rows).pop() {
        Some(Item::Unroutable(unroutable)) => unroutable,
        other => panic!("not unroutable: {other:?}"),
    }
}

fn types(items: &[Item]) -> Vec<&str> {
    let mut types = Vec::new();
    for item in items {
        if let Item::Event(event) = item {
            types.push(&*event.event_type);
        }
    }
    types
}

fn row(event: &Event) -> Value {
    serde_json::from_str(&format!("{{{}}}", std::str::from_utf8(&event.row).unwrap())).unwrap()
}

fn tuple<'a>(values: &[Datum<'a>]) -> Tuple<'a> {
    Tuple(values.to_vec())
}

fn insert<'a>(new: &[Datum<'a>]) -> Rows<'a> {
    Rows::Insert { new: tuple(new) }
}

fn update<'a>(old: Option<OldTuple<'a>>, new: &[Datum<'a>]) -> Rows<'a> {
    Rows::Update { old, new: tuple(new) }
}

fn whole<'a>(values: &[Datum<'a>]) -> OldTuple<'a> {
    OldTuple::Full(tuple(values))
}

fn key<'a>(values: &[Datum<'a>]) -> OldTuple<'a> {
    OldTuple::Key(tuple(values))
}
