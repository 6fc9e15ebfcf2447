//! What of the rules' expressions surely does not mean what it says. It can be carried out, so it is no error.

use super::{RuleError, RuleSettings, subject};
use crate::condition::{Condition, DataExpression};

/// The rules with a pattern that looks for a backslash where a class was meant, which silently never matches; and
/// what to write instead. What cannot be compiled is none of them: [`Rules::compile`](super::Rules::compile) tells it.
#[must_use]
pub fn doubts(settings: RuleSettings<'_>) -> Vec<RuleError> {
    let mut found = Vec::new();
    for (index, rule) in settings.events.iter().enumerate() {
        let condition = rule.when.as_deref().and_then(|text| Condition::compile(text).ok());
        let data = rule.data.as_deref().and_then(|text| DataExpression::compile(text).ok());
        let of_condition =
            condition.iter().flat_map(Condition::doubts).map(|doubt| ("when", doubt));
        let of_data = data.iter().flat_map(DataExpression::doubts).map(|doubt| ("data", doubt));
        found.extend(of_condition.chain(of_data).map(|(key, doubt)| RuleError {
            subject: subject(index, rule),
            message: format!("{key}: {doubt}"),
        }));
    }
    found
}
