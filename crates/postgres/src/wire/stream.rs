//! The stream of a started replication: frames in, status updates out.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::backend::{Message, NoticeResponseBody};
use postgres_protocol::message::frontend::CopyData;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, Received, malformed, unexpected};
use super::error::{OBJECT_NOT_IN_PREREQUISITE_STATE, ServerError, WireError};
use crate::feedback::StatusUpdate;
use walhook_core::lsn::Lsn;
use walhook_decode::pgoutput::{PG_EPOCH_US, Protocol};
use walhook_process::clock::unix_us;

const XLOG_DATA: u8 = b'w';
const KEEPALIVE: u8 = b'k';
const STATUS_UPDATE: u8 = b'r';

/// Start and end LSN and the time, behind the tag.
const XLOG_DATA_HEADER_BYTES: usize = 24;
/// End LSN, time and the request.
const KEEPALIVE_BYTES: usize = 17;

/// What the server sends in the stream.
///
/// Source: PostgreSQL manual, "Streaming Replication Protocol".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// One pgoutput message.
    XLogData {
        /// The LSN of the change; 0/0 for a RELATION.
        wal_start: Lsn,
        /// How far the server has sent; of logical replication, the same as `wal_start`.
        wal_end: Lsn,
        /// The message. A slice of the read buffer, all of which it keeps in memory: copy out what
        /// stays.
        payload: Bytes,
    },
    /// One pgoutput message that is longer than what is read.
    Oversize {
        /// As of `XLogData`.
        wal_start: Lsn,
        /// As of `XLogData`.
        wal_end: Lsn,
        /// Its beginning, long enough for [`decode_head`](walhook_decode::pgoutput::decode_head).
        head: Bytes,
        /// Its length.
        bytes: u64,
    },
    /// The server says where it is, and that it is there.
    Keepalive {
        /// How far the server has sent; everything committed before it was.
        wal_end: Lsn,
        /// Whether it wants a status update at once.
        reply_requested: bool,
    },
}

/// A started replication. Ends, and frees the slot within milliseconds, when dropped.
#[derive(Debug)]
pub struct Stream {
    connection: Connection,
    protocol: Protocol,
}

impl Stream {
    pub(super) const fn new(connection: Connection, protocol: Protocol) -> Self {
        Self { connection, protocol }
    }

    /// What it was started with: its messages are decoded by that.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// A stream that has begun on some other socket: for what feeds us bytes of its own. A CopyData
    /// of more than `limit` bytes, and of more than a mebibyte, is passed as [`Frame::Oversize`].
    pub fn over(
        socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        limit: usize,
        protocol: Protocol,
    ) -> Self {
        let mut connection = Connection::new(Box::new(socket));
        connection.limit_messages(limit);
        Self::new(connection, protocol)
    }

    /// The next frame. Cancel-safe.
    ///
    /// # Errors
    /// [`WireError::Ended`] when the server ends the stream in order, [`WireError::Stream`] with
    /// its own error, [`WireError::PublicationSkipped`], or the connection's. The stream is of no
    /// use then.
    pub async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            let received = self.connection.receive().await?;
            if let Some(frame) = self.frame(received)? {
                return Ok(frame);
            }
        }
    }

    /// The next frame, if it has arrived already, without reading from the socket.
    ///
    /// # Errors
    /// As [`Stream::next`].
    pub fn try_next(&mut self) -> Result<Option<Frame>, WireError> {
        while let Some(received) = self.connection.buffered()? {
            if let Some(frame) = self.frame(received)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// How many bytes were read: grows also in the middle of a message that takes its time.
    #[must_use]
    pub const fn bytes_read(&self) -> u64 {
        self.connection.bytes_read()
    }

    /// Tells the server of our progress. Cancel-safe: what was not written goes out with the next.
    ///
    /// # Errors
    /// When the socket breaks, or takes nothing for some seconds.
    pub async fn send_status(&mut self, update: StatusUpdate) -> Result<(), WireError> {
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(STATUS_UPDATE);
        body.put_u64(update.write.0);
        body.put_u64(update.flush.0);
        // Applied is what is flushed: nobody reads our results as they would a standby's.
        body.put_u64(update.flush.0);
        body.put_i64(unix_us().saturating_sub(PG_EPOCH_US));
        body.put_u8(u8::from(update.request_reply));
        self.connection.send(|out| CopyData::new(body).map(|copy| copy.write(out))).await
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the enum is non-exhaustive; the rest is refused"
    )]
    fn frame(&mut self, received: Received) -> Result<Option<Frame>, WireError> {
        let message = match received {
            Received::Message(message) => message,
            Received::Oversize { head, bytes } => return parse_head(head, bytes).map(Some),
            other @ Received::CopyBoth => return Err(unexpected(&other, WireError::Stream)),
        };
        match message {
            Message::CopyData(body) => parse(body.into_bytes()).map(Some),
            Message::NoticeResponse(body) => self.read_notice(&body).map(|()| None),
            Message::ParameterStatus(_) => Ok(None),
            Message::CopyDone | Message::CommandComplete(_) => Err(WireError::Ended),
            other => Err(unexpected(&Received::Message(other), WireError::Stream)),
        }
    }

    /// PostgreSQL 18 only warns that it leaves out a publication that is younger than the slot, and
    /// then leaves out its rows.
    fn read_notice(&mut self, body: &NoticeResponseBody) -> Result<(), WireError> {
        let server = ServerError::parse(body.fields()).map_err(malformed)?;
        // Other parts of the server warn with the same code: of a standby that a slot waits for, say.
        if server.sqlstate == OBJECT_NOT_IN_PREREQUISITE_STATE && &*server.file == PGOUTPUT {
            return Err(WireError::PublicationSkipped(server));
        }
        self.connection.notice(&server);
        Ok(())
    }
}

/// The source file of the output plugin, as the server names it.
const PGOUTPUT: &str = "pgoutput.c";

/// Reads the head of an XLogData of `bytes`, header included.
fn parse_head(head: Bytes, bytes: u64) -> Result<Frame, WireError> {
    match parse(head)? {
        Frame::XLogData { wal_start, wal_end, payload } => {
            let header = u64::try_from(XLOG_DATA_HEADER_BYTES + 1).unwrap_or(u64::MAX);
            let bytes = bytes.saturating_sub(header);
            Ok(Frame::Oversize { wal_start, wal_end, head: payload, bytes })
        }
        frame @ (Frame::Oversize { .. } | Frame::Keepalive { .. }) => Ok(frame),
    }
}

fn parse(mut bytes: Bytes) -> Result<Frame, WireError> {
    let protocol = |what: &str| WireError::Protocol { what: what.to_owned() };
    let tag = bytes.try_get_u8().map_err(|_| protocol("an empty CopyData"))?;
    match tag {
        XLOG_DATA if bytes.len() >= XLOG_DATA_HEADER_BYTES => {
            let (wal_start, wal_end) = (Lsn(bytes.get_u64()), Lsn(bytes.get_u64()));
            bytes.advance(8);
            Ok(Frame::XLogData { wal_start, wal_end, payload: bytes })
        }
        KEEPALIVE if bytes.len() == KEEPALIVE_BYTES => {
            let wal_end = Lsn(bytes.get_u64());
            bytes.advance(8);
            Ok(Frame::Keepalive { wal_end, reply_requested: bytes.get_u8() != 0 })
        }
        XLOG_DATA => Err(protocol("an XLogData message without its header")),
        KEEPALIVE => Err(protocol("a keepalive of another length")),
        _ => Err(protocol("a message in the stream that is neither XLogData nor keepalive")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frame_parse_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(Bytes::from(bytes));
        }
    }

    #[test]
    fn frame_parse_reads_both_kinds() {
        let mut data = vec![b'w'];
        data.extend([1u64, 2, 3].iter().flat_map(|n| n.to_be_bytes()));
        data.push(b'B');
        let payload = Bytes::from_static(b"B");
        let expected = Frame::XLogData { wal_start: Lsn(1), wal_end: Lsn(2), payload };
        assert_eq!(parse(Bytes::from(data.clone())).unwrap(), expected);

        let head = Bytes::copy_from_slice(&[&data[..25], b"Irest"].concat());
        let payload = Bytes::from_static(b"Irest");
        let expected =
            Frame::Oversize { wal_start: Lsn(1), wal_end: Lsn(2), head: payload, bytes: 975 };
        assert_eq!(parse_head(head, 1_000).unwrap(), expected);

        let mut keepalive = vec![b'k'];
        keepalive.extend([5u64, 0].iter().flat_map(|n| n.to_be_bytes()));
        assert!(parse(Bytes::from(keepalive.clone())).is_err());
        keepalive.push(1);
        let expected = Frame::Keepalive { wal_end: Lsn(5), reply_requested: true };
        assert_eq!(parse(Bytes::from(keepalive)).unwrap(), expected);
    }
}
