//! The names under which frames go by the bus.
//!
//! | subject | from → to |
//! |---|---|
//! | `P.lead` | leader → all workers |
//! | `P.hello` | worker → leader |
//! | `P.w.<session>` | leader → one worker |
//! | `P.l.<epoch>.<session>` | worker → leader |
//! | `P.l.<epoch>.<session>.<seq>` | bus → leader: nobody hears `P.w.<session>`, so frame `seq` reached nobody |
//!
//! `P` is the prefix of the configuration, and the pipeline. The order of what one connection publishes on one
//! subject is all that is relied on.

use std::fmt;

use walhook_core::id::Epoch;

use crate::frame::SessionId;

/// Characters of a prefix at most.
pub const PREFIX_MAX: usize = 128;

/// The names of one pipeline's subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    prefix: String,
}

/// Why these are no names of subjects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// The prefix cannot stand before a subject.
    #[error(
        "{0:?} cannot begin a subject: use letters, digits, '-' and '_', in words with one dot between \
         them, {PREFIX_MAX} at most"
    )]
    Prefix(String),
}

/// What a subject under [`Subjects::inbox`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbox {
    /// A worker's frame.
    Frame {
        /// The epoch it is for.
        epoch: Epoch,
        /// The session it is of.
        session: SessionId,
    },
    /// The reply subject of a frame of the leader's: what comes here is the bus's word that nobody heard it.
    Unheard {
        /// The leader's epoch.
        epoch: Epoch,
        /// The session.
        session: SessionId,
        /// The frame's number.
        seq: u64,
    },
}

impl Subjects {
    /// The subjects under `prefix` of `pipeline`. A character of the pipeline's name that cannot stand in a
    /// subject is written as `=` and its code; PostgreSQL allows none in the name of a slot.
    ///
    /// # Errors
    /// [`SubjectError::Prefix`]
    pub fn new(prefix: &str, pipeline: &str) -> Result<Self, SubjectError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let word = |word: &str| !word.is_empty() && word.chars().all(plain);
        if prefix.len() > PREFIX_MAX || !prefix.split('.').all(word) {
            return Err(SubjectError::Prefix(prefix.chars().take(PREFIX_MAX).collect()));
        }
        let mut names = format!("{prefix}.");
        for c in pipeline.chars() {
            if plain(c) {
                names.push(c);
            } else {
                names.push_str(&format!("={:x}=", u32::from(c)));
            }
        }
        Ok(Self { prefix: names })
    }

    /// Where leaders say that they lead.
    #[must_use]
    pub fn lead(&self) -> String {
        format!("{}.lead", self.prefix)
    }

    /// Where workers say how they are.
    #[must_use]
    pub fn hello(&self) -> String {
        format!("{}.hello", self.prefix)
    }

    /// Where the leader orders a session's requests.
    #[must_use]
    pub fn worker(&self, session: SessionId) -> String {
        format!("{}.w.{session}", self.prefix)
    }

    /// Where a session's worker answers the leader of `epoch`.
    #[must_use]
    pub fn leader(&self, epoch: Epoch, session: SessionId) -> String {
        format!("{}.l.{epoch}.{session}", self.prefix)
    }

    /// The reply subject of the frame `seq` of a session.
    #[must_use]
    pub fn reply(&self, epoch: Epoch, session: SessionId, seq: u64) -> String {
        format!("{}.l.{epoch}.{session}.{seq}", self.prefix)
    }

    /// What the leader of `epoch` subscribes to beside [`Subjects::hello`].
    #[must_use]
    pub fn inbox(&self, epoch: Epoch) -> String {
        format!("{}.l.{epoch}.>", self.prefix)
    }

    /// Reads a subject under [`Subjects::inbox`]; `None`: it is none.
    #[must_use]
    pub fn read_inbox(&self, subject: &str) -> Option<Inbox> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".l.")?;
        let mut words = rest.split('.');
        let epoch = Epoch(words.next()?.parse().ok()?);
        let session = SessionId::parse(words.next()?)?;
        let inbox = match words.next() {
            None => Inbox::Frame { epoch, session },
            Some(seq) => Inbox::Unheard { epoch, session, seq: seq.parse().ok()? },
        };
        words.next().is_none().then_some(inbox)
    }

    /// What a leader publishes to, and hears, as patterns of permissions: `(publishes, hears)`.
    #[must_use]
    pub fn of_leader(&self) -> ([String; 2], [String; 2]) {
        let prefix = &self.prefix;
        ([self.lead(), format!("{prefix}.w.>")], [self.hello(), format!("{prefix}.l.>")])
    }

    /// What a worker publishes to, and hears, as patterns of permissions: `(publishes, hears)`.
    #[must_use]
    pub fn of_worker(&self) -> ([String; 2], [String; 2]) {
        let prefix = &self.prefix;
        ([self.hello(), format!("{prefix}.l.>")], [self.lead(), format!("{prefix}.w.*")])
    }
}

impl fmt::Display for Subjects {
    /// The prefix of all of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_of_a_session_is_read_back() {
        let subjects = Subjects::new("hooks.eu", "walhook_main").unwrap();
        let (epoch, session) = (Epoch(7), SessionId(0xAB));
        assert_eq!(subjects.lead(), "hooks.eu.walhook_main.lead");
        assert_eq!(
            subjects.read_inbox(&subjects.leader(epoch, session)),
            Some(Inbox::Frame { epoch, session })
        );
        assert_eq!(
            subjects.read_inbox(&subjects.reply(epoch, session, 9)),
            Some(Inbox::Unheard { epoch, session, seq: 9 })
        );
        for other in ["", "hooks.eu.walhook_main.l", "hooks.eu.walhook_main.l.7", "x.l.7.1"] {
            assert_eq!(subjects.read_inbox(other), None, "{other}");
        }
        let more = format!("{}.1", subjects.reply(epoch, session, 9));
        assert_eq!(subjects.read_inbox(&more), None);
    }

    #[test]
    fn prefix_with_a_wildcard_a_space_or_an_empty_word_is_refused() {
        for prefix in ["", ".", "a..b", "a.", "a.*", ">", "a b", "a\n", &"a".repeat(PREFIX_MAX + 1)]
        {
            assert!(Subjects::new(prefix, "p").is_err(), "{prefix:?}");
        }
        let odd = Subjects::new("w", "a.b>c").unwrap();
        assert_eq!(odd.lead(), "w.a=2e=b=3e=c.lead");
    }
}
