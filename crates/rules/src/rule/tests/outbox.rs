//! Rows that bring their type and their data along, and the bound of an event's size.

use super::*;

const OUTBOX: &str = "type_column = 'status'\ndata_column = 'attrs'\n";

/// A rule whose type stands in `status` and whose data in `attrs`.
fn outbox(pattern: &str, more: &str) -> String {
    rule(pattern, "['insert', 'update']", &format!("{OUTBOX}{more}"))
        .replace("columns = ['id', 'status', 'attrs']", "")
}

fn written<'a>(event_type: Datum<'a>, data: Datum<'a>) -> Rows<'a> {
    insert(&[T("5"), T("42"), event_type, data])
}

#[test]
fn outbox_row_brings_its_type_and_its_data() {
    let (mut rules, relation) = bound(&outbox("order.*", ""), subscribers());
    let data = "{\"sum\": 19.90, \"n\": [12345678901234567890]}";
    let event = event(&mut rules, &relation, written(T("order.paid"), T(data)));
    assert_eq!((&*event.event_type, &*event.account), ("order.paid", "42"));
    assert_eq!(&event.row[..], format!("\"data\":{data}").as_bytes());
    assert_eq!(event.id, EventId::derive(SYSTEM, &event.position, "order.paid", 1_000_000));
    let null = self::event(&mut rules, &relation, written(T("order.paid"), Null));
    assert_eq!(row(&null), json!({"data": null}));
}

#[test]
fn outbox_row_with_a_type_that_the_rule_does_not_allow_is_unroutable() {
    let (mut rules, relation) = bound(&outbox("order.*", ""), subscribers());
    for (event_type, part) in [
        (T("invoice.paid"), "the type column status holds none of order.*"),
        (T("order.*"), "holds none of"),
        (T("order."), "holds none of"),
        (T("order.hush hush"), "holds none of"),
        (Null, "the type column status is null"),
    ] {
        let unroutable = unroutable(&mut rules, &relation, written(event_type, T("{}")));
        assert_eq!(unroutable.reason, UnroutableReason::Type);
        assert!(unroutable.detail.contains(part), "{}", unroutable.detail);
        assert!(!unroutable.detail.contains("hush"), "{}", unroutable.detail);
        assert_eq!((&*unroutable.event.event_type, &*unroutable.event.account), ("order.*", "42"));
    }
    let toast = update(None, &[T("5"), T("42"), Unchanged, T("{}")]);
    assert!(unroutable(&mut rules, &relation, toast).detail.contains("is not known"));
}

#[test]
fn outbox_data_that_is_no_json_or_not_in_the_wal_is_unroutable() {
    let mut table = subscribers();
    table.columns[3].type_oid = oid::TEXT;
    let (mut rules, relation) = bound(&outbox("*", ""), table);
    let toast = update(None, &[T("5"), T("42"), T("t"), Unchanged]);
    for (rows, part) in [
        (written(T("t"), T("{hush")), "the data column attrs does not hold JSON"),
        (written(T("t"), T("")), "does not hold JSON"),
        (toast, "the data column attrs is not known"),
    ] {
        let unroutable = unroutable(&mut rules, &relation, rows);
        assert_eq!(unroutable.reason, UnroutableReason::Value);
        assert!(unroutable.detail.contains(part), "{}", unroutable.detail);
        assert_eq!(row(&unroutable.event), json!({"data": null}));
    }
    let good = event(&mut rules, &relation, written(T("t"), T("[1]")));
    assert_eq!(row(&good), json!({"data": [1]}));
}

#[test]
fn first_rule_decides_for_a_type_whether_it_stands_in_the_row_or_in_the_rule() {
    let exact = rule("order.paid", "['insert']", "columns = ['id']");
    let when = "when = \"new.status != 'order.paid'\"\n";
    for (events, expected) in [
        ([outbox("order.*", ""), exact.clone()].concat(), json!({"a": 1})),
        ([exact.clone(), outbox("order.*", "")].concat(), json!({"id": 5})),
        ([outbox("order.*", when), exact.clone()].concat(), json!({"id": 5})),
    ] {
        let (mut rules, relation) = bound(&events, subscribers());
        let event = event(&mut rules, &relation, written(T("order.paid"), T("{\"a\": 1}")));
        assert_eq!(row(&event), json!({ "data": expected }));
        let items = items(&mut rules, &relation, written(T("order.a"), T("{}")));
        assert_eq!(types(&items), ["order.a", "order.paid"], "sorted by type");
    }
}

#[test]
fn rules_of_an_outbox_are_checked_against_the_table() {
    let gone = outbox("a.*", "").replace("'status'", "'kind'");
    let number = outbox("b.*", "").replace("'attrs'", "'id'");
    let deleted = outbox("c.*", "").replace("'insert', 'update'", "'delete'");
    let no_pattern = outbox("d", "");
    let told = errors(&config(&[gone, number, deleted, no_pattern].concat()), &{
        catalog_with(subscribers())
    });
    let all = told.join("\n");
    for part in [
        "rule 1 (a.*): type_column: public.subscribers has no column kind",
        "rule 2 (b.*): data_column: id of public.subscribers holds no JSON",
        "rule 3 (c.*): on delete it needs the old value of account_id, status, attrs",
        "rule 4 (d): type is not a pattern",
    ] {
        assert!(all.contains(part), "{part}\nis not in\n{all}");
    }
}

#[test]
fn event_over_its_bound_is_unroutable_without_its_data() {
    let events = rule("s", "['insert']", "max_bytes = 1024");
    let (mut rules, relation) = bound(&events, subscribers());
    // "data":{"id":5,"status":"…","attrs":null}
    let fits = "x".repeat(1024 - 40);
    let event = event(&mut rules, &relation, insert(&[T("5"), T("42"), T(&fits), Null]));
    assert_eq!(event.row.len(), 1024);
    let over = format!("{fits}y");
    let unroutable = unroutable(&mut rules, &relation, insert(&[T("5"), T("42"), T(&over), Null]));
    assert_eq!(unroutable.reason, UnroutableReason::TooLarge);
    let detail = "rule 1 (s): the event's data takes 1025 bytes, more than max_bytes = 1024";
    assert_eq!(unroutable.detail, detail);
    assert_eq!(row(&unroutable.event), json!({"data": null}));
    assert_eq!(&*unroutable.event.account, "42");
}

#[test]
fn data_expression_builds_the_data_and_leaves_previous_to_the_columns() {
    let data = "data = \"{'row': row, 'was': old.status, 'id': new.id}\"\n";
    let events = rule("s", "['update']", &format!("columns = ['status']\n{data}"));
    let (mut rules, relation) = bound(&events, full(subscribers()));
    let old = whole(&[T("5"), T("42"), T("a"), Null]);
    let event = event(&mut rules, &relation, update(Some(old), &[T("5"), T("42"), T("b"), Null]));
    let data = json!({"row": {"status": "b"}, "was": "a", "id": 5});
    assert_eq!(row(&event), json!({"data": data, "previous": {"status": "a"}}));
}

#[test]
fn data_expression_that_fails_is_unroutable_and_one_that_grows_is_bounded() {
    let without = |data: &str| {
        rule("s", "['insert']", &format!("max_bytes = 1024\ndata = \"{data}\"\n"))
            .replace("columns = ['id', 'status', 'attrs']", "")
    };
    let (mut rules, relation) = bound(&without("{'n': new.id / 0}"), subscribers());
    let rows = insert(&[T("5"), T("42"), T("b"), Null]);
    let failed = unroutable(&mut rules, &relation, rows);
    assert_eq!(failed.reason, UnroutableReason::Value);
    assert_eq!(failed.detail, "rule 1 (s): data: division by zero");
    assert_eq!(row(&failed.event), json!({"data": null}));
    let many = format!("[{}]", ["new.status"; 100].join(", "));
    let (mut rules, relation) = bound(&without(&many), subscribers());
    let long = "x".repeat(900);
    let grown = unroutable(&mut rules, &relation, insert(&[T("5"), T("42"), T(&long), Null]));
    assert_eq!(grown.reason, UnroutableReason::TooLarge);
    assert_eq!(row(&grown.event), json!({"data": null}));
}

#[test]
fn data_expression_is_checked_against_the_table_and_the_operations() {
    let with = |on: &str, data: &str| rule("s", on, &format!("data = \"{data}\"\n"));
    let events = [
        with("['insert']", "{'a': new.nope}"),
        with("['insert']", "{'a': old.id}"),
        with("['update']", "{'a': old.status}"),
        with("['truncate']", "row"),
        with("['insert']", "{'a': new.id == 'x'}"),
        with("['insert']", "{'a': now()}"),
    ];
    let all = errors(&config(&events.concat()), &catalog_with(subscribers())).join("\n");
    for part in [
        "rule 1 (s): data: public.subscribers has no column nope",
        "rule 2 (s): data reads old, which insert does not have",
        "rule 3 (s): on update it needs the old value of status",
        "rule 4 (s): data reads row, which truncate does not have",
        "rule 5 (s): data: new.id can never match",
        "rule 6 (s): data: the expression calls now",
    ] {
        assert!(all.contains(part), "{part}\nis not in\n{all}");
    }
}
