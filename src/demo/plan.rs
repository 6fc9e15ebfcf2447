//! Who takes part in the demo: one whale and fifty small accounts, and where their webhooks go.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use walhook_testkit::change::Kind;
use walhook_testkit::oracle;

/// A kind of account: a line of the demo's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Small accounts whose endpoints work.
    Small,
    /// A small account whose endpoint takes two seconds to answer.
    Slow,
    /// A small account whose endpoint answers three requests of ten with 503.
    Flaky,
    /// A small account at whose endpoint nobody listens.
    Dead,
    /// The account with thousands of subscribers and bulk changes.
    Whale,
}

impl Class {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 5] = [Self::Small, Self::Slow, Self::Flaky, Self::Dead, Self::Whale];

    /// The word in the table and the JSON object.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Slow => "slow",
            Self::Flaky => "flaky",
            Self::Dead => "dead",
            Self::Whale => "whale",
        }
    }

    /// The group of endpoints that the oracle tallies together.
    #[must_use]
    pub const fn group(self) -> u8 {
        self as u8
    }

    /// What its endpoints do, for a person.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Small => "answer at once",
            Self::Slow => "answers after 2 s",
            Self::Flaky => "30 % answer 503",
            Self::Dead => "refuses to connect",
            Self::Whale => "answers after 0.1 s",
        }
    }
}

/// One account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub id: i64,
    /// Its class.
    pub class: Class,
}

/// One endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id, unique among all accounts.
    pub id: i64,
    /// The account that owns it.
    pub account: i64,
    /// The account's class.
    pub class: Class,
    /// The kinds of event that it wants.
    pub wants: &'static [Kind],
}

impl Endpoint {
    /// The 32 bytes that its requests are signed with.
    #[must_use]
    pub fn key(&self) -> String {
        format!("demo-secret-of-endpoint-{:08}", self.id)
    }

    /// Its signing secret, which holds the [key](Self::key).
    #[must_use]
    pub fn secret(&self) -> String {
        format!("whsec_{}", STANDARD.encode(self.key()))
    }
}

/// Small accounts, with the slow, the flaky and the dead one.
pub const SMALL_ACCOUNTS: i64 = 50;

/// Every tenth account has a second endpoint, so that events and deliveries differ in number.
const SECOND_ENDPOINT_EVERY: i64 = 10;

/// Second endpoints' ids begin here.
const SECOND_ENDPOINTS: i64 = 1000;

/// The whale, then the small accounts.
#[must_use]
pub fn accounts() -> Vec<Account> {
    let class = |id| match id {
        1 => Class::Whale,
        2 => Class::Slow,
        3 => Class::Flaky,
        4 => Class::Dead,
        _ => Class::Small,
    };
    (1..=SMALL_ACCOUNTS + 1).map(|id| Account { id, class: class(id) }).collect()
}

/// The accounts' endpoints.
#[must_use]
pub fn endpoints(accounts: &[Account]) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(accounts.len() + accounts.len() / 10);
    for &Account { id, class } in accounts {
        endpoints.push(Endpoint { id, account: id, class, wants: &Kind::ALL });
        if class == Class::Small && id % SECOND_ENDPOINT_EVERY == 0 {
            let id = SECOND_ENDPOINTS + id;
            endpoints.push(Endpoint {
                id,
                account: id - SECOND_ENDPOINTS,
                class,
                wants: &[Kind::Deleted],
            });
        }
    }
    endpoints
}

/// What the oracle knows of them.
#[must_use]
pub fn owed(endpoints: &[Endpoint]) -> Vec<oracle::Endpoint> {
    let owed = |&Endpoint { id, account, class, wants }: &Endpoint| oracle::Endpoint {
        wants,
        group: class.group(),
        ..oracle::Endpoint::new(id, account)
    };
    endpoints.iter().map(owed).collect()
}
