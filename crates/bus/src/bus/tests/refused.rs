//! What a server refuses, or withdraws while it runs, and what becomes of that when it is allowed again.

use super::*;

/// The configuration of a server whose user may hear these subjects, and publish all.
fn may_hear(subjects: &str) -> String {
    format!(
        "authorization {{ users: [{{ user: w, password: hush, permissions: {{ publish: [\">\"], subscribe: [{subjects}] }} \
         }}] }}"
    )
}

async fn no_refusal(bus: &Bus) -> Result<()> {
    let mut state = bus.state.clone();
    let is_well = |state: &State| state.trouble.is_none() && state.refused.is_none();
    timeout(PATIENCE, state.wait_for(is_well))
        .await
        .with_context(|| format!("it still says {:?}", bus.state()))??;
    Ok(())
}

/// Publishes until it is heard.
async fn until_heard(bus: &Bus, subscription: &mut Subscription, subject: &str) -> Result<()> {
    let told = async {
        loop {
            bus.publish(subject, None, Bytes::from_static(b"again"))?;
            let turn = Duration::from_millis(100);
            if let Ok(heard) = timeout(turn, subscription.next()).await {
                return heard.map(drop).context("the bus is gone");
            }
        }
    };
    timeout(Duration::from_secs(15), told)
        .await
        .with_context(|| format!("{subject} {:?}", bus.state()))?
}

#[tokio::test]
async fn subscription_that_a_server_withdraws_is_made_again_once_it_is_allowed() -> Result<()> {
    let nats = Nats::start(&may_hear("\"p.>\"")).await?;
    let mut options = options(&[nats.url()]);
    options.credentials = password("w", "hush");
    let bus = Bus::connect_now(&options).await?;
    let mut watch = bus.watch();
    until_up(&mut watch).await?;
    let mut hellos = bus.subscribe("p.hello").await?;
    let mut inbox = bus.subscribe("p.l.>").await?;
    let mut kept = bus.subscribe("p.kept").await?;
    until_heard(&bus, &mut hellos, "p.hello").await?;
    until_heard(&bus, &mut inbox, "p.l.one").await?;

    nats.reload(&may_hear("\"p.kept\""))?;
    trouble(&bus, "Permissions Violation for Subscription to \"p.").await?;
    // It is said for as long as it is so, however often it was tried.
    tokio::time::sleep(2 * ASK_AGAIN_EVERY).await;
    assert!(bus.state().refused.is_some_and(|it| it.contains("Permissions Violation")));
    bus.publish("p.hello", None, Bytes::from_static(b"unheard"))?;
    assert!(timeout(Duration::from_millis(200), hellos.next()).await.is_err());

    nats.reload(&may_hear("\"p.>\""))?;
    until_heard(&bus, &mut hellos, "p.hello").await?;
    until_heard(&bus, &mut inbox, "p.l.one").await?;
    no_refusal(&bus).await?;
    until_heard(&bus, &mut kept, "p.kept").await?;
    // What is published once comes once.
    while hellos.try_next().is_some() {}
    for n in 0..100_u32 {
        bus.publish("p.hello", None, Bytes::from(n.to_string()))?;
    }
    let mut heard = Vec::new();
    while heard.len() < 100 {
        let frame = bytes(&mut hellos).await?;
        if frame != "again" {
            heard.push(frame);
        }
    }
    assert!(heard.iter().zip(0_u32..).all(|(frame, n)| *frame == n.to_string()), "{heard:?}");
    assert!(hellos.try_next().is_none());
    assert_eq!(bus.state().connections, 1, "the connection stands");
    Ok(())
}

#[tokio::test]
async fn subscription_that_was_never_allowed_is_made_once_it_is() -> Result<()> {
    let nats = Nats::start(&may_hear("\"q\"")).await?;
    let mut options = options(&[nats.url()]);
    options.credentials = password("w", "hush");
    let bus = Bus::connect(&options).await?;
    until_up(&mut bus.watch()).await?;
    let mut lead = bus.subscribe("p.lead").await?;
    let mut again = bus.subscribe("p.lead").await?;
    let dropped = bus.subscribe("p.w.one").await?;
    trouble(&bus, "Permissions Violation for Subscription to \"p.").await?;
    drop(dropped);
    nats.reload(&may_hear("\"p.lead\""))?;
    until_heard(&bus, &mut lead, "p.lead").await?;
    assert_eq!(bytes(&mut again).await?, "again");
    // Nobody asks for what nobody wants any more.
    no_refusal(&bus).await
}

#[tokio::test]
async fn publishing_that_was_refused_is_told_no_longer_than_it_is() -> Result<()> {
    let may = |publish: &str| {
        format!(
            "authorization {{ users: [{{ user: w, password: hush, permissions: {{ publish: [{publish}] }} }}] }}"
        )
    };
    let nats = Nats::start(&may("\"q\"")).await?;
    let mut options = options(&[nats.url()]);
    options.credentials = password("w", "hush");
    let bus = Bus::connect(&options).await?;
    until_up(&mut bus.watch()).await?;
    bus.publish("p.hello", None, Bytes::new())?;
    trouble(&bus, "Permissions Violation for Publish to \"p.hello\"").await?;
    nats.reload(&may("\"q\", \"p.hello\""))?;
    no_refusal(&bus).await
}
