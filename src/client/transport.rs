//! Sending requests: to which node, how often, and what a failure means.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::body::Body;
use super::error::{Error, Outcome, Problem};
use super::types::fence;
use crate::config::show_duration;
use crate::tls::client_of;

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How much longer than the server we wait: it gives up first, and says what became of it.
const GRACE: Duration = Duration::from_secs(1);
/// Bytes a second that a body comes or goes with at least: what is slower is taken for broken.
const SLOWEST: u64 = 256 << 10;

/// How a [`Client`] is made.
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    timeout: Duration,
    patience: Duration,
    deadline: Duration,
    attempts: u32,
    pause: Duration,
    silence: Duration,
    named: bool,
    authorities: Vec<CertificateDer<'static>>,
    token: Option<Token>,
}

/// A token, which nothing prints.
#[derive(Clone)]
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl Builder {
    /// How long one attempt may take, on the server's side too (`timeout=`); 5 s unless set.
    /// Long bodies have more time, about 4 s for each MiB, and those that are streamed go on as
    /// long as something comes (see [`Builder::silence`]).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long an answer is waited for, if that is longer than what [`Builder::timeout`] gives
    /// the server: of use where there is no other node to ask.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// After that time no new attempt is made; 30 s unless set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How often a request is sent at most; as often as the deadline allows unless set.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// About how long the first pause between attempts is; each further one is twice as long,
    /// up to 2 s, and all are shortened by chance, so that clients do not come back together.
    /// 50 ms unless set.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// After how long without a sign of life a watch goes to another node, and a body that is
    /// streamed is taken for broken; 30 s unless set. The server's `watch.progress` should be
    /// well below it.
    #[must_use]
    pub fn silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// Says who asks, where the service wants to know.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Token(token.into()));
        self
    }

    /// Trusts nodes whose certificates one of these authorities signed, in PEM. Without it no
    /// node is reached by `https`.
    ///
    /// # Errors
    /// [`Error::Invalid`]: this is no certificate.
    pub fn authority(mut self, pem: &[u8]) -> Result<Self, Error> {
        let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let wrong = |error| Error::Invalid(format!("no certificate: {error}"));
        self.authorities.extend(all.map_err(wrong)?);
        Ok(self)
    }

    /// Without names (`Idempotency-Key`) for writes: then a write whose outcome is unknown is
    /// not sent again.
    #[must_use]
    pub fn unnamed(mut self) -> Self {
        self.named = false;
        self
    }

    /// The client.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no node, or one whose URL is none.
    pub fn build(self) -> Result<Client, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::Invalid("a client needs the URL of a node".into()));
        }
        for url in &self.endpoints {
            let parsed = reqwest::Url::parse(url);
            let known = |url: &reqwest::Url| matches!(url.scheme(), "http" | "https");
            if !parsed.is_ok_and(|url| url.has_host() && known(&url)) {
                return Err(Error::Invalid(format!("{url:?} is not http(s)://host:port")));
            }
        }
        let tls =
            client_of(&self.authorities).map_err(|error| Error::Invalid(error.to_string()))?;
        // A machine that is gone must not cost the patience that is meant for an answer.
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            .connect_timeout(self.timeout.min(PAUSE_MAX))
            .build()
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let inner = Inner { http, turn: AtomicUsize::new(0), settings: self };
        Ok(Client { inner: Arc::new(inner), fence: None })
    }
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    /// Whose turn it is: the node that answered last.
    turn: AtomicUsize,
    settings: Builder,
}

/// A client of one cluster. Cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
    fence: Option<Arc<str>>,
}

/// May a request be sent again when nobody knows whether it happened?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It changes nothing.
    Read,
    /// It changes something, and twice is as good as once.
    Repeatable,
    /// A write that may be given a name.
    Write,
    /// A write that may not.
    Unnamed,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// From the slash on, with its query but `timeout`.
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
    pub(super) kind: Kind,
    /// How long the server was asked to wait before it answers.
    pub(super) wait: Duration,
    /// The route takes a `timeout`.
    pub(super) timed: bool,
    /// The route takes a fence.
    pub(super) fenced: bool,
}

impl Call {
    pub(super) fn new(method: Method, path: impl Into<String>, kind: Kind) -> Self {
        let (headers, body, wait) = (Vec::new(), Bytes::new(), Duration::ZERO);
        let fenced = kind != Kind::Read;
        Self { method, path: path.into(), headers, body, kind, wait, timed: true, fenced }
    }

    /// For what is asked of a node about itself or the cluster: no key is written.
    pub(super) fn of_node(method: Method, path: impl Into<String>, kind: Kind) -> Self {
        Self { timed: false, fenced: false, ..Self::new(method, path, kind) }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(given, _)| *given != name);
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn json(self, body: &serde_json::Value) -> Self {
        Self { body: body.to_string().into(), ..self }.header("content-type", "application/json")
    }

    pub(super) fn query(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(name);
        self.path.push('=');
        self.path.push_str(&escape(value.as_ref(), false));
        self
    }

    pub(super) fn number(self, name: &str, value: u64) -> Self {
        self.query(name, value.to_string())
    }
}

/// Percent-encodes everything but what never has a meaning. `slash`: `/` stays as it is.
pub(super) fn escape(bytes: &[u8], slash: bool) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// 64 bits by chance, from the keys that the standard library hashes with.
fn chance() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}

/// A name that nobody else gives.
fn name() -> String {
    format!("{:016x}{:016x}", chance(), chance())
}

/// Between a half of it and all.
fn shortened(pause: Duration) -> Duration {
    let parts = u32::try_from(512 + chance() % 513).unwrap_or(1024);
    pause * parts / 1024
}

/// An answer that was a success.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// All of it, or nothing if it is read as it comes.
    pub(super) body: Bytes,
    pub(super) rest: Option<Body>,
    /// Who answered; see [`Client::leave`].
    pub(super) turn: usize,
}

impl Answer {
    pub(super) fn text(&self, header: &str) -> Option<&str> {
        self.headers.get(header)?.to_str().ok()
    }

    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let body = String::from_utf8_lossy(&self.body);
            let start: String = body.chars().take(200).collect();
            Error::Unexpected(format!("{error}: {start}"))
        })
    }
}

impl Client {
    /// A client of the cluster that these nodes belong to, with the usual settings.
    ///
    /// # Errors
    /// See [`Builder::build`].
    pub fn new<U: Into<String>>(nodes: impl IntoIterator<Item = U>) -> Result<Self, Error> {
        Self::builder(nodes).build()
    }

    /// A client with other settings.
    pub fn builder<U: Into<String>>(nodes: impl IntoIterator<Item = U>) -> Builder {
        let url = |url: U| url.into().trim_end_matches('/').to_owned();
        Builder {
            endpoints: nodes.into_iter().map(url).collect(),
            timeout: Duration::from_secs(5),
            patience: Duration::ZERO,
            deadline: Duration::from_secs(30),
            attempts: u32::MAX,
            pause: Duration::from_millis(50),
            silence: Duration::from_secs(30),
            named: true,
            authorities: Vec::new(),
            token: None,
        }
    }

    /// The same client, all of whose writes happen only while `lock` is held with `token`:
    /// else they are refused with `precondition-failed`, however late they arrive.
    #[must_use]
    pub fn fenced(&self, lock: impl AsRef<[u8]>, token: u64) -> Self {
        let fence = fence(lock.as_ref(), token);
        Self { inner: Arc::clone(&self.inner), fence: Some(fence.into()) }
    }

    /// The node that answered is of no use any more: the next one has its turn, unless somebody
    /// else has seen to that.
    pub(super) fn leave(&self, turn: usize) {
        let next = turn.wrapping_add(1);
        let (was, is) = (Ordering::Relaxed, Ordering::Relaxed);
        // Whoever was faster has left it too.
        let _ = self.inner.turn.compare_exchange(turn, next, was, is);
    }

    /// What the node whose turn it is answers to a `GET`, whatever its status: for pages that
    /// are meant for operators, such as `/metrics`. Asked once.
    ///
    /// # Errors
    /// There was no answer; see [`Error`].
    pub async fn get_text(&self, path: &str) -> Result<(u16, String), Error> {
        let settings = &self.inner.settings;
        let call = self.dressed(Call::of_node(Method::GET, path, Kind::Read));
        let turn = self.inner.turn.load(Ordering::Relaxed);
        let url = &settings.endpoints[turn % settings.endpoints.len()];
        let request = self.inner.http.get(format!("{url}{}", call.path));
        let add = |request: reqwest::RequestBuilder, (name, value): &(&'static str, String)| {
            request.header(*name, value.as_str())
        };
        let request = call.headers.iter().fold(request, add).timeout(settings.timeout);
        let failed = |error: reqwest::Error| {
            let why = format!("{url}: {}", cause(&error));
            if error.is_connect() { Error::Unreachable(why) } else { Error::Broken(why) }
        };
        let response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(failed)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Sends a request until it is answered for good; the answer's body is JSON.
    pub(super) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        self.answer(call).await?.read()
    }

    /// Sends a request until it is answered for good, in full.
    pub(super) async fn answer(&self, call: Call) -> Result<Answer, Error> {
        self.send(call, true).await
    }

    /// Sends a request until a good answer begins, whose body is read as it comes.
    pub(super) async fn stream(&self, call: Call) -> Result<Answer, Error> {
        self.send(call, false).await
    }

    async fn send(&self, call: Call, whole: bool) -> Result<Answer, Error> {
        let settings = &self.inner.settings;
        let call = self.dressed(call);
        let named = call.headers.iter().any(|(name, _)| *name == "idempotency-key");
        let is_safe = named || matches!(call.kind, Kind::Read | Kind::Repeatable);
        let end = Instant::now() + settings.deadline + call.wait;
        let mut pause = settings.pause;
        let (mut unknown, mut attempt) = (false, 0);
        loop {
            attempt += 1;
            let turn = self.inner.turn.load(Ordering::Relaxed);
            let error = match self.once(&call, turn, whole).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            unknown |= error.outcome() == Outcome::Unknown;
            let may_again = error.outcome() == Outcome::NotApplied || is_safe;
            if !error.may_help_to_repeat() || !may_again || attempt >= settings.attempts {
                return Err(still_open(error, unknown));
            }
            self.leave(turn);
            // Nodes that were not asked yet are not made to wait for.
            let others = attempt < u32::try_from(settings.endpoints.len()).unwrap_or(u32::MAX);
            let rest = match &error {
                Error::Unreachable(_) if others => Duration::ZERO,
                Error::Refused(problem) => shortened(pause).max(problem.retry_after),
                Error::Unreachable(_)
                | Error::Broken(_)
                | Error::Unexpected(_)
                | Error::Invalid(_) => shortened(pause),
            };
            if rest > Duration::ZERO {
                pause = (pause * 2).min(PAUSE_MAX);
            }
            if Instant::now() + rest >= end {
                return Err(still_open(error, unknown));
            }
            tokio::time::sleep(rest).await;
        }
    }

    /// With what every request of its kind carries.
    fn dressed(&self, mut call: Call) -> Call {
        let settings = &self.inner.settings;
        let named = call.headers.iter().any(|(name, _)| *name == "idempotency-key");
        if call.kind == Kind::Write && settings.named && !named {
            call = call.header("idempotency-key", name());
        }
        if let Some(Token(token)) = &settings.token {
            call = call.header("authorization", format!("Bearer {token}"));
        }
        if let Some(fence) = self.fence.as_deref().filter(|_| call.fenced) {
            call = call.header("mmapd-fence", fence);
        }
        if call.timed {
            call = call.query("timeout", show_duration(settings.timeout));
        }
        call
    }

    /// One attempt at the node whose turn it is.
    async fn once(&self, call: &Call, turn: usize, whole: bool) -> Result<Answer, Error> {
        let settings = &self.inner.settings;
        let url = &settings.endpoints[turn % settings.endpoints.len()];
        let request = self.inner.http.request(call.method.clone(), format!("{url}{}", call.path));
        let request = call.headers.iter().fold(request, |request, (name, value)| {
            // Names of locks and keys are escaped; what is left is a caller's own.
            request.header(*name, value.as_str())
        });
        let patience = settings.patience.max(settings.timeout + GRACE);
        let mut end = Instant::now() + patience + call.wait + time_for(call.body.len());
        let late = |_| Error::Broken(format!("{url} did not answer in time"));
        let sent = tokio::time::timeout_at(end, request.body(call.body.clone()).send());
        let mut response = sent.await.map_err(late)?.map_err(|error| {
            if error.is_connect() {
                Error::Unreachable(format!("{url}: {}", cause(&error)))
            } else if error.is_builder() {
                Error::Invalid(cause(&error))
            } else {
                Error::Broken(format!("{url}: {}", cause(&error)))
            }
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        let is_good = status.is_success() || status == StatusCode::NOT_MODIFIED;
        if is_good && !whole {
            let rest = Some(Body::new(response, settings.silence));
            return Ok(Answer { status, headers, body: Bytes::new(), rest, turn });
        }
        let mut body = BytesMut::new();
        loop {
            match tokio::time::timeout_at(end, response.chunk()).await.map_err(late)? {
                Ok(Some(bytes)) => {
                    body.extend_from_slice(&bytes);
                    end += time_for(bytes.len());
                }
                Ok(None) => break,
                Err(error) => return Err(Error::Broken(format!("{url}: {}", cause(&error)))),
            }
        }
        if is_good {
            return Ok(Answer { status, headers, body: body.freeze(), rest: None, turn });
        }
        if call.method == Method::HEAD
            && let Some(problem) = Problem::without_words(status.as_u16())
        {
            return Err(Error::Refused(Box::new(problem)));
        }
        Err(refusal(url, status, &headers, &body))
    }
}

/// How much longer an attempt may take for so many bytes.
fn time_for(bytes: usize) -> Duration {
    Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / SLOWEST)
}

/// What is behind an error of the library: its own words name the URL once more.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Reads an answer that is no success.
fn refusal(url: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    if let Ok(mut problem) = serde_json::from_slice::<Problem>(body) {
        let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        // Without a leader another node may have one already; a full node says when to come.
        if status == StatusCode::TOO_MANY_REQUESTS {
            problem.retry_after = Duration::from_secs(seconds.unwrap_or_default());
        }
        return Error::Refused(Box::new(problem));
    }
    let why = format!("{url} answers {status}");
    // So says somebody in between.
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Error::Broken(why)
    } else {
        Error::Unexpected(why)
    }
}

/// What an earlier attempt left open is still open.
fn still_open(error: Error, unknown: bool) -> Error {
    match error {
        Error::Unreachable(why) if unknown => Error::Broken(why),
        Error::Refused(mut problem) if unknown && problem.retryable => {
            problem.outcome = Outcome::Unknown;
            Error::Refused(problem)
        }
        other @ (Error::Unreachable(_)
        | Error::Broken(_)
        | Error::Refused(_)
        | Error::Unexpected(_)
        | Error::Invalid(_)) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped() {
        assert_eq!(escape(b"a/b c\xff", true), "a/b%20c%FF");
        assert_eq!(escape(b"a/b", false), "a%2Fb");
    }

    #[test]
    fn nodes_have_urls() {
        assert!(Client::new(Vec::<String>::new()).is_err());
        assert!(Client::new(["127.0.0.1:3001"]).is_err());
        assert!(Client::new(["http://127.0.0.1:3001/"]).is_ok());
    }

    #[test]
    fn pauses_are_shortened_and_never_to_nothing() {
        let pause = Duration::from_secs(1);
        let all: Vec<Duration> = (0..64).map(|_| shortened(pause)).collect();
        assert!(all.iter().all(|it| (pause / 2..=pause).contains(it)));
        assert!(all.iter().any(|it| *it != all[0]));
    }

    #[test]
    fn an_unknown_outcome_stays_unknown() {
        let full = r#"{"code":"overloaded","status":429,"outcome":"not_applied","retryable":true}"#;
        let headers = HeaderMap::new();
        let read = || refusal("http://x", StatusCode::TOO_MANY_REQUESTS, &headers, full.as_bytes());
        assert_eq!(still_open(read(), false).outcome(), Outcome::NotApplied);
        assert_eq!(still_open(read(), true).outcome(), Outcome::Unknown);
        let gone = || Error::Unreachable("gone".into());
        assert_eq!(still_open(gone(), false).outcome(), Outcome::NotApplied);
        assert_eq!(still_open(gone(), true).outcome(), Outcome::Unknown);
        // Said in the name of the first attempt: the name makes them one.
        let failed = r#"{"code":"precondition-failed","status":412,"outcome":"not_applied"}"#;
        let read = refusal(
            "http://x",
            StatusCode::PRECONDITION_FAILED,
            &HeaderMap::new(),
            failed.as_bytes(),
        );
        assert_eq!(still_open(read, true).outcome(), Outcome::NotApplied);
    }

    #[test]
    fn what_somebody_in_between_says_is_tried_again() {
        let said = |status| refusal("http://x", status, &HeaderMap::new(), b"<html>");
        assert!(matches!(said(StatusCode::BAD_GATEWAY), Error::Broken(_)));
        assert!(matches!(said(StatusCode::NOT_FOUND), Error::Unexpected(_)));
    }
}
