//! From `walhook.toml` and the environment to a [`Config`](super::Config).

/// (to come)
#[derive(Debug)]
pub struct ConfigError;
/// (to come)
#[derive(Debug)]
pub struct Loaded;
/// (to come)
pub fn load() {}
