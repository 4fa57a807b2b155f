//! What the service answers, as Rust.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use super::error::Error;
use super::show;
use super::transport::escape;
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
    /// Bytes of the value, also where only keys were asked for.
    pub size: u64,
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

/// A key as the service shows it: bytes as text, or in base64 under another name.
#[derive(Deserialize)]
pub(super) struct RawEntry {
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    encoding: Option<String>,
    #[serde(default)]
    content_type: String,
    size: u64,
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

impl RawEntry {
    /// `known`: the key, where the entry itself does not say.
    pub(super) fn read(self, known: Option<&Bytes>) -> Result<Entry, Error> {
        let key = match (self.key, self.key_b64, known) {
            (None, None, Some(key)) => key.clone(),
            (text, base64, _) => bytes_of(text, base64, "key")?,
        };
        Ok(Entry {
            key,
            value: value_of(self.value, self.encoding.as_deref())?,
            content_type: self.content_type,
            size: self.size,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
            ttl: ttl_of(self.ttl.as_deref())?,
        })
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        RawEntry::deserialize(input)?.read(None).map_err(serde::de::Error::custom)
    }
}

pub(super) fn fence(lock: &[u8], token: u64) -> String {
    format!("{};{token}", escape(lock, true))
}

pub(super) fn ttl<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(input)?;
    ttl_of(text.as_deref()).map_err(serde::de::Error::custom)
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// Time it has.
    #[serde(
        default,
        deserialize_with = "ttl",
        serialize_with = "show::ttl",
        skip_serializing_if = "Option::is_none"
    )]
    pub ttl: Option<Duration>,
    /// What was there before, if it was asked for and there was something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev: Option<Entry>,
}

/// What a delete of one key, of a range or of a lease did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Deleted {
    /// How many keys were removed.
    pub deleted: u64,
    /// The revision of the change, or the store's when nothing was there.
    pub revision: u64,
    /// What was there before, if it was one key, it was asked for and there was something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Entry>,
}

/// A key after its time to live was changed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Touched {
    /// Revision that last wrote it: unchanged.
    pub mod_revision: u64,
    /// The lease it hangs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// Time it has.
    #[serde(
        default,
        deserialize_with = "ttl",
        serialize_with = "show::ttl",
        skip_serializing_if = "Option::is_none"
    )]
    pub ttl: Option<Duration>,
}
