//! What a request wants to do to which keys: the one place that knows. Every route says it
//! here before it does anything, and once there are users, here is decided who may.

use super::Edge;
use super::error::ApiError;
use crate::machine::{Command, Conditions, Op, Request, Span, Txn};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// Values, versions and the past are looked at.
    Read,
    /// Keys are written or removed.
    Write,
    /// Leases are made, kept alive, ended or looked at.
    Lease,
    /// Locks are taken, given back or looked at.
    Lock,
    /// The cluster and its nodes are looked at.
    Observe,
    /// The cluster and its nodes are changed.
    Operate,
    /// A node of the cluster says something to another.
    Peer,
}

/// What is done to which keys. Where there are no keys the span is of no meaning, but for
/// locks: there it is of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) verb: Verb,
    pub(super) span: Span,
}

impl Need {
    pub(super) fn new(verb: Verb, span: Span) -> Self {
        Self { verb, span }
    }

    /// Of everything.
    pub(super) fn all(verb: Verb) -> Self {
        Self { verb, span: Span::prefix(&[]) }
    }
}

/// All that a request to the state machine needs. A lease that is ended takes keys along that
/// nobody names: whoever may do that to leases may do it.
pub(super) fn needs(request: &Request) -> Vec<Need> {
    let key = |verb, key: &[u8]| Need::new(verb, Span::key(key));
    let mut needs = match &request.command {
        Command::Put { key: name, conditions, prev, .. }
        | Command::Delete { key: name, conditions, prev } => {
            let mut needs = vec![key(Verb::Write, name)];
            needs.extend((*prev || looks(conditions)).then(|| key(Verb::Read, name)));
            needs
        }
        Command::DeleteRange { span } => vec![Need::new(Verb::Write, span.clone())],
        Command::Touch { key: name, conditions, .. } => {
            let mut needs = vec![key(Verb::Write, name)];
            needs.extend(looks(conditions).then(|| key(Verb::Read, name)));
            needs
        }
        Command::Grant { .. } | Command::KeepAlive { .. } | Command::Revoke { .. } => {
            vec![Need::all(Verb::Lease)]
        }
        Command::Lock { name, .. } | Command::Unlock { name, .. } => vec![key(Verb::Lock, name)],
        Command::Txn(txn) => of_txn(txn),
        Command::Batch(writes) => {
            let read = writes.iter().filter(|write| looks(&write.conditions));
            let mut needs: Vec<Need> = read.map(|write| key(Verb::Read, &write.key)).collect();
            needs.extend(writes.iter().map(|write| key(Verb::Write, &write.key)));
            needs
        }
        Command::Tidy(_) => vec![Need::all(Verb::Operate)],
    };
    needs.extend(request.fence.as_ref().map(|fence| key(Verb::Lock, &fence.name)));
    needs
}

/// A condition that does not hold tells the key's revision.
fn looks(conditions: &Conditions) -> bool {
    conditions.if_match.is_some() || conditions.if_none_match.is_some()
}

/// Both branches count: which one it will be is not known yet.
fn of_txn(txn: &Txn) -> Vec<Need> {
    let compared = txn.compares.iter().map(|it| Need::new(Verb::Read, Span::key(&it.key)));
    let mut needs: Vec<Need> = compared.collect();
    for op in txn.then.iter().chain(&txn.otherwise) {
        match op {
            Op::Put { key, prev, .. } => {
                needs.push(Need::new(Verb::Write, Span::key(key)));
                needs.extend(prev.then(|| Need::new(Verb::Read, Span::key(key))));
            }
            Op::Delete { span, prev } => {
                needs.push(Need::new(Verb::Write, span.clone()));
                needs.extend(prev.then(|| Need::new(Verb::Read, span.clone())));
            }
            Op::Get { span, .. } => needs.push(Need::new(Verb::Read, span.clone())),
            Op::Grant { .. } => needs.push(Need::all(Verb::Lease)),
        }
    }
    needs
}

/// What an edge that denies everything says.
#[cfg(test)]
const DENIED: &str = "this is denied";

impl Edge {
    /// May the request do all this? For now there are no users, and everybody may.
    ///
    /// # Errors
    /// None yet.
    #[cfg_attr(
        not(test),
        expect(
            clippy::unused_self,
            clippy::unnecessary_wraps,
            reason = "credentials come in here"
        )
    )]
    pub(super) fn allow(&self, needs: &[Need]) -> Result<(), ApiError> {
        debug_assert!(!needs.is_empty(), "every route needs something");
        #[cfg(test)]
        if self.denies {
            return Err(ApiError::Conflict(DENIED.into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::body::Body;
    use axum::http::{Method, Request as HttpRequest};
    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::config::Config;
    use crate::http::{openapi, router};
    use crate::machine::{Compare, Content, Fence, Life, Subject, Tags, Write};
    use crate::metrics;
    use crate::node::{Consistency, Node};

    #[test]
    fn a_request_needs_all_it_touches() {
        let name = Bytes::from_static(b"a");
        let of = |verb| Need::new(verb, Span::key(b"a"));
        let delete = |conditions, prev| Command::Delete { key: name.clone(), conditions, prev };
        let plain = delete(Conditions::default(), false);
        assert_eq!(needs(&plain.into()), [of(Verb::Write)]);
        let tags = Conditions { if_match: Some(Tags::Any), if_none_match: None };
        assert_eq!(needs(&delete(tags, false).into()), [of(Verb::Write), of(Verb::Read)]);
        let fence = Some(Fence { name: name.clone(), token: 1 });
        let command = delete(Conditions::default(), true);
        let fenced = Request { once: None, fence, command };
        assert_eq!(needs(&fenced), [of(Verb::Write), of(Verb::Read), of(Verb::Lock)]);
    }

    #[test]
    fn a_batch_needs_what_its_writes_need() {
        let write = |key: &'static [u8], conditions| Write {
            key: Bytes::from_static(key),
            put: None,
            conditions,
        };
        let tags = Conditions { if_match: Some(Tags::Any), if_none_match: None };
        let batch = Command::Batch(vec![write(b"a", Conditions::default()), write(b"b", tags)]);
        let of = |verb, key| Need::new(verb, Span::key(key));
        let want = [of(Verb::Read, b"b"), of(Verb::Write, b"a"), of(Verb::Write, b"b")];
        assert_eq!(needs(&batch.into()), want);
    }

    #[test]
    fn a_transaction_needs_both_its_branches() {
        let name = Bytes::from_static(b"a");
        let content =
            Content { value: Bytes::new(), content_type: String::new(), life: Life::NewLease };
        let tmp = Span::prefix(b"tmp/");
        let txn = Txn {
            compares: vec![Compare { key: name.clone(), what: Subject::Exists(true) }],
            then: vec![Op::Grant { ttl_ms: 1 }, Op::Put { key: name, content, prev: false }],
            otherwise: vec![
                Op::Delete { span: tmp.clone(), prev: true },
                Op::Get { span: Span::prefix(b""), limit: 1 },
            ],
        };
        let want = [
            Need::new(Verb::Read, Span::key(b"a")),
            Need::all(Verb::Lease),
            Need::new(Verb::Write, Span::key(b"a")),
            Need::new(Verb::Write, tmp.clone()),
            Need::new(Verb::Read, tmp),
            Need::all(Verb::Read),
        ];
        assert_eq!(needs(&Command::Txn(txn).into()), want);
    }

    /// Requests that get as far as to be asked about, where a bare one does not.
    fn samples(method: &str, path: &str) -> Vec<(String, &'static str)> {
        let bare = path.replace("{key}", "a").replace("{name}", "a").replace("{id}", "1");
        let body = |body| vec![(bare.clone(), body)];
        match (method, path) {
            ("post", "/v1/txn") => vec![
                (bare.clone(), r#"{"then":[{"put":{"key":"a","value":"1"}}]}"#),
                (bare.clone(), r#"{"then":[{"get":{"key":"a"}}]}"#),
            ],
            ("post", "/v1/batch") => body(r#"{"put":{"key":"a","value":"1"}}"#),
            ("patch", "/v1/keys/{key}") => body(r#"{"ttl":null}"#),
            ("post", "/v1/leases" | "/v1/locks/{name}") => body(r#"{"ttl":"30s"}"#),
            ("post", "/v1/leases/keepalive") => body(r#"{"ids":[1]}"#),
            ("post", "/set/{key}") => body("value=1"),
            ("delete", "/v1/keys") => vec![(bare + "?prefix=a", "")],
            ("delete", "/v1/locks/{name}") => vec![(bare + "?token=1", "")],
            (_, _) => vec![(bare, "")],
        }
    }

    async fn is_denied(router: &Router, method: &str, target: &str, body: &'static str) {
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
        let mut request = HttpRequest::builder().method(&method).uri(target);
        if method == Method::PATCH {
            request = request.header("content-type", "application/merge-patch+json");
        }
        let request = request.body(Body::from(body)).expect("a request");
        let response = router.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&body);
        let denied = if method == Method::HEAD { status == 409 } else { text.contains(DENIED) };
        assert!(denied, "{method} {target} is not asked about: {status} {text}");
    }

    /// A new route that forgets to ask is found here; one that asks only once its body is read
    /// needs a sample.
    #[test]
    fn every_route_asks_whether_it_may() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.storage.db = dir.path().join("db");
        config.storage.log = dir.path().join("log");
        config.storage.map_max = 1 << 30;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let node = Node::start(&config, metrics::install()).expect("a node");
            let handle = node.handle();
            let patience = Duration::from_secs(30);
            handle.view(Consistency::Linearizable, patience).await.expect("it leads");
            let mut edge = Edge::new(handle, config);
            edge.denies = true;
            let router = router(edge);
            let description = serde_json::to_value(openapi()).expect("plain data");
            for (path, methods) in description["paths"].as_object().expect("paths") {
                for method in methods.as_object().expect("methods").keys() {
                    for (target, body) in samples(method, path) {
                        is_denied(&router, method, &target, body).await;
                    }
                }
            }
            for page in ["/docs/", "/docs/swagger-ui.css"] {
                is_denied(&router, "get", page, "").await;
            }
            drop(router);
            node.stop().await.expect("an orderly end");
        });
    }
}
