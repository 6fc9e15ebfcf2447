//! Messages of an open transaction → what may come of it.

use super::*;
use crate::turns::Foreseen;
use walhook_decode::pgoutput::Message;

fn tuple<'a>(values: &[Datum<'a>]) -> Tuple<'a> {
    Tuple(values.to_vec())
}

fn compiled(events: &str, table: Table) -> Rules {
    Rules::compile(config(events).rules(), &catalog_with(table), SYSTEM).unwrap()
}

fn noted(rules: &mut Rules, table: Option<&Arc<Relation>>, message: Message<'_>) -> Foreseen {
    let mut foreseen = Foreseen::nothing();
    rules.foresee(77, message, |_| table, &mut foreseen);
    foreseen
}

fn have(foreseen: &Foreseen, of: &[&str]) -> bool {
    let all = ["", "1", "2", "3", "42", "x"];
    all.iter().all(|account| foreseen.may_have(account) == of.contains(account))
}

#[test]
fn summary_names_the_account_that_the_row_shows_without_a_relation_being_bound() {
    let events = rule("s", "['insert']", "when = \"new.status == 'never'\"");
    let mut rules = compiled(&events, full(subscribers()));
    let table = relation(&full(subscribers()));
    let new = tuple(&[T("5"), T("42"), T("b"), Null]);
    let insert = Message::Insert { relation: SUBSCRIBERS, new: new.clone() };
    assert!(have(&noted(&mut rules, Some(&table), insert), &["42"]));
    let old = || OldTuple::Full(tuple(&[T("5"), T("1"), T("b"), Null]));
    let update = Message::Update { relation: SUBSCRIBERS, old: Some(old()), new };
    assert!(have(&noted(&mut rules, Some(&table), update), &["42"]));
    let new = tuple(&[T("5"), Unchanged, T("b"), Null]);
    let toasted = Message::Update { relation: SUBSCRIBERS, old: Some(old()), new };
    assert!(have(&noted(&mut rules, Some(&table), toasted), &["1"]));
    let delete = Message::Delete { relation: SUBSCRIBERS, old: old() };
    assert!(have(&noted(&mut rules, Some(&table), delete), &["1"]));
    let unknown = tuple(&[T("5"), Null, T("b"), Null]);
    let unroutable = Message::Insert { relation: SUBSCRIBERS, new: unknown };
    assert!(have(&noted(&mut rules, Some(&table), unroutable), &[]));
}

#[test]
fn summary_reads_each_row_by_the_description_that_it_came_with() {
    let mut rules = compiled(&rule("s", "['insert']", ""), subscribers());
    let first = relation(&subscribers());
    let mut second = Relation::clone(&first);
    second.columns.swap(0, 1);
    let second = Arc::new(second);
    let new = || tuple(&[T("1"), T("2"), T("b"), Null]);
    for (table, account) in [(&first, "2"), (&second, "1"), (&first, "2")] {
        let insert = Message::Insert { relation: SUBSCRIBERS, new: new() };
        assert!(have(&noted(&mut rules, Some(table), insert), &[account]));
    }
}

#[test]
fn summary_is_of_anything_where_that_cannot_be_told() {
    let mut rules = compiled(&rule("s", "['insert']", ""), subscribers());
    let insert = |relation| Message::Insert { relation, new: tuple(&[T("1"), T("2")]) };
    assert!(noted(&mut rules, None, insert(SUBSCRIBERS)).is_anything(), "not described");
    let mut broken = Relation::clone(&relation(&subscribers()));
    broken.columns[1].name = "other".to_owned();
    let broken = Arc::new(broken);
    assert!(noted(&mut rules, Some(&broken), insert(SUBSCRIBERS)).is_anything(), "no account");
    let mut strange = Relation::clone(&relation(&subscribers()));
    strange.columns[3].type_oid = 99_999;
    let strange = Arc::new(strange);
    assert!(noted(&mut rules, Some(&strange), insert(SUBSCRIBERS)).is_anything(), "a new type");
    let plans = relation(rules.catalog.table(PLANS).unwrap());
    assert!(have(&noted(&mut rules, Some(&plans), insert(PLANS)), &[]), "no rule covers it");
}

#[test]
fn summary_names_constant_accounts_and_those_in_messages() {
    let events = rule("s", "['truncate']", "")
        .replace("account = 'account_id'", "account_value = 'x'")
        + "[[events]]\ntype = 'm'\non = ['message']\nprefix = 'p'\naccount = 'of'\n"
        + "[[events]]\ntype = 'n'\non = ['message']\nprefix = 'q'\naccount_value = '3'\n";
    let mut rules = compiled(&events, subscribers());
    let table = relation(&subscribers());
    let truncate = Message::Truncate { relations: vec![SUBSCRIBERS] };
    assert!(have(&noted(&mut rules, Some(&table), truncate), &["x"]));
    let said = |prefix, content: &'static [u8]| Message::Logical {
        transactional: true,
        lsn: Lsn(1),
        prefix,
        content,
    };
    assert!(have(&noted(&mut rules, None, said("p", b"{\"of\": 42}")), &["42"]));
    assert!(have(&noted(&mut rules, None, said("p", b"hush")), &[]));
    assert!(have(&noted(&mut rules, None, said("q", b"hush")), &["3"]));
    assert!(have(&noted(&mut rules, None, said("r", b"{\"of\": 42}")), &[]));
    let large = Message::OversizeLogical { lsn: Lsn(1), prefix: "q", bytes: 1 << 30 };
    assert!(have(&noted(&mut rules, None, large), &["3"]));
}

#[test]
fn summary_foresees_the_invalidations_that_the_row_makes() {
    let events = rule("s", "['insert']", "");
    let (mut rules, _) = bound(&events, subscribers());
    let watched = relation(&webhooks());
    rules.handle_relation(&watched).unwrap();
    let row = [T("e1"), T("42"), T("u"), Null, T("s"), T("t")];
    let insert = Message::Insert { relation: WEBHOOKS, new: tuple(&row) };
    let foreseen = noted(&mut rules, Some(&watched), insert);
    assert!(have(&foreseen, &[]) && foreseen.memory_bytes() > 0);
    let made = items(&mut rules, &watched, Rows::Insert { new: tuple(&row) });
    let mut turns = crate::turns::Turns::new(1);
    turns.begin_play(Lsn(9), foreseen);
    let told = turns.take();
    let [Item::Begin { .. }, Item::Invalidate(told)] = &told[..] else { panic!("{told:?}") };
    let [Item::Invalidate(made)] = &made[..] else { panic!("{made:?}") };
    assert_eq!(told, made);
    assert_eq!(told.joined[..], [EndpointId::new("e1")]);
}
