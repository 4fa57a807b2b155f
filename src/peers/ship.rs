//! Snapshots between nodes: a header that says what it holds, then the chunks of a pinned
//! checkpoint straight from the map, each behind its length.
//!
//! When the connection breaks, the receiver keeps what it has, and the sender, which keeps its
//! pin, asks with the header alone how many chunks that is and goes on there. A receiver that
//! restarted has none.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::StatusCode;
use tokio::sync::mpsc;

use super::Dialer;
use crate::raft::message::{Envelope, Message, SnapshotMeta};
use crate::raft::types::{Index, LogId, NodeId, Term};
use crate::store::{DbState, Disk, Identity, Pace, PinnedCheckpoint, Receiver, StoreError};
use crate::wire::{self, Address};

/// Chunks that wait for the connection; each is up to a megabyte.
const AHEAD: usize = 2;
/// Attempts in a row that bring nothing, before a snapshot is given up.
const ATTEMPTS: u32 = 5;
/// How long the first of them waits for the network to come back; the next ones twice as long.
const PAUSE: Duration = Duration::from_millis(100);
/// Largest chunk that is believed.
const CHUNK_MAX: usize = 32 << 20;
/// Largest description that is believed.
const META_MAX: usize = 64 << 10;

/// What became of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shipped {
    /// The peer installed it; its last entry.
    Installed(LogId),
    /// The peer found damage in it, which must be ours.
    Damaged,
    /// It did not get there, or is not wanted.
    Lost,
}

/// What became of one request.
enum Sent {
    Answered(Bytes),
    Refused(StatusCode),
    Broken,
}

pub(super) async fn ship(
    client: &Dialer,
    us: Address,
    to: NodeId,
    url: &str,
    (term, meta): (Term, &SnapshotMeta),
    pinned: PinnedCheckpoint,
    resumed: &::metrics::Counter,
) -> Shipped {
    let (head, pinned) = (head(us, to, term, meta), Arc::new(pinned));
    let url = format!("{url}/v1/raft/snapshot");
    let mut next = 0;
    let mut idle = 0;
    loop {
        let query = if next == 0 { "" } else { "?resume=true" };
        match send(client, &format!("{url}{query}"), &head, &pinned, next).await {
            Sent::Answered(mut answer) => {
                let (term, index) = (answer.try_get_u64_le(), answer.try_get_u64_le());
                let (Ok(term), Ok(index)) = (term, index) else { return Shipped::Lost };
                return Shipped::Installed(LogId { term: Term(term), index: Index(index) });
            }
            Sent::Refused(StatusCode::UNPROCESSABLE_ENTITY) => return Shipped::Damaged,
            Sent::Refused(_) => return Shipped::Lost,
            Sent::Broken => {}
        }
        let before = next;
        next = loop {
            if idle == ATTEMPTS {
                return Shipped::Lost;
            }
            tokio::time::sleep(PAUSE * 2_u32.pow(idle)).await;
            idle += 1;
            match answered(client.post(format!("{url}?ask=true")).body(head.clone())).await {
                Sent::Answered(mut kept) => {
                    let Ok(kept) = kept.try_get_u64_le() else { return Shipped::Lost };
                    break kept;
                }
                // It has not noticed yet that the connection broke.
                Sent::Refused(StatusCode::SERVICE_UNAVAILABLE) | Sent::Broken => {}
                Sent::Refused(_) => return Shipped::Lost,
            }
        };
        if next > before {
            idle = 0;
            resumed.increment(1);
        }
    }
}

/// Sends the chunks from `first` on.
async fn send(
    client: &Dialer,
    url: &str,
    head: &Bytes,
    pinned: &Arc<PinnedCheckpoint>,
    first: u64,
) -> Sent {
    let (sender, receiver) = mpsc::channel::<Bytes>(AHEAD);
    let (head, pinned) = (head.clone(), Arc::clone(pinned));
    // Pages may have to come from the disk, so they are read off the reactor.
    let reading = tokio::task::spawn_blocking(move || {
        sender.blocking_send(head).ok()?;
        for place in first.. {
            let chunk = pinned.chunk(place).ok()??;
            let len = u32::try_from(chunk.len()).ok()?;
            sender.blocking_send(Bytes::copy_from_slice(&len.to_le_bytes())).ok()?;
            sender.blocking_send(chunk).ok()?;
        }
        Some(())
    });
    let body = reqwest::Body::wrap(StreamBody::new(Chunks(receiver)));
    let sent = answered(client.post(url).body(body)).await;
    drop(reading.await);
    sent
}

async fn answered(request: reqwest::RequestBuilder) -> Sent {
    let Ok(response) = request.send().await else { return Sent::Broken };
    if !response.status().is_success() {
        return Sent::Refused(response.status());
    }
    response.bytes().await.map_or(Sent::Broken, Sent::Answered)
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
    /// Not what a node sends: out of shape, or ended early.
    #[error("not a whole snapshot: {0}")]
    Malformed(String),
    /// In shape, with contents that are not what was written: the sender's file is damaged.
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
    /// The stream began anew, with the same header.
    resumed: bool,
    receiver: Option<Receiver>,
    /// At which pace it is written.
    pace: Arc<dyn Pace>,
}

impl Incoming {
    /// Will be kept in `path` until it is whole.
    #[must_use]
    pub fn new(
        us: Address,
        disk: Arc<dyn Disk>,
        path: PathBuf,
        map_max: u64,
        pace: Arc<dyn Pace>,
    ) -> Self {
        let buffer = BytesMut::new();
        Self { us, disk, path, map_max, buffer, head: None, resumed: false, receiver: None, pace }
    }

    /// Goes on with a new stream: the same header, then the chunks that are missing.
    #[must_use]
    pub fn resume(mut self) -> Self {
        self.buffer.clear();
        self.resumed = true;
        self
    }

    /// How many chunks there are of the snapshot with the header `head`; 0: it is another one,
    /// or nothing.
    ///
    /// # Errors
    /// When `head` is no header, or meant for somebody else.
    pub fn kept(us: Address, head: &[u8], kept: Option<&Self>) -> Result<u64, IncomingError> {
        let mut buffer = BytesMut::from(head);
        let asked = split_head(us, &mut buffer)?.filter(|_| buffer.is_empty());
        let asked = asked.ok_or_else(|| IncomingError::Malformed("not a header alone".into()))?;
        let ours = kept.filter(|kept| kept.head.as_ref() == Some(&asked));
        Ok(ours.and_then(|kept| kept.receiver.as_ref()).map_or(0, Receiver::next))
    }

    /// Takes the next bytes. Blocks on the disk.
    ///
    /// # Errors
    /// See [`IncomingError`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), IncomingError> {
        self.buffer.extend_from_slice(bytes);
        if (self.head.is_none() || self.resumed) && !self.take_head()? {
            return Ok(());
        }
        while let Some(len) = self.buffer.first_chunk::<4>() {
            let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
            if len > CHUNK_MAX {
                return Err(IncomingError::Malformed("a chunk beyond the limit".into()));
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
        let Some(head) = split_head(self.us, &mut self.buffer)? else { return Ok(false) };
        if self.head.as_ref().is_some_and(|before| *before != head) {
            return Err(IncomingError::Malformed("it goes on with another snapshot".into()));
        }
        self.head = Some(head);
        self.resumed = false;
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
            self.receiver = Some(receiver.paced(self.pace.clone()));
        }
        Ok(self.receiver.as_mut().expect("just made"))
    }

    /// Verifies the whole and makes it durable: who sent it, in which term, what it holds.
    ///
    /// # Errors
    /// See [`IncomingError`].
    pub fn finish(self) -> Result<(NodeId, Term, SnapshotMeta, DbState, PathBuf), IncomingError> {
        let (Some((from, term, meta)), Some(receiver)) = (self.head, self.receiver) else {
            return Err(IncomingError::Malformed("it ended before its first chunk".into()));
        };
        if !self.buffer.is_empty() {
            return Err(IncomingError::Malformed("it ended inside a chunk".into()));
        }
        let state = receiver.finish().map_err(damaged)?;
        if state.applied != meta.last {
            return Err(IncomingError::Damaged("it holds another state than it says".into()));
        }
        Ok((from, term, meta, state, self.path))
    }
}

/// Takes the header from the front of what has arrived; `None`: there is more to come.
fn split_head(
    us: Address,
    buffer: &mut BytesMut,
) -> Result<Option<(NodeId, Term, SnapshotMeta)>, IncomingError> {
    let mut ahead = buffer.clone();
    let Some(packet) = wire::decode(us, &mut ahead)? else { return Ok(None) };
    let Some(len) = ahead.first_chunk::<4>() else { return Ok(None) };
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    if len > META_MAX {
        return Err(IncomingError::Malformed("a description beyond the limit".into()));
    }
    ahead.advance(4);
    let Some(meta) = ahead.get(..len) else { return Ok(None) };
    let meta = wire::decode_snapshot_meta(meta)?;
    ahead.advance(len);
    let wire::Content::Protocol(envelope) = packet.content else {
        return Err(IncomingError::Malformed("it begins with another message".into()));
    };
    *buffer = ahead;
    Ok(Some((envelope.from, envelope.term, meta)))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::raft::types::Membership;
    use crate::store::simdisk::SimDisk;
    use crate::store::{Db, DbOptions, Shrink, Tree, Unpaced};

    const PATH: &str = "/db.new";

    /// A database of a few chunks on its first durable checkpoint.
    fn checkpoint() -> Db {
        let options = DbOptions {
            path: "/db".into(),
            map_max: 64 << 20,
            quota: u64::MAX,
            grow_step: 1 << 20,
            shrink: Shrink::default(),
        };
        let identity = Identity { cluster: 7, node: NodeId(1), incarnation: 1 };
        let mut db = Db::open(Arc::new(SimDisk::new(1)), options, identity).expect("new");
        let mut txn = db.begin();
        for number in 0..40_u8 {
            txn.put(Tree::Kv, &[number], &vec![number; 40_000]).expect("room");
        }
        txn.state_mut().applied = LogId { term: Term(2), index: Index(9) };
        txn.commit().expect("whole");
        let job = db.begin_checkpoint().expect("begun").expect("something to write");
        drop(db.finish_checkpoint(job.run().expect("written")).expect("durable"));
        db
    }

    /// What is sent from chunk `first` on, with the header.
    fn stream(pinned: &PinnedCheckpoint, term: u64, first: u64) -> Vec<u8> {
        let us = Address { cluster: 7, node: NodeId(1), incarnation: 1 };
        let membership = Membership::of(BTreeMap::from([(NodeId(1), "http://1".into())]));
        let meta = SnapshotMeta { last: pinned.state().applied, membership };
        let mut bytes = head(us, NodeId(2), Term(term), &meta).to_vec();
        for place in first..pinned.chunks() {
            let chunk = pinned.chunk(place).expect("readable").expect("in range");
            bytes.extend_from_slice(&u32::try_from(chunk.len()).expect("small").to_le_bytes());
            bytes.extend_from_slice(&chunk);
        }
        bytes
    }

    fn them() -> Address {
        Address { cluster: 7, node: NodeId(2), incarnation: 5 }
    }

    fn incoming() -> Incoming {
        Incoming::new(them(), Arc::new(SimDisk::new(2)), PATH.into(), 64 << 20, Arc::new(Unpaced))
    }

    #[test]
    fn a_snapshot_goes_on_from_every_place() {
        let mut db = checkpoint();
        let pinned = db.pin().expect("whole").expect("a checkpoint");
        assert!(pinned.chunks() > 4, "{}", pinned.chunks());
        let all = stream(&pinned, 3, 0);
        let header = stream(&pinned, 3, pinned.chunks());
        for cut in (0..all.len()).step_by(37_001).chain([all.len() - 1]) {
            let mut one = incoming();
            one.push(&all[..cut]).expect("the beginning of it");
            let kept = Incoming::kept(them(), &header, Some(&one)).expect("a header");
            let mut again = one.resume();
            again.push(&stream(&pinned, 3, kept)).expect("the rest of it");
            let (from, term, meta, state, _) = again.finish().expect("whole");
            assert_eq!((from, term, meta.last), (NodeId(1), Term(3), state.applied));
            assert_eq!(state, *pinned.state());
        }
    }

    #[test]
    fn only_the_same_snapshot_goes_on() {
        let mut db = checkpoint();
        let pinned = db.pin().expect("whole").expect("a checkpoint");
        let (all, chunks) = (stream(&pinned, 3, 0), pinned.chunks());
        let mut one = incoming();
        one.push(&all[..all.len() / 2]).expect("the beginning of it");
        let of_term = |term| stream(&pinned, term, chunks);
        assert!(Incoming::kept(them(), &of_term(3), Some(&one)).expect("a header") > 1);
        assert_eq!(Incoming::kept(them(), &of_term(4), Some(&one)).expect("a header"), 0);
        assert_eq!(Incoming::kept(them(), &of_term(3), None).expect("a header"), 0);
        assert!(Incoming::kept(them(), &all, Some(&one)).is_err(), "more than a header");
        let mut again = one.resume();
        let other = again.push(&stream(&pinned, 4, 1));
        assert!(matches!(other, Err(IncomingError::Malformed(_))), "{other:?}");
        let mut fresh = incoming();
        let gap = fresh.push(&stream(&pinned, 3, 1));
        assert!(matches!(gap, Err(IncomingError::Damaged(_))), "{gap:?}");
    }
}
