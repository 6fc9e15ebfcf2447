//! The configuration that the demo's pipeline runs with.

use std::net::SocketAddr;

use walhook_testkit::change::Kind;

/// An event type for each kind of change of a subscriber; `admin` is where it listens.
#[must_use]
pub fn configuration(url: &str, admin: SocketAddr) -> String {
    let mut toml = format!(
        r#"[source]
url = "{url}"

[endpoints]
table = "public.webhooks"

[delivery]
quick_attempts = 4
retry_base = "200ms"

[egress]
allow = ["127.0.0.0/8"]

[admin]
listen = "{admin}"
"#
    );
    for kind in Kind::ALL {
        toml.push_str(&format!(
            r#"
[[events]]
type = "{}"
table = "public.subscribers"
on = ["{}"]
account = "account_id"
columns = ["id", "email", "status", "version"]
"#,
            kind.event_type(),
            kind.operation()
        ));
    }
    toml
}
