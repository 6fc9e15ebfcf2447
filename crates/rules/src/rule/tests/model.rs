//! Bodies against a naive model, and against any input.

use super::*;

/// A column's value in the naive model: `None` is null.
type Model = Option<String>;

fn any_values() -> impl Strategy<Value = [Model; 4]> {
    let number = || proptest::option::weighted(0.9, "[1-9][0-9]{0,2}");
    let text = proptest::option::weighted(0.7, "[ab\"\\\\]{0,2}");
    let json = proptest::option::weighted(0.7, "[1-3]");
    (number(), number(), text, json).prop_map(|(id, account, status, attrs)| {
        [Some(id.unwrap_or_else(|| "1".to_owned())), account, status, attrs]
    })
}

fn datums(values: &[Model; 4]) -> [Datum<'_>; 4] {
    values.each_ref().map(|value| value.as_deref().map_or(Null, T))
}

fn model_json(column: usize, value: &Model) -> Value {
    match value {
        None => Value::Null,
        Some(text) if column == 2 => json!(text),
        Some(text) => serde_json::from_str(text).unwrap(),
    }
}

proptest! {
    /// Under FULL identity everything is known, whatever was TOASTed: the body follows from the
    /// two rows alone.
    #[test]
    fn update_body_follows_from_the_two_rows(
        old in any_values(), new in any_values(), toasted in any::<[bool; 4]>(),
    ) {
        let (mut rules, relation) = bound(&rule("s", "['update']", ""), full(subscribers()));
        let mut wire = datums(&new);
        for column in 0..4 {
            if toasted[column] && old[column] == new[column] && new[column].is_some() {
                wire[column] = Unchanged;
            }
        }
        let items = items(&mut rules, &relation, update(Some(whole(&datums(&old))), &wire));
        let names = [(0, "id"), (2, "status"), (3, "attrs")];
        let data: serde_json::Map<_, _> =
            names.iter().map(|(c, n)| ((*n).to_owned(), model_json(*c, &new[*c]))).collect();
        let previous: serde_json::Map<_, _> = names
            .iter()
            .filter(|(c, _)| old[*c] != new[*c] && old[1] == new[1])
            .map(|(c, n)| ((*n).to_owned(), model_json(*c, &old[*c])))
            .collect();
        let mut expected = json!({"data": data});
        if !previous.is_empty() {
            expected["previous"] = Value::Object(previous);
        }
        match (&items[..], &new[1]) {
            ([Item::Event(event)], Some(account)) => {
                prop_assert_eq!(&*event.account, account.as_str());
                prop_assert_eq!(row(event), expected);
                prop_assert_eq!(event.keys.len(), 1 + usize::from(old[0] != new[0]));
            }
            ([Item::Unroutable(unroutable)], None) => {
                prop_assert_eq!(unroutable.reason, UnroutableReason::Account);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// Whatever stands in the tuples, even of the wrong length: one item, and a valid body.
    #[test]
    fn change_makes_one_item_with_a_valid_body(
        texts in proptest::collection::vec(any::<String>(), 0..6),
        marks in proptest::collection::vec(0..3u8, 12),
        kind in 0..4u8,
    ) {
        let events = rule("s", "['insert', 'update', 'delete']", "columns = ['*']");
        let (mut rules, relation) = bound(&events, full(subscribers()));
        let side = |from: usize| -> Vec<Datum<'_>> {
            texts.iter().zip(&marks[from..]).map(|(text, mark)| match mark {
                0 => Null,
                1 => Unchanged,
                _ => T(text),
            }).collect()
        };
        let rows = match kind {
            0 => insert(&side(0)),
            1 => update(None, &side(0)),
            2 => update(Some(whole(&side(6))), &side(0)),
            _ => Rows::Delete { old: whole(&side(0)) },
        };
        let items = items(&mut rules, &relation, rows);
        prop_assert_eq!(items.len(), 1);
        let event = match &items[..] {
            [Item::Event(event)] | [Item::Unroutable(Unroutable { event, .. })] => event,
            other => panic!("{other:?}"),
        };
        prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&event.body()).is_ok());
    }
}
