//! Carries packets to the other nodes and brings theirs in. Decides nothing: what is lost is
//! reported, and the protocol copes.
//!
//! Every pair of nodes has, in each direction, one long-lived `POST /v1/raft/append` for
//! heartbeats and answers (the control lane) and one for entries (the bulk lane), whose
//! bodies are streams of packets that never end while the connection lives: order is kept,
//! and a message costs one write. Elections travel as single requests, snapshots as a
//! request of their own.
//!
//! Queues are bounded. A full one means that the peer is slow or gone: the packet is
//! dropped and the protocol told, so a dead peer costs no memory.
//!
//! Left out: retries of packets. What was queued when a connection broke is dropped with
//! it; the protocol sends again what is still true.

mod forward;
mod handover;
mod join;
mod lane;
mod probe;
mod ship;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::AUTHORIZATION;
use reqwest::{IntoUrl, Method, RequestBuilder};
use tokio::sync::mpsc;

pub use forward::{ForwardError, Reply, Seen, decode_forwarded, encode_reply};
pub use handover::{NotHandedOver, decode_wish, encode_handover, encode_wish};
pub use join::{JoinError, JoinRequest, join};
pub use ship::{Incoming, IncomingError, Shipped};

use crate::auth::Access;
use crate::config::Config;
use crate::logs::Trace;
use crate::raft::message::SnapshotMeta;
use crate::raft::types::{NodeId, Term};
use crate::store::PinnedCheckpoint;
use crate::tls::{self, Material, Tls};
use crate::wire::Address;

/// Packets that may wait for a connection.
const CONTROL_QUEUE: usize = 1024;
/// Packets with entries that may wait; the protocol's own window is smaller.
const BULK_QUEUE: usize = 256;
/// Elections that may be under way to one peer.
const VOTE_QUEUE: usize = 32;
/// Frames up to this many bytes are copied behind their head.
const COPY_MAX: usize = 16 << 10;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection may be idle before the peer is probed, for instance while it
/// installs a snapshot; and how long sent bytes may stay unacknowledged before the connection is given up: without
/// it a healed partition would wait for the kernel's own, much longer patience.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// The parts of one packet, in order.
type Parcel = Vec<Bytes>;

/// Told when packets to a peer were lost.
pub trait Lost: Send + Sync + 'static {
    /// Packets to `peer` were dropped.
    fn lost(&self, peer: NodeId);
    /// A packet went out, or was dropped.
    fn counted(&self, peer: NodeId, sent: bool);
}

/// The other nodes, as far as sending goes.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    us: Address,
    /// Where we are reached, for those who do not know.
    url: String,
    client: Dialer,
    lost: Arc<dyn Lost>,
    runtime: tokio::runtime::Handle,
    peers: RwLock<BTreeMap<NodeId, Peer>>,
}

#[derive(Clone)]
struct Peer {
    url: String,
    control: mpsc::Sender<Parcel>,
    bulk: mpsc::Sender<Parcel>,
    vote: mpsc::Sender<Parcel>,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Heartbeats and answers.
    Control,
    /// Entries.
    Bulk,
    /// Elections.
    Vote,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("us", &self.inner.us).finish_non_exhaustive()
    }
}

/// How nodes connect to each other.
fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_user_timeout(SILENCE_MAX)
        .tcp_keepalive(SILENCE_MAX)
        .tcp_keepalive_interval(SILENCE_MAX)
        .tcp_keepalive_retries(2)
        .tcp_nodelay(true)
        .pool_idle_timeout(Duration::from_secs(30))
}

/// Sends requests that say that a node sends them.
#[derive(Clone, Debug)]
struct Dialer {
    made: Arc<Mutex<Made>>,
    access: Access,
    certificates: Tls,
}

/// A client, and the certificates that it was made with.
#[derive(Debug)]
struct Made {
    client: reqwest::Client,
    with: Option<Arc<Material>>,
}

impl Made {
    fn new(with: Option<Arc<Material>>) -> Result<Self, reqwest::Error> {
        let config = match &with {
            Some(material) => material.client(),
            None => tls::client_of(&[]).expect("nobody is trusted"),
        };
        // What is said with certificates is for those alone who have one.
        let client = builder().tls_backend_preconfigured(config).https_only(with.is_some());
        let client = client.build()?;
        Ok(Self { client, with })
    }
}

impl Dialer {
    fn new(config: &Config) -> Result<Self, reqwest::Error> {
        let certificates = config.certificates.clone();
        let made = Arc::new(Mutex::new(Made::new(certificates.now())?));
        Ok(Self { made, access: config.access.clone(), certificates })
    }

    /// The client with the certificates of now.
    fn client(&self) -> reqwest::Client {
        let now = self.certificates.now();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = match (&made.with, &now) {
            (Some(with), Some(now)) => Arc::ptr_eq(with, now),
            (with, now) => with.is_none() && now.is_none(),
        };
        if !is_same {
            match Made::new(now) {
                Ok(new) => *made = new,
                Err(error) => tracing::error!(%error, "the certificates before stay in use"),
            }
        }
        made.client.clone()
    }

    fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        let request = self.client().request(method, url);
        match self.access.now().credentials() {
            Some(credentials) => request.header(AUTHORIZATION, credentials),
            None => request,
        }
    }

    fn post(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::POST, url)
    }
}

/// What another node answered to a request that was carried on.
#[derive(Clone, Debug)]
pub struct Relayed {
    /// The HTTP status.
    pub status: u16,
    /// The type of the body.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
}

/// On the streams of peers: where the sender is reached.
pub const SENDER_URL: &str = "mmapd-sender-url";

/// On requests that were carried on once: they go no further.
pub const RELAYED: &str = "mmapd-relayed";

impl Peers {
    /// Knows nobody yet. Tasks run on `runtime`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(
        us: Address,
        config: &Config,
        lost: Arc<dyn Lost>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, reqwest::Error> {
        let (url, client) = (&config.node.advertise, Dialer::new(config)?);
        let peers = RwLock::new(BTreeMap::new());
        Ok(Self { inner: Arc::new(Inner { us, url: url.clone(), client, lost, runtime, peers }) })
    }

    /// Reaches the peer `id` at `url` from now on.
    pub fn add(&self, id: NodeId, url: &str) {
        let url = url.trim_end_matches('/').to_owned();
        let (control, control_queue) = mpsc::channel(CONTROL_QUEUE);
        let (bulk, bulk_queue) = mpsc::channel(BULK_QUEUE);
        let (vote, vote_queue) = mpsc::channel(VOTE_QUEUE);
        for queue in [control_queue, bulk_queue] {
            let lane = lane::Lane {
                peer: id,
                url: format!("{url}/v1/raft/append"),
                client: self.inner.client.clone(),
                sender_url: self.inner.url.clone(),
                lost: self.inner.lost.clone(),
            };
            self.inner.runtime.spawn(lane.run(queue));
        }
        let votes = lane::Lane {
            peer: id,
            url: format!("{url}/v1/raft/vote"),
            client: self.inner.client.clone(),
            sender_url: self.inner.url.clone(),
            lost: self.inner.lost.clone(),
        };
        self.inner.runtime.spawn(votes.run_votes(vote_queue));
        let peer = Peer { url, control, bulk, vote };
        self.write().insert(id, peer);
    }

    /// Reaches a peer where it says that it is, unless an address is known: a node that starts
    /// with an old configuration may be spoken to by a leader it has not heard of.
    pub fn learn(&self, id: NodeId, url: &str) {
        if id != self.inner.us.node && self.peer(id).is_none() {
            self.add(id, url);
        }
    }

    /// Queues one packet, given as its parts. Never waits.
    pub fn send(&self, to: NodeId, way: Way, head: Vec<u8>, frames: Vec<Bytes>) {
        let Some(peer) = self.peer(to) else { return };
        let queue = match way {
            Way::Control => &peer.control,
            Way::Bulk => &peer.bulk,
            Way::Vote => &peer.vote,
        };
        let sent = queue.try_send(parcel(head, frames));
        self.inner.lost.counted(to, sent.is_ok());
        if sent.is_err() && way == Way::Bulk {
            self.inner.lost.lost(to);
        }
    }

    /// Where a peer is reached.
    #[must_use]
    pub fn url(&self, id: NodeId) -> Option<String> {
        self.peer(id).map(|peer| peer.url)
    }

    /// Does the machine of `id` say that nobody listens at its address?
    pub async fn is_refused(&self, id: NodeId) -> bool {
        match self.url(id) {
            Some(url) => probe::is_refused(&url).await,
            None => false,
        }
    }

    /// Carries a command to the leader, on behalf of a request, and brings its answer.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub async fn forward(
        &self,
        leader: NodeId,
        command: Bytes,
        timeout: Duration,
        trace: Option<&Trace>,
    ) -> Result<Reply, ForwardError> {
        let url = self.url(leader).ok_or(ForwardError::Unreachable)?;
        let (client, us) = (&self.inner.client, self.inner.us);
        forward::forward(client, us, leader, &url, command, timeout, trace).await
    }

    /// Carries an operator's request to another node, at the same path, and its answer back.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub async fn relay(
        &self,
        to: NodeId,
        method: &str,
        path: &str,
        body: Bytes,
        timeout: Duration,
        trace: Option<&Trace>,
    ) -> Result<Relayed, ForwardError> {
        let url = self.url(to).ok_or(ForwardError::Unreachable)?;
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| ForwardError::Unreachable)?;
        let request = self.inner.client.request(method, format!("{url}{path}"));
        let request = request.timeout(timeout).header(RELAYED, "1").body(body);
        let response = forward::on_behalf(request, trace).send().await.map_err(|error| {
            if error.is_connect() { ForwardError::Unreachable } else { ForwardError::Lost }
        })?;
        let status = response.status().as_u16();
        let content_type = response.headers().get("content-type");
        let content_type =
            content_type.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let body = response.bytes().await.map_err(|_| ForwardError::Lost)?;
        Ok(Relayed { status, content_type, body })
    }

    /// Carries the wish to move leadership to the leader and brings its answer; `None`: none
    /// came.
    pub async fn forward_handover(
        &self,
        leader: NodeId,
        wish: Bytes,
        timeout: Duration,
        trace: Option<&Trace>,
    ) -> Option<Result<NodeId, NotHandedOver>> {
        let url = format!("{}/v1/raft/handover", self.url(leader)?);
        let (client, us) = (&self.inner.client, self.inner.us);
        let answer = forward::carry(client, us, leader, url, (wish, trace), timeout).await.ok()?;
        handover::decode_handover(answer)
    }

    /// Sends a snapshot, and goes on where the connection broke; `resumed` counts that.
    pub async fn ship(
        &self,
        to: NodeId,
        term: Term,
        meta: &SnapshotMeta,
        pinned: PinnedCheckpoint,
        resumed: &::metrics::Counter,
    ) -> Shipped {
        let Some(url) = self.url(to) else { return Shipped::Lost };
        let (client, us) = (&self.inner.client, self.inner.us);
        ship::ship(client, us, to, &url, (term, meta), pinned, resumed).await
    }

    fn peer(&self, id: NodeId) -> Option<Peer> {
        self.inner.peers.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<NodeId, Peer>> {
        self.inner.peers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Small packets become one buffer, since a copy is cheaper than a chunk of its own; large
/// frames stay where they are, in the map.
fn parcel(head: Vec<u8>, frames: Vec<Bytes>) -> Parcel {
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    if bytes > COPY_MAX {
        return std::iter::once(Bytes::from(head)).chain(frames).collect();
    }
    let mut whole = head;
    whole.reserve(bytes);
    for part in frames {
        whole.extend_from_slice(&part);
    }
    vec![whole.into()]
}
