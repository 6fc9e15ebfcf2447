//! What looks like a secret, taken out of text that is about to be seen.

use std::borrow::Cow;

/// Replaces what looks like a secret by `***`: passwords in URLs, signing secrets.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    const MARKS: [&str; 3] = ["://", "whsec_", "password="];
    if !MARKS.iter().any(|mark| text.contains(mark)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, mark)) =
        MARKS.iter().filter_map(|mark| Some((rest.find(mark)?, *mark))).min()
    {
        let (before, after) = rest.split_at(at + mark.len());
        out.push_str(before);
        rest =
            if mark == "://" { after_user(after, &mut out) } else { after_secret(after, &mut out) };
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Copies a URL's user without the password, and returns what follows.
fn after_user<'a>(text: &'a str, out: &mut String) -> &'a str {
    let end = text.find(|c: char| c.is_whitespace() || "/?#\"'<>".contains(c));
    let (authority, _) = text.split_at(end.unwrap_or(text.len()));
    // A password with a slash in it is not valid, but people write them: look further for its end.
    let line = text.split(|c: char| c.is_whitespace() || "\"'<>".contains(c)).next();
    let line = line.unwrap_or_default();
    let (user_info, password) = match (authority.rsplit_once('@'), line.rsplit_once('@')) {
        (Some((user_info, _)), _) => (user_info, user_info.split_once(':')),
        (None, Some((user_info, _))) => (user_info, user_info.split_once(':')),
        (None, None) => return text,
    };
    let Some((user, _)) = password else { return text };
    out.push_str(user);
    out.push_str(":***");
    text.get(user_info.len()..).unwrap_or_default()
}

/// Leaves out a secret, where there is one, and returns what follows it.
fn after_secret<'a>(text: &'a str, out: &mut String) -> &'a str {
    let part = |c: char| c.is_whitespace() || "&\"'<>,;)]}".contains(c);
    let (secret, rest) = text.split_at(text.find(part).unwrap_or(text.len()));
    if !secret.is_empty() {
        out.push_str("***");
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redact_hides_passwords_and_signing_secrets() {
        for (text, shown) in [
            ("nothing to hide", "nothing to hide"),
            ("postgres://u:hush@h:5432/d", "postgres://u:***@h:5432/d"),
            ("at postgres://u:hu/sh@h/d now", "at postgres://u:***@h/d now"),
            ("postgres://u:hu@sh@h/d", "postgres://u:***@h/d"),
            ("postgres://u@h/d and https://e.com/p", "postgres://u@h/d and https://e.com/p"),
            ("http://h/?next=a:b", "http://h/?next=a:b"),
            ("postgres://u@h/d?password=hush&x=1", "postgres://u@h/d?password=***&x=1"),
            ("secret \"whsec_aHVzaA==\"", "secret \"whsec_***\""),
            (
                "write whsec_ and base64; it begins with whsec_",
                "write whsec_ and base64; it begins with whsec_",
            ),
            (
                "postgres://a:hush@h/d postgres://b:hush@h/d",
                "postgres://a:***@h/d postgres://b:***@h/d",
            ),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
