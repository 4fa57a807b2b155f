//! One line of a batch: what it says, and what became of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::envelope::Encoding;
use super::error::{ApiError, Problem};
use super::propose::ttl_ms;
use crate::machine::{
    Applied, CONTENT_TYPE_MAX, Conditions, Content, KEY_MAX, Life, Tags, Write, Written,
};

/// Most revisions in one condition.
const TAGS_MAX: u64 = 1024;
/// What a write takes in an entry besides its bytes, at most.
const WRITE_BYTES: usize = 64;

/// One write of a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum BatchLine {
    /// Write a key.
    Put(BatchPut),
    /// Remove a key.
    Delete(BatchDelete),
}

/// Write a key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"key": "color", "value": "blue", "ttl": "30s", "if_none_match": "*"}))]
pub(super) struct BatchPut {
    /// The key, when it is UTF-8.
    key: Option<String>,
    /// The key in base64.
    key_b64: Option<String>,
    /// The value, as `encoding` says.
    value: String,
    /// How `value` is written; `utf-8` is the default.
    #[schema(value_type = Option<Encoding>)]
    encoding: Option<String>,
    /// Stored with the value.
    content_type: Option<String>,
    /// Removed after that time, such as `30s`.
    ttl: Option<String>,
    /// The lease it hangs on.
    lease: Option<u64>,
    /// `*`, or revisions that it must be at.
    if_match: Option<GivenTags>,
    /// `*`, or revisions that it must not be at.
    if_none_match: Option<GivenTags>,
}

/// Remove a key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"key": "color", "if_match": [9]}))]
pub(super) struct BatchDelete {
    /// The key, when it is UTF-8.
    key: Option<String>,
    /// The key in base64.
    key_b64: Option<String>,
    /// `*`, or revisions that it must be at.
    if_match: Option<GivenTags>,
    /// `*`, or revisions that it must not be at.
    if_none_match: Option<GivenTags>,
}

/// The right side of a condition: `"*"`, or a list of revisions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected \"*\" or a list of revisions")]
pub(super) enum GivenTags {
    /// `"*"`: any version.
    Any(String),
    /// These.
    Revisions(Vec<u64>),
}

/// What became of one line.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum BatchAnswer {
    /// A key was written.
    Put {
        /// The number of the line, from 1.
        line: u64,
        /// 201: created, 200: replaced.
        status: u16,
        /// The revision of this write.
        revision: u64,
        /// Revision that created the key.
        create_revision: u64,
        /// Writes since its creation.
        version: u64,
    },
    /// A key is gone.
    Deleted {
        /// The number of the line, from 1.
        line: u64,
        /// 200.
        status: u16,
        /// Keys removed: 0 or 1.
        deleted: u64,
        /// The revision of the change, or the store's when nothing was there.
        revision: u64,
    },
    /// It did not happen, or nobody knows.
    Refused(Box<BatchRefused>),
    /// The last line.
    End {
        /// Always true.
        end: bool,
        /// Lines that were answered.
        lines: u64,
        /// How many of them happened.
        applied: u64,
    },
}

/// A line that did not happen, or with `outcome` `unknown` nobody knows.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchRefused {
    /// The number of the line, from 1.
    line: u64,
    #[serde(flatten)]
    problem: Problem,
}

impl BatchAnswer {
    /// What a write of a batch did.
    pub(super) fn of(line: u64, applied: Applied, request_id: &str) -> Self {
        if let Applied::Put(Written { revision, create_revision, version, .. }) = applied {
            let status = if version == 1 { 201 } else { 200 };
            return Self::Put { line, status, revision, create_revision, version };
        }
        if let Applied::Deleted { deleted, revision, .. } = applied {
            return Self::Deleted { line, status: 200, deleted, revision };
        }
        Self::refused(line, &ApiError::of(applied), request_id)
    }

    pub(super) fn refused(line: u64, error: &ApiError, request_id: &str) -> Self {
        Self::Refused(Box::new(BatchRefused { line, problem: error.problem(request_id) }))
    }
}

/// Reads one line. What is malformed is [`ApiError::BadRequest`], everything else concerns
/// this line alone.
pub(super) fn read(line: &[u8], value_max: u64) -> Result<Write, ApiError> {
    let malformed = |error| ApiError::BadRequest(format!("not a write: {error}"));
    match serde_json::from_slice(line).map_err(malformed)? {
        BatchLine::Put(put) => {
            let life = life(put.ttl.as_deref(), put.lease)?;
            let value = value(put.value, put.encoding.as_deref())?;
            let content_type = content_type(put.content_type)?;
            let conditions = conditions(put.if_match, put.if_none_match)?;
            let key = key(put.key, put.key_b64)?;
            let actual = value.len() as u64;
            if actual > value_max {
                return Err(ApiError::TooLarge { limit: value_max, actual: Some(actual) });
            }
            Ok(Write { key, put: Some(Content { value, content_type, life }), conditions })
        }
        BatchLine::Delete(delete) => Ok(Write {
            conditions: conditions(delete.if_match, delete.if_none_match)?,
            key: key(delete.key, delete.key_b64)?,
            put: None,
        }),
    }
}

/// About how many bytes a write takes in an entry.
pub(super) fn weight(write: &Write) -> usize {
    let tags = |tags: &Option<Tags>| match tags {
        Some(Tags::Revisions(list)) => 8 * list.len(),
        Some(Tags::Any) | None => 0,
    };
    let content = |put: &Content| put.value.len() + put.content_type.len();
    let conditions = tags(&write.conditions.if_match) + tags(&write.conditions.if_none_match);
    WRITE_BYTES + write.key.len() + write.put.as_ref().map_or(0, content) + conditions
}

fn base64(text: &str, field: &str) -> Result<Bytes, ApiError> {
    let wrong = |error| ApiError::BadRequest(format!("{field} is not base64: {error}"));
    STANDARD.decode(text).map(Bytes::from).map_err(wrong)
}

fn key(text: Option<String>, encoded: Option<String>) -> Result<Bytes, ApiError> {
    let key: Bytes = match (text, encoded) {
        (Some(text), None) => text.into(),
        (None, Some(encoded)) => base64(&encoded, "key_b64")?,
        (None, None) | (Some(_), Some(_)) => {
            return Err(ApiError::BadRequest("a write has a key or a key_b64".into()));
        }
    };
    if key.is_empty() {
        return Err(ApiError::BadRequest("a key has at least one byte".into()));
    }
    if key.len() > KEY_MAX {
        return Err(ApiError::KeyTooLarge { limit: KEY_MAX as u64, actual: key.len() as u64 });
    }
    Ok(key)
}

fn value(text: String, encoding: Option<&str>) -> Result<Bytes, ApiError> {
    match encoding {
        None | Some("utf-8") => Ok(text.into()),
        Some("base64") => base64(&text, "value"),
        Some(other) => {
            Err(ApiError::BadRequest(format!("encoding is utf-8 or base64, not {other:?}")))
        }
    }
}

fn content_type(given: Option<String>) -> Result<String, ApiError> {
    let given = given.unwrap_or_default();
    // It goes into a header as it is.
    let visible = given.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if given.len() > CONTENT_TYPE_MAX || !visible {
        return Err(ApiError::BadRequest(format!(
            "content_type: expected at most {CONTENT_TYPE_MAX} bytes of visible ASCII"
        )));
    }
    Ok(given)
}

fn life(ttl: Option<&str>, lease: Option<u64>) -> Result<Life, ApiError> {
    match (ttl, lease) {
        (None, None) => Ok(Life::Endless),
        (Some(ttl), None) => ttl_ms(ttl).map(Life::Ttl),
        (None, Some(0)) => Err(ApiError::NotFound("there is no lease 0".into())),
        (None, Some(id)) => Ok(Life::Lease(id)),
        (Some(_), Some(_)) => {
            Err(ApiError::BadRequest("ttl does not go with lease: a key has one end".into()))
        }
    }
}

fn conditions(
    if_match: Option<GivenTags>,
    if_none_match: Option<GivenTags>,
) -> Result<Conditions, ApiError> {
    let tags = |given: Option<GivenTags>| match given {
        None => Ok(None),
        Some(GivenTags::Any(text)) if text == "*" => Ok(Some(Tags::Any)),
        Some(GivenTags::Any(text)) => Err(ApiError::BadRequest(format!(
            "a condition is \"*\" or a list of revisions, not {text:?}"
        ))),
        Some(GivenTags::Revisions(list)) if list.len() as u64 > TAGS_MAX => Err(ApiError::Beyond {
            what: "revisions in a condition",
            limit: TAGS_MAX,
            actual: list.len() as u64,
        }),
        Some(GivenTags::Revisions(list)) => Ok(Some(Tags::Revisions(list))),
    };
    Ok(Conditions { if_match: tags(if_match)?, if_none_match: tags(if_none_match)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(line: &str) -> u16 {
        read(line.as_bytes(), 4).expect_err(line).problem("").status
    }

    #[test]
    fn a_line_says_what_is_written_and_when() {
        let line = r#"{"put":{"key":"a","value":"AAE=","encoding":"base64","content_type":"x/y",
            "ttl":"2s","if_match":[3,4],"if_none_match":"*"}}"#;
        let want = Write {
            key: "a".into(),
            put: Some(Content {
                value: Bytes::from_static(&[0, 1]),
                content_type: "x/y".into(),
                life: Life::Ttl(2000),
            }),
            conditions: Conditions {
                if_match: Some(Tags::Revisions(vec![3, 4])),
                if_none_match: Some(Tags::Any),
            },
        };
        assert_eq!(read(line.as_bytes(), 4), Ok(want));
        let delete = read(br#"{"delete":{"key_b64":"/w=="}}"#, 4).expect("a write");
        assert_eq!((&delete.key[..], delete.put), (&b"\xff"[..], None));
    }

    #[test]
    fn what_is_malformed_is_told_from_what_is_impossible() {
        for line in [
            "",
            "[]",
            "\"put\"",
            r#"{"put":{"key":"a","value":"1"}} x"#,
            r#"{"put":{"key":"a"}}"#,
            r#"{"put":{"value":"1"}}"#,
            r#"{"put":{"key":"","value":"1"}}"#,
            r#"{"put":{"key":"a","key_b64":"YQ==","value":"1"}}"#,
            r#"{"put":{"key_b64":"?","value":"1"}}"#,
            r#"{"put":{"key":"a","value":1}}"#,
            r#"{"put":{"key":"a","value":"1","colour":"x"}}"#,
            r#"{"put":{"key":"a","value":"1","encoding":"hex"}}"#,
            r#"{"put":{"key":"a","value":"1","encoding":"base64"}}"#,
            r#"{"put":{"key":"a","value":"1","content_type":"a\nb"}}"#,
            r#"{"put":{"key":"a","value":"1","ttl":"soon"}}"#,
            r#"{"put":{"key":"a","value":"1","ttl":"1s","lease":1}}"#,
            r#"{"put":{"key":"a","value":"1","if_match":"7"}}"#,
            r#"{"put":{"key":"a","value":"1","if_match":7}}"#,
            r#"{"put":{"key":"a","value":"1"},"delete":{"key":"a"}}"#,
            r#"{"delete":{"key":"a","value":"1"}}"#,
            r#"{"get":{"key":"a"}}"#,
        ] {
            assert_eq!(status(line), 400, "{line}");
        }
        assert_eq!(status(r#"{"put":{"key":"a","value":"12345"}}"#), 413);
        assert_eq!(status(r#"{"put":{"key":"a","value":"1","lease":0}}"#), 404);
        let long = format!(r#"{{"delete":{{"key":"{}"}}}}"#, "k".repeat(KEY_MAX + 1));
        assert_eq!(status(&long), 414);
        let tags = vec!["1"; 1025].join(",");
        assert_eq!(status(&format!(r#"{{"delete":{{"key":"a","if_match":[{tags}]}}}}"#)), 422);
    }
}
