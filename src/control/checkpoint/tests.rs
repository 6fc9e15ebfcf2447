//! Against a real PostgreSQL.

use super::*;
use crate::control::state_fixture::Fixture;
use walhook_core::halt::Lost;

#[tokio::test]
async fn checkpoint_shows_the_possible_range_and_a_gap() {
    let fixture = Fixture::start().await;
    let config = fixture.config();
    let error = show(&config).await.unwrap_err();
    assert!(format!("{error:?}").contains("walhook recover --accept-gap"), "{error:?}");

    let slot = "SELECT pg_create_logical_replication_slot('p', 'pgoutput')";
    fixture.admin.query_one(slot, &[]).await.unwrap();
    show(&config).await.unwrap();
    let mut overview = fixture.open().await.overview().await.unwrap();
    let mut slot = Databases::of(&config).read_slot().await.unwrap().unwrap();
    let no_window = || Err("no window".to_owned());
    let behind = PositionsView::new(&overview, &slot, no_window());
    assert!(behind.missing_bytes > 0, "0/100 is long gone");

    overview.frontier = slot.confirmed_flush.unwrap();
    let positions = PositionsView::new(&overview, &slot, no_window());
    assert_eq!(positions.missing_bytes, 0);
    assert_eq!(positions.possible.as_ref().unwrap().from, positions.frontier);

    slot.lost = Some(Lost::IdleTimeout("5s".to_owned()));
    let positions = PositionsView::new(&overview, &slot, no_window());
    assert_eq!(positions.possible, None);
    let lost = positions.lost.unwrap();
    assert!(lost.contains("idle_replication_slot_timeout = 5s"), "{lost}");
    assert_eq!(positions.no_replay.as_deref(), Some("no window"));
}
