//! Classic bugs of Raft, planted behind one `if` each where the right code is, to prove that
//! the tests find them: `tests/raft.rs` demands that some script notices every one of them,
//! `tests/raft_sim.rs` that chance finds those that chance can.
//!
//! They exist with the feature `planted` only, which the package's own tests switch on
//! (`[dev-dependencies]` in `Cargo.toml`). Without it [`Flaw`] is empty, `Flaw::is` is
//! `false`, and nothing of this file is in the program.

macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $bug:ident,)+) => {
        /// A bug, and who had it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Planted { $($(#[doc = $what])+ $bug,)+ }

        #[cfg(feature = "planted")]
        impl Planted {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$bug,)+];
        }
    };
}

bugs! {
    // What is durable, and what is said because of it.

    /// Votes and acknowledgements leave before the disk has what they promise (etcd#14370).
    AckBeforeSync,
    /// The vote is missing in the saved hard state (the mmapd of 2016 saved neither).
    ForgetVote,
    /// The term is saved without the vote that came with it: they were two writes, and a
    /// crash fell between them (hashicorp/raft#661).
    TermWithoutVote,
    /// A leader counts its own copy of an entry before its disk has it (etcd#14370).
    OwnCopyNotDurable,
    /// A sync that ends late vouches for entries that were replaced while it ran (the "ABA" of
    /// etcd's asynchronous storage writes).
    OldSyncCounts,
    /// A restarted node takes its whole log for committed.
    RestartCommitsAll,
    /// A node acknowledges entries that it holds by name only (NATS#7549).
    AckDamaged,
    /// A node that lost entries votes as if it had not (FAST'18).
    VoteInAmnesia,
    /// A node that lost entries does not know that any more after a restart (rethinkdb#5289).
    RestartForgetsAmnesia,

    // Elections.

    /// "Up to date" compares the last index and not the last term (the mmapd of 2016).
    IndexOnlyUpToDate,
    /// A voter grants its vote to everyone who asks, within one term.
    VoteForEveryone,
    /// The vote is taken back when its node becomes a follower within the term (redpanda#19,
    /// akka-raft#56).
    StepDownClearsVote,
    /// A vote that arrives twice counts twice.
    SecondCopyOfVoteCounts,
    /// Votes of nodes that are no members count (NATS 2026).
    OutsiderVoteCounts,
    /// A promise to vote is counted as a vote.
    PreVoteCountedAsVote,
    /// A promise is given to a candidate whose log is behind.
    PreVoteIgnoresLog,
    /// The question for a promise already raises the term (thesis 9.6 is there to avoid it).
    PreVoteRaisesTerm,
    /// Who hears a leader helps to depose it all the same (OmniPaxos: chained nodes).
    NoStickiness,
    /// A leader that hears nobody goes on leading (Cloudflare 2020, the deaf leader).
    NoCheckQuorum,
    /// A deposed leader does not learn its fate from answers of a newer term
    /// (redpanda#31547).
    NewerTermInAnswerIgnored,
    /// Who may not lead campaigns: a learner, or a node that is removed (openraft#1805).
    AnyoneCampaigns,
    /// A learner that has received nothing votes for a founder that lost its disk (seed 16395 of
    /// the simulation).
    NewcomerVotes,
    /// A node votes by a log that a snapshot is about to replace.
    VoteWhileInstalling,
    /// A node campaigns with a log that a snapshot is about to replace (nebula#1769).
    CampaignWhileInstalling,

    // Replication.

    /// Where the entry before an append is held, its term is not compared (the mmapd of 2016).
    PrevTermUnchecked,
    /// A follower acknowledges its whole log, not what the append covered (CCF#6001).
    AckWholeLog,
    /// A follower cuts its log at every append, not only at a conflict (CCF#5991).
    TruncateEagerly,
    /// A follower cuts off what is behind an append, which may just be an older one, even
    /// when that is committed (CCF#6016).
    TruncateAfterAppend,
    /// A refusal that was overtaken rewinds what was learned since, below what is known to
    /// match (CCF#5927, etcd-io/raft#149).
    StaleRefusalRewinds,
    /// A refusal of an older term is taken for one of this term.
    OlderTermRefusalCounts,
    /// An acknowledgement of an older term is taken for one of this term.
    OlderTermAckCounts,
    /// A window full of lost appends is never asked about.
    LostWindowStays,
    /// Payload bytes that are committed count as waiting for ever (etcd-io/raft#54).
    UncommittedBytesLeak,

    // Commit.

    /// A leader commits entries of earlier terms by counting (Raft figure 8; logcabin#44).
    CommitOldTermByCounting,
    /// A leader begins its term without an empty entry (redis-raft#18).
    NoNoop,
    /// Half of the voters pass for a majority.
    QuorumHalf,
    /// A refusal counts like an acknowledgement of what may be common (CCF, NSDI'25).
    RefusalCommits,
    /// A follower commits up to its own last entry instead of the last new one.
    CommitWithoutMin,
    /// A heartbeat tells a commit index beyond what its receiver is known to hold (the mmapd
    /// of 2016).
    HeartbeatCommitUnbounded,
    /// A follower takes the commit index of an append even when it goes back (NATS 2026).
    CommitGoesBack,

    // Who decides. Bugs of proposing changes belong here too.

    /// Learners count in majorities.
    LearnerCounts,
    /// During a joint change one majority of both sets together is enough (CCF, NSDI'25).
    JointUnion,
    /// A leader that is no voter any more counts itself (etcd: removed leader).
    RemovedLeaderCounts,
    /// A configuration goes on ruling when its entry is cut off (NATS 2026).
    ConfigOutlivesItsEntry,
    /// A snapshot carries the configuration of the end of the log (dragonboat 2025,
    /// matrixone#24966).
    SnapshotOfLaterConfig,

    // Reads.

    /// A leader answers reads without asking whether it still leads (etcd#741, Consul 2014).
    ReadWithoutRound,
    /// A new leader answers reads before an entry of its term is committed (etcd#7331).
    ReadBeforeOwnCommit,
    /// Echoes of an older round confirm a read (etcd#20418).
    OldEchoConfirmsRead,
    /// A follower takes any answer for the answer to its newest question (etcd-io/raft#397).
    AnyReadAnswerCounts,
    /// A follower answers reads at what it has applied, without waiting for what its leader
    /// said (redis-raft#30).
    FollowerReadsBehind,
    /// A voter that restarts forgets that its leader counts on it for a lease.
    ForgetLease,
    /// Reads that wait when a leader steps down are never answered (openraft#1761).
    ReadsStranded,

    // Changes of the members.

    /// A second change begins before the first is committed (thesis 4.1).
    TwoChangesAtOnce,
    /// A leader changes the members before it has committed an entry of its term (Ongaro's
    /// correction of 2015).
    NoOwnTermBarrier,
    /// Several voters are replaced in one step (the first Raft paper's warning, figure 10).
    ReplaceInOneStep,
    /// The joint configuration is left before it is committed.
    JointLeftEarly,
    /// The joint configuration is never left.
    JointForEver,
    /// Whoever lacks everything becomes a voter at once (thesis 4.2.1).
    PromoteBehind,
    /// A set of voters is accepted of which no majority answers.
    QuorumUnchecked,
    /// A leader that its change removed goes on to lead.
    RemovedLeaderStays,
    /// Only voters of the newest configuration campaign (thesis 4.2.2).
    RemovedNeverCampaigns,
    /// What the old life of a node had is believed of the new one.
    NewLifeInherits,

    // Snapshots.

    /// A log that contradicts a snapshot is kept (hashicorp/raft#697, openraft#559).
    SnapshotKeepsConflict,
    /// A snapshot older than the commit index is installed (rqlite#1717).
    OldSnapshotInstalled,
    /// A deposed leader's snapshot is accepted.
    SnapshotTermUnchecked,

    // Transfer of leadership.

    /// The target campaigns before it has everything (redpanda#2606).
    TransferBeforeCaughtUp,
    /// Proposals are taken during a transfer (openraft#2088, hashicorp/raft#581).
    ProposeDuringTransfer,
    /// Who hears the leader refuses the candidate of its choice (RedisLabs/raft#88).
    TransferMeetsStickiness,
    /// A word to campaign from a leader of the past is obeyed (raft-rs#369).
    LateTimeoutNow,
}

/// The bug that a node has, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaw {
    #[cfg(feature = "planted")]
    bug: Option<Planted>,
}

impl Flaw {
    #[cfg(feature = "planted")]
    pub(super) fn is(self, bug: Planted) -> bool {
        self.bug == Some(bug)
    }

    #[cfg(not(feature = "planted"))]
    pub(super) const fn is(self, _: Planted) -> bool {
        false
    }
}

#[cfg(feature = "planted")]
impl From<Option<Planted>> for Flaw {
    fn from(bug: Option<Planted>) -> Self {
        Self { bug }
    }
}
