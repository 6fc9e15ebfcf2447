//! Name resolution for endpoints: a name that leads to a forbidden address is refused.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

use crate::engine::egress::{Policy, Refusal};

/// Resolves by the operating system, at each connection, and judges what came of it.
///
/// Of a name with public and private addresses only the public ones are connected to: the client
/// tries no others. A name without a permitted address is refused, with the first reason.
#[derive(Debug, Clone)]
pub(super) struct GuardedResolver {
    policy: Arc<Policy>,
}

/// What the transport looks for among an error's causes.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    /// The name leads to no permitted address.
    #[error("{0}")]
    Forbidden(Refusal),
    /// The name does not resolve.
    #[error("the name does not resolve: {0}")]
    Dns(#[source] std::io::Error),
    /// It resolves to nothing.
    #[error("the name resolves to no address")]
    Nothing,
}

impl GuardedResolver {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        Self { policy }
    }

    async fn resolve_name(&self, name: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        let mut refusal = None;
        let mut permitted = Vec::new();
        for address in lookup_host((name, 0)).await.map_err(ResolveError::Dns)? {
            match self.policy.check_address(address.ip()) {
                Ok(()) => permitted.push(address),
                Err(refused) => refusal = refusal.or(Some(refused)),
            }
        }
        match refusal {
            _ if !permitted.is_empty() => Ok(permitted),
            Some(refusal) => Err(ResolveError::Forbidden(refusal)),
            None => Err(ResolveError::Nothing),
        }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let addresses = resolver.resolve_name(name.as_str()).await?;
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}
