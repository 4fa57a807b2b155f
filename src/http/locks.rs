//! `/v1/locks`: locks with a fair queue, held as long as a lease, and with tokens that go up,
//! which every write can name.

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::body;
use super::error::{ApiError, Problem};
use super::extract::{self, Query, percent_decode};
use super::keys::shown_key;
use super::pace::Caller;
use super::propose::Done;
use super::txn_body::lease_ttl_ms;
use super::wait::{Ended, Place};
use crate::config::{parse_duration, show_duration};
use crate::machine::{Applied, Claim, Command, LOCK_NAME_MAX, OWNER_MAX, Span, View};

const PREFIX: &str = "/v1/locks/";
/// How long a refusal waits for this replica to know the holder, whom it names.
const HOLDER_PATIENCE: Duration = Duration::from_secs(1);
/// Largest body.
const BODY_MAX: u64 = 64 << 10;
/// How many of those who wait are shown and counted.
const SHOWN: usize = 1000;

/// A lock to take: `ttl` or `lease`, not both.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ttl": "30s", "owner": "worker 7", "wait": "10s"}))]
pub(super) struct LockRequest {
    /// It is held by a lease that is made for it and lasts so long; at least `1s`. Keep that
    /// lease alive.
    #[serde(default)]
    ttl: Option<String>,
    /// It is held as long as this lease.
    #[serde(default)]
    lease: Option<u64>,
    /// For people: who takes it, at most 1024 bytes.
    #[serde(default)]
    owner: Option<String>,
    /// How long to wait in the queue if somebody holds it; at most `limits.max_timeout`. Left
    /// out: not at all.
    #[serde(default)]
    wait: Option<String>,
}

/// A lock that is held.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "name": "jobs", "token": 31, "ticket": 31, "lease": 31, "owner": "worker 7"
}))]
pub(super) struct LockHeld {
    /// Its name, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Its name in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_b64: Option<String>,
    /// Goes up each time the lock changes hands: what `Mmapd-Fence` takes.
    token: u64,
    /// The revision at which the place in the queue was taken.
    ticket: u64,
    /// The lease it is held by.
    lease: u64,
    /// Who took it.
    owner: String,
}

/// Somebody who waits for a lock.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"ticket": 35, "lease": 35, "owner": "worker 9"}))]
pub(super) struct LockWaiter {
    /// The revision at which the place was taken.
    ticket: u64,
    /// The lease that the place lasts as long as.
    lease: u64,
    /// Who waits.
    owner: String,
}

/// A lock with its queue.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "revision": 40, "holder": {"name": "jobs", "token": 31, "ticket": 31, "lease": 31,
    "owner": "worker 7"}, "queue": 1,
    "waiting": [{"ticket": 35, "lease": 35, "owner": "worker 9"}]
}))]
pub(super) struct LockInfo {
    /// The store's revision that this was read at.
    revision: u64,
    /// Who holds it.
    holder: LockHeld,
    /// How many wait for it; no more than 1000 are counted.
    queue: u64,
    /// They, first come first.
    waiting: Vec<LockWaiter>,
}

/// One page of locks.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "revision": 40, "locks": [{"name": "jobs", "token": 31, "ticket": 31, "lease": 31,
    "owner": "worker 7"}], "more": false, "next": null
}))]
pub(super) struct LockPage {
    /// The store's revision that the page was read at.
    revision: u64,
    /// Those that are held, in the order of their names.
    locks: Vec<LockHeld>,
    /// Is there more after this page?
    more: bool,
    /// What `after` is for the next page, percent-encoded already.
    next: Option<String>,
}

/// A lock that was given back.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"revision": 44}))]
pub(super) struct LockReleased {
    /// The revision of the change.
    revision: u64,
}

impl LockHeld {
    fn new(name: &[u8], claim: Claim) -> Self {
        let (text, name_b64) = shown_key(name);
        let Claim { ticket, token, lease, owner } = claim;
        Self { name: text, name_b64, token, ticket, lease, owner }
    }
}

/// What was asked for, checked.
struct Wanted {
    /// 0: one is made.
    lease: u64,
    /// Of the lease that is made.
    ttl_ms: u64,
    owner: String,
    wait: Option<Duration>,
}

impl LockRequest {
    fn read(self, most: Duration) -> Result<Wanted, ApiError> {
        let refused = |why: String| Err(ApiError::BadRequest(why));
        let (lease, ttl_ms) = match (self.lease, self.ttl) {
            (Some(0), None) => return Err(ApiError::NotFound("there is no lease 0".into())),
            (Some(id), None) => (id, 0),
            (None, Some(ttl)) => (0, lease_ttl_ms(&ttl)?),
            (None, None) | (Some(_), Some(_)) => {
                return refused("give ttl, or lease: a lock is held as long as one lease".into());
            }
        };
        let owner = self.owner.unwrap_or_default();
        if owner.len() > OWNER_MAX {
            let (limit, actual) = (OWNER_MAX as u64, owner.len() as u64);
            return Err(ApiError::Beyond { what: "bytes of the owner", limit, actual });
        }
        let Some(text) = self.wait else { return Ok(Wanted { lease, ttl_ms, owner, wait: None }) };
        match parse_duration(&text) {
            Some(wait) if wait <= most => Ok(Wanted { lease, ttl_ms, owner, wait: Some(wait) }),
            Some(_) => refused(format!("wait is at most {}", show_duration(most))),
            None => refused(format!("wait is a duration such as 500ms or 10s, not {text:?}")),
        }
    }
}

/// Take a lock
///
/// Who asks first has it first. A lock is held as long as a lease: one that is made for it
/// (`ttl`), which has to be kept alive, or one of the client's. Asked for again under the same
/// lease, the answer is the same.
///
/// With `wait` the request takes a place in the queue and answers when it holds the lock. The
/// place is given up when the wait is over, when the client closes the connection, and when its
/// lease ends; a lease that was made for the lock is kept alive meanwhile.
///
/// A holder that was paused may believe that it still holds the lock. So give `token` along
/// with every write, as `Mmapd-Fence: NAME;TOKEN`: it is refused with 412 once the lock has
/// changed hands.
#[utoipa::path(
    post, path = "/v1/locks/{name}", operation_id = "takeLock", tag = "locks",
    params(
        ("name" = String, Path, description = "1 to 512 bytes, percent-encoded; `/` stands for itself", example = "jobs"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`, without the wait"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Idempotency-Key" = Option<String>, Header, description = "a name for this request: asked again, the first outcome is the answer, and `Idempotency-Replayed: true` says so"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while this other lock is held with this token"),
    ),
    request_body = LockRequest,
    responses(
        (status = 200, body = LockHeld, description = "it is held", headers(("Idempotency-Replayed" = String, description = "`true`: it happened before"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: no such lease"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`: the body did not arrive in time"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: somebody else holds it, and the wait is over; or the lease ended meanwhile"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`: the lock of the fence is not held so"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`: the body"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the name"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: an owner that is too long, or an Idempotency-Key of another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `rebuilding`; `draining`: the node shuts down, waits end"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
        (status = 507, body = Problem, content_type = "application/problem+json", description = "`quota-exceeded`"),
    ),
)]
pub(super) async fn take(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (mut head, body) = request.into_parts();
    let name = lock_name(&head.uri)?;
    let query = Query::parse(&head.uri, &["timeout", "redirect"])?;
    edge.timeout(&query)?;
    edge.may(&[Need::new(Verb::Lock, Span::key(&name))])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    // Who waits does not count among the requests in flight: holders could not give a lock
    // back if there were too many.
    let (permit, _counted) = edge.admit_wait()?;
    let body = extract::body(&head.headers, body, BODY_MAX, &edge.config.http).await?;
    let wanted = body::json::<LockRequest>(&body)?.read(edge.config.limits.max_timeout)?;
    let done = edge.ask_for(&head.headers, &query, &name, &wanted).await?;
    drop(permit);
    let caller = head.extensions.remove::<Caller>();
    let claim = edge.have(&name, wanted, &done.applied, caller).await;
    Ok(done.answer(|_| Ok(Json(LockHeld::new(&name, claim?)).into_response())))
}

impl Edge {
    /// A place among the requests in flight, for as long as the request does not wait, and one
    /// among those whose end the node waits for when it shuts down.
    fn admit_wait(&self) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), ApiError> {
        let places = self.in_flight.try_acquire().and_then(|permit| {
            let counted = self.forwarded.try_acquire()?;
            Ok((permit, counted))
        });
        places.map_err(|_| {
            if self.handle.is_draining() {
                ApiError::Draining("this node is shutting down".into())
            } else {
                ApiError::Overloaded
            }
        })
    }

    async fn ask_for(
        &self,
        headers: &HeaderMap,
        query: &Query,
        name: &Bytes,
        wanted: &Wanted,
    ) -> Result<Done, ApiError> {
        let command = Command::Lock {
            name: name.clone(),
            lease: wanted.lease,
            ttl_ms: wanted.ttl_ms,
            owner: wanted.owner.clone(),
            queue: wanted.wait.is_some(),
        };
        self.write(headers, query, command).await
    }

    /// What the leader said, and if that is a place in the queue, what became of it.
    async fn have(
        &self,
        name: &Bytes,
        wanted: Wanted,
        said: &Applied,
        caller: Option<Caller>,
    ) -> Result<Claim, ApiError> {
        if let Applied::Held { token } = said {
            self.handle.reached(*token, HOLDER_PATIENCE).await;
            return Err(self.held(name, Some(*token)));
        }
        let Applied::Locked { ticket, token, lease } = *said else {
            return Err(ApiError::of(said.clone()));
        };
        match (token, wanted.wait) {
            (Some(token), _) => Ok(Claim { ticket, token, lease, owner: wanted.owner }),
            // Another request under the same lease waits.
            (None, None) => Err(self.held(name, None)),
            (None, Some(wait)) => {
                let patience = self.config.limits.request_timeout;
                let place = Place::new(self.handle.clone(), name.clone(), ticket, lease, patience);
                let made = (wanted.lease == 0).then(|| Duration::from_millis(wanted.ttl_ms));
                self.wait(place, name, wait, made, caller).await
            }
        }
    }

    async fn wait(
        &self,
        place: Place,
        name: &[u8],
        wait: Duration,
        made: Option<Duration>,
        caller: Option<Caller>,
    ) -> Result<Claim, ApiError> {
        let ended = match place.wait(Instant::now() + wait, made, caller.as_ref()).await {
            Ok(claim) => {
                place.keep();
                return Ok(claim);
            }
            Err(Ended::Gone) => {
                place.keep();
                return Err(ApiError::Conflict(
                    "the place in the queue is gone: its lease ended, or it was given back".into(),
                ));
            }
            Err(ended) => ended,
        };
        let why = match ended {
            Ended::Unreadable(error) => error,
            Ended::Draining => ApiError::Draining("this node is shutting down".into()),
            Ended::Gone | Ended::TimeUp | Ended::Deserted => self.held(name, None),
        };
        place.give_up().await.map_err(|_| {
            ApiError::OutcomeUnknown("the place in the queue stays there until its lease ends")
        })?;
        Err(why)
    }

    /// Says who holds it, as far as this replica knows. `token`: what the leader said.
    fn held(&self, name: &[u8], token: Option<u64>) -> ApiError {
        let known = self.handle.stale_view().lock(name, 0).ok().flatten();
        let holder = known.map(|lock| lock.holder);
        let holder = holder.filter(|holder| token.is_none_or(|token| token == holder.token));
        let token = token.or(holder.as_ref().map(|holder| holder.token));
        let owner = holder.map(|holder| holder.owner).filter(|owner| !owner.is_empty());
        ApiError::Conflict(match (token, owner) {
            (Some(token), Some(owner)) => {
                format!("{owner:?} holds this lock, with token {token}")
            }
            (Some(token), None) => format!("somebody holds this lock, with token {token}"),
            (None, _) => "somebody else had this lock".into(),
        })
    }
}

/// Look at a lock
///
/// Who holds it and who waits for it. 404: it is free.
#[utoipa::path(
    get, path = "/v1/locks/{name}", operation_id = "getLock", tag = "locks",
    params(
        ("name" = String, Path, description = "1 to 512 bytes, percent-encoded; `/` stands for itself", example = "jobs"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default), `lease` or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
    ),
    responses(
        (status = 200, body = LockInfo, description = "it is held"),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: nobody holds it"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the name"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: lease reads are not enabled"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn look(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let uri = request.uri();
    let name = lock_name(uri)?;
    let query = Query::parse(uri, &["consistency", "min_revision", "timeout", "redirect"])?;
    edge.allow(&[Need::new(Verb::Lock, Span::key(&name))])?;
    if let Some(elsewhere) = edge.redirect(&query, uri)? {
        return Ok(elsewhere);
    }
    let view = edge.view(&query).await?;
    let Some(lock) = view.lock(&name, SHOWN)? else {
        return Err(ApiError::NotFound("nobody holds this lock".into()));
    };
    let waiter = |claim: Claim| {
        let Claim { ticket, lease, owner, .. } = claim;
        LockWaiter { ticket, lease, owner }
    };
    let waiting: Vec<LockWaiter> = lock.waiting.into_iter().map(waiter).collect();
    let holder = LockHeld::new(&name, lock.holder);
    let queue = waiting.len() as u64;
    Ok(Json(LockInfo { revision: view.revision(), holder, queue, waiting }).into_response())
}

/// List locks
///
/// Those that are held, in the order of their names, each page from one consistent snapshot.
#[utoipa::path(
    get, path = "/v1/locks", operation_id = "listLocks", tag = "locks",
    params(
        ("limit" = Option<u64>, Query, description = "most locks in a page; at most `limits.list_items`, which is also the default"),
        ("after" = Option<String>, Query, description = "only names after this: `next` of the page before"),
        ("consistency" = Option<String>, Query, description = "`linearizable` (default), `lease` or `stale`"),
        ("min_revision" = Option<u64>, Query, description = "wait until this replica has applied that revision"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of reading here"),
    ),
    responses(
        (status = 200, body = LockPage, description = "a page"),
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
    let after = query.bytes("after").unwrap_or_default();
    edge.allow(&[Need::all(Verb::Lock)])?;
    if let Some(elsewhere) = edge.redirect(&query, uri)? {
        return Ok(elsewhere);
    }
    let view = edge.view(&query).await?;
    let mut found = view.locks(after, limit + 1)?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|(name, _)| percent_encode(name));
    let locks = found.into_iter().map(|(name, claim)| LockHeld::new(&name, claim)).collect();
    Ok(Json(LockPage { revision: view.revision(), locks, more, next }).into_response())
}

/// Give a lock back
///
/// Or a place in its queue. The lease that was made for it ends, with all that hangs on it; a
/// lease of the client's goes on. Whoever is first in the queue holds the lock at once. Where
/// there are tokens, it takes the right to write each of the keys that go.
#[utoipa::path(
    delete, path = "/v1/locks/{name}", operation_id = "releaseLock", tag = "locks",
    params(
        ("name" = String, Path, description = "1 to 512 bytes, percent-encoded; `/` stands for itself", example = "jobs"),
        ("token" = Option<u64>, Query, description = "the token that it is held with"),
        ("ticket" = Option<u64>, Query, description = "the ticket of who holds it or waits; in place of `token`"),
        ("timeout" = Option<String>, Query, description = "how long the server may take, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Idempotency-Key" = Option<String>, Header, description = "a name for this request: asked again, the first outcome is the answer, and `Idempotency-Replayed: true` says so"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while this lock is held with this token"),
    ),
    responses(
        (status = 200, body = LockReleased, description = "it is given back", headers(("Idempotency-Replayed" = String, description = "`true`: it happened before"))),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: nobody holds or awaits it so"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "`precondition-failed`: the lock of the fence is not held so"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: the name"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: an Idempotency-Key of another request"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn release(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, _) = request.into_parts();
    let name = lock_name(&head.uri)?;
    let query = Query::parse(&head.uri, &["token", "ticket", "timeout", "redirect"])?;
    let ticket = match (query.number("token")?, query.number("ticket")?) {
        (Some(number), None) | (None, Some(number)) => number,
        (None, None) | (Some(_), Some(_)) => {
            return Err(ApiError::BadRequest("give token, or ticket: which one is yours?".into()));
        }
    };
    edge.may(&[Need::new(Verb::Lock, Span::key(&name))])?;
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let made = |view: &View| {
        let Some(lock) = view.lock(&name, usize::MAX)? else { return Ok(None) };
        let is_it = |claim: &Claim| claim.ticket == ticket || claim.token == ticket;
        let claim = [lock.holder].into_iter().chain(lock.waiting).find(is_it);
        // One that was made for the lock ends with it.
        Ok(claim.filter(|claim| claim.lease == claim.ticket).map(|claim| claim.lease))
    };
    edge.may_end(&query, made).await?;
    let done = edge.write(&head.headers, &query, Command::Unlock { name, ticket }).await?;
    Ok(done.answer(|applied| {
        let Applied::Unlocked { revision } = applied else { return Err(ApiError::of(applied)) };
        Ok(Json(LockReleased { revision }).into_response())
    }))
}

/// The path ends before the name.
pub(super) async fn no_name() -> ApiError {
    ApiError::BadRequest("the name of a lock has at least one byte".into())
}

/// Everything after the prefix, decoded once.
fn lock_name(uri: &Uri) -> Result<Bytes, ApiError> {
    let raw = uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let name = percent_decode(raw, false)?;
    if name.is_empty() {
        return Err(ApiError::BadRequest("the name of a lock has at least one byte".into()));
    }
    if name.len() > LOCK_NAME_MAX {
        let (limit, actual) = (LOCK_NAME_MAX as u64, name.len() as u64);
        return Err(ApiError::KeyTooLarge { limit, actual });
    }
    Ok(name.into())
}

/// As it stands in a query.
fn percent_encode(name: &[u8]) -> String {
    let mut text = String::new();
    for byte in name {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(*byte));
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_continues_a_listing_is_read_as_it_was() {
        let name: Vec<u8> = (0..=255).collect();
        let text = percent_encode(&name);
        let query = Query::parse(&format!("/x?after={text}").parse().unwrap(), &["after"]);
        assert_eq!(query.unwrap().bytes("after"), Some(&name[..]));
    }

    #[test]
    fn a_lock_is_asked_for_with_one_lease() {
        let read = |json: &str| {
            let wanted = body::json::<LockRequest>(json.as_bytes())?;
            wanted.read(Duration::from_mins(1)).map(|it| (it.lease, it.ttl_ms, it.wait))
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(read(r#"{"ttl":"30s"}"#), Ok((0, 30_000, None)));
        assert_eq!(read(r#"{"lease":7,"wait":"1s"}"#), Ok((7, 0, second)));
        assert_eq!(read(r#"{"ttl":"1s","wait":"1m"}"#).map(|it| it.1), Ok(1000));
        for bad in [
            "{}",
            r#"{"ttl":"30s","lease":7}"#,
            r#"{"ttl":"999ms"}"#,
            r#"{"ttl":30}"#,
            r#"{"ttl":"30s","wait":"60001ms"}"#,
            r#"{"ttl":"30s","wait":"long"}"#,
            r#"{"ttl":"30s","name":"x"}"#,
        ] {
            assert!(matches!(read(bad), Err(ApiError::BadRequest(_))), "{bad}");
        }
    }
}
