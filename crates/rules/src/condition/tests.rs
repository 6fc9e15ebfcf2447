use proptest::prelude::*;

use super::*;
use crate::row::Missing;

const UNKNOWN: Cell<'static> = Cell::Unknown(Missing::NotLogged);

fn evaluate(text: &str, old: &[Field<'_>], new: &[Field<'_>]) -> Result<bool, EvalError> {
    Condition::compile(text).unwrap().evaluate(&Inputs {
        operation: Operation::Update,
        old,
        new,
        allowance: &Allowance::default(),
    })
}

fn field<'a>(name: &'a str, kind: &'a Kind, cell: Cell<'a>) -> Field<'a> {
    Field { name, kind, cell }
}

fn status(text: &str) -> [Field<'_>; 1] {
    [field("status", &Kind::Text, Cell::Text(text))]
}

fn refusal(text: &str) -> String {
    Condition::compile(text).expect_err(text).to_string()
}

#[test]
fn condition_is_true_and_false_by_the_columns() {
    let when = "old.status != new.status && new['status'] == 'unsubscribed'";
    assert_eq!(evaluate(when, &status("active"), &status("unsubscribed")), Ok(true));
    assert_eq!(evaluate(when, &status("unsubscribed"), &status("unsubscribed")), Ok(false));
    assert_eq!(evaluate("operation == 'update'", &[], &[]), Ok(true));
    assert_eq!(evaluate("operation in ['insert', 'delete']", &[], &[]), Ok(false));
}

#[test]
fn condition_tells_which_columns_it_reads() {
    let text = "old.b == new.a && (old[\"a b\"] > 1 || old.b == 'x') && operation == 'update'";
    let condition = Condition::compile(text).unwrap();
    assert_eq!(condition.columns(Side::Old), ["a b", "b"]);
    assert_eq!(condition.columns(Side::New), ["a"]);
}

#[test]
fn unknown_value_is_an_error_only_where_the_result_depends_on_it() {
    let old = [field("status", &Kind::Text, UNKNOWN)];
    let new = status("active");
    for text in ["old.status == new.status", "old.status != new.status", "old.status == null"] {
        let error = evaluate(text, &old, &new).unwrap_err().to_string();
        assert!(error.starts_with("old.status is not known"), "{error}");
    }
    for (text, result) in [
        ("new.status == 'gone' && old.status == 'x'", false),
        ("old.status == 'x' && new.status == 'gone'", false),
        ("old.status == 'x' || new.status == 'active'", true),
        ("new.status == 'active' ? true : old.status == 'x'", true),
    ] {
        assert_eq!(evaluate(text, &old, &new), Ok(result), "{text}");
    }
    assert!(evaluate("old.status == 'x' && new.status == 'active'", &old, &new).is_err());
}

#[test]
fn values_are_read_by_their_kind() {
    let cases = [
        (Kind::Bigint, "9223372036854775807", "new.c == 9223372036854775807"),
        (Kind::Integer, "-1", "new.c < 0 && new.c + 1 == 0"),
        (Kind::Float, "0.1", "new.c == 0.1"),
        (Kind::Float, "Infinity", "new.c > 1.0"),
        (Kind::Numeric, "19.90", "new.c == 19.9 && new.c > 19"),
        (Kind::Numeric, "0.000000000000000123456789012345", "new.c > 0.0"),
        (Kind::Bool, "t", "new.c"),
        (Kind::Bool, "f", "!new.c"),
        (Kind::Json, "{\"a\": 1}", "new.c.contains('\"a\"')"),
        (Kind::TimestampTz, "2026-11-23 17:46:00.5+00", "new.c > '2026-11-23 17:46:00+00'"),
        (Kind::Text, "a@example.com", "new.c.endsWith('.com') && new.c.matches('^a@')"),
    ];
    for (kind, text, when) in cases {
        let new = [field("c", &kind, Cell::Text(text))];
        assert_eq!(evaluate(when, &[], &new), Ok(true), "{when}");
    }
    let null = [field("c", &Kind::Integer, Cell::Null)];
    assert_eq!(evaluate("new.c == null", &[], &null), Ok(true));
    assert!(evaluate("new.c > 1", &[], &null).is_err(), "null cannot be ordered");
}

#[test]
fn nan_that_an_expression_does_not_expect_is_named_with_what_to_write() {
    for kind in [Kind::Float, Kind::Numeric] {
        let nan = [field("d", &kind, Cell::Text("NaN"))];
        let error = evaluate("new.d > 1.5", &[], &nan).unwrap_err().to_string();
        assert!(error.contains("new.d is NaN; write new.d == new.d &&"), "{error}");
        assert_eq!(evaluate("new.d == new.d && new.d > 1.5", &[], &nan), Ok(false));
    }
}

#[test]
fn null_that_an_expression_does_not_expect_is_named_with_what_to_write() {
    let (null, kind) = ([field("seq", &Kind::Integer, Cell::Null)], Kind::Bool);
    let says = ": new.seq is null; write new.seq != null && before what reads it";
    for when in [
        "new.seq > 5",
        "5 - new.seq > 0",
        "-new.seq > 1",
        "new.seq",
        "!new.seq",
        "size(new.seq) > 1",
        "new.seq.matches('x')",
    ] {
        let error = evaluate(when, &[], &null).unwrap_err().to_string();
        assert!(error.ends_with(says), "{when}: {error}");
    }
    assert_eq!(evaluate("new.seq != null && new.seq > 5", &[], &null), Ok(false));
    assert_eq!(evaluate("new.seq == 5", &[], &null), Ok(false));
    let all = [null[0], field("other", &kind, Cell::Null)];
    let error = evaluate("new.other == null && new.seq > 5", &[], &all).unwrap_err();
    assert!(error.to_string().ends_with(says), "{error}");
}

#[test]
fn columns_that_must_not_be_null_are_known_unless_the_condition_asks_for_that() {
    let unguarded = |when: &str| {
        let condition = Condition::compile(when).unwrap();
        let names = condition.unguarded().map(|(side, of)| format!("{}.{of}", side.as_str()));
        names.collect::<Vec<_>>().join(" ")
    };
    for (when, expected) in [
        ("new.a > 5", "new.a"),
        ("old.a < new.b || new.c", "old.a new.b new.c"),
        ("new.a + 1 == 2 && new.b.startsWith('x')", "new.a new.b"),
        ("new.a ? new.b == 1 : new.c == 2", "new.a"),
        ("new.a.matches('^x')", "new.a"),
        ("new.a", "new.a"),
        ("new.a == 5 && old.b != new.b && new.c in [1, 2]", ""),
        ("new.a != null && new.a > 5", ""),
        ("null == new.a || new['a'] > 5", ""),
        ("new.a != null && old.a > 5", "old.a"),
    ] {
        assert_eq!(unguarded(when), expected, "{when}");
    }
}

#[test]
fn numeric_that_a_double_cannot_hold_is_an_error_not_a_guess() {
    let kind = Kind::Numeric;
    let old = [field("c", &kind, Cell::Text("12345678901234567890.01"))];
    let new = [field("c", &kind, Cell::Text("12345678901234567890.02"))];
    let error = evaluate("old.c != new.c", &old, &new).unwrap_err().to_string();
    assert!(error.contains("15 significant digits"), "{error}");
}

#[test]
fn evaluation_error_holds_no_value_of_the_row() {
    let new =
        [field("n", &Kind::Integer, Cell::Text("7")), field("t", &Kind::Text, Cell::Text("hush"))];
    for text in
        ["new.t > new.n", "int(new.t) > 1", "new.t + new.n == 'x'", "new.n / 0 == 1", "new.t"]
    {
        let error = evaluate(text, &[], &new).unwrap_err().to_string();
        assert!(!error.contains("hush") && !error.contains('7'), "{error}");
    }
}

#[test]
fn text_that_is_not_of_its_kind_is_an_error() {
    for kind in [Kind::Bool, Kind::Integer, Kind::Float, Kind::Numeric] {
        let new = [field("c", &kind, Cell::Text("hush"))];
        let error = evaluate("new.c != null", &[], &new).unwrap_err().to_string();
        assert!(error.contains("new.c") && !error.contains("hush"), "{error}");
    }
}

#[test]
fn condition_refuses_what_it_cannot_bound_or_check() {
    for (text, part) in [
        ("", "not CEL"),
        ("new.status ==", "not CEL"),
        (
            "new.status = 'x'",
            "did you mean == for =? (at character 12, where the ^ stands in: new.status ^= 'x')",
        ),
        ("new.a == 1 and new.b == 2", "did you mean && for and?"),
        ("new.a == 1 or new.b == 2", "did you mean || for or?"),
        ("new.a == ", "at character"),
        (
            "status == 'x'",
            "for a column write new.status or old.status, for a text 'status' in quotes",
        ),
        ("NEW.status == 'x'", "did you mean new?"),
        ("new.status == NULL", "did you mean null?"),
        ("\"status\" == 'x'", "a column is written new.status, without quotes"),
        ("new.a > null", "compare with == null or != null"),
        ("length(new.a) > 1", "did you mean size?"),
        ("new.a.starts_with('x')", "did you mean startsWith?"),
        ("new.tags.exists(t, t == 'x')", "macros"),
        ("[1].all(x, x > 0)", "macros"),
        ("[1, 2].map(x, x) == [1]", "macros"),
        ("row.status == 'x'", "old, new and operation"),
        ("old == new", "name a column"),
        ("new[operation] == 'x'", "literal"),
        ("new.data.field == 'x'", "not a column"),
        ("has(new.status)", "compare with null"),
        ("new.status", ""),
        ("new.a + new.b", "not a boolean"),
        ("'x'", "not a boolean"),
        ("operation", "not a boolean"),
        ("now() > new.at", "calls now"),
        ("new.a.matches('(')", "regular expression"),
        ("new.a.matches(new.b)", "literal pattern"),
        ("operation == 'updated'", "operation is one of"),
        ("{'a': 1} == {'a': 1}", "maps"),
        ("type(new.a) == int", "calls type"),
    ] {
        if part.is_empty() {
            Condition::compile(text).expect("a boolean column is a condition");
        } else {
            assert!(refusal(text).contains(part), "{text}: {}", refusal(text));
        }
    }
    let long = format!("new.a == '{}'", "x".repeat(MAX_TEXT_BYTES));
    assert!(refusal(&long).contains("at most 4096"));
}

#[test]
fn deep_nesting_is_refused_or_evaluated_and_never_overflows_the_stack() {
    let nested = |n: usize| {
        [
            "(".repeat(n) + "true" + &")".repeat(n),
            "(".repeat(n),
            "[".repeat(n) + &"]".repeat(n) + " == []",
            "1+".repeat(n) + "1 > 0",
            "true==".repeat(n) + "true",
            "true ? true : ".repeat(n) + "true",
            "true in [true] in ".repeat(n) + "[true]",
            "!".repeat(n) + "true",
            "new".to_owned() + &".a".repeat(n),
            "size(".repeat(n) + "'a'" + &")".repeat(n) + " == 1",
        ]
    };
    for n in [8, 15, 19, 30, 100, 400] {
        for text in nested(n) {
            if let Ok(condition) = Condition::compile(&text) {
                let inputs = Inputs {
                    operation: Operation::Insert,
                    old: &[],
                    new: &[],
                    allowance: &Allowance::default(),
                };
                let _ = condition.evaluate(&inputs);
            }
        }
    }
    assert!(Condition::compile(&nested(15)[0]).is_ok());
    assert!(refusal(&nested(100)[0]).contains("nested too deeply"));
    let wide = "new.status in ['a', 'b'] || ".repeat(100) + "true";
    assert!(Condition::compile(&wide).is_ok(), "many alternatives are not deep");
}

#[test]
fn literal_of_another_type_than_the_column_is_refused() {
    let fits = |text: &str, kind: &Kind| {
        Condition::compile(text).unwrap().misfits(|_| Some(kind.clone())).next().is_none()
    };
    assert!(!fits("new.id == '5'", &Kind::Bigint));
    assert!(!fits("5 != old.id", &Kind::Text));
    assert!(!fits("new.id in [1, 'x']", &Kind::Integer));
    assert!(!fits("'x' in [new.id]", &Kind::Integer));
    assert!(fits("new.id == 5 && new.id in [1, 2.5] && new.id != null", &Kind::Numeric));
    assert!(fits("new.at == true", &Kind::Bool));
    assert!(!fits("new.at > 5", &Kind::Text));
    assert!(!fits("new.at < '2026-11-23T00:00:00Z'", &Kind::TimestampTz));
    assert!(fits("new.at < '2026-11-23 00:00:00+00'", &Kind::TimestampTz));
}

#[test]
fn column_of_another_type_than_the_one_it_is_compared_with_is_refused() {
    let told = |text: &str| {
        let kind = |column: &str| match column {
            "n" => Some(Kind::Integer),
            "m" => Some(Kind::Numeric),
            "s" => Some(Kind::Text),
            _ => None,
        };
        let condition = Condition::compile(text).unwrap();
        condition.misfits(kind).next().map(|misfit| misfit.why)
    };
    let why = "new.n can never match old.s: the one is a number, the other a string; make both \
               strings: string(new.n)";
    assert_eq!(told("new.n == old.s").as_deref(), Some(why));
    assert!(told("new.s in [new.m]").is_some());
    for fine in ["new.n < new.m", "old.n != new.n", "string(new.n) == new.s", "new.n == new.other"]
    {
        assert_eq!(told(fine), None, "{fine}");
    }
}

proptest! {
    #[test]
    fn numeric_equality_is_exact_or_an_error(
        a in "-?[0-9]{1,12}(\\.[0-9]{1,8})?", b in "-?[0-9]{1,12}(\\.[0-9]{1,8})?",
    ) {
        let kind = Kind::Numeric;
        let old = [field("c", &kind, Cell::Text(&a))];
        let new = [field("c", &kind, Cell::Text(&b))];
        if let Ok(equal) = evaluate("old.c == new.c", &old, &new) {
            prop_assert_eq!(equal, normal(&a) == normal(&b));
        }
    }

    #[test]
    fn condition_compile_never_panics(text in "[-a-z0-9.'\"!&|()\\[\\]<>=?: ]{0,60}") {
        let _ = Condition::compile(&text);
    }
}

/// A decimal without the zeros that mean nothing.
fn normal(decimal: &str) -> String {
    let (sign, digits) = decimal.strip_prefix('-').map_or(("", decimal), |d| ("-", d));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let sign = if whole.is_empty() && fraction.is_empty() { "" } else { sign };
    format!("{sign}{whole}.{fraction}")
}
