//! Rules that compare a column of an enum with what is none of its labels: they were renamed, or mistyped.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::config::Config;
use walhook_postgres::catalog;
use walhook_postgres::error::SourceError;
use walhook_rules::rule::{self, RuleError};

/// So many labels are told.
const MAX_LISTED: usize = 20;

/// The comparisons that never match, with the labels that there are.
///
/// # Errors
/// When the catalog cannot be read.
pub(crate) async fn unknown(
    config: &Config,
    client: &Client,
) -> Result<Vec<RuleError>, SourceError> {
    let settings = config.rules();
    let compared = rule::labels(settings, &catalog::load(client, settings.tables()).await?);
    let types: BTreeSet<u32> = compared.iter().map(|label| label.type_oid).collect();
    if types.is_empty() {
        return Ok(Vec::new());
    }
    let known = catalog::enum_labels(client, &Vec::from_iter(types)).await?;
    let mut found = Vec::new();
    for rule::Label { subject, place, type_oid, text } in compared {
        let Some(labels) = known.get(&type_oid).filter(|labels| !labels.contains(&text)) else {
            continue;
        };
        let shown: Vec<&str> = labels.iter().take(MAX_LISTED).map(String::as_str).collect();
        let more = if labels.len() > MAX_LISTED { ", ..." } else { "" };
        let message = format!(
            "{place} is compared with {text:?}, which is no label of its enum; it has {}{more}",
            shown.join(", ")
        );
        found.push(RuleError { subject, message });
    }
    found.dedup();
    Ok(found)
}
