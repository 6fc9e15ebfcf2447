//! The patterns of `matches`: compiled with the rule, and bounded in what a row can make them cost.
//!
//! CEL's own `matches` compiles its pattern for each row, which takes milliseconds. So each call with
//! a literal pattern becomes a call of a function of its own, which holds the compiled pattern.
//!
//! A pattern is matched by a lazy DFA: a nanosecond a byte while a row's text leads to states that are
//! known, and microseconds for each state that is not. Whoever writes the rows chooses which. What
//! bounds it, and decides by the pattern and the text alone, never by what was matched before:
//!
//! - A pattern has at most [`POSITIONS_MAX`] positions, the places where it can stand at one moment.
//! - Where text × positions is at most [`STEPS_MAX`], all of it can be new, and takes milliseconds.
//! - Beyond, the search begins with no state known, and is given up where it needs new ones for ever:
//!   whether the text matches could not be told then.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue};
use cel::common::types::CelString;
use cel::{Context, ExecutionError, FunctionContext, IdedExpr, Value};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::pikevm::PikeVM;
use regex_automata::nfa::thompson::{NFA, WhichCaptures};
use regex_automata::{Input, MatchKind};
use regex_syntax::hir::{Hir, HirKind};

use super::{ConditionError, UNREADABLE};

/// Patterns of one expression: each holds up to [`CACHE_BYTES`] beside itself.
const PATTERNS_MAX: usize = 16;

/// Places of a pattern: literal bytes and classes, each as often as it is repeated. An e-mail address
/// with its lengths bounded has some hundred.
const POSITIONS_MAX: usize = 1000;

/// A compiled pattern; `\w{1,64}` takes 1.1 MiB, for it knows the letters of all scripts.
const PATTERN_BYTES: usize = 8 << 20;

/// The states of one pattern that are known at a time.
const CACHE_BYTES: usize = 1 << 20;

/// Bytes of text × positions that are searched whatever it takes: 10 ms at the very worst.
const STEPS_MAX: usize = 1 << 20;

/// A search is given up where all known states had to be forgotten twice and still each new one leads
/// less far than so many bytes.
const BYTES_PER_STATE: usize = 100;

/// What is said where the value is none that a pattern can be looked for in.
pub(super) const NO_STRING: &str = "matches applies to a string";

/// How a call that holds its pattern is named; no expression can write it.
pub(super) const MATCHES: &str = "@matches";

/// Takes the literal patterns out of an expression and puts the compiled ones into `context`, as the
/// functions that are called instead. Other calls of `matches` stay, to be refused. Returns what is told of
/// patterns that surely do not mean what they say.
///
/// # Errors
/// When a pattern is no regular expression or too large, or there are too many.
pub(super) fn compile(
    expression: &mut IdedExpr,
    context: &mut Context<'static, 'static>,
) -> Result<Vec<String>, ConditionError> {
    let (mut patterns, mut doubts) = (Vec::new(), Vec::new());
    take(&mut expression.expr, &mut patterns)?;
    for (n, mut pattern) in patterns.into_iter().enumerate() {
        doubts.extend(pattern.doubt.take());
        let matches = move |call: &FunctionContext<'_, '_>| pattern.call(call);
        context
            .add_function(&format!("{MATCHES}{n}"), matches)
            .map_err(|error| refuse(format!("matches cannot be used: {error}")))?;
    }
    Ok(doubts)
}

/// What is told of a pattern that was escaped once too often on its way through TOML or a template: it looks for
/// a backslash, which hardly any text has, and so it silently never matches.
///
/// A path such as `C:\\data` is meant as it stands: so the letter of a class counts only where no other letter
/// follows it, and a dot only where one does.
fn doubt(pattern: &str) -> Option<String> {
    let mut rest = pattern;
    while let Some((_, behind)) = rest.split_once('\\') {
        let mut following = behind.chars();
        // What is escaped.
        let escaped = following.next()?;
        rest = following.as_str();
        let letter = following.next();
        let ends_word = !following.next().is_some_and(char::is_alphanumeric);
        let class = letter.filter(|letter| match letter {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'b' | 'B' => ends_word,
            '.' => !ends_word,
            _ => false,
        });
        if let Some(class) = class.filter(|_| escaped == '\\') {
            return Some(format!(
                "the pattern looks for a literal backslash followed by `{class}`; write `\\\\{class}` in a CEL \
                 string, or r'\\{class}'"
            ));
        }
    }
    None
}

fn take(expression: &mut Expr, patterns: &mut Vec<Pattern>) -> Result<(), ConditionError> {
    match expression {
        Expr::Call(call) => {
            take_call(call, patterns)?;
            let operands = call.target.as_deref_mut().into_iter().chain(&mut call.args);
            operands
                .map(|operand| &mut operand.expr)
                .try_for_each(|operand| take(operand, patterns))
        }
        Expr::List(list) => {
            list.elements.iter_mut().try_for_each(|element| take(&mut element.expr, patterns))
        }
        Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
            EntryExpr::MapEntry(entry) => take(&mut entry.value.expr, patterns),
            EntryExpr::StructField(_) => Ok(()),
        }),
        Expr::Select(select) => take(&mut select.operand.expr, patterns),
        Expr::Literal(_)
        | Expr::Ident(_)
        | Expr::Struct(_)
        | Expr::Comprehension(_)
        | Expr::Unspecified => Ok(()),
    }
}

/// `text.matches('pattern')` and `matches(text, 'pattern')` both become `@matches0(text)`.
fn take_call(call: &mut CallExpr, patterns: &mut Vec<Pattern>) -> Result<(), ConditionError> {
    let operands = usize::from(call.target.is_some()) + call.args.len();
    if call.func_name != "matches" || operands != 2 {
        return Ok(());
    }
    let Some(IdedExpr { expr: Expr::Literal(LiteralValue::String(pattern)), .. }) =
        call.args.last()
    else {
        return Ok(());
    };
    if patterns.len() == PATTERNS_MAX {
        return Err(refuse(format!(
            "the expression has more than {PATTERNS_MAX} patterns; write some as one: 'this|that'"
        )));
    }
    call.func_name = format!("{MATCHES}{}", patterns.len());
    patterns.push(Pattern::compile(pattern.inner())?);
    call.args.pop();
    call.args.extend(call.target.take().map(|target| *target));
    Ok(())
}

/// One compiled pattern.
struct Pattern {
    /// What is told of it, where it surely does not mean what it says.
    doubt: Option<String>,
    positions: usize,
    /// Looks for as long as it takes.
    patient: DFA,
    /// Gives up.
    hurried: DFA,
    /// For what a DFA cannot tell: `\b` beside letters that are not ASCII.
    thorough: PikeVM,
    /// Of both DFAs, in this order.
    caches: Mutex<(Cache, Cache)>,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pattern").field("positions", &self.positions).finish_non_exhaustive()
    }
}

impl Pattern {
    fn compile(pattern: &str) -> Result<Self, ConditionError> {
        let hir = regex_syntax::parse(pattern).map_err(|error| {
            let text = error.to_string();
            let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            refuse(format!("the pattern of matches is not a regular expression: {why}"))
        })?;
        let positions = positions(&hir);
        if positions > POSITIONS_MAX {
            return Err(refuse(format!(
                "the pattern of matches has {positions} positions, letters and classes as often as \
                 they are repeated; at most {POSITIONS_MAX} are allowed: repeat less in braces, or use \
                 + and *"
            )));
        }
        let config =
            NFA::config().which_captures(WhichCaptures::None).nfa_size_limit(Some(PATTERN_BYTES));
        let nfa = NFA::compiler().configure(config).build_from_hir(&hir).map_err(|_| {
            refuse(format!(
                "the pattern of matches takes more than {} MiB; repeat \\w and \\pL less in braces, \
                 or write [0-9A-Za-z_]",
                PATTERN_BYTES >> 20
            ))
        })?;
        let config = DFA::config()
            .match_kind(MatchKind::LeftmostFirst)
            .unicode_word_boundary(true)
            .skip_cache_capacity_check(true)
            .cache_capacity(CACHE_BYTES);
        let hurry = config
            .clone()
            .minimum_cache_clear_count(Some(2))
            .minimum_bytes_per_state(Some(BYTES_PER_STATE));
        let dfa =
            |config| DFA::builder().configure(config).build_from_nfa(nfa.clone()).map_err(unusable);
        let (patient, hurried) = (dfa(config)?, dfa(hurry)?);
        let thorough = PikeVM::new_from_nfa(nfa).map_err(unusable)?;
        let caches = Mutex::new((patient.create_cache(), hurried.create_cache()));
        Ok(Self { doubt: doubt(pattern), positions, patient, hurried, thorough, caches })
    }

    fn call(&self, call: &FunctionContext<'_, '_>) -> Result<Value, ExecutionError> {
        let text = call.args.first().and_then(|text| text.downcast_ref::<CelString<'_>>());
        let found = match text {
            Some(text) => self.is_match(text.inner()),
            None => Err(NO_STRING.to_owned()),
        };
        found.map(Value::Bool).map_err(|message| ExecutionError::FunctionError {
            function: UNREADABLE.to_owned(),
            message,
        })
    }

    /// Whether the pattern is found in the text; or why that cannot be told.
    fn is_match(&self, text: &str) -> Result<bool, String> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let (patient, hurried) = &mut *caches;
        let input = Input::new(text).earliest(true);
        let few_steps = text.len().saturating_mul(self.positions) <= STEPS_MAX;
        let found = if few_steps {
            self.patient.try_search_fwd(patient, &input)
        } else {
            hurried.reset(&self.hurried);
            self.hurried.try_search_fwd(hurried, &input)
        };
        match found {
            Ok(found) => Ok(found.is_some()),
            Err(_) if few_steps => {
                Ok(self.thorough.is_match(&mut self.thorough.create_cache(), input))
            }
            Err(_) => Err(format!(
                "whether a text of {} bytes matches its pattern takes too long to find out; match a \
                 shorter text, or write a simpler pattern",
                text.len()
            )),
        }
    }
}

fn unusable(error: impl fmt::Display) -> ConditionError {
    refuse(format!("the pattern of matches cannot be used: {error}"))
}

fn refuse(message: String) -> ConditionError {
    ConditionError(message)
}

/// In how many places a search can stand at most; more than [`POSITIONS_MAX`] need not be exact.
fn positions(hir: &Hir) -> usize {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Class(_) => 1,
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min.max(1));
            positions(&repetition.sub).saturating_mul(usize::try_from(times).unwrap_or(usize::MAX))
        }
        HirKind::Capture(capture) => positions(&capture.sub),
        HirKind::Concat(subs) | HirKind::Alternation(subs) => {
            subs.iter().map(positions).fold(0, usize::saturating_add)
        }
    }
}

#[cfg(test)]
mod tests;
