//! A server for a test, and sessions with it.

use crate::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_core::endpoint::Secret;
use walhook_testkit::cluster::Cluster;

pub(crate) async fn cluster() -> Cluster {
    Cluster::start_copied(&std::env::temp_dir(), &[]).await.unwrap()
}

pub(crate) fn url(cluster: &Cluster) -> Secret {
    Secret::new(cluster.url("postgres"))
}

/// A session that searches for names as a server's own sessions do.
pub(crate) async fn session(cluster: &Cluster) -> Connection {
    Connection::open_with_path(&url(cluster), "test", SERVER_SEARCH_PATH).await.unwrap()
}

pub(crate) async fn start() -> (Cluster, Connection) {
    let cluster = cluster().await;
    let session = session(&cluster).await;
    (cluster, session)
}
