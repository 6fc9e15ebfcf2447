//! A change → items.

use super::*;

#[test]
fn insert_makes_an_event_with_the_selected_columns_in_their_order() {
    let more = "columns = ['status', 'attrs', 'id']\nrename = { status = 'state' }";
    let (mut rules, relation) = bound(&rule("s.new", "['insert']", more), subscribers());
    let event = event(&mut rules, &relation, insert(&[T("5"), T("42"), Null, T("{\"a\": 1}")]));
    assert_eq!(&event.row[..], br#""data":{"state":null,"attrs":{"a": 1},"id":5}"#);
    assert_eq!(event.account, AccountId::new("42"));
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(9),
        change_lsn: Lsn(8),
        relation: SUBSCRIBERS,
        n: 0,
    });
    assert_eq!(event.id, EventId::derive(SYSTEM, &position, "s.new", 1_000_000));
    assert_eq!((event.position, event.commit_time_us), (position, 1_000_000));
    assert_eq!(event.keys.len(), 1);
}

#[test]
fn update_under_full_identity_tells_what_changed() {
    let (mut rules, relation) = bound(&rule("s", "['update']", ""), full(subscribers()));
    let old = whole(&[T("5"), T("42"), T("a"), T("[1]")]);
    let event =
        event(&mut rules, &relation, update(Some(old), &[T("5"), T("42"), Null, Unchanged]));
    let expected = json!({
        "data": {"id": 5, "status": null, "attrs": [1]}, "previous": {"status": "a"}
    });
    assert_eq!(row(&event), expected, "an unchanged value is taken from the old row");
}

#[test]
fn update_that_moves_the_row_to_another_account_keeps_its_past_to_itself() {
    let (mut rules, relation) = bound(&rule("s", "['update']", ""), full(subscribers()));
    let old = whole(&[T("5"), T("41"), T("a"), Null]);
    let event = event(&mut rules, &relation, update(Some(old), &[T("5"), T("42"), T("b"), Null]));
    assert_eq!(event.account, AccountId::new("42"));
    assert_eq!(row(&event), json!({"data": {"id": 5, "status": "b", "attrs": null}}));
}

#[test]
fn update_under_default_identity_lists_unchanged_toast_and_no_previous() {
    let (mut rules, relation) = bound(&rule("s", "['update']", ""), subscribers());
    let event = event(&mut rules, &relation, update(None, &[T("5"), T("42"), T("b"), Unchanged]));
    assert_eq!(row(&event), json!({"data": {"id": 5, "status": "b"}, "unchanged": ["attrs"]}));
    assert_eq!(event.keys.len(), 1);
}

#[test]
fn update_of_the_key_holds_both_keys_and_tells_the_old_one() {
    let (mut rules, relation) = bound(&rule("s", "['update', 'delete', 'insert']", ""), {
        let mut table = subscribers();
        // So that a delete finds its account.
        table.identity_columns.push("account_id".to_owned());
        table
    });
    let moved = update(Some(key(&[T("5"), T("42"), Null, Null])), &[T("6"), T("42"), T("b"), Null]);
    let moved = event(&mut rules, &relation, moved);
    let expected = json!({"data": {"id": 6, "status": "b", "attrs": null}, "previous": {"id": 5}});
    assert_eq!(row(&moved), expected);
    let inserted = event(&mut rules, &relation, insert(&[T("6"), T("1"), Null, Null]));
    let deleted = Rows::Delete { old: key(&[T("5"), T("1"), Null, Null]) };
    let deleted = event(&mut rules, &relation, deleted);
    assert_eq!(moved.keys[..], [deleted.keys[0], inserted.keys[0]]);
    assert_eq!(row(&deleted), json!({"data": {"id": 5}}), "null in a key tuple is not known");
}

#[test]
fn delete_under_full_identity_shows_the_whole_row() {
    let (mut rules, relation) = bound(&rule("s", "['delete']", ""), full(subscribers()));
    let old = Rows::Delete { old: whole(&[T("5"), T("42"), T("a"), Null]) };
    let event = event(&mut rules, &relation, old);
    assert_eq!(row(&event), json!({"data": {"id": 5, "status": "a", "attrs": null}}));
    assert_eq!(event.account, AccountId::new("42"));
}

#[test]
fn bigint_is_a_string_where_the_configuration_says_so() {
    let events = format!("{}[payload]\nbigint = 'string'\n", rule("s", "['insert']", ""));
    let (mut rules, relation) = bound(&events, subscribers());
    let event = event(&mut rules, &relation, insert(&[T("5"), T("42"), Null, Null]));
    assert_eq!(row(&event)["data"]["id"], json!("5"));
}

#[test]
fn condition_decides_and_the_first_match_of_a_type_wins() {
    let events = [
        rule("b", "['update']", "when = \"new.status == 'x'\"\ncolumns = ['id']"),
        rule("b", "['update']", "columns = ['status']"),
        rule("a", "['update', 'insert']", ""),
        rule("c", "['insert']", ""),
    ]
    .concat();
    let (mut rules, relation) = bound(&events, subscribers());
    let first = items(&mut rules, &relation, update(None, &[T("5"), T("1"), T("x"), Null]));
    assert_eq!(types(&first), ["a", "b"], "sorted by type, one of each");
    let Item::Event(b) = &first[1] else { panic!() };
    assert_eq!(row(b), json!({"data": {"id": 5}}));
    let second = items(&mut rules, &relation, update(None, &[T("5"), T("1"), T("y"), Null]));
    let Item::Event(b) = &second[1] else { panic!() };
    assert_eq!(row(b), json!({"data": {"status": "y"}}));
}

#[test]
fn condition_that_cannot_tell_is_unroutable_and_no_later_rule_is_asked() {
    let when = "when = \"new.attrs == '{}'\"";
    let events = [rule("s", "['update']", when), rule("s", "['update']", "")].concat();
    let (mut rules, relation) = bound(&events, subscribers());
    let rows = || update(None, &[T("5"), T("42"), T("b"), Unchanged]);
    assert_eq!(items(&mut rules, &relation, rows()).len(), 1);
    let unroutable = unroutable(&mut rules, &relation, rows());
    assert_eq!(unroutable.reason, UnroutableReason::Condition);
    assert!(unroutable.detail.contains("rule 1 (s)") && unroutable.detail.contains("new.attrs"));
    assert_eq!(unroutable.event.account, AccountId::new("42"));
    assert_eq!(row(&unroutable.event)["data"], json!({"id": 5, "status": "b"}));
}

#[test]
fn old_key_is_known_without_an_old_tuple() {
    let events = rule("s", "['update']", "when = 'old.id != new.id'");
    let (mut rules, relation) = bound(&events, subscribers());
    let same = update(None, &[T("5"), T("42"), T("b"), Null]);
    assert!(items(&mut rules, &relation, same).is_empty());
    let old = key(&[T("5"), Null, Null, Null]);
    let moved = update(Some(old), &[T("6"), T("42"), T("b"), Null]);
    assert_eq!(items(&mut rules, &relation, moved).len(), 1);
}

#[test]
fn account_that_cannot_be_told_is_unroutable() {
    let (mut rules, relation) = bound(&rule("s", "['update', 'insert']", ""), subscribers());
    let null = insert(&[T("5"), Null, T("b"), Null]);
    let toast = update(None, &[T("5"), Unchanged, T("b"), Null]);
    let long = "x".repeat(513);
    let too_long = insert(&[T("5"), T(&long), T("b"), Null]);
    let cases = [
        (null, "is null"),
        (toast, "is not known"),
        (too_long, "account_id takes 513 bytes, more"),
    ];
    for (rows, part) in cases {
        let unroutable = unroutable(&mut rules, &relation, rows);
        assert_eq!(unroutable.reason, UnroutableReason::Account);
        assert!(unroutable.detail.contains(part), "{}", unroutable.detail);
        assert_eq!(unroutable.event.account, AccountId::new(""));
        assert_eq!(row(&unroutable.event)["data"]["status"], json!("b"));
    }
    let (mut rules, relation) = bound(&rule("s", "['update']", ""), full(subscribers()));
    let old = whole(&[T("5"), T("42"), T("a"), Null]);
    let rows = update(Some(old), &[T("5"), Unchanged, T("b"), Null]);
    assert_eq!(event(&mut rules, &relation, rows).account, AccountId::new("42"));
}

#[test]
fn change_too_large_to_be_read_is_unroutable_where_a_rule_covers_it_and_else_passes() {
    // Even a condition that needs no column: one way for all of them.
    let when = "when = \"operation == 'delete'\"";
    let events = [rule("s", "['update']", when), rule("t", "['update']", "")].concat();
    let (mut rules, relation) = bound(&events, subscribers());
    let rows = |operation| Rows::Oversize { operation, bytes: 70_000_000 };
    let made = items(&mut rules, &relation, rows(Operation::Update));
    assert_eq!(made.len(), 2);
    for item in made {
        let Item::Unroutable(unroutable) = item else { panic!("{item:?}") };
        assert_eq!(unroutable.reason, UnroutableReason::TooLarge);
        assert!(unroutable.detail.contains("70000000 bytes"), "{}", unroutable.detail);
        assert_eq!(unroutable.event.operation, Operation::Update);
        assert_eq!(row(&unroutable.event), json!({"data": null}));
    }
    assert!(items(&mut rules, &relation, rows(Operation::Insert)).is_empty());

    let relation = self::relation(&webhooks());
    rules.handle_relation(&relation).unwrap();
    let made = items(&mut rules, &relation, rows(Operation::Insert));
    assert!(matches!(&made[..], [Item::Invalidate(i)] if i.scope == Scope::All), "{made:?}");
}

#[test]
fn value_that_cannot_be_written_is_unroutable_and_not_quoted() {
    let (mut rules, relation) = bound(&rule("s", "['insert']", ""), subscribers());
    let rows = insert(&[T("hush"), T("42"), T("b"), T("{")]);
    let unroutable = unroutable(&mut rules, &relation, rows);
    assert_eq!(unroutable.reason, UnroutableReason::Value);
    assert!(unroutable.detail.contains("\"id\"") && !unroutable.detail.contains("hush"));
    assert_eq!(row(&unroutable.event), json!({"data": {"status": "b"}}));
}

#[test]
fn endpoint_change_invalidates_by_all_ids_and_accounts_it_tells() {
    let (mut rules, _) = bound("", subscribers());
    let relation = relation(&webhooks());
    rules.handle_relation(&relation).unwrap();
    let mut scope = |rows| match items(&mut rules, &relation, rows).as_slice() {
        [Item::Invalidate(invalidation)] => {
            assert_eq!(invalidation.xid, 77);
            invalidation.scope.clone()
        }
        other => panic!("{other:?}"),
    };
    let of = |endpoints: &[&str], accounts: &[&str]| Scope::Endpoint {
        endpoints: endpoints.iter().map(|id| EndpointId::new(*id)).collect(),
        accounts: accounts.iter().map(|id| AccountId::new(*id)).collect(),
    };
    let new = [T("e1"), T("42"), Null, Null, Null, T("t")];
    let with_id = |id| [T(id), Null, Null, Null, Null, Null];
    assert_eq!(scope(insert(&new)), of(&["e1"], &["42"]));
    assert_eq!(scope(update(None, &new)), of(&["e1"], &["42"]));
    assert_eq!(scope(update(Some(key(&with_id("e0"))), &new)), of(&["e0", "e1"], &["42"]));
    let mut moved = new;
    moved[1] = T("41");
    assert_eq!(scope(update(Some(whole(&moved)), &new)), of(&["e1"], &["41", "42"]));
    assert_eq!(scope(Rows::Delete { old: key(&with_id("e1")) }), of(&["e1"], &[]));
    assert_eq!(scope(Rows::Truncate), Scope::All);
}

#[test]
fn endpoint_has_joined_where_the_change_shows_that_it_gets_what_it_did_not_get() {
    let table = webhooks();
    let enabled = table.columns.iter().position(|column| column.name == "enabled").unwrap();
    let (mut rules, _) = bound("", subscribers());
    let relation = relation(&table);
    rules.handle_relation(&relation).unwrap();
    let mut joined = |rows| match items(&mut rules, &relation, rows).as_slice() {
        [Item::Invalidate(invalidation), ..] => {
            invalidation.joined.first().map(ToString::to_string)
        }
        other => panic!("{other:?}"),
    };
    let new = [T("e1"), T("42"), Null, Null, Null, T("t")];
    let with = |column: usize, value| {
        let mut row = new;
        row[column] = value;
        row
    };
    let e1 = Some("e1".to_owned());
    assert_eq!(joined(insert(&new)), e1);
    assert_eq!(joined(update(None, &new)), None, "nobody knows what it was");
    assert_eq!(joined(update(Some(whole(&new)), &new)), None);
    let other_id = [T("e0"), Null, Null, Null, Null, Null];
    assert_eq!(joined(update(Some(key(&other_id)), &new)), e1, "it had another id");
    assert_eq!(joined(update(Some(whole(&with(1, T("41")))), &new)), e1, "another account");
    let off = with(enabled, T("f"));
    assert_eq!(joined(update(Some(whole(&off)), &new)), e1, "it was switched on");
    assert_eq!(joined(update(Some(whole(&new)), &off)), None);
    assert_eq!(joined(Rows::Delete { old: key(&new) }), None);
    assert_eq!(joined(Rows::Truncate), None);
}

#[test]
fn endpoint_change_invalidates_everything_where_the_id_is_not_the_identity() {
    let mut table = webhooks();
    table.identity_columns = vec!["url".to_owned()];
    let (mut rules, _) = bound("", subscribers());
    let relation = relation(&table);
    rules.handle_relation(&relation).unwrap();
    let new = [T("e1"), T("42"), T("u"), Null, Null, T("t")];
    let deleted = Rows::Delete { old: key(&[Null, Null, T("u"), Null, Null, Null]) };
    for rows in [update(None, &new), deleted] {
        let items = items(&mut rules, &relation, rows);
        assert!(matches!(&items[..], [Item::Invalidate(i)] if i.scope == Scope::All));
    }
}

#[test]
fn watched_table_that_has_a_rule_invalidates_before_its_event() {
    let toml = format!("watch = ['webhooks', 'subscribers']\n{}", rule("s", "['insert']", ""));
    let (mut rules, relation) = bound(&toml, subscribers());
    let items = items(&mut rules, &relation, insert(&[T("5"), T("42"), Null, Null]));
    assert!(matches!(
        &items[..],
        [Item::Invalidate(Invalidation { scope: Scope::All, .. }), Item::Event(_)]
    ));
}

#[test]
fn null_in_a_key_tuple_is_not_known_even_where_the_root_has_full_identity() {
    let (mut rules, relation) = bound(&rule("s", "['delete', 'update']", ""), full(subscribers()));
    let old = key(&[T("4"), Null, Null, Null]);
    let rows = update(Some(old), &[T("5"), T("42"), T("b"), Null]);
    let updated = event(&mut rules, &relation, rows);
    assert_eq!(row(&updated)["previous"], json!({"id": 4}));
    let deleted = Rows::Delete { old: key(&[T("4"), Null, Null, Null]) };
    let unroutable = unroutable(&mut rules, &relation, deleted);
    assert!(unroutable.detail.contains("is not known"), "{}", unroutable.detail);
}

#[test]
fn table_without_primary_key_has_no_ordering_key() {
    let events = rule("b", "['insert']", "columns = ['id']").replace("subscribers", "bare");
    let config = config(&events);
    let catalog = catalog_with(subscribers());
    let mut rules = Rules::compile(config.rules(), &catalog, SYSTEM).unwrap();
    let relation = relation(catalog.table(BARE).unwrap());
    rules.handle_relation(&relation).unwrap();
    assert!(event(&mut rules, &relation, insert(&[T("5"), T("42"), Null])).keys.is_empty());
}

#[test]
fn truncate_makes_an_event_without_a_row_for_the_constant_account() {
    let events = rule("s", "['truncate', 'insert']", "when = \"operation != 'delete'\"")
        .replace("account = 'account_id'", "account_value = 'ops'");
    let (mut rules, relation) = bound(&events, subscribers());
    let truncated = event(&mut rules, &relation, Rows::Truncate);
    assert_eq!((&*truncated.account, truncated.operation.as_str()), ("ops", "truncate"));
    assert_eq!(row(&truncated), json!({"data": {}}));
    assert!(truncated.keys.is_empty(), "ordered by account");
    let inserted = event(&mut rules, &relation, insert(&[T("5"), T("42"), Null, Null]));
    assert_eq!((&*inserted.account, inserted.keys.len()), ("ops", 1));
    let update = update(None, &[T("5"), T("42"), Null, Null]);
    assert!(items(&mut rules, &relation, update).is_empty());
}

#[test]
fn ordering_key_is_what_it_always_was() {
    // Stored with deferred events: a change of this number loses their order.
    let (mut rules, relation) = bound(&rule("s", "['insert']", ""), subscribers());
    let event = event(&mut rules, &relation, insert(&[T("5"), T("42"), Null, Null]));
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in [0, 0, 0x4e, 0x20, 0, 0, 0, 0, 0, 0, 0, 1, b'5'] {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    assert_eq!(event.keys[..], [hash]);
}
