//! `GET /v1/watch`: changes as Server-Sent Events, one message for each revision.
//!
//! The body is a stream that the connection polls when it has room: it takes what comes next
//! from the node, makes messages of it, and holds nothing else, no snapshot above all. A
//! client that is slow is behind; once the history has been trimmed past it, it is told so.
//! One that takes nothing at all is cut off by the connection ([`Patience`]).
//!
//! Texts of changes are made once for all who watch them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::time::{Instant, Sleep};
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::envelope::Encoding;
use super::error::{ApiError, Problem};
use super::extract::{self, Query};
use super::pace::Patience;
use super::poll::Place as InFlight;
use super::told::tell_late;
use crate::logs::Trace;
use crate::machine::{Change, Gone, KEY_MAX, Kind, OwnedRecord, Reason};
use crate::metrics;
use crate::node::Consistency;
use crate::node::changes::{Past, PastError, Revision, Selector, Taken, Watch};

/// About how much is made into messages at once.
const PIECE: usize = 64 << 10;
/// Texts of at least this length are shared with other watches, shorter ones are copied.
const SHARED: usize = 8 << 10;
/// After how many milliseconds a client whose connection ended should come back.
const RETRY_MS: u64 = 1000;
const BYTES: &str = "application/octet-stream";

/// Data of an `event: change`: all that one revision changed among the keys that are watched.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"revision": 9, "events": [{
    "type": "put", "key": "color", "value": "blue", "encoding": "utf-8", "content_type": "text/plain",
    "create_revision": 7, "mod_revision": 9, "version": 2, "reason": "request"
}]}))]
pub(super) struct WatchChange<'a> {
    /// The revision, also the message's `id`.
    revision: u64,
    /// The changes, in the order in which they were made.
    events: Vec<WatchEvent<'a>>,
}

/// One change of one key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "delete", "key": "color", "mod_revision": 10, "reason": "request",
    "prev": {"value": "blue", "encoding": "utf-8", "content_type": "text/plain", "size": 4,
        "create_revision": 7, "mod_revision": 9, "version": 2, "lease": null}
}))]
pub(super) struct WatchEvent<'a> {
    /// What happened.
    #[serde(rename = "type")]
    kind: WatchKind,
    /// The key, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    /// The key in base64, when it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    /// What was written, as `encoding` says; absent when the key was deleted, or when only
    /// keys were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    /// How `value` is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
    /// As given when it was written; absent when the key was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    /// Revision that created the key; absent when it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    create_revision: Option<u64>,
    /// The revision of this change.
    mod_revision: u64,
    /// Writes since its creation; absent when it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// What was there before, if `prev=true` asked for it and there was something.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev: Option<WatchPrev<'a>>,
    /// Why.
    reason: WatchReason,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum WatchKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
}

/// Why a key changed.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum WatchReason {
    /// Somebody asked for it.
    Request,
    /// Its time to live was over.
    Ttl,
    /// Its lease was.
    Lease,
}

/// What a key was before it changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "value": "blue", "encoding": "utf-8", "content_type": "text/plain", "size": 4,
    "create_revision": 7, "mod_revision": 9, "version": 2, "lease": null
}))]
pub(super) struct WatchPrev<'a> {
    /// The value, as `encoding` says; absent when only keys were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    /// How `value` is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
    /// As given when it was written.
    content_type: &'a str,
    /// Bytes of the value.
    size: u64,
    /// Revision that created the key.
    create_revision: u64,
    /// Revision that wrote it.
    mod_revision: u64,
    /// Writes since its creation.
    version: u64,
    /// The lease it hung on.
    lease: Option<u64>,
}

/// Data of an `event: progress`: nothing else happened up to this revision. It comes at the
/// beginning, and after each `watch.progress` of silence.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"revision": 9}))]
pub(super) struct WatchProgress {
    /// The revision, also the message's `id`.
    revision: u64,
}

/// Data of an `event: draining`: the node stops, and another one goes on from the `id`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"revision": 9}))]
pub(super) struct WatchDraining {
    /// Everything up to this revision was told; also the message's `id`.
    revision: u64,
}

/// Data of an `event: lagged`: what came next is no longer known. Read the keys again.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"oldest_revision": 120}))]
pub(super) struct WatchLagged {
    /// Changes after this revision are still known.
    oldest_revision: u64,
}

/// Data of an `event: denied`: the token is over or was taken back, or may not read all of these
/// keys any more. With another one the watch goes on from the `id`, on any node.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"revision": 9}))]
pub(super) struct WatchDenied {
    /// Everything up to this revision was told; also the message's `id`.
    revision: u64,
}

fn shown(bytes: &[u8]) -> (Cow<'_, str>, Encoding) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Cow::Borrowed(text), Encoding::Utf8),
        Err(_) => (Cow::Owned(STANDARD.encode(bytes)), Encoding::Base64),
    }
}

fn content_type(record: &OwnedRecord) -> &str {
    if record.content_type.is_empty() { BYTES } else { &record.content_type }
}

/// What of a change is told.
#[derive(Clone, Copy, Debug)]
struct Told {
    values: bool,
    prev: bool,
}

impl<'a> WatchEvent<'a> {
    fn new(change: &'a Change, told: Told) -> Self {
        let value = |record: &'a OwnedRecord| told.values.then(|| shown(&record.value)).unzip();
        let (key, key_b64) = match shown(&change.key) {
            (Cow::Borrowed(text), _) => (Some(text), None),
            (Cow::Owned(text), _) => (None, Some(text)),
        };
        let record = change.record.as_ref();
        let (text, encoding) = record.map(value).unwrap_or_default();
        let prev = change.prev.as_ref().filter(|_| told.prev).map(|record| {
            let (text, encoding) = value(record);
            WatchPrev {
                value: text,
                encoding,
                content_type: content_type(record),
                size: record.value.len() as u64,
                create_revision: record.create_revision,
                mod_revision: record.mod_revision,
                version: record.version,
                lease: (record.lease != 0).then_some(record.lease),
            }
        });
        Self {
            kind: match change.kind {
                Kind::Put => WatchKind::Put,
                Kind::Delete => WatchKind::Delete,
            },
            key,
            key_b64,
            value: text,
            encoding,
            content_type: record.map(content_type),
            create_revision: record.map(|record| record.create_revision),
            mod_revision: change.revision,
            version: record.map(|record| record.version),
            prev,
            reason: match change.reason {
                Reason::Request => WatchReason::Request,
                Reason::Ttl => WatchReason::Ttl,
                Reason::Lease => WatchReason::Lease,
            },
        }
    }
}

fn json(data: &impl Serialize) -> Bytes {
    serde_json::to_vec(data).expect("text and numbers always are JSON").into()
}

/// Watch keys
///
/// Every change of the keys that are named by `prefix` and `key`, or of all keys, as
/// Server-Sent Events: one message for each revision, in order, without gap or duplicate. The
/// `id` of a message is its revision: a client whose connection ended asks any node with
/// `Last-Event-ID` and goes on after it. Without that, and without `from_revision`, it begins
/// with what happens from now on.
///
/// Messages are `change` (`WatchChange`), `progress` (`WatchProgress`), and as the last one
/// `draining` (`WatchDraining`: go to another node), `lagged` (`WatchLagged`: too slow) or
/// `denied` (`WatchDenied`: these credentials do not count any more).
#[utoipa::path(
    get, path = "/v1/watch", operation_id = "watch", tag = "keys",
    params(
        ("prefix" = Option<Vec<String>>, Query, description = "watch all keys that begin so; may be given often"),
        ("key" = Option<Vec<String>>, Query, description = "watch this key; may be given often, and along with `prefix`"),
        ("from_revision" = Option<u64>, Query, description = "begin with the changes of this revision, past or future"),
        ("prev" = Option<bool>, Query, description = "tell what was there before"),
        ("keys_only" = Option<bool>, Query, description = "tell no values"),
        ("timeout" = Option<String>, Query, description = "how long to wait for a leader to confirm the beginning, such as `5s`"),
        ("Last-Event-ID" = Option<u64>, Header, description = "go on after this revision; goes before `from_revision`"),
    ),
    responses(
        (status = 200, body = WatchChange, content_type = "text/event-stream", description = "messages, until one side ends the connection"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 410, body = Problem, content_type = "application/problem+json", description = "`compacted`: the history begins later; `oldest_revision` can be gone on after"),
        (status = 414, body = Problem, content_type = "application/problem+json", description = "`too-large`: a key or prefix"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`: too many watches"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`, `rebuilding`"),
    ),
)]
pub(super) async fn watch(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let names = ["prefix", "key", "from_revision", "prev", "keys_only", "timeout"];
    let query = Query::parse_repeated(request.uri(), &names, &names[..2])?;
    let selectors = selectors(&query)?;
    let needs: Vec<Need> =
        selectors.iter().map(|selector| Need::new(Verb::Read, selector.span())).collect();
    edge.allow(&needs)?;
    let denied = Box::pin(edge.until_denied(needs));
    let told = Told { values: !query.flag("keys_only")?, prev: query.flag("prev")? };
    let timeout = edge.timeout(&query)?;
    let after = after(request.headers(), &query)?;
    if edge.handle.is_draining() {
        return Err(ApiError::Draining("this node is shutting down".into()));
    }
    let place = edge.handle.watch(edge.config.limits.watches).ok_or(ApiError::Overloaded)?;
    let position = match after {
        Some(revision) => {
            edge.handle.view(Consistency::Stale, timeout).await?.kept(revision)?;
            revision
        }
        // What was acknowledged before is over, what is acknowledged from now on is told.
        None => edge.handle.view(Consistency::Linearizable, timeout).await?.revision(),
    };
    let settings = &edge.config.watch;
    let watch = place.watch(selectors, position);
    let stream = Stream::new(watch, told, settings.progress, denied, edge.handle.trace());
    InFlight::free(request.extensions());
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let mut response = (headers, Body::from_stream(stream)).into_response();
    let cut_off = metrics::install().watch.lagged.clone();
    response.extensions_mut().insert(Patience { limit: settings.patience, cut_off });
    Ok(response)
}

fn selectors(query: &Query) -> Result<Vec<Selector>, ApiError> {
    let mut selectors = Vec::new();
    for (name, value) in query.pairs() {
        let bytes = || Bytes::copy_from_slice(value);
        match name {
            "key" => {
                extract::check_key(value)?;
                selectors.push(Selector::Key(bytes()));
            }
            "prefix" if value.len() > KEY_MAX => {
                let (limit, actual) = (KEY_MAX as u64, value.len() as u64);
                return Err(ApiError::KeyTooLarge { limit, actual });
            }
            "prefix" => selectors.push(Selector::Prefix(bytes())),
            _ => {}
        }
    }
    if selectors.is_empty() {
        selectors.push(Selector::Prefix(Bytes::new()));
    }
    Ok(selectors)
}

/// The revision after which to begin; `None`: now.
fn after(headers: &HeaderMap, query: &Query) -> Result<Option<u64>, ApiError> {
    let from = query.number("from_revision")?;
    let Some(id) = headers.get("last-event-id") else {
        return Ok(from.map(|revision| revision.saturating_sub(1)));
    };
    let number = id.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        ApiError::BadRequest("header last-event-id: expected the id of a message".into())
    })
}

type Reading = Pin<Box<dyn Future<Output = Result<Past, PastError>> + Send>>;

/// The messages of one watch.
struct Stream {
    watch: Watch,
    told: Told,
    trace: Option<Arc<Trace>>,
    /// Ready to be sent.
    out: VecDeque<Bytes>,
    /// The history is being read.
    reading: Option<Reading>,
    /// Who watches may not do so any more.
    denied: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
    silence: Duration,
    /// When the next progress is due. The timer may be earlier; then it is set again.
    due: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Stream {
    fn new(
        watch: Watch,
        told: Told,
        silence: Duration,
        denied: Pin<Box<dyn Future<Output = ()> + Send>>,
        trace: Option<Arc<Trace>>,
    ) -> Self {
        let due = Instant::now() + silence;
        let mut stream = Self {
            watch,
            told,
            trace,
            out: VecDeque::from([Bytes::from(format!("retry: {RETRY_MS}\n"))]),
            reading: None,
            denied,
            ended: false,
            silence,
            due,
            timer: Box::pin(tokio::time::sleep_until(due)),
        };
        stream.progress();
        stream
    }

    fn message(&mut self, event: &str, id: Option<u64>, data: &impl Serialize) {
        let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
        let data = String::from_utf8_lossy(&json(data)).into_owned();
        self.out.push_back(Bytes::from(format!("{id}event: {event}\ndata: {data}\n\n")));
    }

    fn progress(&mut self) {
        let revision = self.watch.position();
        self.message("progress", Some(revision), &WatchProgress { revision });
    }

    /// Says why it ends.
    fn end(&mut self, why: PastError) -> Result<(), StreamError> {
        self.ended = true;
        match why {
            PastError::Gone(Gone { oldest: oldest_revision }) => {
                self.watch.lagged();
                self.message("lagged", None, &WatchLagged { oldest_revision });
            }
            PastError::Stopping => {
                let revision = self.watch.position();
                self.message("draining", Some(revision), &WatchDraining { revision });
            }
            PastError::Store(error) => {
                tell_late!(error, &self.trace, %error, "a watch cannot read the history");
                return Err(StreamError);
            }
        }
        Ok(())
    }

    /// Makes messages of revisions that have something for it.
    fn tell(&mut self, revisions: &[Arc<Revision>]) {
        let (mut open, mut events) = (BytesMut::new(), 0);
        for revision in revisions {
            let number = revision.revision;
            let head =
                format!("id: {number}\nevent: change\ndata: {{\"revision\":{number},\"events\":[");
            open.extend_from_slice(head.as_bytes());
            let wanted =
                revision.changes.iter().filter(|shown| self.watch.wants(&shown.change.key));
            for (at, shown) in wanted.enumerate() {
                events += 1;
                if at > 0 {
                    open.extend_from_slice(b",");
                }
                let told = self.told;
                let render = |change: &Change| json(&WatchEvent::new(change, told));
                if !told.values {
                    open.extend_from_slice(&render(&shown.change));
                    continue;
                }
                let text = shown.text(told.prev, render);
                if text.len() < SHARED {
                    open.extend_from_slice(text);
                } else {
                    self.out.push_back(open.split().freeze());
                    self.out.push_back(text.clone());
                }
            }
            open.extend_from_slice(b"]}\n\n");
        }
        self.watch.sent(events);
        if !open.is_empty() {
            self.out.push_back(open.freeze());
        }
    }

    /// Finds what comes next; ready when there is something to send, or it ended.
    fn advance(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while self.out.is_empty() && !self.ended {
            if self.denied.as_mut().poll(context).is_ready() {
                self.ended = true;
                let revision = self.watch.position();
                self.message("denied", Some(revision), &WatchDenied { revision });
                break;
            }
            match self.watch.take(PIECE, context.waker()) {
                Taken::Some(revisions) => self.tell(&revisions),
                Taken::Ended => self.end(PastError::Stopping)?,
                Taken::Nothing => return self.wait(context),
                Taken::Behind => {
                    let watch = &self.watch;
                    let reading = self.reading.get_or_insert_with(|| Box::pin(watch.past()));
                    match reading.as_mut().poll(context) {
                        Poll::Pending => return self.wait(context),
                        Poll::Ready(read) => {
                            self.reading = None;
                            match read {
                                Ok(past) => {
                                    self.tell(&past.revisions);
                                    self.watch.reached(past.reached);
                                }
                                Err(why) => self.end(why)?,
                            }
                        }
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when it is time to say how far it is.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while Instant::now() < self.due {
            if self.timer.deadline() != self.due {
                let due = self.due;
                self.timer.as_mut().reset(due);
            }
            if self.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        self.progress();
        Poll::Ready(Ok(()))
    }
}

/// The connection is to be cut off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the history cannot be read")]
struct StreamError;

impl futures_core::Stream for Stream {
    type Item = Result<Bytes, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.out.is_empty() && !self.ended {
            match self.advance(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok(())) => {}
            }
        }
        self.due = Instant::now() + self.silence;
        Poll::Ready(self.out.pop_front().map(Ok))
    }
}
