//! A RELATION message → bindings, or a broken rule.

use super::*;

#[test]
fn partition_is_covered_by_the_rules_of_its_root_and_ordered_with_it() {
    let events = rule("p", "['insert']", "columns = ['id']").replace("subscribers", "parted");
    let config = config(&events);
    let catalog = catalog_with(subscribers());
    let mut rules = Rules::compile(RuleSettings::of(&config), &catalog, SYSTEM).unwrap();
    let mut keys = |oid| {
        let relation = relation(catalog.table(oid).unwrap());
        rules.handle_relation(&relation).unwrap();
        event(&mut rules, &relation, insert(&[T("5"), T("42")])).keys.clone()
    };
    assert_eq!(keys(PART), keys(PARTED));
}

#[test]
fn relation_in_mid_stream_binds_anew_and_a_star_picks_up_new_columns() {
    let events =
        [rule("all", "['insert']", "columns = ['*']"), rule("one", "['insert']", "")].concat();
    let (mut rules, first) = bound(&events, subscribers());
    let mut second = Relation::clone(&first);
    second.columns.swap(0, 2);
    second.columns.push(Column {
        key: false,
        name: "since".to_owned(),
        type_oid: oid::DATE,
        type_modifier: -1,
    });
    let second = Arc::new(second);
    rules.handle_relation(&second).unwrap();
    let new = [T("b"), T("42"), T("5"), Null, T("2026-11-23")];
    let items = items(&mut rules, &second, insert(&new));
    let [Item::Event(all), Item::Event(one)] = &items[..] else { panic!() };
    let data = r#""data":{"status":"b","account_id":42,"id":5,"attrs":null,"since":"2026-11-23"}"#;
    assert_eq!(&all.row[..], data.as_bytes());
    assert_eq!(row(one), json!({"data": {"id": 5, "status": "b", "attrs": null}}));
}

#[test]
fn relation_that_no_longer_fits_breaks_the_rule_and_stops_its_events() {
    let events = rule("s", "['update']", "when = \"old.status != 'x'\"\nrename = {id = 'since'}");
    let (mut rules, relation) = bound(&events, full(subscribers()));
    let mut broken = |alter: &dyn Fn(&mut Relation)| {
        let mut altered = Relation::clone(&relation);
        alter(&mut altered);
        let altered = Arc::new(altered);
        let error = rules.handle_relation(&altered).unwrap_err();
        assert!(error.to_string().starts_with("rule 1 (s)"), "{error}");
        let rows = update(Some(whole(&[Null; 4])), &[T("5"), T("42"), T("b"), Null]);
        assert!(items(&mut rules, &altered, rows).is_empty());
        error
    };
    let gone = broken(&|relation| relation.columns[3].name = "other".to_owned());
    assert!(matches!(gone, RuleBroken::Column { column, .. } if column == "attrs"));
    let identity = broken(&|relation| {
        relation.identity = ReplicaIdentity::Default;
        relation.columns.iter_mut().skip(1).for_each(|column| column.key = false);
    });
    assert!(matches!(identity, RuleBroken::Identity { column, .. } if column == "status"));
    let unknown = broken(&|relation| relation.columns[3].type_oid = 99_999);
    assert!(matches!(unknown, RuleBroken::UnknownType { type_oid: 99_999, .. }));
}

#[test]
fn star_breaks_when_a_new_column_takes_a_renamed_ones_name() {
    let events = rule("s", "['insert']", "columns = ['*']\nrename = {status = 'state'}");
    let (mut rules, relation) = bound(&events, subscribers());
    let mut altered = Relation::clone(&relation);
    altered.columns[3].name = "state".to_owned();
    let broken = rules.handle_relation(&Arc::new(altered)).unwrap_err();
    assert!(matches!(broken, RuleBroken::Duplicate { name, .. } if name == "state"));
}

#[test]
fn relation_is_known_by_oid_after_a_rename_and_by_name_after_a_drop() {
    let (mut rules, relation) = bound(&rule("s", "['insert']", ""), subscribers());
    let new = [T("5"), T("42"), Null, Null];
    for (oid, name, events) in
        [(SUBSCRIBERS, "renamed", 1), (31_000, "subscribers", 1), (31_001, "unrelated", 0)]
    {
        let mut other = Relation::clone(&relation);
        (other.oid, other.name) = (oid, name.to_owned());
        let other = Arc::new(other);
        rules.handle_relation(&other).unwrap();
        assert_eq!(items(&mut rules, &other, insert(&new)).len(), events, "{oid} {name}");
    }
}
