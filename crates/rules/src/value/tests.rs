use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn encode_as(kind: &Kind, text: &str, bigint: Bigint) -> Result<String, ValueError> {
    let mut out = BytesMut::from("before");
    put_value(&mut out, kind, text, bigint)?;
    Ok(String::from_utf8(out.to_vec()).unwrap().strip_prefix("before").unwrap().to_owned())
}

fn encode(kind: &Kind, text: &str) -> Result<String, ValueError> {
    encode_as(kind, text, Bigint::Number)
}

fn array_of(element: Kind) -> Kind {
    Kind::Array { element: std::sync::Arc::new(element), delimiter: b',' }
}

fn scalars() -> Vec<Kind> {
    vec![
        Kind::Bool,
        Kind::Integer,
        Kind::Bigint,
        Kind::Float,
        Kind::Numeric,
        Kind::Json,
        Kind::Date,
        Kind::Timestamp,
        Kind::TimestampTz,
        Kind::Bytea,
        Kind::Text,
    ]
}

fn any_kind() -> impl Strategy<Value = Kind> {
    (proptest::sample::select(scalars()), 0..3)
        .prop_map(|(kind, arrays)| (0..arrays).fold(kind, |kind, _| array_of(kind)))
}

/// Texts that come close to what the kinds accept, so that errors in the middle are met too.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[-+]?[0-9]{0,3}(\\.[0-9]{0,2})?([eE][-+]?[0-9]{0,2})?",
        "[0-9]{3,5}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,6})?(\\+00)?)?( BC)?",
        "\\\\x[0-9a-g]{0,9}",
        "[\\[\\]{}\",\\\\:=0-9a NUL-]{0,20}",
        "(\\[0:1\\]=)?\\{(\"[a\\\\\"]{0,4}\"|[0-9tf]|NULL|,|\\{|\\}){0,8}\\}",
    ]
}

/// What an array literal may hold.
#[derive(Debug, Clone)]
enum Node {
    Null,
    Text(String),
    Array(Vec<Node>),
}

impl Node {
    /// As `array_out` writes it.
    fn literal(&self) -> String {
        match self {
            Self::Null => "NULL".to_owned(),
            Self::Text(text) => {
                let plain = !text.is_empty()
                    && !text.eq_ignore_ascii_case("null")
                    && !text.contains(|c: char| "{}\",\\".contains(c) || c.is_whitespace());
                if plain {
                    return text.clone();
                }
                format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            }
            Self::Array(nodes) => {
                let nodes: Vec<_> = nodes.iter().map(Self::literal).collect();
                format!("{{{}}}", nodes.join(","))
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Text(text) => json!(text),
            Self::Array(nodes) => nodes.iter().map(Self::json).collect(),
        }
    }
}

fn any_array() -> impl Strategy<Value = Node> {
    let texts = prop_oneof![any::<String>(), Just("NULL".to_owned()), "[a,{}\\\\\" ]{0,5}"];
    let leaf = prop_oneof![1 => Just(Node::Null), 4 => texts.prop_map(Node::Text)];
    let array = proptest::collection::vec(leaf, 0..5).prop_map(Node::Array);
    array.prop_recursive(4, 30, 4, |inner| {
        proptest::collection::vec(inner, 1..4).prop_map(Node::Array)
    })
}

proptest! {
    #[test]
    fn value_output_is_one_json_value_or_an_error_for_any_text(
        kind in any_kind(), text in any_text(), as_string: bool,
    ) {
        let bigint = if as_string { Bigint::String } else { Bigint::Number };
        if let Ok(output) = encode_as(&kind, &text, bigint) {
            prop_assert!(serde_json::from_str::<IgnoredAny>(&output).is_ok(), "{:?}", output);
        }
    }

    #[test]
    fn value_error_leaves_the_buffer_as_it_was(kind in any_kind(), text in any_text()) {
        let mut out = BytesMut::from("before");
        if put_value(&mut out, &kind, &text, Bigint::Number).is_err() {
            prop_assert_eq!(&out[..], b"before");
        }
    }

    #[test]
    fn array_literal_reads_back_as_its_elements(array in any_array()) {
        let output = encode(&array_of(Kind::Text), &array.literal()).unwrap();
        prop_assert_eq!(serde_json::from_str::<Value>(&output).unwrap(), array.json());
        let bounded = format!("[0:1][-3:4]={}", array.literal());
        prop_assert_eq!(encode(&array_of(Kind::Text), &bounded).unwrap(), output);
    }

    #[test]
    fn integer_keeps_its_digits(n: i64) {
        let text = n.to_string();
        prop_assert_eq!(encode(&Kind::Bigint, &text).unwrap(), text.clone());
        prop_assert_eq!(encode_as(&Kind::Bigint, &text, Bigint::String).unwrap(), format!("\"{text}\""));
    }

    #[test]
    fn float_keeps_its_digits(f: f64) {
        let text = format!("{f:e}");
        match f.is_finite() {
            true => prop_assert_eq!(encode(&Kind::Float, &text).unwrap(), text),
            false => prop_assert!(encode(&Kind::Float, "Infinity").is_ok()),
        }
    }

    #[test]
    fn json_number_grammar_agrees_with_serde(text in "-?[0-9.eE+-]{0,8}") {
        let is_number = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        prop_assert_eq!(is_json_number(&text), is_number);
    }

    #[test]
    fn bytea_reads_back_as_its_bytes(bytes: Vec<u8>) {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let output = encode(&Kind::Bytea, &format!("\\x{hex}")).unwrap();
        prop_assert_eq!(output, format!("\"{}\"", STANDARD.encode(&bytes)));
    }
}

#[test]
fn value_is_written_as_the_contract_says() {
    let cases = [
        (Kind::Bool, "t", "true"),
        (Kind::Integer, "-7", "-7"),
        (Kind::Float, "1e+20", "1e+20"),
        (Kind::Float, "-0", "-0"),
        (Kind::Float, "NaN", "\"NaN\""),
        (Kind::Float, "-Infinity", "\"-Infinity\""),
        (Kind::Numeric, "1.500", "\"1.500\""),
        (Kind::Numeric, "NaN", "\"NaN\""),
        (Kind::Json, "{\"a\" :\n 1e400}", "{\"a\" :\n 1e400}"),
        (Kind::Date, "2026-11-23", "\"2026-11-23\""),
        (Kind::Date, "0044-03-15 BC", "\"0044-03-15 BC\""),
        (Kind::Date, "infinity", "\"infinity\""),
        (Kind::Timestamp, "2026-11-23 17:46:00.5", "\"2026-11-23T17:46:00.5\""),
        (Kind::Timestamp, "12026-11-23 17:46:00", "\"12026-11-23 17:46:00\""),
        (Kind::TimestampTz, "2026-11-23 17:46:00.123456+00", "\"2026-11-23T17:46:00.123456Z\""),
        (Kind::TimestampTz, "0044-03-15 00:00:00+00 BC", "\"0044-03-15 00:00:00+00 BC\""),
        (Kind::TimestampTz, "-infinity", "\"-infinity\""),
        (Kind::Bytea, "\\x", "\"\""),
        (Kind::Text, "a\"b", "\"a\\\"b\""),
        (array_of(Kind::Integer), "[0:1]={1,NULL}", "[1,null]"),
        (array_of(Kind::Integer), "{{1,2},{3,4}}", "[[1,2],[3,4]]"),
        (array_of(Kind::Integer), "{}", "[]"),
        (array_of(Kind::Text), "{NULL,\"NULL\",\"\"}", "[null,\"NULL\",\"\"]"),
        (array_of(Kind::Bool), "{t,f}", "[true,false]"),
        (array_of(Kind::Json), r#"{"{\"a\": [1]}"}"#, "[{\"a\": [1]}]"),
        (array_of(Kind::TimestampTz), "{\"2026-11-23 17:46:00+00\"}", "[\"2026-11-23T17:46:00Z\"]"),
        (
            Kind::Array { element: std::sync::Arc::new(Kind::Text), delimiter: b';' },
            "{(1,1),(0,0);(2,2),(1,1)}",
            "[\"(1,1),(0,0)\",\"(2,2),(1,1)\"]",
        ),
    ];
    for (kind, text, expected) in cases {
        assert_eq!(encode(&kind, text).as_deref(), Ok(expected), "{kind:?} {text}");
    }
}

#[test]
fn value_that_is_not_of_its_kind_is_an_error() {
    let cases = [
        (Kind::Bool, "true"),
        (Kind::Integer, ""),
        (Kind::Integer, "-"),
        (Kind::Integer, "01"),
        (Kind::Integer, "1 "),
        (Kind::Float, "1."),
        (Kind::Float, "1e"),
        (Kind::Json, "{\"a\":1} x"),
        (Kind::Json, ""),
        (Kind::Date, "23.11.2026"),
        (Kind::Date, "2026-11-23 10:00:00"),
        (Kind::Timestamp, "Mon Nov 23 17:46:00 2026"),
        (Kind::TimestampTz, "2026-11-23 17:46:00+02"),
        (Kind::TimestampTz, "2026-11-23 17:46:00"),
        (Kind::Bytea, "\\x0"),
        (Kind::Bytea, "\\xzz"),
        (Kind::Bytea, "abc"),
        (array_of(Kind::Integer), ""),
        (array_of(Kind::Integer), "{1"),
        (array_of(Kind::Integer), "{1,}"),
        (array_of(Kind::Integer), "{1}2"),
        (array_of(Kind::Integer), "{x}"),
        (array_of(Kind::Integer), "{{{{{{{1}}}}}}}"),
        (array_of(Kind::Text), "{\"a}"),
    ];
    for (kind, text) in cases {
        assert!(encode(&kind, text).is_err(), "{kind:?} {text}");
    }
}
