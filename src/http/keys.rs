//! `/v1/keys/{key}`: one key, one resource. What changes it; reads are in `read.rs`.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::envelope::{Deleted, Touched, Written, shown_lease, shown_ttl};
pub(super) use super::envelope::{Envelope, RawValue, shown_key};
use super::error::{ApiError, Problem, etag};
use super::extract::{self, Query};
use super::propose::{life, ttl_ms};
use crate::machine::{self, Applied, CONTENT_TYPE_MAX, Command, OwnedRecord, Span};

/// Where the keys are.
pub(super) const PREFIX: &str = "/v1/keys/";
/// How a key's end is changed.
const MERGE_PATCH: &str = "application/merge-patch+json";
/// Largest body of `PATCH`.
const PATCH_MAX: u64 = 4096;

/// Write a key
///
/// Answers once a majority has the write on disk and the leader has applied it. Conditions
/// are judged at that moment: `If-None-Match: *` creates only, `If-Match: "<revision>"`
/// replaces only that version. With `ttl` the key is removed when its time is over, with `lease`
/// when the lease is; a later write without them makes it stay.
#[utoipa::path(
    put, path = "/v1/keys/{key}", operation_id = "putKey", tag = "keys",
    params(
        ("key" = String, Path, description = "1 to 4096 bytes, percent-encoded; `/` stands for itself", example = "color"),
        ("ttl" = Option<String>, Query, description = "remove the key after this time, such as `30s`; not together with `lease`"),
        ("lease" = Option<u64>, Query, description = "the key goes when this lease does"),
        ("prev" = Option<bool>, Query, description = "answer with what was there before"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("If-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
        ("If-None-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 bytes: the same request under the same name happens once, and is answered as the first time"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while that lock is held with that token"),
    ),
    request_body(content = RawValue, content_type = "application/octet-stream", description = "the value, any bytes; its Content-Type is stored with it"),
    responses(
        (status = 200, body = Written, description = "replaced", headers(("ETag" = String, description = "the new revision"), ("Idempotency-Replayed" = String, description = "`true`: the first answer again"))),
        (status = 201, body = Written, description = "created", headers(("ETag" = String, description = "the new revision"), ("Idempotency-Replayed" = String, description = "`true`: the first answer again"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: there is no such lease"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`: the body did not arrive in time"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`, with the current tag; or the fence is not up"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`: the value"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: the Idempotency-Key was given to another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
        (status = 507, body = Problem, content_type = "application/problem+json", description = "`quota-exceeded`"),
    ),
)]
pub(super) async fn put(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let key = extract::key(&head.uri, PREFIX)?;
    let query = Query::parse(&head.uri, &["prev", "timeout", "redirect", "ttl", "lease"])?;
    edge.timeout(&query)?;
    let (life, prev) = (life(&query)?, query.flag("prev")?);
    let conditions = extract::conditions(&head.headers)?;
    let content_type = given_type(&head.headers)?;
    edge.may(&[Need::new(Verb::Write, Span::key(&key))])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let limits = &edge.config.limits;
    let (value, _held) = edge.body(&head.headers, body, limits.value).await?;
    let command = Command::Put { key: key.clone(), value, content_type, life, conditions, prev };
    let done = edge.write(&head.headers, &query, command).await?;
    let now_ms = done.seen.time_ms;
    Ok(done.answer(|applied| {
        let Applied::Put(written) = applied else { return Err(ApiError::of(applied)) };
        Ok(answer_put(now_ms, &key, written))
    }))
}

fn answer_put(now_ms: u64, key: &Bytes, written: machine::Written) -> Response {
    let created = written.version == 1;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let tag = [(header::ETAG, etag(written.revision))];
    let (text, key_b64) = shown_key(key);
    let body = Written {
        key: text,
        key_b64,
        revision: written.revision,
        create_revision: written.create_revision,
        version: written.version,
        created,
        lease: shown_lease(written.lease),
        ttl: shown_ttl(written.ttl_ms),
        prev: before(now_ms, key, written.prev),
    };
    (status, tag, Json(body)).into_response()
}

/// What was there before, with what it has left by now.
fn before(now_ms: u64, key: &[u8], prev: Option<OwnedRecord>) -> Option<Envelope> {
    prev.map(|prev| Envelope::new(key, &prev.as_record(), now_ms, true))
}

fn given_type(headers: &HeaderMap) -> Result<String, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(String::new()) };
    match value.to_str() {
        Ok(text) if text.len() <= CONTENT_TYPE_MAX => Ok(text.to_owned()),
        _ => Err(ApiError::BadRequest(format!(
            "header content-type: expected at most {CONTENT_TYPE_MAX} bytes of visible ASCII"
        ))),
    }
}

/// Delete a key
///
/// Idempotent: deleting what is not there is a success with `deleted` 0.
#[utoipa::path(
    delete, path = "/v1/keys/{key}", operation_id = "deleteKey", tag = "keys",
    params(
        ("key" = String, Path, description = "1 to 4096 bytes, percent-encoded; `/` stands for itself", example = "color"),
        ("prev" = Option<bool>, Query, description = "answer with what was there before"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("If-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
        ("If-None-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 bytes: the same request under the same name happens once, and is answered as the first time"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while that lock is held with that token"),
    ),
    responses(
        (status = 200, body = Deleted, description = "the key is gone", headers(("Idempotency-Replayed" = String, description = "`true`: the first answer again"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`, with the current tag; or the fence is not up"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: the Idempotency-Key was given to another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn delete(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, _) = request.into_parts();
    let key = extract::key(&head.uri, PREFIX)?;
    let query = Query::parse(&head.uri, &["prev", "timeout", "redirect"])?;
    let prev = query.flag("prev")?;
    let conditions = extract::conditions(&head.headers)?;
    edge.may(&[Need::new(Verb::Write, Span::key(&key))])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let command = Command::Delete { key: key.clone(), conditions, prev };
    let done = edge.write(&head.headers, &query, command).await?;
    let now_ms = done.seen.time_ms;
    Ok(done.answer(|applied| {
        let Applied::Deleted { deleted, revision, prev } = applied else {
            return Err(ApiError::of(applied));
        };
        let prev = before(now_ms, &key, prev);
        Ok(Json(Deleted { deleted, revision, prev }).into_response())
    }))
}

/// What is changed of a key; a merge patch (RFC 7396).
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ttl": "30s"}))]
pub(super) struct Patch {
    /// Its time from now, such as `30s`; `null`: it stays.
    #[serde(default, deserialize_with = "given")]
    #[schema(required = true, value_type = Option<String>)]
    ttl: Option<Option<String>>,
}

/// Tells `null` from a field that is not there.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// Change when a key ends
///
/// Gives it another time to live, from now on, or none. The value stays, and so do version and
/// revision: nobody who watches is told. A time takes the place of a lease; `null` takes away
/// only a time.
#[utoipa::path(
    patch, path = "/v1/keys/{key}", operation_id = "patchKey", tag = "keys",
    params(
        ("key" = String, Path, description = "1 to 4096 bytes, percent-encoded; `/` stands for itself", example = "color"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("If-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
        ("If-None-Match" = Option<String>, Header, description = "a list of `ETag`s"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 bytes: the same request under the same name happens once, and is answered as the first time"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while that lock is held with that token"),
    ),
    request_body(content = Patch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = Touched, description = "changed", headers(("ETag" = String, description = "its revision, unchanged"), ("Idempotency-Replayed" = String, description = "`true`: the first answer again"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`: the body did not arrive in time"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`, with the current tag; or the fence is not up"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`: the body"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 415, body = Problem, content_type = "application/problem+json", description = "`unsupported-media-type`", headers(("Accept-Patch" = String, description = "what is supported"))),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: no `ttl`, or the Idempotency-Key was given to another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn patch(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let key = extract::key(&head.uri, PREFIX)?;
    let query = Query::parse(&head.uri, &["timeout", "redirect"])?;
    edge.timeout(&query)?;
    let conditions = extract::conditions(&head.headers)?;
    if !is_merge_patch(&head.headers) {
        return Err(ApiError::UnsupportedType { wanted: MERGE_PATCH, header: "accept-patch" });
    }
    edge.may(&[Need::new(Verb::Write, Span::key(&key))])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let body = extract::body(&head.headers, body, PATCH_MAX, &edge.config.http).await?;
    let ttl_ms = read_patch(&body)?;
    let command = Command::Touch { key: key.clone(), ttl_ms, conditions };
    let done = edge.write(&head.headers, &query, command).await?;
    Ok(done.answer(|applied| {
        let Applied::Touched { mod_revision, lease, ttl_ms } = applied else {
            return Err(ApiError::of(applied));
        };
        let tag = [(header::ETAG, etag(mod_revision))];
        let (key, key_b64) = shown_key(&key);
        let (lease, ttl) = (shown_lease(lease), ttl_ms.and_then(shown_ttl));
        Ok((tag, Json(Touched { key, key_b64, mod_revision, lease, ttl })).into_response())
    }))
}

fn is_merge_patch(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = given.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(MERGE_PATCH)
}

/// The time to live that a patch gives, in milliseconds; `None`: it takes it away.
fn read_patch(body: &[u8]) -> Result<Option<u64>, ApiError> {
    // serde would take a list of the fields for a structure.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::BadRequest("a patch is a JSON object".into()));
    }
    let Json(patch) =
        Json::<Patch>::from_bytes(body).map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let ttl = patch.ttl.ok_or_else(|| {
        ApiError::Unprocessable("the patch changes nothing: it has no ttl".into())
    })?;
    ttl.as_deref().map(ttl_ms).transpose()
}

/// The path ends before the key.
pub(super) async fn no_key() -> ApiError {
    ApiError::BadRequest("a key has at least one byte".into())
}
