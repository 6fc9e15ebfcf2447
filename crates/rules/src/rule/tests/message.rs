//! A logical message → items.

use super::*;
use walhook_core::position::MESSAGE;
use walhook_decode::change::{LogicalMessage, MessageContent};

fn rule_for(event_type: &str, account: &str) -> String {
    format!("[[events]]\ntype = '{event_type}'\non = ['message']\nprefix = 'p'\n{account}\n")
}

fn told(events: &str, prefix: &str, content: &[u8]) -> Vec<Item> {
    told_of(events, prefix, MessageContent::Read(content))
}

fn told_of(events: &str, prefix: &str, content: MessageContent<'_>) -> Vec<Item> {
    let config = config(events);
    let catalog = catalog_with(subscribers());
    let mut rules = Rules::compile(config.rules(), &catalog, SYSTEM).unwrap();
    let commit_lsn = Lsn(9);
    let message = LogicalMessage {
        transaction: Transaction { commit_lsn, commit_time_us: 1_000_000, xid: 77 },
        position: WalPosition { commit_lsn, change_lsn: Lsn(8), relation: MESSAGE, n: 0 },
        prefix,
        content,
    };
    let mut out = Vec::new();
    rules.handle_message(&message, &mut out);
    out
}

#[test]
fn message_makes_an_event_of_each_type_in_the_order_of_types() {
    let events = rule_for("b", "account = 'of'") + &rule_for("a", "account_value = 'x'");
    let items = told(&events, "p", b"{\"of\": -42, \"n\": 1.0}");
    assert_eq!(types(&items), ["a", "b"]);
    let [Item::Event(a), Item::Event(b)] = &items[..] else { panic!() };
    assert_eq!((&*a.account, &*b.account), ("x", "-42"));
    assert_eq!(&a.row[..], b"\"data\":{\"of\": -42, \"n\": 1.0}");
    assert_eq!(a.operation.as_str(), "message");
    assert!(a.keys.is_empty(), "ordered by account");
    assert_eq!(a.id, EventId::derive(SYSTEM, &a.position, "a", 1_000_000));
    assert!(told(&events, "P", b"{}").is_empty());
}

#[test]
fn message_that_names_no_account_is_unroutable_and_not_quoted() {
    for content in
        [&b"hush"[..], b"{\"hush\": 1}", b"[\"hush\"]", b"{\"of\": {\"hush\": 1}}", b"\xff"]
    {
        let items = told(&rule_for("a", "account = 'of'"), "p", content);
        let [Item::Unroutable(unroutable)] = &items[..] else { panic!("{items:?}") };
        assert_eq!(unroutable.reason, UnroutableReason::Account);
        assert!(
            unroutable.detail.starts_with("rule 1 (a): ") && !unroutable.detail.contains("hush")
        );
        assert_eq!(unroutable.event.account, AccountId::new(""));
    }
}

#[test]
fn message_whose_account_no_table_can_hold_is_unroutable_and_not_quoted() {
    let long = format!("{{\"of\": \"hush{}\"}}", "x".repeat(509));
    for content in ["{\"of\": \"hush\\u0000\"}", &long, "{\"of\": \"hush\\ud800\"}"] {
        let items = told(&rule_for("a", "account = 'of'"), "p", content.as_bytes());
        let [Item::Unroutable(unroutable)] = &items[..] else { panic!("{items:?}") };
        assert_eq!(unroutable.reason, UnroutableReason::Account);
        assert!(!unroutable.detail.contains("hush"), "{}", unroutable.detail);
        assert_eq!(unroutable.event.account, AccountId::new(""));
    }
    let longest = format!("{{\"of\": \"{}\"}}", "x".repeat(512));
    let items = told(&rule_for("a", "account = 'of'"), "p", longest.as_bytes());
    assert!(matches!(&items[..], [Item::Event(_)]), "{items:?}");
}

#[test]
fn message_that_is_too_large_is_unroutable_without_its_data() {
    let bounded = rule_for("a", "account_value = '1'") + "max_bytes = 1024\n";
    let items = told(&bounded, "p", &[b'1'; 1025]);
    let read = told_of(&bounded, "p", MessageContent::TooLarge { bytes: 70_000_000 });
    for (items, part) in [(items, "takes 1032 bytes"), (read, "takes 70000000 bytes")] {
        let [Item::Unroutable(unroutable)] = &items[..] else { panic!("{items:?}") };
        assert_eq!(unroutable.reason, UnroutableReason::TooLarge);
        assert!(unroutable.detail.contains(part), "{}", unroutable.detail);
        assert_eq!(row(&unroutable.event), json!({"data": null}));
        assert_eq!(&*unroutable.event.account, "1");
    }
}

proptest! {
    /// Whatever the content: one event with a valid body, from which the content reads back.
    #[test]
    fn message_of_any_content_has_a_valid_body(content: Vec<u8>, text: String, as_text: bool) {
        let content = if as_text { text.into_bytes() } else { content };
        let items = told(&rule_for("a", "account_value = '1'"), "p", &content);
        let [Item::Event(event)] = &items[..] else { panic!("{items:?}") };
        let data = row(event)["data"].clone();
        match std::str::from_utf8(&content) {
            Ok(text) => {
                let json = serde_json::from_str(text);
                prop_assert_eq!(data, json.unwrap_or_else(|_| json!(text)));
            }
            Err(_) => prop_assert!(data.is_string()),
        }
    }
}

#[test]
fn message_of_many_keys_has_the_account_under_the_last_of_its_name() {
    let many: String = (0..10_000).map(|n| format!("\"k{n}\": [{n}], ")).collect();
    let content = format!("{{\"of\": \"first\", {many}\"o\\u0066\": \"last\", \"z\": null}}");
    let items = told(&rule_for("a", "account = 'of'"), "p", content.as_bytes());
    let [Item::Event(event)] = &items[..] else { panic!("{items:?}") };
    assert_eq!(event.account, AccountId::new("last"));
}
