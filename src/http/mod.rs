//! EDGE: the REST service. Parses, calls the node, answers; keeps no state of its own.
//!
//! Every response carries the request's id, those of the data API also who answered and
//! as of which term and revision. Every refusal is a problem document (RFC 9457), written
//! by the outermost layer from what `error.rs` decided.
//!
//! Who may do what is asked in one place, `access.rs`, by every route.

mod access;
mod admin;
mod backup;
mod batch;
mod batch_line;
mod body;
mod cluster;
mod describe;
mod envelope;
mod erase;
mod error;
mod extract;
mod framing;
mod gate;
mod handover;
mod held;
mod history;
mod keys;
mod layer;
mod leases;
mod legacy;
mod lines;
mod list;
mod listing;
mod locks;
mod logs;
mod members;
mod ops;
mod pace;
mod places;
mod poll;
mod propose;
mod pull;
mod raft;
mod range;
mod read;
mod serve;
mod stream;
mod told;
mod txn;
mod txn_body;
mod ui;
mod value;
mod wait;
mod watch;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler as _;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, patch, post};
use bytes::Bytes;
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config as UiConfig, SwaggerUi};

pub use serve::serve;

use crate::config::Config;
use crate::node::Handle;
pub(crate) use access::AUDIT;
use access::{Need, Origin, Verb};
use error::{ApiError, Problem};
use extract::Query;
use held::Held;
use layer::{Around, Routes, unmatched};

/// What the pages of `/docs` may load: their own files, and images and styles within them.
const DOCS_POLICY: &str = "default-src 'self'; img-src 'self' data:; \
    style-src 'self' 'unsafe-inline'; frame-ancestors 'none'";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "mmapd",
        description = "A distributed, strongly consistent key-value store. Any node answers any request; \
            reads and writes are linearizable unless a request asks for less; every failure says whether \
            the write happened.",
    ),
    security(()),
    servers((url = "/", description = "this node")),
    tags(
        (name = "keys", description = "Keys and values"),
        (name = "transactions", description = "Several comparisons and steps as one"),
        (name = "leases", description = "What hangs on a lease goes with it"),
        (name = "locks", description = "Fair locks with tokens that every write can name"),
        (name = "cluster", description = "Nodes and who leads them"),
        (name = "operations", description = "Probes, metrics, this description"),
        (name = "legacy", description = "Routes of the experiment that mmapd grew out of"),
        (name = "raft (internal)", description = "What nodes say to each other; not for clients"),
    ),
    paths(
        keys::put, read::get, read::head, keys::patch, keys::delete, list::list, history::history,
        erase::erase, batch::batch, watch::watch,
        txn::transact,
        leases::make, leases::list, leases::look, leases::end, leases::keep_one, leases::keep_many,
        locks::take, locks::look, locks::release, locks::list,
        cluster::status, cluster::cluster, cluster::leader, handover::hand_over,
        members::add, members::replace, members::set, members::remove, admin::compact, admin::scrub, logs::look, logs::set,
        backup::backup,
        ops::livez, ops::readyz, ops::scrape, ops::description, ui::page, ui::file,
        legacy::set, legacy::get, legacy::status,
        raft::append, raft::vote, raft::snapshot, raft::propose, raft::handover,
    ),
    components(schemas(
        keys::Envelope, keys::RawValue, Problem, watch::WatchEvent, watch::WatchProgress, watch::WatchDraining,
        watch::WatchLagged, watch::WatchDenied,
    )),
)]
struct Description;

/// The OpenAPI document, equal to the committed `openapi/mmapd.json`.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    describe::complete(Description::openapi())
}

/// Commands of followers are counted, to wait for their end; what bounds them is the inbox.
const FORWARDED_PERMITS: u32 = 1 << 24;

/// What every handler has. Each layer and each handler gets one of its own, so it is cheap to clone.
#[derive(Clone, Debug)]
struct Edge {
    shared: Arc<Shared>,
    handle: Handle,
    /// On whose behalf.
    origin: Arc<Origin>,
    /// Nothing is allowed: shows which routes ask.
    #[cfg(test)]
    denies: bool,
}

/// What is the same for all requests.
#[derive(Debug)]
struct Shared {
    config: Config,
    /// One permit for each request of the data API that may be in flight.
    in_flight: Arc<Semaphore>,
    /// One permit for each forwarded command and each wait for a lock; more than the inbox of
    /// the node takes.
    forwarded: Arc<Semaphore>,
    /// Bytes of bodies in flight.
    held: Arc<Held>,
    /// The OpenAPI document, rendered once.
    description: Bytes,
}

impl Deref for Edge {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Edge {
    /// # Panics
    /// When the description cannot be rendered, which a test would show.
    fn new(handle: Handle, config: Config) -> Self {
        let permits = usize::try_from(config.limits.in_flight).unwrap_or(usize::MAX);
        let description = openapi().to_pretty_json().expect("the description is plain data");
        let shared = Shared {
            held: Arc::new(Held::new(config.limits.in_flight_bytes)),
            config,
            in_flight: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            forwarded: Arc::new(Semaphore::new(FORWARDED_PERMITS as usize)),
            description: description.into(),
        };
        Self {
            shared: Arc::new(shared),
            handle,
            origin: Arc::default(),
            #[cfg(test)]
            denies: false,
        }
    }

    /// Waits until no request of the data API and no command of a follower is in flight, and
    /// lets no other begin.
    async fn quiet(&self) {
        // Never closed, so the permits always come.
        if let Ok(permits) = self.in_flight.acquire_many(self.config.limits.in_flight).await {
            permits.forget();
        }
        if let Ok(permits) = self.forwarded.acquire_many(FORWARDED_PERMITS).await {
            permits.forget();
        }
    }

    fn timeout(&self, query: &Query) -> Result<Duration, ApiError> {
        query.timeout(self.config.limits.request_timeout, self.config.limits.max_timeout)
    }

    /// Where to send a client that asked to be redirected; `None`: answer it here.
    fn redirect(&self, query: &Query, uri: &Uri) -> Result<Option<Response>, ApiError> {
        let status = self.handle.status();
        if !query.flag("redirect")? || status.leader == Some(self.handle.id()) {
            return Ok(None);
        }
        let leader = self
            .handle
            .leader_url()
            .ok_or(ApiError::NoLeader("there is no leader to redirect to"))?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let location = format!("{}{target}", leader.trim_end_matches('/'));
        Ok(Some((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()))
    }
}

/// All routes.
fn router(edge: Edge) -> Router {
    let one_key =
        || get(read::get).head(read::head).put(keys::put).patch(keys::patch).delete(keys::delete);
    let routes = Routes(&edge);
    let admitted = |route, methods| routes.admitted(route, methods);
    let measured = |route, methods| routes.measured(route, methods);
    let all_but_post = |route, methods| routes.admitted_but_post(route, methods);
    let data = Router::new()
        .route("/v1/keys/{*key}", admitted("/v1/keys/{key}", one_key()))
        .route("/v1/keys/", admitted("/v1/keys/{key}", no_key()))
        .route("/v1/keys", admitted("/v1/keys", get(list::list).delete(erase::erase)))
        .route("/v1/batch", admitted("/v1/batch", post(batch::batch)))
        .route("/v1/watch", admitted("/v1/watch", get(watch::watch)))
        .route("/v1/history/{*key}", admitted("/v1/history/{key}", get(history::history)))
        .route("/v1/history/", admitted("/v1/history/{key}", get(keys::no_key)))
        .route("/set/{*key}", admitted("/set/{key}", post(legacy::set)))
        .route("/get/{*key}", admitted("/get/{key}", get(legacy::get)))
        .route("/v1/txn", admitted("/v1/txn", post(txn::transact)))
        .route("/v1/leases", admitted("/v1/leases", get(leases::list).post(leases::make)))
        .route("/v1/leases/keepalive", admitted("/v1/leases/keepalive", post(leases::keep_many)))
        .route(
            "/v1/leases/{id}",
            admitted("/v1/leases/{id}", get(leases::look).delete(leases::end)),
        )
        .route(
            "/v1/leases/{id}/keepalive",
            admitted("/v1/leases/{id}/keepalive", post(leases::keep_one)),
        )
        .route("/v1/locks", admitted("/v1/locks", get(locks::list)))
        .route("/v1/locks/", admitted("/v1/locks/{name}", no_name()))
        .route(
            "/v1/locks/{*name}",
            // Who takes a lock is admitted until it waits.
            all_but_post(
                "/v1/locks/{name}",
                get(locks::look).delete(locks::release).post(locks::take),
            ),
        );
    let rest = Router::new()
        .route("/v1/status", measured("/v1/status", get(cluster::status)))
        .route("/v1/cluster", measured("/v1/cluster", get(cluster::cluster)))
        .route(
            "/v1/cluster/leader",
            measured("/v1/cluster/leader", get(cluster::leader).post(handover::hand_over)),
        )
        .route(
            "/v1/cluster/members",
            measured("/v1/cluster/members", post(members::add).put(members::replace)),
        )
        .route(
            "/v1/cluster/members/{id}",
            measured("/v1/cluster/members/{id}", patch(members::set).delete(members::remove)),
        )
        .route("/v1/backup", measured("/v1/backup", get(backup::backup)))
        .route("/openapi.json", measured("/openapi.json", get(ops::description)))
        .route("/ui", measured("/ui", get(ui::page)))
        .route("/ui/{file}", measured("/ui/{file}", get(ui::file)))
        .route("/status", measured("/status", get(legacy::status)));
    data.merge(rest)
        .merge(probe_routes(&routes))
        .merge(peer_routes(&routes))
        .merge(admin_routes(&routes))
        .merge(ui::slash(&routes))
        .merge(routes.foreign(docs(&edge)))
        .fallback(no_route.layer(Around::any(&edge)))
        .method_not_allowed_fallback(no_method.layer(Around::any(&edge)))
        .with_state(edge)
}

fn admin_routes(routes: &Routes<'_>) -> Router<Edge> {
    let measured = |route, methods| routes.measured(route, methods);
    Router::new()
        .route("/v1/admin/scrub", measured("/v1/admin/scrub", post(admin::scrub)))
        .route("/v1/admin/compact", measured("/v1/admin/compact", post(admin::compact)))
        .route("/v1/admin/log", measured("/v1/admin/log", get(logs::look).put(logs::set)))
}

fn peer_routes(routes: &Routes<'_>) -> Router<Edge> {
    let measured = |route, methods| routes.measured(route, methods);
    Router::new()
        .route("/v1/raft/append", measured("/v1/raft/append", post(raft::append)))
        .route("/v1/raft/vote", measured("/v1/raft/vote", post(raft::vote)))
        .route("/v1/raft/snapshot", measured("/v1/raft/snapshot", post(raft::snapshot)))
        .route("/v1/raft/propose", measured("/v1/raft/propose", post(raft::propose)))
        .route("/v1/raft/handover", measured("/v1/raft/handover", post(raft::handover)))
}

fn probe_routes(routes: &Routes<'_>) -> Router<Edge> {
    let measured = |route, methods| routes.measured(route, methods);
    Router::new()
        .route("/livez", measured("/livez", get(ops::livez)))
        .route("/readyz", measured("/readyz", get(ops::readyz)))
        .route("/metrics", measured("/metrics", get(ops::scrape)))
}

/// What is answered on the connections beyond the limit: how the node is, what nodes say to each
/// other, and to everybody else that there are too many. Each of them is used once.
fn few(edge: Edge) -> Router {
    let too_many = async |method: Method| unmatched(&method, ApiError::Overloaded);
    probe_routes(&Routes(&edge))
        .merge(peer_routes(&Routes(&edge)))
        .fallback(too_many.layer(Around::any(&edge)))
        .layer(map_response(async |mut response: Response| {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            response
        }))
        .with_state(edge)
}

/// The pages of `/docs`. They ask nobody outside: no validator, and every file comes from
/// this binary. A new binary may have others, so they are not kept without asking.
fn docs(edge: &Edge) -> Router<Edge> {
    let config = UiConfig::new(["/openapi.json"]).validator_url("none");
    let ui = SwaggerUi::new("/docs").config(config);
    let asked = from_fn_with_state(edge.clone(), public);
    Router::<Edge>::from(ui).layer(asked).layer(map_response(async |mut response: Response| {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCS_POLICY));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }))
}

/// Before what has no handler of ours, and is the same for everybody.
async fn public(edge: Edge, request: Request, next: Next) -> Response {
    match edge.allow(&[Need::all(Verb::Probe)]) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn no_key() -> MethodRouter<Edge> {
    get(keys::no_key).put(keys::no_key).patch(keys::no_key).delete(keys::no_key)
}

fn no_name() -> MethodRouter<Edge> {
    get(locks::no_name).post(locks::no_name).delete(locks::no_name)
}

async fn no_route(method: Method, uri: Uri) -> Response {
    unmatched(&method, ApiError::NotFound(format!("there is no route {}", uri.path())))
}

async fn no_method(method: Method) -> Response {
    unmatched(&method, ApiError::MethodNotAllowed)
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}
