//! What peers bring to the `/v1/raft/*` routes: streams of packets, and snapshots.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::BodyDataStream;
use bytes::{BufMut, Bytes, BytesMut};
use futures_core::Stream;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};

use super::departed::Watched;
use super::handle::{Handle, Mail, PeerError};
use super::pace::{DiskPace, Gentle};
use super::work::{Answer, Arrived, Event};
use crate::peers::{Incoming, IncomingError};
use crate::raft::message::{Message, SnapshotMeta};
use crate::raft::types::{NodeId, Term};
use crate::store::{DbState, Pace};
use crate::wire::{self, WireError};

/// Chunks of a snapshot that wait for the disk.
const AHEAD: usize = 4;

impl From<WireError> for PeerError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Malformed(_) => Self::Malformed(error.to_string()),
            WireError::Misdirected { .. } => Self::Misdirected(error.to_string()),
        }
    }
}

impl From<IncomingError> for PeerError {
    fn from(error: IncomingError) -> Self {
        match error {
            IncomingError::Wire(error) => error.into(),
            IncomingError::Malformed(why) => Self::Malformed(why),
            IncomingError::Damaged(why) => Self::Damaged(why),
            IncomingError::Store(error) => Self::Unavailable(error.to_string()),
        }
    }
}

impl Handle {
    /// `POST /v1/raft/append`: a stream of packets (appends, heartbeats and their answers)
    /// that lasts as long as the peer keeps it open, or until this node stops. `sender`: where
    /// it says that it is reached.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_stream(
        &self,
        mut body: BodyDataStream,
        mut sender: Option<String>,
    ) -> Result<(), PeerError> {
        let mut stopping = self.shared.stopping.subscribe();
        let mut buffer = BytesMut::new();
        let mut watched = Watched::new(self.clone());
        loop {
            let chunk = tokio::select! {
                chunk = next(&mut body) => chunk,
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
            };
            let chunk = match chunk {
                Some(Ok(chunk)) => chunk,
                None if !buffer.is_empty() => {
                    return Err(PeerError::Malformed("it ended within a packet".into()));
                }
                None | Some(Err(_)) => return Ok(()),
            };
            buffer.extend_from_slice(&chunk);
            while let Some(packet) = wire::decode(self.shared.us, &mut buffer)? {
                watched.from = Some(packet.from);
                // Only who knows our cluster and our name is believed.
                if let Some(url) = sender.take() {
                    self.shared.peers.learn(packet.from, &url);
                }
                self.deliver(Event::Packet(packet)).await?;
            }
        }
    }

    /// `POST /v1/raft/vote`: one message of an election. `sender` as for a stream.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_vote(&self, body: Bytes, sender: Option<String>) -> Result<(), PeerError> {
        let mut buffer = BytesMut::from(&body[..]);
        let packet = wire::decode(self.shared.us, &mut buffer)?
            .filter(|_| buffer.is_empty())
            .ok_or_else(|| PeerError::Malformed("not one whole packet".into()))?;
        let wire::Content::Protocol(envelope) = &packet.content else {
            return Err(PeerError::Malformed("not a message of an election".into()));
        };
        if let Some(url) = sender {
            self.shared.peers.learn(packet.from, &url);
        }
        match envelope.message {
            Message::PreVote { .. }
            | Message::PreVoteReply { .. }
            | Message::Vote { .. }
            | Message::VoteReply { .. }
            | Message::TimeoutNow => self.deliver(Event::Packet(packet)).await,
            Message::Append { .. }
            | Message::Accepted { .. }
            | Message::Rejected { .. }
            | Message::Heartbeat { .. }
            | Message::HeartbeatReply { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexReply { .. } => {
                Err(PeerError::Malformed("not a message of an election".into()))
            }
        }
    }

    /// `POST /v1/raft/snapshot`: a whole snapshot, or, with `resume`, what was missing of one
    /// whose connection broke; returns the last entry it held once it is installed.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_snapshot(
        &self,
        body: BodyDataStream,
        resume: bool,
    ) -> Result<Bytes, PeerError> {
        let mut landing = self.landing()?;
        let shared = self.shared.clone();
        let kept = landing.kept.take();
        let incoming = match kept.filter(|_| resume) {
            Some(kept) => kept.resume(),
            None => {
                let (disk, path) = (shared.disk.clone(), landing.path.clone());
                Incoming::new(shared.us, disk, path, shared.map_max, landing.pace.clone())
            }
        };
        let this = self.clone();
        // A task of its own: when the sender hangs up, the file must stay ours until what has
        // arrived is written, and until the node is done with it.
        let install = tokio::spawn(async move {
            let (chunks, received) = mpsc::channel(AHEAD);
            let writing = tokio::task::spawn_blocking(move || write(incoming, received));
            let whole = pump(body, chunks).await;
            let incoming = writing.await.map_err(|_| stopped())??;
            if !whole {
                landing.kept = Some(incoming);
                return Err(PeerError::Malformed("the connection broke".into()));
            }
            let finishing = tokio::task::spawn_blocking(move || incoming.finish());
            this.install(finishing.await.map_err(|_| stopped())??).await
        });
        install.await.map_err(|_| stopped())?
    }

    /// `POST /v1/raft/snapshot?ask=true`: how many chunks are kept of the snapshot with this
    /// header.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub fn peer_snapshot_kept(&self, head: &[u8]) -> Result<Bytes, PeerError> {
        let landing = self.landing()?;
        let kept = Incoming::kept(self.shared.us, head, landing.kept.as_ref())?;
        Ok(Bytes::copy_from_slice(&kept.to_le_bytes()))
    }

    /// Where snapshots land, for one at a time.
    fn landing(&self) -> Result<OwnedMutexGuard<Landing>, PeerError> {
        let busy = |_| PeerError::Unavailable("another snapshot is being received".into());
        self.shared.incoming.clone().try_lock_owned().map_err(busy)
    }

    async fn install(
        &self,
        (from, term, meta, state, path): (NodeId, Term, SnapshotMeta, DbState, PathBuf),
    ) -> Result<Bytes, PeerError> {
        let (waiter, answer) = oneshot::channel();
        let arrived = Arrived { waiter, from, term, meta, chain: state.chain, path };
        self.deliver(Event::SnapshotArrived(arrived)).await?;
        match answer.await.map_err(|_| stopped())? {
            Answer::Installed(Some(last)) => {
                let mut body = BytesMut::with_capacity(16);
                body.put_u64_le(last.term.0);
                body.put_u64_le(last.index.0);
                Ok(body.freeze())
            }
            Answer::Installed(None)
            | Answer::Written(_)
            | Answer::NotLeader(_)
            | Answer::Overloaded
            | Answer::Unknown
            | Answer::Readable
            | Answer::NotReadable(_)
            | Answer::Changed(_)
            | Answer::Compacted(_)
            | Answer::HandingOver(_) => {
                Err(PeerError::Unavailable("the snapshot is older than what this node has".into()))
            }
        }
    }

    async fn deliver(&self, event: Event<super::handle::Waiter>) -> Result<(), PeerError> {
        self.shared
            .inbox
            .send(Mail::Event(event))
            .await
            .map_err(|_| PeerError::Unavailable("the node stopped".into()))
    }
}

/// Where a snapshot is received.
#[derive(Debug)]
pub(super) struct Landing {
    pub(super) path: PathBuf,
    /// What arrived before its connection broke.
    pub(super) kept: Option<Incoming>,
    /// At which pace it is written.
    pace: Arc<dyn Pace>,
}

impl Landing {
    /// For one snapshot at a time, in this file.
    pub(super) fn at(path: PathBuf, pace: &Arc<DiskPace>) -> Arc<Mutex<Self>> {
        let pace = Arc::new(Gentle(Arc::clone(pace)));
        Arc::new(Mutex::new(Self { path, kept: None, pace }))
    }
}

fn stopped() -> PeerError {
    PeerError::Unavailable("the node stopped".into())
}

/// Moves a body to the thread that writes it; `false`: it broke off.
async fn pump(mut body: BodyDataStream, chunks: mpsc::Sender<Bytes>) -> bool {
    while let Some(chunk) = next(&mut body).await {
        let Ok(chunk) = chunk else { return false };
        if chunks.send(chunk).await.is_err() {
            return true; // what was wrong with it says the writer
        }
    }
    true
}

fn write(
    mut incoming: Incoming,
    mut received: mpsc::Receiver<Bytes>,
) -> Result<Incoming, IncomingError> {
    while let Some(chunk) = received.blocking_recv() {
        incoming.push(&chunk)?;
    }
    Ok(incoming)
}

async fn next(body: &mut BodyDataStream) -> Option<Result<Bytes, axum::Error>> {
    std::future::poll_fn(|context: &mut Context<'_>| -> Poll<_> {
        Pin::new(&mut *body).poll_next(context)
    })
    .await
}
