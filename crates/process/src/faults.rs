//! What the process itself has run out of: files, ports, or the kernel's memory for them.
//!
//! These errors come from every call that opens something, and say nothing of whoever was to be called.
//! They are counted and logged in one place for the whole process, as the limits are the process's.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{IntCounterVec, Opts};
use rustix::io::Errno;
use tokio::time::Instant;

/// One line in the log for each kind in this time, and a fault is over when none came for so long.
pub const LASTS: Duration = Duration::from_secs(10);

/// What was used up: the label of `walhook_local_faults_total{kind}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process's open files (EMFILE), or the machine's (ENFILE).
    Descriptors,
    /// The local ports for connections to one address (EADDRNOTAVAIL).
    Ports,
    /// The kernel's memory (ENOBUFS, ENOMEM).
    Memory,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Descriptors, Self::Ports, Self::Memory];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::Ports => "ports",
            Self::Memory => "memory",
        }
    }

    /// The fault behind an error of the operating system, however deep it lies.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let shared = || error.downcast_ref::<Arc<io::Error>>().map(|error| &**error);
            if let Some(error) = error.downcast_ref::<io::Error>().or_else(shared) {
                // What an I/O error wraps is not its source.
                let wrapped = error.get_ref().and_then(|inner| Self::of(inner));
                if let Some(fault) = Self::of_code(error.raw_os_error()).or(wrapped) {
                    return Some(fault);
                }
            }
            cause = error.source();
        }
        None
    }

    fn of_code(code: Option<i32>) -> Option<Self> {
        const CODES: [(Errno, Fault); 5] = [
            (Errno::MFILE, Fault::Descriptors),
            (Errno::NFILE, Fault::Descriptors),
            (Errno::ADDRNOTAVAIL, Fault::Ports),
            (Errno::NOBUFS, Fault::Memory),
            (Errno::NOMEM, Fault::Memory),
        ];
        let code = code?;
        CODES.into_iter().find(|(errno, _)| errno.raw_os_error() == code).map(|(_, fault)| fault)
    }

    /// What to do: a phrase in the imperative.
    #[must_use]
    pub const fn fix(self) -> &'static str {
        match self {
            Self::Descriptors => {
                "raise walhook's limit of open files (LimitNOFILE in the systemd unit, ulimit -n), or for ENFILE the \
                 machine's (fs.file-max)"
            }
            Self::Ports => {
                "raise the number of local ports (net.ipv4.ip_local_port_range), for none is left"
            }
            Self::Memory => {
                "raise net.ipv4.tcp_mem or the memory of the machine or container, for the kernel has none left for \
                 sockets"
            }
        }
    }

    /// What is used up, and what to do.
    const fn advice(self) -> &'static str {
        match self {
            Self::Descriptors => {
                "walhook has no open file left; raise its limit (LimitNOFILE in the systemd unit, ulimit -n), \
                 or for ENFILE the machine's (fs.file-max)"
            }
            Self::Ports => {
                "no local port is left for more connections to an address; widen \
                 net.ipv4.ip_local_port_range, or lower the endpoint's max_in_flight"
            }
            Self::Memory => {
                "the kernel has no memory left for sockets; raise net.ipv4.tcp_mem or the memory of the \
                 machine or container"
            }
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Descriptors => 0,
            Self::Ports => 1,
            Self::Memory => 2,
        }
    }
}

/// When a fault began, came last, and was logged last.
#[derive(Debug, Clone, Copy)]
struct Spell {
    since: Instant,
    last: Instant,
    logged: Instant,
}

static SPELLS: Mutex<[Option<Spell>; 3]> = Mutex::new([None; 3]);

static COUNT: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "walhook_local_faults_total",
        "Calls that failed for want of something of the process's own, by what.",
    );
    #[expect(clippy::expect_used, reason = "the name and the label are valid")]
    let counters = IntCounterVec::new(opts, &["kind"]).expect("a valid metric");
    for fault in Fault::ALL {
        counters.with_label_values(&[fault.as_str()]);
    }
    counters
});

/// The metric, for a registry.
#[must_use]
pub fn counters() -> IntCounterVec {
    COUNT.clone()
}

/// Counts and logs the fault behind an error, if there is one.
pub fn note(error: &(dyn Error + 'static)) -> Option<Fault> {
    let fault = Fault::of(error)?;
    COUNT.with_label_values(&[fault.as_str()]).inc();
    let now = Instant::now();
    let mut spells = SPELLS.lock().unwrap_or_else(PoisonError::into_inner);
    let spell = spells.get_mut(fault.index())?;
    let goes_on = spell.filter(|spell| now.duration_since(spell.last) < LASTS);
    let is_logged = goes_on.is_some_and(|spell| now.duration_since(spell.logged) < LASTS);
    *spell = Some(Spell {
        since: goes_on.map_or(now, |spell| spell.since),
        last: now,
        logged: goes_on.filter(|_| is_logged).map_or(now, |spell| spell.logged),
    });
    drop(spells);
    if !is_logged {
        tracing::error!(
            error = %Causes(error),
            "{}. What could not be sent is tried again, and counts against no endpoint",
            fault.advice()
        );
    }
    Some(fault)
}

/// What is used up at this moment, since when, and the fix: a line for each.
#[must_use]
pub fn lasting() -> Vec<(Fault, String)> {
    let now = Instant::now();
    let spells = *SPELLS.lock().unwrap_or_else(PoisonError::into_inner);
    let lasting = Fault::ALL.into_iter().zip(spells).filter_map(|(fault, spell)| {
        let spell = spell.filter(|spell| now.duration_since(spell.last) < LASTS)?;
        let since = now.duration_since(spell.since).as_secs();
        Some((fault, format!("for {since} s: {}", fault.advice())))
    });
    lasting.collect()
}

struct Causes<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] Arc<io::Error>);

    #[test]
    fn fault_is_found_however_deep_it_lies_and_nothing_else_is_one() {
        for (errno, fault) in [
            (Errno::MFILE, Some(Fault::Descriptors)),
            (Errno::NFILE, Some(Fault::Descriptors)),
            (Errno::ADDRNOTAVAIL, Some(Fault::Ports)),
            (Errno::NOBUFS, Some(Fault::Memory)),
            (Errno::NOMEM, Some(Fault::Memory)),
            (Errno::CONNREFUSED, None),
            (Errno::NETUNREACH, None),
            (Errno::ACCESS, None),
        ] {
            assert_eq!(Fault::of(&os(errno)), fault, "{errno:?}");
            assert_eq!(Fault::of(&io::Error::other(os(errno))), fault, "{errno:?}");
            assert_eq!(Fault::of(&Wrapped(Arc::new(os(errno)))), fault, "{errno:?}");
            let twice = io::Error::other(Wrapped(Arc::new(os(errno))));
            assert_eq!(Fault::of(&twice), fault, "{errno:?}");
        }
        // The kind alone is not the system's word.
        let kind = io::Error::new(io::ErrorKind::AddrNotAvailable, "there is no address");
        assert_eq!(Fault::of(&kind), None);
    }

    #[tokio::test(start_paused = true)]
    async fn fault_lasts_until_none_came_for_a_while() {
        assert_eq!(note(&os(Errno::CONNREFUSED)), None);
        note(&os(Errno::NOBUFS));
        tokio::time::advance(LASTS * 9 / 10).await;
        note(&os(Errno::NOBUFS));
        let line = |lasting: &[(Fault, String)]| {
            lasting.iter().find(|(fault, _)| *fault == Fault::Memory).map(|(_, line)| line.clone())
        };
        let said = line(&lasting()).unwrap();
        assert!(said.starts_with("for 9 s: ") && said.contains("tcp_mem"), "{said}");
        tokio::time::advance(LASTS).await;
        assert_eq!(line(&lasting()), None);
    }
}
