//! Text as the state database can hold it: the one place that everything passes on its way there.
//!
//! What comes from outside (accounts, endpoint ids, answers, names) is Unicode, and no server holds all of
//! that: none has NUL, and one whose encoding is not UTF8 lacks most characters. What it lacks is written
//! as `&#x…;`, the code point in hexadecimal, which is ASCII and changes nothing in JSON. So different
//! texts stay different, and [`read`] gives each back as it was, in whatever encoding it was written.
//! NUL becomes U+FFFD.
//!
//! [`Storable`] does this to every parameter that is text, so that no statement can forget it.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{Display, Write as _};

use bytes::{BufMut, BytesMut};
use tokio_postgres::Row;
use tokio_postgres::row::RowIndex;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::persist::QueueId;

/// How an escape begins. A text that holds this by itself has it escaped too.
const ESCAPE: &str = "&#x";

/// What stands in the place of NUL.
const REPLACEMENT: char = '\u{fffd}';

/// Which characters the server can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    /// All but NUL: UTF8; and SQL_ASCII, which takes bytes as they come.
    Unicode,
    Latin1,
    Windows1252,
    /// Any other encoding of PostgreSQL's: each holds ASCII, and that is all that need be known of it.
    Ascii,
}

/// What Windows-1252 has instead of Latin-1's control characters.
const WINDOWS_1252: &str = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ";

impl Charset {
    /// That of a server with this `server_encoding`.
    pub(super) fn of(server_encoding: Option<&str>) -> Self {
        match server_encoding {
            // A server that does not say is none of PostgreSQL's.
            None | Some("UTF8" | "SQL_ASCII") => Self::Unicode,
            Some("LATIN1") => Self::Latin1,
            Some("WIN1252") => Self::Windows1252,
            Some(_) => Self::Ascii,
        }
    }

    fn holds(self, character: char) -> bool {
        match (self, character) {
            (_, '\0') => false,
            (Self::Unicode, _) | (_, '\u{1}'..='\u{7f}') => true,
            (Self::Latin1, character) => character <= '\u{ff}',
            (Self::Windows1252, '\u{a0}'..='\u{ff}') => true,
            (Self::Windows1252, character) => WINDOWS_1252.contains(character),
            (Self::Ascii, _) => false,
        }
    }

    /// The text as it is stored.
    pub(super) fn store(self, text: &str) -> Cow<'_, str> {
        let plain = match self {
            Self::Unicode => !text.contains('\0'),
            Self::Latin1 | Self::Windows1252 | Self::Ascii => {
                text.bytes().all(|byte| byte != 0 && byte.is_ascii())
            }
        };
        if plain && !text.contains(ESCAPE) {
            return Cow::Borrowed(text);
        }
        let mut stored = String::with_capacity(text.len() + 16);
        for (at, character) in text.char_indices() {
            let character = if character == '\0' { REPLACEMENT } else { character };
            let begins_escape = character == '&' && text.get(at..at + ESCAPE.len()) == Some(ESCAPE);
            if self.holds(character) && !begins_escape {
                stored.push(character);
            } else {
                // Writing to a String does not fail.
                let _ = write!(stored, "{ESCAPE}{:x};", u32::from(character));
            }
        }
        Cow::Owned(stored)
    }
}

/// The text that was stored so.
pub(super) fn read(stored: &str) -> Cow<'_, str> {
    if !stored.contains(ESCAPE) {
        return Cow::Borrowed(stored);
    }
    let mut text = String::with_capacity(stored.len());
    let mut rest = stored;
    while let Some((before, behind)) = rest.split_once(ESCAPE) {
        text.push_str(before);
        let escaped = behind.split_once(';').and_then(|(digits, after)| {
            let code = u32::from_str_radix(digits, 16).ok()?;
            Some((char::from_u32(code)?, after))
        });
        rest = match escaped {
            Some((character, after)) => {
                text.push(character);
                after
            }
            // Not ours: an earlier version's, as it stood.
            None => {
                text.push_str(ESCAPE);
                behind
            }
        };
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// The text of a column, read back.
pub(super) fn get<I: RowIndex + Display>(
    row: &Row,
    column: I,
) -> Result<String, tokio_postgres::Error> {
    Ok(read(row.try_get(column)?).into_owned())
}

/// Likewise, where it may be null.
pub(super) fn get_opt<I: RowIndex + Display>(
    row: &Row,
    column: I,
) -> Result<Option<String>, tokio_postgres::Error> {
    Ok(row.try_get::<_, Option<&str>>(column)?.map(|stored| read(stored).into_owned()))
}

/// The queue that is stored so.
pub(super) fn queue(account: &str, endpoint: &str) -> QueueId {
    QueueId { account: AccountId::new(read(account)), endpoint: EndpointId::new(read(endpoint)) }
}

/// A parameter, in the encoding's bounds.
#[derive(Debug)]
pub(super) struct Storable<'a> {
    pub(super) value: &'a (dyn ToSql + Sync),
    pub(super) charset: Charset,
}

impl Storable<'_> {
    /// Makes what stands behind `from` storable; all of it is one text.
    fn text(&self, from: usize, out: &mut BytesMut) -> Result<(), Box<dyn Error + Sync + Send>> {
        let written = std::str::from_utf8(out.get(from..).unwrap_or_default())?;
        if let Cow::Owned(stored) = self.charset.store(written) {
            out.truncate(from);
            out.put_slice(stored.as_bytes());
        }
        Ok(())
    }

    /// Likewise of an array of texts: after the header each element has its length, or −1, before it.
    fn array(&self, from: usize, out: &mut BytesMut) -> Result<(), Box<dyn Error + Sync + Send>> {
        let written = out.split_off(from);
        let mut rest = written.as_ref();
        let mut take = |bytes: usize| -> Result<&[u8], Box<dyn Error + Sync + Send>> {
            let (taken, left) = rest.split_at_checked(bytes).ok_or("an array ends too early")?;
            rest = left;
            Ok(taken)
        };
        let number = |bytes: &[u8]| bytes.try_into().map(i32::from_be_bytes);
        let head = take(12)?;
        out.put_slice(head);
        let mut elements = 0;
        for _ in 0..number(head.get(..4).unwrap_or_default())? {
            let dimension = take(8)?;
            out.put_slice(dimension);
            elements = number(dimension.get(..4).unwrap_or_default())?;
        }
        for _ in 0..elements {
            let length = number(take(4)?)?;
            let Ok(bytes) = usize::try_from(length) else {
                out.put_i32(length);
                continue;
            };
            let stored = self.charset.store(std::str::from_utf8(take(bytes)?)?);
            out.put_i32(i32::try_from(stored.len())?);
            out.put_slice(stored.as_bytes());
        }
        Ok(())
    }
}

impl ToSql for Storable<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let from = out.len();
        let is_null = self.value.to_sql_checked(ty, out)?;
        if matches!(is_null, IsNull::No) {
            match *ty {
                Type::TEXT => self.text(from, out)?,
                // One byte of version stands before the text.
                Type::JSONB => self.text(from + 1, out)?,
                Type::TEXT_ARRAY => self.array(from, out)?,
                _ => {}
            }
        }
        Ok(is_null)
    }

    fn accepts(_: &Type) -> bool {
        // What it wraps is asked, in `to_sql`.
        true
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Charset; 4] =
        [Charset::Unicode, Charset::Latin1, Charset::Windows1252, Charset::Ascii];

    proptest! {
        #[test]
        fn text_is_read_back_as_it_was_whatever_the_encoding(text in "(&#x|[;0-9a-f&#]|\\PC|é|€|\0){0,12}") {
            for charset in ALL {
                let stored = charset.store(&text).into_owned();
                prop_assert!(stored.chars().all(|c| charset.holds(c)), "{stored:?}");
                prop_assert_eq!(&*read(&stored), text.replace('\0', "\u{fffd}"));
            }
        }

        #[test]
        fn parameters_are_stored_as_their_texts_are(
            texts in proptest::collection::vec(proptest::option::of("(a|é|\0|&#x|日){0,6}"), 0..5)
        ) {
            for charset in ALL {
                let store = |text: &Option<String>| text.as_ref().map(|t| charset.store(t).into_owned());
                let (mut ours, mut plain) = (BytesMut::new(), BytesMut::new());
                ours.put_slice(b"before");
                plain.put_slice(b"before");
                let stored: Vec<Option<String>> = texts.iter().map(store).collect();
                Storable { value: &texts, charset }.to_sql_checked(&Type::TEXT_ARRAY, &mut ours).unwrap();
                stored.to_sql_checked(&Type::TEXT_ARRAY, &mut plain).unwrap();
                for (text, stored) in texts.iter().zip(&stored) {
                    Storable { value: text, charset }.to_sql_checked(&Type::TEXT, &mut ours).unwrap();
                    stored.to_sql_checked(&Type::TEXT, &mut plain).unwrap();
                }
                prop_assert_eq!(&ours, &plain);
            }
        }
    }

    #[test]
    fn text_that_the_server_holds_stays_as_it_is() {
        for (encoding, text) in [("UTF8", "é €日"), ("SQL_ASCII", "é"), ("LATIN1", "ÿ\u{80}")]
        {
            assert_eq!(Charset::of(Some(encoding)).store(text), text);
        }
        assert_eq!(Charset::of(Some("WIN1252")).store("é€ \u{81}日"), "é€ &#x81;&#x65e5;");
        assert_eq!(Charset::of(Some("EUC_JP")).store("a é"), "a &#xe9;");
        assert_eq!(Charset::of(Some("UTF8")).store("a\0 &#x27;"), "a\u{fffd} &#x26;#x27;");
        assert_eq!(read("&#xzz; &#x27"), "&#xzz; &#x27", "what is no escape stays as well");
    }
}
