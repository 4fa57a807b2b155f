//! What the edge may ask of a node.

use std::time::Duration;

use crate::machine::{Applied, Command, View};

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged anywhere before it began (thesis 6.4).
    #[default]
    Linearizable,
    /// This replica as it is.
    Stale,
}

/// Why a write was not confirmed. Only [`WriteError::Unknown`] may have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Nobody leads, or nobody that leads could be reached.
    #[error("the cluster has no leader that this node can reach")]
    NoLeader,
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Draining,
    /// Too much waits already.
    #[error("too many writes are in flight")]
    Overloaded,
    /// The database reached its quota.
    #[error("the database reached its quota of {limit} bytes with {actual}")]
    Full {
        /// Bytes allowed.
        limit: u64,
        /// Bytes used.
        actual: u64,
    },
    /// Proposed, but not confirmed in time: it may take effect later, or may have.
    #[error("the write was proposed and not confirmed: {0}")]
    Unknown(&'static str),
}

/// Why a read was not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nobody leads, or nobody that leads could be reached.
    #[error("the cluster has no leader that this node can reach")]
    NoLeader,
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Draining,
    /// Too much waits already.
    #[error("too many reads are in flight")]
    Overloaded,
    /// Not confirmed before the deadline.
    #[error("the read was not confirmed in time")]
    TimedOut,
}

/// What a node is in the current term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoleName {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Campaigns, or asks whether it should.
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log and does not vote.
    Learner,
}

/// One member as this node knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberStatus {
    /// Its id.
    pub id: u64,
    /// Where it is reached.
    pub url: String,
    /// Votes, or only learns.
    pub voter: bool,
    /// Leads, as far as this node knows.
    pub leader: bool,
    /// Is it this node?
    pub is_self: bool,
    /// Last index known to be on its disk; known to the leader only, and of itself.
    pub match_index: Option<u64>,
    /// Next index the leader will send; known to the leader only.
    pub next_index: Option<u64>,
    /// Entries it is behind the leader's last; known to the leader only.
    pub lag: Option<u64>,
    /// Milliseconds since it was last heard of; `None`: never.
    pub last_contact_ms: Option<u64>,
}

/// A picture of the node, published after each turn of its loop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// This node's id.
    pub id: u64,
    /// The cluster's id in hexadecimal.
    pub cluster_id: String,
    /// What it is.
    pub role: RoleName,
    /// Its term.
    pub term: u64,
    /// Whom it voted for in that term.
    pub voted_for: Option<u64>,
    /// The leader it knows.
    pub leader: Option<u64>,
    /// Last entry known to be committed.
    pub commit_index: u64,
    /// Last entry applied.
    pub applied_index: u64,
    /// The store's revision.
    pub revision: u64,
    /// Last entry in the log.
    pub last_log_index: u64,
    /// First entry in the log.
    pub first_log_index: u64,
    /// Bytes of log files.
    pub log_size_bytes: u64,
    /// Bytes of the database file.
    pub db_size_bytes: u64,
    /// Bytes of it that hold live data.
    pub db_live_bytes: u64,
    /// Keys stored.
    pub keys: u64,
    /// What the operator should know: `quota`, `disk-stalled` and so on.
    pub alarms: Vec<String>,
    /// Has applied all that was committed when it started, and follows or leads.
    pub caught_up: bool,
    /// Is shutting down.
    pub draining: bool,
    /// All members.
    pub members: Vec<MemberStatus>,
}

/// The edge's side of a running node: cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct Handle {
    placeholder: (),
}

impl Handle {
    /// Replicates `command` and answers what it did, once a majority has it on disk and the
    /// leader has applied it. A follower forwards it, once.
    ///
    /// # Errors
    /// See [`WriteError`]; all but `Unknown` mean that nothing was changed.
    pub async fn propose(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Applied, WriteError> {
        let _ = (command, timeout, self.placeholder);
        Err(WriteError::NoLeader)
    }

    /// The state to read from.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn view(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<View, ReadError> {
        let _ = (consistency, timeout);
        Err(ReadError::NoLeader)
    }

    /// This replica as it is, without waiting.
    #[must_use]
    pub fn stale_view(&self) -> View {
        unimplemented!("the driver fills this in")
    }

    /// The newest picture of the node.
    #[must_use]
    pub fn status(&self) -> std::sync::Arc<Status> {
        std::sync::Arc::default()
    }

    /// URL of the leader, for redirects; `None`: unknown.
    #[must_use]
    pub fn leader_url(&self) -> Option<String> {
        None
    }

    /// Refuse new requests with `Draining` from now on (SIGTERM), hand leadership over.
    pub fn drain(&self) {}
}

/// What became of something a peer sent; the edge turns it into a status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Meant for another cluster or another node: 421.
    #[error("{0}")]
    Misdirected(String),
    /// Not a message: 400.
    #[error("{0}")]
    Malformed(String),
    /// Not now, for the named reason: 503.
    #[error("{0}")]
    Unavailable(String),
}

/// What a peer may ask of a node, behind `/v1/raft/*`. Bodies are the wire format.
impl Handle {
    /// `POST /v1/raft/append`: a stream of messages (appends, heartbeats and their answers)
    /// that lasts as long as the peer keeps it open.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_stream(&self, body: axum::body::BodyDataStream) -> Result<(), PeerError> {
        let _ = body;
        Err(PeerError::Unavailable("not started".into()))
    }

    /// `POST /v1/raft/vote`: one message of an election.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_vote(&self, body: bytes::Bytes) -> Result<(), PeerError> {
        let _ = body;
        Err(PeerError::Unavailable("not started".into()))
    }

    /// `POST /v1/raft/snapshot`: a whole snapshot; returns when it is installed or refused.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_snapshot(
        &self,
        body: axum::body::BodyDataStream,
    ) -> Result<bytes::Bytes, PeerError> {
        let _ = body;
        Err(PeerError::Unavailable("not started".into()))
    }

    /// `POST /v1/raft/propose`: a command forwarded by a follower; the answer's bytes.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_propose(&self, body: bytes::Bytes) -> Result<bytes::Bytes, PeerError> {
        let _ = body;
        Err(PeerError::Unavailable("not started".into()))
    }
}
