//! What the edge may ask of a node: all of it answered through channels, none of it by
//! touching the protocol. A follower's clients are served here too: writes are carried to
//! the leader, once, and reads wait for a read index.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::backup::Backup;
use super::changes::{Changes, Place};
use super::desk::{Inbox, NotTaken};
use super::inbound::Landing;
use super::scrub::{Order, ScrubError, Scrubbed};
use super::work::{Answer, Compacted, Event, NotCompacted};
use crate::logs::Trace;
use crate::machine::{Applied, Request, View};
use crate::peers::{self, ForwardError, Peers, Reply, Seen};
use crate::raft::types::Index;
use crate::store::{Disk, PinnedCheckpoint, Published};
use crate::wire::Address;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged anywhere before it began (thesis 6.4).
    #[default]
    Linearizable,
    /// The same without a round trip while the leader's lease holds, which trusts clocks
    /// (thesis 6.4.1).
    Lease,
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
    /// This node's database was damaged and is being made anew.
    #[error("this node's database was damaged and is being made anew")]
    Rebuilding,
}

/// Why the database was not compacted; it is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompactError {
    /// The node says why.
    Refused(NotCompacted),
    /// The node stops, or has.
    Stopping,
}

/// Why there is no backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupRefused {
    /// This node's database was damaged and is being made anew.
    Rebuilding,
    /// The node stops, or has.
    Stopping,
    /// No checkpoint became durable in time.
    TooSlow,
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
    /// The life of its data folder, in hexadecimal; `None`: not known yet.
    pub incarnation: Option<String>,
    /// Last index known to be on its disk; known to the leader only, and of itself.
    pub match_index: Option<u64>,
    /// Next index the leader will send; known to the leader only.
    pub next_index: Option<u64>,
    /// Entries it is behind the leader's last; known to the leader only.
    pub lag: Option<u64>,
    /// Milliseconds since it was last heard of; `None`: never.
    pub last_contact_ms: Option<u64>,
}

/// A picture of the node: made anew when its role or leader changes, with each tick while things
/// happen, and every few ticks otherwise.
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
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// A change of the members is between its two steps.
    pub joint: bool,
    /// All members.
    pub members: Vec<MemberStatus>,
}

/// Who waits for an answer.
pub(super) type Waiter = oneshot::Sender<Answer>;

/// What lies in the inbox of a node.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "moved once; a box would be an allocation a packet")]
pub(super) enum Mail {
    /// A client's command, encoded.
    Propose(Waiter, Bytes),
    /// A client's linearizable read.
    Read(Waiter),
    /// A client's read that a lease may answer.
    LeaseRead(Waiter),
    /// Anything else.
    Event(Event<Waiter>),
    /// A checkpoint that holds this entry is wanted; `None`: not yet.
    Backup(Index, oneshot::Sender<Option<PinnedCheckpoint>>),
    /// Finish what is running and end.
    Stop,
}

/// Largest body of `POST /v1/raft/propose`: a command of the greatest key and value.
pub const FORWARDED_MAX: u64 = crate::wire::FRAMES_MAX as u64;
/// How often a request that found no leader looks again, if nothing wakes it before.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// The next leader tells all at once; this is for those that hear it later than we do, and for
/// what they had sent us by then.
const NEWS_SPREAD: Duration = Duration::from_millis(100);

/// How long a backup waits for a checkpoint to become durable, and how often it asks.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(30);
const CHECKPOINT_POLL: Duration = Duration::from_millis(5);

/// The edge's side of a running node: cheap to clone, safe to share.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    /// The request on whose behalf it is used.
    pub(super) trace: Option<Arc<Trace>>,
}

pub(super) struct Shared {
    pub(super) us: Address,
    pub(super) inbox: Inbox,
    pub(super) status: watch::Receiver<Arc<Status>>,
    pub(super) published: Published,
    /// The newest entry that readers find applied.
    pub(super) applied: watch::Receiver<u64>,
    /// The newest revision that a leader told about along with an answer; this replica may be
    /// behind it.
    pub(super) told_revision: AtomicU64,
    pub(super) peers: Peers,
    /// Turns true when it begins to shut down.
    pub(super) draining: watch::Sender<bool>,
    pub(super) quota: u64,
    /// Where and how a snapshot is received.
    pub(super) disk: Arc<dyn Disk>,
    pub(super) incoming: Arc<tokio::sync::Mutex<Landing>>,
    pub(super) map_max: u64,
    /// Turns true when the streams of peers must end.
    pub(super) stopping: watch::Sender<bool>,
    /// Where the scrubber takes its orders.
    pub(super) scrubs: std::sync::mpsc::Sender<Order>,
    /// Is a pass of it under way?
    pub(super) scrubbing: Arc<AtomicBool>,
    pub(super) changes: Arc<Changes>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("us", &self.shared.us).finish_non_exhaustive()
    }
}

impl Handle {
    /// The same, on behalf of a request: the other nodes are told of which.
    #[must_use]
    pub fn on_behalf_of(&self, trace: Arc<Trace>) -> Self {
        Self { shared: Arc::clone(&self.shared), trace: Some(trace) }
    }

    /// The request on whose behalf it is used, for lines that are written when it is over.
    #[must_use]
    pub fn trace(&self) -> Option<Arc<Trace>> {
        self.trace.clone()
    }

    /// Replicates `command` and answers what it did, once a majority has it on disk and the
    /// leader has applied it. A follower forwards it, once. While nobody leads, the command
    /// waits here, not yet proposed, until `timeout`.
    ///
    /// # Errors
    /// See [`WriteError`]; all but `Unknown` mean that nothing was changed.
    pub async fn propose(
        &self,
        request: impl Into<Request>,
        timeout: Duration,
    ) -> Result<Applied, WriteError> {
        self.propose_seen(request, timeout).await.map(|(applied, _)| applied)
    }

    /// The same, and how the state was where it was applied.
    ///
    /// # Errors
    /// As [`Handle::propose`].
    pub async fn propose_seen(
        &self,
        request: impl Into<Request>,
        timeout: Duration,
    ) -> Result<(Applied, Seen), WriteError> {
        let request = request.into();
        if request.command.grows() {
            self.within_quota()?;
        }
        let payload = request.encode();
        let deadline = Instant::now() + timeout;
        let mut status = self.shared.status.clone();
        loop {
            status.mark_unchanged();
            let leader = match self.propose_here(payload.clone(), deadline).await? {
                Answer::Written(applied) => return Ok((applied, self.seen())),
                Answer::NotLeader(leader) => leader.filter(|leader| *leader != self.shared.us.node),
                Answer::Overloaded => return Err(WriteError::Overloaded),
                Answer::Unknown
                | Answer::Readable
                | Answer::NotReadable(_)
                | Answer::Installed(_)
                | Answer::Changed(_)
                | Answer::Compacted(_)
                | Answer::HandingOver(_) => {
                    return Err(WriteError::Unknown("leadership changed while it was replicated"));
                }
            };
            if let Some(leader) = leader {
                let left = deadline.saturating_duration_since(Instant::now());
                match self
                    .shared
                    .peers
                    .forward(leader, payload.clone(), left, self.trace.as_deref())
                    .await
                {
                    Ok(Reply::Applied(applied, seen)) => {
                        self.shared.told_revision.fetch_max(seen.revision, Ordering::Relaxed);
                        return Ok((applied, seen));
                    }
                    Ok(Reply::Overloaded) => return Err(WriteError::Overloaded),
                    Ok(Reply::Full(limit, actual)) => {
                        return Err(WriteError::Full { limit, actual });
                    }
                    Ok(Reply::Unknown) => {
                        return Err(WriteError::Unknown("the leader could not confirm it"));
                    }
                    Err(ForwardError::Lost) => {
                        return Err(WriteError::Unknown("the leader did not answer"));
                    }
                    // Definitely not applied: the next leader may be asked.
                    Ok(Reply::NotLeader) | Err(ForwardError::Unreachable) => {}
                }
            }
            if !wait_for_news(&mut status, deadline).await {
                return Err(WriteError::NoLeader);
            }
        }
    }

    /// How the state is here.
    fn seen(&self) -> Seen {
        let view = self.stale_view();
        Seen { revision: view.revision(), time_ms: view.time_ms() }
    }

    /// The newest revision that this node knows of: what it has applied, or what a leader said
    /// when it answered a command from here.
    #[must_use]
    pub fn known_revision(&self) -> u64 {
        self.stale_view().revision().max(self.shared.told_revision.load(Ordering::Relaxed))
    }

    fn within_quota(&self) -> Result<(), WriteError> {
        // The past has limits of its own, and what is deleted must make room at once.
        let past = self.stale_view().past_bytes();
        let actual = self.shared.status.borrow().db_live_bytes.saturating_sub(past);
        let limit = self.shared.quota;
        if actual >= limit { Err(WriteError::Full { limit, actual }) } else { Ok(()) }
    }

    /// Proposes to this node alone.
    async fn propose_here(&self, payload: Bytes, deadline: Instant) -> Result<Answer, WriteError> {
        let (waiter, answer) = oneshot::channel();
        let mail = Mail::Propose(waiter, payload);
        self.shared.inbox.bring(mail).await.map_err(|error| match error {
            NotTaken::Full => WriteError::Overloaded,
            NotTaken::NobodyReads => WriteError::Draining,
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(WriteError::Unknown("the node stopped")),
            Err(_) => Err(WriteError::Unknown("not confirmed in time")),
        }
    }

    /// The state to read from. While nobody leads, a linearizable read waits until `timeout`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn view(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<View, ReadError> {
        if consistency == Consistency::Stale {
            let withheld = self.shared.published.is_withheld();
            return if withheld { Err(ReadError::Rebuilding) } else { Ok(self.stale_view()) };
        }
        let deadline = Instant::now() + timeout;
        let mut status = self.shared.status.clone();
        loop {
            status.mark_unchanged();
            let (waiter, answer) = oneshot::channel();
            let mail = if consistency == Consistency::Lease {
                Mail::LeaseRead(waiter)
            } else {
                Mail::Read(waiter)
            };
            self.shared.inbox.try_send(mail).map_err(|error| match error {
                NotTaken::Full => ReadError::Overloaded,
                NotTaken::NobodyReads => ReadError::Draining,
            })?;
            match timeout_at(deadline, answer).await {
                Ok(Ok(Answer::Readable)) => return Ok(self.stale_view()),
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(ReadError::Draining),
                Err(_) if status.borrow().leader.is_none() => return Err(ReadError::NoLeader),
                Err(_) => return Err(ReadError::TimedOut),
            }
            if !wait_for_news(&mut status, deadline).await {
                return Err(ReadError::NoLeader);
            }
        }
    }

    /// Waits until this replica has applied entry `revision`; `false`: not within `timeout`.
    pub async fn reached(&self, revision: u64, timeout: Duration) -> bool {
        if self.stale_view().applied().0 >= revision {
            return true;
        }
        let mut applied = self.applied();
        let reached = applied.wait_for(|applied| *applied >= revision);
        matches!(tokio::time::timeout(timeout, reached).await, Ok(Ok(_)))
    }

    /// Follows what is applied here: index of the newest entry.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.shared.applied.clone()
    }

    /// This replica as it is, without waiting.
    #[must_use]
    pub fn stale_view(&self) -> View {
        View::new(self.shared.published.snapshot())
    }

    /// The newest picture of the node.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.shared.status.borrow().clone()
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.us.node.0
    }

    /// URL of the leader, for redirects; `None`: unknown.
    #[must_use]
    pub fn leader_url(&self) -> Option<String> {
        let status = self.status();
        let leader = status.leader?;
        status.members.iter().find(|member| member.id == leader).map(|member| member.url.clone())
    }

    /// Writes this node's database anew without holes, and waits until that is done.
    ///
    /// # Errors
    /// See [`CompactError`].
    pub async fn compact(&self) -> Result<Compacted, CompactError> {
        let (waiter, answer) = oneshot::channel();
        let mail = Mail::Event(Event::Compact(waiter));
        self.shared.inbox.send(mail).await.map_err(|_| CompactError::Stopping)?;
        let mut stopping = self.shared.stopping.subscribe();
        let answer = tokio::select! {
            answer = answer => answer,
            // A node that stops does not wait for it, and ends it.
            _ = stopping.wait_for(|stopping| *stopping) => return Err(CompactError::Stopping),
        };
        match answer {
            Ok(Answer::Compacted(Ok(compacted))) => Ok(compacted),
            Ok(Answer::Compacted(Err(why))) => Err(CompactError::Refused(why)),
            Ok(_) | Err(_) => Err(CompactError::Stopping),
        }
    }

    /// Reads the whole disk and compares it with its checksums; damage is dealt with.
    ///
    /// # Errors
    /// See [`ScrubError`].
    pub async fn scrub(&self) -> Result<Scrubbed, ScrubError> {
        if self.shared.scrubbing.swap(true, Ordering::AcqRel) {
            return Err(ScrubError::Busy);
        }
        let (asker, answer) = oneshot::channel();
        self.shared.scrubs.send(Order::Run(asker)).map_err(|_| ScrubError::Stopping)?;
        let mut stopping = self.shared.stopping.subscribe();
        tokio::select! {
            answer = answer => answer.unwrap_or(Err(ScrubError::Stopping)),
            _ = stopping.wait_for(|stopping| *stopping) => Err(ScrubError::Stopping),
        }
    }

    /// A backup of all that this replica has applied by now.
    ///
    /// # Errors
    /// See [`BackupRefused`].
    pub async fn backup(&self) -> Result<Backup, BackupRefused> {
        let deadline = Instant::now() + CHECKPOINT_PATIENCE;
        let upto = self.stale_view().applied();
        loop {
            if self.is_draining() {
                return Err(BackupRefused::Stopping);
            }
            if self.shared.published.is_withheld() {
                return Err(BackupRefused::Rebuilding);
            }
            let (asker, answer) = oneshot::channel();
            let sent = self.shared.inbox.send(Mail::Backup(upto, asker)).await;
            sent.map_err(|_| BackupRefused::Stopping)?;
            match answer.await {
                Ok(Some(pinned)) => return Ok(Backup::new(self.shared.us.cluster, pinned)),
                Ok(None) if Instant::now() >= deadline => return Err(BackupRefused::TooSlow),
                Ok(None) => tokio::time::sleep(CHECKPOINT_POLL).await,
                Err(_) => return Err(BackupRefused::Stopping),
            }
        }
    }

    /// Room for one more watch, if there are less than `limit`.
    #[must_use]
    pub fn watch(&self, limit: u32) -> Option<Place> {
        self.shared.changes.place(limit)
    }

    /// Comes back when the node stops.
    pub async fn stopped(&self) {
        let mut stopping = self.shared.stopping.subscribe();
        // An error means that the node is gone.
        drop(stopping.wait_for(|stopping| *stopping).await);
    }

    /// Is this node shutting down?
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Comes back when this node begins to shut down.
    pub async fn draining(&self) {
        let mut draining = self.shared.draining.subscribe();
        // An error means that the node is gone.
        drop(draining.wait_for(|draining| *draining).await);
    }

    /// Ends watches and the streams of peers, which would keep the listener busy for ever.
    pub fn end_streams(&self) {
        self.shared.changes.end();
        self.shared.stopping.send_replace(true);
    }

    /// Makes `/readyz` fail, sends those who watch away and hands leadership over; requests
    /// are still served. A node that
    /// led comes back when its followers have heard of the next leader: had they still commands
    /// on the way to us when connections are closed, nobody could tell whether those took effect.
    pub async fn drain(&self) {
        self.shared.draining.send_replace(true);
        self.shared.changes.end();
        let led = self.status().role == RoleName::Leader;
        let step_down = Mail::Event(Event::StepDown);
        if self.shared.inbox.send(step_down).await.is_err() {
            return;
        }
        let mut status = self.shared.status.clone();
        let alone = |status: &Arc<Status>| status.members.iter().filter(|m| m.voter).count() < 2;
        let handed_over = status.wait_for(|status| {
            let another = status.role != RoleName::Leader && (!led || status.leader.is_some());
            another || alone(status)
        });
        // A transfer that fails is given up by the protocol; then the others elect.
        let news = tokio::time::timeout(Duration::from_secs(2), handed_over).await;
        if led && news.is_ok_and(|status| status.is_ok_and(|status| !alone(&status))) {
            tokio::time::sleep(NEWS_SPREAD).await;
        }
    }
}

/// Waits until the node's picture changes or a short while passed; `false`: too late.
pub(super) async fn wait_for_news(
    status: &mut watch::Receiver<Arc<Status>>,
    deadline: Instant,
) -> bool {
    let leader = status.borrow().leader;
    let until = deadline.min(Instant::now() + LEADER_POLL);
    let news = status.wait_for(|status| status.leader != leader);
    drop(timeout_at(until, news).await);
    Instant::now() < deadline
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
    /// A snapshot with damage in it: 422.
    #[error("{0}")]
    Damaged(String),
    /// Not now, for the named reason: 503.
    #[error("{0}")]
    Unavailable(String),
}

impl Handle {
    /// `POST /v1/raft/propose`: a command forwarded by a follower; the answer's bytes. Never
    /// forwarded again.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn peer_propose(&self, body: Bytes) -> Result<Bytes, PeerError> {
        let (payload, timeout) =
            peers::decode_forwarded(self.shared.us, body).ok_or_else(|| {
                PeerError::Misdirected(
                    "not a command forwarded to this node of this cluster".into(),
                )
            })?;
        let request = Request::decode(&payload)
            .ok_or_else(|| PeerError::Malformed("not a command of this version".into()))?;
        if request.command.grows()
            && let Err(WriteError::Full { limit, actual }) = self.within_quota()
        {
            return Ok(peers::encode_reply(&Reply::Full(limit, actual)));
        }
        let reply = match self.propose_here(payload, Instant::now() + timeout).await {
            Ok(Answer::Written(applied)) => Reply::Applied(applied, self.seen()),
            Ok(Answer::NotLeader(_)) | Err(WriteError::NoLeader | WriteError::Draining) => {
                Reply::NotLeader
            }
            Ok(Answer::Overloaded) | Err(WriteError::Overloaded) => Reply::Overloaded,
            Err(WriteError::Full { limit, actual }) => Reply::Full(limit, actual),
            Ok(
                Answer::Unknown
                | Answer::Readable
                | Answer::NotReadable(_)
                | Answer::Installed(_)
                | Answer::Changed(_)
                | Answer::Compacted(_)
                | Answer::HandingOver(_),
            )
            | Err(WriteError::Unknown(_)) => Reply::Unknown,
        };
        Ok(peers::encode_reply(&reply))
    }
}
