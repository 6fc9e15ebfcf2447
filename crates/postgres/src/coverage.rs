//! What the publication covered of the tables that the configuration needs, at one moment; and what was
//! lost between two such looks.
//!
//! A change that is committed while its table is not published, or makes no WAL, is never in the stream.
//! When all is in order again nothing tells of it but traces in the catalog: a row of
//! `pg_publication_rel` that was removed and made again has another OID, an altered row of
//! `pg_publication` another xmin, and so on. So each look is kept, and compared with the next.
//! ADR 0018 says what each trace shows, and where there is none.

mod moved;
mod query;

pub use moved::moved;
pub use query::{Looked, Seen, add, look};

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use walhook_core::lsn::Lsn;

/// A moment: what was committed before it stands before `lsn`, and was written by a transaction that had
/// ended or had a lower id than `xid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Where the WAL ended.
    pub lsn: Lsn,
    /// A 64-bit transaction id.
    pub xid: u64,
}

/// One look at the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Which cluster, of which version: in another, also after pg_upgrade, no id means the same.
    pub cluster: String,
    /// The publication.
    pub publication: Publication,
    /// The tables that the configuration names and those below them, by OID.
    pub tables: BTreeMap<u32, Covered>,
}

/// The row of `pg_publication`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Its OID: another one when it was made anew.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its owner's OID.
    pub owner: u32,
    /// Its xmin: another one whenever the row was altered.
    pub version: String,
    /// The xmin of the row of `pg_shdepend` that holds the owner, where there is one.
    pub owned_since: Option<String>,
    /// Its options, as they stand.
    pub options: BTreeMap<String, String>,
    /// How often rows of `pg_publication` were altered, as far as the statistics know.
    pub alterations: i64,
    /// The OIDs of its rows in `pg_publication_namespace`.
    pub schemas: BTreeSet<u32>,
    /// Where it took the place of another: what was written before cannot be read under it.
    #[serde(default)]
    pub since: Option<Lsn>,
}

/// How a table belongs to the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The configuration names it.
    Named,
    /// A partition of such a one, at any depth.
    Partition,
    /// It inherits from such a one, at any depth.
    Child,
}

/// Why the changes of a table are not in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lack {
    /// It is not in the publication.
    Unpublished,
    /// Nor may it be, for without a replica identity its own UPDATE and DELETE would fail.
    Identityless,
    /// The publication has a row filter for it.
    Filtered,
    /// It makes no WAL.
    Unlogged,
    /// Its rows are on another server.
    Foreign,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// As SQL writes it.
    pub name: String,
    /// How it belongs to the configuration.
    pub kind: Kind,
    /// The tables that the configuration names and that it is or lies below, as SQL writes them.
    pub under: BTreeSet<String>,
    /// What makes it published: `*` for all tables, `t` and the OID of a row of `pg_publication_rel`,
    /// `s` and that of one of `pg_publication_namespace`, with the table that is in the schema and the
    /// xmin by which it is.
    pub by: BTreeSet<String>,
    /// Whether it has such a row of its own: then PostgreSQL refuses to make it unlogged.
    pub is_member: bool,
    /// Of a child: whether it has been published for as long as it is a child, so that nothing is
    /// missing, also when the look before did not know it.
    pub since_birth: bool,
    /// Whether it was made as what it is to those above it, and so was empty then.
    #[serde(default)]
    pub below_since_birth: bool,
    /// The OID of its TOAST table, or 0: another one when the table was made unlogged or logged, or was
    /// rewritten by another ALTER TABLE; VACUUM FULL, CLUSTER and TRUNCATE keep it.
    pub toast: u32,
    /// Its file: a new one after each of these. All there is where there is no TOAST table.
    pub file: u32,
    /// What else a rewriting ALTER TABLE changes: types of columns, tablespace, access method.
    pub shape: String,
    /// Why its changes are not in the stream now.
    pub lack: Option<Lack>,
    /// Of one that lacks something: the last look when it did not, or was not there.
    pub lacking_since: Option<Moment>,
}

impl Covered {
    /// Whether both looks may have seen different files because it was unlogged in between.
    fn was_rewritten(&self, then: &Self) -> bool {
        if self.is_member && then.is_member || self.shape != then.shape {
            return false;
        }
        if self.toast != 0 && then.toast != 0 {
            return self.toast != then.toast;
        }
        self.file != then.file
    }

    /// The table and what it is to others, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let under: Vec<&str> = self.under.iter().map(String::as_str).collect();
        match self.kind {
            Kind::Named => self.name.clone(),
            Kind::Partition => format!("{} (a partition of {})", self.name, under.join(" and ")),
            Kind::Child => format!("{} (a child of {})", self.name, under.join(" and ")),
        }
    }
}

impl Lack {
    /// What is wrong with `table`, and the fix.
    #[must_use]
    pub fn describe(self, table: &Covered, publication: &str) -> String {
        let (what, name) = (table.describe(), &table.name);
        match self {
            Self::Unpublished => format!(
                "{what} is not in the publication {publication}: its changes are not sent; ALTER \
                 PUBLICATION {publication} ADD TABLE ONLY {name}, as the owner of both, or make the \
                 publication's owner and the table's a role that walhook's is a member of"
            ),
            Self::Identityless => format!(
                "{what} has no replica identity that can be published, and is not in the publication {publication} because its \
                 own UPDATE and DELETE would fail then: its changes are not sent; give it a primary key that is not deferrable \
                 and REPLICA IDENTITY DEFAULT, or, where it has no virtual generated column, ALTER TABLE \
                 {name} REPLICA IDENTITY FULL"
            ),
            Self::Filtered => format!(
                "{what} has a row filter in the publication {publication}, which hides changes: publish \
                 it again without WHERE"
            ),
            Self::Unlogged => format!(
                "{what} is unlogged, so that its changes are in no WAL and are not sent; ALTER TABLE \
                 {name} SET LOGGED"
            ),
            Self::Foreign => format!(
                "{what} is a foreign table: its changes are in another server's WAL and are not sent; \
                 run a walhook there, or keep its rows in a table here"
            ),
        }
    }
}

/// What may be missing of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The table, as SQL writes it.
    pub table: String,
    /// The tables that the configuration names and that it is or lies below, as SQL writes them.
    pub under: BTreeSet<String>,
    /// Since when.
    pub from: Moment,
    /// Until when.
    pub to: Moment,
    /// What happened, in words.
    pub reason: String,
    /// The query that finds the rows, where they can be found.
    pub find: Option<String>,
}

impl Loss {
    fn new(of: &Covered, from: Moment, to: Moment, reason: String) -> Self {
        let table = &of.name;
        // Transaction ids are 32 bits in the rows, and wrap.
        let find = format!(
            "SELECT * FROM {table} WHERE (xmin::text::bigint - {} + 4294967296) % 4294967296 < {}",
            from.xid % (1 << 32),
            to.xid.saturating_sub(from.xid)
        );
        let under = of.under.clone();
        Self { table: table.clone(), under, from, to, reason, find: Some(find) }
    }
}

/// What may have been lost between the look `then`, which was at `from` or later, and `now`, which was
/// before `to`. Takes over into `now` since when a table lacks something.
///
/// Compares only tables that both need, and no more of the publication than they do.
pub fn compare(then: &Coverage, now: &mut Coverage, from: Moment, to: Moment) -> Vec<Loss> {
    // A copy of the cluster from before the look tells nothing of it either.
    if then.cluster != now.cluster || to.lsn < from.lsn {
        begin(now, to);
        return Vec::new();
    }
    let is_same = then.publication.oid == now.publication.oid;
    now.publication.since = if is_same { then.publication.since } else { Some(to.lsn) };
    let mut losses = Vec::new();
    let mut told: BTreeSet<&str> = BTreeSet::new();
    let altered = altered(&then.publication, &now.publication);
    // Of the tables that the configuration names, those that it named then too.
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for (oid, table) in now.tables.iter().filter(|(_, table)| table.kind == Kind::Named) {
        let same = then.tables.get(oid).filter(|old| old.kind == Kind::Named);
        let by_name =
            || then.tables.values().find(|old| old.kind == Kind::Named && old.name == table.name);
        let Some(old) = same.or_else(by_name) else { continue };
        known.insert(&table.name);
        let name = &table.name;
        let reason = if same.is_none() {
            format!(
                "{name} is another table than before: it was dropped and created again, or another was \
                 renamed into its place"
            )
        } else if let Some(altered) = &altered {
            format!("{altered}; concerns {name}")
        } else {
            let Some(reason) = interrupted(old, table, &now.publication.name) else { continue };
            reason
        };
        told.insert(name);
        losses.push(Loss::new(table, from, to, reason));
    }
    let concerns = |table: &Covered| {
        table.under.iter().any(|name| known.contains(name.as_str()))
            && !table.under.iter().any(|name| told.contains(name.as_str()))
    };
    let mut since = BTreeMap::new();
    for (oid, table) in now.tables.iter().filter(|(_, table)| table.kind != Kind::Named) {
        let old = then.tables.get(oid);
        if table.lack.is_some() {
            since.insert(*oid, old.and_then(|old| old.lacking_since).unwrap_or(from));
        } else if concerns(table) {
            let lacked = old.and_then(|old| old.lack.zip(old.lacking_since));
            let publication = &now.publication;
            let loss = match (old, lacked) {
                (_, Some((Lack::Foreign, _))) => None,
                (_, Some((lack, since))) => Some((
                    since,
                    format!("{} until now, {}", table.describe(), lack.past(&publication.name)),
                )),
                (Some(old), None) => {
                    interrupted(old, table, &publication.name).map(|reason| (from, reason))
                }
                (None, None) => arrived(table, &then.publication, publication).map(|r| (from, r)),
            };
            losses.extend(loss.map(|(from, reason)| Loss::new(table, from, to, reason)));
        }
    }
    for (oid, old) in then.tables.iter().filter(|(oid, _)| !now.tables.contains_key(oid)) {
        let Some((lack, since)) = old.lack.zip(old.lacking_since) else { continue };
        debug_assert!(old.kind != Kind::Named, "{oid} was named and lacked something");
        if concerns(old) && lack != Lack::Foreign {
            let reason = format!(
                "{} was dropped or detached, and until then {}",
                old.describe(),
                lack.past(&now.publication.name)
            );
            losses.push(Loss { find: None, ..Loss::new(old, since, to, reason) });
        }
    }
    for (oid, moment) in since {
        if let Some(table) = now.tables.get_mut(&oid) {
            table.lacking_since = Some(moment);
        }
    }
    losses
}

/// The first look: what lacks something does so from here on.
pub fn begin(now: &mut Coverage, at: Moment) {
    for table in now.tables.values_mut().filter(|table| table.lack.is_some()) {
        table.lacking_since = Some(at);
    }
}

impl Lack {
    /// What was so, in words that follow "until then".
    fn past(self, publication: &str) -> String {
        match self {
            Self::Unpublished | Self::Identityless => {
                format!("was not in the publication {publication}")
            }
            Self::Filtered => format!("had a row filter in the publication {publication}"),
            Self::Unlogged => "was unlogged".to_owned(),
            Self::Foreign => "was a foreign table".to_owned(),
        }
    }
}

/// What happened to the publication as a whole, where that may have cost changes.
fn altered(then: &Publication, now: &Publication) -> Option<String> {
    if then.oid != now.oid && then.name != now.name {
        return Some(format!(
            "source.publication names {} now, where it named {}: what was committed before the new one held a \
             table is not sent, and where it held it from before the change on, nothing is missing",
            now.name, then.name
        ));
    }
    if then.oid != now.oid {
        return Some(format!(
            "the publication {} is another than before: it was dropped and created again, or another \
             was renamed into its place",
            now.name
        ));
    }
    if then.version == now.version {
        return None;
    }
    // An alteration that shows explains one; the statistics may know of more.
    let differing =
        then.options.iter().filter(|(name, value)| now.options.get(*name) != Some(value));
    let mut shown = i64::try_from(differing.count()).unwrap_or(i64::MAX);
    shown += i64::from(then.name != now.name);
    if then.owner != now.owner {
        shown += 1;
    } else if now.owned_since.as_deref() == Some(now.version.as_str()) {
        // To another owner and back.
        shown += 2;
    }
    if shown > 0 && now.alterations - then.alterations <= shown {
        return None;
    }
    Some(format!(
        "the publication {} was altered and put back between two looks: operations may have been \
         switched off",
        now.name
    ))
}

/// What happened to a table that is published in both looks, where that may have cost changes.
fn interrupted(then: &Covered, now: &Covered, publication: &str) -> Option<String> {
    if then.by.is_disjoint(&now.by) {
        return Some(format!(
            "{} was taken out of the publication {publication} and put back, or had another row filter \
             or column list",
            now.describe()
        ));
    }
    now.was_rewritten(then).then(|| {
        let or =
            if now.toast != 0 && then.toast != 0 { "" } else { ", or only rewritten or emptied" };
        format!("{} may have been unlogged for a time{or}", now.describe())
    })
}

/// Why a table that the look before did not know may have had rows before it was published.
fn arrived(table: &Covered, then: &Publication, now: &Publication) -> Option<String> {
    let in_schema = |by: &str| {
        let row = by.strip_prefix('s').and_then(|by| by.split(':').next());
        row.and_then(|oid| oid.parse().ok()).is_some_and(|oid| then.schemas.contains(&oid))
    };
    let from_birth = table.kind == Kind::Partition
        || table.by.contains("*")
        || table.since_birth && (table.is_member || table.by.iter().any(|by| in_schema(by)));
    (!from_birth).then(|| {
        format!("{} is new, and was not in the publication {} at first", table.describe(), now.name)
    })
}

#[cfg(test)]
mod tests;
