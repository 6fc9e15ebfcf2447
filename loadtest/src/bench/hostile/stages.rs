//! The stages that accounts share, each set so that it is what is scarce.

use super::servers::Answers;

/// A stage of a delivery's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Reader,
    LookUp,
    Names,
    Memory,
    Turns,
    Sockets,
    Writer,
    Refill,
    Drain,
    Replay,
    MaxSize,
}

impl Stage {
    pub(crate) const ALL: [Self; 11] = [
        Self::Reader,
        Self::LookUp,
        Self::Names,
        Self::Memory,
        Self::Turns,
        Self::Sockets,
        Self::Writer,
        Self::Refill,
        Self::Drain,
        Self::Replay,
        Self::MaxSize,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::LookUp => "look-up",
            Self::Names => "names",
            Self::Memory => "memory",
            Self::Turns => "turns",
            Self::Sockets => "sockets",
            Self::Writer => "state-writer",
            Self::Refill => "refill",
            Self::Drain => "drain",
            Self::Replay => "replay",
            Self::MaxSize => "state.max_size",
        }
    }

    /// What makes it scarce.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Reader => "what is hostile is committed in large transactions",
            Self::LookUp => {
                "endpoint rows change ten times a second, the victim's too, so that routes are asked for again"
            }
            Self::Names => "every host has a name, and the name server answers those that it knows",
            Self::Memory => "memory.limit is 32 MiB",
            Self::Turns => "16 fast and 16 slow slots",
            Self::Sockets => "256 file descriptors",
            Self::Writer => "endpoints fail, and each failure is stored at once",
            Self::Refill => {
                "every third answer is a 500, and every tenth to the victim; what failed comes back within a second"
            }
            Self::Drain => {
                "endpoints fail while the backlog is made, and are well as the hostile phase begins"
            }
            Self::Replay => "what was sent is sent again as the hostile phase begins",
            Self::MaxSize => "endpoints fail, and the state tables may take 8 MiB",
        }
    }

    /// Sections of the configuration.
    pub(crate) fn config(self) -> String {
        let delivery = |more: &str| {
            format!("[delivery]\ntimeout = \"3s\"\nconnect_timeout = \"1s\"\n{more}\n")
        };
        match self {
            Self::Reader | Self::LookUp | Self::Names | Self::Sockets | Self::Replay => {
                delivery("")
            }
            Self::Memory => delivery("") + "[memory]\nlimit = \"32MiB\"\n",
            Self::Turns => delivery("") + "[scheduler]\nfast_slots = 16\nslow_slots = 16\n",
            Self::Writer | Self::Drain => delivery("quick_attempts = 1"),
            Self::Refill => {
                delivery("quick_attempts = 1\nretry_base = \"200ms\"\nretry_cap = \"1s\"")
            }
            Self::MaxSize => delivery("quick_attempts = 1") + "[state]\nmax_size = \"8MiB\"\n",
        }
    }

    /// `memory.limit`, in bytes.
    pub(crate) fn memory_limit(self) -> u64 {
        if self == Self::Memory { 32 << 20 } else { 256 << 20 }
    }

    /// How the adversary's endpoints answer, where they do not mean harm themselves.
    pub(crate) fn answers(self) -> Answers {
        match self {
            Self::Writer | Self::Drain | Self::MaxSize => Answers::Fail,
            Self::Refill => Answers::FailNowAndThen,
            Self::Reader
            | Self::LookUp
            | Self::Names
            | Self::Memory
            | Self::Turns
            | Self::Sockets
            | Self::Replay => Answers::Own,
        }
    }

    /// Whether the adversary acts before the hostile phase already, so that there is something to come back.
    pub(crate) fn has_backlog(self) -> bool {
        matches!(self, Self::Refill | Self::Drain | Self::Replay)
    }

    /// What is committed ten times a second in both phases, by somebody else.
    pub(crate) fn churn(self) -> Option<&'static str> {
        (self == Self::LookUp).then_some(
            "UPDATE webhooks SET enabled = true WHERE id = 'victim'
                 OR id IN (SELECT min(id) FROM webhooks WHERE account_id > 1 GROUP BY account_id)",
        )
    }
}
