//! Connections to PostgreSQL: what SQL sessions and the replication connection have in common.
//!
//! ```text
//! URL, PG* variables ─► Conninfo ─► hosts, one after the other ─► Link ─┬─► sql::Connection
//!                                   socket, TLS, .pgpass                └─► wire::Replication
//! ```
//!
//! [`Conninfo`] is the one description of a connection, and [`Link`] the one way to a server, so that
//! both kinds of sessions mean the same by a URL and say the same when it does not work. Only what
//! comes after, the protocol's start-up, differs.
//!
//! Words and meanings are libpq's. Where ours differ, and why:
//!
//! - `prefer` goes on without TLS only when the server says that it has none. libpq also does so after
//!   a handshake that failed, which hands an attacker the choice.
//! - `sslmode=allow`, `sslnegotiation=direct`, revocation lists and GSSAPI are refused.
//! - `~/.postgresql` is not looked at: a service names its files.
//! - The name in a certificate is its subject alternative name, never the common name.
//!
//! Source: PostgreSQL manual, "libpq", "Database Connection Control Functions" and "SSL Support".

mod binding;
mod conninfo;
mod dial;
mod error;
mod grammar;
mod kinds;
mod linked;
mod passfile;
mod refusal;
mod tls;
mod url;

pub use conninfo::{Conninfo, ConninfoError, Host, Place};
pub use dial::{Link, Security, Socket};
pub(crate) use dial::{StartUp, open};
pub use error::{LinkError, tls_error};
pub use kinds::{Root, SessionAttrs, SslMode};
pub(crate) use linked::Linked;
pub(crate) use refusal::Refusal;
pub use url::{AsDatabaseUrl, DatabaseUrl};
