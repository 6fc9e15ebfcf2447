//! How many files and sockets the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More are of no use, and some kernels keep tables as large as the limit.
const ENOUGH: u64 = 65_536;

/// Not for requests: sessions, the admin server, files, name look-ups.
const RESERVED: usize = 128;

/// A request holds one, and so does a connection that is kept for the next.
const EACH_REQUEST: usize = 2;

/// Requests in flight that there are in any case.
const REQUESTS_MIN: u32 = 8;

/// Raises the soft limit towards the hard one, as far as is of use: the soft one is 1,024 on many
/// systems, for the sake of programs that use `select`.
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

/// How many of the slots wished for, fast and slow, a process with so many descriptors can fill without
/// using up those that sessions and the admin server need. Both parts shrink alike.
#[must_use]
pub fn fitting_slots(descriptors: usize, (fast, slow): (u32, u32)) -> (u32, u32) {
    let requests = descriptors.saturating_sub(RESERVED) / EACH_REQUEST;
    let requests = u32::try_from(requests).unwrap_or(u32::MAX).max(REQUESTS_MIN);
    let wished = u64::from(fast) + u64::from(slow);
    if wished <= u64::from(requests) {
        return (fast, slow);
    }
    let part = u64::from(requests) * u64::from(fast) / wished;
    let part = u32::try_from(part).unwrap_or(requests).max(1);
    (part, requests.saturating_sub(part).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fit_the_descriptors_and_are_never_more_than_wished_for() {
        assert_eq!(fitting_slots(65_536, (256, 1024)), (256, 1024));
        assert_eq!(fitting_slots(1_024, (256, 1024)), (89, 359));
        assert_eq!(fitting_slots(256, (256, 1024)), (12, 52));
        assert_eq!(fitting_slots(256, (4, 4)), (4, 4));
        assert_eq!(fitting_slots(16, (256, 1024)), (1, 7));
        assert_eq!(fitting_slots(16, (u32::MAX, u32::MAX)), (4, 4));
    }
}
