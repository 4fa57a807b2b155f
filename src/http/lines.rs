//! Listings as lines of JSON, however long, in bounded memory.
//!
//! Each piece is read from a snapshot of its own, at the revision of the first one, when the
//! connection has room for it: a client that is slow keeps no pages from being used again. In
//! return the revision may be gone before it is done; then the last line says so.

use std::io;

use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::error::{ApiError, Problem};
use super::keys::{Envelope, shown_key};
use super::list::{envelope, weight};
use super::listing::{Found, Wanted};
use super::pull::{self, Step};
use super::told::tell_late;
use crate::machine::View;
use crate::node::Consistency;

/// The type of lines of JSON.
pub(super) const NDJSON: &str = "application/x-ndjson";
/// Most bytes of one piece, unless its first item is larger.
const PIECE_BYTES: usize = 256 << 10;
/// Most items of one piece.
const PIECE_ITEMS: u64 = 1000;

/// One line of a listing. The last one is the one with `end`, or the one with `error`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ListLine {
    /// A key.
    Item(Box<Envelope>),
    /// Keys that share everything up to the delimiter.
    Group {
        /// What they begin with, when it is UTF-8.
        #[serde(skip_serializing_if = "Option::is_none")]
        prefix: Option<String>,
        /// The same in base64, when it is not.
        #[serde(skip_serializing_if = "Option::is_none")]
        prefix_b64: Option<String>,
    },
    /// That was all.
    End {
        /// Always true.
        end: bool,
        /// The store's revision that the lines show.
        revision: u64,
        /// How many lines there were; with `count_only` how many keys there are.
        count: u64,
        /// The cursor that goes on, if `limit` ended it.
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    },
    /// It could not be finished.
    Failed {
        /// Why.
        error: Box<Problem>,
    },
}

/// A line of JSON.
pub(super) fn write_line(out: &mut Vec<u8>, line: &impl Serialize) {
    serde_json::to_writer(&mut *out, line).expect("memory takes all, and names are text");
    out.push(b'\n');
}

/// Does the client ask for lines? Of the two types that we have, the one it names first counts.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted
        .flat_map(|accept| accept.split(','))
        .filter_map(|kind| Some(kind.split(';').next()?.trim()));
    kinds.find(|kind| [NDJSON, "application/json"].contains(kind)) == Some(NDJSON)
}

/// All of it, as of `revision`.
pub(super) fn response(edge: Edge, wanted: Wanted, revision: u64) -> Response {
    let lines = Lines { edge, wanted, revision, count: 0, done: false };
    ([(header::CONTENT_TYPE, NDJSON)], pull::body(lines, step)).into_response()
}

struct Lines {
    edge: Edge,
    /// What is left.
    wanted: Wanted,
    revision: u64,
    /// Lines so far.
    count: u64,
    done: bool,
}

fn step(mut lines: Lines) -> Step<Lines> {
    Box::pin(async move {
        if lines.done {
            return Ok(None);
        }
        let view = lines.view().await;
        // Pages may have to come from the disk, so they are read off the reactor.
        let made = tokio::task::spawn_blocking(move || {
            let piece = view.and_then(|view| lines.piece(&view));
            let piece = piece.unwrap_or_else(|error| lines.failed(&error));
            (Bytes::from(piece), lines)
        });
        made.await.map(Some).map_err(io::Error::other)
    })
}

impl Lines {
    /// This replica, which has been at that revision before.
    async fn view(&self) -> Result<View, ApiError> {
        if self.count > 0 && self.edge.handle.is_draining() {
            return Err(ApiError::Draining("this node is shutting down".into()));
        }
        let timeout = self.edge.config.limits.request_timeout;
        let view = self.edge.handle.view(Consistency::Stale, timeout).await?;
        if view.revision() < self.revision {
            return Err(ApiError::Rebuilding);
        }
        view.kept(self.revision)?;
        Ok(view)
    }

    fn piece(&mut self, view: &View) -> Result<Vec<u8>, ApiError> {
        let (revision, keys_only) = (self.revision, self.wanted.keys_only);
        if self.wanted.count_only {
            self.count = self.wanted.count(view, revision)?;
            return Ok(self.end(None));
        }
        let left = self.wanted.limit.map_or(u64::MAX, |limit| limit - self.count);
        let (mut out, mut count) = (Vec::new(), 0);
        let resume = self.wanted.walk(view, revision, |found| {
            let full = !out.is_empty() && out.len() + weight(&found, keys_only) > PIECE_BYTES;
            if full || count >= left.min(PIECE_ITEMS) {
                return false;
            }
            count += 1;
            let line = match found {
                Found::Item(item) => ListLine::Item(Box::new(envelope(view, &item, keys_only))),
                Found::Group(group) => {
                    let (prefix, prefix_b64) = shown_key(group);
                    ListLine::Group { prefix, prefix_b64 }
                }
            };
            write_line(&mut out, &line);
            true
        })?;
        self.count += count;
        match resume {
            None => out.extend(self.end(None)),
            Some(resume) if count == left => {
                let next = self.wanted.cursor(resume, revision);
                out.extend(self.end(Some(next)));
            }
            Some(resume) => self.wanted.go_on(&resume),
        }
        Ok(out)
    }

    fn end(&mut self, next: Option<String>) -> Vec<u8> {
        let (revision, count) = (self.revision, self.count);
        self.last(&ListLine::End { end: true, revision, count, next })
    }

    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        tell_late!(debug, self.edge.handle.trace(), ?error, "a listing was not sent to its end");
        let error = Box::new(error.problem(self.edge.request_id()));
        self.last(&ListLine::Failed { error })
    }

    fn last(&mut self, line: &ListLine) -> Vec<u8> {
        self.done = true;
        let mut out = Vec::new();
        write_line(&mut out, line);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_for_those_who_name_them_first() {
        for (accept, want) in [
            ("application/x-ndjson", true),
            ("application/x-ndjson;q=1, application/json;q=0.5", true),
            ("text/html, application/x-ndjson", true),
            ("application/json, application/x-ndjson", false),
            ("application/json", false),
            ("*/*", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(wanted(&headers), want, "{accept}");
        }
        assert!(!wanted(&HeaderMap::new()));
    }
}
