//! The kit's receiver, which enters into the books what it takes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use walhook_testkit::change::Change;
use walhook_testkit::oracle::Receipt;
use walhook_testkit::receiver::{Hook, Receiver, Settings};

use crate::books::Books;

/// Serves one address, and may refuse connections; an account's endpoint is its path, `/<account>`.
///
/// # Errors
/// When there is no port.
pub async fn start(books: Arc<Books>) -> Result<Receiver> {
    let enter: Hook = Arc::new(move |request| {
        if request.is_taken() {
            let account = request.path.get(1..).unwrap_or_default();
            let account = account.parse().context("no account's path")?;
            books.received(Receipt {
                endpoint: account,
                event_id: &request.id,
                change: Change::in_body(&request.body)?,
                body: &request.body,
                taken: true,
                replay: request.replay,
            });
        }
        Ok(())
    });
    let settings =
        Settings { keep: 0, on_request: Some(enter), may_refuse: true, ..Settings::default() };
    Receiver::start(SocketAddr::from(([127, 0, 0, 1], 0)), settings).await
}

/// The URL of an account's endpoint.
#[must_use]
pub fn url(receiver: &Receiver, account: i64) -> String {
    receiver.url(&format!("/{account}"))
}
