//! One pgoutput message of any bytes: an error or a message, never a panic. Its beginning, read alone
//! as that of a message that is too long, agrees with it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook_decode::pgoutput::{Message, Protocol, decode, decode_head};

fuzz_target!(|bytes: &[u8]| {
    let head = decode_head(Protocol::V1, bytes, 1 << 30);
    let table = match decode(Protocol::V1, bytes) {
        Ok(
            Message::Insert { relation, .. }
            | Message::Update { relation, .. }
            | Message::Delete { relation, .. },
        ) => relation,
        Ok(_) | Err(_) => return,
    };
    match head {
        Ok(Message::Oversize { relation, .. }) => assert_eq!(relation, table),
        other => panic!("{other:?}"),
    }
});
