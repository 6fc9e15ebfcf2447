//! A value of every kind, as the documentation shows it.

use anyhow::Result;
use serde_json::{Value, json};

use crate::changes::rule;
use crate::support::{World, bodies};

const TYPED: &str = "
    CREATE TYPE mood AS ENUM ('happy', 'so, so');
    CREATE DOMAIN percent AS integer CHECK (value BETWEEN 0 AND 100);
    CREATE TYPE pair AS (a integer, b text);
    CREATE TABLE typed (
        id bigint PRIMARY KEY, account_id uuid, small smallint, whole integer, big bigint, exact numeric,
        single real, float double precision, nan double precision, yes boolean, plain json, binary_ jsonb,
        at timestamptz, local timestamp, day date, clock time, bytes bytea, ints integer[], texts text[][],
        moods mood[], mood mood, share percent, pair pair, word varchar(10), fixed char(4), nothing text,
        span interval, address inet, \"Odd \"\"name\" text, home regclass, doc text
    );
    ALTER TABLE typed ALTER doc SET STORAGE EXTERNAL;
    CREATE TABLE hooks (id uuid PRIMARY KEY, account_id uuid NOT NULL, url text NOT NULL,
        event_types text[] NOT NULL, secret text, enabled boolean NOT NULL)";

const VALUES: &str = r#"
    SET timezone = 'America/New_York'; SET datestyle = 'German'; SET bytea_output = 'escape';
    INSERT INTO typed VALUES (
        9223372036854775807, '6f9619ff-8b86-d011-b42d-00c04fc964ff', -32768, 2147483647,
        -9223372036854775808, 123456789012345678901234567890.1234567890, 1.5, 0.1, 'NaN', true,
        '{"a": [1, 1.00, "ü"],  "a": 2}', '{"b":null,"a":1e2}', '2026-11-23 12:46:00.5-05',
        '2026-11-23 17:46:00', '2024-02-29', '12:30:00', '\x00ff10', '{1,NULL,3}',
        '{{"a,b","c\"d"},{"NULL",NULL}}', '{happy,"so, so"}', 'so, so', 50, '(1,"x y")', 'w"\ö', 'ab',
        NULL, '1 day 02:00', '::1', 'odd', 'hooks', repeat('x', 9000))"#;

#[tokio::test]
async fn values_of_every_kind_arrive_as_documented() -> Result<()> {
    let rules = rule("typed", "typed", r#"["insert", "update"]"#, r#"["*"]"#, "");
    let mut world = World::bare("", &rules, &[]).await?;
    world.reconfigure("\"public.webhooks\"", "\"public.hooks\"")?;
    world.sql.batch_execute(TYPED).await?;
    world.set_up().await?;
    let account = "6f9619ff-8b86-d011-b42d-00c04fc964ff";
    let hook = format!(
        "INSERT INTO hooks VALUES (gen_random_uuid(), '{account}', '{}', '{{typed}}', '{}', true)",
        world.mock.url("/1"),
        crate::support::SECRET
    );
    world.sql.batch_execute(&hook).await?;
    let _running = world.run().await?;
    let session = world.connect().await?;
    session.batch_execute(VALUES).await?;
    session.batch_execute("UPDATE typed SET small = 1, nan = '-Infinity'").await?;
    session.batch_execute("ALTER TABLE typed REPLICA IDENTITY FULL").await?;
    session.batch_execute("UPDATE typed SET small = NULL").await?;
    let received = world.delivered(3).await?;
    let bodies = bodies(&received, "/1");
    let mut expected = json!({
        "id": 9_223_372_036_854_775_807_i64, "account_id": account, "small": -32768,
        "whole": 2_147_483_647, "big": -9_223_372_036_854_775_808_i64,
        "exact": "123456789012345678901234567890.1234567890", "single": 1.5, "float": 0.1,
        "nan": "NaN", "yes": true, "plain": {"a": 2}, "binary_": {"a": 100, "b": null},
        "at": "2026-11-23T17:46:00.5Z", "local": "2026-11-23T17:46:00", "day": "2024-02-29",
        "clock": "12:30:00", "bytes": "AP8Q", "ints": [1, null, 3],
        "texts": [["a,b", "c\"d"], ["NULL", null]], "moods": ["happy", "so, so"], "mood": "so, so",
        "share": 50, "pair": "(1,\"x y\")", "word": "w\"\\ö", "fixed": "ab  ", "nothing": null,
        "span": "1 day 02:00:00", "address": "::1", "Odd \"name": "odd",
        "home": "public.hooks", "doc": "x".repeat(9000),
    });
    assert_eq!(bodies[0]["account_id"], account);
    assert_eq!(bodies[0]["data"], expected);
    let text = String::from_utf8_lossy(&received[0].body).into_owned();
    assert!(text.contains(r#""plain":{"a": [1, 1.00, "ü"],  "a": 2}"#), "json is as it is: {text}");

    // The default identity does not log the TOASTed value that was left alone: it is told, not null.
    expected["small"] = json!(1);
    expected["nan"] = json!("-Infinity");
    let doc = expected.as_object_mut().and_then(|row| row.remove("doc"));
    assert_eq!(bodies[1]["data"], expected);
    assert_eq!(bodies[1]["unchanged"], json!(["doc"]));
    assert_eq!(bodies[1]["previous"], Value::Null);

    // The full one does.
    expected["doc"] = json!(doc);
    expected["small"] = Value::Null;
    assert_eq!(bodies[2]["data"], expected);
    assert_eq!(bodies[2]["previous"], json!({"small": 1}));
    assert_eq!(bodies[2]["unchanged"], Value::Null);
    Ok(())
}
