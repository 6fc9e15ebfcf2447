//! Replication commands.

use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::connection::{Connection, Received, malformed, unexpected};
use super::error::{ServerError, WireError};
use super::stream::Stream;
use crate::op::EQ;
use crate::pg::SessionAttrs;
use walhook_core::lsn::Lsn;
use walhook_decode::pgoutput::Protocol;

/// The versions from which on a server streams transactions that are open, and by which protocol.
const STREAMS: [(i32, Protocol); 2] = [(16_00_00, Protocol::V4), (14_00_00, Protocol::V2)];

/// For one command. START_REPLICATION finds its slot taken at once; nothing here waits for others.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection in replication mode, before the stream.
#[derive(Debug)]
pub struct Replication {
    connection: Connection,
    messages: bool,
    binary: bool,
    protocol: Protocol,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Names the cluster; its standbys have the same.
    pub system_identifier: u64,
    /// Grows with every promotion.
    pub timeline: u32,
    /// The end of the WAL that is flushed to disk.
    pub xlog_pos: Lsn,
    /// The database that we are connected to.
    pub database: String,
}

impl Replication {
    pub(super) const fn new(connection: Connection) -> Self {
        Self { connection, messages: false, binary: false, protocol: Protocol::V1 }
    }

    /// Asks for logical messages too, where `wanted`; every server since 14 has them.
    #[must_use]
    pub fn with_messages(mut self, wanted: bool) -> Self {
        self.messages = wanted;
        self
    }

    /// Asks for values in binary form, where `wanted`: for who only looks at the heads of changes. A value
    /// that is too large as text may go through so.
    #[must_use]
    pub fn with_binary(mut self, wanted: bool) -> Self {
        self.binary = wanted;
        self
    }

    /// Asks which cluster this is.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn identify_system(&mut self) -> Result<System, WireError> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        let field = |i: usize| row.get(i).and_then(Option::as_deref);
        let system = || {
            Some(System {
                system_identifier: field(0)?.parse().ok()?,
                timeline: field(1)?.parse().ok()?,
                xlog_pos: field(2)?.parse().ok()?,
                database: field(3)?.to_owned(),
            })
        };
        system().ok_or_else(|| WireError::Protocol { what: format!("IDENTIFY_SYSTEM: {row:?}") })
    }

    /// The session's `wal_sender_timeout`; zero: the server never times out.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn wal_sender_timeout(&mut self) -> Result<Duration, WireError> {
        let setting = self
            .value(&format!(
                "SELECT setting FROM pg_catalog.pg_settings WHERE name {EQ} 'wal_sender_timeout'"
            ))
            .await?;
        let millis = setting.parse();
        millis.map(Duration::from_millis).map_err(|_| WireError::Protocol {
            what: format!("{setting:?} as the setting of wal_sender_timeout"),
        })
    }

    /// The process that serves this session.
    pub(super) async fn backend_pid(&mut self) -> Result<i32, WireError> {
        let pid = self.value("SELECT pg_catalog.pg_backend_pid()").await?;
        pid.parse().map_err(|_| WireError::Protocol { what: format!("{pid:?} as a process id") })
    }

    /// Whether the server is a standby.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn is_standby(&mut self) -> Result<bool, WireError> {
        Ok(self.session_attrs().await?.0)
    }

    /// Whether the server is in recovery, and whether transactions are read-only.
    pub(super) async fn session_attrs(&mut self) -> Result<(bool, bool), WireError> {
        let row = self.row(SessionAttrs::QUERY).await?;
        let is_true = |i: usize| row.get(i).and_then(Option::as_deref) == Some("t");
        Ok((is_true(0), is_true(1)))
    }

    /// Sets the session's `wal_sender_timeout`: how long the server keeps the slot for a client that has
    /// gone silent.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn set_wal_sender_timeout(&mut self, timeout: Duration) -> Result<(), WireError> {
        self.row(&format!("SET wal_sender_timeout = '{}ms'", timeout.as_millis())).await.map(|_| ())
    }

    /// Asks for each transaction that passes `bytes` as it is written, where the server can. From now on the
    /// session's `logical_decoding_work_mem` is that.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn stream_above(&mut self, bytes: u64) -> Result<(), WireError> {
        let version = self.value("SELECT pg_catalog.current_setting('server_version_num')").await?;
        let version: i32 = version.parse().map_err(|_| WireError::Protocol {
            what: format!("{version:?} as the server's version"),
        })?;
        let Some((_, protocol)) = STREAMS.iter().find(|(since, _)| version >= *since) else {
            return Ok(());
        };
        self.row(&format!("SET logical_decoding_work_mem = '{}kB'", bytes >> 10)).await?;
        self.protocol = *protocol;
        Ok(())
    }

    /// Lifts `transaction_timeout`, on version 17 and later: the server decodes each transaction in one of its own, which
    /// takes as long as we take to receive it.
    async fn lift_transaction_timeout(&mut self) -> Result<(), WireError> {
        let lift = format!(
            "SELECT coalesce((SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings
             WHERE name {EQ} 'transaction_timeout'), '')"
        );
        self.row(&lift).await.map(|_| ())
    }

    /// Where the WAL left `timeline` for the one that leads to `current`; `None` when it is not one of its
    /// ancestors.
    ///
    /// # Errors
    /// [`WireError`]
    pub async fn left_timeline(
        &mut self,
        timeline: u32,
        current: u32,
    ) -> Result<Option<Lsn>, WireError> {
        let row = self.row(&format!("TIMELINE_HISTORY {current}")).await?;
        let history = row.get(1).and_then(Option::as_deref).unwrap_or_default();
        Ok(parse_history(history, timeline))
    }

    /// Makes `copy` a temporary copy of the slot `from`, which must not be streaming. It belongs to this
    /// connection and vanishes with it.
    ///
    /// # Errors
    /// [`WireError::Session`]: there is no such slot, no slot is free, or the copy exists.
    pub async fn copy_slot(&mut self, from: &str, copy: &str) -> Result<(), WireError> {
        let (from, copy) = (quote('\'', from), quote('\'', copy));
        // Slot names hold no backslash.
        let sql =
            format!("SELECT pg_catalog.pg_copy_logical_replication_slot({from}, {copy}, true)");
        self.row(&sql).await.map(|_| ())
    }

    /// Lets standbys keep `slot`, on version 17 and later.
    ///
    /// # Errors
    /// [`WireError::Session`]: there is no such slot, or it is in use.
    pub async fn set_failover(&mut self, slot: &str) -> Result<(), WireError> {
        let slot = quote('"', slot);
        self.row(&format!("ALTER_REPLICATION_SLOT {slot} (FAILOVER true)")).await.map(|_| ())
    }

    /// Starts streaming from `slot` what `publication` publishes, from `at`.
    ///
    /// A change that takes more than `max_message_bytes` is not read but for its head.
    ///
    /// A position before the slot's own is silently raised to that; one beyond the WAL's end
    /// delivers nothing. So `at` is a position that was received: [`Changes::resume_lsn`], or the
    /// checkpoint.
    ///
    /// [`Changes::resume_lsn`]: walhook_decode::change::Changes::resume_lsn
    ///
    /// # Errors
    /// [`WireError::Start`] where the slot is in use, lost or missing; others as for any command.
    /// That the publication is missing shows only in the stream, with the first change.
    pub async fn start(
        mut self,
        slot: &str,
        publication: &str,
        at: Lsn,
        max_message_bytes: usize,
    ) -> Result<Stream, WireError> {
        self.lift_transaction_timeout().await?;
        let command =
            start_command(slot, publication, at, self.protocol, self.messages, self.binary);
        let begin = async {
            self.connection.send(|out| frontend::query(&command, out)).await?;
            loop {
                match self.connection.receive().await? {
                    Received::CopyBoth => return Ok(()),
                    Received::Message(Message::NoticeResponse(body)) => {
                        let server = ServerError::parse(body.fields()).map_err(malformed)?;
                        self.connection.notice(&server);
                    }
                    other @ (Received::Message(_) | Received::Oversize { .. }) => {
                        return Err(unexpected(&other, WireError::Start));
                    }
                }
            }
        };
        timeout(COMMAND_TIMEOUT, begin).await.map_err(too_slow)??;
        self.connection.limit_messages(max_message_bytes);
        Ok(Stream::new(self.connection, self.protocol))
    }

    async fn value(&mut self, query: &str) -> Result<String, WireError> {
        let mut row = self.row(query).await?.into_iter();
        row.next()
            .flatten()
            .ok_or_else(|| WireError::Protocol { what: format!("no value for {query}") })
    }

    /// Runs a query of our own, which has one row as its result.
    async fn row(&mut self, query: &str) -> Result<Vec<Option<String>>, WireError> {
        let run = async {
            self.connection.send(|out| frontend::query(query, out)).await?;
            let mut row = Vec::new();
            let mut error = None;
            loop {
                match self.connection.receive().await? {
                    Received::Message(Message::DataRow(body)) => row = texts(&body)?,
                    Received::Message(Message::ReadyForQuery(_)) => break,
                    Received::Message(
                        Message::RowDescription(_)
                        | Message::CommandComplete(_)
                        | Message::ParameterStatus(_),
                    ) => {}
                    Received::Message(Message::NoticeResponse(body)) => {
                        let server = ServerError::parse(body.fields()).map_err(malformed)?;
                        self.connection.notice(&server);
                    }
                    // ReadyForQuery follows; a FATAL one is followed by the end of the connection.
                    Received::Message(Message::ErrorResponse(body)) => {
                        let server = ServerError::parse(body.fields()).map_err(malformed)?;
                        if server.severity != "ERROR" {
                            return Err(WireError::Session(server));
                        }
                        error = Some(WireError::Session(server));
                    }
                    other @ (Received::CopyBoth
                    | Received::Message(_)
                    | Received::Oversize { .. }) => {
                        return Err(unexpected(&other, WireError::Session));
                    }
                }
            }
            error.map_or(Ok(row), Err)
        };
        timeout(COMMAND_TIMEOUT, run).await.map_err(too_slow)?
    }
}

/// Shape: a line for each ancestor, the oldest first: its timeline, where it was left, and why, with
/// tabs in between. Others are comments.
///
/// Source: PostgreSQL `src/backend/access/transam/timeline.c`.
fn parse_history(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut fields = line.split('\t');
        let of: u32 = fields.next()?.trim().parse().ok()?;
        if of == timeline { fields.next()?.trim().parse().ok() } else { None }
    })
}

fn too_slow(_: tokio::time::error::Elapsed) -> WireError {
    WireError::Timeout { what: "a replication command", after: COMMAND_TIMEOUT }
}

fn texts(body: &DataRowBody) -> Result<Vec<Option<String>>, WireError> {
    let text = |range: Option<std::ops::Range<usize>>| {
        let bytes = range.and_then(|range| body.buffer().get(range));
        Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
    };
    body.ranges().map(text).collect().map_err(malformed)
}

/// The publication's name is an identifier inside a literal: the option is a list of names.
fn start_command(
    slot: &str,
    publication: &str,
    at: Lsn,
    protocol: Protocol,
    messages: bool,
    binary: bool,
) -> String {
    let version = protocol.version();
    let slot = quote('"', slot);
    let names = quote('\'', &quote('"', publication));
    let messages = if messages { ", messages 'true'" } else { "" };
    let streaming = if protocol.streams() { ", streaming 'on'" } else { "" };
    let binary = if binary { ", binary 'true'" } else { "" };
    format!(
        "START_REPLICATION SLOT {slot} LOGICAL {at} \
         (proto_version '{version}', publication_names {names}{messages}{streaming}{binary})"
    )
}

/// Quotes for the grammar of replication commands, which knows doubling and no backslashes (so
/// `escape_literal`, which turns to `E''`, would not do).
fn quote(mark: char, text: &str) -> String {
    let mut quoted = String::from(mark);
    for c in text.chars() {
        if c == mark {
            quoted.push(mark);
        }
        quoted.push(c);
    }
    quoted.push(mark);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeline_history_says_where_each_ancestor_was_left() {
        let history = "1\t0/3000B70\tno recovery target specified\n\n# a comment\n\
                       3\t1/5000000\tbefore 2026-11-25\n";
        assert_eq!(parse_history(history, 1), Some(Lsn(0x300_0B70)));
        assert_eq!(parse_history(history, 3), Some(Lsn(0x1_0500_0000)));
        assert_eq!(parse_history(history, 2), None);
    }

    #[test]
    fn start_command_quotes_names_for_the_replication_grammar() {
        assert_eq!(
            start_command(
                "walhook",
                r#"it's "a\b", c"#,
                Lsn(0x1_0000_0002),
                Protocol::V1,
                false,
                false
            ),
            r#"START_REPLICATION SLOT "walhook" LOGICAL 1/2 (proto_version '1', publication_names '"it''s ""a\b"", c"')"#
        );
        let with_both = start_command("s", "p", Lsn(0), Protocol::V1, true, true);
        let streams = start_command("s", "p", Lsn(0), Protocol::V4, false, false);
        let options = "(proto_version '4', publication_names '\"p\"', streaming 'on')";
        assert!(streams.ends_with(options), "{streams}");
        assert!(with_both.ends_with(r#"publication_names '"p"', messages 'true', binary 'true')"#));
    }
}
