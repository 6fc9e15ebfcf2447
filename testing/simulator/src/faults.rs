//! What goes wrong around walhook.

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $kind:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$of])* $kind,)*
        }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The word on the command line and in the counts.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $word,)* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|kind| kind.as_str() == word).ok_or_else(|| {
                    let all: Vec<&str> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
                    format!("there is no {word:?}; choose of {}", all.join(", "))
                })
            }
        }
    };
}

pub(crate) use kinds;

kinds! {
    /// A kind of fault, or of something that somebody does meanwhile.
    Fault {
        /// The process dies: all that it had in memory is gone.
        Crash = "crash",
        /// It dies after a state transaction was committed, and before it was told so.
        CrashAfterCommit = "crash-after-commit",
        /// It is asked to end, and does.
        Shutdown = "shutdown",
        /// Another instance takes over, while the one before still believes to lead.
        Takeover = "takeover",
        /// What an instance stores after it lost the lease.
        StaleWrite = "stale-write",
        /// The connection to the source breaks, also inside a transaction.
        StreamLost = "stream-lost",
        /// A transaction comes while it is open, and takes turns with others when it has committed.
        Streamed = "streamed",
        /// The state database does not say whether a transaction was committed: it is stored again.
        AnswerLost = "answer-lost",
        /// A state transaction takes its time.
        StateSlow = "state-slow",
        /// The state database does not answer for minutes.
        StateOutage = "state-outage",
        /// What was looked up is to be forgotten, at any place of the stream.
        Evicted = "evicted",
        /// Look-ups fail for a while.
        LookUpOutage = "look-up-outage",
        /// A look-up fails for a single account.
        LookUpPutOff = "look-up-put-off",
        /// The database refuses to read an account's endpoints.
        LookUpRefused = "look-up-refused",
        /// SQL does not show a commit yet that the stream has shown.
        LookUpLags = "look-up-lags",
        /// Receivers that answer 5xx or 4xx, some for ever.
        Refusing = "refusing",
        /// Receivers that answer 410.
        Gone = "gone",
        /// Receivers that ask for waits by Retry-After.
        Throttling = "throttling",
        /// Receivers that take seconds.
        Slow = "slow",
        /// Receivers that never answer.
        Hanging = "hanging",
        /// Connections that break.
        Reset = "reset",
        /// Receivers that work for a while, and then do not.
        Flapping = "flapping",
        /// The process has no file left for a request.
        Local = "local",
        /// A worker is lost with what it carries.
        WorkerLost = "worker-lost",
        /// A worker never begins what it was to carry.
        Unsent = "unsent",
        /// Nothing is heard of workers for a while.
        Doubt = "doubt",
        /// Workers come and go, and with them slots.
        Slots = "slots",
        /// Rows of the endpoint table are changed.
        EndpointChanged = "endpoint-changed",
        /// Rows of the endpoint table are removed, and come back.
        EndpointRemoved = "endpoint-removed",
        /// Rows of the endpoint table that cannot be used.
        EndpointInvalid = "endpoint-invalid",
        /// Another watched table is changed.
        WeightChanged = "weight-changed",
        /// TOASTed values that a change leaves alone, and that its WAL does not carry.
        UnchangedToast = "unchanged-toast",
        /// Changes whose account, condition, type, value or size keeps them from becoming events.
        Unroutable = "unroutable",
        /// The state tables are full.
        TablesFull = "tables-full",
        /// An operator pauses endpoints, and resumes them.
        Pause = "pause",
        /// An operator has dead letters sent again.
        Retry = "retry",
        /// An operator makes deferred rows due.
        Hurry = "hurry",
        /// An operator discards deferred rows.
        Discard = "discard",
        /// A past range is sent again.
        Replay = "replay",
        /// A replay is cancelled.
        ReplayCancelled = "replay-cancelled",
        /// What makes a leader halt, and is resolved by its command.
        Halt = "halt",
    }
}
