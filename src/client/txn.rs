//! Transactions: if all comparisons hold then these steps, else those.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::Error;
use super::keys::field;
use super::leases::Lease;
use super::transport::{Call, Client, Kind};
use super::types::{Consistency, Entry, Written};
use crate::config::show_duration;

/// How the stored thing, left, compares with the one that is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Greater.
    Gt,
}

impl Cmp {
    fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Lt => "lt",
            Self::Gt => "gt",
        }
    }
}

/// A comparison with a key's state before the transaction.
#[derive(Clone, Debug)]
pub struct Compare(Value);

impl Compare {
    fn of(key: &[u8], subject: &str, what: Value) -> Self {
        let fields = [field("key", key), (subject.to_owned(), what)];
        Self(Value::Object(Map::from_iter(fields)))
    }

    /// Does the key exist?
    pub fn exists(key: impl AsRef<[u8]>, exists: bool) -> Self {
        Self::of(key.as_ref(), "exists", exists.into())
    }

    /// Its value, bytewise. Does not hold when there is no such key.
    pub fn value(key: impl AsRef<[u8]>, cmp: Cmp, value: impl AsRef<[u8]>) -> Self {
        let (value, encoding) = encoded(value.as_ref());
        let mut what = Map::from_iter([(cmp.name().to_owned(), value)]);
        what.extend(encoding.map(|encoding| ("encoding".to_owned(), encoding)));
        Self::of(key.as_ref(), "value", what.into())
    }

    /// Writes since its creation; 0: there is no such key.
    pub fn version(key: impl AsRef<[u8]>, cmp: Cmp, version: u64) -> Self {
        Self::of(key.as_ref(), "version", json!({cmp.name(): version}))
    }

    /// The revision of its creation; 0: there is no such key.
    pub fn create_revision(key: impl AsRef<[u8]>, cmp: Cmp, revision: u64) -> Self {
        Self::of(key.as_ref(), "create_revision", json!({cmp.name(): revision}))
    }

    /// The revision of its last write; 0: there is no such key.
    pub fn mod_revision(key: impl AsRef<[u8]>, cmp: Cmp, revision: u64) -> Self {
        Self::of(key.as_ref(), "mod_revision", json!({cmp.name(): revision}))
    }
}

/// The value, and its encoding when it is not text.
pub(super) fn encoded(value: &[u8]) -> (Value, Option<Value>) {
    match std::str::from_utf8(value) {
        Ok(text) => (text.into(), None),
        Err(_) => (STANDARD.encode(value).into(), Some("base64".into())),
    }
}

fn range(start: &[u8], end: &[u8]) -> Map<String, Value> {
    Map::from_iter([field("start", start), field("end", end)])
}

/// One step. What is set and has no meaning for it is refused by the service.
#[derive(Clone, Debug)]
pub struct Op(Value);

impl Op {
    /// Writes a key; each key once in a transaction.
    pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let (value, encoding) = encoded(value.as_ref());
        let mut what = Map::from_iter([field("key", key.as_ref()), ("value".to_owned(), value)]);
        what.extend(encoding.map(|encoding| ("encoding".to_owned(), encoding)));
        Self(json!({"put": what}))
    }

    /// Removes a key.
    pub fn delete(key: impl AsRef<[u8]>) -> Self {
        Self(json!({"delete": Map::from_iter([field("key", key.as_ref())])}))
    }

    /// Removes all keys that begin so.
    pub fn delete_prefix(prefix: impl AsRef<[u8]>) -> Self {
        Self(json!({"delete": Map::from_iter([field("prefix", prefix.as_ref())])}))
    }

    /// Removes all keys from `start` up to, and without, `end`.
    pub fn delete_range(start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        Self(json!({"delete": range(start.as_ref(), end.as_ref())}))
    }

    /// Reads a key.
    pub fn get(key: impl AsRef<[u8]>) -> Self {
        Self(json!({"get": Map::from_iter([field("key", key.as_ref())])}))
    }

    /// Reads all keys that begin so.
    pub fn get_prefix(prefix: impl AsRef<[u8]>) -> Self {
        Self(json!({"get": Map::from_iter([field("prefix", prefix.as_ref())])}))
    }

    /// Reads all keys from `start` up to, and without, `end`.
    pub fn get_range(start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        Self(json!({"get": range(start.as_ref(), end.as_ref())}))
    }

    /// Makes a lease, which later puts of the same branch can name with [`Op::on_new_lease`].
    #[must_use]
    pub fn lease(ttl: Duration) -> Self {
        Self(json!({"lease": {"ttl": show_duration(ttl)}}))
    }

    pub(super) fn json(&self) -> &Value {
        &self.0
    }

    fn is_read(&self) -> bool {
        self.0.get("get").is_some()
    }

    fn with(mut self, name: &str, value: Value) -> Self {
        if let Some(what) = self.0.as_object_mut().and_then(|op| op.values_mut().next()) {
            what[name] = value;
        }
        self
    }

    /// A put that ends after that time.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.with("ttl", show_duration(ttl).into())
    }

    /// A put that ends with that lease.
    #[must_use]
    pub fn on_lease(self, id: u64) -> Self {
        self.with("lease", id.into())
    }

    /// A put that ends with the lease that an earlier step makes.
    #[must_use]
    pub fn on_new_lease(self) -> Self {
        self.with("lease", "new".into())
    }

    /// A put of a value of that type.
    #[must_use]
    pub fn content_type(self, kind: impl Into<String>) -> Self {
        self.with("content_type", kind.into().into())
    }

    /// A get of at most so many keys.
    #[must_use]
    pub fn limit(self, limit: u64) -> Self {
        self.with("limit", limit.into())
    }

    /// A put or delete that answers with what was there before.
    #[must_use]
    pub fn with_prev(self) -> Self {
        self.with("prev", true.into())
    }
}

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OpResult {
    /// A key was written.
    Put(Written),
    /// Keys were removed.
    Delete {
        /// How many.
        deleted: u64,
        /// What was there before, when it was asked for.
        #[serde(default)]
        prev: Vec<Entry>,
    },
    /// Keys were read.
    Get {
        /// In key order.
        items: Vec<Entry>,
        /// Were there more?
        #[serde(default)]
        more: bool,
    },
    /// A lease was made.
    Lease(Lease),
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct TxnResult {
    /// Did all comparisons hold?
    pub succeeded: bool,
    /// The revision of its changes, or the store's when nothing was changed.
    pub revision: u64,
    /// One result for each step.
    pub results: Vec<OpResult>,
}

/// A transaction that is being put together.
#[derive(Clone, Debug)]
pub struct Txn {
    client: Client,
    call: Call,
    compares: Vec<Value>,
    then: Vec<Op>,
    otherwise: Vec<Op>,
}

impl Client {
    /// A transaction without comparisons and steps.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// use mmapd::client::{Cmp, Compare, Op};
    /// let done = client
    ///     .txn()
    ///     .when(Compare::value("state", Cmp::Eq, "idle"))
    ///     .then(Op::put("state", "busy"))
    ///     .or_else(Op::get("state"))
    ///     .commit()
    ///     .await?;
    /// println!("{}", done.succeeded);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn txn(&self) -> Txn {
        let call = Call::new(Method::POST, "/v1/txn", Kind::Write);
        let (compares, then, otherwise) = (Vec::new(), Vec::new(), Vec::new());
        Txn { client: self.clone(), call, compares, then, otherwise }
    }
}

impl Txn {
    /// One more comparison; all must hold.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare.0);
        self
    }

    /// One more step for when all hold.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// One more step for when one does not hold.
    #[must_use]
    pub fn or_else(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }

    /// How fresh the answer of a transaction that only reads must be.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.call = self.call.query("consistency", consistency.as_str());
        self
    }

    /// A name of one's own for it, so that another process can ask for it again.
    #[must_use]
    pub fn idempotency_key(mut self, name: impl Into<String>) -> Self {
        self.call = self.call.header("idempotency-key", name);
        self
    }

    /// Lets it happen, once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn commit(self) -> Result<TxnResult, Error> {
        let is_read = self.then.iter().chain(&self.otherwise).all(Op::is_read);
        let kind = if is_read { Kind::Read } else { Kind::Write };
        let ops = |ops: Vec<Op>| Value::Array(ops.into_iter().map(|op| op.0).collect());
        let (then, otherwise) = (ops(self.then), ops(self.otherwise));
        let body = json!({"if": self.compares, "then": then, "else": otherwise});
        let call = Call { kind, fenced: !is_read, ..self.call };
        self.client.json(call.json(&body)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_base64() {
        let put = Op::put(b"\xff", b"\x00\xff").on_new_lease();
        let want = json!({"put": {
            "key_b64": "/w==", "value": "AP8=", "encoding": "base64", "lease": "new"
        }});
        assert_eq!(put.0, want);
        let compare = Compare::value("a", Cmp::Ne, "b");
        assert_eq!(compare.0, json!({"key": "a", "value": {"ne": "b"}}));
    }
}
