//! The names of event types.

/// Long enough for any name, short enough for metrics and keys.
const MAX_TYPE_BYTES: usize = 128;

/// Whether `text` can be an event's type: 1 to 128 letters, digits and `. _ - : /`.
#[must_use]
pub fn is_type(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
    (1..=MAX_TYPE_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

/// Whether `text` bounds types: `*`, or a type's beginning up to a full stop and `*`.
#[must_use]
pub fn is_type_pattern(text: &str) -> bool {
    match text.strip_suffix('*') {
        Some("") => true,
        Some(beginning) => beginning.ends_with('.') && is_type(beginning),
        None => false,
    }
}

/// Whether the pattern, which [`is_type_pattern`], covers the type.
#[must_use]
pub fn pattern_covers(pattern: &str, event_type: &str) -> bool {
    let rest = pattern.strip_suffix('*').and_then(|start| event_type.strip_prefix(start));
    rest.is_some_and(|rest| !rest.is_empty())
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

    #[test]
    fn pattern_leaves_open_whole_words_at_its_end() {
        for good in ["*", "order.*", "shop.order.*"] {
            assert!(is_type_pattern(good), "{good}");
        }
        for bad in ["", "order", "order*", "*.order", ".*.*", "a b.*", "order.**"] {
            assert!(!is_type_pattern(bad), "{bad}");
        }
        assert!(pattern_covers("order.*", "order.paid") && pattern_covers("*", "x"));
        for other in ["order.", "order", "orders.paid", "Order.paid"] {
            assert!(!pattern_covers("order.*", other), "{other}");
        }
    }
}
