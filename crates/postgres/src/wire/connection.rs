//! Messages over a socket: framing, a bounded read buffer, a write buffer that survives
//! cancellation.

use std::fmt;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::error::{ServerError, WireError};
use super::notices::Notices;
use crate::pg::Socket;

/// The longest message that is read before the stream, where nothing large comes: what a server that
/// is none could make us hold.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// What is kept of the body of a CopyData that is too long: enough to say where it stands in the WAL
/// and what it is about.
const HEAD_BYTES: usize = 1 << 10;

/// What one read asks for: dozens of rows in a system call.
const READ_BYTES: usize = 128 << 10;

/// A buffer grown beyond this for one large message is given back after it.
const KEEP_BYTES: usize = 1 << 20;

/// Tag and length of a message.
const FRAMING_BYTES: usize = 5;

/// A server that takes nothing for so long is gone: it reads replies even while its own output
/// waits.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A CopyData: of the stream, the one message that may be long.
const COPY_DATA_TAG: u8 = b'd';

/// `W`, which `postgres-protocol` does not parse.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// A message from the server.
pub(super) enum Received {
    /// CopyBothResponse: the stream begins.
    CopyBoth,
    /// Any other.
    Message(Message),
    /// A CopyData that is longer than what is read. The rest of it is discarded as it comes.
    Oversize {
        /// The beginning of its body.
        head: Bytes,
        /// The body's length.
        bytes: u64,
    },
}

/// A connection that speaks messages.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    read: BytesMut,
    write: BytesMut,
    /// The longest message that is read.
    limit: usize,
    /// What is still to come of a message that is discarded.
    discard: usize,
    /// All that was ever read from the socket.
    bytes_read: u64,
    notices: Notices,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("read_bytes", &self.read.len())
            .field("write_bytes", &self.write.len())
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(socket: Box<dyn Socket>) -> Self {
        Self {
            socket,
            read: BytesMut::with_capacity(READ_BYTES),
            write: BytesMut::new(),
            limit: MAX_MESSAGE_BYTES,
            discard: 0,
            bytes_read: 0,
            notices: Notices::default(),
        }
    }

    /// Logs a notice, unless the log has it.
    pub(super) fn notice(&mut self, error: &ServerError) {
        self.notices.tell(error);
    }

    /// From now on reads messages of up to `bytes`, and discards a CopyData that is longer.
    pub(super) fn limit_messages(&mut self, bytes: usize) {
        self.limit = bytes.max(MAX_MESSAGE_BYTES);
    }

    /// How many bytes were ever read: grows also while a message is incomplete.
    pub(super) const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The next message. Cancel-safe: what was read stays in the buffer.
    pub(super) async fn receive(&mut self) -> Result<Received, WireError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.read.reserve(READ_BYTES);
            let count = self.socket.read_buf(&mut self.read).await.map_err(WireError::Io)?;
            if count == 0 {
                return Err(WireError::Closed);
            }
            self.bytes_read += u64::try_from(count).unwrap_or(u64::MAX);
        }
    }

    /// The next message, if it is in the buffer as a whole.
    pub(super) fn buffered(&mut self) -> Result<Option<Received>, WireError> {
        let discarded = self.discard.min(self.read.len());
        self.read.advance(discarded);
        self.discard -= discarded;
        let Some(header) = Header::parse(&self.read).map_err(malformed)? else { return Ok(None) };
        // The length counts itself, not the tag.
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX).saturating_add(1);
        if length > self.limit {
            return self.oversize(header.tag(), length);
        }
        if self.read.len() < length {
            return Ok(None);
        }
        let received = if header.tag() == COPY_BOTH_RESPONSE_TAG {
            self.read.advance(length);
            Some(Received::CopyBoth)
        } else {
            Message::parse(&mut self.read).map_err(malformed)?.map(Received::Message)
        };
        if length > KEEP_BYTES {
            self.read = BytesMut::from(&self.read[..]);
        }
        Ok(received)
    }

    /// The beginning of a CopyData that is longer than the limit, as soon as it is there.
    fn oversize(&mut self, tag: u8, length: usize) -> Result<Option<Received>, WireError> {
        let bytes = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        if tag != COPY_DATA_TAG {
            return Err(WireError::Oversize { bytes: bytes(length), limit: bytes(self.limit) });
        }
        let head = FRAMING_BYTES + HEAD_BYTES;
        if self.read.len() < head {
            return Ok(None);
        }
        let head = self.read.split_to(head);
        self.discard = length - head.len();
        let head = Bytes::copy_from_slice(head.get(FRAMING_BYTES..).unwrap_or_default());
        Ok(Some(Received::Oversize { head, bytes: bytes(length - FRAMING_BYTES) }))
    }

    /// Sends what `encode` appends. Cancel-safe: what was not written goes out with the next.
    pub(super) async fn send(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), WireError> {
        encode(&mut self.write).map_err(malformed)?;
        let write = async {
            self.socket.write_all_buf(&mut self.write).await?;
            self.socket.flush().await
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(written) => written.map_err(WireError::Io),
            Err(_) => {
                Err(WireError::Timeout { what: "sending to the server", after: WRITE_TIMEOUT })
            }
        }
    }
}

/// Reports bytes that are not the message they claim to be.
pub(super) fn malformed(error: std::io::Error) -> WireError {
    WireError::Protocol { what: error.to_string() }
}

/// Reports a message in the wrong place, or the server's own error.
pub(super) fn unexpected(received: &Received, server: fn(ServerError) -> WireError) -> WireError {
    let what = match received {
        Received::Message(Message::ErrorResponse(body)) => {
            return ServerError::parse(body.fields()).map_or_else(malformed, server);
        }
        Received::CopyBoth => "CopyBothResponse",
        Received::Oversize { .. } => "a long CopyData",
        Received::Message(message) => name(message),
    };
    WireError::Protocol { what: format!("{what} in the wrong place") }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is non-exhaustive, the name is for logs"
)]
fn name(message: &Message) -> &'static str {
    match message {
        Message::CopyData(_) => "CopyData",
        Message::CopyDone => "CopyDone",
        Message::CommandComplete(_) => "CommandComplete",
        Message::DataRow(_) => "DataRow",
        Message::ReadyForQuery(_) => "ReadyForQuery",
        Message::RowDescription(_) => "RowDescription",
        Message::AuthenticationOk => "AuthenticationOk",
        _ => "another message",
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::duplex;

    use super::*;

    fn copy_data(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [b"d", &length.to_be_bytes()[..], body].concat()
    }

    fn body(received: &Received) -> Vec<u8> {
        match received {
            Received::Message(Message::CopyData(body)) => body.data().to_vec(),
            other @ (Received::CopyBoth | Received::Message(_) | Received::Oversize { .. }) => {
                panic!("{}", unexpected(other, WireError::Stream))
            }
        }
    }

    #[tokio::test]
    async fn receive_loses_nothing_when_it_is_cancelled_after_every_byte() {
        let (near, mut far) = duplex(1);
        let mut connection = Connection::new(Box::new(near));
        let bodies = [&b"one"[..], b"", b"three"];
        let mut found = Vec::new();
        for byte in bodies.iter().flat_map(|body| copy_data(body)) {
            far.write_all(&[byte]).await.unwrap();
            if let Some(received) = connection.receive().now_or_never() {
                found.push(body(&received.unwrap()));
            }
        }
        assert_eq!(found, bodies);
        drop(far);
        assert!(matches!(connection.receive().await, Err(WireError::Closed)));
    }

    #[tokio::test]
    async fn send_loses_nothing_when_it_is_cancelled() {
        let (near, mut far) = duplex(4);
        let mut connection = Connection::new(Box::new(near));
        let put = |text: &'static [u8]| {
            move |out: &mut BytesMut| {
                out.extend_from_slice(text);
                Ok(())
            }
        };
        assert!(connection.send(put(b"first, ")).now_or_never().is_none());
        let mut found = vec![0; 13];
        let (sent, read) =
            tokio::join!(connection.send(put(b"second")), far.read_exact(&mut found));
        sent.unwrap();
        read.unwrap();
        assert_eq!(found, b"first, second");
    }

    #[tokio::test]
    async fn receive_discards_a_long_copy_data_as_it_comes_and_keeps_its_head_and_what_follows() {
        let (near, mut far) = duplex(KEEP_BYTES);
        let mut connection = Connection::new(Box::new(near));
        connection.limit_messages(2 * MAX_MESSAGE_BYTES);
        let fits = vec![1; 2 * MAX_MESSAGE_BYTES - FRAMING_BYTES];
        let long = [&[2; HEAD_BYTES][..], &vec![3; 20 * MAX_MESSAGE_BYTES]].concat();
        let all = [copy_data(&fits), copy_data(&long), copy_data(b"next")].concat();
        let feed = async {
            far.write_all(&all).await.unwrap();
        };
        let receive = async {
            assert_eq!(body(&connection.receive().await.unwrap()), fits);
            let Received::Oversize { head, bytes } = connection.receive().await.unwrap() else {
                panic!("read in full")
            };
            assert_eq!(&head[..], [2; HEAD_BYTES]);
            assert_eq!(bytes, u64::try_from(long.len()).unwrap());
            assert_eq!(body(&connection.receive().await.unwrap()), b"next");
            assert!(connection.read.capacity() < KEEP_BYTES, "{}", connection.read.capacity());
        };
        tokio::join!(feed, receive);
        assert_eq!(connection.bytes_read(), u64::try_from(all.len()).unwrap());
    }

    #[tokio::test]
    async fn receive_refuses_any_other_message_that_is_too_long_before_it_holds_it() {
        let (near, mut far) = duplex(64);
        let mut connection = Connection::new(Box::new(near));
        let length = u32::try_from(MAX_MESSAGE_BYTES).unwrap();
        far.write_all(&[b"E", &length.to_be_bytes()[..]].concat()).await.unwrap();
        let Err(WireError::Oversize { bytes, limit }) = connection.receive().await else {
            panic!("read on")
        };
        assert_eq!((bytes, limit), (u64::from(length) + 1, u64::from(length)));
    }

    #[tokio::test]
    async fn receive_gives_a_large_buffer_back_and_keeps_what_follows() {
        let (near, mut far) = duplex(KEEP_BYTES);
        let mut connection = Connection::new(Box::new(near));
        connection.limit_messages(KEEP_BYTES * 4);
        let large = vec![7; KEEP_BYTES * 2];
        let both = [copy_data(&large), copy_data(b"next")].concat();
        let feed = async {
            far.write_all(&both).await.unwrap();
        };
        let receive = async {
            assert_eq!(body(&connection.receive().await.unwrap()), large);
            assert!(connection.read.capacity() < KEEP_BYTES, "{}", connection.read.capacity());
            assert_eq!(body(&connection.receive().await.unwrap()), b"next");
        };
        tokio::join!(feed, receive);
    }
}
