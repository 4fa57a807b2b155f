//! Who belongs to the cluster, as the driver sees it: changes that operators ask for, and
//! which life of a member counts.
//!
//! A data folder has an *incarnation*, drawn when it was made; every packet carries that of
//! its sender. The leader writes into the configuration whose packets it hears, once. From
//! then on whatever another life of a node answers counts nothing: a wiped node has forgotten
//! its votes and its acknowledgements. What such a node asks is answered all the same, and
//! what it would lead is decided by others' logs.

use std::collections::{BTreeMap, BTreeSet};

use super::Core;
use crate::node::members::{MemberChange, NotChanged};
use crate::node::work::{Answer, Work};
use crate::raft::message::{Input, Message};
use crate::raft::types::{LogId, Membership, NodeId};
use crate::store::StoreError;
use crate::wire::{self, Aside, Content, Packet};

/// Ticks between two attempts to write down lives that are known, while others are not.
const RECORD_TICKS: u64 = 200;
/// Ticks after which a stranger is told again that it is one.
const TELL_TICKS: u64 = 40;
/// Ticks for which an answer of a life that the cluster does not know is an alarm.
const ALARM_TICKS: u64 = 5 * TELL_TICKS;

/// Which lives of the members were heard.
#[derive(Debug, Default)]
pub(super) struct Lives {
    heard: BTreeMap<NodeId, u64>,
    /// Members whose answers come from another life than the one the cluster knew then.
    /// Its life as it was known, and the tick of the last answer.
    foreign: BTreeMap<NodeId, (u64, u64)>,
    /// Who was told lately that it is a stranger.
    told: BTreeSet<NodeId>,
    /// Somebody called us a stranger, and no leader speaks to us.
    is_stranger: bool,
}

impl<W> Core<W> {
    /// The cluster changes, if it may; the answer comes once the change is applied here.
    pub(super) fn change_members(
        &mut self,
        waiter: W,
        change: &MemberChange,
        work: &mut Work<W>,
    ) -> Result<(), StoreError> {
        if let MemberChange::Add { id, incarnation: None, .. } = change {
            self.lives.heard.remove(id); // whoever answers from now on is meant
        }
        let refused = match change.target(self.raft.membership()) {
            Ok(target) => match self.reconfigure(target, work)? {
                Ok(first) => {
                    self.wait_for(first, vec![waiter], work);
                    return Ok(());
                }
                Err(refusal) => refusal,
            },
            Err(why) => why,
        };
        work.answers.push((waiter, Answer::Changed(Err(refused))));
        Ok(())
    }

    fn reconfigure(
        &mut self,
        target: Membership,
        work: &mut Work<W>,
    ) -> Result<Result<LogId, NotChanged>, StoreError> {
        // A joint configuration holds at most what both hold.
        let encoded = |membership| wire::encode_membership(membership).len();
        if encoded(&target) + encoded(self.raft.membership()) > wire::MEMBERSHIP_MAX {
            return Ok(Err(NotChanged::TooMany));
        }
        self.effects.reconfigured = None;
        self.step(Input::Reconfigure { target }, work)?;
        let outcome = self.effects.reconfigured.take().expect("answered in the same step");
        Ok(outcome.map_err(NotChanged::from))
    }

    /// May this packet count? Notes whose life it comes from.
    pub(super) fn is_of_a_known_life(&mut self, packet: &Packet, work: &mut Work<W>) -> bool {
        let (from, incarnation) = (packet.from, packet.incarnation);
        let membership = self.raft.membership();
        let is_member = membership.members().contains(&from);
        // Whoever knows no voter knows nothing about members.
        let is_known = is_member && membership.knows(from, incarnation);
        if !(is_known || membership.voters.is_empty()) && self.lives.told.insert(from) {
            work.packets.push(self.aside(from, Aside::Stranger, Vec::new()));
        }
        let membership = self.raft.membership();
        if !is_member {
            return true; // the protocol knows what to do with strangers
        }
        self.lives.heard.insert(from, incarnation);
        if membership.knows(from, incarnation) {
            self.lives.foreign.remove(&from);
            return true;
        }
        if let Some(known) = membership.incarnations.get(&from) {
            self.lives.foreign.insert(from, (*known, self.ticks));
        }
        let Content::Protocol(envelope) = &packet.content else { return true };
        match envelope.message {
            Message::PreVoteReply { .. }
            | Message::VoteReply { .. }
            | Message::Accepted { .. }
            | Message::Rejected { .. }
            | Message::HeartbeatReply { .. } => false,
            // Whoever asks may know a newer configuration than we do.
            Message::PreVote { .. }
            | Message::Vote { .. }
            | Message::Append { .. }
            | Message::Heartbeat { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexReply { .. }
            | Message::TimeoutNow => true,
        }
    }

    /// A leader has nothing to say to a life that the cluster does not know: what it believes
    /// of this node was true of another one.
    pub(super) fn may_lead(&self, to: NodeId) -> bool {
        !self.is_foreign(to, TELL_TICKS)
    }

    /// Did the life that was heard last, not long ago, contradict the one that the cluster
    /// knows now? It may have been a late packet: after a while the node is spoken to again.
    fn is_foreign(&self, id: NodeId, within: u64) -> bool {
        let known = self.raft.membership().incarnations.get(&id);
        self.lives
            .foreign
            .get(&id)
            .is_some_and(|(then, tick)| Some(then) == known && self.ticks - tick < within)
    }

    /// Somebody says that this node does not belong to the cluster. That is an alarm and no
    /// more: who says so may be behind.
    pub(super) fn called_stranger(&mut self) {
        self.lives.is_stranger = true;
    }

    /// Writes down the lives that are known and not written, once a tick, if this node leads.
    pub(super) fn record_lives(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        if self.ticks.is_multiple_of(TELL_TICKS) {
            self.lives.told.clear();
        }
        self.lives.is_stranger &= self.raft.leader().is_none();
        let membership = self.raft.membership();
        let members = membership.members();
        if !self.raft.is_leader()
            || members.len() < 2
            || members.iter().all(|id| membership.incarnations.contains_key(id))
        {
            return Ok(());
        }
        let mut target = membership.clone();
        self.lives.heard.insert(self.us.node, self.us.incarnation);
        for id in &members {
            if let Some(heard) = self.lives.heard.get(id) {
                target.incarnations.entry(*id).or_insert(*heard);
            }
        }
        let all_known = members.iter().all(|id| target.incarnations.contains_key(id));
        if target.incarnations != membership.incarnations
            && (all_known || self.ticks.is_multiple_of(RECORD_TICKS))
        {
            // Refused now, tried again at the next tick.
            drop(self.reconfigure(target, work)?);
        }
        Ok(())
    }

    /// Does somebody answer in the name of a member whose data folder is another one?
    pub(super) fn hears_foreign_lives(&self) -> bool {
        self.lives.foreign.keys().any(|id| self.is_foreign(*id, ALARM_TICKS))
    }

    /// Does the cluster know this node, in this life?
    #[must_use]
    pub fn is_member(&self) -> bool {
        let membership = self.raft.membership();
        !self.lives.is_stranger
            && membership.members().contains(&self.us.node)
            && membership.knows(self.us.node, self.us.incarnation)
    }

    /// Where packets may go: the addresses of the members. Those of former members stay of
    /// use: they are told that they are removed, and one of them may lead until then.
    pub fn addresses(&self) -> &BTreeMap<NodeId, String> {
        &self.raft.membership().addresses
    }
}
