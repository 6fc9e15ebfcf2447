//! HTTP/2 receivers, frame by frame: a library would be too polite to misbehave.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rcgen::{CertifiedIssuer, KeyPair};
use tokio_rustls::server::TlsStream;

use super::tls::{acceptor, authority, params, trusting};
use super::*;

/// What is said to a request; then the connection goes on, unless it says otherwise.
#[derive(Debug, Clone)]
pub(super) enum Say {
    Frames(Vec<u8>),
    Close,
    /// Again and again, until the client has gone.
    Forever(Vec<u8>),
}

/// What to say to a request: the number of its connection, its own number there, and its stream.
pub(super) type Manner = Arc<dyn Fn(usize, usize, u32) -> Say + Send + Sync>;

pub(super) struct RawServer {
    pub(super) url: String,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) requests: Arc<AtomicUsize>,
    /// Bytes that [`Say::Forever`] got rid of.
    pub(super) written: Arc<AtomicUsize>,
    authority: CertifiedIssuer<'static, KeyPair>,
    _tasks: JoinSet<()>,
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Status 200 and no body.
pub(super) fn ok_200(stream: u32) -> Vec<u8> {
    frame(1, 5, stream, &[0x88])
}

/// Status 103, with more to come.
pub(super) fn hints(stream: u32) -> Vec<u8> {
    frame(1, 4, stream, b"\x08\x03103")
}

pub(super) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(3, 0, stream, &code.to_be_bytes())
}

pub(super) fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(7, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// Header fields of so many bytes.
pub(super) fn fields(bytes: usize) -> Vec<u8> {
    [&b"\x00\x01x\x64"[..], &[b'v'; 100]].concat().repeat(bytes / 104)
}

impl RawServer {
    pub(super) async fn start(
        manner: impl Fn(usize, usize, u32) -> Say + Send + Sync + 'static,
    ) -> Self {
        let authority = authority();
        let acceptor = acceptor(Some(&authority), params("localhost"), &["h2", "http/1.1"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let manner: Manner = Arc::new(manner);
        let counts = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let [connections, requests, written] = counts.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, manner) = (acceptor.clone(), Arc::clone(&manner));
                let number = connections.fetch_add(1, Relaxed);
                let (requests, written) = (Arc::clone(&requests), Arc::clone(&written));
                open.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        let _gone = serve(stream, number, &manner, &requests, &written).await;
                    } else {
                        while read_request(&mut stream).await.is_some() {
                            requests.fetch_add(1, Relaxed);
                            let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                            stream.write_all(ok).await.unwrap();
                        }
                    }
                });
            }
        });
        let [connections, requests, written] = counts;
        Self { url, connections, requests, written, authority, _tasks: tasks }
    }

    pub(super) fn transport(&self) -> Transport {
        trusting(&self.authority)
    }

    /// As [`RawServer::transport`], with such a `memory.limit`.
    pub(super) fn transport_within(&self, memory_limit: usize) -> Transport {
        self.transport_with(&requests(), memory_limit)
    }

    /// As [`RawServer::transport`], of which the requests are to time out.
    pub(super) fn hasty(&self) -> Transport {
        self.transport_with(&Requests { timeout: HASTE, ..requests() }, MEMORY)
    }

    fn transport_with(&self, requests: &Requests, memory_limit: usize) -> Transport {
        let tls = tls_config([self.authority.der().clone()]).unwrap();
        let names = super::dns::lookup(&[("localhost", &["127.0.0.1"])]);
        let bounds = bounds(memory_limit);
        Transport::with(requests, &egress(), memory_limit, bounds, tls, names).unwrap()
    }

    pub(super) async fn outcome(&self, transport: &Transport) -> Exchange {
        transport.send(&attempt(endpoint(&self.url))).await
    }
}

async fn serve(
    mut stream: TlsStream<TcpStream>,
    connection: usize,
    manner: &Manner,
    requests: &AtomicUsize,
    written: &AtomicUsize,
) -> std::io::Result<()> {
    stream.write_all(&frame(4, 0, 0, &[])).await?;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    let mut request = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await?;
        if kind == 4 && flags & 1 == 0 {
            stream.write_all(&frame(4, 1, 0, &[])).await?;
        }
        // The request's end.
        if kind > 1 || flags & 1 == 0 {
            continue;
        }
        requests.fetch_add(1, Relaxed);
        match manner(connection, request, u32::from_be_bytes(id)) {
            Say::Frames(frames) => stream.write_all(&frames).await?,
            Say::Close => return Ok(()),
            Say::Forever(frames) => loop {
                stream.write_all(&frames).await?;
                written.fetch_add(frames.len(), Relaxed);
            },
        }
        request += 1;
    }
}

#[tokio::test]
async fn http2_answer_with_many_and_large_headers_counts() {
    for bytes in [17_000, 40_000, 49_000] {
        let server = RawServer::start(move |_, _, stream| {
            let block = [&[0x88][..], &fields(bytes)].concat();
            let mut pieces = block.chunks(16_000).enumerate().peekable();
            let mut frames = Vec::new();
            while let Some((n, piece)) = pieces.next() {
                let end = if pieces.peek().is_none() { 4 } else { 0 };
                let (kind, end_stream) = if n == 0 { (1, 1) } else { (9, 0) };
                frames.extend(frame(kind, end | end_stream, stream, piece));
            }
            Say::Frames(frames)
        })
        .await;
        let outcome = server.outcome(&server.transport()).await;
        assert!(outcome.delivered(), "{bytes}: {outcome:?}");
    }
}
