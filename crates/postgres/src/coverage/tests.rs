use super::*;

const THEN: Moment = Moment { lsn: Lsn(100), xid: 0x1_0000_0010 };
const NOW: Moment = Moment { lsn: Lsn(200), xid: 0x1_0000_0020 };

const NAMED: u32 = 1;
const CHILD: u32 = 2;
const LEAF: u32 = 3;

fn table(name: &str, kind: Kind, by: &str) -> Covered {
    Covered {
        name: name.to_owned(),
        kind,
        under: BTreeSet::from(["public.t".to_owned()]),
        by: BTreeSet::from([by.to_owned()]),
        is_member: by.starts_with('t'),
        since_birth: false,
        below_since_birth: true,
        toast: 7,
        file: 8,
        shape: "a".to_owned(),
        lack: None,
        lacking_since: None,
    }
}

fn coverage() -> Coverage {
    let options = [("pubinsert", "true"), ("pubtruncate", "false")];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Coverage {
        cluster: "1, version 15".to_owned(),
        publication: Publication {
            oid: 9,
            name: "p".to_owned(),
            owner: 10,
            version: "700".to_owned(),
            owned_since: None,
            options: BTreeMap::from(options),
            alterations: 3,
            schemas: BTreeSet::from([50]),
            since: None,
        },
        tables: BTreeMap::from([
            (NAMED, table("public.t", Kind::Named, "t1")),
            (CHILD, table("public.c", Kind::Child, "t2")),
            (LEAF, Covered { is_member: false, ..table("public.l", Kind::Partition, "t1") }),
        ]),
    }
}

type Change = fn(&mut Coverage);

fn of(now: &mut Coverage, oid: u32) -> &mut Covered {
    now.tables.get_mut(&oid).unwrap()
}

fn lose(then: Change, now: Change) -> Vec<Loss> {
    let (mut before, mut after) = (coverage(), coverage());
    then(&mut before);
    begin(&mut before, THEN);
    now(&mut after);
    compare(&before, &mut after, THEN, NOW)
}

#[test]
fn table_that_comes_below_a_watched_one_with_rows_or_leaves_it_is_told() {
    let [watched, others] = ["public.t", "public.u"].map(|name| BTreeSet::from([name.to_owned()]));
    let moved = |then: Change, now: Change, watched: &BTreeSet<String>| {
        let (mut before, mut after) = (coverage(), coverage());
        then(&mut before);
        now(&mut after);
        let losses = moved(&before, &after, watched, THEN, NOW);
        losses.into_iter().map(|loss| loss.reason).collect::<Vec<_>>()
    };
    let without: Change = |look| drop(look.tables.remove(&LEAF));
    let attached: Change = |look| of(look, LEAF).below_since_birth = false;
    let elsewhere: Change = |look| of(look, LEAF).under = BTreeSet::from(["public.u".to_owned()]);
    let same: Change = |_| {};
    for (then, now, reason) in [
        (same, without, "of public.t, public.l was detached or dropped, with its rows"),
        (same, elsewhere, "of public.t, public.l was detached or dropped, with its rows"),
        (without, attached, "of public.t, public.l was attached, with its rows"),
    ] {
        assert_eq!(moved(then, now, &watched), [reason]);
        assert!(moved(then, now, &others).is_empty());
    }
    for (then, now) in [(same, same), (attached, same), (same, attached), (without, same)] {
        assert!(moved(then, now, &watched).is_empty());
    }
    let other: Change = |look| look.cluster.push('8');
    assert!(moved(other, without, &watched).is_empty());
}

#[test]
fn publication_that_took_anothers_place_is_told_as_what_it_is_and_since_when() {
    for (name, reason) in [
        ("p", "was dropped and created again, or another"),
        ("q", "source.publication names q now"),
    ] {
        let (then, mut now) = (coverage(), coverage());
        (now.publication.oid, now.publication.name) = (11, name.to_owned());
        let losses = compare(&then, &mut now, THEN, NOW);
        assert!(losses.iter().all(|loss| loss.reason.contains(reason)), "{losses:?}");
        assert_eq!(now.publication.since, Some(NOW.lsn));
        // As the next look sees it, which keeps that.
        let mut next = now.clone();
        next.publication.since = None;
        assert_eq!(compare(&now, &mut next, NOW, NOW), []);
        assert_eq!(next.publication, now.publication);
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one test of one thing, step by step")]
fn change_that_may_have_cost_rows_is_a_loss_of_the_table() {
    let same: Change = |_| {};
    let cases: [(&str, Change, Change, &str, &str); 16] = [
        ("recreated", same, |c| c.publication.oid = 11, "public.t", "created again"),
        ("toggled", same, |c| c.publication.version = "701".into(), "public.t", "switched off"),
        (
            "toggled, then owned by another",
            same,
            |c| {
                (c.publication.version, c.publication.owner, c.publication.alterations) =
                    ("703".into(), 12, 6)
            },
            "public.t",
            "switched off",
        ),
        (
            "member anew",
            same,
            |c| of(c, NAMED).by = BTreeSet::from(["t5".into()]),
            "public.t",
            "put back",
        ),
        (
            "replaced",
            same,
            |c| {
                let table = c.tables.remove(&NAMED).unwrap();
                c.tables.insert(77, table);
            },
            "public.t",
            "another table than before",
        ),
        ("unlogged leaf", same, |c| of(c, LEAF).toast = 70, "public.l", "unlogged"),
        (
            "unlogged, without TOAST",
            |c| of(c, LEAF).toast = 0,
            |c| (of(c, LEAF).toast, of(c, LEAF).file) = (0, 80),
            "public.l",
            "or only rewritten",
        ),
        (
            "child anew",
            same,
            |c| of(c, CHILD).by = BTreeSet::from(["t6".into()]),
            "public.c",
            "put back",
        ),
        (
            "child that is added later",
            |c| drop(c.tables.remove(&CHILD)),
            same,
            "public.c",
            "not in the publication p at first",
        ),
        (
            "child of a schema that came later",
            |c| {
                c.tables.remove(&CHILD);
                c.publication.schemas.clear();
            },
            |c| {
                of(c, CHILD).by = BTreeSet::from(["s50:2@1".into()]);
                (of(c, CHILD).is_member, of(c, CHILD).since_birth) = (false, true);
            },
            "public.c",
            "at first",
        ),
        (
            "child that was moved into the schema",
            |c| drop(c.tables.remove(&CHILD)),
            |c| {
                of(c, CHILD).by = BTreeSet::from(["s50:2@1".into()]);
                of(c, CHILD).is_member = false;
            },
            "public.c",
            "at first",
        ),
        ("lacked", |c| of(c, CHILD).lack = Some(Lack::Unpublished), same, "public.c", "until now"),
        ("filtered", |c| of(c, CHILD).lack = Some(Lack::Filtered), same, "public.c", "row filter"),
        ("unlogged", |c| of(c, LEAF).lack = Some(Lack::Unlogged), same, "public.l", "was unlogged"),
        (
            "dropped while it lacked",
            |c| of(c, CHILD).lack = Some(Lack::Identityless),
            |c| drop(c.tables.remove(&CHILD)),
            "public.c",
            "dropped",
        ),
        (
            "in another schema for a time",
            |c| of(c, NAMED).by = BTreeSet::from(["s50:1@1".into()]),
            |c| of(c, NAMED).by = BTreeSet::from(["s50:1@2".into()]),
            "public.t",
            "put back",
        ),
    ];
    for (name, then, now, table, reason) in cases {
        let losses = lose(then, now);
        let [loss] = &losses[..] else { panic!("{name}: {losses:?}") };
        assert_eq!((loss.table.as_str(), loss.from, loss.to), (table, THEN, NOW), "{name}");
        assert!(loss.reason.contains(reason), "{name}: {}", loss.reason);
        let find = "(xmin::text::bigint - 16 + 4294967296) % 4294967296 < 16";
        let gone = name.starts_with("dropped");
        assert_eq!(
            loss.find.as_ref().map(|sql| sql.contains(find)),
            (!gone).then_some(true),
            "{name}"
        );
    }
}

#[test]
fn change_that_cost_nothing_that_both_looks_need_is_none() {
    let same: Change = |_| {};
    let cases: [(&str, Change, Change); 15] = [
        ("nothing", same, same),
        ("owner", same, |c| (c.publication.version, c.publication.owner) = ("701".into(), 12)),
        ("owner and back", same, |c| {
            (c.publication.version, c.publication.owned_since) = ("702".into(), Some("702".into()))
        }),
        ("name", same, |c| {
            (c.publication.version, c.publication.name) = ("701".into(), "q".into())
        }),
        ("set-up of a rule for truncates", same, |c| {
            (c.publication.version, c.publication.alterations) = ("701".into(), 4);
            c.publication.options.insert("pubtruncate".into(), "true".into());
        }),
        ("pg_upgrade", same, |c| (c.cluster, c.publication.oid) = ("2, version 18".into(), 99)),
        ("table of a new rule", |c| c.tables.clear(), same),
        ("table of a rule that went", same, |c| c.tables.clear()),
        ("named anew in source and configuration", same, |c| {
            of(c, NAMED).name = "public.renamed".into()
        }),
        ("second way to be published", same, |c| {
            of(c, NAMED).by.insert("*".into());
        }),
        ("vacuum full", same, |c| of(c, LEAF).file = 80),
        ("rewritten", same, |c| (of(c, LEAF).toast, of(c, LEAF).shape) = (70, "b".into())),
        ("member cannot be unlogged", same, |c| of(c, CHILD).toast = 70),
        (
            "child that was added with its making",
            |c| drop(c.tables.remove(&CHILD)),
            |c| of(c, CHILD).since_birth = true,
        ),
        (
            "child where all tables are published",
            |c| drop(c.tables.remove(&CHILD)),
            |c| of(c, CHILD).by = BTreeSet::from(["*".into()]),
        ),
    ];
    for (name, then, now) in cases {
        assert_eq!(lose(then, now), [], "{name}");
    }
}

#[test]
fn loss_of_a_named_table_tells_of_what_lies_below_it_too() {
    let losses = lose(
        |_| {},
        |c| {
            c.publication.oid = 11;
            for oid in [NAMED, CHILD, LEAF] {
                of(c, oid).by = BTreeSet::from(["t99".into()]);
            }
        },
    );
    assert_eq!(losses.len(), 1, "{losses:?}");
}

#[test]
fn table_that_goes_on_lacking_keeps_since_when() {
    let (mut first, mut second) = (coverage(), coverage());
    first.tables.remove(&CHILD);
    of(&mut second, CHILD).lack = Some(Lack::Unpublished);
    let mut third = second.clone();
    assert_eq!(compare(&first, &mut second, THEN, NOW), []);
    let later = Moment { lsn: Lsn(300), ..NOW };
    assert_eq!(compare(&second, &mut third, NOW, later), []);
    let mut last = coverage();
    let losses = compare(&third, &mut last, later, Moment { lsn: Lsn(400), ..later });
    assert_eq!(losses.first().map(|loss| loss.from), Some(THEN), "{losses:?}");
}
