//! The table of open transactions: who writes it, and how much of it.

use super::*;

fn open(xid: u32, bytes: u64) -> OpenTransaction {
    OpenTransaction {
        xid,
        state: "open".to_owned(),
        since_us: 1_700_000_000_000_000,
        rows: 7,
        bytes,
        kept_in: "memory".to_owned(),
    }
}

#[tokio::test]
async fn open_transactions_are_those_that_the_last_leader_has_stored() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    let refused = store.store_open_transactions(&[]).await.unwrap_err();
    assert!(matches!(refused, StateError::Fenced { epoch: None }), "{refused}");
    store.take_lease("one").await.unwrap();
    let (small, large) = (open(u32::MAX, 1), open(5, u64::MAX));
    store.store_open_transactions(&[small.clone(), large]).await.unwrap();
    let known = store.open_transactions().await.unwrap().unwrap();
    assert_eq!(known, [open(5, i64::MAX.cast_unsigned()), small], "what holds most first");
    let many: Vec<_> = (0..1_000).map(|n| open(n, u64::from(n))).collect();
    store.store_open_transactions(&many).await.unwrap();
    let known = store.open_transactions().await.unwrap().unwrap();
    assert_eq!((known.len(), known[0].xid, known[255].xid), (256, 999, 744));

    let mut next = fixture.open().await;
    next.take_lease("two").await.unwrap();
    assert_eq!(next.open_transactions().await.unwrap(), Some(vec![]), "not what another left");
    let late = store.store_open_transactions(&[]).await.unwrap_err();
    assert!(matches!(late, StateError::Fenced { epoch: Some(Epoch(1)) }), "{late}");
}
