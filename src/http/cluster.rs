//! What a node knows of itself and of its cluster.

use axum::Json;
use axum::extract::Request;
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::Query;
use crate::node::RoleName;

/// This node.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": 1, "cluster_id": "8c1f0e2f7d6a4b0d9f3c2e1d0a9b8c7d", "role": "leader", "term": 2,
    "leader": 1, "commit_index": 42, "applied_index": 42, "revision": 42, "last_log_index": 42,
    "first_log_index": 1, "log_size_bytes": 12288, "db_size_bytes": 16777216,
    "db_live_bytes": 8192, "keys": 3, "alarms": [], "version": "0.1.0", "uptime_seconds": 61
}))]
pub(super) struct StatusBody {
    id: u64,
    cluster_id: String,
    role: Role,
    term: u64,
    /// The leader it knows.
    leader: Option<u64>,
    /// Last entry known to be committed.
    commit_index: u64,
    /// Last entry applied.
    applied_index: u64,
    /// Revision of the last change applied.
    revision: u64,
    /// Last entry in its log.
    last_log_index: u64,
    /// First entry in its log; those before are in the database alone.
    first_log_index: u64,
    log_size_bytes: u64,
    db_size_bytes: u64,
    /// Bytes of the database that hold data.
    db_live_bytes: u64,
    keys: u64,
    /// What an operator should look at.
    alarms: Vec<String>,
    version: &'static str,
    uptime_seconds: u64,
}

/// What a node is in its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
}

impl From<RoleName> for Role {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Leader => Self::Leader,
            RoleName::Follower => Self::Follower,
            RoleName::Candidate => Self::Candidate,
            RoleName::Learner => Self::Learner,
        }
    }
}

/// The cluster as this node knows it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "cluster_id": "8c1f0e2f7d6a4b0d9f3c2e1d0a9b8c7d", "node": 1, "term": 2, "leader": 1,
    "changing": false, "members": [{
        "id": 1, "url": "http://127.0.0.1:3001", "role": "leader", "voter": true, "incarnation": "7b1f2c3d4e5f6071",
        "match_index": 42, "next_index": null, "lag": 0, "last_contact_ms": 0
    }]
}))]
pub(super) struct ClusterBody {
    cluster_id: String,
    /// The node that answers.
    node: u64,
    term: u64,
    leader: Option<u64>,
    /// A change of the members is between its two steps: old and new voters decide together.
    changing: bool,
    members: Vec<Member>,
}

/// One member.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Member {
    id: u64,
    url: String,
    role: Role,
    /// Votes; else it only receives the log.
    voter: bool,
    /// The life of its data folder: what another one says in its name does not count. Null
    /// until it was heard.
    incarnation: Option<String>,
    /// Last entry known to be on its disk; the leader knows it of all, others of nobody.
    match_index: Option<u64>,
    /// Next entry the leader will send it.
    next_index: Option<u64>,
    /// Entries it is behind the leader's last.
    lag: Option<u64>,
    /// Milliseconds since the leader heard of it.
    last_contact_ms: Option<u64>,
}

/// Who leads.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": 1, "url": "http://127.0.0.1:3001", "term": 2}))]
pub(super) struct LeaderBody {
    pub(super) id: u64,
    pub(super) url: String,
    pub(super) term: u64,
}

/// Status of this node
#[utoipa::path(
    get, path = "/v1/status", operation_id = "getStatus", tag = "cluster",
    responses(
        (status = 200, body = StatusBody, description = "this node"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
    ),
)]
pub(super) async fn status(edge: Edge, request: Request) -> Result<Json<StatusBody>, ApiError> {
    edge.allow(&[Need::all(Verb::Observe)])?;
    Query::parse(request.uri(), &[])?;
    let status = edge.handle.status();
    Ok(Json(StatusBody {
        id: edge.handle.id(),
        cluster_id: status.cluster_id.clone(),
        role: status.role.into(),
        term: status.term,
        leader: status.leader,
        commit_index: status.commit_index,
        applied_index: status.applied_index,
        revision: status.revision,
        last_log_index: status.last_log_index,
        first_log_index: status.first_log_index,
        log_size_bytes: status.log_size_bytes,
        db_size_bytes: status.db_size_bytes,
        db_live_bytes: status.db_live_bytes,
        keys: status.keys,
        alarms: edge.alarms(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: status.uptime_ms / 1000,
    }))
}

impl Edge {
    fn alarms(&self) -> Vec<String> {
        let status = self.handle.status();
        let full = status.db_live_bytes >= self.config.storage.quota;
        let quota = full.then(|| "quota".to_owned());
        quota.into_iter().chain(status.alarms.iter().cloned()).collect()
    }
}

/// All members
#[utoipa::path(
    get, path = "/v1/cluster", operation_id = "getCluster", tag = "cluster",
    responses(
        (status = 200, body = ClusterBody, description = "the cluster as this node knows it"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
    ),
)]
pub(super) async fn cluster(edge: Edge, request: Request) -> Result<Json<ClusterBody>, ApiError> {
    edge.allow(&[Need::all(Verb::Observe)])?;
    Query::parse(request.uri(), &[])?;
    Ok(Json(edge.cluster()))
}

impl Edge {
    /// The cluster as this node knows it.
    pub(super) fn cluster(&self) -> ClusterBody {
        let edge = self;
        let status = edge.handle.status();
        let members = status.members.iter().map(|member| Member {
            id: member.id,
            url: member.url.clone(),
            role: match (member.is_self, member.leader, member.voter) {
                (true, ..) => status.role.into(),
                (false, true, _) => Role::Leader,
                (false, false, true) => Role::Follower,
                (false, false, false) => Role::Learner,
            },
            voter: member.voter,
            incarnation: member.incarnation.clone(),
            match_index: member.match_index,
            next_index: member.next_index,
            lag: member.lag,
            last_contact_ms: member.last_contact_ms,
        });
        ClusterBody {
            changing: status.joint,
            cluster_id: status.cluster_id.clone(),
            node: edge.handle.id(),
            term: status.term,
            leader: status.leader,
            members: members.collect(),
        }
    }
}

/// Who leads
#[utoipa::path(
    get, path = "/v1/cluster/leader", operation_id = "getLeader", tag = "cluster",
    responses(
        (status = 200, body = LeaderBody, description = "the leader that this node knows"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`"),
    ),
)]
pub(super) async fn leader(edge: Edge, request: Request) -> Result<Json<LeaderBody>, ApiError> {
    edge.allow(&[Need::all(Verb::Observe)])?;
    Query::parse(request.uri(), &[])?;
    let status = edge.handle.status();
    let member = status.members.iter().find(|member| Some(member.id) == status.leader);
    let member = member.ok_or(ApiError::NoLeader("this node knows no leader"))?;
    Ok(Json(LeaderBody { id: member.id, url: member.url.clone(), term: status.term }))
}
