//! `GET /v1/keys`: ranges of keys, page by page, each page from one snapshot.

use std::ops::Bound;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::error::{ApiError, Problem};
use super::extract::Query;
use super::keys::{Envelope, shown_key};
use crate::machine::{Range, View};

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
    /// The store's revision that the page was read at.
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

/// What was asked for.
struct Wanted {
    range: Range,
    prefix: Vec<u8>,
    delimiter: Option<Vec<u8>>,
    limit: u64,
    keys_only: bool,
    count_only: bool,
}

/// List keys
///
/// In key order, from one consistent snapshot. `next` continues where the page ends.
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "listKeys", tag = "keys",
    params(
        ("prefix" = Option<String>, Query, description = "only keys that begin so"),
        ("start" = Option<String>, Query, description = "first key; not together with `prefix`"),
        ("end" = Option<String>, Query, description = "the key after the last; not together with `prefix`"),
        ("delimiter" = Option<String>, Query, description = "group keys by what lies between the prefix and this; ascending order only"),
        ("limit" = Option<u64>, Query, description = "most items in a page; at most `limits.list_items`, which is also the default"),
        ("order" = Option<String>, Query, description = "`asc` (default) or `desc`"),
        ("keys_only" = Option<bool>, Query, description = "leave out the values"),
        ("count_only" = Option<bool>, Query, description = "only count the keys of the whole range"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before, with the same other parameters"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default) or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
    ),
    responses(
        (status = 200, body = Page, description = "a page", headers(("Link" = String, description = "the next page, `rel=\"next\"`"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn list(State(edge): State<Edge>, request: Request) -> Result<Response, ApiError> {
    let uri = request.uri().clone();
    let query = Query::parse(
        &uri,
        &[
            "prefix",
            "start",
            "end",
            "delimiter",
            "limit",
            "order",
            "keys_only",
            "count_only",
            "cursor",
            "consistency",
            "min_revision",
            "timeout",
            "redirect",
        ],
    )?;
    let wanted = wanted(&query, u64::from(edge.config.limits.list_items))?;
    if let Some(elsewhere) = edge.redirect(&query, &uri)? {
        return Ok(elsewhere);
    }
    let view = edge.view(&query).await?;
    let page = if wanted.count_only { count(&view, &wanted)? } else { page(&view, &wanted)? };
    let link = page.next.as_ref().map(|next| {
        let kept = uri.query().unwrap_or_default().split('&');
        let mut kept: Vec<&str> =
            kept.filter(|pair| !pair.is_empty() && !pair.starts_with("cursor=")).collect();
        let cursor = format!("cursor={next}");
        kept.push(&cursor);
        [(header::LINK, format!("</v1/keys?{}>; rel=\"next\"", kept.join("&")))]
    });
    Ok(match link {
        Some(link) => (link, Json(page)).into_response(),
        None => Json(page).into_response(),
    })
}

fn wanted(query: &Query, most: u64) -> Result<Wanted, ApiError> {
    let prefix = query.bytes("prefix").unwrap_or_default().to_vec();
    let (start, end) = (query.bytes("start"), query.bytes("end"));
    if !prefix.is_empty() && (start.is_some() || end.is_some()) {
        return Err(ApiError::BadRequest("prefix does not go with start or end".into()));
    }
    let mut range = Range::prefix(&prefix);
    if let Some(start) = start {
        range.start = Bound::Included(start.to_vec());
    }
    if let Some(end) = end {
        range.end = Bound::Excluded(end.to_vec());
    }
    range.reverse = match query.text("order")? {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(other) => {
            return Err(ApiError::BadRequest(format!(
                "query parameter \"order\" is asc or desc, not {other:?}"
            )));
        }
    };
    let delimiter = query.bytes("delimiter").map(<[u8]>::to_vec);
    if delimiter.as_ref().is_some_and(Vec::is_empty) {
        return Err(ApiError::BadRequest("a delimiter has at least one byte".into()));
    }
    if delimiter.is_some() && range.reverse {
        return Err(ApiError::Unprocessable("delimiter goes with ascending order only".into()));
    }
    let limit = query.number("limit")?.unwrap_or(most);
    if limit == 0 {
        return Err(ApiError::BadRequest("query parameter \"limit\" is at least 1".into()));
    }
    if let Some(cursor) = query.text("cursor")? {
        let bound = decode_cursor(cursor, range.reverse)
            .ok_or_else(|| ApiError::BadRequest("this cursor is not one of ours".into()))?;
        if !continues(&range, &bound) {
            return Err(ApiError::BadRequest("this cursor is of another listing".into()));
        }
        if range.reverse {
            range.end = bound;
        } else {
            range.start = bound;
        }
    }
    Ok(Wanted {
        range,
        prefix,
        delimiter,
        limit: limit.min(most),
        keys_only: query.flag("keys_only")?,
        count_only: query.flag("count_only")?,
    })
}

/// Does a listing of `range` that goes on at `bound` stay within it?
fn continues(range: &Range, bound: &Bound<Vec<u8>>) -> bool {
    let key = |bound: &Bound<Vec<u8>>| match bound {
        Bound::Included(key) | Bound::Excluded(key) => Some(key.clone()),
        Bound::Unbounded => None,
    };
    let at = key(bound);
    if range.reverse {
        key(&range.end).is_none_or(|end| at <= Some(end))
    } else {
        key(&range.start).is_none_or(|start| at >= Some(start))
    }
}

fn count(view: &View, wanted: &Wanted) -> Result<Page, ApiError> {
    let mut count = 0;
    view.scan(&wanted.range, |_| {
        count += 1;
        true
    })?;
    let revision = view.revision();
    Ok(Page { revision, items: Vec::new(), prefixes: Vec::new(), count, more: false, next: None })
}

fn page(view: &View, wanted: &Wanted) -> Result<Page, ApiError> {
    let mut items = Vec::new();
    let mut groups: Vec<Vec<u8>> = Vec::new();
    let (mut bytes, mut more) = (0, false);
    let mut resume = None;
    view.scan(&wanted.range, |item| {
        let group = wanted.group_of(item.key);
        if group.is_some() && group == groups.last().map(Vec::as_slice) {
            return true;
        }
        let full = items.len() as u64 + groups.len() as u64 >= wanted.limit;
        if full || bytes >= PAGE_BYTES {
            more = true;
            return false;
        }
        match group {
            Some(group) => {
                bytes += group.len();
                resume = Some(Resume::AfterGroup(group.to_vec()));
                groups.push(group.to_vec());
            }
            None => {
                bytes += item.key.len();
                bytes += if wanted.keys_only { 0 } else { item.record.value.len() };
                items.push(Envelope::new(
                    item.key,
                    &item.record,
                    view.time_ms(),
                    !wanted.keys_only,
                ));
                resume = Some(Resume::AfterKey(item.key.to_vec()));
            }
        }
        true
    })?;
    let next = resume.filter(|_| more).map(|resume| encode_cursor(&resume, wanted.range.reverse));
    let count = items.len() as u64 + groups.len() as u64;
    let prefixes = groups.iter().map(|group| {
        let (text, base64) = shown_key(group);
        text.or(base64).unwrap_or_default()
    });
    let prefixes = prefixes.collect();
    Ok(Page { revision: view.revision(), items, prefixes, count, more, next })
}

impl Wanted {
    /// The part of a key up to and with the delimiter after the prefix.
    fn group_of<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        let delimiter = self.delimiter.as_ref()?;
        let rest = key.get(self.prefix.len()..)?;
        let at = rest.windows(delimiter.len()).position(|part| part == delimiter)?;
        key.get(..self.prefix.len() + at + delimiter.len())
    }
}

/// Where the next page begins.
enum Resume {
    AfterKey(Vec<u8>),
    /// After all keys that begin so.
    AfterGroup(Vec<u8>),
}

/// Kind, order and key, with a checksum, so that what was tampered with or belongs to
/// another listing's order is refused.
fn encode_cursor(resume: &Resume, reverse: bool) -> String {
    let (kind, key) = match resume {
        Resume::AfterKey(key) => (0, key),
        Resume::AfterGroup(group) => (1, group),
    };
    let mut bytes = vec![1, u8::from(reverse), kind];
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode_cursor(text: &str, reverse: bool) -> Option<Bound<Vec<u8>>> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    match body {
        [1, order, 0, key @ ..] if *order == u8::from(reverse) => {
            Some(Bound::Excluded(key.to_vec()))
        }
        [1, 0, 1, group @ ..] if !reverse => match Range::prefix(group).end {
            Bound::Excluded(after) => Some(Bound::Included(after)),
            // Every key that follows begins so: nothing is left.
            Bound::Included(_) | Bound::Unbounded => Some(Bound::Excluded(vec![0xff; 4097])),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_and_foreign_ones_are_refused() {
        let after = encode_cursor(&Resume::AfterKey(b"a\xff".to_vec()), false);
        assert_eq!(decode_cursor(&after, false), Some(Bound::Excluded(b"a\xff".to_vec())));
        assert_eq!(decode_cursor(&after, true), None, "another order");
        let group = encode_cursor(&Resume::AfterGroup(b"a/".to_vec()), false);
        assert_eq!(decode_cursor(&group, false), Some(Bound::Included(b"a0".to_vec())));
        for at in 0..after.len() {
            let mut bad = after.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).unwrap();
            assert!(bad == after || decode_cursor(&bad, false).is_none(), "{bad}");
        }
    }
}
