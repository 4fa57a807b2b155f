//! `GET` and `HEAD /v1/keys/{key}`: a key as it is, as it was, and as soon as it is another.

use std::ops::Range;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header, request};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::access::{Need, Verb};
use super::envelope::{BYTES, Envelope, RawValue, content_type};
use super::error::{ApiError, Problem, etag};
use super::extract::{self, Query};
use super::keys::PREFIX;
use super::poll::{Wait, Waited};
use super::{Edge, range, value};
use crate::machine::{Conditions, Record, Span, Tags, View};
use crate::node::Consistency;

const JSON: &str = "application/json";
/// Headers of an answer with a value, as many as it may have.
const HEADERS: usize = 16;

/// Read a key
///
/// The value as it was written, with its content type; with `Accept: application/json` an
/// envelope with all that is known of it. Linearizable unless `consistency=stale`.
///
/// With `If-None-Match` and `Prefer: wait=30` it is a long poll: the answer comes as soon as the
/// key is another. The wait is at most `limits.max_timeout` and at most `timeout`, if that is
/// given; `Preference-Applied` tells what was granted. A node that shuts down answers 503.
#[utoipa::path(
    get, path = "/v1/keys/{key}", operation_id = "getKey", tag = "keys",
    params(
        ("key" = String, Path, description = "1 to 4096 bytes, percent-encoded; `/` stands for itself", example = "color"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default) or `stale`: this replica as it is"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("revision" = Option<u64>, Query, description = "the key as it was after everything up to and with this revision"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
        ("If-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s"),
        ("If-None-Match" = Option<String>, Header, description = "`*` or a list of `ETag`s: 304 when one matches"),
        ("Prefer" = Option<String>, Header, description = "`wait=30` with `If-None-Match`: answer as soon as the key is another, or is gone; 304 only after so many seconds (RFC 7240)", example = "wait=30"),
        ("Range" = Option<String>, Header, description = "`bytes=0-99`: a part of the raw value; several at once are not supported, and ignored", example = "bytes=0-99"),
        ("If-Range" = Option<String>, Header, description = "an `ETag`: the part only of that version, else the whole"),
    ),
    responses(
        (status = 200, description = "the value", content((RawValue = "*/*"), (Envelope = "application/json")), headers(("ETag" = String, description = "its revision"))),
        (status = 206, description = "a part of the value", body = RawValue, content_type = "*/*", headers(("ETag" = String, description = "its revision"), ("Content-Range" = String, description = "which part, of how many bytes"))),
        (status = 304, description = "not changed", headers(("Preference-Applied" = String, description = "how long it may have been waited for"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`"),
        (status = 410, body = Problem, content_type = "application/problem+json", description = "`compacted`: the past of `revision` is no longer known; `oldest_revision` is"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 416, body = Problem, content_type = "application/problem+json", description = "`range-not-satisfiable`", headers(("Content-Range" = String, description = "how many bytes there are"))),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`, also when `revision` is yet to come"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn get(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let start = Instant::now();
    let (head, _) = request.into_parts();
    let key = extract::key(&head.uri, PREFIX)?;
    let known = ["consistency", "min_revision", "timeout", "redirect", "revision"];
    let query = Query::parse(&head.uri, &known)?;
    let conditions = extract::conditions(&head.headers)?;
    let revision = query.number("revision")?;
    let wait = match &conditions.if_none_match {
        Some(known) if revision.is_none() => {
            Wait::wished(&edge, &head.headers, &query, known, start)?
        }
        Some(_) | None => None,
    };
    edge.allow(&[Need::new(Verb::Read, Span::key(&key))])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let view = edge.view(&query).await?;
    let asked = Asked { head: &head, key: &key, conditions: &conditions };
    let Some(wait) = wait else { return asked.answer(&view, revision) };
    // What If-Match refuses is refused at once.
    asked.matched(view.get(&key)?.as_ref())?;
    let waiting = Instant::now();
    let view = wait.until_changed(&edge, &head, &key, view).await;
    let waited = Waited(waiting.elapsed());
    let mut response =
        view.and_then(|view| asked.answer(&view, None)).unwrap_or_else(ApiError::into_response);
    wait.mark(&mut response, waited);
    Ok(response)
}

/// What a client wants to know of a key.
struct Asked<'a> {
    head: &'a request::Parts,
    key: &'a [u8],
    conditions: &'a Conditions,
}

impl Asked<'_> {
    /// The answer from `view`, as the key was after `revision` if that is given.
    fn answer(&self, view: &View, revision: Option<u64>) -> Result<Response, ApiError> {
        let record = match revision {
            None => view.get(self.key)?,
            Some(revision) => {
                is_kept(view, revision)?;
                view.get_at(self.key, revision)?
            }
        };
        self.matched(record.as_ref())?;
        let record = record.ok_or_else(|| ApiError::NotFound("there is no such key".into()))?;
        let headers = &self.head.headers;
        let tag = etag(record.mod_revision);
        let tag = [(header::ETAG, tag), (header::VARY, "Accept".to_owned())];
        let unchanged = match &self.conditions.if_none_match {
            None => false,
            Some(Tags::Any) => true,
            Some(Tags::Revisions(known)) => known.contains(&record.mod_revision),
        };
        if unchanged {
            return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
        }
        if wants_json(headers) {
            let envelope = Envelope::new(self.key, &record, view.time_ms(), true);
            return Ok((tag, Json(envelope)).into_response());
        }
        // Only GET knows ranges.
        let size = record.value.len();
        let part = match self.head.method {
            Method::GET => range::wanted(headers, record.mod_revision, size)?,
            _ => None,
        };
        let mut response = raw(view, self.key, &record, part)?;
        response.headers_mut().extend(
            tag.into_iter()
                .filter_map(|(name, tag)| HeaderValue::try_from(tag).ok().map(|tag| (name, tag))),
        );
        Ok(response)
    }

    /// `If-Match`.
    fn matched(&self, record: Option<&Record<'_>>) -> Result<(), ApiError> {
        let current = record.map(|record| record.mod_revision);
        let only = Conditions { if_match: self.conditions.if_match.clone(), if_none_match: None };
        if only.hold(current) { Ok(()) } else { Err(ApiError::PreconditionFailed { current }) }
    }
}

/// Is the past of that revision known, and is it past already?
fn is_kept(view: &View, revision: u64) -> Result<(), ApiError> {
    let limit = view.revision();
    if revision > limit {
        return Err(ApiError::Beyond { what: "revision", limit, actual: revision });
    }
    Ok(view.kept(revision)?)
}

/// Does the client ask for JSON, rather than for whatever there is?
pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|accept| {
        accept.split(',').any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == JSON))
    })
}

/// The bytes as they are, in a way that no browser runs them.
fn raw(
    view: &View,
    key: &[u8],
    record: &Record<'_>,
    part: Option<Range<usize>>,
) -> Result<Response, ApiError> {
    let size = record.value.len();
    let body = value::body(view, key, record, part.clone().unwrap_or(0..size))?;
    let mut response = Response::new(body);
    if let Some(part) = part {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        // A part has at least one byte.
        let text = format!("bytes {}-{}/{size}", part.start, part.end - 1);
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
    }
    let headers = response.headers_mut();
    let kind = content_type(record);
    // Room for these and for what the layer adds.
    headers.reserve(HEADERS);
    let value = match kind {
        BYTES => HeaderValue::from_static(BYTES),
        kind => HeaderValue::try_from(kind).unwrap_or(HeaderValue::from_static(BYTES)),
    };
    headers.insert(header::CONTENT_TYPE, value);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
    if is_run_by_browsers(kind) {
        headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

/// Might a browser run what it shows of this kind?
fn is_run_by_browsers(kind: &str) -> bool {
    if kind == BYTES {
        return false; // what most values are
    }
    let kind = kind.to_ascii_lowercase();
    let run = ["html", "xml", "svg", "javascript", "ecmascript", "pdf"];
    run.iter().any(|run| kind.contains(run))
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
        ("revision" = Option<u64>, Query, description = "the key as it was after everything up to and with this revision"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
    ),
    responses(
        (status = 200, description = "the key exists", headers(("ETag" = String, description = "its revision"))),
        (status = 304, description = "not changed"),
        (status = 307, description = "`redirect=true` on a node that does not lead"),
        (status = 400, description = "`bad-request`"),
        (status = 404, description = "`not-found`"),
        (status = 410, description = "`compacted`"),
        (status = 412, description = "`precondition-failed`"),
        (status = 414, description = "`too-large`"),
        (status = 422, description = "`unprocessable`, also when `revision` is yet to come"),
        (status = 429, description = "`overloaded`"),
        (status = 503, description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn head(edge: Edge, request: Request) -> Result<Response, ApiError> {
    get(edge, request).await
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
        let least = query.number("min_revision")?;
        if consistency == Consistency::Stale
            && let Some(revision) = least
            && !self.handle.reached(revision, timeout).await
        {
            return Err(ApiError::NoLeader("this replica has not applied that revision in time"));
        }
        let view = self.handle.view(consistency, timeout).await?;
        // It holds everything that was acknowledged before the request came.
        if let Some(revision) = least
            && view.applied().0 < revision
        {
            return Err(ApiError::Unprocessable(format!(
                "min_revision {revision} is still to come; {} is the newest",
                view.revision()
            )));
        }
        Ok(view)
    }
}
