//! What is shown of an endpoint. The commands as an operator calls them: `tests/commands.rs`.

use super::list::host;

#[test]
fn of_a_url_only_host_and_port_are_shown() {
    for (url, shown) in [
        ("https://user:hush@hooks.example/hush?token=hush", Some("hooks.example")),
        ("http://hooks.example:8080/", Some("hooks.example:8080")),
        ("http://[::1]:8080/", Some("[::1]:8080")),
        ("http://[hush", None),
        ("data:hush", None),
    ] {
        assert_eq!(host(url).as_deref(), shown, "{url}");
    }
}
