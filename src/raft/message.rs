//! What nodes say to each other, what can happen to a node, and what it must do:
//! the border of the pure core.

use super::types::{HardState, Index, LogId, Membership, NodeId, Term};

/// A message with its sender, receiver and the sender's term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who sent it.
    pub from: NodeId,
    /// Whom it is for.
    pub to: NodeId,
    /// The sender's term when it was sent; for [`Message::PreVote`] and a granted
    /// [`Message::PreVoteReply`] the term that the candidate would enter.
    pub term: Term,
    /// What it says.
    pub message: Message,
}

/// The entries of an append as the core sees them: places, never payloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryRun {
    /// First entry of each stretch of equal terms, in order; empty: no entries.
    pub terms: Vec<LogId>,
    /// Last index of the run; `prev` of the append when there are no entries.
    pub last: Index,
    /// Configurations among the entries, by index.
    pub configs: Vec<(Index, Membership)>,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// "Would you vote for me?" Changes nothing at the receiver (thesis 9.6).
    PreVote {
        /// The candidate's last entry.
        last: LogId,
    },
    /// Answer to `PreVote`.
    PreVoteReply {
        /// Whether the voter would.
        granted: bool,
    },
    /// RequestVote (Raft 5.2).
    Vote {
        /// The candidate's last entry.
        last: LogId,
        /// The candidate was told to campaign by the leader itself: leader
        /// stickiness does not apply (thesis 3.10).
        transfer: bool,
    },
    /// Answer to `Vote`.
    VoteReply {
        /// Whether the vote was given.
        granted: bool,
    },
    /// AppendEntries with entries `prev + 1 ..= entries.last` (Raft 5.3). On the
    /// wire their frames follow the message.
    Append {
        /// The entry before the first.
        prev: LogId,
        /// What the run holds.
        entries: EntryRun,
        /// The leader's commit index.
        commit: Index,
        /// Newest read round of the leader (thesis 6.4).
        read_seq: u64,
    },
    /// The follower's log equals the leader's up to `matched`, durably.
    Accepted {
        /// Last index known to match and to be on the follower's disk.
        matched: Index,
        /// Largest read round seen from this leader in this term.
        read_seq: u64,
    },
    /// The follower does not hold `prev`.
    Rejected {
        /// `prev.index` of the append that was refused.
        prev: Index,
        /// The follower's best guess of where the logs agree: its greatest entry
        /// with index at most `prev` and term at most the refused `prev.term`.
        hint: LogId,
        /// The follower's last index.
        last: Index,
        /// Largest read round seen from this leader in this term.
        read_seq: u64,
    },
    /// "I still lead": sent apart from appends, so that it never waits behind them.
    Heartbeat {
        /// At most the receiver's match index, so that it may be believed.
        commit: Index,
        /// Newest read round of the leader.
        read_seq: u64,
    },
    /// Answer to `Heartbeat`.
    HeartbeatReply {
        /// Largest read round seen from this leader in this term.
        read_seq: u64,
    },
    /// A follower asks for a read index on behalf of its clients.
    ReadIndex {
        /// Unique per attempt of the asking node.
        id: u64,
    },
    /// Answer to `ReadIndex`; `None`: ask again, this node cannot confirm it.
    ReadIndexReply {
        /// The id that was asked with.
        id: u64,
        /// What the reader must have applied before it answers.
        index: Option<Index>,
    },
    /// The leader asks the receiver to campaign at once (thesis 3.10).
    TimeoutNow,
}

/// Describes a snapshot: the whole state up to and including `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry it includes.
    pub last: LogId,
    /// The configuration as of that entry.
    pub membership: Membership,
}

/// Names a write given to the disk: everything ordered up to it is durable when
/// the driver answers [`Input::Durable`] with it. A counter and not an index,
/// since an index can be given away and back while a sync runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoToken(pub u64);

/// Everything that can happen to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// One unit of logical time went by. After a pause the driver delivers the
    /// waiting messages first and then one tick, not the missed ones.
    Tick,
    /// A peer sent this.
    Receive(Envelope),
    /// Clients want these appended, in this order. The answer is in
    /// [`Effects::proposed`].
    Propose {
        /// Payload bytes of each entry, at least one entry.
        sizes: Vec<u32>,
    },
    /// The cluster shall consist of these from now on: `outgoing` and `learners_next` are
    /// empty, all lists sorted. The answer is in [`Effects::reconfigured`].
    Reconfigure {
        /// The configuration that is wanted.
        target: Membership,
    },
    /// Some client wants a linearizable read; the answer carries `token`.
    Read {
        /// Chosen by the driver, unique in this process life.
        token: u64,
    },
    /// Like `Read`, and the leader may answer without a round while its lease holds.
    LeaseRead {
        /// Chosen by the driver, unique in this process life.
        token: u64,
    },
    /// What time it is on a clock that never jumps back and goes on while the process or the
    /// machine sleeps. Told before the inputs that came after; of use for leases only.
    Clock {
        /// In the unit of [`super::config::Config::lease`].
        now: u64,
    },
    /// Everything up to this token is on disk.
    Durable {
        /// As given out in [`Effects::io`].
        io: IoToken,
    },
    /// The state machine has applied up to here.
    Applied {
        /// Last applied entry.
        index: Index,
    },
    /// The log no longer holds entries up to and including `upto`.
    Compacted {
        /// Last entry that was dropped.
        upto: LogId,
    },
    /// A whole and verified snapshot arrived from the leader of `term`; install
    /// it? The answer is in [`Effects::install`].
    SnapshotReceived {
        /// Who sent it.
        from: NodeId,
        /// The sender's term.
        term: Term,
        /// What it holds.
        meta: SnapshotMeta,
    },
    /// The snapshot of [`Effects::install`] is the durable state of this node.
    SnapshotInstalled {
        /// What was installed.
        meta: SnapshotMeta,
    },
    /// Sending the snapshot that was asked for by [`Effects::snapshots`] ended.
    SnapshotSent {
        /// The receiver.
        to: NodeId,
        /// The last entry of the snapshot, when the receiver has installed it.
        installed: Option<LogId>,
    },
    /// The transport lost messages to this peer.
    Unreachable {
        /// The peer.
        peer: NodeId,
    },
    /// Hand leadership to this voter (thesis 3.10).
    Transfer {
        /// The voter that shall lead.
        to: NodeId,
    },
    /// The connections from this peer ended and nobody listens at its address: its process
    /// is gone. Says nothing about a peer that is merely silent.
    LeaderGone {
        /// The peer, leader or not.
        peer: NodeId,
    },
    /// Campaign now, as if the election time-out had passed.
    Campaign,
    /// What the node can do for the cluster has changed.
    Fitness(Fitness),
}

/// What a node can do for the cluster beside keeping its word. A node starts fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fitness {
    /// The first entry after the applied ones that it holds by name only: its bytes are
    /// damaged and must come from a peer. What is not whole is not acknowledged, and
    /// not applied.
    pub damaged: Option<Index>,
    /// It must not lead: its log or its database is not whole. It still votes.
    pub unfit_to_lead: bool,
}

/// Entries that became part of the log and must be staged for the disk. They
/// replace whatever the log held at `first` and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append {
    /// First new index.
    pub first: Index,
    /// Last new index.
    pub last: Index,
    /// Term of own entries: those proposed, or the empty entry of a new leader
    /// when `source` is [`AppendSource::Noop`].
    pub term: Term,
    /// Where the payloads are.
    pub source: AppendSource,
}

/// Where the driver finds the payloads of an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendSource {
    /// One empty entry of kind `Noop`.
    Noop,
    /// One configuration: the one that rules at this index.
    Config,
    /// The payloads of the `Propose` being stepped.
    Proposed,
    /// The frames of the `Append` message being stepped, from `first` on.
    Received,
}

/// Send entries `prev + 1 ..= upto` to a follower: the driver takes them from
/// the log. `upto == prev.index` is an empty append (a probe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicate {
    /// The follower.
    pub to: NodeId,
    /// The entry before the first.
    pub prev: LogId,
    /// The last entry to send. The driver may split the range into several
    /// messages, in order.
    pub upto: Index,
    /// To be sent along.
    pub commit: Index,
    /// To be sent along.
    pub read_seq: u64,
    /// To be sent along: the term in which this was decided.
    pub term: Term,
}

/// Why nothing was proposed; each is a definite "not applied".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This node does not lead; perhaps this one does.
    NotLeader(Option<NodeId>),
    /// Leadership is being handed over.
    Transferring,
    /// Too many bytes wait for commit.
    Overloaded,
}

/// Why the configuration stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeRefusal {
    /// This node does not lead; perhaps this one does.
    NotLeader(Option<NodeId>),
    /// Leadership is being handed over.
    Transferring,
    /// Another change is under way.
    Pending,
    /// The leader is new and has not committed anything in its term yet.
    NotReady,
    /// It is the configuration that rules.
    Unchanged,
    /// No cluster can consist of that; why.
    Impossible(&'static str),
    /// This node lacks too many entries to vote, or does not answer.
    Behind(NodeId),
    /// Too few of the wanted voters answer.
    NoQuorum {
        /// Voters that do.
        answering: usize,
        /// Voters wanted.
        voters: usize,
    },
}

/// What became of a read asked for by [`Input::Read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Serve it once this index is applied.
    At(Index),
    /// Nobody can confirm it now: no leader, or leadership changed.
    Refused(Option<NodeId>),
}

/// What the driver must do next, in the order that the fields are listed. The
/// vectors keep their capacity: the driver clears and reuses one `Effects`.
#[derive(Clone, Debug, Default)]
#[must_use = "dropped effects lose votes and entries"]
pub struct Effects {
    /// Save this before, or in the same sync as, `appends`.
    pub hard_state: Option<HardState>,
    /// Stage these, in order.
    pub appends: Vec<Append>,
    /// Covers `hard_state` and `appends` above; `Some` iff either is there.
    pub io: Option<IoToken>,
    /// What became of an [`Input::Propose`]: the first entry's id, or why not.
    pub proposed: Option<Result<LogId, Refusal>>,
    /// What became of an [`Input::Reconfigure`]: the entry's id, or why not.
    pub reconfigured: Option<Result<LogId, ChangeRefusal>>,
    /// Send these entries; only after they are readable in the log, which is
    /// before they are durable (thesis 10.2.1).
    pub replicate: Vec<Replicate>,
    /// Send these at once: whatever needed durability was held back inside.
    pub messages: Vec<Envelope>,
    /// Stream a snapshot to these peers.
    pub snapshots: Vec<NodeId>,
    /// Everything up to here is committed and durable here: apply it.
    pub commit: Option<Index>,
    /// Reads that are decided.
    pub reads: Vec<(u64, ReadOutcome)>,
    /// Install the received snapshot, dropping the log unless it holds
    /// `meta.last`; `Some(None)`: refuse it, it is stale.
    pub install: Option<Option<SnapshotMeta>>,
}

impl Effects {
    /// Forgets everything but keeps the memory.
    pub fn clear(&mut self) {
        let Self {
            hard_state,
            appends,
            io,
            proposed,
            reconfigured,
            replicate,
            messages,
            snapshots,
            commit,
            reads,
            install,
        } = self;
        (*hard_state, *io, *commit, *install) = (None, None, None, None);
        (*proposed, *reconfigured) = (None, None);
        appends.clear();
        replicate.clear();
        messages.clear();
        snapshots.clear();
        reads.clear();
    }
}

impl EntryRun {
    /// Could a leader of `term` have sent this after `prev`? Its fields come from
    /// the network; what is malformed is dropped.
    #[must_use]
    pub fn is_well_formed(&self, prev: LogId, term: Term) -> bool {
        let Some(first) = self.terms.first() else {
            return self.last == prev.index && self.configs.is_empty();
        };
        first.index == prev.index.next()
            && first.term >= prev.term
            && self.terms.is_sorted_by(|a, b| a.index < b.index && a.term < b.term)
            && self.terms.last().is_some_and(|run| run.index <= self.last && run.term <= term)
            && self.configs.is_sorted_by(|a, b| a.0 < b.0)
            && self.configs.iter().all(|(at, _)| *at > prev.index && *at <= self.last)
    }
}
