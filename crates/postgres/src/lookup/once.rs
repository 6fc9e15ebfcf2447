//! One statement for a batch of accounts, and what its rows tell.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::Arc;

use futures_util::TryStreamExt;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::statement::{Accounts, FEW};
use super::{Fetched, LookupError, Lookups, Plan, row, shape};
use walhook_core::endpoint::{COSTLY_BYTES, Endpoint, Routes, Share};
use walhook_core::event::{AccountId, EndpointId, ID_MAX_BYTES};

/// What one statement told.
pub(super) struct Once {
    pub(super) fetched: Fetched,
    pub(super) too_much: Option<TooMuch>,
}

/// The answer holds more than it may.
pub(super) struct TooMuch;

/// What one statement told of one account.
#[derive(Clone, Default)]
struct Found {
    endpoints: Vec<Endpoint>,
    share: Share,
    bytes_read: usize,
}

impl Found {
    fn routes(self) -> Routes {
        let is_costly = self.endpoints.len() > FEW || self.bytes_read >= COSTLY_BYTES;
        let routes = Routes::new(unique(self.endpoints), self.share);
        if is_costly { routes.costly() } else { routes }
    }
}

impl Lookups {
    /// Makes one statement. What holds too much is told; of one account it is made less.
    pub(super) async fn once(
        &self,
        client: &Client,
        plan: &Plan,
        accounts: &[AccountId],
        form: Accounts,
    ) -> Result<Once, LookupError> {
        let types = &plan.types;
        let fits = |account: &&AccountId| account.len() <= ID_MAX_BYTES;
        let short = || accounts.iter().map(|account| Some(account).filter(fits));
        let in_endpoints: Vec<Option<Cow<'_, str>>> =
            short().map(|account| types.account.value(account?)).collect();
        let in_accounts: Vec<Option<Cow<'_, str>>> =
            short().map(|account| types.weighed.as_ref()?.value(account?)).collect();
        let (sql, params): (_, [(&(dyn ToSql + Sync), Type); 2]) =
            match (&in_endpoints[..], &in_accounts[..]) {
                ([in_endpoints], [in_accounts]) if form == Accounts::One => {
                    (&plan.one, [(in_endpoints, Type::TEXT), (in_accounts, Type::TEXT)])
                }
                _ => {
                    let all = [
                        (&in_endpoints as _, Type::TEXT_ARRAY),
                        (&in_accounts as _, Type::TEXT_ARRAY),
                    ];
                    let few = plan.few.as_ref().filter(|_| form == Accounts::Few);
                    let many = if form == Accounts::Fenced { &plan.fenced } else { &plan.batch };
                    (few.unwrap_or(many), all)
                }
            };
        let mut rows = pin!(client.query_typed_raw(sql, params).await?);
        let mut found = vec![Found::default(); accounts.len()];
        let mut fetched = Fetched::default();
        while let Some(row) = rows.try_next().await? {
            if fetched.snapshot.is_empty() {
                let oids = [row.try_get(1)?, row.try_get(2)?, row.try_get::<_, Option<u32>>(3)?];
                let unweighted = plan.unweighted.is_none();
                let weighed = types.weighed.as_ref().map(|t| t.oid).filter(|_| !unweighted);
                if oids != [Some(types.account.oid), Some(types.id.oid), weighed] {
                    return Err(LookupError::TypeChanged);
                }
                fetched.snapshot = row.try_get(0)?;
            }
            // Null when there was no account to ask for.
            let Some(at) = row.try_get::<_, Option<i64>>(4)? else { continue };
            let at = usize::try_from(at).ok().and_then(|at| at.checked_sub(1));
            let (account, Found { endpoints, share, bytes_read }) =
                at.and_then(|at| accounts.get(at).zip(found.get_mut(at))).ok_or_else(|| {
                    shape("the statement answers for an account that was not asked for")
                })?;
            if endpoints.is_empty() {
                *share = self.share(account, row.try_get(6)?, row.try_get(7)?);
            }
            if row.try_get::<_, Option<bool>>(5)?.is_none() {
                continue;
            }
            let text = row::RowText::of(&row, 8)?;
            *bytes_read += text.bytes();
            let endpoint = row::read(&text, account, &self.prefix);
            fetched.bytes += endpoint.size_bytes();
            if fetched.bytes > self.max_bytes {
                if form != Accounts::One {
                    return Ok(Once { fetched: Fetched::default(), too_much: Some(TooMuch) });
                }
                fetched.routes = vec![(account.clone(), Routes::too_large(*share))];
                return Ok(Once { fetched, too_much: None });
            }
            endpoints.push(endpoint);
        }
        if fetched.snapshot.is_empty() {
            return Err(shape("the statement yields no row"));
        }
        for (account, found) in accounts.iter().cloned().zip(found) {
            if form == Accounts::Few && found.endpoints.len() > FEW {
                fetched.costly.push(account);
            } else {
                fetched.routes.push((account, found.routes()));
            }
        }
        Ok(Once { fetched, too_much: None })
    }
}

/// Endpoints by their ids: rows that are alike count once, and of several others with one id none can be
/// told from the rest.
pub(super) fn unique(endpoints: Vec<Endpoint>) -> Vec<Arc<Endpoint>> {
    if endpoints.len() < 2 {
        return endpoints.into_iter().map(Arc::new).collect();
    }
    let mut by_id: HashMap<EndpointId, Endpoint> = HashMap::with_capacity(endpoints.len());
    for endpoint in endpoints {
        match by_id.entry(endpoint.id.clone()) {
            Entry::Vacant(entry) => _ = entry.insert(endpoint),
            Entry::Occupied(mut entry) if *entry.get() != endpoint => {
                let both = entry.get_mut();
                both.enabled |= endpoint.enabled;
                both.event_types.extend(endpoint.event_types);
                both.event_types.sort();
                both.event_types.dedup();
                both.invalid.get_or_insert_with(|| "several rows have this id".to_owned());
            }
            Entry::Occupied(_) => {}
        }
    }
    by_id.into_values().map(Arc::new).collect()
}
