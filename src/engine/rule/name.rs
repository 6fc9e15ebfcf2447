//! The names of event types.

/// Long enough for any name, short enough for metrics and keys.
const MAX_TYPE_BYTES: usize = 128;

/// Whether `text` can be an event's type: 1 to 128 letters, digits and `. _ - : /`.
#[must_use]
pub fn is_type(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
    (1..=MAX_TYPE_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_is_a_short_text_of_letters_digits_and_marks() {
        for good in ["a", "subscriber.updated", "v2/Order:paid_out-1"] {
            assert!(is_type(good), "{good}");
        }
        for bad in ["", "a b", "é", "order.*", "a\n", &"a".repeat(129)] {
            assert!(!is_type(bad), "{bad}");
        }
    }
}
