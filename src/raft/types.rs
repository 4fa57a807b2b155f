//! The words of the protocol as types: who, when, where, and what is remembered.
//!
//! Shared by everything below the HTTP edge. Nothing here does anything.

use std::collections::BTreeMap;
use std::fmt;

/// Name of a node, unique in its cluster for ever; never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// An epoch with at most one leader (Raft 5.1). 0 is before the first election.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// A place in the log. Entries start at 1; 0 is the empty place before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub u64);

impl Index {
    /// The place after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The place before this one; the place before 0 is 0.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Term {
    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Names one entry for the whole cluster.
///
/// Field order is load-bearing: the derived `Ord` compares the term first and
/// the index second, which is the "more up to date" rule of Raft 5.4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// Term in which the entry was proposed.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
}

/// What a node must never forget (Raft figure 2): a vote that is forgotten can
/// be cast twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Newest term this node has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
}

/// What the payload of an entry is. The number is its byte on disk and wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Empty: a leader's first entry in its term (Raft 8).
    Noop = 0,
    /// One command of the state machine.
    Command = 1,
    /// A [`Membership`].
    Config = 2,
    /// Reserved: remove what has expired up to the entry's time.
    Expire = 3,
    /// Reserved: compare the digests of the replicas.
    Check = 4,
}

impl EntryKind {
    /// The kind with this byte, if there is one.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Noop),
            1 => Some(Self::Command),
            2 => Some(Self::Config),
            3 => Some(Self::Expire),
            4 => Some(Self::Check),
            _ => None,
        }
    }
}

/// Who belongs to the cluster, in the form that entries, snapshots and messages
/// carry. `outgoing` and `learners_next` are for joint consensus (thesis 4.3):
/// both majorities decide while `outgoing` is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Voting members, sorted, without duplicates.
    pub voters: Vec<NodeId>,
    /// Voters of the old configuration during a joint change; else empty.
    pub outgoing: Vec<NodeId>,
    /// Members that receive the log and do not vote.
    pub learners: Vec<NodeId>,
    /// Voters that become learners once the joint change ends.
    pub learners_next: Vec<NodeId>,
    /// The leader ends the joint change by itself.
    pub auto_leave: bool,
    /// Learners that become voters by themselves once they are caught up.
    pub promote: Vec<NodeId>,
    /// Where each member is reached; the core does not look inside.
    pub addresses: BTreeMap<NodeId, String>,
    /// The life of each member's data folder, as soon as it is known: what another one says
    /// in its name counts nothing.
    pub incarnations: BTreeMap<NodeId, u64>,
}

impl Membership {
    /// A configuration of voters only, each with its address.
    #[must_use]
    pub fn of(addresses: BTreeMap<NodeId, String>) -> Self {
        Self { voters: addresses.keys().copied().collect(), addresses, ..Self::default() }
    }

    /// Does `id` vote, in the new or the old configuration?
    #[must_use]
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Is a change under way, so that two sets of voters decide?
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Could this life of a member be the one that the cluster knows?
    #[must_use]
    pub fn knows(&self, id: NodeId, incarnation: u64) -> bool {
        self.incarnations.get(&id).is_none_or(|known| *known == incarnation)
    }

    /// Everyone who receives the log, sorted, without duplicates.
    #[must_use]
    pub fn members(&self) -> Vec<NodeId> {
        let mut all: Vec<NodeId> =
            [&self.voters, &self.outgoing, &self.learners, &self.learners_next]
                .into_iter()
                .flatten()
                .copied()
                .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// `term.index`, as the scripts and the log lines write it.
impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}
