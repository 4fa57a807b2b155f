//! What other nodes of the cluster call. The bodies are the wire format of `wire.rs`; a
//! message for another cluster or another node is 421.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::Edge;
use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::{self, Query};
use super::keys::RawValue;
use crate::node::{FORWARDED_MAX, SENDER_URL};

/// Largest message of an election.
const VOTE_MAX: u64 = 64 << 10;
/// Largest header of a snapshot.
const HEADER_MAX: u64 = 128 << 10;

/// Messages from a peer
///
/// A stream of appends, heartbeats and their answers that lasts as long as the connection.
#[utoipa::path(
    post, path = "/v1/raft/append", operation_id = "raftAppend", tag = "raft (internal)",
    request_body(content = RawValue, content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "the stream ended"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 421, body = Problem, content_type = "application/problem+json", description = "`misdirected`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`draining`"),
    ),
)]
pub(super) async fn append(
    edge: Edge,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    edge.allow(&[Need::all(Verb::Peer)])?;
    let stream = edge.handle.peer_stream(body.into_data_stream(), sender(&edge, &headers));
    tokio::select! {
        ended = stream => ended?,
        // The sender says the secret of now when it comes back.
        () = edge.until_denied(vec![Need::all(Verb::Peer)]) => {
            return Err(ApiError::Unauthenticated);
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A message of an election
#[utoipa::path(
    post, path = "/v1/raft/vote", operation_id = "raftVote", tag = "raft (internal)",
    request_body(content = RawValue, content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "delivered"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 421, body = Problem, content_type = "application/problem+json", description = "`misdirected`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`draining`"),
    ),
)]
pub(super) async fn vote(edge: Edge, request: Request) -> Result<StatusCode, ApiError> {
    edge.allow(&[Need::all(Verb::Peer)])?;
    let (head, body) = request.into_parts();
    let body = extract::body(&head.headers, body, VOTE_MAX, &edge.config.http).await?;
    edge.handle.peer_vote(body, sender(&edge, &head.headers)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where a peer says that it is reached, if that is an address of a node like this one.
fn sender(edge: &Edge, headers: &HeaderMap) -> Option<String> {
    let url = headers.get(SENDER_URL)?.to_str().ok()?;
    let is_sound = crate::config::url_problem(url).is_none() && edge.speaks(url);
    is_sound.then(|| url.to_owned())
}

/// A wish to move leadership, forwarded by a follower
#[utoipa::path(
    post, path = "/v1/raft/handover", operation_id = "raftHandover", tag = "raft (internal)",
    request_body(content = RawValue, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = RawValue, content_type = "application/octet-stream", description = "to whom, or why to nobody"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 421, body = Problem, content_type = "application/problem+json", description = "`misdirected`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`draining`"),
    ),
)]
pub(super) async fn handover(edge: Edge, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Peer)])?;
    let (head, body) = request.into_parts();
    let body = extract::body(&head.headers, body, VOTE_MAX, &edge.config.http).await?;
    Ok(edge.handle.peer_handover(body).await?.into_response())
}

/// A snapshot from the leader
///
/// When the connection breaks, what has arrived is kept: the sender asks how much that is, and
/// goes on there.
#[utoipa::path(
    post, path = "/v1/raft/snapshot", operation_id = "raftSnapshot", tag = "raft (internal)",
    params(
        ("ask" = Option<bool>, Query, description = "the body is the header alone: answer how many chunks of it are kept"),
        ("resume" = Option<bool>, Query, description = "the body holds the header and the chunks that are missing"),
    ),
    request_body(content = RawValue, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = RawValue, content_type = "application/octet-stream", description = "installed; term and index of its last entry"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`: the header"),
        (status = 421, body = Problem, content_type = "application/problem+json", description = "`misdirected`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: it is damaged"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`draining`"),
    ),
)]
pub(super) async fn snapshot(edge: Edge, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Peer)])?;
    let (head, body) = request.into_parts();
    let query = Query::parse(&head.uri, &["ask", "resume"])?;
    if query.flag("ask")? {
        let body = extract::body(&head.headers, body, HEADER_MAX, &edge.config.http).await?;
        return Ok(edge.handle.peer_snapshot_kept(&body)?.into_response());
    }
    let resume = query.flag("resume")?;
    Ok(edge.handle.peer_snapshot(body.into_data_stream(), resume).await?.into_response())
}

/// A command forwarded by a follower
#[utoipa::path(
    post, path = "/v1/raft/propose", operation_id = "raftPropose", tag = "raft (internal)",
    request_body(content = RawValue, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = RawValue, content_type = "application/octet-stream", description = "what became of it"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 408, body = Problem, content_type = "application/problem+json", description = "`request-timeout`"),
        (status = 413, body = Problem, content_type = "application/problem+json", description = "`too-large`"),
        (status = 421, body = Problem, content_type = "application/problem+json", description = "`misdirected`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`draining`"),
    ),
)]
pub(super) async fn propose(edge: Edge, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Peer)])?;
    // Refused before anything is proposed, so the follower may ask the next leader.
    let _permit = edge
        .forwarded
        .try_acquire()
        .map_err(|_| ApiError::Draining("this node is shutting down".into()))?;
    let (head, body) = request.into_parts();
    let body = extract::body(&head.headers, body, FORWARDED_MAX, &edge.config.http).await?;
    Ok(edge.handle.peer_propose(body).await?.into_response())
}
