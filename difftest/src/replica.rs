//! What the world asks of a node, whoever wrote it.

use std::fmt::Debug;

use mmapd::raft::planted::Planted;
use mmapd::raft::types::{Index, NodeId, Term};

use crate::disk::{Disk, Entry, Log};
use crate::ours::Ours;
use crate::packet::Packet;
use crate::theirs::Theirs;

/// Who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The core of mmapd.
    Ours,
    /// The crate `raft`.
    Theirs,
}

/// Settings that mean the same to both.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The shortest election time-out in ticks; the longest is twice that.
    pub election_ticks: u32,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: u32,
    /// Appends on their way to one follower.
    pub inflight: usize,
    /// Appends of one entry at most. `raft` counts bytes and we count entries, so that all
    /// or one are the only bounds with one meaning.
    pub one_by_one: bool,
    /// A bug of our nodes.
    pub planted: Option<Planted>,
}

impl Default for Settings {
    fn default() -> Self {
        let (election_ticks, heartbeat_ticks) = (20, 4);
        Self { election_ticks, heartbeat_ticks, inflight: 256, one_by_one: false, planted: None }
    }
}

/// What a node is told when it starts.
#[derive(Clone, Debug)]
pub struct Life {
    /// This node.
    pub id: NodeId,
    /// All of them.
    pub voters: Vec<NodeId>,
    /// The settings of the cluster.
    pub settings: Settings,
    /// The election time-out of a node of `raft`, for this life: its own random numbers do
    /// not come from a seed.
    pub timeout: u32,
    /// The random numbers of one of our nodes.
    pub seed: u64,
}

/// What a node did.
#[derive(Debug, Default)]
pub struct Out {
    /// To be sent.
    pub packets: Vec<Packet>,
    /// New in the log, not yet on disk.
    pub written: Vec<Entry>,
    /// To be applied, in order.
    pub applied: Vec<Entry>,
    /// Reads that are decided; `None`: refused.
    pub reads: Vec<(u64, Option<Index>)>,
}

/// A node that runs.
pub trait Replica: Debug {
    /// One unit of logical time went by.
    fn tick(&mut self, out: &mut Out);
    /// A message arrived.
    fn receive(&mut self, packet: Packet, out: &mut Out);
    /// A client wants these appended; false: refused.
    fn propose(&mut self, payloads: &[u64], out: &mut Out) -> bool;
    /// A client wants a linearizable read. Tokens grow.
    fn read(&mut self, token: u64, out: &mut Out);
    /// Hand leadership to this voter.
    fn transfer(&mut self, to: NodeId, out: &mut Out);
    /// Campaign now.
    fn campaign(&mut self, out: &mut Out);
    /// Everything up to this write is on disk.
    fn sync(&mut self, token: u64, out: &mut Out);
    /// Its term.
    fn term(&self) -> Term;
    /// Does it lead?
    fn leads(&self) -> bool;
    /// Known to be committed.
    fn commit(&self) -> Index;
    /// Its log.
    fn disk(&self) -> &Disk;
    /// It stops without warning.
    fn into_disk(self: Box<Self>) -> Disk;
}

/// Starts a node on what its disk holds. It applies everything anew.
#[must_use]
pub fn start(kind: Kind, life: &Life, log: Log) -> Box<dyn Replica> {
    match kind {
        Kind::Ours => Box::new(Ours::start(life, log)),
        Kind::Theirs => Box::new(Theirs::start(life, log)),
    }
}
