//! Keys: read, write, remove, list, look back.

use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::error::Error;
use super::transport::{Call, Client, Kind, escape};
use super::types::{Consistency, Deleted, Entry, History, Page, RawChange, Touched, Written};
use crate::config::show_duration;

/// What `.await` on a request waits for.
type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

pub(super) fn path_of(key: &[u8]) -> String {
    format!("/v1/keys/{}", escape(key, true))
}

/// Bytes as one of the two fields they may appear in.
pub(super) fn field(name: &str, bytes: &[u8]) -> (String, serde_json::Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), text.into()),
        Err(_) => (format!("{name}_b64"), STANDARD.encode(bytes).into()),
    }
}

fn tags(revisions: &[u64]) -> String {
    let tags: Vec<String> = revisions.iter().map(|revision| format!("\"{revision}\"")).collect();
    tags.join(", ")
}

impl Client {
    /// Reads a key, linearizably unless the request is told otherwise; `None`: there is none.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// use mmapd::client::Consistency;
    /// let now = client.get("color").await?;
    /// let cheap = client.get("color").consistency(Consistency::Stale).await?;
    /// let then = client.get("color").at_revision(42).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Get {
        let call = Call::new(Method::GET, path_of(key.as_ref()), Kind::Repeatable);
        Get { client: self.clone(), call: call.header("accept", "application/json") }
    }

    /// Writes a key.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// use std::time::Duration;
    /// let first = client.put("color", "blue").only_if_absent().await?;
    /// let then = client.put("color", "red").if_revision(first.revision).await?;
    /// client.put("visit", "now").ttl(Duration::from_secs(30)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Put {
        let mut call = Call::new(Method::PUT, path_of(key.as_ref()), Kind::Write);
        call.body = value.into();
        Put { client: self.clone(), call }
    }

    /// Removes a key. Removing what is not there is a success with `deleted` 0.
    #[must_use]
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Delete {
        let call = Call::new(Method::DELETE, path_of(key.as_ref()), Kind::Write);
        Delete { client: self.clone(), call }
    }

    /// Removes all keys that begin with `prefix`, which must not be empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Deleted, Error> {
        let call = Call::new(Method::DELETE, "/v1/keys", Kind::Write);
        self.json(call.query("prefix", prefix.as_ref())).await
    }

    /// Removes all keys from `start` up to, and without, `end`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_range(
        &self,
        start: impl AsRef<[u8]>,
        end: impl AsRef<[u8]>,
    ) -> Result<Deleted, Error> {
        let call = Call::new(Method::DELETE, "/v1/keys", Kind::Write);
        self.json(call.query("start", start.as_ref()).query("end", end.as_ref())).await
    }

    /// Gives a key another time to live, or with `None` an endless one, without a new version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn touch(
        &self,
        key: impl AsRef<[u8]>,
        ttl: Option<Duration>,
    ) -> Result<Touched, Error> {
        let call = Call::new(Method::PATCH, path_of(key.as_ref()), Kind::Write);
        let body = json!({"ttl": ttl.map(show_duration)}).to_string();
        let call = Call { body: body.into(), ..call };
        self.json(call.header("content-type", "application/merge-patch+json")).await
    }

    /// Lists keys in order, a page at a time.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// let mut list = client.list().prefix("users/").limit(100);
    /// loop {
    ///     let page = list.page().await?;
    ///     for entry in &page.items {
    ///         println!("{:?}", entry.key);
    ///     }
    ///     match list.after(&page) {
    ///         Some(next) => list = next,
    ///         None => break,
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn list(&self) -> List {
        let call = Call::new(Method::GET, "/v1/keys", Kind::Repeatable);
        List { client: self.clone(), call }
    }

    /// The newest changes of a key, at most `limit`, those before revision `before` if given.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn history(
        &self,
        key: impl AsRef<[u8]>,
        limit: u64,
        before: Option<u64>,
    ) -> Result<History, Error> {
        #[derive(Deserialize)]
        struct Raw {
            items: Vec<RawDated>,
            more: bool,
        }
        #[derive(Deserialize)]
        struct RawDated {
            revision: u64,
            #[serde(flatten)]
            change: RawChange,
        }
        let key = Bytes::copy_from_slice(key.as_ref());
        let path = format!("/v1/history/{}?limit={limit}", escape(&key, true));
        let mut call = Call::new(Method::GET, path, Kind::Repeatable);
        if let Some(before) = before {
            call = call.query("before", before.to_string().as_bytes());
        }
        let raw: Raw = self.json(call).await?;
        let read = |it: RawDated| it.change.read(Some(&key), it.revision);
        Ok(History {
            changes: raw.items.into_iter().map(read).collect::<Result<_, _>>()?,
            more: raw.more,
        })
    }
}

/// A read of one key; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Get {
    client: Client,
    call: Call,
}

impl Get {
    /// How fresh it must be.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.call = self.call.query("consistency", consistency.as_str().as_bytes());
        self
    }

    /// Waits until the node that is asked has applied that revision.
    #[must_use]
    pub fn min_revision(mut self, revision: u64) -> Self {
        self.call = self.call.query("min_revision", revision.to_string().as_bytes());
        self
    }

    /// What the key was after that revision.
    #[must_use]
    pub fn at_revision(mut self, revision: u64) -> Self {
        self.call = self.call.query("revision", revision.to_string().as_bytes());
        self
    }
}

impl IntoFuture for Get {
    type Output = Result<Option<Entry>, Error>;
    type IntoFuture = Answer<Option<Entry>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.client.json(self.call).await {
                Ok(entry) => Ok(Some(entry)),
                Err(error) if error.is("not-found") => Ok(None),
                Err(error) => Err(error),
            }
        })
    }
}

impl Client {
    /// Waits until a key is at another revision than `known`, for `wait` at most; `None`: it is
    /// not. A key that is removed meanwhile is a refusal with the code `not-found`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn changed(
        &self,
        key: impl AsRef<[u8]>,
        known: u64,
        wait: Duration,
    ) -> Result<Option<Entry>, Error> {
        let call = Call::new(Method::GET, path_of(key.as_ref()), Kind::Repeatable)
            .header("accept", "application/json")
            .header("if-none-match", tags(&[known]))
            .header("prefer", format!("wait={}", wait.as_secs().max(1)));
        let response = self.send(Call { wait, ..call }).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let body = response.bytes().await.map_err(|error| Error::Broken(error.to_string()))?;
        let entry = serde_json::from_slice(&body);
        entry.map(Some).map_err(|error| Error::Unexpected(error.to_string()))
    }
}

/// A write of one key; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Put {
    client: Client,
    call: Call,
}

impl Put {
    /// Only if there is no such key; else the refusal `precondition-failed`.
    #[must_use]
    pub fn only_if_absent(mut self) -> Self {
        self.call = self.call.header("if-none-match", "*");
        self
    }

    /// Only if the key is at that revision; else the refusal `precondition-failed`.
    #[must_use]
    pub fn if_revision(mut self, revision: u64) -> Self {
        self.call = self.call.header("if-match", tags(&[revision]));
        self
    }

    /// Removes it after that time.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.call = self.call.query("ttl", show_duration(ttl).as_bytes());
        self
    }

    /// Removes it with that lease.
    #[must_use]
    pub fn lease(mut self, id: u64) -> Self {
        self.call = self.call.query("lease", id.to_string().as_bytes());
        self
    }

    /// Answers with what was there before.
    #[must_use]
    pub fn with_prev(mut self) -> Self {
        self.call = self.call.query("prev", b"true");
        self
    }

    /// Stores it as the type of the value.
    #[must_use]
    pub fn content_type(mut self, kind: impl Into<String>) -> Self {
        self.call = self.call.header("content-type", kind);
        self
    }

    /// A name of one's own for this write, so that it can be asked again by another process.
    #[must_use]
    pub fn idempotency_key(mut self, name: impl Into<String>) -> Self {
        self.call = self.call.header("idempotency-key", name);
        self
    }

    /// Only while that lock is held with that token.
    #[must_use]
    pub fn fence(mut self, lock: impl AsRef<[u8]>, token: u64) -> Self {
        self.call = self.call.header("mmapd-fence", fence(lock.as_ref(), token));
        self
    }
}

pub(super) fn fence(lock: &[u8], token: u64) -> String {
    format!("{};{token}", escape(lock, true))
}

impl IntoFuture for Put {
    type Output = Result<Written, Error>;
    type IntoFuture = Answer<Written>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.json(self.call).await })
    }
}

/// A removal of one key; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Delete {
    client: Client,
    call: Call,
}

impl Delete {
    /// Only if the key is at that revision; else the refusal `precondition-failed`.
    #[must_use]
    pub fn if_revision(mut self, revision: u64) -> Self {
        self.call = self.call.header("if-match", tags(&[revision]));
        self
    }

    /// Answers with what was there before.
    #[must_use]
    pub fn with_prev(mut self) -> Self {
        self.call = self.call.query("prev", b"true");
        self
    }

    /// Only while that lock is held with that token.
    #[must_use]
    pub fn fence(mut self, lock: impl AsRef<[u8]>, token: u64) -> Self {
        self.call = self.call.header("mmapd-fence", fence(lock.as_ref(), token));
        self
    }
}

impl IntoFuture for Delete {
    type Output = Result<Deleted, Error>;
    type IntoFuture = Answer<Deleted>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.json(self.call).await })
    }
}

/// A listing.
#[derive(Clone, Debug)]
pub struct List {
    client: Client,
    call: Call,
}

impl List {
    fn with(mut self, name: &str, value: &[u8]) -> Self {
        self.call = self.call.query(name, value);
        self
    }

    /// Only keys that begin so.
    #[must_use]
    pub fn prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        self.with("prefix", prefix.as_ref())
    }

    /// Only keys from `start` up to, and without, `end`.
    #[must_use]
    pub fn range(self, start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        self.with("start", start.as_ref()).with("end", end.as_ref())
    }

    /// Groups keys by what lies between the prefix and this.
    #[must_use]
    pub fn delimiter(self, delimiter: impl AsRef<[u8]>) -> Self {
        self.with("delimiter", delimiter.as_ref())
    }

    /// At most so many on a page.
    #[must_use]
    pub fn limit(self, limit: u64) -> Self {
        self.with("limit", limit.to_string().as_bytes())
    }

    /// From the last key to the first.
    #[must_use]
    pub fn descending(self) -> Self {
        self.with("order", b"desc")
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(self) -> Self {
        self.with("keys_only", b"true")
    }

    /// As everything was after that revision.
    #[must_use]
    pub fn at_revision(self, revision: u64) -> Self {
        self.with("revision", revision.to_string().as_bytes())
    }

    /// How fresh it must be.
    #[must_use]
    pub fn consistency(self, consistency: Consistency) -> Self {
        self.with("consistency", consistency.as_str().as_bytes())
    }

    /// One page.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn page(&self) -> Result<Page, Error> {
        self.client.json(self.call.clone()).await
    }

    /// How many keys there are in the whole range.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count(&self) -> Result<u64, Error> {
        let call = self.call.clone().query("count_only", b"true");
        self.client.json::<Page>(call).await.map(|page| page.count)
    }

    /// The listing that goes on after this page; `None`: that was the last.
    #[must_use]
    pub fn after(&self, page: &Page) -> Option<Self> {
        let next = page.next.as_ref()?;
        let (path, query) = self.call.path.split_once('?').unwrap_or((&self.call.path, ""));
        let kept = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
        let path = format!("{path}?{}", kept.collect::<Vec<_>>().join("&"));
        let call = Call { path: path.trim_end_matches('?').to_owned(), ..self.call.clone() };
        Some(Self { client: self.client.clone(), call: call.query("cursor", next.as_bytes()) })
    }

    /// All of it, however much that is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn all(&self) -> Result<Vec<Entry>, Error> {
        let mut list = self.clone();
        let mut items = Vec::new();
        loop {
            let page = list.page().await?;
            let next = list.after(&page);
            items.extend(page.items);
            match next {
                Some(next) => list = next,
                None => return Ok(items),
            }
        }
    }
}
