//! The Raft core: what a node decides, and nothing of how it is done.
//!
//! [`Raft::step`] takes one [`Input`] (a tick, a message, a proposal, "the disk is
//! done") and adds to [`Effects`] what must happen because of it (save this, send
//! that, apply up to here). In between it is a plain value: the same inputs give
//! the same effects, so a test can live through a year in a second.
//!
//! # The protocol
//!
//! Time is cut into *terms*. In each term at most one node *leads*; the others
//! *follow*. A follower that hears no leader for a random time asks around whether
//! it would be elected (*pre-candidate*), and with a majority of promises enters a
//! new term and asks for votes (*candidate*).
//!
//! ```text
//!               time-out               majority of promises
//!   follower ------------> pre-candidate ------------> candidate
//!      ^  ^                     |  ^                    |     |
//!      |  +---------------------+  +--------------------+     | majority
//!      |    leader heard, refused        time-out             | of votes
//!      +------------------------------- leader <--------------+
//!             newer term, majority lost
//! ```
//!
//! The leader alone takes proposals. It appends them to its log and sends them to
//! the others, each append together with the entry before it; a follower that does
//! not hold that entry refuses and says where the logs may agree. So equal places
//! of equal terms have equal histories (*log matching*). An entry on a majority of
//! disks is *committed*: voters refuse candidates whose log is behind, so every
//! later leader has it (*leader completeness*). It may then be applied.
//!
//! Each rule is in one place, with the section of the paper that it comes from:
//!
//! | file | answers |
//! |---|---|
//! | [`mod@types`], [`message`] | the words, and the border of this module |
//! | [`terms`] | which term does each entry have? |
//! | `io` | what is durable, and what may be said because of it? |
//! | `election` | who leads? |
//! | `health` | can this node, or its leader, still do its work? |
//! | `replication`, [`progress`] | who has which entry, and what is committed? |
//! | [`quorum`], `members` | who decides? |
//! | `change` | how does it become somebody else? |
//! | `reads`, `lease` | may this read be answered? |
//! | `transfer`, `snapshot` | how does leadership, or a whole state, move? |
//! | [`planted`] | would the tests notice if one of these rules were not kept? |
//!
//! # Who owes what
//!
//! The core holds positions, never payloads. The driver:
//!
//! 1. clears [`Effects`], calls [`Raft::step`], and does what it finds there in the
//!    order of the fields, before the next input;
//! 2. gives `hard_state` and `appends` to the disk under the token `io`, in order,
//!    one writer; entries are readable at once. When the disk has everything up to
//!    a token, it says [`Input::Durable`]. Tokens may be skipped: the newest covers
//!    all before it. An answer covers what was *synced*, not what was written;
//! 3. sends `replicate` when the entries are readable, and `messages` at once. It
//!    may lose, repeat and reorder them; a peer's frames should keep their order,
//!    or time is lost with refusals;
//! 4. applies up to `commit` and says [`Input::Applied`]; drops the log below a
//!    checkpoint and says [`Input::Compacted`]; streams `snapshots` and *always*
//!    says [`Input::SnapshotSent`] in the end;
//! 5. bounds what it asks for: reads and proposals that wait are remembered here.
//!
//! Every message waits inside until the newest term and vote are durable, and an
//! acknowledgement until its entries are. So the driver cannot say too much too
//! early, whatever it does with its disk.
//!
//! # Damaged disks
//!
//! A disk may lose what was durable (protocol-aware recovery, FAST'18). What then may
//! be promised depends on what is still known:
//!
//! * *The names of the lost entries* ([`message::Fitness::damaged`]): the node votes by them,
//!   acknowledges and applies nothing from the first on, and does not lead. Whoever
//!   holds the bytes can repair it: the chain of checksums proves them.
//! * *Nothing* ([`config::Restored::amnesia`]): no acknowledged entry was of a later term
//!   than H. The node is in term H + 1, so that no leader counts on its earlier answers,
//!   and votes for nobody whose log ends in a term up to H, until its own log ends in
//!   a later one: by then it holds whatever it ever acknowledged and was committed.
//!
//! # Departures from the paper
//!
//! * Pre-vote always, and whoever hears a leader neither promises nor votes
//!   (thesis 9.6, 4.2.3); a leader that does not hear a majority steps down (6.2).
//! * The leader's disk is one of many: an entry may be committed before the leader
//!   has it on its own disk (10.2.1). It is applied there only afterwards.
//! * Heartbeats are messages of their own and never wait behind appends. A commit
//!   index that rides on no append is told at the next tick.
//!
//! # Left out
//!
//! Witnesses, quiescence.

mod change;
pub mod config;
mod election;
mod health;
mod io;
mod lease;
mod members;
pub mod message;
pub mod planted;
pub mod progress;
pub mod quorum;
mod reads;
mod replication;
mod snapshot;
pub mod terms;
mod transfer;
pub mod types;

use std::collections::BTreeMap;

use config::{Config, Restored};
use io::Ledger;
use members::ConfigHistory;
use message::{Effects, Envelope, Fitness, Input, Message, SnapshotMeta};
use planted::Planted;
use progress::Progress;
use quorum::Quorum;
use reads::Asking;
use replication::Leader;
use terms::Terms;
use types::{HardState, Index, LogId, Membership, NodeId, Term};

/// Lost pre-votes after which the election time-out is twice as long; it grows evenly.
const ROUNDS_MAX: u32 = 4;

/// One node of the cluster. See the module for the protocol.
///
/// Invariants, asserted after every step (they stay on in release builds: a node
/// that doubts itself stops):
/// * term, commit and applied index never shrink;
/// * base <= applied <= min(commit, durable) and commit, durable <= last;
/// * a leader's log only grows, and nobody's shrinks below its commit index;
/// * no message speaks of a term that is newer than the node's own, except the
///   questions and answers of a pre-vote.
#[derive(Debug)]
pub struct Raft {
    config: Config,
    hard: HardState,
    /// What `hard` was when it was last given to the disk.
    saved: HardState,
    role: Role,
    terms: Terms,
    members: ConfigHistory,
    ledger: Ledger,
    commit: Index,
    /// The last [`Effects::commit`].
    published: Index,
    applied: Index,
    /// Ticks since the leader was heard, a vote was given, or the role changed.
    elapsed: u32,
    /// The drawn election time-out.
    timeout: u32,
    /// Pre-votes in a row, the running one included, since a leader was heard.
    rounds: u32,
    /// Ticks since a leader was heard, or since the start.
    promised_ticks: u32,
    /// The last [`Input::Clock`].
    clock: u64,
    rng: Rng,
    /// Largest read round seen from the leader of this term.
    seen_seq: u64,
    /// A snapshot that the driver is installing: the log must not move.
    installing: Option<SnapshotMeta>,
    fitness: Fitness,
    /// Newest term of the entries that this node lost without knowing which.
    amnesia: Option<Term>,
    asking: Asking,
    /// Messages of the step at hand.
    outbox: Vec<Envelope>,
    /// Lowest index that the step at hand has written.
    wrote: Option<Index>,
}

/// What a node is in its term (Raft figure 4). What belongs to one role lives in
/// its variant: leaving the role drops it.
#[derive(Debug)]
enum Role {
    Follower { leader: Option<NodeId> },
    PreCandidate { ballots: Ballots },
    Candidate { ballots: Ballots },
    Leader(Box<Leader>),
}

/// Who answered an election, and what.
type Ballots = BTreeMap<NodeId, bool>;

/// What a node is, for those who only look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

impl Raft {
    /// A node that starts, as a follower, from what its disk remembers.
    #[must_use]
    pub fn new(config: Config, restored: Restored) -> Self {
        config.check();
        let Restored { hard_state, base, base_membership, runs, last, configs, applied, amnesia } =
            restored;
        let terms = Terms::new(base, runs, last.index);
        assert_eq!(terms.last(), last, "the runs and the last entry belong together");
        assert!(last.term <= hard_state.term, "no entry is newer than the term");
        let applied = applied.max(base.index);
        assert!(applied <= last.index, "the state machine is ahead of the log: its tail is lost");
        let mut rng = Rng::new(config.seed);
        let asking = Asking::new(rng.next());
        let flaw = config.planted;
        let amnesia = if flaw.is(Planted::RestartForgetsAmnesia) { None } else { amnesia };
        let commit = if flaw.is(Planted::RestartCommitsAll) { last.index } else { applied };
        let forgets = flaw.is(Planted::ForgetLease);
        let mut raft = Self {
            config,
            hard: hard_state,
            saved: hard_state,
            role: Role::Follower { leader: None },
            terms,
            members: ConfigHistory::new(base_membership, configs),
            ledger: Ledger::new(last.index, flaw),
            commit,
            published: applied,
            applied,
            elapsed: 0,
            timeout: 0,
            rounds: 0,
            promised_ticks: if forgets { u32::MAX } else { 0 },
            clock: 0,
            rng,
            seen_seq: 0,
            installing: None,
            fitness: Fitness::default(),
            amnesia,
            asking,
            outbox: Vec::new(),
            wrote: None,
        };
        raft.restart_timer();
        raft
    }

    /// Takes one input; what must be done about it is added to `out`, which the
    /// driver has cleared.
    pub fn step(&mut self, input: Input, out: &mut Effects) {
        let before = (self.hard.term, self.commit);
        match input {
            Input::Tick => self.tick(out),
            Input::Receive(envelope) => self.receive(envelope, out),
            Input::Propose { sizes } => self.propose(&sizes, out),
            Input::Reconfigure { target } => self.reconfigure(&target, out),
            Input::Read { token } => self.read(token, out),
            Input::LeaseRead { token } => self.lease_read(token, out),
            Input::Clock { now } => self.clock = self.clock.max(now),
            Input::Durable { io } => {
                self.ledger.confirm(io, &mut out.messages);
                self.count_own_vote(out);
                self.maybe_commit(out);
            }
            Input::Applied { index } => {
                assert!(index >= self.applied, "the state machine does not go back");
                assert!(index <= self.published, "only what is committed and durable is applied");
                self.applied = index;
            }
            Input::Compacted { upto } => {
                assert!(upto.index <= self.applied, "only what is applied is compacted");
                self.terms.compact(upto);
                self.members.compact(upto.index);
            }
            Input::SnapshotReceived { from, term, meta } => {
                self.snapshot_received(from, term, meta, out);
            }
            Input::SnapshotInstalled { meta } => self.snapshot_installed(meta),
            Input::SnapshotSent { to, installed } => self.snapshot_sent(to, installed, out),
            Input::Unreachable { peer } => self.unreachable(peer),
            Input::Transfer { to } => self.transfer(to, out),
            Input::LeaderGone { peer } => self.leader_gone(peer),
            Input::Campaign => self.campaign(out),
            Input::Fitness(fitness) => self.set_fitness(fitness, out),
        }
        self.finish(out);
        assert!(self.hard.term >= before.0, "I12: terms only grow");
        assert!(self.commit >= before.1, "I12: the commit index only grows");
        self.check();
    }

    fn tick(&mut self, out: &mut Effects) {
        self.ledger.tick();
        self.promised_ticks = self.promised_ticks.saturating_add(1);
        if matches!(self.role, Role::Leader(_)) {
            self.tick_leader(out);
        } else {
            self.tick_asking(out);
            self.tick_election(out);
        }
    }

    fn receive(&mut self, envelope: Envelope, out: &mut Effects) {
        let Envelope { from, to, term, message } = envelope;
        if to != self.config.id || from == to {
            return;
        }
        if term > self.hard.term {
            match message {
                Message::HeartbeatReply { .. }
                    if self.planted(Planted::NewerTermInAnswerIgnored) =>
                {
                    return;
                }
                Message::PreVote { .. } if self.planted(Planted::PreVoteRaisesTerm) => {
                    self.become_follower(term, None, out);
                }
                // Promises change nothing.
                Message::PreVote { .. } | Message::PreVoteReply { granted: true } => {}
                // Whoever hears its leader does not help to depose it (thesis 4.2.3).
                Message::Vote { transfer, .. }
                    if (self.hears_leader() || self.is_promised())
                        && (!transfer || self.planted(Planted::TransferMeetsStickiness)) =>
                {
                    return;
                }
                Message::PreVoteReply { granted: false }
                | Message::Vote { .. }
                | Message::VoteReply { .. }
                | Message::Append { .. }
                | Message::Accepted { .. }
                | Message::Rejected { .. }
                | Message::Heartbeat { .. }
                | Message::HeartbeatReply { .. }
                | Message::ReadIndex { .. }
                | Message::ReadIndexReply { .. }
                | Message::TimeoutNow => self.become_follower(term, None, out),
            }
        } else if term < self.hard.term && !self.takes_for_todays(&message) {
            self.answer_older_term(from, &message);
            return;
        }
        match message {
            Message::PreVote { last } => self.pre_vote(from, term, last),
            Message::PreVoteReply { granted } => self.pre_vote_reply(from, term, granted, out),
            Message::Vote { last, transfer } => self.vote(from, last, transfer),
            Message::VoteReply { granted } => self.vote_reply(from, granted, out),
            Message::Append { prev, entries, commit, read_seq } => {
                self.follow(from, out);
                self.seen_seq = self.seen_seq.max(read_seq);
                self.append(from, prev, entries, commit, out);
            }
            Message::Heartbeat { commit, read_seq } => {
                self.follow(from, out);
                self.seen_seq = self.seen_seq.max(read_seq);
                self.heartbeat(from, commit);
            }
            Message::Accepted { matched, read_seq } => self.accepted(from, matched, read_seq, out),
            Message::Rejected { prev, hint, last: _, read_seq } => {
                self.rejected(from, prev, hint, read_seq, out);
            }
            Message::HeartbeatReply { read_seq } => self.heartbeat_reply(from, read_seq, out),
            Message::ReadIndex { id } => self.read_index(from, id, out),
            Message::ReadIndexReply { id, index } => self.read_index_reply(id, index, out),
            Message::TimeoutNow => self.timeout_now(from, out),
        }
    }

    /// Planted: which answers of an older term pass for ones of this term.
    fn takes_for_todays(&self, message: &Message) -> bool {
        let is_refusal = matches!(message, Message::Rejected { .. });
        let is_ack = matches!(message, Message::Accepted { .. });
        (is_refusal && self.planted(Planted::OlderTermRefusalCounts))
            || (is_ack && self.planted(Planted::OlderTermAckCounts))
            || (*message == Message::TimeoutNow && self.planted(Planted::LateTimeoutNow))
    }

    /// A sender that lives in the past is told the term, so that a deposed leader
    /// steps down and a candidate that is behind catches up.
    fn answer_older_term(&mut self, from: NodeId, message: &Message) {
        let read_seq = 0;
        let reply = match message {
            Message::Append { .. } | Message::Heartbeat { .. } => {
                Message::HeartbeatReply { read_seq }
            }
            Message::PreVote { .. } => Message::PreVoteReply { granted: false },
            Message::Vote { .. } => Message::VoteReply { granted: false },
            Message::ReadIndex { id } => Message::ReadIndexReply { id: *id, index: None },
            Message::PreVoteReply { .. }
            | Message::VoteReply { .. }
            | Message::Accepted { .. }
            | Message::Rejected { .. }
            | Message::HeartbeatReply { .. }
            | Message::ReadIndexReply { .. }
            | Message::TimeoutNow => return,
        };
        self.send(from, reply);
    }

    /// Says `message` in the current term, once that term is durable.
    fn send(&mut self, to: NodeId, message: Message) {
        self.send_in(to, self.hard.term, message);
    }

    fn send_in(&mut self, to: NodeId, term: Term, message: Message) {
        self.outbox.push(Envelope { from: self.config.id, to, term, message });
    }

    /// Turns what the step has changed into effects.
    fn finish(&mut self, out: &mut Effects) {
        let is_hard_state_new = self.hard != self.saved;
        if is_hard_state_new {
            let mut state = self.hard;
            if self.planted(Planted::ForgetVote) {
                state.vote = None;
            }
            if self.planted(Planted::TermWithoutVote) && state.term > self.saved.term {
                state.vote = self.saved.vote;
            }
            self.saved = self.hard;
            out.hard_state = Some(state);
        }
        let wrote = self.wrote.take();
        if is_hard_state_new || wrote.is_some() {
            out.io = Some(self.ledger.submit(is_hard_state_new, wrote, self.terms.last().index));
        }
        for envelope in self.outbox.drain(..) {
            let is_pre_vote =
                matches!(envelope.message, Message::PreVote { .. } | Message::PreVoteReply { .. });
            assert!(is_pre_vote || envelope.term <= self.hard.term, "I14: from the future");
            if self.config.planted.is(Planted::AckBeforeSync) {
                out.messages.push(envelope);
            } else {
                self.ledger.hold(envelope, &mut out.messages);
            }
        }
        // An entry of a term after the loss: whatever was lost is older, and this log is at
        // least as new as the lost one was.
        let newest = self.terms.at(self.ledger.durable());
        if self.amnesia.is_some_and(|lost| newest.is_some_and(|term| term > lost)) {
            self.amnesia = None;
        }
        let ready = self.commit.min(self.ledger.durable());
        if ready > self.published {
            self.published = ready;
            out.commit = Some(ready);
        }
    }

    /// The invariants that can be seen on one node.
    fn check(&self) {
        let (base, last) = (self.terms.base().index, self.terms.last().index);
        let durable = self.ledger.durable();
        assert!(base <= self.applied, "I13: compacted before it was applied");
        assert!(self.applied <= self.published, "I13: applied before it was committed");
        assert!(self.published <= self.commit && self.published <= durable, "I13: {self:?}");
        assert!(self.commit <= last && durable <= last, "I13: committed what is not there");
        assert!(self.terms.last().term <= self.hard.term, "I12: an entry from the future");
    }

    /// A leader that became unfit makes room for another one.
    fn set_fitness(&mut self, fitness: Fitness, out: &mut Effects) {
        self.fitness = fitness;
        if !self.planted(Planted::AckDamaged) {
            // What was published was whole then, and promised.
            self.ledger.set_damaged(fitness.damaged.map(|first| first.max(self.published.next())));
        }
        if !self.is_fit_to_lead() && !matches!(self.role, Role::Follower { .. }) {
            self.become_follower(self.hard.term, None, out);
        }
    }

    /// Is everything there that a leader needs?
    fn is_fit_to_lead(&self) -> bool {
        !self.fitness.unfit_to_lead && self.fitness.damaged.is_none() && self.amnesia.is_none()
    }

    /// Cuts the log for entries of a newer leader.
    fn truncate(&mut self, from: Index) {
        assert!(from > self.commit, "I13: committed entries are never cut off");
        assert!(!matches!(self.role, Role::Leader(_)), "I2: a leader only appends");
        self.terms.truncate(from);
        if !self.planted(Planted::ConfigOutlivesItsEntry) {
            self.members.truncate(from);
        }
    }

    /// Notes that the step writes entries from `first` on.
    fn wrote_from(&mut self, first: Index) {
        self.wrote = Some(self.wrote.map_or(first, |earlier| earlier.min(first)));
    }

    fn quorum(&self) -> Quorum<'_> {
        Quorum::of(self.members.current(), self.config.id, self.config.planted)
    }

    fn planted(&self, bug: Planted) -> bool {
        self.config.planted.is(bug)
    }

    /// A new role or leader: wait a new, random time (Raft 5.2). After pre-votes that led
    /// nowhere it grows, to at most twice: who cannot win asks less often.
    fn restart_timer(&mut self) {
        self.elapsed = 0;
        let extra = self.rng.next() % u64::from(self.config.election_ticks);
        let extra = u32::try_from(extra).expect("less than a u32");
        let drawn = self.config.election_ticks + extra;
        self.timeout = drawn + drawn * self.rounds.min(ROUNDS_MAX) / ROUNDS_MAX;
    }
}

/// What can be seen from outside.
impl Raft {
    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// What it is now.
    #[must_use]
    pub fn role(&self) -> RoleKind {
        match self.role {
            Role::Follower { .. } => RoleKind::Follower,
            Role::PreCandidate { .. } => RoleKind::PreCandidate,
            Role::Candidate { .. } => RoleKind::Candidate,
            Role::Leader(_) => RoleKind::Leader,
        }
    }

    /// Does it lead?
    #[must_use]
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// The newest term that it has seen.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard.term
    }

    /// Whom it voted for in that term.
    #[must_use]
    pub fn voted_for(&self) -> Option<NodeId> {
        self.hard.vote
    }

    /// The leader of its term, if it knows one.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        match self.role {
            Role::Follower { leader } => leader,
            Role::PreCandidate { .. } | Role::Candidate { .. } => None,
            Role::Leader(_) => Some(self.config.id),
        }
    }

    /// Known to be committed, durable here or not.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The last entry of the log.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.terms.last()
    }

    /// The log is on disk up to here.
    #[must_use]
    pub fn durable(&self) -> Index {
        self.ledger.durable()
    }

    /// The state machine is here.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Does it miss entries that it may have acknowledged, without knowing which?
    #[must_use]
    pub fn is_amnesiac(&self) -> bool {
        self.amnesia.is_some()
    }

    /// The term of each position of the log.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The configuration that rules.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.members.current()
    }

    /// The configuration as of `index`: what a snapshot that ends there carries.
    #[must_use]
    pub fn membership_at(&self, index: Index) -> &Membership {
        if self.planted(Planted::SnapshotOfLaterConfig) {
            return self.members.current();
        }
        self.members.at(index)
    }

    /// Where a leader believes the others to be; nobody, when it does not lead.
    pub fn progress(&self) -> impl Iterator<Item = (NodeId, &Progress)> {
        let leader = match &self.role {
            Role::Leader(leader) => Some(leader),
            Role::Follower { .. } | Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        };
        leader.into_iter().flat_map(|leader| leader.progress.iter().map(|(id, pr)| (*id, pr)))
    }

    /// Is leadership being handed over, and to whom?
    #[must_use]
    pub fn transferring_to(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(leader) => leader.transfer.as_ref().map(|transfer| transfer.to),
            Role::Follower { .. } | Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }
}

/// The only randomness of the core: xorshift64*, from [`Config::seed`].
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        // Neighbouring seeds must not start alike, and 0 is a fixed point.
        let mut rng = Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1);
        for _ in 0..4 {
            rng.next();
        }
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}
