//! Event types as an operator writes them.

use walhook_rules::name::is_type_pattern;

/// Reads a type, or a pattern of types, as an endpoint's row has them.
pub(crate) fn type_or_pattern(text: &str) -> Result<String, String> {
    if text.contains('*') && !is_type_pattern(text) {
        return Err(format!(
            "{text:?} fits no type: a pattern is * or ends in .*, as in subscriber.*"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_that_could_never_fit_is_refused_with_one_that_can() {
        for good in ["*", "subscriber.*", "shop.order.*", "subscriber.updated"] {
            assert_eq!(type_or_pattern(good).as_deref(), Ok(good));
        }
        for bad in ["sub*", "*.updated", "subscriber.**", "a.*.b"] {
            assert!(type_or_pattern(bad).unwrap_err().contains("subscriber.*"), "{bad}");
        }
    }
}
