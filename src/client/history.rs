//! What happened to keys: changes, as the history and watches tell them.

use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::keys::{Answer, path_of_history};
use super::transport::{Call, Client, Kind};
use super::types::{Consistency, Entry, RawEntry, bytes_of, value_of};

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
}

/// Why a key changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// Somebody asked for it.
    Request,
    /// Its time to live was over.
    Ttl,
    /// Its lease was.
    Lease,
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
    /// What was written; empty where only keys were asked for.
    pub value: Bytes,
    /// As given when it was written.
    pub content_type: String,
    /// Writes since its creation; of a put.
    pub version: Option<u64>,
    /// Revision that created the key; of a put.
    pub create_revision: Option<u64>,
    /// What was there before, if a watch asked for it and there was something.
    pub prev: Option<Entry>,
    /// The change before, of the history, if there was one.
    pub prev_revision: Option<u64>,
    /// Why.
    pub reason: Reason,
}

#[derive(Deserialize)]
pub(super) struct RawChange {
    #[serde(rename = "type")]
    kind: ChangeKind,
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    encoding: Option<String>,
    content_type: Option<String>,
    #[serde(alias = "mod_revision")]
    revision: u64,
    version: Option<u64>,
    create_revision: Option<u64>,
    prev: Option<RawEntry>,
    prev_revision: Option<u64>,
    reason: Reason,
}

impl RawChange {
    /// `known`: the key, where the change itself does not say.
    pub(super) fn read(self, known: Option<&Bytes>) -> Result<Change, Error> {
        let key = match (self.key, self.key_b64, known) {
            (None, None, Some(key)) => key.clone(),
            (text, base64, _) => bytes_of(text, base64, "key")?,
        };
        Ok(Change {
            kind: self.kind,
            revision: self.revision,
            value: value_of(self.value, self.encoding.as_deref())?,
            content_type: self.content_type.unwrap_or_default(),
            version: self.version,
            create_revision: self.create_revision,
            prev: self.prev.map(|prev| prev.read(Some(&key))).transpose()?,
            prev_revision: self.prev_revision,
            reason: self.reason,
            key,
        })
    }
}

/// What happened to one key, newest first: one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Its changes.
    pub changes: Vec<Change>,
    /// The store's revision that this was read at.
    pub revision: u64,
    /// What [`Past::before`] is for the next page; `None`: nothing older is known.
    pub next_before: Option<u64>,
    /// Changes after this revision are known.
    pub oldest_revision: u64,
}

/// A look at the past of a key; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Past {
    client: Client,
    call: Call,
    key: Bytes,
}

impl Client {
    /// What happened to a key, newest first, as far as the history reaches.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// for change in client.history("color").limit(10).await?.changes {
    ///     println!("{} {:?} {:?}", change.revision, change.kind, change.value);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn history(&self, key: impl AsRef<[u8]>) -> Past {
        let key = Bytes::copy_from_slice(key.as_ref());
        let call = Call::new(Method::GET, path_of_history(&key), Kind::Read);
        Past { client: self.clone(), call, key }
    }
}

impl Past {
    /// At most so many changes.
    #[must_use]
    pub fn limit(mut self, limit: u64) -> Self {
        self.call = self.call.number("limit", limit);
        self
    }

    /// Only those before that revision.
    #[must_use]
    pub fn before(mut self, revision: u64) -> Self {
        self.call = self.call.number("before", revision);
        self
    }

    /// How fresh it must be.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.call = self.call.query("consistency", consistency.as_str());
        self
    }
}

impl IntoFuture for Past {
    type Output = Result<History, Error>;
    type IntoFuture = Answer<History>;

    fn into_future(self) -> Self::IntoFuture {
        #[derive(Deserialize)]
        struct Raw {
            items: Vec<RawChange>,
            revision: u64,
            next_before: Option<u64>,
            oldest_revision: u64,
        }
        Box::pin(async move {
            let raw: Raw = self.client.json(self.call).await?;
            let changes = raw.items.into_iter().map(|change| change.read(Some(&self.key)));
            Ok(History {
                changes: changes.collect::<Result<_, _>>()?,
                revision: raw.revision,
                next_before: raw.next_before,
                oldest_revision: raw.oldest_revision,
            })
        })
    }
}
