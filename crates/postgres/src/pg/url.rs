//! A database URL: its text, or the file that holds it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::conninfo::{Conninfo, ConninfoError};
use walhook_core::endpoint::Secret;

/// A database URL. Of one that stands in a file, user and password are those that the file has at the
/// moment of a connection; all else is what it had when it was read first.
///
/// So a password that is rotated serves without a restart, and no session of a running process leads
/// elsewhere than the others.
#[derive(Clone)]
pub struct DatabaseUrl {
    text: Secret,
    file: Option<Arc<UrlFile>>,
}

#[derive(Debug)]
struct UrlFile {
    path: PathBuf,
    /// Whether the log has it that the file leads elsewhere by now.
    warned: AtomicBool,
}

/// What describes a connection.
pub trait AsDatabaseUrl: Sync {
    /// As a database URL.
    fn to_database_url(&self) -> DatabaseUrl;
}

impl AsDatabaseUrl for DatabaseUrl {
    fn to_database_url(&self) -> DatabaseUrl {
        self.clone()
    }
}

impl AsDatabaseUrl for Secret {
    fn to_database_url(&self) -> DatabaseUrl {
        DatabaseUrl::from(self.clone())
    }
}

impl From<Secret> for DatabaseUrl {
    fn from(text: Secret) -> Self {
        Self { text, file: None }
    }
}

impl DatabaseUrl {
    /// The URL that a file held when it was read.
    #[must_use]
    pub fn of_file(text: Secret, path: PathBuf) -> Self {
        let file = UrlFile { path, warned: AtomicBool::new(false) };
        Self { text, file: Some(Arc::new(file)) }
    }

    /// The text, which may hold a password: as it was when it was read first.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// Whether it stands in a file, which holds another URL by now than was read first.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let of_file = |file: &Arc<UrlFile>| read(&file.path).ok();
        let now = self.file.as_ref().and_then(of_file);
        now.is_some_and(|now| now.expose() != self.text.expose())
    }

    /// What a connection is made with now.
    pub(super) fn conninfo(
        &self,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Conninfo, ConninfoError> {
        let read_first = Conninfo::read(&self.text, environment)?;
        let Some(file) = &self.file else { return Ok(read_first) };
        let of_file = |problem: String| {
            ConninfoError::of_file(format!("in the file {} {problem}", file.path.display()))
        };
        let text = read(&file.path).map_err(&of_file)?;
        let now = Conninfo::read(&text, environment).map_err(|error| of_file(error.to_string()))?;
        let is_elsewhere = !now.leads_where(&read_first);
        if is_elsewhere && !file.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                file = %file.path.display(), uses = %read_first,
                "the file leads to another host or database than at the start: only its user and its \
                 password are used, until walhook is started again"
            );
        }
        if !is_elsewhere {
            file.warned.store(false, Ordering::Relaxed);
        }
        Ok(read_first.with_credentials_of(now, &file.path))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseUrl").field("file", &self.file).finish_non_exhaustive()
    }
}

/// The file without its trailing line break.
fn read(path: &Path) -> Result<Secret, String> {
    let content = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    match content.trim_end_matches(['\r', '\n']) {
        "" => Err("is missing: the file is empty".to_owned()),
        text => Ok(Secret::new(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_a_file_takes_user_and_password_anew_and_keeps_where_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        let first = "postgres://u:hush1@h:1/d?sslmode=disable";
        let url = DatabaseUrl::of_file(Secret::new(first), path.clone());
        let now = || url.conninfo(&|_| None);
        for (content, user, password) in [
            ("postgres://u:hush2@h:1/d?sslmode=disable\n", "u", "hush2"),
            ("postgres://v:hush3@h:1/d\r\n", "v", "hush3"),
            ("postgres://u:hush4@elsewhere:2/other", "u", "hush4"),
        ] {
            fs::write(&path, content).unwrap();
            let info = now().unwrap();
            assert_eq!(info.user(), user);
            assert_eq!(info.password.as_ref().map(|p| &*p.0), Some(password.as_bytes()));
            assert_eq!((info.hosts()[0].to_string(), info.database()), ("h:1".to_owned(), "d"));
            assert!(info.rereads_password());
        }
    }

    #[test]
    fn url_of_a_file_that_is_being_swapped_may_pass_and_shows_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        let url = DatabaseUrl::of_file(Secret::new("postgres://u:hush@h/d"), path.clone());
        let problem = || {
            let error = url.conninfo(&|_| None).unwrap_err();
            assert!(
                error.fixed_by().is_waiting() && !error.to_string().contains("hush"),
                "{error}"
            );
            error.to_string()
        };
        assert!(problem().contains("cannot be read: No such file"));
        for (content, says) in [
            ("", "the file is empty"),
            ("\n", "the file is empty"),
            ("postgres://u:hush", "port is not a port number"),
            ("hush", "is not a postgres:// URL"),
        ] {
            fs::write(&path, content).unwrap();
            let problem = problem();
            assert!(problem.contains(says) && problem.contains("url"), "{content:?}: {problem}");
        }
        assert!(!format!("{url:?}").contains("hush"));
    }
}
