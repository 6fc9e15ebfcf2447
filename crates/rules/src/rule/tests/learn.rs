//! What the rules lack, and what becomes of it once they are told.

use super::*;

fn parted(on: &str) -> String {
    rule("p", on, "columns = ['id']").replace("subscribers", "parted")
}

fn compiled(events: &str, subscribers: Table) -> Rules {
    let config = config(events);
    Rules::compile(config.rules(), &catalog_with(subscribers), SYSTEM).unwrap()
}

/// A table that the catalog does not hold, with the columns of `like`.
fn stranger(like: &Table) -> Arc<Relation> {
    relation(&Table { oid: 30_000, name: "gone".to_owned(), ..like.clone() })
}

fn keyed(columns: &[&str]) -> Table {
    let columns: Vec<_> = columns.iter().map(|name| (*name, oid::INT4)).collect();
    table(30_000, "gone", &columns, &["id"])
}

#[test]
fn rules_lack_nothing_of_the_tables_that_they_name() {
    let rules = compiled(&parted("['insert']"), subscribers());
    for oid in [SUBSCRIBERS, WEBHOOKS, PARTED, PART] {
        let relation = relation(rules.catalog.table(oid).unwrap());
        assert_eq!(rules.lacks(&relation), None);
    }
}

#[test]
fn rules_lack_a_type_until_the_stream_names_it() {
    let (mut rules, relation) = bound(&rule("s", "['insert']", ""), subscribers());
    let mut altered = Relation::clone(&relation);
    altered.columns[2].type_oid = 40_000;
    let altered = Arc::new(altered);
    assert_eq!(rules.lacks(&altered), Some(Lacks::Type));
    rules.handle_type(40_000, "pg_catalog", "int4");
    assert_eq!(rules.lacks(&altered), None);
    rules.handle_relation(&altered).unwrap();
    let made = event(&mut rules, &altered, insert(&[T("5"), T("42"), T("7"), Null]));
    assert_eq!(row(&made)["data"]["status"], json!(7));
}

#[test]
fn table_that_may_have_been_a_partition_makes_dead_letters_until_that_is_known() {
    let mut rules = compiled(&parted("['insert']"), subscribers());
    let gone = stranger(rules.catalog.table(PART).unwrap());
    assert_eq!(rules.lacks(&gone), Some(Lacks::Standing));
    rules.handle_relation(&gone).unwrap();
    let rows = || insert(&[T("5"), T("42")]);
    assert!(items(&mut rules, &gone, rows()).is_empty());

    rules.handle_doubtful(&gone);
    rules.handle_relation(&gone).unwrap();
    let letter = unroutable(&mut rules, &gone, rows());
    assert_eq!(letter.reason, UnroutableReason::Table);
    let detail =
        "rule 1 (p): public.gone is no partition now, but may have been one of public.parted";
    assert_eq!(letter.detail, detail);

    // A younger catalog that does not know it either leaves the doubt; one that does ends it.
    let mut younger = compiled(&parted("['insert']"), subscribers());
    younger.inherit(&mut rules);
    younger.handle_relation(&gone).unwrap();
    assert_eq!(unroutable(&mut younger, &gone, rows()).reason, UnroutableReason::Table);
    assert_eq!(younger.lacks(&gone), Some(Lacks::Standing));
    let mut youngest = compiled(&parted("['insert']"), subscribers());
    let part = Table { oid: gone.oid, ..youngest.catalog.table(PART).unwrap().clone() };
    youngest.catalog.insert(part);
    youngest.inherit(&mut younger);
    youngest.handle_relation(&gone).unwrap();
    event(&mut youngest, &gone, rows());
}

#[test]
fn table_without_the_columns_of_a_partition_is_none() {
    let mut rules = compiled(&parted("['insert']"), subscribers());
    let gone = relation(&keyed(&["id", "other"]));
    rules.handle_doubtful(&gone);
    rules.handle_relation(&gone).unwrap();
    assert!(items(&mut rules, &gone, insert(&[T("5"), T("42")])).is_empty());
}

#[test]
fn partition_stays_one_when_the_catalog_no_longer_has_it() {
    let mut older = compiled(&parted("['insert']"), subscribers());
    let mut part = older.catalog.table(PART).unwrap().clone();
    part.oid = 30_000;
    let relation = relation(&part);
    older.catalog.insert(part);
    let mut rules = compiled(&parted("['insert']"), subscribers());
    rules.inherit(&mut older);
    assert_eq!(rules.lacks(&relation), None);
    rules.handle_relation(&relation).unwrap();
    event(&mut rules, &relation, insert(&[T("5"), T("42")]));
}

#[test]
fn restored_identity_lets_older_changes_pass_and_those_that_cannot_be_told_become_dead_letters() {
    let events = rule("s", "['insert', 'delete']", "");
    let (mut rules, _) = bound(&events, full(subscribers()));
    let described = relation(&subscribers());
    assert_eq!(rules.lacks(&described), Some(Lacks::Fit));
    assert!(matches!(rules.handle_relation(&described), Err(RuleBroken::Identity { .. })));

    rules.handle_fitting(SUBSCRIBERS);
    rules.handle_relation(&described).unwrap();
    event(&mut rules, &described, insert(&[T("5"), T("42"), T("a"), Null]));
    let rows = Rows::Delete { old: key(&[T("5"), Null, Null, Null]) };
    let letter = unroutable(&mut rules, &described, rows);
    assert_eq!(letter.reason, UnroutableReason::Account);
}

/// Subscribers without some of their columns, as they were described before these came.
fn described_without(names: &[&str]) -> Arc<Relation> {
    let mut before = Relation::clone(&relation(&subscribers()));
    before.columns.retain(|column| !names.contains(&column.name.as_str()));
    Arc::new(before)
}

#[test]
fn row_from_before_a_column_came_is_sent_without_it_once_the_table_has_it() {
    let mut rules = bound(&rule("s", "['insert']", "columns = ['id', 'status']"), subscribers()).0;
    let before = described_without(&["status"]);
    assert_eq!(rules.lacks(&before), Some(Lacks::Fit));
    assert!(matches!(rules.handle_relation(&before), Err(RuleBroken::Column { .. })));

    rules.handle_fitting(SUBSCRIBERS);
    rules.handle_relation(&before).unwrap();
    let rows = insert(&[T("5"), T("42"), Null]);
    assert_eq!(event(&mut rules, &before, rows).row, r#""data":{"id":5}"#);
    let whole = relation(&subscribers());
    rules.handle_relation(&whole).unwrap();
    let rows = insert(&[T("5"), T("42"), T("a"), Null]);
    assert_eq!(event(&mut rules, &whole, rows).row, r#""data":{"id":5,"status":"a"}"#);
}

#[test]
fn row_from_before_the_accounts_column_came_is_a_dead_letter() {
    let mut rules = bound(&rule("s", "['insert']", "columns = ['id']"), subscribers()).0;
    let before = described_without(&["account_id"]);
    rules.handle_fitting(SUBSCRIBERS);
    rules.handle_relation(&before).unwrap();
    let letter = unroutable(&mut rules, &before, insert(&[T("5"), T("a"), Null]));
    assert_eq!(letter.reason, UnroutableReason::Account);
    let why = "the table had no such column when the row was written";
    assert!(letter.detail.ends_with(why), "{}", letter.detail);
}

#[test]
fn row_whose_column_may_have_been_renamed_since_is_a_dead_letter_that_names_both() {
    let mut rules = bound(&rule("s", "['insert']", "columns = ['id', 'status']"), subscribers()).0;
    let mut before = Relation::clone(&relation(&subscribers()));
    before.columns.iter_mut().find(|column| column.name == "status").unwrap().name = "state".into();
    let before = Arc::new(before);
    rules.handle_fitting(SUBSCRIBERS);
    rules.handle_relation(&before).unwrap();
    let letter = unroutable(&mut rules, &before, insert(&[T("5"), T("42"), T("a"), Null]));
    assert_eq!(letter.reason, UnroutableReason::Table);
    let names = ["no column status", "but state"].map(|name| letter.detail.contains(name));
    assert_eq!(names, [true; 2], "{}", letter.detail);
}

/// Subscribers as they were described when `column` was of another type.
fn described_with(column: &str, type_oid: u32) -> Arc<Relation> {
    let mut before = Relation::clone(&relation(&subscribers()));
    before.columns.iter_mut().find(|found| found.name == column).unwrap().type_oid = type_oid;
    Arc::new(before)
}

#[test]
fn row_whose_column_was_of_a_type_that_the_rule_does_not_fit_is_a_dead_letter() {
    for (further, reason) in [
        ("when = \"new.status == 'done'\"", UnroutableReason::Condition),
        ("when = \"new.status != 'done'\"", UnroutableReason::Condition),
        (
            "when = \"new.status == string(new.id) || new.status in ['a']\"",
            UnroutableReason::Condition,
        ),
        ("data = \"{'x': new.status == 'done' ? 1 : 2}\"", UnroutableReason::Value),
        ("data_column = 'status'", UnroutableReason::Value),
    ] {
        let columns =
            if further.contains("when") { "columns = ['id']\n" } else { "columns = []\n" };
        let (mut rules, now) =
            bound(&rule("s", "['insert']", &format!("{columns}{further}")), subscribers());
        assert_eq!(rules.lacks(&now), None);
        let before = described_with("status", oid::INT4);
        assert_eq!(rules.lacks(&before), Some(Lacks::Fit), "{further}");
        assert!(matches!(rules.handle_relation(&before), Err(RuleBroken::Type { .. })));

        rules.handle_fitting(SUBSCRIBERS);
        rules.handle_relation(&before).unwrap();
        let letter = unroutable(&mut rules, &before, insert(&[T("5"), T("42"), T("7"), Null]));
        assert_eq!(letter.reason, reason, "{further}");
        assert!(letter.detail.contains("of another type"), "{}", letter.detail);
        assert_eq!(letter.event.account, AccountId::new("42"));
        // Null is null in every type.
        assert!(matches!(
            items(&mut rules, &before, insert(&[T("5"), T("42"), Null, Null])).as_slice(),
            [] | [Item::Event(_)]
        ));
        // What the rule does fit is judged as ever.
        rules.handle_relation(&now).unwrap();
        let made = items(&mut rules, &now, insert(&[T("5"), T("42"), T("null"), Null]));
        assert!(matches!(made.as_slice(), [] | [Item::Event(_)]), "{made:?}");
    }
}

#[test]
fn column_of_another_type_matters_only_where_the_rule_asks_for_it() {
    let when = "columns = ['id']\nwhen = \"new.id == 5 || new.status == 'done'\"";
    let mut rules = bound(&rule("s", "['insert']", when), subscribers()).0;
    let before = described_with("status", oid::INT4);
    rules.handle_fitting(SUBSCRIBERS);
    rules.handle_relation(&before).unwrap();
    event(&mut rules, &before, insert(&[T("5"), T("42"), T("7"), Null]));
    unroutable(&mut rules, &before, insert(&[T("6"), T("42"), T("7"), Null]));
}

#[test]
fn partition_that_nobody_can_place_is_a_dead_letter_also_where_its_types_differ() {
    let events = parted("['insert']") + "when = 'new.account_id == 42'\n";
    let mut rules = compiled(&events, subscribers());
    let mut gone = Relation::clone(&stranger(rules.catalog.table(PART).unwrap()));
    gone.columns[1].type_oid = oid::TEXT;
    let gone = Arc::new(gone);
    assert!(rules.handle_doubtful(&gone));
    rules.handle_relation(&gone).unwrap();
    let letter = unroutable(&mut rules, &gone, insert(&[T("5"), T("42")]));
    assert_eq!(letter.reason, UnroutableReason::Table);
}

#[test]
fn altered_account_column_has_the_catalog_read_again() {
    let rules = bound(&rule("s", "['insert']", "columns = ['id']"), subscribers()).0;
    assert_eq!(rules.lacks(&described_with("account_id", oid::NUMERIC)), Some(Lacks::Type));
    assert_eq!(rules.lacks(&described_with("status", oid::VARCHAR)), None);
}
