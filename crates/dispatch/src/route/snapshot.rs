//! What a statement sees.

/// A snapshot as `pg_current_snapshot()` prints it: which transactions its statement sees.
///
/// Source: PostgreSQL manual, "Transaction ID and Snapshot Information Functions".
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    /// Ascending.
    in_progress: Vec<u64>,
}

/// The text is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a snapshot; expected xmin:xmax:xip,xip")]
pub struct ParseSnapshotError(String);

impl std::str::FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let xmin = parts.next()?.parse().ok()?;
            let xmax = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            let xids = list.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok());
            let mut in_progress: Vec<u64> = xids.collect::<Option<_>>()?;
            in_progress.sort_unstable();
            Some(Self { xmin, xmax, in_progress })
        };
        parse().ok_or_else(|| ParseSnapshotError(text.to_owned()))
    }
}

impl Snapshot {
    /// Whether a transaction that has committed is seen, by the 32-bit id that the stream gives.
    ///
    /// The id's upper half is taken from the snapshot: of all 64-bit ids with this lower half the
    /// one nearest to `xmax` is meant, since transactions are never 2³¹ apart.
    #[must_use]
    pub fn sees(&self, xid: u32) -> bool {
        let xid = self.whole(xid);
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Whether all that have committed are seen up to this one, by their ids.
    #[must_use]
    pub fn sees_all_to(&self, xid: u32) -> bool {
        self.whole(xid) < self.xmin
    }

    /// The 64-bit id that is meant by its lower half.
    fn whole(&self, xid: u32) -> u64 {
        let half = 1u64 << 31;
        let near = (self.xmax & !0xFFFF_FFFF) | u64::from(xid);
        if near > self.xmax.saturating_add(half) {
            near.wrapping_sub(half << 1)
        } else if near.saturating_add(half) < self.xmax {
            near.wrapping_add(half << 1)
        } else {
            near
        }
    }
}

/// The later of two transactions that are less than 2³¹ apart.
pub(super) fn later(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() > 0 { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_sees_what_had_committed_also_after_the_ids_wrap_around() {
        let snapshot: Snapshot = "8589934590:8589934596:8589934592".parse().unwrap(); // 2·2³²−2 …
        assert!(snapshot.sees(u32::MAX - 2), "before xmin");
        assert!(snapshot.sees(u32::MAX), "between, and not in progress");
        assert!(!snapshot.sees(0), "in progress");
        assert!(snapshot.sees(1));
        assert!(!snapshot.sees(4), "xmax itself");
        assert!("10:10:".parse::<Snapshot>().unwrap().sees(9));
        assert!("10".parse::<Snapshot>().is_err());
    }

    #[test]
    fn snapshot_takes_any_numbers_in_any_order() {
        let snapshot: Snapshot = "9:20:15,11,15".parse().unwrap();
        let unseen: Vec<u32> = (0..20).filter(|xid| !snapshot.sees(*xid)).collect();
        assert_eq!(unseen, [11, 15]);
        for text in ["18446744073709551615:18446744073709551615:", "7:0:18446744073709551615"] {
            let snapshot: Snapshot = text.parse().unwrap();
            for xid in [0, 1 << 31, u32::MAX] {
                assert!(snapshot.sees(xid) || !snapshot.sees_all_to(xid));
            }
        }
    }
}
