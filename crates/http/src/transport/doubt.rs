//! Whether what came over HTTP/1 is the answer to the request that was sent there.
//!
//! Nothing in it says so. What a receiver sends behind an answer, a second answer or a few bytes, is read as the answer
//! to the next request, and every answer after it as that to the request behind its own.
//!
//! ```text
//! comes within REST of the answer ─► is seen before another account's request is sent (pool.rs)
//! comes later, and is seen ────────► the accounts part: that of the connection, or all of the host where it had several;
//!                                    whatever is answered on such connections then counts for nobody
//! is a 410, or no answer ──────────► counts for nobody on a connection that had several accounts
//! ```

use std::sync::Arc;

use walhook_core::attempt::{FailureKind, Meaning};
use walhook_core::event::AccountId;

use super::apart::Apart;
use super::error::failure;
use super::guard::Known;
use super::pool::Host;
use crate::exchange::{Answer, Failure};

/// A request on an HTTP/1 connection.
#[derive(Debug)]
pub(super) struct Doubt<'a> {
    pub(super) apart: &'a Apart,
    pub(super) host: &'a Arc<Host>,
    pub(super) account: &'a AccountId,
    pub(super) known: &'a Known,
}

impl Doubt<'_> {
    /// What the answer counts for.
    pub(super) fn answer(&self, answer: Answer) -> Result<Answer, Failure> {
        note_surplus(self.apart, self.host, self.known);
        let users = self.known.users();
        if self.known.is_http2() || !users.are_several() {
            return Ok(answer);
        }
        if self.apart.are_all(self.host) {
            return Err(lost("more came than answers on a connection of several accounts"));
        }
        if answer.meaning() == Meaning::Gone {
            self.apart.put(self.host, self.account);
            return Err(lost("status 410 on a connection of several accounts"));
        }
        Ok(answer)
    }

    /// What it counts for that there is none.
    pub(super) fn no_answer(&self, why: Failure) -> Failure {
        note_surplus(self.apart, self.host, self.known);
        if !self.known.users().are_several() {
            return why;
        }
        self.apart.put(self.host, self.account);
        lost(&format!("no answer on a connection of several accounts: {}", why.detail))
    }
}

/// Has those part whose requests were on a connection where more came than their answers. Where they are several,
/// nobody knows by whose fault; on a connection of its own that is seen.
pub(super) fn note_surplus(apart: &Apart, host: &Arc<Host>, known: &Known) {
    if !known.has_surplus() {
        return;
    }
    match known.users().last() {
        _ if known.users().are_several() => apart.put_all(host),
        Some(account) => apart.put(host, &account),
        None => {}
    }
}

fn lost(what: &str) -> Failure {
    let detail = format!(
        "{what}; it may not be the answer to this request, and the account has connections of its own there now"
    );
    failure(FailureKind::Lost, &detail)
}
