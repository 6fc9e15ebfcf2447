//! The head of a message that is too long to be read.

use super::decode::{DELETE, DecodeError, INSERT, LOGICAL, UPDATE, logical_head};
use super::{Message, Protocol};
use walhook_core::event::Operation;

/// Decodes what the beginning of a message of `bytes` says, in a stream that was started with `protocol`:
/// which table's row, and what happened to it.
///
/// Shape: `head` is the message's first bytes, of a row at least its tag (1 byte) and the relation's
/// OID (4 bytes, big-endian). A logical message is [`Message::Ignored`] where it belongs to no
/// transaction, or its prefix reaches beyond the head: no rule's prefix is that long.
///
/// # Errors
/// [`DecodeError::Truncated`], and [`DecodeError::UnknownTag`] for any other message: none of them
/// grows with the data.
///
/// Source: PostgreSQL manual, "Logical Replication Message Formats".
pub fn decode_head(
    protocol: Protocol,
    head: &[u8],
    bytes: u64,
) -> Result<Message<'_>, DecodeError> {
    match protocol {
        Protocol::V1 | Protocol::V2 | Protocol::V4 => decode_head_whole(head, bytes),
    }
}

fn decode_head_whole(head: &[u8], bytes: u64) -> Result<Message<'_>, DecodeError> {
    let (tag, rest) = head.split_first().ok_or(DecodeError::Truncated { field: "tag" })?;
    let operation = match *tag {
        INSERT => Operation::Insert,
        UPDATE => Operation::Update,
        DELETE => Operation::Delete,
        LOGICAL => {
            let message = logical_head(rest)?;
            let oversize = |(lsn, prefix)| Message::OversizeLogical { lsn, prefix, bytes };
            return Ok(message.map_or(Message::Ignored, oversize));
        }
        tag => return Err(DecodeError::UnknownTag(tag)),
    };
    let oid = rest.first_chunk().ok_or(DecodeError::Truncated { field: "relation OID" })?;
    Ok(Message::Oversize { relation: u32::from_be_bytes(*oid), operation, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::lsn::Lsn;

    #[test]
    fn head_of_a_row_names_its_table_and_operation() {
        for (tag, operation) in
            [(b'I', Operation::Insert), (b'U', Operation::Update), (b'D', Operation::Delete)]
        {
            let head = [tag, 0, 0, 1, 2, b'N', 9];
            let message = decode_head(Protocol::V1, &head, 7_000);
            assert_eq!(message, Ok(Message::Oversize { relation: 258, operation, bytes: 7_000 }));
        }
    }

    #[test]
    fn head_of_a_logical_message_has_its_prefix() {
        let message = decode_head(Protocol::V1, b"M\x01\0\0\0\0\0\0\0\x09prefix\0\0\0", 7_000);
        let expected = Message::OversizeLogical { lsn: Lsn(9), prefix: "prefix", bytes: 7_000 };
        assert_eq!(message, Ok(expected));
    }

    #[test]
    fn head_of_any_other_message_is_ignored_or_refused() {
        assert_eq!(
            decode_head(Protocol::V1, b"M\0\0\0\0\0\0\0\0\x09p\0\0", 7),
            Ok(Message::Ignored)
        );
        assert_eq!(
            decode_head(Protocol::V1, b"M\x01\0\0\0\0\0\0\0\x09prefix", 7),
            Ok(Message::Ignored)
        );
        let truncated = Err(DecodeError::Truncated { field: "message flags" });
        assert_eq!(decode_head(Protocol::V1, b"M", 7), truncated);
        assert_eq!(decode_head(Protocol::V1, b"R", 7), Err(DecodeError::UnknownTag(b'R')));
        assert_eq!(
            decode_head(Protocol::V1, b"I\x00", 7),
            Err(DecodeError::Truncated { field: "relation OID" })
        );
        assert_eq!(decode_head(Protocol::V1, b"", 7), Err(DecodeError::Truncated { field: "tag" }));
    }
}
