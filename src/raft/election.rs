//! Elections: pre-vote, vote, and the ways from one role to another.
//!
//! A node that hears no leader first asks whether it would be elected, which
//! changes nothing anywhere (thesis 9.6): a node that was cut off does not come
//! back with a higher term and depose a leader that works. Only with a majority of
//! promises does it enter a new term and ask for votes. Both questions compare
//! logs, so that a winner has every committed entry (Raft 5.4.1), and both are
//! refused by whoever hears a leader, unless that leader asked for the election.
//!
//! A vote is on disk before it is spoken of: every message waits in
//! [`super::io`] until the newest term and vote are durable. The own vote counts
//! by the same rule.

use super::message::{Effects, Message};
use super::planted::Planted;
use super::quorum::Tally;
use super::types::{HardState, LogId, Membership, NodeId, Term};
use super::{Ballots, Raft, Role};

impl Raft {
    pub(super) fn tick_election(&mut self, out: &mut Effects) {
        self.elapsed += 1;
        let is_campaigning = matches!(self.role, Role::Candidate { .. });
        if self.elapsed >= self.timeout || (self.is_alone() && !is_campaigning) {
            self.campaign(out);
        }
    }

    /// Is it the only voter? Then it waits for nobody.
    pub(super) fn is_alone(&self) -> bool {
        let config = self.members.current();
        config.voters == [self.config.id] && config.outgoing.is_empty()
    }

    /// The election time-out passed.
    pub(super) fn campaign(&mut self, out: &mut Effects) {
        if self.is_leader() || (self.is_promised() && !self.is_alone()) {
            return;
        }
        if self.is_promotable() {
            self.become_pre_candidate(out);
        } else if !matches!(self.role, Role::Follower { leader: None }) {
            self.become_follower(self.hard.term, None, out);
        }
    }

    /// May it lead? Not while it does not vote, not while the log is about to be
    /// replaced by a snapshot, and not while its disk is stalled or something on it
    /// damaged.
    fn is_promotable(&self) -> bool {
        (self.may_be_needed() || self.planted(Planted::AnyoneCampaigns))
            && (self.installing.is_none() || self.planted(Planted::CampaignWhileInstalling))
            && !self.is_disk_stalled()
            && self.is_fit_to_lead()
    }

    /// Does it vote, or would it not any more by an entry that may be lost? Such an entry can
    /// be the reason that nobody else's log is good enough to lead (thesis 4.2.2). Each
    /// configuration after what is known to be committed may be the one that was, and after a
    /// restart that is most of them.
    fn may_be_needed(&self) -> bool {
        let rules = |config: &Membership| {
            config.is_voter(self.config.id)
                && self.config.incarnation.is_none_or(|own| config.knows(self.config.id, own))
        };
        if self.planted(Planted::RemovedNeverCampaigns) {
            return rules(self.members.current());
        }
        self.members.possible(self.commit).any(rules)
    }

    /// Was a leader heard within the shortest election time-out?
    pub(super) fn hears_leader(&self) -> bool {
        if self.planted(Planted::NoStickiness) {
            return false;
        }
        match self.role {
            Role::Follower { leader } => {
                leader.is_some() && self.elapsed < self.config.election_ticks
            }
            Role::PreCandidate { .. } | Role::Candidate { .. } => false,
            Role::Leader(_) => true,
        }
    }

    fn is_up_to_date(&self, candidate: LogId) -> bool {
        if self.is_newcomer() && !self.planted(Planted::NewcomerVotes) {
            return false;
        }
        if self.planted(Planted::IndexOnlyUpToDate) {
            return candidate.index >= self.last().index;
        }
        if self.amnesia.is_some_and(|lost| candidate.term <= lost)
            && !self.planted(Planted::VoteInAmnesia)
        {
            return false; // it may miss what we acknowledged and forgot
        }
        candidate >= self.last()
    }

    /// Was this node taken in, and has received nothing yet? Who asks for its vote may have lost
    /// its disk, and take itself and its peers for the founders of a cluster: of two empty logs
    /// none is behind. No cluster counts on the vote of a newcomer: it gets one when it is
    /// caught up.
    fn is_newcomer(&self) -> bool {
        self.last() == LogId::default() && !self.members.current().is_voter(self.config.id)
    }

    /// To pre-candidate: asks around; term and vote stay.
    fn become_pre_candidate(&mut self, out: &mut Effects) {
        assert!(!self.is_leader(), "a leader does not campaign");
        self.refuse_asking(None, out);
        self.role = Role::PreCandidate { ballots: Ballots::from([(self.config.id, true)]) };
        self.restart_timer();
        self.rounds = self.rounds.saturating_add(1);
        let message = Message::PreVote { last: self.last() };
        self.ask_voters(self.hard.term.next(), &message);
        self.tally_pre_votes(out);
    }

    /// To candidate: a new term with the own vote in it (Raft 5.2). The questions
    /// leave, and the own vote counts, when both are durable.
    fn become_candidate(&mut self, transfer: bool, out: &mut Effects) {
        assert!(!self.is_leader(), "a leader does not campaign");
        self.refuse_asking(None, out);
        self.hard = HardState { term: self.hard.term.next(), vote: Some(self.config.id) };
        self.seen_seq = 0;
        self.role = Role::Candidate { ballots: Ballots::new() };
        self.rounds = 0;
        self.restart_timer();
        let message = Message::Vote { last: self.last(), transfer };
        self.ask_voters(self.hard.term, &message);
    }

    /// To follower, in `term`. In the same term the vote stays (Raft 5.2): it is
    /// given for the whole term, whatever becomes of the candidate.
    pub(super) fn become_follower(
        &mut self,
        term: Term,
        leader: Option<NodeId>,
        out: &mut Effects,
    ) {
        assert!(term >= self.hard.term, "I12: terms only grow");
        if term > self.hard.term {
            self.hard = HardState { term, vote: None };
            self.seen_seq = 0;
        } else if self.planted(Planted::StepDownClearsVote) {
            self.hard.vote = None;
        }
        match std::mem::replace(&mut self.role, Role::Follower { leader }) {
            // Not restarted: a candidate that cannot win must not keep others
            // from trying.
            Role::Follower { leader: before } => {
                if before != leader {
                    self.refuse_asking(leader, out);
                }
            }
            Role::PreCandidate { .. } | Role::Candidate { .. } => self.restart_timer(),
            Role::Leader(deposed) => {
                self.restart_timer();
                self.refuse_rounds(deposed.rounds, leader, out);
            }
        }
    }

    /// The leader of this term was heard.
    pub(super) fn follow(&mut self, from: NodeId, out: &mut Effects) {
        match self.role {
            Role::Follower { leader: Some(leader) } => {
                assert_eq!(leader, from, "I1: two leaders in term {}", self.hard.term);
            }
            Role::Follower { leader: None }
            | Role::PreCandidate { .. }
            | Role::Candidate { .. } => {
                self.become_follower(self.hard.term, Some(from), out);
            }
            Role::Leader(_) => panic!("I1: {from} leads in our term {}", self.hard.term),
        }
        self.promised_ticks = 0;
        // Believed to be gone: the time-out was cut short, or drawn out by lost rounds.
        if self.elapsed >= self.config.election_ticks || self.rounds > 0 {
            self.rounds = 0;
            self.restart_timer();
        } else {
            self.elapsed = 0;
        }
    }

    fn ask_voters(&mut self, term: Term, message: &Message) {
        for to in self.members.current().members() {
            if to != self.config.id && self.members.current().is_voter(to) {
                self.send_in(to, term, message.clone());
            }
        }
    }

    /// Answers "would you vote for me in `term`?". A refusal carries our own term:
    /// a candidate that is behind learns it and follows.
    pub(super) fn pre_vote(&mut self, from: NodeId, term: Term, last: LogId) {
        let is_fit = self.is_up_to_date(last) || self.planted(Planted::PreVoteIgnoresLog);
        let is_held = self.hears_leader() || self.is_promised();
        let granted = term > self.hard.term && !is_held && is_fit;
        let term = if granted { term } else { self.hard.term };
        self.send_in(from, term, Message::PreVoteReply { granted });
    }

    pub(super) fn pre_vote_reply(
        &mut self,
        from: NodeId,
        term: Term,
        granted: bool,
        out: &mut Effects,
    ) {
        if self.planted(Planted::PreVoteCountedAsVote) && granted && term == self.hard.term {
            return self.vote_reply(from, granted, out);
        }
        let answers = if granted { self.hard.term.next() } else { self.hard.term };
        if let Role::PreCandidate { ballots } = &mut self.role
            && term == answers
        {
            ballots.insert(from, granted);
            self.tally_pre_votes(out);
        }
    }

    fn tally_pre_votes(&mut self, out: &mut Effects) {
        let Role::PreCandidate { ballots } = &self.role else { return };
        match self.quorum().tally(|id| ballots.get(&id).copied()) {
            Tally::Won => self.become_candidate(false, out),
            Tally::Lost => self.become_follower(self.hard.term, None, out),
            Tally::Open => {}
        }
    }

    /// RequestVote (Raft 5.2): one vote per term, first come first served, and
    /// only to a log that is at least as up to date as ours. Whether we take the
    /// asker for a voter does not matter: its configuration may be the newer one.
    pub(super) fn vote(&mut self, from: NodeId, last: LogId, transfer: bool) {
        let is_free = match self.hard.vote {
            Some(vote) => vote == from || self.planted(Planted::VoteForEveryone),
            None => self.leader().is_none(),
        };
        let is_held = self.is_promised() && !transfer;
        let rests = self.installing.is_some() && !self.planted(Planted::VoteWhileInstalling);
        let granted = is_free && !is_held && !rests && self.is_up_to_date(last);
        if granted {
            self.hard.vote = Some(from);
            self.elapsed = 0;
        }
        self.send(from, Message::VoteReply { granted });
    }

    pub(super) fn vote_reply(&mut self, from: NodeId, granted: bool, out: &mut Effects) {
        let from = self.credit(from);
        if let Role::Candidate { ballots } = &mut self.role {
            ballots.insert(from, granted);
            self.tally_votes(out);
        }
    }

    /// Planted: who counts ballots by their number, and not by who cast them, counts this one
    /// for the next voter that has not answered.
    fn credit(&self, from: NodeId) -> NodeId {
        let Role::Candidate { ballots } = &self.role else { return from };
        let config = self.members.current();
        let is_second =
            self.planted(Planted::SecondCopyOfVoteCounts) && ballots.contains_key(&from);
        let is_outside = self.planted(Planted::OutsiderVoteCounts) && !config.is_voter(from);
        let mut open = config.voters.iter().filter(|id| !ballots.contains_key(id));
        open.find(|_| is_second || is_outside).copied().unwrap_or(from)
    }

    /// Our own vote counts once it cannot be forgotten.
    pub(super) fn count_own_vote(&mut self, out: &mut Effects) {
        if let Role::Candidate { ballots } = &mut self.role
            && self.ledger.is_hard_state_durable()
            && ballots.insert(self.config.id, true).is_none()
        {
            self.tally_votes(out);
        }
    }

    fn tally_votes(&mut self, out: &mut Effects) {
        let Role::Candidate { ballots } = &self.role else { return };
        match self.quorum().tally(|id| ballots.get(&id).copied()) {
            Tally::Won => self.become_leader(out),
            Tally::Lost => self.become_follower(self.hard.term, None, out),
            Tally::Open => {}
        }
    }

    /// The leader asks us to campaign at once (thesis 3.10): no pre-vote, and
    /// nobody refuses for hearing the leader, since it is the leader's wish.
    pub(super) fn timeout_now(&mut self, from: NodeId, out: &mut Effects) {
        let is_todays = self.leader() == Some(from) || self.planted(Planted::LateTimeoutNow);
        if is_todays && !self.is_leader() && self.is_promotable() {
            self.become_candidate(true, out);
        }
    }
}
