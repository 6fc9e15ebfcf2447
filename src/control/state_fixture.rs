//! A real state database for the tests of commands that need no pipeline.

#[path = "../../crates/state/src/fixture.rs"]
mod state;

pub(crate) use state::*;

use crate::config::Config;

impl Fixture {
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
