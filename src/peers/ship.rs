//! Snapshots between nodes: a header that says what it holds, then the chunks of a pinned
//! checkpoint straight from the map, each behind its length.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::raft::message::{Envelope, Message, SnapshotMeta};
use crate::raft::types::{Index, LogId, NodeId, Term};
use crate::store::{DbState, Disk, Identity, PinnedCheckpoint, Receiver, StoreError};
use crate::wire::{self, Address};

/// Chunks that wait for the connection; each is up to a megabyte.
const AHEAD: usize = 2;
/// Largest chunk that is believed.
const CHUNK_MAX: usize = 32 << 20;
/// Largest description that is believed.
const META_MAX: usize = 64 << 10;

pub(super) async fn ship(
    client: &reqwest::Client,
    us: Address,
    to: NodeId,
    url: &str,
    term: Term,
    meta: &SnapshotMeta,
    pinned: PinnedCheckpoint,
) -> Option<LogId> {
    let (sender, receiver) = mpsc::channel::<Bytes>(AHEAD);
    let head = head(us, to, term, meta);
    // Pages may have to come from the disk, so they are read off the reactor.
    let reading = tokio::task::spawn_blocking(move || {
        sender.blocking_send(head).ok()?;
        for place in 0.. {
            let chunk = pinned.chunk(place).ok()??;
            let len = u32::try_from(chunk.len()).ok()?;
            sender.blocking_send(Bytes::copy_from_slice(&len.to_le_bytes())).ok()?;
            sender.blocking_send(chunk).ok()?;
        }
        Some(())
    });
    let body = reqwest::Body::wrap(StreamBody::new(Chunks(receiver)));
    let response = client.post(format!("{url}/v1/raft/snapshot")).body(body).send().await;
    drop(reading.await);
    let mut answer = response.ok()?.error_for_status().ok()?.bytes().await.ok()?;
    let (term, index) = (answer.try_get_u64_le().ok()?, answer.try_get_u64_le().ok()?);
    Some(LogId { term: Term(term), index: Index(index) })
}

/// The header is a packet like any other, so that a wrong cluster or node is found out at
/// once; the description follows behind its length.
fn head(us: Address, to: NodeId, term: Term, meta: &SnapshotMeta) -> Bytes {
    let message = Message::Heartbeat { commit: Index(0), read_seq: 0 };
    let envelope = Envelope { from: us.node, to, term, message };
    let mut out = BytesMut::from(&wire::encode(us, &envelope, 0)[..]);
    let meta = wire::encode_snapshot_meta(meta);
    out.put_u32_le(u32::try_from(meta.len()).expect("a description is small"));
    out.extend_from_slice(&meta);
    out.freeze()
}

struct Chunks(mpsc::Receiver<Bytes>);

impl futures_core::Stream for Chunks {
    type Item = Result<Frame<Bytes>, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// Why a snapshot was not received.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// Meant for another cluster or node, or not a snapshot.
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    /// Damaged, or ended early.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// This node's disk failed: fatal.
    #[error(transparent)]
    Store(StoreError),
}

/// A snapshot on its way in: bytes are pushed as they arrive.
#[derive(Debug)]
pub struct Incoming {
    us: Address,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    map_max: u64,
    buffer: BytesMut,
    head: Option<(NodeId, Term, SnapshotMeta)>,
    receiver: Option<Receiver>,
}

impl Incoming {
    /// Will be kept in `path` until it is whole.
    #[must_use]
    pub fn new(us: Address, disk: Arc<dyn Disk>, path: PathBuf, map_max: u64) -> Self {
        let buffer = BytesMut::new();
        Self { us, disk, path, map_max, buffer, head: None, receiver: None }
    }

    /// Takes the next bytes. Blocks on the disk.
    ///
    /// # Errors
    /// See [`IncomingError`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), IncomingError> {
        self.buffer.extend_from_slice(bytes);
        if self.head.is_none() && !self.take_head()? {
            return Ok(());
        }
        while let Some(len) = self.buffer.first_chunk::<4>() {
            let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
            if len > CHUNK_MAX {
                return Err(IncomingError::Damaged("a chunk beyond the limit".into()));
            }
            if self.buffer.len() < 4 + len {
                break;
            }
            self.buffer.advance(4);
            let chunk = self.buffer.split_to(len);
            self.receiver()?.push(&chunk).map_err(damaged)?;
        }
        Ok(())
    }

    fn take_head(&mut self) -> Result<bool, IncomingError> {
        let mut ahead = self.buffer.clone();
        let Some(packet) = wire::decode(self.us, &mut ahead)? else { return Ok(false) };
        let Some(len) = ahead.first_chunk::<4>() else { return Ok(false) };
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        if len > META_MAX {
            return Err(IncomingError::Damaged("a description beyond the limit".into()));
        }
        ahead.advance(4);
        let Some(meta) = ahead.get(..len) else { return Ok(false) };
        let meta = wire::decode_snapshot_meta(meta)?;
        ahead.advance(len);
        let wire::Content::Protocol(envelope) = packet.content else {
            return Err(IncomingError::Damaged("it begins with another message".into()));
        };
        self.head = Some((envelope.from, envelope.term, meta));
        self.buffer = ahead;
        Ok(true)
    }

    fn receiver(&mut self) -> Result<&mut Receiver, IncomingError> {
        if self.receiver.is_none() {
            let identity = Identity {
                cluster: self.us.cluster,
                node: self.us.node,
                incarnation: self.us.incarnation,
            };
            let receiver = Receiver::create(self.disk.clone(), &self.path, identity, self.map_max)
                .map_err(damaged)?;
            self.receiver = Some(receiver);
        }
        Ok(self.receiver.as_mut().expect("just made"))
    }

    /// Verifies the whole and makes it durable: who sent it, in which term, what it holds.
    ///
    /// # Errors
    /// See [`IncomingError`].
    pub fn finish(self) -> Result<(NodeId, Term, SnapshotMeta, DbState, PathBuf), IncomingError> {
        let (Some((from, term, meta)), Some(receiver)) = (self.head, self.receiver) else {
            return Err(IncomingError::Damaged("it ended before its first chunk".into()));
        };
        if !self.buffer.is_empty() {
            return Err(IncomingError::Damaged("it ended inside a chunk".into()));
        }
        let state = receiver.finish().map_err(damaged)?;
        if state.applied != meta.last {
            return Err(IncomingError::Damaged("it holds another state than it says".into()));
        }
        Ok((from, term, meta, state, self.path))
    }
}

/// Damage in what came over the network is the sender's problem; the rest is ours.
fn damaged(error: StoreError) -> IncomingError {
    match error {
        StoreError::Corrupt { .. } | StoreError::Foreign { .. } => {
            IncomingError::Damaged(error.to_string())
        }
        error @ (StoreError::Full { .. }
        | StoreError::Locked { .. }
        | StoreError::Invalid { .. }
        | StoreError::Ended
        | StoreError::Io { .. }) => IncomingError::Store(error),
    }
}
