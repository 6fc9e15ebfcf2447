//! The admin server: `/livez`, `/readyz`, `/leaderz`, `/troubles`, `/work`, `/events/<id>`, `/metrics`, over HTTP/1.
//!
//! It asks nobody: the pipeline leaves what it knows in a watch channel, so that a stuck pipeline
//! shows by the age of its last word rather than by a request that hangs. For `/work` it says that somebody wants
//! to know, and waits a second at most.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::{Health, Role};
use super::metrics::Metrics;
use super::stop::Fatal;
use super::trouble::Part;
use super::work::Shown;
use walhook_core::position::EventId;
use walhook_process::faults::{self, Fault};

mod listener;

#[derive(Debug, Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    health: watch::Receiver<Health>,
    work: Shown,
}

/// Takes the address, so that a start fails early when another process has it.
///
/// # Errors
/// Names the address and the key of the configuration.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, Fatal> {
    TcpListener::bind(listen).await.map_err(|source| Fatal::Listen { listen, source })
}

/// Serves until `shutdown` is cancelled, then ends within a second.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: watch::Receiver<Health>,
    work: Shown,
    shutdown: CancellationToken,
) {
    let router = Router::new()
        .route("/livez", get(async || text(StatusCode::OK, "alive")))
        .route("/readyz", get(readyz))
        .route("/leaderz", get(leaderz))
        .route("/troubles", get(troubles))
        .route("/work", get(work_of_leader))
        .route("/events/{id}", get(event_of_leader))
        .route("/metrics", get(render))
        .with_state(Shared { metrics, health, work });
    listener::serve(listener, router, shutdown).await;
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let ready = shared.health.borrow().readiness(Instant::now());
    match with_faults(ready, faults::lasting()) {
        Ok(lines) => text(StatusCode::OK, &lines),
        Err(reasons) => text(StatusCode::SERVICE_UNAVAILABLE, &reasons),
    }
}

/// Readiness with what the process has run out of. Ports are short for one address, and all others are
/// delivered to; without files or memory nobody is.
fn with_faults(ready: Result<(), String>, faults: Vec<(Fault, String)>) -> Result<String, String> {
    let is_ready = ready.is_ok() && faults.iter().all(|(fault, _)| *fault == Fault::Ports);
    let reason = ready.err().or_else(|| is_ready.then(|| "ready".to_owned()));
    let lines: Vec<String> =
        reason.into_iter().chain(faults.into_iter().map(|(_, line)| line)).collect();
    if is_ready { Ok(lines.join("\n")) } else { Err(lines.join("\n")) }
}

async fn leaderz(State(shared): State<Shared>) -> Response {
    match shared.health.borrow().role {
        Role::Leader => text(StatusCode::OK, "leader"),
        Role::Starting | Role::Standby | Role::Worker | Role::Halted(_) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "not the leader")
        }
    }
}

/// What fails now, as JSON, for `walhook status` on the same machine.
async fn troubles(State(shared): State<Shared>) -> Response {
    json(&shared.health.borrow().instance())
}

/// What the leader has to do now, as JSON, for `walhook status`.
async fn work_of_leader(State(shared): State<Shared>) -> Response {
    if shared.health.borrow().role != Role::Leader {
        return text(StatusCode::SERVICE_UNAVAILABLE, "not the leader");
    }
    match shared.work.ask().await {
        Some(work) => json(&*work),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "the dispatcher has not said anything yet"),
    }
}

/// Where an event's deliveries are in memory, as JSON, for `walhook events show`.
async fn event_of_leader(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    let id: EventId = match id.parse() {
        Ok(id) => id,
        Err(_) => return text(StatusCode::BAD_REQUEST, "that is no event's id"),
    };
    if shared.health.borrow().role != Role::Leader {
        return text(StatusCode::SERVICE_UNAVAILABLE, "not the leader");
    }
    match shared.work.find(id).await {
        Some(found) => json(&*found),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "the dispatcher does not say it in time"),
    }
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn render(State(shared): State<Shared>) -> Response {
    let now = Instant::now();
    {
        let health = shared.health.borrow();
        for part in Part::ALL {
            let trouble = health.troubles.get(&part);
            let age = trouble.map_or(Duration::ZERO, |trouble| now.duration_since(trouble.since));
            shared.metrics.set_failing(part, age);
        }
    }
    match shared.metrics.render() {
        Ok(body) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body)
            .into_response(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, body: &str) -> Response {
    (status, format!("{body}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    #[tokio::test]
    async fn admin_server_answers_by_the_instances_role() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new("walhook", ["a.b"]).unwrap());
        let (tell, health) = watch::channel(Health::default());
        let shutdown = CancellationToken::new();
        let mut server = tokio::task::JoinSet::new();
        server.spawn(serve(
            listener,
            Arc::clone(&metrics),
            health,
            Shown::default(),
            shutdown.clone(),
        ));

        let now = Some(Instant::now());
        for (role, ready, leader) in [
            (Role::Starting, 503, 503),
            (Role::Standby, 200, 503),
            (Role::Leader, 200, 200),
            (Role::Halted("the slot is lost".into()), 503, 503),
        ] {
            tell.send_replace(Health {
                role: role.clone(),
                stream_moving_at: now,
                checkpoint_written_at: now,
                ..Health::default()
            });
            assert_eq!(get(address, "/livez").await.0, 200, "{role:?}");
            assert_eq!(get(address, "/readyz").await.0, ready, "{role:?}");
            assert_eq!(get(address, "/leaderz").await.0, leader, "{role:?}");
        }
        assert_eq!(get(address, "/readyz").await.1, "halted: the slot is lost\n");
        assert_eq!(get(address, "/work").await.0, 503, "who does not lead has no work");
        metrics.changes.inc();
        let (status, body) = get(address, "/metrics").await;
        assert!(
            status == 200 && body.contains("\nwalhook_changes_total{pipeline=\"walhook\"} 1\n"),
            "{body}"
        );
        assert_eq!(get(address, "/else").await.0, 404);

        // A request that never comes to its end does not hold the shutdown up.
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
        shutdown.cancel();
        let end = tokio::time::timeout(Duration::from_secs(10), server.join_next()).await;
        end.expect("the server ends").unwrap().unwrap();
    }

    #[tokio::test]
    async fn admin_server_listens_on_every_interface_when_told_to() {
        let mut addresses = vec![("0.0.0.0:0", "127.0.0.1")];
        if std::path::Path::new("/proc/net/if_inet6").exists() {
            addresses.push(("[::]:0", "::1"));
        }
        for (listen, from) in addresses {
            let listener = bind(listen.parse().unwrap()).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let metrics = Arc::new(Metrics::new("walhook", []).unwrap());
            let (_tell, health) = watch::channel(Health::default());
            let mut server = tokio::task::JoinSet::new();
            let work = Shown::default();
            server.spawn(serve(listener, metrics, health, work, CancellationToken::new()));
            let address = SocketAddr::new(from.parse().unwrap(), port);
            assert_eq!(get(address, "/livez").await.0, 200, "{listen}");
        }
    }

    #[test]
    fn readiness_tells_what_the_process_has_run_out_of() {
        let files = || (Fault::Descriptors, "for 3 s: no file".to_owned());
        let ports = || (Fault::Ports, "for 1 s: no port".to_owned());
        assert_eq!(with_faults(Ok(()), vec![]), Ok("ready".into()));
        assert_eq!(with_faults(Ok(()), vec![ports()]), Ok("ready\nfor 1 s: no port".into()));
        let both = with_faults(Ok(()), vec![files(), ports()]);
        assert_eq!(both, Err("for 3 s: no file\nfor 1 s: no port".into()));
        let halted = with_faults(Err("halted: x".into()), vec![files()]);
        assert_eq!(halted, Err("halted: x\nfor 3 s: no file".into()));
    }

    #[tokio::test]
    async fn bind_names_the_address_and_the_key_when_it_is_taken() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("admin.listen"), "{error}");
    }
}
