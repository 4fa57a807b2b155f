//! `POST /v1/txn`: several comparisons and steps as one.

use axum::Json;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::access::{Verb, needs};
use super::error::{ApiError, Problem};
use super::extract::Query;
use super::keys::{Envelope, shown_key};
use super::leases::LeaseMade;
use super::propose::fence;
use super::txn_body::{self, TxnRequest};
use crate::config::show_duration;
use crate::machine::{self, Applied, Command, Op, OpResult, OwnedRecord, Txn, Written};

/// What a transaction did.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"succeeded": true, "revision": 14, "results": [
    {"put": {"key": "a", "revision": 14, "create_revision": 7, "version": 3, "created": false,
        "lease": null, "ttl": "30s"}},
    {"delete": {"deleted": 2}}
]}))]
pub(super) struct TxnAnswer {
    /// Did all comparisons hold? Then these are the results of `then`, else those of `else`.
    succeeded: bool,
    /// The revision of its changes, or the store's when nothing was changed.
    revision: u64,
    /// One for each step, in their order.
    results: Vec<StepResult>,
}

/// What one step did.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StepResult {
    /// A key was written.
    Put(Box<StepWritten>),
    /// Keys were removed.
    Delete(StepDeleted),
    /// Keys were read.
    Get(StepItems),
    /// A lease was made.
    Lease(LeaseMade),
}

/// A key that a transaction wrote.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "key": "a", "revision": 14, "create_revision": 7, "version": 3, "created": false,
    "lease": null, "ttl": "30s"
}))]
pub(super) struct StepWritten {
    /// The key, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    /// The revision of this write.
    revision: u64,
    /// Revision that created the key.
    create_revision: u64,
    /// Writes since its creation.
    version: u64,
    /// Was it created by this write?
    created: bool,
    /// The lease it hangs on.
    lease: Option<u64>,
    /// Time it has left.
    ttl: Option<String>,
    /// What was there before, if it was asked for and there was something.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev: Option<Envelope>,
}

/// Keys that a transaction removed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"deleted": 2}))]
pub(super) struct StepDeleted {
    /// How many.
    deleted: u64,
    /// What was there before, if it was asked for: the first ones, as far as there was room.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev: Option<Vec<Envelope>>,
}

/// Keys that a transaction read.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"items": [], "more": false}))]
pub(super) struct StepItems {
    /// In key order.
    items: Vec<Envelope>,
    /// Were there more than the limit, or too many bytes?
    more: bool,
}

/// Several steps as one
///
/// If all comparisons of `if` hold then the steps of `then` happen, else those of `else`, at one
/// revision, all or none; nobody sees a part of it. Comparisons are with the state before the
/// transaction, steps see what the ones before them did, and no key is written or deleted twice.
/// A key in base64 is given as `key_b64`, `prefix_b64`, `start_b64`, `end_b64`.
///
/// A transaction that only reads does not enter the log; `consistency` and `min_revision` are
/// for those alone, and `Idempotency-Key` is of no use there. All answers of a transaction
/// together hold up to 8 MiB of keys and values.
#[utoipa::path(
    post, path = "/v1/txn", operation_id = "transact", tag = "transactions",
    params(
        ("consistency" = Option<String>, Query, description = "of what only reads: `linearizable` (default), `lease` or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "of what only reads: wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Idempotency-Key" = Option<String>, Header, description = "a name for this request: asked again, the first outcome is the answer, and `Idempotency-Replayed: true` says so"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while this lock is held with this token"),
    ),
    request_body = TxnRequest,
    responses(
        (status = 200, body = TxnAnswer, description = "it happened, one way or the other", headers(("Idempotency-Replayed" = String, description = "`true`: it happened before"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: no such lease"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`: the body did not arrive in time"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: a lease with the id that the new one would get is there"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`: the lock of the fence is not held so"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`: the body, or a value"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: a key"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: too many operations, a key that is written twice, a lease that no step makes, or an Idempotency-Key of another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
        (status = 507, body = Problem, content_type = "application/problem+json", description = "`quota-exceeded`"),
    ),
)]
pub(super) async fn transact(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let query = Query::parse(&head.uri, &["consistency", "min_revision", "timeout", "redirect"])?;
    let limits = &edge.config.limits;
    edge.timeout(&query)?;
    // Which keys it is about stands in its body. Who may nothing has nothing to send.
    edge.may_some(&[Verb::Read, Verb::Write, Verb::Lease])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let (body, _held) = edge.body(&head.headers, body, limits.txn_bytes).await?;
    let txn = txn_body::read(&body, limits)?;
    drop(body);
    if txn.is_read_only() {
        let (applied, now_ms) = edge.read(&head.headers, &query, &txn).await?;
        return Ok(Json(answer(&txn, applied, now_ms)?).into_response());
    }
    for read in ["consistency", "min_revision"] {
        if query.bytes(read).is_some() {
            return Err(ApiError::BadRequest(format!(
                "{read} is for transactions that only read, and this one writes"
            )));
        }
    }
    let done = edge.write(&head.headers, &query, Command::Txn(txn.clone())).await?;
    let now_ms = done.seen.time_ms;
    Ok(done.answer(|applied| Ok(Json(answer(&txn, applied, now_ms)?).into_response())))
}

impl Edge {
    /// A transaction that only reads, from a view, and the time there.
    async fn read(
        &self,
        headers: &HeaderMap,
        query: &Query,
        txn: &Txn,
    ) -> Result<(Applied, u64), ApiError> {
        let fence = fence(headers)?;
        let command = Command::Txn(txn.clone());
        let request = machine::Request { once: None, fence, command };
        self.allow(&needs(&request))?;
        let view = self.view(query).await?;
        if let Some(fence) = &request.fence {
            let current = view.lock(&fence.name, 0)?.map(|lock| lock.holder.token);
            if current != Some(fence.token) {
                return Err(ApiError::of(Applied::Fenced { current }));
            }
        }
        Ok((machine::read(&view, txn)?, view.time_ms()))
    }
}

/// `now_ms`: the clock of the log, by which times that are left are told.
fn answer(txn: &Txn, applied: Applied, now_ms: u64) -> Result<TxnAnswer, ApiError> {
    let Applied::Txn { succeeded, revision, results } = applied else {
        return Err(ApiError::of(applied));
    };
    let steps = if succeeded { &txn.then } else { &txn.otherwise };
    let results = steps.iter().zip(results).map(|(step, result)| shown(step, result, now_ms));
    Ok(TxnAnswer { succeeded, revision, results: results.collect() })
}

fn shown(step: &Op, result: OpResult, now_ms: u64) -> StepResult {
    match result {
        OpResult::Put(written) => {
            let key = if let Op::Put { key, .. } = step { &key[..] } else { &[] };
            StepResult::Put(Box::new(shown_write(key, &written, now_ms)))
        }
        OpResult::Deleted { deleted, prev } => {
            let asked = matches!(step, Op::Delete { prev: true, .. });
            StepResult::Delete(StepDeleted {
                deleted,
                prev: asked.then(|| envelopes(&prev, now_ms)),
            })
        }
        OpResult::Got { items, more } => {
            StepResult::Get(StepItems { items: envelopes(&items, now_ms), more })
        }
        OpResult::Granted(granted) => StepResult::Lease(LeaseMade::new(granted)),
    }
}

fn shown_write(key: &[u8], written: &Written, now_ms: u64) -> StepWritten {
    let (text, key_b64) = shown_key(key);
    let ttl = std::time::Duration::from_millis(written.ttl_ms);
    StepWritten {
        key: text,
        key_b64,
        revision: written.revision,
        create_revision: written.create_revision,
        version: written.version,
        created: written.version == 1,
        lease: (written.lease != 0).then_some(written.lease),
        ttl: (!ttl.is_zero()).then(|| show_duration(ttl)),
        prev: written.prev.as_ref().map(|prev| Envelope::new(key, &prev.as_record(), now_ms, true)),
    }
}

fn envelopes(items: &[(bytes::Bytes, OwnedRecord)], now_ms: u64) -> Vec<Envelope> {
    items
        .iter()
        .map(|(key, record)| Envelope::new(key, &record.as_record(), now_ms, true))
        .collect()
}
