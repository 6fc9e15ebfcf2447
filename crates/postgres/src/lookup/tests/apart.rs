//! Look-ups that fail for single accounts.

use std::sync::atomic::AtomicBool;

use super::super::apart::Times;
use super::*;

/// Where nothing takes long that is to be found, so that none of them passes.
const AMPLE: Times = Times {
    batch: Duration::from_secs(60),
    part: Duration::from_secs(60),
    alone: Duration::from_secs(60),
    answer: Duration::from_secs(120),
};

/// Where something sleeps until its time has passed.
const SHORT: Times = Times {
    batch: Duration::from_millis(1_500),
    part: Duration::from_millis(1_500),
    alone: Duration::from_millis(1_500),
    answer: Duration::from_secs(4),
};

/// Accounts with an endpoint each, behind a view that can fail for some.
const VIEW: &str = "
    CREATE FUNCTION pick(text, text) RETURNS text VOLATILE LANGUAGE plpgsql AS $$ BEGIN
        IF $1 = 'sleep' THEN PERFORM pg_catalog.pg_sleep(3600);
        ELSIF $1 <> '' THEN RAISE 'hush' USING ERRCODE = $1;
        END IF;
        RETURN $2;
    END $$;
    CREATE TABLE stored (id bigint, account_id bigint, url text, event_types text[], secret text,
        enabled boolean, fault text DEFAULT '');
    INSERT INTO stored SELECT g, g, 'http://x/', '{*}', 's', true FROM generate_series(1, 200) g;
    CREATE INDEX ON stored (account_id);
    ANALYZE stored;
    CREATE VIEW hooks AS SELECT id, account_id, pick(fault, url) AS url, event_types, secret, enabled
        FROM stored;
    CREATE ROLE stranger";

fn accounts(numbers: std::ops::RangeInclusive<u32>) -> Vec<AccountId> {
    numbers.map(|n| AccountId::new(n.to_string())).collect()
}

fn sorted<'a>(accounts: impl IntoIterator<Item = &'a AccountId>) -> Vec<&'a str> {
    let mut sorted: Vec<&str> = accounts.into_iter().map(AccountId::as_str).collect();
    sorted.sort_unstable();
    sorted
}

#[tokio::test]
async fn look_up_that_fails_for_single_accounts_is_answered_for_all_others() {
    let (cluster, client) = start().await;
    client.batch_execute(VIEW).await.unwrap();
    let admin = session(&cluster).await;
    let session = LookupSession { client, has_policies: AtomicBool::new(false) };
    let lookups = lookups(PLAIN);
    let (three, one) = (["150", "23", "7"], ["7"]);
    for (fault, failing, times) in [
        ("sleep", &one[..], SHORT),
        ("57014", &three, AMPLE),
        ("40001", &three, AMPLE),
        ("XX001", &three, AMPLE),
        ("53200", &three, AMPLE),
        ("42P01", &three, AMPLE),
        ("58030", &three, AMPLE),
    ] {
        let mut apart = Apart::new(times);
        session.limit(times.batch).await.unwrap();
        apart.fetch(&session, &lookups, &accounts(1..=1)).await.unwrap();
        let names = failing.join(", ");
        let set = format!("UPDATE stored SET fault = '{fault}' WHERE account_id IN ({names})");
        admin.batch_execute(&set).await.unwrap();
        let (mut left, mut alone) = (accounts(2..=160), Vec::new());
        for round in 0.. {
            assert!(round < 40, "{fault}: {left:?} are not told apart");
            let Answer { fetched, put_off } = apart.fetch(&session, &lookups, &left).await.unwrap();
            assert!(fetched.snapshot.contains(':'), "{fault}");
            for (account, routes) in &fetched.routes {
                assert_eq!((routes.endpoints.len(), &routes.refused), (1, &None), "{fault}");
                left.retain(|other| other != account);
            }
            for (account, wait) in put_off {
                if !wait.is_zero() {
                    left.retain(|other| *other != account);
                    alone.push(account);
                }
            }
            if left.is_empty() {
                break;
            }
        }
        assert_eq!(sorted(&alone), failing, "{fault}");
        let told = apart.failing().unwrap();
        let code = if fault == "sleep" { "57014" } else { fault };
        let says = format!("of {}: {names}; the last failed with SQLSTATE {code}", failing.len());
        assert_eq!(told.error, says, "{fault}");

        // They keep nobody waiting who is new, and are put off for longer and longer.
        let asked: Vec<_> = accounts(161..=200).into_iter().chain(alone.clone()).collect();
        let Answer { fetched, put_off } = apart.fetch(&session, &lookups, &asked).await.unwrap();
        assert_eq!(fetched.routes.len(), 40, "{fault}");
        assert_eq!(sorted(put_off.iter().map(|(account, _)| account)), failing);
        let longest = put_off.iter().map(|(_, wait)| *wait).max();
        assert_eq!(longest, Some(Duration::from_secs(10)), "{fault}");

        admin.batch_execute("UPDATE stored SET fault = ''").await.unwrap();
        let Answer { fetched, put_off } = apart.fetch(&session, &lookups, &alone).await.unwrap();
        assert_eq!((fetched.routes.len(), put_off.len()), (failing.len(), 0), "{fault}");
        assert_eq!(apart.failing(), None, "{fault}");
    }
}

#[tokio::test]
async fn outage_of_look_ups_is_no_matter_of_single_accounts() {
    let (cluster, client) = start().await;
    client.batch_execute(VIEW).await.unwrap();
    let admin = session(&cluster).await;
    client.batch_execute("SET lock_timeout = '200ms'").await.unwrap();
    let session = LookupSession { client, has_policies: AtomicBool::new(false) };
    let lookups = Lookups { lock_patience: Duration::ZERO, ..lookups(PLAIN) };
    let mut apart = Apart::new(SHORT);
    session.limit(SHORT.batch).await.unwrap();
    apart.fetch(&session, &lookups, &accounts(1..=9)).await.unwrap();
    for (cause, fix) in [
        ("ALTER VIEW hooks RENAME TO h", "ALTER VIEW h RENAME TO hooks"),
        ("ALTER VIEW hooks RENAME url TO u", "ALTER VIEW hooks RENAME u TO url"),
        ("BEGIN; LOCK TABLE stored", "ROLLBACK"),
        ("UPDATE stored SET fault = 'sleep'", "UPDATE stored SET fault = ''"),
        ("UPDATE stored SET fault = '53200'", "UPDATE stored SET fault = ''"),
    ] {
        admin.batch_execute(cause).await.unwrap();
        for _ in 0..2 {
            apart.fetch(&session, &lookups, &accounts(2..=100)).await.unwrap_err();
            assert_eq!(apart.failing(), None, "{cause}");
        }
        admin.batch_execute(fix).await.unwrap();
        let Answer { fetched, put_off } =
            apart.fetch(&session, &lookups, &accounts(2..=100)).await.unwrap();
        assert_eq!((fetched.routes.len(), put_off.len()), (99, 0), "{cause}");
    }
}
