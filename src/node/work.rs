//! What goes in and out of [`super::core::Core`]: events, and the work they lead to.

use std::path::PathBuf;

use bytes::Bytes;

use super::core::{CompactionDone, CompactionJob};
use super::members::{MemberChange, NotChanged};
use crate::machine::Applied;
use crate::peers::{NotHandedOver, Way};
use crate::raft::message::SnapshotMeta;
use crate::raft::types::{Index, LogId, NodeId, Term};
use crate::store::{
    CheckpointDone, CheckpointJob, Db, Finding, HeapPages, PinnedCheckpoint, Scrub, SpareDone,
    SpareJob, StoreError, SyncJob, Synced,
};
use crate::wire::Packet;

/// Everything that can happen to a node. `W` is whatever the shell needs to answer a
/// waiting client: a channel here, a number in the simulator.
#[derive(Debug)]
pub enum Event<W> {
    /// One unit of logical time went by.
    Tick,
    /// A peer sent this.
    Packet(Packet),
    /// Clients want these commands carried out, in this order.
    Propose(Vec<(W, Bytes)>),
    /// An operator wants another membership.
    ChangeMembers(W, MemberChange),
    /// Clients want linearizable reads.
    Read(Vec<W>),
    /// Clients want reads that a lease may answer.
    LeaseRead(Vec<W>),
    /// A [`SyncJob`] is done.
    Synced(Synced),
    /// A [`CheckpointJob`] is done.
    Checkpointed(Box<CheckpointDone>),
    /// A [`CheckpointJob`] found no room on the disk until the node had to stop.
    CheckpointGivenUp,
    /// A [`SpareJob`] is done.
    SpareMade(SpareDone),
    /// Write the database anew, without holes.
    Compact(W),
    /// A [`CompactionJob`] is done.
    Compacted(CompactionDone),
    /// The transport lost messages to this peer.
    Unreachable(NodeId),
    /// Nobody listens at the address of this peer, which led, any more.
    LeaderGone(NodeId),
    /// A verified snapshot lies in a file beside the database.
    SnapshotArrived(Arrived<W>),
    /// Sending a snapshot ended; with the last entry it held if it was installed.
    SnapshotSent(NodeId, Option<LogId>),
    /// A [`CheckpointJob`] found the database damaged.
    CheckpointFailed(StoreError),
    /// A pass of the scrubber shall begin.
    ScrubWanted,
    /// The scrubber found this.
    Damaged(Finding),
    /// A pass of the scrubber ended.
    Scrubbed {
        /// It saw everything, and nothing was damaged.
        clean: bool,
    },
    /// Somebody wants leadership to move to this voter, or to the most caught-up one.
    HandOver(Option<NodeId>, W),
    /// Hand leadership to the most caught-up voter.
    StepDown,
}

/// A received snapshot.
#[derive(Debug)]
pub struct Arrived<W> {
    /// Who waits to hear what became of it.
    pub waiter: W,
    /// The leader that sent it.
    pub from: NodeId,
    /// Its term.
    pub term: Term,
    /// What the snapshot holds.
    pub meta: SnapshotMeta,
    /// The chain value of its last entry.
    pub chain: u64,
    /// The verified database file.
    pub path: PathBuf,
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The command was applied here.
    Written(Applied),
    /// Nothing was changed, nor will be; perhaps this node leads.
    NotLeader(Option<NodeId>),
    /// Nothing was changed: too much waits for commit.
    Overloaded,
    /// The entry may or may not be applied: a snapshot jumped over its place.
    Unknown,
    /// This node has applied all that a linearizable read must see.
    Readable,
    /// Nobody can confirm the read now; perhaps this node can.
    NotReadable(Option<NodeId>),
    /// The received snapshot was installed, or refused as stale.
    Installed(Option<LogId>),
    /// The membership was changed by this entry, or why not.
    Changed(Result<Index, NotChanged>),
    /// The database was written anew, or why not.
    Compacted(Result<Compacted, NotCompacted>),
    /// To whom leadership is being handed over, or why to nobody.
    HandingOver(Result<NodeId, NotHandedOver>),
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Length of the file before.
    pub before_bytes: u64,
    /// Length of the file now.
    pub after_bytes: u64,
    /// Bytes of it that hold live data.
    pub live_bytes: u64,
    /// The revision at which the files changed places.
    pub revision: u64,
}

/// Why the database stayed as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotCompacted {
    /// A compaction is under way already.
    Busy,
    /// The disk has no room for a second file.
    NoSpace,
    /// A snapshot was installed meanwhile.
    Superseded,
    /// The database is damaged; what is wrong with it.
    Damaged(String),
    /// The new file did not hold the same state: a bug, so it was thrown away.
    Differs,
    /// The node stops.
    Ended,
}

/// A packet to send: its head, then the frames straight from the map.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The receiver.
    pub to: NodeId,
    /// The way there.
    pub way: Way,
    /// Encoded packet without the frames.
    pub head: Vec<u8>,
    /// The frames, verbatim from the log.
    pub frames: Vec<Bytes>,
}

/// A snapshot to send.
#[derive(Debug)]
pub struct Shipment {
    /// The receiver.
    pub to: NodeId,
    /// The sender's term.
    pub term: Term,
    /// What it holds.
    pub meta: SnapshotMeta,
    /// Where its chunks come from.
    pub pinned: PinnedCheckpoint,
}

/// What takes a while to drop: do it away from the node's thread.
#[derive(Debug)]
pub enum Garbage {
    /// A database whose place was taken.
    Db(Box<Db>),
    /// What a checkpoint wrote.
    Pages(HeapPages),
}

/// What the shell must do after a turn. All of it may be done in any order and on any
/// thread: everything that must be ordered was ordered inside.
#[derive(Debug)]
pub struct Work<W> {
    /// Send these.
    pub packets: Vec<Outgoing>,
    /// Run this and hand the result back as [`Event::Synced`].
    pub sync: Option<SyncJob>,
    /// Run this and hand the result back as [`Event::Checkpointed`].
    pub checkpoint: Option<CheckpointJob>,
    /// Run this and hand the result back as [`Event::SpareMade`].
    pub spare: Option<SpareJob>,
    /// Run this and hand the result back as [`Event::Compacted`].
    pub compaction: Option<CompactionJob>,
    /// Run this and hand back what it finds as [`Event::Damaged`], then [`Event::Scrubbed`].
    pub scrub: Option<Scrub>,
    /// Drop these.
    pub garbage: Vec<Garbage>,
    /// Answer these.
    pub answers: Vec<(W, Answer)>,
    /// Send these snapshots.
    pub snapshots: Vec<Shipment>,
    /// There is more to apply: take another turn soon, with or without events.
    pub again: bool,
    /// Figures of this turn.
    pub measured: Measured,
}

/// Figures of one turn, for the metrics.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Entries in the batch that was written to the log; 0: none was.
    pub batch_entries: u64,
    /// Microseconds from proposal to commit, of each own proposal that was applied.
    pub commit_latency_us: Vec<u64>,
    /// Microseconds from a heartbeat to its answer, by peer.
    pub round_trips_us: Vec<(NodeId, u64)>,
    /// Entries applied.
    pub applied: u64,
    /// A snapshot was installed.
    pub installed: bool,
    /// Damaged entries of the log that were repaired.
    pub repaired: u64,
    /// Comparisons that found a peer with another state.
    pub digest_mismatches: u64,
    /// Databases that were given up, and why.
    pub lost_databases: Vec<String>,
    /// Microseconds that a compaction took whose file is in place now.
    pub compaction_us: Option<u64>,
}

impl<W> Default for Work<W> {
    fn default() -> Self {
        Self {
            packets: Vec::new(),
            sync: None,
            checkpoint: None,
            spare: None,
            compaction: None,
            scrub: None,
            garbage: Vec::new(),
            answers: Vec::new(),
            snapshots: Vec::new(),
            again: false,
            measured: Measured::default(),
        }
    }
}
