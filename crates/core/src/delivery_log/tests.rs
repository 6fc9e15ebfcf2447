use std::collections::BTreeSet;

use super::*;
use crate::persist::NO_ENDPOINT;
use crate::position::Position;

fn entry(endpoint: &str, excerpt: String) -> Entry {
    Entry {
        event: EventId::derive(1, &Position::FIRST, "t", 0),
        event_type: "t".into(),
        account: AccountId::new("1"),
        endpoint: EndpointId::new(endpoint),
        commit_lsn: Lsn::ZERO,
        committed_us: 0,
        at_us: 1,
        attempt: 0,
        what: What::Dead(DeadReason::Unroutable),
        status: None,
        failure: None,
        elapsed_us: 0,
        waits: Waits::default(),
        excerpt,
        asked: None,
    }
}

#[test]
fn each_that_can_happen_stands_once_and_has_one_of_the_words() {
    let all: Vec<What> = What::all().collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    let said: BTreeSet<&str> =
        all.iter().flat_map(|what| [what.word(None), what.word(Some(200))]).collect();
    assert_eq!(said, What::WORDS.into_iter().collect());
    for reason in DeadReason::ALL {
        assert_eq!(What::Dead(reason).reason(), Some(reason.as_str()));
    }
}

#[test]
fn entry_without_an_endpoint_names_none() {
    assert_eq!(entry(NO_ENDPOINT, String::new()).endpoint(), None);
    assert_eq!(entry("7", String::new()).endpoint(), Some(&EndpointId::new("7")));
}

#[test]
fn entry_counts_its_excerpt_as_what_the_allocator_gives_for_it() {
    let bare = entry("7", String::new()).size_bytes();
    assert_eq!(entry("7", "x".repeat(100)).size_bytes(), bare + block(100));
}

#[test]
fn keep_is_read_from_the_words_of_the_configuration() {
    for (word, keep) in [("all", Keep::All), ("failures", Keep::Failures), ("none", Keep::None)] {
        let read: Keep = serde_json::from_str(&format!("{word:?}")).unwrap();
        assert_eq!(read, keep);
    }
    assert!(serde_json::from_str::<Keep>("\"some\"").is_err());
}
