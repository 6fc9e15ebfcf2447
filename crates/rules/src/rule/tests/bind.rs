//! A RELATION message → bindings, or a broken rule.

use super::*;

#[test]
fn partition_is_covered_by_the_rules_of_its_root_and_ordered_with_it() {
    let events = rule("p", "['insert']", "columns = ['id']").replace("subscribers", "parted");
    let config = config(&events);
    let catalog = catalog_with(subscribers());
    let mut rules = Rules::compile(config.rules(), &catalog, SYSTEM).unwrap();
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

/// What a new endpoint of account 42 invalidates, and what is wrong with the rule.
fn compared(endpoint: u32, event: u32, is_loose: bool) -> (Vec<Item>, Vec<String>) {
    let (mut subscribers, mut webhooks) = (subscribers(), webhooks());
    subscribers.columns[1].type_oid = event;
    webhooks.columns[1] =
        TableColumn { type_oid: endpoint, is_loose, ..webhooks.columns[1].clone() };
    let relation = relation(&webhooks);
    let shapes = [(DOMAIN, TypeShape::Domain { base: oid::BPCHAR })].into();
    let catalog = Catalog::new([subscribers, webhooks], Types::with_catalog(&shapes));
    let config = config(&rule("s", "['insert']", ""));
    let errors = errors(&config, &catalog);
    let casts = casts(config.rules(), &catalog);
    if !errors.is_empty() {
        return (Vec::new(), errors);
    }
    let mut rules = Rules::compile(config.rules(), &catalog, SYSTEM).unwrap();
    rules.handle_relation(&relation).unwrap();
    let new = insert(&[T("e1"), T("42  "), Null, Null, Null, Null]);
    (items(&mut rules, &relation, new), casts.iter().map(ToString::to_string).collect())
}

const DOMAIN: u32 = 30_000;

#[test]
fn new_endpoint_concerns_every_account_where_one_may_come_in_several_texts() {
    for (endpoint, event, is_loose, every_account) in [
        (oid::INT8, oid::INT4, false, false),
        (oid::UUID, oid::UUID, false, false),
        (oid::TEXT, oid::VARCHAR, false, false),
        (oid::TEXT, oid::INT8, false, false),
        (DOMAIN, oid::BPCHAR, false, false),
        (oid::TEXT, oid::TEXT, true, true),
        (oid::INT8, oid::NUMERIC, false, true),
        (oid::INT8, oid::TEXT, false, true),
        (oid::UUID, oid::TEXT, false, true),
        (DOMAIN, oid::TEXT, false, true),
        (oid::NUMERIC, oid::NUMERIC, false, true),
    ] {
        let (items, _) = compared(endpoint, event, is_loose);
        let [Item::Invalidate(first), rest @ ..] = &items[..] else { panic!("{items:?}") };
        let Scope::Endpoint { accounts, .. } = &first.scope else { panic!("{first:?}") };
        let text = if endpoint == DOMAIN { "42" } else { "42  " };
        assert_eq!(accounts[..], [AccountId::new(text)], "{endpoint}, {event}");
        let all = matches!(rest, [Item::Invalidate(i)] if i.scope == Scope::All);
        assert!(all == every_account && rest.len() == usize::from(all), "{endpoint}, {event}");
    }
}

#[test]
fn account_whose_type_is_cut_is_refused_and_one_that_sql_would_cast_is_told() {
    for (endpoint, event, problem) in [
        (oid::DATE, oid::TIMESTAMPTZ, "would take only a part"),
        (oid::DATE, oid::TIMESTAMP, "would take only a part"),
        (oid::FLOAT4, oid::FLOAT8, "would take only a part"),
        (oid::INT8, oid::TEXT, "without a cast"),
        (oid::TEXT, oid::UUID, "without a cast"),
        (oid::INT8, oid::NUMERIC, ""),
        (oid::INT8, oid::FLOAT8, ""),
        (oid::TEXT, oid::VARCHAR, ""),
        (oid::TEXT, DOMAIN, ""),
        (oid::TIMESTAMP, oid::DATE, ""),
    ] {
        let (_, told) = compared(endpoint, event, false);
        let found = told.concat();
        assert!(told.len() == usize::from(!problem.is_empty()), "{endpoint}, {event}: {found}");
        assert!(found.contains(problem), "{endpoint}, {event}: {found}");
    }
}
