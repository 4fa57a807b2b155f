//! The whole store as one file.
//!
//! A backup keeps the pages of a checkpoint from being used again, so a client that does not
//! take its bytes is cut off. Whatever goes wrong on the way ends the connection without the
//! end of the body, and the file without its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::Edge;
use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::Query;
use super::keys::RawValue;
use super::told::tell_late;
use crate::node::backup::Backup;
use crate::node::{BackupRefused, Handle};

/// Pieces that wait for the connection; each is up to 256 KiB.
const AHEAD: usize = 2;
/// How long a client may take none of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Back up the store
///
/// All keys of this node as of one revision, streamed as one file for `mmapd restore`, while
/// requests go on being served. It holds every write that was acknowledged before it began,
/// unless `consistency=stale` asks for this replica as it is. The file ends with a count and
/// a checksum: one that was cut off is not accepted.
#[utoipa::path(
    get, path = "/v1/backup", operation_id = "backup", tag = "operations",
    params(
        ("consistency" = Option<String>, Query, description = "`linearizable` (default) or `stale`: this replica as it is"),
        ("timeout" = Option<String>, Query, description = "how long to wait for a leader to confirm, such as `5s`"),
    ),
    responses(
        (status = 200, content_type = "application/vnd.mmapd.backup", body = RawValue, description = "the backup",
            headers(
                ("mmapd-revision" = u64, description = "the revision in it"),
                ("mmapd-digest" = String, description = "the sum over all its keys, in hexadecimal"),
            )),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "`unprocessable`: `consistency=lease` without `raft.lease`"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "`no-leader`, `rebuilding`; `draining`: the node is shutting down, or its disk is too slow"),
    ),
)]
pub(super) async fn backup(edge: Edge, request: Request) -> Result<Response, ApiError> {
    // It holds all there is.
    edge.allow(&[Need::all(Verb::Read), Need::all(Verb::Operate)])?;
    let query = Query::parse(request.uri(), &["consistency", "timeout"])?;
    drop(edge.view(&query).await?);
    let backup = edge.handle.backup().await?;
    let (revision, digest) = (backup.description().revision, backup.description().digest);
    let (sender, pieces) = mpsc::channel(AHEAD);
    tokio::spawn(send(backup, sender, edge.handle.clone()));
    let headers = [
        (HeaderName::from_static("mmapd-revision"), revision.to_string()),
        (HeaderName::from_static("mmapd-digest"), format!("{digest:032x}")),
        (header::CONTENT_TYPE, "application/vnd.mmapd.backup".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"mmapd-{revision}.backup\"")),
    ];
    Ok((headers, Body::from_stream(Pieces(pieces))).into_response())
}

impl From<BackupRefused> for ApiError {
    fn from(error: BackupRefused) -> Self {
        match error {
            BackupRefused::Rebuilding => Self::Rebuilding,
            BackupRefused::Stopping => Self::Draining("this node is shutting down".into()),
            BackupRefused::TooSlow => Self::Draining("no checkpoint was durable in time".into()),
        }
    }
}

type Piece = io::Result<Bytes>;

/// Reads ahead of the connection until all is sent, the client is too slow, or the node stops.
async fn send(mut backup: Backup, sender: mpsc::Sender<Piece>, handle: Handle) {
    let sending = async {
        loop {
            // Pages may have to come from the disk, so they are read off the reactor.
            let read = tokio::task::spawn_blocking(move || {
                let piece = backup.piece();
                (backup, piece)
            });
            let piece = match read.await {
                Ok((rest, Ok(Some(piece)))) => {
                    backup = rest;
                    piece
                }
                Ok((_, Ok(None))) => return None,
                Ok((_, Err(error))) => return Some(error.to_string()),
                Err(error) => return Some(error.to_string()),
            };
            match tokio::time::timeout(PATIENCE, sender.send(Ok(piece))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Some("the client went away".to_owned()),
                Err(_) => return Some("the client took nothing for too long".to_owned()),
            }
        }
    };
    let failed = tokio::select! {
        failed = sending => failed,
        () = handle.stopped() => Some("this node is shutting down".to_owned()),
    };
    if let Some(why) = failed {
        tell_late!(warn, handle.trace(), %why, "a backup was not sent to its end");
        // The pages are given back by now; this only waits for the client.
        drop(sender.send(Err(io::Error::other(why))).await);
    }
}

struct Pieces(mpsc::Receiver<Piece>);

impl futures_core::Stream for Pieces {
    type Item = Piece;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.0.poll_recv(context)
    }
}
