//! Changing who belongs to the cluster (thesis 4).
//!
//! A change names the configuration that is wanted. If the set of voters changes by one at
//! most, it is one entry: any two majorities of the old and the new set share a node (4.1).
//! Else it takes two (4.3): a *joint* entry, under which both sets must agree on everything,
//! and, once that is committed, an entry that drops the old set. The second is appended by
//! whoever leads then, without being asked, so a change that was begun is ended even if its
//! leader dies, or it is cut off with the entry and never was.
//!
//! One change at a time, and none before the leader has committed an entry of its own term:
//! without that barrier two leaders could each change half of the cluster (Ongaro's
//! correction of 2015). Refused as well is what would leave a majority of silent voters, and
//! a voter that is not up to date: it would hold up every commit.
//!
//! A leader that its own change removes goes on until the change is committed, without
//! counting itself (4.2.2), then tells the best of the others to campaign. Whoever is removed
//! is told the commit index once more, so that it knows.

use super::message::{AppendSource, ChangeRefusal, Effects, Message};
use super::planted::Planted;
use super::progress::Progress;
use super::types::{Index, LogId, Membership, NodeId};
use super::{Raft, Role};

/// Entries that a node may lack and still become a voter.
const PROMOTE_LAG: u64 = 256;
/// Election time-outs for which a removed node is told of its removal.
const LEAVING_TIMEOUTS: u32 = 4;

/// A removed node that is told so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    /// The entry that removed it.
    index: Index,
    ticks: u32,
}

impl Raft {
    pub(super) fn reconfigure(&mut self, target: &Membership, out: &mut Effects) {
        out.reconfigured = Some(self.change_to(target, out));
    }

    fn change_to(
        &mut self,
        target: &Membership,
        out: &mut Effects,
    ) -> Result<LogId, ChangeRefusal> {
        self.may_change()?;
        let current = self.members.current();
        check_shape(target)?;
        if current == target {
            return Err(ChangeRefusal::Unchanged);
        }
        for id in target.voters.iter().filter(|id| !current.voters.contains(id)) {
            if !self.is_caught_up(*id) && !self.planted(Planted::PromoteBehind) {
                return Err(ChangeRefusal::Behind(*id));
            }
        }
        let answering = target.voters.iter().filter(|id| self.is_answering(**id)).count();
        let (needed, voters) = (target.voters.len() / 2 + 1, target.voters.len());
        let Role::Leader(leader) = &self.role else { return Err(ChangeRefusal::NotReady) };
        if answering < needed && leader.age < self.config.election_ticks {
            return Err(ChangeRefusal::NotReady); // they had no time to answer
        }
        if answering < needed && !self.planted(Planted::QuorumUnchecked) {
            return Err(ChangeRefusal::NoQuorum { answering, voters });
        }
        let at_once = self.planted(Planted::ReplaceInOneStep);
        let next = if at_once { target.clone() } else { step_towards(current, target) };
        Ok(self.append_config(next, out))
    }

    /// Is this the leader, and nothing under way that forbids a change?
    fn may_change(&self) -> Result<(), ChangeRefusal> {
        let Role::Leader(leader) = &self.role else {
            return Err(ChangeRefusal::NotLeader(self.leader()));
        };
        if leader.transfer.is_some() {
            return Err(ChangeRefusal::Transferring);
        }
        if self.commit < leader.first && !self.planted(Planted::NoOwnTermBarrier) {
            return Err(ChangeRefusal::NotReady);
        }
        let is_changing = self.members.newest() > self.commit || self.members.current().is_joint();
        if is_changing && !self.planted(Planted::TwoChangesAtOnce) {
            return Err(ChangeRefusal::Pending);
        }
        Ok(())
    }

    /// Would it hold up no commit as a voter?
    fn is_caught_up(&self, id: NodeId) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        leader.progress.get(&id).is_some_and(|progress| {
            progress.matched.0 + PROMOTE_LAG >= self.last().index.0
                && progress.matched >= leader.first
                && progress.silent_ticks < self.config.election_ticks
        })
    }

    /// Does it follow us, and was it heard lately?
    fn is_answering(&self, id: NodeId) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        id == self.config.id
            || leader.progress.get(&id).is_some_and(|progress| {
                progress.matched >= leader.first
                    && progress.silent_ticks < self.config.election_ticks
            })
    }

    fn append_config(&mut self, config: Membership, out: &mut Effects) -> LogId {
        let before = self.members.current().clone();
        let index = self.last().index.next();
        self.members.append(index, config);
        self.follow_members(&before, index);
        self.append_own(index, AppendSource::Config, out);
        LogId { term: self.hard.term, index }
    }

    /// Begins to send to new members, and ends to send to old ones, though not at once.
    fn follow_members(&mut self, before: &Membership, index: Index) {
        let now = self.members.current().clone();
        let (own, inherits) = (self.config.id, self.planted(Planted::NewLifeInherits));
        let Role::Leader(leader) = &mut self.role else { return };
        let (was, members) = (before.members(), now.members());
        for &id in members.iter().filter(|id| **id != own) {
            leader.leaving.remove(&id);
            // A new incarnation of a member has nothing of what the old one had. Nor does
            // whoever was removed, is still told so, and comes back: perhaps as another one.
            let known = before.incarnations.get(&id);
            let is_other = known.is_some_and(|old| now.incarnations.get(&id) != Some(old));
            if (is_other || !was.contains(&id)) && !inherits {
                leader.progress.remove(&id);
            }
            leader.progress.entry(id).or_insert_with(|| Progress::new(index));
        }
        for &id in leader.progress.keys() {
            if !members.contains(&id) {
                leader.leaving.entry(id).or_insert(Leaving { index, ticks: 0 });
            }
        }
        if leader.transfer.as_ref().is_some_and(|transfer| !now.voters.contains(&transfer.to)) {
            leader.transfer = None;
        }
    }

    /// After the commit index moved: ends a joint change, or our own leadership.
    pub(super) fn continue_change(&mut self, out: &mut Effects) {
        let Role::Leader(leader) = &self.role else { return };
        let is_early = self.members.newest() > self.commit || self.commit < leader.first;
        if is_early && !self.planted(Planted::JointLeftEarly) {
            return;
        }
        let current = self.members.current();
        if current.is_joint() && current.auto_leave {
            if self.planted(Planted::JointForEver) {
                return;
            }
            let next = left(current);
            self.append_config(next, out);
        } else if !current.is_voter(self.config.id) && !self.planted(Planted::RemovedLeaderStays) {
            self.leave_lead(out);
        }
    }

    /// The cluster goes on without us: somebody else leads now (thesis 4.2.2).
    fn leave_lead(&mut self, out: &mut Effects) {
        let last = self.last().index;
        let Role::Leader(leader) = &self.role else { return };
        let voters = &self.members.current().voters;
        let heir = leader.progress.iter().find(|(id, progress)| {
            voters.contains(id)
                && progress.matched == last
                && progress.silent_ticks < self.config.election_ticks
        });
        let heir = heir.map(|(id, _)| *id);
        for to in self.others() {
            self.send_heartbeat(to);
        }
        if let Some(heir) = heir {
            self.send(heir, Message::TimeoutNow);
        }
        self.become_follower(self.hard.term, None, out);
    }

    /// Once a tick: learners that wait to vote, and nodes that were removed.
    pub(super) fn tick_members(&mut self, out: &mut Effects) {
        let limit = LEAVING_TIMEOUTS * self.config.election_ticks;
        let Role::Leader(leader) = &mut self.role else { return };
        let progress = &mut leader.progress;
        leader.leaving.retain(|id, leaving| {
            leaving.ticks += 1;
            let knows = progress.get(id).is_some_and(|progress| progress.matched >= leaving.index)
                && progress.get(id).is_some_and(|progress| progress.told_commit >= leaving.index);
            let keep = leaving.ticks < limit && !knows;
            if !keep {
                progress.remove(id);
            }
            keep
        });
        if self.may_change().is_err() {
            return;
        }
        let current = self.members.current();
        let Some(&id) = current.promote.iter().find(|id| self.is_caught_up(**id)) else { return };
        let mut target = current.clone();
        target.promote.retain(|other| *other != id);
        target.learners.retain(|other| *other != id);
        target.voters.push(id);
        target.voters.sort_unstable();
        // Refused now, tried again at the next tick.
        let _refused = self.change_to(&target, out);
    }
}

/// Is it a configuration that a cluster can have?
fn check_shape(target: &Membership) -> Result<(), ChangeRefusal> {
    let sorted = |ids: &[NodeId]| ids.is_sorted_by(|a, b| a < b);
    let impossible = |why| Err(ChangeRefusal::Impossible(why));
    if target.voters.is_empty() {
        return impossible("a cluster needs a voter");
    }
    if !sorted(&target.voters) || !sorted(&target.learners) || !sorted(&target.promote) {
        return impossible("a member is named twice");
    }
    if target.voters.iter().any(|id| target.learners.contains(id)) {
        return impossible("a member is voter and learner");
    }
    if !target.promote.iter().all(|id| target.learners.contains(id)) {
        return impossible("only learners are promoted");
    }
    if target.is_joint() || !target.learners_next.is_empty() {
        return impossible("a change ends in one set of voters");
    }
    if target.members().contains(&NodeId(0)) {
        return impossible("node 0 is nobody");
    }
    Ok(())
}

/// The configuration to append first: the target itself if one voter changes, else both sets.
fn step_towards(current: &Membership, target: &Membership) -> Membership {
    let added = target.voters.iter().filter(|id| !current.voters.contains(id)).count();
    let removed = current.voters.iter().filter(|id| !target.voters.contains(id)).count();
    if added + removed <= 1 {
        return target.clone();
    }
    let (learners_next, learners): (Vec<_>, Vec<_>) =
        target.learners.iter().partition(|id| current.voters.contains(id));
    let mut joint = Membership {
        outgoing: current.voters.clone(),
        learners,
        learners_next,
        auto_leave: true,
        ..target.clone()
    };
    // Whoever leaves is still spoken to.
    for id in &current.voters {
        if let Some(address) = current.addresses.get(id) {
            joint.addresses.entry(*id).or_insert_with(|| address.clone());
        }
        if let Some(incarnation) = current.incarnations.get(id) {
            joint.incarnations.entry(*id).or_insert(*incarnation);
        }
    }
    joint
}

/// What follows a joint configuration.
fn left(joint: &Membership) -> Membership {
    let mut next = joint.clone();
    next.outgoing.clear();
    next.auto_leave = false;
    next.learners.append(&mut next.learners_next);
    next.learners.sort_unstable();
    let members = next.members();
    next.addresses.retain(|id, _| members.contains(id));
    next.incarnations.retain(|id, _| members.contains(id));
    next
}
