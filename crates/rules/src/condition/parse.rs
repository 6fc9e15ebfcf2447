//! Parses an expression without overflowing the stack.
//!
//! The parser recurses a dozen large frames deep for each bracket (130 kB in a debug build), and its
//! own limit lies far beyond an ordinary thread's stack: 16 brackets end the process. So the
//! nesting is bounded before it begins, and it runs on a stack that suffices for the bound. The
//! evaluation recurses as deep, with frames of half that size, on whichever thread it runs.

use cel::{IdedExpr, Program};

use super::ConditionError;
use super::hint::{self, Guess};

/// Brackets and chained operators that may be open at one place: evaluating so many takes 1.3 MB in
/// a debug build, of the 2 MB that a thread has.
const MAX_NESTING: usize = 20;

/// Ten times what `MAX_NESTING` brackets need in a debug build; only what is used is backed by
/// memory, and only while a condition is compiled.
const STACK_BYTES: usize = 32 << 20;

pub(super) fn parse(text: &str) -> Result<IdedExpr, ConditionError> {
    if nesting(text) > MAX_NESTING {
        return Err(ConditionError(
            "the expression is nested too deeply; write less brackets, or shorter chains of \
             operators between && and ||"
                .to_owned(),
        ));
    }
    let compile = || {
        let program =
            Program::compile(text).map_err(|errors| not_cel(text, errors.errors.first()))?;
        Ok(program.expression().clone())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let parser = thread.spawn_scoped(scope, compile).map_err(|error| {
            ConditionError(format!("cannot start a thread for the expression's parser: {error}"))
        })?;
        let crashed = || ConditionError("the expression is not CEL".to_owned());
        parser.join().unwrap_or_else(|_| Err(crashed()))
    })
}

/// What is wrong, where, and what was probably meant.
fn not_cel(text: &str, error: Option<&cel::ParseError>) -> ConditionError {
    if let Some(Guess { at, meant }) = hint::of_text(text) {
        let place = hint::place(text, at);
        return ConditionError(format!(
            "the expression is not CEL; did you mean {meant}? ({place})"
        ));
    }
    let Some(error) = error else {
        return ConditionError("the expression is not CEL".to_owned());
    };
    let message = error.msg.replace('\n', " ");
    let (line, column) = error.pos;
    let place = match (usize::try_from(line), usize::try_from(column)) {
        (Ok(line @ 1..), Ok(column @ 1..)) => {
            format!(" ({})", hint::place(text, hint::offset(text, line, column)))
        }
        _ => String::new(),
    };
    ConditionError(format!("the expression is not CEL: {message}{place}"))
}

/// An upper bound of the syntax tree's depth: open brackets, and in each the operators since the
/// last one that begins anew (`&&`, `||` and the comma, whose operands stand side by side).
fn nesting(text: &str) -> usize {
    let mut open = vec![0usize];
    let mut deepest = 0;
    let mut bytes = text.bytes();
    let mut word = Vec::new();
    let mut before = b' ';
    while let Some(byte) = bytes.next() {
        if byte.is_ascii_alphanumeric() || byte == b'_' {
            word.push(byte);
            before = byte;
            continue;
        }
        let step = match byte {
            b'=' if matches!(before, b'=' | b'!' | b'<' | b'>') => 0,
            // A column is a leaf.
            b'.' if matches!(word.as_slice(), b"old" | b"new") => 0,
            b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' | b'!' | b'.' | b'?' | b':' => 1,
            _ => usize::from(word == b"in"),
        };
        word.clear();
        before = byte;
        match open.last_mut() {
            Some(innermost) if matches!(byte, b'&' | b'|' | b',') => *innermost = 0,
            Some(innermost) => *innermost += step,
            None => {}
        }
        match byte {
            b'(' | b'[' | b'{' => open.push(1),
            b')' | b']' | b'}' if open.len() > 1 => drop(open.pop()),
            b'\'' | b'"' => skip_string(&mut bytes, byte),
            _ => {}
        }
        deepest = deepest.max(open.iter().sum());
    }
    deepest
}

fn skip_string(bytes: &mut impl Iterator<Item = u8>, quote: u8) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            _ if byte == quote => return,
            _ => {}
        }
    }
}
