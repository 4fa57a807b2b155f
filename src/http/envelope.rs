//! How keys and values look in JSON.

use std::time::Duration;

use base64::Engine;
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::show_duration;
use crate::machine::Record;

/// The type of a value that was written without one.
pub(super) const BYTES: &str = "application/octet-stream";

/// Any bytes.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(super) struct RawValue(#[expect(dead_code, reason = "only described, never built")] Vec<u8>);

/// A key with its value and all that is known of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "key": "color", "value": "blue", "encoding": "utf-8", "content_type": "text/plain", "size": 4,
    "create_revision": 7, "mod_revision": 9, "version": 2, "lease": null, "ttl": null
}))]
pub(super) struct Envelope {
    /// The key, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    /// The value, as `encoding` says; absent when only keys were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// How `value` is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
    /// As given when it was written.
    content_type: String,
    /// Bytes of the value.
    size: u64,
    /// Revision that created the key.
    create_revision: u64,
    /// Revision that last wrote it; its `ETag`.
    mod_revision: u64,
    /// Writes since its creation.
    version: u64,
    /// The lease it hangs on.
    lease: Option<u64>,
    /// What it has left of the time it was given, by the clock of the log; a key on a lease has
    /// none of its own.
    ttl: Option<String>,
}

/// How bytes are written in JSON.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) enum Encoding {
    /// As text.
    #[serde(rename = "utf-8")]
    Utf8,
    /// In standard base64.
    #[serde(rename = "base64")]
    Base64,
}

/// What a successful write answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "key": "color", "revision": 9, "create_revision": 7, "version": 2, "created": false,
    "lease": null, "ttl": null
}))]
pub(super) struct Written {
    /// The key, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_b64: Option<String>,
    /// The revision of this write.
    pub(super) revision: u64,
    /// Revision that created the key.
    pub(super) create_revision: u64,
    /// Writes since its creation.
    pub(super) version: u64,
    /// Was it created by this write?
    pub(super) created: bool,
    /// The lease it hangs on.
    pub(super) lease: Option<u64>,
    /// The time it was given.
    pub(super) ttl: Option<String>,
    /// What was there before, if it was asked for and there was something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prev: Option<Envelope>,
}

/// What a key is after its end was changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"key": "color", "mod_revision": 9, "lease": null, "ttl": "30s"}))]
pub(super) struct Touched {
    /// The key, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_b64: Option<String>,
    /// Revision that last wrote it, unchanged; its `ETag`.
    pub(super) mod_revision: u64,
    /// The lease it hangs on.
    pub(super) lease: Option<u64>,
    /// The time it was given.
    pub(super) ttl: Option<String>,
}

/// What a successful delete answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"deleted": 1, "revision": 10}))]
pub(super) struct Deleted {
    /// Keys removed: 0 or 1.
    pub(super) deleted: u64,
    /// The revision of the change, or the store's when nothing was there.
    pub(super) revision: u64,
    /// What was there before, if it was asked for and there was something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prev: Option<Envelope>,
}

/// Bytes as text where they are text, else as base64.
pub(super) fn shown(bytes: &[u8]) -> (String, Encoding) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), Encoding::Utf8),
        Err(_) => (base64::engine::general_purpose::STANDARD.encode(bytes), Encoding::Base64),
    }
}

/// A key as the two fields it may appear in.
pub(super) fn shown_key(key: &[u8]) -> (Option<String>, Option<String>) {
    match shown(key) {
        (text, Encoding::Utf8) => (Some(text), None),
        (text, Encoding::Base64) => (None, Some(text)),
    }
}

impl Envelope {
    /// `now_ms`: the clock of the log. `with_value`: else only what is known of it.
    pub(super) fn new(key: &[u8], record: &Record<'_>, now_ms: u64, with_value: bool) -> Self {
        let (key, key_b64) = shown_key(key);
        let (value, encoding) = with_value.then(|| shown(record.value)).unzip();
        Self {
            key,
            key_b64,
            value,
            encoding,
            content_type: content_type(record).to_owned(),
            size: record.value.len() as u64,
            create_revision: record.create_revision,
            mod_revision: record.mod_revision,
            version: record.version,
            lease: shown_lease(record.lease),
            ttl: shown_left(record.expiry_ms, now_ms),
        }
    }
}

/// A lease; 0: none.
pub(super) fn shown_lease(id: u64) -> Option<u64> {
    (id != 0).then_some(id)
}

/// A time to live in milliseconds; 0: none.
pub(super) fn shown_ttl(ms: u64) -> Option<String> {
    (ms != 0).then(|| show_duration(Duration::from_millis(ms)))
}

/// What is left until `expiry_ms`, 0: for ever. What is over and not yet removed has a little.
pub(super) fn shown_left(expiry_ms: u64, now_ms: u64) -> Option<String> {
    if expiry_ms == 0 { None } else { shown_ttl(expiry_ms.saturating_sub(now_ms).max(1)) }
}

pub(super) fn content_type<'a>(record: &Record<'a>) -> &'a str {
    if record.content_type.is_empty() { BYTES } else { record.content_type }
}
