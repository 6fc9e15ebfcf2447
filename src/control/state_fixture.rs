//! A real state database for the tests of commands that need no pipeline.

use std::ops::Deref;

pub(crate) use walhook_fixture::*;

use crate::config::Config;
use walhook_state::{StateStore, schema_sql};

/// Tables by the product's schema, see [`Tables`].
#[derive(Debug)]
pub(crate) struct Fixture(Tables);

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self(Tables::start(&schema_sql(SCHEMA), &[]).await)
    }

    pub(crate) async fn open(&self) -> StateStore {
        StateStore::open(&self.url, SCHEMA, "p").await.unwrap()
    }

    /// The configuration of the pipeline `p`, its state in the source database.
    pub(crate) fn config(&self) -> Config {
        let text = format!(
            "[source]\nurl = \"{}\"\nslot = \"p\"\n[state]\nschema = {SCHEMA:?}\n\
             [endpoints]\ntable = \"public.webhooks\"\n",
            self.url.expose()
        );
        toml::from_str(&text).unwrap()
    }
}

impl Deref for Fixture {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.0
    }
}
