//! Which keys there are: read by the overlay of environment variables, which must know what type a
//! key wants, and by the search for the key that a misspelt one was meant to be.
//!
//! A test compares this table with what serde accepts, so the two cannot drift apart.

/// What a key's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, also durations and sizes.
    Text,
    /// Text without which there is no configuration.
    Required,
    /// Likewise, or a list of texts.
    RequiredList,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// A list of texts.
    List,
    /// Of a rule, so not to be set by an environment variable.
    Rule,
    /// Of a rule, and it must be there.
    RequiredOfRule,
    /// Known, and refused for this reason, which is also the fix.
    Refused(&'static str),
}

use Kind::{List, Number, Refused, Required, RequiredList, RequiredOfRule, Rule, Switch, Text};

/// A section and its keys.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) keys: &'static [(&'static str, Kind)],
}

/// The section that is a list of tables.
pub(super) const EVENTS: &str = "events";

/// The section without which there is no worker.
pub(super) const WORKERS: &str = "workers";

pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "source",
        keys: &[
            ("url", Required),
            ("replication_url", Text),
            ("slot", Text),
            ("publication", Text),
            ("lease_timeout", Text),
            ("replay_window", Text),
            ("streaming", Text),
            ("stream_above", Text),
            ("spool", Text),
            ("spool_max", Text),
        ],
    },
    Section {
        name: "state",
        keys: &[("url", Text), ("schema", Text), ("retention", Text), ("max_size", Text)],
    },
    Section {
        name: "endpoints",
        keys: &[
            ("table", Required),
            ("id", Text),
            ("account", Text),
            ("url", Text),
            ("event_types", Text),
            ("secret", Text),
            ("enabled", Text),
            ("headers", Text),
            ("max_in_flight", Text),
            ("rate_per_second", Text),
            ("watch", List),
            ("search_path", Text),
        ],
    },
    Section {
        name: "accounts",
        keys: &[("table", Required), ("id", Text), ("weight", Text), ("reserved", Text)],
    },
    Section {
        name: EVENTS,
        keys: &[
            ("type", RequiredOfRule),
            ("table", Rule),
            ("on", RequiredOfRule),
            ("account", Rule),
            ("account_value", Rule),
            ("when", Rule),
            ("columns", Rule),
            ("rename", Rule),
            ("data", Rule),
            ("type_column", Rule),
            ("data_column", Rule),
            ("prefix", Rule),
            ("max_bytes", Rule),
        ],
    },
    Section { name: "payload", keys: &[("bigint", Text)] },
    Section {
        name: "delivery",
        keys: &[
            ("mode", Text),
            ("header_prefix", Text),
            ("user_agent", Text),
            ("timeout", Text),
            ("connect_timeout", Text),
            ("ordering", Text),
            ("quick_attempts", Number),
            ("retry_base", Text),
            ("retry_cap", Text),
            ("retry_for", Text),
            ("disable_after", Text),
        ],
    },
    Section {
        name: "deliveries",
        keys: &[("keep", Text), ("retention", Text), ("max_size", Text), ("excerpts", Switch)],
    },
    Section { name: "scheduler", keys: &[("fast_slots", Number), ("slow_slots", Number)] },
    Section { name: "memory", keys: &[("limit", Text)] },
    Section { name: "wal", keys: &[("max_hold", Text), ("max_retained", Text)] },
    Section {
        name: "egress",
        keys: &[
            ("allow", List),
            ("deny", List),
            ("only_hosts", List),
            ("https_only", Switch),
            ("proxy", Text),
        ],
    },
    Section {
        name: WORKERS,
        keys: &[
            ("url", RequiredList),
            ("subject", Text),
            ("local", Text),
            ("lease", Text),
            ("egress", Text),
            ("insecure", Switch),
            ("user", Text),
            ("password", Text),
            ("nkey", Text),
            ("creds", Text),
            ("tls_ca", Text),
        ],
    },
    Section { name: "notify", keys: &[("url", Text), ("secret", Text)] },
    Section {
        name: "admin",
        keys: &[
            ("listen", Text),
            (
                "token",
                Refused("protects nothing: health and metrics ask for none, and there is no more"),
            ),
        ],
    },
    Section { name: "log", keys: &[("format", Text), ("level", Text)] },
];

impl Section {
    /// The section of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        SECTIONS.iter().find(|section| section.name == name)
    }

    /// What the key's value is, where the section has it.
    pub(super) fn kind(&self, key: &str) -> Option<Kind> {
        self.keys.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind)
    }

    /// Whether the key must be there where the section is.
    pub(super) const fn requires(kind: Kind) -> bool {
        matches!(kind, Required | RequiredList | RequiredOfRule)
    }

    /// The keys that this version acts on.
    pub(super) fn supported(&self) -> impl Iterator<Item = &'static str> + use<> {
        let refused = |kind: &Kind| matches!(kind, Refused(_));
        self.keys.iter().filter(move |(_, kind)| !refused(kind)).map(|(name, _)| *name)
    }
}

/// Which of `names` a misspelt `word` was probably meant to be, as an addition to a message.
pub(super) fn suggestion(word: &str, names: impl Iterator<Item = &'static str>) -> String {
    let names: Vec<&str> = names.collect();
    let nearest = names.iter().map(|name| (distance(word, name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= 1 + name.len() / 4 => format!("did you mean {name}?"),
        _ => format!("there are {}", names.join(", ")),
    }
}

/// The Levenshtein distance: how many letters to insert, delete or replace.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((to, left_above), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            let replace = left_above + usize::from(from != *to);
            let left = next.last().copied().unwrap_or_default();
            next.push(replace.min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use serde::Deserialize;
    use serde::de::{self, Visitor};

    use super::*;
    use crate::config;

    /// Takes from a struct's `Deserialize` the field names that it asks for, and nothing else.
    struct FieldsOf<'a>(&'a mut Vec<String>);

    #[derive(Debug)]
    struct Seen;

    impl fmt::Display for Seen {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("seen")
        }
    }

    impl std::error::Error for Seen {}

    impl de::Error for Seen {
        fn custom<T: fmt::Display>(_: T) -> Self {
            Self
        }
    }

    impl<'de> de::Deserializer<'de> for FieldsOf<'_> {
        type Error = Seen;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Seen> {
            Err(Seen)
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Seen> {
            self.0.extend(fields.iter().map(|field| (*field).to_owned()));
            Err(Seen)
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn fields<T: for<'de> Deserialize<'de>>() -> Vec<String> {
        let mut fields = vec![];
        assert!(T::deserialize(FieldsOf(&mut fields)).is_err());
        fields
    }

    #[test]
    fn key_table_equals_what_serde_accepts() {
        let supported = SECTIONS.iter().filter(|s| s.supported().next().is_some());
        let mut names: Vec<&str> = supported.map(|section| section.name).collect();
        let mut accepted = fields::<config::Config>();
        names.sort_unstable();
        accepted.sort();
        assert_eq!(names, accepted);

        let of_serde = [
            ("source", fields::<config::Source>()),
            ("state", fields::<config::State>()),
            ("endpoints", fields::<config::Endpoints>()),
            ("accounts", fields::<config::Accounts>()),
            ("events", fields::<config::EventRule>()),
            ("payload", fields::<config::Payload>()),
            ("delivery", fields::<config::Delivery>()),
            ("deliveries", fields::<config::Deliveries>()),
            ("scheduler", fields::<config::Scheduler>()),
            ("memory", fields::<config::Memory>()),
            ("wal", fields::<config::Wal>()),
            ("egress", fields::<config::Egress>()),
            ("workers", fields::<config::Workers>()),
            ("notify", fields::<config::Notify>()),
            ("admin", fields::<config::Admin>()),
            ("log", fields::<config::Log>()),
        ];
        assert_eq!(of_serde.len(), accepted.len());
        for (name, fields) in of_serde {
            let supported: Vec<&str> = Section::named(name).unwrap().supported().collect();
            assert_eq!(supported, fields, "[{name}]");
        }
    }

    #[test]
    fn suggestion_names_the_nearest_key_or_else_all() {
        let names = || ["slot", "publication"].into_iter();
        assert_eq!(suggestion("slots", names()), "did you mean slot?");
        assert_eq!(suggestion("publicaton", names()), "did you mean publication?");
        assert_eq!(suggestion("colour", names()), "there are slot, publication");
    }
}
