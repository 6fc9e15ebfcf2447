//! What the environment sets: each variable's key, and its value or the file that holds it.

use std::io::ErrorKind;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeValue};

use super::{ConfigError, PREFIX, Place, Reads};
use crate::config::Config;
use crate::config::keys::{EVENTS, Kind, SECTIONS, Section, suggestion};
use walhook_core::endpoint::Secret;
use walhook_postgres::pg::DatabaseUrl;

/// A key's value from the environment.
pub(super) struct Setting {
    pub(super) variable: String,
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    kind: Kind,
    value: String,
    /// Where the value was read from.
    pub(super) file: Option<PathBuf>,
}

/// Picks out of the environment the variables that set keys, and reads the files they name.
pub(super) fn settings(
    env: impl IntoIterator<Item = (String, String)>,
    reads: Reads,
) -> Result<Vec<Setting>, ConfigError> {
    let mut env: Vec<(String, String)> = env
        .into_iter()
        .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
        .collect();
    // The environment has no order; the same one must always end in the same error.
    env.sort();
    let mut settings: Vec<Setting> = vec![];
    for (variable, value) in env {
        let setting = setting(&variable, value, reads).map_err(|problem| ConfigError::Invalid {
            place: Place::Variable(variable.clone()),
            problem,
        })?;
        let Some(mut setting) = setting else { continue };
        let same = |other: &&Setting| other.section == setting.section && other.key == setting.key;
        if let Some(other) = settings.iter().find(same) {
            let problem = format!("{} sets the same key; remove one of them", other.variable);
            return Err(ConfigError::Invalid { place: Place::Variable(variable), problem });
        }
        setting.read_file()?;
        settings.push(setting);
    }
    Ok(settings)
}

fn setting(variable: &str, value: String, reads: Reads) -> Result<Option<Setting>, String> {
    let rest = variable.strip_prefix(PREFIX).and_then(|rest| rest.split_once("__"));
    let Some((section, key)) = rest else { return Ok(None) };
    let (section, key) = (section.to_lowercase(), key.to_lowercase());
    let Some(section) = Section::named(&section) else {
        let near = suggestion(&section, SECTIONS.iter().map(|section| section.name));
        return Err(format!("there is no section {section}; {near}"));
    };
    if section.name == EVENTS {
        return Err("rules can be set in the file only".to_owned());
    }
    let named = |key: &str| section.keys.iter().copied().find(|(name, _)| *name == key);
    let (value, file, (key, kind)) = if let Some(found) = named(&key) {
        (value, None, found)
    } else if let Some(found) = key.strip_suffix("_file").and_then(named) {
        if !reads.uses(section.name, found.0) {
            // A secret that is somebody else's, and most often not ours to read.
            return Ok(None);
        }
        (String::new(), Some(PathBuf::from(value)), found)
    } else {
        let near = suggestion(&key, section.supported());
        return Err(format!("there is no key {}.{key}; {near}", section.name));
    };
    let variable = variable.to_owned();
    Ok(Some(Setting { variable, section: section.name, key, kind, value, file }))
}

impl Setting {
    /// Whether it is a database URL, whose file is read again and again.
    pub(super) fn is_url(&self) -> bool {
        let urls = [("source", "url"), ("source", "replication_url"), ("state", "url")];
        urls.contains(&(self.section, self.key))
    }

    /// Takes the value from the file, where there is one.
    fn read_file(&mut self) -> Result<(), ConfigError> {
        let Some(path) = &self.file else { return Ok(()) };
        let file = path.display();
        let (problem, may_pass) = match std::fs::read_to_string(path) {
            Ok(content) => {
                self.value = content.trim_end_matches(['\r', '\n']).to_owned();
                if !self.value.is_empty() {
                    return Ok(());
                }
                (format!("the file {file} is empty; write the value into it"), true)
            }
            Err(error) => {
                let problem = format!(
                    "cannot read the file {file}: {error}; correct the path, or let walhook read it"
                );
                (problem, !matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::InvalidData))
            }
        };
        let variable = self.variable.clone();
        Err(match may_pass && self.is_url() {
            true => ConfigError::UrlFile { variable, problem },
            false => ConfigError::Invalid { place: Place::Variable(variable), problem },
        })
    }

    /// Has a database URL's file read again at each connection.
    pub(super) fn reread_by(&self, config: &mut Config) {
        let Some(file) = &self.file else { return };
        let url = || DatabaseUrl::of_file(Secret::new(self.value.as_str()), file.clone());
        match (self.section, self.key) {
            ("source", "url") => config.source.url = url(),
            ("source", "replication_url") => config.source.replication_url = Some(url()),
            ("state", "url") => config.state.url = Some(url()),
            _ => {}
        }
    }

    /// Reads the text as the type that the key wants. What does not fit stays text, and serde then
    /// says what was wanted.
    pub(super) fn typed(&self, span: &std::ops::Range<usize>) -> DeValue<'_> {
        let text = DeValue::String(self.value.as_str().into());
        match self.kind {
            Kind::Number | Kind::Switch => {
                DeValue::parse(&self.value).map_or(text, Spanned::into_inner)
            }
            Kind::List | Kind::RequiredList => {
                let item = |item: String| Spanned::new(span.clone(), DeValue::String(item.into()));
                let list = toml::de::ValueDeserializer::parse(&self.value);
                let items = list.and_then(Vec::<String>::deserialize).unwrap_or_else(|_| {
                    self.value.split(',').map(|item| item.trim().to_owned()).collect()
                });
                DeValue::Array(items.into_iter().map(item).collect::<DeArray<'_>>())
            }
            Kind::Text | Kind::Required | Kind::Rule | Kind::RequiredOfRule | Kind::Refused(_) => {
                text
            }
        }
    }
}
