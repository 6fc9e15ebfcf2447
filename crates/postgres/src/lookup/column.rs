//! Columns that hold keys: their types as the catalog has them, and how a text is compared with one.

use std::borrow::Cow;

use tokio_postgres::Client;

use super::LookupError;
use crate::ident::{quote_ident, quote_literal, quote_table};

/// A column that holds ids or accounts.
#[derive(Debug)]
pub(super) struct Column {
    /// The table, as the configuration names it.
    pub(super) table: String,
    pub(super) name: String,
    pub(super) key: &'static str,
}

/// What the catalog says of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ColumnType {
    pub(super) oid: u32,
    /// The type under all domains, quoted, for a cast.
    cast: String,
    /// The type's own equality, as its index has it: an operator's qualified name.
    equality: String,
    kind: Kind,
    /// Its name for a person, where nothing can be compared with it: it, or a part of it, has no equality.
    incomparable: Option<String>,
}

/// Which texts can be values of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int2,
    Int4,
    Int8,
    Uuid,
    /// All of them.
    Text,
    /// `character(n)`: what is behind the last visible character does not count, and is not shown.
    Padded,
    /// One byte: a longer text would be cut, and be taken for another's key.
    Byte,
    /// Not known here; the server can say, if it is of version 16 or later.
    Other {
        can_ask: bool,
    },
}

impl Kind {
    fn of(type_name: &str, category: i8, can_ask: bool) -> Self {
        match type_name {
            "int2" => Self::Int2,
            "int4" => Self::Int4,
            "int8" => Self::Int8,
            "uuid" => Self::Uuid,
            "bpchar" => Self::Padded,
            "char" => Self::Byte,
            _ if category == i8::from_be_bytes([b'S']) => Self::Text,
            _ => Self::Other { can_ask },
        }
    }

    /// The text to compare with, where it can be a value of the type.
    fn value(self, text: &str) -> Option<Cow<'_, str>> {
        let within = |least: i64, most: i64| {
            let value = whole(text).filter(|value| (least..=most).contains(value))?;
            Some(Cow::Owned(value.to_string()))
        };
        match self {
            Self::Int2 => within(i16::MIN.into(), i16::MAX.into()),
            Self::Int4 => within(i32::MIN.into(), i32::MAX.into()),
            Self::Int8 => within(i64::MIN, i64::MAX),
            // The form that PostgreSQL prints, which is the form that accounts come in.
            Self::Uuid => {
                let is_uuid = text.len() == 36
                    && text.bytes().enumerate().all(|(at, byte)| match at {
                        8 | 13 | 18 | 23 => byte == b'-',
                        _ => byte.is_ascii_hexdigit(),
                    });
                is_uuid.then_some(Cow::Borrowed(text))
            }
            Self::Byte if text.len() > 1 => None,
            Self::Text | Self::Padded | Self::Byte | Self::Other { .. } => {
                (!text.contains('\0')).then_some(Cow::Borrowed(text))
            }
        }
    }
}

/// The whole number that a text is: as an integer, a numeric of any scale or a float prints it.
fn whole(text: &str) -> Option<i64> {
    if let Ok(value) = text.parse() {
        return Some(value);
    }
    if let Some((whole, fraction)) = text.split_once('.')
        && fraction.bytes().all(|digit| digit == b'0')
    {
        return whole.parse().ok();
    }
    let value: f64 = text.parse().ok().filter(|_| text.contains("e+"))?;
    let is_whole = value.fract() == 0.0 && value.abs() < 9.2e18;
    #[expect(clippy::cast_possible_truncation, reason = "a whole number in range loses nothing")]
    is_whole.then_some(value as i64)
}

impl ColumnType {
    /// SQL for: the column equals a text, in the column's own type.
    pub(super) fn equals(&self, column: &str, text: &str) -> String {
        let Self { cast, equality, kind, .. } = self;
        let value = format!("{text}::{cast}");
        let value = match kind {
            Kind::Other { can_ask: true } => format!(
                "CASE WHEN pg_catalog.pg_input_is_valid({text}, {}) THEN {value} END",
                quote_literal(cast)
            ),
            Kind::Int2
            | Kind::Int4
            | Kind::Int8
            | Kind::Uuid
            | Kind::Text
            | Kind::Padded
            | Kind::Byte
            | Kind::Other { can_ask: false } => value,
        };
        format!("{column} OPERATOR({equality}) {value}")
    }

    /// SQL that only reads a text as a value of the type.
    pub(super) fn reads(&self, text: &str) -> String {
        format!("{text}::{}", self.cast)
    }

    /// SQL for a column's value as the stream carries it: what the type's output function prints, but
    /// for the blanks that pad `character(n)`.
    pub(super) fn text(&self, column: &str) -> String {
        match self.kind {
            Kind::Padded => format!("{column}::pg_catalog.text"),
            // Unlike a cast to text, which writes some types (boolean, inet) otherwise.
            Kind::Int2
            | Kind::Int4
            | Kind::Int8
            | Kind::Uuid
            | Kind::Text
            | Kind::Byte
            | Kind::Other { .. } => {
                format!("CASE WHEN {column} IS NOT NULL THEN pg_catalog.concat({column}) END")
            }
        }
    }

    /// The text to compare with, where it can be a value of the type; what cannot be is no row's.
    pub(super) fn value<'t>(&self, text: &'t str) -> Option<Cow<'t, str>> {
        self.kind.value(text)
    }

    /// A text that every such column can be compared with, where one is known.
    pub(super) fn sample(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Int2 | Kind::Int4 | Kind::Int8 => Some("-32768"),
            Kind::Uuid => Some("00000000-0000-0000-0000-000000000000"),
            Kind::Text | Kind::Padded => Some("walhook"),
            Kind::Byte => Some("w"),
            Kind::Other { .. } => None,
        }
    }
}

impl Column {
    /// SQL for the OID of the column's type at this moment.
    pub(super) fn type_oid(&self) -> String {
        format!(
            "(SELECT a.atttypid FROM pg_catalog.pg_attribute a
              WHERE a.attrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass({})
              AND a.attname OPERATOR(pg_catalog.=) {} AND NOT a.attisdropped)",
            quote_literal(&quote_table(&self.table)),
            quote_literal(&self.name)
        )
    }

    /// Asks the catalog.
    pub(super) async fn read_type(&self, client: &Client) -> Result<ColumnType, LookupError> {
        let sql = TYPE.replace("$oid", &self.type_oid());
        let Some(row) = client.query_typed_opt(&sql, &[]).await? else {
            return Err(self.missing(client).await?);
        };
        let (name, schema): (&str, &str) = (row.try_get(1)?, row.try_get(2)?);
        let (version, category): (i32, i8) = (row.try_get(4)?, row.try_get(3)?);
        let equality: Option<(&str, &str)> =
            row.try_get::<_, Option<_>>(5)?.zip(row.try_get::<_, Option<_>>(6)?);
        let (of, operator) = equality.unwrap_or(("pg_catalog", "="));
        // A text would be cut to the length of a name, and then be taken for another's.
        let name_as_text = if name == "name" { "text" } else { name };
        Ok(ColumnType {
            oid: row.try_get(0)?,
            cast: format!("{}.{}", quote_ident(schema), quote_ident(name_as_text)),
            equality: format!("{}.{operator}", quote_ident(of)),
            kind: Kind::of(name, category, version >= 160_000),
            incomparable: row.try_get(7)?,
        })
    }

    /// What is missing where the catalog knows no such column: it, or the whole table.
    async fn missing(&self, client: &Client) -> Result<LookupError, LookupError> {
        let sql = format!(
            "SELECT pg_catalog.to_regclass({}) IS NOT NULL",
            quote_literal(&quote_table(&self.table))
        );
        let (table, key) = (self.table.clone(), self.key);
        Ok(match client.query_typed_one(&sql, &[]).await?.try_get(0)? {
            true => LookupError::NoColumn { table, column: self.name.clone(), key },
            false => {
                let section = key.split_once('.').map_or(key, |(section, _)| section);
                LookupError::NoTable { table, section }
            }
        })
    }

    /// Whether an index of all rows begins with the column. The rows of a table's children are in none of its own.
    pub(super) async fn is_indexed(&self, client: &Client) -> Result<bool, LookupError> {
        let sql = format!(
            "SELECT EXISTS (
                 SELECT FROM pg_catalog.pg_index i
                 JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.indexrelid
                 JOIN pg_catalog.pg_am m ON m.oid OPERATOR(pg_catalog.=) c.relam
                 JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid
                     AND a.attnum OPERATOR(pg_catalog.=) i.indkey[0]
                 WHERE i.indrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass({})
                   AND a.attname OPERATOR(pg_catalog.=) {}
                   AND m.amname OPERATOR(pg_catalog.=) ANY (ARRAY['btree', 'hash']::pg_catalog.name[])
                   AND i.indisvalid AND i.indpred IS NULL
                   AND (c.relkind OPERATOR(pg_catalog.=) 'I' OR NOT EXISTS (
                       SELECT FROM pg_catalog.pg_inherits h
                       WHERE h.inhparent OPERATOR(pg_catalog.=) i.indrelid)))",
            quote_literal(&quote_table(&self.table)),
            quote_literal(&self.name)
        );
        Ok(client.query_typed_one(&sql, &[]).await?.try_get(0)?)
    }

    /// As [`Column::read_type`], for a column that is compared with.
    pub(super) async fn read_key(&self, client: &Client) -> Result<ColumnType, LookupError> {
        let found = self.read_type(client).await?;
        match &found.incomparable {
            None => Ok(found),
            Some(kind) => Err(LookupError::Incomparable {
                table: self.table.clone(),
                column: self.name.clone(),
                key: self.key,
                kind: kind.clone(),
            }),
        }
    }
}

/// The type `$oid` under all domains; its default equality (that of the default operator class, which
/// joins and indexes go by, wherever it is installed; none of its own: that of `anyarray`, `anyenum`
/// and the like); and the name of the type, or of what it is made of, that has none.
///
/// The planner is to begin at the type: every catalog in full takes some ten milliseconds.
const TYPE: &str = "
    WITH RECURSIVE base AS (
        SELECT t.oid, t.typname, t.typnamespace, t.typcategory, t.typtype, t.typbasetype
        FROM pg_catalog.pg_type t WHERE t.oid OPERATOR(pg_catalog.=) $oid
        UNION ALL
        SELECT b.oid, b.typname, b.typnamespace, b.typcategory, b.typtype, b.typbasetype
        FROM base JOIN pg_catalog.pg_type b ON base.typbasetype OPERATOR(pg_catalog.=) b.oid
        WHERE base.typtype OPERATOR(pg_catalog.=) 'd'
    ), part(oid) AS (
        SELECT base.oid FROM base WHERE base.typtype OPERATOR(pg_catalog.<>) 'd'
        UNION
        SELECT child.oid
        FROM part JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) part.oid
        CROSS JOIN LATERAL (
            SELECT t.typbasetype WHERE t.typtype OPERATOR(pg_catalog.=) 'd'
            UNION ALL
            SELECT e.oid FROM pg_catalog.pg_type e WHERE e.typarray OPERATOR(pg_catalog.=) t.oid
            UNION ALL
            SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype OPERATOR(pg_catalog.=) 'c' AND a.attrelid OPERATOR(pg_catalog.=) t.typrelid
              AND a.attnum OPERATOR(pg_catalog.>) 0::smallint AND NOT a.attisdropped) child(oid)
    ), equality AS NOT MATERIALIZED (
        SELECT c.opcintype, o.oprname, n.nspname, m.amname
        FROM pg_catalog.pg_opclass c
        JOIN pg_catalog.pg_am m ON m.oid OPERATOR(pg_catalog.=) c.opcmethod
        JOIN pg_catalog.pg_amop p ON p.amopfamily OPERATOR(pg_catalog.=) c.opcfamily
            AND p.amoplefttype OPERATOR(pg_catalog.=) c.opcintype
            AND p.amoprighttype OPERATOR(pg_catalog.=) c.opcintype
        JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) p.amopopr
        JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
        WHERE c.opcdefault
          AND ((m.amname OPERATOR(pg_catalog.=) 'btree' AND p.amopstrategy OPERATOR(pg_catalog.=) 3::smallint)
            OR (m.amname OPERATOR(pg_catalog.=) 'hash' AND p.amopstrategy OPERATOR(pg_catalog.=) 1::smallint))
    )
    SELECT $oid, base.typname::pg_catalog.text, n.nspname::pg_catalog.text, base.typcategory,
           pg_catalog.current_setting('server_version_num')::integer,
           own.nspname::pg_catalog.text, own.oprname::pg_catalog.text,
           (SELECT pg_catalog.format_type(t.oid, NULL)
            FROM part CROSS JOIN LATERAL (
                SELECT t.oid, t.typtype FROM pg_catalog.pg_type t
                WHERE t.oid OPERATOR(pg_catalog.=) part.oid OFFSET 0) t
            WHERE t.typtype OPERATOR(pg_catalog.=) ANY (ARRAY['b', 'p']::pg_catalog.\"char\"[])
              AND t.oid OPERATOR(pg_catalog.<>) 'pg_catalog.varchar'::pg_catalog.regtype
              AND (SELECT e.oid FROM pg_catalog.pg_type e WHERE e.typarray OPERATOR(pg_catalog.=) t.oid LIMIT 1) IS NULL
              AND (SELECT e.oprname FROM equality e WHERE e.opcintype OPERATOR(pg_catalog.=) t.oid LIMIT 1) IS NULL
            LIMIT 1)
    FROM base JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) base.typnamespace
    LEFT JOIN LATERAL (SELECT e.nspname, e.oprname FROM equality e
                       WHERE e.opcintype OPERATOR(pg_catalog.=) base.oid ORDER BY e.amname LIMIT 1) own ON true
    WHERE base.typtype OPERATOR(pg_catalog.<>) 'd'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_read_in_every_form_that_a_number_is_printed_in() {
        for (text, value) in [
            ("42", Some(42)),
            ("-7", Some(-7)),
            ("42.00", Some(42)),
            ("1e+06", Some(1_000_000)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("1e+20", None),
            ("1e1", None),
            ("42.5", None),
            ("4 2", None),
            ("0x2a", None),
            ("NaN", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(whole(text), value, "{text}");
        }
    }
}
