//! A rule's `when`: a CEL expression over `old`, `new` and `operation`. Its `data`, over the same, is
//! [`DataExpression`].
//!
//! What the WAL does not carry makes the evaluation an error, never false: the row's values are
//! read only when the expression asks for them, so that `&&`, `||` and `?:` decide whether an
//! unknown value matters.
//!
//! Values by kind: `smallint`, `integer` and `bigint` → int; floats → double; numeric → double
//! where it has at most 15 significant digits, which a double holds exactly, and an error above;
//! boolean → bool; null → null; all else → string in PostgreSQL's text: json and arrays are not
//! taken apart, `char(n)` keeps its blanks, and a timestamptz is `2026-11-23 17:46:00.5+00`, which
//! compares in order of time from year 1 to 9999.
//!
//! An evaluation cannot be stopped half-way, so what it can cost is bounded beforehand: comprehension
//! macros are refused; text and nesting are bounded, so that each value is used a bounded number of
//! times; what the expressions of one change may read is bounded by its [`Allowance`]; patterns are
//! compiled with the rule (the module `pattern`).

mod check;
mod data;
mod hint;
mod parse;
mod pattern;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cel::common::traits::Indexer;
use cel::common::types::{CelBool, CelDouble, CelInt, CelNull, CelString, Type};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, ExecutionError, IdedExpr, Value};

pub use check::Misfit;
pub use data::DataExpression;

use super::row::Cell;
use crate::settings::RuleOperation;
use walhook_core::event::Operation;
use walhook_core::types::Kind;

/// The longest text of an expression, in bytes.
pub const MAX_TEXT_BYTES: usize = 4096;

/// A compiled condition.
pub struct Condition {
    expression: IdedExpr,
    /// Holds the standard functions and the compiled patterns; building it takes ten times as long as an evaluation.
    root: Context<'static, 'static>,
    reads: check::Reads,
    doubts: Vec<String>,
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition").field("reads", &self.reads).finish_non_exhaustive()
    }
}

/// The row before or after the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// `old`
    Old,
    /// `new`
    New,
}

/// Both.
pub const SIDES: [Side; 2] = [Side::Old, Side::New];

impl Side {
    /// The name of the variable.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }

    /// Whether a change of this operation does not have it.
    #[must_use]
    pub const fn is_missing_in(self, operation: RuleOperation) -> bool {
        match (self, operation) {
            (Self::Old, RuleOperation::Insert)
            | (Self::New, RuleOperation::Delete)
            | (_, RuleOperation::Truncate | RuleOperation::Message) => true,
            (Self::New, RuleOperation::Insert)
            | (Self::Old, RuleOperation::Delete)
            | (_, RuleOperation::Update) => false,
        }
    }
}

/// An expression's text cannot be used. The message says why, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConditionError(String);

/// An expression could not be evaluated for a row. Holds no value of the row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EvalError(String);

/// A column's value as a condition sees it.
#[derive(Debug, Clone, Copy)]
pub struct Field<'a> {
    /// The column's name.
    pub name: &'a str,
    /// How its text is to be read.
    pub kind: &'a Kind,
    /// Its value.
    pub cell: Cell<'a>,
}

/// What the expressions of one change may read together, in bytes of text, a column each time that it
/// is read. Sixteen times what a rule sends by default: enough for a few rules over a text of a MiB, and
/// some 10 ms of work.
pub const READ_BYTES_MAX: usize = 16 << 20;

/// What the expressions of one change may still read. Atomic only because values are shared so in CEL.
#[derive(Debug)]
pub struct Allowance(AtomicUsize);

impl Default for Allowance {
    fn default() -> Self {
        Self(AtomicUsize::new(READ_BYTES_MAX))
    }
}

impl Allowance {
    /// Takes `bytes`; what is left is nothing once they do not suffice, so that no later expression
    /// is answered where an earlier one was not.
    fn take(&self, bytes: usize) -> Result<(), String> {
        let rest = self.0.load(Ordering::Relaxed).checked_sub(bytes);
        self.0.store(rest.unwrap_or(0), Ordering::Relaxed);
        rest.map(|_| ()).ok_or_else(|| {
            format!(
                "the expressions read more than {} MiB of this change's values; read large columns in \
                 fewer places",
                READ_BYTES_MAX >> 20
            )
        })
    }
}

/// What a condition is evaluated over: all columns that [`Condition::columns`] names.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `operation`
    pub operation: Operation,
    /// `old`
    pub old: &'a [Field<'a>],
    /// `new`
    pub new: &'a [Field<'a>],
    /// What may be read of them.
    pub allowance: &'a Allowance,
}

impl Condition {
    /// Compiles the text of a `when`.
    ///
    /// # Errors
    /// When it is longer than [`MAX_TEXT_BYTES`], is not CEL, uses a macro, reads anything but
    /// `operation` and named columns of `old` and `new`, calls an unknown function, or surely does
    /// not yield a boolean.
    pub fn compile(text: &str) -> Result<Self, ConditionError> {
        let mut expression = parse::parse(bounded(text)?)?;
        let mut root = Context::default();
        let doubts = pattern::compile(&mut expression, &mut root)?;
        let reads = check::Reads::of(&expression)?;
        Ok(Self { expression, root, reads, doubts })
    }

    /// What of it surely does not mean what it says, and what to write instead, for whoever wrote it: a pattern
    /// that looks for a backslash.
    #[must_use]
    pub fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// The columns that the condition may read, sorted by name.
    #[must_use]
    pub fn columns(&self, side: Side) -> &[String] {
        self.reads.columns(side)
    }

    /// The columns that are compared with a text, and the text.
    pub fn texts(&self) -> impl Iterator<Item = (Side, &str, &str)> {
        self.reads.texts()
    }

    /// The columns that must not be null, and that the condition never asks whether they are: of a row that has none of
    /// one it cannot be told whether it holds.
    pub fn unguarded(&self) -> impl Iterator<Item = (Side, &str)> {
        self.reads.unguarded()
    }

    /// The columns that can never match what they are compared with: CEL would answer "no" for ever
    /// to `new.id == '5'` where `id` is a number.
    pub fn misfits(&self, kind: impl Fn(&str) -> Option<Kind>) -> impl Iterator<Item = Misfit<'_>> {
        self.reads.misfits(kind)
    }

    /// Evaluates the condition for one row.
    ///
    /// # Errors
    /// When the result depends on a value that the WAL does not carry, cannot be read, or does not
    /// fit the operator; or when the result is not a boolean.
    pub fn evaluate(&self, inputs: &Inputs<'_>) -> Result<bool, EvalError> {
        let variables = Variables::of(inputs);
        let mut context = self.root.new_inner_scope();
        context.set_variable_resolver(&variables);
        let result = Value::resolve_val(&self.expression, &context)
            .map_err(|error| EvalError(describe(&error, &self.reads, inputs)))?;
        let result = result.downcast_ref::<CelBool>().map(|result| *result.inner());
        result.ok_or_else(|| {
            let why = "the condition's result is not a boolean".to_owned();
            EvalError(with_culprit(why, &self.reads, inputs))
        })
    }
}

fn bounded(text: &str) -> Result<&str, ConditionError> {
    let bytes = text.len();
    if bytes <= MAX_TEXT_BYTES {
        return Ok(text);
    }
    let problem = format!("the expression has {bytes} bytes; at most {MAX_TEXT_BYTES} are allowed");
    Err(ConditionError(problem))
}

/// A message for a person. The error's own text may quote values of the row.
fn describe(error: &ExecutionError, reads: &check::Reads, inputs: &Inputs<'_>) -> String {
    let mut why = "the expression does not apply to the types of its values".to_owned();
    if let ExecutionError::FunctionError { function, message } = error {
        if function != UNREADABLE {
            return format!("the function {function} failed");
        }
        if message != pattern::NO_STRING {
            return message.clone();
        }
        why.clone_from(message);
    }
    if let ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) = error {
        return "division by zero".to_owned();
    }
    if let ExecutionError::Overflow(..) = error {
        return "the result of an operator is out of range".to_owned();
    }
    if let ExecutionError::NoSuchOverload(overload) = error {
        let types = overload.argument_types().join(", ");
        why = format!("{} does not apply to ({types})", overload.function());
    }
    with_culprit(why, reads, inputs)
}

/// Why an operator does not apply, with the column that is null or NaN, where one is that it may not be, and what to
/// write.
fn with_culprit(why: String, reads: &check::Reads, inputs: &Inputs<'_>) -> String {
    let fields = |side| match side {
        Side::Old => inputs.old,
        Side::New => inputs.new,
    };
    for (side, column) in reads.computed() {
        let Some(field) = fields(side).iter().find(|field| field.name == column) else { continue };
        let name = format!("{}.{column}", side.as_str());
        match (field.cell, field.kind) {
            (Cell::Null, _) => {
                return format!(
                    "{why}: {name} is null; write {name} != null && before what reads it"
                );
            }
            // It is ordered before and after no number, and is not equal to itself.
            (Cell::Text("NaN"), Kind::Float | Kind::Numeric) => {
                return format!(
                    "{why}: {name} is NaN; write {name} == {name} && before what reads it"
                );
            }
            (Cell::Text(_) | Cell::Unknown(_), _) => {}
        }
    }
    why
}

/// Marks errors whose message is ours, and safe to show.
const UNREADABLE: &str = "@column";

static ROW_TYPE: Type = Type::new_unspecified_type("row");

struct Variables<'a> {
    old: Row<'a>,
    new: Row<'a>,
    operation: &'static str,
}

impl<'a> Variables<'a> {
    fn of(inputs: &Inputs<'a>) -> Self {
        Self {
            old: Row { side: Side::Old, fields: inputs.old, allowance: inputs.allowance },
            new: Row { side: Side::New, fields: inputs.new, allowance: inputs.allowance },
            operation: inputs.operation.as_str(),
        }
    }
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "old" => Some(CowVal::Borrowed(&self.old)),
            "new" => Some(CowVal::Borrowed(&self.new)),
            "operation" => Some(CowVal::owned(CelString::from(self.operation))),
            _ => None,
        }
    }
}

/// `old` or `new`: converts a column's text when the expression reads it.
#[derive(Debug, Clone, Copy)]
struct Row<'a> {
    side: Side,
    fields: &'a [Field<'a>],
    allowance: &'a Allowance,
}

impl Row<'_> {
    fn error(&self, column: &str, why: &dyn fmt::Display) -> ExecutionError {
        ExecutionError::FunctionError {
            function: UNREADABLE.to_owned(),
            message: format!("{}.{column} is not known: {why}", self.side.as_str()),
        }
    }

    fn read<'v>(&self, column: &str) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let field = self.fields.iter().find(|field| field.name == column);
        let field = field.ok_or_else(|| ExecutionError::NoSuchKey(Arc::new(column.to_owned())))?;
        let text = match field.cell {
            Cell::Null => return Ok(Box::new(CelNull)),
            Cell::Unknown(missing) => return Err(self.error(column, &missing)),
            Cell::Text(text) => text,
        };
        self.allowance.take(text.len()).map_err(|why| self.error(column, &why))?;
        convert(field.kind, text).map_err(|why| self.error(column, &why))
    }
}

impl Val for Row<'_> {
    fn get_type(&self) -> &Type {
        &ROW_TYPE
    }

    fn cel_type() -> &'static Type {
        &ROW_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

impl Indexer for Row<'_> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let column = index.downcast_ref::<CelString<'_>>().ok_or_else(|| {
            ExecutionError::UnexpectedType {
                got: index.get_type().name().to_owned(),
                want: "string".to_owned(),
            }
        })?;
        self.read(column.inner()).map(CowVal::Owned)
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

fn convert<'v>(kind: &Kind, text: &'v str) -> Result<Box<dyn Val + 'v>, &'static str> {
    Ok(match kind {
        Kind::Bool => match text {
            "t" => Box::new(CelBool::from(true)),
            "f" => Box::new(CelBool::from(false)),
            _ => return Err("its text is not that of a boolean"),
        },
        Kind::Integer | Kind::Bigint => {
            let n: i64 = text.parse().map_err(|_| "its text is not that of an integer")?;
            Box::new(CelInt::from(n))
        }
        Kind::Float => Box::new(CelDouble::from(double(text)?)),
        Kind::Numeric => {
            if significant_digits(text) > EXACT_DIGITS {
                return Err("it has more than 15 significant digits, which an expression cannot \
                            compute with exactly");
            }
            Box::new(CelDouble::from(double(text)?))
        }
        Kind::Json
        | Kind::Date
        | Kind::Timestamp
        | Kind::TimestampTz
        | Kind::Bytea
        | Kind::Text
        | Kind::Array { .. } => Box::new(CelString::from(text)),
    })
}

/// Decimals of so many digits differ as doubles whenever they differ (`DBL_DIG`).
const EXACT_DIGITS: usize = 15;

fn double(text: &str) -> Result<f64, &'static str> {
    text.parse().map_err(|_| "its text is not that of a number")
}

fn significant_digits(text: &str) -> usize {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_digit).collect();
    let first = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    let last = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
    last.saturating_sub(first)
}

#[cfg(test)]
mod tests;
