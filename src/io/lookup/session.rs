//! The session in which the customer's tables and views are read.

use crate::config::Config;
use crate::io::sql::{ConnectError, Connection};

/// Opens a session for look-ups. It alone has the path that `endpoints.search_path` names, for
/// functions behind a view that rely on one; statements of ours are safe under any.
///
/// # Errors
/// [`ConnectError`]
pub async fn connect(config: &Config, application_name: &str) -> Result<Connection, ConnectError> {
    let (url, path) = (&config.source.url, &config.endpoints.search_path);
    Connection::open_with_path(url, application_name, path).await
}
