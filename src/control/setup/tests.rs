use super::*;
use crate::control::fixture::Fixture;
use walhook_testkit::script::statements;

const SOON: Duration = Duration::from_millis(1);

const SCHEMAS: &str = "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'walhook'";

async fn steps(
    config: &Config,
    admin: Option<&Secret>,
    wait: Duration,
) -> Result<Vec<StepView>, Failure> {
    let options = Options { admin, wait, adopts_slot: false, adds_pipeline: false };
    Ok(set_up(config, options, &mut |_| {}).await?.steps)
}

fn did(steps: &[StepView]) -> Vec<Did> {
    steps.iter().map(|step| step.did).collect()
}

#[tokio::test]
async fn setup_creates_all_once_and_then_finds_it() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let first = steps(&config, None, SOON).await.unwrap();
    assert_eq!(did(&first), [Did::Created; 4], "{first:?}");
    let checkpoint = "SELECT (frontier = confirmed_flush_lsn)::text
                      FROM walhook.checkpoint JOIN pg_replication_slots ON slot_name = pipeline";
    assert_eq!(fixture.text(checkpoint).await, "true");
    assert_eq!(fixture.text("SELECT epoch::text FROM walhook.lease").await, "0");
    let meta = "SELECT concat_ws(' ', host, database, timeline, schema_version,
                  (SELECT c.system_identifier::numeric FROM pg_control_system() c) = system_identifier)
                FROM walhook.meta";
    assert_eq!(fixture.text(meta).await, "127.0.0.1 app 1 2 t");
    let tables = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(fixture.text(tables).await, "subscribers webhooks");

    let second = steps(&config, None, SOON).await.unwrap();
    assert_eq!(did(&second), [Did::Exists; 4], "{second:?}");

    fixture.run("UPDATE walhook.meta SET schema_version = 99").await;
    let error = steps(&config, None, SOON).await.unwrap_err().to_string();
    assert!(error.contains("version 99") && error.contains("run a later walhook"), "{error}");
}

#[tokio::test]
async fn setup_adds_the_tables_of_new_rules_to_the_publication() {
    let fixture = Fixture::start().await;
    steps(&fixture.config(""), None, SOON).await.unwrap();
    let more = "[[events]]\ntype = \"b.c\"\ntable = \"public.parts\"\non = [\"insert\"]\n\
                account = \"account_id\"\ncolumns = [\"id\"]\n";
    // As an older set-up, or somebody else, may have left it.
    fixture.run("ALTER PUBLICATION walhook SET (publish_via_partition_root = false)").await;
    let steps = steps(&fixture.config(more), None, SOON).await.unwrap();
    let found = &steps[1];
    assert_eq!(found.detail, "public.parts added, partitions published as their root");
    let tables = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(fixture.text(tables).await, "parts subscribers webhooks");
}

#[tokio::test]
async fn setup_waits_for_the_lock_of_a_table_names_who_has_it_and_locks_no_other_meanwhile() {
    let fixture = Fixture::start().await;
    fixture.run("CREATE TABLE ahead (LIKE subscribers INCLUDING ALL); CREATE TABLE later (LIKE ahead INCLUDING ALL)").await;
    let rule = |table: &str| {
        format!(
            "[[events]]\ntype = \"{table}.c\"\ntable = \"public.{table}\"\non = [\"insert\"]\n\
             account = \"account_id\"\ncolumns = [\"id\"]\n"
        )
    };
    let config = fixture.config(&[rule("ahead"), rule("later")].concat());
    let migration = fixture.connect().await;
    migration
        .batch_execute("SET application_name = 'migration'; BEGIN; LOCK TABLE later")
        .await
        .unwrap();
    let error = format!("{:#}", steps(&config, None, SOON).await.unwrap_err());
    assert!(
        error.contains("waits for a lock on") && error.contains("postgres, migration, idle"),
        "{error}"
    );
    assert_eq!(fixture.text("SELECT count(*)::text FROM pg_publication").await, "0");
    migration.batch_execute("COMMIT").await.unwrap();
    steps(&fixture.config(""), None, SOON).await.unwrap();

    migration.batch_execute("BEGIN; LOCK TABLE later").await.unwrap();
    let (said, mut hears) = tokio::sync::mpsc::channel(9);
    let options = Options {
        admin: None,
        wait: Duration::from_secs(60),
        adopts_slot: false,
        adds_pipeline: false,
    };
    let mut tell = |progress: Progress<'_>| {
        if let Progress::Note(note) = progress {
            said.try_send(note.to_owned()).unwrap();
        }
    };
    let goes_on = async {
        let said = hears.recv().await.unwrap();
        assert!(said.contains("for a lock on public.later of pid "), "{said}");
        migration
            .batch_execute("SET LOCAL lock_timeout = '300ms'; LOCK TABLE ahead; COMMIT")
            .await
            .unwrap();
    };
    let (set_up, ()) = tokio::join!(set_up(&config, options, &mut tell), goes_on);
    assert!(set_up.unwrap().steps[1].detail.contains("public.later added"));
}

#[tokio::test]
async fn setup_says_that_another_pipeline_reads_the_publication_and_needs_its_owner_for_that() {
    let fixture = Fixture::start().await;
    steps(&fixture.config(""), None, SOON).await.unwrap();
    fixture
        .run("CREATE ROLE other LOGIN REPLICATION; GRANT ALL ON SCHEMA walhook TO other; GRANT ALL ON ALL TABLES IN SCHEMA walhook TO other")
        .await;
    let reader = fixture.read_slot().await;
    let mut second = fixture.config_as("other", "");
    second.source.slot = "second".to_owned();
    let error = format!("{:#}", steps(&second, None, SOON).await.unwrap_err());
    assert!(error.contains("COMMENT ON PUBLICATION") && error.contains("--admin-url"), "{error}");
    second.source.url = fixture.config("").source.url;
    let shared = steps(&second, None, SOON).await.unwrap();
    assert!(shared[1].detail.starts_with("shared with walhook: "), "{shared:?}");
    let again = steps(&second, None, SOON).await.unwrap();
    assert_eq!(again[1].did, Did::Exists, "{again:?}");
    drop(reader);
}

#[tokio::test]
async fn setup_begins_no_pipeline_beside_one_that_nobody_runs_unless_it_is_told_to() {
    let fixture = Fixture::start().await;
    let mut config = fixture.config("");
    steps(&config, None, SOON).await.unwrap();
    config.source.slot = "mistyped".to_owned();
    let Err(Failure::Usage(error)) = steps(&config, None, SOON).await else {
        panic!("it began another pipeline")
    };
    let error = error.to_string();
    assert!(
        error.contains("but walhook, which no instance runs") && error.contains("--new-pipeline")
    );
    let slots = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots";
    assert_eq!(fixture.text(slots).await, "walhook");

    let adding = Options { admin: None, wait: SOON, adopts_slot: false, adds_pipeline: true };
    set_up(&config, adding, &mut |_| {}).await.unwrap();
    assert_eq!(fixture.text(slots).await, "mistyped walhook");
    // Of one that is set up it is not asked again.
    steps(&config, None, SOON).await.unwrap();
    steps(&fixture.config(""), None, SOON).await.unwrap();
}

#[tokio::test]
async fn setup_begins_no_pipeline_in_a_database_that_was_restored_with_its_state_unless_it_is_told_to()
 {
    let fixture = Fixture::start().await;
    fixture.run("CREATE DATABASE state").await;
    let elsewhere = format!("[state]\nurl = \"{}\"\n", fixture.cluster.url("state"));
    for state in ["", &elsewhere] {
        let mut config = fixture.config(state);
        steps(&config, None, SOON).await.unwrap();
        let tables = config.state.url.as_ref().unwrap_or(&config.source.url);
        let tables = Connection::open(tables, "test").await.unwrap();
        tables.batch_execute("UPDATE walhook.meta SET system_identifier = 1").await.unwrap();
        config.source.slot = "second".to_owned();
        let refused = steps(&config, None, SOON).await;
        if state.is_empty() {
            let Err(Failure::Usage(error)) = refused else { panic!("{refused:?}") };
            let error = error.to_string();
            assert!(error.contains("pipeline walhook of a database of this name in another"));
            assert!(error.contains("send to your customers") && error.contains("--new-pipeline"));
        } else {
            // One state database is for the pipelines of many sources.
            refused.unwrap();
        }
        fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    }
}

#[tokio::test]
async fn setup_begins_a_pipeline_beside_one_that_runs() {
    let fixture = Fixture::start().await;
    let mut config = fixture.config("");
    steps(&config, None, SOON).await.unwrap();
    let reader = fixture.read_slot().await;
    config.source.slot = "second".to_owned();
    steps(&config, None, SOON).await.unwrap();
    drop(reader);
}

#[tokio::test]
async fn setup_names_who_blocks_the_slot_and_leaves_no_orphan() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let blocker = fixture.connect().await;
    blocker
        .batch_execute("BEGIN; INSERT INTO subscribers (account_id, email) VALUES (1, 'a')")
        .await
        .unwrap();
    let pid: i32 = blocker.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    let error = steps(&config, None, SOON).await.unwrap_err().to_string();
    assert!(error.contains(&format!("pid {pid} (postgres, test, idle in transaction)")), "{error}");
    assert_eq!(fixture.text("SELECT count(*)::text FROM pg_replication_slots").await, "0");

    blocker.batch_execute("COMMIT").await.unwrap();
    let again = steps(&config, None, SOON).await.unwrap();
    assert_eq!(did(&again), [Did::Exists, Did::Exists, Did::Created, Did::Created]);
}

#[tokio::test]
async fn setup_refuses_tables_whose_publication_would_break_the_customers_writes() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    for (breaks, fixes) in [
        (
            "ALTER TABLE subscribers REPLICA IDENTITY NOTHING",
            "ALTER TABLE subscribers REPLICA IDENTITY FULL",
        ),
        (
            "ALTER TABLE subscribers REPLICA IDENTITY DEFAULT; ALTER TABLE subscribers DROP CONSTRAINT subscribers_pkey",
            "ALTER TABLE subscribers ADD PRIMARY KEY (id)",
        ),
    ] {
        fixture.run(breaks).await;
        let error = steps(&config, None, SOON).await.unwrap_err().to_string();
        assert!(error.contains("subscribers has no replica identity"), "{error}");
        assert_eq!(fixture.text("SELECT count(*)::text FROM pg_publication").await, "0");
        fixture.run(fixes).await;
    }
    if fixture.text("SHOW server_version_num").await.parse::<i32>().unwrap() >= 180_000 {
        fixture.run("ALTER TABLE subscribers ADD \"N\" int GENERATED ALWAYS AS (id) VIRTUAL").await;
        fixture.run("ALTER TABLE subscribers REPLICA IDENTITY FULL").await;
        let error = steps(&config, None, SOON).await.unwrap_err().to_string();
        let fix = error.split_once("does not go with its virtual generated column \"N\"");
        let (_, fix) = fix.unwrap_or_else(|| panic!("{error}"));
        assert_eq!(fixture.text("SELECT count(*)::text FROM pg_publication").await, "0");
        let (_, fix) = fix.split_once("; ").unwrap();
        fixture.run(fix.split(", ").next().unwrap()).await;
    }
    steps(&config, None, SOON).await.unwrap();
    fixture.run("INSERT INTO subscribers (account_id, email) VALUES (1, 'a')").await;
    fixture.run("UPDATE subscribers SET email = 'b'").await;
}

#[tokio::test]
async fn setup_says_what_serves_in_the_place_of_what_cannot_be_published() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    fixture.run("ALTER TABLE webhooks RENAME TO kept").await;
    fixture.run("CREATE FOREIGN DATA WRAPPER w; CREATE SERVER away FOREIGN DATA WRAPPER w").await;
    for (kind, create, says) in [
        ("FOREIGN TABLE", "(id bigint) SERVER away", "let a view of it be endpoints.table"),
        ("VIEW", "AS TABLE kept", "name the tables it stands on in endpoints.watch"),
        ("UNLOGGED TABLE", "AS TABLE kept", "ALTER TABLE public.webhooks SET LOGGED"),
    ] {
        fixture.run(&format!("CREATE {kind} webhooks {create}")).await;
        let error = steps(&config, None, SOON).await.unwrap_err().to_string();
        assert!(error.contains(says), "{kind}: {error}");
        let drop = kind.trim_start_matches("UNLOGGED ");
        fixture.run(&format!("DROP {drop} webhooks")).await;
    }
    let error = steps(&config, None, SOON).await.unwrap_err().to_string();
    assert!(error.contains("if it was renamed or moved, correct the configuration"), "{error}");
    // As in another database than was meant.
    assert_eq!(fixture.text(SCHEMAS).await, "0");
    fixture.run("ALTER TABLE kept RENAME TO webhooks").await;
    steps(&config, None, SOON).await.unwrap();
}

#[tokio::test]
async fn setup_halts_rather_than_losing_changes_or_sending_to_anothers_customers() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    steps(&config, None, SOON).await.unwrap();
    fixture.run("UPDATE walhook.meta SET host = 'production'").await;
    let failure = steps(&config, None, SOON).await.unwrap_err();
    assert_eq!(failure.exit_code(), 3);
    assert!(failure.to_string().contains("it was production"), "{failure}");
    assert!(failure.to_string().contains("walhook recover --adopt-cluster"), "{failure}");
    fixture.run("UPDATE walhook.meta SET host = '127.0.0.1'").await;

    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    let failure = steps(&config, None, SOON).await.unwrap_err();
    assert_eq!(failure.exit_code(), 3);
    assert!(failure.to_string().contains("walhook recover --accept-gap"), "{failure}");
}

#[tokio::test]
async fn setup_keeps_its_state_in_another_database() {
    let fixture = Fixture::start().await;
    fixture.run("CREATE DATABASE elsewhere").await;
    let state =
        format!("[state]\nurl = \"{}\"\nschema = \"Odd name\"\n", fixture.cluster.url("elsewhere"));
    let config = fixture.config(&state);
    assert_eq!(did(&steps(&config, None, SOON).await.unwrap()), [Did::Created; 4]);
    assert_eq!(did(&steps(&config, None, SOON).await.unwrap()), [Did::Exists; 4]);
    let schemas = "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'Odd name'";
    assert_eq!(fixture.text(schemas).await, "0", "not in the source database");
}

#[tokio::test]
async fn setup_and_check_name_the_right_that_lacks_in_the_database_of_the_state() {
    let fixture = Fixture::start().await;
    let elsewhere = Secret::new(fixture.cluster.url("postgres"));
    let elsewhere = Connection::open(&elsewhere, "test").await.unwrap();
    for sql in ["CREATE ROLE sender LOGIN", "CREATE DATABASE kept"] {
        elsewhere.batch_execute(sql).await.unwrap();
    }
    let state = format!("postgres://sender@127.0.0.1:{}/kept", fixture.cluster.port());
    let config = fixture.config(&format!("[state]\nurl = \"{state}\"\n"));
    let checked = async || {
        let view = crate::control::check::run(&config).await;
        let of_state = view.findings.into_iter().find(|finding| finding.what == "state").unwrap();
        of_state.fix.unwrap_or_default()
    };
    let grant = "GRANT CREATE ON DATABASE \"kept\" TO \"sender\"";
    let refused = steps(&config, None, SOON).await.unwrap_err().to_string();
    for text in [refused, checked().await] {
        assert!(text.contains(grant) && !text.contains("--admin-url"), "{text}");
    }
    elsewhere.batch_execute(grant).await.unwrap();
    steps(&config, None, SOON).await.unwrap();

    // As another role has made them.
    let admin = Secret::new(fixture.cluster.url("kept"));
    let admin = Connection::open(&admin, "test").await.unwrap();
    let hand_over = "REASSIGN OWNED BY sender TO postgres; DROP OWNED BY sender";
    admin.batch_execute(hand_over).await.unwrap();
    let fix = checked().await;
    let (_, grants) = fix.split_once("as the schema's owner: ").unwrap_or_else(|| panic!("{fix}"));
    admin.batch_execute(grants).await.unwrap();
    assert_eq!(checked().await, "");
}

#[tokio::test]
async fn setup_that_may_not_add_a_table_says_who_may() {
    let fixture = Fixture::start().await;
    fixture.run("CREATE ROLE sender LOGIN").await;
    let admin = Secret::new(fixture.cluster.url("app"));
    steps(&fixture.config_as("sender", ""), Some(&admin), SOON).await.unwrap();
    let more = "[[events]]\ntype = \"b.c\"\ntable = \"public.parts\"\non = [\"insert\"]\n\
                account = \"account_id\"\ncolumns = [\"id\"]\n";
    let config = fixture.config_as("sender", more);
    let error = steps(&config, None, SOON).await.unwrap_err().to_string();
    let statement = error.split('`').nth(1).unwrap();
    assert!(error.contains("--admin-url") && !error.contains("--print-sql"), "{error}");
    fixture.run(statement).await;
    assert_eq!(did(&steps(&config, None, SOON).await.unwrap()), [Did::Exists; 4]);
}

#[tokio::test]
async fn setup_grants_our_role_what_it_needs_through_the_administrator() {
    let fixture = Fixture::start().await;
    fixture.run("CREATE ROLE sender LOGIN").await;
    let admin = Secret::new(fixture.cluster.url("app"));
    let config = fixture.config_as("sender", "");
    let error = steps(&config, None, SOON).await.unwrap_err().to_string();
    assert!(error.contains("--admin-url"), "{error}");

    // The schema may be the application's too.
    fixture.run("CREATE SCHEMA walhook; CREATE TABLE walhook.users (id serial)").await;
    steps(&config, Some(&admin), SOON).await.unwrap();
    // Now it can do without the administrator.
    assert_eq!(did(&steps(&config, None, SOON).await.unwrap()), [Did::Exists; 4]);
    let own = fixture.connect_as("sender").await;
    own.batch_execute("SELECT * FROM webhooks; DELETE FROM walhook.dead_letters").await.unwrap();
    let numbered = "INSERT INTO walhook.gaps (pipeline, from_lsn, to_lsn, reason)
                    VALUES ('walhook', '0/1', '0/2', '') RETURNING id";
    own.batch_execute(numbered).await.unwrap();
    let may =
        "SELECT concat_ws(' ', has_table_privilege('sender', 'walhook.users', 'SELECT, DELETE'),
                                has_sequence_privilege('sender', 'walhook.users_id_seq', 'USAGE'))";
    assert_eq!(fixture.text(may).await, "f f");
}

/// Whose triggers would run as the administrator.
#[tokio::test]
async fn setup_refuses_a_state_schema_that_a_stranger_made_before() {
    let fixture = Fixture::start().await;
    fixture
        .run("CREATE ROLE sender LOGIN; CREATE ROLE guest; GRANT CREATE ON DATABASE app TO guest")
        .await;
    let config = fixture.config_as("sender", "");
    let admin = Secret::new(fixture.config("").source.url.expose());
    for made in [
        "SET ROLE guest; CREATE SCHEMA walhook",
        "CREATE SCHEMA walhook; CREATE TABLE walhook.meta (a int);
         ALTER TABLE walhook.meta OWNER TO guest",
    ] {
        fixture.run(made).await;
        let refused = format!("{:?}", steps(&config, Some(&admin), SOON).await.unwrap_err());
        assert!(refused.contains("belongs to guest"), "{made}: {refused}");
        assert!(!refused.contains("drop it"), "{made}: {refused}");
        fixture.run("DROP SCHEMA walhook CASCADE").await;
    }
    steps(&config, Some(&admin), SOON).await.unwrap();
    assert_eq!(did(&steps(&config, None, SOON).await.unwrap()), [Did::Exists; 4]);
}

#[tokio::test]
async fn printed_script_sets_up_the_same() {
    let fixture = Fixture::start().await;
    fixture.run("CREATE ROLE sender LOGIN").await;
    let config = fixture.config_as("sender", "");
    let source = Conninfo::parse(&config.source.url).unwrap();
    let text = script::whole(&config, Server::SelfHosted, "sender", &source).unwrap();
    // As psql does: one that fails does not end the script.
    let run = async || {
        let client = fixture.connect().await;
        let mut errors = Vec::new();
        for statement in statements(&text) {
            errors.extend(client.batch_execute(&statement).await.err());
        }
        errors.iter().map(|error| error.as_db_error().unwrap().to_string()).collect::<Vec<_>>()
    };
    fixture.run("ALTER TABLE subscribers DROP CONSTRAINT subscribers_pkey").await;
    let errors = run().await;
    assert!(
        errors.len() == 1 && errors[0].contains("public.subscribers (no replica identity)"),
        "{errors:?}"
    );
    let made = "SELECT concat_ws(' ', (SELECT count(*) FROM pg_publication),
                       (SELECT count(*) FROM pg_replication_slots))";
    assert_eq!(fixture.text(made).await, "0 0");
    fixture.run("ALTER TABLE subscribers REPLICA IDENTITY FULL").await;
    assert_eq!(run().await, Vec::<String>::new());
    assert_eq!(fixture.text(made).await, "1 1");
    assert_eq!(did(&steps(&config, None, SOON).await.unwrap()), [Did::Exists; 4]);
}

const SLOT: &str = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')";

#[tokio::test]
async fn setup_refuses_a_slot_that_it_did_not_make_of_whatever_kind() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let elsewhere = Secret::new(fixture.cluster.url("postgres"));
    let elsewhere = Connection::open(&elsewhere, "test").await.unwrap();
    let client = fixture.connect().await;
    let two_phase = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput', false, true)";
    let temporary = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput', true)";
    let physical = "SELECT pg_create_physical_replication_slot('walhook')";
    let anchor = "SELECT pg_create_logical_replication_slot('walhook_anchor', 'pgoutput')";
    for (client, create, says) in [
        (&client, SLOT, "a slot of the plugin pgoutput, and walhook did not make it"),
        (&client, two_phase, "for prepared transactions too"),
        (&client, temporary, "a temporary slot"),
        (&client, physical, "a physical slot"),
        (&client, anchor, "\"walhook_anchor\" is not ours"),
        (&elsewhere, SLOT, "it belongs to the database postgres"),
    ] {
        client.batch_execute(create).await.unwrap();
        let slots = "SELECT string_agg(concat_ws(' ', slot_name, confirmed_flush_lsn), ' ')
                     FROM pg_replication_slots";
        let before = fixture.text(slots).await;
        let error = steps(&config, None, SOON).await.unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        for part in [says, "source.slot"] {
            assert!(error.to_string().contains(part), "{part} is not in: {error}");
        }
        // Another database's slot holds what another pipeline waits for.
        let drops = error.to_string().contains("pg_drop_replication_slot");
        assert_eq!(drops, !says.contains("belongs to the database"), "{error}");
        assert_eq!(fixture.text(slots).await, before);
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
        client.batch_execute(drop).await.unwrap();
    }
    assert_eq!(fixture.text("SELECT count(*)::text FROM pg_publication").await, "0");
    assert_eq!(fixture.text(SCHEMAS).await, "0");
    steps(&config, None, SOON).await.unwrap();
}

#[tokio::test]
async fn setups_that_run_at_once_all_succeed() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let setups = (0..4).map(|_| steps(&config, None, Duration::from_secs(60)));
    let done = futures_util::future::join_all(setups).await;
    let created = |steps: &Vec<StepView>| steps.iter().any(|step| step.did == Did::Created);
    let done: Vec<_> = done.into_iter().map(Result::unwrap).collect();
    assert_eq!(done.iter().filter(|steps| created(steps)).count(), 1, "{done:?}");
}

#[tokio::test]
async fn setup_adopts_the_slot_whose_state_tables_are_gone_when_it_is_told_to() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    steps(&config, None, SOON).await.unwrap();
    let stands = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots";
    let stands = fixture.text(stands).await;
    fixture.run("SELECT pg_logical_emit_message(true, 'x', 'y')").await;
    fixture.run("DROP SCHEMA walhook CASCADE").await;
    let refused = steps(&config, None, SOON).await.unwrap_err().to_string();
    assert!(
        refused.contains("`walhook setup --adopt-slot` goes on where the slot stands"),
        "{refused}"
    );

    // Of an instance that still runs, and has not noticed, it is no other.
    let adopting = Options { admin: None, wait: SOON, adopts_slot: true, adds_pipeline: false };
    let reader = fixture.read_slot().await;
    let refused = set_up(&config, adopting, &mut |_| {}).await.unwrap_err().to_string();
    let (hint, rest) = refused.split_once("pg_drop_replication_slot").unwrap();
    assert!(hint.contains("in use by") && !rest.contains("--adopt-slot"), "{refused}");
    assert!(hint.contains("then stop what uses it; `walhook setup --adopt-slot`"), "{refused}");
    drop(reader);
    let active = "SELECT active::text FROM pg_replication_slots";
    while fixture.text(active).await == "true" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    set_up(&config, adopting, &mut |_| {}).await.unwrap();
    let frontier = "SELECT frontier::text FROM walhook.checkpoint";
    assert_eq!(fixture.text(frontier).await, stands);
    let complaints = steps(&config, None, SOON).await.unwrap();
    assert!(complaints.iter().all(|step| step.did == Did::Exists), "{complaints:?}");

    // A slot of another kind is nobody's to adopt.
    fixture.run("DROP SCHEMA walhook CASCADE; SELECT pg_drop_replication_slot('walhook')").await;
    fixture.run("SELECT pg_create_physical_replication_slot('walhook')").await;
    let refused = set_up(&config, adopting, &mut |_| {}).await.unwrap_err().to_string();
    assert!(refused.contains("a physical slot") && !refused.contains("--adopt-slot"), "{refused}");
}

#[tokio::test]
async fn setup_goes_on_with_the_slot_that_it_was_making_when_it_was_interrupted() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    steps(&config, None, SOON).await.unwrap();
    // Interrupted before the first checkpoint.
    fixture.run("DELETE FROM walhook.checkpoint; DELETE FROM walhook.meta").await;
    steps(&config, None, SOON).await.unwrap();
    // As an earlier version left it: no record, but a checkpoint.
    fixture.run("DELETE FROM walhook.slots").await;
    assert_eq!(did(&steps(&config, None, SOON).await.unwrap()), [Did::Exists; 4]);
}

#[tokio::test]
async fn setup_that_could_not_make_its_slot_takes_none_that_somebody_makes_meanwhile() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let blocker = fixture.connect().await;
    let open = "BEGIN; INSERT INTO subscribers (account_id, email) VALUES (1, 'a')";
    blocker.batch_execute(open).await.unwrap();
    steps(&config, None, SOON).await.unwrap_err();
    blocker.batch_execute("ROLLBACK").await.unwrap();
    fixture.run(SLOT).await;
    let error = steps(&config, None, SOON).await.unwrap_err().to_string();
    assert!(error.contains("did not make it"), "{error}");
}
