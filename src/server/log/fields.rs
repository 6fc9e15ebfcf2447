//! An event's fields, in the text format: `name=value`, with what leaves open where a value ends in quotes.
//!
//! A value may be what an endpoint answered, or a name from a customer's row. Without quotes it could bring fields of
//! its own along: `error=status 503 endpoint=8`.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// See the module's documentation.
pub(super) struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, to: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visit = Visitor { to, is_first: true, result: Ok(()) };
        fields.record(&mut visit);
        visit.result
    }
}

struct Visitor<'writer> {
    to: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let name = field.name();
        // Where in a dependency's source the line comes from stands in its target.
        if self.result.is_ok() && !name.starts_with("log.") {
            self.result = self.write(name, value);
        }
    }
}

impl Visitor<'_> {
    fn write(&mut self, name: &str, value: &dyn Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.to.write_char(' ')?;
        }
        if name == "message" {
            return write!(self.to, "{value:?}");
        }
        let name = name.strip_prefix("r#").unwrap_or(name);
        let value = format!("{value:?}");
        if is_plain(&value) || is_quoted(&value) {
            write!(self.to, "{name}={value}")
        } else {
            write!(self.to, "{name}={value:?}")
        }
    }
}

/// Whether it is seen where the value ends.
fn is_plain(value: &str) -> bool {
    let ends = |c: char| c.is_whitespace() || c.is_control() || "\"=\\".contains(c);
    !value.is_empty() && !value.contains(ends)
}

/// Whether it stands in quotes already, as texts that are printed for a programmer do.
fn is_quoted(value: &str) -> bool {
    let within = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    within.is_some_and(|within| {
        let mut is_escaped = false;
        let closes = within.chars().any(|c| {
            let closes = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            closes
        });
        !closes && !is_escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_that_close_before_the_end_are_none() {
        for quoted in [r#""""#, r#""a b""#, r#""a \" b""#, r#""\\""#] {
            assert!(is_quoted(quoted), "{quoted}");
        }
        for open in [r#"""#, r#""a" x="b""#, r#""\""#, "a", r#""a\\"b""#] {
            assert!(!is_quoted(open), "{open}");
        }
    }
}
