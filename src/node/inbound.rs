//! What peers bring to the `/v1/raft/*` routes: streams of packets, and snapshots.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::BodyDataStream;
use bytes::{BufMut, Bytes, BytesMut};
use futures_core::Stream;
use tokio::sync::{mpsc, oneshot};

use super::departed::Watched;
use super::handle::{Handle, Mail, PeerError};
use super::work::{Answer, Arrived, Event};
use crate::peers::{Incoming, IncomingError};
use crate::raft::message::Message;
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

    /// `POST /v1/raft/snapshot`: a whole snapshot; returns the last entry it held once it is
    /// installed.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_snapshot(&self, body: BodyDataStream) -> Result<Bytes, PeerError> {
        let path = self
            .shared
            .incoming
            .clone()
            .try_lock_owned()
            .map_err(|_| PeerError::Unavailable("another snapshot is being received".into()))?;
        let shared = self.shared.clone();
        let incoming = Incoming::new(shared.us, shared.disk.clone(), path.clone(), shared.map_max);
        let (chunks, received) = mpsc::channel(AHEAD);
        let writing = tokio::task::spawn_blocking(move || write(incoming, received));
        pump(body, chunks).await;
        let this = self.clone();
        // A task of its own: when the sender hangs up now, the file must stay ours until the
        // node is done with it.
        let install = tokio::spawn(async move {
            let result = this.install(writing).await;
            drop(path);
            result
        });
        install.await.map_err(|_| PeerError::Unavailable("the node stopped".into()))?
    }

    async fn install(
        &self,
        writing: tokio::task::JoinHandle<Result<Arriving, IncomingError>>,
    ) -> Result<Bytes, PeerError> {
        let stopped = || PeerError::Unavailable("the node stopped".into());
        let arriving = writing.await.map_err(|_| stopped())?.map_err(|error| match error {
            IncomingError::Wire(error) => error.into(),
            IncomingError::Damaged(why) => PeerError::Malformed(why),
            IncomingError::Store(error) => PeerError::Unavailable(error.to_string()),
        })?;
        let (waiter, answer) = oneshot::channel();
        let Arriving { from, term, meta, chain, path } = arriving;
        let arrived = Arrived { waiter, from, term, meta, chain, path };
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

/// A verified snapshot before somebody waits for its installation.
struct Arriving {
    from: crate::raft::types::NodeId,
    term: crate::raft::types::Term,
    meta: crate::raft::message::SnapshotMeta,
    chain: u64,
    path: std::path::PathBuf,
}

/// Moves a body to the thread that writes it; a broken body shows as an early end.
async fn pump(mut body: BodyDataStream, chunks: mpsc::Sender<Bytes>) {
    while let Some(Ok(chunk)) = next(&mut body).await {
        if chunks.send(chunk).await.is_err() {
            return;
        }
    }
}

fn write(
    mut incoming: Incoming,
    mut received: mpsc::Receiver<Bytes>,
) -> Result<Arriving, IncomingError> {
    while let Some(chunk) = received.blocking_recv() {
        incoming.push(&chunk)?;
    }
    let (from, term, meta, state, path) = incoming.finish()?;
    Ok(Arriving { from, term, meta, chain: state.chain, path })
}

async fn next(body: &mut BodyDataStream) -> Option<Result<Bytes, axum::Error>> {
    std::future::poll_fn(|context: &mut Context<'_>| -> Poll<_> {
        Pin::new(&mut *body).poll_next(context)
    })
    .await
}
