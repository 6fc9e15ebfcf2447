//! Why a delivery waited: its time from the commit to the answer, split by cause.
//!
//! At each moment one cause holds, the first of [`Cause::ALL`] that does. Each is measured by its own begin and end;
//! none is what the others leave.

use std::time::Duration;

use super::tick::micros;

/// What a delivery waits for.
///
/// While its request is under way it waits for nothing else, whatever holds beside: that is [`Cause::Attempt`], and
/// [`Cause::Bus`] for the way there and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Cause {
    /// There is no room in memory: the reader stands still for it, or the event is not routed yet.
    Memory,
    /// The reader: an earlier transaction is read, or the stream is behind.
    Read,
    /// Its account's endpoints are looked up.
    Lookup,
    /// It stands in the state database, and its endpoint is paused or suspended.
    Stopped,
    /// Its endpoint's breaker is open.
    Breaker,
    /// An attempt failed, and the next one has its time.
    Retry,
    /// It stands in the state database, and is to be read back.
    Refill,
    /// An earlier delivery of the same row, or account, is not settled.
    Order,
    /// Its endpoint has as many requests in flight as it may have.
    EndpointLimit,
    /// Its endpoint's rate is used up.
    RateLimit,
    /// The state database does not store what was settled, or where the endpoint's subscription starts.
    State,
    /// Too many outcomes wait to be stored.
    Unpersisted,
    /// It is its account's turn, and every slot is in use or a flood is spread over some milliseconds; or the process
    /// has nothing left to send with.
    Pool,
    /// Other accounts have their turn, or earlier deliveries of its own.
    Turn,
    /// It is on the way to whoever sends it, or its outcome on the way back: the bus, with workers.
    Bus,
    /// The request itself.
    Attempt,
}

/// How many causes there are.
const COUNT: usize = Cause::ALL.len();

impl Cause {
    /// All of them, in the order in which one goes before another.
    pub const ALL: [Self; 16] = [
        Self::Memory,
        Self::Read,
        Self::Lookup,
        Self::Stopped,
        Self::Breaker,
        Self::Retry,
        Self::Refill,
        Self::Order,
        Self::EndpointLimit,
        Self::RateLimit,
        Self::State,
        Self::Unpersisted,
        Self::Pool,
        Self::Turn,
        Self::Bus,
        Self::Attempt,
    ];

    /// The word in metrics, in the delivery log and in what is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Read => "read",
            Self::Lookup => "lookup",
            Self::Stopped => "stopped",
            Self::Breaker => "breaker",
            Self::Retry => "retry",
            Self::Refill => "refill",
            Self::Order => "order",
            Self::EndpointLimit => "endpoint_limit",
            Self::RateLimit => "rate_limit",
            Self::State => "state",
            Self::Unpersisted => "unpersisted",
            Self::Pool => "pool",
            Self::Turn => "turn",
            Self::Bus => "bus",
            Self::Attempt => "attempt",
        }
    }
}

/// How long each cause held, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Waits([u64; COUNT]);

impl Waits {
    /// `cause` held for so long.
    pub fn add(&mut self, cause: Cause, held: Duration) {
        self.add_us(cause, micros(held));
    }

    /// `cause` held for so many microseconds.
    pub fn add_us(&mut self, cause: Cause, held_us: u64) {
        if let Some(sum) = self.0.get_mut(cause as usize) {
            *sum = sum.saturating_add(held_us);
        }
    }

    /// Microseconds that `cause` held.
    #[must_use]
    pub fn us(&self, cause: Cause) -> u64 {
        self.0.get(cause as usize).copied().unwrap_or(0)
    }

    /// Each cause that held, with its microseconds.
    pub fn iter(&self) -> impl Iterator<Item = (Cause, u64)> + '_ {
        Cause::ALL.into_iter().zip(self.0).filter(|(_, held_us)| *held_us > 0)
    }

    /// All of them together, in microseconds.
    #[must_use]
    pub fn total_us(&self) -> u64 {
        self.0.iter().fold(0, |sum, held_us| sum.saturating_add(*held_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stand_where_their_number_says_and_each_has_a_word_of_its_own() {
        for (n, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, n);
            let same = Cause::ALL.iter().filter(|other| other.as_str() == cause.as_str());
            assert_eq!(same.count(), 1, "{cause:?}");
        }
    }

    #[test]
    fn waits_add_up_and_tell_of_what_held() {
        let mut waits = Waits::default();
        waits.add(Cause::Turn, Duration::from_micros(3));
        waits.add(Cause::Attempt, Duration::from_millis(1));
        waits.add_us(Cause::Turn, 4);
        assert_eq!(waits.us(Cause::Turn), 7);
        assert_eq!(waits.us(Cause::Read), 0);
        assert!(waits.iter().eq([(Cause::Turn, 7), (Cause::Attempt, 1_000)]));
        assert_eq!(waits.total_us(), 1_007);
        waits.add_us(Cause::Turn, u64::MAX);
        assert_eq!(waits.total_us(), u64::MAX, "no wait wraps");
    }
}
