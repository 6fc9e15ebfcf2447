//! Whether a slot sends what we are to read: what its row says, and the checks of that.

use super::{Halt, Lost};
use crate::lsn::Lsn;

/// What a slot's row says, as far as it decides whether we may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Where the server would start at the earliest; `None` for a physical slot.
    pub confirmed_flush: Option<Lsn>,
    /// Why it cannot be read any more, where that is so.
    pub lost: Option<Lost>,
    /// The output plugin.
    pub plugin: String,
    /// Whether it belongs to the database that we are connected to.
    pub here: bool,
    /// Whether it vanishes with the session that made it.
    pub temporary: bool,
    /// Whether it sends transactions when they are prepared, before they are committed.
    pub two_phase: bool,
}

/// Whether streaming from `from` would miss nothing.
///
/// # Errors
/// The reason to halt.
pub fn check_slot(name: &str, slot: Option<&SlotState>, from: Lsn) -> Result<(), Halt> {
    check_readable(name, slot, from)?;
    match slot.and_then(|slot| slot.confirmed_flush) {
        Some(to) if to > from => Err(Halt::Gap { slot: name.to_owned(), from, to }),
        Some(_) | None => Ok(()),
    }
}

/// Whether it can be streamed from at all, wherever it begins.
///
/// # Errors
/// The reason to halt, but for a gap.
pub fn check_readable(name: &str, slot: Option<&SlotState>, from: Lsn) -> Result<(), Halt> {
    let name = || name.to_owned();
    let Some(slot) = slot else { return Err(Halt::SlotMissing { slot: name(), from }) };
    check_ours(&name(), slot)?;
    if let Some(why) = slot.lost.clone() {
        return Err(Halt::SlotLost { slot: name(), why, from });
    }
    if slot.two_phase {
        return Err(Halt::SlotTwoPhase { slot: name(), from });
    }
    Ok(())
}

/// Whether it may be one of ours: whoever streams from another's is no other instance.
///
/// # Errors
/// [`Halt::SlotForeign`]
pub fn check_ours(name: &str, slot: &SlotState) -> Result<(), Halt> {
    let mut elsewhere = false;
    let problem = if slot.temporary {
        "it is a temporary one of another session".to_owned()
    } else if slot.plugin.is_empty() {
        "it is a physical slot".to_owned()
    } else if !slot.here {
        elsewhere = true;
        "it belongs to another database of this cluster".to_owned()
    } else if slot.plugin != "pgoutput" {
        format!("its plugin is {:?}, not pgoutput", slot.plugin)
    } else {
        return Ok(());
    };
    Err(Halt::SlotForeign { slot: name.to_owned(), problem, elsewhere })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(confirmed: u64) -> SlotState {
        let confirmed_flush = Some(Lsn(confirmed));
        SlotState {
            confirmed_flush,
            lost: None,
            plugin: "pgoutput".into(),
            here: true,
            temporary: false,
            two_phase: false,
        }
    }

    #[test]
    fn slot_at_or_before_the_checkpoint_is_good() {
        assert_eq!(check_slot("s", Some(&slot(5)), Lsn(5)), Ok(()));
        assert_eq!(check_slot("s", Some(&slot(4)), Lsn(5)), Ok(()));
    }

    #[test]
    fn slot_after_the_checkpoint_is_a_gap_that_names_its_range() {
        let halt = check_slot("s", Some(&slot(6)), Lsn(5)).unwrap_err();
        assert_eq!(halt, Halt::Gap { slot: "s".into(), from: Lsn(5), to: Lsn(6) });
        assert!(halt.to_string().contains("0/6, after the checkpoint 0/5"));
    }

    #[test]
    fn missing_lost_and_foreign_slots_halt() {
        assert!(matches!(check_slot("s", None, Lsn(5)), Err(Halt::SlotMissing { .. })));
        let lost = SlotState { lost: Some(Lost::WalLevel), ..slot(1) };
        assert!(matches!(check_slot("s", Some(&lost), Lsn(5)), Err(Halt::SlotLost { .. })));
        let prepares = SlotState { two_phase: true, ..slot(1) };
        assert!(matches!(check_slot("s", Some(&prepares), Lsn(5)), Err(Halt::SlotTwoPhase { .. })));
        let other = SlotState { plugin: "test_decoding".into(), ..slot(1) };
        assert!(matches!(check_slot("s", Some(&other), Lsn(5)), Err(Halt::SlotForeign { .. })));
        let elsewhere = SlotState { here: false, ..slot(1) };
        assert!(matches!(check_slot("s", Some(&elsewhere), Lsn(5)), Err(Halt::SlotForeign { .. })));
    }

    #[test]
    fn slot_of_another_database_is_never_advised_to_be_dropped() {
        for plugin in ["pgoutput", "test_decoding"] {
            let elsewhere = SlotState { here: false, plugin: plugin.into(), ..slot(1) };
            let said = check_slot("s", Some(&elsewhere), Lsn(5)).unwrap_err().to_string();
            assert!(
                said.contains("another name in source.slot") && !said.contains("drop"),
                "{said}"
            );
        }
        let here = SlotState { plugin: "test_decoding".into(), ..slot(1) };
        let said = check_slot("s", Some(&here), Lsn(5)).unwrap_err().to_string();
        assert!(said.contains("pg_drop_replication_slot('s')"), "{said}");
    }
}
