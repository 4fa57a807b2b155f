//! `GET /v1/history/{key}`: what happened to a key, as far as it is still known.

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::envelope::{Encoding, content_type, shown, shown_key};
use super::error::{ApiError, Problem};
use super::extract::{self, Query};
use crate::machine::{Change, Kind, Reason, Span, View};

/// Where the past is.
const PREFIX: &str = "/v1/history/";
/// Changes in a page, if nothing else is asked for.
const LIMIT: u64 = 100;
/// What the changes of one page weigh, unless the first weighs more. A value counts twice, as
/// what was written and as what the next change found, so a page has about 1 MiB of them.
const PAGE_BYTES: usize = 2 << 20;

/// One page of the past of a key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "key": "color", "revision": 12,
    "items": [
        {"type": "delete", "revision": 10, "reason": "ttl", "prev_revision": 9},
        {
            "type": "put", "revision": 9, "reason": "request", "value": "blue", "encoding": "utf-8",
            "content_type": "text/plain", "size": 4, "create_revision": 7, "version": 2, "prev_revision": 7
        }
    ],
    "more": true, "next_before": 9, "oldest_revision": 3
}))]
pub(super) struct Past {
    /// The key, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    /// The store's revision that this was read at.
    revision: u64,
    /// Changes of the key, newest first.
    items: Vec<PastChange>,
    /// Is there more that is older?
    more: bool,
    /// `before` of the next page.
    next_before: Option<u64>,
    /// Changes after this revision are known; older ones are forgotten.
    oldest_revision: u64,
}

/// One change of a key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PastChange {
    /// What happened.
    #[serde(rename = "type")]
    kind: PastKind,
    /// The revision of the change.
    revision: u64,
    /// Why it happened.
    reason: PastReason,
    /// What was written, as `encoding` says; absent in a delete, as is all up to `version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// How `value` is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
    /// As given when it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// Bytes of the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Revision that created the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    create_revision: Option<u64>,
    /// Writes since its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// Revision of what was there before, if there was something.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_revision: Option<u64>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PastKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
}

/// Why something happened to a key.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PastReason {
    /// Somebody asked for it.
    Request,
    /// Its time to live was over.
    Ttl,
    /// Its lease was.
    Lease,
}

impl PastChange {
    fn of(change: &Change) -> Self {
        let record = change.record.as_ref();
        let (value, encoding) = record.map(|record| shown(&record.value)).unzip();
        Self {
            kind: match change.kind {
                Kind::Put => PastKind::Put,
                Kind::Delete => PastKind::Delete,
            },
            revision: change.revision,
            reason: match change.reason {
                Reason::Request => PastReason::Request,
                Reason::Ttl => PastReason::Ttl,
                Reason::Lease => PastReason::Lease,
            },
            value,
            encoding,
            content_type: record.map(|record| content_type(&record.as_record()).to_owned()),
            size: record.map(|record| record.value.len() as u64),
            create_revision: record.map(|record| record.create_revision),
            version: record.map(|record| record.version),
            prev_revision: change.prev.as_ref().map(|prev| prev.mod_revision),
        }
    }
}

/// Read the past of a key
///
/// What was written and removed, newest first, also by the end of a time or a lease. Every node
/// answers the same. How much is kept is a matter of `storage.history` and
/// `storage.history_bytes`; a new time to live (PATCH) is no change.
#[utoipa::path(
    get, path = "/v1/history/{key}", operation_id = "getHistory", tag = "keys",
    params(
        ("key" = String, Path, description = "1 to 4096 bytes, percent-encoded; `/` stands for itself", example = "color"),
        ("limit" = Option<u64>, Query, description = "most changes in a page, 100 if not given; at most `limits.list_items`"),
        ("before" = Option<u64>, Query, description = "only changes of older revisions: `next_before` of the page before"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default) or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
    ),
    responses(
        (status = 200, body = Past, description = "a page; without items when the last change is older than what is known"),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: there is no such key, and nothing is known of one"),
        (status = 410, body = Problem, content_type = "application/problem+json", description = "`compacted`: what is before `before` is no longer known; `oldest_revision` is"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the key"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn history(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let uri = request.uri();
    let key = extract::key(uri, PREFIX)?;
    let known = ["limit", "before", "consistency", "min_revision", "timeout", "redirect"];
    let query = Query::parse(uri, &known)?;
    let (limit, before) = (query.number("limit")?, query.number("before")?);
    if limit == Some(0) || before == Some(0) {
        return Err(ApiError::BadRequest("limit and before are at least 1".into()));
    }
    edge.allow(&[Need::new(Verb::Read, Span::key(&key))])?;
    if let Some(elsewhere) = edge.redirect(&query, uri)? {
        return Ok(elsewhere);
    }
    let limit = limit.unwrap_or(LIMIT).min(edge.config.limits.list_items.into());
    let view = edge.view(&query).await?;
    Ok(Json(page(&view, &key, before, limit)?).into_response())
}

fn page(view: &View, key: &[u8], before: Option<u64>, limit: u64) -> Result<Past, ApiError> {
    let oldest = view.compact_revision();
    if before.is_some_and(|before| before <= oldest) {
        return Err(ApiError::Compacted { oldest });
    }
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let changes = |before: Option<u64>, most: usize| {
        view.history(key, before.unwrap_or(u64::MAX), most, PAGE_BYTES)
    };
    let (found, more) = changes(before, most)?;
    if found.is_empty() && view.get(key)?.is_none() && changes(None, 1)?.0.is_empty() {
        return Err(ApiError::NotFound("there is no such key, and nothing is known of one".into()));
    }
    let next_before = found.last().filter(|_| more).map(|change| change.revision);
    let (text, key_b64) = shown_key(key);
    Ok(Past {
        key: text,
        key_b64,
        revision: view.revision(),
        items: found.iter().map(PastChange::of).collect(),
        more,
        next_before,
        oldest_revision: oldest,
    })
}
