//! What an operator asks a node to do.

use axum::Json;
use axum::extract::Request;
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::Query;
use crate::node::{CompactError, NotCompacted, ScrubError};

/// What a compaction did.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "before_bytes": 1_073_741_824, "after_bytes": 218_103_808, "live_bytes": 210_763_776,
    "duration_ms": 2140, "revision": 88_301
}))]
pub(super) struct CompactionBody {
    /// Length of the database file before.
    before_bytes: u64,
    /// Its length now.
    after_bytes: u64,
    /// Bytes of it that hold live data.
    live_bytes: u64,
    /// How long it took.
    duration_ms: u64,
    /// The revision at which the new file took the place of the old one.
    revision: u64,
}

/// Compact the database of this node
///
/// Writes the database file anew, in the order of the keys and without holes, while requests
/// go on being served, and gives the space back to the file system. Answers when it is done.
/// It needs room for a second file meanwhile. The other nodes are not affected.
#[utoipa::path(
    post, path = "/v1/admin/compact", operation_id = "compactDatabase", tag = "operations",
    responses(
        (status = 200, body = CompactionBody, description = "the database was compacted"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: a compaction is under way already, or a snapshot was installed meanwhile"),
        (status = 500, body = Problem, content_type = "application/problem+json", description = "`damaged`: the new file was not the same and was thrown away"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`draining`: the node is shutting down"),
        (status = 507, body = Problem, content_type = "application/problem+json", description = "`no-space`: the disk has no room for a second file"),
    ),
)]
pub(super) async fn compact(
    edge: Edge,
    request: Request,
) -> Result<Json<CompactionBody>, ApiError> {
    edge.allow(&[Need::all(Verb::Operate)])?;
    Query::parse(request.uri(), &[])?;
    let start = std::time::Instant::now();
    let done = edge.handle.compact().await?;
    Ok(Json(CompactionBody {
        before_bytes: done.before_bytes,
        after_bytes: done.after_bytes,
        live_bytes: done.live_bytes,
        duration_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        revision: done.revision,
    }))
}

impl From<CompactError> for ApiError {
    fn from(error: CompactError) -> Self {
        match error {
            CompactError::Refused(NotCompacted::Busy) => {
                Self::Conflict("a compaction is under way already".into())
            }
            CompactError::Refused(NotCompacted::Superseded) => {
                Self::Conflict("a snapshot took the place of the database meanwhile".into())
            }
            CompactError::Refused(NotCompacted::NoSpace) => {
                Self::NoSpace("the disk has no room for a second database file")
            }
            CompactError::Refused(NotCompacted::Damaged(why)) => Self::Damaged(why),
            CompactError::Refused(NotCompacted::Differs) => Self::Damaged(
                "the new file did not hold what the old one does, and was thrown away".into(),
            ),
            CompactError::Refused(NotCompacted::Ended) | CompactError::Stopping => {
                Self::Draining("this node is shutting down".into())
            }
        }
    }
}

/// Something that contradicts its checksum.
#[derive(Serialize, ToSchema)]
pub(super) struct FindingBody {
    /// The damaged file.
    file: String,
    /// Where in it the damage begins.
    offset: u64,
    /// What is damaged, in words.
    what: String,
}

/// What was read, and what was found.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "log_bytes": 67_108_864, "db_bytes": 218_103_808, "findings": [], "duration_ms": 310
}))]
pub(super) struct ScrubBody {
    /// Bytes of the log that were read.
    log_bytes: u64,
    /// Bytes of the database that were read.
    db_bytes: u64,
    /// All damage.
    findings: Vec<FindingBody>,
    /// How long it took.
    duration_ms: u64,
}

/// Look for damage on the disk of this node
///
/// Reads all that is durable from the disk, at full speed, and compares it with its
/// checksums. What is damaged is repaired afterwards, from memory or from the other nodes.
/// Answers when everything was read.
#[utoipa::path(
    post, path = "/v1/admin/scrub", operation_id = "scrubDisk", tag = "operations",
    responses(
        (status = 200, body = ScrubBody, description = "everything was read"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`conflict`: the disk is being read already"),
        (status = 500, body = Problem, content_type = "application/problem+json", description = "`damaged`: the disk could not be read"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`draining`: the node is shutting down"),
    ),
)]
pub(super) async fn scrub(edge: Edge, request: Request) -> Result<Json<ScrubBody>, ApiError> {
    edge.allow(&[Need::all(Verb::Operate)])?;
    Query::parse(request.uri(), &[])?;
    let start = std::time::Instant::now();
    let done = edge.handle.scrub().await?;
    let findings = done.findings.iter().map(|finding| FindingBody {
        file: finding.file().to_owned(),
        offset: finding.offset(),
        what: finding.to_string(),
    });
    Ok(Json(ScrubBody {
        log_bytes: done.log_bytes,
        db_bytes: done.db_bytes,
        findings: findings.collect(),
        duration_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

impl From<ScrubError> for ApiError {
    fn from(error: ScrubError) -> Self {
        match error {
            ScrubError::Busy => Self::Conflict("the disk is being read already".into()),
            ScrubError::Failed(why) => Self::Damaged(why),
            ScrubError::Stopping => Self::Draining("this node is shutting down".into()),
        }
    }
}
