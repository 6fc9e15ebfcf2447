//! What changes about endpoints: for the log, the metrics, and whoever is to be notified.

use super::Dispatcher;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::notice::NoticeKind;

/// What an endpoint has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub enum EndpointChange {
    /// walhook has switched it off.
    Disabled,
    /// It is on again.
    Enabled,
    /// It fails too often: what comes for it is deferred, and it is only probed.
    BreakerOpened,
    /// A probe came through.
    BreakerClosed,
    /// An operator has paused it.
    Paused,
    /// An operator has resumed it.
    Resumed,
    /// The state tables are full: its deferred deliveries, and those that come, are counted in a gap.
    Suspended,
    /// They have room again: its deliveries go as before.
    Unsuspended,
    /// A request to it failed, after one that it took, or as the first one.
    Failing,
    /// It has taken one since.
    Recovered,
    /// Its account has it no more: what is deferred for it is dropped.
    Removed,
}

impl EndpointChange {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 11] = [
        Self::Disabled,
        Self::Enabled,
        Self::BreakerOpened,
        Self::BreakerClosed,
        Self::Paused,
        Self::Resumed,
        Self::Suspended,
        Self::Unsuspended,
        Self::Failing,
        Self::Recovered,
        Self::Removed,
    ];

    /// The word in the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::BreakerOpened => "breaker_opened",
            Self::BreakerClosed => "breaker_closed",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Unsuspended => "unsuspended",
            Self::Failing => "failing",
            Self::Recovered => "recovered",
            Self::Removed => "removed",
            Self::Resumed => "resumed",
        }
    }

    /// The notice that is made of it, where one is.
    const fn notice(self) -> Option<NoticeKind> {
        match self {
            Self::Disabled => Some(NoticeKind::EndpointDisabled),
            Self::Suspended => Some(NoticeKind::EndpointSuspended),
            Self::Enabled | Self::BreakerClosed | Self::Unsuspended => {
                Some(NoticeKind::EndpointRecovered)
            }
            // Whoever pauses and resumes knows, customers remove endpoints, and single failures are nobody's business.
            Self::BreakerOpened
            | Self::Paused
            | Self::Resumed
            | Self::Failing
            | Self::Recovered
            | Self::Removed => None,
        }
    }
}

/// That an endpoint has become something.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct EndpointChanged {
    /// Which.
    pub endpoint: EndpointId,
    /// The account that owns it, where that is known.
    pub account: Option<AccountId>,
    /// What it has become.
    pub change: EndpointChange,
    /// Why, for a person.
    #[cfg_attr(feature = "record", serde(with = "walhook_core::record::text"))]
    pub detail: String,
}

impl Dispatcher {
    /// What has changed about endpoints, the oldest first.
    pub(super) fn poll_endpoint_change(&mut self) -> Option<EndpointChanged> {
        self.door.reports.take_change()
    }

    /// Tells of a change, and has it stored with the next batch where someone is to be notified.
    pub(super) fn tell(&mut self, changed: EndpointChanged) {
        if let Some(kind) = changed.change.notice() {
            let EndpointChanged { endpoint, account, detail, .. } = &changed;
            self.outbox.notices.add(kind, endpoint, account.as_ref(), detail);
            self.outbox.touch();
        }
        self.door.reports.tell(changed);
    }
}
