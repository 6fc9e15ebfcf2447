//! Messages over a socket: framing, a bounded read buffer, a write buffer that survives cancellation.

use std::fmt;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::error::{ServerError, WireError};

/// The longest message that is read. A row's text output can be four times the 1 GiB that memory is
/// planned for; 64 MiB is 64 times the largest body that is ever sent, and a bound on the buffer.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What one read asks for: dozens of rows in a system call.
const READ_BYTES: usize = 128 << 10;

/// A buffer grown beyond this for one large message is given back after it.
const KEEP_BYTES: usize = 1 << 20;

/// A server that takes nothing for so long is gone: it reads replies even while its own output waits.
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
