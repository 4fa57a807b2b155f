//! What probes, scrapers and people ask of a node.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::Edge;
use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::Query;
use crate::metrics;
use crate::node::RoleName;

/// Is the process alive?
///
/// Never depends on other nodes.
#[utoipa::path(
    get, path = "/livez", operation_id = "livez", tag = "operations",
    params(("verbose" = Option<bool>, Query, description = "one line a check")),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "alive"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
    ),
)]
pub(super) async fn livez(edge: Edge, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Probe)])?;
    let verbose = Query::parse(request.uri(), &["verbose"])?.flag("verbose")?;
    Ok(if verbose { "[+] process ok\nok\n" } else { "ok\n" }.into_response())
}

/// Does the node serve?
///
/// It knows a leader, has applied what was committed, and is not shutting down.
/// `role=leader` asks as well whether it leads, for proxies that look for the leader.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "operations",
    params(
        ("verbose" = Option<bool>, Query, description = "one line a check"),
        ("role" = Option<String>, Query, description = "`leader`: only the leader is ready"),
    ),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "ready"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `draining`: not ready, and why"),
    ),
)]
pub(super) async fn readyz(edge: Edge, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Probe)])?;
    let query = Query::parse(request.uri(), &["verbose", "role"])?;
    let wants_leader = match query.text("role")? {
        None => false,
        Some("leader") => true,
        Some(other) => {
            return Err(ApiError::BadRequest(format!(
                "query parameter \"role\" is leader, not {other:?}"
            )));
        }
    };
    let status = edge.handle.status();
    let checks = [
        ("not draining", !edge.handle.is_draining()),
        ("leader known", status.leader.is_some()),
        ("caught up", status.caught_up),
        ("is the leader", !wants_leader || status.role == RoleName::Leader),
    ];
    let mut text = String::new();
    for (name, good) in checks.iter().take(if wants_leader { 4 } else { 3 }) {
        text.push_str(&format!("[{}] {name}\n", if *good { '+' } else { '-' }));
    }
    match checks.iter().find(|(_, good)| !good) {
        None if query.flag("verbose")? => Ok((text + "ok\n").into_response()),
        None => Ok("ok\n".into_response()),
        Some(("leader known", _)) => Err(ApiError::NoLeader("this node knows no leader")),
        Some((name, _)) => Err(ApiError::Draining(format!("not ready: {name}: no"))),
    }
}

/// Metrics
///
/// In the text format of Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "operations",
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "all metrics of this process", headers(("Mmapd-Node" = u64, description = "id of the node"))),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
    ),
)]
pub(super) async fn scrape(edge: Edge, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Observe)])?;
    Query::parse(request.uri(), &[])?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    // Behind a balancer the reader would not know whose numbers these are.
    let node = (HeaderName::from_static("mmapd-node"), edge.handle.id().into());
    Ok(([(header::CONTENT_TYPE, kind), node], metrics::render()).into_response())
}

/// This description
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "operations",
    responses(
        (status = 200, body = Object, content_type = "application/json", description = "OpenAPI 3.1"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
    ),
)]
pub(super) async fn description(edge: Edge, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Probe)])?;
    Query::parse(request.uri(), &[])?;
    let kind = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, kind)], edge.description.clone()).into_response())
}
