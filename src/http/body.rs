//! What bodies in JSON have in common: unknown fields are refused, and bytes that are no text
//! travel in base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::error::ApiError;

/// How a value is written in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub(super) enum ValueEncoding {
    /// As text.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// In standard base64.
    #[serde(rename = "base64")]
    Base64,
}

/// A body in JSON.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // serde would take a list of the fields for an object.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::BadRequest("the body has to be a JSON object".into()));
    }
    serde_json::from_slice(body).map_err(|error| {
        ApiError::BadRequest(format!("the body is not what it should be: {error}"))
    })
}

/// The bytes of a value.
pub(super) fn value(text: String, encoding: ValueEncoding) -> Result<Bytes, ApiError> {
    match encoding {
        ValueEncoding::Utf8 => Ok(text.into()),
        ValueEncoding::Base64 => base64("value", &text),
    }
}

/// The bytes of what is given as `name` or `name_b64`, not as both.
pub(super) fn bytes(
    name: &str,
    text: Option<String>,
    encoded: Option<String>,
) -> Result<Option<Bytes>, ApiError> {
    match (text, encoded) {
        (Some(_), Some(_)) => {
            Err(ApiError::BadRequest(format!("give {name} or {name}_b64, not both")))
        }
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(encoded)) => base64(&format!("{name}_b64"), &encoded).map(Some),
        (None, None) => Ok(None),
    }
}

fn base64(field: &str, text: &str) -> Result<Bytes, ApiError> {
    let decoded = STANDARD.decode(text).map_err(|error| {
        ApiError::BadRequest(format!("{field} is not in standard base64: {error}"))
    })?;
    Ok(decoded.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_once() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(bytes("key", some("a"), None), Ok(Some("a".into())));
        assert_eq!(bytes("key", None, some("/w==")), Ok(Some(Bytes::from_static(b"\xff"))));
        assert_eq!(bytes("key", None, None), Ok(None));
        for (text, encoded) in [(some("a"), some("YQ==")), (None, some("/w")), (None, some("a b"))]
        {
            assert!(bytes("key", text.clone(), encoded.clone()).is_err(), "{text:?} {encoded:?}");
        }
        assert_eq!(value("/w==".into(), ValueEncoding::Utf8), Ok("/w==".into()));
        assert_eq!(value("/w==".into(), ValueEncoding::Base64), Ok(Bytes::from_static(b"\xff")));
    }
}
