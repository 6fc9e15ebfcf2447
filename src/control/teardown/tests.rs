use super::*;
use crate::control::fixture::Fixture;
use crate::control::setup;

const LEFT: &str = "SELECT concat_ws(' ', (SELECT count(*) FROM pg_replication_slots),
    (SELECT count(*) FROM pg_publication),
    (SELECT count(*) FROM pg_namespace WHERE nspname = 'walhook'))";

async fn torn_down(config: &Config, admin: Option<&Secret>) -> Result<TornDown> {
    plan(config, admin, &mut |_| {}).await?.carry_out(config).await
}

#[tokio::test]
async fn teardown_leaves_nothing_says_each_item_and_is_done_once() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    assert_eq!(fixture.text(LEFT).await, "1 1 1");
    let done = torn_down(&config, None).await.unwrap();
    assert_eq!(fixture.text(LEFT).await, "0 0 0");
    for item in [
        "slot walhook",
        "publication walhook",
        "table walhook.meta",
        "view walhook.endpoints",
        "schema walhook",
    ] {
        assert!(done.dropped.iter().any(|dropped| dropped == item), "{item}: {done:?}");
    }
    assert!(done.kept.is_empty(), "{done:?}");
    let again = torn_down(&config, None).await.unwrap();
    assert!(again.dropped.is_empty() && again.kept.is_empty(), "{again:?}");
    setup::quietly(&config).await.unwrap();
    assert_eq!(fixture.text(LEFT).await, "1 1 1");
}

#[tokio::test]
async fn teardown_names_every_right_that_is_missing_and_drops_nothing() {
    let fixture = Fixture::start().await;
    setup::quietly(&fixture.config("")).await.unwrap();
    fixture
        .run(
            "CREATE ROLE sender LOGIN; GRANT USAGE ON SCHEMA walhook TO sender;
             GRANT SELECT ON ALL TABLES IN SCHEMA walhook TO sender",
        )
        .await;
    let config = fixture.config_as("sender", "");
    let owned = "the publication walhook belongs to postgres";
    let schema = "the schema walhook belongs to postgres";
    let refused = async |expected: &[&str]| {
        let error = format!("{:#}", torn_down(&config, None).await.unwrap_err());
        for part in expected {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert!(error.contains("--admin-url") && error.contains("nothing was dropped"), "{error}");
        assert_eq!(fixture.text(LEFT).await, "1 1 1");
        error
    };
    refused(&["may not replicate", owned, "endpoints", schema]).await;
    fixture.run("ALTER ROLE sender REPLICATION").await;
    let error = refused(&[owned, schema]).await;
    assert!(!error.contains("may not replicate") && error.contains("checkpoint"), "{error}");
    fixture.run("ALTER PUBLICATION walhook OWNER TO sender").await;
    refused(&[schema]).await;
    fixture.run("ALTER SCHEMA walhook OWNER TO sender").await;
    torn_down(&config, None).await.unwrap();
    assert_eq!(fixture.text(LEFT).await, "0 0 0");
}

#[tokio::test]
async fn teardown_drops_nothing_where_something_else_depends_on_the_state() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    fixture.run("CREATE VIEW mine AS SELECT * FROM walhook.gaps").await;
    let error = format!("{:#}", torn_down(&config, None).await.unwrap_err());
    assert!(error.contains("walhook.gaps") && error.contains("nothing was dropped"), "{error}");
    assert_eq!(fixture.text(LEFT).await, "1 1 1");
    fixture.run("DROP VIEW mine").await;
    torn_down(&config, None).await.unwrap();
    assert_eq!(fixture.text(LEFT).await, "0 0 0");
}

#[tokio::test]
async fn teardown_that_was_interrupted_is_done_by_the_next_run() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    fixture.run("DROP PUBLICATION walhook; DROP TABLE walhook.checkpoint, walhook.lease").await;
    let done = torn_down(&config, None).await.unwrap();
    assert!(done.dropped.contains(&"table walhook.meta".to_owned()), "{done:?}");
    assert_eq!(fixture.text(LEFT).await, "0 0 0");
}

#[tokio::test]
async fn teardown_as_the_owner_drops_what_our_role_may_not() {
    let fixture = Fixture::start().await;
    setup::quietly(&fixture.config("")).await.unwrap();
    fixture.run("CREATE ROLE sender LOGIN REPLICATION").await;
    let config = fixture.config_as("sender", "");
    let error = format!("{:#}", torn_down(&config, None).await.unwrap_err());
    assert!(error.contains("--admin-url"), "{error}");

    let elsewhere = Secret::new(fixture.cluster.url("postgres"));
    assert!(Sessions::open(&config, Some(&elsewhere)).await.is_err());
    // One who owns all, and may not replicate: our own role drops the slot.
    fixture
        .run(
            "CREATE ROLE keeper LOGIN; ALTER PUBLICATION walhook OWNER TO keeper;
             ALTER SCHEMA walhook OWNER TO keeper;
             GRANT SELECT ON ALL TABLES IN SCHEMA walhook TO keeper",
        )
        .await;
    let admin = Secret::new(fixture.config_as("keeper", "").source.url.expose());
    torn_down(&config, Some(&admin)).await.unwrap();
    assert_eq!(fixture.text(LEFT).await, "0 0 0");
}

#[tokio::test]
async fn teardown_keeps_the_state_of_other_pipelines_and_what_is_not_ours() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let mut other = config.clone();
    other.source.slot = "other".to_owned();
    other.source.publication = "other".to_owned();
    setup::quietly(&other).await.unwrap();
    fixture.run("CREATE TABLE walhook.mine ()").await;

    let done = torn_down(&config, None).await.unwrap();
    assert!(done.kept[0].contains("other pipelines"), "{done:?}");
    let left = "SELECT string_agg(pipeline, ' ') FROM walhook.checkpoint";
    assert_eq!(fixture.text(left).await, "other");

    // A slot that somebody else made meanwhile.
    let create = "SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')";
    fixture.run(create).await;
    let done = torn_down(&config, None).await.unwrap();
    assert!(done.dropped.is_empty() && done.kept[0].contains("did not make it"), "{done:?}");

    let done = torn_down(&other, None).await.unwrap();
    assert!(done.kept[0].contains("not walhook's"), "{done:?}");
    assert_eq!(fixture.text("SELECT count(*)::text FROM walhook.mine").await, "0");
    assert_eq!(
        fixture.text("SELECT string_agg(slot_name, ' ') FROM pg_replication_slots").await,
        "walhook"
    );
}

#[tokio::test]
async fn teardown_refuses_while_the_slot_is_in_use_and_names_the_process() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let source = fixture.connect().await;
    let reader = fixture.read_slot().await;
    let slot = slot::read(&source, "walhook").await.unwrap().unwrap();
    let pid = slot.active_pid.unwrap();
    let error = torn_down(&config, None).await.unwrap_err().to_string();
    assert!(error.contains(&format!("pid {pid} (postgres, a reader")), "{error}");
    assert_eq!(fixture.text(LEFT).await, "1 1 1");
    drop(reader);
}

#[tokio::test]
async fn teardown_keeps_a_publication_that_another_pipeline_reads_until_the_last_goes() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    let mut second = config.clone();
    second.source.slot = "second".to_owned();
    let mut elsewhere = config.clone();
    elsewhere.source.slot = "third".to_owned();
    elsewhere.state.schema = "elsewhere".to_owned();
    for config in [&config, &second, &elsewhere] {
        setup::quietly(config).await.unwrap();
    }
    let published = "SELECT count(*)::text FROM pg_publication WHERE pubname = 'walhook'";
    let mark = "SELECT obj_description(oid) FROM pg_publication WHERE pubname = 'walhook'";
    // Who names the state's schema wrongly keeps the note of the pipeline of that name.
    let mut mistaken = config.clone();
    mistaken.state.schema = "mistaken".to_owned();
    let done = torn_down(&mistaken, None).await.unwrap();
    assert!(done.dropped.is_empty(), "{done:?}");
    assert!(fixture.text(mark).await.contains("second, third, walhook"));
    for (torn, others) in [(&config, "second, third"), (&elsewhere, "second")] {
        let done = torn_down(torn, None).await.unwrap();
        let kept = format!("the publication walhook, which it shares with {others}");
        assert!(done.kept.contains(&kept), "{done:?}");
        assert_eq!(fixture.text(published).await, "1");
    }
    let done = torn_down(&second, None).await.unwrap();
    assert!(done.dropped.contains(&"publication walhook".to_owned()), "{done:?}");
    assert_eq!(fixture.text(published).await, "0");
}

#[tokio::test]
async fn teardown_keeps_a_publication_that_somebody_else_made() {
    let fixture = Fixture::start().await;
    fixture.run("CREATE PUBLICATION walhook FOR ALL TABLES").await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let done = torn_down(&config, None).await.unwrap();
    assert!(done.kept[0].contains("DROP PUBLICATION \"walhook\""), "{done:?}");
    assert_eq!(fixture.text(LEFT).await, "0 1 0");
}

#[tokio::test]
async fn teardowns_that_run_at_once_all_succeed_and_one_drops() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    let all = futures_util::future::join_all((0..3).map(|_| torn_down(&config, None))).await;
    let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(all.iter().filter(|done| !done.dropped.is_empty()).count(), 1, "{all:?}");
    assert_eq!(fixture.text(LEFT).await, "0 0 0");
}

#[tokio::test]
async fn teardown_and_setup_leave_what_the_application_has_under_names_of_the_state() {
    let fixture = Fixture::start().await;
    fixture
        .run(
            "CREATE SCHEMA shop; CREATE TABLE shop.jobs (id bigint);
             INSERT INTO shop.jobs VALUES (1), (2);
             CREATE VIEW shop.endpoints AS SELECT id AS pipeline FROM shop.jobs",
        )
        .await;
    let config = fixture.config("[state]\nschema = \"shop\"\n");
    let there = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
                 WHERE relnamespace = 'shop'::regnamespace";
    let theirs = "view endpoints, table jobs";
    for _ in 0..2 {
        let error = setup::quietly(&config).await.unwrap_err().to_string();
        assert!(error.contains(theirs) && error.contains("state.schema"), "{error}");
        assert!(!error.contains("--admin-url"), "{error}");
        let view = crate::control::check::run(&config).await;
        let finding = view.findings.into_iter().find(|finding| finding.what == "state").unwrap();
        assert!(finding.finding.contains(theirs), "{finding}");
        assert_eq!(fixture.text(there).await, "endpoints jobs");
        let done = torn_down(&config, None).await.unwrap();
        assert!(done.dropped.is_empty() && done.kept[0].contains(theirs), "{done:?}");
        assert_eq!(fixture.text("SELECT count(*)::text FROM shop.jobs").await, "2");
    }

    // As an earlier version was set up beside a table that it took for its own.
    fixture.run("DROP VIEW shop.endpoints; ALTER TABLE shop.jobs RENAME TO workers").await;
    fixture.run(&walhook_state::schema_sql("shop")).await;
    let done = torn_down(&config, None).await.unwrap();
    assert!(done.dropped.contains(&"table shop.jobs".to_owned()), "{done:?}");
    assert!(!done.dropped.contains(&"table shop.workers".to_owned()), "{done:?}");
    assert_eq!(fixture.text(there).await, "workers");
    assert_eq!(fixture.text("SELECT count(*)::text FROM shop.workers").await, "2");

    // A schema that both use.
    fixture.run("ALTER TABLE shop.workers RENAME TO people").await;
    setup::quietly(&config).await.unwrap();
    let done = torn_down(&config, None).await.unwrap();
    assert!(done.dropped.contains(&"view shop.endpoints".to_owned()), "{done:?}");
    assert_eq!(fixture.text(there).await, "people");
}

/// Past a change that was written without its publication a slot cannot be read.
#[tokio::test]
async fn teardown_that_does_not_find_the_state_leaves_the_pipeline_whole() {
    let fixture = Fixture::start().await;
    let config = fixture.config("");
    setup::quietly(&config).await.unwrap();
    fixture.run("CREATE DATABASE elsewhere").await;
    let elsewhere = format!("[state]\nurl = \"{}\"\n", fixture.cluster.url("elsewhere"));
    let mistakes = ["[state]\nschema = \"walhok\"\n", &elsewhere];
    for mistaken in mistakes.map(|state| fixture.config(state)) {
        let error = setup::quietly(&mistaken).await.unwrap_err().to_string();
        assert!(error.contains("`state.schema` or `state.url` is another"), "{error}");
        let done = torn_down(&mistaken, None).await.unwrap();
        for kept in ["slot", "publication"] {
            let says = format!("the {kept} walhook: the schema {} holds no", mistaken.state.schema);
            assert!(done.kept.iter().any(|kept| kept.starts_with(&says)), "{done:?}");
        }
        assert_eq!(fixture.text(LEFT).await, "1 1 1");
    }
    // What is here, but not of the kind that we make, may be read too.
    fixture.run("SELECT pg_drop_replication_slot('walhook')").await;
    fixture.run("SELECT pg_create_physical_replication_slot('walhook')").await;
    let done = torn_down(&config, None).await.unwrap();
    let says = "the publication walhook: a slot walhook stays, which may read it";
    assert!(done.kept.iter().any(|kept| kept.starts_with(says)), "{done:?}");
    assert_eq!(fixture.text(LEFT).await, "1 1 0");
}
