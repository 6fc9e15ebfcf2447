//! One row of the customer's endpoint table → an [`Endpoint`].
//!
//! Each column comes as its own text, so that one of another type than expected, or a value that makes no
//! sense, spoils its own endpoint and no other: such an endpoint says why it is `invalid`. It keeps its
//! id, and asks for what its row asks for, as far as that can be read: what comes for it becomes dead
//! letters that say why.

use serde_json::Value;
use tokio_postgres::Row;

use super::statement::{LIST_BYTES_MAX, NUMBER_BYTES_MAX, ROW_COLUMNS};
use walhook_core::endpoint::{
    EVENT_TYPES_MAX, Endpoint, HEADERS_BYTES_MAX, SECRETS_MAX, Secret, read_headers, read_url,
};
use walhook_core::event::{AccountId, EndpointId, ID_MAX_BYTES};
use walhook_sign as sign;

/// What stands for the id of a row that has none.
pub(super) const NO_ID: &str = "(null)";

/// A row's columns, as [`super::statement::Source::row`] names them.
#[derive(Debug, Default)]
pub(super) struct RowText<'a> {
    id: Option<&'a str>,
    long_id_hash: Option<&'a str>,
    url: Option<&'a str>,
    event_types: Option<&'a str>,
    secret: Option<&'a str>,
    enabled: Option<&'a str>,
    headers: Option<&'a str>,
    max_in_flight: Option<&'a str>,
    rate_per_second: Option<&'a str>,
}

impl<'a> RowText<'a> {
    /// The columns of an answer's row from `first` on.
    pub(super) fn of(row: &'a Row, first: usize) -> Result<Self, tokio_postgres::Error> {
        const { assert!(ROW_COLUMNS == 9) };
        let column = |n: usize| row.try_get::<_, Option<&str>>(first + n);
        Ok(Self {
            id: column(0)?,
            long_id_hash: column(1)?,
            url: column(2)?,
            event_types: column(3)?,
            secret: column(4)?,
            enabled: column(5)?,
            headers: column(6)?,
            max_in_flight: column(7)?,
            rate_per_second: column(8)?,
        })
    }

    /// What was read.
    pub(super) fn bytes(&self) -> usize {
        let Self { id, long_id_hash, url, event_types, secret, .. } = self;
        let Self { enabled, headers, max_in_flight, rate_per_second, .. } = self;
        let texts = [id, long_id_hash, url, event_types, secret, enabled, headers];
        let texts = texts.into_iter().chain([max_in_flight, rate_per_second]);
        texts.flatten().map(|text| text.len()).sum()
    }
}

/// A row of which nothing but the id could be read, and why.
pub(super) fn unreadable(id: &str, account: &AccountId, why: &str) -> Endpoint {
    let row = RowText { id: Some(id), ..RowText::default() };
    let id = self::id(&row, &mut Vec::new());
    Endpoint { invalid: Some(why.to_owned()), ..empty(id, account) }
}

/// Reads one row. `prefix` is `delivery.header_prefix`.
///
/// A null in `enabled` counts as switched off, a null in `event_types` as wanting nothing. An endpoint
/// whose switch or event types cannot be read counts as switched on and wanting everything.
pub(super) fn read(row: &RowText<'_>, account: &AccountId, prefix: &str) -> Endpoint {
    let mut wrong = Vec::new();
    let mut endpoint = empty(id(row, &mut wrong), account);
    let mut take = |column: &str, complaint: &str| wrong.push(format!("{column} {complaint}"));
    match row.url.map(|url| read_url(url).map(|_| url.trim())) {
        Some(Ok(url)) => url.clone_into(&mut endpoint.url),
        Some(Err(complaint)) => take("the url", complaint),
        None => take("the url", "is null"),
    }
    match event_types(row.event_types) {
        Ok(types) => endpoint.event_types = types,
        Err(complaint) => take("the event types", &complaint),
    }
    match secrets(row.secret) {
        Ok(secrets) => endpoint.secrets = secrets,
        Err(complaint) => take("the secret", &complaint),
    }
    match row.enabled {
        Some("true" | "t") => {}
        None | Some("false" | "f") => endpoint.enabled = false,
        Some(_) => take("the switch", "is no boolean"),
    }
    match headers(row.headers, prefix) {
        Ok(headers) => endpoint.headers = headers,
        Err(complaint) => take("the headers", &complaint),
    }
    match row.max_in_flight.map(max_in_flight) {
        None => {}
        Some(Some(limit)) => endpoint.max_in_flight = Some(limit),
        Some(None) => take("the limit of requests in flight", "is no whole number above 0"),
    }
    match row.rate_per_second.map(positive) {
        None => {}
        Some(Some(rate)) => endpoint.rate_per_second = Some(rate),
        Some(None) => take("the limit of requests a second", "is no number above 0"),
    }
    if !wrong.is_empty() {
        // Nothing is sent to it: what is large in it is not needed.
        endpoint.headers = Vec::new();
        endpoint.secrets = Vec::new();
        endpoint.invalid = Some(wrong.join("; "));
    }
    endpoint
}

/// Wants everything, and can be sent nothing.
fn empty(id: EndpointId, account: &AccountId) -> Endpoint {
    Endpoint {
        id,
        account: account.clone(),
        url: String::new(),
        event_types: vec!["*".to_owned()],
        secrets: Vec::new(),
        enabled: true,
        headers: Vec::new(),
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    }
}

/// The row's id, or what stands for one that is null or too long to be kept.
fn id(row: &RowText<'_>, wrong: &mut Vec<String>) -> EndpointId {
    let Some(id) = row.id else {
        wrong.push("the id is null".to_owned());
        return EndpointId::new(NO_ID);
    };
    if id.len() <= ID_MAX_BYTES {
        return EndpointId::new(id);
    }
    wrong.push(format!("the id is longer than {ID_MAX_BYTES} bytes"));
    let beginning: String = id.chars().take(64).collect();
    EndpointId::new(format!("{beginning}... ({})", row.long_id_hash.unwrap_or_default()))
}

/// A text, an array of texts (whose elements may be null), or null.
fn texts(json: Option<&str>) -> Result<Vec<Option<String>>, &'static str> {
    const NEITHER: &str = "is neither text nor an array of text";
    let Some(json) = json else { return Ok(Vec::new()) };
    if json.len() > LIST_BYTES_MAX {
        return Err("is longer than 256 KiB");
    }
    let element = |item| match item {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Err(NEITHER),
    };
    match serde_json::from_str(json).map_err(|_| NEITHER)? {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.into_iter().map(element).collect(),
        text @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            Ok(vec![element(text)?])
        }
    }
}

fn event_types(json: Option<&str>) -> Result<Vec<String>, String> {
    let texts = texts(json).map_err(|what| match what {
        "is longer than 256 KiB" => "are longer than 256 KiB".to_owned(),
        _ => "are no array of text".to_owned(),
    })?;
    if texts.len() > EVENT_TYPES_MAX {
        return Err(format!("are more than {EVENT_TYPES_MAX}"));
    }
    Ok(texts.into_iter().flatten().collect())
}

fn secrets(json: Option<&str>) -> Result<Vec<Secret>, String> {
    let texts = texts(json)?;
    if texts.is_empty() {
        let is_null = json.is_none_or(|json| json == "null");
        return Err(if is_null { "is null" } else { "is an empty array" }.to_owned());
    }
    if texts.len() > SECRETS_MAX {
        return Err(format!("holds more than {SECRETS_MAX}"));
    }
    let read = |text: Option<String>| {
        let secret = Secret::new(text.ok_or("holds a null")?.trim());
        sign::judge(&secret).map_err(|error| format!("cannot be used: {error}"))?;
        Ok(secret)
    };
    texts.into_iter().map(read).collect()
}

fn headers(json: Option<&str>, prefix: &str) -> Result<Vec<(String, String)>, String> {
    match json {
        None => Ok(Vec::new()),
        Some(json) if json.len() > HEADERS_BYTES_MAX => {
            Err(format!("take more than {HEADERS_BYTES_MAX} bytes"))
        }
        Some(json) => read_headers(json, prefix),
    }
}

/// A limit above what 32 bits hold is as good as none.
fn max_in_flight(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_whole = fraction.bytes().all(|digit| digit == b'0');
    let digits = whole.trim_start_matches('0');
    if !is_whole || digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u32::MAX))
}

/// Slots reserved for an account: a whole number, as the column's type prints it.
pub fn reserved(text: &str) -> Option<u32> {
    let text = text.trim();
    let is_whole = (1..=NUMBER_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|digit| digit.is_ascii_digit());
    is_whole.then(|| text.parse().unwrap_or(u32::MAX))
}

/// A number above 0, as the column's type prints it.
pub fn positive(text: &str) -> Option<f64> {
    let number: f64 = text.trim().parse().ok().filter(|_| text.len() <= NUMBER_BYTES_MAX)?;
    (number.is_finite() && number > 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: RowText<'_> = RowText {
        id: Some("7"),
        long_id_hash: None,
        url: Some("https://hooks.example/x"),
        event_types: Some("[\"a.*\"]"),
        secret: Some("\"hush hush hush hush hush hush\""),
        enabled: Some("true"),
        headers: None,
        max_in_flight: None,
        rate_per_second: None,
    };

    fn complaint(row: &RowText<'_>) -> String {
        let endpoint = read(row, &AccountId::new("42"), "walhook");
        assert!(endpoint.secrets.is_empty() || endpoint.invalid.is_none());
        let complaint = endpoint.invalid.unwrap_or_default();
        assert!(!complaint.contains("hush"), "{complaint}");
        complaint
    }

    #[test]
    fn row_within_its_bounds_is_valid() {
        let most = |what: &str, n: usize| format!("[{}]", vec![format!("\"{what}\""); n].join(","));
        let (types, secrets) = (most("a.b", EVENT_TYPES_MAX), most("hush", SECRETS_MAX));
        for row in [
            RowText { ..GOOD },
            RowText { event_types: Some(&types), secret: Some(&secrets), ..GOOD },
            RowText { event_types: Some("\"a.b\""), headers: Some("{\"a\": 1}"), ..GOOD },
            RowText { max_in_flight: Some("3.00"), rate_per_second: Some("0.5"), ..GOOD },
            RowText { max_in_flight: Some("99999999999999999999999"), ..GOOD },
            RowText { id: Some(&"x".repeat(ID_MAX_BYTES)), ..GOOD },
        ] {
            assert_eq!(complaint(&row), "", "{row:?}");
        }
        let off = read(&RowText { enabled: None, ..GOOD }, &AccountId::new("42"), "walhook");
        assert!(!off.enabled && off.invalid.is_none());
    }

    #[test]
    fn every_column_that_cannot_be_used_is_named() {
        let most = |n: usize| format!("[{}]", vec!["\"a.b\""; n].join(","));
        let (types, secrets) = (most(EVENT_TYPES_MAX + 1), most(SECRETS_MAX + 1));
        let long = "\"hush".repeat(LIST_BYTES_MAX);
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        let limit = "the limit of requests in flight is no whole number above 0";
        let rate = "the limit of requests a second is no number above 0";
        for (row, expected) in [
            (RowText { id: None, ..GOOD }, "the id is null"),
            (
                RowText { id: Some(&"é".repeat(ID_MAX_BYTES / 2 + 1)), ..GOOD },
                "the id is longer than 512 bytes",
            ),
            (RowText { url: None, ..GOOD }, "the url is null"),
            (RowText { url: Some("hush"), ..GOOD }, "the url cannot be read"),
            (
                RowText { event_types: Some("[[\"a\"]]"), ..GOOD },
                "the event types are no array of text",
            ),
            (RowText { event_types: Some(&deep), ..GOOD }, "the event types are no array of text"),
            (RowText { event_types: Some(&types), ..GOOD }, "the event types are more than 1000"),
            (
                RowText { event_types: Some(&long), ..GOOD },
                "the event types are longer than 256 KiB",
            ),
            (RowText { secret: None, ..GOOD }, "the secret is null"),
            (RowText { secret: Some("[]"), ..GOOD }, "the secret is an empty array"),
            (RowText { secret: Some("[null]"), ..GOOD }, "the secret holds a null"),
            (RowText { secret: Some(&secrets), ..GOOD }, "the secret holds more than 10"),
            (
                RowText { secret: Some("{\"hush\":1}"), ..GOOD },
                "the secret is neither text nor an array of text",
            ),
            (
                RowText { secret: Some("\"\\ud800\""), ..GOOD },
                "the secret is neither text nor an array of text",
            ),
            (
                RowText { secret: Some("\" \""), ..GOOD },
                "the secret cannot be used: a secret is empty",
            ),
            (RowText { enabled: Some("hush"), ..GOOD }, "the switch is no boolean"),
            (RowText { headers: Some("[\"hush\"]"), ..GOOD }, "the headers are no object"),
            (RowText { max_in_flight: Some("0"), ..GOOD }, limit),
            (RowText { max_in_flight: Some("-1"), ..GOOD }, limit),
            (RowText { max_in_flight: Some("1.5"), ..GOOD }, limit),
            (RowText { max_in_flight: Some("hush"), ..GOOD }, limit),
            (RowText { rate_per_second: Some("1e400"), ..GOOD }, rate),
            (RowText { rate_per_second: Some("NaN"), ..GOOD }, rate),
            (RowText { rate_per_second: Some("-0.5"), ..GOOD }, rate),
            (RowText { rate_per_second: Some("Infinity"), ..GOOD }, rate),
        ] {
            assert_eq!(complaint(&row), expected);
        }
        let row = RowText { url: None, headers: Some("7"), ..GOOD };
        assert_eq!(complaint(&row), "the url is null; the headers are no object");
    }

    #[test]
    fn ids_that_are_too_long_stay_apart() {
        let long = "x".repeat(ID_MAX_BYTES + 1);
        let id = |hash| {
            let row = RowText { id: Some(&long), long_id_hash: Some(hash), ..GOOD };
            read(&row, &AccountId::new("42"), "walhook").id
        };
        assert_ne!(id("1"), id("2"));
        assert!(id("1").len() <= ID_MAX_BYTES);
    }
}
