//! Keys: read, write, remove, keep.

use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::error::Error;
use super::transport::{Answer as Reply, Call, Client, Kind, escape};
use super::types::{Consistency, Deleted, Entry, Touched, Written};
use crate::config::show_duration;

/// What `.await` on a request waits for.
pub(super) type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

fn path_of(key: &[u8]) -> String {
    format!("/v1/keys/{}", escape(key, true))
}

pub(super) fn path_of_history(key: &[u8]) -> String {
    format!("/v1/history/{}", escape(key, true))
}

/// Bytes as one of the two fields they may appear in.
pub(super) fn field(name: &str, bytes: &[u8]) -> (String, serde_json::Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), text.into()),
        Err(_) => (format!("{name}_b64"), STANDARD.encode(bytes).into()),
    }
}

fn tag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// `None` instead of the refusal that there is no such thing.
pub(super) fn found<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is("not-found") => Ok(None),
        Err(error) => Err(error),
    }
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
    /// let start = client.get("film").raw().part(0..1024).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Get {
        let call = Call::new(Method::GET, path_of(key.as_ref()), Kind::Read);
        Get { client: self.clone(), call }
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

    /// Gives a key another time to live, or with `None` an endless one, without a new version;
    /// the refusal `not-found` when there is no such key.
    #[must_use]
    pub fn touch(&self, key: impl AsRef<[u8]>, ttl: Option<Duration>) -> Touch {
        let call = Call::new(Method::PATCH, path_of(key.as_ref()), Kind::Write);
        let body = json!({"ttl": ttl.map(show_duration)}).to_string();
        let call = Call { body: body.into(), ..call };
        let call = call.header("content-type", "application/merge-patch+json");
        Touch { client: self.clone(), call }
    }

    /// Waits until a key is at another revision than `known`, for `wait` at most, in whole
    /// seconds; `None`: it is not. A key that is removed meanwhile, or is not there, is the
    /// refusal `not-found`. A server that allows less time (`limits.max_timeout`) answers
    /// earlier.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn changed(
        &self,
        key: impl AsRef<[u8]>,
        known: u64,
        wait: Duration,
    ) -> Result<Option<Entry>, Error> {
        let call = Call::new(Method::GET, path_of(key.as_ref()), Kind::Read)
            .header("accept", "application/json")
            .header("if-none-match", tag(known))
            .header("prefer", format!("wait={}", wait.as_secs().max(1)));
        let answer = self.answer(Call { wait, timed: false, ..call }).await?;
        if answer.status == StatusCode::NOT_MODIFIED { Ok(None) } else { answer.read().map(Some) }
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
        self.call = self.call.query("consistency", consistency.as_str());
        self
    }

    /// Waits until the node that is asked has applied that revision.
    #[must_use]
    pub fn min_revision(mut self, revision: u64) -> Self {
        self.call = self.call.number("min_revision", revision);
        self
    }

    /// What the key was after that revision.
    #[must_use]
    pub fn at_revision(mut self, revision: u64) -> Self {
        self.call = self.call.number("revision", revision);
        self
    }

    /// Only the bytes, as they are stored: the way to read what is large.
    #[must_use]
    pub fn raw(self) -> Raw {
        Raw { client: self.client, call: self.call }
    }

    /// Only what is known of it, without its value; `None`: there is no such key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn head(self) -> Result<Option<Meta>, Error> {
        let call = Call { method: Method::HEAD, ..self.call };
        let answer = found(self.client.answer(call).await)?;
        answer.map(|answer| Meta::of(&answer)).transpose()
    }
}

impl IntoFuture for Get {
    type Output = Result<Option<Entry>, Error>;
    type IntoFuture = Answer<Option<Entry>>;

    fn into_future(self) -> Self::IntoFuture {
        let call = self.call.header("accept", "application/json");
        Box::pin(async move { found(self.client.json(call).await) })
    }
}

/// What headers say of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Revision that last wrote it.
    pub revision: u64,
    /// As given when it was written.
    pub content_type: String,
    /// Bytes of the whole value.
    pub size: u64,
}

impl Meta {
    fn of(answer: &Reply) -> Result<Self, Error> {
        let lacks = |what| Error::Unexpected(format!("an answer without {what}"));
        let tag = answer.text("etag").and_then(|tag| tag.trim_matches('"').parse().ok());
        let whole = answer.text("content-range").and_then(|range| range.rsplit('/').next());
        let size = whole.or(answer.text("content-length")).and_then(|size| size.parse().ok());
        Ok(Self {
            revision: tag.ok_or_else(|| lacks("an ETag"))?,
            content_type: answer.text("content-type").unwrap_or_default().to_owned(),
            size: size.ok_or_else(|| lacks("a length"))?,
        })
    }
}

/// The bytes of a value, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// They.
    pub bytes: Bytes,
    /// Are they a part only?
    pub partial: bool,
    /// What else is known.
    pub meta: Meta,
}

/// A read of the bytes of one key; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Raw {
    client: Client,
    call: Call,
}

impl Raw {
    /// Only these bytes, as far as there are so many; the refusal `range-not-satisfiable` when
    /// there is none of them.
    #[must_use]
    pub fn part(mut self, part: Range<u64>) -> Self {
        let last = part.end.saturating_sub(1);
        self.call = self.call.header("range", format!("bytes={}-{last}", part.start));
        self
    }

    /// The part only if the value is still of that revision, else all of it.
    #[must_use]
    pub fn if_still(mut self, revision: u64) -> Self {
        self.call = self.call.header("if-range", tag(revision));
        self
    }
}

impl IntoFuture for Raw {
    type Output = Result<Option<Value>, Error>;
    type IntoFuture = Answer<Option<Value>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Some(answer) = found(self.client.answer(self.call).await)? else {
                return Ok(None);
            };
            let partial = answer.status == StatusCode::PARTIAL_CONTENT;
            let meta = Meta::of(&answer)?;
            Ok(Some(Value { bytes: answer.body, partial, meta }))
        })
    }
}

/// What writes of one key share.
macro_rules! conditions {
    ($request:ident, $answer:ty) => {
        impl $request {
            /// Only if the key is at that revision; else the refusal `precondition-failed`.
            #[must_use]
            pub fn if_revision(mut self, revision: u64) -> Self {
                self.call = self.call.header("if-match", tag(revision));
                self
            }

            /// Only if there is such a key; else the refusal `precondition-failed`.
            #[must_use]
            pub fn if_exists(mut self) -> Self {
                self.call = self.call.header("if-match", "*");
                self
            }

            /// A name of one's own for this write, so that another process can ask for it again.
            #[must_use]
            pub fn idempotency_key(mut self, name: impl Into<String>) -> Self {
                self.call = self.call.header("idempotency-key", name);
                self
            }
        }

        impl IntoFuture for $request {
            type Output = Result<$answer, Error>;
            type IntoFuture = Answer<$answer>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(async move { self.client.json(self.call).await })
            }
        }
    };
}

/// A write of one key; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Put {
    client: Client,
    call: Call,
}

conditions!(Put, Written);

impl Put {
    /// Only if there is no such key; else the refusal `precondition-failed`.
    #[must_use]
    pub fn only_if_absent(mut self) -> Self {
        self.call = self.call.header("if-none-match", "*");
        self
    }

    /// Removes it after that time.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.call = self.call.query("ttl", show_duration(ttl));
        self
    }

    /// Removes it with that lease.
    #[must_use]
    pub fn lease(mut self, id: u64) -> Self {
        self.call = self.call.number("lease", id);
        self
    }

    /// Answers with what was there before.
    #[must_use]
    pub fn with_prev(mut self) -> Self {
        self.call = self.call.query("prev", "true");
        self
    }

    /// Stores it as the type of the value.
    #[must_use]
    pub fn content_type(mut self, kind: impl Into<String>) -> Self {
        self.call = self.call.header("content-type", kind);
        self
    }
}

/// A removal of one key; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Delete {
    client: Client,
    call: Call,
}

conditions!(Delete, Deleted);

impl Delete {
    /// Answers with what was there before.
    #[must_use]
    pub fn with_prev(mut self) -> Self {
        self.call = self.call.query("prev", "true");
        self
    }
}

/// A change of the time that a key has; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Touch {
    client: Client,
    call: Call,
}

conditions!(Touch, Touched);
