//! Leases, and sessions that keep one alive.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::error::Error;
use super::keys::found;
use super::show;
use super::transport::{Call, Client, Kind};
use super::types::{Deleted, bytes_of, ttl, ttl_of};
use crate::config::show_duration;

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Lease {
    /// Its id.
    pub id: u64,
    /// How long it lasts without a sign of life; `None`: it is over.
    #[serde(default, deserialize_with = "ttl", serialize_with = "show::ttl")]
    pub ttl: Option<Duration>,
}

/// A lease and what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LeaseInfo {
    /// Its id.
    pub id: u64,
    /// How long it lasts without a sign of life.
    #[serde(deserialize_with = "duration", serialize_with = "show::duration")]
    pub ttl: Duration,
    /// How long it still lasts.
    #[serde(deserialize_with = "duration", serialize_with = "show::duration")]
    pub left: Duration,
    /// How many keys hang on it.
    pub keys: u64,
    /// Which ones, if that was asked for.
    #[serde(
        default,
        deserialize_with = "keys",
        serialize_with = "show::keys",
        skip_serializing_if = "Option::is_none"
    )]
    pub attached: Option<Vec<Bytes>>,
}

/// Leases in the order of their ids: one page.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Leases {
    /// The store's revision that the page was read at.
    pub revision: u64,
    /// Some of them.
    pub leases: Vec<LeaseInfo>,
    /// Are there more?
    pub more: bool,
    /// After which the next page begins.
    pub next: Option<u64>,
}

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    let span = ttl_of(Some(&text)).map_err(serde::de::Error::custom)?;
    Ok(span.unwrap_or_default())
}

fn keys<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<Bytes>>, D::Error> {
    #[derive(Deserialize)]
    struct Attached {
        key: Option<String>,
        key_b64: Option<String>,
    }
    let read = |it: Attached| bytes_of(it.key, it.key_b64, "key").map_err(serde::de::Error::custom);
    let attached = Option::<Vec<Attached>>::deserialize(input)?;
    attached.map(|keys| keys.into_iter().map(read).collect()).transpose()
}

impl Client {
    /// Makes a lease of at least one second.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// use std::time::Duration;
    /// let lease = client.grant(Duration::from_secs(30)).await?;
    /// client.put("workers/7", "here").lease(lease.id).await?;
    /// client.keep_alive(lease.id).await?;
    /// client.revoke(lease.id).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn grant(&self, ttl: Duration) -> Result<Lease, Error> {
        let body = json!({"ttl": show_duration(ttl)});
        self.json(Call::new(Method::POST, "/v1/leases", Kind::Write).json(&body)).await
    }

    /// Makes a lease with an id of one's own, up to 2^53-1.
    ///
    /// # Errors
    /// See [`Error`]; `conflict` when there is one with that id.
    pub async fn grant_as(&self, id: u64, ttl: Duration) -> Result<Lease, Error> {
        let body = json!({"ttl": show_duration(ttl), "id": id});
        self.json(Call::new(Method::POST, "/v1/leases", Kind::Write).json(&body)).await
    }

    /// Lets a lease begin anew.
    ///
    /// # Errors
    /// See [`Error`]; `not-found` when it is over.
    pub async fn keep_alive(&self, id: u64) -> Result<Lease, Error> {
        let path = format!("/v1/leases/{id}/keepalive");
        self.json(Call::new(Method::POST, path, Kind::Repeatable)).await
    }

    /// Lets up to 1000 leases begin anew; `ttl` is `None` for those that are over.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn keep_all_alive(&self, ids: &[u64]) -> Result<Vec<Lease>, Error> {
        #[derive(Deserialize)]
        struct Raw {
            leases: Vec<Lease>,
        }
        let call = Call::new(Method::POST, "/v1/leases/keepalive", Kind::Repeatable);
        let raw: Raw = self.json(call.json(&json!({"ids": ids}))).await?;
        Ok(raw.leases)
    }

    /// Ends a lease, with its keys and locks.
    ///
    /// # Errors
    /// See [`Error`]; `not-found` when it is over already.
    pub async fn revoke(&self, id: u64) -> Result<Deleted, Error> {
        self.json(Call::new(Method::DELETE, format!("/v1/leases/{id}"), Kind::Write)).await
    }

    /// What is known of a lease, with the keys that hang on it; `None`: it is over.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease(&self, id: u64) -> Result<Option<LeaseInfo>, Error> {
        let path = format!("/v1/leases/{id}?keys=true");
        found(self.json(Call::new(Method::GET, path, Kind::Read)).await)
    }

    /// Leases whose ids are above `after`, at most `limit` of them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leases(&self, after: u64, limit: u64) -> Result<Leases, Error> {
        let call = Call::new(Method::GET, "/v1/leases", Kind::Read);
        self.json(call.number("after", after).number("limit", limit)).await
    }

    /// Makes a lease and keeps it alive, from a task of its own, until the session ends.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// use std::time::Duration;
    /// let session = client.session(Duration::from_secs(10)).await?;
    /// client.put("workers/7", "here").lease(session.lease()).await?;
    /// tokio::select! {
    ///     () = session.lost() => println!("somebody else may do the work now"),
    ///     () = async { /* the work */ } => session.end().await?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn session(&self, ttl: Duration) -> Result<Session, Error> {
        // Counted from before it can have begun: we know of the end first.
        let since = Instant::now();
        let lease = self.grant(ttl).await?;
        let (tell, alive) = watch::channel(true);
        let task = tokio::spawn(keep(self.clone(), lease.id, ttl, since, tell));
        Ok(Session { client: self.clone(), lease: lease.id, alive, task })
    }
}

/// A lease that is kept alive. Dropped without [`Session::end`], the lease ends by itself when
/// its time is over.
#[derive(Debug)]
pub struct Session {
    client: Client,
    lease: u64,
    alive: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Session {
    /// The lease's id: give it to puts and locks.
    #[must_use]
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// Is the lease certainly alive, as far as clocks run alike?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        *self.alive.borrow()
    }

    /// Waits until the lease is over, or may be as nobody could be told in time.
    pub async fn lost(&self) {
        let mut alive = self.alive.clone();
        // The task that tells is gone only with the session.
        let _ = alive.wait_for(|alive| !alive).await;
    }

    /// Ends the lease, with its keys and locks.
    ///
    /// # Errors
    /// See [`Error`]; that it is over already is none.
    pub async fn end(self) -> Result<(), Error> {
        self.task.abort();
        found(self.client.revoke(self.lease).await).map(drop)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a lease alive until it is over.
async fn keep(
    client: Client,
    id: u64,
    ttl: Duration,
    mut since: Instant,
    tell: watch::Sender<bool>,
) {
    loop {
        tokio::time::sleep_until(since + ttl / 3).await;
        let asked = Instant::now();
        let answer = tokio::time::timeout_at(since + ttl, client.keep_alive(id)).await;
        match answer {
            Ok(Ok(_)) => since = asked,
            Ok(Err(error)) if !error.may_help_to_repeat() => break,
            // As long as there is time the client itself has tried again.
            Ok(Err(_)) if asked < since + ttl => tokio::time::sleep(ttl / 20).await,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    tell.send_replace(false);
}
