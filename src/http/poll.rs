//! Waiting for a key to change: `Prefer: wait=30` (RFC 7240) beside `If-None-Match`.
//!
//! Who waits has given its place among the requests in flight away, so that any number of
//! waiting clients leaves room for the others; they are bounded by `limits.connections`. The
//! answer after the wait takes no new place: it costs one look at the tree, and a client that
//! waited must not be told that there are too many.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, request};
use axum::response::Response;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::Edge;
use super::error::ApiError;
use super::extract::Query;
use crate::machine::{Tags, View};
use crate::node::Consistency;

/// The place of a request among those in flight, which it may give away before its end.
#[derive(Clone, Debug)]
pub(super) struct Place(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Mutex::new(Some(permit))))
    }

    pub(super) fn give_away(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The place of a request that has one is free again.
    pub(super) fn free(request: &Extensions) {
        if let Some(place) = request.get::<Self>() {
            place.give_away();
        }
    }
}

/// How long a request did nothing but wait; that is no time that the server took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waited(pub(super) Duration);

/// A wish to wait for a change.
#[derive(Debug)]
pub(super) struct Wait {
    /// At which revisions the client knows the key.
    known: Tags,
    until: Instant,
    /// How long it is in all.
    span: Duration,
}

impl Wait {
    /// The wish of a request that began at `start`, as far as it is granted: no longer than
    /// the request may take.
    pub(super) fn wished(
        edge: &Edge,
        headers: &HeaderMap,
        query: &Query,
        known: &Tags,
        start: Instant,
    ) -> Result<Option<Self>, ApiError> {
        let Some(wish) = preferred(headers) else { return Ok(None) };
        let most = edge.config.limits.max_timeout;
        let span = wish.min(query.timeout(most, most)?);
        Ok(Some(Self { known: known.clone(), until: start + span, span }))
    }

    /// Says that the wish was granted.
    pub(super) fn mark(&self, response: &mut Response, waited: Waited) {
        let text = format!("wait={}", self.span.as_secs());
        if let Ok(value) = HeaderValue::try_from(text) {
            let name = HeaderName::from_static("preference-applied");
            response.headers_mut().insert(name, value);
        }
        response.extensions_mut().insert(waited);
    }

    /// Waits while `key` is as the client knows it. Answers with a view in which it is not, or
    /// with the newest when the time is over.
    pub(super) async fn until_changed(
        &self,
        edge: &Edge,
        head: &request::Parts,
        key: &[u8],
        first: View,
    ) -> Result<View, ApiError> {
        let stopping = || ApiError::Draining("this node is shutting down".into());
        // What is applied from here on wakes us, so that nothing is missed after `first`.
        let mut applied = edge.handle.applied();
        let mut view = first;
        let mut late = false;
        loop {
            let current = view.get(key)?.map(|record| record.mod_revision);
            if late || !self.is_known(current) {
                return Ok(view);
            }
            // A view keeps pages from being used again, so none is held meanwhile.
            drop(view);
            Place::free(&head.extensions);
            tokio::select! {
                () = edge.handle.draining() => return Err(stopping()),
                news = applied.changed() => news.map_err(|_| stopping())?,
                () = sleep_until(self.until) => late = true,
            }
            view = edge.handle.view(Consistency::Stale, Duration::ZERO).await?;
        }
    }

    fn is_known(&self, current: Option<u64>) -> bool {
        match (&self.known, current) {
            (_, None) => false,
            (Tags::Any, Some(_)) => true,
            (Tags::Revisions(known), Some(revision)) => known.contains(&revision),
        }
    }
}

/// `wait` of the first `Prefer` that has one. What cannot be understood is no wish.
fn preferred(headers: &HeaderMap) -> Option<Duration> {
    let lists = headers.get_all("prefer").iter().filter_map(|list| list.to_str().ok());
    let mut wishes = lists.flat_map(|list| list.split(',')).filter_map(|wish| {
        let (name, value) = wish.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then_some(value.trim())
    });
    let value = wishes.next()?;
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let digits = quoted.unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(digits.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_as_rfc_7240_says() {
        let read = |lists: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append("prefer", HeaderValue::from_static(list));
            }
            preferred(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(read(&["wait=30"]), Some(30));
        assert_eq!(read(&["respond-async, Wait = \"7\"; x=1"]), Some(7));
        assert_eq!(read(&["respond-async", "wait=1, wait=2"]), Some(1), "the first counts");
        assert_eq!(read(&["wait=99999999999999999999999"]), Some(u64::MAX));
        for none in ["wait", "wait=", "wait=-1", "wait=1.5", "wait=x", "waits=1", ""] {
            assert_eq!(read(&[none]), None, "{none}");
        }
    }
}
