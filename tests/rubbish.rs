//! The endpoint, account and event tables are filled with rubbish by seed: healthy accounts get all of
//! theirs, every delivery is accounted for, and the process lives.
//!
//! `WALHOOK_TEST_SEED=7` runs that seed alone; a failure names its seed.

mod audit;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::kills::from_env;
use crate::support::{SECRET, World, answers, text};

use values::Rubbish;

/// Without `WALHOOK_TEST_SEED`.
const SEEDS: [u64; 2] = [1, 2];

const ENDPOINTS: usize = 160;
const EVENTS: usize = 300;
const VICTIMS: usize = 4;

const RULES: &str = r#"
[[events]]
type = "note.*"
table = "public.notes"
on = ["insert"]
account = "account_id"
type_column = "type"
data_column = "data"

[[events]]
type = "thing.made"
table = "public.things"
on = ["insert"]
account = "account_id"
columns = ["*"]

[[events]]
type = "subscriber.created"
table = "public.subscribers"
on = ["insert"]
account = "account_id"
columns = ["id"]

[[events]]
type = "rubbish.said"
on = ["message"]
prefix = "rubbish"
account = "account"
"#;

const SECTIONS: &str = "
[accounts]
table = \"public.weights\"
[delivery]
timeout = \"2s\"
connect_timeout = \"1s\"
retry_base = \"100ms\"
retry_cap = \"1s\"
retry_for = \"2s\"
";

/// Whether an endpoint is owed an event of its account: delivered, deferred, or a dead letter.
struct Endpoint {
    /// What arrives at `/e<n>` is for it.
    n: usize,
    id: Option<String>,
    account: Option<String>,
    owed: bool,
}

/// A committed row of another than a victim.
struct Event {
    row: usize,
    account: Option<String>,
    /// The WAL's end before and behind its commit.
    wal: (u64, u64),
}

struct Test {
    world: World,
    rubbish: Rubbish,
    kinds: BTreeMap<&'static str, &'static str>,
    accounts: Vec<String>,
    endpoints: Vec<Endpoint>,
    /// In the order of their commits.
    events: Vec<Event>,
    /// By victim, the types of all that it must get.
    owed: BTreeMap<usize, BTreeSet<String>>,
    refused: usize,
}

fn victim(n: usize) -> String {
    format!("victim-{n}")
}

impl Test {
    async fn new(seed: u64) -> Result<Self> {
        let mut rubbish = Rubbish(SmallRng::seed_from_u64(seed));
        let world = World::bare(SECTIONS, RULES, &[]).await?;
        let mut kinds = BTreeMap::new();
        for (column, of) in [
            ("event_types", ["text[]", "jsonb", "text"]),
            ("secret", ["text", "text[]", "jsonb"]),
            ("enabled", ["boolean", "boolean", "text"]),
            ("headers", ["jsonb", "json", "text"]),
            ("max_in_flight", ["numeric", "text", "float8"]),
            ("rate_per_second", ["float8", "numeric", "text"]),
            ("weight", ["numeric", "text", "float8"]),
        ] {
            kinds.insert(column, rubbish.pick(&of));
        }
        println!("seed {seed}: {kinds:?}");
        world
            .sql
            .batch_execute(
                "CREATE TABLE webhooks (id text, account_id text, url text, event_types text[],
                     secret text, enabled boolean, headers jsonb, max_in_flight int,
                     rate_per_second float8);
                 ALTER TABLE webhooks REPLICA IDENTITY FULL;
                 CREATE TABLE weights (id text, weight float8);
                 CREATE TABLE subscribers (id bigint PRIMARY KEY, account_id text);
                 CREATE TABLE notes (id bigint PRIMARY KEY, account_id text, type text, data text);
                 CREATE TABLE things (id bigint PRIMARY KEY, account_id text, n numeric, f float8,
                     j json, jb jsonb, b bytea, a text[], ts timestamptz, t text)",
            )
            .await?;
        world.reconfigure(
            "[egress]",
            "headers = \"headers\"\nmax_in_flight = \"max_in_flight\"\n\
             rate_per_second = \"rate_per_second\"\n[egress]",
        )?;
        world.set_up().await?;
        let accounts: BTreeSet<String> = (0..40).map(|_| rubbish.text()).collect();
        let accounts = accounts.into_iter().collect();
        Ok(Self {
            world,
            rubbish,
            kinds,
            accounts,
            endpoints: Vec::new(),
            events: Vec::new(),
            owed: BTreeMap::new(),
            refused: 0,
        })
    }

    /// Gives the columns the types of this seed, some of which `run` would refuse at its start.
    async fn retype(&self) -> Result<()> {
        for (column, kind) in &self.kinds {
            let table = if *column == "weight" { "weights" } else { "webhooks" };
            let sql = format!("ALTER TABLE {table} ALTER {column} TYPE {kind} USING NULL");
            self.world.sql.batch_execute(&sql).await?;
        }
        Ok(())
    }

    fn account(&mut self) -> Option<String> {
        if self.rubbish.chance(4) {
            None
        } else {
            self.accounts.choose(&mut self.rubbish.0).cloned()
        }
    }

    /// Whether the server took the row.
    async fn insert(&self, sql: &str, values: &[Option<String>]) -> bool {
        let values: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            values.iter().map(|value| value as _).collect();
        self.world.sql.execute(sql, &values).await.is_ok()
    }

    async fn endpoint(&mut self, n: usize) -> Result<()> {
        let of = |column| self.kinds[column];
        let wants = [("text[]", "{*}"), ("jsonb", "[\"*\"]"), ("text", "*")];
        let all = wants.iter().find(|(kind, _)| *kind == of("event_types")).unwrap().1;
        let (types, secret, enabled, headers, max, rate) = (
            of("event_types"),
            of("secret"),
            of("enabled"),
            of("headers"),
            of("max_in_flight"),
            of("rate_per_second"),
        );
        let insert = format!(
            "INSERT INTO webhooks (id, account_id, url, event_types, secret, enabled, headers,
                 max_in_flight, rate_per_second)
             VALUES ($1::text, $2::text, $3::text, $4::text::{types}, $5::text::{secret},
                 $6::text::{enabled}, $7::text::{headers}, $8::text::{max}, $9::text::{rate})"
        );
        if n < VICTIMS {
            let url = self.world.mock.url(&format!("/{}", victim(n)));
            let secret = match secret {
                "text" => SECRET.to_owned(),
                "jsonb" => format!("[\"{SECRET}\"]"),
                _ => format!("{{{SECRET}}}"),
            };
            let some = |text: &str| Some(text.to_owned());
            let values = [
                Some(victim(n)),
                Some(victim(n)),
                Some(url),
                some(all),
                Some(secret),
                some("true"),
                None,
                None,
                None,
            ];
            ensure!(self.insert(&insert, &values).await, "a victim's endpoint is refused");
            return Ok(());
        }
        let id = match self.rubbish.0.random_range(0..10) {
            0 => None,
            1 => Some(self.rubbish.text()),
            2 => Some("twice".to_owned()),
            _ => Some(format!("e{n}")),
        };
        let account = self.account();
        let wants =
            if self.rubbish.chance(60) { Some(all.to_owned()) } else { self.rubbish.value(types) };
        let enabled = if self.rubbish.chance(80) {
            Some("true".to_owned())
        } else {
            self.rubbish.value(enabled)
        };
        let rare = |rubbish: &mut Rubbish, kind| {
            if rubbish.chance(60) { None } else { rubbish.value(kind) }
        };
        let values = [
            id.clone(),
            account.clone(),
            self.rubbish.url(&self.world, &format!("/e{n}")),
            wants.clone(),
            self.rubbish.secret(secret),
            enabled.clone(),
            rare(&mut self.rubbish, headers),
            rare(&mut self.rubbish, max),
            rare(&mut self.rubbish, rate),
        ];
        if !self.insert(&insert, &values).await {
            self.refused += 1;
            return Ok(());
        }
        let owed = wants.as_deref() == Some(all) && enabled.as_deref() == Some("true");
        self.endpoints.push(Endpoint { n, id, account, owed });
        Ok(())
    }

    async fn weight(&mut self) {
        let insert =
            format!("INSERT INTO weights VALUES ($1::text, $2::text::{})", self.kinds["weight"]);
        let values = [self.account(), self.rubbish.value(self.kinds["weight"])];
        self.refused += usize::from(!self.insert(&insert, &values).await);
    }

    async fn wal_end(&self) -> Result<u64> {
        let end = self.world.value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").await?;
        Ok(end.parse()?)
    }

    /// One event, in a transaction of its own.
    async fn event(&mut self, n: usize) -> Result<()> {
        let before = self.wal_end().await?;
        let id = Some(n.to_string());
        let account = self.account();
        let of_victim = self.rubbish.chance(30).then(|| self.rubbish.0.random_range(0..VICTIMS));
        let (sql, values) = if let Some(n_victim) = of_victim {
            let event_type = format!("note.n{n}");
            self.owed.entry(n_victim).or_default().insert(event_type.clone());
            let values = vec![id, Some(victim(n_victim)), Some(event_type), Some("{}".to_owned())];
            ("INSERT INTO notes VALUES ($1::text::bigint, $2::text, $3::text, $4::text)", values)
        } else {
            match self.rubbish.0.random_range(0..4) {
                0 => {
                    let of = |kind| self.rubbish.value(kind);
                    let mut values = vec![id, account.clone()];
                    values.extend(
                        ["numeric", "float8", "json", "jsonb", "text", "text[]", "time", "text"]
                            .map(of),
                    );
                    values[8] = Some(
                        self.rubbish.pick(&["infinity", "-infinity", "4713-01-01 BC"]).to_owned(),
                    );
                    (
                        "INSERT INTO things VALUES ($1::text::bigint, $2::text, $3::text::numeric,
                             $4::text::float8, $5::text::json, $6::text::jsonb,
                             pg_catalog.convert_to($7::text, 'UTF8'), $8::text::text[],
                             $9::text::timestamptz, $10::text)",
                        values,
                    )
                }
                1 => {
                    let content = match account {
                        Some(_) if self.rubbish.chance(30) => r#"{"account":"\u0000"}"#.to_owned(),
                        Some(_) if self.rubbish.chance(30) => self.rubbish.json(),
                        Some(account) => serde_json::json!({ "account": account }).to_string(),
                        None => self.rubbish.text(),
                    };
                    let sql = "SELECT pg_logical_emit_message(true, 'rubbish', $1::text)";
                    self.insert(sql, &[Some(content)]).await;
                    return Ok(());
                }
                _ => {
                    let event_type = if self.rubbish.chance(85) {
                        Some(format!("note.n{n}"))
                    } else {
                        self.rubbish.value("text")
                    };
                    let data = if self.rubbish.chance(50) {
                        Some("{}".to_owned())
                    } else {
                        self.rubbish.value("json")
                    };
                    let values = vec![id, account.clone(), event_type, data];
                    (
                        "INSERT INTO notes VALUES ($1::text::bigint, $2::text, $3::text, $4::text)",
                        values,
                    )
                }
            }
        };
        if self.insert(sql, &values).await {
            let account = values[1].clone();
            let wal = (before, self.wal_end().await?);
            self.events.push(Event { row: n, account, wal });
        } else {
            self.refused += 1;
        }
        Ok(())
    }

    /// Rows are changed and removed while events come.
    async fn churn(&mut self) -> Result<()> {
        for n in 0..60 {
            let id = Some(format!("e{}", self.rubbish.0.random_range(0..ENDPOINTS)));
            let sql = match self.rubbish.0.random_range(0..4) {
                0 => "DELETE FROM webhooks WHERE id = $1::text AND $2::text IS NOT NULL",
                1 => "UPDATE webhooks SET url = $2::text WHERE id = $1::text",
                2 => "UPDATE webhooks SET account_id = $2::text WHERE id = $1::text",
                _ => "UPDATE webhooks SET id = $2::text WHERE id = $1::text",
            };
            let value = self.rubbish.value("text");
            self.insert(sql, &[id, value]).await;
            self.event(EVENTS + n).await?;
        }
        Ok(())
    }
}

async fn survive(seed: u64) -> Result<String> {
    let mut test = Test::new(seed).await?;
    let mut running = test.world.run().await?;
    let survived = async {
        test.retype().await?;
        for n in 0..ENDPOINTS {
            test.endpoint(n).await?;
        }
        for _ in 0..60 {
            test.weight().await;
        }
        for n in 0..EVENTS {
            test.event(n).await?;
        }
        test.victims_have_theirs().await?;
        test.world.settled().await?;
        let shown = test.audit().await?;
        test.churn().await?;
        test.victims_have_theirs().await?;
        for command in [vec!["endpoints", "list"], vec!["dead-letters", "list"], vec!["status"]] {
            test.world.walhook_json(&command).await?;
            let output = test.world.walhook(&command).await?;
            let said = text(&output.stdout);
            let raw = said.chars().find(|c| c.is_control() && *c != '\n');
            ensure!(raw.is_none(), "{command:?} prints {raw:?}");
        }
        let letters = "SELECT count(*) FROM walhook.dead_letters WHERE endpoint LIKE 'victim-%'";
        ensure!(test.world.value(letters).await? == "0", "a victim has dead letters");
        Ok(shown)
    };
    let survived = survived.await.map_err(|error| {
        let log = running.log();
        error.context(log[log.len().saturating_sub(6_000)..].to_owned())
    });
    ensure!(running.has_ended()?.is_none(), "the process has ended: {:#?}", survived);
    let shown = survived?;
    ensure!(answers(test.world.admin, "/livez").await, "/livez does not answer");
    ensure!(!running.log().contains("panicked"), "{}", running.log());
    ensure!(running.terminate().await?.success());
    Ok(shown)
}

async fn survive_or_tell(seed: u64) {
    match survive(seed).await {
        Ok(shown) => println!("seed {seed}: {shown}"),
        Err(error) => panic!("repeat it with WALHOOK_TEST_SEED={seed}: {error:#}"),
    }
}

#[tokio::test]
async fn rubbish_in_every_table_costs_healthy_accounts_nothing_and_is_accounted_for() {
    let seeds = from_env("WALHOOK_TEST_SEED").map_or(SEEDS.to_vec(), |seed| vec![seed]);
    futures_util::future::join_all(seeds.into_iter().map(survive_or_tell)).await;
}
