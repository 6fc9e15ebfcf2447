//! Who made a publication, and which pipelines read it.
//!
//! No catalog tells either, and to drop a publication that somebody reads loses what they have not read yet. So `setup`
//! writes it down as the publication's comment: that goes with the publication, whoever drops it or makes another of its
//! name, and pipelines see it whose state is elsewhere.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::ident::{quote_ident, quote_literal};
use crate::op::EQ;

const MADE: &str = "made by walhook setup for ";

/// That walhook made a publication, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The names of the pipelines, which are those of their slots.
    pipelines: BTreeSet<String>,
}

impl Mark {
    /// Of a publication that is made for this pipeline.
    #[must_use]
    pub fn of(pipeline: &str) -> Self {
        Self { pipelines: BTreeSet::from([pipeline.to_owned()]) }
    }

    /// The pipelines beside this one, as a list for people; `None` where there are none.
    #[must_use]
    pub fn others(&self, pipeline: &str) -> Option<String> {
        let others: Vec<&str> =
            self.pipelines.iter().map(String::as_str).filter(|name| *name != pipeline).collect();
        (!others.is_empty()).then(|| others.join(", "))
    }

    /// Notes that this pipeline reads it too; whether that is news.
    pub fn add(&mut self, pipeline: &str) -> bool {
        self.pipelines.insert(pipeline.to_owned())
    }

    /// Notes that it does no longer; whether that is news.
    pub fn remove(&mut self, pipeline: &str) -> bool {
        self.pipelines.remove(pipeline)
    }

    /// The statement that writes it to the publication.
    #[must_use]
    pub fn to_sql(&self, publication: &str) -> String {
        let comment = quote_literal(&self.to_comment());
        format!("COMMENT ON PUBLICATION {} IS {comment}", quote_ident(publication))
    }

    fn to_comment(&self) -> String {
        let names: Vec<&str> = self.pipelines.iter().map(String::as_str).collect();
        format!("{MADE}{}", names.join(", "))
    }

    /// What anybody else has written is none.
    fn parse(comment: &str) -> Option<Self> {
        let names = comment.strip_prefix(MADE)?.split(", ");
        let pipelines: BTreeSet<String> =
            names.map(str::to_owned).filter(|name| !name.is_empty()).collect();
        (!pipelines.is_empty()).then_some(Self { pipelines })
    }
}

/// The publication's mark; `None` where walhook did not make it, or there is no such publication.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn read(
    client: &Client,
    publication: &str,
) -> Result<Option<Mark>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT pg_catalog.obj_description(oid, 'pg_publication')
         FROM pg_catalog.pg_publication WHERE pubname {EQ} $1"
    );
    let Some(row) = client.query_opt(&sql, &[&publication]).await? else { return Ok(None) };
    let comment: Option<String> = row.try_get(0)?;
    Ok(comment.as_deref().and_then(Mark::parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_read_as_it_was_written_and_what_others_wrote_is_none() {
        let mut mark = Mark::of("walhook");
        assert!(mark.others("walhook").is_none());
        assert!(mark.add("second") && !mark.add("second"));
        assert_eq!(Mark::parse(&mark.to_comment()), Some(mark.clone()));
        assert_eq!(mark.others("walhook").unwrap(), "second");
        assert_eq!(mark.others("third").unwrap(), "second, walhook");
        assert!(mark.remove("walhook") && !mark.remove("walhook"));
        assert_eq!(
            mark.to_sql("it's"),
            "COMMENT ON PUBLICATION \"it's\" IS 'made by walhook setup for second'"
        );
        for comment in ["", "of the warehouse", MADE, "made by walhook"] {
            assert_eq!(Mark::parse(comment), None, "{comment}");
        }
    }
}
