//! Moving leadership.

use axum::Json;
use axum::extract::Request;
use serde::Deserialize;
use utoipa::ToSchema;

use super::access::{Need, Verb};
use super::cluster::LeaderBody;
use super::error::{ApiError, Problem};
use super::extract::Query;
use super::{Edge, extract};
use crate::node::{HandoverError, NotHandedOver};

/// Largest body.
const BODY_MAX: u64 = 4096;

/// Who shall lead.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"to": 2}))]
pub(super) struct HandoverRequest {
    /// Id of a voter. Left out: the voter that is most caught up.
    #[serde(default)]
    to: Option<u64>,
}

/// Transfer leadership
///
/// The leader stops to take writes, brings the voter up to date and tells it to campaign at
/// once; writes that arrive meanwhile wait for the new leader. Any node takes the request.
/// Answers once the new leader is known here; if the voter that is named leads already, at
/// once. Without a body the voter that is most caught up is chosen.
#[utoipa::path(
    post, path = "/v1/cluster/leader", operation_id = "transferLeadership", tag = "cluster",
    params(
        ("timeout" = Option<String>, Query, description = "how long to wait, for example `5s`", example = "5s"),
    ),
    request_body(content = HandoverRequest, content_type = "application/json"),
    responses(
        (status = 200, body = LeaderBody, description = "it leads"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: no member has this id"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: it is a learner, was not heard of lately or is too far behind"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`; `not-transferred`: it did not lead in time; `draining`"),
    ),
)]
pub(super) async fn hand_over(edge: Edge, request: Request) -> Result<Json<LeaderBody>, ApiError> {
    edge.allow(&[Need::all(Verb::Operate)])?;
    let query = Query::parse(request.uri(), &["timeout"])?;
    let timeout = edge.timeout(&query)?;
    let (head, body) = request.into_parts();
    let body = extract::body(&head.headers, body, BODY_MAX, &edge.config.http).await?;
    let wish = if body.is_empty() {
        HandoverRequest::default()
    } else {
        let parsed = Json::<HandoverRequest>::from_bytes(&body);
        let Json(wish) = parsed.map_err(|error| ApiError::BadRequest(error.body_text()))?;
        wish
    };
    if wish.to == Some(0) {
        return Err(ApiError::NotFound("no member has the id 0".into()));
    }
    let id = edge.handle.hand_over(wish.to, timeout).await?;
    let status = edge.handle.status();
    let url = status.members.iter().find(|member| member.id == id).map(|member| &member.url);
    Ok(Json(LeaderBody { id, url: url.cloned().unwrap_or_default(), term: status.term }))
}

impl From<HandoverError> for ApiError {
    fn from(error: HandoverError) -> Self {
        match error {
            HandoverError::NoLeader | HandoverError::Refused(NotHandedOver::NotLeader(_)) => {
                Self::NoLeader("no leader could be reached in time")
            }
            HandoverError::Draining => Self::Draining("this node is shutting down".into()),
            HandoverError::TooLate(to) => {
                Self::NotTransferred(format!("node {} did not become leader in time", to.0))
            }
            HandoverError::Refused(NotHandedOver::NotAMember(to)) => {
                Self::NotFound(format!("no member has the id {}", to.0))
            }
            HandoverError::Refused(NotHandedOver::Learner(to)) => {
                Self::Unprocessable(format!("node {} is a learner, which cannot lead", to.0))
            }
            HandoverError::Refused(NotHandedOver::Silent(to)) => Self::Unprocessable(format!(
                "node {} was not heard of for an election time-out",
                to.0
            )),
            HandoverError::Refused(NotHandedOver::Behind(to, entries)) => Self::Unprocessable(
                format!("node {} lacks {entries} entries, too many to catch up now", to.0),
            ),
            HandoverError::Refused(NotHandedOver::Alone) => {
                Self::Unprocessable("there is no other voter".into())
            }
            HandoverError::Refused(NotHandedOver::AllSilent) => {
                Self::NotTransferred("no other voter was heard of for an election time-out".into())
            }
        }
    }
}
