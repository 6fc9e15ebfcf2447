//! A rule's `data`: a CEL expression that builds the value of `data`.
//!
//! ```text
//! {'id': new.id, 'name': new.first + ' ' + new.last, 'row': row, 'vip': new.plan == 'gold' ? 1 : 0}
//! ```
//!
//! Maps, lists and `?:` are taken apart when the rule is compiled. What stands inside is either a
//! column by itself, which is written as `columns` would write it, every digit exact and json
//! embedded; or `row`, the selected columns; or a computation, which sees values as a `when` does and
//! is an error where those cannot be exact.

use std::collections::HashSet;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use cel::common::ast::{EntryExpr, Expr, LiteralValue, MapExpr, operators};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelNull, CelString, CelUInt,
};
use cel::common::value::Val;
use cel::{Context, IdedExpr, Value};

use super::check::{Reads, Walk, column_of};
use super::{
    ConditionError, EvalError, Inputs, Misfit, Side, Variables, bounded, describe, parse, pattern,
};
use crate::row::Cell;
use crate::settings::Bigint;
use crate::value::put_value;
use walhook_core::event::put_json_text;
use walhook_core::types::Kind;

/// A compiled `data` expression.
pub struct DataExpression {
    shape: Shape,
    /// Holds the standard functions and the compiled patterns.
    root: Context<'static, 'static>,
    reads: Reads,
    reads_row: bool,
    doubts: Vec<String>,
}

impl fmt::Debug for DataExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataExpression").field("reads", &self.reads).finish_non_exhaustive()
    }
}

/// What is written, from the outside in.
enum Shape {
    Row,
    Column(Side, String),
    Computed(IdedExpr),
    List(Vec<Self>),
    /// Each key as JSON text.
    Map(Vec<(Bytes, Self)>),
    Choice {
        condition: IdedExpr,
        yes: Box<Self>,
        no: Box<Self>,
    },
}

impl DataExpression {
    /// Compiles the text of a `data`.
    ///
    /// # Errors
    /// As [`Condition::compile`](super::Condition::compile), but for the result, which may be anything
    /// that JSON has a form for; and for keys of maps that are no literals, or occur twice.
    pub fn compile(text: &str) -> Result<Self, ConditionError> {
        let mut expression = parse::parse(bounded(text)?)?;
        let mut root = Context::default();
        let doubts = pattern::compile(&mut expression, &mut root)?;
        let mut build = Build { walk: Walk::default(), reads_row: false };
        let shape = build.shape(&expression)?;
        let (reads, reads_row) = (Reads::of_walk(build.walk), build.reads_row);
        Ok(Self { shape, root, reads, reads_row, doubts })
    }

    /// As [`Condition::doubts`](super::Condition::doubts).
    #[must_use]
    pub fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// The columns that the expression may read by name, sorted.
    #[must_use]
    pub fn columns(&self, side: Side) -> &[String] {
        self.reads.columns(side)
    }

    /// Whether the expression reads `row`, the selected columns.
    #[must_use]
    pub const fn reads_row(&self) -> bool {
        self.reads_row
    }

    /// As [`Condition::texts`](super::Condition::texts).
    pub fn texts(&self) -> impl Iterator<Item = (Side, &str, &str)> {
        self.reads.texts()
    }

    /// As [`Condition::unguarded`](super::Condition::unguarded).
    pub fn unguarded(&self) -> impl Iterator<Item = (Side, &str)> {
        self.reads.unguarded()
    }

    /// As [`Condition::misfits`](super::Condition::misfits).
    pub fn misfits(&self, kind: impl Fn(&str) -> Option<Kind>) -> impl Iterator<Item = Misfit<'_>> {
        self.reads.misfits(kind)
    }

    /// Appends the value for one row; `put_row` appends the selected columns.
    ///
    /// Stops soon after `out` has more than `limit` bytes: what is there then is no JSON.
    ///
    /// # Errors
    /// When it needs a value that the WAL does not carry or that cannot be read, or a computation
    /// fails. What was appended is no JSON then.
    pub fn write(
        &self,
        out: &mut BytesMut,
        inputs: &Inputs<'_>,
        bigint: Bigint,
        limit: usize,
        put_row: &mut dyn FnMut(&mut BytesMut),
    ) -> Result<(), EvalError> {
        let variables = Variables::of(inputs);
        let mut context = self.root.new_inner_scope();
        context.set_variable_resolver(&variables);
        let reads = &self.reads;
        Writing { inputs, reads, bigint, limit, put_row, context: &context }.put(out, &self.shape)
    }
}

/// Takes an expression apart.
struct Build {
    walk: Walk,
    reads_row: bool,
}

impl Build {
    fn shape(&mut self, node: &IdedExpr) -> Result<Shape, ConditionError> {
        if let Some((side, column)) = column_of(&node.expr)? {
            self.walk.read(side, column);
            return Ok(Shape::Column(side, column.to_owned()));
        }
        match &node.expr {
            Expr::Ident(name) if name == "row" => {
                self.reads_row = true;
                Ok(Shape::Row)
            }
            Expr::List(list) if list.optional_indices.is_empty() => list
                .elements
                .iter()
                .map(|e| self.shape(e))
                .collect::<Result<_, _>>()
                .map(Shape::List),
            Expr::Map(map) => self.map(map),
            Expr::Call(call) if call.func_name == operators::CONDITIONAL => {
                let [condition, yes, no] = call.args.as_slice() else {
                    return Err(ConditionError("?: takes three operands".to_owned()));
                };
                self.walk.expression(condition)?;
                self.walk.compute(condition)?;
                let (yes, no) = (Box::new(self.shape(yes)?), Box::new(self.shape(no)?));
                Ok(Shape::Choice { condition: condition.clone(), yes, no })
            }
            Expr::Call(_)
            | Expr::List(_)
            | Expr::Select(_)
            | Expr::Ident(_)
            | Expr::Literal(_)
            | Expr::Struct(_)
            | Expr::Comprehension(_)
            | Expr::Unspecified => {
                self.walk.expression(node)?;
                Ok(Shape::Computed(node.clone()))
            }
        }
    }

    fn map(&mut self, map: &MapExpr) -> Result<Shape, ConditionError> {
        let mut seen = HashSet::new();
        let mut members = Vec::with_capacity(map.entries.len());
        for entry in &map.entries {
            let member = match &entry.expr {
                EntryExpr::MapEntry(entry) if !entry.optional => {
                    literal(&entry.key.expr).map(|key| (key, &entry.value))
                }
                EntryExpr::MapEntry(_) | EntryExpr::StructField(_) => None,
            };
            let Some((key, value)) = member else {
                let text = "the keys of a map are literal strings: {'id': new.id}";
                return Err(ConditionError(text.to_owned()));
            };
            if !seen.insert(key) {
                return Err(ConditionError(format!("a map has the key {key:?} twice")));
            }
            let mut json = BytesMut::new();
            put_json_text(&mut json, key);
            members.push((json.freeze(), self.shape(value)?));
        }
        Ok(Shape::Map(members))
    }
}

fn literal(expression: &Expr) -> Option<&str> {
    if let Expr::Literal(LiteralValue::String(text)) = expression {
        Some(text.inner())
    } else {
        None
    }
}

/// Writes the value for one row.
struct Writing<'a, 'c, 'v> {
    inputs: &'a Inputs<'a>,
    reads: &'a Reads,
    bigint: Bigint,
    limit: usize,
    put_row: &'a mut dyn FnMut(&mut BytesMut),
    context: &'a Context<'c, 'v>,
}

impl Writing<'_, '_, '_> {
    fn put(&mut self, out: &mut BytesMut, shape: &Shape) -> Result<(), EvalError> {
        // Bounded, for one column may stand in an expression hundreds of times.
        if out.len() > self.limit {
            return Ok(());
        }
        match shape {
            Shape::Row => {
                (self.put_row)(out);
                Ok(())
            }
            Shape::Column(side, name) => self.column(out, *side, name),
            Shape::Computed(expression) => {
                let value = Value::resolve_val(expression, self.context);
                put_computed(
                    out,
                    &*value
                        .map_err(|error| EvalError(describe(&error, self.reads, self.inputs)))?,
                )
            }
            Shape::List(elements) => {
                let mut opening = b'[';
                for element in elements {
                    out.put_u8(std::mem::replace(&mut opening, b','));
                    self.put(out, element)?;
                }
                close(out, opening, b"[]");
                Ok(())
            }
            Shape::Map(members) => {
                let mut opening = b'{';
                for (key, value) in members {
                    out.put_u8(std::mem::replace(&mut opening, b','));
                    out.put_slice(key);
                    out.put_u8(b':');
                    self.put(out, value)?;
                }
                close(out, opening, b"{}");
                Ok(())
            }
            Shape::Choice { condition, yes, no } => {
                let value = Value::resolve_val(condition, self.context);
                let value =
                    value.map_err(|error| EvalError(describe(&error, self.reads, self.inputs)))?;
                let holds = value.downcast_ref::<CelBool>().map(|value| *value.inner());
                match holds {
                    Some(true) => self.put(out, yes),
                    Some(false) => self.put(out, no),
                    None => Err(EvalError("the condition of ?: is not a boolean".to_owned())),
                }
            }
        }
    }

    /// A column by itself: as `columns` would write it.
    fn column(&self, out: &mut BytesMut, side: Side, name: &str) -> Result<(), EvalError> {
        let fields = if side == Side::Old { self.inputs.old } else { self.inputs.new };
        let field = fields.iter().find(|field| field.name == name);
        let problem = match field.map(|field| (field.cell, field.kind)) {
            None => "it is not there".to_owned(),
            Some((Cell::Unknown(missing), _)) => missing.to_string(),
            Some((Cell::Null, _)) => {
                out.put_slice(b"null");
                return Ok(());
            }
            Some((Cell::Text(text), kind)) => match put_value(out, kind, text, self.bigint) {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
        };
        Err(EvalError(format!("{}.{name} is not known: {problem}", side.as_str())))
    }
}

/// Ends an object or array; `empty` is both its brackets.
fn close(out: &mut BytesMut, opening: u8, empty: &[u8; 2]) {
    let [open, end] = *empty;
    if opening == open {
        out.put_u8(open);
    }
    out.put_u8(end);
}

fn put_computed(out: &mut BytesMut, value: &dyn Val) -> Result<(), EvalError> {
    if let Some(value) = value.downcast_ref::<CelString<'_>>() {
        put_json_text(out, value.inner());
    } else if let Some(value) = value.downcast_ref::<CelBool>() {
        out.put_slice(if *value.inner() { b"true" } else { b"false" });
    } else if let Some(value) = value.downcast_ref::<CelInt>() {
        out.put_slice(value.inner().to_string().as_bytes());
    } else if let Some(value) = value.downcast_ref::<CelUInt>() {
        out.put_slice(value.inner().to_string().as_bytes());
    } else if let Some(value) = value.downcast_ref::<CelDouble>() {
        put_double(out, *value.inner());
    } else if value.downcast_ref::<CelNull>().is_some() {
        out.put_slice(b"null");
    } else if let Some(value) = value.downcast_ref::<CelBytes<'_>>() {
        put_json_text(out, &STANDARD.encode(value.inner()));
    } else if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        let mut opening = b'[';
        for element in list.inner() {
            out.put_u8(std::mem::replace(&mut opening, b','));
            put_computed(out, &**element)?;
        }
        close(out, opening, b"[]");
    } else {
        return Err(EvalError("it gives a value that JSON has no form for".to_owned()));
    }
    Ok(())
}

/// The shortest digits that read back as the same number; what is no number as PostgreSQL names it.
fn put_double(out: &mut BytesMut, value: f64) {
    match serde_json::Number::from_f64(value) {
        Some(number) => out.put_slice(number.to_string().as_bytes()),
        None if value.is_nan() => put_json_text(out, "NaN"),
        None if value > 0.0 => put_json_text(out, "Infinity"),
        None => put_json_text(out, "-Infinity"),
    }
}

#[cfg(test)]
mod tests;
