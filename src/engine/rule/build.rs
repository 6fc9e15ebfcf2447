//! A change and its binding → items.

use std::hash::Hasher;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::bind::{Binding, BoundField, BoundRule, Invalidates};
use super::{Account, Rule};
use crate::config::{Bigint, RuleOperation};
use crate::engine::change::{Change, Rows};
use crate::engine::condition::{Condition, Field, Inputs, Side};
use crate::engine::event::{
    AccountId, EndpointId, Event, Invalidation, Item, Operation, RowKeys, Scope, Unroutable,
    UnroutableReason,
};
use crate::engine::position::{EventId, Position};
use crate::engine::row::{Cell, Missing, RowView};
use crate::engine::value::{ValueError, put_value};

pub(super) struct Builder<'a> {
    pub(super) system_identifier: u64,
    pub(super) bigint: Bigint,
    pub(super) rules: &'a [Rule],
    pub(super) binding: &'a Binding,
    pub(super) change: &'a Change<'a>,
    /// Kept from one change to the next; what leaves is a copy of the right size.
    pub(super) scratch: &'a mut BytesMut,
}

impl Builder<'_> {
    pub(super) fn build(mut self, out: &mut Vec<Item>) {
        let view = RowView::new(&self.change.relation, &self.change.rows);
        if let Some(invalidates) = &self.binding.invalidates {
            let xid = self.change.transaction.xid;
            out.push(Item::Invalidate(Invalidation { xid, scope: scope(invalidates, &view) }));
        }
        let operation = match view.operation() {
            Operation::Insert => RuleOperation::Insert,
            Operation::Update => RuleOperation::Update,
            Operation::Delete => RuleOperation::Delete,
            Operation::Truncate => RuleOperation::Truncate,
            Operation::Message => RuleOperation::Message,
        };
        let binding = self.binding;
        for (event_type, rules) in &binding.types {
            out.extend(rules.iter().find_map(|bound| {
                let rule = self.rules.get(bound.rule)?;
                let matches = rule.on.contains(&operation);
                matches.then(|| self.item(event_type, rule, bound, &view)).flatten()
            }));
        }
    }

    /// What the rule makes of the change; `None` where its condition does not hold.
    fn item(
        &mut self,
        event_type: &Arc<str>,
        rule: &Rule,
        bound: &BoundRule,
        view: &RowView<'_>,
    ) -> Option<Item> {
        if let Rows::Oversize { bytes, .. } = &self.change.rows {
            return Some(self.oversize(event_type, rule, *bytes, view));
        }
        let doubt = self.binding.doubt.clone();
        let mut failure = doubt.map(|doubt| (UnroutableReason::Table, doubt));
        if let Some(condition) = &rule.condition {
            match evaluate(condition, bound, view) {
                Ok(false) => return None,
                Ok(true) => {}
                Err(detail) => failure = Some((UnroutableReason::Condition, detail)),
            }
        }
        let account = account(rule, bound, view).unwrap_or_else(|detail| {
            failure.get_or_insert((UnroutableReason::Account, detail));
            AccountId::new("")
        });
        if let Err(detail) = self.put_row(bound, view) {
            failure.get_or_insert((UnroutableReason::Value, detail));
        }
        let event = self.event(event_type, account, view);
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
        self.scratch.put_slice(b"\"data\":null");
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
    fn put_row(&mut self, bound: &BoundRule, view: &RowView<'_>) -> Result<(), String> {
        self.scratch.clear();
        let mut writer = Writer { out: self.scratch, bigint: self.bigint, failed: None };
        writer.put_data(&bound.fields, view);
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

struct Writer<'a> {
    out: &'a mut BytesMut,
    bigint: Bigint,
    /// The first value that could not be written.
    failed: Option<String>,
}

impl Writer<'_> {
    fn put_data(&mut self, fields: &[BoundField], view: &RowView<'_>) {
        self.out.put_slice(b"\"data\":{");
        let start = self.out.len();
        for field in fields {
            self.put_member(start, field, view.current(field.column));
        }
        self.out.put_u8(b'}');
    }

    fn put_previous(&mut self, fields: &[BoundField], view: &RowView<'_>) {
        let before = self.out.len();
        self.out.put_slice(b",\"previous\":{");
        let start = self.out.len();
        for field in fields {
            let (old, new) = (view.before(field.column), view.after(field.column));
            if new.is_known() && old != new {
                self.put_member(start, field, old);
            }
        }
        if self.out.len() == start {
            self.out.truncate(before);
        } else {
            self.out.put_u8(b'}');
        }
    }

    fn put_unchanged(&mut self, fields: &[BoundField], view: &RowView<'_>) {
        let unchanged = Cell::Unknown(Missing::UnchangedToast);
        let mut opening: &[u8] = b",\"unchanged\":[";
        for field in fields.iter().filter(|field| view.current(field.column) == unchanged) {
            self.out.put_slice(opening);
            self.out.put_slice(&field.name);
            opening = b",";
        }
        if opening == b"," {
            self.out.put_u8(b']');
        }
    }

    /// Appends `"name":value` to the object whose first member begins at `start`; nothing where the
    /// value is unknown or cannot be written.
    fn put_member(&mut self, start: usize, field: &BoundField, cell: Cell<'_>) {
        let before = self.out.len();
        if before > start {
            self.out.put_u8(b',');
        }
        self.out.put_slice(&field.name);
        self.out.put_u8(b':');
        match cell {
            Cell::Null => self.out.put_slice(b"null"),
            Cell::Unknown(_) => self.out.truncate(before),
            Cell::Text(text) => {
                if let Err(error) = put_value(self.out, &field.kind, text, self.bigint) {
                    self.out.truncate(before);
                    self.note(field, error);
                }
            }
        }
    }

    fn note(&mut self, field: &BoundField, error: ValueError) {
        let name = String::from_utf8_lossy(&field.name);
        self.failed.get_or_insert_with(|| format!("{name} cannot be written: {error}"));
    }
}

/// The account that the change belongs to, or why that cannot be told.
fn account(rule: &Rule, bound: &BoundRule, view: &RowView<'_>) -> Result<AccountId, String> {
    let (name, column) = match (&rule.account, bound.account) {
        (Account::Fixed(account), _) => return Ok(account.clone()),
        (Account::Named(name), column) => (name, column),
    };
    match column.map_or(Cell::Null, |column| view.current(column)) {
        Cell::Text(text) => Ok(AccountId::new(text)),
        Cell::Null => Err(format!("the account column {name} is null")),
        Cell::Unknown(missing) => Err(format!("the account column {name} is not known: {missing}")),
    }
}

fn evaluate(condition: &Condition, bound: &BoundRule, view: &RowView<'_>) -> Result<bool, String> {
    let fields = |side| -> SmallVec<[Field<'_>; 4]> {
        let columns = if side == Side::Old { &bound.old } else { &bound.new };
        let names = condition.columns(side).iter();
        let cell =
            |column| if side == Side::Old { view.before(column) } else { view.after(column) };
        names
            .zip(columns)
            .map(|(name, (column, kind))| Field { name, kind, cell: cell(*column) })
            .collect()
    };
    let (old, new) = (fields(Side::Old), fields(Side::New));
    let inputs = Inputs { operation: view.operation(), old: &old, new: &new };
    condition.evaluate(&inputs).map_err(|error| error.to_string())
}

/// What the row is ordered by. Empty where the primary key is not wholly known: such an event is
/// ordered by its account, which is stricter.
///
/// An old key that the WAL does not carry (a changed primary key that is not the replica identity)
/// is left out.
fn keys(binding: &Binding, view: &RowView<'_>) -> RowKeys {
    if binding.primary_key.is_empty() {
        return RowKeys::new();
    }
    let Some(current) = key_hash(binding, |column| view.current(column)) else {
        return RowKeys::new();
    };
    let old = match view.operation() {
        Operation::Update => key_hash(binding, |column| view.before(column)),
        Operation::Insert | Operation::Delete | Operation::Truncate | Operation::Message => None,
    };
    old.filter(|old| *old != current).into_iter().chain([current]).collect()
}

/// Shape: FNV-1a, 64 bits, over the root table's OID (4 bytes, big-endian), then for each column of
/// the primary key, in the key's order, the length of its text (8 bytes, big-endian) and the text.
/// Invariant: never changes, because it is stored with deferred events.
///
/// Source: Fowler, Noll, Vo: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn key_hash<'a>(binding: &Binding, cell: impl Fn(usize) -> Cell<'a>) -> Option<u64> {
    let mut hash = Fnv1a::default();
    hash.write(&binding.root.to_be_bytes());
    for column in &binding.primary_key {
        let text = cell(*column).text()?;
        hash.write(&u64::try_from(text.len()).ok()?.to_be_bytes());
        hash.write(text.as_bytes());
    }
    Some(hash.finish())
}

struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Everything where an id that the row had or has is not known.
fn scope(invalidates: &Invalidates, view: &RowView<'_>) -> Scope {
    let Invalidates::Endpoint { id, account } = invalidates else { return Scope::All };
    let both = |column: usize| -> SmallVec<[Cell<'_>; 2]> {
        match view.operation() {
            Operation::Insert => SmallVec::from_slice(&[view.after(column)]),
            Operation::Update => SmallVec::from_slice(&[view.before(column), view.after(column)]),
            Operation::Delete => SmallVec::from_slice(&[view.before(column)]),
            Operation::Truncate | Operation::Message => SmallVec::new(),
        }
    };
    let ids: Option<SmallVec<[&str; 2]>> = both(*id).into_iter().map(Cell::text).collect();
    let Some(mut ids) = ids.filter(|ids| !ids.is_empty()) else { return Scope::All };
    let accounts = account.map(both).unwrap_or_default();
    let mut accounts: SmallVec<[&str; 2]> = accounts.into_iter().filter_map(Cell::text).collect();
    ids.dedup();
    accounts.dedup();
    Scope::Endpoint {
        endpoints: ids.into_iter().map(EndpointId::new).collect(),
        accounts: accounts.into_iter().map(AccountId::new).collect(),
    }
}
