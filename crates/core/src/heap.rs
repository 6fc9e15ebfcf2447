//! What values take on the heap, for the memory budget.

/// What an allocation of so many bytes takes.
///
/// The allocator rounds up to size classes: multiples of 8 up to 64 bytes, above that a quarter of a
/// power of two apart.
///
/// Source: mimalloc, `src/page-queue.c` (`mi_bin`).
#[must_use]
pub const fn block(bytes: usize) -> usize {
    let words = bytes.div_ceil(8);
    if words <= 8 {
        return words * 8;
    }
    let step = 1 << ((words - 1).ilog2() - 2);
    words.next_multiple_of(step) * 8
}

/// What an `Arc<str>` of so many bytes takes beside the pointer.
#[must_use]
pub const fn shared_text(bytes: usize) -> usize {
    block(2 * size_of::<usize>() + bytes)
}

/// What an entry of this size takes in a hash map.
///
/// A table doubles when seven eighths are taken: on the average three fifths are, and a byte goes with
/// each place.
#[must_use]
pub const fn map_entry(bytes: usize) -> usize {
    (bytes + 1) * 5 / 3
}

/// What an entry of this size takes in a B-tree.
///
/// A node has eleven places and a head of 16 bytes. Where entries come in ascending order six of them are
/// taken, and hardly ever fewer; a node that is not a leaf points to seven others.
///
/// Source: the standard library, `alloc::collections::btree::node`.
#[must_use]
pub const fn tree_entry(bytes: usize) -> usize {
    block(11 * bytes + 16) / 6 + 12 * size_of::<usize>() / 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_rounds_up_to_the_size_classes_of_the_allocator() {
        let classes = [(0, 0), (1, 8), (57, 64), (65, 80), (129, 160), (200, 224), (257, 320)];
        for (bytes, class) in classes {
            assert_eq!(block(bytes), class, "{bytes}");
        }
        assert_eq!(block(100_000), 114_688);
    }
}
