//! What several sessions do at the same time, by seed: transactions just below and above the limit from which
//! they are streamed, with all that makes one differ from a list of rows.

use futures_util::SinkExt;

use crate::sql::Connection;

/// Beside each other.
pub(super) const SESSIONS: usize = 3;

/// The tables that each session has for itself, for what locks them; and those of all.
pub(super) async fn tables(sql: &Connection) {
    sql.batch_execute(
        "CREATE TYPE mood AS ENUM ('calm', 'cross');
         CREATE DOMAIN short AS text CHECK (length(value) < 100);
         CREATE TABLE shared (id bigint PRIMARY KEY, v text, m mood DEFAULT 'calm', s short);
         CREATE TABLE toasted (id bigint PRIMARY KEY, v text, n int DEFAULT 0);
         ALTER TABLE toasted ALTER v SET STORAGE EXTERNAL;
         CREATE TABLE whole (id bigint, v text);
         ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE private (id bigint, v text);
         CREATE TABLE mark (id bigint PRIMARY KEY);
         CREATE TABLE parts (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE parts_0 PARTITION OF parts FOR VALUES FROM (0) TO (5000);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (5000) TO (maxvalue)",
    )
    .await
    .unwrap();
    let mut published = "shared, toasted, whole, mark, parts".to_owned();
    for session in 0..SESSIONS {
        let create = format!(
            "CREATE TABLE own_{session} (id bigint PRIMARY KEY, v text);
             CREATE TABLE other_{session} (id bigint PRIMARY KEY, v text)"
        );
        sql.batch_execute(&create).await.unwrap();
        published.push_str(&format!(", own_{session}, other_{session}"));
    }
    let publish = format!(
        "CREATE PUBLICATION p FOR TABLE {published} WITH (publish_via_partition_root = true)"
    );
    sql.batch_execute(&publish).await.unwrap();
}

/// Numbers by seed (splitmix64).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// A session, and where it stands.
struct Session {
    sql: Connection,
    number: usize,
    /// Keys are its own: nobody waits for anybody.
    next_key: u64,
    /// Statements left before the transaction ends; 0: it has not begun.
    left: u64,
    savepoints: Vec<String>,
    names: u64,
    columns: u64,
    with_messages: bool,
}

/// Runs `transactions` of each session, their statements in turns by the dice, and then marks the end.
pub(super) async fn run(
    connections: Vec<Connection>,
    dice: &mut Dice,
    transactions: usize,
    with_messages: bool,
) {
    let mut sessions: Vec<Session> = Vec::new();
    for (number, sql) in connections.into_iter().enumerate() {
        let next_key = 1 + u64::try_from(number).unwrap() * 10_000_000;
        sessions.push(Session {
            sql,
            number,
            next_key,
            left: 0,
            savepoints: Vec::new(),
            names: 0,
            columns: 0,
            with_messages,
        });
    }
    let mut to_begin = transactions * SESSIONS;
    while to_begin > 0 || sessions.iter().any(|session| session.left > 0) {
        let at = usize::try_from(dice.below(u64::try_from(SESSIONS).unwrap())).unwrap();
        let session = &mut sessions[at];
        if session.left == 0 {
            if to_begin > 0 {
                to_begin -= 1;
                session.left = 1 + dice.below(12);
                session.sql.batch_execute("BEGIN").await.unwrap();
            }
            continue;
        }
        session.left -= 1;
        if session.left > 0 {
            session.step(dice).await;
            continue;
        }
        let end = if dice.below(6) == 0 { "ROLLBACK" } else { "COMMIT" };
        session.savepoints.clear();
        session.sql.batch_execute(end).await.unwrap();
    }
    sessions[0].sql.batch_execute("INSERT INTO mark VALUES (1)").await.unwrap();
}

impl Session {
    async fn step(&mut self, dice: &mut Dice) {
        let key = self.next_key;
        let own = format!("own_{}", self.number);
        // A row takes some 100 bytes of the limit, and more with its text: some are just below it.
        let rows = [1, 3, 30, 150, 400][usize::try_from(dice.below(5)).unwrap()];
        let last = key + rows - 1;
        let text = dice.below(200);
        let statement = match dice.below(18) {
            0..=2 => format!(
                "INSERT INTO shared SELECT i, repeat('x', {text}), 'cross', 'a'
                 FROM generate_series({key}, {last}) i"
            ),
            3 => return self.copy(rows).await,
            4 => format!(
                "INSERT INTO toasted VALUES ({key}, repeat('y', 3000)), ({last} + 1, repeat('z', 9000));
                 UPDATE toasted SET n = n + 1 WHERE id = {key};
                 UPDATE toasted SET id = {last} + 2 WHERE id = {last} + 1"
            ),
            5 => format!(
                "INSERT INTO whole SELECT i, 'w' FROM generate_series({key}, {last}) i;
                 UPDATE whole SET v = 'v' WHERE id = {key}; DELETE FROM whole WHERE id = {last}"
            ),
            6 => format!("INSERT INTO private SELECT i, 'p' FROM generate_series({key}, {last}) i"),
            7 => format!(
                "INSERT INTO {own} VALUES ({key}, 'before'); TRUNCATE {own}, other_{};
                 INSERT INTO {own} VALUES ({key}, 'after')",
                self.number
            ),
            8 | 9 => self.savepoint(),
            10 => self.release("RELEASE"),
            11 | 12 => self.release("ROLLBACK TO"),
            13 => self.exceptions(dice, key),
            14 => {
                self.columns += 1;
                let column = self.columns;
                format!(
                    "INSERT INTO {own} (id) VALUES ({key}); ALTER TABLE {own} ADD COLUMN c{column} int;
                     INSERT INTO {own} (id) VALUES ({last} + 1); SAVEPOINT ddl;
                     ALTER TABLE {own} ADD COLUMN d{column} int, DROP COLUMN IF EXISTS c{};
                     INSERT INTO {own} (id) SELECT i FROM generate_series({last} + 2, {last} + 30) i;
                     ROLLBACK TO ddl; INSERT INTO {own} (id) VALUES ({last} + 2)",
                    column.saturating_sub(2)
                )
            }
            15 => {
                format!("INSERT INTO parts SELECT i, 'q' FROM generate_series({key}, {last}) i")
            }
            16 => format!(
                "INSERT INTO shared (id) SELECT i FROM generate_series({key}, {last}) i;
                 UPDATE shared SET v = 'u' WHERE id BETWEEN {key} AND {last};
                 DELETE FROM shared WHERE id BETWEEN {key} AND {last} AND id % 2 = 0"
            ),
            _ => self.messages(dice, key, rows),
        };
        self.next_key += 2_000;
        self.sql.batch_execute(&statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }

    fn savepoint(&mut self) -> String {
        self.names += 1;
        let name = format!("s{}", self.names);
        self.savepoints.push(name.clone());
        format!("SAVEPOINT {name}")
    }

    /// Ends one of the savepoints, and all in it.
    fn release(&mut self, how: &str) -> String {
        let Some(name) = self.savepoints.pop() else { return "SELECT 1".to_owned() };
        // Half of the time the one around it, too: its number is even.
        let name = match self.savepoints.last() {
            Some(outer) if self.names.is_multiple_of(2) => outer.clone(),
            _ => name,
        };
        self.savepoints.retain(|other| *other != name);
        format!("{how} {name}")
    }

    /// Blocks with EXCEPTION, nested, of which some end in one.
    fn exceptions(&self, dice: &mut Dice, key: u64) -> String {
        let modulus = 2 + dice.below(3);
        let emit = match (self.with_messages, dice.below(2)) {
            (true, 0) => "PERFORM pg_logical_emit_message(true, 'p', 'in a block ' || i);",
            _ => "",
        };
        format!(
            "DO $$ BEGIN FOR i IN {key}..{key} + 120 LOOP
               BEGIN
                 INSERT INTO shared (id, v) VALUES (-2 * i, 'outer'); {emit}
                 BEGIN
                   INSERT INTO shared (id, v) VALUES (-2 * i - 1, repeat('i', 300));
                   IF i % {modulus} = 0 THEN RAISE EXCEPTION 'inner'; END IF;
                 EXCEPTION WHEN raise_exception THEN
                   INSERT INTO whole VALUES (i, 'caught');
                 END;
                 IF i % 5 = 0 THEN RAISE division_by_zero; END IF;
               EXCEPTION WHEN division_by_zero THEN NULL;
               END;
             END LOOP; END $$"
        )
    }

    fn messages(&self, dice: &mut Dice, key: u64, rows: u64) -> String {
        if !self.with_messages {
            return "SELECT 1".to_owned();
        }
        if dice.below(2) == 0 {
            // Each in a block of its own, and directly before a row: whether it is sent before that depends on
            // where a block of the stream ends.
            return format!(
                "DO $$ BEGIN FOR i IN {key}..{key} + {rows} LOOP
                   BEGIN PERFORM pg_logical_emit_message(true, 'p', 'alone ' || i);
                   EXCEPTION WHEN division_by_zero THEN NULL; END;
                   INSERT INTO shared (id, v) VALUES (i, 'beside');
                 END LOOP; END $$"
            );
        }
        let prefix = ["p", "of no rule"][usize::try_from(dice.below(2)).unwrap()];
        format!(
            "SELECT count(pg_logical_emit_message(true, '{prefix}', repeat('m', 200) || i))
             FROM generate_series(1, {rows}) i;
             SELECT pg_logical_emit_message(false, 'p', 'of no transaction')"
        )
    }

    async fn copy(&mut self, rows: u64) {
        let copy = "COPY shared (id, v) FROM STDIN";
        let sink = self.sql.copy_in::<_, bytes::Bytes>(copy).await.unwrap();
        let mut sink = std::pin::pin!(sink);
        let lines = (0..rows).map(|row| format!("{}\tcopied\n", self.next_key + row));
        sink.send(lines.collect::<String>().into()).await.unwrap();
        sink.finish().await.unwrap();
        self.next_key += 2_000;
    }
}
