//! A value survives the way: stored by PostgreSQL, read from the WAL, sent as JSON, read back after
//! the contract, cast by PostgreSQL, and compared there with what is stored.

mod documented;
mod random;
mod read;
mod samples;

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::value::RawValue;
use walhook_postgres::sql::Connection;

use crate::support::{SCHEMA, World};
use read::{Shape, quoted};

/// A session's settings that change how values are written, all set against us.
const HOSTILE: &str = "
    ALTER DATABASE postgres SET datestyle = 'German';
    ALTER DATABASE postgres SET intervalstyle = 'sql_standard';
    ALTER DATABASE postgres SET timezone = 'America/New_York';
    ALTER DATABASE postgres SET extra_float_digits = -5;
    ALTER DATABASE postgres SET bytea_output = 'escape'";

/// The session that compares prints every digit.
const EXACT: &str = "SET datestyle = ISO; SET extra_float_digits = 3; SET timezone = 'UTC'";

/// A column of the table, and the texts that are stored in it: one a row, null where they end.
struct Column {
    /// Its type in SQL.
    of_type: String,
    shape: Shape,
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct Body {
    data: HashMap<String, Box<RawValue>>,
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A cluster where walhook sends the table `typed`, which has these columns `c0`, `c1` and so on.
async fn world_with(columns: &[Column], types: &str) -> Result<World> {
    let rule = "[[events]]\ntype = \"typed\"\ntable = \"public.typed\"\non = [\"insert\"]\n\
                account = \"account_id\"\ncolumns = [\"*\"]\n";
    let world = World::bare("", rule, &[]).await?;
    world.sql.batch_execute(&format!("{HOSTILE};{SCHEMA};{types}")).await?;
    let columns = columns.iter().enumerate();
    let columns: String = columns.map(|(i, c)| format!(", c{i} {}", c.of_type)).collect();
    let create = format!("CREATE TABLE typed (id bigint PRIMARY KEY, account_id bigint{columns})");
    world.sql.batch_execute(&create).await?;
    world.set_up().await?;
    // A commit that is published moves the frontier at once, whatever becomes of it.
    world.sql.batch_execute("ALTER PUBLICATION walhook ADD TABLE subscribers").await?;
    world.hook(1, 42, "").await?;
    Ok(world)
}

/// Stores the texts, and compares what is sent of them with what is stored.
async fn round_trip(columns: &[Column], types: &str) -> Result<()> {
    let mut world = world_with(columns, types).await?;
    let _running = world.run().await?;
    let rows = columns.iter().map(|column| column.texts.len()).max().unwrap_or_default();
    for row in 0..rows {
        let value = |column: &Column| {
            let text = column.texts.get(row);
            text.map_or("NULL".to_owned(), |text| format!("{}::{}", literal(text), column.of_type))
        };
        let values: Vec<String> = columns.iter().map(value).collect();
        let insert = format!("INSERT INTO typed VALUES ({row}, 42, {})", values.join(", "));
        world.sql.batch_execute(&insert).await.with_context(|| insert)?;
    }
    world.settled().await?;
    let received = world.delivered(rows as u64).await?;
    let session = world.connect().await?;
    session.batch_execute(EXACT).await?;
    let comparable = comparable(&session, columns.len()).await?;
    let mut differing = Vec::new();
    for request in received {
        let body: Body = serde_json::from_slice(&request.body)?;
        let row = body.data["id"].get();
        let mut checks = Vec::new();
        for (i, column) in columns.iter().enumerate() {
            let json = &body.data[&format!("c{i}")];
            let text = column.shape.text(json);
            let text = text.with_context(|| format!("{} {json}", column.of_type))?;
            let back = text.as_deref().map_or("NULL".to_owned(), literal);
            let back = format!("{back}::{}", column.of_type);
            // `format` prints what the type's own output function says; a cast to text may not.
            let mut same = format!(
                "num_nulls({back}) = num_nulls(c{i}) AND format('%s', {back}) = format('%s', c{i})"
            );
            if comparable[i] {
                same += &format!(" AND {back} IS NOT DISTINCT FROM c{i}");
            }
            checks.push(format!("CASE WHEN NOT ({same}) THEN 'c{i}' END"));
        }
        let checks = checks.join(", ");
        let select = format!("SELECT ARRAY[{checks}] FROM typed WHERE id = {row}");
        let found: Vec<Option<String>> =
            session.query_one(&select, &[]).await.with_context(|| select)?.get(0);
        for name in found.into_iter().flatten() {
            let column = &columns[name[1..].parse::<usize>()?];
            differing.push(format!("row {row}, {}: {}", column.of_type, body.data[&name]));
        }
    }
    ensure!(differing.is_empty(), "not what is stored:\n{}", differing.join("\n"));
    Ok(())
}

/// Which columns have an equality: the others are compared by their text alone.
async fn comparable(session: &Connection, columns: usize) -> Result<Vec<bool>> {
    let mut comparable = Vec::new();
    for i in 0..columns {
        // Whether an array's elements can be compared shows with its values only.
        let select = format!("SELECT FROM typed WHERE c{i} IS DISTINCT FROM c{i}");
        comparable.push(session.batch_execute(&select).await.is_ok());
    }
    Ok(comparable)
}

/// A built-in type that is no array.
struct BuiltIn {
    sql: String,
    name: String,
    /// What a domain stands on; otherwise itself.
    base: String,
    array: Option<String>,
    delimiter: char,
}

/// Every type that the server itself brings along, but for pseudo-types and tables' rows.
async fn built_in_types(sql: &Connection) -> Result<Vec<BuiltIn>> {
    let rows = sql
        .query(
            "SELECT t.oid::regtype::text, t.typname::text, coalesce(b.typname, t.typname)::text,
                    nullif(t.typarray, 0)::regtype::text, t.typdelim::text
             FROM pg_type t LEFT JOIN pg_type b ON b.oid = t.typbasetype
             WHERE t.oid < 16384 AND t.typtype IN ('b', 'd', 'e', 'r', 'm')
               AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid) ORDER BY t.oid",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let delimiter: &str = row.try_get(4)?;
            Ok(BuiltIn {
                sql: row.try_get(0)?,
                name: row.try_get(1)?,
                base: row.try_get(2)?,
                array: row.try_get(3)?,
                delimiter: delimiter.chars().next().context("no delimiter")?,
            })
        })
        .collect()
}

/// Array literals of these elements: none, all of them with a null, and a matrix.
fn arrays(texts: &[String], delimiter: char, matrix: bool) -> Vec<String> {
    let separator = delimiter.to_string();
    let all: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    let (first, last) = (&all[0], &all[all.len() - 1]);
    let mut arrays = vec!["{}".to_owned(), format!("{{{}{separator}NULL}}", all.join(&separator))];
    if matrix {
        arrays
            .push(format!("{{{{{first}{delimiter}NULL}}{delimiter}{{{last}{delimiter}{first}}}}}"));
    }
    arrays
}

/// Torture case 14.
#[tokio::test]
async fn case_14_every_built_in_type_survives_the_way_with_its_special_values() -> Result<()> {
    let catalog = World::bare("", crate::support::RULES, &[]).await?;
    let (mut columns, mut unknown) = (Vec::new(), Vec::new());
    for BuiltIn { sql, name, base, array, delimiter } in built_in_types(&catalog.sql).await? {
        let Some(texts) = samples::of(&name) else {
            // Statistics and parse trees: PostgreSQL alone makes values of these.
            let input = catalog.sql.batch_execute(&format!("SELECT 'x'::{sql}")).await;
            let code = input.err().and_then(|error| error.code().cloned());
            if code != Some(tokio_postgres::error::SqlState::FEATURE_NOT_SUPPORTED) {
                unknown.push(name);
            }
            continue;
        };
        let shape = Shape::of_base(&base);
        if let Some(array) = array {
            let texts = arrays(&texts, delimiter, shape != Shape::Embedded);
            let shape = shape.clone().array(delimiter);
            columns.push(Column { of_type: array, shape, texts });
        }
        columns.push(Column { of_type: sql, shape, texts });
    }
    ensure!(unknown.is_empty(), "samples are wanted of {unknown:?}");
    ensure!(columns.len() > 150, "only {} columns", columns.len());
    drop(catalog);
    round_trip(&columns, "").await
}

const MADE: &str = r#"
    CREATE TYPE mood AS ENUM ('happy', 'so, so', 'NULL', 'a "b" \c');
    CREATE DOMAIN percent AS integer CHECK (value BETWEEN 0 AND 100);
    CREATE DOMAIN half AS percent CHECK (value <= 50);
    CREATE DOMAIN moods AS mood[]; CREATE DOMAIN blob AS bytea; CREATE DOMAIN doc AS jsonb;
    CREATE DOMAIN halves AS half[];
    CREATE TYPE pair AS (a integer, b text, moods mood[], share percent, bytes bytea);
    CREATE TYPE outer_pair AS (inner_pair pair, "Odd name" timestamptz);
    CREATE TYPE spread AS RANGE (subtype = float8);
    DO $$ DECLARE e text; BEGIN
        FOREACH e IN ARRAY '{hstore,citext,ltree}'::text[] LOOP
            IF EXISTS (SELECT FROM pg_available_extensions WHERE name = e) THEN
                EXECUTE 'CREATE EXTENSION ' || e;
            ELSE
                EXECUTE format('CREATE DOMAIN %I AS text', e);
            END IF;
        END LOOP;
    END $$"#;

/// Torture case 14.
#[tokio::test]
async fn case_14_domains_enums_composites_ranges_and_extensions_survive_the_way() -> Result<()> {
    let pair = r#"(1,"x ""y"", \\z","{happy,""so, so"",NULL}",50,"\\x00ff")"#;
    let outer = format!("({},\"2026-11-23 17:46:00+00\")", quoted(pair));
    let made: [(&str, Shape, &[&str]); 15] = [
        ("mood", Shape::Text, &["happy", "so, so", "NULL", "a \"b\" \\c"]),
        ("percent", Shape::Number, &["0", "100"]),
        ("half", Shape::Number, &["0", "50"]),
        ("moods", Shape::Text.array(','), &["{}", "{happy,NULL}"]),
        ("halves", Shape::Number.array(','), &["{}", "{1,NULL}", "{{1,2},{3,4}}"]),
        ("blob", Shape::Bytes, &["\\x", "\\x00ff"]),
        ("doc", Shape::Embedded, &["{\"a\": 1}", "[1]"]),
        ("pair", Shape::Text, &["(,,,,)", "(0,\"\",{},0,)", pair]),
        ("outer_pair", Shape::Text, &["(,)", &outer]),
        ("spread", Shape::Text, &["empty", "[0.1,0.30000000000000004)", "(,Infinity)"]),
        ("spread_multirange", Shape::Text, &["{}", "{[0.1,1),[2,3)}"]),
        ("hstore", Shape::Text, &["", "\"a b\"=>\"c\\\"d\", \"x\"=>NULL"]),
        ("citext", Shape::Text, &["Ab", ""]),
        ("ltree", Shape::Text, &["a.b.c"]),
        ("numeric(1000,400)", Shape::Text, &["1.5", "NaN"]),
    ];
    // PostgreSQL 14 is the first with multiranges, and the oldest that is supported.
    let mut columns = Vec::new();
    for (name, shape, texts) in made {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        if !matches!(shape, Shape::Embedded | Shape::Array(..)) {
            let texts = arrays(&texts, ',', true);
            let shape = shape.clone().array(',');
            columns.push(Column { of_type: format!("{name}[]"), shape, texts });
        }
        columns.push(Column { of_type: name.to_owned(), shape, texts });
    }
    round_trip(&columns, MADE).await
}

/// Torture case 14.
#[tokio::test]
async fn case_14_random_values_survive_the_way() -> Result<()> {
    let seed = match std::env::var("WALHOOK_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => rand::random(),
    };
    let columns = random::columns(seed, 100);
    round_trip(&columns, "CREATE TYPE mix AS (a text, b float8)")
        .await
        .with_context(|| format!("with WALHOOK_SEED={seed}"))
}
