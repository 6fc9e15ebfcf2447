//! The receiver over real sockets.

use super::*;
use crate::program::PATIENCE;
use crate::sign::{sign, with_one_of};

async fn receiver(settings: Settings) -> Receiver {
    Receiver::start(SocketAddr::from(([127, 0, 0, 1], 0)), settings).await.unwrap()
}

async fn post(receiver: &Receiver, path: &str, id: &str, secret: &str) -> reqwest::Response {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let now = unix_us() / 1_000_000;
    let body = "{\"a\":1}";
    let signature = sign(secret, id, now, body.as_bytes());
    reqwest::Client::new()
        .post(receiver.url(path))
        .header("webhook-id", id)
        .header("webhook-timestamp", now.to_string())
        .header("webhook-signature", signature)
        .header("walhook-attempt", "2")
        .body(body)
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn receiver_verifies_counts_and_keeps_what_it_receives() {
    let receiver = receiver(Settings {
        verify: Some(with_one_of(vec!["s".to_owned()])),
        keep: 3,
        ..Settings::default()
    })
    .await;
    assert_eq!(post(&receiver, "/a", "1", "s").await.status(), 200);
    assert_eq!(post(&receiver, "/a", "1", "s").await.status(), 200);
    assert_eq!(post(&receiver, "/b", "1", "wrong").await.status(), 200);
    assert_eq!(
        post(&receiver, "/b?status=500&retry_after=7", "2", "s").await.headers()["retry-after"],
        "7"
    );
    let stats = receiver.stats();
    assert_eq!((stats.received, stats.taken, stats.distinct), (4, 3, 2));
    assert_eq!((stats.duplicates, stats.verified), (1, 3));
    let kept = receiver.received();
    assert_eq!(kept.len(), 3, "the oldest is forgotten");
    assert_eq!((kept[1].verified, kept[1].attempt, kept[2].answered), (false, 2, 500));
    let shown = reqwest::get(receiver.url("/stats")).await.unwrap().text().await.unwrap();
    assert_eq!(shown, serde_json::to_string(&stats).unwrap());
}

#[test]
fn counts_forgets_beyond_its_bounds_and_says_so() {
    let bounds = Bounds { requests: 4, bytes: 1_000, distinct: 3, paths: 2 };
    let mut counts = Counts::new(bounds);
    let mut take = |path: &str, id: &'static str| {
        let headers =
            HeaderMap::from_iter([("webhook-id".parse().unwrap(), HeaderValue::from_static(id))]);
        let body = bytes::Bytes::from_static(b"1234");
        let received = Received::new(path.to_owned(), &headers, body, true);
        counts.enter(Received { answered: 200, ..received });
        (counts.stats(), counts.received().len())
    };
    take("/a", "1");
    take("/a", "1");
    take("/b", "1");
    take("/c", "1");
    let (stats, kept) = take("/c", "2");
    assert_eq!(kept, 2, "of some 400 bytes each");
    assert_eq!((stats.distinct, stats.duplicates, stats.untold), (3, 1, 1));
    assert_eq!((stats.by_path["/a"], stats.by_path.len(), stats.by_other_paths), (2, 2, 2));
    let (stats, _) = take("/b", "1");
    assert_eq!((stats.duplicates, stats.untold, stats.taken), (2, 1, 6), "what is known stays so");
}

#[tokio::test]
async fn receiver_refuses_what_is_not_signed_with_one_of_its_secrets() {
    let verify = Some(with_one_of(["old", "new"].map(str::to_owned).to_vec()));
    let receiver = receiver(Settings { verify, strict: true, ..Settings::default() }).await;
    for (id, secret, status) in [("1", "old", 200), ("2", "new", 200), ("3", "wrong", 401)] {
        assert_eq!(post(&receiver, "/a", id, secret).await.status(), status, "{secret}");
    }
    // Whatever its script says: neither late nor never.
    assert_eq!(post(&receiver, "/b?hang", "4", "wrong").await.status(), 401);
    let unsigned = reqwest::Client::new().post(receiver.url("/a")).body("{}").send().await.unwrap();
    assert_eq!(unsigned.status(), 401);
    let stats = receiver.stats();
    assert_eq!((stats.received, stats.taken, stats.verified), (5, 2, 2));
}

#[test]
fn counts_counts_all_that_a_kept_request_holds_and_no_long_path_apart() {
    let bounds = Bounds { requests: 1_000, bytes: 1 << 20, distinct: 10, paths: 10 };
    let mut counts = Counts::new(bounds);
    let large = HeaderValue::from_bytes(&[b'x'; 60_000]).unwrap();
    for n in 0..100 {
        let headers = HeaderMap::from_iter([("webhook-id".parse().unwrap(), large.clone())]);
        let path = format!("/{n}{}", "p".repeat(10_000));
        let received = Received::new(path, &headers, bytes::Bytes::new(), true);
        counts.enter(Received { answered: 200, ..received });
    }
    assert!(counts.received().len() <= 8, "a path, an id and a header take some 130 kB");
    let stats = counts.stats();
    assert_eq!((stats.by_path.len(), stats.by_other_paths), (0, 100));
}

#[tokio::test]
async fn receiver_changes_its_behaviour_while_it_runs() {
    let receiver = receiver(Settings::default()).await;
    receiver.set_behaviour("/a", Behaviour::status(StatusCode::GONE));
    assert_eq!(post(&receiver, "/a", "1", "s").await.status(), 410);
    receiver.set_behaviour("/a", Behaviour::ok());
    assert_eq!(post(&receiver, "/a?status=500", "1", "s").await.status(), 200);
    receiver.set_default(Behaviour::hang());
    let hanging = post(&receiver, "/b", "1", "s");
    let seen = receiver.wait_until("one hangs", PATIENCE, |stats| stats.in_flight == 1);
    tokio::select! {
        _ = hanging => panic!("answered"),
        seen = seen => seen.unwrap(),
    }
    receiver.wait_until("it left", PATIENCE, |s| s.in_flight == 0).await.unwrap();
}

#[tokio::test]
async fn waiting_in_vain_says_for_what() {
    let receiver = receiver(Settings::default()).await;
    let waited = receiver.wait_until("a miracle", Duration::from_millis(10), |_| false).await;
    assert!(waited.unwrap_err().to_string().contains("a miracle"));
}

#[test]
fn query_scripts_a_behaviour_and_errors_name_their_part() {
    let behaviour = Behaviour::from_query("delay=2s&status=204&fail=0.5&retry_after=3").unwrap();
    assert_eq!(behaviour.delay, Duration::from_secs(2));
    assert_eq!((behaviour.status.as_u16(), behaviour.retry_after), (204, Some(3)));
    assert!(Behaviour::from_query("hang").unwrap().hang);
    for (query, named) in [("delay=x", "delay=x"), ("status=9", "status=9"), ("fall=1", "fall")] {
        let error = Behaviour::from_query(query).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    assert!(Behaviour::from_query("fail=2").is_err());
}

#[test]
fn flaky_endpoint_fails_its_share_and_the_same_each_time() {
    let flaky = Behaviour::flaky(0.3);
    let failed = |n: u32| flaky.answer(&n.to_string(), 1) != Behaviour::ok().answer("", 1);
    let share = (0..10_000).filter(|n| failed(*n)).count();
    assert!((2_700..3_300).contains(&share), "{share}");
    assert!((0..100).all(|n| failed(n) == failed(n)));
}

#[tokio::test]
async fn receiver_refuses_connections_and_listens_again_at_the_same_port() {
    let settings = Settings { may_refuse: true, ..Settings::default() };
    let mut receiver = receiver(settings).await;
    assert_eq!(post(&receiver, "/a", "1", "s").await.status(), 200);
    receiver.refuse();
    let refused = async {
        while tokio::net::TcpStream::connect(receiver.address()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
    receiver.listen().unwrap();
    assert_eq!(post(&receiver, "/a", "2", "s").await.status(), 200);
    assert_eq!(receiver.stats().distinct, 2);
}

#[tokio::test]
async fn receiver_answers_400_and_enters_nothing_where_its_hook_finds_fault() {
    let hook: Hook = Arc::new(|received| match received.id.as_str() {
        "odd" => bail!("an odd one"),
        _ => Ok(()),
    });
    let settings = Settings { on_request: Some(hook), ..Settings::default() };
    let receiver = receiver(settings).await;
    let odd = post(&receiver, "/a", "odd", "s").await;
    assert_eq!((odd.status().as_u16(), odd.text().await.unwrap()), (400, "an odd one\n".into()));
    assert_eq!(post(&receiver, "/a", "even", "s").await.status(), 200);
    assert_eq!(receiver.stats().received, 1);
}
