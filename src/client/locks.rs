//! Locks with tokens that the service enforces.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::Error;
use super::transport::{Call, Client, Kind, escape};
use crate::config::show_duration;

/// A lock that is held.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Lock {
    /// Goes up each time the lock is taken: give it along with writes (`fence`).
    pub token: u64,
    /// Names this holder, to give the lock back.
    pub ticket: u64,
    /// The lease that it is held by: keep it alive.
    pub lease: u64,
}

/// How a lock is taken.
#[derive(Clone, Debug, Default)]
pub struct LockOptions {
    /// How long it is held without a sign of life, by a lease made for it; 30 s unless set.
    pub ttl: Option<Duration>,
    /// Held by this lease instead.
    pub lease: Option<u64>,
    /// How long to wait in the queue for it; `None`: not at all.
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
    /// // Refused once somebody else holds the lock, however late this arrives:
    /// client.put("jobs/last", "7").fence("jobs", lock.token).await?;
    /// client.unlock("jobs", &lock).await?;
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

    /// Gives a lock back.
    ///
    /// # Errors
    /// See [`Error`]; `not-found` when it is held no more.
    pub async fn unlock(&self, name: impl AsRef<[u8]>, lock: &Lock) -> Result<(), Error> {
        let path = format!("{}?token={}", path_of(name.as_ref()), lock.token);
        self.send(Call::new(Method::DELETE, path, Kind::Write)).await.map(drop)
    }
}

fn path_of(name: &[u8]) -> String {
    format!("/v1/locks/{}", escape(name, true))
}
