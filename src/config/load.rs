//! From `walhook.toml` and the environment to a [`Config`].
//!
//! ```text
//! file → table with spans ─┐
//!                          ├► known keys? → Config → consistent?
//! environment ─────────────┘
//! ```
//!
//! Every value keeps where it comes from to the end, so that an error can name the file's line or
//! the variable. A value from the environment has a span behind the end of the file: the n-th byte
//! past it stands for the n-th variable.

mod setting;
mod words;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{EVENTS, Kind, SECTIONS, Section, WORKERS, suggestion};
use super::{Config, DEFAULT_PATHS, WorkerConfig, validate};
use setting::{Setting, settings};

/// Where systemd names the directories of `CacheDirectory=`, with colons in between.
const CACHE_DIRECTORY: &str = "CACHE_DIRECTORY";

/// What the parser says of a key or a table that is there twice; its place is the later one's name.
const DUPLICATE: &str = "duplicate key";

/// What every environment variable that sets a key begins with.
pub(super) const PREFIX: &str = "WALHOOK_";

/// Why there is no configuration. Never holds a value of a secret key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file, or it cannot be read.
    #[error(
        "cannot read the configuration {} (name another with --config, or begin with `walhook config \
         show --example > walhook.toml`)",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// None was named, and none stands where it is looked for.
    #[error(
        "there is no configuration: neither {} nor {} exists; name one with --config or in \
         WALHOOK_CONFIG, or begin with `walhook config show --example > walhook.toml`",
        DEFAULT_PATHS[0], DEFAULT_PATHS[1]
    )]
    NoFile,
    /// A key, a value or their combination cannot be used.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where the value comes from.
        place: Place,
        /// What is wrong, beginning with the key, and the fix.
        problem: String,
    },
    /// The file of a database URL holds none: it may be just being replaced by another.
    #[error("environment variable {variable}: {problem}")]
    UrlFile {
        /// The variable that names the file.
        variable: String,
        /// What is wrong, and the fix.
        problem: String,
    },
}

impl ConfigError {
    /// Whether it may pass by itself.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::UrlFile { .. })
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File(PathBuf),
    /// A place in the file, line and column counted from 1.
    Line(PathBuf, usize, usize),
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Line(path, line, column) => write!(f, "{}:{line}:{column}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// Reads the file at `path` and lays the variables of `env` over it.
///
/// `WALHOOK_<SECTION>__<KEY>` sets a key; with `_FILE` appended it names a file that holds the
/// value, whose trailing line break is stripped. A database URL's file is read again at each connection
/// (`DatabaseUrl`), all others here alone. An empty variable counts as not set. Names without
/// the double underscore (`WALHOOK_CONFIG`, and what Kubernetes sets for a service called walhook)
/// are not keys; [`near_misses`](super::near_misses) finds those that were meant to be.
///
/// # Errors
/// [`ConfigError`]: the first thing that is wrong, where it stands, and the fix.
pub fn load(
    path: &Path,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(path, &text, env)
}

/// As [`load`], with the file's text given.
pub(crate) fn parse(
    path: &Path,
    text: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let env: Vec<(String, String)> = env.into_iter().collect();
    let cache = cache_directory(&env);
    let settings = settings(env, Reads::All)?;
    let read = read(path, text, &settings, Reads::All, validate::validate);
    let mut config: Config = read.map_err(|error| of_url_file(&settings, error))?;
    settings.iter().for_each(|setting| setting.reread_by(&mut config));
    config.source.spool = config.source.spool.or(cache);
    Ok(config)
}

/// The error, which may pass where the value that is wrong is a URL that stands in a file.
fn of_url_file(settings: &[Setting], error: ConfigError) -> ConfigError {
    let ConfigError::Invalid { place: Place::Variable(variable), problem } = error else {
        return error;
    };
    let setting = settings.iter().find(|setting| setting.variable == variable && setting.is_url());
    match setting.and_then(|setting| setting.file.as_ref()) {
        Some(file) => {
            let problem = format!("in the file {}: {problem}", file.display());
            ConfigError::UrlFile { variable, problem }
        }
        None => ConfigError::Invalid { place: Place::Variable(variable), problem },
    }
}

/// The directory that systemd made for what may be lost.
fn cache_directory(env: &[(String, String)]) -> Option<PathBuf> {
    let (_, listed) = env.iter().find(|(name, _)| name == CACHE_DIRECTORY)?;
    listed.split(':').map(PathBuf::from).find(|path| path.is_absolute())
}

/// As [`load`], for a worker: what it does not need may be missing, and is not looked at. Only that there
/// are such keys is asked of all, so that a misspelt one is found.
///
/// # Errors
/// As [`load`].
pub fn load_worker(
    path: &Path,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<WorkerConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse_worker(path, &text, env)
}

/// As [`load_worker`], with the file's text given.
pub(crate) fn parse_worker(
    path: &Path,
    text: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<WorkerConfig, ConfigError> {
    read(path, text, &settings(env, Reads::AsWorker)?, Reads::AsWorker, validate::validate_worker)
}

/// The sections that a worker reads as a whole: those of [`WorkerConfig`].
const AS_WORKER: [&str; 6] = [WORKERS, "scheduler", "memory", "egress", "admin", "log"];

/// What of the configuration is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// All of it.
    All,
    /// What a worker needs.
    AsWorker,
}

impl Reads {
    /// The sections that must be there.
    const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::All => &["source", "endpoints"],
            Self::AsWorker => &[WORKERS],
        }
    }

    /// Whether the value of a key is used.
    fn uses(self, section: &str, key: &str) -> bool {
        self == Self::All
            || match section {
                "source" => key == "slot",
                "delivery" => key == "connect_timeout",
                section => AS_WORKER.contains(&section),
            }
    }

    /// Whether a key of the section that is required must be there where the section is.
    fn requires_keys_of(self, section: &str) -> bool {
        self == Self::All || self.needs().contains(&section)
    }
}

/// Lays the variables over the file, and reads what comes of it.
fn read<C: for<'de> Deserialize<'de>>(
    path: &Path,
    text: &str,
    settings: &[Setting],
    reads: Reads,
    validate: fn(&C) -> Result<(), validate::Problem>,
) -> Result<C, ConfigError> {
    let mut origins = Origins { path, text, reads, variables: vec![], values: vec![] };
    let mut root = DeTable::parse(text).map_err(|error| origins.error(&error))?;
    overlay(&mut origins, root.get_mut(), settings);
    known_keys(&mut origins, root.get_ref())?;
    let config = C::deserialize(toml::de::Deserializer::from(root))
        .map_err(|error| origins.error(&error))?;
    validate(&config).map_err(|(key, problem)| origins.invalid(&key, &problem))?;
    Ok(config)
}

/// Knows where every value comes from.
struct Origins<'a> {
    path: &'a Path,
    text: &'a str,
    reads: Reads,
    variables: Vec<String>,
    /// Keys such as `source.url`, each with its value's span; a table before what it holds.
    values: Vec<(String, std::ops::Range<usize>)>,
}

impl Origins<'_> {
    /// The span that stands for a variable.
    fn span_of_variable(&mut self, name: &str) -> std::ops::Range<usize> {
        self.variables.push(name.to_owned());
        let at = self.text.len() + self.variables.len();
        at..at
    }

    fn place(&self, offset: usize) -> Place {
        if let Some(n) = offset.checked_sub(self.text.len() + 1)
            && let Some(name) = self.variables.get(n)
        {
            return Place::Variable(name.clone());
        }
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        let lines = before.matches('\n').count();
        Place::Line(self.path.to_owned(), lines + 1, line.chars().count() + 1)
    }

    /// An error about the value of `key`.
    fn invalid(&self, key: &str, problem: &str) -> ConfigError {
        self.at(key, format!("{key}: {problem}"))
    }

    /// An error where `key` stands, or where that is not set, the table that should hold it.
    fn at(&self, key: &str, problem: String) -> ConfigError {
        let holders = std::iter::successors(Some(key), |key| Some(key.rsplit_once('.')?.0));
        let found = holders
            .filter(|key| !key.is_empty())
            .find_map(|k| self.values.iter().find(|(name, _)| name == k));
        let place = found
            .map_or_else(|| Place::File(self.path.to_owned()), |(_, span)| self.place(span.start));
        ConfigError::Invalid { place, problem }
    }

    /// An error of the parser or of serde.
    fn error(&self, error: &toml::de::Error) -> ConfigError {
        let mut message = words::in_plain_words(&error.message().replace('\n', "; "));
        if message == DUPLICATE
            && let Some(name) = error.span().and_then(|span| self.text.get(span))
        {
            message = format!("{message} {name}; keep one of them");
        }
        let Some(span) = error.span() else {
            return ConfigError::Invalid {
                place: Place::File(self.path.to_owned()),
                problem: message,
            };
        };
        let around = |range: &std::ops::Range<usize>| {
            *range == span || range.start <= span.start && span.end <= range.end
        };
        let key = self.values.iter().rev().find(|(_, range)| around(range)).map(|(key, _)| key);
        let problem = match key {
            Some(key) => format!("{key}: {message}"),
            None => message,
        };
        ConfigError::Invalid { place: self.place(span.start), problem }
    }
}

/// Lays the environment's values over the file's.
fn overlay<'i>(origins: &mut Origins<'_>, root: &mut DeTable<'i>, settings: &'i [Setting]) {
    for setting in settings {
        let span = origins.span_of_variable(&setting.variable);
        let value = setting.typed(&span);
        let section = root
            .entry(Spanned::new(span.clone(), setting.section.into()))
            .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
        if let DeValue::Table(table) = section.get_mut() {
            let key = Spanned::new(span.clone(), setting.key.into());
            table.insert(key, Spanned::new(span, value));
        }
    }
}

/// Refuses keys that do not exist, those that protect nothing, and missing ones; notes where each is.
fn known_keys(origins: &mut Origins<'_>, root: &DeTable<'_>) -> Result<(), ConfigError> {
    for (name, value) in root {
        let Some(section) = Section::named(name.get_ref()) else {
            let near = suggestion(name.get_ref(), SECTIONS.iter().map(|section| section.name));
            let problem = format!("there is no section {}; {near}", name.get_ref());
            return Err(ConfigError::Invalid { place: origins.place(name.span().start), problem });
        };
        origins.values.push((section.name.to_owned(), value.span()));
        match value.get_ref() {
            DeValue::Table(_) if section.name == EVENTS => {
                let problem = "write [[events]], once for each rule";
                return Err(origins.invalid(section.name, problem));
            }
            DeValue::Table(table) => known_keys_of(origins, section, section.name, table)?,
            DeValue::Array(rules) if section.name == EVENTS => {
                for (n, rule) in rules.iter().enumerate() {
                    let path = format!("{EVENTS}[{n}]");
                    origins.values.push((path.clone(), rule.span()));
                    if let DeValue::Table(rule) = rule.get_ref() {
                        known_keys_of(origins, section, &path, rule)?;
                    }
                }
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => {
                let problem = format!("is a section; write [{}]", section.name);
                return Err(origins.invalid(section.name, &problem));
            }
        }
    }
    let needed = SECTIONS.iter().find(|section| {
        origins.reads.needs().contains(&section.name) && !root.contains_key(section.name)
    });
    match needed {
        Some(section) => {
            let required = section.keys.iter().find(|(_, kind)| Section::requires(*kind));
            let problem = missing(section.name, required.map_or("", |(key, _)| key));
            Err(ConfigError::Invalid { place: Place::File(origins.path.to_owned()), problem })
        }
        None => Ok(()),
    }
}

fn known_keys_of(
    origins: &mut Origins<'_>,
    section: &Section,
    path: &str,
    table: &DeTable<'_>,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = name.get_ref();
        let problem = match section.kind(key) {
            None => Some(suggestion(key, section.supported()))
                .map(|near| format!("there is no key {path}.{key}; {near}")),
            Some(Kind::Refused(reason)) => Some(format!("{path}.{key} {reason}; remove it")),
            Some(_) => None,
        };
        if let Some(problem) = problem {
            return Err(ConfigError::Invalid { place: origins.place(name.span().start), problem });
        }
        origins.values.push((format!("{path}.{key}"), value.span()));
    }
    let is_absent = |key: &str, kind| Section::requires(kind) && !table.contains_key(key);
    let absent = section.keys.iter().find(|(key, kind)| is_absent(key, *kind));
    match absent.filter(|_| origins.reads.requires_keys_of(section.name)) {
        Some((key, _)) => Err(origins.at(path, missing(path, key))),
        None => Ok(()),
    }
}

fn missing(path: &str, key: &str) -> String {
    let variable = format!("{PREFIX}{}__{}", path.to_uppercase(), key.to_uppercase());
    if path.starts_with(EVENTS) {
        return format!("{path}.{key} is missing; every rule needs it");
    }
    format!("{path}.{key} is missing; set it in [{path}] or as {variable}")
}

#[cfg(test)]
mod tests;
