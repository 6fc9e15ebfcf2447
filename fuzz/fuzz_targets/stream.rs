//! What a server may send once the stream has begun: bytes become frames, messages and steps. Whatever
//! the bytes are, and however they are cut into reads, the frames are the same, and nothing panics.

#![no_main]

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf, join, sink};
use walhook_decode::change::Changes;
use walhook_core::lsn::Lsn;
use walhook_decode::pgoutput::{Protocol, decode, decode_head};
use walhook_postgres::wire::{Frame, Stream};

/// Reads so many bytes at a time.
struct Cut {
    bytes: Vec<u8>,
    at: usize,
    size: usize,
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let size = self.size.min(out.remaining()).min(self.bytes.len() - self.at);
        out.put_slice(&self.bytes[self.at..self.at + size]);
        self.at += size;
        Poll::Ready(Ok(()))
    }
}

/// The frames until the first error, or the end.
fn frames(bytes: &[u8], size: usize) -> Vec<Frame> {
    let socket = join(Cut { bytes: bytes.to_vec(), at: 0, size }, sink());
    let mut stream = Stream::over(socket, 1 << 20, Protocol::V1);
    let mut frames = Vec::new();
    while let Some(Ok(frame)) = stream.next().now_or_never() {
        frames.push(frame);
    }
    frames
}

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let frames = self::frames(bytes, usize::MAX);
    assert_eq!(frames, self::frames(bytes, usize::from(*size).max(1)));
    let mut changes = Changes::new(Lsn::ZERO);
    for frame in &frames {
        let (at, message) = match frame {
            Frame::XLogData { wal_start, payload, .. } => (*wal_start, decode(Protocol::V1, payload)),
            Frame::Oversize { wal_start, head, bytes, .. } => {
                (*wal_start, decode_head(Protocol::V1, head, *bytes))
            }
            Frame::Keepalive { .. } => continue,
        };
        if message.is_ok_and(|message| changes.handle(at, message).is_err()) {
            changes.handle_reconnected();
        }
    }
});
