//! How what is told to people is worded.

/// What a fix begins with.
const VERBS: [&str; 25] = [
    "add", "bring", "correct", "create", "do", "drop", "end", "find", "give", "grant", "install",
    "let", "make", "put", "raise", "read", "renew", "run", "see", "set", "start", "stop",
    "upgrade", "wait", "write",
];

/// Whether a fix says what to do, and of what, so that it can be followed by who sees nothing else.
#[must_use]
pub fn is_imperative(fix: &str) -> bool {
    let mut words = fix.split([' ', ':', ';', ',']);
    words.next().is_some_and(|first| VERBS.contains(&first)) && words.count() > 1
}
