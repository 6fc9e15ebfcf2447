//! `.pgpass`: passwords by host, port, database and user.
//!
//! Source: PostgreSQL manual, "The Password File".

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::conninfo::{Conninfo, Host, Password, Place};

/// The directories of a server's socket that stand as `localhost` in the file.
const DEFAULT_SOCKET_DIRECTORIES: [&str; 3] = ["/tmp", "/var/run/postgresql", "/run/postgresql"];

impl Conninfo {
    /// The password for a host: what the URL or the environment says, else the password file, read
    /// anew each time.
    ///
    /// # Errors
    /// There is none: why, for the case that the server asks for it.
    pub(super) fn password_for(&self, host: &Host) -> Result<Password, String> {
        if let Some(password) = &self.password {
            return Ok(password.clone());
        }
        let elsewhere = "none in the URL and none in PGPASSWORD";
        let Some(path) = &self.passfile else { return Err(elsewhere.to_owned()) };
        let file = path.display();
        let lines = read(path).map_err(|problem| format!("{elsewhere}, and {file} {problem}"))?;
        let host_name = match &host.place {
            Place::Unix(_) if DEFAULT_SOCKET_DIRECTORIES.contains(&host.name.as_str()) => {
                "localhost"
            }
            Place::Unix(_) | Place::Name | Place::Address(_) => &host.name,
        };
        let port = host.port.to_string();
        let wanted = [host_name, &port, self.database(), self.user()];
        find(&lines, wanted)
            .ok_or_else(|| format!("{elsewhere}, and no line of {file} is for {self}"))
    }
}

/// The file, unless others may read it.
fn read(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let metadata = fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        return Err("is not a plain file".to_owned());
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err("is ignored, for others may read it: chmod 600 it".to_owned());
    }
    fs::read_to_string(path).map_err(cannot)
}

/// The first line whose fields fit.
fn find(lines: &str, wanted: [&str; 4]) -> Option<Password> {
    lines.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in wanted {
            let (field, more) = field(rest)?;
            if field != wanted && field != "*" {
                return None;
            }
            rest = more?;
        }
        // What follows the password, by libpq's reading, is ignored.
        let (password, _) = field(rest)?;
        (!password.is_empty()).then(|| Password(password.into_bytes()))
    })
}

/// The text up to a colon, without its backslashes; and what follows the colon, if there is one.
fn field(text: &str) -> Option<(String, Option<&str>)> {
    let mut field = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ':' => return Some((field, text.get(at + 1..))),
            '\\' => field.push(chars.next().map_or('\\', |(_, escaped)| escaped)),
            _ => field.push(c),
        }
    }
    Some((field, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::endpoint::Secret;

    #[test]
    fn passfile_gives_the_first_line_that_fits() {
        let lines = "# h:1:d:u:comment\nh:1:d:u\nh:1:d:u:\nh:2:d:u:second\nh:*:d:u:any\\:p\\\\ort:x\n\
                     *:*:*:*:last";
        for (wanted, expected) in [
            (["h", "2", "d", "u"], "second"),
            (["h", "1", "d", "u"], "any:p\\ort"),
            (["g", "1", "d", "u"], "last"),
        ] {
            let found = find(lines, wanted);
            assert_eq!(found, Some(Password(expected.as_bytes().to_vec())), "{wanted:?}");
        }
        assert_eq!(find("h:1:d:u:p", ["h", "1", "d", "v"]), None);
        assert_eq!(find("\\*:1:d:u:p", ["*", "1", "d", "u"]), Some(Password(b"p".to_vec())));
    }

    #[test]
    fn passfile_is_ignored_when_others_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        let url = Secret::new(format!("postgres://u@[::1]/d?passfile={}", path.display()));
        let info = Conninfo::parse_with(&url, &|_| None).unwrap();
        let password = || info.password_for(&info.hosts()[0]);
        assert!(password().unwrap_err().contains("cannot be read"));
        fs::write(&path, "\\:\\:1:5432:d:u:hush\n").unwrap();
        for (mode, found) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match password() {
                Ok(password) => assert!(found && password.0 == b"hush", "{mode:o}"),
                Err(why) => assert!(!found && why.contains("chmod 600"), "{mode:o}: {why}"),
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "h:*:*:*:hush\n").unwrap();
        let why = password().unwrap_err();
        assert!(why.ends_with("is for [::1]:5432, database d, user u"), "{why}");
    }

    #[test]
    fn passfile_calls_a_default_socket_localhost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        fs::write(&path, "localhost:*:*:*:near\n/run/other:*:*:*:there\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for (socket, expected) in [("/var/run/postgresql", "near"), ("/run/other", "there")] {
            let pass = path.display();
            let url = Secret::new(format!("postgres://u@/d?host={socket}&passfile={pass}"));
            let info = Conninfo::parse_with(&url, &|_| None).unwrap();
            let found = info.password_for(&info.hosts()[0]).unwrap();
            assert_eq!(found.0, expected.as_bytes());
        }
    }
}
