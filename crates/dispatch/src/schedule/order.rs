//! Ready lanes in the order of their tags.

use super::{LaneId, Tag, index};

/// Children of a place: a heap of fours is half as deep as one of twos, and looks at places side by side.
const CHILDREN: usize = 4;

/// No place.
const NOWHERE: u32 = u32::MAX;

/// Lanes by (tag, lane), in heaps in which each lane knows its place, so that any of them can be taken out:
/// idle lanes apart from busy ones. Nothing is allocated for a lane that comes or
/// goes, once there was as much.
///
/// Invariant: a lane is in one of the heaps at most, at its place; no member of a heap goes before its parent.
#[derive(Debug, Default)]
pub(super) struct Order {
    idle: Vec<(Tag, LaneId)>,
    busy: Vec<(Tag, LaneId)>,
    /// By lane.
    places: Vec<u32>,
}

impl Order {
    /// The first of all; of the idle ones alone, where only those may go.
    pub(super) fn first(&self, only_idle: bool) -> Option<LaneId> {
        let busy = self.busy.first().filter(|_| !only_idle);
        self.idle.first().into_iter().chain(busy).min().map(|(_, lane)| *lane)
    }

    /// A lane that is in neither heap comes.
    pub(super) fn insert(&mut self, lane: LaneId, tag: Tag, is_idle: bool) {
        if self.places.len() <= index(lane) {
            self.places.resize(index(lane) + 1, NOWHERE);
        }
        let Self { idle, busy, places } = self;
        let heap = if is_idle { idle } else { busy };
        let place = heap.len();
        heap.push((tag, lane));
        assert!(place_of(places, lane) == NOWHERE, "{lane:?} is in the order twice");
        rise(heap, places, place);
    }

    /// A lane that is in one of the heaps goes.
    pub(super) fn remove(&mut self, lane: LaneId, is_idle: bool) {
        let Self { idle, busy, places } = self;
        let heap = if is_idle { idle } else { busy };
        let place = usize::try_from(place_of(places, lane)).unwrap_or(usize::MAX);
        assert!(place < heap.len(), "{lane:?} is not in the order that it is taken out of");
        let (_, removed) = heap.swap_remove(place);
        assert_eq!(removed, lane, "a place in the order is another lane's");
        set_place(places, lane, NOWHERE);
        if place < heap.len() {
            // The last one came here, from another branch perhaps.
            let place = rise(heap, places, place);
            sink(heap, places, place);
        }
    }
}

/// Moves the member at this place up to where it belongs, and returns where that is.
fn rise(heap: &mut [(Tag, LaneId)], places: &mut [u32], mut place: usize) -> usize {
    while place > 0 {
        let parent = (place - 1) / CHILDREN;
        let (Some(own), Some(above)) = (heap.get(place), heap.get(parent)) else { break };
        if above < own {
            break;
        }
        note(places, above.1, place);
        heap.swap(place, parent);
        place = parent;
    }
    if let Some((_, lane)) = heap.get(place) {
        note(places, *lane, place);
    }
    place
}

/// Moves the member at this place down to where it belongs.
fn sink(heap: &mut [(Tag, LaneId)], places: &mut [u32], mut place: usize) {
    loop {
        let first = place * CHILDREN + 1;
        let children = heap.get(first..heap.len().min(first + CHILDREN)).unwrap_or_default();
        let least = children.iter().zip(first..).min_by(|(a, _), (b, _)| a.cmp(b));
        let (Some((child, at)), Some(own)) = (least, heap.get(place)) else { break };
        if own < child {
            break;
        }
        note(places, child.1, place);
        heap.swap(place, at);
        place = at;
    }
    if let Some((_, lane)) = heap.get(place) {
        note(places, *lane, place);
    }
}

fn note(places: &mut [u32], lane: LaneId, place: usize) {
    set_place(places, lane, u32::try_from(place).unwrap_or(NOWHERE));
}

fn set_place(places: &mut [u32], lane: LaneId, place: u32) {
    if let Some(of) = places.get_mut(index(lane)) {
        *of = place;
    }
}

fn place_of(places: &[u32], lane: LaneId) -> u32 {
    places.get(index(lane)).copied().unwrap_or(NOWHERE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The model: a map from each lane to its tag and whether it is idle, searched through.
        #[test]
        fn order_has_the_least_tag_first_whatever_comes_and_goes(
            actions in proptest::collection::vec((0u32..40, 0u128..30, any::<bool>()), 1..300),
        ) {
            let (mut order, mut model) = (Order::default(), BTreeMap::new());
            for (lane, tag, is_idle) in actions {
                let lane = LaneId(lane);
                match model.remove(&lane) {
                    Some((_, is_idle)) => order.remove(lane, is_idle),
                    None => {
                        order.insert(lane, tag, is_idle);
                        model.insert(lane, (tag, is_idle));
                    }
                }
                for only_idle in [false, true] {
                    let may = model.iter().filter(|(_, (_, is_idle))| *is_idle || !only_idle);
                    let least = may.map(|(lane, (tag, _))| (*tag, *lane)).min();
                    prop_assert_eq!(order.first(only_idle), least.map(|(_, lane)| lane));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "LaneId(3) is not in the order that it is taken out of")]
    fn lane_that_is_not_in_the_order_is_not_taken_out() {
        Order::default().remove(LaneId(3), true);
    }
}
