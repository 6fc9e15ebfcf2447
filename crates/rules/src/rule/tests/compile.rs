//! The configuration against the catalog.

use super::*;

#[test]
fn partition_with_another_identity_than_its_root_is_found_out() {
    let events = rule("p", "['delete']", "columns = ['id']").replace("subscribers", "parted");
    let mut part = table(PART, "part", &[("id", oid::INT4), ("account_id", oid::INT4)], &["id"]);
    let root = full(table(PARTED, "parted", &[("id", oid::INT4), ("account_id", oid::INT4)], &[]));
    let compile = |part: &Table| {
        let tables = [webhooks(), root.clone(), part.clone()];
        errors(&config(&events), &Catalog::new(tables, Types::default()))
    };
    let told = compile(&part);
    assert!(told[0].contains("ALTER TABLE public.part REPLICA IDENTITY FULL"), "{told:?}");
    part = full(part);
    assert_eq!(compile(&part), [""; 0]);
}

#[test]
fn compile_tells_every_error_with_rule_and_fix() {
    let events = [
        rule("bad type", "[]", "columns = []"),
        rule("t", "['insert']", "").replace("public.subscribers", "nowhere"),
        rule("v", "['insert']", "columns = ['id']").replace("public.subscribers", "shown"),
        rule("n", "['insert']", "").replace("public.subscribers", "a.b.c"),
        rule("c", "['insert']", "columns = ['id', 'statsu', 'id']\nrename = {attrs = 'id'}"),
        rule("r", "['insert']", "rename = {status = 'id', id = ''}"),
        rule("s", "['insert']", "columns = ['*', 'id']"),
        rule("w", "['update']", "when = 'old.nope == new.id'"),
        rule("k", "['update']", "when = \"new.id == '5'\""),
        rule("x", "['insert', 'update']", "when = 'old.id == 1'"),
        rule("y", "['update', 'delete']", "when = 'new.id == 1'"),
        rule("z", "['update']", "when = \"old.status == 'a'\""),
        rule("m", "['update']", "when = 'status'"),
        rule("b", "['update']", "columns = ['id']").replace("public.subscribers", "bare"),
        rule("a", "['insert']", "columns = ['id']").replace("'account_id'", "'acount_id'"),
        rule("g", "['insert']", "columns = ['made']").replace("public.subscribers", "bare"),
        rule("tr", "['truncate']", "when = 'new.id == 1'"),
    ]
    .concat();
    let errors = errors(&config(&events), &catalog_with(subscribers()));
    let all = errors.join("\n");
    for part in [
        "rule 1 (bad type): type is not valid",
        "rule 1 (bad type): on is empty",
        "rule 1 (bad type): columns is empty",
        "rule 2 (t): there is no table nowhere",
        "rule 3 (v): public.shown is a view",
        "rule 4 (n): \"a.b.c\" is not the name of a table",
        "rule 5 (c): columns: public.subscribers has no column statsu (did you mean status?); it \
         has id, account_id, status, attrs",
        "rule 5 (c): columns names id twice",
        "rule 5 (c): rename names attrs, which columns does not",
        "rule 6 (r): rename gives id an empty name",
        "rule 7 (s): columns holds \"*\" beside others",
        "rule 8 (w): when: public.subscribers has no column nope; it has",
        "rule 9 (k): when: new.id can never match",
        "rule 10 (x): when reads old, which insert does not have",
        "rule 11 (y): when reads new, which delete does not have",
        "rule 11 (y): on delete it needs the old value of account_id, and the replica identity of \
         public.subscribers logs only id; ALTER TABLE public.subscribers REPLICA IDENTITY FULL",
        "rule 12 (z): on update it needs the old value of status",
        "rule 13 (m): when: the expression reads status",
        "rule 14 (b): public.bare has no replica identity",
        "rule 16 (g): columns: the column made of public.bare is generated",
        "rule 15 (a): account: public.subscribers has no column acount_id (did you mean account_id?)",
        "rule 17 (tr): when reads new, which truncate does not have",
        "rule 17 (tr): account names a column, which truncate does not have",
    ] {
        assert!(all.contains(part), "{part}\nis not in\n{all}");
    }
    let two = rule("d", "['insert']", "rename = {status = 'id'}");
    let errors = self::errors(&config(&two), &catalog_with(subscribers()));
    assert_eq!(errors, ["rule 1 (d): two columns are sent as \"id\"; rename one of them"]);
}

#[test]
fn compile_checks_the_endpoint_table_and_what_is_watched() {
    let with = |more: &str| errors(&config(more), &catalog_with(subscribers()));
    assert_eq!(with(""), [""; 0]);
    assert!(
        with("headers = 'heders'")[0].starts_with("endpoints: headers: public.webhooks has no")
    );
    assert!(with("watch = ['nowhere']")[0].contains("no table nowhere"));
    assert!(with("watch = ['shown']")[0].contains("is a view"));
}

#[test]
fn compile_takes_old_columns_under_full_identity() {
    let events = rule("z", "['update', 'delete']", "when = \"old.status == 'a'\"");
    assert_eq!(errors(&config(&events), &catalog_with(full(subscribers()))), [""; 0]);
}

#[test]
fn probe_makes_a_row_that_each_rule_of_rows_takes() {
    let rules = "[[events]]\ntype = 'a.b'\ntable = 'subscribers'\non = ['update']\n\
                 account = 'account_id'\ncolumns = ['*']\n\
                 when = \"new.status.matches('^person') && old.status == new.status\"\n\
                 [[events]]\ntype = 'a.c'\ntable = 'subscribers'\non = ['truncate']\n\
                 account_value = '1'\n\
                 [[events]]\ntype = 'a.d'\ntable = 'subscribers'\non = ['delete']\n\
                 account = 'account_id'\ncolumns = ['attrs']\nwhen = \"old.status == ''\"\n";
    let config = config(rules);
    let (settings, catalog) = (config.rules(), catalog_with(full(subscribers())));
    let probe = |index| Probe::new(settings, index, &catalog, 20);
    assert!(probe(0).unwrap().run());
    assert!(probe(1).is_none());
    assert!(!probe(2).unwrap().run());
    assert!(probe(3).is_none());
}

#[test]
fn pattern_that_looks_for_a_backslash_is_told_of_its_rule_and_refuses_nothing() {
    let when = r"when = '''new.status.matches('^\\\\w+@')'''";
    let config = config(&rule("z", "['insert']", when));
    assert_eq!(errors(&config, &catalog_with(subscribers())), [""; 0]);
    let told: Vec<String> = doubts(config.rules()).iter().map(ToString::to_string).collect();
    let says = r"rule 1 (z): when: the pattern looks for a literal backslash followed by `w`; write `\\w` in a CEL string, or r'\w'";
    assert_eq!(told, [says]);
}

#[test]
fn text_that_is_compared_with_a_column_of_a_users_type_is_told_with_its_place() {
    let mut table = subscribers();
    table.columns[2].type_oid = 40_000;
    let when = "when = \"new.status in ['a', 'b'] && new.id == 5 && new.attrs != 'c'\"";
    let config = config(&rule("z", "['insert']", when));
    let mut catalog = catalog_with(table);
    catalog.types.handle_type(40_000, "public", "mood");
    let told = labels(config.rules(), &catalog);
    let label = |text: &str| Label {
        subject: "rule 1 (z)".to_owned(),
        place: "when: new.status".to_owned(),
        type_oid: 40_000,
        text: text.to_owned(),
    };
    assert_eq!(told, [label("a"), label("b")]);
}

#[test]
fn rule_that_fails_where_a_column_is_null_is_told_with_the_column() {
    let told = |rest: &str| -> Vec<String> {
        let config = config(&rule("z", "['insert']", rest));
        nullable(config.rules(), &catalog_with(subscribers()))
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let when = "rule 1 (z): when: new.status may be null, and then the change becomes a dead letter; write new.status \
                != null && before what reads it, or make the column NOT NULL";
    assert_eq!(told("when = \"new.status.size() > 3\""), [when]);
    assert_eq!(told("when = \"new.status != null && new.status.size() > 3\""), [""; 0]);
    assert_eq!(told("when = \"new.id > 3\""), [""; 0], "it is never null");
    let data = "rule 1 (z): data: new.status may be null, and then the change becomes a dead letter; write new.status \
                == null ? null : before what reads it, or make the column NOT NULL";
    assert_eq!(told("data = \"{'s': new.status + '!'}\""), [data]);
    assert_eq!(told("data = \"{'s': new.status}\""), [""; 0], "a column by itself");
}

#[test]
fn rule_for_deletes_that_names_columns_which_are_not_logged_is_told() {
    let told = |on: &str, table: Table| -> Vec<String> {
        let config = config(&rule("z", on, "columns = ['id', 'status']"));
        unlogged(config.rules(), &catalog_with(table)).iter().map(ToString::to_string).collect()
    };
    let says = "rule 1 (z): of a delete it sends no status: the replica identity of public.subscribers logs only \
                id; ALTER TABLE public.subscribers REPLICA IDENTITY FULL, or name them in a rule for other operations \
                alone";
    assert_eq!(told("['update', 'delete']", subscribers()), [says]);
    assert_eq!(told("['update']", subscribers()), [""; 0]);
    assert_eq!(told("['delete']", full(subscribers())), [""; 0]);
}
