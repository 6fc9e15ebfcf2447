//! A change and its binding → items.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::bind::{Binding, BoundRead, BoundReads, BoundRule, Invalidates, key_text};
use super::body::Writer;
use super::keys::keys;
use super::{Account, Rule};
use crate::condition::{Allowance, Condition, Field, Inputs, Side};
use crate::name::{is_type, pattern_covers};
use crate::row::{Cell, RowView};
use crate::settings::{Bigint, RuleOperation};
use walhook_core::event::{
    AccountId, EndpointId, Event, ID_MAX_BYTES, Invalidation, Item, Operation, Scope, Unroutable,
    UnroutableReason, check_id,
};
use walhook_core::position::{EventId, Position};
use walhook_core::types::Types;
use walhook_decode::change::{Change, Rows};
use walhook_decode::pgoutput::Relation;

pub(super) struct Builder<'a> {
    pub(super) system_identifier: u64,
    pub(super) bigint: Bigint,
    pub(super) rules: &'a [Rule],
    pub(super) binding: &'a Binding,
    pub(super) types: &'a Types,
    pub(super) change: &'a Change<'a>,
    /// Kept from one change to the next; what leaves is a copy of the right size.
    pub(super) scratch: &'a mut BytesMut,
    /// Of all rules' expressions together.
    pub(super) allowance: Allowance,
}

impl Builder<'_> {
    pub(super) fn build(mut self, out: &mut Vec<Item>) {
        let view = RowView::new(&self.change.relation, &self.change.rows);
        if let Some(invalidates) = &self.binding.invalidates {
            let (xid, relation) = (self.change.transaction.xid, &self.change.relation);
            let told = invalidations(invalidates, xid, &view, self.types, relation);
            out.extend(told.map(Item::Invalidate));
        }
        let operation = match view.operation() {
            Operation::Insert => RuleOperation::Insert,
            Operation::Update => RuleOperation::Update,
            Operation::Delete => RuleOperation::Delete,
            Operation::Truncate => RuleOperation::Truncate,
            Operation::Message => RuleOperation::Message,
        };
        let (binding, rules) = (self.binding, self.rules);
        let first = out.len();
        for bound in &binding.rules {
            let Some(rule) = rules.get(bound.rule).filter(|rule| rule.on.contains(&operation))
            else {
                continue;
            };
            let made = out.get(first..).unwrap_or_default();
            let item = self.item(rule, bound, &view, |of_type| {
                made.iter().any(|i| i.event_type() == Some(of_type))
            });
            out.extend(item);
        }
        if let Some(made) = out.get_mut(first..) {
            made.sort_by(|a, b| a.event_type().cmp(&b.event_type()));
        }
    }

    /// What the rule makes of the change; `None` where its condition does not hold, or an earlier rule
    /// has decided for the type.
    fn item(
        &mut self,
        rule: &Rule,
        bound: &BoundRule,
        view: &RowView<'_>,
        is_decided: impl Fn(&str) -> bool,
    ) -> Option<Item> {
        let doubt = self.binding.doubt.clone();
        let mut failure = doubt.map(|doubt| (UnroutableReason::Table, doubt));
        let event_type = event_type(rule, bound, view).unwrap_or_else(|detail| {
            failure.get_or_insert((UnroutableReason::Type, detail));
            Arc::clone(&rule.event_type)
        });
        if is_decided(&event_type) {
            return None;
        }
        if let Rows::Oversize { bytes, .. } = &self.change.rows {
            return Some(self.oversize(&event_type, rule, *bytes, view));
        }
        if let Some(condition) = &rule.condition {
            match evaluate(condition, bound, view, &self.allowance) {
                Ok(false) => return None,
                Ok(true) => {}
                Err(detail) => {
                    failure.get_or_insert((UnroutableReason::Condition, detail));
                }
            }
        }
        let account = account(rule, bound, view, self.types, &self.change.relation);
        let account = account.unwrap_or_else(|detail| {
            failure.get_or_insert((UnroutableReason::Account, detail));
            AccountId::new("")
        });
        if let Err(detail) = self.put_row(rule, bound, view) {
            failure.get_or_insert((UnroutableReason::Value, detail));
        }
        if let Some(detail) = bound_row(self.scratch, rule.max_bytes) {
            failure.get_or_insert((UnroutableReason::TooLarge, detail));
        }
        let event = self.event(&event_type, account, view);
        Some(match failure {
            None => Item::Event(event),
            Some((reason, detail)) => {
                let detail = format!("{}: {detail}", rule.label);
                Item::Unroutable(Unroutable { event, reason, detail })
            }
        })
    }

    /// A change that nobody read: whether the condition holds could not be told, so it is not passed
    /// over, and stands as a dead letter by its position alone.
    fn oversize(
        &mut self,
        event_type: &Arc<str>,
        rule: &Rule,
        bytes: u64,
        view: &RowView<'_>,
    ) -> Item {
        self.scratch.clear();
        self.scratch.put_slice(NO_DATA);
        let event = self.event(event_type, AccountId::new(""), view);
        let detail = format!(
            "{}: the change takes {bytes} bytes in the stream, more than a quarter of memory.limit; \
             it was not read",
            rule.label
        );
        Item::Unroutable(Unroutable { event, reason: UnroutableReason::TooLarge, detail })
    }

    fn event(&self, event_type: &Arc<str>, account: AccountId, view: &RowView<'_>) -> Arc<Event> {
        let position = Position::Wal(self.change.position);
        let commit_time_us = self.change.transaction.commit_time_us;
        let system = self.system_identifier;
        Arc::new(Event {
            id: EventId::derive(system, &position, event_type, commit_time_us),
            position,
            event_type: Arc::clone(event_type),
            account,
            operation: view.operation(),
            commit_time_us,
            keys: keys(self.binding, view),
            row: Bytes::copy_from_slice(self.scratch),
        })
    }

    /// Writes the row's part of the body into the scratch buffer. A value that cannot be written is
    /// left out, and told of afterwards.
    fn put_row(
        &mut self,
        rule: &Rule,
        bound: &BoundRule,
        view: &RowView<'_>,
    ) -> Result<(), String> {
        self.scratch.clear();
        let mut writer = Writer { out: self.scratch, bigint: self.bigint, failed: None };
        let allowance = &self.allowance;
        match (&rule.data, &bound.data, &rule.data_column) {
            (Some(data), _, _) => writer.put_built(data, bound, view, allowance, rule.max_bytes),
            (None, Some(column), Some(name)) => {
                writer.put_data_column(name, column.judged(view.current(column.column)));
            }
            (None, _, _) => writer.put_data(&bound.fields, view),
        }
        let account_changed = bound.account.is_some_and(|account| {
            let (old, new) = (view.before(account), view.after(account));
            old.is_known() && old != new
        });
        // The old values may be none of the new account's business.
        if view.operation() == Operation::Update && !account_changed {
            writer.put_previous(&bound.fields, view);
        }
        writer.put_unchanged(&bound.fields, view);
        writer.failed.map_or(Ok(()), Err)
    }
}

/// The row's part of an event whose values are too large.
const NO_DATA: &[u8] = b"\"data\":null";

/// Leaves no data where the row's part of the body is over the limit, and says so.
pub(super) fn bound_row(row: &mut BytesMut, max_bytes: usize) -> Option<String> {
    let bytes = row.len();
    if bytes <= max_bytes {
        return None;
    }
    row.clear();
    row.put_slice(NO_DATA);
    Some(format!("the event's data takes {bytes} bytes, more than max_bytes = {max_bytes}"))
}

/// The event's type, or why it cannot be told.
fn event_type(rule: &Rule, bound: &BoundRule, view: &RowView<'_>) -> Result<Arc<str>, String> {
    let (Some(name), Some(column)) = (&rule.type_column, bound.event_type) else {
        return Ok(Arc::clone(&rule.event_type));
    };
    match view.current(column) {
        Cell::Text(text) if is_type(text) && pattern_covers(&rule.event_type, text) => {
            Ok(text.into())
        }
        Cell::Text(_) => Err(format!("the type column {name} holds none of {}", rule.event_type)),
        Cell::Null => Err(format!("the type column {name} is null")),
        Cell::Unknown(missing) => Err(format!("the type column {name} is not known: {missing}")),
    }
}

/// The account that the change belongs to, or why that cannot be told.
fn account(
    rule: &Rule,
    bound: &BoundRule,
    view: &RowView<'_>,
    types: &Types,
    relation: &Relation,
) -> Result<AccountId, String> {
    let (name, column) = match (&rule.account, bound.account) {
        (Account::Fixed(account), _) => return Ok(account.clone()),
        (Account::Named(name), column) => (name, column),
    };
    match column.map_or(Cell::Null, |column| view.current(column)) {
        Cell::Text(text) => {
            let text = column.map_or(text, |column| key_text(types, relation, column, text));
            match check_id(text) {
                Ok(()) => Ok(AccountId::new(text)),
                Err(why) => Err(format!("the account in column {name} {why}")),
            }
        }
        Cell::Null => Err(format!("the account column {name} is null")),
        Cell::Unknown(missing) => Err(format!("the account column {name} is not known: {missing}")),
    }
}

fn evaluate(
    condition: &Condition,
    bound: &BoundRule,
    view: &RowView<'_>,
    allowance: &Allowance,
) -> Result<bool, String> {
    let result = with_inputs(
        &bound.condition,
        |side| condition.columns(side),
        view,
        allowance,
        |inputs| condition.evaluate(inputs),
    );
    result.map_err(|error| error.to_string())
}

/// Gives `use_them` the columns that an expression reads; `names` are in the order of `reads`.
pub(super) fn with_inputs<'c, R>(
    reads: &'c BoundReads,
    names: impl Fn(Side) -> &'c [String],
    view: &RowView<'_>,
    allowance: &Allowance,
    use_them: impl FnOnce(&Inputs<'_>) -> R,
) -> R {
    let fields = |side| -> SmallVec<[Field<'_>; 4]> {
        let columns = if side == Side::Old { &reads.old } else { &reads.new };
        let cell =
            |column| if side == Side::Old { view.before(column) } else { view.after(column) };
        let named = names(side).iter().zip(columns);
        let field = |(name, read): (&'c String, &'c BoundRead)| Field {
            name,
            kind: &read.kind,
            cell: read.judged(cell(read.column)),
        };
        named.map(field).collect()
    };
    let (old, new) = (fields(Side::Old), fields(Side::New));
    use_them(&Inputs { operation: view.operation(), old: &old, new: &new, allowance })
}

/// What a change of the row invalidates.
pub(super) fn invalidations(
    invalidates: &Invalidates,
    xid: u32,
    view: &RowView<'_>,
    types: &Types,
    relation: &Relation,
) -> impl Iterator<Item = Invalidation> + use<> {
    let scope = scope(invalidates, view, types, relation);
    let concerns_all = matches!(invalidates, Invalidates::Endpoint { every_account: true, .. })
        && scope != Scope::All;
    let joined = joined(invalidates, view, &scope);
    let all = concerns_all.then(|| Invalidation::new(xid, Scope::All));
    std::iter::once(Invalidation { xid, scope, joined }).chain(all)
}

/// Everything where an id that the row had or has is not known.
fn scope(
    invalidates: &Invalidates,
    view: &RowView<'_>,
    types: &Types,
    relation: &Relation,
) -> Scope {
    let Invalidates::Endpoint { id, account, .. } = invalidates else {
        return Scope::All;
    };
    let both = |column: usize| -> SmallVec<[Cell<'_>; 2]> {
        match view.operation() {
            Operation::Insert => SmallVec::from_slice(&[view.after(column)]),
            Operation::Update => SmallVec::from_slice(&[view.before(column), view.after(column)]),
            Operation::Delete => SmallVec::from_slice(&[view.before(column)]),
            Operation::Truncate | Operation::Message => SmallVec::new(),
        }
    };
    let texts = |column: usize| -> SmallVec<[Option<&str>; 2]> {
        let cells = both(column).into_iter();
        cells.map(|cell| Some(key_text(types, relation, column, cell.text()?))).collect()
    };
    let ids: Option<SmallVec<[&str; 2]>> = texts(*id).into_iter().collect();
    // One that is too long is known by another name.
    let short = |ids: &SmallVec<[&str; 2]>| {
        !ids.is_empty() && ids.iter().all(|id| id.len() <= ID_MAX_BYTES)
    };
    let Some(mut ids) = ids.filter(short) else { return Scope::All };
    let accounts = account.map(texts).unwrap_or_default();
    let mut accounts: SmallVec<[&str; 2]> = accounts.into_iter().flatten().collect();
    ids.dedup();
    accounts.dedup();
    Scope::Endpoint {
        endpoints: ids.into_iter().map(EndpointId::new).collect(),
        accounts: accounts.into_iter().map(AccountId::new).collect(),
    }
}

/// The endpoint, where the change shows that it gets what it did not get before: its row is new, or has
/// come from another id or account, or was switched on.
fn joined(
    invalidates: &Invalidates,
    view: &RowView<'_>,
    scope: &Scope,
) -> SmallVec<[EndpointId; 1]> {
    let (Invalidates::Endpoint { account, enabled, .. }, Scope::Endpoint { endpoints, .. }) =
        (invalidates, scope)
    else {
        return SmallVec::new();
    };
    let differs = |column: usize| {
        let (before, after) = (view.before(column), view.after(column));
        before.is_known() && after.is_known() && before != after
    };
    let has_joined = match view.operation() {
        Operation::Insert => true,
        Operation::Update => {
            endpoints.len() > 1
                || account.is_some_and(differs)
                || enabled
                    .is_some_and(|column| differs(column) && view.after(column).text() == Some("t"))
        }
        Operation::Delete | Operation::Truncate | Operation::Message => false,
    };
    let endpoint = endpoints.last().filter(|_| has_joined);
    endpoint.cloned().into_iter().collect()
}
