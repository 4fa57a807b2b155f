//! `/v1/keys/{key}`: one key, one resource.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::error::{ApiError, Problem, etag};
use super::extract::{self, Query};
use super::value;
use crate::machine::{self, Applied, CONTENT_TYPE_MAX, Command, Life, Record, Tags, View};
use crate::node::Consistency;

/// Where the keys are.
pub(super) const PREFIX: &str = "/v1/keys/";
const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// Any bytes.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(super) struct RawValue(#[expect(dead_code, reason = "only described, never built")] Vec<u8>);

/// A key with its value and all that is known of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "key": "color", "value": "blue", "encoding": "utf-8", "content_type": "text/plain", "size": 4,
    "create_revision": 7, "mod_revision": 9, "version": 2, "lease": null, "ttl": null
}))]
pub(super) struct Envelope {
    /// The key, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    /// The value, as `encoding` says; absent when only keys were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// How `value` is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
    /// As given when it was written.
    content_type: String,
    /// Bytes of the value.
    size: u64,
    /// Revision that created the key.
    create_revision: u64,
    /// Revision that last wrote it; its `ETag`.
    mod_revision: u64,
    /// Writes since its creation.
    version: u64,
    /// The lease it hangs on.
    lease: Option<u64>,
    /// Time it has left.
    ttl: Option<String>,
}

/// How bytes are written in JSON.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) enum Encoding {
    /// As text.
    #[serde(rename = "utf-8")]
    Utf8,
    /// In standard base64.
    #[serde(rename = "base64")]
    Base64,
}

/// What a successful write answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "key": "color", "revision": 9, "create_revision": 7, "version": 2, "created": false,
    "lease": null, "ttl": null
}))]
pub(super) struct Written {
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

/// What a successful delete answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"deleted": 1, "revision": 10}))]
pub(super) struct Deleted {
    /// Keys removed: 0 or 1.
    deleted: u64,
    /// The revision of the change, or the store's when nothing was there.
    revision: u64,
    /// What was there before, if it was asked for and there was something.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev: Option<Envelope>,
}

/// Bytes as text where they are text, else as base64.
fn shown(bytes: &[u8]) -> (String, Encoding) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), Encoding::Utf8),
        Err(_) => (base64::engine::general_purpose::STANDARD.encode(bytes), Encoding::Base64),
    }
}

/// A key as the two fields it may appear in.
pub(super) fn shown_key(key: &[u8]) -> (Option<String>, Option<String>) {
    match shown(key) {
        (text, Encoding::Utf8) => (Some(text), None),
        (text, Encoding::Base64) => (None, Some(text)),
    }
}

impl Envelope {
    /// `with_value`: else only what is known of it.
    pub(super) fn new(key: &[u8], record: &Record<'_>, with_value: bool) -> Self {
        let (key, key_b64) = shown_key(key);
        let (value, encoding) = with_value.then(|| shown(record.value)).unzip();
        Self {
            key,
            key_b64,
            value,
            encoding,
            content_type: content_type(record).to_owned(),
            size: record.value.len() as u64,
            create_revision: record.create_revision,
            mod_revision: record.mod_revision,
            version: record.version,
            lease: (record.lease != 0).then_some(record.lease),
            ttl: None,
        }
    }
}

fn content_type<'a>(record: &Record<'a>) -> &'a str {
    if record.content_type.is_empty() { BYTES } else { record.content_type }
}

/// Write a key
///
/// Answers once a majority has the write on disk and the leader has applied it. Conditions
/// are judged at that moment: `If-None-Match: *` creates only, `If-Match: "<revision>"`
/// replaces only that version.
#[utoipa::path(
    put, path = "/v1/keys/{key}", operation_id = "putKey", tag = "keys",
    params(
        ("key" = String, Path, description = "1 to 4096 bytes, percent-encoded; `/` stands for itself", example = "color"),
        ("prev" = Option<bool>, Query, description = "answer with what was there before"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("If-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
        ("If-None-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
    ),
    request_body(content = RawValue, content_type = "application/octet-stream", description = "the value, any bytes; its Content-Type is stored with it"),
    responses(
        (status = 200, body = Written, description = "replaced", headers(("ETag" = String, description = "the new revision"))),
        (status = 201, body = Written, description = "created", headers(("ETag" = String, description = "the new revision"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`: the body did not arrive in time"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`, with the current tag"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`: the value"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
        (status = 507, body = Problem, content_type = "application/problem+json", description = "`quota-exceeded`"),
    ),
)]
pub(super) async fn put(State(edge): State<Edge>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let key = extract::key(&head.uri, PREFIX)?;
    let query = Query::parse(&head.uri, &["prev", "timeout", "redirect", "ttl", "lease"])?;
    for later in ["ttl", "lease"] {
        if query.bytes(later).is_some() {
            return Err(ApiError::Unprocessable(format!(
                "{later} is not supported by this version, and was not ignored for that reason"
            )));
        }
    }
    refuse_idempotency(&head.headers)?;
    let timeout = edge.timeout(&query)?;
    let prev = query.flag("prev")?;
    let conditions = extract::conditions(&head.headers)?;
    let content_type = given_type(&head.headers)?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let limits = &edge.config.limits;
    let value = extract::body(&head.headers, body, limits.value, &edge.config.http).await?;
    let life = Life::Endless;
    let command = Command::Put { key: key.clone(), value, content_type, life, conditions, prev };
    match edge.handle.propose(command, timeout).await? {
        Applied::Put(machine::Written { revision, create_revision, version, prev, .. }) => {
            let created = version == 1;
            let (text, key_b64) = shown_key(&key);
            let written = Written {
                key: text,
                key_b64,
                revision,
                create_revision,
                version,
                created,
                lease: None,
                ttl: None,
                prev: prev.map(|prev| Envelope::new(&key, &prev.as_record(), true)),
            };
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            Ok((status, [(header::ETAG, etag(revision))], Json(written)).into_response())
        }
        other => Err(ApiError::of(other)),
    }
}

fn refuse_idempotency(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key("idempotency-key") {
        return Err(ApiError::Unprocessable(
            "Idempotency-Key is not supported by this version, and was not ignored for that \
             reason; use If-Match or If-None-Match to make a retry safe"
                .into(),
        ));
    }
    Ok(())
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

/// Read a key
///
/// The value as it was written, with its content type; with `Accept: application/json` an
/// envelope with all that is known of it. Linearizable unless `consistency=stale`.
#[utoipa::path(
    get, path = "/v1/keys/{key}", operation_id = "getKey", tag = "keys",
    params(
        ("key" = String, Path, description = "1 to 4096 bytes, percent-encoded; `/` stands for itself", example = "color"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default) or `stale`: this replica as it is"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
        ("If-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
        ("If-None-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s: 304 when one matches"),
    ),
    responses(
        (status = 200, description = "the value", content((RawValue = "application/octet-stream"), (Envelope = "application/json")), headers(("ETag" = String, description = "its revision"))),
        (status = 304, description = "not changed"),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn get(State(edge): State<Edge>, request: Request) -> Result<Response, ApiError> {
    let (head, _) = request.into_parts();
    let key = extract::key(&head.uri, PREFIX)?;
    let known = ["consistency", "min_revision", "timeout", "redirect"];
    let query = Query::parse(&head.uri, &known)?;
    let conditions = extract::conditions(&head.headers)?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let view = edge.view(&query).await?;
    let Some(record) = view.get(&key)? else {
        if conditions.if_match.is_some() {
            return Err(ApiError::PreconditionFailed { current: None });
        }
        return Err(ApiError::NotFound("there is no such key".into()));
    };
    let revision = record.mod_revision;
    if let Some(Tags::Revisions(wanted)) = &conditions.if_match
        && !wanted.contains(&revision)
    {
        return Err(ApiError::PreconditionFailed { current: Some(revision) });
    }
    let unchanged = match &conditions.if_none_match {
        None => false,
        Some(Tags::Any) => true,
        Some(Tags::Revisions(known)) => known.contains(&revision),
    };
    let tag = [(header::ETAG, etag(revision)), (header::VARY, "Accept".to_owned())];
    if unchanged {
        return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    if wants_json(&head.headers) {
        return Ok((tag, Json(Envelope::new(&key, &record, true))).into_response());
    }
    let mut response = raw(&record, value::body(&view, &key, &record)?);
    response.headers_mut().extend(
        tag.into_iter()
            .filter_map(|(name, tag)| HeaderValue::try_from(tag).ok().map(|tag| (name, tag))),
    );
    Ok(response)
}

/// Does the client ask for JSON, rather than for whatever there is?
pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|accept| {
        accept.split(',').any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == JSON))
    })
}

/// The bytes as they are, in a way that no browser runs them.
fn raw(record: &Record<'_>, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let kind = content_type(record);
    let value = HeaderValue::try_from(kind).unwrap_or(HeaderValue::from_static(BYTES));
    headers.insert(header::CONTENT_TYPE, value);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
    let kind = kind.to_ascii_lowercase();
    if ["html", "xml", "svg", "javascript", "ecmascript", "pdf"]
        .iter()
        .any(|run| kind.contains(run))
    {
        headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    }
    response
}

/// Read what is known of a key
///
/// As GET, without the body.
#[utoipa::path(
    head, path = "/v1/keys/{key}", operation_id = "headKey", tag = "keys",
    params(
        ("key" = String, Path, description = "1 to 4096 bytes, percent-encoded; `/` stands for itself", example = "color"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default) or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
    ),
    responses(
        (status = 200, description = "the key exists", headers(("ETag" = String, description = "its revision"))),
        (status = 304, description = "not changed"),
        (status = 307, description = "`redirect=true` on a node that does not lead"),
        (status = 400, description = "`bad-request`"),
        (status = 404, description = "`not-found`"),
        (status = 412, description = "`precondition-failed`"),
        (status = 414, description = "`too-large`"),
        (status = 422, description = "`unprocessable`"),
        (status = 429, description = "`overloaded`"),
        (status = 503, description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn head(edge: State<Edge>, request: Request) -> Result<Response, ApiError> {
    get(edge, request).await
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
    ),
    responses(
        (status = 200, body = Deleted, description = "the key is gone"),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`, with the current tag"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn delete(
    State(edge): State<Edge>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, _) = request.into_parts();
    let key = extract::key(&head.uri, PREFIX)?;
    let query = Query::parse(&head.uri, &["prev", "timeout", "redirect"])?;
    refuse_idempotency(&head.headers)?;
    let timeout = edge.timeout(&query)?;
    let prev = query.flag("prev")?;
    let conditions = extract::conditions(&head.headers)?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let command = Command::Delete { key: key.clone(), conditions, prev };
    match edge.handle.propose(command, timeout).await? {
        Applied::Deleted { deleted, revision, prev } => {
            let prev = prev.map(|prev| Envelope::new(&key, &prev.as_record(), true));
            Ok(Json(Deleted { deleted, revision, prev }).into_response())
        }
        other => Err(ApiError::of(other)),
    }
}

/// The path ends before the key.
pub(super) async fn no_key() -> ApiError {
    ApiError::BadRequest("a key has at least one byte".into())
}

impl Edge {
    /// The state to read from, as the parameters ask.
    pub(super) async fn view(&self, query: &Query) -> Result<View, ApiError> {
        let timeout = self.timeout(query)?;
        let consistency = match query.text("consistency")? {
            None | Some("linearizable") => Consistency::Linearizable,
            Some("stale") => Consistency::Stale,
            Some("lease") if self.config.raft.lease => Consistency::Lease,
            Some("lease") => {
                return Err(ApiError::Unprocessable(
                    "lease reads are not enabled; use linearizable or stale".into(),
                ));
            }
            Some(other) => {
                return Err(ApiError::BadRequest(format!(
                    "query parameter \"consistency\" is linearizable or stale, not {other:?}"
                )));
            }
        };
        if let Some(revision) = query.number("min_revision")?
            && !self.handle.reached(revision, timeout).await
        {
            return Err(ApiError::NoLeader("this replica has not applied that revision in time"));
        }
        Ok(self.handle.view(consistency, timeout).await?)
    }
}
