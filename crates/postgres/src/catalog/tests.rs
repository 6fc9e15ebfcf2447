use bytes::BytesMut;
use tokio_postgres::SimpleQueryMessage;

use super::*;
use crate::fixture::start;
use walhook_rules::settings::Bigint;
use walhook_rules::value::put_value;

const SCHEMA: &str = r#"
    CREATE SCHEMA "My Schema";
    CREATE TYPE mood AS ENUM ('glad', 'so "so"');
    CREATE DOMAIN count AS integer CHECK (VALUE >= 0);
    CREATE DOMAIN counts AS count[];
    CREATE TABLE plain (id bigint PRIMARY KEY, gone text, n count, moods mood[]);
    ALTER TABLE plain DROP COLUMN gone;
    CREATE TABLE "My Schema"."T" (b int, a int, c text, PRIMARY KEY (a, b));
    ALTER TABLE "My Schema"."T" REPLICA IDENTITY FULL;
    CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL);
    CREATE UNIQUE INDEX by_index_code ON by_index (code) INCLUDE (id);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
    CREATE TABLE bare (id int, twice int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE nothing (id int PRIMARY KEY);
    ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE VIEW shown AS SELECT * FROM plain;
    CREATE TABLE parted (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parted_26 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
        PARTITION BY RANGE (at);
    CREATE TABLE parted_26_a PARTITION OF parted_26
        FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
"#;

#[tokio::test]
async fn types_of_columns_are_known_alike_where_no_others_are_read() {
    let (_cluster, client) = start().await;
    let columns = "
        CREATE DOMAIN many_counts AS counts;
        CREATE DOMAIN moods AS mood[];
        CREATE TYPE pair AS (a int, b mood);
        CREATE TABLE every (a count, b counts, c many_counts, d moods, e mood, f mood[], g plain, h plain[],
            i pair, j pair[], k int4range, l int[], m text, n int2vector)";
    client.batch_execute(&[SCHEMA, columns].concat()).await.unwrap();
    let all = load(&client, ["every", "plain"]).await.unwrap();
    let few = load_with(&client, ["every", "plain"], WhichTypes::OfColumns).await.unwrap();
    for column in ["every", "plain"].iter().flat_map(|table| &all.find(table).unwrap().columns) {
        let kinds = [&all, &few].map(|catalog| catalog.types.kind(column.type_oid));
        assert!(kinds[0].is_some() && kinds[0] == kinds[1], "{}: {kinds:?}", column.name);
        assert_eq!(all.types.base(column.type_oid), few.types.base(column.type_oid));
    }
    let row = client.query_one("SELECT oid FROM pg_type WHERE typname = 'nothing'", &[]).await;
    let of_another: u32 = row.unwrap().get(0);
    assert!(all.types.kind(of_another).is_some());
    assert_eq!(few.types.kind(of_another), None);
}

#[tokio::test]
async fn catalog_tells_of_tables_keys_identities_and_partitions() {
    let (_cluster, client) = start().await;
    client.batch_execute(SCHEMA).await.unwrap();
    let names = [
        "plain",
        "\"My Schema\".\"T\"",
        "public.by_index",
        "bare",
        "nothing",
        "shown",
        "parted",
        "no_such_table",
    ];
    let catalog = load(&client, names).await.unwrap();

    let plain = catalog.find("public.plain").unwrap();
    let names: Vec<_> = plain.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["id", "n", "moods"], "without the dropped column");
    assert_eq!(plain.primary_key, ["id"]);
    assert_eq!((plain.identity, plain.root()), (ReplicaIdentity::Default, plain.oid));
    assert!(plain.logs_old("id") && !plain.logs_old("n"));

    let full = catalog.find("\"My Schema\".\"T\"").unwrap();
    assert_eq!(full.primary_key, ["a", "b"], "in the key's order, not the table's");
    assert_eq!(full.identity, ReplicaIdentity::Full);
    assert!(full.logs_old("c"));

    let by_index = catalog.find("by_index").unwrap();
    assert_eq!(by_index.identity_columns, ["code"], "without the included column");
    assert_eq!(by_index.primary_key, ["id"]);

    for name in ["bare", "nothing"] {
        assert!(catalog.find(name).unwrap().identity_columns.is_empty(), "{name}");
    }
    let generated: Vec<_> =
        catalog.find("bare").unwrap().columns.iter().map(TableColumn::is_withheld).collect();
    assert_eq!(generated, [false, true]);
    assert!(catalog.find("shown").unwrap().is_view);
    assert!(catalog.find("no_such_table").is_none());

    let root = catalog.find("parted").unwrap();
    let leaf = catalog.find("parted_26_a").unwrap();
    let middle = catalog.find("parted_26").unwrap();
    assert_eq!(leaf.ancestors, [middle.oid, root.oid]);
    assert_eq!(leaf.root(), root.oid);
    assert_eq!(leaf.primary_key, ["id", "at"]);
    let leaves: Vec<_> = catalog.leaves(root.oid).map(|table| table.name.as_str()).collect();
    assert_eq!(leaves, ["parted_26_a"]);

    assert!(load(&client, ["a.b.c"]).await.is_err());
}

/// For each: a type, a value of it in SQL, and its JSON.
const VALUES: &[(&str, &str, &str)] = &[
    ("boolean", "true", "true"),
    ("smallint", "-32768", "-32768"),
    ("integer", "7", "7"),
    ("bigint", "9223372036854775807", "9223372036854775807"),
    ("real", "1.1", "1.1"),
    ("real", "'1e20'", "1e+20"),
    ("double precision", "0.1", "0.1"),
    ("double precision", "'1e-300'", "1e-300"),
    ("double precision", "'-0'", "-0"),
    ("double precision", "'NaN'", "\"NaN\""),
    ("double precision", "'-Infinity'", "\"-Infinity\""),
    ("numeric", "'1234567890123456789.120'", "\"1234567890123456789.120\""),
    ("numeric", "'NaN'", "\"NaN\""),
    ("json", "'{\"a\" : [1, null]}'", "{\"a\" : [1, null]}"),
    ("jsonb", "'{\"b\":1e25, \"a\":1.0}'", r#"{"a": 1.0, "b": 10000000000000000000000000}"#),
    ("text", "E'a\"\\\\\\n\\u0001'", r#""a\"\\\n\u0001""#),
    ("varchar(3)", "'abc'", "\"abc\""),
    ("char(3)", "'a'", "\"a  \""),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\""),
    ("timestamptz", "'2026-11-23 19:46:00.123456+02'", "\"2026-11-23T17:46:00.123456Z\""),
    ("timestamptz", "'infinity'", "\"infinity\""),
    ("timestamptz", "'0044-03-15 00:00:00+00 BC'", "\"0044-03-15 00:00:00+00 BC\""),
    ("timestamp", "'2026-11-23 17:46:00'", "\"2026-11-23T17:46:00\""),
    ("date", "'2026-11-23'", "\"2026-11-23\""),
    ("date", "'20026-11-23'", "\"20026-11-23\""),
    ("time", "'17:46:00'", "\"17:46:00\""),
    ("interval", "'1 day 2 hours'", "\"1 day 02:00:00\""),
    ("bytea", "'\\xdeadbeef'", "\"3q2+7w==\""),
    ("inet", "'10.0.0.1/8'", "\"10.0.0.1/8\""),
    ("int4range", "'[1,5)'", "\"[1,5)\""),
    ("mood", "'so \"so\"'", r#""so \"so\"""#),
    ("count", "5", "5"),
    ("counts", "'{1,2}'", "[1,2]"),
    ("counts[]", "ARRAY['{1,2}'::counts, '{3}'::counts]", "[[1,2],[3]]"),
    ("count[]", "'{1,NULL}'", "[1,null]"),
    ("mood[]", "ARRAY['so \"so\"', 'glad']::mood[]", r#"["so \"so\"","glad"]"#),
    ("integer[]", "'[0:2]={1,2,3}'", "[1,2,3]"),
    ("integer[]", "'{{1,2},{3,NULL}}'", "[[1,2],[3,null]]"),
    ("integer[]", "'{}'", "[]"),
    ("text[]", "ARRAY['a,b', 'NULL', NULL, '', '{\"\\']", r#"["a,b","NULL",null,"","{\"\\"]"#),
    ("jsonb[]", "ARRAY['{\"a\": [1]}'::jsonb]", "[{\"a\": [1]}]"),
    ("timestamptz[]", "ARRAY['2026-11-23 17:46:00+00'::timestamptz]", "[\"2026-11-23T17:46:00Z\"]"),
    ("bytea[]", "ARRAY['\\x00'::bytea]", "[\"AA==\"]"),
    ("boolean[]", "'{t,f}'", "[true,false]"),
    ("inet[]", "'{10.0.0.1}'", "[\"10.0.0.1\"]"),
    ("box[]", "ARRAY[box '(1,1),(0,0)', box '(3,3),(2,2)']", r#"["(1,1),(0,0)","(3,3),(2,2)"]"#),
    ("int2vector", "'1 2'", "\"1 2\""),
    ("point", "'(1,2)'", "\"(1,2)\""),
];

#[tokio::test]
async fn values_of_each_type_are_written_as_the_contract_says() {
    let (_cluster, client) = start().await;
    client.batch_execute(SCHEMA).await.unwrap();
    client.batch_execute("SET datestyle = ISO; SET bytea_output = hex").await.unwrap();
    let catalog = load(&client, ["plain"]).await.unwrap();
    for (type_name, sql, expected) in VALUES {
        let query = format!("SELECT ({sql})::{type_name} AS v");
        // A prepared statement tells a domain as its base type; a column tells the domain itself.
        let table = format!("CREATE TEMP TABLE value AS {query}");
        client.batch_execute(&table).await.unwrap();
        let oid = "SELECT atttypid FROM pg_attribute WHERE attrelid = 'pg_temp.value'::regclass \
                   AND attname = 'v'";
        let oid: u32 = client.query_one(oid, &[]).await.unwrap().get(0);
        let kind = catalog.types.kind(oid).unwrap();
        let rows =
            client.simple_query("TABLE pg_temp.value; DROP TABLE pg_temp.value").await.unwrap();
        let text = rows.iter().find_map(|message| {
            if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { None }
        });
        let mut out = BytesMut::new();
        put_value(&mut out, &kind, text.unwrap(), Bigint::Number).unwrap();
        let json = std::str::from_utf8(&out).unwrap();
        assert_eq!(json, *expected, "{type_name} {sql}");
        let valid = serde_json::from_str::<serde::de::IgnoredAny>(json);
        assert!(valid.is_ok(), "{type_name} {sql}: {json}");
    }
}
