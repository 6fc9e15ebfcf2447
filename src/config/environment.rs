//! The environment, as far as it is text.

use std::ffi::OsString;

use super::load::{ConfigError, PREFIX, Place};

/// The variables that are text. Whose name or value is none is somebody else's, but for those that set a key.
///
/// # Errors
/// [`ConfigError::Invalid`], which names the first variable that sets a key and is no text.
pub fn environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
    let mut variables: Vec<(String, OsString)> = variables.into_iter().filter_map(named).collect();
    // The environment has no order; the same one must always end in the same error.
    variables.sort();
    let mut texts = Vec::with_capacity(variables.len());
    for (name, value) in variables {
        match value.into_string() {
            Ok(value) => texts.push((name, value)),
            Err(_) if sets_a_key(&name) => {
                let problem = "its value is not UTF-8; write it anew".to_owned();
                return Err(ConfigError::Invalid { place: Place::Variable(name), problem });
            }
            Err(_) => {}
        }
    }
    Ok(texts)
}

fn sets_a_key(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| rest.contains("__"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn variables(of: &[(&str, &[u8])]) -> Result<Vec<(String, String)>, String> {
        let variable =
            |(name, value): &(&str, &[u8])| ((*name).into(), OsString::from_vec(value.to_vec()));
        environment(of.iter().map(variable)).map_err(|error| error.to_string())
    }

    #[test]
    fn variable_that_sets_a_key_is_refused_by_name_where_it_is_no_text() {
        let others: [(&str, &[u8]); 4] = [
            ("LS_COLORS", b"\xff"),
            ("WALHOOK_BIN", b"\xff"),
            ("HOME", b"/root"),
            ("WALHOOK_LOG__LEVEL", b"info"),
        ];
        let texts = variables(&others).unwrap();
        let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["HOME", "WALHOOK_LOG__LEVEL"]);
        for name in ["WALHOOK_SOURCE__SLOT", "WALHOOK_SOURCE__URL_FILE"] {
            let error = variables(&[&others[..], &[(name, b"walhook\xfe")]].concat()).unwrap_err();
            let expected = format!("environment variable {name}: its value is not UTF-8");
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
