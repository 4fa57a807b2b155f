//! The cluster and its nodes.

use reqwest::Method;
use serde_json::{Value, json};

use super::error::Error;
use super::transport::{Call, Client, Kind};

impl Client {
    /// What the node that answers says of itself, as `GET /v1/status` describes it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<Value, Error> {
        self.json(Call::new(Method::GET, "/v1/status", Kind::Repeatable)).await
    }

    /// The members, as `GET /v1/cluster` describes them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster(&self) -> Result<Value, Error> {
        self.json(Call::new(Method::GET, "/v1/cluster", Kind::Repeatable)).await
    }

    /// Moves leadership: to a node, or to the one that is most caught up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<Value, Error> {
        let body = to.map_or_else(|| json!({}), |to| json!({"to": to}));
        let call = Call::new(Method::POST, "/v1/cluster/leader", Kind::Repeatable);
        self.json(call.json(&body)).await
    }

    /// Takes a node in as a learner, which becomes a voter once it is caught up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_member(&self, id: u64, url: &str) -> Result<Value, Error> {
        let body = json!({"id": id, "url": url});
        let call = Call::new(Method::POST, "/v1/cluster/members", Kind::Unnamed);
        self.json(call.json(&body)).await
    }

    /// Removes a member.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_member(&self, id: u64) -> Result<Value, Error> {
        let path = format!("/v1/cluster/members/{id}");
        self.json(Call::new(Method::DELETE, path, Kind::Unnamed)).await
    }
}
