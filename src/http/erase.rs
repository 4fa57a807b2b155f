//! `DELETE /v1/keys`: a range of keys at once.
//!
//! A script whose variables are empty must not empty the store: what has no end of its own is
//! removed only when `all=true` says so.

use axum::Json;
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::Query;
use crate::machine::{Applied, Command, Span};

/// What deleting a range answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"deleted": 17, "revision": 42}))]
pub(super) struct Erased {
    /// How many keys there were.
    deleted: u64,
    /// The revision of the change, or the store's when there were none.
    revision: u64,
}

/// Delete a range of keys
///
/// All at one revision, and 100,000 at most: beyond that nothing is deleted, and the answer
/// says how many are allowed. A range needs `prefix`, or both `start` and `end`; what is
/// without end, and everything, needs `all=true`.
#[utoipa::path(
    delete, path = "/v1/keys", operation_id = "deleteKeys", tag = "keys",
    params(
        ("prefix" = Option<String>, Query, description = "keys that begin so"),
        ("start" = Option<String>, Query, description = "first key; not together with `prefix`"),
        ("end" = Option<String>, Query, description = "the key after the last; not together with `prefix`"),
        ("all" = Option<bool>, Query, description = "instead of a selector: everything; together with `start` or `end` alone: all from there on, or up to there"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Idempotency-Key" = Option<String>, Header, description = "a name for this request: asked again, the first outcome is the answer, and `Idempotency-Replayed: true` says so"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while that lock is held with that token"),
    ),
    responses(
        (status = 200, body = Erased, description = "the keys are gone", headers(("Idempotency-Replayed" = String, description = "`true`: it happened before"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`; no selector"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`: the lock is not held so"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: more keys than may be deleted at once, with `limit` and `actual`, which counts no further than one beyond it"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn erase(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, _) = request.into_parts();
    let query = Query::parse(&head.uri, &["prefix", "start", "end", "all", "timeout", "redirect"])?;
    let span = selected(&query)?;
    for condition in [header::IF_MATCH, header::IF_NONE_MATCH] {
        if head.headers.contains_key(&condition) {
            let why = format!("{condition} is for one key, and this is about a range");
            return Err(ApiError::Unprocessable(why));
        }
    }
    edge.may(&[Need::new(Verb::Write, span.clone())])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let done = edge.write(&head.headers, &query, Command::DeleteRange { span }).await?;
    Ok(done.answer(|applied| {
        let Applied::Deleted { deleted, revision, .. } = applied else {
            return Err(ApiError::of(applied));
        };
        Ok(Json(Erased { deleted, revision }).into_response())
    }))
}

/// What the parameters select. One that is empty selects nothing.
fn selected(query: &Query) -> Result<Span, ApiError> {
    let bytes = |name| query.bytes(name).filter(|bytes| !bytes.is_empty());
    let (prefix, start, end) = (bytes("prefix"), bytes("start"), bytes("end"));
    let all = query.flag("all")?;
    let refused = |why: &str| Err(ApiError::BadRequest(why.into()));
    let owned = Bytes::copy_from_slice;
    match (prefix, start, end) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            refused("prefix does not go with start or end")
        }
        (Some(_), None, None) | (None, Some(_), Some(_)) if all => {
            refused("all=true does not go with a range that has an end")
        }
        (Some(prefix), None, None) => Ok(Span::prefix(prefix)),
        (None, Some(start), Some(end)) => Ok(Span { start: owned(start), end: Some(owned(end)) }),
        (None, start, end) if all => {
            Ok(Span { start: start.map(owned).unwrap_or_default(), end: end.map(owned) })
        }
        (None, None, None) => refused("which keys? give prefix, or start and end, or all=true"),
        (None, _, _) => refused("start and end go together; all=true is for a range without end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_empties_the_store() {
        let of = |query: &str| {
            let uri = format!("/v1/keys?{query}").parse().unwrap();
            selected(&Query::parse(&uri, &["prefix", "start", "end", "all"]).unwrap())
        };
        let span = |start: &'static str, end: Option<&'static str>| {
            Ok(Span { start: start.into(), end: end.map(Into::into) })
        };
        assert_eq!(of("prefix=a"), span("a", Some("b")));
        assert_eq!(of("start=a&end=c&all=false"), span("a", Some("c")));
        assert_eq!(of("prefix=&start=a&end=c"), span("a", Some("c")));
        assert_eq!(of("all=true"), span("", None));
        assert_eq!(of("prefix=&start=&end=&all=true"), span("", None));
        assert_eq!(of("start=a&all=true"), span("a", None));
        assert_eq!(of("end=c&all=true"), span("", Some("c")));
        for bad in [
            "",
            "prefix=",
            "start=",
            "start=&end=",
            "start=a",
            "start=a&end=",
            "end=c",
            "all=false",
            "prefix=a&start=b",
            "prefix=a&end=b",
            "prefix=a&all=true",
            "start=a&end=b&all=true",
        ] {
            assert!(matches!(of(bad), Err(ApiError::BadRequest(_))), "{bad}");
        }
    }
}
