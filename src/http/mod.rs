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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, patch, post};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tracing::Instrument;
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config as UiConfig, SwaggerUi};

pub use serve::serve;

use crate::auth::Caller;
use crate::config::Config;
use crate::metrics::{self, HttpSeries};
use crate::node::Handle;
pub(crate) use access::AUDIT;
use access::{Need, Origin, Verb};
use error::{ApiError, Problem};
use extract::Query;
use held::Held;
use poll::{Place, Waited};
use told::Told;

/// Longest request id taken over from a client.
const REQUEST_ID_MAX: usize = 128;
/// What the pages of `/docs` may load: their own files, and images and styles within them.
const DOCS_POLICY: &str = "default-src 'self'; img-src 'self' data:; \
    style-src 'self' 'unsafe-inline'; frame-ancestors 'none'";
/// Whoever may do one of these is told the revision with each answer anyway.
const KNOWING: [Verb; 6] =
    [Verb::Read, Verb::Write, Verb::Lease, Verb::Lock, Verb::Observe, Verb::Operate];
const REQUEST_ID: HeaderName = HeaderName::from_static(crate::logs::REQUEST_ID);

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
    let admitted = |route, methods| Counted::layer(route, methods, Some((edge.clone(), all)));
    let all_but_post = |route, methods| {
        Counted::layer(route, methods, Some((edge.clone(), |method| method != Method::POST)))
    };
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
        .merge(probe_routes())
        .merge(peer_routes())
        .merge(admin_routes())
        .merge(ui::slash())
        .merge(docs(&edge))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(edge.clone(), finish))
        .with_state(edge)
}

fn admin_routes() -> Router<Edge> {
    Router::new()
        .route("/v1/admin/scrub", measured("/v1/admin/scrub", post(admin::scrub)))
        .route("/v1/admin/compact", measured("/v1/admin/compact", post(admin::compact)))
        .route("/v1/admin/log", measured("/v1/admin/log", get(logs::look).put(logs::set)))
}

fn peer_routes() -> Router<Edge> {
    Router::new()
        .route("/v1/raft/append", measured("/v1/raft/append", post(raft::append)))
        .route("/v1/raft/vote", measured("/v1/raft/vote", post(raft::vote)))
        .route("/v1/raft/snapshot", measured("/v1/raft/snapshot", post(raft::snapshot)))
        .route("/v1/raft/propose", measured("/v1/raft/propose", post(raft::propose)))
        .route("/v1/raft/handover", measured("/v1/raft/handover", post(raft::handover)))
}

fn probe_routes() -> Router<Edge> {
    Router::new()
        .route("/livez", measured("/livez", get(ops::livez)))
        .route("/readyz", measured("/readyz", get(ops::readyz)))
        .route("/metrics", measured("/metrics", get(ops::scrape)))
}

/// What is answered on the connections beyond the limit: how the node is, what nodes say to each
/// other, and to everybody else that there are too many. Each of them is used once.
fn few(edge: Edge) -> Router {
    probe_routes()
        .merge(peer_routes())
        .fallback(async || ApiError::Overloaded)
        .layer(from_fn_with_state(edge.clone(), finish))
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

fn all(_: &Method) -> bool {
    true
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

/// Counts a refusal that belongs to no route; whoever asks for what is not there must not make
/// up labels.
fn unmatched(method: &Method, error: ApiError) -> Response {
    static SERIES: RouteSeries = RouteSeries([const { OnceLock::new() }; 7]);
    let response = error.into_response();
    // It took no time worth measuring.
    SERIES.of("unmatched", method).record(response.status().as_u16(), 0.0);
    response
}

/// The series of one route, by method; looked up once.
#[derive(Default)]
struct RouteSeries([OnceLock<HttpSeries>; 7]);

impl RouteSeries {
    fn of(&self, route: &'static str, method: &Method) -> &HttpSeries {
        let (place, name) = match method.as_str() {
            "GET" => (0, "GET"),
            "PUT" => (1, "PUT"),
            "DELETE" => (2, "DELETE"),
            "POST" => (3, "POST"),
            "HEAD" => (4, "HEAD"),
            "PATCH" => (5, "PATCH"),
            _ => (6, "other"),
        };
        self.0[place].get_or_init(|| metrics::http_request(route, name))
    }
}

/// Counts and times the requests of a route under its pattern, never under a key.
fn measured(route: &'static str, methods: MethodRouter<Edge>) -> MethodRouter<Edge> {
    Counted::layer(route, methods, None)
}

/// Which methods of a route take a place among the requests in flight.
type Admits = fn(&Method) -> bool;

/// The layer around a route. One does all of it: each costs a request more than what it does.
struct Counted {
    route: &'static str,
    series: RouteSeries,
    admits: Option<(Edge, Admits)>,
}

impl Counted {
    fn layer(
        route: &'static str,
        methods: MethodRouter<Edge>,
        admits: Option<(Edge, Admits)>,
    ) -> MethodRouter<Edge> {
        let counted = Arc::new(Self { route, series: RouteSeries::default(), admits });
        methods.layer(from_fn_with_state(counted, Self::answer))
    }

    async fn answer(
        State(counted): State<Arc<Self>>,
        mut request: Request,
        next: Next,
    ) -> Response {
        let start = Instant::now();
        let method = request.method().clone();
        let response = match counted.admit(&mut request) {
            Ok(None) => next.run(request).await,
            Ok(Some(place)) => {
                let mut response = next.run(request).await;
                // Until the client has the answer, unless the route gave it away: what has no
                // end, or is made as it is taken, must not keep others out.
                response.extensions_mut().insert(place);
                response
            }
            Err(error) => error.into_response(),
        };
        let series = counted.series.of(counted.route, &method);
        let waited = response.extensions().get().map_or(Duration::ZERO, |Waited(time)| *time);
        let took = start.elapsed().saturating_sub(waited);
        series.record(response.status().as_u16(), took.as_secs_f64());
        response
    }

    /// A place for a request of the data API; refused when too many are in flight already.
    fn admit(&self, request: &mut Request) -> Result<Option<Place>, ApiError> {
        let Some((edge, admits)) = &self.admits else { return Ok(None) };
        if !admits(request.method()) {
            return Ok(None);
        }
        match edge.in_flight.clone().try_acquire_owned() {
            Ok(permit) => {
                let place = Place::new(permit);
                request.extensions_mut().insert(place.clone());
                Ok(Some(place))
            }
            Err(_) if edge.handle.is_draining() => {
                Err(ApiError::Draining("this node is shutting down".into()))
            }
            Err(_) => Err(ApiError::Overloaded),
        }
    }
}

/// The outermost layer: request ids, who answered, and the bodies of refusals.
async fn finish(State(edge): State<Edge>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let told = Told::begin(&request, &id);
    request.extensions_mut().insert(Arc::clone(told.trace()));
    let data = request.uri().path().starts_with("/v1/");
    // Then the answer is what this replica has, and its revision tells how old that is.
    let query = request.uri().query().unwrap_or_default();
    let is_stale = query.split('&').any(|pair| pair == "consistency=stale");
    let head = head_bytes(&request);
    let limit = edge.config.limits.header_bytes;
    let span = told.span();
    let knows = |caller: &Caller| edge.config.access.now().may_some(caller, &KNOWING);
    let mut knows_something = knows(&Caller::Anonymous);
    let mut response = if head > limit {
        unmatched(request.method(), ApiError::HeadTooLarge { limit, actual: head })
    } else if let Err(error) = gate::sound(&request, &told) {
        unmatched(request.method(), error)
    } else {
        match gate::caller(&edge, &request, &told) {
            Ok(caller) => {
                knows_something = knows(&caller);
                request.extensions_mut().insert(caller);
                next.run(request).instrument(span).await
            }
            // Probes ask nobody who they are.
            Err(_) if is_probe(request.uri().path()) => next.run(request).await,
            Err(error) => unmatched(request.method(), error),
        }
    };
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        told.trace().request_id().clone_into(&mut problem.request_id);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let kind = HeaderValue::from_static("application/problem+json");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        *response.body_mut() = body.into();
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    let is_stranger = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    // Who may do nothing here is not told either how far this cluster is.
    if data && knows_something && !is_stranger {
        let status = edge.handle.status();
        let revision = if is_stale {
            edge.handle.stale_view().revision()
        } else {
            edge.handle.known_revision()
        };
        let mut number = |name: &'static str, number: u64| {
            headers.entry(HeaderName::from_static(name)).or_insert(number.into());
        };
        number("mmapd-node", edge.handle.id());
        number("mmapd-term", status.term);
        number("mmapd-revision", revision);
        // A cache may keep an answer, and has to ask before it uses it.
        let no_cache = HeaderValue::from_static("no-cache");
        headers.entry(header::CACHE_CONTROL).or_insert(no_cache);
    }
    told.end(response.status());
    response
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

/// About what the head had on the wire. hyper's buffer may hold more than it is told to.
fn head_bytes(request: &Request) -> u64 {
    let target = request.uri().path().len() + request.uri().query().map_or(0, str::len);
    let fields =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    (target + fields.sum::<usize>()) as u64
}

/// The client's own id when it is a sane one, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let given = headers.get(REQUEST_ID).filter(|id| {
        let visible = |byte: &u8| byte.is_ascii_graphic();
        !id.is_empty() && id.len() <= REQUEST_ID_MAX && id.as_bytes().iter().all(visible)
    });
    given.cloned().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let text = format!("{:x}-{number:x}", std::process::id());
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"))
    })
}
