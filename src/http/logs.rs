//! Which log lines this node writes, while it runs.

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::Query;
use super::{Edge, extract};
use crate::config::parse_duration;
use crate::logs::{Filter, Now};

/// Largest body.
const BODY_MAX: u64 = 64 << 10;
/// Longest time that can be asked for: seven days.
const LASTS_MAX: Duration = Duration::from_hours(7 * 24);

/// Which lines are wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"filter": "mmapd=debug,mmapd::raft=trace", "for": "10m"}))]
pub(super) struct LogRequest {
    /// Levels, separated by commas: one for all, and `target=level` for all targets that begin
    /// so. Without one for all, the rest has that of the settings.
    #[schema(max_length = 1024)]
    filter: String,
    /// How long, for instance `10m`, up to seven days; then the settings hold again. Absent
    /// or `null`: until it is changed, or the settings are read again.
    #[serde(default, rename = "for")]
    #[schema(pattern = "^[0-9]+ *(ms|s|m|h|d)$")]
    lasts: Option<String>,
}

/// Which lines are written.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "filter": "info,mmapd=debug,mmapd::raft=trace", "configured": "info", "remaining_ms": 600_000
}))]
pub(super) struct LogBody {
    /// The filter in effect.
    filter: String,
    /// The filter of the settings, `log.level`.
    configured: String,
    /// How long it stays so; absent: until it is changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_ms: Option<u64>,
}

impl LogBody {
    fn of(now: Now) -> Self {
        let millis = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Self {
            filter: now.filter.to_string(),
            configured: now.configured.to_string(),
            remaining_ms: now.left.map(millis),
        }
    }
}

/// Read the log filter
///
/// Which lines this node writes, and how long that stays so.
#[utoipa::path(
    get, path = "/v1/admin/log", operation_id = "logFilter", tag = "operations",
    responses(
        (status = 200, body = LogBody, description = "the filter in effect"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
    ),
)]
pub(super) async fn look(edge: Edge, request: Request) -> Result<Json<LogBody>, ApiError> {
    edge.allow(&[Need::all(Verb::Observe)])?;
    Query::parse(request.uri(), &[])?;
    Ok(Json(LogBody::of(edge.config.logs.now())))
}

/// Change the log filter
///
/// Takes effect on this node at once, and on no other. It is forgotten when the settings are
/// read again (SIGHUP) and when the process ends. The audit log is not affected.
#[utoipa::path(
    put, path = "/v1/admin/log", operation_id = "setLogFilter", tag = "operations",
    request_body(content = LogRequest, content_type = "application/json"),
    responses(
        (status = 200, body = LogBody, description = "it is in effect"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`: what is wrong with the filter, or with its time"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
    ),
)]
pub(super) async fn set(edge: Edge, request: Request) -> Result<Json<LogBody>, ApiError> {
    edge.allow(&[Need::all(Verb::Operate)])?;
    Query::parse(request.uri(), &[])?;
    let (head, body) = request.into_parts();
    let body = extract::body(&head.headers, body, BODY_MAX, &edge.config.http).await?;
    let parsed = Json::<LogRequest>::from_bytes(&body);
    let Json(wanted) = parsed.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let switch = edge.config.logs.clone();
    let configured = switch.now().configured;
    let filter = Filter::parse(&wanted.filter, &configured)
        .map_err(|error| ApiError::BadRequest(format!("filter: {error}")))?;
    let lasts = wanted.lasts.as_deref().map(lasts).transpose()?;
    let now = Now { filter: filter.clone(), configured, left: lasts };
    // Told before, since it may be silenced by it.
    tracing::info!(%filter, before = %switch.now().filter, ?lasts, "the log filter is changed");
    let turn = switch.set(filter, lasts);
    if let Some(lasts) = lasts {
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            if switch.expire(turn) {
                let filter = switch.now().filter;
                tracing::info!(%filter, "the log filter is that of the settings again");
            }
        });
    }
    Ok(Json(LogBody::of(now)))
}

fn lasts(text: &str) -> Result<Duration, ApiError> {
    let given = parse_duration(text);
    given.filter(|lasts| !lasts.is_zero() && *lasts <= LASTS_MAX).ok_or_else(|| {
        ApiError::BadRequest(format!(
            "for: a duration such as 30s, 10m or 12h, up to 7d, not {text:?}"
        ))
    })
}
