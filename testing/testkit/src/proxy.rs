//! A network that can be made to fail: a TCP proxy in our own process.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use socket2::SockRef;
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// What comes in goes out.
    Passes,
    /// It holds every piece for so long.
    Delays(Duration),
    /// It resets every connection, and each new one.
    Cuts,
    /// It takes everything, says nothing, and lets nothing through: neither bytes nor the end of a
    /// connection. What it took goes on when it passes again, as after a cable was put back.
    Swallows,
}

/// A running proxy to one address; gone when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    _task: JoinSet<()>,
}

impl Proxy {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (network, watched) = watch::channel(Network::Passes);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, to, watched.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, network, _task: task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the network does this, to the connections that are open too.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }
}

/// Carries one connection to its end.
async fn carry(mut client: TcpStream, to: SocketAddr, mut network: watch::Receiver<Network>) {
    if until_passing(&mut network).await.is_err() {
        return reset(&client);
    }
    let Ok(mut server) = TcpStream::connect(to).await else { return reset(&client) };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let broken = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(from_client, to_server, network.clone());
        let down = pump(from_server, to_client, network);
        tokio::try_join!(up, down).is_err()
    };
    if broken {
        reset(&client);
        reset(&server);
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut network: watch::Receiver<Network>,
) -> io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let delay = until_passing(&mut network).await?;
        let read = tokio::select! {
            changed = network.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
            read = from.read(&mut buffer) => read?,
        };
        sleep(delay).await;
        until_passing(&mut network).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.get(..read).unwrap_or_default()).await?;
    }
}

/// Waits while it swallows, and says how long each piece is held; an error when it cuts.
async fn until_passing(network: &mut watch::Receiver<Network>) -> io::Result<Duration> {
    loop {
        match *network.borrow_and_update() {
            Network::Passes => return Ok(Duration::ZERO),
            Network::Delays(delay) => return Ok(delay),
            Network::Cuts => return Err(io::ErrorKind::ConnectionReset.into()),
            Network::Swallows => {}
        }
        if network.changed().await.is_err() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
}

/// Makes the end of the connection a reset.
fn reset(stream: &TcpStream) {
    // A connection that is gone already needs none.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[tokio::test]
async fn proxy_passes_delays_swallows_and_cuts() -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let proxy = Proxy::start(listener.local_addr()?).await?;
    let mut client = TcpStream::connect(proxy.address()).await?;
    let (mut server, _) = listener.accept().await?;
    let mut said = [0; 4];
    client.write_all(b"ping").await?;
    server.read_exact(&mut said).await?;
    assert_eq!(&said, b"ping");

    let delay = Duration::from_millis(50);
    proxy.set(Network::Delays(delay));
    let began = tokio::time::Instant::now();
    server.write_all(b"pong").await?;
    client.read_exact(&mut said).await?;
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());

    proxy.set(Network::Swallows);
    client.write_all(b"held").await?;
    let held = tokio::time::timeout(delay, server.read_exact(&mut said)).await;
    assert!(held.is_err(), "it was let through");
    proxy.set(Network::Passes);
    server.read_exact(&mut said).await?;
    assert_eq!(&said, b"held");

    proxy.set(Network::Cuts);
    for stream in [&mut client, &mut server] {
        let error = stream.read(&mut said).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let mut refused = TcpStream::connect(proxy.address()).await?;
    assert!(refused.read(&mut said).await.is_err(), "it was let through");
    Ok(())
}
