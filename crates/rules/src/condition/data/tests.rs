use crate::condition::Allowance;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::condition::Field;
use crate::row::Missing;
use walhook_core::event::Operation;

fn field<'a>(name: &'a str, kind: &'a Kind, cell: Cell<'a>) -> Field<'a> {
    Field { name, kind, cell }
}

fn write(text: &str, new: &[Field<'_>], limit: usize) -> Result<String, EvalError> {
    let data = DataExpression::compile(text).unwrap();
    let inputs =
        Inputs { operation: Operation::Insert, old: &[], new, allowance: &Allowance::default() };
    let mut out = BytesMut::new();
    let mut put_row = |out: &mut BytesMut| out.put_slice(b"{\"id\":7}");
    data.write(&mut out, &inputs, Bigint::Number, limit, &mut put_row)?;
    Ok(String::from_utf8(out.to_vec()).unwrap())
}

fn refusal(text: &str) -> String {
    DataExpression::compile(text).expect_err(text).to_string()
}

#[test]
fn data_holds_columns_as_they_are_and_computations_beside_them() {
    let new = [
        field("big", &Kind::Bigint, Cell::Text("9223372036854775807")),
        field("doc", &Kind::Json, Cell::Text("{\"a\": 1.50}")),
        field("gone", &Kind::Text, Cell::Null),
        field("n", &Kind::Integer, Cell::Text("5")),
        field("name", &Kind::Text, Cell::Text("Ada \"x\"")),
        field("price", &Kind::Numeric, Cell::Text("12345678901234567890.123456789")),
    ];
    for (text, expected) in [
        ("{}", "{}"),
        ("[]", "[]"),
        ("row", "{\"id\":7}"),
        ("new.price", "\"12345678901234567890.123456789\""),
        (
            "{'is': operation, 'row': row, 'l': [new.big, new.doc, [new.gone]], 'c': new.n + 1}",
            r#"{"is":"insert","row":{"id":7},"l":[9223372036854775807,{"a": 1.50},[null]],"c":6}"#,
        ),
        ("{'a\"b': new.name + '!', 'h': double(new.n) / 2.0}", r#"{"a\"b":"Ada \"x\"!","h":2.5}"#),
        ("new.n > 3 ? {'big': new.big} : [new.nothing]", r#"{"big":9223372036854775807}"#),
        (
            "{'a': new.n == 5, 'b': [1] + [2], 'c': b'\\xff', 'd': null}",
            r#"{"a":true,"b":[1,2],"c":"/w==","d":null}"#,
        ),
        ("[1.0 / 0.0, -1.0 / 0.0, 1.0]", r#"["Infinity","-Infinity",1.0]"#),
    ] {
        assert_eq!(write(text, &new, 4096).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn data_that_needs_what_is_not_known_is_an_error_without_a_value_of_the_row() {
    let new = [
        field("bad", &Kind::Integer, Cell::Text("hush")),
        field("price", &Kind::Numeric, Cell::Text("12345678901234567890.5")),
        field("text", &Kind::Text, Cell::Text("hush")),
        field("toast", &Kind::Text, Cell::Unknown(Missing::UnchangedToast)),
    ];
    for (text, part) in [
        ("{'a': new.toast}", "new.toast is not known"),
        ("{'a': new.toast + 'x'}", "new.toast is not known"),
        ("[new.bad]", "new.bad is not known"),
        ("new.price * 2.0", "15 significant digits"),
        ("new.text ? 1 : 2", "not a boolean"),
        ("{'a': new.text - 1}", ""),
    ] {
        let error = write(text, &new, 4096).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("hush"), "{text}: {error}");
    }
    assert_eq!(write("false ? new.toast : new.price", &new, 99).unwrap().len(), 24);
}

#[test]
fn data_stops_soon_after_its_bound() {
    let long = "x".repeat(1000);
    let new = [field("text", &Kind::Text, Cell::Text(&long))];
    let text = format!("[{}]", ["new.text"; 400].join(","));
    let written = write(&text, &new, 5000).unwrap();
    assert!((5001..7000).contains(&written.len()), "{}", written.len());
}

#[test]
fn data_tells_what_it_reads() {
    let text = "{'a': new.b, 'c': old.d == new.e ? row : [old['f g']]}";
    let data = DataExpression::compile(text).unwrap();
    assert_eq!(data.columns(Side::New), ["b", "e"]);
    assert_eq!(data.columns(Side::Old), ["d", "f g"]);
    assert!(data.reads_row());
    assert!(!DataExpression::compile("{'a': new.b}").unwrap().reads_row());
}

#[test]
fn data_refuses_what_it_cannot_bound_or_check() {
    for (text, part) in [
        ("", "not CEL"),
        ("{'a': new}", "name a column"),
        ("{new.a: 1}", "literal strings"),
        ("{1: 1}", "literal strings"),
        ("{'a': 1, 'a': 2}", "twice"),
        ("{'a': [1].map(x, x)}", "macros"),
        ("{'a': row + 'x'}", "reads row"),
        ("{'a': new.doc.field}", "not a column"),
        ("{'a': {'b': 1}['b']}", "can be indexed"),
        ("{'a': now()}", "calls now"),
    ] {
        assert!(refusal(text).contains(part), "{text}: {}", refusal(text));
    }
    assert!(refusal(&format!("'{}'", "x".repeat(5000))).contains("at most 4096"));
    let deep = "{'a': ".repeat(60) + "1" + &"}".repeat(60);
    assert!(refusal(&deep).contains("nested too deeply"));
    let data = DataExpression::compile("{'a': new.id == '5'}").unwrap();
    assert!(data.misfits(|_| Some(Kind::Bigint)).next().is_some());
}

/// An expression, and what it has to write where `new.t` is a text and `new.n` a bigint.
fn any_data() -> impl Strategy<Value = (String, fn(&str, i64) -> serde_json::Value)> {
    prop_oneof![
        Just((String::from("new.t"), (|t, _| json!(t)) as fn(&str, i64) -> serde_json::Value)),
        Just((String::from("[new.n, new.t]"), (|t, n| json!([n, t])) as fn(&str, i64) -> _)),
        Just((
            String::from("{'k': new.n > 0 ? new.t : new.n, 'e': new.t + '!'}"),
            (|t, n| json!({"k": if n > 0 { json!(t) } else { json!(n) }, "e": format!("{t}!")}))
                as fn(&str, i64) -> _
        )),
    ]
}

proptest! {
    #[test]
    fn data_reads_back_as_the_values_of_the_row((text, expected) in any_data(), t: String, n: i64) {
        let digits = n.to_string();
        let new =
            [field("n", &Kind::Bigint, Cell::Text(&digits)), field("t", &Kind::Text, Cell::Text(&t))];
        let written = write(&text, &new, usize::MAX).unwrap();
        let read: serde_json::Value = serde_json::from_str(&written).unwrap();
        prop_assert_eq!(read, expected(&t, n));
    }

    #[test]
    fn data_compile_never_panics(text in "[-a-z0-9.'\"!&|(){}\\[\\]<>=?:, ]{0,60}") {
        let _ = DataExpression::compile(&text);
    }
}
