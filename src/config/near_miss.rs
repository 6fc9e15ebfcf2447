//! Environment variables that were meant to set a key, and do not.

use super::keys::{EVENTS, SECTIONS, distance};
use super::load::PREFIX;

/// Of the commands: no key, though it begins with the name of a section.
const ADMIN_URL: &str = "WALHOOK_ADMIN_URL";

/// So many letters are typing errors; further from every key, the name is somebody else's.
const TYPING_ERRORS: usize = 2;

/// Names of variables that begin with `WALHOOK_`, look as if they were meant to set a key, and set nothing;
/// each with what to write instead. Values are not looked at.
///
/// Meant to is what is nearly a key, or begins with the name of a section: all else under our prefix
/// (`WALHOOK_BIN`) is no business of ours. A name with a double underscore sets a key, or is an error: that is
/// not for here.
pub fn near_misses(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut found: Vec<String> = names
        .into_iter()
        .filter_map(|name| Some(format!("{name} sets nothing; {}", instead(&name)?)))
        .collect();
    found.sort();
    found
}

/// What Kubernetes sets for each service: `WALHOOK_SERVICE_HOST`, `WALHOOK_PORT_9723_TCP_ADDR`, and the
/// same for a service whose name goes on.
fn is_of_kubernetes(name: &str) -> bool {
    let port = |rest: &str| rest.is_empty() || rest.starts_with('_');
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT").is_some_and(|(_, rest)| port(rest))
}

/// What to write instead of the name; `None` where it was not meant to set a key.
fn instead(name: &str) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?;
    if rest.contains("__") || is_of_kubernetes(name) || name == ADMIN_URL {
        return None;
    }
    let meant = rest.to_lowercase();
    let (far, variable) = nearest(&meant)?;
    let section = SECTIONS.iter().find(|section| {
        let rest = meant.strip_prefix(section.name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    });
    let near = if section.is_some() { 1 + meant.len() / 4 } else { TYPING_ERRORS };
    match section {
        _ if far == 0 => Some(format!("write {variable}, with two underscores")),
        Some(section) if section.name == EVENTS => Some("rules can be set in the file only".into()),
        _ if far <= near => Some(format!("did you mean {variable}?")),
        Some(_) => Some(format!("keys are set as {PREFIX}<SECTION>__<KEY>")),
        None => None,
    }
}

/// The key that is nearest, as a variable, and how many letters away it is.
fn nearest(meant: &str) -> Option<(usize, String)> {
    let keys = SECTIONS.iter().filter(|section| section.name != EVENTS).flat_map(|section| {
        section.supported().flat_map(|key| ["", "_file"].map(|file| (section.name, key, file)))
    });
    let far = |(section, key, file): &(&str, &str, &str)| {
        distance(meant, &format!("{section}_{key}{file}"))
    };
    let (section, key, file) = keys.min_by_key(far)?;
    let variable = format!("{PREFIX}{section}__{key}{file}").to_uppercase();
    Some((far(&(section, key, file)), variable))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Vec<String> {
        near_misses(names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn variable_that_sets_nothing_is_named_with_the_one_that_was_meant() {
        for (name, says) in [
            ("WALHOOK_SOURCE_URL", "write WALHOOK_SOURCE__URL, with two underscores"),
            ("WALHOOK_SOURCE_URL_FILE", "write WALHOOK_SOURCE__URL_FILE, with two underscores"),
            ("WALHOOK_STATE_MAX_SIZE", "write WALHOOK_STATE__MAX_SIZE, with two underscores"),
            ("WALHOOK_SOURCE_REPLICATON_URL", "did you mean WALHOOK_SOURCE__REPLICATION_URL?"),
            ("WALHOOK_SOUCRE_URL", "did you mean WALHOOK_SOURCE__URL?"),
            ("WALHOOK_SOURCEURL", "did you mean WALHOOK_SOURCE__URL?"),
            ("WALHOOK_SOURCE", "keys are set as WALHOOK_<SECTION>__<KEY>"),
            ("WALHOOK_EGRESS_COLOUR_OF_THE_SKY", "keys are set as WALHOOK_<SECTION>__<KEY>"),
            ("WALHOOK_EVENTS_TYPE", "rules can be set in the file only"),
        ] {
            assert_eq!(found(&[name]), [format!("{name} sets nothing; {says}")]);
        }
    }

    #[test]
    fn variables_that_were_not_meant_to_set_a_key_are_not_remarked_on() {
        let names = [
            "WALHOOK_BIN",
            "WALHOOK_REPO",
            "WALHOOK_VERSION",
            "WALHOOK_COLOUR",
            "WALHOOK_IMAGE_TAG",
            "WALHOOK_DATABASE_URL",
            "WALHOOK_TEST_ONLY_ONE",
            "WALHOOK_LOADTEST_SECONDS",
            "WALHOOK_LOGGING_OFF",
            "WALHOOK_SOURCES",
            "WALHOOK_MOCK_SECRET",
            "WALHOOK_FAILPOINT",
            "WALHOOK_SEED",
            "WALHOOK_",
            "WALHOOK_SERVICE_HOST",
            "WALHOOK_SERVICE_PORT",
            "WALHOOK_SERVICE_PORT_ADMIN",
            "WALHOOK_PORT",
            "WALHOOK_PORT_9723_TCP",
            "WALHOOK_PORT_9723_TCP_ADDR",
            "WALHOOK_METRICS_SERVICE_HOST",
            "WALHOOK_METRICS_PORT_9723_TCP_PROTO",
            "WALHOOK_CONFIG",
            "WALHOOK_ADMIN_URL",
            "WALHOOK_SOURCE__URL",
            "PGPASSWORD",
        ];
        assert_eq!(found(&names), Vec::<String>::new());
    }
}
