//! JSON back to PostgreSQL's input, written after the contract and not after the encoder.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

/// What the contract says of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// `true` or `false`.
    Bool,
    /// A number; a string where it is none that JSON has.
    Number,
    /// Base64.
    Bytes,
    /// As it is.
    Embedded,
    /// A string.
    Text,
    /// An array, with the delimiter of its literals.
    Array(Box<Shape>, char),
}

impl Shape {
    /// What the contract says of the built-in type of this name, a domain's being that of its base.
    pub fn of_base(type_name: &str) -> Self {
        match type_name {
            "bool" => Self::Bool,
            "int2" | "int4" | "int8" | "float4" | "float8" => Self::Number,
            "bytea" => Self::Bytes,
            "json" | "jsonb" => Self::Embedded,
            _ => Self::Text,
        }
    }

    /// An array of these.
    pub fn array(self, delimiter: char) -> Self {
        Self::Array(Box::new(self), delimiter)
    }

    /// The text that PostgreSQL reads as the value again; `None` for null.
    pub fn text(&self, json: &RawValue) -> Result<Option<String>> {
        let raw = json.get();
        let is_number = raw.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if raw == "null" {
            return Ok(None);
        }
        Ok(Some(match self {
            Self::Bool => {
                ensure!(matches!(raw, "true" | "false"), "{raw} is no boolean");
                raw.to_owned()
            }
            Self::Number if is_number => raw.to_owned(),
            Self::Number => {
                let text: String = serde_json::from_str(raw)?;
                ensure!(
                    matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity"),
                    "{text} as a number"
                );
                text
            }
            Self::Bytes => {
                let bytes = STANDARD.decode(serde_json::from_str::<String>(raw)?)?;
                bytes.iter().fold("\\x".to_owned(), |hex, byte| hex + &format!("{byte:02x}"))
            }
            Self::Embedded => raw.to_owned(),
            Self::Text => {
                serde_json::from_str(raw).with_context(|| format!("{raw} as a string"))?
            }
            Self::Array(element, delimiter) => Self::literal(element, *delimiter, json)?,
        }))
    }

    fn literal(element: &Self, delimiter: char, json: &RawValue) -> Result<String> {
        // JSON documents may be arrays themselves: of these, one dimension is all that can be told.
        let elements: Vec<&RawValue> = serde_json::from_str(json.get())?;
        let mut texts = Vec::new();
        for json in elements {
            let nested = json.get().starts_with('[') && *element != Self::Embedded;
            texts.push(match element.text(json) {
                _ if nested => Self::literal(element, delimiter, json)?,
                Ok(Some(text)) => quoted(&text),
                Ok(None) => "NULL".to_owned(),
                Err(error) => bail!("{error:#}"),
            });
        }
        Ok(format!("{{{}}}", texts.join(&delimiter.to_string())))
    }
}

/// An element of an array literal.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
