//! Appending: what a leader sends, what a follower accepts, what is committed
//! (Raft 5.3 and 5.4).
//!
//! A leader sends entries as soon as they are readable in its log, before its own
//! disk has them, and counts itself like everyone else: when they are durable
//! (thesis 10.2.1). A follower accepts what fits to its log, cuts off only what
//! contradicts it, and acknowledges no more than the append covered.
//!
//! Lost messages are found by heartbeats: whoever answers one and is behind gets
//! an append that it must accept or refuse.

use std::collections::{BTreeMap, VecDeque};

use super::change::Leaving;
use super::lease::Lease;
use super::message::{Append, AppendSource, Effects, EntryRun, Message, Refusal, Replicate};
use super::planted::Planted;
use super::progress::{Flow, Progress};
use super::quorum::Tally;
use super::reads::Rounds;
use super::transfer::Transfer;
use super::types::{Index, LogId, NodeId};
use super::{Raft, Role};

/// What a node knows only while it leads.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) progress: BTreeMap<NodeId, Progress>,
    /// Its first entry; once that is committed, so is everything before it.
    pub(super) first: Index,
    pub(super) rounds: Rounds,
    pub(super) lease: Lease,
    pub(super) transfer: Option<Transfer>,
    /// Removed nodes that are told so; they are still in `progress`.
    pub(super) leaving: BTreeMap<NodeId, Leaving>,
    heartbeat_elapsed: u32,
    /// Ticks since it was elected.
    pub(super) age: u32,
    uncommitted: Uncommitted,
}

impl Leader {
    /// Heartbeats leave with that tick from now, if they leave each so many.
    pub(super) fn ticks_to_heartbeat(&self, interval: u32) -> u32 {
        interval.saturating_sub(self.heartbeat_elapsed)
    }
}

/// Payload bytes that wait for commit, by the last index of each proposal.
#[derive(Debug, Default)]
struct Uncommitted {
    proposals: VecDeque<(Index, u64)>,
    bytes: u64,
}

impl Uncommitted {
    fn add(&mut self, last: Index, bytes: u64) {
        self.proposals.push_back((last, bytes));
        self.bytes += bytes;
    }

    fn release(&mut self, commit: Index) {
        while let Some(&(last, bytes)) = self.proposals.front()
            && last <= commit
        {
            self.bytes -= bytes;
            self.proposals.pop_front();
        }
    }
}

/// Leading.
impl Raft {
    /// Candidate to leader: an empty entry of the new term, so that it can be
    /// committed and with it all before it (Raft 5.4.2 and 8).
    pub(super) fn become_leader(&mut self, out: &mut Effects) {
        assert!(matches!(self.role, Role::Candidate { .. }), "only votes make a leader");
        let first = self.last().index.next();
        let others =
            self.members.current().members().into_iter().filter(|&id| id != self.config.id);
        self.role = Role::Leader(Box::new(Leader {
            progress: others.map(|id| (id, Progress::new(first))).collect(),
            first,
            rounds: Rounds::default(),
            lease: Lease::default(),
            transfer: None,
            leaving: BTreeMap::new(),
            heartbeat_elapsed: 0,
            age: 0,
            uncommitted: Uncommitted::default(),
        }));
        if !self.planted(Planted::NoNoop) {
            self.append_own(first, AppendSource::Noop, out);
        }
    }

    /// Adds entries of our own term up to `last` and sends them.
    pub(super) fn append_own(&mut self, last: Index, source: AppendSource, out: &mut Effects) {
        let (first, term) = (self.last().index.next(), self.hard.term);
        self.terms.append(term, last);
        self.wrote_from(first);
        out.appends.push(Append { first, last, term, source });
        for to in self.others() {
            self.replicate(to, out);
        }
    }

    pub(super) fn propose(&mut self, sizes: &[u32], out: &mut Effects) {
        let bytes: u64 = sizes.iter().copied().map(u64::from).sum();
        let last = self.last().index;
        let is_fenced = !self.planted(Planted::ProposeDuringTransfer);
        let refusal = match &mut self.role {
            Role::Follower { leader } => Some(Refusal::NotLeader(*leader)),
            Role::PreCandidate { .. } | Role::Candidate { .. } => Some(Refusal::NotLeader(None)),
            Role::Leader(leader) => {
                let waiting = leader.uncommitted.bytes;
                if leader.transfer.is_some() && is_fenced {
                    Some(Refusal::Transferring)
                } else if waiting > 0 && waiting + bytes > self.config.max_uncommitted_bytes {
                    Some(Refusal::Overloaded)
                } else {
                    None
                }
            }
        };
        if let Some(refusal) = refusal {
            out.proposed = Some(Err(refusal));
            return;
        }
        assert!(!sizes.is_empty(), "a proposal has entries");
        let count = u64::try_from(sizes.len()).expect("a length fits into 64 bits");
        let upto = Index(last.0 + count);
        if let Role::Leader(leader) = &mut self.role {
            leader.uncommitted.add(upto, bytes);
        }
        out.proposed = Some(Ok(LogId { term: self.hard.term, index: last.next() }));
        self.append_own(upto, AppendSource::Proposed, out);
    }

    /// Everyone that a leader sends to.
    pub(super) fn others(&self) -> Vec<NodeId> {
        self.progress().map(|(id, _)| id).collect()
    }

    /// Sends `to` whatever it may get now.
    pub(super) fn replicate(&mut self, to: NodeId, out: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&to) else { return };
        let last = self.terms.last().index;
        while !progress.is_paused(self.config.max_inflight) {
            let Some(prev) = self.terms.id_at(progress.next.prev()) else {
                // Not to someone who is away: wait until a heartbeat is answered.
                if progress.silent_ticks < self.config.election_ticks {
                    progress.flow = Flow::Snapshot { pending: self.terms.base().index };
                    out.snapshots.push(to);
                } else {
                    progress.flow = Flow::Probe { sent: true };
                }
                return;
            };
            let upto = last.min(Index(prev.index.0 + self.config.max_batch_entries));
            if matches!(progress.flow, Flow::Replicate { .. }) && upto == prev.index {
                return;
            }
            progress.sent(upto);
            progress.told_commit = progress.told_commit.max(self.commit.min(upto));
            out.replicate.push(Replicate {
                to,
                prev,
                upto,
                commit: self.commit,
                read_seq: leader.rounds.seq(),
                term: self.hard.term,
            });
        }
    }

    /// An empty append behind everything that was sent: if that was lost, it is
    /// refused, and probing begins. What is compacted meanwhile cannot be asked
    /// for: begin again after what is known.
    fn ask_whether_lost(&mut self, to: NodeId, out: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&to) else { return };
        let Some(prev) = self.terms.id_at(progress.next.prev()) else {
            progress.probe(progress.matched.next());
            return self.replicate(to, out);
        };
        let (upto, read_seq) = (prev.index, leader.rounds.seq());
        let (commit, term) = (self.commit, self.hard.term);
        out.replicate.push(Replicate { to, prev, upto, commit, read_seq, term });
    }

    pub(super) fn tick_leader(&mut self, out: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
        leader.heartbeat_elapsed += 1;
        leader.age = leader.age.saturating_add(1);
        let is_due = leader.heartbeat_elapsed >= self.config.heartbeat_ticks;
        if is_due {
            leader.heartbeat_elapsed = 0;
        }
        let mut targets = Vec::new();
        for (&id, progress) in &mut leader.progress {
            progress.silent_ticks = progress.silent_ticks.saturating_add(1);
            if is_due || !progress.is_told(self.commit) {
                targets.push(id);
            }
        }
        // A leader that does not hear a majority cannot commit: clients are
        // better off with another one (thesis 6.2).
        let keeps = self.planted(Planted::NoCheckQuorum);
        if self.quorum().tally(|id| Some(self.is_heard(id))) != Tally::Won && !keeps {
            self.become_follower(self.hard.term, None, out);
            return;
        }
        if is_due {
            self.open_lease_round();
            self.confirm_round(out); // alone, nobody's echo will
        }
        for to in targets {
            self.send_heartbeat(to);
        }
        self.tick_transfer();
        self.tick_members(out);
        self.tick_stall(out);
    }

    /// Was this node heard within the last election time-out?
    #[must_use]
    pub fn is_heard(&self, id: NodeId) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let is_recent = |pr: &Progress| pr.silent_ticks < self.config.election_ticks;
        id == self.config.id || leader.progress.get(&id).is_some_and(is_recent)
    }

    pub(super) fn send_heartbeat(&mut self, to: NodeId) {
        let is_bounded = !self.planted(Planted::HeartbeatCommitUnbounded);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&to) else { return };
        let commit = if is_bounded { self.commit.min(progress.matched) } else { self.commit };
        progress.told_commit = progress.told_commit.max(commit);
        let read_seq = leader.rounds.seq();
        self.send(to, Message::Heartbeat { commit, read_seq });
    }

    /// A follower was heard.
    fn heard(&mut self, from: NodeId, read_seq: u64) -> Option<&mut Progress> {
        let Role::Leader(leader) = &mut self.role else { return None };
        let progress = leader.progress.get_mut(&from)?;
        progress.silent_ticks = 0;
        progress.read_seq = progress.read_seq.max(read_seq);
        Some(progress)
    }

    pub(super) fn accepted(
        &mut self,
        from: NodeId,
        matched: Index,
        read_seq: u64,
        out: &mut Effects,
    ) {
        let (base, last) = (self.terms.base().index, self.last().index);
        let Some(progress) = self.heard(from, read_seq) else { return };
        assert!(matched <= last, "I3: {from} acknowledges {matched}, our log ends at {last}");
        progress.accepted(matched, base);
        self.maybe_commit(out);
        self.confirm_round(out);
        self.replicate(from, out);
        self.continue_transfer(from);
    }

    pub(super) fn rejected(
        &mut self,
        from: NodeId,
        prev: Index,
        hint: LogId,
        read_seq: u64,
        out: &mut Effects,
    ) {
        let common = self.terms.common(hint).map_or(Index(0), |id| id.index);
        let base = self.terms.base().index;
        let takes_any = self.planted(Planted::StaleRefusalRewinds);
        let takes_for_ack = self.planted(Planted::RefusalCommits);
        let Some(progress) = self.heard(from, read_seq) else { return };
        if takes_any {
            (progress.next, progress.flow) = (common.next(), Flow::Probe { sent: false });
        } else if progress.is_fresh_refusal(prev, hint.index) {
            progress.probe(common.next());
        }
        if takes_for_ack {
            progress.accepted(common, base);
            self.maybe_commit(out);
        }
        self.confirm_round(out);
        self.replicate(from, out);
    }

    pub(super) fn heartbeat_reply(&mut self, from: NodeId, read_seq: u64, out: &mut Effects) {
        let last = self.last().index;
        let blind = self.planted(Planted::LostWindowStays);
        let Some(progress) = self.heard(from, read_seq) else { return };
        let is_behind = progress.matched < last && !blind;
        match &mut progress.flow {
            Flow::Probe { sent } => {
                *sent = false;
                self.replicate(from, out);
            }
            Flow::Replicate { inflight } if is_behind && !inflight.is_empty() => {
                self.ask_whether_lost(from, out);
            }
            Flow::Replicate { .. } => self.replicate(from, out),
            Flow::Snapshot { .. } => {}
        }
        self.confirm_round(out);
    }

    pub(super) fn unreachable(&mut self, peer: NodeId) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&peer) else { return };
        match progress.flow {
            Flow::Probe { .. } => {}
            Flow::Replicate { .. } => {
                progress.probe(progress.matched.next());
                // The next heartbeat that is answered opens it again.
                progress.flow = Flow::Probe { sent: true };
            }
            Flow::Snapshot { .. } => {}
        }
    }

    /// Commits what a majority has on disk, if it is of our own term: an older
    /// entry may be on a majority and still be overwritten (Raft 5.4.2, figure 8).
    pub(super) fn maybe_commit(&mut self, out: &mut Effects) {
        let Role::Leader(leader) = &self.role else { return };
        let is_early = self.planted(Planted::OwnCopyNotDurable);
        let durable = if is_early { self.last().index } else { self.ledger.durable() };
        let matched = |id| leader.progress.get(&id).map_or(Index(0), |pr| pr.matched);
        let own = self.config.id;
        let reached = self.quorum().reached(|id| if id == own { durable } else { matched(id) });
        let is_own_term = self.terms.at(reached) == Some(self.hard.term);
        if reached <= self.commit
            || !(is_own_term || self.planted(Planted::CommitOldTermByCounting))
        {
            return;
        }
        self.commit = reached;
        let is_released = !self.planted(Planted::UncommittedBytesLeak);
        if let Role::Leader(leader) = &mut self.role
            && is_released
        {
            leader.uncommitted.release(reached);
        }
        self.open_round(out);
        self.continue_change(out);
    }
}

/// Following.
impl Raft {
    /// AppendEntries (Raft 5.3).
    pub(super) fn append(
        &mut self,
        from: NodeId,
        prev: LogId,
        entries: EntryRun,
        commit: Index,
        out: &mut Effects,
    ) {
        if self.installing.is_some() || !entries.is_well_formed(prev, self.hard.term) {
            return;
        }
        let read_seq = self.seen_seq;
        // What is committed here is in the leader's log (leader completeness), so
        // an append that begins below the commit index fits.
        let is_gap = prev.index > self.last().index;
        let is_other = is_gap || !self.planted(Planted::PrevTermUnchecked);
        if prev.index > self.commit && self.terms.at(prev.index) != Some(prev.term) && is_other {
            let hint = self.terms.common(prev).unwrap_or(self.terms.base());
            let last = self.last().index;
            self.send(from, Message::Rejected { prev: prev.index, hint, last, read_seq });
            return;
        }
        let last_new = entries.last;
        self.write(entries, out);
        if self.planted(Planted::TruncateAfterAppend) && last_new < self.last().index {
            self.truncate(last_new.next());
            self.wrote_from(last_new.next());
        }
        let commit = if self.planted(Planted::CommitWithoutMin) {
            commit.min(self.last().index)
        } else {
            commit.min(last_new)
        };
        self.commit = self.commit.max(commit);
        if self.planted(Planted::CommitGoesBack) {
            self.commit = commit;
        }
        let matched = if self.planted(Planted::AckWholeLog) {
            self.last().index
        } else {
            last_new.max(self.commit)
        };
        self.send(from, Message::Accepted { matched, read_seq });
    }

    /// Adds what is new in `entries`. The log is cut only where an entry has
    /// another term: a shorter append may just be an older one.
    fn write(&mut self, entries: EntryRun, out: &mut Effects) {
        let EntryRun { terms, last, configs } = entries;
        let mut first_new = None;
        for (number, run) in terms.iter().enumerate() {
            let run_last = terms.get(number + 1).map_or(last, |newer| newer.index.prev());
            if first_new.is_none() {
                // What is committed is not compared where it is compacted.
                let from = run.index.max(self.terms.base().index.next());
                first_new = self.terms.first_mismatch(from, run_last, run.term);
                if self.planted(Planted::TruncateEagerly) && run_last > self.commit {
                    first_new = Some(from.max(self.commit.next()));
                }
                if let Some(first) = first_new
                    && first <= self.last().index
                {
                    self.truncate(first);
                }
            }
            if first_new.is_some() {
                self.terms.append(run.term, run_last);
            }
        }
        let Some(first) = first_new else { return };
        for (index, config) in configs {
            if index >= first {
                self.members.append(index, config);
            }
        }
        self.wrote_from(first);
        let (term, source) = (self.hard.term, AppendSource::Received);
        out.appends.push(Append { first, last, term, source });
    }

    pub(super) fn heartbeat(&mut self, from: NodeId, commit: Index) {
        let read_seq = self.seen_seq;
        if self.installing.is_none() {
            let last = self.last().index;
            // A leader may speak to an earlier life of a node whose disk was wiped; it will
            // hear from the answer that it does.
            if last > Index(0) {
                assert!(commit <= last, "I13: told to commit {commit}, our log ends at {last}");
                self.commit = self.commit.max(commit);
            }
        }
        self.send(from, Message::HeartbeatReply { read_seq });
    }
}
