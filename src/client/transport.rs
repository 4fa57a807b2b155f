//! Sending requests: which node, how often, and what a failure means.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::error::{Error, Outcome, Problem};

/// How a [`Client`] is made.
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    timeout: Duration,
    attempts: u32,
    pause: Duration,
    named: bool,
}

impl Builder {
    /// How long one attempt may take, on the server's side too; 5 s unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How often a request is sent at most; 8 unless set.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long the second attempt waits; each further one twice as long, up to 2 s. 50 ms
    /// unless set.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
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
            if !parsed.is_ok_and(|url| url.has_host() && url.scheme() == "http") {
                return Err(Error::Invalid(format!("{url:?} is not http://host:port")));
            }
        }
        let http = reqwest::Client::builder().no_proxy().build();
        let http = http.map_err(|error| Error::Invalid(error.to_string()))?;
        let inner = Inner { http, next: AtomicUsize::new(0), settings: self };
        Ok(Client { inner: Arc::new(inner) })
    }
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    /// The node that answered last.
    next: AtomicUsize,
    settings: Builder,
}

/// A client of one cluster. Cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

/// May a request be sent again when nobody knows whether it happened?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It changes nothing, or twice is as good as once.
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
}

impl Call {
    pub(super) fn new(method: Method, path: impl Into<String>, kind: Kind) -> Self {
        let (headers, body, wait) = (Vec::new(), Bytes::new(), Duration::ZERO);
        Self { method, path: path.into(), headers, body, kind, wait }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn json(self, body: &serde_json::Value) -> Self {
        Self { body: body.to_string().into(), ..self }.header("content-type", "application/json")
    }

    pub(super) fn query(mut self, name: &str, value: &[u8]) -> Self {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(name);
        self.path.push('=');
        self.path.push_str(&escape(value, false));
        self
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

/// A name that nobody else gives: 128 bits of the standard library's hash keys.
fn name() -> String {
    use std::hash::BuildHasher;
    let chance = || std::hash::RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", chance(), chance())
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
            attempts: 8,
            pause: Duration::from_millis(50),
            named: true,
        }
    }

    /// Sends a request until it is answered for good; the answer's body is JSON.
    pub(super) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let response = self.send(call).await?;
        let body = response.bytes().await.map_err(|error| Error::Broken(error.to_string()))?;
        serde_json::from_slice(&body).map_err(|error| Error::Unexpected(error.to_string()))
    }

    /// Sends a request until it is answered for good.
    pub(super) async fn send(&self, mut call: Call) -> Result<Response, Error> {
        let settings = &self.inner.settings;
        let named = call.headers.iter().any(|(name, _)| *name == "idempotency-key");
        if call.kind == Kind::Write && settings.named && !named {
            call.headers.push(("idempotency-key", name()));
        }
        let is_safe = call.kind == Kind::Repeatable
            || call.headers.iter().any(|(name, _)| *name == "idempotency-key");
        let mut pause = settings.pause;
        let mut unknown = false;
        for attempt in 1.. {
            let error = match self.once(&call, settings.timeout).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            unknown |= error.outcome() == Outcome::Unknown;
            let may_help = match &error {
                Error::Refused(problem) => problem.retryable || problem.outcome == Outcome::Unknown,
                Error::Unreachable(_) | Error::Broken(_) => true,
                Error::Unexpected(_) | Error::Invalid(_) => false,
            };
            let may_again = error.outcome() == Outcome::NotApplied || is_safe;
            if !may_help || !may_again || attempt >= settings.attempts {
                // What an earlier attempt left open is still open.
                return Err(match error {
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
                });
            }
            self.inner.next.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
        unreachable!("the last attempt returns")
    }

    /// One attempt at the node whose turn it is.
    async fn once(&self, call: &Call, timeout: Duration) -> Result<Response, Error> {
        let endpoints = &self.inner.settings.endpoints;
        let turn = self.inner.next.load(Ordering::Relaxed) % endpoints.len();
        let url = endpoints.get(turn).map_or("", String::as_str);
        let mut request =
            self.inner.http.request(call.method.clone(), format!("{url}{}", call.path));
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        // The server gives up before we do, and then says what became of it.
        let patience = timeout + call.wait + Duration::from_secs(1);
        let sent = request.body(call.body.clone()).send();
        let response = match tokio::time::timeout(patience, sent).await {
            Err(_) => return Err(Error::Broken(format!("{url} did not answer in time"))),
            Ok(Err(error)) if error.is_connect() => {
                return Err(Error::Unreachable(format!("{url}: {error}")));
            }
            Ok(Err(error)) if error.is_builder() => return Err(Error::Invalid(error.to_string())),
            Ok(Err(error)) => return Err(Error::Broken(format!("{url}: {error}"))),
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(Error::Refused(Box::new(problem))),
            Err(_) => Err(Error::Unexpected(format!("{url} answers {status}"))),
        }
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
}
