//! What all writes share: their names for asking again, their fences, and how long they take.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::Edge;
use super::access::needs;
use super::error::ApiError;
use super::extract::{Query, percent_decode};
use crate::config::parse_duration;
use crate::machine::{Applied, Command, Fence, LOCK_NAME_MAX, Life, ONCE_MAX, Once, Request};
use crate::node::Seen;

/// Longest time to live that can be asked for: a hundred years.
const TTL_MAX_MS: u64 = 100 * 366 * 24 * 60 * 60 * 1000;

/// What became of a write.
pub(super) struct Done {
    pub(super) applied: Applied,
    /// The state where it was applied; that of this node may be older.
    pub(super) seen: Seen,
    /// It happened before, and this is the first outcome.
    pub(super) replayed: bool,
}

impl Done {
    /// The answer; one that was given before says so, a refusal too.
    pub(super) fn answer(self, of: impl FnOnce(Applied) -> Result<Response, ApiError>) -> Response {
        let mut response = of(self.applied).unwrap_or_else(ApiError::into_response);
        if self.replayed {
            let name = HeaderName::from_static("idempotency-replayed");
            response.headers_mut().insert(name, HeaderValue::from_static("true"));
        }
        response
    }
}

impl Edge {
    /// Lets a command happen, under the name and the fence that the headers give.
    /// `target` is what the name is bound to besides the command itself: the method and path.
    pub(super) async fn write(
        &self,
        headers: &HeaderMap,
        query: &Query,
        command: Command,
    ) -> Result<Done, ApiError> {
        let timeout = self.timeout(query)?;
        let fence = fence(headers)?;
        let mut request = Request { once: None, fence, command };
        request.once = once(headers, &request)?;
        self.allow(&needs(&request))?;
        let (applied, seen) = self.handle.propose_seen(request, timeout).await?;
        Ok(if let Applied::Replayed(first) = applied {
            Done { applied: *first, seen, replayed: true }
        } else {
            Done { applied, seen, replayed: false }
        })
    }
}

/// `Idempotency-Key`: any visible text; the request is recognised by all that it would do.
fn once(headers: &HeaderMap, request: &Request) -> Result<Option<Once>, ApiError> {
    let Some(value) = single(headers, "idempotency-key")? else { return Ok(None) };
    if value.is_empty() || value.len() > ONCE_MAX {
        return Err(ApiError::BadRequest(format!(
            "header idempotency-key: expected 1 to {ONCE_MAX} bytes"
        )));
    }
    let fingerprint = xxhash_rust::xxh3::xxh3_128(&request.encode());
    Ok(Some(Once { key: Bytes::copy_from_slice(value), fingerprint }))
}

/// `Mmapd-Fence: NAME;TOKEN`, the name percent-encoded as in a path.
pub(super) fn fence(headers: &HeaderMap) -> Result<Option<Fence>, ApiError> {
    let Some(value) = single(headers, "mmapd-fence")? else { return Ok(None) };
    let wrong = || {
        ApiError::BadRequest(
            "header mmapd-fence: expected the lock's name, a semicolon and its token".into(),
        )
    };
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (name, token) = text.rsplit_once(';').ok_or_else(wrong)?;
    let name = percent_decode(name.trim(), false)?;
    let token = token.trim().parse().map_err(|_| wrong())?;
    if name.is_empty() || name.len() > LOCK_NAME_MAX {
        return Err(wrong());
    }
    Ok(Some(Fence { name: name.into(), token }))
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(HeaderValue::as_bytes);
    if values.next().is_some() {
        return Err(ApiError::BadRequest(format!("header {name} is given twice")));
    }
    Ok(first)
}

/// A time to live, as text: at least a millisecond.
pub(super) fn ttl_ms(text: &str) -> Result<u64, ApiError> {
    let given = parse_duration(text).map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    given.filter(|ms| (1..=TTL_MAX_MS).contains(ms)).ok_or_else(|| {
        ApiError::BadRequest(format!(
            "a time to live is a duration such as 500ms, 30s or 12h, not {text:?}"
        ))
    })
}

/// `ttl` and `lease` of a query: one of them, or neither.
pub(super) fn life(query: &Query) -> Result<Life, ApiError> {
    match (query.text("ttl")?, query.number("lease")?) {
        (None, None) => Ok(Life::Endless),
        (Some(ttl), None) => ttl_ms(ttl).map(Life::Ttl),
        (None, Some(0)) => Err(ApiError::NotFound("there is no lease 0".into())),
        (None, Some(id)) => Ok(Life::Lease(id)),
        (Some(_), Some(_)) => {
            Err(ApiError::BadRequest("ttl does not go with lease: a key has one end".into()))
        }
    }
}
