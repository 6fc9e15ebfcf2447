//! A new user's walk from the README to the second rule, by a role without superuser rights, and on its
//! way each mistake that docs/install.md warns of: every message names the thing and the fix.

use anyhow::{Result, ensure};
use walhook_testkit::receiver::Received;

use crate::support::{SECRET, World, text};

/// What the reader gets wrong, and how it is put right again.
enum Wrong {
    /// At the server, by its administrator.
    Sql { does: &'static str, undoes: &'static str },
    /// In walhook.toml.
    Config { from: &'static str, to: &'static str },
    /// In the environment.
    Env(&'static str, &'static str),
}

struct Mistake {
    wrong: Wrong,
    command: &'static [&'static str],
    code: i32,
    /// The thing, and the fix.
    says: &'static [&'static str],
}

const fn sql(does: &'static str, undoes: &'static str) -> Wrong {
    Wrong::Sql { does, undoes }
}

const fn config(from: &'static str, to: &'static str) -> Wrong {
    Wrong::Config { from, to }
}

const CHECK: &[&str] = &["check"];
const RUN: &[&str] = &["run"];
const SETUP: &[&str] = &["setup"];

/// A piece of the README: what stands between a line that ends with `begin` and the one that is `end`.
fn piece(begin: &str, end: &str) -> Result<String> {
    let readme = include_str!("../README.md");
    let lines = readme.lines().skip_while(|line| !line.ends_with(begin)).skip(1);
    let lines = lines.take_while(|line| line.trim() != end).map(|line| line.trim_start());
    let piece = lines.collect::<Vec<_>>().join("\n");
    ensure!(!piece.is_empty(), "the README has no {begin}");
    Ok(piece)
}

/// The README's tables, and its configuration with the addresses of here.
async fn begin() -> Result<World> {
    let world = World::bare("", "", &[("max_slot_wal_keep_size", "1GB")]).await?;
    world.sql.batch_execute(&piece("<<'SQL'", "SQL")?).await?;
    let hook = "http://127.0.0.1:8080/";
    let moved =
        format!("UPDATE webhooks SET url = replace(url, '{hook}', '{}')", world.mock.url("/"));
    world.sql.batch_execute(&moved).await?;
    let url = world.cluster.url("postgres").replace("//postgres@", "//walhook@");
    let toml = piece("```toml", "```")?;
    let readme = "postgres://walhook:change-me@localhost/app";
    ensure!(toml.contains(readme), "{toml}");
    let toml = format!("{}\n[admin]\nlisten = \"{}\"\n", toml.replace(readme, &url), world.admin);
    world.write_config(&toml)?;
    Ok(world)
}

async fn make(world: &World, mistake: &Mistake) -> Result<()> {
    let mut env = Vec::new();
    match mistake.wrong {
        Wrong::Sql { does, .. } => world.sql.batch_execute(does).await?,
        Wrong::Config { from, to } => world.reconfigure(from, to)?,
        Wrong::Env(name, value) => env.push((name, value)),
    }
    let output = world.walhook_with(mistake.command, &env).await?;
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    match mistake.wrong {
        Wrong::Sql { undoes, .. } => world.sql.batch_execute(undoes).await?,
        Wrong::Config { from, to } => world.reconfigure(to, from)?,
        Wrong::Env(..) => {}
    }
    ensure!(output.status.code() == Some(mistake.code), "{}: {said}", output.status);
    for words in mistake.says {
        ensure!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    Ok(())
}

async fn make_all(world: &World, mistakes: &[Mistake]) -> Result<()> {
    let mut wrong = String::new();
    for (n, mistake) in mistakes.iter().enumerate() {
        let what = match mistake.wrong {
            Wrong::Sql { does, .. } => does,
            Wrong::Config { to, .. } => to,
            Wrong::Env(name, _) => name,
        };
        if let Err(error) = make(world, mistake).await {
            wrong.push_str(&format!("mistake {n}, {what}: {error}\n"));
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// What can be wrong before anything is set up.
const BEFORE: &[Mistake] = &[
    Mistake {
        wrong: config("[source]", "[source]\nslott = \"a\""),
        command: RUN,
        code: 2,
        says: &["no key source.slott", "did you mean slot?"],
    },
    Mistake {
        wrong: config("table = \"public.webhooks\"", "table = \"public.hooks\""),
        command: CHECK,
        code: 1,
        says: &["public.hooks does not exist", "endpoints.table"],
    },
    Mistake {
        wrong: sql("", ""),
        command: RUN,
        code: 2,
        says: &["walhook may not replicate", "run `walhook setup --admin-url`"],
    },
    Mistake {
        wrong: sql("", ""),
        command: CHECK,
        code: 1,
        says: &["may not replicate", "ALTER ROLE \"walhook\" REPLICATION", "run `walhook setup`"],
    },
    Mistake {
        wrong: sql("", ""),
        command: SETUP,
        code: 1,
        says: &["cannot create the state schema walhook", "use --admin-url or --print-sql"],
    },
    Mistake {
        wrong: Wrong::Env("WALHOOK_SOURCE__URL", "postgres://walhook@127.0.0.1:1/app"),
        command: CHECK,
        code: 1,
        says: &["127.0.0.1:1", "refused", "correct host and port"],
    },
    Mistake {
        wrong: Wrong::Env("WALHOOK_SOURCE__URL", "postgres://walhook@no-such-host.invalid/app"),
        command: CHECK,
        code: 1,
        says: &["no-such-host.invalid", "no such host name", "correct it in the URL"],
    },
    Mistake {
        wrong: Wrong::Env("WALHOOK_SOURCE__URL", "mysql://walhook@localhost/app"),
        command: CHECK,
        code: 2,
        says: &["source.url", "postgres://"],
    },
    Mistake {
        wrong: sql("ALTER ROLE walhook NOLOGIN", "ALTER ROLE walhook LOGIN"),
        command: CHECK,
        code: 1,
        says: &["role \"walhook\" is not permitted to log in", "ALTER ROLE \"walhook\" LOGIN"],
    },
    Mistake {
        wrong: sql(
            "ALTER ROLE walhook CONNECTION LIMIT 0",
            "ALTER ROLE walhook CONNECTION LIMIT -1",
        ),
        command: CHECK,
        code: 1,
        says: &[
            "too many connections for role \"walhook\"",
            "CONNECTION LIMIT of the role walhook",
        ],
    },
];

/// What can become wrong afterwards.
const AFTER: &[Mistake] = &[
    Mistake {
        wrong: sql("ALTER ROLE walhook NOREPLICATION", "ALTER ROLE walhook REPLICATION"),
        command: CHECK,
        code: 1,
        says: &["may not replicate", "ALTER ROLE \"walhook\" REPLICATION"],
    },
    Mistake {
        wrong: sql("REVOKE SELECT ON webhooks FROM walhook", "GRANT SELECT ON webhooks TO walhook"),
        command: CHECK,
        code: 1,
        says: &[
            "may not read public.webhooks",
            "GRANT SELECT ON \"public\".\"webhooks\" TO \"walhook\"",
        ],
    },
    Mistake {
        wrong: sql(
            "ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE webhooks DISABLE ROW LEVEL SECURITY",
        ),
        command: CHECK,
        code: 1,
        says: &["row-level security", "public.webhooks", "CREATE POLICY"],
    },
    Mistake {
        wrong: sql(
            "REVOKE ALL ON SCHEMA walhook FROM walhook",
            "GRANT USAGE ON SCHEMA walhook TO walhook",
        ),
        command: CHECK,
        code: 1,
        says: &["walhook may not use the schema walhook", "run `walhook setup --admin-url`"],
    },
    Mistake {
        wrong: sql(
            "REVOKE ALL ON SCHEMA walhook FROM walhook",
            "GRANT USAGE ON SCHEMA walhook TO walhook",
        ),
        command: RUN,
        code: 2,
        says: &["permission denied for schema walhook", "run `walhook setup --admin-url`"],
    },
    Mistake {
        wrong: sql(
            "ALTER ROLE walhook SET statement_timeout = '1s'",
            "ALTER ROLE walhook RESET statement_timeout",
        ),
        command: CHECK,
        code: 0,
        says: &["warn  statement_timeout", "ALTER ROLE \"walhook\" SET statement_timeout = 0"],
    },
    Mistake {
        wrong: sql(
            "ALTER TABLE subscribers REPLICA IDENTITY DEFAULT",
            "ALTER TABLE subscribers REPLICA IDENTITY FULL",
        ),
        command: CHECK,
        code: 1,
        says: &[
            "needs the old value of status",
            "ALTER TABLE public.subscribers REPLICA IDENTITY FULL",
        ],
    },
    Mistake {
        wrong: sql(
            "CREATE TABLE log (id int); ALTER PUBLICATION walhook ADD TABLE log",
            "DROP TABLE log",
        ),
        command: CHECK,
        code: 1,
        says: &[
            "public.log has no replica identity",
            "ALTER TABLE public.log REPLICA IDENTITY FULL",
        ],
    },
    Mistake {
        wrong: sql(
            "ALTER PUBLICATION walhook SET TABLE subscribers WHERE (id > 0), webhooks",
            "ALTER PUBLICATION walhook SET TABLE subscribers, webhooks",
        ),
        command: CHECK,
        code: 1,
        says: &["row filter on public.subscribers", "set its tables again without WHERE"],
    },
    Mistake {
        wrong: sql(
            "ALTER PUBLICATION walhook DROP TABLE subscribers",
            "ALTER PUBLICATION walhook ADD TABLE subscribers",
        ),
        command: RUN,
        code: 2,
        says: &["does not hold the table public.subscribers", "walhook setup"],
    },
    Mistake {
        wrong: sql(
            "ALTER TABLE webhooks RENAME enabled TO active",
            "ALTER TABLE webhooks RENAME active TO enabled",
        ),
        command: RUN,
        code: 2,
        says: &["public.webhooks has no column enabled", "name the column in endpoints.enabled"],
    },
    Mistake {
        wrong: config("columns = [\"id\", \"email\", \"status\"]", "columns = [\"id\", \"mail\"]"),
        command: CHECK,
        code: 1,
        says: &["public.subscribers has no column mail", "did you mean email?"],
    },
    Mistake {
        wrong: config("old.status != new.status &&", "old.status != new.state &&"),
        command: RUN,
        code: 2,
        says: &["public.subscribers has no column state", "did you mean status?"],
    },
    Mistake {
        wrong: config("listen = \"127.0.0.1:", "listen = \"127.0.0.1;"),
        command: RUN,
        code: 2,
        says: &["admin.listen: \"127.0.0.1;", "write it as 127.0.0.1:9723"],
    },
    Mistake {
        wrong: Wrong::Env("WALHOOK_SOURCE__URL_FILE", "/no/such/file"),
        command: CHECK,
        code: 2,
        says: &["WALHOOK_SOURCE__URL_FILE: cannot read the file /no/such/file", "correct the path"],
    },
    Mistake {
        wrong: sql("ALTER ROLE walhook NOREPLICATION", "ALTER ROLE walhook REPLICATION"),
        command: RUN,
        code: 2,
        says: &["replicat", "ALTER ROLE \"walhook\" REPLICATION"],
    },
    Mistake {
        wrong: sql("REVOKE SELECT ON webhooks FROM walhook", "GRANT SELECT ON webhooks TO walhook"),
        command: RUN,
        code: 2,
        says: &["webhooks", "GRANT SELECT"],
    },
    Mistake {
        wrong: config("allow = [\"127.0.0.0/8\"]", "allow = []"),
        command: CHECK,
        code: 0,
        says: &["egress.allow"],
    },
];

#[tokio::test]
async fn walk_from_the_readme_to_the_second_rule_meets_no_message_without_a_fix() -> Result<()> {
    let mut world = begin().await?;
    make_all(&world, BEFORE).await?;

    let admin = world.cluster.url("postgres");
    let output = world.walhook(&["setup", "--admin-url", &admin]).await?;
    ensure!(output.status.success(), "setup: {}", text(&output.stderr));
    let output = world.walhook(CHECK).await?;
    ensure!(output.status.success(), "check: {}{}", text(&output.stdout), text(&output.stderr));
    make_all(&world, AFTER).await?;
    let output = world.walhook(CHECK).await?;
    ensure!(output.status.success(), "check: {}{}", text(&output.stdout), text(&output.stderr));

    let running = world.run().await?;
    let insert = "INSERT INTO subscribers (account_id, email) VALUES (42, 'ada@example.com')";
    world.sql.batch_execute(insert).await?;
    world.sql.batch_execute("UPDATE subscribers SET status = 'unsubscribed'").await?;
    let received = world.delivered(2).await?;
    let types: Vec<_> = received.iter().map(|r| r.json()["type"].clone()).collect();
    ensure!(types == ["subscriber.created", "subscriber.unsubscribed"], "{types:?}");
    ensure!(received.iter().all(|r: &Received| r.verified), "signed with {SECRET}");
    ensure!(running.terminate().await?.success());
    // Never just stop it for good: the slot retains WAL.
    let output = world.walhook(&["teardown", "--yes", "--admin-url", &admin]).await?;
    ensure!(output.status.success(), "teardown: {}", text(&output.stderr));
    ensure!(world.value("SELECT count(*) FROM pg_replication_slots").await? == "0");
    Ok(())
}
