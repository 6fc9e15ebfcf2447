//! Places in the code where a test lets the program crash.
//!
//! `WALHOOK_FAILPOINT=answered:3` aborts the process when it passes the place `answered` for the third
//! time, as a SIGKILL at that moment would. Only in debug builds: a release build holds nothing of it,
//! neither the variable's name nor the counting.
//!
//! ```text
//! received → sending → answered → storing → (deferred | dead_letter | gap)_committed → checkpoint_committed
//!                                                                                     → flush_sent
//! ```

/// The `search_path` that a test puts in the place of every pin: `WALHOOK_TEST_SEARCH_PATH`, in a debug
/// build alone. It is how statements of ours are shown to be safe without one.
#[must_use]
pub fn search_path() -> Option<&'static str> {
    #[cfg(debug_assertions)]
    return armed::search_path();
    #[cfg(not(debug_assertions))]
    return None;
}

/// Where the program can be made to crash; in the order in which a delivery comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// The dispatcher takes a batch of the stream.
    Received,
    /// A slot is taken, the request is about to be sent.
    Sending,
    /// The endpoint has answered, the dispatcher does not know yet.
    Answered,
    /// Outcomes are known, the state transaction that holds them begins.
    Storing,
    /// A state transaction that holds deferred deliveries is committed, the dispatcher does not know.
    DeferredCommitted,
    /// The same with dead letters.
    DeadLetterCommitted,
    /// The same that removes rows, which a gap counts from then on.
    GapCommitted,
    /// A state transaction is committed, the dispatcher does not know.
    CheckpointCommitted,
    /// The server has been told how far it may forget.
    FlushSent,
}

impl Failpoint {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Received,
        Self::Sending,
        Self::Answered,
        Self::Storing,
        Self::DeferredCommitted,
        Self::DeadLetterCommitted,
        Self::GapCommitted,
        Self::CheckpointCommitted,
        Self::FlushSent,
    ];

    /// Its name in the variable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Sending => "sending",
            Self::Answered => "answered",
            Self::Storing => "storing",
            Self::DeferredCommitted => "deferred_committed",
            Self::DeadLetterCommitted => "dead_letter_committed",
            Self::GapCommitted => "gap_committed",
            Self::CheckpointCommitted => "checkpoint_committed",
            Self::FlushSent => "flush_sent",
        }
    }

    /// Passes the place; in a debug build that is told so, for the last time.
    #[inline]
    pub fn pass(self) {
        #[cfg(debug_assertions)]
        armed::pass(self);
    }
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Failpoint;

    struct Armed {
        at: Failpoint,
        passages_left: AtomicU64,
    }

    static SEARCH_PATH: OnceLock<Option<String>> = OnceLock::new();

    pub(super) fn search_path() -> Option<&'static str> {
        let path = SEARCH_PATH.get_or_init(|| std::env::var("WALHOOK_TEST_SEARCH_PATH").ok());
        path.as_deref()
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    pub(super) fn pass(here: Failpoint) {
        let Some(armed) = ARMED.get_or_init(from_environment) else { return };
        if armed.at == here && armed.passages_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::error!(failpoint = here.name(), "aborting, as WALHOOK_FAILPOINT asks");
            std::process::abort();
        }
    }

    #[expect(clippy::panic, reason = "a test that asks for no such place must not pass by mistake")]
    fn from_environment() -> Option<Armed> {
        let value = std::env::var("WALHOOK_FAILPOINT").ok()?;
        let armed = (|| {
            let (name, passages) = value.split_once(':')?;
            let at = Failpoint::ALL.into_iter().find(|point| point.name() == name)?;
            let passages: u64 = passages.parse().ok().filter(|n| *n > 0)?;
            Some(Armed { at, passages_left: AtomicU64::new(passages) })
        })();
        if armed.is_none() {
            panic!("WALHOOK_FAILPOINT={value} is not NAME:PASSAGE");
        }
        armed
    }
}
