//! The one layer around each route. It does all that is the same for them: ids and traces, who
//! asks and whether that is a request at all, places among the requests in flight, metrics,
//! who answered, and the bodies of refusals. One, because each layer costs a request more than
//! what it does; and by hand, because axum's own boxes the rest of the way once more.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use tower::{Layer, Service};
use tracing::Instrument;

use super::access::{Asker, Verb};
use super::error::{ApiError, Problem};
use super::poll::{Place, Waited};
use super::told::Told;
use super::{Edge, gate, is_probe};
use crate::auth::Caller;
use crate::metrics::{self, HttpSeries};

/// Longest request id taken over from a client.
const REQUEST_ID_MAX: usize = 128;
/// Whoever may do one of these is told the revision with each answer anyway.
const KNOWING: [Verb; 6] =
    [Verb::Read, Verb::Write, Verb::Lease, Verb::Lock, Verb::Observe, Verb::Operate];
const REQUEST_ID: HeaderName = HeaderName::from_static(crate::logs::REQUEST_ID);
const NODE: HeaderName = HeaderName::from_static("mmapd-node");
const TERM: HeaderName = HeaderName::from_static("mmapd-term");
const REVISION: HeaderName = HeaderName::from_static("mmapd-revision");

/// Which methods of a route take a place among the requests in flight.
type Admits = fn(&Method) -> bool;

/// What is around one route, or several that are not measured one by one.
#[derive(Clone)]
pub(super) struct Around(Arc<Route>);

struct Route {
    edge: Edge,
    /// What the metrics call it; `None`: whoever answers has counted it.
    name: Option<&'static str>,
    series: RouteSeries,
    admits: Admits,
}

impl Around {
    /// Around routes that are not measured.
    pub(super) fn any(edge: &Edge) -> Self {
        Self::new(edge, None, |_| false)
    }

    fn new(edge: &Edge, name: Option<&'static str>, admits: Admits) -> Self {
        let edge = edge.clone();
        Self(Arc::new(Route { edge, name, series: RouteSeries::default(), admits }))
    }
}

/// Makes routes with what is around them.
pub(super) struct Routes<'a>(pub(super) &'a Edge);

impl Routes<'_> {
    /// Counts and times the requests of a route under its pattern, never under a key.
    pub(super) fn measured(
        &self,
        route: &'static str,
        methods: MethodRouter<Edge>,
    ) -> MethodRouter<Edge> {
        methods.layer(Around::new(self.0, Some(route), |_| false))
    }

    /// The same, where each request takes a place among those in flight.
    pub(super) fn admitted(
        &self,
        route: &'static str,
        methods: MethodRouter<Edge>,
    ) -> MethodRouter<Edge> {
        methods.layer(Around::new(self.0, Some(route), |_| true))
    }

    /// The same but for POST, which is admitted by its handler.
    pub(super) fn admitted_but_post(
        &self,
        route: &'static str,
        methods: MethodRouter<Edge>,
    ) -> MethodRouter<Edge> {
        methods.layer(Around::new(self.0, Some(route), |method| method != Method::POST))
    }

    /// The routes of somebody else.
    pub(super) fn foreign(&self, routes: Router<Edge>) -> Router<Edge> {
        routes.layer(Around::any(self.0))
    }
}

impl<S> Layer<S> for Around {
    type Service = Layered<S>;

    fn layer(&self, inner: S) -> Layered<S> {
        Layered { route: self.0.clone(), inner }
    }
}

/// A route with what is around it.
#[derive(Clone)]
pub(super) struct Layered<S> {
    route: Arc<Route>,
    inner: S,
}

impl<S> Service<Request> for Layered<S>
where
    S: Service<Request, Error = Infallible> + Clone + Send + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // The one that was asked whether it is ready goes; another takes its place.
        let other = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, other);
        let route = self.route.clone();
        Box::pin(async move {
            let handler = |request| {
                let answer = inner.call(request);
                async move {
                    let Ok(response) = answer.await;
                    response.into_response()
                }
            };
            Ok(route.answer(request, handler).await)
        })
    }
}

impl Route {
    async fn answer<F: Future<Output = Response>>(
        &self,
        mut request: Request,
        handler: impl FnOnce(Request) -> F,
    ) -> Response {
        let edge = &self.edge;
        let id = request_id(request.headers());
        let told = Told::begin(&request, &id);
        let data = request.uri().path().starts_with("/v1/");
        // Then the answer is what this replica has, and its revision tells how old that is.
        let query = request.uri().query().unwrap_or_default();
        let is_stale = query.split('&').any(|pair| pair == "consistency=stale");
        let knows = |caller: &Caller| edge.config.access.now().may_some(caller, &KNOWING);
        let mut knows_something = None;
        let mut response = match self.judge(&request, &told) {
            Ok(caller) => {
                knows_something = Some(data && knows(&caller));
                let asker = Asker { caller, trace: Arc::clone(told.trace()) };
                request.extensions_mut().insert(asker);
                self.count(request, handler).instrument(told.span()).await
            }
            // Probes ask nobody who they are.
            Err(ApiError::Unauthenticated) if is_probe(request.uri().path()) => {
                self.count(request, handler).await
            }
            Err(error) => unmatched(request.method(), error),
        };
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            write_problem(problem, &told, &mut response);
        }
        let is_stranger = response.status() == StatusCode::UNAUTHORIZED;
        response.headers_mut().insert(REQUEST_ID, id);
        // Who may do nothing here is not told either how far this cluster is.
        let is_told = || knows_something.unwrap_or_else(|| knows(&Caller::Anonymous));
        if data && !is_stranger && is_told() {
            self.say_who(is_stale, response.headers_mut());
        }
        told.end(response.status());
        response
    }

    /// Who asks, if it is a request at all.
    fn judge(&self, request: &Request, told: &Told) -> Result<Caller, ApiError> {
        let (head, limit) = (head_bytes(request), self.edge.config.limits.header_bytes);
        if head > limit {
            return Err(ApiError::HeadTooLarge { limit, actual: head });
        }
        gate::sound(request, told)?;
        gate::caller(&self.edge, request, told)
    }

    /// Runs the handler in a place of its own, and counts what it answers.
    async fn count<F: Future<Output = Response>>(
        &self,
        mut request: Request,
        handler: impl FnOnce(Request) -> F,
    ) -> Response {
        let Some(name) = self.name else { return handler(request).await };
        let start = Instant::now();
        let series = self.series.of(name, request.method());
        let response = match self.admit(&mut request) {
            Ok(None) => handler(request).await,
            Ok(Some(place)) => {
                let mut response = handler(request).await;
                // Until the client has the answer, unless the route gave it away: what has no
                // end, or is made as it is taken, must not keep others out.
                response.extensions_mut().insert(place);
                response
            }
            Err(error) => error.into_response(),
        };
        let waited = response.extensions().get().map_or(Duration::ZERO, |Waited(time)| *time);
        let took = start.elapsed().saturating_sub(waited);
        series.record(response.status().as_u16(), took.as_secs_f64());
        response
    }

    /// A place for a request of the data API; refused when too many are in flight already.
    fn admit(&self, request: &mut Request) -> Result<Option<Place>, ApiError> {
        if !(self.admits)(request.method()) {
            return Ok(None);
        }
        match self.edge.in_flight.clone().try_acquire_owned() {
            Ok(permit) => {
                let place = Place::new(permit);
                request.extensions_mut().insert(place.clone());
                Ok(Some(place))
            }
            Err(_) if self.edge.handle.is_draining() => {
                Err(ApiError::Draining("this node is shutting down".into()))
            }
            Err(_) => Err(ApiError::Overloaded),
        }
    }

    /// Which node answered, in which term, and how far it was.
    fn say_who(&self, is_stale: bool, headers: &mut HeaderMap) {
        let handle = &self.edge.handle;
        let revision =
            if is_stale { handle.stale_view().revision() } else { handle.known_revision() };
        headers.entry(NODE).or_insert_with(|| handle.id().into());
        headers.entry(TERM).or_insert_with(|| handle.status().term.into());
        headers.entry(REVISION).or_insert_with(|| revision.into());
        // A cache may keep an answer, and has to ask before it uses it.
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    }
}

/// The body of a refusal, with the id of its request.
fn write_problem(mut problem: Problem, told: &Told, response: &mut Response) {
    told.trace().request_id().clone_into(&mut problem.request_id);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    *response.body_mut() = body.into();
}

/// Counts a refusal that belongs to no route; whoever asks for what is not there must not make
/// up labels.
pub(super) fn unmatched(method: &Method, error: ApiError) -> Response {
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
