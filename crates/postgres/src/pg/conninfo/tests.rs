use super::*;

fn parse(url: &str) -> Result<Conninfo, String> {
    Conninfo::parse_with(&Secret::new(url), &|_| None).map_err(|error| error.to_string())
}

fn hosts(url: &str) -> Vec<String> {
    parse(url).unwrap().hosts.iter().map(ToString::to_string).collect()
}

#[test]
fn conninfo_takes_hosts_and_ports_in_the_urls_order() {
    assert_eq!(hosts("postgres://u@a/d"), ["a:5432"]);
    assert_eq!(hosts("postgres://u@a:1,b:2/d"), ["a:1", "b:2"]);
    assert_eq!(hosts("postgres://u@a:1,b/d"), ["a:1", "b:5432"]);
    assert_eq!(hosts("postgres://u@a,b/d?port=7"), ["a:7", "b:7"]);
    assert_eq!(hosts("postgres://u@[::1]:7/d"), ["[::1]:7"]);
    assert_eq!(hosts("postgres://u@/d?host=/run/pg&port=6000"), ["/run/pg (port 6000)"]);
    let by_address = parse("postgres://u@db.example/d?hostaddr=10.0.0.1").unwrap();
    let place = Place::Address(IpAddr::from([10, 0, 0, 1]));
    assert_eq!(by_address.hosts, [Host { name: "db.example".to_owned(), place, port: 5432 }]);
    assert_eq!(hosts("postgres://u@/d?hostaddr=10.0.0.1"), ["10.0.0.1:5432"]);
}

#[test]
fn conninfo_refuses_what_it_cannot_keep_and_names_the_fix() {
    for (url, expected) in [
        ("postgres:///d", "names no host; write it as postgres://user@host:5432/database"),
        ("postgres://u:hush@h:port/d", "port is not a port number"),
        ("postgres://u@a,b/d?port=1,2,3", "port has not as many ports"),
        ("postgres://u@a,b/d?hostaddr=10.0.0.1", "hostaddr has not as many addresses"),
        ("postgres://u@h/d?hostaddr=hush", "hostaddr is not an IP address"),
        ("postgres://u@h/d?sslmode=hush", "sslmode is none of disable, prefer, require"),
        ("postgres://u@h/d?sslmode=allow", "use prefer or require"),
        ("postgres://u@h/d?sslmode=verify-ca", "sslmode needs sslrootcert"),
        ("postgres://u@h/d?sslmode=verify-full", "sslmode needs sslrootcert"),
        ("postgres://u@h/d?sslmode=require&sslrootcert=system", "sslmode must be verify-full"),
        ("postgres://u@h/d?sslcert=/c", "sslcert needs sslkey"),
        ("postgres://u@h/d?sslkey=/k", "sslkey needs sslcert"),
        ("postgres://u@h/d?sslnegotiation=direct", "sslnegotiation can be postgres only"),
        ("postgres://u@h/d?gssencmode=require", "gssencmode cannot be require"),
        ("postgres://u@h/d?channel_binding=hush", "channel_binding is none of disable"),
        ("postgres://u@h/d?target_session_attrs=hush", "target_session_attrs is none of any"),
        ("postgres://u@h/d?connect_timeout=hush", "connect_timeout is not a whole number"),
        ("postgres://%FF@h/d", "user is not text in UTF-8"),
    ] {
        let error = parse(url).unwrap_err();
        assert!(error.contains(expected), "{url}: {error}");
        assert!(!error.contains("hush"), "{error}");
    }
}

#[test]
fn conninfo_names_the_variable_whose_value_is_wrong() {
    let url = Secret::new("postgres://u@h/d");
    let environment = |name: &str| (name == "PGSSLMODE").then(|| "hush".to_owned());
    let error = Conninfo::parse_with(&url, &environment).unwrap_err().to_string();
    assert!(error.starts_with("PGSSLMODE is none of disable"), "{error}");
}

#[test]
fn conninfo_prefers_tls_and_verifies_with_the_systems_roots() {
    let tls = |options: &str| parse(&format!("postgres://u@h/d?{options}")).unwrap().tls;
    assert_eq!(tls(""), Tls { mode: SslMode::Prefer, root: None, client: None });
    assert_eq!(tls("sslrootcert=system").mode, SslMode::VerifyFull);
    assert_eq!(tls("sslrootcert=/ca").mode, SslMode::Prefer);
    let all = tls("sslmode=verify-ca&sslrootcert=/ca&sslcert=/c&sslkey=/k");
    assert_eq!(
        all,
        Tls {
            mode: SslMode::VerifyCa,
            root: Some(Root::File("/ca".into())),
            client: Some(("/c".into(), "/k".into())),
        }
    );
}

#[test]
fn conninfo_reads_times_as_libpq_does_and_never_waits_for_ever() {
    let at = |options: &str| parse(&format!("postgres://u@h/d?{options}")).unwrap();
    assert_eq!(at("connect_timeout=3").connect_timeout, Duration::from_secs(3));
    for none in ["", "connect_timeout=0", "connect_timeout=-1"] {
        assert_eq!(at(none).connect_timeout, CONNECT_TIMEOUT);
    }
    let keepalive = at("keepalives=1&keepalives_idle=60&keepalives_interval=10&keepalives_count=3\
                        &tcp_user_timeout=1500")
    .keepalive;
    assert_eq!(
        keepalive,
        Keepalive {
            off: false,
            idle: Some(Duration::from_secs(60)),
            interval: Some(Duration::from_secs(10)),
            count: Some(3),
            user_timeout: Some(Duration::from_millis(1500)),
        }
    );
    assert!(at("keepalives=0").keepalive.off);
}

#[test]
fn conninfo_shows_everything_but_the_password() {
    let info = parse("postgres://u:hush@one:1,two:2?sslmode=require").unwrap();
    assert_eq!(info.to_string(), "one:1, two:2, database u, user u");
    assert!(!format!("{info:?}").contains("hush"));
    assert_eq!(info.tls.mode.to_string(), "sslmode=require");
}
