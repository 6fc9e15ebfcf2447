//! State tables in a server of their own, for the tests.

use std::ops::{Deref, DerefMut};

pub(crate) use walhook_fixture::*;

use crate::{StateStore, schema_sql};

/// Tables by this crate's schema, see [`Tables`].
#[derive(Debug)]
pub(crate) struct Fixture(Tables);

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self(Tables::start(&schema_sql(SCHEMA), settings).await)
    }

    pub(crate) async fn open(&self) -> StateStore {
        StateStore::open(&self.url, SCHEMA, "p").await.unwrap()
    }
}

impl Deref for Fixture {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.0
    }
}

impl DerefMut for Fixture {
    fn deref_mut(&mut self) -> &mut Tables {
        &mut self.0
    }
}
