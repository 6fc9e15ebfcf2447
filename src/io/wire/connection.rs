//! Messages over a socket: framing, a bounded read buffer, a write buffer that survives
//! cancellation.

use std::fmt;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::error::{ServerError, WireError};

/// The longest message that is read. PostgreSQL would send a row of up to 1 GiB; this is 64 times
/// the largest body that is ever delivered, and bounds what one row can make us hold.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What one read asks for: dozens of rows in a system call.
const READ_BYTES: usize = 128 << 10;

/// A buffer grown beyond this for one large message is given back after it.
const KEEP_BYTES: usize = 1 << 20;

/// A server that takes nothing for so long is gone: it reads replies even while its own output
/// waits.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// `W`, which `postgres-protocol` does not parse.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// A socket of any kind.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A message from the server.
pub(super) enum Received {
    /// CopyBothResponse: the stream begins.
    CopyBoth,
    /// Any other.
    Message(Message),
}

/// A connection that speaks messages.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    read: BytesMut,
    write: BytesMut,
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
        Self { socket, read: BytesMut::with_capacity(READ_BYTES), write: BytesMut::new() }
    }

    /// The next message. Cancel-safe: what was read stays in the buffer.
    pub(super) async fn receive(&mut self) -> Result<Received, WireError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.read.reserve(READ_BYTES);
            if self.socket.read_buf(&mut self.read).await.map_err(WireError::Io)? == 0 {
                return Err(WireError::Closed);
            }
        }
    }

    /// The next message, if it is in the buffer as a whole.
    pub(super) fn buffered(&mut self) -> Result<Option<Received>, WireError> {
        let Some(header) = Header::parse(&self.read).map_err(malformed)? else { return Ok(None) };
        // The length counts itself, not the tag.
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX).saturating_add(1);
        if length > MAX_MESSAGE_BYTES {
            return Err(WireError::Oversize {
                bytes: u64::try_from(length).unwrap_or(u64::MAX),
                limit: u64::try_from(MAX_MESSAGE_BYTES).unwrap_or(u64::MAX),
            });
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
        Received::Message(message) => name(message),
    };
    WireError::Protocol { what: format!("{what} in the wrong place") }
}

/// Logs a notice.
pub(super) fn notice(error: &ServerError) {
    tracing::info!(sqlstate = %error.sqlstate, "the server says: {error}");
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
            other @ (Received::CopyBoth | Received::Message(_)) => {
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
    async fn receive_refuses_a_message_that_is_too_long_before_it_holds_it() {
        let (near, mut far) = duplex(64);
        let mut connection = Connection::new(Box::new(near));
        let length = u32::try_from(MAX_MESSAGE_BYTES).unwrap();
        far.write_all(&[b"d", &length.to_be_bytes()[..]].concat()).await.unwrap();
        let Err(WireError::Oversize { bytes, limit }) = connection.receive().await else {
            panic!("read on")
        };
        assert_eq!((bytes, limit), (u64::from(length) + 1, u64::from(length)));
    }

    #[tokio::test]
    async fn receive_gives_a_large_buffer_back_and_keeps_what_follows() {
        let (near, mut far) = duplex(KEEP_BYTES);
        let mut connection = Connection::new(Box::new(near));
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
