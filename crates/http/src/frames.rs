//! What an HTTP/2 receiver sends, frame by frame: how much of it, not what it says.
//!
//! The HTTP/2 library decodes frames and keeps the protocol's rules; it answers a PING with a PING for
//! as long as they come, skips informational answers without end, and holds a header block until its
//! end. So the frames that a connection carries are counted against what its requests may bring back.
//!
//! Source: RFC 9113, sections 3.4, 4.1, 6 and 10.5.

/// Before any request: settings, pings, a preface in small pieces.
const FRAMES_FIRST: u32 = 1_024;

/// For each request: its answer's headers, some fifty frames of body, trailers, window updates, pings.
const FRAMES_A_REQUEST: u32 = 256;

/// For each frame of a request's body: the window updates that it causes.
const FRAMES_A_BODY_FRAME: u32 = 4;

/// What may be left over from earlier requests.
const FRAMES_MAX: u32 = 16_384;

/// For each request: sixteen informational answers, the final one, and trailers.
const HEADERS_A_REQUEST: u32 = 18;

/// What may be left over from earlier requests.
const HEADERS_MAX: u32 = 4_608;

/// What precedes the first frame of a client.
const PREFACE: usize = 24;

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const HTTP_1_1_REQUIRED: [u8; 4] = [0, 0, 0, 0xd];

/// The receiver sends more than its answers need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Frames without end.
    #[error("the receiver sends more HTTP/2 frames than its answers need")]
    Frames,
    /// Informational answers without end.
    #[error("more informational (1xx) answers before a final one than walhook reads")]
    Headers,
}

/// One direction's frames.
#[derive(Debug, Clone, Default)]
struct Scanner {
    /// Bytes to skip before the next frame.
    skip: usize,
    head: [u8; HEAD],
    /// Bytes of [`Self::head`] that have come.
    have: usize,
}

/// A frame whose head has come, and the part of its payload that came with it.
#[derive(Debug, Clone, Copy)]
struct Frame<'a> {
    len: usize,
    kind: u8,
    flags: u8,
    begun: &'a [u8],
}

impl Scanner {
    /// The next frame of which the head ends in `bytes`, and what is left of them.
    fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Frame<'a>> {
        let (_, rest) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= bytes.len() - rest.len();
        let (head, rest) = rest.split_at((HEAD - self.have).min(rest.len()));
        for (to, from) in self.head.iter_mut().skip(self.have).zip(head) {
            *to = *from;
        }
        self.have += head.len();
        *bytes = rest;
        if self.have < HEAD {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, ..] = self.head;
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.skip = len;
        let (begun, _) = rest.split_at(len.min(rest.len()));
        Some(Frame { len, kind, flags, begun })
    }
}

/// The frames of one connection, in both directions.
#[derive(Debug, Clone)]
pub struct Frames {
    sent: Scanner,
    received: Scanner,
    frames_left: u32,
    headers_left: u32,
    /// Bytes of a header block that is not at its end, beyond its first frame.
    block: usize,
    /// Header blocks that have begun: one for each answer, informational ones too.
    answers: u64,
    goes_away: bool,
    wants_http1: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            sent: Scanner { skip: PREFACE, ..Scanner::default() },
            received: Scanner::default(),
            frames_left: FRAMES_FIRST,
            headers_left: 0,
            block: 0,
            answers: 0,
            goes_away: false,
            wants_http1: false,
        }
    }
}

impl Frames {
    /// Takes what is sent. Returns the requests that begin in it.
    pub fn sent(&mut self, mut bytes: &[u8]) -> u32 {
        let mut requests = 0;
        while let Some(Frame { kind, .. }) = self.sent.next(&mut bytes) {
            match kind {
                HEADERS => {
                    requests += 1;
                    self.frames_left = (self.frames_left + FRAMES_A_REQUEST).min(FRAMES_MAX);
                    self.headers_left = (self.headers_left + HEADERS_A_REQUEST).min(HEADERS_MAX);
                }
                DATA => {
                    self.frames_left = (self.frames_left + FRAMES_A_BODY_FRAME).min(FRAMES_MAX);
                }
                // Answers to pings and settings allow for nothing more.
                _ => {}
            }
        }
        requests
    }

    /// Takes what was received.
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn received(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while let Some(Frame { len, kind, flags, begun }) = self.received.next(&mut bytes) {
            self.frames_left = self.frames_left.checked_sub(1).ok_or(FrameError::Frames)?;
            match kind {
                HEADERS => {
                    self.headers_left =
                        self.headers_left.checked_sub(1).ok_or(FrameError::Headers)?;
                    self.answers += 1;
                    self.block = 0;
                }
                CONTINUATION if flags & END_HEADERS != 0 => self.block = 0,
                CONTINUATION => self.block = self.block.saturating_add(len),
                GOAWAY => {
                    self.goes_away = true;
                    self.wants_http1 |= begun.get(4..8) == Some(&HTTP_1_1_REQUIRED);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Bytes that are held of a header block that is not at its end, beyond its first frame.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.block
    }

    /// Answers that have begun, informational ones too.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Whether the receiver has said that it takes no more requests on this connection.
    #[must_use]
    pub fn goes_away(&self) -> bool {
        self.goes_away
    }

    /// Whether it has said that it wants HTTP/1.1 instead.
    #[must_use]
    pub fn wants_http1(&self) -> bool {
        self.wants_http1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn requests(n: usize) -> Vec<u8> {
        [vec![b'P'; PREFACE], frame(4, 0, &[0; 6]), frame(HEADERS, 5, b"h").repeat(n)].concat()
    }

    #[test]
    fn frames_are_counted_against_the_requests_that_were_sent() {
        let mut frames = Frames::default();
        assert_eq!(frames.sent(&requests(3)), 3);
        let ping = frame(6, 0, &[0; 8]);
        frames.received(&ping.repeat(1_024 + 3 * 256)).unwrap();
        assert_eq!(frames.sent(&frame(6, 1, &[0; 8]).repeat(2_000)), 0, "answers to pings");
        assert_eq!(frames.clone().received(&ping), Err(FrameError::Frames));
        assert_eq!(frames.sent(&frame(DATA, 0, &[0; 900])), 0);
        frames.received(&frame(8, 0, &[0; 4]).repeat(4)).unwrap();
        assert_eq!(frames.received(&ping), Err(FrameError::Frames));
    }

    #[test]
    fn frames_of_informational_answers_are_bounded() {
        let mut frames = Frames::default();
        frames.sent(&requests(2));
        frames.received(&frame(HEADERS, 4, b"103").repeat(36)).unwrap();
        assert_eq!(frames.answers(), 36);
        assert_eq!(frames.received(&frame(HEADERS, 4, b"103")), Err(FrameError::Headers));
    }

    #[test]
    fn frames_tell_how_much_of_a_header_block_is_held() {
        let mut frames = Frames::default();
        frames.sent(&requests(1));
        frames.received(&frame(HEADERS, 0, &[0; 100])).unwrap();
        frames.received(&frame(CONTINUATION, 0, &[0; 1_000]).repeat(7)).unwrap();
        assert_eq!(frames.block_bytes(), 7_000);
        frames.received(&frame(CONTINUATION, END_HEADERS, &[0; 10])).unwrap();
        assert_eq!(frames.block_bytes(), 0);
        frames.received(&frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).unwrap();
        assert!(frames.goes_away() && !frames.wants_http1());
        frames.received(&frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 0xd])).unwrap();
        assert!(frames.wants_http1());
    }

    proptest! {
        #[test]
        fn frames_are_the_same_however_their_bytes_are_cut(
            kinds in proptest::collection::vec((0u8..12, 0u8..8, 0usize..40), 0..40),
            piece in 1usize..60,
        ) {
            let bytes: Vec<u8> = kinds
                .iter()
                .flat_map(|(kind, flags, len)| frame(*kind, *flags, &vec![7; *len]))
                .collect();
            let (mut whole, mut cut) = (Frames::default(), Frames::default());
            let sent = [requests(1), bytes.clone()].concat();
            let in_pieces: u32 = sent.chunks(piece).map(|bytes| cut.sent(bytes)).sum();
            prop_assert_eq!(whole.sent(&sent), in_pieces);
            let fails = whole.received(&bytes).is_err();
            let cut_fails = bytes.chunks(piece).any(|bytes| cut.received(bytes).is_err());
            prop_assert_eq!(fails, cut_fails);
            if !fails {
                prop_assert_eq!(whole.block_bytes(), cut.block_bytes());
                prop_assert_eq!((whole.frames_left, whole.headers_left), (cut.frames_left, cut.headers_left));
            }
        }
    }
}
