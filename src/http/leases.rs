//! `/v1/leases`: what hangs on a lease goes with it, unless somebody keeps it alive.

use axum::Json;
use axum::extract::{Path, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::body;
use super::error::{ApiError, Problem};
use super::extract::{self, NUMBER_MAX, Query};
use super::keys::shown_key;
use super::txn_body::lease_ttl_ms;
use crate::config::show_duration;
use crate::machine::{Applied, Command, Granted, LeaseView, Span, View};
use crate::node::Consistency;

/// Largest body: a thousand ids.
const BODY_MAX: u64 = 64 << 10;
/// Leases in one request to keep them alive.
const KEEPALIVE_MAX: u64 = 1000;
/// The largest id that every client can hold: JavaScript has no larger whole numbers.
const ID_MAX: u64 = (1 << 53) - 1;

/// A lease to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ttl": "30s"}))]
pub(super) struct LeaseRequest {
    /// How long it lasts without a sign of life, such as `30s`; at least `1s`.
    ttl: String,
    /// Its id, 1 to 9007199254740991; left out: the revision at which it is made.
    #[serde(default)]
    id: Option<u64>,
}

/// A lease that begins.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": 17, "ttl": "30s"}))]
pub(super) struct LeaseMade {
    /// Its id.
    id: u64,
    /// How long it lasts without a sign of life.
    ttl: String,
}

/// Leases to keep alive.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ids": [17, 21]}))]
pub(super) struct KeepAliveRequest {
    /// Their ids, at most 1000.
    ids: Vec<u64>,
}

/// What became of leases that were to be kept alive.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"leases": [{"id": 17, "ttl": "30s"}, {"id": 21, "ttl": null}]}))]
pub(super) struct KeptAlive {
    /// In the order of the ids.
    leases: Vec<MaybeAlive>,
}

/// A lease that was to be kept alive.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": 17, "ttl": "30s"}))]
pub(super) struct MaybeAlive {
    /// Its id.
    id: u64,
    /// How long it lasts from now on; `null`: it is over.
    ttl: Option<String>,
}

/// A lease that ended.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"deleted": 3, "revision": 44}))]
pub(super) struct LeaseEnded {
    /// Keys that went with it.
    deleted: u64,
    /// The revision of the change, or the store's when no key hung on it.
    revision: u64,
}

/// A lease and what hangs on it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": 17, "ttl": "30s", "left": "12481ms", "keys": 1, "attached": [{"key": "workers/7"}]
}))]
pub(super) struct LeaseInfo {
    /// Its id.
    id: u64,
    /// How long it lasts without a sign of life.
    ttl: String,
    /// How long it still lasts.
    left: String,
    /// How many keys hang on it.
    keys: u64,
    /// Which, in key order; only if it was asked for, at most `limits.list_items`, and of those
    /// that the client may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    attached: Option<Vec<AttachedKey>>,
}

/// A key that hangs on a lease.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"key": "workers/7"}))]
pub(super) struct AttachedKey {
    /// The key, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
}

/// One page of leases.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "revision": 43, "leases": [{"id": 17, "ttl": "30s", "left": "12481ms", "keys": 1}],
    "more": false, "next": null
}))]
pub(super) struct LeasePage {
    /// The store's revision that the page was read at.
    revision: u64,
    /// In the order of their ids.
    leases: Vec<LeaseInfo>,
    /// Is there more after this page?
    more: bool,
    /// What `after` is for the next page.
    next: Option<u64>,
}

impl LeaseMade {
    pub(super) fn new(granted: Granted) -> Self {
        Self { id: granted.id, ttl: shown(granted.ttl_ms) }
    }
}

impl LeaseInfo {
    fn new(view: &View, it: &LeaseView) -> Self {
        let left = it.lease.expiry_ms.saturating_sub(view.time_ms());
        let (ttl, left) = (shown(it.lease.ttl_ms), shown(left.max(1)));
        Self { id: it.id, ttl, left, keys: it.keys, attached: None }
    }
}

fn shown(ms: u64) -> String {
    show_duration(std::time::Duration::from_millis(ms))
}

/// Make a lease
///
/// It lasts for `ttl` and begins anew each time it is kept alive. When it ends, the keys that
/// were written with `lease=ID` are deleted and its locks are given back. After a change of
/// leaders nothing ends for about two seconds, so that clients can find the new one.
#[utoipa::path(
    post, path = "/v1/leases", operation_id = "makeLease", tag = "leases",
    params(
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Idempotency-Key" = Option<String>, Header, description = "a name for this request: asked again, the first outcome is the answer, and `Idempotency-Replayed: true` says so"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while this lock is held with this token"),
    ),
    request_body = LeaseRequest,
    responses(
        (status = 201, body = LeaseMade, description = "it begins", headers(("Location" = String, description = "where it is"), ("Idempotency-Replayed" = String, description = "`true`: it happened before"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`: the body did not arrive in time"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: a lease with that id is there"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`: the lock of the fence is not held so"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: an Idempotency-Key of another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
        (status = 507, body = Problem, content_type = "application/problem+json", description = "`quota-exceeded`"),
    ),
)]
pub(super) async fn make(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let query = Query::parse(&head.uri, &["timeout", "redirect"])?;
    edge.may(&[Need::all(Verb::Lease)])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let body = extract::body(&head.headers, body, BODY_MAX, &edge.config.http).await?;
    let LeaseRequest { ttl, id } = body::json(&body)?;
    if id.is_some_and(|id| !(1..=ID_MAX).contains(&id)) {
        return Err(ApiError::BadRequest(format!("the id of a lease lies between 1 and {ID_MAX}")));
    }
    let command = Command::Grant { id: id.unwrap_or(0), ttl_ms: lease_ttl_ms(&ttl)? };
    let done = edge.write(&head.headers, &query, command).await?;
    Ok(done.answer(|applied| {
        let Applied::Granted(granted) = applied else { return Err(ApiError::of(applied)) };
        let location = [(header::LOCATION, format!("/v1/leases/{}", granted.id))];
        Ok((StatusCode::CREATED, location, Json(LeaseMade::new(granted))).into_response())
    }))
}

/// List leases
///
/// In the order of their ids, page by page, each page from one consistent snapshot.
#[utoipa::path(
    get, path = "/v1/leases", operation_id = "listLeases", tag = "leases",
    params(
        ("limit" = Option<u64>, Query, description = "most leases in a page; at most `limits.list_items`, which is also the default"),
        ("after" = Option<u64>, Query, description = "only ids above this: `next` of the page before"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default), `lease` or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
    ),
    responses(
        (status = 200, body = LeasePage, description = "a page"),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: lease reads are not enabled"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn list(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let uri = request.uri();
    let known = ["limit", "after", "consistency", "min_revision", "timeout", "redirect"];
    let query = Query::parse(uri, &known)?;
    let limit = edge.page_limit(&query)?;
    let after = query.number("after")?.unwrap_or(0);
    edge.allow(&[Need::all(Verb::Lease)])?;
    if let Some(elsewhere) = edge.redirect(&query, uri)? {
        return Ok(elsewhere);
    }
    let view = edge.view(&query).await?;
    let mut found = view.leases(after, limit + 1)?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| last.id);
    let leases = found.iter().map(|it| LeaseInfo::new(&view, it)).collect();
    Ok(Json(LeasePage { revision: view.revision(), leases, more, next }).into_response())
}

/// Look at a lease
#[utoipa::path(
    get, path = "/v1/leases/{id}", operation_id = "getLease", tag = "leases",
    params(
        ("id" = u64, Path, description = "the lease", example = 17),
        ("keys" = Option<bool>, Query, description = "answer with the keys that hang on it as well"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default), `lease` or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
    ),
    responses(
        (status = 200, body = LeaseInfo, description = "it lasts"),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: it is over, or never was"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: lease reads are not enabled"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn look(
    edge: Edge,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let uri = request.uri();
    let known = ["keys", "consistency", "min_revision", "timeout", "redirect"];
    let query = Query::parse(uri, &known)?;
    let (id, with_keys) = (path_id(&id)?, query.flag("keys")?);
    edge.allow(&[Need::all(Verb::Lease)])?;
    if let Some(elsewhere) = edge.redirect(&query, uri)? {
        return Ok(elsewhere);
    }
    let view = edge.view(&query).await?;
    let Some(lease) = view.lease(id)? else { return Err(no_lease(id)) };
    let mut info = LeaseInfo::new(&view, &lease);
    if with_keys {
        let most = usize::try_from(edge.config.limits.list_items).unwrap_or(usize::MAX);
        let mut keys = Vec::new();
        view.lease_keys(id, |key| {
            if edge.sees(key) {
                let (key, key_b64) = shown_key(key);
                keys.push(AttachedKey { key, key_b64 });
            }
            keys.len() < most
        })?;
        info.attached = Some(keys);
    }
    Ok(Json(info).into_response())
}

/// Keep a lease alive
///
/// Its time begins anew. Any node takes the request.
#[utoipa::path(
    post, path = "/v1/leases/{id}/keepalive", operation_id = "keepLeaseAlive", tag = "leases",
    params(
        ("id" = u64, Path, description = "the lease", example = 17),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while this lock is held with this token"),
    ),
    responses(
        (status = 200, body = LeaseMade, description = "it begins anew"),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: it is over, or never was"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`: the lock of the fence is not held so"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: an Idempotency-Key of another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn keep_one(
    edge: Edge,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, _) = request.into_parts();
    let query = Query::parse(&head.uri, &["timeout", "redirect"])?;
    let id = path_id(&id)?;
    edge.may(&[Need::all(Verb::Lease)])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let done = edge.write(&head.headers, &query, Command::KeepAlive { ids: vec![id] }).await?;
    Ok(done.answer(|applied| {
        let Applied::KeptAlive { ttls_ms } = applied else { return Err(ApiError::of(applied)) };
        let ttl_ms = ttls_ms.first().copied().flatten().ok_or_else(|| no_lease(id))?;
        Ok(Json(LeaseMade::new(Granted { id, ttl_ms })).into_response())
    }))
}

/// Keep many leases alive
///
/// With one entry of the log. What is over has no `ttl` in the answer.
#[utoipa::path(
    post, path = "/v1/leases/keepalive", operation_id = "keepLeasesAlive", tag = "leases",
    params(
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while this lock is held with this token"),
    ),
    request_body = KeepAliveRequest,
    responses(
        (status = 200, body = KeptAlive, description = "those that are there begin anew"),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`: the body did not arrive in time"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`: the lock of the fence is not held so"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: more than 1000, or an Idempotency-Key of another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn keep_many(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let query = Query::parse(&head.uri, &["timeout", "redirect"])?;
    edge.may(&[Need::all(Verb::Lease)])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let body = extract::body(&head.headers, body, BODY_MAX, &edge.config.http).await?;
    let KeepAliveRequest { ids } = body::json(&body)?;
    let actual = ids.len() as u64;
    if actual > KEEPALIVE_MAX {
        let what = "leases to keep alive at once";
        return Err(ApiError::Beyond { what, limit: KEEPALIVE_MAX, actual });
    }
    if let Some(id) = ids.iter().find(|id| **id > NUMBER_MAX) {
        return Err(ApiError::BadRequest(format!("ids of leases go up to {NUMBER_MAX}, not {id}")));
    }
    let command = Command::KeepAlive { ids: ids.clone() };
    let done = edge.write(&head.headers, &query, command).await?;
    Ok(done.answer(|applied| {
        let Applied::KeptAlive { ttls_ms } = applied else { return Err(ApiError::of(applied)) };
        let leases = ids.into_iter().zip(ttls_ms);
        let leases = leases.map(|(id, ttl)| MaybeAlive { id, ttl: ttl.map(shown) }).collect();
        Ok(Json(KeptAlive { leases }).into_response())
    }))
}

/// End a lease
///
/// With its keys and locks, all at one revision. Where there are tokens, it takes the right to
/// write each of the keys.
#[utoipa::path(
    delete, path = "/v1/leases/{id}", operation_id = "endLease", tag = "leases",
    params(
        ("id" = u64, Path, description = "the lease", example = 17),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Idempotency-Key" = Option<String>, Header, description = "a name for this request: asked again, the first outcome is the answer, and `Idempotency-Replayed: true` says so"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while this lock is held with this token"),
    ),
    responses(
        (status = 200, body = LeaseEnded, description = "it is over", headers(("Idempotency-Replayed" = String, description = "`true`: it happened before"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: it is over already, or never was"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`: the lock of the fence is not held so"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: an Idempotency-Key of another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn end(
    edge: Edge,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, _) = request.into_parts();
    let query = Query::parse(&head.uri, &["timeout", "redirect"])?;
    let id = path_id(&id)?;
    edge.may(&[Need::all(Verb::Lease)])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    edge.may_end(&query, |_| Ok(Some(id))).await?;
    let done = edge.write(&head.headers, &query, Command::Revoke { id }).await?;
    Ok(done.answer(|applied| {
        let Applied::Revoked { deleted, revision } = applied else {
            return Err(ApiError::of(applied));
        };
        Ok(Json(LeaseEnded { deleted, revision }).into_response())
    }))
}

fn path_id(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        ApiError::BadRequest(format!("{text:?} is not the id of a lease, a whole number"))
    })
}

fn no_lease(id: u64) -> ApiError {
    ApiError::of(Applied::NoLease { id })
}

impl Edge {
    /// May the request delete the keys that go with the lease that `which` finds? Judged on what
    /// is attached now: who attaches more before the lease ends meant them to go with it.
    pub(super) async fn may_end(
        &self,
        query: &Query,
        which: impl FnOnce(&View) -> Result<Option<u64>, ApiError>,
    ) -> Result<(), ApiError> {
        if self.judge(&[Need::all(Verb::Write)]).is_ok() {
            return Ok(());
        }
        let view = self.handle.view(Consistency::Linearizable, self.timeout(query)?).await?;
        let Some(id) = which(&view)? else { return Ok(()) };
        let mut allowed = Ok(());
        view.lease_keys(id, |key| {
            allowed = self.may(&[Need::new(Verb::Write, Span::key(key))]);
            allowed.is_ok()
        })?;
        allowed
    }

    /// How many items a page has at most.
    pub(super) fn page_limit(&self, query: &Query) -> Result<usize, ApiError> {
        let most = u64::from(self.config.limits.list_items);
        let limit = query.number("limit")?.unwrap_or(most);
        if limit == 0 {
            return Err(ApiError::BadRequest("query parameter \"limit\" is at least 1".into()));
        }
        Ok(usize::try_from(limit.min(most)).unwrap_or(usize::MAX - 1))
    }
}
