//! What is wrong now, in words for the operator: which part fails, since when, why, what that costs
//! meanwhile, and the fix.
//!
//! `/readyz`, `walhook status`, the metric `walhook_failing_seconds` and the log all say what stands here.

use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};

use walhook_state::Told;

/// So long something may fail before the instance is not ready: most of what fails is well again at the
/// second attempt.
pub const PASSING: Duration = Duration::from_secs(3);

/// What to do where a server does not answer in time.
pub(super) const SLOW_FIX: &str = "find out what keeps the server: pg_stat_activity shows what walhook's sessions wait for, \
     and pg_locks who holds that";

/// What to do about `egress.proxy`.
pub(super) const PROXY_FIX: &str = "start the proxy, or correct egress.proxy: its address, user and password, and that it allows CONNECT to \
     addresses; `walhook check` tries it";

/// What to do where no name is resolved.
pub(super) const NAMES_FIX: &str = "look at the name servers in /etc/resolv.conf of the machine or container where this runs, and at the way to \
     them; what has failed is tried again by itself, and at once by `walhook deferred retry --all`";

/// A part of the pipeline that goes on by itself when what it needs is there again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Opening state and source, before this instance leads or stands by.
    Start,
    /// The replication stream.
    Stream,
    /// Sending, where only workers may.
    Sending,
    /// `egress.proxy`, through which all is sent.
    Proxy,
    /// Resolving the endpoints' names.
    Names,
    /// Storing outcomes and the checkpoint.
    State,
    /// Looking endpoints up.
    Lookups,
    /// Looking the endpoints of costly accounts up.
    CostlyLookups,
    /// Looking the endpoints of single accounts up.
    Accounts,
    /// Reading deferred deliveries back.
    Deferred,
    /// Commands for the leader.
    Jobs,
    /// Replays.
    Replays,
    /// Watching the slot, the publication and the catalog.
    Observer,
    /// The anchor slot.
    ReplayWindow,
    /// Measuring the state tables.
    Sizes,
    /// Removing what is too old from them.
    Retention,
    /// Vacuuming them.
    Vacuum,
    /// Telling `notify.url`.
    Notices,
    /// Changes of the watched tables.
    Watch,
    /// The customer's own writes to the published tables.
    Writes,
    /// The table of workers.
    Workers,
    /// What brings leader and workers together.
    Bus,
    /// Sending what is larger than the bus takes, where only workers may.
    Oversize,
    /// What became of workers' requests.
    Outcomes,
    /// Receiving large transactions while they are open.
    Streaming,
    /// The table of those.
    OpenTransactions,
    /// Storing lines of the delivery log.
    DeliveryLog,
    /// Keeping that small.
    LogUpkeep,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::Start,
        Self::Stream,
        Self::Sending,
        Self::Proxy,
        Self::Names,
        Self::State,
        Self::Lookups,
        Self::CostlyLookups,
        Self::Accounts,
        Self::Deferred,
        Self::Jobs,
        Self::Replays,
        Self::Observer,
        Self::ReplayWindow,
        Self::Sizes,
        Self::Retention,
        Self::Vacuum,
        Self::Notices,
        Self::Watch,
        Self::Writes,
        Self::Workers,
        Self::Bus,
        Self::Oversize,
        Self::Outcomes,
        Self::Streaming,
        Self::OpenTransactions,
        Self::DeliveryLog,
        Self::LogUpkeep,
    ];

    /// The label's value in the metrics, and the name in `--json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stream => "stream",
            Self::Sending => "sending",
            Self::Proxy => "proxy",
            Self::Names => "names",
            Self::State => "state",
            Self::Lookups => "lookups",
            Self::CostlyLookups => "costly_lookups",
            Self::Accounts => "accounts",
            Self::Deferred => "deferred",
            Self::Jobs => "jobs",
            Self::Replays => "replays",
            Self::Observer => "observer",
            Self::ReplayWindow => "replay_window",
            Self::Sizes => "sizes",
            Self::Retention => "retention",
            Self::Vacuum => "vacuum",
            Self::Notices => "notices",
            Self::Watch => "watch",
            Self::Writes => "writes",
            Self::Workers => "workers",
            Self::Bus => "bus",
            Self::Oversize => "oversize",
            Self::Outcomes => "outcomes",
            Self::Streaming => "streaming",
            Self::OpenTransactions => "open_transactions",
            Self::DeliveryLog => "delivery_log",
            Self::LogUpkeep => "log_upkeep",
        }
    }

    /// What does not work, and what that costs meanwhile.
    #[must_use]
    pub const fn says(self) -> &'static str {
        match self {
            Self::Start => "cannot start streaming; nothing is sent until it can",
            Self::Stream => {
                "the stream is interrupted; what is committed meanwhile is sent afterwards"
            }
            Self::Sending => "nobody sends; everything waits until a worker serves",
            Self::Proxy => {
                "egress.proxy lets nothing through; deliveries wait, and no endpoint is blamed"
            }
            Self::Names => {
                "this machine's name servers answer for no name; known addresses are used for up to ten minutes, \
                 and what is sent elsewhere fails as `dns`"
            }
            Self::State => {
                "cannot store the checkpoint; nothing is sent meanwhile, and the slot retains WAL"
            }
            Self::Lookups => {
                "cannot look endpoints up; accounts that are known go on, events of all others wait"
            }
            Self::CostlyLookups => {
                "cannot look up accounts with very many or very long endpoint rows; their events wait, all \
                 others are sent"
            }
            Self::Accounts => {
                "cannot look up the endpoints of single accounts; their events wait, all others are sent"
            }
            Self::Deferred => "cannot read deferred deliveries back; they wait",
            Self::Jobs => "cannot look for commands; `retry`, `pause` and the like wait",
            Self::Replays => "cannot look for replays; they wait",
            Self::Observer => {
                "cannot watch slot, publication and catalog; delivery goes on, and the slot's metrics stand still"
            }
            Self::ReplayWindow => "cannot keep the replay window; delivery goes on",
            Self::Sizes => "cannot measure the state tables; state.max_size is not kept",
            Self::Retention => "cannot remove what state.retention no longer keeps",
            Self::Vacuum => "cannot vacuum the state tables; they grow",
            Self::Notices => "cannot read the notices for notify.url; they wait",
            Self::Watch => {
                "changes of the endpoint table do not come; until they do, endpoints are looked up anew \
                 every 5 s"
            }
            Self::Writes => {
                "UPDATE and DELETE of published tables fail for those who write them, because they are published; \
                 delivery goes on"
            }
            Self::Workers => {
                "cannot store how workers stand; delivery goes on, and `workers list` is old"
            }
            Self::Bus => {
                "the bus does not bring leader and workers together; the leader or other workers send meanwhile"
            }
            Self::Oversize => {
                "requests are larger than the bus takes, and only workers may send; their events are deferred"
            }
            Self::Outcomes => {
                "what became of requests at workers is not heard; they are sent again by others, and these workers \
                 get none"
            }
            Self::Streaming => {
                "large transactions are received when they have committed, and delay others then"
            }
            Self::OpenTransactions => {
                "cannot store which transactions are open; delivery goes on, and `status` shows them as they \
                 were"
            }
            Self::DeliveryLog => {
                "cannot store lines of the delivery log; delivery goes on, and they are left out of it"
            }
            Self::LogUpkeep => {
                "cannot merge or remove pages of the delivery log; delivery goes on, and the log grows"
            }
        }
    }

    /// What works again, for the log.
    #[must_use]
    pub const fn works(self) -> &'static str {
        match self {
            Self::Start => "state and source can be opened",
            Self::Stream => "the stream goes on",
            Self::Sending => "a worker serves",
            Self::Proxy => "egress.proxy lets requests through",
            Self::Names => "names are resolved",
            Self::State => "the checkpoint is stored",
            Self::Lookups => "endpoints are looked up",
            Self::CostlyLookups => {
                "accounts with very many or very long endpoint rows are looked up"
            }
            Self::Accounts => "the endpoints of all accounts are looked up",
            Self::Deferred => "deferred deliveries are read back",
            Self::Jobs => "commands are looked for",
            Self::Replays => "replays are looked for",
            Self::Observer => "slot, publication and catalog are watched",
            Self::ReplayWindow => "the replay window is kept",
            Self::Sizes => "the state tables are measured",
            Self::Retention => "what is too old is removed",
            Self::Vacuum => "the state tables are vacuumed",
            Self::Notices => "notices are read",
            Self::Watch => "changes of the endpoint table come",
            Self::Writes => "being published makes nobody's writes fail",
            Self::Workers => "how workers stand is stored",
            Self::Bus => "the bus brings leader and workers together",
            Self::Oversize => "the bus takes all requests",
            Self::Outcomes => {
                "no worker is left of which it is not heard what becomes of its requests"
            }
            Self::Streaming => "large transactions are received while they are open",
            Self::OpenTransactions => "which transactions are open is stored",
            Self::DeliveryLog => "lines of the delivery log are stored",
            Self::LogUpkeep => "the delivery log is merged, and what is too old is removed",
        }
    }

    /// Whether somebody gets nothing meanwhile, so that the instance is not ready.
    #[must_use]
    pub const fn stops_delivery(self) -> bool {
        match self {
            Self::Start
            | Self::Stream
            | Self::Sending
            | Self::Proxy
            | Self::State
            | Self::Lookups
            | Self::Deferred => true,
            // One account's rows, or names, are no reason to call the instance unready for all: who takes unready
            // instances away would stop everybody's.
            Self::Names
            | Self::CostlyLookups
            | Self::Accounts
            | Self::Jobs
            | Self::Replays
            | Self::Observer
            | Self::ReplayWindow
            | Self::Sizes
            | Self::Retention
            | Self::Vacuum
            | Self::Notices
            | Self::Watch
            | Self::Writes
            | Self::Workers
            | Self::Bus
            | Self::Oversize
            | Self::Outcomes
            | Self::Streaming
            | Self::OpenTransactions
            | Self::DeliveryLog
            | Self::LogUpkeep => false,
        }
    }
}

/// Something that fails now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: Instant,
    /// The same in microseconds since 1970-01-01 UTC.
    pub since_us: i64,
    /// The last error, without secrets.
    pub error: String,
    /// What to do about it.
    pub fix: String,
    /// When the log was told last.
    pub(super) told: Option<Instant>,
}

impl Trouble {
    /// The line of `/readyz`.
    #[must_use]
    pub fn to_line(&self, part: Part, now: Instant) -> String {
        let Self { since, error, fix, .. } = self;
        let seconds = now.duration_since(*since).as_secs();
        format!("{}: for {seconds} s: {error}; fix: {fix}", part.says())
    }
}

/// What an instance says of itself at `/troubles`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The slot's name.
    pub pipeline: String,
    /// `starting`, `standby`, `leader` or `halted`.
    pub role: String,
    /// What fails now.
    pub troubles: Vec<Told>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_says_what_fails_since_when_why_and_the_fix() {
        let since = Instant::now();
        let trouble = Trouble {
            since,
            since_us: 0,
            error: "permission denied".to_owned(),
            fix: "grant our role the right that it lacks".to_owned(),
            told: None,
        };
        let line = trouble.to_line(Part::Lookups, since + Duration::from_secs(7));
        for part in ["look endpoints up", "7 s", "permission denied", "fix: grant", "wait"] {
            assert!(line.contains(part), "{line}");
        }
        for fix in [SLOW_FIX, PROXY_FIX, NAMES_FIX] {
            assert!(!fix.contains("  "), "{fix}");
        }
    }

    #[test]
    fn parts_are_called_the_same_everywhere() {
        for part in Part::ALL {
            let json = serde_json::to_value(part).unwrap();
            assert_eq!(json, part.as_str());
        }
    }
}
