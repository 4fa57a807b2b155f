//! Leases.

use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::error::Error;
use super::transport::{Call, Client, Kind};
use super::types::{Deleted, Lease, Leases, ttl_of};
use crate::config::show_duration;

/// A lease and what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LeaseInfo {
    /// Its id.
    pub id: u64,
    /// How long it lasts without a sign of life.
    #[serde(deserialize_with = "duration")]
    pub ttl: Duration,
    /// How long it still lasts.
    #[serde(deserialize_with = "duration")]
    pub left: Duration,
}

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    let span = ttl_of(Some(&text)).map_err(serde::de::Error::custom)?;
    Ok(span.unwrap_or_default())
}

impl Client {
    /// Makes a lease.
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

    /// Lets a lease begin anew.
    ///
    /// # Errors
    /// See [`Error`]; `not-found` when it is over.
    pub async fn keep_alive(&self, id: u64) -> Result<Lease, Error> {
        let path = format!("/v1/leases/{id}/keepalive");
        self.json(Call::new(Method::POST, path, Kind::Repeatable)).await
    }

    /// Lets many leases begin anew; `ttl` is `None` for those that are over.
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

    /// What is known of a lease; `None`: it is over.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease(&self, id: u64) -> Result<Option<LeaseInfo>, Error> {
        let call = Call::new(Method::GET, format!("/v1/leases/{id}"), Kind::Repeatable);
        match self.json(call).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) if error.is("not-found") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Leases whose ids are above `after`, a page of them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leases(&self, after: u64) -> Result<Leases, Error> {
        self.json(Call::new(Method::GET, format!("/v1/leases?after={after}"), Kind::Repeatable))
            .await
    }
}
