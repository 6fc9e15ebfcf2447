//! One frame of the bus, of any bytes: an error or a frame, never a panic. What is read is within its bounds, and is
//! the same when it is written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook_fleet::frame::{Frame, Header, SPOKEN, Versions};

fuzz_target!(|bytes: &[u8]| {
    let both = Versions { oldest: SPOKEN.oldest, newest: SPOKEN.newest + 1 };
    let Ok(frame) = Frame::decode(bytes.to_vec().into(), both) else { return };
    let header = Header::read(bytes).expect("a frame has a header");
    assert_eq!((header.epoch, header.session, header.seq), (frame.epoch, frame.session, frame.seq));
    assert_eq!(Frame::decode(frame.encode(), both).as_ref(), Ok(&frame));
});
