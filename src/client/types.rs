//! What the service answers, as Rust.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};

use super::error::Error;
use crate::config::parse_duration;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged before.
    #[default]
    Linearizable,
    /// The same without a round trip, where `raft.lease` is on.
    Lease,
    /// The replica that is asked, as it is.
    Stale,
}

impl Consistency {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Stale => "stale",
        }
    }
}

/// A key with its value and all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value; empty where only keys were asked for.
    pub value: Bytes,
    /// As given when it was written.
    pub content_type: String,
    /// Revision that created the key.
    pub create_revision: u64,
    /// Revision that last wrote it.
    pub mod_revision: u64,
    /// Writes since its creation.
    pub version: u64,
    /// The lease it hangs on.
    pub lease: Option<u64>,
    /// Time it has left.
    pub ttl: Option<Duration>,
}

/// Bytes in JSON: as text, or in base64 under another name.
#[derive(Deserialize)]
pub(super) struct RawEntry {
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    encoding: Option<String>,
    #[serde(default)]
    content_type: String,
    create_revision: u64,
    mod_revision: u64,
    version: u64,
    lease: Option<u64>,
    ttl: Option<String>,
}

pub(super) fn bytes_of(
    text: Option<String>,
    base64: Option<String>,
    what: &str,
) -> Result<Bytes, Error> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(base64)) => {
            let wrong = |error| Error::Unexpected(format!("{what} is no base64: {error}"));
            STANDARD.decode(base64).map(Bytes::from).map_err(wrong)
        }
        (None, None) | (Some(_), Some(_)) => Err(Error::Unexpected(format!("no {what}"))),
    }
}

pub(super) fn value_of(value: Option<String>, encoding: Option<&str>) -> Result<Bytes, Error> {
    match (value, encoding) {
        (None, _) => Ok(Bytes::new()),
        (Some(value), Some("base64")) => bytes_of(None, Some(value), "value"),
        (Some(value), _) => Ok(value.into()),
    }
}

pub(super) fn ttl_of(text: Option<&str>) -> Result<Option<Duration>, Error> {
    let read = |text: &str| {
        parse_duration(text).ok_or_else(|| Error::Unexpected(format!("{text:?} is no duration")))
    };
    text.map(read).transpose()
}

impl TryFrom<RawEntry> for Entry {
    type Error = Error;

    fn try_from(raw: RawEntry) -> Result<Self, Error> {
        Ok(Self {
            key: bytes_of(raw.key, raw.key_b64, "key")?,
            value: value_of(raw.value, raw.encoding.as_deref())?,
            content_type: raw.content_type,
            create_revision: raw.create_revision,
            mod_revision: raw.mod_revision,
            version: raw.version,
            lease: raw.lease,
            ttl: ttl_of(raw.ttl.as_deref())?,
        })
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        RawEntry::deserialize(input)?.try_into().map_err(serde::de::Error::custom)
    }
}

fn ttl<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(input)?;
    ttl_of(text.as_deref()).map_err(serde::de::Error::custom)
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Written {
    /// The revision of the write.
    pub revision: u64,
    /// Revision that created the key.
    pub create_revision: u64,
    /// Writes since its creation.
    pub version: u64,
    /// Was it created by this write?
    pub created: bool,
    /// The lease it hangs on.
    pub lease: Option<u64>,
    /// Time it has.
    #[serde(default, deserialize_with = "ttl")]
    pub ttl: Option<Duration>,
    /// What was there before, if it was asked for and there was something.
    pub prev: Option<Entry>,
}

/// What a delete did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Deleted {
    /// How many keys were removed.
    pub deleted: u64,
    /// The revision of the change, or the store's when nothing was there.
    pub revision: u64,
    /// What was there before, if it was asked for and there was something.
    #[serde(default)]
    pub prev: Option<Entry>,
}

/// A key after its time to live was changed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Touched {
    /// Revision that last wrote it: unchanged.
    pub mod_revision: u64,
    /// The lease it hangs on.
    pub lease: Option<u64>,
    /// Time it has.
    #[serde(default, deserialize_with = "ttl")]
    pub ttl: Option<Duration>,
}

/// One page of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Page {
    /// The revision that the listing is of: the same on all its pages.
    pub revision: u64,
    /// Keys in order.
    pub items: Vec<Entry>,
    /// Groups of keys that share everything up to the delimiter.
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// Items and prefixes of this page, or all keys of the range when only that was asked for.
    pub count: u64,
    /// Is there more?
    pub more: bool,
    /// The cursor of the next page.
    pub next: Option<String>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Lease {
    /// Its id.
    pub id: u64,
    /// How long it lasts without a sign of life.
    #[serde(default, deserialize_with = "ttl")]
    pub ttl: Option<Duration>,
}

/// Leases in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Leases {
    /// Some of them.
    pub leases: Vec<super::LeaseInfo>,
    /// Are there more?
    pub more: bool,
    /// After which the next page begins.
    pub next: Option<u64>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The revision.
    pub revision: u64,
    /// Which key.
    pub key: Bytes,
    /// What was written.
    pub value: Bytes,
    /// As given when it was written.
    pub content_type: String,
    /// Writes since its creation; of a put.
    pub version: Option<u64>,
    /// Revision that created the key; of a put.
    pub create_revision: Option<u64>,
    /// What was there before, if it was asked for and there was something.
    pub prev: Option<Entry>,
    /// `request`, `ttl` or `lease`.
    pub reason: String,
}

#[derive(Deserialize)]
pub(super) struct RawChange {
    #[serde(rename = "type")]
    kind: ChangeKind,
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    encoding: Option<String>,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(alias = "revision")]
    mod_revision: Option<u64>,
    version: Option<u64>,
    create_revision: Option<u64>,
    prev: Option<Entry>,
    #[serde(default)]
    reason: String,
}

impl RawChange {
    /// `known`: the key and the revision, where the change itself does not say.
    pub(super) fn read(self, key: Option<&Bytes>, revision: u64) -> Result<Change, Error> {
        let named = match (&self.key, &self.key_b64, key) {
            (None, None, Some(key)) => key.clone(),
            _ => bytes_of(self.key, self.key_b64, "key")?,
        };
        Ok(Change {
            kind: self.kind,
            revision: self.mod_revision.unwrap_or(revision),
            key: named,
            value: value_of(self.value, self.encoding.as_deref())?,
            content_type: self.content_type.unwrap_or_default(),
            version: self.version,
            create_revision: self.create_revision,
            prev: self.prev,
            reason: self.reason,
        })
    }
}

/// What happened to one key, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Its changes.
    pub changes: Vec<Change>,
    /// Are there older ones that are still known?
    pub more: bool,
}
