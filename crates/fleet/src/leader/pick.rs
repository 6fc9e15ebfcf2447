//! Which worker an attempt goes to.
//!
//! Among the workers below three quarters of their fast slots the one that the endpoint's host prefers (rendezvous
//! hashing), so that a host's connections stay warm on few; beyond that the least loaded. A large account's host so
//! spreads by itself, as far as it must.

use std::time::Duration;

use super::timeouts::Who;
use super::{Fleet, Local, Slots};
use crate::frame::SessionId;
use walhook_core::attempt::Attempt;

/// What of the bus's largest message is left for what stands beside an event's data: what else its request takes, and
/// [`SPARE_OF_REQUEST`].
const SPARE: u64 = 64 << 10;

/// And for what stands beside a request: the frame, and what its size was guessed too low by.
const SPARE_OF_REQUEST: u64 = SPARE / 2;

/// A bus that did not take a request is looked at again for so long.
const TOO_LARGE_FOR: Duration = Duration::from_secs(3_600);

/// A request takes this beside what is counted: names of fields, the signature, ids and times in the body.
const REQUEST_FIXED: u64 = 2 << 10;

/// Each secret adds a signature.
const SIGNATURE: u64 = 64;

/// Who is to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// A worker.
    Worker(SessionId),
    /// The leader.
    Leader,
}

/// How a candidate stands against others: the greatest is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// One that has much to do: the least loaded, in 65,536ths of its slots, negated.
    Busy(i64, u64),
    /// One that has not: by how the host likes it.
    Free(u64),
}

/// The largest data of an event that a bus takes whose messages are at most so large.
#[must_use]
pub fn largest_data(max_payload: u64) -> u64 {
    max_payload.saturating_sub(SPARE)
}

/// How large the messages of a bus must be that takes events with so many bytes of data, and a request of so many in all.
#[must_use]
pub fn max_payload_for(data: u64, request: u64) -> u64 {
    data.saturating_add(SPARE).max(request.saturating_add(SPARE_OF_REQUEST))
}

/// What an attempt takes of a worker's byte budget and of a frame: no less than it will be.
pub(super) fn bytes_of(attempt: &Attempt) -> u64 {
    let (endpoint, event) = (&attempt.endpoint, &attempt.first().event);
    let headers: usize =
        endpoint.headers.iter().map(|(name, value)| name.len() + value.len() + 16).sum();
    // In the body a character of these may take six.
    let names = 6 * (event.event_type.len() + event.account.len());
    let ids = endpoint.account.len() + endpoint.id.len();
    let counted = event.row.len() + names + ids + endpoint.url.len() + headers;
    let counted = u64::try_from(counted).unwrap_or(u64::MAX);
    let signatures = SIGNATURE * u64::try_from(endpoint.secrets.len()).unwrap_or(0);
    counted.saturating_add(REQUEST_FIXED + signatures)
}

/// A number whose every bit depends on every bit of this one (the finalizer of SplitMix64).
pub(super) fn spread(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// Spreads a URL's scheme and authority (FNV-1a: a few dozen bytes at most times).
fn host_hash(seed: u64, url: &str) -> u64 {
    let mut slashes = 0;
    let mut hash = seed ^ 0xCBF2_9CE4_8422_2325;
    for byte in url.bytes() {
        if byte == b'/' {
            slashes += 1;
        }
        if slashes == 3 || byte == b'?' || byte == b'#' {
            break;
        }
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    }
    spread(hash)
}

/// All that may be in flight by these slots; the probes of dead endpoints are among the slow ones.
fn all(slots: Slots) -> u32 {
    slots.fast.saturating_add(slots.slow)
}

fn rank(fast: u32, fast_slots: u32, preference: u64) -> Rank {
    let (fast, slots) = (i64::from(fast), i64::from(fast_slots.max(1)));
    if 4 * fast < 3 * slots {
        Rank::Free(preference)
    } else {
        Rank::Busy(-(fast * 65_536 / slots), preference)
    }
}

impl Fleet {
    /// Whether the bus does not take an attempt of so many bytes.
    pub(super) fn too_large(&self, bytes: u64) -> bool {
        let max = u64::try_from(self.max_payload).unwrap_or(u64::MAX);
        self.connected && max < max_payload_for(0, bytes)
    }

    pub(super) fn note_too_large(&mut self, bytes: u64) {
        let most = self.still_too_large().unwrap_or(0).max(bytes);
        self.refused_bytes = Some((self.now, most));
    }

    /// What the bus does not take, as it is now.
    pub(super) fn still_too_large(&self) -> Option<u64> {
        let (at, bytes) = self.refused_bytes?;
        (self.too_large(bytes) && self.now < at + TOO_LARGE_FOR).then_some(bytes)
    }

    /// Who is to send an attempt, other than `not`: that one could not. `None`: nobody can, or may.
    pub(super) fn pick(
        &mut self,
        attempt: &Attempt,
        bytes: u64,
        not: Option<Who>,
    ) -> Option<Choice> {
        let (now, local, delivery) = (self.now, self.settings.local, attempt.first().id);
        let host = host_hash(self.settings.seed, &attempt.endpoint.url);
        let mut best: Option<(Rank, Choice)> = None;
        let mut last_resort = None;
        let all_serve = self.all_serve();
        let sessions = if self.connected { Some(self.sessions.iter_mut()) } else { None };
        for (id, session) in sessions.into_iter().flatten() {
            let is_not = not.is_some_and(|not| not.is(*id, session));
            session.age(now);
            if !session.is_open() || is_not || !session.fits(delivery, bytes) {
                continue;
            }
            if session.health.is_kept(all_serve, now) {
                if !session.flights.is_empty() {
                    continue;
                }
                // Else no host may prefer it, and it would stay on trial.
                if session.health.is_on_trial(now) && session.has_slots() && not.is_none() {
                    return Some(Choice::Worker(*id));
                }
                last_resort = last_resort.or(Some(Choice::Worker(*id)));
                continue;
            }
            let slots = session.health.share_of(session.slots, now);
            if session.in_flight() - session.taken_up >= all(slots) {
                continue;
            }
            let rank = rank(session.held().fast, slots.fast, spread(host ^ session.hash));
            if best.is_none_or(|(than, _)| rank > than) {
                best = Some((rank, Choice::Worker(*id)));
            }
        }
        if local == Local::Always {
            let own = self.settings.own;
            let rank = rank(self.local_in_flight, own.fast, spread(host ^ self.settings.seed));
            let room = self.local_in_flight < all(own);
            if room && best.is_none_or(|(than, _)| rank > than) {
                best = Some((rank, Choice::Leader));
                self.local_in_flight += 1;
            }
        }
        match (best, local) {
            (Some((_, choice)), _) => Some(choice),
            (None, Local::Never) => last_resort,
            (None, Local::Fallback | Local::Always) => Some(Choice::Leader),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_of_a_url_is_its_scheme_and_authority() {
        let hash = |url| host_hash(7, url);
        assert_eq!(hash("https://a.example/x"), hash("https://a.example/y?z"));
        assert_eq!(hash("https://a.example"), hash("https://a.example/"));
        assert_ne!(hash("https://a.example/"), hash("https://b.example/"));
        assert_ne!(hash("https://a.example/"), hash("http://a.example/"));
        assert_ne!(hash("https://a.example/"), hash("https://a.example:444/"));
    }

    #[test]
    fn worker_below_three_quarters_is_before_every_busier_one() {
        assert!(rank(191, 256, 0) > rank(192, 256, u64::MAX));
        assert!(rank(200, 256, 0) > rank(201, 256, u64::MAX));
        assert!(rank(10, 16, 9) > rank(0, 16, 8), "among free ones the host decides");
    }
}
