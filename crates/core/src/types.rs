//! Type OIDs → how a value of the type is written.

use std::collections::BTreeMap;
use std::sync::Arc;

/// How values of a type are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `boolean`
    Bool,
    /// `smallint`, `integer`
    Integer,
    /// `bigint`: a number or a string, as the configuration says.
    Bigint,
    /// `real`, `double precision`
    Float,
    /// `numeric`
    Numeric,
    /// `json`, `jsonb`
    Json,
    /// `date`
    Date,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    TimestampTz,
    /// `bytea`
    Bytea,
    /// Enums, uuid, ranges and all else: the type's text.
    Text,
    /// An array.
    Array {
        /// What it holds.
        element: Arc<Kind>,
        /// What stands between two elements: a comma, but for `box`.
        delimiter: u8,
    },
}

/// The OIDs of the built-in types that are not written as text.
///
/// Source: PostgreSQL, `pg_type.dat`.
#[expect(missing_docs, reason = "each is named after its type")]
pub mod oid {
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT4: u32 = 23;
    pub const NAME: u32 = 19;
    pub const TEXT: u32 = 25;
    pub const JSON: u32 = 114;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const MONEY: u32 = 790;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const TIMETZ: u32 = 1266;
    pub const NUMERIC: u32 = 1700;
    pub const UUID: u32 = 2950;
    pub const JSONB: u32 = 3802;

    pub const BOOL_ARRAY: u32 = 1000;
    pub const BYTEA_ARRAY: u32 = 1001;
    pub const INT2_ARRAY: u32 = 1005;
    pub const INT4_ARRAY: u32 = 1007;
    pub const TEXT_ARRAY: u32 = 1009;
    pub const VARCHAR_ARRAY: u32 = 1015;
    pub const INT8_ARRAY: u32 = 1016;
    pub const FLOAT4_ARRAY: u32 = 1021;
    pub const FLOAT8_ARRAY: u32 = 1022;
    pub const TIMESTAMP_ARRAY: u32 = 1115;
    pub const DATE_ARRAY: u32 = 1182;
    pub const TIMESTAMPTZ_ARRAY: u32 = 1185;
    pub const NUMERIC_ARRAY: u32 = 1231;
    pub const JSON_ARRAY: u32 = 199;
    pub const UUID_ARRAY: u32 = 2951;
    pub const JSONB_ARRAY: u32 = 3807;

    /// Types that users make have OIDs from here on (`FirstNormalObjectId`).
    pub const FIRST_USER_DEFINED: u32 = 16_384;
}

/// With their names in `pg_type`.
const SCALARS: [(u32, &str, Kind); 14] = [
    (oid::BOOL, "bool", Kind::Bool),
    (oid::BYTEA, "bytea", Kind::Bytea),
    (oid::INT8, "int8", Kind::Bigint),
    (oid::INT2, "int2", Kind::Integer),
    (oid::INT4, "int4", Kind::Integer),
    (oid::TEXT, "text", Kind::Text),
    (oid::JSON, "json", Kind::Json),
    (oid::FLOAT4, "float4", Kind::Float),
    (oid::FLOAT8, "float8", Kind::Float),
    (oid::DATE, "date", Kind::Date),
    (oid::TIMESTAMP, "timestamp", Kind::Timestamp),
    (oid::TIMESTAMPTZ, "timestamptz", Kind::TimestampTz),
    (oid::NUMERIC, "numeric", Kind::Numeric),
    (oid::JSONB, "jsonb", Kind::Json),
];

const ARRAYS: [(u32, Kind); 16] = [
    (oid::BOOL_ARRAY, Kind::Bool),
    (oid::BYTEA_ARRAY, Kind::Bytea),
    (oid::INT2_ARRAY, Kind::Integer),
    (oid::INT4_ARRAY, Kind::Integer),
    (oid::TEXT_ARRAY, Kind::Text),
    (oid::VARCHAR_ARRAY, Kind::Text),
    (oid::INT8_ARRAY, Kind::Bigint),
    (oid::FLOAT4_ARRAY, Kind::Float),
    (oid::FLOAT8_ARRAY, Kind::Float),
    (oid::TIMESTAMP_ARRAY, Kind::Timestamp),
    (oid::DATE_ARRAY, Kind::Date),
    (oid::TIMESTAMPTZ_ARRAY, Kind::TimestampTz),
    (oid::NUMERIC_ARRAY, Kind::Numeric),
    (oid::JSON_ARRAY, Kind::Json),
    (oid::UUID_ARRAY, Kind::Text),
    (oid::JSONB_ARRAY, Kind::Json),
];

/// What the catalog says about a type, as far as writing its values goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeShape {
    /// A domain: its values are written as those of its base type.
    Domain {
        /// The base type's OID.
        base: u32,
    },
    /// An array.
    Array {
        /// The element type's OID.
        element: u32,
        /// The element type's `typdelim`.
        delimiter: u8,
    },
    /// A base type, an enum, a range, a composite type.
    Plain,
}

/// Domains over domains, and arrays of them; PostgreSQL allows no cycle.
const MAX_DEPTH: u32 = 64;

/// How the types of a database are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Types {
    kinds: BTreeMap<u32, Kind>,
    /// What domains stand on, which may be a domain in turn.
    bases: BTreeMap<u32, u32>,
}

impl Default for Types {
    /// The built-in types of the contract and their arrays.
    fn default() -> Self {
        let comma = |kind| Kind::Array { element: Arc::new(kind), delimiter: b',' };
        let arrays = ARRAYS.into_iter().map(|(oid, kind)| (oid, comma(kind)));
        let scalars = SCALARS.into_iter().map(|(oid, _, kind)| (oid, kind));
        Self { kinds: scalars.chain(arrays).collect(), bases: BTreeMap::new() }
    }
}

impl Types {
    /// The built-in types and what the catalog adds to them, in any order.
    #[must_use]
    pub fn with_catalog(shapes: &BTreeMap<u32, TypeShape>) -> Self {
        let mut types = Self::default();
        for (oid, shape) in shapes {
            if let TypeShape::Domain { base } = shape {
                types.bases.insert(*oid, *base);
            }
            let kind = types.resolve(shapes, *oid, 0);
            types.kinds.insert(*oid, kind);
        }
        types
    }

    fn resolve(&self, shapes: &BTreeMap<u32, TypeShape>, oid: u32, depth: u32) -> Kind {
        if let Some(known) = self.kinds.get(&oid) {
            return known.clone();
        }
        if depth == MAX_DEPTH {
            return Kind::Text;
        }
        match shapes.get(&oid) {
            Some(TypeShape::Domain { base }) => self.resolve(shapes, *base, depth + 1),
            Some(TypeShape::Array { element, delimiter }) => Kind::Array {
                element: Arc::new(self.resolve(shapes, *element, depth + 1)),
                delimiter: *delimiter,
            },
            Some(TypeShape::Plain) | None => Kind::Text,
        }
    }

    /// The type under all domains, as far as it is known.
    #[must_use]
    pub fn base(&self, type_oid: u32) -> u32 {
        let under = |oid: &u32| self.bases.get(oid).copied();
        let all = std::iter::successors(Some(type_oid), under).take(MAX_DEPTH as usize);
        all.last().unwrap_or(type_oid)
    }

    /// How values of the type are written.
    ///
    /// `None`: the type was made after the catalog was read, and may be a domain or an array.
    #[must_use]
    pub fn kind(&self, type_oid: u32) -> Option<Kind> {
        let built_in = type_oid < oid::FIRST_USER_DEFINED;
        self.kinds.get(&type_oid).cloned().or_else(|| built_in.then_some(Kind::Text))
    }

    /// Takes a type's name from the stream, for want of a better source: the type has been dropped, or
    /// its column's, since the row was written. What is known of the type already stays.
    ///
    /// `name` is that of what a domain stands on. Of an array whose elements are not built in it does
    /// not tell more than that: they are written as text.
    pub fn handle_type(&mut self, type_oid: u32, schema: &str, name: &str) {
        if self.kind(type_oid).is_some() {
            return;
        }
        // PostgreSQL names an array after its element.
        let (element, is_array) = name.strip_prefix('_').map_or((name, false), |name| (name, true));
        let built_in =
            SCALARS.into_iter().find(|(_, scalar, _)| schema == "pg_catalog" && *scalar == element);
        let kind = built_in.map_or(Kind::Text, |(_, _, kind)| kind);
        if (schema, name) == ("pg_catalog", "bpchar") {
            self.bases.insert(type_oid, oid::BPCHAR);
        }
        let kind = match is_array {
            true => Kind::Array { element: Arc::new(kind), delimiter: delimiter(schema, element) },
            false => kind,
        };
        self.kinds.insert(type_oid, kind);
    }
}

/// The only type with a delimiter of its own is `box`.
fn delimiter(schema: &str, element: &str) -> u8 {
    if (schema, element) == ("pg_catalog", "box") { b';' } else { b',' }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array_of(element: Kind) -> Kind {
        Kind::Array { element: Arc::new(element), delimiter: b',' }
    }

    #[test]
    fn types_follow_domains_and_arrays_whatever_the_order() {
        let shapes = [
            (20_001, TypeShape::Domain { base: 20_000 }),
            (20_000, TypeShape::Domain { base: oid::INT4 }),
            (20_002, TypeShape::Array { element: 20_001, delimiter: b',' }),
            (20_003, TypeShape::Domain { base: 20_002 }),
            (20_004, TypeShape::Plain),
            (20_005, TypeShape::Array { element: 20_004, delimiter: b',' }),
        ];
        let types = Types::with_catalog(&shapes.into_iter().collect());
        assert_eq!(types.kind(20_001), Some(Kind::Integer));
        assert_eq!(types.kind(20_002), Some(array_of(Kind::Integer)));
        assert_eq!(types.kind(20_003), Some(array_of(Kind::Integer)));
        assert_eq!(types.kind(20_004), Some(Kind::Text));
        assert_eq!(types.kind(20_005), Some(array_of(Kind::Text)));
        assert_eq!(types.kind(oid::INT8_ARRAY), Some(array_of(Kind::Bigint)));
        assert_eq!(types.kind(1186), Some(Kind::Text), "interval");
        assert_eq!(types.kind(20_006), None, "made after the catalog was read");
    }

    #[test]
    fn type_that_the_catalog_no_longer_has_is_written_by_the_name_in_the_stream() {
        let mut types = Types::with_catalog(&[(20_000, TypeShape::Plain)].into_iter().collect());
        let cases = [
            (20_000, "pg_catalog", "int4", Kind::Text),
            (20_001, "pg_catalog", "int4", Kind::Integer),
            (20_002, "pg_catalog", "_jsonb", array_of(Kind::Json)),
            (20_003, "public", "int4", Kind::Text),
            (20_004, "public", "_mood", array_of(Kind::Text)),
            (
                20_005,
                "pg_catalog",
                "_box",
                Kind::Array { element: std::sync::Arc::new(Kind::Text), delimiter: b';' },
            ),
            (oid::INT8, "public", "mood", Kind::Bigint),
        ];
        for (type_oid, schema, name, expected) in cases {
            types.handle_type(type_oid, schema, name);
            assert_eq!(types.kind(type_oid), Some(expected), "{name}");
        }
    }
}
