//! What the logs are told of a request: one line for each, under its pattern and never under a
//! key, and a span around what is done for it. With the level above `debug` neither is made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use tracing::Span;

use super::AUDIT;
use super::access::Remote;
use super::is_probe;
use crate::logs::{TRACEPARENT, TRACESTATE, Trace};

/// The target of the line that every request gets.
const ACCESS: &str = "mmapd::access";

/// What a request is called in the logs.
pub(super) struct Told {
    trace: Arc<Trace>,
    method: Method,
    route: Option<MatchedPath>,
    is_probe: bool,
    start: Instant,
}

impl Told {
    /// Takes its place in its trace, under `id`, and notes that it begins now.
    pub(super) fn begin(request: &Request, id: &HeaderValue) -> Self {
        Self {
            trace: Arc::new(trace(request.headers(), id)),
            method: request.method().clone(),
            route: request.extensions().get().cloned(),
            is_probe: is_probe(request.uri().path()),
            start: Instant::now(),
        }
    }

    pub(super) fn trace(&self) -> &Arc<Trace> {
        &self.trace
    }

    /// Around all that is done until the head of the answer is there.
    pub(super) fn span(&self) -> Span {
        tracing::debug_span!(
            target: ACCESS,
            "request",
            request_id = self.trace.request_id(),
            trace_id = %self.trace.trace_id(),
            span_id = %self.trace.span_id(),
            method = method(&self.method),
            route = self.route(),
        )
    }

    /// The head of the answer is there. What is our fault is told always, but for probes:
    /// those fail once a second while a node starts, and whoever asks them knows.
    pub(super) fn end(&self, status: StatusCode) {
        macro_rules! tell {
            ($level:ident) => {
                tracing::$level!(
                    target: ACCESS,
                    request_id = self.trace.request_id(),
                    trace_id = %self.trace.trace_id(),
                    span_id = %self.trace.span_id(),
                    method = method(&self.method),
                    route = self.route(),
                    status = status.as_u16(),
                    duration_ms = millis(self.start.elapsed()),
                    "answered"
                )
            };
        }
        if status.is_server_error() && !self.is_probe {
            tell!(warn);
        } else {
            tell!(debug);
        }
    }

    /// It was refused before anything was asked about: the audit log tells of that as well.
    pub(super) fn refused(&self, remote: Option<Remote>, why: &'static str) {
        tracing::info!(
            target: AUDIT,
            request_id = self.trace.request_id(),
            trace_id = %self.trace.trace_id(),
            caller = "-",
            remote = remote.map(|remote| remote.address.to_string()),
            method = method(&self.method),
            route = self.route(),
            why,
            allowed = false,
        );
    }

    /// The pattern: the rest of a path, which is a key, is its last name.
    fn route(&self) -> tracing::field::DisplayValue<Pattern<'_>> {
        tracing::field::display(Pattern(self.route.as_ref().map(MatchedPath::as_str)))
    }
}

/// A line about a request whose answer has begun, or is over: no span is around it any more.
macro_rules! tell_late {
    ($level:ident, $trace:expr, $($rest:tt)*) => {{
        let trace = $trace;
        let trace = trace.as_deref();
        ::tracing::$level!(
            request_id = trace.map($crate::logs::Trace::request_id),
            trace_id = trace.map(|trace| ::tracing::field::display(trace.trace_id())),
            span_id = trace.map(|trace| ::tracing::field::display(trace.span_id())),
            $($rest)*
        );
    }};
}
pub(super) use tell_late;

/// The routes of metrics: `/v1/keys/{key}`.
struct Pattern<'a>(Option<&'a str>);

impl std::fmt::Display for Pattern<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(pattern) = self.0 else { return f.write_str("unmatched") };
        match pattern.split_once("{*") {
            Some((before, rest)) => write!(f, "{before}{{{rest}"),
            None => f.write_str(pattern),
        }
    }
}

/// A method that nobody knows is the client's own text.
fn method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::PUT,
        Method::POST,
        Method::DELETE,
        Method::HEAD,
        Method::PATCH,
        Method::OPTIONS,
    ];
    if known.contains(method) { method.as_str() } else { "other" }
}

/// Milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    crate::metrics::lossy(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)) / 1e3
}

/// The place in its trace that the headers give. A `traceparent` that is given twice is none;
/// the parts of a `tracestate` belong together.
fn trace(headers: &HeaderMap, id: &HeaderValue) -> Trace {
    let id = id.to_str().unwrap_or_default().to_owned();
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let parent = parents.next().filter(|_| parents.next().is_none());
    let Some(parent) = parent.and_then(|parent| parent.to_str().ok()) else {
        return Trace::new(id, None, None);
    };
    let states: Result<Vec<&str>, _> =
        headers.get_all(TRACESTATE).iter().map(HeaderValue::to_str).collect();
    let state = states.map(|states| states.join(",")).unwrap_or_default();
    Trace::new(id, Some(parent), Some(&state))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value).expect("a value"));
        }
        headers
    }

    fn told(pairs: &[(&'static str, &'static [u8])]) -> (bool, Option<String>) {
        let trace = trace(&headers(pairs), &HeaderValue::from_static("r"));
        let state = trace.headers().find(|(name, _)| *name == TRACESTATE);
        (PARENT.contains(&trace.trace_id().to_string()), state.map(|(_, state)| state))
    }

    #[test]
    fn the_headers_of_a_trace_are_read() {
        let parent = (TRACEPARENT, PARENT.as_bytes());
        assert_eq!(told(&[]), (false, None));
        assert_eq!(told(&[parent]), (true, None));
        assert_eq!(told(&[parent, parent]), (false, None), "given twice");
        assert_eq!(told(&[(TRACEPARENT, b"\xff")]), (false, None));
        let whole = told(&[parent, (TRACESTATE, b"a=1, b=2"), (TRACESTATE, b"c=3")]);
        assert_eq!(whole, (true, Some("a=1, b=2,c=3".into())));
        assert_eq!(told(&[parent, (TRACESTATE, b"\xff")]), (true, None));
        assert_eq!(told(&[(TRACESTATE, b"a=1")]), (false, None));
    }

    #[test]
    fn a_pattern_is_that_of_the_metrics() {
        for (matched, want) in [
            (Some("/v1/keys/{*key}"), "/v1/keys/{key}"),
            (Some("/v1/leases/{id}/keepalive"), "/v1/leases/{id}/keepalive"),
            (None, "unmatched"),
        ] {
            assert_eq!(Pattern(matched).to_string(), want);
        }
        assert_eq!(method(&Method::from_bytes(b"SECRET").expect("a method")), "other");
    }
}
