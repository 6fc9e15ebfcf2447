//! A connection pooler that lends the server's sessions by transaction, as PgBouncer does with
//! `pool_mode = transaction`.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{World, text};

/// The code of a request for TLS, where a start-up has the protocol's version.
const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();

/// The server's sessions that nobody has now; who comes next gets the last one.
type Idle = Arc<Mutex<Vec<TcpStream>>>;

/// A message: its type, and its length with its body.
async fn message(from: &mut TcpStream) -> Result<Vec<u8>> {
    let mut message = vec![from.read_u8().await?];
    message.extend(rest(from).await?);
    Ok(message)
}

/// The length, and what it says there is.
async fn rest(from: &mut TcpStream) -> Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let mut rest = length.to_be_bytes().to_vec();
    rest.resize(usize::try_from(length)?, 0);
    from.read_exact(&mut rest[4..]).await?;
    Ok(rest)
}

/// Starts a session of the server, and gives what that says to it.
async fn session(server: u16, start_up: &[u8]) -> Result<(TcpStream, Vec<u8>)> {
    let mut session = TcpStream::connect(("127.0.0.1", server)).await?;
    session.write_all(start_up).await?;
    let mut said = Vec::new();
    loop {
        let mut message = message(&mut session).await?;
        let kind = message[0];
        if kind == b'K' {
            message[8] ^= 1; // a process of the pooler's own invention
        }
        said.extend(message);
        if kind == b'Z' {
            return Ok((session, said));
        }
    }
}

/// Serves a client: each transaction in whichever session is idle.
async fn serve(mut client: TcpStream, server: u16, idle: Idle) -> Result<()> {
    let start_up = loop {
        let first = rest(&mut client).await?;
        if first[4..] != SSL_REQUEST {
            break first;
        }
        client.write_all(b"N").await?;
    };
    let (opened, said) = session(server, &start_up).await?;
    client.write_all(&said).await?;
    idle.lock().unwrap().push(opened);
    loop {
        let mut asked = message(&mut client).await?;
        let lent = idle.lock().unwrap().pop();
        let mut lent = match lent {
            Some(lent) => lent,
            None => session(server, &start_up).await?.0,
        };
        loop {
            lent.write_all(&asked).await?;
            if [b'Q', b'S'].contains(&asked[0]) {
                let answer = loop {
                    let answer = message(&mut lent).await?;
                    client.write_all(&answer).await?;
                    if answer[0] == b'Z' {
                        break answer;
                    }
                };
                if answer[5] == b'I' {
                    break; // the transaction has ended
                }
            }
            asked = message(&mut client).await?;
        }
        idle.lock().unwrap().push(lent);
    }
}

async fn pool_by_transaction(server: u16) -> Result<(u16, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (idle, mut tasks) = (Idle::default(), JoinSet::new());
    tasks.spawn(async move {
        let mut clients = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            clients.spawn(serve(client, server, Arc::clone(&idle)));
        }
    });
    Ok((port, tasks))
}

#[tokio::test]
async fn check_fails_behind_a_pooler_by_transaction() -> Result<()> {
    let world = World::new().await?;
    let (port, _tasks) = pool_by_transaction(world.cluster.port()).await?;
    let direct = world.cluster.url("postgres");
    let pooled = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    world.edit_config(&direct, &format!("{pooled}\"\nreplication_url = \"{direct}"))?;
    let output = world.walhook(&["check"]).await?;
    let lines = text(&output.stdout);
    let told = lines.lines().find(|line| line.contains("connection pooler: ")).unwrap_or(&lines);
    assert!(told.starts_with("fail  connection pooler: source.url leads through one"), "{told}");
    assert!(told.contains("search_path") && told.contains("pool_mode = session"), "{told}");
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}
