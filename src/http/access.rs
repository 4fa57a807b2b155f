//! What a request wants to do to which keys: the one place that knows. Every route says it
//! here before it does anything, and once there are users, here is decided who may.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::time::sleep;

use super::Edge;
use super::error::ApiError;
use crate::auth::{Caller, Denied};
pub(super) use crate::auth::{Need, Verb};
use crate::logs::Trace;
use crate::machine::{Command, Conditions, Op, Request, Span, Txn, Write};
use crate::node::wall_ms;

/// How often a token that will be over is compared with the clock.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// All that a request to the state machine needs. A lease that is ended takes keys along that
/// nobody names: they are asked about where it is ended, see `may_end`.
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
    /// May the request do all this?
    ///
    /// # Errors
    /// `Unauthenticated`, `Forbidden`.
    pub(super) fn allow(&self, needs: &[Need]) -> Result<(), ApiError> {
        debug_assert!(!needs.is_empty(), "every route needs something");
        #[cfg(test)]
        if self.denies {
            return Err(ApiError::Conflict(DENIED.into()));
        }
        let allowed = self.judge(needs);
        self.audit(needs, allowed.is_ok());
        allowed
    }

    /// May the request do this, as a part of what is asked about as a whole later? So it is
    /// refused before its body is read and before it is told where the leader is. Only a refusal
    /// is told to the audit log now.
    ///
    /// # Errors
    /// `Unauthenticated`, `Forbidden`.
    pub(super) fn may(&self, needs: &[Need]) -> Result<(), ApiError> {
        self.judge(needs).inspect_err(|_| self.audit(needs, false))
    }

    /// The same about one write of many.
    ///
    /// # Errors
    /// `Unauthenticated`, `Forbidden`.
    pub(super) fn may_write(&self, write: &Write) -> Result<(), ApiError> {
        self.may(&needs(&Command::Batch(vec![write.clone()]).into()))
    }

    /// May the request do one of these to some key? Else its body need not be read.
    ///
    /// # Errors
    /// `Unauthenticated`, `Forbidden`.
    pub(super) fn may_some(&self, verbs: &[Verb]) -> Result<(), ApiError> {
        if self.config.access.now().may_some(&self.origin.caller, verbs) {
            return Ok(());
        }
        let needs: Vec<Need> = verbs.iter().copied().map(Need::all).collect();
        self.may(&needs)
    }

    /// May the request read this key? Nobody is told: it is about what an answer shows.
    pub(super) fn sees(&self, key: &[u8]) -> bool {
        self.judge(&[Need::new(Verb::Read, Span::key(key))]).is_ok()
    }

    /// Comes back when who sent the request may not do this any more, because the credentials are
    /// over or not known, or allow less: for what lasts longer than a request.
    pub(super) fn until_denied(&self, needs: Vec<Need>) -> impl Future<Output = ()> + Send + use<> {
        let (access, caller) = (self.config.access.clone(), self.origin.caller.clone());
        async move {
            let mut changes = access.changes();
            loop {
                let directory = Arc::clone(&changes.borrow_and_update());
                let now_ms = wall_ms();
                let known = directory.again(&caller, now_ms);
                if known.and_then(|caller| directory.allow(&caller, &needs)).is_err() {
                    return;
                }
                // The clock of the system may be set meanwhile, so not all of it at once.
                let left = directory.end_of(&caller).map(|end| end.saturating_sub(now_ms).max(1));
                let over = async {
                    match left {
                        Some(ms) => sleep(Duration::from_millis(ms).min(LOOK_AGAIN)).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = over => {}
                }
            }
        }
    }

    pub(super) fn judge(&self, needs: &[Need]) -> Result<(), ApiError> {
        let directory = self.config.access.now();
        directory.allow(&self.origin.caller, needs).map_err(|denied| match denied {
            Denied::Unauthenticated => ApiError::Unauthenticated,
            Denied::Forbidden => {
                let covers =
                    |need: &&Need| directory.allow(&self.origin.caller, &[(*need).clone()]);
                let lacking = needs.iter().find(|need| covers(need).is_err());
                ApiError::Forbidden(lacking.map_or("", |need| need.verb.as_str()))
            }
        })
    }
}

impl Edge {
    /// The id of the request, for who writes problems into an answer that has begun.
    pub(super) fn request_id(&self) -> &str {
        self.origin.trace.as_deref().map_or("", Trace::request_id)
    }

    /// Tells who asked for what. Reads are told of where that is wanted, refusals always.
    fn audit(&self, needs: &[Need], allowed: bool) {
        if !tracing::enabled!(target: AUDIT, tracing::Level::INFO) {
            return;
        }
        let reads = self.config.log.audit_reads;
        for need in needs {
            let told = match need.verb {
                Verb::Write | Verb::Lease | Verb::Lock | Verb::Operate => true,
                Verb::Read => reads,
                Verb::Observe | Verb::Peer | Verb::Probe => false,
            };
            if allowed && !told {
                continue;
            }
            let Span { start, end } = &need.span;
            let end = end.as_ref().map(|end| end.escape_ascii().to_string());
            let remote = self.origin.remote.map(|remote| remote.to_string());
            let trace = self.origin.trace.as_deref();
            tracing::info!(
                target: AUDIT,
                request_id = trace.map_or("", Trace::request_id),
                trace_id = trace.map(|trace| trace.trace_id().to_string()),
                caller = self.origin.caller.name(),
                remote,
                verb = need.verb.as_str(),
                start = %start.escape_ascii(),
                end,
                allowed,
            );
        }
    }
}

/// The target of the audit log's lines.
pub(crate) const AUDIT: &str = "mmapd::audit";

/// Where a request comes from, and on whose behalf.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    pub(super) caller: Caller,
    /// The request; there is none behind what the edge does by itself.
    trace: Option<Arc<Trace>>,
    remote: Option<SocketAddr>,
}

/// The other end of the connection of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote {
    pub(super) address: SocketAddr,
    /// Did it show the certificate of a node?
    pub(super) is_node: bool,
}

/// Who sent a request, and its place in its trace.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) caller: Caller,
    pub(super) trace: Arc<Trace>,
}

/// The edge, on behalf of who sent the request.
impl FromRequestParts<Self> for Edge {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, edge: &Self) -> Result<Self, ApiError> {
        let known = &parts.extensions;
        let asker = known.get::<Asker>();
        let trace = asker.map(|asker| Arc::clone(&asker.trace));
        let handle = trace.clone().map(|trace| edge.handle.on_behalf_of(trace));
        let origin = Origin {
            caller: asker.map(|asker| asker.caller.clone()).unwrap_or_default(),
            trace,
            remote: known.get().map(|remote: &Remote| remote.address),
        };
        let handle = handle.unwrap_or_else(|| edge.handle.clone());
        Ok(Self { origin: Arc::new(origin), handle, ..edge.clone() })
    }
}

#[cfg(test)]
mod tests {
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
            ("put", "/v1/admin/log") => body(r#"{"filter":"info"}"#),
            ("delete", "/v1/keys") => vec![(bare + "?prefix=a", "")],
            ("delete", "/v1/locks/{name}") => vec![(bare + "?token=1", "")],
            (_, _) => vec![(bare, "")],
        }
    }

    async fn is_denied(router: &Router, method: &str, target: &str, body: &'static str) {
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
        let mut request = HttpRequest::builder().method(&method).uri(target).header("host", "x");
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
            for page in ["/docs/", "/docs/swagger-ui.css", "/ui/"] {
                is_denied(&router, "get", page, "").await;
            }
            drop(router);
            node.stop().await.expect("an orderly end");
        });
    }
}
