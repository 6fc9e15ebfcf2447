//! The image, the compose file and the systemd unit: that they parse, and run what walhook has.

#[cfg(feature = "workers")]
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use clap::CommandFactory;
use dockerfile_parser_rs::{Dockerfile, Instruction};
#[cfg(feature = "workers")]
use serde_yaml_ng::Value;

use super::{read, root, yaml};

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
