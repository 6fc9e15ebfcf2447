//! A change's values → the row's part of an event's body.

use bytes::{BufMut, BytesMut};

use super::bind::{BoundField, BoundRule};
use super::build::with_inputs;
use crate::condition::{Allowance, DataExpression};
use crate::row::{Cell, Missing, RowView};
use crate::settings::Bigint;
use crate::value::{ValueError, put_value};
use walhook_core::types::Kind;

pub(super) struct Writer<'a> {
    pub(super) out: &'a mut BytesMut,
    pub(super) bigint: Bigint,
    /// The first value that could not be written.
    pub(super) failed: Option<String>,
}

impl Writer<'_> {
    pub(super) fn put_data(&mut self, fields: &[BoundField], view: &RowView<'_>) {
        self.out.put_slice(b"\"data\":");
        self.put_object(fields, view);
    }

    fn put_object(&mut self, fields: &[BoundField], view: &RowView<'_>) {
        self.out.put_u8(b'{');
        let start = self.out.len();
        for field in fields {
            self.put_member(start, field, view.current(field.column));
        }
        self.out.put_u8(b'}');
    }

    /// `"data":` and what the expression builds; null where it cannot. Little more than `limit` bytes.
    pub(super) fn put_built(
        &mut self,
        data: &DataExpression,
        bound: &BoundRule,
        view: &RowView<'_>,
        allowance: &Allowance,
        limit: usize,
    ) {
        self.out.put_slice(b"\"data\":");
        let start = self.out.len();
        let bigint = self.bigint;
        let mut problem = None;
        let mut put_row = |out: &mut BytesMut| {
            let mut row = Writer { out, bigint, failed: None };
            row.put_object(&bound.fields, view);
            problem = problem.take().or(row.failed);
        };
        let out = &mut *self.out;
        let written = with_inputs(
            &bound.built,
            |side| data.columns(side),
            view,
            allowance,
            |inputs| data.write(out, inputs, bigint, limit, &mut put_row),
        );
        if let Err(error) = written {
            self.out.truncate(start);
            self.out.put_slice(b"null");
            problem = Some(format!("data: {error}"));
        }
        if let Some(problem) = problem {
            self.failed.get_or_insert(problem);
        }
    }

    /// `"data":` and the JSON that the column holds, as it is; null where that cannot be.
    pub(super) fn put_data_column(&mut self, name: &str, cell: Cell<'_>) {
        self.out.put_slice(b"\"data\":");
        let problem = match cell {
            Cell::Null => None,
            Cell::Unknown(missing) => Some(format!("is not known: {missing}")),
            Cell::Text(text) => match put_value(self.out, &Kind::Json, text, self.bigint) {
                Ok(()) => return,
                Err(_) => Some("does not hold JSON".to_owned()),
            },
        };
        self.out.put_slice(b"null");
        if let Some(problem) = problem {
            self.failed.get_or_insert_with(|| format!("the data column {name} {problem}"));
        }
    }

    pub(super) fn put_previous(&mut self, fields: &[BoundField], view: &RowView<'_>) {
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

    pub(super) fn put_unchanged(&mut self, fields: &[BoundField], view: &RowView<'_>) {
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
