//! The grammar of connection URLs: from text to options, which [`Conninfo`](super::Conninfo) reads.
//!
//! ```text
//! postgres://[user[:password]@][host[:port],…][/database][?option=value&…]
//! ```
//!
//! Errors hold no part of the URL but names of options: any other may be part of a password.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use super::conninfo::ConninfoError;

/// Every option, and the environment variable that speaks where the URL does not.
pub(super) const OPTIONS: [(&str, Option<&str>); 23] = [
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("user", Some("PGUSER")),
    ("dbname", Some("PGDATABASE")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("options", Some("PGOPTIONS")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("keepalives", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("keepalives_count", None),
    ("tcp_user_timeout", None),
    // Ours says who we are, and is not to be changed: a server's settings may name it.
    ("application_name", None),
];

/// Where the values of options come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) bytes: Vec<u8>,
    /// The option or the variable, for messages.
    pub(super) from: &'static str,
}

/// The options that have a value.
pub(super) type Options = BTreeMap<&'static str, Value>;

/// Reads a URL, and the environment where it is silent.
pub(super) fn read(
    url: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Options, ConninfoError> {
    let mut options = read_url(url)?;
    // A URL that names a host does not want another one's address, nor the other way round.
    let located = options.contains_key("host") || options.contains_key("hostaddr");
    for (name, variable) in OPTIONS {
        let settled = options.contains_key(name) || located && name.starts_with("host");
        let Some(variable) = variable.filter(|_| !settled) else { continue };
        // As for libpq, an empty variable is none.
        if let Some(value) = environment(variable).filter(|value| !value.is_empty()) {
            options.insert(name, Value { bytes: value.into_bytes(), from: variable });
        }
    }
    Ok(options)
}

fn read_url(url: &str) -> Result<Options, ConninfoError> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    let rest = rest.ok_or_else(|| {
        ConninfoError::new(
            "is not a postgres:// URL; write it as postgres://user@host:5432/database",
        )
    })?;
    let mut options = Options::new();
    // A password may hold a ? as it is, so the credentials come first.
    let rest = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => {
            credentials(&rest[..at], &mut options)?;
            &rest[at + 1..]
        }
        Some(_) | None => rest,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    if rest.contains('@') {
        return Err(ConninfoError::new(
            "has more than one @; in a user's name or password write %40, and %2F for a /",
        ));
    }
    set(&mut options, "dbname", decode("dbname", database)?);
    set_hosts(&mut options, hosts)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            ConninfoError::new("has an option without a value; write ?option=value&option=value")
        })?;
        let known = OPTIONS.iter().find(|(known, _)| *known == name);
        let Some((known, _)) = known else {
            return Err(ConninfoError::new(format!(
                "has the option {}, which is not supported; remove it",
                printable(name)
            )));
        };
        set(&mut options, known, decode(known, value)?);
    }
    Ok(options)
}

fn set(options: &mut Options, name: &'static str, bytes: Vec<u8>) {
    if !bytes.is_empty() {
        options.insert(name, Value { bytes, from: name });
    }
}

fn credentials(text: &str, options: &mut Options) -> Result<(), ConninfoError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    set(options, "user", decode("user", user)?);
    set(options, "password", decode("password", password)?);
    Ok(())
}

/// `host:port,[::1]:port`: a list of hosts and, where one has a port, a list of ports.
fn set_hosts(options: &mut Options, text: &str) -> Result<(), ConninfoError> {
    let (mut hosts, mut ports) = (vec![], vec![]);
    for one in text.split(',') {
        let (host, port) = match one.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, ""))) => (host, ""),
            Some(Some((host, rest))) if rest.starts_with(':') => (host, &rest[1..]),
            Some(_) => return Err(ConninfoError::new("has a [ without its ]; write [::1]:5432")),
            None => one.split_once(':').unwrap_or((one, "")),
        };
        if port.contains(':') {
            return Err(ConninfoError::new(
                "has a host with several colons; write an IPv6 address as [::1]:5432",
            ));
        }
        hosts.push(decode("host", host)?);
        ports.push(decode("port", port)?);
    }
    set(options, "host", hosts.join(&b','));
    if ports.iter().any(|port| !port.is_empty()) {
        set(options, "port", ports.join(&b','));
    }
    Ok(())
}

fn decode(name: &str, text: &str) -> Result<Vec<u8>, ConninfoError> {
    let hex = |part: &str| part.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !text.split('%').skip(1).all(hex) {
        let problem = format!("has a % in its {name} that begins no %XX; write %25 for a %");
        return Err(ConninfoError::new(problem));
    }
    Ok(percent_decode_str(text).collect())
}

/// An option's name for a message, unless it may be part of something else.
fn printable(name: &str) -> &str {
    let word = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && name.len() <= 32;
    if word { name } else { "that a piece of it seems to be" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> Vec<(&'static str, String)> {
        let text = |value: Value| String::from_utf8(value.bytes).unwrap();
        let read = read(url, &|_| None).unwrap();
        read.into_iter().map(|(name, value)| (name, text(value))).collect()
    }

    #[test]
    fn url_is_read_into_options() {
        for (url, expected) in [
            ("postgres://", &[][..]),
            ("postgresql://h", &[("host", "h")]),
            ("postgres://u@h/d", &[("dbname", "d"), ("host", "h"), ("user", "u")]),
            ("postgres://u:a?%2F%40%25@h", &[("host", "h"), ("password", "a?/@%"), ("user", "u")]),
            ("postgres://a:1,b/d", &[("dbname", "d"), ("host", "a,b"), ("port", "1,")]),
            ("postgres://[::1]:5,[fe80::1]", &[("host", "::1,fe80::1"), ("port", "5,")]),
            ("postgres://%2Frun%2Fpg/d", &[("dbname", "d"), ("host", "/run/pg")]),
            ("postgres:///d?host=/run/pg", &[("dbname", "d"), ("host", "/run/pg")]),
            (
                "postgres://a/d?host=b&sslmode=x",
                &[("dbname", "d"), ("host", "b"), ("sslmode", "x")],
            ),
            (
                "postgres://h/a%20b?options=-c%20a%3Db",
                &[("dbname", "a b"), ("host", "h"), ("options", "-c a=b")],
            ),
        ] {
            let expected: Vec<_> = expected.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
            assert_eq!(options(url), expected, "{url}");
        }
    }

    #[test]
    fn url_that_cannot_be_read_is_refused_without_showing_it() {
        for (url, expected) in [
            ("host=h password=hush", "is not a postgres:// URL"),
            ("hush", "is not a postgres:// URL"),
            ("postgres://u:hush@x@h/d", "write %40"),
            ("postgres://u:hush%@h/d", "has a % in its password"),
            ("postgres://u:hush@[::1/d", "has a [ without its ]"),
            ("postgres://u:hush@::1/d", "write an IPv6 address as [::1]:5432"),
            ("postgres://u@h/d?password", "has an option without a value"),
            ("postgres://u@h/d?sslcrl=hush", "has the option sslcrl, which is not supported"),
            ("postgres://u@h/d?password=a&Hush1=", "has the option that a piece of it seems to be"),
        ] {
            let error = read(url, &|_| None).unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
            assert!(!error.to_lowercase().contains("hush"), "{error}");
        }
    }

    #[test]
    fn environment_speaks_where_the_url_is_silent() {
        let environment = |name: &str| match name {
            "PGHOST" => Some("other".to_owned()),
            "PGHOSTADDR" => Some("10.0.0.1".to_owned()),
            "PGPORT" => Some("7".to_owned()),
            "PGUSER" => Some(String::new()),
            "PGPASSWORD" => Some("hush".to_owned()),
            _ => None,
        };
        let names = |url: &str| -> Vec<(&'static str, &'static str)> {
            let read = read(url, &environment).unwrap();
            read.into_iter().map(|(name, value)| (name, value.from)).collect()
        };
        assert_eq!(
            names("postgres://u:p@h:1"),
            [("host", "host"), ("password", "password"), ("port", "port"), ("user", "user"),]
        );
        assert_eq!(
            names("postgres://"),
            [
                ("host", "PGHOST"),
                ("hostaddr", "PGHOSTADDR"),
                ("password", "PGPASSWORD"),
                ("port", "PGPORT"),
            ]
        );
    }
}
