//! Locks with tokens that the service enforces.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::Error;
use super::keys::found;
use super::transport::{Call, Client, Kind, escape};
use super::types::bytes_of;
use crate::config::show_duration;

/// A lock that is held.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawLock")]
pub struct Lock {
    /// Its name.
    pub name: Bytes,
    /// Goes up each time the lock is taken: what [`Client::fenced`] takes.
    pub token: u64,
    /// The revision at which the place in the queue was taken.
    pub ticket: u64,
    /// The lease that it is held by: keep it alive.
    pub lease: u64,
    /// Who took it.
    pub owner: String,
}

#[derive(Deserialize)]
struct RawLock {
    name: Option<String>,
    name_b64: Option<String>,
    token: u64,
    ticket: u64,
    lease: u64,
    owner: String,
}

impl TryFrom<RawLock> for Lock {
    type Error = Error;

    fn try_from(raw: RawLock) -> Result<Self, Error> {
        Ok(Self {
            name: bytes_of(raw.name, raw.name_b64, "name")?,
            token: raw.token,
            ticket: raw.ticket,
            lease: raw.lease,
            owner: raw.owner,
        })
    }
}

/// Somebody who waits for a lock.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Waiter {
    /// The revision at which the place was taken.
    pub ticket: u64,
    /// The lease that the place lasts as long as.
    pub lease: u64,
    /// Who waits.
    pub owner: String,
}

/// A lock with its queue.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LockInfo {
    /// The store's revision that this was read at.
    pub revision: u64,
    /// Who holds it.
    pub holder: Lock,
    /// How many wait for it; no more than 1000 are counted.
    pub queue: u64,
    /// They, first come first.
    pub waiting: Vec<Waiter>,
}

/// Locks that are held, in the order of their names: one page.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Locks {
    /// The store's revision that the page was read at.
    pub revision: u64,
    /// Some of them.
    pub locks: Vec<Lock>,
    /// Are there more?
    pub more: bool,
}

/// How a lock is taken.
#[derive(Clone, Debug, Default)]
pub struct LockOptions {
    /// How long it is held without a sign of life, by a lease made for it; 30 s unless set.
    pub ttl: Option<Duration>,
    /// Held by this lease instead: that of a [`super::Session`], for one.
    pub lease: Option<u64>,
    /// How long to wait in the queue for it, at most `limits.max_timeout`; `None`: not at all.
    pub wait: Option<Duration>,
    /// For people: who takes it.
    pub owner: Option<String>,
}

impl Client {
    /// Takes a lock.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// use std::time::Duration;
    /// use mmapd::client::LockOptions;
    /// let wait = Some(Duration::from_secs(10));
    /// let lock = client.lock("jobs", &LockOptions { wait, ..LockOptions::default() }).await?;
    /// // Refused once somebody else holds the lock, however late it arrives:
    /// client.fenced("jobs", lock.token).put("jobs/last", "7").await?;
    /// client.unlock(&lock).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`]; `conflict` when somebody else holds it.
    pub async fn lock(&self, name: impl AsRef<[u8]>, how: &LockOptions) -> Result<Lock, Error> {
        let mut body = Map::new();
        let ttl = how.ttl.unwrap_or(Duration::from_secs(30));
        match how.lease {
            Some(id) => body.insert("lease".into(), id.into()),
            None => body.insert("ttl".into(), show_duration(ttl).into()),
        };
        if let Some(wait) = how.wait {
            body.insert("wait".into(), show_duration(wait).into());
        }
        if let Some(owner) = &how.owner {
            body.insert("owner".into(), owner.as_str().into());
        }
        let call = Call::new(Method::POST, path_of(name.as_ref()), Kind::Write);
        let wait = how.wait.unwrap_or_default();
        self.json(Call { wait, ..call.json(&Value::Object(body)) }).await
    }

    /// Gives a lock back, and says whether it was still held: then it was all the time, as no
    /// token is given twice. That it is held no more is no error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn unlock(&self, lock: &Lock) -> Result<bool, Error> {
        let call = Call::new(Method::DELETE, path_of(&lock.name), Kind::Write);
        let answer = found(self.answer(call.number("token", lock.token)).await)?;
        Ok(answer.is_some())
    }

    /// Gives up a place in the queue, or the lock if its turn has come meanwhile.
    ///
    /// # Errors
    /// See [`Error`]; `not-found` when there is no such place.
    pub async fn give_up(&self, name: impl AsRef<[u8]>, ticket: u64) -> Result<(), Error> {
        let call = Call::new(Method::DELETE, path_of(name.as_ref()), Kind::Write);
        self.answer(call.number("ticket", ticket)).await.map(drop)
    }

    /// Who holds a lock, and who waits for it; `None`: nobody.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lock_info(&self, name: impl AsRef<[u8]>) -> Result<Option<LockInfo>, Error> {
        found(self.json(Call::new(Method::GET, path_of(name.as_ref()), Kind::Read)).await)
    }

    /// Locks that are held, with names above `after`, at most `limit` of them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn locks(&self, after: impl AsRef<[u8]>, limit: u64) -> Result<Locks, Error> {
        let mut call = Call::new(Method::GET, "/v1/locks", Kind::Read).number("limit", limit);
        if !after.as_ref().is_empty() {
            call = call.query("after", after);
        }
        self.json(call).await
    }
}

fn path_of(name: &[u8]) -> String {
    format!("/v1/locks/{}", escape(name, true))
}
