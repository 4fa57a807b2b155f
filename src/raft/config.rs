//! What a node is told when it starts: its settings and what its disk remembers.

use super::planted::Flaw;
use super::types::{HardState, Index, LogId, Membership, NodeId, Term};

/// Settings of the core. Time is counted in ticks; the driver says how long one is.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// Ticks without a leader before a follower campaigns. The time-out is drawn
    /// from `election_ticks .. 2 * election_ticks` at every role change (Raft 5.2).
    pub election_ticks: u32,
    /// Ticks between heartbeats of a leader.
    pub heartbeat_ticks: u32,
    /// Appends on their way to one follower.
    pub max_inflight: usize,
    /// Entries of one [`super::message::Replicate`].
    pub max_batch_entries: u64,
    /// Payload bytes proposed here and not committed; more are refused.
    pub max_uncommitted_bytes: u64,
    /// How long a lease is, on the clock of [`super::message::Input::Clock`]; `None`: there are
    /// none. Less than the shortest election time-out, see [`super::Raft::holds_lease`].
    pub lease: Option<u64>,
    /// Seeds the time-outs and the ids of read requests. It must differ between
    /// two lives of one node: a late answer to an earlier life must not fit.
    pub seed: u64,
    /// The life of this node's data folder. A node that the cluster knows in another life
    /// does not campaign: its old self may have voted.
    pub incarnation: Option<u64>,
    /// A bug to have, to prove that the tests find it: none without the feature `planted`.
    pub planted: Flaw,
}

impl Config {
    /// The defaults, meant for ticks of 25 ms.
    #[must_use]
    pub fn new(id: NodeId, seed: u64) -> Self {
        Self {
            id,
            election_ticks: 20,
            heartbeat_ticks: 4,
            max_inflight: 256,
            max_batch_entries: 1024,
            max_uncommitted_bytes: 64 << 20,
            lease: None,
            seed,
            incarnation: None,
            planted: Flaw::default(),
        }
    }

    pub(super) fn check(&self) {
        assert!(self.id != NodeId(0), "node 0 is nobody");
        assert!(self.heartbeat_ticks >= 1, "a leader must be heard");
        assert!(
            self.election_ticks > self.heartbeat_ticks,
            "one heartbeat must fit into an election time-out"
        );
        assert!(self.max_inflight >= 1, "a window of nothing never moves");
        assert!(self.max_batch_entries >= 1, "a batch of nothing never moves");
    }
}

/// What the disk remembers. Everything in it is durable.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Term and vote.
    pub hard_state: HardState,
    /// The entry before the first that the log holds.
    pub base: LogId,
    /// The configuration as of `base`.
    pub base_membership: Membership,
    /// First entry of each stretch of equal terms after `base`.
    pub runs: Vec<LogId>,
    /// Last entry of the log; `base` when it is empty.
    pub last: LogId,
    /// Configurations after `base`, committed or not, by index.
    pub configs: Vec<(Index, Membership)>,
    /// How far the state machine is.
    pub applied: Index,
    /// This node lost entries and does not know which: none that it ever acknowledged
    /// was of a later term than this one.
    pub amnesia: Option<Term>,
}
