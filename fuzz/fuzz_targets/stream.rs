//! What a server may send once the stream has begun: bytes become frames, messages and steps, also of
//! transactions that are received while they are open. Whatever the bytes are, and however they are cut into
//! reads, the frames are the same, and nothing panics.

#![no_main]

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf, join, sink};
use walhook_decode::change::Changes;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_decode::pgoutput::{Protocol, decode, decode_head};
use walhook_decode::streamed::{OpenTransactions, Payload, Play, Settings, Taken};
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

/// As the reader does it where open transactions are streamed, with all that has committed played at once.
fn streamed(frames: &[Frame]) {
    let prefixes = vec!["p".to_owned()];
    let mut open = OpenTransactions::new(Settings { memory_bytes: 1 << 20, spool: false, prefixes });
    let mut changes = Changes::new(Lsn::ZERO);
    for frame in frames {
        let (at, payload) = match frame {
            Frame::XLogData { wal_start, payload, .. } => (*wal_start, Payload::Whole(payload)),
            Frame::Oversize { wal_start, head, bytes, .. } => {
                (*wal_start, Payload::Oversize { head, bytes: *bytes })
            }
            Frame::Keepalive { .. } => continue,
        };
        let failed = match open.handle(Tick(0), at, payload) {
            Err(_) | Ok(Taken::Unclear { .. }) => true,
            Ok(Taken::Passed | Taken::Kept(_)) => false,
            Ok(Taken::Live) => live(&mut changes, at, payload),
            Ok(Taken::Committed(committed)) => {
                match changes.handle_streamed(committed.transaction, committed.end_lsn) {
                    Err(_) => {
                        open.forget_committed();
                        true
                    }
                    Ok(None) => {
                        open.forget_committed();
                        false
                    }
                    Ok(Some(ours)) => {
                        for message in &committed.described {
                            live(&mut changes, Lsn::ZERO, Payload::Whole(message));
                        }
                        changes.begin_play(ours);
                        while let Play::Record(record) = open.play().expect("nothing is in a file") {
                            let message = match record.oversize {
                                None => decode(Protocol::V1, &record.payload),
                                Some(bytes) => decode_head(Protocol::V1, &record.payload, bytes),
                            };
                            if let Ok(message) = message {
                                let _ = changes.play(record.wal_start, message);
                            }
                        }
                        changes.end_play().is_none()
                    }
                }
            }
        };
        if failed {
            open.handle_reconnected();
            changes.handle_reconnected();
        }
    }
}

/// Takes a message that stands outside of blocks. Whether the stream cannot go on behind it.
fn live(changes: &mut Changes, at: Lsn, payload: Payload<'_>) -> bool {
    let message = match payload {
        Payload::Whole(bytes) => decode(Protocol::V4, bytes),
        Payload::Oversize { head, bytes } => decode_head(Protocol::V4, head, bytes),
    };
    message.is_ok_and(|message| changes.handle(at, message).is_err())
}

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let frames = self::frames(bytes, usize::MAX);
    assert_eq!(frames, self::frames(bytes, usize::from(*size).max(1)));
    streamed(&frames);
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
