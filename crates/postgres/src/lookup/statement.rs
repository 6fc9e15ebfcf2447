//! The statements: each column of a row comes as its own text, cut where it is too long, so that no row
//! can fail another's and none is larger in memory than its bounds.
//!
//! Every name is qualified, so that it means the same under any `search_path`.

use super::column::{Column, ColumnType};
use crate::ident::{quote_ident, quote_table};
use crate::op::EQ;
use walhook_core::endpoint::{HEADERS_BYTES_MAX, URL_BYTES_MAX};
use walhook_core::event::ID_MAX_BYTES;
use walhook_core::settings;

/// The text of an endpoint's event types, or of its secrets, at most.
pub(super) const LIST_BYTES_MAX: usize = 256 << 10;

/// An account with more rows takes long to read: some milliseconds.
pub(super) const FEW: usize = 256;

const NULL_TEXT: &str = "NULL::pg_catalog.text";

/// The text of a number or a boolean, at most.
pub(super) const NUMBER_BYTES_MAX: usize = 1 << 10;

/// The columns of one endpoint's row, each as text.
///
/// The id; a hash that tells those apart that are too long; URL; event types and secrets as JSON, for
/// they may be arrays; the switch; headers, limit in flight, limit a second.
pub(super) const ROW_COLUMNS: usize = 9;

/// What is read of the endpoint table.
#[derive(Debug)]
pub(super) struct Source {
    /// The table, quoted.
    pub(super) table: String,
    /// The column that holds accounts, quoted, over the alias `e`.
    pub(super) account: String,
    /// The id's, likewise.
    id: String,
    url: String,
    event_types: String,
    secret: String,
    enabled: String,
    headers: Option<String>,
    max_in_flight: Option<String>,
    rate_per_second: Option<String>,
}

impl Source {
    pub(super) fn new(endpoints: &settings::Endpoints) -> Self {
        let column = |name: &str| format!("e.{}", quote_ident(name));
        let optional = |name: &Option<String>| name.as_deref().map(column);
        Self {
            table: quote_table(&endpoints.table),
            account: column(&endpoints.account),
            id: column(&endpoints.id),
            url: column(&endpoints.url),
            event_types: column(&endpoints.event_types),
            secret: column(&endpoints.secret),
            enabled: column(&endpoints.enabled),
            headers: optional(&endpoints.headers),
            max_in_flight: optional(&endpoints.max_in_flight),
            rate_per_second: optional(&endpoints.rate_per_second),
        }
    }

    /// The id as text, whatever its length.
    pub(super) fn id_text(&self, id: &ColumnType) -> String {
        id.text(&self.id)
    }

    /// The id as text, one character longer than it may be where it is longer.
    pub(super) fn short_id(&self, id: &ColumnType) -> String {
        cut(&self.id_text(id), ID_MAX_BYTES)
    }

    /// A hash of an id that is too long, else null.
    fn long_id_hash(&self, id: &ColumnType) -> String {
        let text = self.id_text(id);
        format!(
            "CASE WHEN pg_catalog.octet_length({text}) OPERATOR(pg_catalog.>) {ID_MAX_BYTES} \
             THEN pg_catalog.hashtextextended({text} COLLATE pg_catalog.\"C\", 0)::pg_catalog.text END"
        )
    }

    /// The [`ROW_COLUMNS`], named `c1` and so on.
    pub(super) fn row(&self, id: &ColumnType) -> String {
        let text = |column: &str| format!("{column}::pg_catalog.text");
        let json = |column: &str| format!("pg_catalog.to_json({column})::pg_catalog.text");
        // The text of bytes is no text that anybody meant as a secret: it reads as none.
        let secret = format!(
            "CASE WHEN pg_catalog.pg_typeof({0}) {EQ} 'pg_catalog.bytea'::pg_catalog.regtype THEN NULL \
             ELSE {1} END",
            self.secret,
            json(&self.secret)
        );
        let optional = |column: &Option<String>, bytes| {
            column
                .as_ref()
                .map_or_else(|| "NULL::pg_catalog.text".to_owned(), |c| cut(&text(c), bytes))
        };
        let columns: [String; ROW_COLUMNS] = [
            self.short_id(id),
            self.long_id_hash(id),
            cut(&text(&self.url), URL_BYTES_MAX),
            cut(&json(&self.event_types), LIST_BYTES_MAX),
            cut(&secret, LIST_BYTES_MAX),
            cut(&text(&self.enabled), NUMBER_BYTES_MAX),
            optional(&self.headers, HEADERS_BYTES_MAX),
            optional(&self.max_in_flight, NUMBER_BYTES_MAX),
            optional(&self.rate_per_second, NUMBER_BYTES_MAX),
        ];
        let named = columns.iter().zip(1..).map(|(column, n)| format!("{column} AS c{n}"));
        named.collect::<Vec<_>>().join(", ")
    }
}

/// Text, cut behind the character that makes it too long: so much longer than it may be tells that it is.
fn cut(text: &str, bytes: usize) -> String {
    format!("pg_catalog.left({text}, {})", bytes + 1)
}

/// The share of an account, from the account table.
#[derive(Debug)]
pub(super) struct WeightSource {
    pub(super) id: Column,
    weight: String,
    reserved: Option<String>,
}

impl WeightSource {
    pub(super) fn new(accounts: &settings::Accounts) -> Self {
        let id =
            Column { table: accounts.table.clone(), name: accounts.id.clone(), key: "accounts.id" };
        Self { id, weight: accounts.weight.clone(), reserved: accounts.reserved.clone() }
    }

    /// Weight and reserved slots of the account that the expression `text` gives, as texts; null where there are none.
    fn select(&self, id: &ColumnType, text: &str) -> String {
        let column = |name: &str| {
            cut(&format!("w.{}::pg_catalog.text", quote_ident(name)), NUMBER_BYTES_MAX)
        };
        let reserved = self.reserved.as_deref().map_or_else(|| NULL_TEXT.to_owned(), column);
        format!(
            "SELECT {} AS weight, {reserved} AS reserved FROM {} w WHERE {} LIMIT 1",
            column(&self.weight),
            quote_table(&self.id.table),
            id.equals(&format!("w.{}", quote_ident(&self.id.name)), text),
        )
    }
}

/// The types that the statements are made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Types {
    pub(super) account: ColumnType,
    pub(super) id: ColumnType,
    /// Of the account table's id, where there is one.
    pub(super) weighed: Option<ColumnType>,
}

/// Where a statement takes its accounts from: `a(account, weighed, at)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accounts {
    /// `$1` and `$2` are arrays.
    Batch,
    /// Likewise, and the rows of other accounts are not even computed, as a hash join would: quicker by an index and
    /// slower without one, and a row that cannot be computed fails its own account's statement alone.
    Fenced,
    /// Likewise, and of no account more rows than [`FEW`] and one are read: by an index alone, for without one each
    /// account costs a look at all rows.
    Few,
    /// `$1` and `$2` are one account's: a condition like any other, so that the rows of others need not
    /// be computed.
    One,
}

impl Accounts {
    /// What the statement begins with, and SQL for an account that is looked up in the endpoint table and
    /// in the account table.
    fn from(self) -> [&'static str; 3] {
        match self {
            Self::Batch | Self::Fenced | Self::Few => [
                "(SELECT) one
                 LEFT JOIN ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]),
                                      pg_catalog.unnest($2::pg_catalog.text[]))
                      WITH ORDINALITY a(account, weighed, at) ON true",
                "a.account",
                "a.weighed",
            ],
            Self::One => {
                ["(SELECT 1::bigint AS at) a", "$1::pg_catalog.text", "$2::pg_catalog.text"]
            }
        }
    }

    /// What keeps the planner from joining the endpoint table as a whole.
    fn fence(self) -> &'static str {
        match self {
            Self::Batch | Self::One => "",
            Self::Fenced | Self::Few => "OFFSET 0",
        }
    }

    /// The rows of one account, of all that `rows` selects. What bounds them is hidden from the planner, behind a join:
    /// it would read all rows of the table from the beginning, where it hopes to find so many soon.
    fn bounded(self, rows: String) -> String {
        match self {
            Self::Batch | Self::Fenced | Self::One => rows,
            Self::Few => format!(
                "SELECT f.* FROM pg_catalog.unnest('{{1}}'::pg_catalog.int4[]) one, ({rows}) f LIMIT {}",
                FEW + 1
            ),
        }
    }
}

/// The batch's statement: one row for each endpoint, one for each account without, and one when there
/// is no account.
///
/// `$1` and `$2`: the accounts, null where the endpoint (or account) table cannot have them. Columns:
/// snapshot, the three types' OIDs, the account's place from 1, whether there is an endpoint, the
/// weight, the reserved slots, then the endpoint's [`Source::row`].
pub(super) fn batch(
    source: &Source,
    account: &Column,
    id: &Column,
    weights: Option<&WeightSource>,
    types: &Types,
    accounts: Accounts,
) -> String {
    let [from, account_text, weighed_text] = accounts.from();
    let weight = weights.zip(types.weighed.as_ref()).map_or_else(
        || format!("SELECT {NULL_TEXT} AS weight, {NULL_TEXT} AS reserved"),
        |(weights, id)| weights.select(id, weighed_text),
    );
    let weighed = weights.map_or_else(|| "NULL::pg_catalog.oid".to_owned(), |w| w.id.type_oid());
    let columns: Vec<String> = (1..=ROW_COLUMNS).map(|n| format!("f.c{n}")).collect();
    let rows = accounts.bounded(format!(
        "SELECT true AS is_there, {} FROM {} e WHERE {} {}",
        source.row(&types.id),
        source.table,
        types.account.equals(&source.account, account_text),
        accounts.fence(),
    ));
    format!(
        "SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text, {}, {}, {weighed}, a.at,
                f.is_there, w.weight, w.reserved, {}
         FROM {from}
         LEFT JOIN LATERAL ({weight}) w ON true
         LEFT JOIN LATERAL ({rows}) f ON true",
        account.type_oid(),
        id.type_oid(),
        columns.join(", "),
    )
}

/// Which transactions a statement sees now.
pub(super) const SNAPSHOT: &str = "SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text";

/// The ids of one account's endpoints, `$1`.
pub(super) fn ids(source: &Source, types: &Types) -> String {
    format!(
        "SELECT {} FROM {} e WHERE {}",
        source.short_id(&types.id),
        source.table,
        types.account.equals(&source.account, "$1::pg_catalog.text")
    )
}

/// The rows of those of one account's endpoints, `$1`, whose ids are among `$2`.
pub(super) fn some(source: &Source, types: &Types) -> String {
    format!(
        "SELECT {} FROM {} e WHERE {} AND {} OPERATOR(pg_catalog.=) ANY ($2::pg_catalog.text[])",
        source.row(&types.id),
        source.table,
        types.account.equals(&source.account, "$1::pg_catalog.text"),
        source.short_id(&types.id),
    )
}
