//! What a worker reads, and how its leader finds it.

use super::*;

const WORKERS: &str = "[workers]\nurl = \"nats://127.0.0.1\"\n";

fn worker(text: &str, env: &[(&str, &str)]) -> Result<crate::config::WorkerConfig, String> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse_worker(Path::new("w.toml"), text, env).map_err(|error| error.to_string())
}

#[test]
fn worker_needs_no_database_and_looks_at_nothing_that_it_does_not_need() {
    let alone = worker(WORKERS, &[]).unwrap();
    assert_eq!((alone.pipeline(), alone.connect_timeout()), ("walhook", Duration::from_secs(5)));
    let text = format!(
        "{WORKERS}[source]\nslot = \"hooks\"\nlease_timeout = \"never\"\n[endpoints]\n[delivery]\n\
         connect_timeout = \"3s\"\ntimeout = \"1s\"\nretry_base = 7\n[state]\nurl = \"not a url\"\n\
         [[events]]\ntype = 1\n"
    );
    let shared = worker(&text, &[("WALHOOK_EGRESS__HTTPS_ONLY", "true")]).unwrap();
    assert_eq!((shared.pipeline(), shared.connect_timeout()), ("hooks", Duration::from_secs(3)));
    assert!(shared.egress.https_only);
    shared.transport().unwrap();
    // The leader's secrets are not a worker's to read; its own are.
    let secrets = ["SOURCE__URL", "STATE__URL", "NOTIFY__SECRET"];
    let secrets = secrets.map(|key| format!("WALHOOK_{key}_FILE"));
    let secrets = secrets.each_ref().map(|name| (name.as_str(), "/nowhere/secret"));
    worker(WORKERS, &secrets).unwrap();
    let own = worker(WORKERS, &[("WALHOOK_WORKERS__PASSWORD_FILE", "/nowhere/secret")]);
    assert!(own.unwrap_err().contains("cannot read the file /nowhere/secret"));

    for (text, expected) in [
        (
            String::new(),
            "w.toml: workers.url is missing; set it in [workers] or as WALHOOK_WORKERS__URL",
        ),
        (
            format!("{WORKERS}[scheduler]\nfast_slots = 0\n"),
            "w.toml:4:14: scheduler.fast_slots: must be at least 1",
        ),
        (
            format!("{WORKERS}[sauce]\n"),
            "w.toml:3:2: there is no section sauce; did you mean source?",
        ),
        (
            format!("{WORKERS}[source]\nslots = 1\n"),
            "w.toml:4:1: there is no key source.slots; did you mean slot?",
        ),
        (
            format!("{WORKERS}[source]\nslot = \"A\"\n"),
            "w.toml:4:8: source.slot: \"A\" is not a slot's name",
        ),
    ] {
        let error = worker(&text, &[]).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn workers_are_named_by_one_url_or_a_list_and_may_use_one_kind_of_credentials() {
    let url = |text: &str| with(&format!("[workers]\nurl = {text}\n"), &[]);
    let one = url("\"tls://nats.internal\"").unwrap().workers.unwrap();
    assert_eq!(one.url, ["tls://nats.internal"]);
    assert_eq!((&*one.subject, one.lease), ("walhook", Duration::from_secs(2)));
    let list = url("[\"tls://a\", \"tls://b:5222\"]").unwrap().workers.unwrap();
    assert_eq!(list.bus("test").unwrap().servers.to_string(), "a:4222, b:5222");
    let env = [("WALHOOK_WORKERS__URL", "nats://localhost, nats://127.0.0.2")];
    assert_eq!(with("", &env).unwrap().workers.unwrap().url.len(), 2);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "hush\n").unwrap();
    let file = file.to_str().unwrap();
    let env = [("WALHOOK_WORKERS__USER", "w"), ("WALHOOK_WORKERS__PASSWORD_FILE", file)];
    let known = with(WORKERS, &env).unwrap();
    assert!(!toml::to_string(&known).unwrap().contains("hush"));
    assert!(!format!("{known:?}").contains("hush"));
    let bus = known.workers.unwrap().bus("test").unwrap();
    let password = Secret::new("hush");
    let expected = walhook_bus::Credentials::Password { user: "w".to_owned(), password };
    assert_eq!(bus.credentials, expected);
    // Of NATS' own documentation.
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\ne30.e30.e30\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    for env in [("WALHOOK_WORKERS__NKEY", seed), ("WALHOOK_WORKERS__CREDS", &creds)] {
        with(WORKERS, &[env]).unwrap();
    }

    for (more, expected) in [
        (
            "url = \"nats://10.0.0.1\"",
            "url: sends events in the clear to 10.0.0.1:4222; write tls://",
        ),
        (
            "url = \"nats://u:hush@a\"",
            "url: holds a user or a password; put them into workers.user",
        ),
        ("url = []", "url: names no server"),
        ("url = 7", "url: a text or a list of texts"),
        ("url = \"nats://localhost\"\ntls_ca = \"ca.pem\"", "tls_ca: judges nothing without TLS"),
        (
            "url = \"nats://localhost\"\nsubject = \"a..b\"",
            "subject: \"a..b\" cannot begin a subject",
        ),
        ("url = \"nats://localhost\"\nlease = \"10ms\"", "lease: is below 1s"),
        ("url = \"nats://localhost\"\nlease = \"5m\"", "lease: is above 60s"),
        ("url = \"nats://localhost\"\nuser = \"u\"", "password: is missing beside workers.user"),
        (
            "url = \"nats://localhost\"\npassword = \"hush\"",
            "user: is missing beside workers.password",
        ),
        ("url = \"nats://localhost\"\nnkey = \"hush\"", "nkey: is not the seed of a user's nkey"),
        ("url = \"nats://localhost\"\ncreds = \"hush\"", "creds: is not a credentials file"),
        (
            "url = \"nats://localhost\"\nnkey = \"hush\"\ncreds = \"hush\"",
            "creds: is one of three ways to say who we are",
        ),
    ] {
        let error = with(&format!("[workers]\n{more}\n"), &[]).unwrap_err();
        assert!(error.contains(&format!(": workers.{expected}")), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
    let insecure = "[workers]\nurl = \"nats://10.0.0.1\"\ninsecure = true\n";
    with(insecure, &[]).unwrap();
}
