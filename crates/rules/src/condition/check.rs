//! What an expression reads, found by walking its syntax tree; and what is refused on the way.

use std::collections::BTreeSet;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue, operators};

use super::hint;
use super::pattern::MATCHES;
use super::{ConditionError, SIDES, Side};
use walhook_core::types::Kind;

/// Functions that an expression may call, beside operators.
const FUNCTIONS: [&str; 12] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "dyn",
];

const OPERATORS: [&str; 17] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::IN,
];

/// What an expression reads.
#[derive(Debug)]
pub(super) struct Reads {
    old: Vec<String>,
    new: Vec<String>,
    compared: Vec<Compared>,
    computed: BTreeSet<(Side, String)>,
    asked_for_null: BTreeSet<(Side, String)>,
}

/// A column, and what it is compared with.
#[derive(Debug)]
struct Compared {
    side: Side,
    column: String,
    with: With,
}

#[derive(Debug)]
enum With {
    Literal(Literal),
    /// Another column, which may be of another type.
    Column(Side, String),
}

/// A column that can never match what it is compared with.
#[derive(Debug)]
pub struct Misfit<'a> {
    /// Of which row.
    pub side: Side,
    /// Its name.
    pub column: &'a str,
    /// What it is compared with, and the fix.
    pub why: String,
}

#[derive(Debug)]
enum Literal {
    Bool,
    Number,
    String(String),
    Bytes,
}

#[derive(Default)]
pub(super) struct Walk {
    columns: BTreeSet<(Side, String)>,
    compared: Vec<Compared>,
    /// Columns that an operator takes which null is nothing to.
    computed: BTreeSet<(Side, String)>,
    /// Columns that are compared with null.
    asked_for_null: BTreeSet<(Side, String)>,
}

impl Reads {
    pub(super) fn of(expression: &IdedExpr) -> Result<Self, ConditionError> {
        let mut walk = Walk::default();
        walk.expression(expression)?;
        if !may_be_bool(&expression.expr) {
            return Err(refuse(
                "the condition's result is not a boolean; compare it with something",
            ));
        }
        walk.compute(expression)?;
        Ok(Self::of_walk(walk))
    }

    /// What a walk has found.
    pub(super) fn of_walk(walk: Walk) -> Self {
        let of_side = |wanted| {
            let columns = walk.columns.iter().filter(move |(side, _)| *side == wanted);
            columns.map(|(_, column)| column.clone()).collect()
        };
        let (old, new) = (of_side(Side::Old), of_side(Side::New));
        let Walk { compared, computed, asked_for_null, .. } = walk;
        Self { old, new, compared, computed, asked_for_null }
    }

    /// The columns that an operator takes which null is nothing to: where one is null, the evaluation fails, unless its
    /// result does not depend on that.
    pub(super) fn computed(&self) -> impl Iterator<Item = (Side, &str)> {
        self.computed.iter().map(|(side, column)| (*side, column.as_str()))
    }

    /// Those of [`Reads::computed`] that the expression never asks whether they are null.
    pub(super) fn unguarded(&self) -> impl Iterator<Item = (Side, &str)> {
        let never_asked = |read: &&(Side, String)| !self.asked_for_null.contains(*read);
        self.computed.iter().filter(never_asked).map(|(side, column)| (*side, column.as_str()))
    }

    /// The columns of one side, sorted by name.
    pub(super) fn columns(&self, side: Side) -> &[String] {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }

    /// The columns that are compared with a text, and the text.
    pub(super) fn texts(&self) -> impl Iterator<Item = (Side, &str, &str)> {
        self.compared.iter().filter_map(|Compared { side, column, with }| match with {
            With::Literal(Literal::String(text)) => Some((*side, column.as_str(), text.as_str())),
            With::Literal(Literal::Bool | Literal::Number | Literal::Bytes) | With::Column(..) => {
                None
            }
        })
    }

    /// The columns that can never match what they are compared with, where `kind` tells what they hold.
    pub(super) fn misfits(
        &self,
        kind: impl Fn(&str) -> Option<Kind>,
    ) -> impl Iterator<Item = Misfit<'_>> {
        self.compared.iter().filter_map(move |Compared { side, column, with }| {
            let (side, column, is) = (*side, column.as_str(), kind(column)?);
            let name = format!("{}.{column}", side.as_str());
            let why = match with {
                With::Literal(literal) => wanted(&is, literal).map(|wanted| {
                    format!("{name} can never match this literal; compare it with {wanted}")
                }),
                With::Column(other_side, other) => {
                    let (is, other_is) = (family(&is), family(&kind(other)?));
                    let other = format!("{}.{other}", other_side.as_str());
                    (is != other_is).then(|| {
                        format!(
                            "{name} can never match {other}: the one is {is}, the other {other_is}; \
                             make both strings: string({name})"
                        )
                    })
                }
            };
            why.map(|why| Misfit { side, column, why })
        })
    }
}

/// What a column of this kind is to be compared with, where that is not such a literal.
fn wanted(kind: &Kind, literal: &Literal) -> Option<&'static str> {
    let (fits, wanted) = match kind {
        Kind::Bool => (matches!(literal, Literal::Bool), "true or false"),
        Kind::Integer | Kind::Bigint | Kind::Float | Kind::Numeric => {
            (matches!(literal, Literal::Number), "a number")
        }
        // In the body there stands a T; who copies it from there would never match.
        Kind::Date | Kind::Timestamp | Kind::TimestampTz => (
            matches!(literal, Literal::String(text) if !text.contains('T')),
            "a string as PostgreSQL prints it in UTC: '2026-11-23 17:46:00+00' (timestamptz), \
             '2026-11-23 17:46:00' (timestamp), '2026-11-23' (date)",
        ),
        Kind::Json | Kind::Bytea | Kind::Text | Kind::Array { .. } => {
            (matches!(literal, Literal::String(_)), "a string")
        }
    };
    (!fits).then_some(wanted)
}

/// What a value of this kind is to an expression.
fn family(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "a boolean",
        Kind::Integer | Kind::Bigint | Kind::Float | Kind::Numeric => "a number",
        Kind::Json
        | Kind::Date
        | Kind::Timestamp
        | Kind::TimestampTz
        | Kind::Bytea
        | Kind::Text
        | Kind::Array { .. } => "a string",
    }
}

impl Walk {
    /// Notes that a column is read.
    pub(super) fn read(&mut self, side: Side, column: &str) {
        self.columns.insert((side, column.to_owned()));
    }

    /// Notes that the expression, where it is a column, must not be null.
    pub(super) fn compute(&mut self, node: &IdedExpr) -> Result<(), ConditionError> {
        if let Some((side, column)) = column_of(&node.expr)? {
            self.computed.insert((side, column.to_owned()));
        }
        Ok(())
    }

    pub(super) fn expression(&mut self, node: &IdedExpr) -> Result<(), ConditionError> {
        if let Some((side, column)) = column_of(&node.expr)? {
            self.read(side, column);
            return Ok(());
        }
        match &node.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if name == "operation" => Ok(()),
            Expr::Ident(name) if name == "old" || name == "new" => {
                Err(refuse(format!("{name} cannot be used as a whole; name a column: {name}.id")))
            }
            Expr::Ident(name) => Err(refuse(format!(
                "the expression reads {name}; it may read old, new and operation only: {}",
                hint::of_name(name)
            ))),
            Expr::List(list) => list.elements.iter().try_for_each(|e| self.expression(e)),
            Expr::Call(call) => self.call(call),
            Expr::Select(select) if select.test => Err(refuse(format!(
                "has() is not allowed, a column is always there; compare with null: \
                 new.{} != null",
                select.field
            ))),
            Expr::Select(select) => {
                self.expression(&select.operand)?;
                Err(refuse(format!(
                    ".{} is not a column of old or new; json is a string here, and fields of it \
                     cannot be read",
                    select.field
                )))
            }
            Expr::Comprehension(_) => {
                Err(refuse("the macros all, exists, exists_one, map and filter are not allowed"))
            }
            Expr::Map(_) | Expr::Struct(_) => {
                Err(refuse("maps and messages are not allowed in a condition or a computation"))
            }
            Expr::Unspecified => Err(refuse("the expression is empty")),
        }
    }

    fn call(&mut self, call: &CallExpr) -> Result<(), ConditionError> {
        let name = call.func_name.as_str();
        if name == operators::INDEX {
            return Err(refuse(
                "only old and new can be indexed, and only with a literal: old[\"status\"]",
            ));
        }
        if !OPERATORS.contains(&name) && !FUNCTIONS.contains(&name) && !name.starts_with(MATCHES) {
            let meant = hint::of_function(name, &FUNCTIONS);
            let meant = meant.map_or_else(String::new, |meant| format!("; {meant}"));
            return Err(refuse(format!(
                "the expression calls {name}; it may call {}{meant}",
                FUNCTIONS.join(", ")
            )));
        }
        for operand in call.target.as_deref().into_iter().chain(&call.args) {
            self.expression(operand)?;
        }
        let computed: &[IdedExpr] = match (name, call.args.as_slice()) {
            (operators::EQUALS | operators::NOT_EQUALS | operators::IN | "dyn", _) => &[],
            (operators::CONDITIONAL, [condition, ..]) => std::slice::from_ref(condition),
            (_, operands) => operands,
        };
        for operand in call.target.as_deref().into_iter().chain(computed) {
            self.compute(operand)?;
        }
        match (name, call.args.as_slice()) {
            (
                operators::EQUALS
                | operators::NOT_EQUALS
                | operators::LESS
                | operators::LESS_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS,
                [left, right],
            ) => {
                senseless(name, left, right)?;
                self.compare_both(left, right)
            }
            (operators::IN, [left, IdedExpr { expr: Expr::List(list), .. }]) => {
                list.elements.iter().try_for_each(|element| self.compare_both(left, element))
            }
            // Those with a literal pattern are taken out already.
            ("matches", _) => Err(refuse(
                "matches takes a text and a literal pattern: new.email.matches('@example[.]com$')",
            )),
            _ => Ok(()),
        }
    }

    /// Notes which columns are compared with a literal, or with another column.
    fn compare_both(&mut self, left: &IdedExpr, right: &IdedExpr) -> Result<(), ConditionError> {
        self.compare(left, right)?;
        self.compare(right, left)?;
        if let (Some((side, column)), Some((other_side, other))) =
            (column_of(&left.expr)?, column_of(&right.expr)?)
            && column != other
        {
            let with = With::Column(other_side, other.to_owned());
            self.compared.push(Compared { side, column: column.to_owned(), with });
        }
        Ok(())
    }

    /// Notes what `left` is compared with, where that is a literal.
    fn compare(&mut self, left: &IdedExpr, right: &IdedExpr) -> Result<(), ConditionError> {
        let Expr::Literal(literal) = &right.expr else { return Ok(()) };
        if matches!(&left.expr, Expr::Ident(name) if name == "operation") {
            let known = matches!(literal, LiteralValue::String(text)
                if matches!(text.inner(), "insert" | "update" | "delete" | "truncate"));
            return if known {
                Ok(())
            } else {
                Err(refuse("operation is one of 'insert', 'update', 'delete' and 'truncate'"))
            };
        }
        let literal = match literal {
            LiteralValue::Null => {
                let column = column_of(&left.expr)?;
                let column = column.map(|(side, column)| (side, column.to_owned()));
                self.asked_for_null.extend(column);
                return Ok(());
            }
            LiteralValue::Boolean(_) => Literal::Bool,
            LiteralValue::Double(_) | LiteralValue::Int(_) | LiteralValue::UInt(_) => {
                Literal::Number
            }
            LiteralValue::String(text) => Literal::String(text.inner().to_owned()),
            LiteralValue::Bytes(_) => Literal::Bytes,
        };
        if let Some((side, column)) = column_of(&left.expr)? {
            let with = With::Literal(literal);
            self.compared.push(Compared { side, column: column.to_owned(), with });
        }
        Ok(())
    }
}

/// Refuses comparisons that read no column, and those whose answer never is yes.
fn senseless(operator: &str, left: &IdedExpr, right: &IdedExpr) -> Result<(), ConditionError> {
    fn literal(side: &IdedExpr) -> Option<&LiteralValue> {
        let Expr::Literal(literal) = &side.expr else { return None };
        Some(literal)
    }
    match (literal(left), literal(right)) {
        (Some(LiteralValue::String(name)), Some(LiteralValue::String(_))) => Err(refuse(format!(
            "two texts are compared, which never changes; a column is written new.{0}, without quotes",
            name.inner()
        ))),
        (Some(LiteralValue::Null), _) | (_, Some(LiteralValue::Null))
            if !matches!(operator, operators::EQUALS | operators::NOT_EQUALS) =>
        {
            Err(refuse(
                "null is neither less nor more than anything; compare with == null or != null",
            ))
        }
        _ => Ok(()),
    }
}

/// The column that the expression is: `old.status` or `old["status"]`.
pub(super) fn column_of(expression: &Expr) -> Result<Option<(Side, &str)>, ConditionError> {
    match expression {
        Expr::Select(select) if !select.test => {
            Ok(side_of(&select.operand).map(|side| (side, select.field.as_str())))
        }
        Expr::Call(call) if call.func_name == operators::INDEX => {
            let [row, index] = call.args.as_slice() else { return Ok(None) };
            let Some(side) = side_of(row) else { return Ok(None) };
            if let Expr::Literal(LiteralValue::String(column)) = &index.expr {
                return Ok(Some((side, column.inner())));
            }
            let side = side.as_str();
            Err(refuse(format!(
                "{side}[…] takes a literal, so that the columns are known: {side}[\"status\"]"
            )))
        }
        Expr::Call(_)
        | Expr::Select(_)
        | Expr::Ident(_)
        | Expr::Literal(_)
        | Expr::List(_)
        | Expr::Map(_)
        | Expr::Struct(_)
        | Expr::Comprehension(_)
        | Expr::Unspecified => Ok(None),
    }
}

fn side_of(node: &IdedExpr) -> Option<Side> {
    let Expr::Ident(name) = &node.expr else { return None };
    SIDES.into_iter().find(|side| side.as_str() == name)
}

/// Whether the expression can yield a boolean at all.
fn may_be_bool(expression: &Expr) -> bool {
    match expression {
        Expr::Literal(literal) => matches!(literal, LiteralValue::Boolean(_)),
        Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::CONDITIONAL, [_, yes, no]) => {
                may_be_bool(&yes.expr) && may_be_bool(&no.expr)
            }
            (
                operators::ADD
                | operators::SUBSTRACT
                | operators::MULTIPLY
                | operators::DIVIDE
                | operators::MODULO
                | operators::NEGATE
                | "size"
                | "int"
                | "uint"
                | "double"
                | "string"
                | "bytes",
                _,
            ) => false,
            _ => true,
        },
        Expr::Select(_) => true,
        Expr::Ident(_)
        | Expr::List(_)
        | Expr::Map(_)
        | Expr::Struct(_)
        | Expr::Comprehension(_)
        | Expr::Unspecified => false,
    }
}

fn refuse(message: impl Into<String>) -> ConditionError {
    ConditionError(message.into())
}
