//! The URL of an endpoint's row: whether anything could be requested by it, wherever it leads.

use http::Uri;
use url::Url;

/// The bytes of a URL, at most.
pub const URL_BYTES_MAX: usize = 8 << 10;

/// Reads a row's URL, and how it is requested. White space around it is not part of it.
///
/// Whether the host may be contacted is for the egress policy of `walhook-http` to say, at each attempt.
///
/// # Errors
/// What is wrong with it, to stand after "the url"; no part of it, which may be secret.
pub fn read_url(text: &str) -> Result<(Url, Uri), &'static str> {
    let text = text.trim();
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > URL_BYTES_MAX {
        return Err("is longer than 8 KiB");
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    let url = Url::parse(text).map_err(|_| "cannot be read")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("is neither http nor https");
    }
    if !url.has_host() {
        return Err("names no host");
    }
    let uri = url.as_str().parse().map_err(|_| "cannot be requested")?;
    Ok((url, uri))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_that_cannot_be_requested_is_told_without_its_text() {
        let (url, uri) = read_url(" https://a.example/x?y=z\n").unwrap();
        assert_eq!(
            (url.as_str(), uri),
            ("https://a.example/x?y=z", "https://a.example/x?y=z".parse().unwrap())
        );
        assert!(read_url("http://[::1]:8080").is_ok());
        assert!(read_url("https://bücher.example/ü").is_ok());
        let long = format!("http://a.example/{}", "x".repeat(URL_BYTES_MAX));
        for (url, complaint) in [
            ("", "is empty"),
            (" \t", "is empty"),
            (&long, "is longer than 8 KiB"),
            ("http://a.example/\r\nx-injected: 1", "holds a control character"),
            ("http://a.example/\u{85}x", "holds a control character"),
            ("http://a.ex\u{1b}ample/", "holds a control character"),
            ("hush", "cannot be read"),
            ("http://", "cannot be read"),
            ("http://[hush", "cannot be read"),
            ("ftp://a.example/", "is neither http nor https"),
            ("javascript:hush()", "is neither http nor https"),
            ("file:///etc/passwd", "is neither http nor https"),
        ] {
            assert_eq!(read_url(url).map(|_| ()), Err(complaint), "{url}");
        }
    }
}
