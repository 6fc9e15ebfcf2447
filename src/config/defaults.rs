//! Defaults that serde asks for one by one, where a section has keys without one.

use std::time::Duration;

use walhook_core::size::ByteSize;

pub(super) fn connect_timeout() -> Duration {
    Duration::from_secs(5)
}

pub(super) fn lease_timeout() -> Duration {
    Duration::from_secs(10)
}

pub(super) fn replay_window() -> ByteSize {
    ByteSize(1 << 30)
}

pub(super) fn spool_max() -> ByteSize {
    ByteSize(8 << 30)
}

pub(super) fn stream_above() -> ByteSize {
    ByteSize(1 << 20)
}

pub(super) fn walhook() -> String {
    "walhook".to_owned()
}

pub(super) fn worker_lease() -> Duration {
    Duration::from_secs(2)
}
