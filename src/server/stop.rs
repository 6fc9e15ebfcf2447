//! Why the pipeline ends other than by a shutdown.

use std::io;
use std::net::SocketAddr;

use tokio::task::JoinError;

use super::leadership::StartError;
use super::reader::Unreadable;
use walhook_core::halt::Halt;
use walhook_core::lsn::Lsn;
use walhook_dispatch::retry::PolicyError;
use walhook_http::transport::TransportError;
use walhook_postgres::wire::WireError;
use walhook_process::faults::Fault;
use walhook_state::StateError;

/// Why the pipeline ended other than by a shutdown.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Going on would lose data silently.
    #[error(transparent)]
    Halted(#[from] Halt),
    /// Another instance has taken over.
    #[error("another instance has taken over")]
    Fenced,
    /// What is stored is older than it was, and what this leader remembers is not so.
    #[error(
        "the state tables are older than what was stored in them: a standby was promoted, or a copy put in place, \
         that lacks the last of it"
    )]
    WentBack,
    /// The file of a database URL holds another one than was read, before anything has begun with that.
    #[error("a file holds another database URL by now")]
    UrlChanged,
    /// What was kept of a transaction that has committed cannot be read back, and is to be read again.
    #[error("what was kept of an open transaction cannot be read back: {0}")]
    NotReadBack(String),
    /// The configuration does not fit the database.
    #[error(transparent)]
    Config(#[from] Unfit),
    /// Waiting does not fix it.
    #[error(transparent)]
    Failed(#[from] Box<Fatal>),
}

/// What of the configuration does not fit, so that nothing starts.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// No requests can be made with it.
    #[error("{0}")]
    Transport(TransportError),
    /// The times between attempts.
    #[error("[delivery]: {0}")]
    Retry(PolicyError),
    /// The workers, or their bus.
    #[error("{0}")]
    Workers(String),
    /// What it names is not in place.
    #[error(transparent)]
    Start(#[from] Box<StartError>),
}

/// What ends the process, for neither waiting nor another try fixes it.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The admin server has no address.
    #[error("cannot listen on {listen}; {}", fix_of_listen(.source))]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A defect: two metrics of one name, say.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// A defect.
    #[error("the task {name:?} of the pipeline panicked")]
    Panicked {
        /// Which task.
        name: &'static str,
        /// How it ended.
        source: JoinError,
    },
    /// A defect: the bus is gone only with its last handle, of which we hold one, or by a panic of its tasks.
    #[cfg(feature = "workers")]
    #[error("the connection to the bus has ended by itself; this is a bug in walhook")]
    BusEnded,
    /// What stands in the state tables is not what this program wrote.
    #[error(transparent)]
    State(StateError),
    /// The same, when a checkpoint was to be stored.
    #[error("cannot store the checkpoint")]
    NotStored(#[source] StateError),
    /// The source cannot send, or what it sends is not the protocol.
    #[error(transparent)]
    Wire(WireError),
    /// The stream cannot be read, and between two transactions there is none that could be given up.
    #[error("the stream cannot be read on after {after}")]
    Unreadable {
        /// The end of the last transaction that was read.
        after: Lsn,
        /// Why not.
        source: Unreadable,
    },
}

/// An address that is not there (EADDRNOTAVAIL) is no want of ports here: nothing is connected to.
fn fix_of_listen(error: &io::Error) -> &'static str {
    match Fault::of(error) {
        Some(fault @ (Fault::Descriptors | Fault::Memory)) => fault.fix(),
        Some(Fault::Ports) | None => "change `admin.listen`",
    }
}

impl From<Fatal> for Stop {
    fn from(fatal: Fatal) -> Self {
        Self::Failed(Box::new(fatal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fix_of_an_address_that_cannot_be_had_is_local_where_that_is_what_lacks() {
        let said = |errno| {
            let (listen, source) =
                (([127, 0, 0, 1], 1).into(), io::Error::from_raw_os_error(errno));
            Fatal::Listen { listen, source }.to_string()
        };
        // EMFILE, then EACCES.
        assert!(said(24).contains("LimitNOFILE"), "{}", said(24));
        assert!(said(13).contains("admin.listen"), "{}", said(13));
    }
}
