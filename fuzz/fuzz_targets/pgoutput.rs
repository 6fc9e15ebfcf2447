//! One pgoutput message of any bytes: an error or a message, never a panic. Its beginning, read alone
//! as that of a message that is too long, agrees with it. What is said of transactions that are open is told
//! from all else.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhook_decode::pgoutput::{
    DecodeError, Message, Protocol, decode, decode_block, decode_head, split_in_block,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(_)) = decode_block(bytes) {
        assert!(matches!(decode(Protocol::V4, bytes), Err(DecodeError::UnknownTag(_))));
    }
    if let Ok((tag, _, body)) = split_in_block(bytes) {
        assert_eq!((bytes[0], &bytes[5..]), (tag, body));
    }
    assert_eq!(decode(Protocol::V4, bytes), decode(Protocol::V1, bytes));
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
