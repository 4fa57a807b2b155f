//! Linearizable reads without writing to the log (thesis 6.4).
//!
//! A read may be served once this node has applied everything that was
//! committed when the read arrived, and knew *after* that moment that it still
//! led. So a read passes three gates:
//!
//! 1. It joins a round, which notes the commit index: the read may not see less.
//! 2. The round is a number that rides on heartbeats sent at once; a majority of
//!    echoes proves that no newer leader existed when the round began.
//! 3. The driver waits until the noted index is applied.
//!
//! Reads that arrive while a round is under way share the next one, so a thousand
//! reads cost as much as one. A new leader opens none until an entry of its own
//! term is committed: before that it may not know how far its predecessor got.
//! Rounds are numbered by the leader, within its term: no late answer to an older
//! question can confirm a newer read.
//!
//! A follower asks its leader for the index, with a new id each time, and serves
//! the read itself. Ids begin at a random place, so that a late answer to an
//! earlier life of this node means nothing.
//!
//! Leases save the round, at the price of trusting clocks: see [`super::lease`].

use super::message::{Effects, Message, ReadOutcome};
use super::planted::Planted;
use super::types::{Index, NodeId};
use super::{Raft, Role};

/// Who waits for a read index.
#[derive(Clone, Copy, Debug)]
enum Asker {
    Here { token: u64 },
    Peer { node: NodeId, id: u64 },
}

/// The read rounds of a leader; at most one is under way.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    seq: u64,
    /// The round that reads wait for, and the index that it noted. There may be newer ones,
    /// opened for the lease.
    open: Option<(u64, Index)>,
    riding: Vec<Asker>,
    waiting: Vec<Asker>,
}

impl Rounds {
    /// The newest round.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }
}

/// The reads of a follower.
#[derive(Debug)]
pub(super) struct Asking {
    next_id: u64,
    /// Under way to the leader.
    id: Option<u64>,
    /// Ticks since it was asked.
    silent_ticks: u32,
    /// How many of `reads` the question covers; the others came later.
    covered: usize,
    /// Token and age in ticks, oldest first.
    reads: Vec<(u64, u32)>,
}

impl Asking {
    pub(super) fn new(first_id: u64) -> Self {
        Self { next_id: first_id, id: None, silent_ticks: 0, covered: 0, reads: Vec::new() }
    }

    /// Do reads of this follower wait for the leader's answer?
    pub(super) fn is_waiting(&self) -> bool {
        !self.reads.is_empty()
    }
}

/// Leading.
impl Raft {
    pub(super) fn read(&mut self, token: u64, out: &mut Effects) {
        match &mut self.role {
            Role::Leader(_) => self.join_round(Asker::Here { token }, out),
            Role::Follower { leader: Some(_) } => {
                self.asking.reads.push((token, 0));
                if self.asking.id.is_none() && self.asking.reads.len() == 1 {
                    self.ask_leader();
                }
            }
            Role::Follower { leader: None }
            | Role::PreCandidate { .. }
            | Role::Candidate { .. } => {
                out.reads.push((token, ReadOutcome::Refused(None)));
            }
        }
    }

    /// A follower asks on behalf of its clients.
    pub(super) fn read_index(&mut self, node: NodeId, id: u64, out: &mut Effects) {
        if self.is_leader() {
            self.join_round(Asker::Peer { node, id }, out);
        } else {
            self.send(node, Message::ReadIndexReply { id, index: None });
        }
    }

    /// Is a round under way that reads wait for? Those that come now share the next one.
    pub fn has_open_round(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.rounds.open.is_some())
    }

    fn join_round(&mut self, asker: Asker, out: &mut Effects) {
        if self.planted(Planted::ReadWithoutRound) {
            return self.answer(asker, self.commit, out);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.rounds.waiting.push(asker);
        }
        self.open_round(out);
    }

    /// Begins a round for those who wait, if none is under way.
    pub(super) fn open_round(&mut self, out: &mut Effects) {
        let is_barred = !self.planted(Planted::ReadBeforeOwnCommit);
        let Role::Leader(leader) = &mut self.role else { return };
        let rounds = &mut leader.rounds;
        let is_new = self.commit < leader.first && is_barred;
        if rounds.open.is_some() || rounds.waiting.is_empty() || is_new {
            return;
        }
        rounds.seq += 1;
        rounds.open = Some((rounds.seq, self.commit));
        rounds.riding = std::mem::take(&mut rounds.waiting);
        for to in self.others() {
            if self.members.current().is_voter(to) {
                self.send_heartbeat(to);
            }
        }
        self.confirm_round(out);
    }

    /// Opens a round that nobody waits for, so that the lease goes on.
    pub(super) fn open_lease_round(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        if self.config.lease.is_some() {
            leader.rounds.seq += 1;
            leader.lease.opened(leader.rounds.seq, self.clock);
        }
    }

    /// Answers the round if a majority has echoed it.
    pub(super) fn confirm_round(&mut self, out: &mut Effects) {
        let Role::Leader(leader) = &self.role else { return };
        let (own, newest) = (self.config.id, leader.rounds.seq);
        let flaw = self.config.planted;
        if leader.rounds.open.is_none() && self.config.lease.is_none() {
            return;
        }
        let echoed = |id| leader.progress.get(&id).map_or(0, |pr| pr.read_seq);
        let reached = self.quorum().reached(|id| if id == own { newest } else { echoed(id) });
        let Role::Leader(leader) = &mut self.role else { return };
        leader.lease.echoed(reached);
        let Some((seq, index)) = leader.rounds.open else { return };
        let enough = if flaw.is(Planted::OldEchoConfirmsRead) { seq - 1 } else { seq };
        if reached < enough {
            return;
        }
        leader.rounds.open = None;
        for asker in std::mem::take(&mut leader.rounds.riding) {
            self.answer(asker, index, out);
        }
        self.open_round(out);
    }

    fn answer(&mut self, asker: Asker, index: Index, out: &mut Effects) {
        match asker {
            Asker::Here { token } => out.reads.push((token, ReadOutcome::At(index))),
            Asker::Peer { node, id } => {
                self.send(node, Message::ReadIndexReply { id, index: Some(index) });
            }
        }
    }

    /// We do not lead any more: nobody here can confirm these.
    pub(super) fn refuse_rounds(
        &mut self,
        rounds: Rounds,
        leader: Option<NodeId>,
        out: &mut Effects,
    ) {
        if self.planted(Planted::ReadsStranded) {
            return;
        }
        for asker in rounds.riding.into_iter().chain(rounds.waiting) {
            match asker {
                Asker::Here { token } => out.reads.push((token, ReadOutcome::Refused(leader))),
                Asker::Peer { node, id } => {
                    self.send(node, Message::ReadIndexReply { id, index: None });
                }
            }
        }
    }
}

/// Following.
impl Raft {
    /// Asks for everything that waits.
    fn ask_leader(&mut self) {
        let Some(leader) = self.leader() else { return };
        let id = self.asking.next_id;
        self.asking.next_id = id.wrapping_add(1);
        self.asking.id = Some(id);
        self.asking.silent_ticks = 0;
        self.asking.covered = self.asking.reads.len();
        self.send(leader, Message::ReadIndex { id });
    }

    pub(super) fn read_index_reply(&mut self, id: u64, index: Option<Index>, out: &mut Effects) {
        if self.asking.id != Some(id) && !self.planted(Planted::AnyReadAnswerCounts) {
            return;
        }
        self.asking.id = None;
        // Refused: the tick asks again.
        let Some(index) = index else { return };
        let is_behind = self.planted(Planted::FollowerReadsBehind);
        let index = if is_behind { self.applied } else { index };
        for (token, _) in self.asking.reads.drain(..self.asking.covered) {
            out.reads.push((token, ReadOutcome::At(index)));
        }
        if !self.asking.reads.is_empty() {
            self.ask_leader();
        }
    }

    /// Questions that were lost are asked again; reads that are older than an
    /// election time-out are refused.
    pub(super) fn tick_asking(&mut self, out: &mut Effects) {
        let leader = self.leader();
        let asking = &mut self.asking;
        if asking.reads.is_empty() {
            return;
        }
        for (_, age) in &mut asking.reads {
            *age += 1;
        }
        let expired = asking.reads.partition_point(|(_, age)| *age >= self.config.election_ticks);
        asking.covered = asking.covered.saturating_sub(expired);
        for (token, _) in asking.reads.drain(..expired) {
            out.reads.push((token, ReadOutcome::Refused(leader)));
        }
        asking.silent_ticks += 1;
        if !asking.reads.is_empty() && asking.silent_ticks >= self.config.heartbeat_ticks {
            self.ask_leader();
        }
    }

    /// The leader that was asked is gone.
    pub(super) fn refuse_asking(&mut self, leader: Option<NodeId>, out: &mut Effects) {
        self.asking.id = None;
        self.asking.covered = 0;
        for (token, _) in self.asking.reads.drain(..) {
            out.reads.push((token, ReadOutcome::Refused(leader)));
        }
    }
}
