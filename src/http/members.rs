//! Who belongs to the cluster, and changing it. Only the leader changes anything; any other
//! node carries the request there, once.

use std::net::IpAddr;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::cluster::ClusterBody;
use super::error::{ApiError, Problem};
use super::extract::{self, Query};
use crate::node::{MemberChange, NodeId, NotChanged, RELAYED, RelayError};

/// Largest body: a hundred members.
const BODY_MAX: u64 = 64 << 10;

/// What a member is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum MemberRole {
    /// Votes; a new node as soon as it is caught up.
    Voter,
    /// Receives the log and does not vote.
    Learner,
}

/// A node that shall belong to the cluster.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"id": 4, "url": "http://10.0.0.4:3001", "role": "voter"}))]
pub(super) struct NewMember {
    /// Its id, never used before by another machine that may come back.
    id: u64,
    /// Where it is reached, `http://host:port`.
    url: String,
    /// What it is to be; `learner` when absent.
    #[serde(default)]
    role: Option<MemberRole>,
    /// The life of its data folder, sixteen hexadecimal digits; absent: the first that
    /// answers. `mmapd --join` gives it.
    #[serde(default)]
    incarnation: Option<String>,
}

/// What becomes different about a member; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"role": "voter"}))]
pub(super) struct MemberPatch {
    /// What it is to be.
    #[serde(default)]
    role: Option<MemberRole>,
    /// Where it is reached.
    #[serde(default)]
    url: Option<String>,
}

/// All members there shall be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"members": [
    {"id": 1, "url": "http://10.0.0.1:3001", "role": "voter"},
    {"id": 4, "url": "http://10.0.0.4:3001", "role": "voter"}
]}))]
pub(super) struct MemberSet {
    /// The members; nodes that are new as voters must be caught-up learners already.
    members: Vec<NewMember>,
}

/// Add a member
///
/// The node receives the log from now on. With `"role":"voter"` it votes as soon as it has
/// caught up; until then, and with `"role":"learner"`, it counts for no majority. An id whose
/// learner lost its data may be added again; a voter must be removed first, so that it cannot
/// vote as its old self. Any node takes the request.
#[utoipa::path(
    post, path = "/v1/cluster/members", operation_id = "addMember", tag = "cluster",
    params(("timeout" = Option<String>, Query, description = "Give up after this long, for instance `5s`")),
    request_body = NewMember,
    responses(
        (status = 201, body = ClusterBody, description = "it is a member now"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: with a member there is, or another change is under way"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: the cluster could not go on after it"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn add(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let asked = Asked::read(&edge, request).await?;
    if !edge.config.access.now().may_have_company() {
        return Err(ApiError::Unprocessable(
            "there are tokens, and nothing says who is a node: set auth.peer_secret or tls.ca first"
                .into(),
        ));
    }
    let member: NewMember = asked.json()?;
    let change = MemberChange::Add {
        id: node_id(member.id)?,
        url: edge.address(&member.url)?,
        incarnation: member.incarnation.as_deref().map(life).transpose()?,
        promote: member.role == Some(MemberRole::Voter),
    };
    asked.carry_out(&edge, change, StatusCode::CREATED).await
}

/// Change a member
///
/// `{"role":"voter"}` promotes a learner that is caught up, `{"role":"learner"}` takes the
/// vote from a member, `{"url":...}` says that it is reached elsewhere.
#[utoipa::path(
    patch, path = "/v1/cluster/members/{id}", operation_id = "changeMember", tag = "cluster",
    params(
        ("id" = u64, Path, description = "The member"),
        ("timeout" = Option<String>, Query, description = "Give up after this long, for instance `5s`"),
    ),
    request_body = MemberPatch,
    responses(
        (status = 200, body = ClusterBody, description = "done"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: no such member"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: another change is under way"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: it is not caught up, or the cluster could not go on after it"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn set(
    edge: Edge,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::read(&edge, request).await?;
    let MemberPatch { role, url } = asked.json()?;
    let change = MemberChange::Set {
        id: path_id(&id)?,
        voter: role.map(|role| role == MemberRole::Voter),
        url: url.as_deref().map(|url| edge.address(url)).transpose()?,
    };
    asked.carry_out(&edge, change, StatusCode::OK).await
}

/// Remove a member
///
/// It gets no entries any more, counts for no majority and cannot disturb the others. Refused
/// when too few of the remaining voters answer. A leader may be removed: it hands over first.
#[utoipa::path(
    delete, path = "/v1/cluster/members/{id}", operation_id = "removeMember", tag = "cluster",
    params(
        ("id" = u64, Path, description = "The member"),
        ("timeout" = Option<String>, Query, description = "Give up after this long, for instance `5s`"),
    ),
    responses(
        (status = 200, body = ClusterBody, description = "it is no member any more"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`: no such member"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: another change is under way"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: the cluster could not go on after it"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn remove(
    edge: Edge,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::read(&edge, request).await?;
    let change = MemberChange::Remove { id: path_id(&id)? };
    asked.carry_out(&edge, change, StatusCode::OK).await
}

/// Replace the members
///
/// The cluster consists of exactly these members afterwards, whatever it consisted of before,
/// in one change: while it is under way a majority of the old and one of the new voters decide
/// together (joint consensus). New voters must have been added as learners and be caught up.
#[utoipa::path(
    put, path = "/v1/cluster/members", operation_id = "replaceMembers", tag = "cluster",
    params(("timeout" = Option<String>, Query, description = "Give up after this long, for instance `5s`")),
    request_body = MemberSet,
    responses(
        (status = 200, body = ClusterBody, description = "these are the members now"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: another change is under way"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: a voter is not caught up, or the cluster could not go on after it"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`"),
        (status = 504, body = Problem, content_type = "application/problem+json", description = "`outcome-unknown`"),
    ),
)]
pub(super) async fn replace(edge: Edge, request: Request) -> Result<Response, ApiError> {
    let asked = Asked::read(&edge, request).await?;
    let MemberSet { members } = asked.json()?;
    let mut wanted: Vec<(NodeId, String, bool)> = Vec::new();
    for member in members {
        let id = node_id(member.id)?;
        if wanted.iter().any(|(other, ..)| *other == id) {
            return Err(ApiError::BadRequest(format!("member {} is named twice", id.0)));
        }
        wanted.push((id, edge.address(&member.url)?, member.role != Some(MemberRole::Learner)));
    }
    let change = MemberChange::Replace { members: wanted };
    asked.carry_out(&edge, change, StatusCode::OK).await
}

/// A request, whole, so that it can be carried on.
pub(super) struct Asked {
    method: String,
    uri: Uri,
    relayed: bool,
    timeout: std::time::Duration,
    body: Bytes,
}

impl Asked {
    pub(super) async fn read(edge: &Edge, request: Request) -> Result<Self, ApiError> {
        edge.allow(&[Need::all(Verb::Operate)])?;
        let query = Query::parse(request.uri(), &["timeout"])?;
        let timeout = edge.timeout(&query)?;
        let (head, body) = request.into_parts();
        let body = extract::body(&head.headers, body, BODY_MAX, &edge.config.http).await?;
        let relayed = is_relayed(&head.headers);
        Ok(Self { method: head.method.to_string(), uri: head.uri, relayed, timeout, body })
    }

    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            ApiError::BadRequest(format!("the body is not what it should be: {error}"))
        })
    }

    async fn carry_out(
        self,
        edge: &Edge,
        change: MemberChange,
        done: StatusCode,
    ) -> Result<Response, ApiError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let leader = match edge.handle.change_members(change.clone(), left).await {
                Ok(()) => return Ok((done, Json(edge.cluster())).into_response()),
                Err(NotChanged::NotLeader(Some(leader))) if !self.relayed => leader,
                Err(why) => return Err(why.into()),
            };
            match self.relay(edge, leader, deadline).await {
                // Not applied, so the next leader may be asked.
                Err(RelayError::NotSent) if Instant::now() < deadline => {
                    edge.handle.news(deadline).await;
                }
                Err(RelayError::NotSent) => {
                    return Err(ApiError::NoLeader("the leader cannot be reached"));
                }
                Err(RelayError::Lost) => {
                    return Err(ApiError::OutcomeUnknown("the leader did not answer"));
                }
                Ok(response) => return Ok(response),
            }
        }
    }

    /// Carries the request to the leader, and its answer back.
    pub(super) async fn relay(
        &self,
        edge: &Edge,
        leader: NodeId,
        deadline: Instant,
    ) -> Result<Response, RelayError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let relayed =
            edge.handle.relay(leader, &self.method, path, self.body.clone(), left).await?;
        let mut response = Response::new(relayed.body.into());
        *response.status_mut() =
            StatusCode::from_u16(relayed.status).unwrap_or(StatusCode::BAD_GATEWAY);
        if let Ok(kind) = HeaderValue::from_str(&relayed.content_type) {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        Ok(response)
    }
}

fn is_relayed(headers: &HeaderMap) -> bool {
    headers.contains_key(RELAYED)
}

impl From<NotChanged> for ApiError {
    fn from(why: NotChanged) -> Self {
        match why {
            NotChanged::NotLeader(_) => Self::NoLeader("there is no leader that could do it"),
            NotChanged::Busy(why) => Self::Conflict(why.into()),
            NotChanged::Conflict(why) => Self::Conflict(why),
            NotChanged::NoSuchMember(id) => {
                Self::NotFound(format!("node {} is not a member", id.0))
            }
            NotChanged::Refused(_) | NotChanged::TooMany | NotChanged::Unchanged => {
                Self::Unprocessable(why.to_string())
            }
            NotChanged::Unknown(why) => Self::OutcomeUnknown(why),
        }
    }
}

fn path_id(text: &str) -> Result<NodeId, ApiError> {
    let id = text.parse().map_err(|_| {
        ApiError::BadRequest(format!("{text:?} is not the id of a node, a whole number"))
    })?;
    node_id(id)
}

fn node_id(id: u64) -> Result<NodeId, ApiError> {
    if id == 0 {
        return Err(ApiError::BadRequest("node 0 is nobody; ids begin at 1".into()));
    }
    Ok(NodeId(id))
}

fn life(text: &str) -> Result<u64, ApiError> {
    u64::from_str_radix(text, 16)
        .map_err(|_| ApiError::BadRequest("an incarnation is sixteen hexadecimal digits".into()))
}

impl Edge {
    /// Is this a URL as nodes of this cluster have it? Either all speak TLS to each other or none
    /// does: to one without it, what the others keep secret would be sent in the clear.
    pub(super) fn speaks(&self, url: &str) -> bool {
        url.split_once("://").is_some_and(|(scheme, _)| scheme == self.config.tls.scheme())
    }

    /// An address is data: host and port, nothing that a node could be made to fetch.
    fn address(&self, url: &str) -> Result<String, ApiError> {
        let url = url.trim_end_matches('/');
        let refused = |why: String| Err(ApiError::BadRequest(format!("url: {why}")));
        if let Some(problem) = crate::config::url_problem(url) {
            return refused(problem);
        }
        if !self.speaks(url) {
            let scheme = self.config.tls.scheme();
            return refused(format!("{url} does not begin with {scheme}://, as nodes here do"));
        }
        match host(url) {
            Some(host) if is_link_local(&host) => refused(format!("{url} is a link-local address")),
            Some(_) => Ok(url.to_owned()),
            None => refused(format!("{url} names no host")),
        }
    }
}

/// As whoever connects will read it: 2852039166 and 0xa9fea9fe are addresses as well.
fn host(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    Some(url.host_str()?.trim_matches(['[', ']']).to_owned())
}

/// There the services of clouds are, and nobody's peers.
fn is_link_local(host: &str) -> bool {
    match host.trim_end_matches('.').parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_unicast_link_local(),
        Err(_) => false,
    }
}
