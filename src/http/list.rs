//! `GET /v1/keys`: ranges of keys, page by page, all pages as of one revision.

use axum::Json;
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::Query;
use super::keys::{Envelope, shown_key};
use super::lines::{self, ListLine};
use super::listing::{Found, PARAMETERS, Wanted};
use super::poll::Place;
use crate::machine::{Item, View};

/// Bytes of keys and values in one page, unless its first item is larger.
const PAGE_BYTES: usize = 1 << 20;

/// One page of a listing.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "revision": 12, "count": 1, "more": false, "next": null, "prefixes": [],
    "items": [{
        "key": "color", "value": "blue", "encoding": "utf-8", "content_type": "text/plain",
        "size": 4, "create_revision": 7, "mod_revision": 9, "version": 2, "lease": null, "ttl": null
    }]
}))]
pub(super) struct Page {
    /// The store's revision that this page and those after it show.
    revision: u64,
    /// Keys in order; none with `count_only`.
    items: Vec<Envelope>,
    /// Groups of keys that share everything up to the delimiter.
    prefixes: Vec<String>,
    /// Items and prefixes in this page; with `count_only` all keys in the range.
    count: u64,
    /// Is there more after this page?
    more: bool,
    /// The cursor for the next page.
    next: Option<String>,
}

/// List keys
///
/// In key order, from one consistent snapshot. `next` continues where the page ends, at the
/// same revision: all pages of a listing show one state, whatever is written meanwhile, and
/// 410 says that this state is no longer known. With `Accept: application/x-ndjson` the whole
/// range comes as one item a line; the last line begins with `{"end":true`, and a listing that
/// could not be finished has a line with `error` in its place.
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "listKeys", tag = "keys",
    params(
        ("prefix" = Option<String>, Query, description = "only keys that begin so"),
        ("start" = Option<String>, Query, description = "first key; not together with `prefix`"),
        ("end" = Option<String>, Query, description = "the key after the last; not together with `prefix`"),
        ("delimiter" = Option<String>, Query, description = "group keys by what lies between the prefix and this; ascending order only"),
        ("limit" = Option<u64>, Query, description = "most items in a page; at most `limits.list_items`, which is also the default; lines have no limit but this"),
        ("order" = Option<String>, Query, description = "`asc` (default) or `desc`"),
        ("keys_only" = Option<bool>, Query, description = "leave out the values"),
        ("count_only" = Option<bool>, Query, description = "only count the keys of the whole range"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before, with the same other parameters"),
        ("revision" = Option<u64>, Query, description = "show the range as it was after that revision; needs time in proportion to what changed since"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default) or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
        ("Accept" = Option<String>, Header, description = "`application/x-ndjson`: one item a line, instead of a page"),
    ),
    responses(
        (status = 200, content((Page = "application/json"), (ListLine = "application/x-ndjson")), description = "a page, or lines", headers(("Link" = String, description = "the next page, `rel=\"next\"`"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 410, body = Problem, content_type = "application/problem+json", description = "`compacted`: the revision is no longer known; `oldest_revision` is"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`; a revision that is yet to come"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 500, body = Problem, content_type = "application/problem+json", description = "`damaged`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn list(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, _) = request.into_parts();
    let query = Query::parse(&head.uri, &PARAMETERS)?;
    let wanted = Wanted::read(&query)?;
    edge.allow(&[Need::new(Verb::Read, wanted.span.clone())])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let (view, revision) = edge.listed(&query, &wanted).await?;
    let vary = [(header::VARY, "Accept")];
    if lines::wanted(&head.headers) {
        // Each piece of lines takes a view of its own.
        drop(view);
        Place::free(&head.extensions);
        return Ok((vary, lines::response(edge, wanted, revision)).into_response());
    }
    let most = u64::from(edge.config.limits.list_items);
    let limit = wanted.limit.unwrap_or(most).min(most);
    let past = revision < view.revision();
    let read = move || {
        if wanted.count_only {
            count(&view, &wanted, revision)
        } else {
            page(&view, &wanted, revision, limit)
        }
    };
    let page = if past {
        // All that changed since has to be looked at: too long for the reactor.
        let stopping = |_| ApiError::Draining("this node is shutting down".into());
        tokio::task::spawn_blocking(read).await.map_err(stopping)??
    } else {
        read()?
    };
    let link = page.next.as_ref().map(|next| {
        let kept = head.uri.query().unwrap_or_default().split('&');
        let mut kept: Vec<&str> =
            kept.filter(|pair| !pair.is_empty() && !pair.starts_with("cursor=")).collect();
        let cursor = format!("cursor={next}");
        kept.push(&cursor);
        [(header::LINK, format!("</v1/keys?{}>; rel=\"next\"", kept.join("&")))]
    });
    Ok(match link {
        Some(link) => (vary, link, Json(page)).into_response(),
        None => (vary, Json(page)).into_response(),
    })
}

fn count(view: &View, wanted: &Wanted, revision: u64) -> Result<Page, ApiError> {
    let count = wanted.count(view, revision)?;
    Ok(Page { revision, items: Vec::new(), prefixes: Vec::new(), count, more: false, next: None })
}

fn page(view: &View, wanted: &Wanted, revision: u64, limit: u64) -> Result<Page, ApiError> {
    let (mut items, mut prefixes) = (Vec::new(), Vec::new());
    let (mut bytes, mut count) = (0, 0);
    let resume = wanted.walk(view, revision, |found| {
        if count >= limit || bytes >= PAGE_BYTES {
            return false;
        }
        count += 1;
        bytes += weight(&found, wanted.keys_only);
        match found {
            Found::Item(item) => items.push(envelope(view, &item, wanted.keys_only)),
            Found::Group(group) => {
                let (text, base64) = shown_key(group);
                prefixes.push(text.or(base64).unwrap_or_default());
            }
        }
        true
    })?;
    let next = resume.map(|resume| wanted.cursor(resume, revision));
    Ok(Page { revision, items, prefixes, count, more: next.is_some(), next })
}

/// About how much of it is shown, in bytes.
pub(super) fn weight(found: &Found<'_>, keys_only: bool) -> usize {
    match found {
        Found::Item(item) if keys_only => item.key.len(),
        Found::Item(item) => item.key.len() + item.record.value.len(),
        Found::Group(group) => group.len(),
    }
}

/// An item as JSON shows it.
pub(super) fn envelope(view: &View, item: &Item<'_>, keys_only: bool) -> Envelope {
    Envelope::new(item.key, &item.record, view.time_ms(), !keys_only)
}
