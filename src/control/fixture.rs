//! What the tests of the commands stand on: a server with a customer's schema in it.

use std::path::Path;

use crate::config::Config;
use walhook_core::endpoint::Secret;
use walhook_core::lsn::Lsn;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_postgres::wire;
use walhook_testkit::cluster::Cluster;

const SCHEMA: &str = "
    CREATE TABLE webhooks (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account_id bigint NOT NULL,
        url text NOT NULL, event_types text[] NOT NULL, secret text NOT NULL,
        enabled boolean NOT NULL DEFAULT true);
    CREATE TABLE subscribers (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account_id bigint NOT NULL,
        email text NOT NULL, status text NOT NULL DEFAULT 'new');
    CREATE TABLE parts (id bigint, account_id bigint, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);";

pub(crate) struct Fixture {
    pub(crate) cluster: Cluster,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start_copied(&std::env::temp_dir(), settings).await.unwrap();
        let admin = Connection::open(&Secret::new(cluster.url("postgres")), "test").await.unwrap();
        admin.batch_execute("CREATE DATABASE app").await.unwrap();
        let fixture = Self { cluster };
        fixture.run(SCHEMA).await;
        fixture
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.connect_as("postgres").await
    }

    pub(crate) async fn connect_as(&self, role: &str) -> Connection {
        Connection::open_with_path(&Secret::new(self.url(role)), "test", SERVER_SEARCH_PATH)
            .await
            .unwrap()
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.unwrap();
    }

    /// The first column of the first row, which must be text.
    pub(crate) async fn text(&self, sql: &str) -> String {
        self.connect().await.query_one(sql, &[]).await.unwrap().get(0)
    }

    fn url(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/app", self.cluster.port())
    }

    /// A configuration with one rule, and `more` behind it.
    pub(crate) fn config(&self, more: &str) -> Config {
        self.config_as("postgres", more)
    }

    pub(crate) fn config_as(&self, role: &str, more: &str) -> Config {
        let text = format!(
            "[source]\nurl = \"{}\"\n[endpoints]\ntable = \"public.webhooks\"\n\
             [[events]]\ntype = \"a.b\"\ntable = \"public.subscribers\"\non = [\"update\"]\n\
             account = \"account_id\"\ncolumns = [\"id\", \"email\"]\n{more}",
            self.url(role)
        );
        crate::config::parse(Path::new("test.toml"), &text, []).unwrap()
    }

    /// Streams from the slot `walhook` until the result is dropped.
    pub(crate) async fn read_slot(&self) -> wire::Stream {
        let url = Secret::new(self.cluster.url("app"));
        let replication = wire::connect(&url, "a reader").await.unwrap();
        replication.start("walhook", "walhook", Lsn::ZERO, 1 << 20).await.unwrap()
    }
}
