//! The column of an event's account, and that of an endpoint's, with which it is compared.

use super::{MessageRule, Rule, RuleError, RuleSettings};
use walhook_core::catalog::{Catalog, Table, TableColumn};
use walhook_core::types::oid;

/// Types that read a timestamp, and leave a part of it out.
const PARTS_OF_TIME: [u32; 3] = [oid::DATE, oid::TIME, oid::TIMETZ];

/// The types within each of which SQL compares any two.
const FAMILIES: [&[u32]; 3] = [
    &[oid::INT2, oid::INT4, oid::INT8, oid::NUMERIC, oid::FLOAT4, oid::FLOAT8],
    &[oid::TEXT, oid::VARCHAR, oid::BPCHAR, oid::NAME],
    &[oid::DATE, oid::TIMESTAMP, oid::TIMESTAMPTZ],
];

/// A rule's account column against the endpoint table's: their types under all domains.
struct Pair<'a> {
    event: (&'a Table, u32),
    endpoint: (&'a Table, u32),
}

impl<'a> Pair<'a> {
    fn of(
        table: u32,
        column: &str,
        settings: RuleSettings<'_>,
        catalog: &'a Catalog,
    ) -> Option<Self> {
        let typed = |table: &'a Table, column: &str| {
            Some((table, catalog.types.base(table.column(column)?.type_oid)))
        };
        let endpoints = catalog.find(&settings.endpoints.table)?;
        Some(Self {
            event: typed(catalog.table(table)?, column)?,
            endpoint: typed(endpoints, &settings.endpoints.account)?,
        })
    }

    /// Whether the endpoint's type would take only a part of the event's value, and so find others'
    /// endpoints.
    fn is_lossy(&self) -> bool {
        match (self.event.1, self.endpoint.1) {
            (oid::TIMESTAMP | oid::TIMESTAMPTZ, to) => PARTS_OF_TIME.contains(&to),
            (oid::TIMETZ, to) => to == oid::TIME,
            (oid::FLOAT8 | oid::NUMERIC, to) => to == oid::FLOAT4 || to == oid::MONEY,
            (oid::FLOAT4, to) => to == oid::MONEY,
            _ => false,
        }
    }

    /// Whether SQL would not compare the two without a cast. What users define is not known here.
    fn needs_cast(&self) -> bool {
        let both = [self.event.1, self.endpoint.1];
        let is_known = both.iter().all(|oid| *oid < oid::FIRST_USER_DEFINED);
        let is_one = FAMILIES.iter().any(|family| both.iter().all(|oid| family.contains(oid)));
        is_known && !is_one && self.event.1 != self.endpoint.1
    }
}

/// Why the rule's accounts cannot be looked up, where their type is to blame.
pub(super) fn lossy(
    rule: &Rule,
    settings: RuleSettings<'_>,
    catalog: &Catalog,
) -> Option<RuleError> {
    let column = rule.account.name()?;
    let pair = Pair::of(rule.table, column, settings, catalog).filter(Pair::is_lossy)?;
    let message = format!(
        "account: {column} of {} is of a type of which {}.{} would take only a part, so that other \
         accounts' endpoints would be found; give both columns one type",
        pair.event.0, pair.endpoint.0, settings.endpoints.account
    );
    Some(RuleError { subject: rule.label.clone(), message })
}

/// The rules whose accounts are compared with the endpoints' by their text alone, for SQL has no
/// equality for the two types: it works where the texts are written alike, and may not be meant.
#[must_use]
pub fn casts(settings: RuleSettings<'_>, catalog: &Catalog) -> Vec<RuleError> {
    let mut found = Vec::new();
    for (index, rule) in settings.events.iter().enumerate() {
        let (Some(table), Some(column)) = (&rule.table, &rule.account) else { continue };
        let Some(table) = catalog.find(table) else { continue };
        let pair = Pair::of(table.oid, column, settings, catalog).filter(Pair::needs_cast);
        if pair.is_some_and(|pair| !pair.is_lossy()) {
            let message = format!(
                "account: {column} of {table} and {} of {} are of types that SQL does not compare \
                 without a cast: they match by their text",
                settings.endpoints.account, settings.endpoints.table
            );
            found.push(RuleError { subject: super::subject(index, rule), message });
        }
    }
    found
}

/// Whether one account may come in several texts: by the endpoint column's collation, or because rules
/// take accounts from elsewhere than a column of the same type.
pub(super) fn has_several_texts(
    rules: &[Rule],
    messages: &[MessageRule],
    settings: RuleSettings<'_>,
    catalog: &Catalog,
) -> bool {
    let endpoints = catalog.find(&settings.endpoints.table);
    let Some(column) = endpoints.and_then(|table| table.column(&settings.endpoints.account)) else {
        return true;
    };
    let TableColumn { type_oid, is_loose, .. } = column;
    // Equal where the bytes are.
    let is_text = |oid: u32| [oid::TEXT, oid::VARCHAR, oid::NAME].contains(&oid);
    let is_integer = |oid: u32| [oid::INT2, oid::INT4, oid::INT8].contains(&oid);
    let endpoint = catalog.types.base(*type_oid);
    if *is_loose || is_text(endpoint) {
        return *is_loose;
    }
    let differs = |rule: &Rule| {
        let pair = |column| Pair::of(rule.table, column, settings, catalog);
        rule.account.name().and_then(pair).is_none_or(|Pair { event: (_, event), .. }| {
            event != endpoint && !(is_integer(event) && is_integer(endpoint))
        })
    };
    !messages.is_empty() || rules.iter().any(differs)
}
