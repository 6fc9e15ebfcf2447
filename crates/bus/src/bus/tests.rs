mod refused;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use tokio::io::AsyncWriteExt;
use walhook_core::endpoint::Secret;
use walhook_testkit::nats::Nats;
use walhook_testkit::program::PATIENCE;
use walhook_testkit::tls::Authority;

use super::*;
use crate::options::{Credentials, Servers};
use crate::state::BusEvent;
use crate::subscription::Received;

fn options(urls: &[String]) -> Options {
    Options {
        servers: Servers::parse(urls.iter().map(String::as_str)).unwrap(),
        credentials: Credentials::None,
        tls_ca: None,
        name: "test".to_owned(),
    }
}

fn password(user: &str, password: &str) -> Credentials {
    Credentials::Password { user: user.to_owned(), password: Secret::new(password) }
}

/// The next event, in time.
async fn event(watch: &mut Watch) -> Result<BusEvent> {
    match timeout(PATIENCE, watch.next()).await {
        Ok(event) => event.context("the bus is gone"),
        Err(_) => anyhow::bail!("nothing happens: {:?}", watch.state()),
    }
}

async fn until_up(watch: &mut Watch) -> Result<usize> {
    loop {
        if let BusEvent::Up { max_payload } = event(watch).await? {
            return Ok(max_payload);
        }
    }
}

async fn heard(subscription: &mut Subscription) -> Result<Received> {
    timeout(PATIENCE, subscription.next()).await?.context("the bus is gone")
}

async fn bytes(subscription: &mut Subscription) -> Result<Bytes> {
    match heard(subscription).await? {
        Received::Frame { payload, .. } => Ok(payload),
        Received::NoResponders { reply } => anyhow::bail!("nobody hears what {reply} came with"),
    }
}

/// Waits until the trouble says this.
async fn trouble(bus: &Bus, wanted: &str) -> Result<()> {
    let mut state = bus.state.clone();
    let says = |state: &State| state.trouble.as_ref().is_some_and(|said| said.contains(wanted));
    timeout(PATIENCE, state.wait_for(says))
        .await
        .with_context(|| format!("{:?} does not say {wanted:?}", bus.state().trouble))??;
    Ok(())
}

#[tokio::test]
async fn bus_carries_in_order_and_names_what_nobody_hears() -> Result<()> {
    let nats = Nats::start("max_payload: 70000").await?;
    let bus = Bus::connect_now(&options(&[nats.url()])).await?;
    let mut watch = bus.watch();
    assert_eq!(until_up(&mut watch).await?, 70_000);

    let mut replies = bus.subscribe("p.l.*").await?;
    let mut frames = bus.subscribe("p.w.one").await?;
    for n in 0..1_000_u32 {
        bus.publish("p.w.one", Some("p.l.one"), Bytes::from(n.to_string()))?;
    }
    for n in 0..1_000_u32 {
        assert_eq!(bytes(&mut frames).await?, n.to_string());
    }
    bus.publish("p.w.two", Some("p.l.two"), Bytes::from_static(b"lost"))?;
    let Received::NoResponders { reply } = heard(&mut replies).await? else {
        anyhow::bail!("somebody heard it")
    };
    assert_eq!(&*reply, "p.l.two");

    bus.publish("p.w.one", None, vec![0; 70_000].into())?;
    assert_eq!(bytes(&mut frames).await?.len(), 70_000);
    let larger = bus.publish("p.w.one", None, vec![0; 70_001].into());
    assert_eq!(larger, Err(NotPublished::TooLarge));
    assert_eq!(bus.publish("", None, Bytes::new()), Err(NotPublished::Subject));
    assert_eq!(bus.state().dropped, 0);
    assert!(frames.try_next().is_none() && replies.try_next().is_none());
    Ok(())
}

#[tokio::test]
async fn bus_that_is_away_takes_nothing_and_its_return_is_told() -> Result<()> {
    let mut nats = Nats::start("").await?;
    nats.kill()?;
    let refused = Bus::connect_now(&options(&[nats.url()])).await.unwrap_err().to_string();
    assert!(refused.starts_with("cannot reach the bus at 127.0.0.1:"), "{refused}");

    let bus = Bus::connect(&options(&[nats.url()])).await?;
    let mut watch = bus.watch();
    assert_eq!(bus.publish("a", None, Bytes::new()), Err(NotPublished::Away));
    let mut frames = bus.subscribe("a").await?;
    trouble(&bus, "IO error: Connection refused").await?;
    for round in 1..=3 {
        nats.start_again().await?;
        until_up(&mut watch).await?;
        assert_eq!(bus.state().trouble, None);
        bus.publish("a", None, Bytes::from(round.to_string()))?;
        assert_eq!(bytes(&mut frames).await?, round.to_string());
        nats.kill()?;
        assert_eq!(event(&mut watch).await?, BusEvent::Down);
        assert_eq!(bus.publish("a", None, Bytes::new()), Err(NotPublished::Away));
        assert_eq!(bus.state().connections, round);
    }
    assert!(frames.try_next().is_none(), "something was kept and sent later");
    Ok(())
}

#[tokio::test]
async fn bus_tells_that_a_full_subscription_lost_something() -> Result<()> {
    let nats = Nats::start("").await?;
    let bus = Bus::connect_now(&options(&[nats.url()])).await?;
    let mut watch = bus.watch();
    until_up(&mut watch).await?;
    let mut frames = bus.subscribe("a").await?;
    for n in 0..2_000_u32 {
        while bus.publish("a", None, Bytes::from(n.to_string())) == Err(NotPublished::Full) {
            ensure!(bus.flush(PATIENCE).await, "it takes nothing");
        }
    }
    assert_eq!(event(&mut watch).await?, BusEvent::Down);
    until_up(&mut watch).await?;
    assert_eq!(bus.state().connections, 1);
    assert_eq!(bytes(&mut frames).await?, "0");
    Ok(())
}

#[tokio::test]
async fn bus_whose_server_is_frozen_makes_nobody_wait_and_is_found_out() -> Result<()> {
    let nats = Nats::start("").await?;
    let bus = Bus::connect_now(&options(&[nats.url()])).await?;
    let mut watch = bus.watch();
    until_up(&mut watch).await?;
    nats.signal("STOP")?;
    let frame = Bytes::from(vec![0; 64 << 10]);
    let refused = loop {
        match bus.publish("a", None, frame.clone()) {
            // The connection takes its turn.
            Ok(()) => tokio::task::yield_now().await,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, NotPublished::Full | NotPublished::Away), "{refused}");
    assert_eq!(event(&mut watch).await?, BusEvent::Down);
    nats.signal("CONT")?;
    until_up(&mut watch).await?;
    Ok(())
}

#[tokio::test]
async fn bus_of_three_servers_goes_on_when_any_of_them_dies() -> Result<()> {
    let mut servers = Nats::start_three().await?;
    let urls = servers.each_ref().map(Nats::url);
    let listener = Bus::connect_now(&options(&urls)).await?;
    let speaker = Bus::connect_now(&options(&urls)).await?;
    let mut watches = [listener.watch(), speaker.watch()];
    for watch in &mut watches {
        until_up(watch).await?;
    }
    let mut frames = listener.subscribe("a").await?;
    for (at, url) in urls.iter().enumerate() {
        let alone = Bus::connect_now(&options(std::slice::from_ref(url))).await?;
        let mut alone = alone.watch();
        until_up(&mut alone).await?;
        servers[at].kill()?;
        while alone.state().connected {
            event(&mut alone).await?;
        }
        // Servers learn of each other's subscriptions in their own time.
        let told = timeout(PATIENCE, async {
            loop {
                let _away_for_a_moment = speaker.publish("a", None, Bytes::from(url.clone()));
                let turn = Duration::from_millis(20);
                if let Ok(Some(Received::Frame { payload, .. })) =
                    timeout(turn, frames.next()).await
                    && payload == url.as_bytes()
                {
                    return;
                }
            }
        });
        told.await.with_context(|| format!("{:?}", speaker.state()))?;
        servers[at].start_again().await?;
    }
    Ok(())
}

#[tokio::test]
async fn bus_with_tls_and_a_password_trusts_its_authority_alone() -> Result<()> {
    let authority = Authority::ecdsa(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let pair = authority.issue("localhost")?;
    let users = "authorization { users: [{ user: w, password: hush, permissions: { publish: [\"p.hello\"], \
                 subscribe: [\"p.lead\"] } }] }";
    let nats = Nats::start_tls(&pair, users).await?;
    let url = format!("tls://localhost:{}", nats.address().port());
    let mut good = options(&[url]);
    good.credentials = password("w", "hush");
    good.tls_ca = Some(authority.file().into());

    let bus = Bus::connect_now(&good).await?;
    until_up(&mut bus.watch()).await?;
    bus.publish("p.lead", None, Bytes::new())?;
    trouble(&bus, "Permissions Violation for Publish to \"p.lead\"").await?;
    let _denied = bus.subscribe("p.w.*").await?;
    trouble(&bus, "Permissions Violation for Subscription to \"p.w.*\"").await?;

    let mut wrong = good.clone();
    wrong.credentials = password("w", "shout");
    let error = Bus::connect_now(&wrong).await.unwrap_err().to_string();
    assert!(error.ends_with("it refuses the credentials, or wants some"), "{error}");
    trouble(&Bus::connect(&wrong).await?, "it refuses the credentials").await?;

    let other = Authority::ecdsa(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut stranger = good.clone();
    stranger.tls_ca = Some(other.file().into());
    let error = Bus::connect_now(&stranger).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let mut system = good.clone();
    system.tls_ca = None;
    assert!(Bus::connect_now(&system).await.is_err());
    let address = nats.address();
    let plain = Options { servers: Servers::parse([&*format!("nats://{address}")])?, ..good };
    let error = Bus::connect_now(&plain).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    Ok(())
}

#[tokio::test]
async fn tls_that_servers_want_otherwise_is_named() -> Result<()> {
    let authority = Authority::ecdsa(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let pair = authority.issue("localhost")?;
    let ca = authority.file();
    let plain = Nats::start("").await?;
    let mutual = format!("verify: true, ca_file: \"{ca}\"");
    let mutual = Nats::start_tls_with(&pair, &mutual, "").await?;
    // As one with handshake_first: it waits for TLS, and hangs up in the end.
    let first = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let first_port = first.local_addr()?.port();
    let mut listens = JoinSet::new();
    listens.spawn(async move {
        let waits = first.accept().await;
        while first.accept().await.is_ok() {}
        drop(waits);
    });
    let first_says = "where its tls section has handshake_first, turn that off";
    for (port, says) in [
        (plain.address().port(), "what answers there speaks no TLS; give the server a tls section"),
        (
            mutual.address().port(),
            "the server wants certificates of its clients (verify in its tls section)",
        ),
        (first_port, first_says),
        (first_port, first_says),
    ] {
        let mut options = options(&[format!("tls://localhost:{port}")]);
        options.tls_ca = Some(ca.clone().into());
        let error = Bus::connect_now(&options).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    Ok(())
}

/// Takes connections, says this, and nothing after it.
async fn stalls(says: &'static [u8]) -> Result<(String, JoinSet<()>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let mut listens = JoinSet::new();
    listens.spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _gone = stream.write_all(says).await;
            held.push(stream);
        }
    });
    Ok((address, listens))
}

#[tokio::test]
async fn server_that_stalls_is_named_and_how_far_it_went() -> Result<()> {
    let info = b"INFO {\"server_id\":\"x\",\"version\":\"2.11.0\",\"max_payload\":1,\"tls_required\":true}\r\n";
    let (silent, _silent) = stalls(b"").await?;
    let (speaks, _speaks) = stalls(info).await?;
    let handshake = "no TLS handshake was finished within 2 s, for no word came from it";
    let cases = [
        (format!("tls://{silent}"), format!("{silent} takes connections, and {handshake}")),
        (format!("nats://{silent}"), format!("{silent} takes connections, and no word came")),
        (
            format!("tls://{speaks}"),
            format!("{speaks} has spoken, and the TLS handshake was not finished within 2 s"),
        ),
    ];
    let says = async |(url, says): (String, String)| -> Result<()> {
        let options = options(&[url]);
        let later = Bus::connect(&options).await?;
        let error = Bus::connect_now(&options).await.unwrap_err().to_string();
        ensure!(error.contains(&says) && error.contains("see whether"), "{error}");
        trouble(&later, &says).await
    };
    try_join_all(cases.map(says)).await?;
    Ok(())
}

#[tokio::test]
async fn bus_that_is_away_says_why_that_is_and_not_what_it_refused_before() -> Result<()> {
    let users = "authorization { users: [{ user: w, password: hush, permissions: { publish: [\"p.hello\"] } }] }";
    let mut nats = Nats::start(users).await?;
    let mut options = options(&[nats.url()]);
    options.credentials = password("w", "hush");
    let bus = Bus::connect(&options).await?;
    let mut watch = bus.watch();
    until_up(&mut watch).await?;
    bus.publish("p.lead", None, Bytes::new())?;
    trouble(&bus, "Permissions Violation for Publish").await?;
    nats.kill()?;
    while bus.state().connected {
        event(&mut watch).await?;
    }
    let said = bus.state().trouble;
    assert!(said.is_none_or(|said| !said.contains("Permissions")), "that is not why");
    trouble(&bus, "Connection refused").await?;
    // What was wrong with a connection is not wrong with the next.
    nats.start_again().await?;
    until_up(&mut watch).await?;
    assert_eq!((bus.state().trouble, bus.state().refused), (None, None));
    nats.reload("authorization { users: [{ user: w, password: other }] }")?;
    trouble(&bus, "it refuses the credentials").await
}

#[test]
fn log_says_that_the_bus_is_away_once_it_is_known_why() {
    let mut told = Told::default();
    let up = Seen { connected: true, connections: 1, ..Seen::default() };
    told.tell(&up, true);
    let lost = Seen { connected: false, ..up.clone() };
    told.tell(&lost, false);
    assert!(!told.away);
    let kind = Seen { trouble: Some("IO error".into()), ..lost };
    told.tell(&kind, false);
    assert!(!told.away, "that is not all");
    let sure = Seen { is_sure: true, ..kind };
    told.tell(&sure, false);
    assert!(told.away);
    told.tell(&up, true);
    assert!(!told.away && told.up);
}

#[tokio::test]
async fn bus_takes_an_nkey() -> Result<()> {
    // Those of NATS' own documentation.
    let public = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    let nats = Nats::start(&format!("authorization {{ users: [{{ nkey: {public} }}] }}")).await?;
    let mut options = options(&[nats.url()]);
    assert!(Bus::connect_now(&options).await.is_err());
    options.credentials = Credentials::Nkey(Secret::new(format!("{seed}\n")));
    Bus::connect_now(&options).await?;
    Ok(())
}

#[tokio::test]
async fn larger_messages_are_taken_once_a_server_was_told_to_take_them() -> Result<()> {
    let nats = Nats::start("max_payload: 70000").await?;
    let bus = Bus::connect_now(&options(&[nats.url()])).await?;
    let mut watch = bus.watch();
    assert_eq!(until_up(&mut watch).await?, 70_000);
    assert_eq!(bus.look_again().await, Looked::NoLarger);
    nats.reload("max_payload: 200000")?;
    let looked = async {
        while bus.look_again().await != Looked::Larger {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, looked).await?;
    assert_eq!(event(&mut watch).await?, BusEvent::Down);
    assert_eq!(until_up(&mut watch).await?, 200_000);
    bus.publish("p.w.one", None, Bytes::from(vec![b'x'; 100_000]))?;
    Ok(())
}

#[tokio::test]
async fn connection_that_is_made_anew_to_a_server_of_the_old_size_is_told_to_have_been_in_vain()
-> Result<()> {
    let (small, large) =
        (Nats::start("max_payload: 70000").await?, Nats::start("max_payload: 200000").await?);
    let both = options(&[small.url(), large.url()]);
    let (mut vain, mut larger) = (0, 0);
    let looked = async {
        // Which server takes a connection is chance.
        while vain == 0 || larger == 0 {
            let bus = Bus::connect_now(&both).await?;
            let mut watch = bus.watch();
            if until_up(&mut watch).await? != 70_000 {
                continue;
            }
            let looked = bus.look_again().await;
            let State { connections, max_payload, .. } = bus.state();
            match looked {
                Looked::NoLarger => assert_eq!((connections, max_payload), (1, 70_000)),
                Looked::InVain => assert_eq!((connections, max_payload), (2, 70_000)),
                Looked::Larger => assert_eq!((connections, max_payload), (2, 200_000)),
            }
            vain += usize::from(looked == Looked::InVain);
            larger += usize::from(looked == Looked::Larger);
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, looked).await?
}

#[test]
fn log_has_one_line_a_minute_of_each_kind_of_what_is_refused() {
    let (mut told, start) = (Told::default(), Instant::now());
    let publish = |subject: &str| {
        format!(
            "the server says Permissions Violation for Publish to \"walhook.walhook.{subject}\""
        )
    };
    assert!(told.is_due(&publish("w.0f3a9c0000000000000000000000beef"), start));
    let another = publish("w.1f3a9c0000000000000000000000beef");
    assert!(!told.is_due(&another, start), "another session");
    assert!(told.is_due(&publish("lead"), start));
    assert!(told.is_due(&another, start + REFUSED_AGAIN));
}
