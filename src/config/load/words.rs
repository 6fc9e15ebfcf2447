//! What the parser and serde say of a value, for people.

/// Said of a value that is to be one of several words.
const NEITHER_TEXT_NOR_TABLE: &str = "wanted string or table";

const TEXT: &str = "a text in quotes";

/// What serde and the parser say of a value of another type names theirs.
pub(super) fn in_plain_words(message: &str) -> String {
    if message == NEITHER_TEXT_NOR_TABLE {
        return "is no text; write it in quotes".to_owned();
    }
    let Some((before, wanted)) = message.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    let wanted = match wanted {
        "u8" | "u16" | "u32" | "u64" | "usize" | "i64" => "a whole number, without quotes",
        "a string" => TEXT,
        "a boolean" => "true or false, without quotes",
        "a sequence" => "a list: [\"…\", \"…\"]",
        other => other,
    };
    // A text may be a secret, and what stands there without quotes is its value then.
    let before = if wanted == TEXT { without_value(before) } else { before };
    format!("{before}, expected {wanted}")
}

/// What serde says of a value, such as ``invalid type: integer `3` ``, without the value.
fn without_value(said: &str) -> &str {
    said.split_once(['`', '"']).map_or(said, |(before, _)| before.trim_end())
}
