//! The publication: dropped where walhook made it, and neither another pipeline nor a slot that stays reads it.

use anyhow::Result;
use tokio_postgres::Client;

use crate::config::Config;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::publication_mark::{self, Mark};
use walhook_postgres::source;

/// What of the publication.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Publication {
    /// It is not there, or not ours.
    #[default]
    Untouched,
    /// Others read it: this mark, without us.
    Marked(Mark),
    /// All of it.
    Dropped,
}

impl Publication {
    /// What of it goes.
    pub(super) fn describe(&self, config: &Config) -> Option<String> {
        let (name, pipeline) = (&config.source.publication, &config.source.slot);
        match self {
            Self::Untouched => None,
            Self::Marked(_) => {
                Some(format!("note on the publication {name} that {pipeline} reads it"))
            }
            Self::Dropped => Some(format!("publication {name}")),
        }
    }

    /// The statement that does so.
    pub(super) fn to_sql(&self, name: &str) -> Option<String> {
        match self {
            Self::Untouched => None,
            Self::Marked(mark) => Some(mark.to_sql(name)),
            Self::Dropped => Some(format!("DROP PUBLICATION {}", quote_ident(name))),
        }
    }
}

/// What is to become of the publication; where it stays, `kept` says why. `reader` says who may still read it under
/// our name.
pub(super) async fn find(
    config: &Config,
    source: &Client,
    reader: Option<String>,
    kept: &mut Vec<String>,
) -> Result<Publication> {
    let (name, pipeline) = (&config.source.publication, &config.source.slot);
    if source::publication_oid(source, name).await?.is_none() {
        return Ok(Publication::Untouched);
    }
    let Some(mut mark) = publication_mark::read(source, name).await? else {
        kept.push(format!(
            "the publication {name}: it does not say that walhook made it; if nobody reads it, \
             `DROP PUBLICATION {}`",
            quote_ident(name)
        ));
        return Ok(Publication::Untouched);
    };
    // Also the note that our name reads it: a pipeline of that name, whose state is elsewhere, needs it.
    if let Some(reader) = reader {
        let drop = format!("DROP PUBLICATION {}", quote_ident(name));
        kept.push(format!("the publication {name}: {reader}; only if nobody reads it, `{drop}`"));
        return Ok(Publication::Untouched);
    }
    let Some(others) = mark.others(pipeline) else { return Ok(Publication::Dropped) };
    kept.push(format!("the publication {name}, which it shares with {others}"));
    Ok(if mark.remove(pipeline) { Publication::Marked(mark) } else { Publication::Untouched })
}
