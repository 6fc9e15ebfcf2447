//! Who fixes what ended an attempt to start: waiting, or a person.

use std::error::Error;

use walhook_postgres::cure::Cure;
use walhook_state::StateError;

/// Of an error, by the first of its causes that is known; `None` where there is none.
pub(super) fn of(error: &(dyn Error + 'static)) -> Option<Cure> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let of_state = error.downcast_ref().map(StateError::cure);
        if let Some(cure) = of_state.or_else(|| Cure::of(error)) {
            return Some(cure);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_postgres::pg::LinkError;

    #[test]
    fn cure_of_an_error_is_that_of_its_first_known_cause() {
        let link = LinkError::Unreachable {
            target: "h:1".to_owned(),
            why: std::io::ErrorKind::ConnectionRefused.into(),
        };
        let error = anyhow::Error::new(StateError::Connection(link.into())).context("asking");
        assert_eq!(of(&*error), Some(Cure::Waiting));
        let error = StateError::NotSetUp { schema: "s".to_owned(), pipeline: "p".to_owned() };
        assert_eq!(of(&error), Some(Cure::Person));
        assert_eq!(of(&*anyhow::anyhow!("a number")), None);
    }
}
