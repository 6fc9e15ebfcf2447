//! The files around the code: that they parse, and speak of what the code has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io::Write};

use clap::CommandFactory;
use dockerfile_parser_rs::{Dockerfile, Instruction};
use promql_parser::parser::{Expr, LabelModifier, MatrixSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_yaml_ng::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_yaml_ng::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The series that `/metrics` shows: name → the values of each of its labels. A label whose values are
/// the configuration's has none here.
fn series() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let metrics =
        walhook::server::metrics::Metrics::new("any", ["any.type"]).unwrap().render().unwrap();
    let mut series: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (series_of, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series_of.split_once('{').unwrap_or((series_of, ""));
        let of_name = series.entry(name.to_owned()).or_default();
        for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once('=').unwrap();
            let values = of_name.entry(label.to_owned()).or_default();
            values.insert(value.trim_matches('"').to_owned());
        }
    }
    assert!(series.len() > 15, "{series:?}");
    series
}

/// Finds what an expression asks for that nobody says.
struct Unknown {
    series: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    found: Vec<String>,
    /// The labels that aggregations keep, and those of the series that were asked for.
    by: BTreeSet<String>,
    of_series: BTreeSet<String>,
}

impl ExprVisitor for Unknown {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        if let Expr::Aggregate(aggregate) = expr
            && let Some(LabelModifier::Include(by)) = &aggregate.modifier
        {
            self.by.extend(by.labels.iter().cloned());
        }
        let (Expr::VectorSelector(selector)
        | Expr::MatrixSelector(MatrixSelector { vs: selector, .. })) = expr
        else {
            return Ok(true);
        };
        let name = selector.name.clone().unwrap_or_default();
        let Some(labels) = self.series.get(&name) else {
            self.found.push(name);
            return Ok(true);
        };
        self.of_series.extend(labels.keys().cloned());
        for matcher in &selector.matchers.matchers {
            let known = labels.get(&matcher.name);
            if known.is_some() && matcher.name == "pipeline" && matcher.value == "$pipeline" {
                // The dashboard's variable.
                continue;
            }
            if !known.is_some_and(|values| values.contains(&matcher.value)) {
                self.found.push(format!("{name} with {}", matcher.name));
            }
        }
        Ok(true)
    }
}

/// Parses what a panel or an alert asks, and holds it against what the program says; returns the labels
/// by which it is told apart.
fn check_promql(place: &str, promql: &str) -> BTreeSet<String> {
    // The dashboard's own variable is a time.
    let promql = promql.replace("$__rate_interval", "5m");
    let parsed = promql_parser::parser::parse(&promql)
        .unwrap_or_else(|error| panic!("{place}: {promql}: {error}"));
    let mut unknown = Unknown {
        series: series(),
        found: vec![],
        by: BTreeSet::new(),
        of_series: BTreeSet::new(),
    };
    walk_expr(&mut unknown, &parsed).unwrap();
    assert!(unknown.found.is_empty(), "{place}: {promql}: there is no {:?}", unknown.found);
    let strange: Vec<_> = unknown.by.difference(&unknown.of_series).collect();
    // A histogram's buckets have one label more.
    let strange: Vec<_> = strange.into_iter().filter(|label| *label != "le").collect();
    assert!(strange.is_empty(), "{place}: {promql}: no series has {strange:?}");
    unknown.by
}

/// The labels that a template asks for, each behind `before`, such as `{{ $labels.reason }}`.
fn asked_for<'a>(template: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    let end = |rest: &'a str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next();
    template.split(before).skip(1).filter_map(end).filter(|label| !label.is_empty())
}

#[test]
fn alerts_parse_and_ask_for_what_metrics_show() {
    let alerts = yaml("deploy/alerts.yml");
    yaml("deploy/alerts.test.yml");
    let tests = read("deploy/alerts.test.yml");
    let rules = alerts["groups"][0]["rules"].as_sequence().unwrap();
    assert!(rules.len() >= 5);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        let labels = check_promql(name, rule["expr"].as_str().unwrap());
        assert!(labels.contains("pipeline"), "{name} adds up different pipelines");
        for annotation in rule["annotations"].as_mapping().unwrap().values() {
            for label in asked_for(annotation.as_str().unwrap(), "$labels.") {
                assert!(labels.contains(label), "{name}: it has no label {label}");
            }
        }
        assert!(
            tests.contains(&format!("alertname: {name}\n")),
            "{name} has no test that it fires"
        );
        assert!(rule["labels"]["severity"].is_string(), "{name}");
        assert!(rule["annotations"]["summary"].is_string(), "{name}");
    }
    let unknown = std::panic::catch_unwind(|| check_promql("x", "rate(walhook_nothing[5m])"));
    assert!(unknown.is_err(), "the check finds what is wrong");
}

#[test]
fn dashboard_is_json_whose_panels_ask_for_what_metrics_show() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/dashboards/walhook.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let promql = target["expr"].as_str().unwrap();
            let labels = check_promql(title, promql);
            let selectors = promql.matches("walhook_").count() + promql.matches("process_").count();
            let of_pipeline = promql.matches("pipeline=~\"$pipeline\"").count();
            assert_eq!(selectors, of_pipeline, "{title}: {promql} adds up different pipelines");
            for label in asked_for(target["legendFormat"].as_str().unwrap(), "{{") {
                assert!(labels.contains(label), "{title}: it has no label {label}");
            }
        }
    }
}

#[test]
fn compose_file_names_only_services_files_and_volumes_that_are_there() {
    let compose = yaml("docker-compose.yml");
    let services = compose["services"].as_mapping().unwrap();
    for needed in ["postgres", "setup", "walhook", "mock-endpoint", "prometheus", "grafana"] {
        assert!(services.contains_key(needed), "{needed}");
    }
    for (name, service) in services {
        let name = name.as_str().unwrap();
        let image = service["image"].as_str().unwrap();
        assert!(image == "walhook" || image.contains(':'), "{name}: {image} has no version");
        let on = &service["depends_on"];
        let conditional = on.as_mapping().into_iter().flat_map(|on| on.keys());
        let mut on = conditional.chain(on.as_sequence().into_iter().flatten());
        assert!(on.all(|on| services.contains_key(on)), "{name}");
        for volume in service["volumes"].as_sequence().into_iter().flatten() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            let there = match source.strip_prefix("./") {
                Some(path) => root().join(path).exists(),
                None => compose["volumes"].as_mapping().unwrap().contains_key(source),
            };
            assert!(there, "{name}: {source}");
        }
        for port in service["ports"].as_sequence().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port:?}");
        }
        // What it runs of walhook, walhook knows.
        for command in service["command"].as_sequence().into_iter().flatten().take(1) {
            let command = command.as_str().unwrap();
            assert!(image != "walhook" || is_command(command), "{name}: {command}");
        }
    }
}

/// The profile `workers`: what it sets is a configuration, and NATS allows each role what it needs.
#[cfg(feature = "workers")]
#[test]
fn workers_of_compose_file_are_configured_and_may_do_what_they_have_to() {
    let compose = yaml("docker-compose.yml");
    let set = read("deploy/compose/workers.env");
    let set = set.lines().filter_map(|line| line.trim_start_matches('#').split_once('='));
    let set: BTreeMap<&str, &str> = set.filter(|(name, _)| !name.contains(' ')).collect();
    let profile = set["COMPOSE_PROFILES"];
    for service in ["nats", "worker"] {
        assert_eq!(
            compose["services"][service]["profiles"][0].as_str(),
            Some(profile),
            "{service}"
        );
    }
    let path = root().join("deploy/compose/walhook.toml");
    let variables = |service: &str| -> Vec<(String, String)> {
        let environment = compose["services"][service]["environment"].as_mapping().unwrap();
        let value = |name: &str, value: &str| match value.strip_prefix("${") {
            Some(passed) => {
                assert_eq!(passed, format!("{name}:-}}"), "{service}");
                set[name].to_owned()
            }
            None => value.to_owned(),
        };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let of = |(name, it): (&Value, &Value)| (text(name), value(&text(name), &text(it)));
        environment.iter().map(of).collect()
    };
    let leader = walhook::config::load(&path, variables("walhook")).unwrap().workers.unwrap();
    let worker = walhook::config::load_worker(&path, variables("worker")).unwrap();
    assert_eq!(leader.url, worker.workers.url);
    assert!(leader.user.is_some() && leader.user != worker.workers.user);
    let none = variables("walhook").into_iter().map(|(name, _)| (name, String::new()));
    assert!(walhook::config::load(&path, none).unwrap().workers.is_none(), "empty is not set");

    let pipeline = worker.pipeline();
    let subjects = walhook_fleet::subjects::Subjects::new(&leader.subject, pipeline).unwrap();
    for (user, (publishes, hears)) in
        [("leader", subjects.of_leader()), ("worker", subjects.of_worker())]
    {
        let listed = |subjects: &[String; 2]| format!("[\"{}\"]", subjects.join("\", \""));
        let (publishes, hears) = (listed(&publishes), listed(&hears));
        let nats = read("deploy/compose/nats.conf");
        let of_user = nats.split(&format!("user: {user}\n")).nth(1).unwrap();
        let of_user = of_user.split("user: ").next().unwrap();
        assert!(of_user.contains(&format!("publish: {{ allow: {publishes} }}")), "{user}");
        assert!(of_user.contains(&format!("subscribe: {{ allow: {hears} }}")), "{user}");
        for page in ["deploy/kubernetes/README.md", "docs/scale-out.md"] {
            let page = read(page);
            assert!(page.contains(&publishes) && page.contains(&hears), "{user}");
        }
    }
}

fn is_command(name: &str) -> bool {
    walhook::cli::Cli::command().find_subcommand(name).is_some()
}

#[test]
fn prometheus_and_grafana_are_told_of_services_and_files_that_are_there() {
    let services = yaml("docker-compose.yml");
    let services = services["services"].as_mapping().unwrap();
    let prometheus = yaml("deploy/prometheus.yml");
    for file in prometheus["rule_files"].as_sequence().unwrap() {
        assert!(root().join("deploy").join(file.as_str().unwrap()).exists());
    }
    let target = prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0].as_str();
    let (service, port) = target.unwrap().split_once(':').unwrap();
    assert!(services.contains_key(service) && port == "9723", "{target:?}");
    let source = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    let url = source["datasources"][0]["url"].as_str().unwrap();
    let host = url.strip_prefix("http://").and_then(|rest| rest.split(':').next()).unwrap();
    assert!(services.contains_key(host), "{url}");
    let provider = yaml("deploy/grafana/provisioning/dashboards/walhook.yml");
    let path = provider["providers"][0]["options"]["path"].as_str().unwrap();
    assert!(read("docker-compose.yml").contains(&format!(":{path}:ro")), "{path}");
}

#[test]
fn dockerfile_parses_and_its_image_runs_walhook_without_rights_and_with_a_health_check() {
    // The parser does not know HEALTHCHECK; it is read by itself.
    let (checks, rest): (Vec<String>, Vec<String>) =
        read("Dockerfile").lines().map(str::to_owned).partition(|l| l.starts_with("HEALTHCHECK"));
    let image: Dockerfile = rest.join("\n").parse().unwrap();
    let last = image.instructions.iter().rposition(|i| matches!(i, Instruction::From { .. }));
    let last = &image.instructions[last.unwrap()..];
    let has = |wanted: &dyn Fn(&Instruction) -> bool| last.iter().any(wanted);
    assert!(has(
        &|i| matches!(i, Instruction::User { user, .. } if user.parse::<u32>().unwrap() > 0)
    ));
    assert!(has(&|i| *i == Instruction::Entrypoint(vec!["walhook".into()])));
    assert!(has(&|i| *i == Instruction::Cmd(vec!["run".into()])));
    assert!(has(&|i| matches!(i, Instruction::Env(env)
        if env["WALHOOK_ADMIN__LISTEN"].parse::<std::net::SocketAddr>().unwrap().ip().is_unspecified())));
    let [check] = &checks[..] else { panic!("one HEALTHCHECK: {checks:?}") };
    let (options, command) = check.split_once(" CMD ").unwrap();
    assert!(options.split(' ').skip(1).all(|option| option.starts_with("--")), "{options}");
    let command: Vec<String> = serde_json::from_str(command).unwrap();
    assert!(command[0] == "walhook" && is_command(&command[1]), "{command:?}");
}

#[test]
fn unit_image_compose_file_and_manifests_bring_a_place_for_the_spool() {
    let spool = "/var/cache/walhook";
    let image = read("Dockerfile");
    assert!(image.contains(&format!("WALHOOK_SOURCE__SPOOL={spool}\n")), "{image}");
    assert!(image.contains("mkdir -p -m 0700 /cache/walhook\n"), "{image}");
    assert!(image.contains("COPY --from=build --chown=65532:65532 /cache /var/cache\n"), "{image}");
    let services = yaml("docker-compose.yml");
    let volumes = services["services"]["walhook"]["volumes"].as_sequence().unwrap();
    assert!(volumes.iter().any(|volume| volume.as_str() == Some(&format!("spool:{spool}"))));
    assert!(services["volumes"].as_mapping().unwrap().contains_key("spool"));
    assert!(
        read("deploy/kubernetes/leader.yaml")
            .contains(&format!("name: spool, mountPath: {spool} "))
    );
    let unit = read("deploy/walhook.service");
    assert!(unit.contains("\nCacheDirectory=walhook\nCacheDirectoryMode=0700\n"), "{unit}");
}

#[test]
fn configurations_of_compose_file_and_readme_can_be_loaded() {
    let readme = read("README.md");
    let blocks: Vec<String> = readme
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .map(|block| block.lines().map(|line| format!("{}\n", line.trim_start())).collect())
        .collect();
    assert_eq!(blocks.len(), 1, "the README has one configuration");
    for toml in blocks.into_iter().chain([read("deploy/compose/walhook.toml")]) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(toml.as_bytes()).unwrap();
        let config = walhook::config::load(file.path(), []).unwrap();
        assert!(!config.events.is_empty());
    }
}

#[test]
fn scripts_parse() {
    for (shell, path) in [
        ("sh", "scripts/postgres-versions"),
        ("sh", "scripts/prerequisites"),
        ("sh", "scripts/split-debug"),
        ("sh", "scripts/test-matrix"),
        ("bash", ".ci/run"),
    ] {
        let checked = Command::new(shell).arg("-n").arg(root().join(path)).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn program_whose_debug_information_was_moved_runs_and_says_where_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("walhook");
    fs::copy(env!("CARGO_BIN_EXE_walhook"), &program).unwrap();
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    let whole = size(&program);
    // The second time there is nothing to move.
    for _ in 0..2 {
        let script = root().join("scripts/split-debug");
        let moved = Command::new("sh").arg(script).arg(&program).output().unwrap();
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
        let debug = program.with_extension("debug");
        assert!(size(&program) < whole && size(&debug) > 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
    let (bytes, name) = (fs::read(&program).unwrap(), b"walhook.debug\0");
    assert!(bytes.windows(name.len()).any(|found| found == name));
    assert!(Command::new(&program).arg("--version").status().unwrap().success());
}

#[test]
fn systemd_unit_has_sections_of_settings_and_systemd_takes_it() {
    let unit = read("deploy/walhook.service");
    let lines = unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (sections, settings): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with('['));
    assert_eq!(sections, ["[Unit]", "[Service]", "[Install]"]);
    assert!(settings.iter().all(|line| line.split_once('=').is_some_and(|(key, _)| {
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric())
    })));
    // Systemd itself, where it is installed; the program stands elsewhere until it is too.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walhook.service");
    let program = "ExecStart=/usr/local/bin/walhook ";
    assert!(unit.contains(program));
    fs::write(&path, unit.replace(program, "ExecStart=/bin/true ")).unwrap();
    let verify = Command::new("systemd-analyze").arg("verify").arg(&path).output();
    let output = match verify {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => panic!("{error}"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // An unknown setting is a warning, and ignored: so it would protect nothing.
    assert!(output.status.success() && !said.contains("walhook.service:"), "{said}");
}

#[test]
fn documents_link_to_files_that_are_there() {
    let beside = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md"];
    let mut documents: Vec<PathBuf> = beside.iter().map(|name| root().join(name)).collect();
    for folder in ["docs", "docs/operations", "docs/adr"] {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        documents.extend(entries.filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if target.is_empty() || target.starts_with("http") {
                continue;
            }
            let linked: PathBuf = document.parent().unwrap().join(target);
            assert!(linked.exists(), "{}: {target} is not there", document.display());
        }
    }
}

/// What proves a promise must be there: `kills::name` in `tests/kills.rs`, or below it, and
/// `crates/a/src/b.rs::name` in that file.
#[test]
fn guarantees_name_tests_that_are_there() {
    let guarantees = read("docs/guarantees.md");
    let mut named = 0;
    for name in guarantees.split('`').skip(1).step_by(2) {
        let Some((place, test)) = name.rsplit_once("::").filter(|(_, test)| *test != "…") else {
            continue;
        };
        let is_file = place.ends_with(".rs");
        let tests = || format!("tests/{}.rs", place.replace("::", "/"));
        let file = if is_file { place.to_owned() } else { tests() };
        assert!(read(&file).contains(&format!("fn {test}(")), "{file} has no test {test}");
        named += 1;
    }
    assert!(named > 20, "{named} tests are named");
}

/// A server whose encoding is not UTF8 reads our SQL in its own.
#[test]
fn sql_files_are_ascii() {
    let mut files = 0;
    for entry in fs::read_dir(root().join("sql")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for (line, text) in text.lines().enumerate() {
            assert!(text.is_ascii(), "{}:{}: {text}", path.display(), line + 1);
        }
        files += 1;
    }
    assert!(files > 0);
}

/// `make test` runs on its second PostgreSQL what the version can change; a new file has to say.
#[test]
fn every_file_of_tests_says_whether_the_servers_version_matters() {
    let script = read("scripts/test-matrix");
    let listed = |name: &str| -> BTreeSet<String> {
        let list = script.split(&format!("\n{name}=\"")).nth(1).unwrap();
        list.split('"').next().unwrap().split_whitespace().map(str::to_owned).collect()
    };
    let (by_version, same) = (listed("by_version"), listed("same_on_all"));
    assert!(by_version.is_disjoint(&same));
    let main = read("tests/main.rs");
    let modules = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let modules: BTreeSet<String> =
        modules.filter(|name| *name != "support").map(str::to_owned).collect();
    assert_eq!(&by_version | &same, modules);
    for command in listed("commands_by_version") {
        let found = ["", "/mod"]
            .iter()
            .any(|end| root().join(format!("src/cli/{command}{end}.rs")).is_file());
        assert!(found, "there is no command {command}");
    }
}

/// What ARCHITECTURE.md and CONTRIBUTING.md name in `code` and looks like a path of ours, is there.
#[test]
fn map_of_the_code_names_what_is_there() {
    let tops = ["crates/", "src/", "tests/", "testing/", "sql/", "deploy/", "docs/", "scripts/"];
    let modules: Vec<String> = ["crates/dispatch/src", "crates/dispatch/src/dispatcher"]
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).unwrap())
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut named = 0;
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = read(document);
        let code = text.split('`').skip(1).step_by(2);
        for path in code.filter(|code| tops.iter().any(|top| code.starts_with(top))) {
            assert!(root().join(path).exists(), "{document}: {path} is not there");
            named += 1;
        }
        // The components of the dispatcher, each with its modules: `| Routing (`routing`, `route`) |`.
        for line in text.lines().filter(|line| line.starts_with("| ") && line.contains(" (`")) {
            let cell = line.split(") |").next().unwrap();
            for module in cell.split('`').skip(1).step_by(2) {
                assert!(modules.contains(&module.to_owned()), "{document}: no module {module}");
                named += 1;
            }
        }
    }
    assert!(named > 40, "{named} are named");
}

/// The graph in ARCHITECTURE.md is cargo's own.
#[test]
fn graph_of_crates_is_that_of_cargo() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let args =
        "tree --workspace --depth 1 --no-dedupe --edges normal --offline --locked --color never";
    let tree = Command::new(cargo).args(args.split(' ')).current_dir(root()).output().unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let mut graph = String::new();
    for line in tree.lines() {
        let (indent, rest) =
            line.split_at(line.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(0));
        let name = rest.split(' ').next().unwrap_or_default();
        if name == "walhook" || name.starts_with("walhook-") {
            let indent = if indent.is_empty() { "    " } else { "      └ " };
            graph.push_str(&format!("{indent}{name}\n"));
        }
    }
    assert!(graph.lines().count() > 15, "{graph}");
    let text = read("ARCHITECTURE.md");
    let (before, rest) = text.split_once("<!-- cargo tree -->\n").unwrap();
    let (shown, after) = rest.split_once("<!-- end -->").unwrap();
    let graph = format!("\n{graph}\n");
    if std::env::var_os("WALHOOK_UPDATE_DOCS").is_some() {
        let text = format!("{before}<!-- cargo tree -->\n{graph}<!-- end -->{after}");
        fs::write(root().join("ARCHITECTURE.md"), text).unwrap();
    } else {
        assert_eq!(shown, graph, "WALHOOK_UPDATE_DOCS=1 writes it anew");
    }
}

/// An old Rust is named as such, before anything is built or installed.
#[test]
fn prerequisites_refuse_a_rust_that_is_too_old_and_say_so() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let needed = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("cargo");
    fs::write(&fake, "#!/bin/sh\necho 'cargo 1.75.0 (1d8b05cdd 2023-11-20)'\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&fake, executable).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let script = root().join("scripts/prerequisites");
    let ended = Command::new("sh").arg(script).env("PATH", path).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    for part in ["Rust 1.75.0", "too old", &format!("needs {needed} or later"), "rustup"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}
