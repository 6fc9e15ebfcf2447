//! A real nginx, which closes each connection after so many requests.

use std::path::Path;

use rcgen::KeyPair;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::tls::{authority, params, trusting};
use super::*;

/// Where `scripts/prerequisites nginx` finds or puts it.
const BINARIES: [&str; 3] =
    ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/var/cache/walhook/nginx/usr/sbin/nginx"];

struct Nginx {
    url: String,
    authority: rcgen::CertifiedIssuer<'static, KeyPair>,
    _process: Child,
    _dir: TempDir,
}

/// A port that nobody listens on, and that the system gives to nobody who asks it for one before nginx is there: below
/// those.
fn free_port() -> u16 {
    let first = 5_000 + u16::try_from(std::process::id() % 4_000).unwrap();
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (first..10_000).find(is_free).unwrap()
}

impl Nginx {
    /// One process of our own, in a directory and at a port of its own.
    async fn start(settings: &str) -> Self {
        let binary = BINARIES.into_iter().find(|path| Path::new(path).exists());
        let binary = binary.expect("nginx is missing: run `sh scripts/prerequisites nginx`");
        let dir = TempDir::new().unwrap();
        let authority = authority();
        let key = KeyPair::generate().unwrap();
        let certificate = params("localhost").signed_by(&key, &authority).unwrap();
        std::fs::write(dir.path().join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        let (at, port) = (dir.path().display(), free_port());
        let conf = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
            events {{ worker_connections 512; }}
            http {{
                access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
                fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi;
                scgi_temp_path {at}/scgi; {settings}
                server {{
                    listen 127.0.0.1:{port} ssl http2; server_name localhost;
                    ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;
                    location / {{ return 200 \"ok\"; }}
                }}
            }}"
        );
        std::fs::write(dir.path().join("nginx.conf"), conf).unwrap();
        let mut process = Command::new(binary)
            .args(["-p", &at.to_string(), "-c", "nginx.conf", "-e", "error.log"])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Some(status) = process.try_wait().unwrap() {
                let log = std::fs::read_to_string(dir.path().join("error.log"));
                panic!("nginx ended, {status}: {}", log.unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let url = format!("https://localhost:{port}/");
        Self { url, authority, _process: process, _dir: dir }
    }

    /// Sends so many requests, 32 at once. Returns how often one was sent again.
    async fn send(&self, requests: usize) -> u32 {
        let transport = trusting(&self.authority);
        let mut under_way = JoinSet::new();
        let (mut sent, mut resends) = (0, 0);
        loop {
            while sent < requests && under_way.len() < 32 {
                let (transport, attempt) = (transport.clone(), attempt(endpoint(&self.url)));
                under_way.spawn(async move { transport.send(&attempt).await });
                sent += 1;
            }
            let Some(ended) = under_way.join_next().await else { return resends };
            let outcome = ended.unwrap();
            assert!(outcome.delivered(), "{outcome:?}");
            resends += outcome.resends;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_40_nginx_that_closes_each_connection_after_some_requests_fails_none() {
    for (settings, requests) in [("", 4_000), ("keepalive_requests 100;", 2_000)] {
        let nginx = Nginx::start(settings).await;
        let resends = nginx.send(requests).await;
        println!("{settings:?}: {requests} requests, {resends} sent again");
        let connections = if settings.is_empty() { 4 } else { 20 };
        assert!(resends <= connections * 2 * 32, "{settings:?}: {resends}");
    }
}
