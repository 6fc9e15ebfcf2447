//! A real state database for the tests of commands that need no pipeline.

#[path = "../../crates/state/src/fixture.rs"]
mod state;

pub(crate) use state::*;

use super::Common;
use crate::config::Config;

impl Fixture {
    fn toml(&self) -> String {
        format!(
            "[source]\nurl = \"{}\"\nslot = \"p\"\n[state]\nschema = {SCHEMA:?}\n\
             [endpoints]\ntable = \"public.webhooks\"\n",
            self.url.expose()
        )
    }

    /// The configuration of the pipeline `p`, its state in the source database.
    pub(crate) fn config(&self) -> Config {
        toml::from_str(&self.toml()).unwrap()
    }

    /// The same in a file, for a command.
    pub(crate) fn common(&self, json: bool) -> (tempfile::NamedTempFile, Common) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.toml()).unwrap();
        let common = Common { config: Some(file.path().to_owned()), json };
        (file, common)
    }
}
