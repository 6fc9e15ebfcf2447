//! How many files and sockets the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More are of no use, and some kernels keep tables as large as the limit.
const ENOUGH: u64 = 65_536;

/// Not for requests: sessions, the admin server, files, name look-ups.
const RESERVED: usize = 96;

/// Requests in flight that there are in any case.
const REQUESTS_MIN: u32 = 8;

/// Raises the soft limit to the hard one, or to 65,536 where that is higher: the soft one is 1,024 on
/// many systems, for the sake of programs that use `select`.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the limit of open files stays as it is");
        }
    }
}

/// The soft limit.
#[must_use]
pub fn limit() -> usize {
    let current = getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH);
    usize::try_from(current).unwrap_or(usize::MAX)
}

/// How many connections to endpoints may be open.
#[must_use]
pub fn for_requests() -> usize {
    limit().saturating_sub(RESERVED)
}

/// How many descriptors a process needs that fills so many slots, fast and slow: a socket each, and what
/// is kept for all else.
#[must_use]
pub fn needed((fast, slow): (u32, u32)) -> usize {
    let slots = usize::try_from(u64::from(fast) + u64::from(slow)).unwrap_or(usize::MAX);
    slots.saturating_add(RESERVED)
}

/// What to do where the limit is too low for so many.
#[must_use]
pub fn advice(needed: usize) -> String {
    format!(
        "raise the limit of open files to {needed} or more: LimitNOFILE={needed} in the systemd unit, \
         ulimits in Compose, or `ulimit -Hn {needed}` before"
    )
}

/// Says at the start how many requests may be sent at once, and why they are fewer than asked for.
pub fn tell(wished: (u32, u32)) {
    let (limit, needed) = (limit(), needed(wished));
    let (fast, slow) = fitting_slots(limit, wished);
    if (fast, slow) == wished {
        tracing::info!(
            open_files = limit,
            needed,
            "the limit of open files suffices for all slots"
        );
    } else {
        tracing::warn!(
            open_files = limit,
            needed,
            fast_slots = fast,
            slow_slots = slow,
            "fewer requests are sent at once than [scheduler] says, for the limit of open files allows no \
             more; {}",
            advice(needed)
        );
    }
}

/// How many of the slots wished for, fast and slow, a process with so many descriptors can fill without
/// using up those that sessions and the admin server need.
///
/// The slow ones give way first: endpoints that hang fill them all, however many there are, and how long
/// others then wait depends on the fast ones.
#[must_use]
pub fn fitting_slots(descriptors: usize, (fast, slow): (u32, u32)) -> (u32, u32) {
    let requests = u32::try_from(descriptors.saturating_sub(RESERVED)).unwrap_or(u32::MAX);
    let requests = requests.max(REQUESTS_MIN);
    let fast = fast.min(requests / 4 * 3);
    (fast, slow.min(requests - fast))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fit_the_descriptors_and_are_never_more_than_wished_for() {
        assert_eq!(fitting_slots(65_536, (256, 1024)), (256, 1024));
        assert_eq!(fitting_slots(1_024, (256, 1024)), (256, 672));
        assert_eq!(fitting_slots(256, (256, 1024)), (120, 40));
        assert_eq!(fitting_slots(256, (4, 4)), (4, 4));
        assert_eq!(fitting_slots(16, (256, 1024)), (6, 2));
        assert_eq!(needed((256, 1024)), 1_376);
        assert_eq!(fitting_slots(needed((256, 1024)), (256, 1024)), (256, 1024));
        assert_ne!(fitting_slots(needed((256, 1024)) - 1, (256, 1024)), (256, 1024));
        assert_eq!(fitting_slots(usize::MAX, (u32::MAX, u32::MAX)), (3_221_225_469, 1_073_741_826));
    }
}
