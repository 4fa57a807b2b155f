//! The body of a transaction, and what it means.

use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::body::{self, ValueEncoding};
use super::error::ApiError;
use super::propose::ttl_ms;
use crate::config::Limits;
use crate::machine::{
    CONTENT_TYPE_MAX, Compare, Content, KEY_MAX, Life, Op, Relation, Span, Subject, Txn,
};

/// If all comparisons hold then these steps, else those; all of them or none.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "if": [{"key": "a", "mod_revision": {"eq": 12}}, {"key": "b", "exists": false}],
    "then": [{"put": {"key": "a", "value": "1", "ttl": "30s"}}, {"delete": {"prefix": "tmp/"}}],
    "else": [{"get": {"key": "a"}}]
}))]
pub(super) struct TxnRequest {
    /// Comparisons with the state before the transaction. All must hold; none: they do.
    #[serde(default, rename = "if")]
    compares: Vec<TxnCompare>,
    /// What happens when they hold, in this order.
    #[serde(default)]
    then: Vec<TxnStep>,
    /// What happens when one does not.
    #[serde(default, rename = "else")]
    otherwise: Vec<TxnStep>,
}

/// A comparison with a key: everything that is given must hold. Where there is no such key, its
/// version and revisions are 0 and nothing holds about its value.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"key": "a", "exists": true, "value": {"ne": "x"}, "version": {"lt": 9}}))]
pub(super) struct TxnCompare {
    /// The key.
    #[serde(default)]
    key: Option<String>,
    /// The key in base64, in place of `key`.
    #[serde(default)]
    key_b64: Option<String>,
    /// Does it exist?
    #[serde(default)]
    exists: Option<bool>,
    /// Its value.
    #[serde(default)]
    value: Option<ValueTest>,
    /// Writes since its creation.
    #[serde(default)]
    version: Option<NumberTest>,
    /// Revision that created it.
    #[serde(default)]
    create_revision: Option<NumberTest>,
    /// Revision that last wrote it.
    #[serde(default)]
    mod_revision: Option<NumberTest>,
}

/// What a value is compared with: text that it equals, or an object.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "value: expected a text, or an object with one of eq, ne, lt, gt \
    and perhaps an encoding"
)]
pub(super) enum ValueTest {
    /// It equals this text.
    Text(String),
    /// It compares so.
    Related(BytesTest),
}

/// What bytes are compared with: one of `eq`, `ne`, `lt`, `gt`, bytewise; the stored value
/// stands left.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"gt": "AP8=", "encoding": "base64"}))]
pub(super) struct BytesTest {
    /// Equal.
    #[serde(default)]
    eq: Option<String>,
    /// Not equal.
    #[serde(default)]
    ne: Option<String>,
    /// The stored one is less.
    #[serde(default)]
    lt: Option<String>,
    /// The stored one is greater.
    #[serde(default)]
    gt: Option<String>,
    /// How the bytes are written; `utf-8` when absent.
    #[serde(default)]
    encoding: ValueEncoding,
}

/// What a number is compared with: one of `eq`, `ne`, `lt`, `gt`; the stored one stands left.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"eq": 12}))]
pub(super) struct NumberTest {
    /// Equal.
    #[serde(default)]
    eq: Option<u64>,
    /// Not equal.
    #[serde(default)]
    ne: Option<u64>,
    /// The stored one is less.
    #[serde(default)]
    lt: Option<u64>,
    /// The stored one is greater.
    #[serde(default)]
    gt: Option<u64>,
}

/// One step. Steps see what the ones before them did; no key is written or deleted twice.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TxnStep {
    /// Write a key.
    Put(PutStep),
    /// Remove keys.
    Delete(DeleteStep),
    /// Read keys.
    Get(GetStep),
    /// Make a lease, which later steps can name as `"new"`; one at most.
    Lease(LeaseStep),
}

/// A key to write.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"key": "a", "value": "1", "ttl": "30s", "prev": true}))]
pub(super) struct PutStep {
    /// The key.
    #[serde(default)]
    key: Option<String>,
    /// The key in base64, in place of `key`.
    #[serde(default)]
    key_b64: Option<String>,
    /// The value, as `encoding` says.
    value: String,
    /// How the value is written; `utf-8` when absent.
    #[serde(default)]
    encoding: ValueEncoding,
    /// Stored with it, and answered when it is read.
    #[serde(default)]
    content_type: Option<String>,
    /// How long it stays, such as `30s`; not together with `lease`.
    #[serde(default)]
    ttl: Option<String>,
    /// The lease it hangs on: its id, or `"new"` for the one that an earlier step makes.
    #[serde(default)]
    lease: Option<LeaseName>,
    /// Answer with what was there before.
    #[serde(default)]
    prev: bool,
}

/// A lease: its id, or `"new"`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "lease: expected the id of a lease, or \"new\"")]
pub(super) enum LeaseName {
    /// Its id.
    Id(u64),
    /// `"new"`: the one that an earlier step makes.
    Made(String),
}

/// Keys to remove: one, those with a prefix, those from `start` up to `end`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"prefix": "tmp/", "prev": true}))]
pub(super) struct DeleteStep {
    /// One key.
    #[serde(default)]
    key: Option<String>,
    /// One key in base64.
    #[serde(default)]
    key_b64: Option<String>,
    /// All keys that begin so.
    #[serde(default)]
    prefix: Option<String>,
    /// The prefix in base64.
    #[serde(default)]
    prefix_b64: Option<String>,
    /// The first key; together with `end`.
    #[serde(default)]
    start: Option<String>,
    /// The first key in base64.
    #[serde(default)]
    start_b64: Option<String>,
    /// The key after the last; together with `start`.
    #[serde(default)]
    end: Option<String>,
    /// The key after the last in base64.
    #[serde(default)]
    end_b64: Option<String>,
    /// Answer with what was there before, as far as there is room.
    #[serde(default)]
    prev: bool,
}

/// Keys to read: one, those with a prefix, those from `start` up to `end`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"prefix": "jobs/", "limit": 10}))]
pub(super) struct GetStep {
    /// One key.
    #[serde(default)]
    key: Option<String>,
    /// One key in base64.
    #[serde(default)]
    key_b64: Option<String>,
    /// All keys that begin so; empty: all keys.
    #[serde(default)]
    prefix: Option<String>,
    /// The prefix in base64.
    #[serde(default)]
    prefix_b64: Option<String>,
    /// The first key.
    #[serde(default)]
    start: Option<String>,
    /// The first key in base64.
    #[serde(default)]
    start_b64: Option<String>,
    /// The key after the last.
    #[serde(default)]
    end: Option<String>,
    /// The key after the last in base64.
    #[serde(default)]
    end_b64: Option<String>,
    /// At most so many items; at most `limits.list_items`, which is also the default.
    #[serde(default)]
    limit: Option<u64>,
}

/// A lease to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ttl": "30s"}))]
pub(super) struct LeaseStep {
    /// How long it lasts without a sign of life, at least `1s`.
    ttl: String,
}

/// What a body asks for.
pub(super) fn read(json: &[u8], limits: &Limits) -> Result<Txn, ApiError> {
    let TxnRequest { compares, then, otherwise } = body::json(json)?;
    let mut txn = Txn::default();
    for compare in compares {
        compare.read(&mut txn.compares)?;
    }
    let actual = (txn.compares.len() + then.len() + otherwise.len()) as u64;
    let limit = u64::from(limits.txn_operations);
    if actual > limit {
        let what = "comparisons and operations of a transaction";
        return Err(ApiError::Beyond { what, limit, actual });
    }
    let steps = |steps: Vec<TxnStep>| {
        steps.into_iter().map(|step| step.read(limits)).collect::<Result<_, ApiError>>()
    };
    txn.then = steps(then)?;
    txn.otherwise = steps(otherwise)?;
    txn.check().map_err(|why| ApiError::Unprocessable(why.to_string()))?;
    Ok(txn)
}

fn refused<T>(why: &str) -> Result<T, ApiError> {
    Err(ApiError::BadRequest(why.into()))
}

/// The one that is given of four.
fn relation<T>(given: [Option<T>; 4]) -> Result<(Relation, T), ApiError> {
    let names = [Relation::Eq, Relation::Ne, Relation::Lt, Relation::Gt];
    let mut given = names.into_iter().zip(given).filter_map(|(name, it)| Some((name, it?)));
    match (given.next(), given.next()) {
        (Some(only), None) => Ok(only),
        _ => refused("a comparison has one of eq, ne, lt and gt"),
    }
}

impl NumberTest {
    fn read(self) -> Result<(Relation, u64), ApiError> {
        relation([self.eq, self.ne, self.lt, self.gt])
    }
}

impl ValueTest {
    fn read(self) -> Result<Subject, ApiError> {
        let (relation, bytes) = match self {
            Self::Text(text) => (Relation::Eq, text.into()),
            Self::Related(BytesTest { eq, ne, lt, gt, encoding }) => {
                let (relation, text) = relation([eq, ne, lt, gt])?;
                (relation, body::value(text, encoding)?)
            }
        };
        Ok(Subject::Value(relation, bytes))
    }
}

impl TxnCompare {
    fn read(self, into: &mut Vec<Compare>) -> Result<(), ApiError> {
        let key = one_key(self.key, self.key_b64)?;
        let number = |test: Option<NumberTest>, subject: fn(Relation, u64) -> Subject| {
            let test = test.map(NumberTest::read).transpose()?;
            Ok::<_, ApiError>(test.map(|(relation, number)| subject(relation, number)))
        };
        let subjects = [
            self.exists.map(Subject::Exists),
            self.value.map(ValueTest::read).transpose()?,
            number(self.version, Subject::Version)?,
            number(self.create_revision, Subject::CreateRevision)?,
            number(self.mod_revision, Subject::ModRevision)?,
        ];
        let before = into.len();
        let compares = subjects.into_iter().flatten();
        into.extend(compares.map(|what| Compare { key: key.clone(), what }));
        if into.len() == before {
            return refused(
                "a comparison has exists, value, version, create_revision or mod_revision",
            );
        }
        Ok(())
    }
}

impl TxnStep {
    fn read(self, limits: &Limits) -> Result<Op, ApiError> {
        match self {
            Self::Put(put) => put.read(limits.value),
            Self::Delete(delete) => delete.read(),
            Self::Get(get) => get.read(u64::from(limits.list_items)),
            Self::Lease(lease) => lease_ttl_ms(&lease.ttl).map(|ttl_ms| Op::Grant { ttl_ms }),
        }
    }
}

impl PutStep {
    fn read(self, limit: u64) -> Result<Op, ApiError> {
        let key = one_key(self.key, self.key_b64)?;
        let value = body::value(self.value, self.encoding)?;
        let actual = value.len() as u64;
        if actual > limit {
            return Err(ApiError::TooLarge { limit, actual: Some(actual) });
        }
        let content_type = self.content_type.unwrap_or_default();
        let is_visible = |byte: u8| matches!(byte, b' '..=b'~' | b'\t');
        if content_type.len() > CONTENT_TYPE_MAX || !content_type.bytes().all(is_visible) {
            return refused(&format!(
                "content_type: expected at most {CONTENT_TYPE_MAX} bytes of visible ASCII"
            ));
        }
        let life = match (self.ttl, self.lease) {
            (None, None) => Life::Endless,
            (Some(ttl), None) => Life::Ttl(ttl_ms(&ttl)?),
            (None, Some(LeaseName::Id(0))) => {
                return Err(ApiError::NotFound("there is no lease 0".into()));
            }
            (None, Some(LeaseName::Id(id))) => Life::Lease(id),
            (None, Some(LeaseName::Made(name))) if name == "new" => Life::NewLease,
            (None, Some(LeaseName::Made(_))) => {
                return refused("lease: expected the id of a lease, or \"new\"");
            }
            (Some(_), Some(_)) => return refused("ttl does not go with lease: a key has one end"),
        };
        let content = Content { value, content_type, life };
        Ok(Op::Put { key, content, prev: self.prev })
    }
}

impl DeleteStep {
    fn read(self) -> Result<Op, ApiError> {
        let selected = Selected {
            key: body::bytes("key", self.key, self.key_b64)?,
            prefix: body::bytes("prefix", self.prefix, self.prefix_b64)?,
            start: body::bytes("start", self.start, self.start_b64)?,
            end: body::bytes("end", self.end, self.end_b64)?,
        };
        if selected.start.is_some() != selected.end.is_some() {
            return refused("delete: start and end go together");
        }
        let span = selected.span()?;
        if span.start.is_empty() && span.end.is_none() {
            return refused("delete: an empty prefix would be all keys; use DELETE /v1/keys");
        }
        Ok(Op::Delete { span, prev: self.prev })
    }
}

impl GetStep {
    fn read(self, most: u64) -> Result<Op, ApiError> {
        let selected = Selected {
            key: body::bytes("key", self.key, self.key_b64)?,
            prefix: body::bytes("prefix", self.prefix, self.prefix_b64)?,
            start: body::bytes("start", self.start, self.start_b64)?,
            end: body::bytes("end", self.end, self.end_b64)?,
        };
        if self.limit == Some(0) {
            return refused("get: limit is at least 1");
        }
        Ok(Op::Get { span: selected.span()?, limit: self.limit.unwrap_or(most).min(most) })
    }
}

/// Which keys a step is about.
struct Selected {
    key: Option<Bytes>,
    prefix: Option<Bytes>,
    start: Option<Bytes>,
    end: Option<Bytes>,
}

impl Selected {
    fn span(self) -> Result<Span, ApiError> {
        match (self.key, self.prefix, self.start, self.end) {
            (Some(key), None, None, None) => Ok(Span::key(&fitting(key)?)),
            (None, Some(prefix), None, None) => Ok(Span::prefix(&bound(prefix)?)),
            (None, None, None, None) => refused("which keys? give key, prefix, or start and end"),
            (None, None, start, end) => {
                let start = bound(start.unwrap_or_default())?;
                Ok(Span { start, end: end.map(bound).transpose()? })
            }
            _ => refused("key, prefix, and start with end exclude each other"),
        }
    }
}

fn one_key(key: Option<String>, key_b64: Option<String>) -> Result<Bytes, ApiError> {
    let key = body::bytes("key", key, key_b64)?;
    key.map_or_else(|| refused("which key? give key, or key_b64"), fitting)
}

fn fitting(key: Bytes) -> Result<Bytes, ApiError> {
    if key.is_empty() {
        return refused("a key has at least one byte");
    }
    if key.len() > KEY_MAX {
        return Err(ApiError::KeyTooLarge { limit: KEY_MAX as u64, actual: key.len() as u64 });
    }
    Ok(key)
}

/// The end of a range may be the longest key and a zero byte.
fn bound(bytes: Bytes) -> Result<Bytes, ApiError> {
    if bytes.len() > KEY_MAX + 1 {
        return Err(ApiError::KeyTooLarge { limit: KEY_MAX as u64, actual: bytes.len() as u64 });
    }
    Ok(bytes)
}

/// How long a lease lasts. One that is shorter than a change of leaders cannot be kept alive.
pub(super) fn lease_ttl_ms(text: &str) -> Result<u64, ApiError> {
    let ttl_ms = ttl_ms(text)?;
    if ttl_ms < 1000 {
        return refused(&format!("a lease lasts at least 1s, not {text}"));
    }
    Ok(ttl_ms)
}
