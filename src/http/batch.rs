//! `POST /v1/batch`: many writes that have nothing to do with each other, in their order.
//!
//! The body is read as it comes and the answers are written as the writes are done, so neither
//! has to fit anywhere. What has arrived is packed into entries of the log, one of which is
//! under way at a time: that keeps the order, through whichever node. No key is twice in an
//! entry, so each write has a revision that tells it from the others of its key.
//!
//! What makes it unsafe to go on ends the stream: a line that is no write, and an entry that
//! was refused as a whole or whose outcome nobody knows. The answers name those lines, and
//! nothing after them is done.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::Edge;
use super::access::Verb;
use super::batch_line::{BatchAnswer, BatchLine, read, weight};
use super::error::{ApiError, Problem};
use super::extract::{BODY_RATE, Query};
use super::held::Share;
use super::lines::{NDJSON, write_line};
use super::poll::Place;
use super::propose::fence;
use super::pull::{self, Step};
use crate::machine::{Applied, Command, Write};

/// Most writes of one entry.
const ENTRY_WRITES: usize = 256;
/// Most bytes of one entry, unless it is a single write.
const ENTRY_BYTES: usize = 1 << 20;
/// What a line may have beyond twice the largest value.
const LINE_EXTRA: u64 = 64 << 10;
/// How often the connection is asked again for more of the body before an entry is proposed.
const TURNS: u32 = 2;
/// How long what follows the end of a batch is thrown away, so that the client, which may be
/// sending still, sees the answer.
const LINGER: Duration = Duration::from_secs(2);

/// Write many keys
///
/// Each line is a write of its own, with its own conditions; they happen in their order. Each
/// is answered by one line with the status that it would have had alone, as soon as it is done;
/// read the answers while you send, since a server whose answers nobody takes stops reading.
/// Empty lines are passed over. The last line is `{"end":true,"lines":N,"applied":M}`: without
/// it the answer was cut off. Three things end a batch early, and nothing after them is done: a
/// malformed line (400, or 413 when it is too long), a refusal of everything that was packed
/// into one entry with it (429, 503, 507, 412 of the fence), and an unknown outcome (504, on
/// every line that it is about). To repeat a batch safely put conditions on its writes.
#[utoipa::path(
    post, path = "/v1/batch", operation_id = "batch", tag = "keys",
    params(
        ("timeout" = Option<String>, Query, description = "how long the server may take for 256 writes, such as `5s`"),
        ("redirect" = Option<bool>, Query, description = "answer 307 to the leader instead of forwarding"),
        ("Mmapd-Fence" = Option<String>, Header, description = "`NAME;TOKEN`: only while that lock is held with that token"),
    ),
    request_body(content = BatchLine, content_type = "application/x-ndjson", description = "one write a line; a line has at most twice the largest value and 64 KiB",
        example = json!("{\"put\":{\"key\":\"color\",\"value\":\"blue\"}}\n{\"delete\":{\"key\":\"shape\"}}\n")),
    responses(
        (status = 200, body = BatchAnswer, content_type = "application/x-ndjson", description = "one answer a line",
            example = json!("{\"line\":1,\"status\":201,\"revision\":9,\"create_revision\":9,\"version\":1}\n{\"line\":2,\"status\":200,\"deleted\":1,\"revision\":9}\n{\"end\":true,\"lines\":2,\"applied\":2}\n")),
        (status = 307, description = "`redirect=true` on a node that does not lead", headers(("Location" = String))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`: no body arrived in time"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`; an `Idempotency-Key`"),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "`overloaded`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`"),
    ),
)]
pub(super) async fn batch(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let query = Query::parse(&head.uri, &["timeout", "redirect"])?;
    edge.timeout(&query)?;
    fence(&head.headers)?;
    // Which keys it is about is known line by line. Who may write none has nothing to send.
    edge.may_some(&[Verb::Write])?;
    if head.headers.contains_key("idempotency-key") {
        return Err(ApiError::Unprocessable(
            "Idempotency-Key is not supported for batches; put conditions on the writes".into(),
        ));
    }
    if let Some(elsewhere) = edge.redirect(&query, &head.uri)? {
        return Ok(elsewhere);
    }
    let limits = &edge.config.limits;
    let line_max = limits.value.saturating_mul(2).saturating_add(LINE_EXTRA);
    let mut input = Input {
        body,
        buffer: BytesMut::new(),
        scanned: 0,
        number: 0,
        over: false,
        since: Instant::now(),
        body_timeout: edge.config.http.body_timeout,
        line_max: usize::try_from(line_max).unwrap_or(usize::MAX),
        share: edge.share(),
        taken: 0,
        left: None,
    };
    // Nothing is answered before something came: who waits to be told to go on is told.
    input.fill().await?;
    // From here on each entry has a place of its own: a batch may last as long as its client
    // likes, and what it holds meanwhile is counted.
    Place::free(&head.extensions);
    let headers = head.headers;
    let held = None;
    let batch = Batch { edge, headers, query, input, held, lines: 0, applied: 0, done: None };
    Ok(([(header::CONTENT_TYPE, NDJSON)], pull::body(batch, step)).into_response())
}

/// The lines of a body.
struct Input {
    body: Body,
    /// What has come and is not taken yet.
    buffer: BytesMut,
    /// That much of it has no end of a line.
    scanned: usize,
    /// Lines that were taken.
    number: u64,
    /// Nothing more will come.
    over: bool,
    /// When the wait for the line that comes next began.
    since: Instant,
    body_timeout: Duration,
    line_max: usize,
    /// Of the bytes of bodies in flight: what has come, and the lines of this entry.
    share: Share,
    /// Bytes of the lines of this entry.
    taken: usize,
    /// What came and found no room.
    left: Option<Bytes>,
}

impl Input {
    /// Waits for more of the body. What finds no room now is taken the next time.
    async fn fill(&mut self) -> Result<(), ApiError> {
        let data = match self.left.take() {
            Some(left) => left,
            None => match self.next().await? {
                Some(data) => data,
                None => return Ok(()),
            },
        };
        let held = self.buffer.len() + self.taken + data.len();
        if let Err(error) = self.share.grow_to(held as u64) {
            self.left = Some(data);
            return Err(error);
        }
        self.buffer.extend_from_slice(&data);
        Ok(())
    }

    /// What comes next of the body; `None`: its end, or nothing that counts.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let earned = Duration::from_secs(self.buffer.len() as u64 / BODY_RATE);
        let until = self.since + self.body_timeout + earned;
        let frame = timeout_at(until, self.body.frame()).await.map_err(|_| ApiError::TooSlow)?;
        let Some(frame) = frame else {
            self.over = true;
            return Ok(None);
        };
        let frame =
            frame.map_err(|error| ApiError::BadRequest(format!("the body broke off: {error}")))?;
        Ok(frame.into_data().ok())
    }

    /// The same, if there is more already. The connection reads only when it has its turn, so
    /// it is given some.
    async fn fill_at_once(&mut self) -> Result<bool, ApiError> {
        for _ in 0..TURNS {
            tokio::select! {
                biased;
                filled = self.fill() => return filled.map(|()| true),
                () = tokio::task::yield_now() => {}
            }
        }
        Ok(false)
    }

    /// The lines of the entry before are done; `kept` bytes of them are for the next one.
    fn begin_entry(&mut self, kept: usize) {
        self.since = Instant::now();
        self.taken = kept;
        self.share.shrink_to((self.buffer.len() + kept) as u64);
    }

    /// The next line that is whole and not empty, and its number.
    fn line(&mut self) -> Result<Option<(u64, BytesMut)>, ApiError> {
        loop {
            let rest = self.buffer.get(self.scanned..).unwrap_or_default();
            let end = rest.iter().position(|byte| *byte == b'\n').map(|at| self.scanned + at);
            let (length, past) = match end {
                Some(end) => (end, end + 1),
                None if self.over && !self.buffer.is_empty() => {
                    (self.buffer.len(), self.buffer.len())
                }
                None => (self.buffer.len(), 0),
            };
            if length > self.line_max {
                let actual = (past > 0).then_some(length as u64);
                return Err(ApiError::TooLarge { limit: self.line_max as u64, actual });
            }
            if past == 0 {
                self.scanned = length;
                return Ok(None);
            }
            let mut line = self.buffer.split_to(past);
            line.truncate(length);
            self.scanned = 0;
            self.number += 1;
            self.since = Instant::now();
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some((self.number, line)));
            }
        }
    }
}

/// A batch that is under way.
struct Batch {
    edge: Edge,
    headers: HeaderMap,
    query: Query,
    input: Input,
    /// A write that did not fit into the entry before.
    held: Option<(u64, Write)>,
    /// Lines that were answered.
    lines: u64,
    /// Of them, those that happened.
    applied: u64,
    /// The last line was written; until when the rest is thrown away.
    done: Option<Instant>,
}

/// What goes into one entry, and what is answered with it.
#[derive(Default)]
struct Pack {
    writes: Vec<Write>,
    /// The lines of the writes.
    numbers: Vec<u64>,
    keys: HashSet<Bytes>,
    bytes: usize,
    /// Lines that were refused by themselves.
    refused: Vec<(u64, ApiError)>,
}

impl Pack {
    /// Takes a write, or gives it back when it belongs into the next entry.
    fn add(&mut self, number: u64, write: Write) -> Option<(u64, Write)> {
        let bytes = self.bytes + weight(&write);
        let full = self.writes.len() >= ENTRY_WRITES || bytes > ENTRY_BYTES;
        if self.keys.contains(&write.key) || (full && !self.writes.is_empty()) {
            return Some((number, write));
        }
        self.keys.insert(write.key.clone());
        self.bytes = bytes;
        self.numbers.push(number);
        self.writes.push(write);
        None
    }
}

/// Why a batch is over.
enum Over {
    /// All of it was read.
    End,
    /// Something is wrong with the line that comes next, or with the wait for it.
    Failed(ApiError),
}

fn step(mut batch: Batch) -> Step<Batch> {
    Box::pin(async move {
        if let Some(until) = batch.done {
            batch.drain(until).await;
            return Ok(None);
        }
        let mut out = Vec::new();
        // An empty piece would be the end of the body.
        while out.is_empty() {
            let mut pack = Pack::default();
            let over = batch.pack(&mut pack).await;
            let going = batch.carry_out(pack, &mut out).await;
            match over {
                _ if !going => batch.end(&mut out),
                Some(Over::Failed(error)) => {
                    let line = batch.input.number + 1;
                    let refused = BatchAnswer::refused(line, &error, batch.edge.request_id());
                    batch.answer(&mut out, &refused);
                    batch.end(&mut out);
                }
                Some(Over::End) => batch.end(&mut out),
                None => {}
            }
        }
        Ok(Some((out.into(), batch)))
    })
}

impl Batch {
    /// Fills an entry with what has come; waits only while there is nothing to do.
    async fn pack(&mut self, pack: &mut Pack) -> Option<Over> {
        self.input.begin_entry(self.held.as_ref().map_or(0, |(_, write)| weight(write)));
        if let Some((number, write)) = self.held.take() {
            self.held = pack.add(number, write);
        }
        while self.held.is_none() && pack.refused.len() < ENTRY_WRITES {
            let line = match self.input.line() {
                Ok(Some(line)) => line,
                Ok(None) if self.input.over => return Some(Over::End),
                Ok(None) => match self.more(pack).await {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(error) => return Some(Over::Failed(error)),
                },
                Err(error) => return Some(Over::Failed(error)),
            };
            let (number, line) = line;
            match read(&line, self.edge.config.limits.value) {
                Ok(write) => match self.edge.may_write(&write) {
                    Ok(()) => {
                        self.input.taken += line.len();
                        self.held = pack.add(number, write);
                    }
                    Err(error) => pack.refused.push((number, error)),
                },
                Err(error @ ApiError::BadRequest(_)) => {
                    // It is the line that comes next: see `step`.
                    self.input.number = number - 1;
                    return Some(Over::Failed(error));
                }
                Err(error) => pack.refused.push((number, error)),
            }
        }
        None
    }

    /// Reads on; `false`: what there is shall not wait for it.
    async fn more(&mut self, pack: &Pack) -> Result<bool, ApiError> {
        if !pack.writes.is_empty() || !pack.refused.is_empty() {
            return match self.input.fill_at_once().await {
                // What is there is written first, which makes room.
                Err(ApiError::TooManyBytes { .. }) => Ok(false),
                filled => filled,
            };
        }
        let handle = self.edge.handle.clone();
        tokio::select! {
            filled = self.input.fill() => filled.map(|()| true),
            () = handle.stopped() => Err(stopping()),
        }
    }

    /// Proposes the entry and answers its lines in their order; `false`: nothing after it may
    /// be done.
    async fn carry_out(&mut self, pack: Pack, out: &mut Vec<u8>) -> bool {
        let Pack { writes, numbers, refused, .. } = pack;
        let outcomes = if writes.is_empty() { Ok(Vec::new()) } else { self.propose(writes).await };
        let id = self.edge.request_id().to_owned();
        let refusal = |(line, error)| BatchAnswer::refused(line, &error, &id);
        let mut refused = refused.into_iter().peekable();
        let going = outcomes.is_ok();
        let mut outcomes = outcomes.map(Vec::into_iter);
        for line in numbers {
            while let Some(earlier) = refused.next_if(|(other, _)| *other < line) {
                self.answer(out, &refusal(earlier));
            }
            let answer = match &mut outcomes {
                Ok(outcomes) => {
                    let outcome = outcomes.next().unwrap_or(Applied::Unknown);
                    BatchAnswer::of(line, outcome, &id)
                }
                Err(error) => BatchAnswer::refused(line, error, &id),
            };
            self.answer(out, &answer);
        }
        for later in refused {
            self.answer(out, &refusal(later));
        }
        going
    }

    async fn propose(&mut self, writes: Vec<Write>) -> Result<Vec<Applied>, ApiError> {
        // A node that shuts down waits for the entry, not for the batch.
        let _permit = self.edge.in_flight.try_acquire().map_err(|_| {
            if self.edge.handle.is_draining() { stopping() } else { ApiError::Overloaded }
        })?;
        let expected = writes.len();
        let done = self.edge.write(&self.headers, &self.query, Command::Batch(writes)).await?;
        let Applied::Batch { outcomes } = done.applied else {
            return Err(ApiError::of(done.applied));
        };
        debug_assert_eq!(outcomes.len(), expected, "one outcome for each write");
        Ok(outcomes)
    }

    fn answer(&mut self, out: &mut Vec<u8>, answer: &BatchAnswer) {
        self.lines += 1;
        match answer {
            BatchAnswer::Put { .. } | BatchAnswer::Deleted { .. } => self.applied += 1,
            BatchAnswer::Refused(_) | BatchAnswer::End { .. } => {}
        }
        write_line(out, answer);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let (lines, applied) = (self.lines, self.applied);
        write_line(out, &BatchAnswer::End { end: true, lines, applied });
        self.done = Some(Instant::now() + LINGER);
    }

    /// Throws away what the client sends after the end.
    async fn drain(&mut self, until: Instant) {
        (self.input.buffer, self.input.left) = (BytesMut::new(), None);
        self.input.begin_entry(0);
        while !self.input.over
            && let Ok(Some(Ok(_))) = timeout_at(until, self.input.body.frame()).await
        {}
    }
}

fn stopping() -> ApiError {
    ApiError::Draining("this node is shutting down".into())
}
