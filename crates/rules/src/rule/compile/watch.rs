//! The tables whose changes outdate routes: that of the endpoints, and those beside it.

use super::Check;
use crate::rule::{RuleSettings, Watch};
use walhook_core::catalog::Catalog;

impl Check<'_> {
    pub(super) fn watch(&mut self, settings: RuleSettings<'_>, catalog: &Catalog) -> Watch {
        let endpoints = settings.endpoints;
        let table = self.table(&endpoints.table, catalog);
        for (key, column) in [
            ("id", Some(&endpoints.id)),
            ("account", Some(&endpoints.account)),
            ("url", Some(&endpoints.url)),
            ("event_types", Some(&endpoints.event_types)),
            ("secret", Some(&endpoints.secret)),
            ("enabled", Some(&endpoints.enabled)),
            ("headers", endpoints.headers.as_ref()),
            ("max_in_flight", endpoints.max_in_flight.as_ref()),
            ("rate_per_second", endpoints.rate_per_second.as_ref()),
        ] {
            if let Some((column, table)) = column.zip(table) {
                self.column(key, column, table);
            }
        }
        // None is 0.
        let endpoint_table = table.map_or(0, |table| table.oid);
        let mut others = Vec::new();
        for name in settings.watched() {
            let Some(watched) = self.table(name, catalog) else { continue };
            if watched.is_view {
                self.fail(format!(
                    "{watched} is a view, which has no changes; name the published tables behind \
                     it in endpoints.watch"
                ));
            }
            if watched.oid != endpoint_table {
                others.push(watched.oid);
            }
        }
        let (id, account) = (endpoints.id.clone(), endpoints.account.clone());
        let enabled = endpoints.enabled.clone();
        let has_several_texts = false; // Until all rules are known.
        Watch { endpoint_table, id, account, enabled, has_several_texts, others, lacks: false }
    }
}
