//! What a request says, read strictly: keys from the undecoded path, parameters that must
//! be known, conditions, and bodies with a limit and a deadline.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Uri, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use crate::config::{Http, parse_duration};
use crate::machine::{Conditions, KEY_MAX, Tags};

/// A body must arrive at least this fast, beyond `http.body_timeout`.
pub(super) const BODY_RATE: u64 = 64 << 10;

/// Largest number in a query: what OpenAPI calls `int64`.
pub(super) const NUMBER_MAX: u64 = i64::MAX.unsigned_abs();

/// Decodes `%XX`, once. `plus`: `+` means a space, as in queries.
pub(super) fn percent_decode(text: &str, plus: bool) -> Result<Vec<u8>, ApiError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let bad = || ApiError::BadRequest(format!("'%' is not followed by two hex digits in {text:?}"));
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || {
                    let digit = char::from(bytes.next()?).to_digit(16)?;
                    u8::try_from(digit).ok()
                };
                let (high, low) = (digit().ok_or_else(bad)?, digit().ok_or_else(bad)?);
                out.push(high << 4 | low);
            }
            b'+' if plus => out.push(b' '),
            byte => out.push(byte),
        }
    }
    Ok(out)
}

/// The key in a path: everything after `prefix`, decoded once, `/` literal.
pub(super) fn key(uri: &Uri, prefix: &str) -> Result<Bytes, ApiError> {
    let raw = uri.path().strip_prefix(prefix).unwrap_or_default();
    let key = percent_decode(raw, false)?;
    check_key(&key)?;
    Ok(key.into())
}

pub(super) fn check_key(key: &[u8]) -> Result<(), ApiError> {
    if key.is_empty() {
        return Err(ApiError::BadRequest("a key has at least one byte".into()));
    }
    if key.len() > KEY_MAX {
        return Err(ApiError::KeyTooLarge { limit: KEY_MAX as u64, actual: key.len() as u64 });
    }
    Ok(())
}

/// The parameters of a request, each known, and given once unless it may be repeated.
#[derive(Debug)]
pub(super) struct Query {
    pairs: Vec<(String, Vec<u8>)>,
}

impl Query {
    /// Parses the query of `uri`; a name that is not in `known` is an error.
    pub(super) fn parse(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        Self::parse_repeated(uri, known, &[])
    }

    /// The same, where the names in `repeated`, which are known too, may be given often.
    pub(super) fn parse_repeated(
        uri: &Uri,
        known: &[&str],
        repeated: &[&str],
    ) -> Result<Self, ApiError> {
        let mut pairs: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8_lossy(&percent_decode(name, true)?).into_owned();
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(ApiError::BadRequest(format!(
                    "unknown query parameter {name:?}; this route knows: {known}"
                )));
            }
            let again = pairs.iter().any(|(other, _)| *other == name);
            if again && !repeated.contains(&name.as_str()) {
                return Err(ApiError::BadRequest(format!(
                    "query parameter {name:?} is given twice"
                )));
            }
            pairs.push((name, percent_decode(value, true)?));
        }
        Ok(Self { pairs })
    }

    /// All parameters with their bytes, as they were given.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The bytes of a parameter.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.pairs.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_slice())
    }

    /// A parameter as text.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let wrong = |_| ApiError::BadRequest(format!("query parameter {name:?} is not UTF-8"));
        self.bytes(name).map(|value| std::str::from_utf8(value).map_err(wrong)).transpose()
    }

    /// `true`, `false`, or given without a value, which means true.
    pub(super) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.text(name)? {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(other) => Err(ApiError::BadRequest(format!(
                "query parameter {name:?} is true or false, not {other:?}"
            ))),
        }
    }

    /// A whole number, up to [`NUMBER_MAX`].
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| *number <= NUMBER_MAX);
        number.map(Some).ok_or_else(|| {
            ApiError::BadRequest(format!(
                "query parameter {name:?} is a whole number up to {NUMBER_MAX}, not {text:?}"
            ))
        })
    }

    /// `timeout`, or the default; never more than the most that is allowed.
    pub(super) fn timeout(&self, default: Duration, most: Duration) -> Result<Duration, ApiError> {
        let Some(text) = self.text("timeout")? else { return Ok(default) };
        let given = parse_duration(text).ok_or_else(|| {
            ApiError::BadRequest(format!(
                "query parameter \"timeout\" is a duration such as 500ms or 5s, not {text:?}"
            ))
        })?;
        if given.is_zero() || given > most {
            return Err(ApiError::BadRequest(format!(
                "query parameter \"timeout\" lies between 1ms and {most:?}"
            )));
        }
        Ok(given)
    }
}

/// `If-Match` and `If-None-Match` (RFC 9110, 13.1). The first compares strongly, so weak
/// tags never match it.
pub(super) fn conditions(headers: &HeaderMap) -> Result<Conditions, ApiError> {
    Ok(Conditions {
        if_match: tags(headers, &header::IF_MATCH, false)?,
        if_none_match: tags(headers, &header::IF_NONE_MATCH, true)?,
    })
}

fn tags(
    headers: &HeaderMap,
    name: &header::HeaderName,
    weak_match: bool,
) -> Result<Option<Tags>, ApiError> {
    let malformed = |why: &str| ApiError::BadRequest(format!("header {name}: {why}"));
    let mut list = Vec::new();
    let mut any = false;
    let mut seen = false;
    for value in headers.get_all(name) {
        seen = true;
        let text = value.to_str().map_err(|_| malformed("not ASCII"))?;
        for tag in text.split(',').map(str::trim) {
            if tag == "*" {
                any = true;
                continue;
            }
            let (weak, quoted) = match tag.strip_prefix("W/") {
                Some(rest) => (true, rest),
                None => (false, tag),
            };
            let opaque = quoted
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'))
                .filter(|opaque| !opaque.contains('"'))
                .ok_or_else(|| malformed("expected *, or tags in double quotes"))?;
            // A tag that is no revision is nobody's, so it matches nothing.
            if let Ok(revision) = opaque.parse()
                && (weak_match || !weak)
            {
                list.push(revision);
            }
        }
    }
    match (seen, any, list.is_empty()) {
        (false, ..) => Ok(None),
        (true, true, true) => Ok(Some(Tags::Any)),
        (true, true, false) => Err(malformed("* stands alone")),
        (true, false, _) => Ok(Some(Tags::Revisions(list))),
    }
}

/// Reads a body of at most `limit` bytes. Refuses what is larger before buffering it.
pub(super) async fn body(
    headers: &HeaderMap,
    body: Body,
    limit: u64,
    http: &Http,
) -> Result<Bytes, ApiError> {
    counted_body(headers, body, limit, http, |_| Ok(())).await
}

/// The same, telling `count` how many bytes of it there are each time some came.
pub(super) async fn counted_body(
    headers: &HeaderMap,
    mut body: Body,
    limit: u64,
    http: &Http,
    mut count: impl FnMut(u64) -> Result<(), ApiError>,
) -> Result<Bytes, ApiError> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(actual) = length.filter(|actual| *actual > limit) {
        return Err(ApiError::TooLarge { limit, actual: Some(actual) });
    }
    let start = Instant::now();
    let mut whole = BytesMut::new();
    loop {
        let earned = Duration::from_secs(whole.len() as u64 / BODY_RATE);
        let frame = timeout_at(start + http.body_timeout + earned, body.frame()).await;
        let frame = frame.map_err(|_| ApiError::TooSlow)?;
        let Some(frame) = frame else { return Ok(whole.freeze()) };
        let frame =
            frame.map_err(|error| ApiError::BadRequest(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() as u64 + data.len() as u64 > limit {
            return Err(ApiError::TooLarge { limit, actual: None });
        }
        count((whole.len() + data.len()) as u64)?;
        if whole.is_empty() && length == Some(data.len() as u64) {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
}

/// The value of field `name` in a form body.
pub(super) fn form_field(body: &[u8], name: &str) -> Result<Vec<u8>, ApiError> {
    let text = std::str::from_utf8(body)
        .map_err(|_| ApiError::BadRequest("the form is not ASCII".into()))?;
    for pair in text.split('&') {
        let (field, value) = pair.split_once('=').unwrap_or((pair, ""));
        if percent_decode(field, true)? == name.as_bytes() {
            return percent_decode(value, true);
        }
    }
    Err(ApiError::BadRequest(format!("the form has no field {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_decoded_once_and_nothing_else_happens_to_them() {
        for (path, want) in [
            ("/v1/keys/a", &b"a"[..]),
            ("/v1/keys/a/b", b"a/b"),
            ("/v1/keys/a%2Fb", b"a/b"),
            ("/v1/keys//", b"/"),
            ("/v1/keys/a/../b", b"a/../b"),
            ("/v1/keys/%252e", b"%2e"),
            ("/v1/keys/%00%ff", b"\x00\xff"),
            ("/v1/keys/a+b", b"a+b"),
            ("/v1/keys/trail/", b"trail/"),
        ] {
            assert_eq!(key(&uri(path), "/v1/keys/").unwrap(), want, "{path}");
        }
        for path in ["/v1/keys/", "/v1/keys/%", "/v1/keys/%zz", "/v1/keys/%4"] {
            assert!(key(&uri(path), "/v1/keys/").is_err(), "{path}");
        }
        let long = format!("/v1/keys/{}", "k".repeat(KEY_MAX + 1));
        let refused = key(&uri(&long), "/v1/keys/");
        assert_eq!(refused, Err(ApiError::KeyTooLarge { limit: 4096, actual: 4097 }));
    }

    #[test]
    fn conditions_are_read_as_rfc_9110_says() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            conditions(&headers)
        };
        let if_match = |value: &str| read("if-match", value).unwrap().if_match;
        assert_eq!(if_match("*"), Some(Tags::Any));
        assert_eq!(if_match("\"7\", \"9\""), Some(Tags::Revisions(vec![7, 9])));
        assert_eq!(if_match("W/\"7\""), Some(Tags::Revisions(vec![])), "weak never matches");
        assert_eq!(if_match("\"abc\""), Some(Tags::Revisions(vec![])));
        let none = read("if-none-match", "W/\"7\"").unwrap().if_none_match;
        assert_eq!(none, Some(Tags::Revisions(vec![7])));
        for bad in ["7", "\"7", "*, \"7\"", "\"a\"b\"", ""] {
            assert!(read("if-match", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_must_be_known_and_given_once() {
        let query = Query::parse(&uri("/x?a=1&b=%ff&c"), &["a", "b", "c"]).unwrap();
        assert_eq!(query.number("a").unwrap(), Some(1));
        assert_eq!(query.bytes("b"), Some(&b"\xff"[..]));
        assert!(query.flag("c").unwrap());
        assert!(query.text("b").is_err());
        for bad in ["/x?d=1", "/x?a=1&a=2", "/x?a=%"] {
            assert!(Query::parse(&uri(bad), &["a"]).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_may_be_repeated_is() {
        let parse = |text: &str| Query::parse_repeated(&uri(text), &["a", "b"], &["a"]);
        let query = parse("/x?a=1&b=2&a=%33").unwrap();
        let pairs: Vec<_> = query.pairs().collect();
        assert_eq!(pairs, [("a", &b"1"[..]), ("b", b"2"), ("a", b"3")]);
        assert!(parse("/x?a=1&b=2&b=3").is_err());
        assert!(parse("/x?c=1").is_err());
    }
}
