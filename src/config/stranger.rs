//! Environment variables that were meant to set a key, and do not.

use super::keys::{EVENTS, SECTIONS, distance};

/// What the variables of this program begin with.
const PREFIX: &str = "WALHOOK_";

/// Those that are no keys, beside what Kubernetes sets: of the commands, the mock endpoint, the tests and
/// the container's own.
const OURS: [&str; 5] = [
    "WALHOOK_CONFIG",
    "WALHOOK_ADMIN_URL",
    "WALHOOK_MOCK_SECRET",
    "WALHOOK_FAILPOINT",
    "WALHOOK_SEED",
];

/// What begins so is ours too.
const OUR_PREFIXES: [&str; 3] = ["WALHOOK_TEST_", "WALHOOK_LOADTEST_", "WALHOOK_TORTURE_"];

/// Names of variables that begin with `WALHOOK_` and set nothing, each with what to write instead. Values
/// are not looked at.
///
/// A name with a double underscore sets a key, or is an error: that is not for here.
pub fn strangers(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().filter(|name| is_strange(name)).collect();
    names.sort();
    names.iter().map(|name| format!("{name} sets nothing; {}", instead(name))).collect()
}

fn is_strange(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| !rest.contains("__") && !is_of_kubernetes(name))
        && !OURS.contains(&name)
        && !OUR_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What Kubernetes sets for each service: `WALHOOK_SERVICE_HOST`, `WALHOOK_PORT_9723_TCP_ADDR`, and the
/// same for a service whose name goes on.
fn is_of_kubernetes(name: &str) -> bool {
    let port = |rest: &str| rest.is_empty() || rest.starts_with('_');
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT").is_some_and(|(_, rest)| port(rest))
}

/// The key that the name is nearest to, as a variable.
fn instead(name: &str) -> String {
    let meant = name.strip_prefix(PREFIX).unwrap_or(name).to_lowercase();
    let mut nearest: Option<(usize, String)> = None;
    for section in SECTIONS.iter().filter(|section| section.name != EVENTS) {
        for key in section.supported() {
            for file in ["", "_file"] {
                let far = distance(&meant, &format!("{}_{key}{file}", section.name));
                if nearest.as_ref().is_none_or(|(least, _)| far < *least) {
                    let variable = format!("{PREFIX}{}__{key}{file}", section.name).to_uppercase();
                    nearest = Some((far, variable));
                }
            }
        }
    }
    match nearest {
        Some((0, variable)) => format!("write {variable}, with two underscores"),
        Some((far, variable)) if far <= 1 + meant.len() / 4 => format!("did you mean {variable}?"),
        Some(_) | None => format!("keys are set as {PREFIX}<SECTION>__<KEY>"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Vec<String> {
        strangers(names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn variable_that_sets_nothing_is_named_with_the_one_that_was_meant() {
        for (name, says) in [
            ("WALHOOK_SOURCE_URL", "write WALHOOK_SOURCE__URL, with two underscores"),
            ("WALHOOK_SOURCE_URL_FILE", "write WALHOOK_SOURCE__URL_FILE, with two underscores"),
            ("WALHOOK_STATE_MAX_SIZE", "write WALHOOK_STATE__MAX_SIZE, with two underscores"),
            ("WALHOOK_SOURCE_REPLICATON_URL", "did you mean WALHOOK_SOURCE__REPLICATION_URL?"),
            ("WALHOOK_COLOUR", "keys are set as WALHOOK_<SECTION>__<KEY>"),
        ] {
            assert_eq!(found(&[name]), [format!("{name} sets nothing; {says}")]);
        }
    }

    #[test]
    fn variables_of_kubernetes_and_of_the_commands_are_not_strange() {
        let names = [
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
