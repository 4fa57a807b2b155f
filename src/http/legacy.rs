//! The routes of the experiment that mmapd grew out of, kept for its clients.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb, needs};
use super::error::{ApiError, Problem};
use super::extract::{self, Query};
use crate::machine::{self, Applied, Command, Conditions, Life, Span};
use crate::node::{Consistency, RoleName};

const FORM: &str = "application/x-www-form-urlencoded";

/// Room for the field's name and its encoding in a form body.
const FORM_EXTRA: u64 = 1024;

/// The form of `POST /set/{key}`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never built")]
pub(super) struct SetForm {
    /// The value.
    value: String,
}

fn text(bytes: Bytes) -> Response {
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    let nosniff = HeaderValue::from_static("nosniff");
    ([(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, nosniff)], bytes)
        .into_response()
}

/// Write a key, the old way
#[utoipa::path(
    post, path = "/set/{key}", operation_id = "legacySet", tag = "legacy",
    params(("key" = String, Path, description = "1 to 4096 bytes, percent-encoded", example = "color")),
    request_body(content = SetForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "the value"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 415, body = Problem, content_type = "application/problem+json", description = "`unsupported-media-type`: a form of another kind", headers(("Accept-Post" = String, description = "what is supported"))),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
        (status = 507, body = Problem, content_type = "application/problem+json", description = "`quota-exceeded`"),
    ),
)]
pub(super) async fn set(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let key = extract::key(&head.uri, "/set/")?;
    Query::parse(&head.uri, &[])?;
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // What may stand between its boundaries is no field of this form.
    if kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/")) {
        return Err(ApiError::UnsupportedType { wanted: FORM, header: "accept-post" });
    }
    edge.may(&[Need::new(Verb::Write, Span::key(&key))])?;
    let limits = &edge.config.limits;
    // Every byte of the value may be written as three.
    let limit = limits.value * 3 + FORM_EXTRA;
    let (form, _held) = edge.body(&head.headers, body, limit).await?;
    let value = Bytes::from(extract::form_field(&form, "value")?);
    if value.len() as u64 > limits.value {
        let actual = Some(value.len() as u64);
        return Err(ApiError::TooLarge { limit: limits.value, actual });
    }
    let command = Command::Put {
        key,
        value: value.clone(),
        content_type: "text/plain; charset=utf-8".into(),
        life: Life::Endless,
        conditions: Conditions::default(),
        prev: false,
    };
    let request = machine::Request::from(command);
    edge.allow(&needs(&request))?;
    let applied = edge.handle.propose(request, limits.request_timeout).await?;
    if matches!(applied, Applied::Put(_)) { Ok(text(value)) } else { Err(ApiError::of(applied)) }
}

/// Read a key, the old way
#[utoipa::path(
    get, path = "/get/{key}", operation_id = "legacyGet", tag = "legacy",
    params(("key" = String, Path, description = "1 to 4096 bytes, percent-encoded", example = "color")),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "the value"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
    ),
)]
pub(super) async fn get(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let key = extract::key(request.uri(), "/get/")?;
    Query::parse(request.uri(), &[])?;
    edge.allow(&[Need::new(Verb::Read, Span::key(&key))])?;
    let timeout = edge.config.limits.request_timeout;
    let view = edge.handle.view(Consistency::Linearizable, timeout).await?;
    let record =
        view.get(&key)?.ok_or_else(|| ApiError::NotFound("there is no such key".into()))?;
    Ok(text(Bytes::copy_from_slice(record.value)))
}

/// Status, the old way
#[utoipa::path(
    get, path = "/status", operation_id = "legacyStatus", tag = "legacy",
    responses((status = 200, body = Object, content_type = "application/json", description = "id, state, term, voted for, commit index, last applied, next index, match index")),
)]
pub(super) async fn status(edge: Edge) -> Result<Json<Value>, ApiError> {
    edge.allow(&[Need::all(Verb::Observe)])?;
    let status = edge.handle.status();
    let by_id = |number: fn(&crate::node::MemberStatus) -> Option<u64>| {
        let known = status.members.iter().filter(|member| !member.is_self);
        let known =
            known.filter_map(|member| Some((member.id.to_string(), number(member)?.into())));
        Value::Object(known.collect())
    };
    let state = match status.role {
        RoleName::Leader => "leader",
        RoleName::Follower => "follower",
        RoleName::Candidate => "candidate",
        RoleName::Learner => "learner",
    };
    Ok(Json(json!({
        "id": edge.handle.id(),
        "state": state,
        "term": status.term,
        "voted for": status.voted_for,
        "commit index": status.commit_index,
        "last applied": status.applied_index,
        "next index": by_id(|member| member.next_index),
        "match index": by_id(|member| member.match_index),
    })))
}
