mod workers;

use std::time::Duration;

use super::*;
use crate::config::EXAMPLE;
use walhook_core::endpoint::Secret;
use walhook_core::size::ByteSize;
use walhook_rules::settings::Bigint;

const MINIMAL: &str = "[source]\nurl = \"postgres://u:hush@h/d\"\n[endpoints]\n\
                       table = \"public.webhooks\"\n";

fn with(more: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let text = format!("{MINIMAL}{more}");
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(Path::new("w.toml"), &text, env).map_err(|error| error.to_string())
}

fn minimal() -> Config {
    with("", &[]).unwrap()
}

/// Every key that is not an example must have its default in the example file.
#[test]
fn example_equals_the_defaults() {
    let mut example = parse(Path::new("example"), EXAMPLE, []).unwrap();
    assert_eq!(example.events.len(), 1);
    assert_eq!(example.endpoints.watched(), minimal().endpoints.watched());
    example.events.clear();
    example.endpoints.watch.clear();
    let mut defaults = minimal();
    defaults.source.url = example.source.url.clone();
    assert_eq!(toml::to_string(&example).unwrap(), toml::to_string(&defaults).unwrap());
}

/// With the commented keys switched on, the example still loads: nothing in it is stale.
#[test]
fn example_loads_with_every_comment_that_is_a_key() {
    let is_key = |text: &str| {
        text.split_once(" = ")
            .is_some_and(|(key, _)| key.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()))
    };
    let key = |line: &str| {
        line.strip_prefix("# ")
            .filter(|rest| is_key(rest) || rest.starts_with('['))
            .map_or(line.to_owned(), str::to_owned)
    };
    let text: Vec<String> = EXAMPLE.lines().map(key).collect();
    let config = parse(Path::new("example"), &text.join("\n"), []).unwrap();
    assert!(config.accounts.is_some() && config.state.url.is_some());
    assert_eq!(config.endpoints.headers.as_deref(), Some("headers"));
    for section in SECTIONS {
        for key in section.supported() {
            assert!(
                text.iter().any(|line| {
                    let line = line.strip_prefix("# or: ").unwrap_or(line);
                    line.starts_with(&format!("{key} = "))
                }),
                "{}.{key} is not in the example",
                section.name
            );
        }
    }
}

#[test]
fn documentation_names_every_key() {
    let text = include_str!("../../../docs/configuration.md");
    for section in SECTIONS.iter().filter(|section| section.supported().next().is_some()) {
        let headings = [format!("\n## `[{}]", section.name), format!("\n## `[[{}]", section.name)];
        let chapter = headings.iter().find_map(|heading| text.split_once(heading));
        let (_, chapter) = chapter.unwrap_or_else(|| panic!("no chapter {}", section.name));
        let chapter = chapter.split("\n## ").next().unwrap();
        for key in section.supported() {
            assert!(chapter.contains(&format!("\n| `{key}` |")), "{}.{key}", section.name);
        }
    }
}

#[test]
fn environment_overlays_the_file_with_the_type_of_the_key() {
    let config = with(
        "[delivery]\ntimeout = \"9s\"\n",
        &[
            ("WALHOOK_DELIVERY__TIMEOUT", "20s"),
            ("WALHOOK_DELIVERY__QUICK_ATTEMPTS", "3"),
            ("WALHOOK_EGRESS__HTTPS_ONLY", "true"),
            ("WALHOOK_EGRESS__ALLOW", "10.0.0.0/8, 192.168.0.0/16"),
            ("WALHOOK_EGRESS__ONLY_HOSTS", "[\"a.example\", \"b.example\"]"),
            ("WALHOOK_MEMORY__LIMIT", "67108864"),
            ("WALHOOK_SOURCE__SLOT", "123"),
            ("WALHOOK_PAYLOAD__BIGINT", "string"),
            ("WALHOOK_STATE__SCHEMA", ""),
            ("WALHOOK_CONFIG", "elsewhere.toml"),
            ("WALHOOK_LOG", "debug"),
            ("WALHOOK_PORT_9723_TCP_ADDR", "10.0.0.1"),
            ("UNRELATED__KEY", "1"),
        ],
    )
    .unwrap();
    assert_eq!(config.delivery.timeout, Duration::from_secs(20));
    assert_eq!(config.delivery.quick_attempts, 3);
    assert!(config.egress.https_only);
    assert_eq!(config.egress.allow.len(), 2);
    let hosts: Vec<String> = config.egress.only_hosts.into_iter().map(String::from).collect();
    assert_eq!(hosts, ["a.example", "b.example"]);
    assert_eq!(config.memory.limit, ByteSize(64 << 20));
    assert_eq!(config.source.slot, "123", "text stays text");
    assert_eq!(config.payload.bigint, Bigint::String);
    assert_eq!(config.state.schema, "walhook", "an empty variable is not set");
}

#[test]
fn environment_reads_a_secret_from_a_file_without_its_line_break() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("url");
    std::fs::write(&file, "postgres://u:other@h/d\n").unwrap();
    let name = "WALHOOK_SOURCE__URL_FILE";
    let config = with("", &[(name, file.to_str().unwrap())]).unwrap();
    assert_eq!(config.source.url.expose(), "postgres://u:other@h/d");

    let error = with("", &[(name, "/nowhere/url")]).unwrap_err();
    assert!(error.contains(name) && error.contains("cannot read the file /nowhere/url"));
    let twice = [(name, file.to_str().unwrap()), ("WALHOOK_SOURCE__URL", "x")];
    let error = with("", &twice).unwrap_err();
    assert!(error.contains("WALHOOK_SOURCE__URL sets the same key"), "{error}");
}

#[test]
fn only_a_database_urls_file_may_become_good_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    let of = |name: &str, path: &Path| {
        let env = [(name.to_owned(), path.to_str().unwrap().to_owned())];
        parse(Path::new("w.toml"), MINIMAL, env).unwrap_err().may_pass()
    };
    for content in [None, Some("\n"), Some("postgres://u:p"), Some("p")] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        assert!(of("WALHOOK_SOURCE__URL_FILE", &file), "{content:?}");
        assert!(of("WALHOOK_STATE__URL_FILE", &file), "{content:?}");
    }
    std::fs::write(&file, "").unwrap();
    assert!(!of("WALHOOK_NOTIFY__SECRET_FILE", &file));
    assert!(!of("WALHOOK_SOURCE__URL_FILE", dir.path()), "a directory");
}

#[test]
fn rule_may_name_those_tables_of_ours_that_change_rarely() {
    let rule = |table: &str| {
        let on = "on = [\"insert\"]\naccount_value = \"1\"\ncolumns = [\"*\"]";
        with(&format!("[[events]]\ntype = \"a.b\"\ntable = \"{table}\"\n{on}"), &[])
    };
    for table in ["walhook.dead_letters", "walhook.gaps", "other.checkpoint", "walhook.mine"] {
        assert!(rule(table).is_ok(), "{table}: {:?}", rule(table).err());
    }
    for table in ["walhook.checkpoint", "walhook.delivery_log", "walhook.deferred"] {
        let error = rule(table).unwrap_err();
        assert!(error.contains("events[0].table") && error.contains("for ever"), "{error}");
    }
}

#[test]
fn error_names_place_key_and_fix() {
    for (more, expected) in [
        (
            "[delivery]\ntimeuot = \"1s\"",
            "w.toml:6:1: there is no key delivery.timeuot; did you mean timeout?",
        ),
        (
            "[delivery]\n  timeout = \"soon\"",
            "w.toml:6:13: delivery.timeout: \"soon\" is not a duration",
        ),
        (
            "[delivery]\nquick_attempts = \"two\"",
            "w.toml:6:18: delivery.quick_attempts: invalid type: string \"two\", expected a whole number",
        ),
        (
            "[delivery]\nordering = \"rows\"",
            "w.toml:6:12: delivery.ordering: unknown variant `rows`, expected one of `row`, `account`, `none`",
        ),
        ("[memory]\nlimit = true", "w.toml:6:9: memory.limit: expected a size such as 256MiB"),
        (
            "[egress]\nallow = [\"10.0.0.0/8\",\n  \"10\"]",
            "w.toml:7:3: egress.allow: \"10\" is no address and no block; write it as 10.0.0.1 or",
        ),
        ("[egress]\ndeny = [\"10.0.0.0/33\"]", "w.toml:6:9: egress.deny: \"10.0.0.0/33\" is no"),
        ("[delivery]\ntimeout = 5", "w.toml:6:11: delivery.timeout: 5 has no unit; write \"5s\""),
        (
            "[delivery]\ntimeout = true",
            "w.toml:6:11: delivery.timeout: invalid type: boolean `true`, expected a duration such as",
        ),
        (
            "[delivery]\nordering = true",
            "w.toml:6:12: delivery.ordering: is no text; write it in quotes",
        ),
        (
            "[log]\nlevel = 3",
            "w.toml:6:9: log.level: invalid type: integer, expected a text in quotes",
        ),
        (
            "[egress]\ndeny = 3",
            "w.toml:6:8: egress.deny: invalid type: integer `3`, expected a list: [",
        ),
        ("[deliver]", "w.toml:5:2: there is no section deliver; did you mean delivery?"),
        ("[state]\nmax_size = \"7MiB\"", "w.toml:6:12: state.max_size: is below 8MiB"),
        (
            "[delivery]\nmode = \"dry\"",
            "w.toml:6:8: delivery.mode: unknown variant `dry`, expected `live` or `log`",
        ),
        (
            "[egress]\nonly_hosts = [\"https://a.com\"]",
            "w.toml:6:14: egress.only_hosts: \"https://a.com\" is not a host; write hooks.example.com",
        ),
        (
            "[admin]\ntoken = \"hush\"",
            "w.toml:6:1: admin.token protects nothing: health and metrics ask for none",
        ),
        ("[accounts]", "w.toml:5:1: accounts.table is missing"),
        ("[events]\ntype = \"a.b\"", "w.toml:5:1: events: write [[events]]"),
        ("[[events]]\ntype = \"a.b\"", "w.toml:5:1: events[0].on is missing"),
        (
            "[[events]]\ntabel = 1",
            "w.toml:6:1: there is no key events[0].tabel; did you mean table?",
        ),
        ("[source]", "w.toml:5:2: duplicate key source; keep one of them"),
        ("[log]\nlevel = \"info\"\nlevel = \"warn\"", "w.toml:7:1: duplicate key level; keep one"),
        ("[log]\nlevel = \"loud\"", "w.toml:6:9: log.level: "),
    ] {
        let error = with(more, &[]).unwrap_err();
        assert!(error.starts_with(expected), "{more}: {error}");
    }
}

#[test]
fn error_names_the_variable() {
    for (name, value, expected) in [
        (
            "WALHOOK_DELIVERY__TIMEUOT",
            "1s",
            "there is no key delivery.timeuot; did you mean timeout?",
        ),
        ("WALHOOK_DELIVERY__TIMEOUT", "soon", "delivery.timeout: \"soon\" is not a duration"),
        (
            "WALHOOK_DELIVERY__QUICK_ATTEMPTS",
            "two",
            "delivery.quick_attempts: invalid type: string \"two\", expected a whole number",
        ),
        ("WALHOOK_DELIVERY__QUICK_ATTEMPTS", "0", "delivery.quick_attempts: must be at least 1"),
        ("WALHOOK_DELIVER__TIMEOUT", "1s", "there is no section deliver; did you mean delivery?"),
        ("WALHOOK_EGRESS__ALLOW", "10.0.0.0/8,x", "egress.allow: \"x\" is no address and no block"),
        ("WALHOOK_EVENTS__TYPE", "a.b", "rules can be set in the file only"),
        ("WALHOOK_STATE__MAX_SIZE", "much", "state.max_size: \"much\" is not a size"),
    ] {
        let error = with("", &[(name, value)]).unwrap_err();
        let expected = format!("environment variable {name}: {expected}");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn every_duration_has_a_bound_and_the_error_names_it() {
    let defaults = toml::Table::try_from(minimal()).unwrap();
    let mut bounds = Vec::new();
    for (section, keys) in &defaults {
        for (key, value) in keys.as_table().into_iter().flatten() {
            if value.as_str().is_none_or(|text| humantime::parse_duration(text).is_err()) {
                continue;
            }
            let variable = format!("WALHOOK_{section}__{key}").to_uppercase();
            for value in ["18446744073709551615s", "3651d"] {
                let error = with("", &[(&variable, value)]).unwrap_err();
                let expected = format!(": {section}.{key}: {value:?} is too long; it may be ");
                let (_, bound) = error.split_once(&expected).unwrap_or_else(|| panic!("{error}"));
                bounds.push((key.clone(), bound.to_owned()));
            }
        }
    }
    let of = |bound| bounds.iter().filter(|(_, of)| of == bound).count() / 2;
    assert_eq!((of("1h at most"), of("3650d at most")), (3, 7), "{bounds:?}");
    let longest = with("[delivery]\nretry_cap = \"3650d\"\nretry_for = \"3650d\"", &[]);
    assert_eq!(longest.unwrap().delivery.retry_cap, Duration::from_secs(3650 * 24 * 3600));
}

#[test]
fn single_addresses_are_blocks_of_their_own() {
    let more = "[egress]\nallow = [\"10.0.0.1\", \"fd00::7\", \"10.1.0.0/16\"]";
    let allow = with(more, &[]).unwrap().egress.allow;
    let texts: Vec<String> = allow.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.0.0.1/32", "fd00::7/128", "10.1.0.0/16"]);
}

#[test]
fn error_names_a_missing_section_and_how_to_set_it() {
    let error = parse(Path::new("w.toml"), "", []).unwrap_err().to_string();
    assert_eq!(
        error,
        "w.toml: source.url is missing; set it in [source] or as WALHOOK_SOURCE__URL"
    );
    let error = load(Path::new("/nowhere/w.toml"), []).unwrap_err().to_string();
    assert!(error.contains("/nowhere/w.toml") && error.contains("--example"), "{error}");
}

#[test]
fn errors_and_the_printed_configuration_hold_no_secret() {
    for url in [
        "[1]",
        "\"postgres://u:hush@h:port/d\"",
        "\"u:hush@h/d\"",
        "\"postgres://u:hush@h/d?sslmode=verify-full\"",
        "hush",
    ] {
        let text = format!("[source]\nurl = {url}\n[endpoints]\ntable = \"a.b\"\n");
        let error = parse(Path::new("w.toml"), &text, []).unwrap_err().to_string();
        assert!(error.starts_with("w.toml:2:7: "), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
    // One that is forgotten to be put into quotes.
    for (section, key) in [
        ("source", "url"),
        ("state", "url"),
        ("notify", "secret"),
        ("notify", "url"),
        ("egress", "proxy"),
        ("workers", "password"),
        ("workers", "nkey"),
        ("workers", "creds"),
        ("workers", "user"),
    ] {
        for value in
            ["83741982", "837419.82", "true", "[83741982]", "{ a = 83741982 }", "1979-05-27"]
        {
            let url = if section == "source" { "" } else { "[source]\nurl = \"postgres://h/d\"\n" };
            let rest = format!("{url}[endpoints]\ntable = \"a.b\"\n");
            let more = if section == "workers" { "url = \"nats://h:1\"\n" } else { "" };
            let text = format!("[{section}]\n{key} = {value}\n{more}{rest}");
            let error = parse(Path::new("w.toml"), &text, []).unwrap_err().to_string();
            assert!(error.starts_with("w.toml:2:"), "{section}.{key} = {value}: {error}");
            for part in ["837419", "82", "true", "1979", "05-27"] {
                assert!(!error.contains(part), "{section}.{key} = {value}: {error}");
            }
        }
    }
    let more = "[state]\nurl = \"postgres://u:hush@h/d\"\n[notify]\nurl = \"https://h/hush?hush\"\n\
                secret = \"hush\"\n";
    let config = with(more, &[]).unwrap();
    for text in [
        format!("{config:?}"),
        toml::to_string(&config).unwrap(),
        serde_json::to_string(&config).unwrap(),
    ] {
        assert!(!text.contains("hush"), "{text}");
    }
}

#[test]
fn inconsistent_values_are_refused_at_the_key() {
    let rule =
        "[[events]]\ntype = \"a.b\"\ntable = \"public.t\"\non = [\"update\"]\naccount = \"a\"\n";
    let deleted = rule.replace("update", "delete");
    let long_account = format!("account_value = \"{}\"", "x".repeat(513));
    for (more, expected) in [
        (
            &format!("{rule}columns = [\"*\"]\n[memory]\nlimit = \"1KiB\"")[..],
            "w.toml:12:9: memory.limit: is below 1MiB",
        ),
        ("[delivery]\nheader_prefix = \"a b\"", "w.toml:6:17: delivery.header_prefix: "),
        (
            "[delivery]\nretry_base = \"9h\"",
            "w.toml:6:14: delivery.retry_base: must be at most delivery.retry_cap",
        ),
        (
            "[delivery]\ntimeout = \"1s\"",
            "w.toml:6:11: delivery.timeout: must be at least delivery.connect_timeout",
        ),
        (
            "[delivery]\nconnect_timeout = \"20s\"",
            "w.toml:5:1: delivery.timeout: must be at least delivery.connect_timeout",
        ),
        ("[wal]\nmax_hold = \"0s\"", "w.toml:6:12: wal.max_hold: is below 1s"),
        ("[wal]\nmax_retained = \"1KiB\"", "w.toml:6:16: wal.max_retained: is below 1MiB"),
        ("[scheduler]\nfast_slots = 0", "w.toml:6:14: scheduler.fast_slots: must be at least 1"),
        ("[state]\nschema = \"pg_x\"", "w.toml:6:10: state.schema: names that begin with pg_"),
        (
            "[notify]\nurl = \"ftp://h/\"\nsecret = \"s\"",
            "w.toml:6:7: notify.url: is no URL such as",
        ),
        ("[notify]\nurl = \"https://h/\"", "w.toml:5:1: notify.secret: is missing"),
        ("[notify]\nsecret = \"s\"", "w.toml:6:10: notify.secret: signs nothing without"),
        (
            "[notify]\nurl = \"https://h/\"\nsecret = \"whsec_?\"",
            "w.toml:7:10: notify.secret: a secret begins with whsec_",
        ),
        (
            "[accounts]\ntable = \"a b\"",
            "w.toml:6:9: accounts.table: \"a b\" is not the name of a table",
        ),
        (&format!("{rule}columns = []"), "w.toml:10:11: events[0].columns: is missing or empty"),
        (
            &format!("{rule}account_value = \"1\""),
            "w.toml:10:17: events[0].account_value: stands beside",
        ),
        (
            &format!("{}columns = [\"a\"]", rule.replace("account = \"a\"", &long_account)),
            "w.toml:9:17: events[0].account_value: takes 513 bytes, more than 512",
        ),
        (&format!("{rule}prefix = \"p\""), "w.toml:10:10: events[0].prefix: is for messages"),
        (&format!("{rule}columns = [\"*\", \"a\"]"), "w.toml:10:11: events[0].columns: holds *"),
        (
            &format!("{rule}columns = [\"a\", \"b\"]\nrename = {{ a = \"b\" }}"),
            "w.toml:10:11: events[0].columns: two columns are sent as b",
        ),
        (
            &format!("{rule}columns = [\"a\"]\nrename = {{ c = \"d\" }}"),
            "w.toml:11:10: events[0].rename: c is not among",
        ),
        (
            &format!("{rule}columns = [\"a\"]\nrename = {{ a = \"\" }}"),
            "w.toml:11:10: events[0].rename: gives a an empty name",
        ),
        (
            &format!("{deleted}columns = [\"a\"]\nwhen = \"old.a != new.a\""),
            "w.toml:11:8: events[0].when: rule a.b: reads new, which delete does not have; write",
        ),
        (
            &format!("{deleted}data = \"{{'a': new.a}}\""),
            "w.toml:10:8: events[0].data: rule a.b: reads new, which delete does not have; write",
        ),
        (
            &format!("{rule}columns = [\"a\"]\n{rule}columns = [\"b\"]\nwhen = \"true\""),
            "w.toml:12:8: events[1].type: an earlier rule",
        ),
    ] {
        let error = with(more, &[]).unwrap_err();
        assert!(error.starts_with(expected), "{more}: {error}");
    }
}

#[test]
fn streaming_is_bounded_by_what_postgresql_takes_and_spools_where_systemd_says() {
    let source = |key: &str, value: &str| {
        let variable = format!("WALHOOK_SOURCE__{key}");
        with("", &[(&variable, value)]).map(|config| config.source)
    };
    for (key, value, problem) in [
        ("STREAM_ABOVE", "63KiB", "stream_above: 63KiB is not in bounds; it is what PostgreSQL"),
        ("STREAM_ABOVE", "2TiB", "stream_above: 2TiB is not in bounds"),
        ("SPOOL_MAX", "1000KiB", "spool_max: is below 1MiB; leave source.spool out"),
        ("SPOOL", "cache", "spool: is no absolute path such as /var/cache/walhook"),
        ("STREAMING", "maybe", "streaming: unknown variant `maybe`, expected `on` or `off`"),
    ] {
        let error = source(key, value).unwrap_err();
        assert!(error.contains(&format!(": source.{problem}")), "{error}");
    }
    assert_eq!(source("STREAM_ABOVE", "64KiB").unwrap().stream_above, ByteSize(64 << 10));
    let cache = ("CACHE_DIRECTORY", "relative:/var/cache/a:/var/cache/b");
    let given = with("", &[cache]).unwrap().source.spool;
    assert_eq!(given, Some("/var/cache/a".into()));
    let named = with("", &[cache, ("WALHOOK_SOURCE__SPOOL", "/spool")]).unwrap().source.spool;
    assert_eq!(named, Some("/spool".into()), "what the configuration says comes first");
    assert_eq!(minimal().source.spool, None);
}

#[test]
fn slot_names_leave_room_for_a_suffix() {
    for (slot, good) in [
        ("a_1".to_owned(), true),
        ("a".repeat(56), true),
        ("a".repeat(57), false),
        ("A".to_owned(), false),
        ("a-b".to_owned(), false),
    ] {
        assert_eq!(with("", &[("WALHOOK_SOURCE__SLOT", &slot)]).is_ok(), good, "{slot}");
    }
}

#[test]
fn search_path_is_a_list_of_names() {
    for (path, is_list) in [
        ("pg_catalog, pg_temp", true),
        ("\\\"$user\\\", public", true),
        ("$user,\\\"My, \\\"\\\"Schema\\\"", true),
        ("", false),
        ("a,,b", false),
        ("a b", false),
        ("\\\"a", false),
        ("a; DROP TABLE b", false),
        ("\\\"a\\\" b", false),
    ] {
        let text = format!("{MINIMAL}search_path = \"{path}\"\n");
        let loaded = parse(Path::new("test.toml"), &text, []);
        assert_eq!(loaded.is_ok(), is_list, "{path}: {loaded:?}");
    }
}
