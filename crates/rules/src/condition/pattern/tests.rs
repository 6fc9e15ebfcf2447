use super::*;
use crate::condition::{Allowance, Condition, Field, Inputs, READ_BYTES_MAX, parse};
use crate::row::Cell;
use walhook_core::event::Operation;
use walhook_core::types::Kind;

/// Pattern of case 42: it took 8 ms to compile, for each row.
const EMAIL: &str = r"^[\w.+-]{1,64}@[\w-]+[.]com$";

fn pattern(text: &str) -> Pattern {
    Pattern::compile(text).unwrap()
}

fn evaluate(when: &Condition, text: &str) -> Result<bool, String> {
    let new = [Field { name: "c", kind: &Kind::Text, cell: Cell::Text(text) }];
    let allowance = &Allowance::default();
    let inputs = Inputs { operation: Operation::Insert, old: &[], new: &new, allowance };
    when.evaluate(&inputs).map_err(|error| error.to_string())
}

#[test]
fn pattern_matches_anywhere_unless_anchored_in_both_forms() {
    for when in ["new.c.matches('b+c')", "matches(new.c, 'b+c')", "!(!new.c.matches('b+c'))"] {
        let when = Condition::compile(when).unwrap();
        assert_eq!(evaluate(&when, "abbbcd"), Ok(true));
        assert_eq!(evaluate(&when, "abbbd"), Ok(false));
    }
    let several =
        "new.c.matches('^a') && (matches(new.c, 'z$') || string(new.c).matches('^.{3}$'))";
    let several = Condition::compile(several).unwrap();
    for (text, is_match) in [("abc", true), ("a…z", true), ("abcd", false), ("za", false)] {
        assert_eq!(evaluate(&several, text), Ok(is_match), "{text}");
    }
    assert_eq!(pattern(EMAIL).is_match("ada.l+x@example.com"), Ok(true));
    assert_eq!(pattern(EMAIL).is_match("ada@example.org"), Ok(false));
    assert_eq!(pattern("").is_match(""), Ok(true));
}

#[test]
fn pattern_with_a_word_boundary_is_told_beside_letters_of_any_script() {
    let word = pattern(r"\bgrün\b");
    for (text, is_match) in [("ist grün.", true), ("immergrün", false), ("日grün", false)] {
        assert_eq!(word.is_match(text), Ok(is_match), "{text}");
    }
    let long = format!("{}grün", "ä ".repeat(2000));
    assert_eq!(word.is_match(&long), Ok(true));
}

#[test]
fn pattern_of_a_long_text_answers_as_of_a_short_one() {
    for (text, tail, is_match) in [("lorem ipsum ", "x=1;", true), ("x=; ", "x=2", false)] {
        let long = text.repeat((2 << 20) / text.len()) + tail;
        assert_eq!(pattern("x=[0-9]+;").is_match(&long), Ok(is_match));
        assert_eq!(pattern("x=[0-9]+;").is_match(&(text.to_owned() + tail)), Ok(is_match));
    }
}

#[test]
fn pattern_that_a_row_can_make_costly_is_refused_or_given_up() {
    for (text, problem) in [
        ("(", "is not a regular expression: unclosed group"),
        ("a{1001}", "has 1001 positions"),
        ("((x{1,200}){1,200}){1,200}", "positions"),
        (r"\w{1,900}\pL{1,90}", "takes more than 8 MiB"),
    ] {
        let problem_found = Pattern::compile(text).map(|_| ()).unwrap_err().to_string();
        assert!(problem_found.contains(problem), "{text}: {problem_found}");
    }
    let many = vec!["new.c.matches('x')"; PATTERNS_MAX + 1].join(" || ");
    let refused = Condition::compile(&many).unwrap_err().to_string();
    assert!(refused.contains("more than 16 patterns"), "{refused}");

    // Each text leads to states that none before it led to: 2^24 of them.
    let hostile = pattern("[ab]*a[ab]{24}c");
    let mut seed: u64 = 1;
    let mut letters = |bytes: usize| -> String {
        let letter = |_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if seed >> 63 == 0 { 'a' } else { 'b' }
        };
        (0..bytes).map(letter).collect()
    };
    for _ in 0..20 {
        assert_eq!(hostile.is_match(&letters(2000)), Ok(false));
    }
    let gave_up = hostile.is_match(&letters(4 << 20)).unwrap_err();
    assert!(gave_up.contains("takes too long"), "{gave_up}");
    // The states that fit were forgotten a few times, within a quarter of the text.
    let states = hostile.caches.lock().unwrap().1.clear_count();
    let read = hostile.caches.lock().unwrap().1.search_total_len();
    assert!(states <= 3 && read < 1 << 20, "forgot all {states} times in {read} bytes");
    // By the text alone: nothing that is known from before helps or hinders.
    assert!(hostile.is_match(&letters(4 << 20)).is_err());
}

#[test]
fn expression_with_a_common_pattern_costs_rows_no_compilation() {
    let text = format!("new.c.matches(r'{EMAIL}')");
    // No call is left that would compile its pattern, and what is called instead has none to compile.
    let mut expression = parse::parse(&text).unwrap();
    compile(&mut expression, &mut Context::default()).unwrap();
    let Expr::Call(call) = &expression.expr else { panic!("{expression:?}") };
    assert_eq!((call.func_name.as_str(), call.args.len()), ("@matches0", 1));
    let when = Condition::compile(&text).unwrap();
    for n in 0..2000 {
        assert_eq!(evaluate(&when, &format!("person{n}@example.com")), Ok(true));
    }
}

#[test]
fn expression_that_reads_more_than_a_change_may_make_it_is_not_told() {
    let text = "x".repeat(1 << 20);
    let reads = |times: usize| vec!["new.c.contains('y')"; times].join(" || ");
    let all = READ_BYTES_MAX / text.len();
    assert_eq!(evaluate(&Condition::compile(&reads(all)).unwrap(), &text), Ok(false));
    let more = evaluate(&Condition::compile(&reads(all + 1)).unwrap(), &text).unwrap_err();
    assert!(more.contains("the expressions read more than 16 MiB"), "{more}");
    // Text that is put together grows by what is read, never by itself.
    let sum = "size(".to_owned() + &vec!["new.c"; all + 1].join("+") + ") == 0";
    assert!(evaluate(&Condition::compile(&sum).unwrap(), &text).is_err());
    // What is not read costs nothing.
    let unread = Condition::compile(&format!("operation == 'update' && ({})", reads(40))).unwrap();
    assert_eq!(evaluate(&unread, &text), Ok(false));
}

#[test]
fn pattern_that_was_escaped_once_too_often_is_told_with_what_to_write() {
    let told = |when: &str| Condition::compile(when).unwrap().doubts().to_vec();
    for (when, class) in [
        (r"new.c.matches('^\\\\w+$')", "w"),
        (r"new.c.matches(r'^\\w+$')", "w"),
        (r"matches(new.c, '[\\\\w.-]+@x')", "w"),
        (r"new.c.matches('\\\\d\\\\d')", "d"),
        (r"new.c.matches('@example\\\\.com$')", "."),
        (r"new.c.matches('\\w') && new.c.matches('a\\\\b')", "b"),
    ] {
        let instead = format!(r"write `\\{class}` in a CEL string, or r'\{class}'");
        let says =
            format!("the pattern looks for a literal backslash followed by `{class}`; {instead}");
        assert_eq!(told(when), [says], "{when}");
        assert_eq!(evaluate(&Condition::compile(when).unwrap(), "a1@example.com"), Ok(false));
    }
    for when in [
        r"new.c.matches('^C:\\\\data\\\\.*$')",
        r"new.c.matches('\\\\\\\\')",
        r"new.c.matches(r'\\')",
        "new.c.matches('a') && new.c == '1'",
    ] {
        assert!(told(when).is_empty(), "{when}: {:?}", told(when));
    }
    // What it says to write is taken, in both forms, and matches.
    for when in [r"new.c.matches('^\\w+$')", r"new.c.matches(r'^\w+$')"] {
        let when = Condition::compile(when).unwrap();
        assert_eq!((evaluate(&when, "ada"), when.doubts().len()), (Ok(true), 0));
    }
}
