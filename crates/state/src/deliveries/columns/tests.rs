use super::*;
use proptest::prelude::*;
use walhook_core::attempt::FailureKind;
use walhook_core::delivery_log::What;
use walhook_core::persist::NO_ENDPOINT;

fn any_asked() -> impl Strategy<Value = Option<Asked>> {
    prop_oneof![
        4 => Just(None),
        1 => any::<i64>().prop_map(|id| Some(Asked::Replay(ReplayId(id)))),
        1 => any::<(i64, i64)>().prop_map(|(letter, job)| Some(Asked::Retry {
            dead_letter: DeadLetterId(letter),
            job: JobId(job),
        })),
    ]
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[0-9]{1,4}", 1 => "\\PC{0,40}", 1 => Just(NO_ENDPOINT.to_owned())]
}

prop_compose! {
    fn any_entry()(
        event in any::<u128>(),
        (event_type, account, endpoint) in (any_name(), any_name(), any_name()),
        (lsn, committed_us, at_us) in any::<(u64, i64, i64)>(),
        attempt in any::<u32>(),
        what in prop::sample::select(What::all().collect::<Vec<_>>()),
        status in any::<Option<u16>>(),
        failure in prop::option::of(prop::sample::select(FailureKind::ALL.to_vec())),
        elapsed_us in any::<u64>(),
        waits in prop::collection::vec((prop::sample::select(Cause::ALL.to_vec()), any::<u64>()), 0..5),
        excerpt in "\\PC{0,60}",
        asked in any_asked(),
    ) -> Entry {
        let mut held = Waits::default();
        waits.into_iter().for_each(|(cause, us)| held.add_us(cause, us));
        Entry {
            event: EventId::from_bits(event),
            event_type: event_type.into(),
            account: AccountId::new(account),
            endpoint: EndpointId::new(endpoint),
            commit_lsn: Lsn(lsn),
            committed_us,
            at_us,
            attempt,
            what,
            status,
            failure,
            elapsed_us,
            waits: held,
            excerpt,
            asked,
        }
    }
}

/// The entry as a page tells of it.
fn told(entry: &Entry) -> Entry {
    let mut waits = Waits::default();
    entry.waits.iter().for_each(|(cause, us)| waits.add_us(cause, rounded(us)));
    Entry { waits, ..entry.clone() }
}

proptest! {
    #[test]
    fn page_is_read_back_as_it_was_written(entries in prop::collection::vec(any_entry(), 0..40)) {
        let told: Vec<Entry> = entries.iter().map(told).collect();
        prop_assert_eq!(decode(&encode(&entries)).unwrap(), told);
    }

    #[test]
    fn page_that_was_cut_or_changed_is_refused_or_read_but_never_panics(
        entries in prop::collection::vec(any_entry(), 1..4),
        cut in 0usize..400, at in 0usize..400, byte in any::<u8>()
    ) {
        let mut data = encode(&entries);
        let length = data.len();
        data[at % length] = byte;
        data.truncate(cut.min(length));
        let _ = decode(&data);
    }

    #[test]
    fn columns_that_were_changed_are_refused_or_read_but_never_panic(
        entries in prop::collection::vec(any_entry(), 1..4),
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4), cut in 0usize..2_000
    ) {
        let packed = encode(&entries);
        let (hashes, packed) = packed[2..].split_at(HASH_BYTES * entries.len());
        let mut plain = Vec::new();
        DeflateDecoder::new(packed).read_to_end(&mut plain).unwrap();
        let length = plain.len();
        changes.into_iter().for_each(|(at, byte)| plain[at % length] = byte);
        plain.truncate(cut.min(length));
        let _ = read(&mut Reader(&plain), hashes);
    }

    #[test]
    fn wait_is_told_to_within_a_sixty_fourth(us: u64) {
        let told = rounded(us);
        prop_assert!(told <= us && us - told <= us / 64, "{us} is told as {told}");
        prop_assert_eq!(rounded(told), told);
    }
}

#[test]
fn waits_that_are_short_are_told_as_they_are_and_the_longest_too() {
    assert!((0..128).all(|us| rounded(us) == us));
    assert_eq!(rounded(u64::MAX) >> 57, 127);
    assert_eq!(fine(u64::MAX), None);
}

#[test]
fn delivery_takes_a_few_tens_of_bytes() {
    let entries: Vec<Entry> = (0..4_000).map(super::super::tests::busy).collect();
    let bytes = encode(&entries).len() / entries.len();
    assert!(bytes <= 40, "a delivery takes {bytes} bytes");
}
